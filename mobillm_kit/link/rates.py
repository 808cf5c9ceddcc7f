"""How long bytes take: a link to compute with instead of waiting for.

    seconds(n) = latency + jitter / 2 + 8 n / rate + segments(n) · loss · r        rate in bit/s, 1 Mb/s = 10^6 bit/s
    segments(n) = ceil(n / 1448)          r = max(2 · latency, 10 ms)

- Jitter: every burst is late by a further time, uniform in 0 … jitter, and no burst overtakes another.
- Loss is that of a TCP stream, which never loses bytes: a lost segment is sent again and holds up all that follows it
  for one retransmission delay ``r``.  That TCP also slows down after a loss (congestion control) is not in the model,
  so a real lossy link is slower than this one.
- A trace is a rate that changes over time, in steps; ``seconds`` integrates it.

Knows: numbers, and two columns of a CSV file.  Knows nothing of: sockets, messages, models.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import bisect
import csv
import json
import math
import random
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from mobillm_kit.common import derived_seed
from mobillm_kit.errors import BadInput, UnknownName

SEGMENT_BYTES = 1448
"""Payload of one TCP segment on Ethernet with time stamps: 1500 - 20 - 20 - 12."""

RETRANSMIT_FLOOR_MS = 10.0
"""A lost segment costs one round trip, and never less than this."""


class _Timed:
    """What a link of constant rate and a trace have in common."""

    latency_ms: float
    jitter_ms: float
    loss: float

    def finish_s(self, n_bytes: int, start_s: float) -> float:
        """Second at which the last of ``n_bytes`` has left the sender, when the first leaves at ``start_s``."""
        raise NotImplementedError

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

    def json(self) -> str:
        """One line that `parse_link` reads back to an equal link."""
        return json.dumps({name: value for name, value in vars(self).items() if not name.startswith("_")})

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
    name: str = ""
    _sent_mbit: tuple[float, ...] = field(init=False, repr=False, compare=False)
    """Mbit that an always busy link has carried when each step begins."""

    def __post_init__(self) -> None:
        _check_steps(self.seconds_at, self.mbit_per_s, self.repeat_s)
        _check_delays(self)
        sent = [0.0]
        for index, rate in enumerate(self.mbit_per_s[:-1]):
            sent.append(sent[-1] + rate * (self.seconds_at[index + 1] - self.seconds_at[index]))
        object.__setattr__(self, "_sent_mbit", tuple(sent))

    def mbit_at(self, at_s: float) -> float:
        """Rate in Mb/s at a second after the trace's start."""
        _, within_s = self._round(at_s)
        return self.mbit_per_s[bisect.bisect_right(self.seconds_at, within_s) - 1]

    def finish_s(self, n_bytes: int, start_s: float) -> float:
        """Second at which the last of ``n_bytes`` has left the sender, when the first leaves at ``start_s``."""
        return max(self._when_sent(self._sent_until(start_s) + 8 * n_bytes / 1e6), start_s) if n_bytes else start_s

    def __str__(self) -> str:
        return self._text(f"trace={self.name or f'{len(self.seconds_at)} steps'}")

    @property
    def _period_s(self) -> float:
        return math.inf if self.repeat_s is None else self.repeat_s

    @property
    def _mbit_per_round(self) -> float:
        return self._sent_mbit[-1] + self.mbit_per_s[-1] * (self._period_s - self.seconds_at[-1])

    def _round(self, at_s: float) -> tuple[float, float]:
        return divmod(max(at_s, 0.0), self._period_s)

    def _sent_until(self, at_s: float) -> float:
        rounds, within_s = self._round(at_s)
        step = bisect.bisect_right(self.seconds_at, within_s) - 1
        sent = self._sent_mbit[step] + self.mbit_per_s[step] * (within_s - self.seconds_at[step])
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
        jitter_s = self._jitter.random() * link.jitter_ms / 1e3
        return jitter_s, self._lost(link.loss, segments(n_bytes)) * retransmit_s(link)

    def _lost(self, loss: float, n_segments: int) -> int:
        # Waiting times of independent losses are exponential in the hazard, whatever the burst sizes are and even
        # when the link is changed on the way; one draw per loss instead of one per segment.
        self._until_loss -= -math.log1p(-loss) * n_segments
        lost = 0
        while self._until_loss <= 0:
            lost += 1
            self._until_loss += self._loss.expovariate(1.0)
        return lost


