"""The page about the house: every worked example runs, every file it names exists, every floor is drawn."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from mobillm_kit import methods
from mobillm_kit.backbone.families import FAMILIES
from mobillm_kit.quant import books
from mobillm_kit.texts.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
SECTIONS = {part.splitlines()[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}
EXAMPLES = [title for title in SECTIONS if title.startswith("Add ")]


def blocks(section: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def tables_as_before(monkeypatch):
    """The rows that an example adds go with it."""
    for table in (methods.METHODS, FAMILIES, TASKS, books.BOOKS, books.BITS, books.TOP):
        for key in table:  # an entry that is set and undone; new ones are taken out below
            monkeypatch.setitem(table, key, table[key])
    before = [(table, set(table)) for table in (methods.METHODS, FAMILIES, TASKS, books.BOOKS, books.BITS, books.TOP)]
    yield
    for table, keys in before:
        for new in set(table) - keys:
            del table[new]


def test_there_is_an_example_of_each_kind():
    assert EXAMPLES == ["Add a method", "Add a codec", "Add a task", "Add a model family"]
    assert all(blocks(SECTIONS[title]) for title in EXAMPLES)


@pytest.mark.usefixtures("tables_as_before")
@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_does_what_the_page_says(title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(SECTIONS[title]):
        file = re.match(r"# (methods/\w+\.py)\n", block)
        if file:  # a file of the package, put beside it
            (tmp_path / "methods").mkdir()
            (tmp_path / file[1]).write_text(block, encoding="utf-8")
            monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "methods")])
        else:
            exec(compile(block, f"architecture.md: {title}", "exec"), {})


def test_every_file_that_the_page_names_exists():
    named = set(re.findall(r"`([\w/]+(?:\.py|\.toml|/))`", PAGE)) - {"make/"}
    assert len(named) > 20
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "mobillm_kit" / name).exists(), name


def test_the_drawing_has_the_floors_of_the_contract_in_their_order():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = (c["layers"] for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    drawing = SECTIONS["Floors"].split("```")[1]
    rooms = re.findall(r"\b(\w+)(?:/|\.py)", drawing)
    drawn = [
        room for room in rooms if (ROOT / "mobillm_kit" / room).is_dir() or (ROOT / f"mobillm_kit/{room}.py").is_file()
    ]
    assert drawn == [room for layer in layers for room in layer.split(" | ")]


def test_one_batch_walks_in_ten_lines():
    walk = SECTIONS["One batch of MobiLLM"]
    assert re.findall(r"^(\d+)\. ", walk, flags=re.MULTILINE) == [str(n) for n in range(1, 11)]
