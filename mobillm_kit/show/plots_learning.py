"""Charts of learning while it goes on, and of many short runs at once.

Knows: numbers by step, and the look of a chart.  Knows nothing of: runs, widgets.
Taught in: notebooks/04_mezo.ipynb, notebooks/09_comparison.ipynb
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mobillm_kit.record import Scalar
from mobillm_kit.show import chart
from mobillm_kit.show.chart import Axes, Chart, styled

LUMA, HALF_BRIGHT = (0.299, 0.587, 0.114), 0.5
"""Of red, green and blue; and its value, 0..1, below which a cell's letters are light."""
CLIP_NATS = 0.2
"""A change of the loss from which on the map's colours no longer deepen."""


@styled
def progress_so_far(losses: Mapping[int, float], accuracies: Mapping[int, float]) -> Chart:
    """The training loss of each step so far, nats, and dev accuracies, 0..1, where they were measured."""
    last = f"loss {list(losses.values())[-1]:.2f} at step {max(losses)}" if losses else "no step yet"
    said = ", ".join(f"{value:.0%} at step {step}" for step, value in accuracies.items())
    alt = f"Line of the training loss by step: {last}. Dev accuracy: {said or 'not measured yet'}."
    figure, axes = chart.canvas(7.2, 3.4, "The loss so far", "one batch a step; at the dotted lines: dev accuracy", alt)
    axes.plot(list(losses), list(losses.values()), color=chart.COLORS[0], lw=1.4)
    for step, value in accuracies.items():
        axes.axvline(step, color=chart.MUTED, lw=0.8, ls=":")
        axes.annotate(f"{value:.0%}", (step, 1), xycoords=axes.get_xaxis_transform(), ha="center", va="top", fontsize=9)
    axes.set(xlabel="step", ylabel="training loss, nats", ylim=(0, None))
    return figure


@styled
def mezo_map(
    rates: Sequence[float], epsilons: Sequence[float], losses: Sequence[Sequence[Sequence[float]]], steps: int,
    chosen: tuple[float, float] | None = None,
) -> Chart:  # fmt: skip
    """Change of the dev loss, nats, by learning rate (across) and ε (down); the ``chosen`` cell is framed.

    ``losses`` are per ε and rate those of one run, the first before training, the last after ``steps``.
    """
    change = [[run[-1] - run[0] for run in row] for row in losses]
    cells = [(change[y][x], rate, eps) for y, eps in enumerate(epsilons) for x, rate in enumerate(rates)]
    least, rate, eps = min(cells)
    alt = f"Map of MeZO's dev loss after {steps} steps, minus before: lowest {least:+.2f} at η = {rate:g}, ε = {eps:g}."
    subtitle = f"dev loss after {steps} steps, minus before, nats; purple is better, orange worse than no training"
    figure, axes = chart.canvas(7.2, 3.8, "How far MeZO comes, by learning rate η and ε", subtitle, alt)
    texts = [[f"{value:+.2f}" for value in row] for row in change]
    coloured_cells(axes, change, texts, rates, epsilons, cmap="PuOr_r", vmin=-CLIP_NATS, vmax=CLIP_NATS)
    axes.set(xlabel="learning rate η", ylabel="ε")
    if chosen is not None:
        x, y = rates.index(chosen[0]), epsilons.index(chosen[1])
        frame = [(x + right - 0.5, y + down - 0.5) for right, down in ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))]
        axes.plot(*zip(*frame, strict=True), color=chart.ON_LIGHT, lw=2.5, clip_on=False)
    return figure


def coloured_cells(
    axes: Axes, values: Sequence[Sequence[float]], texts: Sequence[Sequence[str]], across: Sequence[Scalar],
    down: Sequence[Scalar], **colours: Any,
) -> None:  # fmt: skip
    """A cell per value, with its text, ``across`` and ``down`` named; one that is not a number has no colour."""
    shades = axes.imshow(values, aspect="auto", **colours).to_rgba(np.array(values))
    for y, row in enumerate(texts):
        for x, text in enumerate(row):
            dark = shades[y, x, 3] and shades[y, x, :3] @ LUMA < HALF_BRIGHT
            axes.text(x, y, text, ha="center", va="center", color=chart.ON_DARK if dark else chart.ON_LIGHT)
    for axis, names in ((axes.xaxis, across), (axes.yaxis, down)):
        axis.set_ticks(range(len(names)), [f"{name:g}" if isinstance(name, float) else str(name) for name in names])
    axes.grid(visible=False)
