"""Student copies of the notebooks: without solutions, and without what the exercises print.

    python scripts/student.py [--to student]

A solution stands between nbgrader's markers inside the body of a function.  It gives way to one line that raises a
sentence, so a copy is valid Python from top to bottom, and the check below an empty exercise says which one it is.
That check is tagged `raises-exception`: "Run all" shows the sentence and goes on with the next exercise.

Knows: notebook files.  Knows nothing of: what stands in them, the package.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$", re.MULTILINE | re.DOTALL)
ANSWER = re.compile(r"exercise-(\d+)")
CHECK = re.compile(r"exercise-(\d+)-check")


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
        if answer or check:
            cell.update(outputs=[], execution_count=None)
        if answer:
            cell["source"] = stub("".join(cell["source"]), answer[1]).splitlines(keepends=True)
        if check:
            cell["metadata"]["tags"] = [*cell["metadata"].get("tags", []), "raises-exception"]
    return twin


def write_copies(to: Path) -> list[Path]:
    """A copy of every notebook in the folder ``to``, which is made if it is missing."""
    to.mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        twin = student_copy(json.loads(path.read_text(encoding="utf-8")))
        written.append(to / path.name)
        written[-1].write_text(json.dumps(twin, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the notebooks without solutions.")
    parser.add_argument("--to", type=Path, default=ROOT / "student", help="folder of the copies (default: student/)")
    folder = parser.parse_args().to
    print(f"{len(write_copies(folder))} notebooks without solutions in {folder}/")
