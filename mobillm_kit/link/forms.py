"""A link from what a user writes: a name, a text, a CSV file of rates.

Knows: these forms.  Knows nothing of: how long bytes take (`rates`), sockets.
Taught in: notebooks/08_device_and_server.ipynb
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mobillm_kit.errors import BadInput, UnknownName
from mobillm_kit.link.rates import Link

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


def parse_link(value: str | Link) -> Link:
    """A link from what a user writes.

        "wifi-60" or "wifi-60,loss=1%"           a name in `LINKS`
        "20mbit,10ms,jitter=2ms,loss=0.5%"       rate (kbit, mbit or gbit per second) first, the rest as wanted
        "trace=FILE.csv,10ms"                    rate from a file, see `read_trace`; repeat=60s starts it again
        "steps=0:20/2.5:0/4:20,10ms"             rate from these seconds on, in Mb/s; repeat=60s starts it again

    Raises:
        UnknownName: a name that is no preset.
        BadInput: words, numbers or a file that make no link.
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


def read_trace(file: str | Path, **delays: float) -> Link:
    """A trace from a CSV file with the header ``seconds,mbit_per_s``; lines that begin with ``#`` are remarks.

    ``delays`` are further fields of `Link`.

    Raises:
        BadInput: no such file, another header, or a line that is not two numbers; the line is named.
    """
    path = Path(file)
    steps: list[tuple[float, float]] = []
    for number, cells in _csv_lines(path):
        try:
            second, rate = map(float, cells)
        except ValueError:
            problem = f"{path}, line {number}: {','.join(cells)!r} is not two numbers."
            raise BadInput(problem, "Write seconds,mbit_per_s: 12.5,20") from None
        steps.append((second, rate))
    try:
        return Link.trace(steps, **delays)
    except BadInput as error:
        raise BadInput(f"{path}: {error.problem}", error.remedy) from None


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


def _of_rate(word: str, text: str, delays: Mapping[str, Any]) -> Link:
    kind, _, rest = word.partition("=")
    if kind == "trace":
        return read_trace(rest, **delays)
    if kind == "steps":
        steps = [step.partition(":") for step in rest.split("/")]
        return Link.trace([(_number(second, text), _number(rate, text)) for second, _, rate in steps], **delays)
    rate = _RATE.fullmatch(word)
    if not rate and word not in LINKS:
        raise UnknownName(f"{text!r} names no link.", _FORM)
    if "repeat_s" in delays:
        raise BadInput("A link has no 'repeat_s'.", "Only a trace can start again.")
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
