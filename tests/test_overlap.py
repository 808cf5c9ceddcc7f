"""The pipeline by arithmetic: who waits for whom."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mobillm_kit.errors import BadInput
from mobillm_kit.link.overlap import StepCost, schedule, slowest, spans
from mobillm_kit.link.rates import Link

FAST = Link(1e6)
EIGHT_MBIT = Link(8.0)
"""A megabyte takes a second."""


def finish_times(costs: list[StepCost], link: Link, **options) -> list[float]:
    """When the device knows of each step that it is trained."""
    return [times.acked_s for times in schedule(costs, link, **options)]


def test_one_step_takes_the_sum_of_its_stages_and_the_way_back():
    (only,) = finish_times([StepCost(0.5, 1_000_000, 0.25)], Link(8.0, latency_ms=10.0))
    assert only == pytest.approx(0.5 + 1.0 + 0.010 + 0.25 + 0.010)


@pytest.mark.parametrize(
    ("cost", "who", "pace"),
    [
        (StepCost(2.0, 1_000_000, 0.5), "device", 2.0),
        (StepCost(0.1, 1_000_000, 0.5), "link", 1.0),
        (StepCost(0.1, 1_000_000, 3.0), "server", 3.0),
    ],
)
def test_in_the_steady_state_the_slowest_stage_sets_the_pace(cost, who, pace):
    times = finish_times([cost] * 20, EIGHT_MBIT)
    assert slowest(cost, EIGHT_MBIT) == (who, pace)
    assert times[-1] - times[-2] == pytest.approx(pace)
    assert times[-1] < 20 * (cost.device_s + 1.0 + cost.server_s) * 0.8


def test_with_one_credit_nothing_overlaps_but_the_next_forward():
    times = finish_times([StepCost(0.1, 1_000_000, 1.0)] * 10, EIGHT_MBIT, credit=1)
    assert times[-1] - times[-2] == pytest.approx(2.0)


def test_waiting_after_every_step_gives_the_plain_sum():
    times = finish_times([StepCost(0.5, 0, 0.25)] * 8, FAST, stops=range(8))
    assert times[-1] == pytest.approx(8 * 0.75)


def test_latency_costs_once_not_per_step_while_there_is_credit():
    near = finish_times([StepCost(1.0, 1000, 0.1)] * 10, FAST)
    far = finish_times([StepCost(1.0, 1000, 0.1)] * 10, Link(1e6, latency_ms=100.0))
    assert far[-1] - near[-1] == pytest.approx(0.2)


def test_steps_that_send_nothing_cost_the_line_nothing():
    costs = [StepCost(0.0, 1_000_000, 0.1)] * 2 + [StepCost(0.0, 0, 0.1)] * 8
    assert finish_times(costs, EIGHT_MBIT)[-1] == pytest.approx(2.0 + 0.1 * 9)


def test_no_credit_is_refused():
    with pytest.raises(BadInput, match="at least 1"):
        finish_times([StepCost(1.0, 0, 1.0)], FAST, credit=0)


def test_no_stage_works_on_two_steps_at_once_and_no_step_is_in_two_places():
    times = schedule([StepCost(0.3, 500_000, 0.4)] * 12, EIGHT_MBIT)
    for one, other in pairwise(times):
        assert one.made_s <= other.begun_s
        assert one.off_line_s <= other.on_line_s
        assert one.trained_s <= other.training_s
    for at in times:
        assert at.begun_s <= at.made_s <= at.on_line_s <= at.off_line_s <= at.training_s <= at.trained_s <= at.acked_s


def test_never_more_batches_are_on_their_way_than_there_is_credit():
    times = schedule([StepCost(0.01, 100_000, 1.0)] * 12, EIGHT_MBIT, credit=3)
    for at in times:
        assert sum(other.on_line_s <= at.on_line_s < other.acked_s for other in times) <= 3


def test_a_schedule_is_drawn_like_a_measured_timeline():
    drawn = spans(schedule([StepCost(0.5, 1_000_000, 0.25)] * 2, EIGHT_MBIT))
    assert [span.stage for span in drawn] == ["forward", "send", "train"] * 2
    assert [span.seconds for span in drawn[:3]] == pytest.approx([0.5, 1.0, 0.25])
    assert drawn[4].start_s == pytest.approx(1.5)
