"""The notebook files as they are committed; that they run and give the stored outputs again is nbval's to say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from scripts import uncompared
from scripts.uncompared import IGNORED

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LABS = sorted((ROOT / "labs").glob("*.ipynb"))
MOST_LINES = 8
"""Of a code cell, blank ones not counted."""
MOST_UNCOMPARED = 0.15
"""Of all code cells."""
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/(?:work|home|root|tmp|usr|opt|var|mnt|Users|private)/|\b[A-Z]:\\")


@pytest.fixture(params=[*NOTEBOOKS, *LABS], ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> dict:
    return json.loads(request.param.read_text(encoding="utf-8"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def lesson(request: pytest.FixtureRequest) -> dict:
    return json.loads(request.param.read_text(encoding="utf-8"))


@pytest.fixture(params=LABS, ids=lambda path: path.stem)
def lab(request: pytest.FixtureRequest) -> dict:
    return json.loads(request.param.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def headings(notebook: dict) -> list[str]:
    text = "\n".join(source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    return re.findall(r"^## (.+)$", text, re.MULTILINE)


def written_out(cell: dict) -> str:
    """Everything that a reader can read in the outputs of a cell, pictures left out."""
    shown = []
    for output in cell["outputs"]:
        shown.append("".join(output.get("text", [])))
        for kind, data in output.get("data", {}).items():
            if not kind.startswith("image/") or kind == "image/svg+xml":
                shown.append("".join(data) if isinstance(data, list) else json.dumps(data))
    return "\n".join(shown)


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= {"00_start_here", "09_comparison"}


def test_every_code_cell_was_run_once_and_in_order(notebook):
    assert [cell["execution_count"] for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))


def test_nothing_was_written_to_stderr_and_nothing_failed(notebook):
    for cell in code(notebook):
        for output in cell["outputs"]:
            assert output["output_type"] != "error", source(cell)
            assert output.get("name") != "stderr", source(cell)


def test_outputs_name_no_folder_of_the_machine_that_made_them(notebook):
    for cell in code(notebook):
        found = ABSOLUTE_PATH.search(written_out(cell))
        assert found is None, f"{found.group()!r} in the output of:\n{source(cell)}"


def test_the_search_for_folders_finds_one():
    assert ABSOLUTE_PATH.search("loaded /home/ada/model")
    assert ABSOLUTE_PATH.search(r"loaded C:\models")
    assert not ABSOLUTE_PATH.search("over 127.0.0.1:40775 in 0.6 ms, runs/pocket/index.html")


def test_code_cells_are_short(notebook):
    for cell in code(notebook):
        lines = [line for line in source(cell).splitlines() if line.strip()]
        assert len(lines) <= MOST_LINES, source(cell)


def test_a_cell_whose_output_is_not_compared_says_why_in_its_first_line(notebook):
    for cell in code(notebook):
        ignored = IGNORED in cell["metadata"].get("tags", [])
        assert ignored == source(cell).startswith("# not compared: "), source(cell)


def test_nearly_all_cells_are_compared_and_the_others_stand_in_one_table_with_their_reasons():
    assert uncompared.share() <= MOST_UNCOMPARED
    assert uncompared.PAGE.read_text(encoding="utf-8") == uncompared.page(), "run: python scripts/uncompared.py"


def test_a_notebook_opens_with_its_question_what_one_will_be_able_to_do_and_what_it_costs(lesson):
    opening = source(lesson["cells"][0])
    for part in ("**Question.**", "**You will be able to**", "**Run time**", "**memory**"):
        assert part in opening


def test_a_notebook_has_three_to_five_sections_between_setup_and_summary(lesson):
    found = headings(lesson)
    assert found[0] == "Setup"
    assert found[-3:] == ["What we saw", "Exercises", "Read more"]
    numbered = [heading for heading in found[1:-3] if re.match(r"\d\. ", heading)]
    assert numbered == found[1:-3]
    assert 3 <= len(numbered) <= 5


def test_an_exercise_is_a_text_a_function_to_fill_in_and_a_check_that_names_it(notebook):
    cells = [cell for cell in notebook["cells"] if cell["id"].startswith("exercise-")]
    count = len(cells) // 3
    expected = [f"exercise-{n}{part}" for n in range(1, count + 1) for part in ("-text", "", "-check")]
    assert [cell["id"] for cell in cells] == expected
    assert count >= 3
    for number in range(1, count + 1):
        text, answer, check = map(source, cells[3 * number - 3 : 3 * number])
        assert f"**{number}. " in text
        assert re.search(r"^def .*:\n(.*\n)*    ### BEGIN SOLUTION\n(.*\n)*    ### END SOLUTION$", answer, re.MULTILINE)
        assert f"Exercise {number}: " in check
    assert sum("(open)" in source(cell) for cell in cells) == 1


def test_nbgrader_is_told_which_cell_is_the_answer_and_which_is_the_check(notebook):
    for cell in notebook["cells"]:
        graded, is_check = cell["metadata"].get("nbgrader"), cell["id"].endswith("-check")
        exercise = cell["id"].startswith("exercise-") and cell["cell_type"] == "code"
        is_check = is_check or cell["id"] == "score"
        assert (graded is not None) == (exercise or cell["id"] == "score")
        assert graded is None or (graded["grade"], graded["solution"]) == (is_check, not is_check)


def test_there_are_two_labs():
    assert {path.stem for path in LABS} == {"budget", "outage_and_eavesdropper"}


def test_a_lab_opens_with_aims_materials_and_a_timetable_of_90_minutes(lab):
    opening = source(lab["cells"][0])
    for part in ("**Question.**", "**Aims.**", "**Materials.**", "**Timetable**", "**Run time**", "**memory**"):
        assert part in opening
    assert sum(int(minutes) for minutes in re.findall(r"^\| (\d+) \|", opening, re.MULTILINE)) == 90


def test_a_labs_points_are_100_and_its_last_code_cell_adds_them_up(lab):
    assert code(lab)[-1]["id"] == "score"
    points = [cell["metadata"]["nbgrader"].get("points", 0) for cell in code(lab) if "nbgrader" in cell["metadata"]]
    assert sum(points) == 100
    assert "SCORE 100 of 100" in written_out(code(lab)[-1])
    assert "\n*Your text:*\n" in source(lab["cells"][-1])


def test_no_line_is_a_bare_verdict(notebook):
    """Two figures, then the verdict: who reads `True` alone does not see what was compared."""
    for cell in code(notebook):
        bare = [line for line in written_out(cell).splitlines() if re.search(r"\b(?:True|False)$", line.strip())]
        assert not bare, f"{bare} of:\n{source(cell)}"


def test_every_check_that_a_notebook_prints_came_out_as_the_text_says(notebook):
    bad = re.compile(r": (?:different|not .*|no|missed|too .*)$")
    for cell in code(notebook):
        wrong = [line for line in written_out(cell).splitlines() if bad.search(line.strip())]
        assert not wrong, f"{wrong} of:\n{source(cell)}"
