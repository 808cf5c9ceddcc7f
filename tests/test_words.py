"""Words that people read: spelt right, headings in order, links that lead somewhere, every picture also in words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NOTEBOOKS = sorted(
    path for folder in ("notebooks", "labs", "mobillm_kit/show") for path in (ROOT / folder).glob("*.ipynb")
)
CODE = [ROOT / folder for folder in ("mobillm_kit", "recipes", "scripts", "benchmarks", "tests")]


def prose(path: Path) -> str:
    """A page's text, or that of a notebook's text cells; blocks of code, where # is no heading, are left out."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def spelt_wrong(*paths: Path) -> str:
    pytest.importorskip("codespell_lib", reason="needs codespell: make setup installs it")
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", *map(str, paths)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert not done.stderr, done.stderr
    return done.stdout


def test_spelling(tmp_path):
    for path in NOTEBOOKS:  # their pictures are letters too, but no words
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        (tmp_path / f"{path.stem}.txt").write_text("\n".join("".join(cell["source"]) for cell in cells))
    assert spelt_wrong(*PAGES, *CODE, tmp_path) == ""


def test_the_speller_finds_a_mistake(tmp_path):
    mistake = "received".replace("ei", "ie")  # not written out: this file is read as well
    (tmp_path / "page.md").write_text(f"A gradient is {mistake}.")
    assert f"{mistake} ==> received" in spelt_wrong(tmp_path)


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_headings_come_in_order(path):
    levels = [len(marks) for marks in re.findall(r"^(#+) ", prose(path), re.MULTILINE)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels)), levels


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebooks_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)|src=\"([^\"]+)\"", prose(path)):
        target = next(filter(None, link))
        assert target.startswith("http") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_every_picture_of_a_text_has_words(path):
    text = prose(path)
    assert not re.search(r"!\[\s*\]\(", text)
    assert all(re.search(r'\balt="[^"]{10,}"', image) for image in re.findall(r"<img\b[^>]*>", text))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_every_picture_of_a_cell_has_words(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                alt = output["metadata"].get("image/png", {}).get("alt", "")
                beside = "".join(output["data"].get("text/plain", ""))
                assert len(alt) > 20 or len(beside) > 40, "".join(cell["source"])
