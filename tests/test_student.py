"""Student copies: an empty exercise and a wrong answer fail with a sentence that names it.

What is run is real and is less than the whole notebook: the exercises, and of the cells before them those that they
need, found by who binds which name.  That the solved notebook runs from top to bottom, that each solution passes its
check and that a lab's give all points, is nbval's to say: it compares what is stored, and that is looked at here.
"""

from __future__ import annotations

import dis
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
LABS = sorted((ROOT / "labs").glob("*.ipynb"))
NOTEBOOKS = [*sorted((ROOT / "notebooks").glob("*.ipynb")), *LABS]
SLOW = {("00_start_here", "3"): 0.5, ("04_mezo", "1"): 1.0, ("09_comparison", "3"): 0}
"""What is spoiled for a wrong answer where the solution would train for seconds to give one."""
_spec = importlib.util.spec_from_file_location("student", ROOT / "scripts" / "student.py")
student = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(student)


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code(notebook: dict) -> dict[str, str]:
    """Code cells by id, in order."""
    return {cell["id"]: source(cell) for cell in notebook["cells"] if cell["cell_type"] == "code"}


def inner(body: CodeType) -> Iterator[CodeType]:
    """The functions and comprehensions in a piece of code, at any depth."""
    for constant in body.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from inner(constant)


