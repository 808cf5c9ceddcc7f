"""What `class export` adds: side networks, the accuracy that devices measured, nbgrader's grades."""

from __future__ import annotations

import csv
import hashlib
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mobillm_kit.channel.keys import new_keys
from mobillm_kit.classroom.grades import read_grades
from mobillm_kit.classroom.roster import Roster
from mobillm_kit.cli import main
from mobillm_kit.errors import BadInput
from mobillm_kit.record import load_record
from mobillm_kit.server.session_trainer import tensors_digest
from tests.classroom import Serving, begin, device, outcome
from tests.test_class_report import Cells

NBGRADER = "assignment,duedate,timestamp,student_id,last_name,first_name,email,raw_score,late_submission_penalty,score"
NBGRADER += ",max_score"
"""The first line that nbgrader 0.9.6 writes."""


def row(assignment: str, student: str, score: object = 8.0, *, first: str = "", last: str = "", most: object = 10.0):
    return f"{assignment},,2026-11-28 09:00:00,{student},{last},{first},,{score},0.0,{score},{most}"


@pytest.fixture
def grades(tmp_path):
    def write(*rows: str, heads: str = NBGRADER) -> Path:
        file = tmp_path / "grades.csv"
        file.write_text("\n".join([heads, *rows]) + "\n", encoding="utf-8")
        return file

    return write


def table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text(encoding="utf-8-sig").splitlines()))


# --- grades


def test_grades_are_joined_by_id_or_by_name_in_either_order(grades):
    file = grades(
        row("budget", "ada"),
        row("budget", "s02", 7.5, first="Ben", last="Ôno"),
        row("budget", "s03", 0.0, first="Lovelace", last="Chloé"),
        row("outage", "s02", 10, first="Ben", last="Ôno"),
        row("outage", "visitor", 3),
    )
    found, others = read_grades(file, ["Ada", "ben o\u0302no", "Chloé Lovelace", "Dan"])
    assert found == {
        "budget": {"Ada": (8.0, 10.0), "ben o\u0302no": (7.5, 10.0), "Chloé Lovelace": (0.0, 10.0)},
        "outage": {"ben o\u0302no": (10.0, 10.0)},
    }
    assert others == ["visitor"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [row("budget", "eve"), row("budget", "mal")],
            r"none of its 2 students is in this class: \[eve, mal\]",
        ),
        ([], "none of its 0 students"),
        ([row("budget", "ada", "A+")], r"line 2: score is 'A\+'\. It has to be a number"),
        ([row("budget", "ada", "nan")], "line 2: score is 'nan'"),
        ([row("budget", "ada", -1)], "line 2: score is '-1'"),
        ([row("budget", "ada", most="inf")], "line 2: max_score is 'inf'"),
        ([row("budget", "ada"), row("budget", "x, y")], "line 3: a value is missing, or.* one too many.*in quotes"),
        ([row("budget", "ada")[:30]], "line 2: a value is missing"),
        ([row("", "ada")], "line 2: a value is missing"),
        ([row("budget", "ada"), row("budget", "ADA")], "line 3: Ada has a grade of 'budget' further up"),
        ([row("budget", "ada", first="Ben")], r"the id is one student's of this class.*\[Ada, Ben\]"),
        ([row("budget", '"ada')], "could not be read"),
    ],
)
def test_a_bad_line_of_grades_is_said_with_its_place(grades, rows, said):
    with pytest.raises(BadInput, match=rf"grades\.csv.*{said}"):
        read_grades(grades(*rows), ["Ada", "Ben"])


def test_a_file_that_is_no_export_of_nbgrader_is_said(grades, tmp_path):
    with pytest.raises(BadInput, match=r"its first line names no \[assignment, last_name, first_name, score, …\]"):
        read_grades(grades("1,2", heads="student_id,points"), ["Ada"])
    with pytest.raises(BadInput, match="its first line names no"):
        read_grades(grades(heads=""), ["Ada"])
    with pytest.raises(BadInput, match=r"could not be read.*nbgrader export"):
        read_grades(tmp_path / "nowhere.csv", ["Ada"])


