"""`mobillm class prune`: what ended long ago or is too much goes, what is trained now stays, and it is shown before."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobillm_kit.channel.keys import new_keys
from mobillm_kit.classroom.pruning import Kept, chosen, kept_sessions
from mobillm_kit.classroom.roster import Roster
from mobillm_kit.cli import main
from mobillm_kit.common import MIB
from mobillm_kit.files import only_one
from mobillm_kit.server.disk import DAY_S
from tests.classroom import begin

AGES = {"a": 40, "b": 20, "c": 10, "d": 1}
"""Days since a session was trained, by the letter of its name; each keeps 1 MiB."""


@pytest.fixture
def bio(tmp_path, capsys):
    """A class with a session of Ada for each age; the oldest is nobody's any more."""
    folder = tmp_path / "bio"
    begin(folder, "Ada")
    roster, key = Roster(folder / "class.sqlite"), new_keys().public
    ((_, code),) = roster.invite(["Ada"])
    roster.admit(key, code)
    for letter, days in AGES.items():
        session = folder / "sessions" / "owner" / (32 * letter)
        (session / "cache").mkdir(parents=True)
        (session / "cache" / "part").write_bytes(bytes(MIB // 2))
        (session / "checkpoint-00000004.safetensors").write_bytes(bytes(MIB - MIB // 2))
        if letter != "a":
            roster.session_began(32 * letter, key, 6)
            roster.session_ended(32 * letter, "said farewell", 6, 100)
        os.utime(session, (time.time() - DAY_S * days, time.time() - DAY_S * days))
    (folder / "sessions" / "owner" / "notes").mkdir()  # not made here: nobody's to remove
    capsys.readouterr()
    return folder


def left(bio) -> str:
    return "".join(sorted(path.name[0] for path in (bio / "sessions").glob("*/" + 32 * "[a-d]")))


@pytest.mark.parametrize(
    ("asked", "stay"),
    [
        (["--older-than", "15"], "cd"),
        (["--older-than", "0"], ""),
        (["--disk", "3"], "bcd"),
        (["--disk", "0"], ""),
        (["--older-than", "30", "--disk", "2"], "cd"),
        (["--older-than", "100", "--disk", "100"], "abcd"),
    ],
)
def test_the_longest_unused_goes_and_a_dry_run_says_the_same_before(bio, capsys, asked, stay):
    assert main(["class", "prune", str(bio), *asked, "--dry-run"]) == 0
    before = capsys.readouterr().out
    assert left(bio) == "abcd"
    assert main(["class", "prune", str(bio), *asked]) == 0
    after = capsys.readouterr().out
    assert left(bio) == stay
    assert before.replace("would remove", "removed").replace("would go", "went") == after
    assert f"{4 - len(stay)} of 4 sessions went; the others hold {len(stay):.1f} MiB." in after
    assert (bio / "sessions" / "owner" / "notes").is_dir()
    assert [run.session[0] for run in Roster(bio / "class.sqlite").runs()] == ["b", "c", "d"]  # the list keeps them


def test_whose_a_session_was_is_said(bio, capsys):
    main(["class", "prune", str(bio), "--older-than", "15", "--dry-run"])
    said = capsys.readouterr().out
    assert "would remove  (unknown), session aaaaaaaa, step 0, 1.0 MiB, unused for 40.0 days" in said
    assert "would remove  Ada, session bbbbbbbb, step 6, 1.0 MiB, unused for 20.0 days" in said


def test_what_is_trained_now_stays_however_old(bio, capsys):
    with only_one(bio / "sessions" / "owner" / (32 * "a")):
        assert main(["class", "prune", str(bio), "--older-than", "0", "--disk", "0"]) == 0
    assert left(bio) == "a"
    assert "3 of 4 sessions went; the others hold 1.0 MiB." in capsys.readouterr().out


def test_to_look_is_not_to_use(bio):
    for _ in range(2):
        found = kept_sessions(bio, [])
        assert [round(one.unused_s / DAY_S) for one in found] == [40, 20, 10, 1]


KEPT = st.builds(
    lambda unused_s, n_bytes, training: Kept(None, "", 0, unused_s, n_bytes, training),
    st.floats(0, 100),
    st.integers(0, 100),
    st.booleans(),
)


@given(st.lists(KEPT, max_size=12), st.floats(0, 100), st.integers(0, 400) | st.none())
def test_no_more_goes_than_has_to_and_nothing_that_is_trained(found, too_old_s, most_bytes):
    found = sorted(found, key=lambda one: -one.unused_s)
    gone = chosen(found, too_old_s, most_bytes)
    assert not any(one.training for one in gone)
    stay = [one for one in found if not any(one is other for other in gone)]
    assert not any(one.unused_s > too_old_s and not one.training for one in stay)
    total = sum(one.n_bytes for one in stay)
    if most_bytes is not None and total > most_bytes:
        assert all(one.training for one in stay)  # the rest is in use
    for place, one in enumerate(gone):
        if one.unused_s <= too_old_s:  # went for its size: without it the older ones would not have been enough
            later = sum(other.n_bytes for other in gone[place + 1 :])
            assert total + later + one.n_bytes > most_bytes


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ([], "What is to go? Give --older-than DAYS, or --disk MIB, or both."),
        (["--older-than", "-1"], ">= 0"),
        (["--disk", "many"], "disk"),
    ],
)
def test_what_cannot_be_asked_is_said(bio, capsys, asked, why):
    try:
        status = main(["class", "prune", str(bio), *asked])
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr()
    assert status == 2
    assert why in said.err + said.out
    assert left(bio) == "abcd"


def test_a_folder_that_is_no_class_is_named(tmp_path, capsys):
    assert main(["class", "prune", str(tmp_path), "--disk", "1"]) == 2
    assert "no class was begun here" in capsys.readouterr().err