def names(cell: str) -> tuple[set[str], set[str]]:
    """Global names that a cell binds, and those that it reads before it binds them, in its functions too."""
    body = compile(cell, "cell", "exec")
    bound: set[str] = set()
    read: set[str] = set()
    for step in dis.get_instructions(body):
        if step.opname == "STORE_NAME":
            bound.add(step.argval)
        elif step.opname == "LOAD_NAME" and step.argval not in bound:
            read.add(step.argval)
    steps = (step for function in inner(body) for step in dis.get_instructions(function))
    return bound, read | ({step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")} - bound)


def needed(cells: dict[str, str]) -> list[str]:
    """Ids of the cells before the exercises that bind what the exercises read."""
    exercises = [cell_id for cell_id in cells if cell_id.startswith("exercise-")]
    missing: set[str] = set()
    for cell_id in reversed(exercises):
        bound, read = names(cells[cell_id])
        missing = (missing - bound) | read
    found = []
    for cell_id in reversed([cell_id for cell_id in cells if cell_id not in exercises]):
        bound, read = names(cells[cell_id])
        if bound & missing:
            missing = (missing - bound) | read
            found.append(cell_id)
    return found[::-1]


def spoiled(value: Any) -> Any:
    """A wrong answer of the same type."""
    if isinstance(value, dict):
        return {key: spoiled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(spoiled(item) for item in value)
    return value + ("-" if isinstance(value, str) else 1)


class Bench:
    """A notebook whose exercises can be run alone: solved, empty, or with a wrong answer."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        notebook = json.loads(path.read_text(encoding="utf-8"))
        texts = {cell["id"]: source(cell) for cell in notebook["cells"]}
        self.solved, self.empty = code(notebook), code(student.student_copy(notebook))
        self.numbers = [found[1] for cell_id in self.solved if (found := student.ANSWER.fullmatch(cell_id))]
        self.closed = [number for number in self.numbers if "(open)" not in texts[f"exercise-{number}-text"]]
        self.space: dict[str, Any] = {}
        if path in LABS and str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))  # a lab imports the modules beside it
        for cell_id in needed(self.solved):
            exec(compile(self.solved[cell_id], cell_id, "exec"), self.space)
        if callable(count := self.space.get("ledger")):
            self.space["ledger"] = cache(count)  # 09's, of a whole step; checks ask for the same ones

    def check(self, number: str) -> None:
        exec(compile(self.solved[f"exercise-{number}-check"], "check", "exec"), self.space)

    def score(self) -> int:
        """What the last cell of a lab gives to nbgrader."""
        exec(compile(self.solved[student.SCORE], "score", "exec"), self.space)
        return self.space["final"].points

    def answer(self, cells: dict[str, str], number: str) -> str:
        """Run the cell of the answer; gives the name of its function."""
        cell = cells[f"exercise-{number}"]
        exec(compile(cell, "answer", "exec"), self.space)
        return re.findall(r"^def (\w+)", cell, re.MULTILINE)[-1]


def wrong(bench: Bench, number: str, solution: Callable) -> Callable:
    """A function like the solution whose answers are wrong."""
    if (bench.name, number) in SLOW:
        return lambda *args, **kwargs: spoiled(SLOW[bench.name, number])
    return lambda *args, **kwargs: spoiled(solution(*args, **kwargs))


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


def test_every_empty_exercise_fails_with_a_sentence_that_names_it(bench, capsys):
    for number in bench.numbers:
        name = bench.answer(bench.empty, number)
        with pytest.raises(NotImplementedError, match=f"^Exercise {number}: .*`{name}`"):
            bench.check(number)
    if student.SCORE in bench.empty:
        assert bench.score() == 0
        said = capsys.readouterr().out
        assert "SCORE 0 of 100" in said
        assert re.search(r"Exercise \d: write the body of `my_\w+`", said)


def test_a_wrong_answer_fails_with_a_sentence_that_names_its_exercise(bench):
    for number in bench.numbers:
        name = bench.answer(bench.solved, number)
        if number in bench.closed:
            solution = bench.space[name]
            bench.space[name] = wrong(bench, number, solution)
            with pytest.raises(AssertionError, match=f"^Exercise {number}: "):
                bench.check(number)
            bench.space[name] = solution


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_solutions_print_is_stored_and_compared_by_nbval(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    checks = [cell for cell in cells if student.CHECK.fullmatch(cell["id"])]
    scores = [cell for cell in cells if cell["id"] == student.SCORE]
    assert len(checks) >= 3
    assert len(scores) == (path in LABS)
    for cell in checks + scores:
        assert not cell["metadata"].get("tags"), cell["id"]  # such as nbval-skip
        assert re.search(r"\d", "".join(cell["outputs"][0]["text"])), cell["id"]
    for cell in scores:
        said, result = cell["outputs"]
        assert "SCORE 100 of 100" in said["text"][-1]
        assert result["data"]["text/plain"] == ["70"]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return student.write_copies(tmp_path_factory.mktemp("course") / "student")


def test_a_copy_is_a_valid_notebook_without_solutions_and_without_what_exercises_print(copies):
    assert [path.name for path in copies] == [path.name for path in NOTEBOOKS]
    for path in copies:
        nbformat.validate(nbformat.read(path, as_version=4))
        assert "SOLUTION" not in path.read_text(encoding="utf-8")
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                compile(source(cell), cell["id"], "exec")
                mine = cell["id"].startswith("exercise-") or cell["id"] == student.SCORE
                assert bool(cell["execution_count"]) != mine
                assert not (cell["outputs"] and mine)


def test_a_lab_takes_along_the_modules_that_it_imports(copies):
    for path, twin in zip(NOTEBOOKS, copies, strict=True):
        assert twin.parent.name == (path.parent.name if path in LABS else "student")
        beside = {module.name: module.read_text(encoding="utf-8") for module in path.parent.glob("*.py")}
        assert {module.name: module.read_text(encoding="utf-8") for module in twin.parent.glob("*.py")} == beside


def test_a_copy_differs_from_its_notebook_in_the_exercises_alone(copies):
    for path, twin in zip(NOTEBOOKS, copies, strict=True):
        cells = [json.loads(each.read_text(encoding="utf-8"))["cells"] for each in (path, twin)]
        changed = [one["id"] for one, other in zip(*cells, strict=True) if one != other]
        assert changed
        assert all(re.fullmatch(r"exercise-\d+(-check)?|score", cell_id) for cell_id in changed)


def test_the_cells_that_are_needed_are_found_through_functions_and_the_last_binding_counts():
    cells = {
        "a": "import os",
        "b": "x = 1",
        "c": "x = 2",
        "d": "def f():\n    y = 3\n    return x + y",
        "e": "y = os",
        "f": "z = 1\nz = z + 1",
        "exercise-1": "def g():\n    return [y for y in (f(),)]\nz = g()\nprint(z)",
    }
    assert needed(cells) == ["c", "d"]
