"""A server process behind a key: who may come in, and what the others are told."""

from __future__ import annotations

import stat
import subprocess
import sys
import time

import msgspec
import psutil
import pytest
from filelock import FileLock

from mobillm_kit.channel.join import JoinString
from mobillm_kit.channel.keys import OneTimeCodes
from mobillm_kit.device.client import route_to
from mobillm_kit.errors import BadInput, HandshakeFailed, ServerRefused
from mobillm_kit.server.process import ServerProcess, serve
from tests.uplink import trained

SECONDS = 20.0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("uplink")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server that encrypts and knows nobody yet."""
    with serve(keys=tmp_path_factory.mktemp("keys")) as process:
        yield process


def test_a_join_string_lets_a_device_in_and_its_key_is_known_from_then_on(place, guarded, tmp_path):
    keys = str(tmp_path / "device")
    first, _ = trained(place, guarded.join, keys=keys, codec="int8", group=8)
    used_up = str(JoinString(guarded.address, JoinString.parse(guarded.join).server_key))
    again, _ = trained(place, used_up, keys=keys, codec="int8", group=8)
    together, _ = trained(place, "in-process", codec="int8", group=8)
    assert first == again == together


def test_an_unknown_key_without_a_code_is_turned_away_with_a_sentence(place, guarded, tmp_path):
    strange = str(JoinString(guarded.address, JoinString.parse(guarded.join).server_key))
    started = time.monotonic()
    with pytest.raises((HandshakeFailed, ServerRefused), match="key"):
        trained(place, strange, keys=str(tmp_path / "stranger"))
    assert time.monotonic() - started < SECONDS


def test_keys_in_trouble_are_said_to_one_device_and_the_others_go_on(place, tmp_path):
    with serve(tmp_path / "server", keys=tmp_path / "keys") as server:
        known, strange = str(tmp_path / "known"), str(tmp_path / "strange")
        before, _ = trained(place, server.join, keys=known)
        join = str(JoinString(server.address, JoinString.parse(server.join).server_key, new_code(tmp_path / "keys")))
        with FileLock(tmp_path / "keys" / ".codes.json.lock"), pytest.raises(ServerRefused, match="FolderBusy"):
            trained(place, join, keys=strange)
        assert trained(place, join, keys=known)[0] == before
        (tmp_path / "keys" / "known.json").write_text("{broken")
        with pytest.raises((HandshakeFailed, ServerRefused)):
            trained(place, join, keys=known)
        (tmp_path / "keys" / "known.json").unlink()
        join = str(JoinString(server.address, JoinString.parse(server.join).server_key, new_code(tmp_path / "keys")))
        assert trained(place, join, keys=strange)[0] == before


def new_code(keys) -> str:
    return OneTimeCodes(keys / "codes.json").new_code()


def test_a_server_that_nobody_holds_ends(tmp_path):
    pids = []
    for _ in range(3):
        server = ServerProcess(tmp_path)  # as a cell that runs again
        pids.append(server.pid)
    assert [running(pid) for pid in pids] == [False, False, True]
    del server
    assert not running(pids[-1])


def running(pid: int) -> bool:
    return psutil.pid_exists(pid)


def test_what_a_server_keeps_is_for_its_owner_alone(place, tmp_path):
    with serve(tmp_path / "server") as server:
        trained(place, server.address, checkpoint_every=1)
    kept = list((tmp_path / "server").rglob("*"))
    assert any(path.is_file() for path in kept)
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept if path.is_file()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept if path.is_dir()} == {0o700}


def test_another_bind_than_loopback_needs_keys(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "mobillm_kit.cli", "server", "--bind", "tcp://0.0.0.0:0", "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "key" in ended.stderr


@pytest.mark.parametrize("nonsense", ["nowhere", "http://127.0.0.1:80", "tcp://host", "mobillm://host:1"])
def test_what_is_no_server_is_refused_at_once(nonsense):
    with pytest.raises(BadInput), route_to(nonsense):
        pass


def test_a_server_ends_with_the_process_that_started_it(tmp_path):
    child = (
        "import sys, time; from pathlib import Path; from mobillm_kit.server.process import ServerProcess\n"
        "server = ServerProcess(Path(sys.argv[1])); print(server.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", child, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait(5)
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(pid)


def test_closing_a_server_takes_less_than_two_seconds(tmp_path):
    server = ServerProcess(tmp_path)
    started = time.monotonic()
    server.close()
    assert time.monotonic() - started < 2.0
    assert not server.running


def test_the_announcement_says_how_to_join(guarded):
    start = guarded.start
    assert msgspec.json.decode(msgspec.json.encode(start), type=type(start)) == start
    assert JoinString.parse(start.join).address == start.address


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().split()[2] != "Z"
    except OSError:
        return False
