"""Figures of a run across a link: who worked when.

Knows: timelines.  Knows nothing of: how they were made, sockets.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence

from mobillm_kit.errors import BadInput
from mobillm_kit.plots import COLORS, INK, MUTED, Axes, Figure, Patch, canvas, styled, titles
from mobillm_kit.record import Span

ROWS = ("device", "link", "server")
STAGES = {
    "forward": ("device", COLORS[0]),
    "encode": ("device", COLORS[5]),
    "send": ("link", COLORS[2]),
    "decode": ("server", COLORS[1]),
    "train": ("server", COLORS[8]),
}
"""Row and colour of each stage; a batch that waits in the server's queue occupies nobody."""

ROW_HEIGHT = 0.62
NUMBERED_SHARE = 0.02
"""Bars at least this share of the axis wide carry their step's number."""


@styled
def gantt(spans: Sequence[Span], first: int = 8, steps: int = 8) -> Figure:
    """When device, link and server worked on which step.

    Args:
        spans: of a run's record.
        first: the picture begins with this step's forward; the first ones of a run are not its steady state.
        steps: it ends so many forwards later.  What the link and the server do meanwhile belongs to earlier steps.

    Raises:
        BadInput: no spans of those steps.
    """
    begin, end = _window(spans, first, steps)
    shown = cut(spans, begin, end)
    figure, axes = canvas(7.6, 2.9)
    for span in shown:
        _bar(axes, span, begin, end)
    axes.set_yticks(range(len(ROWS)), ROWS)
    axes.set_ylim(len(ROWS) - 0.5, -0.6)
    axes.set_xlim(0, (end - begin) * 1e3)
    axes.set_xlabel("milliseconds since the first step shown")
    axes.tick_params(axis="y", length=0)
    _legend(axes, {span.stage for span in shown})
    titles(axes, "Device, link and server work at the same time", f"numbers are steps; {busy_text(shown, begin, end)}")
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
    """Share of a time in which each row works on something; the slowest stage is the one near 1."""
    worked: dict[str, list[tuple[float, float]]] = {row: [] for row in ROWS}
    for span in cut(spans, begin, end):
        worked[STAGES[span.stage][0]].append((span.start_s, span.start_s + span.seconds))
    return {row: _covered(intervals) / (end - begin) for row, intervals in worked.items()}


def gantt_alt(spans: Sequence[Span], first: int = 8, steps: int = 8) -> str:
    """One sentence that says what :func:`gantt` shows."""
    begin, end = _window(spans, first, steps)
    return f"Timeline of steps {first} to {first + steps - 1}: {busy_text(spans, begin, end)}."


def busy_text(spans: Sequence[Span], begin: float, end: float) -> str:
    return ", ".join(f"{row} busy {share:.0%}" for row, share in busy(spans, begin, end).items())


def _window(spans: Sequence[Span], first: int, steps: int) -> tuple[float, float]:
    """From the first forward shown to the one after the last; to the end of all where there is none."""
    begun = {span.step: span.start_s for span in spans if span.stage == "forward"}
    if first not in begun:
        raise BadInput(f"There are no spans of steps {first} to {first + steps - 1}.", "Show steps that were run.")
    end = max(span.start_s + span.seconds for span in spans)
    return begun[first], begun.get(first + steps, end)


def _covered(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of a union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _bar(axes: Axes, span: Span, begin: float, end: float) -> None:
    row, color = STAGES[span.stage]
    place = ROWS.index(row)
    left, width = (span.start_s - begin) * 1e3, span.seconds * 1e3
    axes.barh(place, width, left=left, height=ROW_HEIGHT, color=color, edgecolor="white", linewidth=0.6)
    if span.stage in ("forward", "send", "train") and span.seconds > NUMBERED_SHARE * (end - begin):
        axes.text(left + width / 2, place, str(span.step), ha="center", va="center", fontsize=8, color="white")


def _legend(axes: Axes, stages: set[str]) -> None:
    handles = [Patch(color=STAGES[stage][1], label=stage) for stage in STAGES if stage in stages]
    axes.legend(
        handles=handles,
        ncols=len(handles),
        loc="upper center",
        bbox_to_anchor=(0.5, -0.24),
        labelcolor=INK,
        fontsize=9,
        handlelength=1.2,
    )
    axes.spines["left"].set_color(MUTED)
