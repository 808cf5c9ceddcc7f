"""The table of all notebook cells whose output nbval does not compare, each with its reason: docs/uncompared.md.

python scripts/uncompared.py        writes it; `tests/test_notebooks.py` holds it and its share
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "uncompared.md"
FOLDERS = ("notebooks", "labs")
IGNORED, REASON = "nbval-ignore-output", "# not compared: "

HEAD = """# Cells that are not compared

`make test` runs every notebook and lab and compares what each cell prints with what is stored; pictures are left out.
The cells below run too, but their text may differ between two machines; `python scripts/uncompared.py` makes this page.

| notebook | code cells | not compared | share |
|---|--:|--:|--:|
"""


def cells() -> dict[str, list[dict]]:
    """The code cells of each notebook, by its path without the ending."""
    found = {}
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        name = path.relative_to(ROOT).with_suffix("").as_posix()
        found[name] = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return found


def reasons(code: list[dict]) -> list[tuple[int, str]]:
    """Number, from 1, and reason of each cell that is not compared."""
    firsts = [(number, "".join(cell["source"]).split("\n", 1)[0], cell) for number, cell in enumerate(code, 1)]
    return [(n, line.removeprefix(REASON)) for n, line, cell in firsts if IGNORED in cell["metadata"].get("tags", [])]


def share() -> float:
    """Of all code cells, 0..1."""
    every = cells().values()
    return sum(len(reasons(code)) for code in every) / sum(map(len, every))


def page() -> str:
    """The whole page."""
    every = cells()
    rows = [(name, len(code), len(reasons(code))) for name, code in every.items()]
    rows.append(("**all**", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    counts = "".join(f"| {name} | {n} | {k} | {k / n:.0%} |\n" for name, n, k in rows)
    listed = "".join(f"| {name} | {n} | {why} |\n" for name, code in every.items() for n, why in reasons(code))
    return f"{HEAD}{counts}\n| notebook | code cell | why |\n|---|--:|---|\n{listed}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
