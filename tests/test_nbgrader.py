"""A round with nbgrader, by its own commands: a solved sheet gets all points, an empty one none.

nbgrader is an extra of its own (`make nbgrader` installs it and runs this file): it brings a server and a database, and
each of the two submissions is a whole notebook that runs from top to bottom.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mobillm_kit.classroom.grades import read_grades

ROOT = Path(__file__).resolve().parents[1]
SHEET = "07_quantized_activations"
"""The quickest one; all of them carry the same metadata."""

pytestmark = [
    pytest.mark.nbgrader,
    pytest.mark.skipif(
        importlib.util.find_spec("nbgrader") is None,
        reason="nbgrader is not installed: `make nbgrader` installs the extra and runs this file",
    ),
]


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A course folder as `scripts/student.py --nbgrader` writes it."""
    folder = tmp_path_factory.mktemp("course")
    subprocess.run([sys.executable, "scripts/student.py", "--nbgrader", str(folder)], cwd=ROOT, check=True)
    return folder


def nbgrader(course: Path, *words: str) -> None:
    command = [sys.executable, "-m", "nbgrader", *words]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))  # it calls its `alembic` by name
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=course, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr


def submit(course: Path, student: str, sheet: Path) -> None:
    folder = course / "submitted" / student / SHEET
    folder.mkdir(parents=True)
    shutil.copy(sheet, folder)


def test_a_solved_sheet_gets_all_points_and_an_empty_one_none(course):
    nbgrader(course, "generate_assignment", SHEET)
    released = course / "release" / SHEET / f"{SHEET}.ipynb"
    text = released.read_text(encoding="utf-8")
    assert "SOLUTION" not in text
    assert "Write the body of this function" in text
    submit(course, "solved", course / "source" / SHEET / f"{SHEET}.ipynb")
    submit(course, "empty", released)
    nbgrader(course, "autograde", SHEET, "--create")
    nbgrader(course, "export", f"--to={course / 'grades.csv'}")
    with (course / "grades.csv").open(encoding="utf-8") as file:
        grades = {row["student_id"]: (float(row["score"]), float(row["max_score"])) for row in csv.DictReader(file)}
    cells = json.loads((ROOT / "notebooks" / f"{SHEET}.ipynb").read_text(encoding="utf-8"))["cells"]
    most = sum(cell["metadata"].get("nbgrader", {}).get("points", 0) for cell in cells)
    assert most >= 3
    assert grades == {"solved": (most, most), "empty": (0, most)}
    joined = {"Solved": (most, most), "empty": (0, most)}
    assert read_grades(course / "grades.csv", [*joined]) == ({SHEET: joined}, [])


def test_every_sheet_is_an_assignment_with_what_it_imports(course):
    found = {path.stem for folder in ("notebooks", "labs") for path in (ROOT / folder).glob("*.ipynb")}
    assert {path.name for path in (course / "source").iterdir()} == found
    assert (course / "source" / "budget" / "scoring.py").exists()
