"""Charts of memory: counted beside measured, predicted at the worst moment of a step, how it grows, where it fits.

Knows: run records, predictions, methods' labels.  Knows nothing of: how a method trains, processes, widgets.
Taught in: notebooks/01_where_memory_goes.ipynb, notebooks/09_comparison.ipynb, notebooks/10_real_models.ipynb
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import fill
from typing import Any, TypeAlias

from mobillm_kit.common import GIB, MIB
from mobillm_kit.errors import BadInput
from mobillm_kit.memory.live_tensors import Alive, Category
from mobillm_kit.memory.prediction import MemoryNeed
from mobillm_kit.methods import LABELS
from mobillm_kit.record import RunRecord
from mobillm_kit.show import chart
from mobillm_kit.show.chart import Axes, Chart, styled
from mobillm_kit.show.tables import finished, grouped, ledger, measured_mib

PARTS: Mapping[Category, tuple[str, str]] = {
    "weights": ("weights", "#76818d"),
    "gradients": ("gradients", "#b8935a"),
    "optimizer": ("optimizer state", "#7c5a82"),
    "saved": ("saved activations", "#4f86a8"),
    "messages": ("messages", "#6b9b7a"),
    "transient": ("transient", "#c58a9c"),
}
"""Name and colour of what is held or alive, in the order in which it is stacked; duller than any method's colour."""

Needs: TypeAlias = Mapping[str, Sequence[MemoryNeed]]
"""By label, what each party of a method needs."""

BUDGETS = (2 * GIB, 4 * GIB, 8 * GIB, 16 * GIB)
"""Memories of devices, smallest first."""

_FITS = ("#cfe6f5", "#8cc4e8", "#2a78ab", "#003f66")
"""Of cells and bars, from the smallest budget to the largest: one hue, darker as it costs more."""
_NOWHERE = ("#d9d4cb", "#6d665c")
"""Of what fits into none of them: ground and lines of the hatch."""


@dataclass(frozen=True)
class _Bar:
    label: str
    party: str
    parts: Alive
    measured_bytes: float | None = None
    """The weights and the process's growth, mean over the seeds."""
    before: Alive | None = None
    """Of the setting before this one."""


@styled
def device_memory(records: Iterable[RunRecord]) -> Chart:
    """Counted memory of each method on the device, stacked by category; a server's bars stand apart, hatched.

    The diamond is the measured peak on top of the loaded model, drawn from the end of the weights, so that it can be
    held against the bar: a process adds a constant of 12 to 20 MiB of its own.
    """
    bars = [bar for _, label, runs in grouped(records) for bar in _counted_bars(label, finished(runs))]
    if not bars:
        raise BadInput("No finished record has counted memory.", "Run a method that trains a model.")
    devices = [bar for bar in bars if bar.party == "device"]
    least, most = (choose(devices, key=lambda bar: bar.parts.total) for choose in (min, max))
    hatched = "; hatched: on the server" if len(devices) < len(bars) else ""
    measured = any(bar.measured_bytes is not None for bar in bars)
    diamond = "; diamond: the weights and what the process really grew by" if measured else ""
    return _stacked(
        bars, "What fills the memory during training", f"Bars: counted on the device{hatched}{diamond}",
        f"Stacked bars of the memory counted on the device for {len(devices)} method{'s' * (len(devices) > 1)}: "
        f"from {_mib(least.parts.total)} MiB ({least.label}) to {_mib(most.parts.total)} MiB ({most.label}).",
    )  # fmt: skip


@styled
def step_memory(needs: Needs, subtitle: str = "", *, before: Needs | None = None, end_bytes: int = 0) -> Chart:
    """One bar per method and party: the bytes of tensors alive when most are, stacked by what they are.

    Above each stands, thin, the bar that it had ``before``; the axis reaches ``end_bytes`` at least.
    """
    last = {bar.label: bar.parts for bar in _step_bars(before or {})}
    bars = [replace(bar, before=last.get(bar.label)) for bar in _step_bars(needs)]
    if not bars:
        raise BadInput("There is nothing to draw.", "Give at least one prediction.")
    bars.sort(key=lambda bar: bar.party == "server")
    named = ", ".join(f"{bar.label} {bar.parts.total / MIB:,.0f} MiB" for bar in bars)
    alt = f"Stacked bars of tensors alive at the peak of one training step: {named}."
    return _stacked(bars, "Alive at the worst moment of a step", subtitle, alt, end_bytes)


