"""The codecs over numpy's arrays: the bytes that ``quant/tensors.py`` makes of tensors, to the last one.

    encode    (N, d) float32  ->  scales (N, 4 d / G) and codes (N, ceil(d bits / 8)), both bytes, a row per token
    payload   all scales, then all codes: what travels, as the docstring of ``quant/`` has it

A row does not depend on its neighbours, so that a sample's rows can be cut out and put beside others.

Knows: arrays and bit widths.  Knows nothing of: torch, models, sockets.
Taught in: notebooks/08_device_and_server.ipynb
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mobillm_kit.errors import BadInput
from mobillm_kit.quant import Codec
from mobillm_kit.quant.books import BOOKS, ORDERS, TOP

Array = np.ndarray

PIECE = 2**17
"""Values worked on at a time: what is made on the way stays in the processor's cache."""

_LARGEST = 2.0**127
"""Beyond it a scale times its code could overflow."""
_SMALLEST_NORMAL = np.float32(2.0**-126)
_LARGEST_FLOATS = {"fp32": float(np.finfo(np.float32).max), "fp16": 65504.0, "bf16": (2 - 2**-7) * 2.0**127}

_FP8_NORMAL, _FP8_SUBNORMAL_BITS = 121 << 23, 141 << 23
"""Bits of 2^-6, fp8's smallest normal number, and of 2^14: added to it, float32 rounds to multiples of 2^-9."""


def encode(coder: Codec, x: Array, where: str = "") -> tuple[Array, Array]:
    """Bytes of the scales and of the codes of ``x``, (N, d) float32, a row per token.

    Raises:
        BadInput: NaN, Inf or a value too large for the codec, groups that do not divide d, or x is not float32.
    """
    place = f"{where}: " if where else ""
    if x.dtype != np.float32 or x.ndim != 2:
        raise BadInput(f"{place}activations of {x.dtype}, {x.ndim} dimensions.", "Give float32, (N, d).")
    tokens, width, scale_bytes, code_bytes = coder.layout(x.shape)
    scales, codes = np.empty((tokens, scale_bytes), np.uint8), np.empty((tokens, code_bytes), np.uint8)
    groups = coder.group or width
    for rows in _pieces(tokens, width):
        own = x[rows]
        if not coder.has_scales:
            _check_peaks(np.abs(own).max(initial=0.0, keepdims=True), _LARGEST_FLOATS[coder.name], place)
            codes[rows] = _AS_FLOATS[coder.name](own).view(np.uint8).reshape(len(own), code_bytes)
            continue
        grouped = own.reshape(len(own), width // groups, groups)
        found = _scales_of(grouped, coder.name, place)
        scales[rows] = found.view(np.uint8).reshape(len(own), scale_bytes)
        codes[rows] = _packed(_codes_of(grouped, found, coder.name).reshape(len(own), width), coder.bits)
    return scales, codes


def payload(parts: Sequence[tuple[Array, Array]]) -> memoryview:
    """The rows of several samples as one payload: all scales, then all codes."""
    scales, codes = zip(*parts, strict=True)
    return np.concatenate([part.reshape(-1) for part in (*scales, *codes)]).data


def _pieces(tokens: int, width: int) -> Iterator[slice]:
    step = max(1, PIECE // width)
    return (slice(start, start + step) for start in range(0, tokens, step))


def _bfloat16(values: Array) -> Array:
    """Upper halves of float32, rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")


_AS_FLOATS: dict[str, Callable[[Array], Array]] = {
    "fp32": np.ascontiguousarray,
    "fp16": lambda values: values.astype(np.float16),
    "bf16": lambda values: _bfloat16(np.ascontiguousarray(values)),
}


def _scales_of(groups: Array, name: str, place: str) -> Array:
    """(n, d / G) from (n, d / G, G)."""
    absolute = np.abs(groups)
    peaks = absolute.max(axis=-1)
    _check_peaks(peaks, _LARGEST, place)
    scales = _mean(absolute, peaks) if name == "sign" else peaks / np.float32(TOP[name])
    scales[scales < _SMALLEST_NORMAL] = 0
    return scales


def _codes_of(groups: Array, scales: Array, name: str) -> Array:
    """uint8 of the shape of ``groups``, one code per value."""
    if name == "sign":
        return np.signbit(groups).view(np.uint8)
    divisors = _divisors(scales)
    if name in BOOKS:
        order = np.array(ORDERS.get(name, range(16)), np.uint8)
        values = np.array(BOOKS[name], np.float32)[order]
        midpoints = (values[:-1] + values[1:]) / np.float32(2)
        return order[np.searchsorted(midpoints, groups * (np.float32(1) / divisors))]
    return _fp8(groups / divisors) if name == "fp8" else np.rint(groups / divisors).astype(np.int8).view(np.uint8)


def _fp8(values: Array) -> Array:
    """e4m3 "fn" of finite float32 up to 448, rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    magnitude, sign = bits & 0x7FFFFFFF, (bits >> 24) & 0x80
    small = (magnitude.view(np.float32) + np.float32(2.0**14)).view(np.uint32) - np.uint32(_FP8_SUBNORMAL_BITS)
    normal = (magnitude + ((magnitude >> 20) & 1) + np.uint32(0x7FFFF) - np.uint32(120 << 23)) >> 20
    return (np.where(magnitude < _FP8_NORMAL, small, normal) | sign).astype(np.uint8)


def _check_peaks(peaks: Array, largest: float, place: str) -> None:
    """Refuse NaN, Inf and what is too large; both survive the reduction that made the peaks."""
    if (peaks <= largest).all():
        return
    if np.isfinite(peaks).all():
        problem = f"{place}an activation of {peaks.max():.3g} is too large for this codec."
        raise BadInput(problem, f"The largest possible is {largest:.3g}; choose bf16 or fp32.")
    kind = "NaN" if np.isnan(peaks).any() else "Inf"
    raise BadInput(f"{place}activations are not finite ({kind}).", "Look for an overflow in the backbone's forward.")


def _divisors(scales: Array) -> Array:
    """(n, d / G, 1); a group without scale is divided by infinity, which gives the code of zero."""
    return np.where(scales == 0, np.float32(math.inf), scales)[..., None]


def _mean(absolute: Array, peaks: Array) -> Array:
    """Mean of each group, exact whatever the order of the additions: see ``quant/tensors.py``."""
    count = absolute.shape[-1]
    levels = 2.0 ** (24 - math.ceil(math.log2(count)))
    whole = np.rint(absolute / _divisors(peaks) * np.float32(levels))
    return whole.sum(axis=-1, dtype=np.float32) / np.float32(levels * count) * peaks


def _packed(codes: Array, bits: int) -> Array:
    """Codes (n, d) as bytes (n, ceil(d * bits / 8)), the first one in the highest bits; unused bits are zero."""
    if bits == 8:
        return codes
    per_byte = 8 // bits
    if rest := codes.shape[1] % per_byte:
        codes = np.pad(codes, ((0, 0), (0, per_byte - rest)))
    several = (codes & (2**bits - 1)).reshape(len(codes), -1, per_byte)
    out = several[..., 0]
    for place in range(1, per_byte):
        out = (out << bits) | several[..., place]
    return out
