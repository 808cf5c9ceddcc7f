"""Seconds from bytes: by hand, by law, and against a small simulation."""

from __future__ import annotations

import itertools
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillm_kit.errors import BadInput, UnknownName
from mobillm_kit.link.rates import LINKS, SEGMENT_BYTES, Delays, Link, parse_link, retransmit_s, segments

links = st.builds(
    Link,
    st.floats(0.01, 1e5),
    latency_ms=st.floats(0, 500),
    jitter_ms=st.floats(0, 500),
    loss=st.floats(0, 0.5),
)


@st.composite
def traces(draw: st.DrawFn) -> Link:
    steps = draw(st.lists(st.floats(0.05, 5), min_size=1, max_size=6))
    rates = draw(st.lists(st.one_of(st.just(0.0), st.floats(0.1, 100)), min_size=len(steps), max_size=len(steps)))
    times = [0.0, *itertools.accumulate(steps[:-1])]
    rates[-1] = rates[-1] or 1.0
    return Link.trace(list(zip(times, rates, strict=True)))


# one link


def test_a_megabyte_over_eight_megabit_takes_a_second_and_the_latency():
    assert Link(8.0, latency_ms=10).seconds(1_000_000) == pytest.approx(1.010)


def test_jitter_costs_half_of_itself_on_average():
    assert Link(8.0, jitter_ms=30).seconds(0) == pytest.approx(0.015)


def test_losses_cost_one_round_trip_each():
    link = Link(8.0, latency_ms=20, loss=0.01)
    assert link.seconds(1000 * SEGMENT_BYTES) == pytest.approx(0.020 + 8 * 1000 * SEGMENT_BYTES / 8e6 + 10 * 0.040)


def test_a_loss_never_costs_less_than_ten_milliseconds():
    assert retransmit_s(Link(8.0)) == 0.010


def test_segments_are_what_tcp_would_fill():
    assert [segments(n) for n in (0, 1, SEGMENT_BYTES, SEGMENT_BYTES + 1)] == [0, 1, 1, 2]


@given(links, st.integers(0, 10**9), st.integers(0, 10**9))
def test_more_bytes_never_take_less_time(link, some, more):
    assert link.seconds(some) <= link.seconds(some + more)


def test_presets_name_their_rate():
    for name, link in LINKS.items():
        assert name.endswith(f"-{link.mbit_per_s:g}")


# delays


def sequence(seed: int, link: Link, n: int = 200, *purpose: str) -> list[tuple[float, float]]:
    delays = Delays(seed, *purpose)
    return [delays.burst(link, 10 * SEGMENT_BYTES) for _ in range(n)]


def test_same_seed_same_delays_other_seed_other_delays():
    link = Link(20, 10, jitter_ms=5, loss=0.02)
    assert sequence(3, link) == sequence(3, link)
    assert sequence(3, link) != sequence(4, link)
    assert sequence(3, link, 200, "up") != sequence(3, link, 200, "down")


def test_jitter_fills_its_range_evenly():
    jitter_s = [late_s for late_s, _ in sequence(0, Link(20, jitter_ms=80), 4000)]
    assert 0 <= min(jitter_s) < 0.001
    assert 0.079 < max(jitter_s) <= 0.080
    assert statistics.mean(jitter_s) == pytest.approx(0.040, rel=0.05)


def test_losses_come_as_often_as_the_link_says():
    link = Link(20, 25, loss=0.02)
    stops_s = [stop_s for _, stop_s in sequence(0, link, 10_000)]
    assert sum(stops_s) / 0.050 == pytest.approx(100_000 * 0.02, rel=0.05)  # standard deviation 2.2 %


def test_a_stream_is_lost_at_the_same_places_however_it_is_cut_into_bursts():
    link = Link(20, 25, loss=0.02)
    whole, pieces = Delays(5), Delays(5)
    in_one = whole.burst(link, 1000 * SEGMENT_BYTES)[1]
    in_many = sum(pieces.burst(link, SEGMENT_BYTES)[1] for _ in range(1000))
    assert in_one == pytest.approx(in_many)
    assert in_one > 0


def test_a_clean_link_delays_nothing():
    assert set(sequence(0, Link(20, 10))) == {(0.0, 0.0)}


# traces


def test_a_trace_by_hand():
    trace = Link.trace([(0, 8), (2, 0), (5, 16)])
    assert trace.seconds(1_000_000) == pytest.approx(1.0)
    assert trace.seconds(2_000_000) == pytest.approx(2.0)  # the last byte is just before the outage
    assert trace.seconds(3_000_000) == pytest.approx(5.5)
    assert trace.seconds(1_000_000, start_s=3) == pytest.approx(2.5)
    assert [trace.mbit_at(second) for second in (0, 1.9, 2, 4.9, 5, 100)] == [8, 8, 0, 0, 16, 16]


