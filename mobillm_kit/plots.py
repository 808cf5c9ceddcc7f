"""Figures of a comparison: pure functions from run records to a matplotlib Figure.

One message per figure; the controls stand in each that has an axis of accuracy. Colours start from those of
Okabe and Ito, the light ones darkened to stand on white too; markers, line styles and labels say the same
as the colours. A figure has a white ground, so that it can be read on a dark page as well.

Nothing is shown and no global state is touched: a notebook displays what a cell returns, a program calls
:func:`save`.

Knows: run records.  Knows nothing of: how they were made, pages, widgets.

Taught in: notebooks/09_comparison.ipynb
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, ParamSpec

from mobillm_kit.errors import BadInput, MissingExtra
from mobillm_kit.record import CountedMemory, CurvePoint, RunRecord
from mobillm_kit.saving import write_bytes
from mobillm_kit.tables import (
    CONTROLS,
    MB,
    MIB,
    finished,
    grouped,
    ledger,
    measured_mib,
    rows,
)

try:
    import matplotlib as mpl
    import matplotlib.style
    import pandas as pd
    import seaborn as sns
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.path import Path as Path2D
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
    from matplotlib.transforms import Bbox
except ModuleNotFoundError as missing:
    raise MissingExtra(
        f"Figures need {missing.name}, which is not installed.",
        "Install the extra: pip install 'mobillm-kit[lab]'.",
    ) from missing

P = ParamSpec("P")
Clock = Literal["step", "forwards", "seconds", "bytes"]
Memory = Literal["counted", "measured"]

PAPER, INK, MUTED, GRID = "#ffffff", "#1c2126", "#59616b", "#dfe3e8"
"""Ground, letters, secondary letters and lines, grid. A page that wants a dark figure replaces these four in its SVG:
nothing else has these colours, and those of the data stand on dark as well."""

COLORS = (
    "#0072b2", "#d98a00", "#009e73", "#cc79a7", "#8f63d2", "#3a9bd9", "#8c6d31", "#7d8590", "#d55e00", "#7f9a00",
    "#b5179e", "#e0453a", "#6741d9",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h", "d")
DASHES = ("", (4, 1.5), (1, 1), (6, 1.5, 1, 1.5), (3, 1))

CATEGORIES: Mapping[str, tuple[str, str]] = {
    "weights_bytes": ("weights", "#7d8590"),
    "gradients_bytes": ("gradients", "#d98a00"),
    "optimizer_bytes": ("optimizer state", "#d55e00"),
    "saved_activations_bytes": ("saved activations", "#0072b2"),
    "messages_bytes": ("messages", "#009e73"),
}
"""Fields of the ledger: name and colour, in the order in which they are stacked."""

_CLOCKS: Mapping[str, tuple[str, str, Callable[[CurvePoint], float]]] = {
    "step": ("with the optimizer's steps", "optimizer steps", lambda point: point.step),
    "forwards": (
        "with samples forwarded",
        "samples passed through the backbone",
        lambda point: point.forwards,
    ),
    "seconds": ("with time", "seconds of training", lambda point: point.seconds),
    "bytes": ("with data sent", "sent by the device, MB", lambda point: point.bytes_sent / MB),
}

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.parse_math": False,
    "text.color": INK,
    "axes.facecolor": PAPER,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.grid": False,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "hatch.linewidth": 1.2,
    "hatch.color": PAPER,
}


def device_memory(records: Iterable[RunRecord], labels: Mapping[str, str] | None = None) -> Figure:
    """Counted memory of each method on the device, stacked by category; a server's bars stand apart, hatched.

    The diamond is the measured peak on top of the loaded model, drawn from the end of the weights, so that it can be
    held against the bar: a process adds a constant of 12 to 20 MiB of its own.

    Args:
        records: any methods and seeds of one comparison.
        labels: display names by method, in the order wanted.

    Raises:
        BadInput: no finished record with counted memory.
    """
    return styled(_device_memory)(records, labels)


def convergence(records: Iterable[RunRecord], x: Clock = "step", labels: Mapping[str, str] | None = None) -> Figure:
    """Dev accuracy of each method as training goes on: mean of the seeds, band from the lowest to the highest.

    Args:
        records: any methods and seeds of one comparison.
        x: what the horizontal axis counts. With ``bytes`` only methods that send anything have a curve.
        labels: display names by method, in the order wanted.

    Raises:
        BadInput: no finished record with a curve, or an ``x`` that is none of the four.
    """
    return styled(_convergence)(records, x, labels)


def pareto(records: Iterable[RunRecord], memory: Memory = "counted", labels: Mapping[str, str] | None = None) -> Figure:
    """Test accuracy against memory on the device; methods that no other beats in both are joined by a line.

    Args:
        records: any methods and seeds of one comparison.
        memory: ``counted``: the ledger's total; ``measured``: the peak on top of the loaded model.
        labels: display names by method, in the order wanted.

    Raises:
        BadInput: no finished record with both, or a ``memory`` that is neither.
    """
    return styled(_pareto)(records, memory, labels)


def device_memory_alt(records: Iterable[RunRecord], labels: Mapping[str, str] | None = None) -> str:
    """One sentence that says what :func:`device_memory` shows."""
    bars = [bar for bar in _bars(records, labels) if bar.party == "device"]
    least, most = (choose(bars, key=lambda bar: bar.counted.total_bytes) for choose in (min, max))
    return (
        f"Stacked bars of the memory counted on the device for {_methods(len(bars))}: "
        f"from {_mib(least.counted.total_bytes)} MiB ({least.label}) "
        f"to {_mib(most.counted.total_bytes)} MiB ({most.label})."
    )


def convergence_alt(records: Iterable[RunRecord], x: Clock = "step", labels: Mapping[str, str] | None = None) -> str:
    """One sentence that says what :func:`convergence` shows."""
    lines = _lines(records, x, labels)
    best, worst = (choose(lines, key=lambda line: line.end) for choose in (max, min))
    return (
        f"Lines of dev accuracy against {_CLOCKS[x][1]} for {_methods(len(lines))}: they end between "
        f"{worst.end:.1f} % ({worst.label}) and {best.end:.1f} % ({best.label})."
    )


def pareto_alt(
    records: Iterable[RunRecord], memory: Memory = "counted", labels: Mapping[str, str] | None = None
) -> str:
    """One sentence that says what :func:`pareto` shows."""
    points = _points(records, memory, labels)
    front = "; ".join(
        f"{point.label} ({point.memory_mib:,.0f} MiB, {point.accuracy:.1f} %)" for point in pareto_front(points)
    )
    return (
        f"Points of test accuracy against {memory} memory on the device for {_methods(len(points))}; "
        f"no method is better in both than: {front}."
    )


def save(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Write the figure as PNG (150 dots per inch) and as SVG; the same figure gives the same bytes.

    Args:
        figure: any figure.
        path: without suffix, or with one that is replaced.

    Returns:
        The two files.

    Raises:
        SaveFailed: the disk is full or the folder cannot be written.
    """
    png, vector = path.with_suffix(".png"), path.with_suffix(".svg")
    write_bytes(png, _rendered(figure, "png", {"Software": None}))
    write_bytes(vector, svg(figure).encode())
    return png, vector


