"""How long bytes take: a link to compute with instead of waiting for.

    seconds(n) = latency + jitter / 2 + 8 n / rate + segments(n) · loss · r        rate in bit/s, 1 Mb/s = 10^6 bit/s
    segments(n) = ceil(n / 1448)          r = max(2 · latency, 10 ms)

- Jitter: every burst is late by a further time, uniform in 0 … jitter, and no burst overtakes another.
- Loss is that of a TCP stream, which never loses bytes: a lost segment is sent again and holds up all that follows it
  for one retransmission delay ``r``.  That TCP also slows down after a loss (congestion control) is not in the model,
  so a real lossy link is slower than this one.
- A trace is a rate that changes over time, in steps; ``seconds`` integrates it.

Knows: numbers.  Knows nothing of: what a user writes (`forms`), sockets, messages, models.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import bisect
import math
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from mobillm_kit.common import derived_seed
from mobillm_kit.errors import BadInput

SEGMENT_BYTES = 1448
"""Payload of one TCP segment on Ethernet with time stamps: 1500 - 20 - 20 - 12."""

RETRANSMIT_FLOOR_MS = 10.0
"""A lost segment costs one round trip, and never less than this."""


class _Timed(ABC):
    """What a link of constant rate and a trace have in common."""

    latency_ms: float
    jitter_ms: float
    loss: float

    @abstractmethod
    def finish_s(self, n_bytes: int, start_s: float) -> float:
        """Second at which the last of ``n_bytes`` has left the sender, when the first leaves at ``start_s``."""

    def seconds(self, n_bytes: int, start_s: float = 0.0) -> float:
        """Expected seconds until the last of ``n_bytes`` has arrived (formula above), the first sent at ``start_s``.

        Raises:
            BadInput: fewer than 0 bytes.
        """
        if n_bytes < 0:
            raise BadInput(f"{n_bytes} bytes cannot be sent.", "Give a number of bytes of 0 or more.")
        line_s = self.finish_s(n_bytes, start_s) - start_s
        lost_s = segments(n_bytes) * self.loss * retransmit_s(self)
        return self.latency_ms / 1e3 + self.jitter_ms / 2e3 + line_s + lost_s

    def _text(self, rate: str) -> str:
        latency = f"{self.latency_ms!r}ms" if self.latency_ms else ""
        jitter = f"jitter={self.jitter_ms!r}ms" if self.jitter_ms else ""
        loss = f"loss={self.loss!r}" if self.loss else ""
        return ",".join(filter(None, (rate, latency, jitter, loss)))


@dataclass(frozen=True)
class Link(_Timed):
    """A link of constant rate, the same both ways.

    Raises:
        BadInput: a rate that is not above zero, a negative time, a loss outside 0 … 0.5, anything not finite.
    """

    mbit_per_s: float
    """10^6 bits per second."""
    latency_ms: float = 0.0
    """One way; a round trip takes twice that."""
    jitter_ms: float = 0.0
    """A burst is late by up to this much more."""
    loss: float = 0.0
    """Share of TCP segments that are lost once and sent again, 0 … 0.5."""

    def __post_init__(self) -> None:
        _check_number("mbit_per_s", self.mbit_per_s)
        if self.mbit_per_s <= 0:
            raise BadInput(f"A link of {self.mbit_per_s:g} Mb/s carries nothing.", "Give mbit_per_s above 0.")
        _check_delays(self)

    def mbit_at(self, at_s: float) -> float:
        """Rate in Mb/s, the same at any second."""
        return self.mbit_per_s

    def finish_s(self, n_bytes: int, start_s: float) -> float:
        """Second at which the last of ``n_bytes`` has left the sender, when the first leaves at ``start_s``."""
        return start_s + 8 * n_bytes / (self.mbit_per_s * 1e6)

    def __str__(self) -> str:
        """The text that `parse_link` reads back to an equal link."""
        return self._text(f"{self.mbit_per_s!r}mbit")


@dataclass(frozen=True)
class Trace(_Timed):
    """A link whose rate changes over time: from ``seconds_at[i]`` on it is ``mbit_per_s[i]``.

    Raises:
        BadInput: times that do not start at 0 and rise, a negative rate, or a rate that stays at zero for ever.
    """

    seconds_at: tuple[float, ...]
    mbit_per_s: tuple[float, ...]
    """Zero is an outage."""
    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    repeat_s: float | None = None
    """The trace starts again after so many seconds; None: the last rate holds."""

    def __post_init__(self) -> None:
        _check_steps(self.seconds_at, self.mbit_per_s, self.repeat_s)
        _check_delays(self)

    def mbit_at(self, at_s: float) -> float:
        """Rate in Mb/s at a second after the trace's start."""
        return self.mbit_per_s[self._place(at_s)[1]]

    def finish_s(self, n_bytes: int, start_s: float) -> float:
        """Second at which the last of ``n_bytes`` has left the sender, when the first leaves at ``start_s``."""
        return max(self._when_sent(self._sent_until(start_s) + 8 * n_bytes / 1e6), start_s) if n_bytes else start_s

    def __str__(self) -> str:
        """The text that `parse_link` reads back to an equal trace."""
        steps = (f"{second!r}:{rate!r}" for second, rate in zip(self.seconds_at, self.mbit_per_s, strict=True))
        again = "" if self.repeat_s is None else f",repeat={self.repeat_s!r}s"
        return self._text("steps=" + "/".join(steps)) + again

    @cached_property
    def _sent_mbit(self) -> tuple[float, ...]:
        """Mbit that an always busy link has carried when each step begins."""
        steps = zip(self.mbit_per_s, pairwise(self.seconds_at), strict=False)  # the last step has no end
        return tuple(accumulate((rate * (end_s - begin_s) for rate, (begin_s, end_s) in steps), initial=0.0))

    @property
    def _period_s(self) -> float:
        return math.inf if self.repeat_s is None else self.repeat_s

    @property
    def _mbit_per_round(self) -> float:
        return self._sent_mbit[-1] + self.mbit_per_s[-1] * (self._period_s - self.seconds_at[-1])

    def _place(self, at_s: float) -> tuple[float, int, float]:
        """Whole rounds, the step, and the seconds of it that have passed."""
        rounds, within_s = divmod(max(at_s, 0.0), self._period_s)
        step = bisect.bisect_right(self.seconds_at, within_s) - 1
        return rounds, step, within_s - self.seconds_at[step]

    def _sent_until(self, at_s: float) -> float:
        rounds, step, within_s = self._place(at_s)
        sent = self._sent_mbit[step] + self.mbit_per_s[step] * within_s
        return sent + (rounds and rounds * self._mbit_per_round)  # 0 · inf is no number

    def _when_sent(self, mbit: float) -> float:
        rounds, mbit = divmod(mbit, self._mbit_per_round)
        if rounds and not mbit:  # exactly full rounds end in the last round, not after the next one's outage
            rounds, mbit = rounds - 1, self._mbit_per_round
        # the first moment at which so much is through: before an outage, not after it
        step = max(bisect.bisect_left(self._sent_mbit, mbit) - 1, 0)
        within_s = self.seconds_at[step]
        if mbit > self._sent_mbit[step]:
            within_s += (mbit - self._sent_mbit[step]) / self.mbit_per_s[step]
        return within_s + (rounds and rounds * self._period_s)


