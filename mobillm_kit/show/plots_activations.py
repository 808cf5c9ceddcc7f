"""Charts of activations: channels that stand out, what codecs do to them, what each layer gives, what a defence costs.

Knows: tensors and codecs.  Knows nothing of: models, training, widgets.
Taught in: notebooks/06_side_network.ipynb, 07_quantized_activations.ipynb, 11_what_the_server_sees.ipynb
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mobillm_kit.errors import BadInput
from mobillm_kit.quant import Codec, codec
from mobillm_kit.show import chart
from mobillm_kit.show.chart import Axes, Chart, styled

_COLORS = {"fp32": 7, "fp16": 7, "bf16": 7, "fp8": 4, "int8": 0, "int4": 1, "nf4": 2, "fp4": 3, "int2": 8, "sign": 6}


def relative_error(coder: Codec, x: Tensor) -> float:
    """``|x - x'| / |x|``, Euclidean norms over the whole tensor."""
    x = x.float()
    return ((_through(coder, x) - x).norm() / x.norm()).item()


def bits_per_value(coder: Codec, width: int) -> float:
    """Sent per activation, scales counted."""
    return 8 * coder.wire_bytes((1, width)) / width


def token_with_outlier(x: Tensor, rank: float = 0.9) -> Tensor:
    """Of activations (N, d) the token (d,) whose outlier is larger than those of a share ``rank`` of the tokens."""
    absolute = x.float().abs()
    share = absolute.amax(dim=1) / absolute.median(dim=1).values.clamp_min(torch.finfo(torch.float32).tiny)
    return x[share.argsort()[min(int(rank * len(share)), len(share) - 1)]]


def lost(x: Tensor, coder: Codec) -> str:
    """What a codec does to one token (d,), in words: channels that become zero, relative error, bytes."""
    small = ((_through(coder, x.unsqueeze(0))[0] == 0) & (x != 0)).sum().item()
    error = relative_error(coder, x.unsqueeze(0))
    return f"{small} of {len(x)} channels became zero; relative error {error:.3f}; {coder.wire_bytes((len(x),))} bytes"


def _through(coder: Codec, x: Tensor) -> Tensor:
    return coder.decode(coder.encode(x), tuple(x.shape))


@styled
def channels(x: Tensor, top: int = 3) -> Chart:
    """Root mean square of each channel of activations (N, d), the ``top`` largest ones marked by number."""
    rms = x.float().square().mean(dim=0).sqrt()
    largest = rms.topk(top).indices.tolist()
    highest, median = rms.max().item(), rms.median().item()
    figure, axes = chart.canvas(
        7.6, 3.1, "A few channels are much larger than the rest", f"the largest is {highest / median:.1f} medians",
        f"Bars of the root mean square of {len(rms)} channels: the largest, channel {rms.argmax().item()}, "
        f"is {highest / median:.1f} times the median.",
        right=0.9,
    )  # fmt: skip
    colors = [chart.COLORS[8] if place in largest else chart.COLORS[0] for place in range(len(rms))]
    axes.bar(range(len(rms)), rms.tolist(), 1.0, color=colors, linewidth=0)
    axes.axhline(median, color=chart.INK, lw=1.0, ls="--")
    axes.text(len(rms), median, " median", va="center", fontsize=9, color=chart.INK)
    for place in largest:
        at = (place, rms[place].item())
        axes.annotate(str(place), at, (0, 2), textcoords="offset points", ha="center", fontsize=9)
    axes.set(xlim=(-1, len(rms)), ylim=(0, 1.12 * highest), xlabel="channel", ylabel="root mean square")
    return figure


@styled
def error_against_size(x: Tensor, names: Sequence[str], groups: Sequence[int] = (0, 64, 32)) -> Chart:
    """Relative error of each codec on activations (N, d) against what a value costs, one point per group.

    A group says how many values share a scale; 0 is one scale per token, the open marker.
    """
    lines = {}
    for name in names:
        coders = [codec(name, group) for group in groups] if codec(name, 0).has_scales else [codec(name)]
        lines[name] = [(bits_per_value(coder, x.shape[-1]), relative_error(coder, x)) for coder in coders]
    spans = ", ".join(str(group) if group else "a token (open)" for group in groups)
    ends = ", ".join(f"{name} {points[-1][1]:.3f} at {points[-1][0]:.2f} bits" for name, points in lines.items())
    figure, axes = chart.canvas(
        7.6, 4.3, "Fewer bits, larger error; finer scales help", f"values per scale, from left: {spans}",
        f"Lines of relative error against bits per value; with the finest scales: {ends}.", left=0.12,
    )  # fmt: skip
    for place, (name, points) in enumerate(lines.items()):
        sizes, errors = zip(*points, strict=True)
        look: dict[str, Any] = {"color": chart.COLORS[_COLORS[name]], "marker": chart.MARKERS[place], "ms": 6}
        axes.plot(sizes, errors, lw=1.4, **look)
        axes.plot(sizes[:1], errors[:1], mfc=chart.PAPER, lw=0, **look)
    axes.set_yscale("log")
    chart.plain_numbers(axes.yaxis)
    _bits_axis(axes, 0.9, 25)
    axes.grid(axis="both")
    axes.set_ylabel("relative error")
    chart.label_points(axes, [(*points[-1], name) for name, points in lines.items()])
    return figure