def svg(figure: Figure) -> str:
    """The figure as SVG, letters drawn as shapes so that it looks the same everywhere."""
    settings = {"svg.hashsalt": "mobillm_kit", "svg.fonttype": "path"}
    with mpl.rc_context(settings):
        return _rendered(figure, "svg", {"Date": None, "Creator": None}).decode()


def _rendered(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=150, metadata=metadata, bbox_inches="tight", pad_inches=0.15)
    return out.getvalue()


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw under this module's settings, whatever the user has set, and leave the user's as they are."""

    def under_our_settings(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.style.context(_STYLE, after_reset=True):
            return draw(*args, **kwargs)

    return under_our_settings


# --- memory by category ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bar:
    label: str
    party: str
    counted: CountedMemory
    measured_mib: float | None
    """Mean over the seeds of the peak on top of the loaded model."""

    @property
    def peak_mib(self) -> float | None:
        """Where the diamond stands: the weights, and what the process grew by."""
        return None if self.measured_mib is None else self.counted.weights_bytes / MIB + self.measured_mib


def _bars(records: Iterable[RunRecord], labels: Mapping[str, str] | None) -> list[_Bar]:
    bars = []
    for _, label, runs in grouped(records, labels):
        done = finished(runs)
        split = ledger(done, "server") is not None
        for party in ("device", "server"):
            counted, measured = ledger(done, party), measured_mib(done, party)
            if counted is not None:
                name = f"{label}, {party}" if split else label
                bars.append(_Bar(name, party, counted, sum(measured) / len(measured) if measured else None))
    if not bars:
        raise BadInput("No finished record has counted memory.", "Run a method that trains a model.")
    return bars


def _device_memory(records: Iterable[RunRecord], labels: Mapping[str, str] | None) -> Figure:
    bars = _bars(records, labels)
    bars = [b for b in bars if b.party == "device"] + [b for b in bars if b.party == "server"]
    places = _places(bars)
    figure, axes = canvas(9.0, 1.55 + 0.36 * (places[-1] + 1), right=0.86)
    ends = [_stack(axes, place, bar) for place, bar in zip(places, bars, strict=True)]
    axes.set_yticks(places, [bar.label for bar in bars])
    axes.set_ylim(places[-1] + 0.6, -0.6)
    axes.set_xlim(0, 1.04 * max(ends))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel("memory, MiB")
    _number_columns(axes, places, bars)
    _category_legend(axes, bars)
    titles(axes, "What fills the memory during training", _memory_subtitle(bars), extra_pt=25)
    return figure


def _places(bars: Sequence[_Bar]) -> list[float]:
    """Vertical places of the bars, with a gap before the servers."""
    devices = sum(bar.party == "device" for bar in bars)
    return [i + (0.5 if i >= devices else 0.0) for i in range(len(bars))]


def _stack(axes: Axes, place: float, bar: _Bar) -> float:
    """Draw one bar and its diamond; returns where they end, in MiB."""
    left = 0.0
    for field, (_, color) in CATEGORIES.items():
        width = getattr(bar.counted, field) / MIB
        if width:
            hatch = "////" if bar.party == "server" else None
            axes.barh(place, width, 0.66, left, color=color, hatch=hatch, edgecolor=PAPER, linewidth=0.6)
        left += width
    if bar.peak_mib is None:
        return left
    if bar.peak_mib > left:
        axes.plot([left, bar.peak_mib], [place, place], color=INK, lw=1.0, zorder=4)
    axes.plot([bar.peak_mib], [place], "D", ms=7, mfc=INK, mec=PAPER, mew=1.4, zorder=5)
    return max(left, bar.peak_mib)


def _number_columns(axes: Axes, places: Sequence[float], bars: Sequence[_Bar]) -> None:
    """The numbers behind bars and diamonds, right of the axes; at a bar's end they would hide the diamond."""
    columns = [("counted", [_mib(bar.counted.total_bytes) for bar in bars])]
    if any(bar.peak_mib is not None for bar in bars):
        columns.append(("measured", ["" if b.peak_mib is None else _mib(b.peak_mib * MIB) for b in bars]))
    across = axes.get_yaxis_transform()
    for right, (head, numbers) in zip((1.085, 1.195), columns, strict=False):
        axes.text(right, places[0] - 0.62, head, ha="right", va="bottom", fontsize=9, color=MUTED, transform=across)
        for place, number in zip(places, numbers, strict=True):
            axes.text(right, place, number, ha="right", va="center", transform=across)