def _step_bars(needs: Needs) -> list[_Bar]:
    return [
        _Bar(f"{label}, {need.party}" if len(parties) > 1 else label, need.party, need.at_peak)
        for label, parties in needs.items()
        for need in parties
    ]


def _counted_bars(label: str, runs: Sequence[RunRecord]) -> list[_Bar]:
    """One bar per party that has a ledger."""
    counted = {party: found for party in ("device", "server") if (found := ledger(runs, party)) is not None}
    bars = []
    for party, memory in counted.items():
        grown = measured_mib(runs, party)
        measured = memory.weights_bytes + MIB * sum(grown) / len(grown) if grown else None
        name = f"{label}, {party}" if len(counted) > 1 else label
        bars.append(_Bar(name, party, Alive(**memory.by_category), measured))
    return bars


def _stacked(bars: Sequence[_Bar], title: str, subtitle: str, alt: str, end_bytes: int = 0) -> Chart:
    """Devices first; the servers below them, behind a gap."""
    bars = sorted(bars, key=lambda bar: bar.party == "server")
    devices = sum(bar.party == "device" for bar in bars)
    places = [i + (0.5 if i >= devices > 0 else 0.0) for i in range(len(bars))]
    height = 1.55 + 0.36 * (places[-1] + 1)
    figure, axes = chart.canvas(9.0, height, title, subtitle, alt, right=0.86, legend_above=True)
    ends = [_stack(axes, place, bar) for place, bar in zip(places, bars, strict=True)]
    chart.lying_bars(axes, places, [bar.label for bar in bars], max(*ends, end_bytes / MIB), "memory, MiB")
    axes.grid(axis="x")
    used = [look for part, look in PARTS.items() if any(getattr(bar.parts, part) for bar in bars)]
    keys: list[chart.Patch | chart.Line2D] = [chart.Patch(color=color, label=name) for name, color in used]
    both = any(bar.measured_bytes is not None for bar in bars)
    chart.numbers_beside(axes, places, [_mib(bar.parts.total) for bar in bars], 1.09, "counted" if both else "")
    if both:
        measured = ["" if bar.measured_bytes is None else _mib(bar.measured_bytes) for bar in bars]
        chart.numbers_beside(axes, places, measured, 1.2, "measured")
        keys.append(chart.Line2D([], [], marker="D", ls="", ms=7, mfc=chart.INK, mec=chart.PAPER, label="measured"))
    if any(bar.before for bar in bars):
        keys.append(chart.Line2D([], [], lw=2, color=chart.MUTED, label="thin: before the last move"))
    chart.legend_above(axes, keys)
    return figure


def _stack(axes: Axes, place: float, bar: _Bar) -> float:
    """Draw one bar, the one before it and its diamond; returns where they end, in MiB."""
    hatch = "////" if bar.party == "server" else None
    left = _pieces(axes, place, 0.66 if bar.before is None else 0.54, bar.parts, hatch=hatch, linewidth=0.6)
    if bar.before is not None:
        return max(left, _pieces(axes, place - 0.36, 0.1, bar.before, alpha=0.75, linewidth=0))
    if bar.measured_bytes is None:
        return left
    peak = bar.measured_bytes / MIB
    if peak > left:
        axes.plot([left, peak], [place, place], color=chart.INK, lw=1.0, zorder=4)
    axes.plot([peak], [place], "D", ms=7, mfc=chart.INK, mec=chart.PAPER, mew=1.4, zorder=5)
    return max(left, peak)


def _pieces(axes: Axes, place: float, height: float, parts: Alive, **look: Any) -> float:
    """The pieces of one bar, end to end; returns where the last one ends, in MiB."""
    left = 0.0
    for part, (_, color) in PARTS.items():
        if width := getattr(parts, part) / MIB:
            axes.barh(place, width, height, left, color=color, edgecolor=chart.PAPER, **look)
        left += width
    return left


