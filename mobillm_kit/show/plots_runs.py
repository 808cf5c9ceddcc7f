"""Charts of runs: accuracy as training goes on, accuracy against memory, who worked when.

One message per chart; the controls stand in each that has an axis of accuracy.

Knows: run records and their timelines.  Knows nothing of: how they were made, pages, widgets.
Taught in: notebooks/08_device_and_server.ipynb, notebooks/09_comparison.ipynb
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

import numpy as np

from mobillm_kit.common import MIB
from mobillm_kit.errors import BadInput
from mobillm_kit.methods import CONTROLS, LABELS
from mobillm_kit.record import CurvePoint, RunRecord, Span
from mobillm_kit.show import chart
from mobillm_kit.show.chart import Axes, Chart, styled
from mobillm_kit.show.tables import MB, finished, grouped, ledger, measured_mib

Clock = Literal["step", "forwards", "seconds", "bytes"]
Memory = Literal["counted", "measured"]
MEMORIES: tuple[Memory, ...] = get_args(Memory)

CLOCKS: Mapping[Clock, tuple[str, str, Callable[[CurvePoint], float]]] = {
    "step": ("with the optimizer's steps", "optimizer steps", lambda point: point.step),
    "forwards": ("with samples forwarded", "samples passed through the backbone", lambda point: point.forwards),
    "seconds": ("with time", "seconds of training", lambda point: point.seconds),
    "bytes": ("with data sent", "sent by the device, MB", lambda point: point.bytes_sent / MB),
}

STAGES = {
    "forward": ("device", chart.COLORS[0]),
    "encode": ("device", chart.COLORS[5]),
    "send": ("link", chart.COLORS[2]),
    "decode": ("server", chart.COLORS[1]),
    "train": ("server", chart.COLORS[8]),
}
"""Party and colour of each stage; a batch that waits in the server's queue occupies nobody."""

PARTIES = ("device", "link", "server")
SETS_THE_PACE = 0.5
"""Share of the time from which on a party that works is what the others wait for."""
NUMBERED_SHARE = 0.02
"""Bars at least this share of the axis wide carry their step's number."""


@styled
def convergence(records: Iterable[RunRecord], x: Clock = "step") -> Chart:
    """Dev accuracy of each method as training goes on: mean of the seeds, band from the lowest to the highest.

    ``x`` is what the horizontal axis counts; with ``bytes`` a method that sends nothing is a level, like a control.
    """
    records = list(records)
    lines, silent = _lines(records, x)
    levels = [*_levels(records, "dev_accuracy"), *((line.end, line.label, None) for line in silent)]
    best, worst = (choose(lines, key=lambda line: line.end) for choose in (max, min))
    low, high = (f"{line.end:.1f} % ({line.label})" for line in (worst, best))
    ends = f"they end between {low} and {high}" if len(lines) > 1 else f"it ends at {high}"
    factor = _factor(lines) if x == "bytes" else ""
    reached = "".join(f"; {line.label}, which sends nothing, reaches {line.end:.1f} %" for line in silent)
    grows, x_label, _ = CLOCKS[x]
    figure, axes = chart.canvas(
        9.0, 5.2, f"How accuracy grows {grows}", _seeds_subtitle(records) + factor,
        f"Lines of dev accuracy against {x_label} for {len(lines)} method{'s' * (len(lines) > 1)}: "
        f"{ends}{reached}{factor}.",
        right=0.735,
    )  # fmt: skip
    for line in lines:
        chart.mean_and_band(axes, line.points, chart.method_look(line.place))
    _time_axis(axes, lines)
    axes.set_xlabel(x_label)
    _accuracy_axis(axes, "dev accuracy, %", [y for line in lines for _, y in line.points], levels, least=10)
    chart.label_ends(axes, [*((line.end, line.label, chart.method_look(line.place)) for line in lines), *levels])
    return figure


@dataclass(frozen=True)
class _Line:
    label: str
    place: int
    """Decides colour, marker and dashes."""
    points: tuple[tuple[float, float], ...]
    """x (mean of the seeds at a step) and accuracy in percent, one pair per step and seed."""
    end: float
    """Mean accuracy of the last step, percent."""