def _category_legend(axes: Axes, bars: Sequence[_Bar]) -> None:
    used = [
        (name, color) for field, (name, color) in CATEGORIES.items() if any(getattr(bar.counted, field) for bar in bars)
    ]
    handles: list[Patch | Line2D] = [Patch(color=color, label=name) for name, color in used]
    if any(bar.measured_mib is not None for bar in bars):
        diamond = Line2D([], [], marker="D", ls="", ms=7, mfc=INK, mec=PAPER, label="measured")
        handles.append(diamond)
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(handles),
        handlelength=1.0, handletextpad=0.5, columnspacing=1.2, borderaxespad=0.2, fontsize=9,
    )  # fmt: skip


def _memory_subtitle(bars: Sequence[_Bar]) -> str:
    hatched = "; hatched: on the server" if any(bar.party == "server" for bar in bars) else ""
    measured = any(bar.peak_mib is not None for bar in bars)
    diamond = "; diamond: the weights and what the process really grew by" if measured else ""
    return f"Bars: counted on the device{hatched}{diamond}"


# --- accuracy as training goes on -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    label: str
    place: int
    """Decides colour, marker and dashes."""
    points: tuple[tuple[float, float], ...]
    """x (mean of the seeds at a step) and accuracy in percent, one pair per step and seed."""
    end: float
    """Mean accuracy of the last step, percent."""


