"""The network is slow, breaks, lies or loses: the side network is the same, or the error says what to do."""

from __future__ import annotations

import random
import threading
import time

import psutil
import pytest

from mobillm_kit.errors import ServerGone
from tests.faults.scenes import TYPED_ERROR_S, Script, attempt, identical, later, refused, table

SHORT_PATIENCE_S = 6.0


def latency(proxy):
    proxy.latency(30, jitter_ms=20)


def bandwidth(proxy):
    proxy.bandwidth(40_000)


def down(proxy):
    proxy.down()
    later(1.5, proxy.heal)


def black_hole(proxy):
    proxy.black_hole()
    later(1.5, proxy.heal)


def silent(proxy):
    """Longer than the device waits before it connects anew."""
    proxy.black_hole()
    later(7.0, proxy.heal)


def reset(proxy):
    proxy.after_bytes(1, proxy.reset)


def sliced(proxy):
    proxy.slicer(9, delay_ms=0.2)


def cut_upload(proxy):
    proxy.after_bytes(40, proxy.reset)  # in the greeting at the handshake, in a frame's head later
    proxy.after_bytes(900, proxy.reset)


def cut_answer(proxy):
    proxy.after_bytes(55, proxy.reset, direction="down")
    proxy.after_bytes(700, proxy.reset, direction="down")


def flipped(proxy):
    for at in (0, 130, 700):
        proxy.corrupt(at)


def hold(proxy):
    """The network, or this machine, sleeps."""
    proxy.hold()
    later(7.0, proxy.heal)


FAULTS = {
    fault.__name__: fault
    for fault in (latency, bandwidth, down, black_hole, silent, reset, sliced, cut_upload, cut_answer, flipped, hold)
}
QUICK = {("latency", "handshake"), ("reset", "mid-epoch"), ("cut_answer", "result"), ("down", "mid-epoch")}


def striking(phase: str, strike) -> Script:
    """At the handshake before there is a connection, else while the phase's message leaves."""
    return Script(on_connect=strike) if phase == "handshake" else Script(strikes={phase: strike})


@pytest.mark.parametrize(("fault", "phase", "config"), table(FAULTS, QUICK))
def test_a_disturbed_network_changes_no_byte(place, steady, proxied, oracle, fault, phase, config):
    undisturbed = oracle(config)
    proxy = proxied(steady)
    script = striking(phase, lambda: FAULTS[fault](proxy))
    outcome = attempt(place, proxy.endpoint, config, script)
    identical(outcome, undisturbed)
    assert script.struck_at is not None
    assert script.most_repeated == 0  # a server that lives repeats nothing


@pytest.mark.parametrize(("fault", "phase", "config"), table(("down", "black_hole", "hold"), {("down", "result")}))
def test_a_network_that_stays_away_ends_in_a_typed_error(place, steady, proxied, fault, phase, config):
    proxy = proxied(steady)
    script = striking(phase, getattr(proxy, fault))
    outcome = attempt(
        place, proxy.endpoint, config, script, patience_s=SHORT_PATIENCE_S if phase != "mid-epoch" else 20.0
    )
    error = refused(outcome)
    assert isinstance(error, ServerGone)
    assert outcome.after(script.struck_at) < TYPED_ERROR_S


@pytest.mark.faults
def test_a_network_that_cuts_every_connection_before_a_batch_is_through_ends_in_a_typed_error(place, steady, proxied):
    proxy = proxied(steady)
    script = striking("mid-epoch", lambda: proxy.limit(2500))
    outcome = attempt(place, proxy.endpoint, "ladder-int8", script, patience_s=SHORT_PATIENCE_S)
    error = refused(outcome)
    assert "lost" in error.problem
    assert outcome.after(script.struck_at) < TYPED_ERROR_S


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(4))
def test_a_shaky_network_changes_no_byte(place, steady, proxied, oracle, seed):
    """Resets at random bytes, all along."""
    undisturbed = oracle("ladder-int8-cache")
    proxy = proxied(steady, seed)
    draws = random.Random(seed)

    def disturb() -> None:
        for _ in range(6):
            proxy.after_bytes(draws.randrange(1, 40_000), proxy.reset, direction=draws.choice(("up", "down")))
        proxy.latency(5, jitter_ms=10)

    identical(attempt(place, proxy.endpoint, "ladder-int8-cache", Script(on_connect=disturb)), undisturbed)


def test_disturbed_runs_leave_no_descriptor_and_no_thread_behind(place, steady, proxied):
    proxy = proxied(steady)
    process = psutil.Process()

    def left() -> tuple[int, int]:
        identical(
            outcome := attempt(place, proxy.endpoint, "ladder-int8", striking("mid-epoch", proxy.reset)), outcome.side
        )
        deadline = time.monotonic() + 5.0
        while proxy.open_connections and time.monotonic() < deadline:
            time.sleep(0.02)
        return process.num_fds(), threading.active_count()

    first = left()
    assert [left() for _ in range(2)] == [first, first]
