"""Is the house still small?  Each bar of its size and shape with today's figure; exit code 1 where one falls short.

    python scripts/house.py                  the bars
    python scripts/house.py --before REV     the same at another revision, side by side

Lines are counted as ``wc -l`` does; code lines are those that are neither empty, nor a comment, nor a docstring.  A
function's length counts from its ``def`` to its last line; its parameters include ``self``.  An annex is a room that
no other room but ``commands/`` imports, beside the way of a training step: its lines are counted by themselves.
"""

from __future__ import annotations

import argparse
import ast
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "mobillm_kit"
ANNEXES = {"engines": 2_900, "classroom": 2_500, "cluster": 700, "sweeps": 400}
"""Lines that each may have."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Bar:
    """One figure and the most (or, for a share, the least) that it may be."""

    what: str
    figure: float
    limit: float
    where: str = ""
    """The file, class or function that has the figure; what lacks a docstring."""
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the figure is on the right side of the limit."""
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "ok  " if self.holds else "FAIL"
        return f"[{verdict}] {self.what:<48}{self.figure:>8g} {sign} {self.limit:<7g}{self.where}".rstrip()


@dataclass(frozen=True)
class Module:
    """One file, read and parsed once."""

    name: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The folder of the package that it stands in; its own name at the top."""
        return self.name.split("/")[0]

    def docstring_lines(self) -> set[int]:
        """Lines of every string that stands alone: docstrings and the texts below fields and constants."""
        alone = (n.value for n in ast.walk(self.tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))
        return {line for c in alone if isinstance(c.value, str) for line in range(c.lineno, (c.end_lineno or 0) + 1)}

    def lines(self) -> int:
        """As ``wc -l``."""
        return self.text.count("\n")

    def code_lines(self) -> int:
        """Neither empty, nor a comment, nor a docstring."""
        texts = self.docstring_lines()
        lines = enumerate(self.text.splitlines(), start=1)
        return sum(bool(line.strip()) and line.strip()[0] != "#" and number not in texts for number, line in lines)

    def functions(self) -> Iterator[Function]:
        """Functions and methods, nested ones too."""
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))

    def classes(self) -> Iterator[ast.ClassDef]:
        """Classes, nested ones too."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))


def modules(package: Path) -> list[Module]:
    """Every file of a package, by name."""
    found = []
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        found.append(Module(path.relative_to(package).as_posix(), text, ast.parse(text)))
    return found


def length(function: Function) -> int:
    """Lines from ``def`` to the end."""
    return (function.end_lineno or 0) - function.lineno + 1


def parameters(function: Function) -> int:
    """All that a caller can give."""
    a = function.args
    return len(a.posonlyargs) + len(a.args) + len(a.kwonlyargs) + bool(a.vararg) + bool(a.kwarg)


def methods(node: ast.ClassDef) -> int:
    """Functions that stand in a class."""
    return sum(isinstance(child, Function) for child in node.body)


def bars(found: list[Module]) -> list[Bar]:
    """The house in figures."""
    functions = [(f"{m.name}:{f.lineno} {f.name}", f) for m in found for f in m.functions()]
    public = [(where, f) for where, f in functions if not f.name.startswith("_")]
    bare = [where for where, f in public if not ast.get_docstring(f)]
    file = max(found, key=Module.lines)
    long, long_where = max((length(f), where) for where, f in functions)
    wide, wide_where = max((parameters(f), where) for where, f in functions)
    big, big_where = max((methods(c), f"{m.name}:{c.lineno} {c.name}") for m in found for c in m.classes())
    house = [m for m in found if m.room not in ANNEXES]
    annexes = {room: sum(m.lines() for m in found if m.room == room) for room in ANNEXES}
    return [
        Bar("files at the top of the package", sum("/" not in m.name for m in found), 8),
        Bar("lines", sum(m.lines() for m in house), 18_000),
        Bar("lines of code", sum(m.code_lines() for m in house), 12_500),
        *(Bar(f"lines of the annex {room}/", annexes[room], limit) for room, limit in ANNEXES.items()),
        Bar("lines of the longest file", file.lines(), 400, file.name),
        Bar("methods of the largest class", big, 20, big_where),
        Bar("lines of the longest function", long, 40, long_where),
        Bar("parameters of the widest function", wide, 14, wide_where),
        Bar("median lines of a function", statistics.median(length(f) for _, f in functions), 7),
        Bar("% of public functions with a docstring", 100 * (1 - len(bare) / len(public)), 100, _some(bare), True),
    ]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def at_revision(revision: str) -> list[Module]:
    """The package as it was at a revision of this repository."""
    packed = subprocess.run(["git", "archive", revision, PACKAGE], cwd=ROOT, capture_output=True, check=True)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
        return modules(Path(folder) / PACKAGE)


def main() -> int:
    """Print the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", metavar="REV", help="a revision to compare with: a commit, a tag, a branch")
    asked = parser.parse_args()
    now = bars(modules(ROOT / PACKAGE))
    before = bars(at_revision(asked.before)) if asked.before else now
    for bar, old in zip(now, before, strict=True):
        print(bar if old is bar else f"{bar}   (was {old.figure:g})")
    return 0 if all(bar.holds for bar in now) else 1


if __name__ == "__main__":
    sys.exit(main())