@dataclass(frozen=True)
class _Level:
    label: str
    accuracy: float
    """Percent."""


def _lines(records: Iterable[RunRecord], x: str, labels: Mapping[str, str] | None) -> list[_Line]:
    if x not in _CLOCKS:
        raise BadInput(f"x={x!r} is not one of {', '.join(_CLOCKS)}.")
    lines = []
    for place, label, runs in _methods_of(records, labels):
        done = [run for run in finished(runs) if run.curve]
        if done and (x != "bytes" or any(run.bytes_sent for run in done)):
            lines.append(_line(label, place, done, _CLOCKS[x][2]))
    if not lines:
        reason = "has sent a byte" if x == "bytes" else "has a curve"
        raise BadInput(f"No finished record {reason}.", "Choose another x, or run a method that has one.")
    return lines


def _line(label: str, place: int, runs: Sequence[RunRecord], clock: Callable[[CurvePoint], float]) -> _Line:
    # a seed that stopped early would bend the mean where it leaves: only steps that all seeds have
    steps = sorted(set.intersection(*({point.step for point in run.curve} for run in runs)))
    by_step = {step: [next(p for p in run.curve if p.step == step) for run in runs] for step in steps}
    pairs = [
        (sum(map(clock, points)) / len(points), 100 * point.dev_accuracy)
        for points in by_step.values()
        for point in points
    ]
    last = [accuracy for _, accuracy in pairs[-len(runs) :]]
    return _Line(label, place, tuple(pairs), sum(last) / len(last))


def _convergence(records: Iterable[RunRecord], x: str, labels: Mapping[str, str] | None) -> Figure:
    records = list(records)
    lines, levels = _lines(records, x, labels), _levels(records, labels, "dev_accuracy")
    figure, axes = canvas(9.0, 5.2, right=0.735)
    for line in lines:
        frame = pd.DataFrame(line.points, columns=["x", "accuracy"])
        color, marker, dashes = method_look(line.place)
        sns.lineplot(
            frame, x="x", y="accuracy", errorbar=("pi", 100), ax=axes, color=color, marker=marker,
            linewidth=1.8, markersize=6, markeredgecolor=PAPER, markeredgewidth=0.7,
            err_kws={"alpha": 0.16, "linewidth": 0}, ls=_linestyle(dashes), zorder=3,
        )  # fmt: skip
    _time_axis(axes, lines)
    axes.set_xlabel(_CLOCKS[x][1])
    _accuracy_axis(axes, "dev accuracy, %", [y for line in lines for _, y in line.points], levels)
    _right_labels(axes, [*((line.end, line.label, line.place) for line in lines)], levels)
    titles(axes, f"How accuracy grows {_CLOCKS[x][0]}", _seeds_subtitle(records))
    return figure