def segments(n_bytes: int) -> int:
    """TCP segments that ``n_bytes`` fill."""
    return -(-n_bytes // SEGMENT_BYTES)


def retransmit_s(link: _Timed) -> float:
    """Seconds for which a lost segment holds up the stream."""
    return max(2 * link.latency_ms, RETRANSMIT_FLOOR_MS) / 1e3


def parse_link(value: str | Mapping[str, Any] | Link | Trace) -> AnyLink:
    """A link from what a user writes.

        "wifi-60" or "wifi-60,loss=1%"           a name in `LINKS`
        "20mbit,10ms,jitter=2ms,loss=0.5%"       rate (kbit, mbit or gbit per second) first, the rest as wanted
        "trace=FILE.csv,10ms"                    rate from a file, see `read_trace`; repeat=60s starts it again
        {"mbit_per_s": 20, "latency_ms": 10}     fields of `Link` or `Trace`, or {"trace": FILE, …}; as JSON text too

    Raises:
        UnknownName: a name that is no preset.
        BadInput: words, fields or numbers that make no link.
    """
    if isinstance(value, Link | Trace):
        return value
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, Mapping):
        return _from_fields(dict(value))
    raise BadInput(f"{value!r} is no link.", "Give a name, a text such as '20mbit,10ms', or a dict.")


def read_trace(
    file: str | Path,
    *,
    latency_ms: float = 0.0,
    jitter_ms: float = 0.0,
    loss: float = 0.0,
    repeat_s: float | None = None,
) -> Trace:
    """A trace from a CSV file with the header ``seconds,mbit_per_s``; lines that begin with ``#`` are remarks.

    Raises:
        BadInput: no such file, another header, or a line that is not two numbers; the line is named.
    """
    path = Path(file)
    seconds_at: list[float] = []
    rates: list[float] = []
    for number, cells in _csv_lines(path):
        try:
            second, rate = (float(cell) for cell in cells)
        except ValueError:
            raise BadInput(
                f"{path}, line {number}: {','.join(cells)!r} is not two numbers.", "Write seconds,mbit_per_s: 12.5,20"
            ) from None
        seconds_at.append(second)
        rates.append(rate)
    try:
        return Trace(tuple(seconds_at), tuple(rates), latency_ms, jitter_ms, loss, repeat_s, name=path.name)
    except BadInput as error:
        raise BadInput(f"{path}: {error.problem}", error.remedy) from None


def synthetic_trace(
    mbit_per_s: float,
    *,
    seconds: int = 120,
    step_s: float = 1.0,
    spread: float = 0.35,
    memory: float = 0.9,
    seed: int = 0,
) -> Trace:
    """A made-up trace: the logarithm of the rate wanders around its median, each step remembering the last.

        x[i] = memory · x[i-1] + sqrt(1 - memory²) · spread · N(0, 1)          rate[i] = median · exp(x[i])

    Args:
        mbit_per_s: the median.
        seconds: length.
        step_s: the rate holds for so long.
        spread: standard deviation of the rate's logarithm.
        memory: correlation of neighbouring steps, 0 … below 1.
        seed: same seed, same trace.
    """
    _check_number("mbit_per_s", mbit_per_s)
    if seconds <= 0 or step_s <= 0 or not 0 <= memory < 1 or spread < 0:
        raise BadInput(
            f"No trace has {seconds} seconds in steps of {step_s}, memory {memory} and spread {spread}.",
            "Give seconds and step_s above 0, memory from 0 to below 1, spread of 0 or more.",
        )
    draws = random.Random(derived_seed(seed, "trace"))
    wander = draws.gauss(0.0, spread)
    times, rates = [], []
    for index in range(math.ceil(seconds / step_s)):
        times.append(index * step_s)
        rates.append(round(mbit_per_s * math.exp(wander), 3))
        wander = memory * wander + math.sqrt(1 - memory**2) * draws.gauss(0.0, spread)
    return Trace(tuple(times), tuple(rates), repeat_s=float(seconds), name=f"synthetic-{mbit_per_s:g}-{seed}")