@given(traces(), st.floats(0, 20), st.integers(1, 20_000_000))
@settings(max_examples=100, deadline=None)
def test_a_trace_carries_exactly_the_area_under_its_rate(trace, start_s, n_bytes):
    finish_s = trace.finish_s(n_bytes, start_s)
    edges = {start_s, finish_s, *(second for second, _ in trace.steps if start_s < second < finish_s)}
    carried = sum((end - begin) * trace.mbit_at((begin + end) / 2) for begin, end in itertools.pairwise(sorted(edges)))
    assert carried * 1e6 / 8 == pytest.approx(n_bytes, rel=1e-6, abs=1)


@given(traces(), st.floats(0, 20), st.integers(1, 1_000_000), st.integers(1, 1_000_000))
@settings(deadline=None)
def test_two_messages_one_after_the_other_take_as_long_as_one(trace, start_s, first, second):
    together_s = trace.finish_s(first + second, start_s)
    assert trace.finish_s(second, trace.finish_s(first, start_s)) == pytest.approx(together_s, rel=1e-6, abs=1e-6)


def test_a_trace_of_one_rate_is_a_link():
    delays = {"latency_ms": 7, "jitter_ms": 4, "loss": 0.01}
    assert Link.trace([(0, 20)], **delays).seconds(12_345) == pytest.approx(Link(20, **delays).seconds(12_345))


# what a user writes


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("20mbit", Link(20)),
        ("20mbit,10ms", Link(20, 10)),
        (" 20 Mbit/s , latency=10ms , jitter=2.5ms , loss=1% ", Link(20, 10, 2.5, 0.01)),
        ("1gbit,0.2ms", Link(1000, 0.2)),
        ("500kbit,loss=0.02", Link(0.5, loss=0.02)),
        ("wifi-60", LINKS["wifi-60"]),
        ("wifi-60,loss=1%", Link(60, LINKS["wifi-60"].latency_ms, loss=0.01)),
    ],
)
def test_texts_that_make_a_link(text, link):
    assert parse_link(text) == link


@given(st.one_of(links, traces()))
def test_links_and_traces_are_read_back_from_their_own_text(link):
    assert parse_link(str(link)) == link


def test_links_and_traces_pass_too():
    assert parse_link(Link(20)) == Link(20)
    trace = Link.trace([(0, 8), (2.5, 16)], latency_ms=10)
    assert parse_link("steps=0:8/2.5:16,10ms") == trace


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("fast", "'fast' names no link"),
        ("", "names no link"),
        ("20", "names no link"),
        ("20mbit,10", "'10' says nothing"),
        ("20mbit,10ms,12ms", "latency_ms twice"),
        ("0mbit", "carries nothing"),
        ("-5mbit", "carries nothing"),
        ("1e999mbit", "not a finite number"),
        ("2-3mbit", "not a number"),
        ("20mbit,-1ms", "latency_ms is -1"),
        ("20mbit,loss=60%", "loss is 0.6"),
        ("trace=nowhere.csv", "names no link"),
        ("steps=0:5,repeat=5s", "'repeat=5s' says nothing"),
        ("steps=0:0/5:0", "carries nothing"),
        ("steps=0:x", "'x' in the link 'steps=0:x' is not a number"),
        ("steps=0", "'' in the link 'steps=0' is not a number"),
        ("steps=1:5", "start at 0"),
        ("steps=0:5/2:5/1:5", "start at 0 and rise"),
        ("steps=0:-5", "-5 Mb/s"),
        ("steps=0:nan", "not a finite number"),
        ("steps=0:5/9:0", "0 Mb/s for ever"),
    ],
)
def test_texts_that_make_none_are_named(text, complaint):
    with pytest.raises(BadInput, match=complaint) as caught:
        parse_link(text)
    assert caught.value.remedy


@pytest.mark.parametrize("number", ["20", True, float("nan"), None])
def test_numbers_that_are_none_are_named(number):
    with pytest.raises(BadInput, match=r"mbit_per_s is .*, not a finite number"):
        Link(number)
    with pytest.raises(BadInput, match=r"seconds is .*, not a finite number"):
        Link.trace([(0, 1), (number, 2)])


def test_what_is_neither_text_nor_link_is_refused():
    with pytest.raises(BadInput, match="20 is no link"):
        parse_link(20)
    with pytest.raises(UnknownName):
        parse_link("wifi")
    with pytest.raises(BadInput, match="cannot be sent"):
        Link(20).seconds(-1)
