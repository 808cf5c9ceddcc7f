"""Figures of activation codecs: channels that stand out, error against size, one token before and after, accuracy.

Knows: tensors and codecs.  Knows nothing of: models, training, widgets.

Taught in: notebooks/07_quantized_activations.ipynb
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mobillm_kit.errors import BadInput
from mobillm_kit.plots import COLORS, INK, MARKERS, MUTED, Axes, Figure, canvas, styled, titles
from mobillm_kit.quant import Codec, codec

_COLOR = {
    "fp32": COLORS[7], "fp16": COLORS[7], "bf16": COLORS[7], "fp8": COLORS[4], "int8": COLORS[0], "int4": COLORS[1],
    "nf4": COLORS[2], "fp4": COLORS[3], "int2": COLORS[8], "sign": COLORS[6],
}  # fmt: skip

_RISE = {"fp4": 7, "int4": -3, "nf4": -6, "sign": -12}
"""Points that a codec's label stands above its line, where neighbours would cover it."""


def relative_error(coder: Codec, x: Tensor) -> float:
    """``|x - x'| / |x|``, Euclidean norms over the whole tensor."""
    x = x.float()
    return ((coder.decode(coder.encode(x), x.shape) - x).norm() / x.norm()).item()


def bits_per_value(coder: Codec, width: int) -> float:
    """Sent per activation, scales counted."""
    return 8 * coder.wire_bytes((1, width)) / width


@styled
def channels(x: Tensor, top: int = 3) -> Figure:
    """Root mean square of each channel, the largest ones marked by number.

    Args:
        x: activations (N, d) of one layer.
        top: how many are marked.
    """
    rms = x.float().square().mean(dim=0).sqrt()
    largest = rms.topk(top).indices.tolist()
    median = rms.median().item()
    figure, axes = canvas(7.6, 3.1)
    colors = [COLORS[8] if place in largest else COLORS[0] for place in range(len(rms))]
    axes.bar(range(len(rms)), rms.tolist(), 1.0, color=colors, linewidth=0)
    axes.axhline(median, color=INK, lw=1.0, ls="--")
    axes.text(len(rms), median, " median", va="center", fontsize=9, color=INK)
    for place in largest:
        axes.annotate(
            str(place), (place, rms[place].item()), (0, 2), textcoords="offset points", ha="center", fontsize=9
        )
    axes.set_xlim(-1, len(rms))
    axes.set_ylim(0, 1.12 * rms.max().item())
    axes.set_xlabel("channel")
    axes.set_ylabel("root mean square")
    figure.subplots_adjust(right=0.9)
    titles(
        axes, "A few channels are much larger than the rest", f"the largest is {rms.max().item() / median:.1f} medians"
    )
    return figure


@styled
def error_against_size(x: Tensor, names: Sequence[str], groups: Sequence[int] = (0, 64, 32)) -> Figure:
    """Relative error of each codec against what a value costs, one point per group.

    Args:
        x: activations (N, d).
        names: codecs.
        groups: values per scale; 0 is one scale per token, the open marker.

    Raises:
        BadInput: groups that do not divide d.
    """
    figure, axes = canvas(7.6, 4.3)
    for place, name in enumerate(names):
        coders = [codec(name, group) for group in groups] if codec(name, 0).has_scales else [codec(name)]
        sizes = [bits_per_value(coder, x.shape[-1]) for coder in coders]
        errors = [relative_error(coder, x) for coder in coders]
        axes.plot(sizes, errors, color=_COLOR[name], marker=MARKERS[place], ms=6, lw=1.4)
        axes.plot(sizes[:1], errors[:1], color=_COLOR[name], marker=MARKERS[place], ms=6, mfc="white", lw=0)
        rise = _RISE.get(name, 0)
        axes.annotate(name, (sizes[-1], errors[-1]), (7, rise), textcoords="offset points", va="center", color=INK)
    axes.set_yscale("log")
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.set_xlim(0.9, 25)
    axes.grid(axis="both")
    axes.set_xlabel("bits per value, scales counted")
    axes.set_ylabel("relative error")
    figure.subplots_adjust(left=0.12)
    spans = ", ".join(str(group) if group else "a token (open)" for group in groups)
    titles(axes, "Fewer bits, larger error; finer scales help", f"values per scale, from left: {spans}")
    return figure