@styled
def one_token(x: Tensor, coder: Codec) -> Chart:
    """The channels of one token (d,) before and after a codec."""
    words = lost(x, coder)
    alt = f"Channels of one token before and after {coder}: {words}."
    figure, axes = chart.canvas(7.6, 3.4, str(coder), words, alt)
    places = range(len(x))
    axes.bar(places, x.tolist(), 1.0, color=chart.COLORS[5], linewidth=0, label="before")
    axes.plot(places, _through(coder, x.unsqueeze(0))[0].tolist(), "o", ms=3.6, color=chart.COLORS[8], label="after")
    for border in range(coder.group, len(x), coder.group) if coder.group else ():
        axes.axvline(border - 0.5, color=chart.MUTED, lw=0.8, ls=":")
    reach = 1.1 * x.abs().max().item()
    axes.set(xlim=(-1, len(x)), ylim=(-reach, reach), xlabel="channel")
    axes.legend(loc="upper right", ncols=2)
    return figure


@styled
def accuracy_by_bits(found: Mapping[str, float], width: int, controls: Mapping[str, float], group: int = 64) -> Chart:
    """Accuracy after training on activations of ``width`` channels that went through each codec.

    ``found`` is by codec, ``controls`` by name and drawn as lines, both 0..1; a scale is shared by ``group`` values.
    """
    if not found:
        raise BadInput("No accuracies to draw.", "Train at least once.")
    sizes = [bits_per_value(codec(name, group), width) for name in found]
    figure, axes = chart.canvas(
        7.6, 3.6, "Training puts up with coarse activations, up to a point", f"one scale per {group} values",
        f"Line of test accuracy against bits per value: {accuracies_in_order(found)}; "
        f"dashed: {accuracies_in_order(controls)}.",
    )  # fmt: skip
    heights = [100 * value for value in found.values()]
    axes.plot(sizes, heights, color=chart.COLORS[0], marker="o", ms=7, lw=1.4)
    for name, value in controls.items():
        axes.axhline(100 * value, color=chart.MUTED, lw=1.0, ls="--")
        axes.text(44, 100 * value, name, ha="right", va="bottom", fontsize=9, color=chart.MUTED)
    _bits_axis(axes, 1.1, 45)
    axes.set(ylim=(45, 104), ylabel="test accuracy, %")
    axes.grid(axis="y")
    chart.label_points(axes, list(zip(sizes, heights, found, strict=True)))
    return figure


@styled
def defence_costs(curves: Mapping[str, Sequence[tuple[str, float, float]]]) -> Chart:
    """Test accuracy against the share of tokens read back, both 0..1: per defence its settings, the weakest first."""
    points = [(name, *point) for name, settings in curves.items() for point in settings]
    words = ", ".join(f"{name} {setting} {read:.0%} at {accuracy:.0%}" for name, setting, read, accuracy in points)
    told = "What it costs to leave less to read", "up and to the left is better; lines start without a defence"
    figure, axes = chart.canvas(7.6, 4.3, *told, f"Lines of test accuracy against tokens read back: {words} accuracy.")
    for (name, settings), look in zip(curves.items(), map(chart.method_look, range(len(curves))), strict=True):
        reads, heights = ([100 * point[n] for point in settings] for n in (1, 2))
        axes.plot(reads, heights, label=name, color=look[0], marker=look[1], ls=look[2], ms=7, lw=1.4)
    axes.set(xlim=(0, 102), xlabel="tokens that a trained inverter reads back, %", ylabel="test accuracy, %")
    axes.grid(axis="both")
    axes.legend(loc="lower right")
    chart.label_points(axes, [(100 * x, 100 * y, text) for text, x, y in dict.fromkeys(point[1:] for point in points)])
    return figure


def _bits_axis(axes: Axes, low: float, high: float) -> None:
    axes.set_xscale("log", base=2)
    chart.plain_numbers(axes.xaxis, [bits for bits in (1, 2, 4, 8, 16, 32) if low <= bits <= high])
    axes.set(xlim=(low, high), xlabel="bits per value, scales counted")


def accuracies_in_order(found: Mapping[str, float]) -> str:
    """One line: what each codec's training came to."""
    return ", ".join(f"{name} {value:.0%}" for name, value in found.items())


@styled
def layer_shares(shares: Mapping[str, Sequence[float]], subtitle: str = "") -> Chart:
    """Bars per layer 1 .. L: which share, 0..1, of each tapped activation is in the side network's last state."""
    if not shares or not all(len(found) for found in shares.values()):
        raise BadInput("There is nothing to draw.", "Give at least one number for each label.")
    parts = [f"{label} {', '.join(f'{100 * share:.0f} %' for share in found)}" for label, found in shares.items()]
    alt = f"Bars, share of each layer from the first to the last: {'; '.join(parts)}."
    figure, axes = chart.canvas(7.2, 3.6, "What each layer contributes to the side's state", subtitle, alt)
    width = 0.8 / len(shares)
    for place, (label, found) in enumerate(shares.items()):
        left = [layer + (place - (len(shares) - 1) / 2) * width for layer in range(1, len(found) + 1)]
        heights, color = [100 * share for share in found], chart.method_look(place)[0]
        bars = axes.bar(left, heights, 0.92 * width, color=color, label=label)
        axes.bar_label(bars, fmt="%.0f", fontsize=8, color=chart.INK, padding=1)
    axes.margins(y=0.12)
    axes.set(xticks=range(1, max(map(len, shares.values())) + 1), xlabel="layer", ylabel="%")
    axes.legend(loc="best")
    return figure
