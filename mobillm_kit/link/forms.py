"""A link from what a user writes: a name, a text, fields, JSON, a CSV file of rates.

Knows: these forms.  Knows nothing of: how long bytes take (`rates`), sockets.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from mobillm_kit.errors import BadInput, UnknownName
from mobillm_kit.link.rates import AnyLink, Link, Trace

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


def parse_link(value: str | Link | Trace) -> AnyLink:
    """A link from what a user writes.

        "wifi-60" or "wifi-60,loss=1%"           a name in `LINKS`
        "20mbit,10ms,jitter=2ms,loss=0.5%"       rate (kbit, mbit or gbit per second) first, the rest as wanted
        "trace=FILE.csv,10ms"                    rate from a file, see `read_trace`; repeat=60s starts it again
        {"mbit_per_s": 20, "latency_ms": 10}     fields of `Link` or `Trace`, or {"trace": FILE, …}, as JSON

    Raises:
        UnknownName: a name that is no preset.
        BadInput: words, fields or numbers that make no link.
    """
    if isinstance(value, Link | Trace):
        return value
    if isinstance(value, str):
        return _from_text(value)
    raise BadInput(f"{value!r} is no link.", "Give a name, or a text such as '20mbit,10ms'.")


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
