"""Scales, codes and values of one piece of a tensor, codec by codec; what is refused on the way.

Knows: pieces that fit a processor's cache.  Knows nothing of: payloads, shapes, groups that do not divide.
Taught in: notebooks/07_quantized_activations.ipynb
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from mobillm_kit.errors import BadInput, CodecError
from mobillm_kit.quant.books import BOOKS, largest_gap, nearest
from mobillm_kit.quant.packing import byte_table
from mobillm_kit.quant.scratch import scratch

BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "int8": 8, "int4": 4, "int2": 2, "sign": 1, "nf4": 4, "fp4": 4}
"""Bits of one code, scales not counted, by name; floats first."""

CODECS: tuple[str, ...] = tuple(BITS)

FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Codecs without scales."""

_UNITS = {"fp32": (0.0, 0.0), "fp16": (2.0**-11, 2.0**-25), "bf16": (2.0**-8, 2.0**-134)}
"""Of FLOATS: largest relative error, and half of the smallest step."""

TOP = {"fp8": 448.0, "int8": 127.0, "int4": 7.0, "int2": 1.0, "nf4": 1.0, "fp4": 1.0}
"""Largest code; the largest value of a group becomes it."""

_LARGEST = 2.0**127
"""Beyond it a scale times its code could overflow."""
_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
_INFINITY_BITS, _SMALLEST_NORMAL_BITS = 0x7F800000, 0x00800000

_SLACK = 2.0**-21
"""Relative room for float32's own rounding in a bound."""

_DAMAGED = "No encoder writes it: the payload is damaged, or made by another program."


def scales_of(groups: Tensor, name: str, place: str) -> Tensor:
    """(n, d / G) from (n, d / G, G)."""
    absolute = torch.abs(groups, out=_like("work", groups))
    peaks = absolute.amax(dim=-1)
    check_peaks(peaks, _LARGEST, place)
    scales = _mean(absolute, peaks) if name == "sign" else peaks / TOP[name]
    return scales.masked_fill_(scales < _SMALLEST_NORMAL, 0.0)


def codes_of(groups: Tensor, scales: Tensor, name: str) -> Tensor:
    """uint8 (n, d), one code per value, in a scratch buffer."""
    work = _like("work", groups)
    if name in BOOKS:
        return _rows(nearest(torch.mul(groups, _divisors(scales).reciprocal_(), out=work), name))
    codes = scratch("codes", groups.shape, torch.int8, groups.device)
    if name == "sign":
        bits = scratch("bits", groups.shape, torch.int32, groups.device)
        return _rows(codes.copy_(torch.bitwise_right_shift(groups.view(torch.int32), 31, out=bits)))
    torch.div(groups, _divisors(scales), out=work)
    if name == "fp8":
        codes.view(torch.float8_e4m3fn).copy_(work)
    else:
        codes.copy_(work.round_())
    return _rows(codes)


def bound_of(absolute: Tensor, scales: Tensor, name: str) -> Tensor:
    """Largest |x - x'|, value by value, from |x| in groups."""
    scale = scales.unsqueeze(-1)
    if name == "sign":
        bound = torch.maximum(scale, absolute.amax(dim=-1, keepdim=True) - scale)
    elif name == "fp8":
        bound = torch.maximum(absolute * 2.0**-4, scale * 2.0**-10)
    else:
        bound = scale * (largest_gap(name) / 2 if name in BOOKS else 0.5)
    return torch.where(scale == 0, absolute, bound + absolute * _SLACK)


def float_bound_of(absolute: Tensor, name: str) -> Tensor:
    """The same for codecs without scales."""
    relative, least = _UNITS[name]
    return (absolute * relative).clamp_min_(least)


def check_peaks(peaks: Tensor, largest: float, place: str) -> None:
    """Refuse NaN, Inf and what is too large; both survive the reduction that made the peaks."""
    if peaks.numel() == 0 or (peaks <= largest).all():
        return
    if peaks.isfinite().all():
        raise BadInput(
            f"{place}an activation of {peaks.max().item():.3g} is too large for this codec.",
            f"The largest possible is {largest:.3g}; choose bf16 or fp32.",
        )
    kind = "NaN" if peaks.isnan().any() else "Inf"
    raise BadInput(f"{place}activations are not finite ({kind}).", "Look for an overflow in the backbone's forward.")


def check_scales(scales: Tensor, place: str) -> None:
    """Refuse float32 scales that are neither +0 nor positive and normal."""
    bits = scales.view(torch.int32)
    wrong = (bits != 0) & ((bits < _SMALLEST_NORMAL_BITS) | (bits >= _INFINITY_BITS))
    if wrong.any():
        found = scales[wrong][0].item()
        kind = "not finite" if not math.isfinite(found) else "negative" if math.copysign(1, found) < 0 else "denormal"
        raise CodecError(f"{place}a scale is {kind} ({found:.3g}).", _DAMAGED)


def check_values(values: Tensor, place: str) -> None:
    """Refuse decoded values that are not finite; codes outside the codebook were read as NaN."""
    if values.numel() and not torch.stack((values.amax(), values.amin())).isfinite().all():
        what = "a code outside the codebook, or NaN" if values.isnan().any() else "an infinite value"
        raise CodecError(f"{place}{what}.", _DAMAGED)


def check_rest(packed: Tensor, unused_bits: int, place: str) -> None:
    """Refuse bits behind the last code of a token."""
    if unused_bits and (packed[:, -1] & (2**unused_bits - 1)).any():
        raise CodecError(f"{place}bits behind the last value of a token are set.", _DAMAGED)


def _divisors(scales: Tensor) -> Tensor:
    """A fresh (n, d / G, 1); a group without scale is divided by infinity, which gives the code of zero."""
    return scales.masked_fill(scales == 0, math.inf).unsqueeze(-1)


def _mean(absolute: Tensor, peaks: Tensor) -> Tensor:
    """Mean of each group, the same on every machine, whatever the order of the additions.

    Values are rounded to multiples of the peak / 2^b first, b so that the sum stays below 2^24, where float32 adds
    whole numbers without error.  Overwrites ``absolute``.
    """
    count = absolute.shape[-1]
    levels = 2.0 ** (24 - math.ceil(math.log2(count)))
    whole = absolute.div_(_divisors(peaks)).mul_(levels).round_()
    return whole.sum(dim=-1) / (levels * count) * peaks


def _like(slot: str, tensor: Tensor) -> Tensor:
    return scratch(slot, tensor.shape, torch.float32, tensor.device)


def _rows(codes: Tensor) -> Tensor:
    return codes.view(torch.uint8).view(codes.shape[0], -1)


@cache
def values_of(name: str, device: torch.device) -> Tensor:
    """What each byte stands for, in units of the scale, (256, values per byte); NaN for codes that nobody writes."""
    bits = BITS[name]
    if name in BOOKS:
        values = torch.tensor(BOOKS[name])
    elif name == "sign":
        values = torch.tensor([1.0, -1.0])
    elif name == "fp8":
        values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    else:
        top = 2 ** (bits - 1)
        values = torch.tensor([*range(top), math.nan, *range(1 - top, 0)])
    return byte_table(values, bits).to(device)
