"""The table of methods: one row each.  A new method is a new file beside this one and a new row here.

Knows: names and where each method lives.  Knows nothing of: how any of them works.

Taught in: notebooks/09_comparison.ipynb
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Any

from mobillm_kit.errors import UnknownName


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
    options: dict[str, Any] = field(default_factory=dict)
    """Passed to ``build``; what a user gives goes over them."""
    forward_only: bool = False
    """Whether the device never differentiates through the backbone: it may be streamed or in few bits."""
    trained: bool = True
    """False for the controls, which show what a table's figures have to be compared with."""


def _control(name: str, label: str, summary: str) -> MethodRow:
    return MethodRow(name, label, "controls", summary, "–", True, forward_only=True, trained=False)


_ROWS = (
    MethodRow("full", "Full fine-tuning", "full", "every weight, AdamW", "Loshchilov & Hutter 2019", False),
    MethodRow(
        "full-checkpointing",
        "Full + checkpointing",
        "full_checkpointing",
        "every weight; activations computed again in the backward pass",
        "arXiv 1604.06174",
        False,
    ),
    MethodRow("lora", "LoRA", "lora", "low-rank updates of query and value, AdamW", "arXiv 2106.09685", True),
    MethodRow("lora-fa", "LoRA-FA", "lora_fa", "LoRA with A frozen", "arXiv 2308.03303", True),
    MethodRow(
        "lora-checkpointing",
        "LoRA + checkpointing",
        "lora_checkpointing",
        "LoRA; activations computed again in the backward pass",
        "arXiv 2106.09685, 1604.06174",
        True,
    ),
    MethodRow("bitfit", "BitFit", "bitfit", "the biases alone, AdamW", "arXiv 2106.10199", False),
    MethodRow(
        "lst",
        "LST on the device",
        "lst",
        "a narrow ladder beside the frozen backbone, trained where the backbone is",
        "arXiv 2206.06522",
        True,
    ),
    MethodRow(
        "mezo", "MeZO", "mezo", "two forward passes in place of a gradient, every weight", "arXiv 2305.17333", False
    ),
    MethodRow("mezo-lora", "MeZO (LoRA)", "mezo_lora", "MeZO on LoRA's parameters", "arXiv 2305.17333", True),
    MethodRow(
        "p-rge",
        "P-RGE",
        "prge",
        "q perturbations, both signs, in one batched forward; dual-forwarding LoRA-FA",
        "arXiv 2409.15520",
        True,
    ),
    MethodRow("probe", "Linear probe", "probe", "a classifier on the frozen last state", "–", True, forward_only=True),
    MethodRow(
        "mobillm-full-width",
        "MobiLLM, full width",
        "mobillm",
        "device forward only; side network of the backbone's width on the server",
        "arXiv 2502.20421, 2507.01216 eq. 1",
        True,
        {"side": "full-width"},
        forward_only=True,
    ),
    MethodRow(
        "mobillm-ladder",
        "MobiLLM, ladder",
        "mobillm",
        "device forward only; narrow transformer beside the backbone on the server",
        "arXiv 2502.20421, 2206.06522",
        True,
        {"side": "ladder"},
        forward_only=True,
    ),
    _control("zero-shot", "Zero-shot", "the label words' logits, nothing trained"),
    _control("threshold", "One threshold", "one threshold on the zero-shot logit difference, chosen on dev"),
    _control("bag-of-words", "Bag of words", "logistic regression on word counts; no language model at all"),
    _control("majority", "Majority class", "always the most frequent label"),
)

METHODS: dict[str, MethodRow] = {row.name: row for row in _ROWS}

LABELS: dict[str, str] = {row.name: row.label for row in _ROWS}
"""For tables and figures, in their order."""

CONTROLS = tuple(row.name for row in _ROWS if not row.trained)


def method_row(name: str) -> MethodRow:
    """The row of a method.

    Raises:
        UnknownName: no such method; the closest name is given.
    """
    if name in METHODS:
        return METHODS[name]
    close = get_close_matches(name, METHODS, n=1)
    hint = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(METHODS)}."
    raise UnknownName(f"There is no method '{name}'.", hint)


def load_method(name: str) -> Callable[..., Any]:
    """The ``build`` function of a method, with the row's options already given.

    Raises:
        UnknownName: no such method, or a control, which is not built but scored.
    """
    row = method_row(name)
    if not row.trained:
        raise UnknownName(f"'{name}' is a control: nothing is trained.", "Use `mobillm compare` or `run`.")
    build = import_module(f"{__name__}.{row.module}").build

    return partial(build, **row.options)