def _lines(records: Sequence[RunRecord], x: Clock) -> tuple[list[_Line], list[_Line]]:
    """Those to draw, and apart from them, where bytes are counted, those of methods that send nothing."""
    if x not in CLOCKS:
        raise BadInput(f"x={x!r} is not one of {', '.join(CLOCKS)}.")
    lines, silent = list[_Line](), list[_Line]()
    for place, label, runs in _trained(records):
        if done := [run for run in runs if run.curve]:
            sends = x != "bytes" or any(run.bytes_sent for run in done)
            (lines if sends else silent).append(_line(label, place, done, CLOCKS[x][2]))
    if not lines:
        reason = "has sent a byte" if x == "bytes" else "has a curve"
        raise BadInput(f"No finished record {reason}.", "Choose another x, or run a method that has one.")
    return lines, silent


def _factor(lines: Sequence[_Line]) -> str:
    """How much less the thriftiest method sends than the one that sends most."""
    least, most = (choose(lines, key=lambda line: line.points[-1][0]) for choose in (min, max))
    times = most.points[-1][0] / (least.points[-1][0] or math.inf)  # no step that all seeds have sent at: no factor
    return f"; {least.label} sends {times:.0f} times less than {most.label}" if times > 1.5 else ""


def _line(label: str, place: int, runs: Sequence[RunRecord], clock: Callable[[CurvePoint], float]) -> _Line:
    # a seed that stopped early would bend the mean where it leaves: only steps that all seeds have
    steps = sorted(set.intersection(*({point.step for point in run.curve} for run in runs)))
    by_step = {step: [next(p for p in run.curve if p.step == step) for run in runs] for step in steps}
    pairs = [(fmean(map(clock, points)), 100 * point.dev_accuracy) for points in by_step.values() for point in points]
    last = [accuracy for _, accuracy in pairs[-len(runs) :]]
    return _Line(label, place, tuple(pairs), fmean(last))


def _time_axis(axes: Axes, lines: Sequence[_Line]) -> None:
    """From 0; logarithmic after the first point where the methods' ends lie too far apart for one linear axis."""
    values = [x for line in lines for x, _ in line.points if x > 0]
    ends = [max(x for x, _ in line.points) for line in lines]
    ticks = None
    if values and max(ends) > 6 * min(end for end in ends if end > 0):
        axes.set_xscale("symlog", linthresh=min(values), linscale=0.35)
        exponents = range(math.ceil(math.log10(min(values))), math.floor(math.log10(max(values))) + 1)
        ticks = [0, *(10.0**exponent for exponent in exponents)]
    chart.plain_numbers(axes.xaxis, ticks)
    axes.set_xlim(left=0)


@styled
def pareto(records: Iterable[RunRecord], memory: Memory = "counted") -> Chart:
    """Test accuracy against memory on the device; methods that no other beats in both are joined by a line.

    Memory that is ``counted`` is the ledger's total, ``measured`` the peak on top of the loaded model.
    """
    records = list(records)
    points, levels = _points(records, memory), _levels(records, "test_accuracy")
    front = pareto_front(points)
    named = "; ".join(f"{point.label} ({point.memory_mib:,.0f} MiB, {point.accuracy:.1f} %)" for point in front)
    figure, axes = chart.canvas(
        9.0, 5.2, "Accuracy against memory: up and to the left is better",
        f"{_seeds_subtitle(records, 'bar')}; line: no method is better in both",
        f"Points of test accuracy against {memory} memory on the device for {len(points)} "
        f"method{'s' * (len(points) > 1)}; no method is better in both than: {named}.",
        right=0.80,
    )  # fmt: skip
    stairs: dict[str, Any] = {"color": chart.MUTED, "lw": 1.4, "drawstyle": "steps-post", "zorder": 2}
    axes.plot([p.memory_mib for p in front], [p.accuracy for p in front], **stairs)
    for number, point in enumerate(points):
        color, marker, _ = chart.method_look(point.place)
        axes.plot([point.memory_mib] * 2, [point.lowest, point.highest], color=color, lw=1.6, zorder=3)
        size = 85 * (1 + 2 * sum(map(point.beside, points[number + 1 :])))  # it looks out behind those drawn over it
        look: dict[str, Any] = {"color": color, "marker": marker, "s": size, "edgecolor": chart.PAPER, "linewidth": 0.9}
        axes.scatter([point.memory_mib], [point.accuracy], zorder=4, **look)
    _memory_axis(axes, [point.memory_mib for point in points])
    what = "counted, weights included" if memory == "counted" else "measured peak on top of the loaded model"
    axes.set_xlabel(f"device memory, MiB: {what}")
    _accuracy_axis(axes, "test accuracy, %", [y for p in points for y in (p.lowest, p.highest)], levels)
    _stretch_the_top(axes)
    chart.label_ends(axes, levels)
    chart.label_points(axes, [(p.memory_mib, p.accuracy, p.label) for p in points], _strokes(points, front))
    return figure


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

    def beside(self, other: "Point") -> bool:
        """Whether their markers would cover each other."""
        return abs(self.accuracy - other.accuracy) < 0.3 and abs(math.log(self.memory_mib / other.memory_mib)) < 0.06


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Points that no other beats or equals in both memory and accuracy (the first of equals), from the least memory."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.memory_mib, -point.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def _points(records: Sequence[RunRecord], memory: Memory) -> list[Point]:
    if memory not in MEMORIES:
        raise BadInput(f"memory={memory!r} is neither 'counted' nor 'measured'.")
    points = []
    for place, label, runs in _trained(records):
        done = [run for run in runs if "test_accuracy" in run.scores]
        counted = ledger(done, "device")
        of_ledger = [counted.total_bytes / MIB] if counted else []
        mib = of_ledger if memory == "counted" else measured_mib(done, "device")
        if mib:
            scores = [100 * run.scores["test_accuracy"] for run in done]
            points.append(Point(label, place, fmean(mib), fmean(scores), min(scores), max(scores)))
    if not points:
        raise BadInput(f"No finished record has a test accuracy and {memory} memory.")
    return points


