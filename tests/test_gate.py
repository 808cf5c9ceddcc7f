"""The build gate says yes to a teaching instrument and no to everything else."""

from __future__ import annotations

import pytest

from recipes.pocket.gate import CPU_SECONDS, HANDWRITTEN, RANDOM, Bar, bars

GOOD = {
    "zero-shot": 0.70,
    "threshold": 0.71,
    "bag-of-words": 0.60,
    "full": 0.98,
    "lora": 0.97,
    "mezo": 0.85,
    "p-rge": 0.84,
    "mobillm-full-width": 0.90,
    "mobillm-ladder": 0.98,
    f"{CPU_SECONDS}mezo": 40.0,
    f"{CPU_SECONDS}p-rge": 40.0,
    f"{RANDOM}mobillm-full-width": 0.51,
    f"{RANDOM}mobillm-ladder": 0.49,
    f"{HANDWRITTEN}full": 0.92,
    f"{HANDWRITTEN}mobillm-full-width": 0.88,
    f"{HANDWRITTEN}mobillm-ladder": 0.93,
}

BAD = {
    "zero-shot": [0.55, 0.85],
    "threshold": [0.74],
    "bag-of-words": [0.76],
    "full": [0.94],
    "lora": [0.95],
    "mezo": [0.79],
    "p-rge": [0.79],
    "mobillm-full-width": [0.81],
    "mobillm-ladder": [0.95],
    f"{CPU_SECONDS}mezo": [61.0],
    f"{CPU_SECONDS}p-rge": [61.0],
    f"{RANDOM}mobillm-full-width": [0.56],
    f"{RANDOM}mobillm-ladder": [0.56],
    f"{HANDWRITTEN}full": [0.84],
    f"{HANDWRITTEN}mobillm-full-width": [0.79],
    f"{HANDWRITTEN}mobillm-ladder": [0.79],
}


def test_a_good_backbone_passes_every_bar():
    assert [str(bar) for bar in bars(GOOD) if not bar.ok] == []


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_each_single_fault_fails(name, value):
    assert any(not bar.ok for bar in bars({**GOOD, name: value}))


def test_a_bar_is_met_at_its_edge_and_says_its_figure():
    assert Bar("x", 0.95, low=0.95).ok
    assert Bar("x", 0.70 + 0.03, high=0.73).ok
    assert str(Bar("x", 0.5, 0.6, 0.8)) == "[fail] x: 0.500 (>= 0.600 and <= 0.800)"
