"""Student copies of the notebooks and labs: without solutions, and without what the exercises print.

    python scripts/student.py [--to student]
    python scripts/student.py --nbgrader course       the same sheets as the source of a course for nbgrader

A solution stands between nbgrader's markers inside the body of a function.  It gives way to one line that raises a
sentence, so a copy is valid Python from top to bottom, and the check below an empty exercise says which one it is.
That check is tagged `raises-exception`: "Run all" shows the sentence and goes on with the next exercise.

nbgrader gets the sheets with their solutions: it takes them out itself, by the same markers, and knows the cells of an
exercise by the metadata that they carry (`grade_id`, `points`).

Knows: notebook files.  Knows nothing of: what stands in them, the package.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$", re.MULTILINE | re.DOTALL)
ANSWER = re.compile(r"exercise-(\d+)")
CHECK = re.compile(r"exercise-(\d+)-check")
SCORE = "score"
"""The cell of a lab that adds its points up; it prints what the solution earns."""
HINT = "Write the body of this function in place of this line, and end it with `return`"
CONFIG = f"""# Written by scripts/student.py.
c = get_config()
c.CourseDirectory.course_id = "mobillm"
c.ClearSolutions.code_stub = {{"python": 'raise NotImplementedError("{HINT}")'}}
c.Execute.timeout = 900
c.ExecutePreprocessor.timeout = 900
"""


def sheets() -> Iterator[tuple[Path, str]]:
    """Every notebook and lab, and the folder that its copy goes to, seen from the folder of all copies."""
    yield from ((path, "") for path in sorted((ROOT / "notebooks").glob("*.ipynb")))
    yield from ((path, "labs") for path in sorted((ROOT / "labs").glob("*.ipynb")))


def stub(source: str, number: str) -> str:
    """The cell with each solution replaced by a line that says what is still to be done."""
    function = re.findall(r"^def (\w+)", source, re.MULTILINE)[-1]
    told = f"Exercise {number}: write the body of `{function}` in place of this line, and end it with `return`"
    return SOLUTION.sub(lambda found: f'{found[1]}raise NotImplementedError("{told}")', source)


def student_copy(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook as a student gets it; what is not an exercise stays as it is, outputs too."""
    twin = copy.deepcopy(notebook)
    for cell in twin["cells"]:
        answer, check = ANSWER.fullmatch(cell["id"]), CHECK.fullmatch(cell["id"])
        if answer or check or cell["id"] == SCORE:
            cell.update(outputs=[], execution_count=None)
        if answer:
            cell["source"] = stub("".join(cell["source"]), answer[1]).splitlines(keepends=True)
        if check:
            cell["metadata"]["tags"] = [*cell["metadata"].get("tags", []), "raises-exception"]
    return twin


def write_copies(to: Path) -> list[Path]:
    """A copy of every notebook in the folder ``to``, of every lab in ``to/labs``; folders are made if missing."""
    written = []
    for path, below in sheets():
        twin = student_copy(json.loads(path.read_text(encoding="utf-8")))
        written.append(to / below / path.name)
        written[-1].parent.mkdir(parents=True, exist_ok=True)
        written[-1].write_text(json.dumps(twin, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        copy_helpers(path.parent, written[-1].parent)
    return written


def write_course(to: Path) -> list[str]:
    """A course folder for nbgrader: its settings, and one assignment a sheet, called as the sheet is."""
    names = []
    for path, _ in sheets():
        names.append(path.stem)
        folder = to / "source" / path.stem
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
        copy_helpers(path.parent, folder)
    (to / "nbgrader_config.py").write_text(CONFIG, encoding="utf-8")
    return names


def copy_helpers(source: Path, to: Path) -> None:
    """What stands beside a sheet and that it needs: modules that it imports, pictures that it shows."""
    for helper in (*source.glob("*.py"), *source.glob("*.svg")):
        shutil.copy(helper, to)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the notebooks and labs without solutions.")
    parser.add_argument("--to", type=Path, default=ROOT / "student", help="folder of the copies (default: student/)")
    parser.add_argument("--nbgrader", type=Path, metavar="COURSE", help="write a course folder for nbgrader instead")
    asked = parser.parse_args()
    if asked.nbgrader:
        print(f"{len(write_course(asked.nbgrader))} assignments for nbgrader in {asked.nbgrader}/source/")
    else:
        print(f"{len(write_copies(asked.to))} notebooks and labs without solutions in {asked.to}/")
