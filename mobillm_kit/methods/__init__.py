"""The table of methods: one row each.  A new method is a new file beside this one and a new row in ``methods.toml``.

Knows: names and where each method lives.  Knows nothing of: how any of them works.
Taught in: notebooks/09_comparison.ipynb
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import msgspec

from mobillm_kit.errors import BadInput, UnknownName, nearest


@dataclass(frozen=True)
class MethodRow:
    """What there is to know about a method before it is loaded."""

    name: str
    label: str
    """For tables and figures."""
    module: str
    """File in this folder, without its ending."""
    summary: str
    source: str
    backbone_frozen: bool
    """Whether the backbone's own weights are promised to be bit-equal after training."""
    further: str = ""
    """``module:function`` that ``build`` hands its other options to."""
    options: dict[str, Any] = field(default_factory=dict)
    """Passed to ``build``; what a user gives goes over them."""
    forward_only: bool = False
    """Whether the device never differentiates through the backbone: it may be streamed or in few bits."""
    streams: bool = False
    """Whether it may be so although the device differentiates through the backbone: block by block."""
    trained: bool = True
    """False for the controls, which show what a table's figures have to be compared with."""


_ROWS = msgspec.toml.decode(Path(__file__).with_name("methods.toml").read_bytes())
METHODS = {name: msgspec.convert(row | {"name": name}, MethodRow) for name, row in _ROWS.items()}

LABELS: dict[str, str] = {row.name: row.label for row in METHODS.values()}
"""For tables and figures, in their order."""

USUAL = {"mobillm": "mobillm-full-width"}
"""What a family of methods means when no member is named."""

CONTROLS = tuple(row.name for row in METHODS.values() if not row.trained)


def method_row(name: str) -> MethodRow:
    """The row of a method; of an unknown one the closest name is given."""
    name = USUAL.get(name, name)
    if name in METHODS:
        return METHODS[name]
    raise UnknownName(f"There is no method '{name}'.", nearest(name, METHODS, f"Known: {', '.join(METHODS)}."))


def load_method(name: str) -> Callable[..., Any]:
    """The ``build`` function of a method, with the row's options already given; a control is not built but scored."""
    row = method_row(name)
    if not row.trained:
        raise UnknownName(f"'{name}' is a control: nothing is trained.", "Use `mobillm compare` or `run`.")
    return partial(resolve_name(f"{__name__}.{row.module}:build"), **row.options)


def options_of(name: str) -> dict[str, Any]:
    """The options of a method with their usual values, as ``--option`` takes them; none of a control."""
    row = method_row(name)
    if not row.trained:
        return {}
    module = resolve_name(f"{__name__}.{row.module}")
    found: dict[str, Any] = {}
    for taker in (module.build, *([resolve_name(row.further)] if row.further else [])):
        for option, parameter in signature(taker).parameters.items():
            if parameter.kind is Parameter.KEYWORD_ONLY and option not in ("seed", "folder", "about"):
                found[option] = row.options.get(option, parameter.default)
    return found | getattr(module, "SHAPE", {})


def check_options(method: str, options: Iterable[str]) -> None:
    """Refuse an option that the method has not, with the nearest that it has."""
    known = options_of(method)
    for name in options:
        if name not in known:
            remedy = f"{nearest(name, known)} See `mobillm methods {method}`.".lstrip()
            raise BadInput(f"The method '{method}' has no option '{name}'.", remedy)
