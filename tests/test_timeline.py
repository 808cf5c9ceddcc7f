"""Spans on the device's clock; the server's stages are placed by their durations alone."""

from __future__ import annotations

import threading
import time

import pytest

from mobillm_kit.link.timeline import Timeline


def by_stage(timeline: Timeline) -> dict:
    return {span.stage: span for span in timeline.spans()}


def test_a_span_is_as_long_as_its_body():
    timeline = Timeline()
    with timeline.span("forward", 0):
        time.sleep(0.03)
    (span,) = timeline.spans()
    assert (span.stage, span.step, span.start_s) == ("forward", 0, 0.0)
    assert 0.03 <= span.seconds < 0.3


def test_the_servers_stages_end_when_the_acknowledgement_comes_and_follow_each_other():
    timeline = Timeline()
    sent = time.perf_counter() - 1.0
    timeline.arrived(0, sent, 0.1, 0.2, 0.3)
    found = by_stage(timeline)
    assert found["send"].seconds == pytest.approx(0.4, abs=0.05)
    assert found["queue"].start_s == pytest.approx(found["send"].start_s + found["send"].seconds, abs=1e-6)
    assert found["decode"].start_s == pytest.approx(found["queue"].start_s + 0.1)
    assert found["train"].start_s == pytest.approx(found["decode"].start_s + 0.2)
    assert found["train"].start_s + found["train"].seconds == pytest.approx(1.0, abs=0.05)


def test_a_server_whose_clock_runs_fast_gives_no_negative_time():
    timeline = Timeline()
    timeline.arrived(0, time.perf_counter(), 5.0, 0.0, 0.0)
    assert by_stage(timeline)["send"].seconds == 0.0


def test_batches_handed_over_together_are_sent_one_after_the_other():
    """Both were given to the socket a second ago; what the second took is only what came after the first."""
    timeline = Timeline()
    handed_over = time.perf_counter() - 1.0
    timeline.arrived(0, handed_over, 0.0, 0.0, 0.0)
    time.sleep(0.05)
    timeline.arrived(1, handed_over, 0.0, 0.0, 0.0)
    first, second = [span for span in timeline.spans() if span.stage == "send"]
    assert first.seconds == pytest.approx(1.0, abs=0.05)
    assert 0.04 <= second.seconds < 0.5
    assert second.start_s == pytest.approx(first.start_s + first.seconds)


def test_an_average_moves_a_quarter_of_the_way_to_the_newest():
    timeline = Timeline()
    assert timeline.average_s("train") is None
    timeline.add("train", 0, 0.0, 1.0)
    timeline.add("train", 1, 1.0, 2.0)
    assert timeline.average_s("train") == pytest.approx(1.25)


def test_later_steps_count_in_the_average_and_are_not_kept():
    timeline = Timeline(keep_steps=2)
    for step in range(5):
        timeline.add("forward", step, float(step), 1.0 if step < 2 else 3.0)
    assert [span.step for span in timeline.spans()] == [0, 1]
    assert timeline.average_s("forward") > 2.0


def test_spans_come_in_the_order_of_time_whoever_added_them():
    timeline = Timeline()
    timeline.add("forward", 0, 10.0, 1.0)
    threads = [threading.Thread(target=timeline.add, args=("send", step, 20.0 - step, 0.5)) for step in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    starts = [span.start_s for span in timeline.spans()]
    assert len(starts) == 9
    assert starts == sorted(starts)
