"""The slider moves the sentence and the picture."""

from __future__ import annotations

import pytest

from mobillm_kit.errors import BadInput
from mobillm_kit.link.overlap import StepCost
from mobillm_kit.link.rates import Link
from mobillm_kit.show.panels import LinkPanel, pace_text

COSTS = {"all tokens": StepCost(0.02, 200_000, 0.01), "one token": StepCost(0.02, 10_000, 0.005)}


def test_the_sentence_by_hand():
    assert pace_text(COSTS["all tokens"], Link(20.0)) == (
        "200,000 bytes a step over 20 Mb/s: 80.0 ms a step, and the link sets the pace."
    )


def test_a_faster_link_hands_the_pace_to_the_device():
    panel = LinkPanel(COSTS)
    before = panel.picture.value
    assert "link sets the pace" in panel.text.value
    panel.bandwidth.value = 1000
    assert "20.0 ms a step, and the device sets the pace" in panel.text.value
    assert panel.picture.value != before


def test_fewer_bytes_do_the_same_on_the_slow_link():
    panel = LinkPanel(COSTS)
    panel.sent.value = "one token"
    assert "device sets the pace" in panel.text.value
    assert panel.png.startswith(b"\x89PNG")


def test_nothing_to_choose_from_is_refused():
    with pytest.raises(BadInput, match="No costs"):
        LinkPanel({})
