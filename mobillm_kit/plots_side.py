"""Figures of the side network and of streaming: what each layer contributes, and memory over time.

Knows: numbers and the look of all figures.  Knows nothing of: models, processes.

Taught in: notebooks/06_side_network.ipynb
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from mobillm_kit.errors import BadInput
from mobillm_kit.plots import INK, canvas, method_look, styled, titles

Shares = Mapping[str, Sequence[float]]
"""Per label, a share for each layer 1 .. L."""

Samples = Mapping[str, Sequence[float]]
"""Per label, resident memory in MiB, one sample after the other."""


def layer_shares(shares: Shares, subtitle: str = "") -> Figure:
    """Bars per layer: how much of each tapped activation is in the side network's last state.

    Args:
        shares: per label one number for each layer.
        subtitle: of which model.

    Raises:
        BadInput: nothing to draw.
    """
    return styled(_layer_shares)(_given(shares), subtitle)


def layer_shares_alt(shares: Shares) -> str:
    """The same in words."""
    parts = [f"{label} {', '.join(f'{100 * share:.0f} %' for share in found)}" for label, found in shares.items()]
    return f"Bars, share of each layer from the first to the last: {'; '.join(parts)}."


def memory_over_time(samples: Samples, interval_s: float, subtitle: str = "") -> Figure:
    """One line per way: memory above that at the start, sample by sample.

    Args:
        samples: per label, MiB every ``interval_s``.
        interval_s: seconds between two samples.
        subtitle: of which model.

    Raises:
        BadInput: nothing to draw.
    """
    return styled(_memory_over_time)(_given(samples), interval_s, subtitle)


def memory_over_time_alt(samples: Samples) -> str:
    """The same in words, to the nearest 10 MiB."""
    parts = [f"{label} rises by {10 * round((max(found) - found[0]) / 10)} MiB" for label, found in samples.items()]
    return f"Lines of memory over time: {', '.join(parts)}."


def _given(drawn: Mapping[str, Sequence[float]]) -> Mapping[str, Sequence[float]]:
    if not drawn or not all(len(values) for values in drawn.values()):
        raise BadInput("There is nothing to draw.", "Give at least one number for each label.")
    return drawn


def _layer_shares(shares: Shares, subtitle: str) -> Figure:
    figure, axes = canvas(7.2, 3.6)
    width = 0.8 / len(shares)
    for place, (label, found) in enumerate(shares.items()):
        color, _, _ = method_look(place)
        left = [layer + (place - (len(shares) - 1) / 2) * width for layer in range(1, len(found) + 1)]
        bars = axes.bar(left, [100 * share for share in found], 0.92 * width, color=color, label=label)
        axes.bar_label(bars, fmt="%.0f", fontsize=8, color=INK, padding=1)
    axes.set_xticks(range(1, max(map(len, shares.values())) + 1))
    axes.set_xlabel("layer")
    axes.set_ylabel("%")
    axes.legend(loc="upper left")
    titles(axes, "What each layer contributes to the side's state", subtitle)
    return figure


def _memory_over_time(samples: Samples, interval_s: float, subtitle: str) -> Figure:
    figure, axes = canvas(7.2, 3.8)
    for place, (label, found) in enumerate(samples.items()):
        color, _, dashes = method_look(place)
        style = "-" if dashes == "" else (0, dashes)
        times = [interval_s * number for number in range(len(found))]
        above = [mib - found[0] for mib in found]
        axes.plot(times, above, color=color, linestyle=style, linewidth=1.6, label=label)
    axes.legend(loc="upper left")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(axis="y")
    axes.set_xlabel("seconds")
    axes.set_ylabel("MiB")
    titles(axes, "Memory above that at the start", subtitle)
    return figure
