"""Keys, allow-list, one-time codes and join strings keep their promises on disk and in text."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobillm_kit.channel import keys as keys_module
from mobillm_kit.channel.join import CODE_ALPHABET, Z85, JoinString, check_code, check_key, is_loopback
from mobillm_kit.channel.keys import AllowList, KeyPair, OneTimeCodes, load_or_make_keys, new_keys
from mobillm_kit.errors import BadInput, FolderBusy, SaveFailed

posix = pytest.mark.skipif(os.name != "posix", reason="file modes are a POSIX thing")

# Z85 text of 32 bytes each: every block of five characters stands for four bytes
key_texts = st.binary(min_size=32, max_size=32).map(lambda data: _z85(data))


def _z85(data: bytes) -> str:
    blocks = (int.from_bytes(data[i : i + 4], "big") for i in range(0, len(data), 4))
    return "".join(Z85[block // 85**power % 85] for block in blocks for power in (4, 3, 2, 1, 0))


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- the key pair


def test_keys_are_made_once_and_then_stay(tmp_path):
    first = load_or_make_keys(tmp_path / "keys")
    assert load_or_make_keys(tmp_path / "keys") == first
    assert load_or_make_keys(tmp_path / "other") != first


@posix
def test_only_the_owner_may_read_the_key_file(tmp_path):
    before = os.umask(0)
    try:
        load_or_make_keys(tmp_path / "keys")
    finally:
        os.umask(before)
    assert _mode(tmp_path / "keys" / "curve.json") == 0o600
    assert _mode(tmp_path / "keys") == 0o700


def test_nothing_is_left_beside_the_key_file(tmp_path):
    load_or_make_keys(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"curve.json", ".curve.json.lock"}


def test_the_secret_key_is_not_shown(tmp_path):
    keys = load_or_make_keys(tmp_path)
    assert keys.secret not in repr(keys)
    assert keys.public in repr(keys)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"{", b"[]", b"{}", b'{"public": "a", "secret": "b"}', b'{"public": 1, "secret": 2}'],
)
def test_a_damaged_key_file_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "curve.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"curve\.json"):
        load_or_make_keys(tmp_path)
    assert (tmp_path / "curve.json").read_bytes() == content


def test_two_keys_that_do_not_belong_together_are_refused(tmp_path):
    keys, other = load_or_make_keys(tmp_path), new_keys()
    path = tmp_path / "curve.json"
    path.write_text(path.read_text().replace(keys.public, other.public))
    with pytest.raises(BadInput, match="belong together"):
        load_or_make_keys(tmp_path)


def test_processes_that_start_together_agree_on_one_key(tmp_path):
    code = """
