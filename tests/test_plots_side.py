"""Figures of the side network show the numbers that they are given."""

from __future__ import annotations

import pytest

from mobillm_kit.errors import BadInput
from mobillm_kit.show.plots_activations import layer_shares
from mobillm_kit.show.plots_memory import memory_over_time

SHARES = {"at the start": [0.25, 0.75], "trained": [0.5, 0.5]}
CURVES = {"streamed": [300.0, 351.0, 349.0], "whole": [310.0, 610.0]}


def test_a_bar_is_as_high_as_its_share():
    heights = [bar.get_height() for bar in layer_shares(SHARES).axes[0].patches]
    assert heights == [25, 75, 50, 50]
    assert layer_shares(SHARES).alt == (
        "Bars, share of each layer from the first to the last: at the start 25 %, 75 %; trained 50 %, 50 %."
    )


def test_a_line_starts_at_zero_and_shows_every_sample():
    lines = memory_over_time(CURVES, 0.5).axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [[0, 51, 49], [0, 300]]
    assert list(lines[0].get_xdata()) == [0, 0.5, 1.0]
    assert (
        memory_over_time(CURVES, 0.5).alt
        == "Lines of memory over time: streamed rises by 50 MiB, whole rises by 300 MiB."
    )


def test_nothing_to_draw_is_refused():
    with pytest.raises(BadInput, match="nothing to draw"):
        layer_shares({})
    with pytest.raises(BadInput, match="nothing to draw"):
        memory_over_time({"whole": []}, 0.1)
