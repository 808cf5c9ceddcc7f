"""Figures of predicted memory: what is alive at the worst moment of a training step, and how it grows.

Knows: predictions (mobillm_kit/shapes.py) and the look of all figures.  Knows nothing of: methods, widgets.

Taught in: notebooks/01_where_memory_goes.ipynb
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mobillm_kit.errors import BadInput
from mobillm_kit.plots import CATEGORIES as LEDGER
from mobillm_kit.plots import INK, MUTED, PAPER, canvas, method_look, styled, titles
from mobillm_kit.shapes import CATEGORIES, Category, Need

if TYPE_CHECKING:  # plots.py says it in a sentence where matplotlib is not installed
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIB = 2**20

PARTS: Mapping[Category, tuple[str, str]] = {
    "weights": LEDGER["weights_bytes"],
    "gradients": LEDGER["gradients_bytes"],
    "optimizer": LEDGER["optimizer_bytes"],
    "saved": LEDGER["saved_activations_bytes"],
    "messages": LEDGER["messages_bytes"],
    "transient": ("transient", "#cc79a7"),
}
"""Name and colour of what is alive, in the order in which it is stacked."""

Curves = Mapping[str, Sequence[tuple[int, Need]]]
"""Per method: what is counted along the axis, and the need there."""


def step_memory(needs: Mapping[str, Sequence[Need]], subtitle: str = "", ram_bytes: int | None = None) -> Figure:
    """One bar per method and party: the bytes alive when most are, stacked by what they are.

    Args:
        needs: per label, what :func:`mobillm_kit.shapes.predict` gave.
        subtitle: of which model, batch and length.
        ram_bytes: drawn as a line, without what Python and torch take themselves.

    Raises:
        BadInput: nothing to draw.
    """
    return styled(_step_memory)(needs, subtitle, ram_bytes)


def step_memory_alt(needs: Mapping[str, Sequence[Need]]) -> str:
    """The same in words, for who cannot see it."""
    parts = [f"{label} {need.peak_bytes / MIB:,.0f} MiB" for label, need in _bars(needs)]
    return f"Stacked bars of tensors alive at the peak of one training step: {', '.join(parts)}."


def memory_growth(curves: Curves, x_label: str, subtitle: str = "") -> Figure:
    """One line per method: the peak of a training step as the batch or the texts grow.

    Args:
        curves: per method, what is counted along the axis and the need there.
        x_label: what is counted along the axis.
        subtitle: of which model.
    """
    return styled(_memory_growth)(curves, x_label, subtitle)


def memory_growth_alt(curves: Curves, x_label: str) -> str:
    """The same in words."""
    parts = [
        f"{label} from {points[0][1].peak_bytes / MIB:,.0f} to {points[-1][1].peak_bytes / MIB:,.0f} MiB"
        for label, points in curves.items()
    ]
    return f"Lines of peak memory against {x_label}: {', '.join(parts)}."


def _bars(needs: Mapping[str, Sequence[Need]]) -> list[tuple[str, Need]]:
    bars = [
        (f"{label}, {need.party}" if len(parties) > 1 else label, need)
        for label, parties in needs.items()
        for need in parties
    ]
    if not bars:
        raise BadInput("There is nothing to draw.", "Give at least one prediction.")
    return sorted(bars, key=lambda bar: bar[1].party == "server")


def _step_memory(needs: Mapping[str, Sequence[Need]], subtitle: str, ram_bytes: int | None) -> Figure:
    bars = _bars(needs)
    figure, axes = canvas(9.0, 1.75 + 0.4 * len(bars), right=0.9)
    figure.subplots_adjust(left=0.24)
    for place, (_, need) in enumerate(bars):
        _stack(axes, place, need)
    axes.set_yticks(range(len(bars)), [label for label, _ in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 1.04 * max(need.peak_bytes for _, need in bars) / MIB)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel("MiB")
    across = axes.get_yaxis_transform()
    for place, (_, need) in enumerate(bars):
        axes.text(1.1, place, f"{need.peak_bytes / MIB:,.0f}", ha="right", va="center", transform=across)
    if ram_bytes is not None:
        axes.axvline(ram_bytes / MIB, color=INK, linestyle="--", linewidth=1.2)
    _legend(axes, bars)
    titles(axes, "Alive at the worst moment of a step", subtitle, extra_pt=25)
    return figure


def _stack(axes: Axes, place: int, need: Need) -> None:
    left = 0.0
    for category, (_, color) in PARTS.items():
        width = getattr(need.at_peak, category) / MIB
        hatch = "////" if need.party == "server" else None
        if width:
            axes.barh(place, width, 0.68, left, color=color, hatch=hatch, edgecolor=PAPER, linewidth=0.6)
        left += width


def _legend(axes: Axes, bars: Sequence[tuple[str, Need]]) -> None:
    from matplotlib.patches import Patch

    used = [part for part in CATEGORIES if any(getattr(need.at_peak, part) for _, need in bars)]
    handles = [Patch(color=color, label=name) for part, (name, color) in PARTS.items() if part in used]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(handles),
        handlelength=1.0, handletextpad=0.5, columnspacing=1.2, borderaxespad=0.2, fontsize=9,
    )  # fmt: skip


def _memory_growth(curves: Curves, x_label: str, subtitle: str) -> Figure:
    figure, axes = canvas(7.2, 3.9, right=0.76)
    figure.subplots_adjust(left=0.12)
    for place, (label, points) in enumerate(curves.items()):
        color, marker, dashes = method_look(place)
        style = "-" if dashes == "" else (0, dashes)
        xs, ys = [x for x, _ in points], [need.peak_bytes / MIB for _, need in points]
        axes.plot(xs, ys, color=color, marker=marker, linestyle=style, linewidth=1.8)
        axes.annotate(f" {label}", (xs[-1], ys[-1]), color=INK, va="center", annotation_clip=False)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel("MiB at the peak", color=MUTED)
    axes.grid(axis="y")
    titles(axes, "What grows, and what does not", subtitle)
    return figure
