"""The script that measures the house counts what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import house

sys.path.pop(0)

TEXT = '''"""A module.

Of four lines.
"""

# why
LIMIT = 3
"""What a constant is."""


class Room:
    """Four walls."""

    def _wall(self, *, high: int) -> int:
        return high

    def door(self) -> int:
        text = """not
        a docstring"""
        return len(text)
'''


@pytest.fixture
def bars(tmp_path):
    (tmp_path / "low").mkdir()
    (tmp_path / "top.py").write_text("")
    (tmp_path / "low" / "room.py").write_text(TEXT)
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "one.py").write_text("A = 1\nB = 2\n")
    return {bar.what: bar for bar in house.bars(house.modules(tmp_path))}


@pytest.mark.parametrize(
    ("what", "figure"),
    [
        ("files at the top of the package", 1),
        ("lines", 20),
        ("lines of code", 8),
        ("lines of the annex engines/", 2),
        ("lines of the annex classroom/", 0),
        ("methods of the largest class", 2),
        ("lines of the longest function", 4),
        ("parameters of the widest function", 2),
        ("median lines of a function", 3),
        ("% of public functions with a docstring", 0),
    ],
)
def test_figures_by_hand(bars, what, figure):
    assert bars[what].figure == figure


def test_a_figure_beyond_its_limit_does_not_hold_and_says_where(bars):
    bare = bars["% of public functions with a docstring"]
    assert not bare.holds
    assert "low/room.py:17 door" in str(bare)
    assert bars["lines"].holds