def _time_axis(axes: Axes, lines: Sequence[_Line]) -> None:
    """From 0; logarithmic after the first point where the methods' ends lie too far apart for one linear axis."""
    values = [x for line in lines for x, _ in line.points if x > 0]
    ends = [max(x for x, _ in line.points) for line in lines]
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    if values and max(ends) > 6 * min(end for end in ends if end > 0):
        axes.set_xscale("symlog", linthresh=min(values), linscale=0.35)
        exponents = range(math.ceil(math.log10(min(values))), math.floor(math.log10(max(values))) + 1)
        axes.xaxis.set_major_locator(FixedLocator([0, *(10.0**exponent for exponent in exponents)]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlim(left=0)


# --- accuracy against memory ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One method in the plane of memory and accuracy."""

    label: str
    place: int
    """Decides colour and marker."""
    memory_mib: float
    accuracy: float
    """Mean of the seeds, percent."""
    lowest: float
    highest: float


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Points that no other beats or equals in both memory and accuracy, from the least memory on.

    Of points that are equal in both, the first is kept.
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.memory_mib, -point.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def _points(records: Iterable[RunRecord], memory: str, labels: Mapping[str, str] | None) -> list[Point]:
    if memory not in ("counted", "measured"):
        raise BadInput(f"memory={memory!r} is neither 'counted' nor 'measured'.")
    points = []
    for place, label, runs in _methods_of(records, labels):
        done = [run for run in finished(runs) if "test_accuracy" in run.scores]
        mib = _memory_mib(done, memory)
        if mib is not None:
            scores = [100 * run.scores["test_accuracy"] for run in done]
            mean = sum(scores) / len(scores)
            points.append(Point(label, place, mib, mean, min(scores), max(scores)))
    if not points:
        raise BadInput(f"No finished record has a test accuracy and {memory} memory.")
    return points


def _memory_mib(runs: Sequence[RunRecord], memory: str) -> float | None:
    if memory == "measured":
        measured = measured_mib(runs, "device")
        return sum(measured) / len(measured) if measured else None
    counted = ledger(runs, "device")
    return counted.total_bytes / MIB if counted else None


def _pareto(records: Iterable[RunRecord], memory: str, labels: Mapping[str, str] | None) -> Figure:
    records = list(records)
    points, levels = _points(records, memory, labels), _levels(records, labels, "test_accuracy")
    figure, axes = canvas(9.0, 5.2, right=0.80)
    front = pareto_front(points)
    axes.plot(
        [p.memory_mib for p in front], [p.accuracy for p in front],
        color=MUTED, lw=1.4, drawstyle="steps-post", zorder=2,
    )  # fmt: skip
    for point in points:
        color, marker, _ = method_look(point.place)
        axes.plot([point.memory_mib] * 2, [point.lowest, point.highest], color=color, lw=1.6, zorder=3)
        sns.scatterplot(
            x=[point.memory_mib], y=[point.accuracy], ax=axes, color=color, marker=marker, s=85,
            edgecolor=PAPER, linewidth=0.9, zorder=4, legend=False,
        )  # fmt: skip
    _memory_axis(axes, [point.memory_mib for point in points])
    axes.set_xlabel(
        "device memory, MiB: counted, weights included"
        if memory == "counted"
        else "device memory, MiB: measured peak on top of the loaded model"
    )
    _accuracy_axis(axes, "test accuracy, %", [y for p in points for y in (p.lowest, p.highest)], levels)
    _right_labels(axes, [], levels)
    titles(
        axes,
        "Accuracy against memory: up and to the left is better",
        f"{_seeds_subtitle(records, 'bar')}; line: no method is better in both",
    )
    _label_points(axes, points, front)
    return figure


def _memory_axis(axes: Axes, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    if low > 0 and high / low > 6:
        axes.set_xscale("log")
        ticks = [m * 10.0**e for e in range(-1, 7) for m in (1, 2, 5)]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        # room on both sides for labels
        axes.set_xlim(low / 1.6, high * 1.45)
    else:
        span = (high - low) or high or 1.0
        axes.set_xlim(max(0.0, low - 0.2 * span), high + 0.25 * span)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


_PER_COVERED_PIXEL = 20
_PER_CROSSING = 2000
"""Both in pixels of distance: as far as a label would rather go away."""


@dataclass(frozen=True, eq=False)
class _Place:
    """A place for a label, in pixels."""

    box: Bbox
    leader: tuple[float, float, float, float]
    """From the point to the label's nearest edge: x0, y0, x1, y1."""

    @property
    def distance(self) -> float:
        x0, y0, x1, y1 = self.leader
        return math.hypot(x1 - x0, y1 - y0)

    def crosses(self, box: Bbox) -> bool:
        x0, y0, x1, y1 = self.leader
        return Path2D([(x0, y0), (x1, y1)]).intersects_bbox(box, filled=False)


def _label_points(axes: Axes, points: Sequence[Point], front: Sequence[Point]) -> None:
    """Write each label at the best free place around its point, with a thin line where it is far.

    Places are chosen one label after the other; a few more rounds let each react to the others.
    """
    figure = axes.figure
    renderer = figure.canvas.get_renderer()
    dot = figure.dpi / 72
    at = {point: axes.transData.transform((point.memory_mib, point.accuracy)) for point in points}
    texts = {
        point: axes.text(
            point.memory_mib, point.accuracy, point.label, va="center", fontsize=9.5, zorder=6,
            path_effects=[withStroke(linewidth=2.5, foreground=PAPER)],
        )
        for point in points
    }  # fmt: skip
    fixed = _obstacles(axes, points, [at[point] for point in front], 5.5 * dot)
    frame = axes.get_window_extent(renderer)
    tries = {
        point: [(place, _own_cost(place, fixed, frame)) for place in _tries(*at[point], size, dot)]
        for point, size in ((p, texts[p].get_window_extent(renderer)) for p in points)
    }
    chosen: dict[Point, _Place] = {}
    for _ in range(4):
        before = dict(chosen)
        for point in sorted(points, key=lambda p: (-p.accuracy, p.memory_mib)):
            others = [place for other, place in chosen.items() if other is not point]
            chosen[point] = min(tries[point], key=lambda t: t[1] + _cost_among(t[0], others))[0]
        if chosen == before:
            break
    to_data = axes.transData.inverted().transform
    for point, place in chosen.items():
        texts[point].set_position(to_data((place.box.x0, (place.box.y0 + place.box.y1) / 2)))
        if place.distance > 13 * dot:
            line = to_data([place.leader[:2], place.leader[2:]])
            axes.plot(line[:, 0], line[:, 1], color=MUTED, lw=0.8, zorder=2.5)


def _obstacles(axes: Axes, points: Sequence[Point], front: Sequence[Sequence[float]], half: float) -> list[Bbox]:
    """What labels keep clear of: markers, bars of the seeds, the stairs of the Pareto line."""
    boxes = []
    for point in points:
        (x, low), (_, y), (_, high) = axes.transData.transform(
            [(point.memory_mib, v) for v in (point.lowest, point.accuracy, point.highest)]
        )
        boxes += [Bbox([[x - half, y - half], [x + half, y + half]]), Bbox([[x - 2, low], [x + 2, high]])]
    for (x0, y0), (x1, y1) in pairwise(front):
        boxes += [Bbox([[x0, y0 - 2], [x1, y0 + 2]]), Bbox([[x1 - 2, min(y0, y1)], [x1 + 2, max(y0, y1)]])]
    return boxes


def _tries(x: float, y: float, size: Bbox, dot: float) -> list[_Place]:
    """Places around a point: right, left, above, below and between, near and farther away."""
    width, half = size.width, size.height / 2
    places = []
    for far in (9, 15, 24, 36, 50, 66):
        d = far * dot
        rise = max(d, 4 * dot + 2 * half)
        lefts = [(x + d, y), (x - d - width, y)]
        for up in (rise, -rise):
            across = (x + d * 0.6, x - d * 0.6 - width, x - width / 2)
            lefts += [(left, y + up) for left in across]
            lefts += [(x + d, y + 0.55 * up), (x - d - width, y + 0.55 * up)]
        for left, middle in lefts:
            box = Bbox([[left, middle - half], [left + width, middle + half]])
            edge = (min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1))
            places.append(_Place(box, (x, y, *edge)))
    return places


def _own_cost(place: _Place, fixed: Sequence[Bbox], frame: Bbox) -> float:
    """Pixels from the point; what is covered and what leaves the frame count far more."""
    box = place.box.padded(2)
    outside = box.width * box.height - _common_area(box, frame)
    return place.distance + _PER_COVERED_PIXEL * (outside + sum(_common_area(box, other) for other in fixed))


def _cost_among(place: _Place, others: Sequence[_Place]) -> float:
    """What the place covers of other labels, and how many thin lines would cross a label."""
    box = place.box.padded(2)
    covered = sum(_common_area(box, other.box) for other in others)
    crossed = sum(place.crosses(other.box) + other.crosses(box) for other in others)
    return _PER_COVERED_PIXEL * covered + _PER_CROSSING * crossed


def _common_area(a: Bbox, b: Bbox) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(0.0, width) * max(0.0, height)


# --- what the figures share -----------------------------------------------------------------------------


class Chart(Figure):
    """A figure that a notebook displays, whether or not pyplot has been set up for it."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        png = _rendered(self, "png", {"Software": None})
        width, height = (int.from_bytes(png[at : at + 4]) for at in (16, 20))
        # 150 dots per inch, shown in the size of 100: sharp on dense screens as well
        return png, {"width": width * 2 // 3, "height": height * 2 // 3}


def canvas(width: float, height: float, right: float = 0.98) -> tuple[Figure, Axes]:
    """A figure that pyplot does not know of, so that it is freed with its last name."""
    figure = Chart(figsize=(width, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.09, right=right, bottom=0.6 / height, top=1 - 0.75 / height)
    return figure, axes


def _methods_of(
    records: Iterable[RunRecord], labels: Mapping[str, str] | None
) -> list[tuple[int, str, list[RunRecord]]]:
    """Place, label and runs of each method that trains.

    The place comes from ``labels``, so that a method keeps its look when others are left out.
    """
    groups = [group for group in grouped(records, labels) if group[0] not in CONTROLS]
    named = [name for name in labels or () if name not in CONTROLS]
    order = {name: place for place, name in enumerate(dict.fromkeys([*named, *(name for name, *_ in groups)]))}
    return [(order[name], label, runs) for name, label, runs in groups]


def method_look(place: int) -> tuple[str, str, str | tuple[float, ...]]:
    """Colour, marker and dashes; 13 methods have their own colour."""
    return COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)], DASHES[place % len(DASHES)]


def _linestyle(dashes: str | tuple[float, ...]) -> str | tuple[float, tuple[float, ...]]:
    return "-" if isinstance(dashes, str) else (0, dashes)


def _levels(records: Sequence[RunRecord], labels: Mapping[str, str] | None, score: str) -> list[_Level]:
    """The controls' accuracies; their test accuracy where the wanted score is not in the record."""
    levels = []
    for row, (_, label, runs) in zip(rows(records, labels), grouped(records, labels), strict=True):
        scored = [run.scores for run in finished(runs) if run.scores]
        if not row.control or not scored:
            continue
        own = [scores[score] for scores in scored if score in scores]
        test = [scores["test_accuracy"] for scores in scored if "test_accuracy" in scores]
        values = own or test
        if values:
            levels.append(_Level(label if own else f"{label} (test)", 100 * sum(values) / len(values)))
    return levels


def _accuracy_axis(axes: Axes, name: str, values: Sequence[float], levels: Sequence[_Level]) -> None:
    everything = [*values, *(level.accuracy for level in levels)]
    low, high = min(everything), max(everything)
    margin = max(1.0, 0.05 * (high - low))
    axes.set_ylim(max(0.0, low - margin), min(100.0 + margin / 2, high + margin))
    axes.set_ylabel(name)
    axes.grid(axis="y")
    for level in levels:
        axes.axhline(level.accuracy, color=MUTED, lw=1.2, ls=(0, (1, 2)), zorder=1.5)


def _right_labels(axes: Axes, ends: Sequence[tuple[float, str, int]], levels: Sequence[_Level]) -> None:
    """A column of labels right of the axes, each as near to its height as the others allow."""
    items: list[tuple[float, str, int | None]] = [
        *ends,
        *((level.accuracy, level.label, None) for level in levels),
    ]
    items.sort(key=lambda item: item[0])
    low, high = axes.get_ylim()
    height_pt = axes.figure.get_figheight() * 72 * axes.get_position().height
    heights = spread_out([y for y, _, _ in items], 13.5 * (high - low) / height_pt, low, high)
    across = axes.get_yaxis_transform()
    for (y, label, place), at in zip(items, heights, strict=True):
        if place is None:
            axes.plot([1.0, 1.035], [y, at], color=MUTED, lw=0.9, ls=(0, (1, 2)), transform=across, clip_on=False)
            axes.text(1.045, at, f"{label} {y:.1f}", color=MUTED, va="center", fontsize=9, transform=across)
            continue
        color, marker, dashes = method_look(place)
        axes.plot(
            [1.02, 1.05, 1.08], [at] * 3, color=color, lw=1.8, ls=_linestyle(dashes), marker=marker, markevery=[1],
            ms=6, mec=PAPER, mew=0.7, transform=across, clip_on=False,
        )  # fmt: skip
        axes.text(1.095, at, f"{label} {y:.1f}", va="center", fontsize=9.5, transform=across)


def spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least ``gap`` apart that are nearest to the wanted ones, in the least-squares sense.

    With p_i = q_i + i gap the distances become q_(i+1) >= q_i: an isotonic regression of ``wanted_i - i gap``,
    solved by pooling neighbours that are in the wrong order.

    Args:
        wanted: in ascending order.
        gap: least distance.
        low: lower limit.
        high: upper limit; where the places do not fit, they start at ``low`` and go beyond it.
    """
    pools: list[tuple[float, int]] = []
    for i, value in enumerate(wanted):
        pools.append((value - i * gap, 1))
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    means = [mean for mean, n in pools for _ in range(n)]
    # clipping the answer without limits gives the answer within limits
    highest = max(low, high - (len(wanted) - 1) * gap)
    return [min(max(mean, low), highest) + i * gap for i, mean in enumerate(means)]


def _seeds_subtitle(records: Sequence[RunRecord], mark: str = "band") -> str:
    task, backbone = records[0].task.name, records[0].backbone.name
    seeds = len({run.seed for run in records if run.method not in CONTROLS})
    spread = f"mean of {seeds} seeds, {mark}: lowest to highest" if seeds > 1 else "one seed"
    return f"{Path(backbone).name} on {task}; {spread}"


def titles(axes: Axes, title: str, subtitle: str, extra_pt: float = 0.0) -> None:
    top = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(title, (0, 1), xytext=(0, 25 + extra_pt), fontsize=13, fontweight="bold", **top)
    axes.annotate(subtitle, (0, 1), xytext=(0, 9 + extra_pt), fontsize=9.5, color=MUTED, **top)


def _mib(n_bytes: float) -> str:
    mib = n_bytes / MIB
    return f"{mib:,.1f}" if mib < 100 else f"{mib:,.0f}"


def _methods(n: int) -> str:
    return "1 method" if n == 1 else f"{n} methods"
