"""A class's list: who is invited, whose device comes in, and what a broken database costs."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import subprocess
import sys
import threading
import unicodedata
from contextlib import closing
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobillm_kit.channel.join import JoinString
from mobillm_kit.channel.keys import new_keys
from mobillm_kit.classroom import database, invitations
from mobillm_kit.classroom.database import RosterError
from mobillm_kit.classroom.folder import ClassFolder, own_address
from mobillm_kit.classroom.roster import NotAdmitted, Roster, check_name, fold
from mobillm_kit.cli import main
from mobillm_kit.errors import BadInput

WAIT_S = 20
FSIZE = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"


@pytest.fixture
def roster(tmp_path):
    return Roster.make(tmp_path / "class.sqlite")


@pytest.fixture
def begun(tmp_path):
    """A class's folder, made by the command."""
    assert (
        main(["class", "init", str(tmp_path / "bio"), "--bind", "tcp://127.0.0.1:7001", "--advertise", "localhost"])
        == 0
    )
    return tmp_path / "bio"


@pytest.fixture
def keys():
    return [new_keys().public for _ in range(4)]


def states(roster) -> dict[str, str]:
    return {line.name: line.state for line in roster.lines()}


def refused(capsys, *arguments: str) -> str:
    """The sentence that a command ends with."""
    capsys.readouterr()
    assert main(["class", *arguments]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


# --- codes and keys


def test_a_code_is_spent_once_and_binds_its_student_to_the_key(roster, keys):
    ((name, code),) = roster.invite(["Ada"])
    assert (name, states(roster)) == ("Ada", {"Ada": "invited"})
    assert roster.admit(keys[0], code) == "Ada"
    assert states(roster) == {"Ada": "joined"}
    assert roster.names() == ({keys[0]: "Ada"}, set())
    for shown in ("", code, code.lower().replace("-", " "), "AAAA-BBBB-CCCC"):
        assert roster.admit(keys[0], shown) == "Ada"  # the key is proof enough
    with pytest.raises(NotAdmitted, match=r"used already, on another device\. Join with that device, or ask"):
        roster.admit(keys[1], code)


@pytest.mark.parametrize(("code", "why"), [("", "does not know this device"), ("AAAA-BBBB-CCCC", "none of this class")])
def test_who_has_no_code_of_this_class_stays_out(roster, keys, code, why):
    roster.invite(["Ada"])
    with pytest.raises(NotAdmitted, match=why):
        roster.admit(keys[0], code)


def test_of_many_who_show_one_code_at_once_one_comes_in(roster):
    ((_, code),) = roster.invite(["Ada"])
    publics, came, stayed = [new_keys().public for _ in range(8)], [], []

    def knock(key: str) -> None:
        try:
            came.append((key, roster.admit(key, code)))
        except NotAdmitted as error:
            stayed.append(str(error))

    threads = [threading.Thread(target=knock, args=(key,)) for key in publics]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    ((key, name),) = came
    assert len(stayed) == 7
    assert all("used already" in said for said in stayed)
    assert roster.names() == ({key: name}, set())


def test_another_invitation_moves_a_student_to_the_device_that_uses_it(roster, keys):
    ((_, first),) = roster.invite(["Ada"])
    roster.admit(keys[0], first)
    ((_, void),) = roster.invite(["ada"])  # the same student
    ((_, second),) = roster.invite(["Ada"])
    with pytest.raises(NotAdmitted, match="a newer invitation replaced it"):
        roster.admit(keys[1], void)
    assert roster.admit(keys[0], "") == "Ada"
    assert roster.admit(keys[1], second) == "Ada"
    assert roster.names() == (dict.fromkeys(keys[:2], "Ada"), {keys[0]})
    with pytest.raises(NotAdmitted, match="A newer invitation of this student was used on another device"):
        roster.admit(keys[0], first)
    assert states(roster) == {"Ada": "joined"}


def test_who_is_removed_stays_out_until_invited_again(roster, keys):
    ((_, code),) = roster.invite(["Ada"])
    roster.admit(keys[0], code)
    roster.invite(["Ada"])  # what waits is void too
    assert roster.remove("ADA") == "Ada"
    assert (states(roster), roster.names()) == ({"Ada": "removed"}, ({keys[0]: "Ada"}, {keys[0]}))
    with pytest.raises(NotAdmitted, match=r"Ada was removed from this class\. Ask the instructor"):
        roster.admit(keys[0], code)
    ((_, again),) = roster.invite(["Ada"])
    assert roster.admit(keys[0], again) == "Ada"
    assert (states(roster), roster.names()) == ({"Ada": "joined"}, ({keys[0]: "Ada"}, set()))


def test_two_students_on_one_device_are_told_what_to_do_and_no_code_is_spent(roster, keys):
    (_, ada), (_, ben) = roster.invite(["Ada", "Ben"])
    roster.admit(keys[0], ada)
    with pytest.raises(NotAdmitted, match=r"This device is Ada's, .* --keys"):
        roster.admit(keys[0], ben)
    assert roster.admit(keys[1], ben) == "Ben"


def test_a_name_that_nobody_has_is_answered_with_the_nearest(roster):
    roster.invite(["Ada", "Ben"])
    with pytest.raises(BadInput, match="Did you mean 'Ada'"):
        roster.remove("Adda")
    with pytest.raises(BadInput, match="class status"):
        roster.remove("Zoroaster")


def test_of_a_code_only_its_digest_is_kept(roster, keys, tmp_path):
    ((_, code),) = roster.invite(["Ada"])
    roster.admit(keys[0], code)
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"Ada" in kept  # it is the file that would hold it
    assert keys[0].encode() in kept
    assert code.encode() not in kept
    assert code.replace("-", "").encode() not in kept


def test_sessions_and_counts_add_up(roster, keys):
    ((_, code),) = roster.invite(["Ada"])
    roster.admit(keys[0], code)
    for session in ("a" * 32, "b" * 32, "a" * 32):
        roster.session_began(session, keys[0], 6)
        roster.count(keys[0], "joined")
    roster.session_ended("a" * 32, "said farewell", 7, 100)
    roster.session_ended("a" * 32, "said farewell", 5, 20)  # a device that went back to an older checkpoint of its own
    roster.count(keys[1], "refused")
    roster.session_began("c" * 32, keys[1], 6)  # nobody's
    ada, unknown = roster.lines()
    assert (ada.training, ada.sessions, ada.counts) == (1, 2, {"joined": 3})
    assert (ada.steps, ada.n_bytes) == (7, 120)
    assert (unknown.name, unknown.counts) == ("(unknown)", {"refused": 1})
    roster.all_ended("the server was started again")
    assert roster.lines()[0].training == 0


# --- names


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_names_is_read_as_editors_write_it(tmp_path, encoding):
    file = tmp_path / "names.txt"
    file.write_bytes("\r\nAda Lovelace\r\n\r\n  Chloé \t\r\n王小明\r\n'; DROP TABLE students; --".encode(encoding))
    names = invitations.names_in(file)
    assert names == ["Ada Lovelace", "Chloé", "王小明", "'; DROP TABLE students; --"]
    roster = Roster.make(tmp_path / "class.sqlite")
    assert [name for name, _ in roster.invite(names)] == names == list(states(roster))


@pytest.mark.parametrize("twin", ["Ada", "ADA", "A d a", "Ａda"])
def test_two_students_with_one_name_are_told_apart_by_whoever_invites(tmp_path, twin):
    file = tmp_path / "names.txt"
    file.write_text(f"Ada\nBen\n\n{twin}\n", encoding="utf-8")
    with pytest.raises(BadInput, match=rf"line 4: the name '{twin}' stands on line 1 already\. Tell the two apart"):
        invitations.names_in(file)


@pytest.mark.parametrize(
    ("name", "odd"),
    [("a/b", "'/'"), ("a\\b", r"'\\\\'"), ("a\tb", r"'\\t'"), ("a\x1b[31m", r"'\\x1b'"), ("a\u202eb", r"'\\u202e'")],
)
def test_a_name_that_could_paint_over_a_list_or_look_like_a_path_is_refused(tmp_path, name, odd):
    file = tmp_path / "names.txt"
    file.write_text(f"Ben\n{name}\n", encoding="utf-8")
    with pytest.raises(BadInput, match=rf"line 2: the name .* holds {odd}\."):
        invitations.names_in(file)


def test_a_long_name_an_empty_file_and_one_that_is_not_there_are_a_sentence_each(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("x" * 65)
    with pytest.raises(BadInput, match="has 65 characters"):
        invitations.names_in(file)
    file.write_text("\n \n")
    with pytest.raises(BadInput, match="no name stands there"):
        invitations.names_in(file)
    with pytest.raises(BadInput, match="could not be read"):
        invitations.names_in(tmp_path / "nowhere.txt")
    file.write_bytes(b"Ada\nBen \xff\n")
    with pytest.raises(BadInput, match="line 2: the byte 0xff is not UTF-8"):
        invitations.names_in(file)
    file.write_text("\n".join(f"s{number}" for number in range(1001)))
    with pytest.raises(BadInput, match="1001 students at once"):
        invitations.names_in(file)


@given(st.text(max_size=70))
def test_a_name_is_taken_exactly_where_it_is_one_printable_line(name):
    good = 0 < len(name) <= 64 and name.isprintable() and not set(name) & {"/", "\\"}
    if good:
        assert check_name(name, "here") == name
    else:
        with pytest.raises(BadInput) as refusal:
            check_name(name, "here")
        assert str(refusal.value).isprintable()
    assert fold(unicodedata.normalize("NFD", f" {name}")) == fold(name)


# --- the sheet


class Cards(HTMLParser):
    """Names and commands of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {"h2": [], "pre": []}
        self.inside = ""

    def handle_starttag(self, tag, attrs):
        self.inside = tag

    def handle_data(self, data):
        if self.inside in self.found:
            self.found[self.inside].append(data)
            self.inside = ""


def test_the_sheet_has_a_command_for_each_student_that_joins_this_class(begun, tmp_path, keys):
    names = ["Ada", 'Ben <script>alert("x")</script> & Söhne']
    with pytest.raises(BadInput):
        check_name(names[1], "here")  # a slash
    names[1] = names[1].replace("/", "")
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    assert main(["class", "invite", str(begun), "--students", str(tmp_path / "names.txt")]) == 0
    cards = Cards()
    cards.feed((begun / "invitations-1.html").read_text(encoding="utf-8"))
    assert cards.found["h2"] == names
    joins = [JoinString.parse(command.split("'")[1]) for command in cards.found["pre"]]
    assert {join.address for join in joins} == {"tcp://localhost:7001"}
    assert len({join.server_key for join in joins}) == 1
    roster = Roster(begun / "class.sqlite")
    assert [roster.admit(key, join.code) for key, join in zip(keys, joins, strict=False)] == names


def test_numbers_stand_in_for_names_and_go_on_where_they_ended(begun, capsys):
    assert main(["class", "invite", str(begun), "--count", "2", "--out", str(begun / "sheet.txt")]) == 0
    assert main(["class", "invite", str(begun), "--count", "1"]) == 0
    assert "student 02\n    mobillm device --join 'mobillm://localhost:7001?" in (begun / "sheet.txt").read_text()
    assert list(states(Roster(begun / "class.sqlite"))) == ["student 01", "student 02", "student 03"]
    assert "sheet.txt is there already" in refused(
        capsys, "invite", str(begun), "--count", "1", "--out", str(begun / "sheet.txt")
    )
    assert len(states(Roster(begun / "class.sqlite"))) == 3


@pytest.mark.skipif(os.name != "posix", reason="file modes are a POSIX thing")
def test_codes_keys_and_the_list_are_for_their_owner_alone(tmp_path):
    before = os.umask(0)
    try:
        assert main(["class", "init", str(tmp_path / "bio")]) == 0
        assert main(["class", "invite", str(tmp_path / "bio"), "--count", "1"]) == 0
    finally:
        os.umask(before)
    made = [path for path in (tmp_path / "bio").rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    assert len(made) >= 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o600}
    assert stat.S_IMODE((tmp_path / "bio").stat().st_mode) == 0o700


# --- the commands


def test_a_class_from_init_to_kick_on_the_command_line(begun, capsys):
    main(["class", "invite", str(begun), "--count", "2"])
    assert main(["class", "kick", str(begun), "student 01"]) == 0
    capsys.readouterr()
    assert main(["class", "status", str(begun)]) == 0
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "student 0" in line]
    assert [(row[1].strip(), row[2].strip()) for row in rows] == [("student 01", "removed"), ("student 02", "invited")]


@pytest.mark.parametrize("name", ["init", "invite", "serve", "status", "kick", "export"])
def test_every_command_and_option_of_a_class_has_a_sentence(capsys, name):
    with pytest.raises(SystemExit) as end:
        main(["class", name, "--help"])
    assert not end.value.code
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Folder" in text
    assert not re.search(r"--[\w-]+ (?:STR|INT|PATH) \(|(?:PATH|STR) \(required\)", text)


@pytest.mark.parametrize("what", [["invite", "{}", "--count", "1"], ["status", "{}"], ["kick", "{}", "Ada"]])
def test_a_folder_that_is_no_class_is_said(tmp_path, capsys, what):
    nowhere, other = tmp_path / "nowhere", tmp_path / "other"
    other.mkdir()
    assert "there is no such folder. Begin one" in refused(capsys, *(part.format(nowhere) for part in what))
    assert "no class was begun here" in refused(capsys, *(part.format(other) for part in what))
    assert not nowhere.exists()
    assert not list(other.iterdir())


def test_a_class_is_begun_once_and_where_devices_can_join(begun, tmp_path, capsys):
    assert "is there already" in refused(capsys, "init", str(begun))
    assert "port 0" in refused(capsys, "init", str(tmp_path / "a"), "--bind", "tcp://0.0.0.0:0")
    assert "this machine alone" in refused(
        capsys, "init", str(tmp_path / "a"), "--bind", "tcp://127.0.0.1:7000", "--advertise", "192.0.2.7"
    )
    assert "no place to go to" in refused(capsys, "init", str(tmp_path / "a"), "--advertise", "0.0.0.0")
    assert not (tmp_path / "a").exists()
    assert JoinString(f"tcp://{own_address('tcp://0.0.0.0:7000')}:1", server_key=40 * "0")
    assert own_address("tcp://127.0.0.1:7000") == "127.0.0.1"


def test_who_is_invited_is_asked_where_it_is_not_said(begun, capsys):
    assert "Who is invited?" in refused(capsys, "invite", str(begun))
    assert "Who is invited?" in refused(capsys, "invite", str(begun), "--count", "2", "--students", "names.txt")
    assert "--count" in refused(capsys, "invite", str(begun), "--count", "-3")
    assert "Expected one of" in refused(capsys)
    assert states(Roster(begun / "class.sqlite")) == {}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("max_sessions = 0", "max_sessions"),
        ("max_sesions = 3", "max_sesions"),
        ("bind = 7", "bind"),
        ("bind = 'tcp://host'", "no port"),
        ("bind = ", "invalid|Invalid"),
        ("advertise = ''", "names no host"),
        ("steps_per_second = -1", "steps_per_second"),
        ("steps_per_second = nan", "steps_per_second"),
        ("steps_per_second = 0.05", "take such a server for stuck"),
        ("line_minutes = 0", "line_minutes"),
        ("line_minutes = inf", "line_minutes"),
    ],
)
def test_settings_that_cannot_be_used_are_said_with_their_file(begun, line, said):
    (begun / "settings.toml").write_text(line)
    with pytest.raises(BadInput, match=rf"settings\.toml: .*({said})"):
        ClassFolder(begun).settings()
    (begun / "settings.toml").unlink()
    with pytest.raises(BadInput, match=r"settings\.toml: No such file"):
        ClassFolder(begun).settings()


def test_settings_that_are_left_out_have_the_usual_value(begun):
    usual = ClassFolder(begun).settings()
    (begun / "settings.toml").write_text('bind = "tcp://127.0.0.1:7001"\nadvertise = "localhost"')
    assert ClassFolder(begun).settings() == usual
    assert usual.share_bytes == 128 * 2**20


# --- the database


def test_a_database_that_is_damaged_gone_or_another_one_is_a_sentence(begun, capsys):
    file = begun / "class.sqlite"
    whole = file.read_bytes()
    for content, said in (
        (b"no database at all" * 500, "it is damaged"),
        (whole[:100], "damaged"),
        (b"", "no class's"),
    ):
        file.write_bytes(content)
        assert said in refused(capsys, "status", str(begun))
        assert file.read_bytes() == content
    file.unlink()
    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE students (name)")
    assert "no class's database" in refused(capsys, "kick", str(begun), "Ada")
    file.unlink()
    with pytest.raises(RosterError, match="could not be opened"):
        Roster(file).lines()
    assert not file.exists()


def test_a_database_that_somebody_holds_is_read_on_and_written_later(begun, capsys, monkeypatch):
    monkeypatch.setattr(database, "BUSY_S", 0.1)
    with closing(sqlite3.connect(begun / "class.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert main(["class", "status", str(begun)]) == 0
        assert "another program has been writing it" in refused(capsys, "invite", str(begun), "--count", "1")
        other.execute("COMMIT")
    assert main(["class", "invite", str(begun), "--count", "1"]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="a bound on the size of files")
def test_where_a_disk_takes_no_more_nothing_is_half_done(begun):
    code = f"{FSIZE}\nimport sys; from mobillm_kit.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["class", "invite", str(begun), "--count", "900"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "the disk does not take" in done.stderr
    assert Roster(begun / "class.sqlite").lines() == []


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root on Linux")
def test_a_disk_that_really_runs_full_is_said(tmp_path, capsys):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"this system lets nobody mount: {mounted.stderr.decode().strip()}")
    try:
        assert main(["class", "init", str(small / "bio")]) == 0
        assert "the disk is full" in refused(capsys, "invite", str(small / "bio"), "--count", "1000")
        assert Roster(small / "bio" / "class.sqlite").lines() == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_older_database_is_brought_up_and_a_newer_one_left_alone(roster, tmp_path, monkeypatch):
    roster.invite(["Ada"])
    step = ("ALTER TABLE students ADD COLUMN room TEXT NOT NULL DEFAULT 'A1'",)
    with monkeypatch.context() as later:
        later.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, step))
        assert states(roster) == states(roster) == {"Ada": "invited"}
        with closing(sqlite3.connect(tmp_path / "class.sqlite")) as db:
            assert db.execute("SELECT room FROM students").fetchall() == [("A1",)]
            assert db.execute("PRAGMA user_version").fetchone() == (len(database.MIGRATIONS),)
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with pytest.raises(RosterError, match="a newer version of mobillm-kit made this class"):
        roster.lines()