def _mib(n_bytes: float) -> str:
    mib = n_bytes / MIB
    return f"{mib:,.1f}" if mib < 100 else f"{mib:,.0f}"


@styled
def memory_growth(curves: Mapping[str, Sequence[tuple[int, MemoryNeed]]], x_label: str, subtitle: str = "") -> Chart:
    """One line per method: the peak of a training step as the batch or the texts grow, counted along the axis."""
    mib = {label: [need.peak_bytes / MIB for _, need in points] for label, points in curves.items()}
    named = ", ".join(f"{label} from {ys[0]:,.0f} to {ys[-1]:,.0f} MiB" for label, ys in mib.items())
    alt = f"Lines of peak memory against {x_label}: {named}."
    figure, axes = chart.canvas(7.2, 3.9, "What grows, and what does not", subtitle, alt, left=0.12, right=0.76)
    for label, points in curves.items():
        color, marker, dashes = chart.method_look([*LABELS.values(), *curves].index(label))
        xs, ys = [x for x, _ in points], mib[label]
        axes.plot(xs, ys, color=color, marker=marker, linestyle=dashes, linewidth=1.8)
        end: dict[str, Any] = {"xytext": (7, 0), "textcoords": "offset points", "annotation_clip": False}
        axes.annotate(label, (xs[-1], ys[-1]), va="center", **end)
    axes.set_ylim(bottom=0)
    axes.set(xlabel=x_label, ylabel="MiB at the peak")
    chart.plain_numbers(axes.yaxis)
    axes.grid(axis="y")
    return figure


@styled
def memory_over_time(samples: Mapping[str, Sequence[float]], interval_s: float, subtitle: str = "") -> Chart:
    """One line per way: resident MiB above that at the start, sample by sample; its words to the nearest 10 MiB."""
    if not samples or not all(len(found) for found in samples.values()):
        raise BadInput("There is nothing to draw.", "Give at least one number for each label.")
    rises = (f"{label} rises by {10 * round((max(mib) - mib[0]) / 10)} MiB" for label, mib in samples.items())
    alt = f"Lines of memory over time: {', '.join(rises)}."
    figure, axes = chart.canvas(7.2, 3.8, "Memory above that at the start", subtitle, alt)
    for place, (label, found) in enumerate(samples.items()):
        color, _, dashes = chart.method_look(place)
        times = [interval_s * number for number in range(len(found))]
        axes.plot(times, [mib - found[0] for mib in found], color=color, linestyle=dashes, linewidth=1.6, label=label)
    axes.legend(loc="upper left")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set(xlabel="seconds", ylabel="MiB")
    axes.grid(axis="y")
    return figure


@styled
def fit_grid(grid: Mapping[str, Mapping[str, int]], subtitle: str = "", budgets: Sequence[int] = BUDGETS) -> Chart:
    """A cell per model and method: the process in GiB, its colour the smallest of the budgets into which it fits.

    ``grid`` has, per model and method, the bytes of the device's whole process; ``budgets`` are at most four.
    """
    _check_budgets(budgets)
    methods = list(next(iter(grid.values()), {}))
    if not methods or any(list(row) != methods for row in grid.values()):
        raise BadInput("There is no grid to draw.", "Give at least one model, and the same methods for each.")
    width, height = 2.0 + 1.25 * len(methods), 2.3 + 0.36 * len(grid)
    counts = []
    for method in methods:
        fitting = ((sum(row[method] <= budget for row in grid.values()), budget / GIB) for budget in budgets)
        counts.append(f"{method}: {', '.join(f'{n} in {gib:g} GiB' for n, gib in fitting)}")
    alt = f"Models that fit, of {len(grid)}. {'; '.join(counts)}."
    title = "The smallest memory in which a training step fits"
    figure, axes = chart.canvas(width, height, title, subtitle, alt, left=0.16, legend_above=True)
    figure.subplots_adjust(bottom=0.95 / height)  # room for names of two lines
    for y, row in enumerate(grid.values()):
        for x, method in enumerate(methods):
            _cell(axes, x, y, row[method], budgets)
    axes.set_xticks(range(len(methods)), [fill(method, 14) for method in methods])
    axes.set_yticks(range(len(grid)), list(grid))
    axes.set(xlim=(-0.5, len(methods) - 0.5), ylim=(len(grid) - 0.5, -0.5))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _budget_keys(axes, budgets, [n_bytes for row in grid.values() for n_bytes in row.values()])
    return figure


