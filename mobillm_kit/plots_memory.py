"""Figures of predicted memory: what is alive at the worst moment of a training step, how it grows, where it fits.

Knows: predictions (mobillm_kit/shapes.py) and the look of all figures.  Knows nothing of: methods, widgets.

Taught in: notebooks/01_where_memory_goes.ipynb, notebooks/10_real_models.ipynb
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING

from mobillm_kit.common import GIB, MIB
from mobillm_kit.errors import BadInput
from mobillm_kit.plots import CATEGORIES as LEDGER
from mobillm_kit.plots import INK, MUTED, PAPER, canvas, method_look, styled, titles
from mobillm_kit.shapes import CATEGORIES, Category, Need

if TYPE_CHECKING:  # plots.py says it in a sentence where matplotlib is not installed
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


PARTS: Mapping[Category, tuple[str, str]] = {
    "weights": LEDGER["weights_bytes"],
    "gradients": LEDGER["gradients_bytes"],
    "optimizer": LEDGER["optimizer_bytes"],
    "saved": LEDGER["saved_activations_bytes"],
    "messages": LEDGER["messages_bytes"],
    "transient": ("transient", "#cc79a7"),
}
"""Name and colour of what is alive, in the order in which it is stacked."""

BUDGETS = (2 * GIB, 4 * GIB, 8 * GIB, 16 * GIB)
"""Memories of devices, smallest first."""

_FITS = ("#cfe6f5", "#8cc4e8", "#2a78ab", "#003f66")
"""Of cells and bars, from the smallest budget to the largest: one hue, darker as it costs more."""
_NOWHERE = ("#d9d4cb", "#6d665c")
"""Of what fits into none of them: ground and lines of the hatch."""
_ON_LIGHT, _ON_DARK = "#10151a", "#fdfdfd"
"""Letters on a coloured ground; not the page's own, which a dark page replaces."""

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


def fit_grid(grid: Mapping[str, Mapping[str, int]], subtitle: str = "", budgets: Sequence[int] = BUDGETS) -> Figure:
    """A cell per model and method: the process in GiB, its colour the smallest of the budgets into which it fits.

    Args:
        grid: per model, per method, bytes of the device's whole process; the same methods for every model.
        subtitle: of which batch and length.
        budgets: bytes, smallest first, at most four.

    Raises:
        BadInput: nothing to draw, methods that differ from model to model, or budgets that cannot be told apart.
    """
    return styled(_fit_grid)(grid, subtitle, budgets)


def fit_grid_alt(grid: Mapping[str, Mapping[str, int]], budgets: Sequence[int] = BUDGETS) -> str:
    """The same in words: per method, how many of the models fit into each budget."""
    parts = []
    for method in next(iter(grid.values()), {}):
        counts = [sum(row[method] <= budget for row in grid.values()) for budget in budgets]
        named = ", ".join(f"{n} in {_gib(budget)}" for n, budget in zip(counts, budgets, strict=True))
        parts.append(f"{method}: {named}")
    return f"Models that fit, of {len(grid)}. {'; '.join(parts)}."


def budget_bars(processes: Mapping[str, int], subtitle: str = "", budgets: Sequence[int] = BUDGETS) -> Figure:
    """One bar per method: the device's whole process, with a line at each budget.

    Args:
        processes: per method, bytes.
        subtitle: of which model, batch and length.
        budgets: bytes, smallest first, at most four.

    Raises:
        BadInput: nothing to draw, or budgets that cannot be told apart.
    """
    return styled(_budget_bars)(processes, subtitle, budgets)


def budget_bars_alt(processes: Mapping[str, int], budgets: Sequence[int] = BUDGETS) -> str:
    """The same in words."""
    parts = [f"{label} {n_bytes / GIB:.1f} GiB, {_where(n_bytes, budgets)}" for label, n_bytes in processes.items()]
    return f"Bars of the device's whole process: {'; '.join(parts)}."


def _where(n_bytes: int, budgets: Sequence[int]) -> str:
    place = _smallest(n_bytes, budgets)
    return "fits in none" if place == len(budgets) else f"fits in {_gib(budgets[place])}"


def _smallest(n_bytes: int, budgets: Sequence[int]) -> int:
    """Which of the budgets is the smallest that is enough; their number where none is."""
    return next((place for place, budget in enumerate(budgets) if n_bytes <= budget), len(budgets))


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / GIB:g} GiB"