# ------------------------------------------------------------------------------------------------- what is checked


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadInput(f"{name} is {value!r}, not a finite number.", "Write it as a plain number, such as 20.")


def _check_delays(link: _Timed) -> None:
    for name in ("latency_ms", "jitter_ms", "loss"):
        _check_number(name, getattr(link, name))
    for name in ("latency_ms", "jitter_ms"):
        if not 0 <= getattr(link, name) <= 60_000:
            raise BadInput(f"{name} is {getattr(link, name):g}.", "Give milliseconds from 0 to 60000.")
    if not 0 <= link.loss <= 0.5:
        raise BadInput(f"loss is {link.loss:g}.", "Give a share from 0 to 0.5; 1 % is 0.01.")


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


def _csv_lines(path: Path) -> list[tuple[int, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"The trace {path} cannot be read: {error.strerror}.", "Give the path of a CSV file.") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path} is not a text file.", "Save the trace as CSV in UTF-8.") from None
    lines = [
        (number, next(csv.reader([line])))
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not lines or [cell.strip() for cell in lines[0][1]] != ["seconds", "mbit_per_s"]:
        raise BadInput(f"{path} does not begin with its column names.", "Make 'seconds,mbit_per_s' the first line.")
    return lines[1:]


# ------------------------------------------------------------------------------------------------- names, texts, fields

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
    "repeat_s": re.compile(r"repeat=([0-9.eE+-]+)\s*(?i:s)"),
}
_IN_MBIT = {"k": 1e-3, "m": 1.0, "g": 1e3}
_FORM = "Write '20mbit,10ms,jitter=2ms,loss=0.5%', 'trace=FILE.csv,10ms', or a name of these: " + ", ".join(LINKS)


def _from_text(text: str) -> AnyLink:
    if text.lstrip().startswith("{"):
        try:
            from_json = json.loads(text)
        except ValueError as error:
            raise BadInput(f"The link {text!r} is not JSON: {error}.", _FORM) from None
        return _from_fields(from_json)
    first, *words = (word.strip() for word in text.split(","))
    found: dict[str, Any] = {}
    preset: dict[str, Any] = {}
    if first in LINKS:
        preset = asdict(LINKS[first])
    elif first.startswith("trace="):
        found["trace"] = first.removeprefix("trace=")
    elif rate := _RATE.fullmatch(first):
        found["mbit_per_s"] = _number(rate[1], text) * _IN_MBIT[rate[2].lower()]
    else:
        raise UnknownName(f"{text!r} names no link.", _FORM)
    for word in words:
        name, number = _delay_word(word, text)
        if name in found:
            raise BadInput(f"The link {text!r} gives {name} twice.", _FORM)
        found[name] = number
    return _from_fields(preset | found)


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


def _from_fields(found: dict[str, Any]) -> AnyLink:
    known = {each.name for each in fields(Link)}
    if "seconds_at" in found:
        known = {each.name for each in fields(Trace) if each.init}
    elif "trace" in found:
        known = {"trace", "latency_ms", "jitter_ms", "loss", "repeat_s"}
    if unknown := sorted(set(found) - known):
        raise BadInput(f"A link has no {unknown[0]!r}.", f"It has {', '.join(sorted(known))}.")
    if "trace" in found:
        file = found.pop("trace")
        if not isinstance(file, str | Path) or not str(file):
            raise BadInput(f"{file!r} is no file of a trace.", "Give the path of a CSV file.")
        return read_trace(file, **found)
    if "mbit_per_s" not in found:
        raise BadInput("A link without mbit_per_s has no rate.", "Give mbit_per_s, or a trace.")
    if "seconds_at" not in found:
        return Link(**found)
    for name in ("seconds_at", "mbit_per_s"):
        if not isinstance(found[name], list | tuple):
            raise BadInput(f"{name} of a trace is {found[name]!r}.", "Give a list of numbers.")
        found[name] = tuple(found[name])
    return Trace(**found)