@styled
def one_token(x: Tensor, coder: Codec) -> Figure:
    """The channels of one token before and after a codec.

    Args:
        x: activations (d,) of one token.
        coder: what they go through.
    """
    back = coder.decode(coder.encode(x.unsqueeze(0)), (1, len(x)))[0]
    figure, axes = canvas(7.6, 3.4)
    places = range(len(x))
    axes.bar(places, x.tolist(), 1.0, color=COLORS[5], linewidth=0, label="before")
    axes.plot(places, back.tolist(), "o", ms=3.6, color=COLORS[8], label="after")
    if coder.group:
        for border in range(coder.group, len(x), coder.group):
            axes.axvline(border - 0.5, color=MUTED, lw=0.8, ls=":")
    reach = 1.1 * x.abs().max().item()
    axes.set_xlim(-1, len(x))
    axes.set_ylim(-reach, reach)
    axes.set_xlabel("channel")
    _legend(axes)
    titles(axes, str(coder), one_token_alt(x, coder))
    return figure


def one_token_alt(x: Tensor, coder: Codec) -> str:
    """One sentence that says what :func:`one_token` shows."""
    back = coder.decode(coder.encode(x.unsqueeze(0)), (1, len(x)))[0]
    small = ((back == 0) & (x != 0)).sum().item()
    error = relative_error(coder, x.unsqueeze(0))
    return f"{small} of {len(x)} channels became zero; relative error {error:.3f}; {coder.wire_bytes((len(x),))} bytes"


@styled
def accuracy(found: Mapping[str, float], width: int, controls: Mapping[str, float], group: int = 64) -> Figure:
    """Accuracy after training on activations that went through each codec.

    Args:
        found: accuracy by codec, 0..1.
        width: d.
        controls: accuracy by name, drawn as lines.
        group: values per scale.

    Raises:
        BadInput: nothing was found.
    """
    if not found:
        raise BadInput("No accuracies to draw.", "Train at least once.")
    sizes = [bits_per_value(codec(name, group), width) for name in found]
    figure, axes = canvas(7.6, 3.6)
    axes.plot(sizes, [100 * value for value in found.values()], color=COLORS[0], marker="o", ms=7, lw=1.4)
    for (name, value), size in zip(found.items(), sizes, strict=True):
        axes.annotate(name, (size, 100 * value), (12, -15), textcoords="offset points", ha="center", color=INK)
    for name, value in controls.items():
        axes.axhline(100 * value, color=MUTED, lw=1.0, ls="--")
        axes.text(44, 100 * value, name, ha="right", va="bottom", fontsize=9, color=MUTED)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
    axes.set_xlim(1.1, 45)
    axes.set_ylim(45, 104)
    axes.grid(axis="y")
    axes.set_xlabel("bits per value, scales counted")
    axes.set_ylabel("test accuracy, %")
    titles(axes, "Training puts up with coarse activations, up to a point", f"one scale per {group} values")
    return figure


def channels_alt(x: Tensor) -> str:
    """One sentence that says what :func:`channels` shows."""
    rms = x.float().square().mean(dim=0).sqrt()
    return (
        f"Bars of the root mean square of {len(rms)} channels: the largest, channel {rms.argmax().item()}, "
        f"is {rms.max().item() / rms.median().item():.1f} times the median."
    )


def accuracies_in_order(found: Mapping[str, float]) -> str:
    """One line: what each codec's training came to."""
    return ", ".join(f"{name} {value:.0%}" for name, value in found.items())


def _legend(axes: Axes) -> None:
    axes.legend(loc="upper right", ncols=2, fontsize=9, handletextpad=0.4, borderaxespad=0.2)


def token_with_outlier(x: Tensor, rank: float = 0.9) -> Tensor:
    """Of activations (N, d) a token (d,) whose largest value stands out from its median one.

    Args:
        x: activations.
        rank: share of the tokens that have less of an outlier, 0..1.
    """
    absolute = x.float().abs()
    share = absolute.amax(dim=1) / absolute.median(dim=1).values.clamp_min(torch.finfo(torch.float32).tiny)
    return x[share.argsort()[min(int(rank * len(share)), len(share) - 1)]]
