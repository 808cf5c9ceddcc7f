"""What a class leaves behind: every run once, in a table and on a page that say the same."""

from __future__ import annotations

import csv
import os
import stat
from html.parser import HTMLParser

import pytest

from mobillm_kit.channel.keys import new_keys
from mobillm_kit.classroom.roster import Roster
from mobillm_kit.cli import main

NAMES = ["Ada <b>&amp;", "王小明", '=HYPERLINK("x")', "Dan"]


@pytest.fixture
def ran(tmp_path):
    """A class of four; three joined, two of them trained, one trains still."""
    assert main(["class", "init", str(tmp_path / "bio"), "--bind", "tcp://127.0.0.1:7001"]) == 0
    roster = Roster(tmp_path / "bio" / "class.sqlite")
    keys = [new_keys().public for _ in NAMES]
    for key, (_, code) in zip(keys[:3], roster.invite(NAMES), strict=False):
        roster.admit(key, code)
        roster.count(key, "joined")
    for number in (1, 2):
        roster.session_began(f"{number:032x}", keys[0], 6)
        roster.session_ended(f"{number:032x}", "said farewell", 10 * number, 2**20)
    roster.session_began(32 * "f", keys[2], 6)
    roster.progress([(32 * "f", 5, 100), (32 * "e", 1, 1)])
    roster.progress([(32 * "f", 7, 300)])
    return tmp_path / "bio"


class Cells(HTMLParser):
    """The rows of all tables of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.loads: list[str] = []
        self.inside = False

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        self.inside = tag in ("td", "th")
        if tag == "tr":
            self.rows.append([])
        elif self.inside:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def test_the_table_has_each_run_once_and_whoever_did_not_run(ran, capsys):
    assert main(["class", "export", str(ran)]) == 0
    assert "3 runs of 4 students" in capsys.readouterr().out
    text = (ran / "export" / "runs.csv").read_bytes()
    assert text.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(text.decode("utf-8-sig").splitlines()))
    told = [(row["student"], row["state"], row["steps"], row["bytes"], row["why"]) for row in rows]
    assert told == [
        (NAMES[0], "joined", "10", str(2**20), "said farewell"),
        (NAMES[0], "joined", "20", str(2**20), "said farewell"),
        (NAMES[1], "joined", "0", "0", ""),
        ("'" + NAMES[2], "joined", "7", "300", ""),  # no formula
        (NAMES[3], "invited", "0", "0", ""),
    ]
    assert [bool(row["began"]) and not row["ended"] for row in rows] == [False, False, False, True, False]


def test_the_page_says_the_same_and_loads_nothing(ran, tmp_path):
    for _ in range(2):  # over the one of before
        assert main(["class", "export", str(ran), "--out", str(tmp_path / "out")]) == 0
    page = Cells()
    page.feed((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    assert page.loads == []
    students = page.rows[1:5]
    assert [(row[0], *row[2:5]) for row in students] == [
        (NAMES[0], "2", "30", "2.0"),
        (NAMES[1], "0", "0", "0.0"),
        (NAMES[2], "1", "7", "0.0"),
        (NAMES[3], "0", "0", "0.0"),
    ]
    assert [(row[0], row[4], row[5]) for row in page.rows[6:]] == [
        (NAMES[0], "said farewell", "10"),
        (NAMES[0], "said farewell", "20"),
        (NAMES[2], "", "7"),
    ]


@pytest.mark.skipif(os.name != "posix", reason="file modes are a POSIX thing")
def test_what_names_people_is_for_its_owner_alone(ran):
    assert main(["class", "export", str(ran)]) == 0
    assert {stat.S_IMODE(path.stat().st_mode) for path in (ran / "export").iterdir()} == {0o600}


def test_what_came_before_a_power_cut_stays_counted(ran):
    roster = Roster(ran / "class.sqlite")
    roster.all_ended("the server ended")
    last = roster.runs()[-1]
    assert (last.steps, last.n_bytes, last.why) == (7, 300, "the server ended")
    roster.progress([(last.session, 9, 500)])  # too late
    assert roster.runs()[-1].n_bytes == 300


def test_a_folder_that_cannot_be_written_and_one_that_is_no_class_are_said(ran, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["class", "export", str(ran), "--out", str(tmp_path / "file")]) == 2
    assert "could not be written" in capsys.readouterr().err
    assert main(["class", "export", str(tmp_path / "nowhere")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
