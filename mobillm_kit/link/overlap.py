"""How long a run across a link takes, from what each step costs alone: the pipeline by arithmetic.

    made_t     = offered_{t-1} + device_t                 offered_t = max(made_t, sent_{t-1})     one batch may wait
    sent_t     = max(offered_t, acked_{t-credit})
    arrived_t  = line(max(sent_t, line free)) + latency
    trained_t  = max(arrived_t, trained_{t-1}) + server_t                 acked_t = trained_t + latency

In the steady state a step takes as long as its slowest stage: device, line or server.

Knows: durations, bytes, links.  Knows nothing of: clocks, sockets, what a stage does.
Taught in: notebooks/08_device_and_server.ipynb
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mobillm_kit.errors import BadInput
from mobillm_kit.link.rates import Link
from mobillm_kit.record import Span

CREDIT = 4
"""Batches that may be on their way; the server's default."""


@dataclass(frozen=True)
class StepCost:
    """What one step costs each of the three, alone."""

    device_s: float
    """Forward, encode, and handing over."""
    n_bytes: int
    """On the line."""
    server_s: float
    """Decode and train."""


@dataclass(frozen=True)
class StepTimes:
    """When one step is where, in seconds from the start of the first."""

    begun_s: float
    """The device begins its forward."""
    made_s: float
    on_line_s: float
    """The first byte leaves."""
    off_line_s: float
    training_s: float
    trained_s: float
    acked_s: float
    """The device knows."""


def schedule(
    costs: Sequence[StepCost], link: Link, *, credit: int = CREDIT, stops: Collection[int] = ()
) -> list[StepTimes]:
    """The formulas above, one entry for the costs of each step.

    Args:
        link: between device and server, the same both ways; acknowledgements are too small to fill it.
        credit: batches that may be on their way; BadInput below 1.
        stops: numbers of steps after which the device waits until they are trained, as before an evaluation.
    """
    if credit < 1:
        raise BadInput(f"credit is {credit}; it must be at least 1.")
    times: list[StepTimes] = []
    offered_s = sent_s = line_s = trained_s = 0.0
    for step, cost in enumerate(costs):
        begun_s, made_s = offered_s, offered_s + cost.device_s
        offered_s = max(made_s, sent_s)
        sent_s = max(offered_s, times[step - credit].acked_s) if step >= credit else offered_s
        on_line_s = max(sent_s, line_s)
        line_s = on_line_s + link.seconds(cost.n_bytes, on_line_s) - link.delay_s
        training_s = max(line_s + link.delay_s, trained_s)
        trained_s = training_s + cost.server_s
        times.append(StepTimes(begun_s, made_s, on_line_s, line_s, training_s, trained_s, trained_s + link.delay_s))
        if step in stops:
            offered_s = sent_s = max(sent_s, times[step].acked_s)
    return times


def spans(times: Sequence[StepTimes]) -> list[Span]:
    """A schedule as a timeline, to be drawn like a measured one: forward, send, train."""
    found: list[Span] = []
    for step, at in enumerate(times):
        found.append(Span(stage="forward", step=step, start_s=at.begun_s, seconds=at.made_s - at.begun_s))
        found.append(Span(stage="send", step=step, start_s=at.on_line_s, seconds=at.off_line_s - at.on_line_s))
        found.append(Span(stage="train", step=step, start_s=at.training_s, seconds=at.trained_s - at.training_s))
    return found


def slowest(cost: StepCost, link: Link) -> tuple[str, float]:
    """Who decides the pace, ``device``, ``link`` or ``server``, and the seconds of a step in the steady state."""
    line_s = link.seconds(cost.n_bytes) - link.delay_s
    return max((("device", cost.device_s), ("link", line_s), ("server", cost.server_s)), key=lambda stage: stage[1])