def _memory_axis(axes: Axes, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    if low > 0 and high / low > 4:
        axes.set_xscale("log")
        chart.plain_numbers(axes.xaxis, [m * 10.0**e for e in range(-1, 7) for m in (1, 2, 5)])
        # room on both sides for labels
        axes.set_xlim(low / 1.9, high * 1.6)
    else:
        span = (high - low) or high or 1.0
        chart.plain_numbers(axes.xaxis)
        axes.set_xlim(max(0.0, low - 0.2 * span), high + 0.25 * span)


def _strokes(points: Sequence[Point], front: Sequence[Point]) -> list[chart.Bbox]:
    """What labels keep clear of beside the markers: bars of the seeds, the stairs of the Pareto line."""
    boxes = [chart.Bbox([[p.memory_mib, p.lowest], [p.memory_mib, p.highest]]) for p in points]
    for a, b in pairwise(front):
        boxes.append(chart.Bbox([[a.memory_mib, a.accuracy], [b.memory_mib, a.accuracy]]))
        boxes.append(chart.Bbox([[b.memory_mib, a.accuracy], [b.memory_mib, b.accuracy]]))
    return boxes


def _trained(records: Sequence[RunRecord]) -> list[tuple[int, str, list[RunRecord]]]:
    """Place, label and finished runs of each method that trains.

    The place comes from the table of methods, so that a method keeps its look when others are left out.
    """
    groups = [group for group in grouped(records) if group[0] not in CONTROLS]
    order = [*LABELS, *(name for name, *_ in groups)]
    return [(order.index(name), label, finished(runs)) for name, label, runs in groups]


def _levels(records: Sequence[RunRecord], score: str) -> list[tuple[float, str, None]]:
    """The controls' accuracies, percent, and labels; test accuracy where the wanted score is not in the record."""
    levels = []
    for name, label, runs in grouped(records):
        scored = [run.scores for run in finished(runs)]
        own = [scores[score] for scores in scored if score in scores]
        values = own or [scores["test_accuracy"] for scores in scored if "test_accuracy" in scores]
        if name in CONTROLS and values:
            levels.append((100 * fmean(values), label if own else f"{label} (test)", None))
    return levels


def _accuracy_axis(
    axes: Axes, name: str, values: Sequence[float], levels: Sequence[tuple[float, str, None]], least: float = 0
) -> None:
    """From the lowest to the highest accuracy, but never fewer than ``least`` points: one text must look like one."""
    everything = [*values, *(level for level, *_ in levels)]
    low, high = min(everything), max(everything)
    margin = max(1.0, 0.1 * (high - low), (least - high + low) / 2)  # room for labels, also above 100 %
    axes.set_ylim(max(0.0, low - margin), high + margin)
    axes.set_yticks([tick for tick in axes.get_yticks() if low - margin <= tick <= min(100.0, high + margin)])
    axes.set_ylabel(name)
    axes.grid(axis="y")
    for level, *_ in levels:
        axes.axhline(level, color=chart.MUTED, lw=1.2, ls=(0, (1, 2)), zorder=1.5)


def _stretch_the_top(axes: Axes) -> None:
    """Let an accuracy a, percent, stand at -log(102 - a): the nearer to 100, the more a point counts."""
    low, high = axes.get_ylim()
    axes.set_yscale("function", functions=(lambda a: -np.log(102 - np.minimum(a, 101.8)), lambda y: 102 - np.exp(-y)))
    axes.set_ylim(low, min(high, 100.4))
    ticks = [tick for tick in (0, 20, 40, 50, 60, 70, 80, 85, 90, 95, 97, 98, 99, 100) if low <= tick <= high]
    chart.plain_numbers(axes.yaxis, ticks)


def _seeds_subtitle(records: Sequence[RunRecord], mark: str = "band") -> str:
    task, backbone = records[0].task.name, records[0].backbone.name
    seeds = len({run.seed for run in records if run.method not in CONTROLS})
    spread = f"mean of {seeds} seeds, {mark}: lowest to highest" if seeds > 1 else "one seed"
    return f"{Path(backbone).name} on {task}; {spread}"


@styled
def gantt(spans: Sequence[Span], first: int = 8, steps: int = 8, whose: str = "measured here") -> Chart:
    """When device, link and server worked on which step, from the forward of step ``first`` on for ``steps`` forwards.

    Its title says which of them was busy longest, its subtitle ``whose`` seconds these are.
    The first steps of a run are not its steady state. What link and server do meanwhile belongs to earlier steps.
    """
    begin, end = _window(spans, first, steps)
    shown = cut(spans, begin, end)
    found = busy(shown, begin, end)
    shares = ", ".join(f"{party} busy {share:.0%}" for party, share in found.items())
    slowest = max(found, key=lambda party: found[party])
    title = f"The {slowest} sets the pace" if found[slowest] >= SETS_THE_PACE else "All of them wait most of the time"
    alt = f"Timeline of steps {first} to {first + steps - 1}, {whose}. {title}: {shares}."
    figure, axes = chart.canvas(7.6, 2.9, title, f"{whose}; numbers are steps; {shares}", alt, legend_above=True)
    for span in shown:
        _span_bar(axes, span, begin, end)
    axes.set_yticks(range(len(PARTIES)), PARTIES)
    axes.set(ylim=(len(PARTIES) - 0.5, -0.6), xlim=(0, (end - begin) * 1e3))
    axes.set_xlabel("milliseconds since the first step shown")
    axes.tick_params(axis="y", length=0)
    present = {span.stage for span in shown}
    keys = [chart.Patch(color=color, label=stage) for stage, (_, color) in STAGES.items() if stage in present]
    chart.legend_above(axes, keys)
    return figure


def cut(spans: Sequence[Span], begin: float, end: float) -> list[Span]:
    """What of the spans lies between two moments, in seconds; a batch that waits in a queue is left out."""
    found = []
    for span in spans:
        left, right = max(span.start_s, begin), min(span.start_s + span.seconds, end)
        if span.stage in STAGES and left < right:
            found.append(Span(stage=span.stage, step=span.step, start_s=left, seconds=right - left))
    return found


def busy(spans: Sequence[Span], begin: float, end: float) -> dict[str, float]:
    """Share of a time in which each party works on something; the slowest stage is the one near 1."""
    worked, reached = dict.fromkeys(PARTIES, 0.0), dict.fromkeys(PARTIES, begin)
    for span in sorted(cut(spans, begin, end), key=lambda span: (span.start_s, span.seconds)):
        party, stop = STAGES[span.stage][0], span.start_s + span.seconds
        worked[party] += max(0.0, stop - max(span.start_s, reached[party]))  # what two spans share counts once
        reached[party] = max(reached[party], stop)
    return {party: seconds / (end - begin) for party, seconds in worked.items()}


def _window(spans: Sequence[Span], first: int, steps: int) -> tuple[float, float]:
    """From the first forward shown to the one after the last; to the end of all where there is none."""
    begun = {span.step: span.start_s for span in spans if span.stage == "forward"}
    if first not in begun:
        raise BadInput(f"There are no spans of steps {first} to {first + steps - 1}.", "Show steps that were run.")
    end = max(span.start_s + span.seconds for span in spans)
    return begun[first], begun.get(first + steps, end)


def _span_bar(axes: Axes, span: Span, begin: float, end: float) -> None:
    party, color = STAGES[span.stage]
    place = PARTIES.index(party)
    left, width = (span.start_s - begin) * 1e3, span.seconds * 1e3
    axes.barh(place, width, left=left, height=0.62, color=color, edgecolor=chart.PAPER, linewidth=0.6)
    if span.stage in ("forward", "send", "train") and span.seconds > NUMBERED_SHARE * (end - begin):
        axes.text(left + width / 2, place, str(span.step), ha="center", va="center", fontsize=8, color=chart.ON_DARK)
