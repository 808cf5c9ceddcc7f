"""How long bytes take: a link to compute with instead of waiting for, and the texts that it is written as.

    seconds(n) = latency + jitter / 2 + 8 n / rate + segments(n) · loss · r        rate in bit/s, 1 Mb/s = 10^6 bit/s
    segments(n) = ceil(n / 1448)          r = max(2 · latency, 10 ms)

- Jitter: every burst is late by a further time, uniform in 0 … jitter, and no burst overtakes another.
- Loss is that of a TCP stream, which never loses bytes: a lost segment is sent again and holds up all that follows it
  for one retransmission delay ``r``.  That TCP also slows down after a loss (congestion control) is not in the model,
  so a real lossy link is slower than this one.
- A trace is a rate that changes over time, in steps; ``seconds`` integrates it.

Knows: numbers, and how they are written.  Knows nothing of: sockets, messages, models.
Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from mobillm_kit.common import derived_seed
from mobillm_kit.errors import BadInput, UnknownName

SEGMENT_BYTES = 1448
"""Payload of one TCP segment on Ethernet with time stamps: 1500 - 20 - 20 - 12."""

RETRANSMIT_FLOOR_MS = 10.0
"""A lost segment costs one round trip, and never less than this."""

_DELAYS = (
    ("latency_ms", "{!r}ms", 60_000, "Give milliseconds from 0 to 60000."),
    ("jitter_ms", "jitter={!r}ms", 60_000, "Give milliseconds from 0 to 60000."),
    ("loss", "loss={!r}", 0.5, "Give a share from 0 to 0.5; 1 % is 0.01."),
)
"""Field, its word in a link's text, its largest value, and what to do about another."""

_UNSORTED = ("The times of a trace do not start at 0 and rise.", "Begin with second 0, and sort them.")


@dataclass(frozen=True)
class Link:
    """A link, the same both ways, of one rate or of a rate that changes over time: a trace.

    Raises:
        BadInput: rates that carry nothing, a negative rate or time, steps that do not rise, a loss outside 0 … 0.5,
            anything not finite.
    """

    mbit_per_s: float
    """10^6 bits per second; of a trace, from second 0 on."""
    latency_ms: float = 0.0
    """One way; a round trip takes twice that."""
    jitter_ms: float = 0.0
    """A burst is late by up to this much more."""
    loss: float = 0.0
    """Share of TCP segments that are lost once and sent again, 0 … 0.5."""
    steps: tuple[tuple[float, float], ...] = ()
    """Of a trace: from each of these seconds on, the rate beside it; zero is an outage, the last one holds."""

    def __post_init__(self) -> None:
        self._check_rates()
        for name, _, largest, remedy in _DELAYS:
            value = getattr(self, name)
            _check_number(name, value)
            if not 0 <= value <= largest:
                raise BadInput(f"{name} is {value:g}.", remedy)

    @classmethod
    def trace(cls, rates: Sequence[tuple[float, float]], **others: Any) -> Link:
        """A link whose rate changes at these seconds, the first of them 0, to the Mb/s beside them."""
        if not rates or rates[0][0] != 0:
            raise BadInput(*_UNSORTED)
        return cls(rates[0][1], steps=tuple(rates[1:]), **others)

    @property
    def delay_s(self) -> float:
        """Seconds by which a byte arrives later than it left the line: latency, and half of the jitter."""
        return self.latency_ms / 1e3 + self.jitter_ms / 2e3

    def mbit_at(self, at_s: float) -> float:
        """Rate in Mb/s at a second after the start."""
        return next(self._rates_from(at_s))[0]

    def finish_s(self, n_bytes: int, start_s: float) -> float:
        """Second at which the last of ``n_bytes`` has left the sender, when the first leaves at ``start_s``."""
        rates = self._rates_from(start_s)
        bits, at_s, (mbit_per_s, lasts_s) = 8.0 * n_bytes, start_s, next(rates)
        while bits > (carried := mbit_per_s * 1e6 * lasts_s):  # not >=: what is through before an outage is through
            bits, at_s, (mbit_per_s, lasts_s) = bits - carried, at_s + lasts_s, next(rates)
        return at_s + bits / (mbit_per_s * 1e6) if bits else at_s

    def seconds(self, n_bytes: int, start_s: float = 0.0) -> float:
        """Expected seconds (formula above) until ``n_bytes`` sent from ``start_s`` on are there; BadInput below 0."""
        if n_bytes < 0:
            raise BadInput(f"{n_bytes} bytes cannot be sent.", "Give a number of bytes of 0 or more.")
        line_s = self.finish_s(n_bytes, start_s) - start_s
        return self.delay_s + line_s + segments(n_bytes) * self.loss * retransmit_s(self)

    def __str__(self) -> str:
        """The text that `parse_link` reads back to an equal link."""
        words = [f"{self.mbit_per_s!r}mbit"]
        if self.steps:
            words = ["steps=" + "/".join(f"{second!r}:{rate!r}" for second, rate in self._rates)]
        words += [word.format(value) for name, word, _, _ in _DELAYS if (value := getattr(self, name))]
        return ",".join(words)

    @property
    def _rates(self) -> tuple[tuple[float, float], ...]:
        return (0.0, self.mbit_per_s), *self.steps

    def _rates_from(self, at_s: float) -> Iterator[tuple[float, float]]:
        """Rates in Mb/s and the seconds for which they last, from a second on."""
        for (begin_s, rate), (end_s, _) in pairwise((*self._rates, (math.inf, 0.0))):
            if end_s > at_s:
                yield rate, end_s - max(begin_s, at_s)

    def _check_rates(self) -> None:
        for second, rate in self._rates:
            _check_number("seconds", second)
            _check_number("mbit_per_s", rate)
        if all(rate <= 0 for _, rate in self._rates):
            raise BadInput(f"A link of {self.mbit_per_s:g} Mb/s carries nothing.", "Give a rate above 0.")
        for (begin_s, rate), (end_s, _) in pairwise((*self._rates, (math.inf, 0.0))):
            if rate < 0:
                raise BadInput(f"At {begin_s:g} s the rate is {rate:g} Mb/s.", "Give rates of 0 or more.")
            if end_s <= begin_s:
                raise BadInput(*_UNSORTED)
        if self._rates[-1][1] == 0:
            raise BadInput("A trace ends with 0 Mb/s for ever.", "End it with a rate above 0.")