def _shade(place: int, budgets: Sequence[int]) -> dict[str, str]:
    if place == len(budgets):
        return {"facecolor": _NOWHERE[0], "edgecolor": _NOWHERE[1], "hatch": "////"}
    return {"facecolor": _FITS[place], "edgecolor": PAPER}


def _check_budgets(budgets: Sequence[int]) -> None:
    if not 1 <= len(budgets) <= len(_FITS) or list(budgets) != sorted(set(budgets)):
        raise BadInput(
            f"These are not budgets to compare with: {list(budgets)}.",
            f"Give 1 to {len(_FITS)} numbers of bytes, smallest first.",
        )


def _budget_legend(axes: Axes, budgets: Sequence[int], used: Sequence[int]) -> None:
    from matplotlib.patches import Patch

    names = [
        *(f"fits in {_gib(budget)}" for budget in budgets),
        "does not fit" if len(budgets) == 1 else "in none of them",
    ]
    style = {"linewidth": 0.6}
    handles = [
        Patch(label=name, **style, **_shade(place, budgets)) for place, name in enumerate(names) if place in used
    ]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(handles),
        handlelength=1.4, handletextpad=0.5, columnspacing=1.2, borderaxespad=0.2, fontsize=9,
    )  # fmt: skip


def _fit_grid(grid: Mapping[str, Mapping[str, int]], subtitle: str, budgets: Sequence[int]) -> Figure:
    from matplotlib.patches import Rectangle

    _check_budgets(budgets)
    methods = list(next(iter(grid.values()), {}))
    if not methods or any(list(row) != methods for row in grid.values()):
        raise BadInput("There is no grid to draw.", "Give at least one model, and the same methods for each.")
    figure, axes = canvas(2.0 + 1.25 * len(methods), 2.3 + 0.36 * len(grid))
    height = figure.get_size_inches()[1]
    figure.subplots_adjust(left=0.16, top=1 - 1.0 / height, bottom=0.95 / height)
    places = set()
    for y, row in enumerate(grid.values()):
        for x, method in enumerate(methods):
            place = _smallest(row[method], budgets)
            places.add(place)
            nowhere = place == len(budgets)
            axes.add_patch(Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, linewidth=0.0, **_shade(place, budgets)))
            letters = _ON_DARK if place in (2, 3) and not nowhere else _ON_LIGHT
            ground = {"facecolor": _NOWHERE[0], "edgecolor": "none", "boxstyle": "round,pad=0.15"} if nowhere else None
            axes.text(x, y, f"{row[method] / GIB:.1f}", ha="center", va="center", color=letters, bbox=ground)
    axes.set_xticks(range(len(methods)), [fill(method, 14) for method in methods])
    axes.set_yticks(range(len(grid)), list(grid))
    axes.set_xlim(-0.5, len(methods) - 0.5)
    axes.set_ylim(len(grid) - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _budget_legend(axes, budgets, sorted(places))
    titles(axes, "The smallest memory in which a training step fits", subtitle, extra_pt=22)
    return figure


def _budget_bars(processes: Mapping[str, int], subtitle: str, budgets: Sequence[int]) -> Figure:
    _check_budgets(budgets)
    if not processes:
        raise BadInput("There is nothing to draw.", "Give at least one method.")
    figure, axes = canvas(9.0, 1.9 + 0.4 * len(processes), right=0.9)
    figure.subplots_adjust(left=0.33, top=1 - 1.0 / figure.get_size_inches()[1])
    across = axes.get_yaxis_transform()
    places = [_smallest(n_bytes, budgets) for n_bytes in processes.values()]
    for y, (place, n_bytes) in enumerate(zip(places, processes.values(), strict=True)):
        axes.barh(y, n_bytes / GIB, 0.68, linewidth=0.0, **_shade(place, budgets))
        axes.text(1.09, y, f"{n_bytes / GIB:.1f}", ha="right", va="center", transform=across)
    for budget in budgets:
        axes.axvline(budget / GIB, color=INK, linestyle="--", linewidth=1.0)
    axes.set_yticks(range(len(processes)), list(processes))
    axes.set_ylim(len(processes) - 0.4, -0.6)
    axes.set_xlim(0, 1.04 * max(*processes.values(), budgets[-1]) / GIB)
    axes.set_xticks([0, *(budget / GIB for budget in budgets)])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("GiB of the device's whole process; dashed: the budgets")
    _budget_legend(axes, budgets, places)
    titles(axes, "Which way of training fits", subtitle, extra_pt=22)
    return figure


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