AnyLink = Link | Trace


class Delays:
    """The jitter and the losses of one direction of one connection: a sequence that its seed alone decides.

    Args:
        seed: same seed, same sequence.
        purpose: words that set one stream apart from others of the same seed.
    """

    def __init__(self, seed: int, *purpose: str | int) -> None:
        self._jitter = random.Random(derived_seed(seed, "jitter", *purpose))
        self._loss = random.Random(derived_seed(seed, "loss", *purpose))
        self._until_loss = self._loss.expovariate(1.0)

    def burst(self, link: AnyLink, n_bytes: int) -> tuple[float, float]:
        """Seconds by which jitter delays the next burst, and seconds for which its losses stop the stream."""
        # Waiting times of independent losses are exponential in the hazard, whatever the burst sizes are and even
        # when the link is changed on the way; one draw per loss instead of one per segment.
        self._until_loss -= -math.log1p(-link.loss) * segments(n_bytes)
        lost = 0
        while self._until_loss <= 0:
            lost += 1
            self._until_loss += self._loss.expovariate(1.0)
        return self._jitter.random() * link.jitter_ms / 1e3, lost * retransmit_s(link)


def segments(n_bytes: int) -> int:
    """TCP segments that ``n_bytes`` fill."""
    return -(-n_bytes // SEGMENT_BYTES)


def retransmit_s(link: _Timed) -> float:
    """Seconds for which a lost segment holds up the stream."""
    return max(2 * link.latency_ms, RETRANSMIT_FLOOR_MS) / 1e3


# ------------------------------------------------------------------------------------------------- what is checked


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadInput(f"{name} is {value!r}, not a finite number.", "Write it as a plain number, such as 20.")


def _check_delays(link: _Timed) -> None:
    for name, value, largest, remedy in (
        ("latency_ms", link.latency_ms, 60_000, "Give milliseconds from 0 to 60000."),
        ("jitter_ms", link.jitter_ms, 60_000, "Give milliseconds from 0 to 60000."),
        ("loss", link.loss, 0.5, "Give a share from 0 to 0.5; 1 % is 0.01."),
    ):
        _check_number(name, value)
        if not 0 <= value <= largest:
            raise BadInput(f"{name} is {value:g}.", remedy)


def _check_steps(seconds_at: tuple[float, ...], rates: tuple[float, ...], repeat_s: float | None) -> None:
    if not seconds_at or len(seconds_at) != len(rates):
        raise BadInput(
            f"A trace has {len(seconds_at)} times and {len(rates)} rates.", "Give one rate for each time, at least one."
        )
    for second, rate in zip(seconds_at, rates, strict=True):
        _check_number("seconds", second)
        _check_number("mbit_per_s", rate)
        if rate < 0:
            raise BadInput(f"At {second:g} s the rate is {rate:g} Mb/s.", "Give rates of 0 or more.")
    if seconds_at[0] != 0 or any(later <= earlier for earlier, later in pairwise(seconds_at)):
        raise BadInput("The times of a trace do not start at 0 and rise.", "Begin with second 0 and sort the lines.")
    if repeat_s is None and rates[-1] == 0:
        raise BadInput("A trace ends with 0 Mb/s for ever.", "End it with a rate above 0, or give repeat_s.")
    if repeat_s is not None:
        _check_number("repeat_s", repeat_s)
        if repeat_s <= (end_s := seconds_at[-1]):
            problem = f"A trace of {end_s:g} s cannot start again after {repeat_s:g} s."
            raise BadInput(problem, f"Give repeat_s above {end_s:g}.")
    if not any(rates):
        raise BadInput("A trace carries nothing: every rate is 0.", "Give at least one rate above 0.")