@styled
def budget_bars(processes: Mapping[str, int], subtitle: str = "", budgets: Sequence[int] = BUDGETS) -> Chart:
    """One bar per method: the bytes of the device's whole process, with a line at each of at most four budgets."""
    _check_budgets(budgets)
    if not processes:
        raise BadInput("There is nothing to draw.", "Give at least one method.")
    where = _names(budgets, "fits in none")
    parts = (f"{label} {n / GIB:.1f} GiB, {where[bisect_left(budgets, n)]}" for label, n in processes.items())
    alt = f"Bars of the device's whole process: {'; '.join(parts)}."
    height = 1.9 + 0.4 * len(processes)
    title = "Which way of training fits"
    figure, axes = chart.canvas(9.0, height, title, subtitle, alt, left=0.33, right=0.9, legend_above=True)
    for y, n_bytes in enumerate(processes.values()):
        axes.barh(y, n_bytes / GIB, 0.68, linewidth=0.0, **_shade(n_bytes, budgets))
    for budget in budgets:
        axes.axvline(budget / GIB, color=chart.INK, linestyle="--", linewidth=1.0)
    places, end = range(len(processes)), max(*processes.values(), budgets[-1]) / GIB
    chart.lying_bars(axes, places, list(processes), end, "GiB of the device's whole process; dashed: the budgets")
    chart.numbers_beside(axes, places, [f"{n_bytes / GIB:.1f}" for n_bytes in processes.values()], 1.09)
    axes.set_xticks([0, *(budget / GIB for budget in budgets)])
    _budget_keys(axes, budgets, list(processes.values()))
    return figure


def _names(budgets: Sequence[int], nowhere: str) -> list[str]:
    return [*(f"fits in {budget / GIB:g} GiB" for budget in budgets), nowhere]


def _shade(n_bytes: int, budgets: Sequence[int]) -> dict[str, Any]:
    place = bisect_left(budgets, n_bytes)  # of the smallest that is enough; their number where none is
    if place == len(budgets):
        return {"facecolor": _NOWHERE[0], "edgecolor": _NOWHERE[1], "hatch": "////"}
    return {"facecolor": _FITS[place], "edgecolor": chart.PAPER}


def _check_budgets(budgets: Sequence[int]) -> None:
    if not 1 <= len(budgets) <= len(_FITS) or list(budgets) != sorted(set(budgets)):
        problem = f"These are not budgets to compare with: {list(budgets)}."
        raise BadInput(problem, f"Give 1 to {len(_FITS)} numbers of bytes, smallest first.")


def _budget_keys(axes: Axes, budgets: Sequence[int], shown: Sequence[int]) -> None:
    """Keys of the shades that occur."""
    names = _names(budgets, "does not fit" if len(budgets) == 1 else "in none of them")
    used = {bisect_left(budgets, n_bytes): n_bytes for n_bytes in shown}
    keys = [chart.Patch(label=names[place], linewidth=0.6, **_shade(used[place], budgets)) for place in sorted(used)]
    chart.legend_above(axes, keys)


def _cell(axes: Axes, x: int, y: int, n_bytes: int, budgets: Sequence[int]) -> None:
    shade = _shade(n_bytes, budgets)
    axes.barh(y, 0.94, 0.9, x - 0.47, linewidth=0.0, **shade)
    ground = {"facecolor": _NOWHERE[0], "edgecolor": "none", "boxstyle": "round,pad=0.15"} if "hatch" in shade else None
    letters = chart.ON_DARK if shade["facecolor"] in _FITS[2:] else chart.ON_LIGHT
    axes.text(x, y, f"{n_bytes / GIB:.1f}", ha="center", va="center", color=letters, bbox=ground)