import pathlib, sys
from mobillm_kit.channel.keys import load_or_make_keys
print(load_or_make_keys(pathlib.Path(sys.argv[1])).public)
"""
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    publics = {process.communicate(timeout=60)[0].strip() for process in started}
    assert publics == {load_or_make_keys(tmp_path).public}


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "keys").write_text("in the way")
    with pytest.raises(SaveFailed, match="keys"):
        load_or_make_keys(tmp_path / "keys")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("", "0 characters"), ("a" * 39, "39 characters"), ("a" * 39 + "ß", "'ß'"), ("#" * 40, "no 32 bytes")],
)
def test_a_text_that_is_no_key_is_named(text, complaint):
    with pytest.raises(BadInput, match=complaint):
        check_key(text, "server key")


@given(key_texts)
def test_every_key_is_taken(text):
    assert check_key(text, "key") == text


def test_our_z85_is_the_one_of_zmq():
    from zmq.utils import z85

    data = bytes(range(224, 256))
    assert _z85(data).encode() == z85.encode(data)


# --- the allow-list


def test_a_key_is_added_and_relabelled(tmp_path):
    allowed, key = AllowList(tmp_path / "allowed.json"), new_keys().public
    assert key not in allowed
    allowed.add(key, "tablet")
    allowed.add(key, "Nadia’s tablet")
    assert json.loads((tmp_path / "allowed.json").read_text()) == {key: "Nadia’s tablet"}


def test_a_change_by_somebody_else_is_seen(tmp_path):
    mine, theirs, key = AllowList(tmp_path / "a.json"), AllowList(tmp_path / "a.json"), new_keys().public
    assert key not in mine
    theirs.add(key, "a")
    assert key in mine
    (tmp_path / "a.json").write_text("{}")
    assert key not in mine


def test_keys_added_at_the_same_time_are_all_kept(tmp_path):
    publics = [new_keys().public for _ in range(8)]
    threads = [threading.Thread(target=AllowList(tmp_path / "a.json").add, args=(key, "x")) for key in publics]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert set(json.loads((tmp_path / "a.json").read_text())) == set(publics)


@posix
def test_only_the_owner_may_read_the_list(tmp_path):
    AllowList(tmp_path / "a.json").add(new_keys().public)
    assert _mode(tmp_path / "a.json") == 0o600


@pytest.mark.parametrize("label", ["a\nb", "a" * 65, "\x1b[2J"])
def test_a_label_that_cannot_be_shown_is_refused(tmp_path, label):
    allowed = AllowList(tmp_path / "a.json")
    with pytest.raises(BadInput, match="label"):
        allowed.add(new_keys().public, label)
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("content", [b"", b"\xff", b'{"short": "label"}', b'["a"]'])
def test_a_damaged_list_lets_nobody_in(tmp_path, content):
    path = tmp_path / "a.json"
    allowed, key = AllowList(path), new_keys().public
    allowed.add(key, "tablet")
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"a\.json"):
        _ = key in allowed
    with pytest.raises(BadInput, match=r"a\.json"):
        AllowList(path)
    with pytest.raises(BadInput, match=r"a\.json"):
        allowed.add(key, "tablet")
    assert path.read_bytes() == content


def test_waiting_for_the_list_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(keys_module, "LOCK_LIMIT_S", 0.2)
    path = tmp_path / "a.json"
    code = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print(flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(tmp_path / ".a.json.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        try:
            other.stdout.readline()
            with pytest.raises(FolderBusy, match=r"a\.json"):
                AllowList(path).add(new_keys().public, "x")
        finally:
            other.kill()


# --- one-time codes


def test_a_code_is_good_once(tmp_path):
    codes = OneTimeCodes(tmp_path / "codes.json")
    assert not codes.waiting
    code = codes.new_code()
    assert codes.waiting
    assert codes.use(code)
    assert not codes.use(code)
    assert not codes.waiting


def test_a_code_is_good_once_among_servers_of_one_folder(tmp_path):
    mine, theirs = OneTimeCodes(tmp_path / "codes.json"), OneTimeCodes(tmp_path / "codes.json")
    code = mine.new_code()
    answers = []
    threads = [threading.Thread(target=lambda c=c: answers.append(c.use(code))) for c in (mine, theirs, mine, theirs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(answers) == [False, False, False, True]


def test_one_code_does_not_spend_another(tmp_path):
    codes = OneTimeCodes(tmp_path / "codes.json")
    first, second = codes.new_code(), codes.new_code()
    assert codes.use(first)
    assert codes.use(second)


def test_a_code_can_be_typed_carelessly(tmp_path):
    codes = OneTimeCodes(tmp_path / "codes.json")
    code = codes.new_code()
    assert codes.use(" " + code.lower().replace("-", " "))


@pytest.mark.parametrize("wrong", ["", "AAAA-AAAA-AAAA", "x" * 100_000, "\0", "ß", "🙂"])
def test_a_wrong_code_spends_nothing(tmp_path, wrong):
    codes = OneTimeCodes(tmp_path / "codes.json")
    code = codes.new_code()
    assert not codes.use(wrong)
    assert codes.use(code)


def test_a_code_ends_when_its_time_is_up(tmp_path, monkeypatch):
    codes = OneTimeCodes(tmp_path / "codes.json")
    code = codes.new_code(lifetime_s=600)
    now = keys_module.time.time()
    monkeypatch.setattr(keys_module.time, "time", lambda: now + 599)
    assert codes.waiting
    monkeypatch.setattr(keys_module.time, "time", lambda: now + 601)
    assert not codes.waiting
    assert not codes.use(code)


def test_the_file_does_not_tell_the_code(tmp_path):
    code = OneTimeCodes(tmp_path / "codes.json").new_code()
    text = (tmp_path / "codes.json").read_text()
    assert code not in text
    assert code.replace("-", "") not in text


def test_a_code_is_short_and_can_be_read_aloud(tmp_path):
    codes = OneTimeCodes(tmp_path / "codes.json")
    made = {codes.new_code() for _ in range(20)}
    assert len(made) == 20
    assert all(re.fullmatch(rf"[{CODE_ALPHABET}]{{4}}(-[{CODE_ALPHABET}]{{4}}){{2}}", code) for code in made)
    assert not set("0O1IL") & set(CODE_ALPHABET)


@pytest.mark.parametrize("lifetime_s", [0, -1, float("nan"), float("inf"), 8 * 24 * 3600])
def test_a_lifetime_that_makes_no_sense_is_refused(tmp_path, lifetime_s):
    with pytest.raises(BadInput, match="live"):
        OneTimeCodes(tmp_path / "codes.json").new_code(lifetime_s)


@pytest.mark.parametrize("content", ["", "{", '[{"salt": "zz"}]', '[{"salt": "zz", "digest": "zz", "expires": 1e99}]'])
def test_a_damaged_file_of_codes_is_refused(tmp_path, content):
    (tmp_path / "codes.json").write_text(content)
    with pytest.raises(BadInput, match=r"codes\.json"):
        OneTimeCodes(tmp_path / "codes.json")


# --- the join string


@given(key_texts, st.sampled_from(["10.0.0.7", "lab-pc.example.org", "[fe80::1]"]), st.integers(1, 65535))
def test_a_join_string_comes_back_as_it_was(key, host, port):
    join = JoinString(f"tcp://{host}:{port}", key, "2345-6789-ABCD")
    assert JoinString.parse(str(join)) == join


def test_the_awkward_characters_of_a_key_survive():
    key = "&#%?=" + "+/@:*" * 7
    join = JoinString("tcp://10.0.0.7:5555", key)
    assert JoinString.parse(f'  "{join}" \n').server_key == key
    assert not set("#&?=+/@ ") & set(str(join).partition("key=")[2])


def test_a_join_string_as_people_see_it():
    key = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"  # the key of ZeroMQ's own manual
    assert str(JoinString("tcp://10.0.0.7:5555", key, "2345-6789-ABCD")) == (
        "mobillm://10.0.0.7:5555?key=rq%3ArM%3E%7DU%3F%40Lns47E1%25kR.o%40n%25FcmmsL%2F%40%7BH8%5Dyf7"
        "&code=2345-6789-ABCD"
    )


def test_this_machine_may_be_joined_without_a_key():
    assert JoinString.parse("mobillm://127.0.0.1:5555") == JoinString("tcp://127.0.0.1:5555")
    assert str(JoinString("tcp://[::1]:5555")) == "mobillm://[::1]:5555"


KEY = "key=" + "a" * 40


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "mobillm://"),
        ("http://10.0.0.7:5555?" + KEY, "mobillm://"),
        ("tcp://10.0.0.7:5555?" + KEY, "mobillm://"),
        ("mobillm://:5555?" + KEY, "no host"),
        ("mobillm://a b:5555?" + KEY, "no host"),
        ("mobillm://0.0.0.0:5555?" + KEY, "no place to go"),
        ("mobillm://*:5555?" + KEY, "no place to go"),
        ("mobillm://10.0.0.7?" + KEY, "no port"),
        ("mobillm://10.0.0.7:0?" + KEY, "port 0"),
        ("mobillm://10.0.0.7:70000?" + KEY, "70000|range"),
        ("mobillm://10.0.0.7:http?" + KEY, "http"),
        ("mobillm://me@10.0.0.7:5555?" + KEY, "more than a host"),
        ("mobillm://10.0.0.7:5555/path?" + KEY, "more than a host"),
        ("mobillm://[fe80::1:5555?" + KEY, "not understood"),
        ("mobillm://10.0.0.7:5555", "no server key"),
        ("mobillm://10.0.0.7:5555?key=", "no server key"),
        ("mobillm://10.0.0.7:5555?key=abc", "3 characters"),
        ("mobillm://10.0.0.7:5555?key=" + "~" * 40, "'~'"),
        ("mobillm://10.0.0.7:5555?" + KEY + "&" + KEY, "two parts key="),
        ("mobillm://10.0.0.7:5555?" + KEY + "&code=0000-0000-0000", "code holds '0'"),
        ("mobillm://10.0.0.7:5555?" + KEY + "&code=2345", "code has 4"),
        ("mobillm://10.0.0.7:5555?" + KEY + "&name=x", "name=x"),
        ("mobillm://10.0.0.7:5555?" + KEY + "&", "''"),
    ],
)
def test_each_wrong_part_of_a_join_string_is_named(text, complaint):
    with pytest.raises(BadInput, match=complaint):
        JoinString.parse(text)


@given(st.text(max_size=80).map(lambda text: "mobillm://" + text) | st.text(max_size=40))
def test_no_text_makes_the_parser_fail_otherwise(text):
    remedy = "none is needed"
    try:
        JoinString.parse(text)
    except BadInput as error:
        remedy = error.remedy
    assert remedy


def test_a_code_is_put_into_its_usual_form():
    assert check_code(" 2345 6789abcd ") == "2345-6789-ABCD"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_is_known(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org", "*", "localhost.evil.org", "eth0"])
def test_everything_else_is_not_this_machine(host):
    assert not is_loopback(host)


def test_a_key_pair_is_checked_when_it_is_made():
    with pytest.raises(BadInput, match="secret key"):
        KeyPair("a" * 40, "short")