# --- side networks and records


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A class of two of whom one has trained; Ada's folder of the run."""
    place = tmp_path_factory.mktemp("class")
    joins = begin(place / "bio", "Ada", "Ben")
    with Serving(place / "bio"):
        status, said = outcome(device(place, joins["Ada"], "Ada"))
    assert status == 0, said
    return place / "bio", Path(said.rsplit("Kept in ", 1)[1].strip())


def test_the_side_network_is_its_devices_own_to_the_byte_and_all_of_it_is_in_the_tables(
    trained, grades, tmp_path, capsys
):
    bio, kept = trained
    shutil.copytree(kept, tmp_path / "handed in" / "ada" / "run")
    shutil.copytree(kept, tmp_path / "handed in" / "ben" / "run")
    (tmp_path / "handed in" / "ben" / "run" / "record.json").write_text("{")
    file, out = grades(row("budget", "ada", 7.5), row("budget", "eve")), tmp_path / "out"
    words = ["--grades", str(file), "--records", str(tmp_path / "handed in"), "--out", str(out)]
    assert main(["class", "export", str(bio), *words]) == 0
    said = capsys.readouterr().out
    assert "run was left out" in said
    assert "'eve' is nobody of this class" in said
    ada, ben = table(out / "runs.csv")
    network = out / ada["side network"]
    assert network.read_bytes() == (kept / "side" / "model.safetensors").read_bytes()
    assert ada["SHA-256"] == hashlib.sha256(network.read_bytes()).hexdigest()
    assert (ada["its step"], ben["side network"]) == ("6", "")
    assert float(ada["test accuracy"]) == load_record(kept / "record.json").scores["test_accuracy"]
    assert [(one["student"], one["budget"], one["budget of"]) for one in table(out / "students.csv")] == [
        ("Ada", "7.5", "10.0"),
        ("Ben", "", ""),
    ]
    page = Cells()
    page.feed((out / "index.html").read_text(encoding="utf-8"))
    assert page.rows[1][-2:] == ["7.5", "10"]
    assert page.rows[-1][-2:] == ["6", ada["SHA-256"][:16]]
    assert stat.S_IMODE(network.stat().st_mode) == 0o600
    assert stat.S_IMODE(network.parent.stat().st_mode) == 0o700


def test_without_records_no_accuracy_is_claimed_and_a_folder_that_is_not_there_is_said(trained, tmp_path, capsys):
    bio, _ = trained
    assert main(["class", "export", str(bio), "--out", str(tmp_path / "out")]) == 0
    assert {one["test accuracy"] for one in table(tmp_path / "out" / "runs.csv")} == {""}
    assert main(["class", "export", str(bio), "--records", str(tmp_path / "nowhere")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("in the way")
    assert main(["class", "export", str(bio), "--out", str(tmp_path / "file")]) == 2
    assert "could not be written" in capsys.readouterr().err


def test_the_newest_whole_checkpoint_is_taken_the_average_where_there_is_one_and_a_name_becomes_no_path(tmp_path):
    assert main(["class", "init", str(tmp_path / "bio"), "--bind", "tcp://127.0.0.1:7001", "--board", "0"]) == 0
    roster, session, key = Roster(tmp_path / "bio" / "class.sqlite"), 32 * "a", new_keys().public
    ((_, code),) = roster.invite([".. ='Ada"])
    roster.admit(key, code)
    roster.session_began(session, key, 9)
    folder = tmp_path / "bio" / "sessions" / "owner" / session
    folder.mkdir(parents=True)
    for step in (3, 6):
        state = {f"{kind}/adapter.side.w": torch.full((2,), float(step)) for kind in ("weight", "exp_avg")}
        state |= {"average/adapter.side.w": torch.full((2,), 0.5), "losses": torch.zeros(step)}
        about = {"digest": tensors_digest(state)}
        save_file(state, folder / f"checkpoint-{step:08d}.safetensors", metadata=about)
    newest = folder / "checkpoint-00000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:-4] + b"\1\2\3\4")
    assert main(["class", "export", str(tmp_path / "bio")]) == 0
    (run,) = table(tmp_path / "bio" / "export" / "runs.csv")
    assert (run["side network"], run["its step"]) == ("networks/_____Ada-aaaaaaaa.safetensors", "3")
    network = load_file(tmp_path / "bio" / "export" / run["side network"])
    assert {name: value.tolist() for name, value in network.items()} == {"side.w": [0.5, 0.5]}