class Delays:
    """Jitter and losses of one direction of one connection: a sequence that ``seed`` and ``purpose`` alone decide."""

    def __init__(self, seed: int, *purpose: str | int) -> None:
        self._jitter = random.Random(derived_seed(seed, "jitter", *purpose))
        self._loss = random.Random(derived_seed(seed, "loss", *purpose))
        self._until_loss = self._loss.expovariate(1.0)

    def burst(self, link: Link, n_bytes: int) -> tuple[float, float]:
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


def retransmit_s(link: Link) -> float:
    """Seconds for which a lost segment holds up the stream."""
    return max(2 * link.latency_ms, RETRANSMIT_FLOOR_MS) / 1e3


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadInput(f"{name} is {value!r}, not a finite number.", "Write it as a plain number, such as 20.")


LINKS: dict[str, Link] = {
    "lan-1000": Link(1000.0, latency_ms=0.2),
    "wifi-200": Link(200.0, latency_ms=2.0),
    "wifi-60": Link(60.0, latency_ms=4.0),
    "mobile-20": Link(20.0, latency_ms=15.0),
}
"""Round numbers to compute with; no network was measured for them."""

_RATE = re.compile(r"([0-9.eE+-]+)\s*(k|m|g)bit(?:/s|ps)?", re.IGNORECASE)
_WORDS = {
    "latency_ms": re.compile(r"(?:latency=)?([0-9.eE+-]+)\s*(?i:ms)"),
    "jitter_ms": re.compile(r"jitter=([0-9.eE+-]+)\s*(?i:ms)"),
    "loss": re.compile(r"loss=([0-9.eE+-]+)\s*%?"),
}
_IN_MBIT = {"k": 1e-3, "m": 1.0, "g": 1e3}
_FORM = "Write '20mbit,10ms,jitter=2ms,loss=0.5%', 'steps=0:20/2.5:0,10ms', or a name of these: " + ", ".join(LINKS)


def parse_link(value: str | Link) -> Link:
    """A link from what a user writes.

        "wifi-60" or "wifi-60,loss=1%"           a name in `LINKS`
        "20mbit,10ms,jitter=2ms,loss=0.5%"       rate (kbit, mbit or gbit per second) first, the rest as wanted
        "steps=0:20/2.5:0/4:20,10ms"             rate from these seconds on, in Mb/s

    Raises:
        UnknownName: a name that is no preset.
        BadInput: words or numbers that make no link.
    """
    if isinstance(value, Link):
        return value
    if not isinstance(value, str):
        raise BadInput(f"{value!r} is no link.", "Give a name, or a text such as '20mbit,10ms'.")
    first, *words = (word.strip() for word in value.split(","))
    found: dict[str, float] = {}
    for word in words:
        name, number = _delay_word(word, value)
        if name in found:
            raise BadInput(f"The link {value!r} gives {name} twice.", _FORM)
        found[name] = number
    return _of_rate(first, value, found)


def _of_rate(word: str, text: str, delays: Mapping[str, Any]) -> Link:
    kind, _, rest = word.partition("=")
    if kind == "steps":
        steps = [step.partition(":") for step in rest.split("/")]
        return Link.trace([(_number(second, text), _number(rate, text)) for second, _, rate in steps], **delays)
    rate = _RATE.fullmatch(word)
    if not rate and word not in LINKS:
        raise UnknownName(f"{text!r} names no link.", _FORM)
    start = Link(_number(rate[1], text) * _IN_MBIT[rate[2].lower()]) if rate else LINKS[word]
    return replace(start, **delays)


def _delay_word(word: str, text: str) -> tuple[str, float]:
    for name, form in _WORDS.items():
        if found := form.fullmatch(word):
            return name, _number(found[1], text) / (100 if word.endswith("%") else 1)
    raise BadInput(f"{word!r} says nothing about the link {text!r}.", _FORM)


def _number(word: str, text: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise BadInput(f"{word!r} in the link {text!r} is not a number.", _FORM) from None
