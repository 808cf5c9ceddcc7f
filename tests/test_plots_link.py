"""The Gantt figure says what the spans say."""

from __future__ import annotations

import pytest

from mobillm_kit.errors import BadInput
from mobillm_kit.record import Span
from mobillm_kit.show.plots_runs import PARTIES, STAGES, busy, cut, gantt
from tests.records import spans


def bars(figure):
    (axes,) = figure.axes
    return [(round(p.get_y() + p.get_height() / 2), p.get_x(), p.get_width()) for p in axes.patches]


def test_every_stage_but_the_queue_has_its_bar_in_its_row():
    shown = bars(gantt(spans(), first=0, steps=6))
    assert len(shown) == 6 * 5
    assert [sum(row == number for row, *_ in shown) for number in range(3)] == [12, 6, 12]


def test_bars_stand_where_the_spans_say_in_milliseconds():
    shown = bars(gantt(spans(), first=2, steps=2))
    assert (0, pytest.approx(0.0), pytest.approx(900.0)) in shown
    assert (1, pytest.approx(1000.0), pytest.approx(500.0)) in shown
    assert (2, pytest.approx(1550.0), pytest.approx(450.0)) in shown  # the rest of it is after the last forward


def test_the_picture_shows_what_link_and_server_did_meanwhile_of_earlier_steps():
    (axes,) = gantt(spans(), first=3, steps=1).axes
    assert axes.get_xlim() == (0, pytest.approx(1000.0))
    assert {text.get_text() for text in axes.texts if text.get_text().isdigit()} == {"1", "2", "3"}
    rows = {round(text.get_position()[1]) for text in axes.texts if text.get_text() == "2"}
    assert rows == {1, 2}


def test_in_the_steady_state_the_slowest_row_has_no_gap():
    shares = busy(spans(), 2.0, 4.0)
    assert shares == {"device": pytest.approx(1.0), "link": pytest.approx(0.5), "server": pytest.approx(0.75)}


def test_the_sentence_says_what_the_picture_shows():
    words = "2 to 3, measured here. The device sets the pace: device busy 100%, link busy 50%, server busy 75%."
    assert gantt(spans(), first=2, steps=2).alt.endswith(words)
    with pytest.raises(BadInput, match="no spans of steps 9 to 10"):
        gantt(spans(), first=9, steps=2)


def test_the_title_says_who_sets_the_pace_and_whose_seconds_these_are():
    title, subtitle = (
        text.get_text() for text in gantt(spans(), first=2, steps=2, whose="predicted").axes[0].texts[:2]
    )
    assert title == "The device sets the pace"
    assert subtitle.startswith("predicted; numbers are steps; device busy 100%")


def test_where_all_wait_the_title_says_so():
    rare = [Span(stage="forward", step=n, start_s=float(n), seconds=0.03) for n in range(4)]
    assert gantt(rare, first=0, steps=3).axes[0].texts[0].get_text() == "All of them wait most of the time"


def test_time_that_two_sends_share_counts_once():
    twice = [Span(stage="send", step=n, start_s=0.0, seconds=2.0) for n in range(2)]
    assert busy(twice, 0.0, 2.0)["link"] == pytest.approx(1.0)


def test_cut_keeps_what_lies_inside():
    (left,) = cut([Span(stage="train", step=1, start_s=1.0, seconds=2.0)], 2.0, 2.5)
    assert (left.start_s, left.seconds) == (2.0, 0.5)
    assert cut([Span(stage="queue", step=1, start_s=1.0, seconds=2.0)], 0.0, 9.0) == []


def test_each_row_has_a_stage_and_each_stage_a_colour_of_its_own():
    assert {row for row, _ in STAGES.values()} == set(PARTIES)
    assert len({color for _, color in STAGES.values()}) == len(STAGES)


def test_steps_that_were_not_run_are_refused():
    with pytest.raises(BadInput, match="no spans of steps 40 to 47"):
        gantt(spans(), first=40)


def test_the_same_spans_give_the_same_picture():
    assert gantt(spans(), first=0).svg() == gantt(spans(), first=0).svg()
