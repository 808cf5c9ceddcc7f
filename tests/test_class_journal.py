"""What a class's server writes down: names for keys, one object a line, and no disk or database that stops it."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import sys
import time
from contextlib import closing

import pytest

from mobillm_kit.channel.ends import Peer
from mobillm_kit.channel.messages import WireError
from mobillm_kit.classroom import database
from mobillm_kit.classroom import journal as journal_module
from mobillm_kit.classroom.door import ClassDoor
from mobillm_kit.classroom.journal import journal
from mobillm_kit.classroom.roster import Roster
from tests.test_service_loop import PEER, hello, served  # noqa: F401 - a fixture

ROOMS = logging.getLogger("mobillm_kit.server.places")


@pytest.fixture
def roster(tmp_path):
    return Roster.make(tmp_path / "class.sqlite")


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def refuse(key: str, code: str = "bad-code") -> None:
    ROOMS.info("refused", extra={"peer": Peer(b"1", key), "error": WireError(code, "No.", "Ask.")})


def test_a_session_of_a_real_loop_is_told_by_name_counted_and_shown(request, roster, tmp_path, capsys):
    ((_, code),) = roster.invite(["Chloé"])
    door = ClassDoor(tmp_path / "keys", roster)
    end = request.getfixturevalue("served")(door)
    with journal(tmp_path / "log.jsonl", roster, door.name_of):
        end.say(PEER, hello(1))
        assert end.answers(1)[0].code == "bad-code"
        end.say(PEER, hello(1, code=code))
        end.answers(1)
        end.service.turned_out.append(PEER.key)
        (said,) = end.answers(1)
        assert (said.code, said.fatal) == ("session-over", True)
        assert "taken off the list" in said.sentence
        assert not end.service._places.all()
    stranger, joined, left = lines(tmp_path / "log.jsonl")
    assert (stranger["event"], stranger["student"], stranger["code"]) == ("refused", "", "bad-code")
    assert (joined["event"], joined["student"], joined["key"]) == ("joined", "Chloé", PEER.key)
    assert (left["event"], left["session"], left["why"]) == ("left", joined["session"], "turned out")
    assert [line.counts for line in roster.lines()] == [{"joined": 1, "left": 1}, {"refused": 1}]
    shown = [line[10:] for line in capsys.readouterr().out.splitlines()]
    assert shown[0].startswith("a device that nobody knows was refused: This class does not know this device.")
    assert shown[1:] == ["Chloé joined", "Chloé left: turned out"]


def test_turning_one_key_out_leaves_the_others(request):
    end = request.getfixturevalue("served")()
    for peer, number in ((PEER, 1), (Peer(b"3", "another"), 2)):
        end.say(peer, hello(number))
        end.answers(1)
    end.service.turned_out.extend(["another", "nobody"])
    assert end.answers(1)[0].code == "session-over"
    assert [place.owner for place in end.service._places.all()] == [PEER.key]


def test_what_happens_of_itself_is_not_told_and_trouble_is_with_its_trace(roster, tmp_path, capsys):
    with journal(tmp_path / "log.jsonl", roster, {"k": "Ada"}.get):
        refuse("k", "hello-first")
        ROOMS.info("Somebody's key was looked at.")
        ROOMS.info("refused", extra={"peer": Peer(b"1", "k"), "error": WireError("bad-plan", "No net.", "Ask.")})
        try:
            raise RuntimeError("boom")
        except RuntimeError:
            ROOMS.exception("A step met an error.")
    refused, trouble = lines(tmp_path / "log.jsonl")
    assert (refused["student"], refused["code"], refused["why"]) == ("Ada", "bad-plan", "No net.")
    assert trouble["event"] == "trouble"
    assert "RuntimeError: boom" in trouble["said"]
    assert "Traceback" not in capsys.readouterr().out
    refuse("k")
    assert len(lines(tmp_path / "log.jsonl")) == 2  # it ends with its block


def test_the_log_turns_over_and_keeps_a_bounded_number_of_whole_lines(roster, tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "FILE_BYTES", 2000)
    with journal(tmp_path / "log.jsonl", roster, {}.get):
        for _ in range(150):
            refuse("k")
    files = sorted(tmp_path.glob("log.jsonl*"))
    assert len(files) == 1 + journal_module.FILES
    assert all(path.stat().st_size <= 2000 for path in files)
    assert all(line["event"] == "refused" for path in files for line in lines(path))
    assert roster.lines()[0].counts == {"refused": 150}


def test_who_knocks_without_end_costs_no_memory(roster, tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "MOST_WAITING", 3)
    told = journal_module.Told(journal_module.SimpleQueue(), {}.get)
    for _ in range(50):
        told.handle(ROOMS.makeRecord("x", logging.INFO, "", 0, "refused", (), None, extra=_refused()))
    assert told.queue.qsize() == 3


def _refused() -> dict:
    return {"peer": Peer(b"1", "k"), "error": WireError("bad-code", "No.", "Ask.")}


def test_a_list_that_somebody_holds_does_not_hold_up_the_end(roster, tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_S", 0.5)
    with closing(sqlite3.connect(tmp_path / "class.sqlite", isolation_level=None)) as other:
        with journal(tmp_path / "log.jsonl", roster, {}.get):
            other.execute("BEGIN IMMEDIATE")
            for _ in range(40):
                refuse("k")
            ends = time.monotonic()
        assert time.monotonic() - ends < 10  # one or two waits, not forty
        other.execute("ROLLBACK")
    assert len([line for line in lines(tmp_path / "log.jsonl") if line["event"] == "refused"]) == 40


@pytest.mark.skipif(sys.platform == "win32", reason="a folder in a file's place")
def test_a_log_that_cannot_be_written_and_a_list_that_is_gone_cost_a_sentence(roster, tmp_path, capsys):
    (tmp_path / "log.jsonl").mkdir()
    os.unlink(tmp_path / "class.sqlite")
    with journal(tmp_path / "log.jsonl", roster, {}.get):
        for _ in range(5):
            refuse("k")
    said = capsys.readouterr()
    assert said.err.count("could not be written") == 1
    assert said.out.count("was refused: No.") == 5
    assert "Traceback" not in said.out + said.err
