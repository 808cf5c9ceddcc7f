"""Codecs over torch's tensors: encode, decode, how far off, and what is refused on the way.

Work goes through the tensor in pieces that stay in the processor's cache: the intermediate results never reach the
main memory, and no float32 copy of the whole tensor is made.  Fresh memory costs more than the arithmetic done in it,
as the system hands it out page by page; so what a piece needs between reading and writing, 8 MiB at most, is kept from
call to call, one set per thread.

A codebook's code is the number of midpoints between neighbouring values that lie below y.  A search over the 15
midpoints is slow.  Here [-1, 1] is cut into 2^16 equal cells and the code is read from a table of the cells; the 15
cells with a midpoint inside are marked, and only the few values in them are searched.

Knows: payloads and tensors.  Knows nothing of: models, sockets, training.
Taught in: notebooks/07_quantized_activations.ipynb
"""

import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from mobillm_kit.errors import BadInput, CodecError
from mobillm_kit.quant.books import BITS, BOOKS, FLOATS, ORDERS, TOP
from mobillm_kit.quant.codec import Codec

_TYPES = {name: getattr(torch, kind) for name, kind in FLOATS.items()}

PIECE = 2**19
"""Values worked on at a time on a CPU: 2 MiB of float32.  Less means more starts, more leaves the cache."""
_PIECE_ELSEWHERE = 2**22

_LARGEST = 2.0**127
"""Beyond it a scale times its code could overflow."""
_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
_INFINITY_BITS, _SMALLEST_NORMAL_BITS = 0x7F800000, 0x00800000

_DAMAGED = "No encoder writes it: the payload is damaged, or made by another program."

_GATHER = {
    4: (torch.int16, 0x0F0F, 0x1001),
    2: (torch.int32, 0x03030303, 0x40100401),
    1: (torch.int64, 0x0101010101010101, 0x8040201008040201 - 2**64),
}
"""By bits: an integer with as many bytes as a byte has codes, its codes' bits, and a factor that gathers the codes of
all bytes in the highest byte, the first byte's code in its highest bits."""

_MOVED = {1: torch.float32, 2: torch.complex64}
"""By values of a byte: what they are moved as, several float32 as one number (of 16 bytes where there are more)."""

_kept = threading.local()

_CELLS = 2**16
_HALF = _CELLS // 2 - 1
SEARCH = 255
"""Marks a cell with a midpoint inside."""

_SLACK = 2.0**-21
"""Relative room for float32's own rounding in a bound."""


def encode(coder: Codec, x: Tensor, where: str) -> Tensor:
    """As :meth:`Codec.encode`."""
    if not x.is_floating_point():
        raise BadInput(f"{_place(where)}activations of {x.dtype}.", "Give float32, float16 or bfloat16.")
    payload = torch.empty(coder.wire_bytes(x.shape), dtype=torch.uint8, device=x.device)
    rows = x.detach().reshape(-1, x.shape[-1])
    if not coder.has_scales:
        _encode_floats(rows, payload.view(_TYPES[coder.name]).view(rows.shape), _place(where))
        return payload
    scales, codes = parts(coder, payload, x.shape)
    all_scales = scales.view(torch.float32)
    for piece in _pieces(rows):
        own = rows[piece]
        if own.dtype != torch.float32:
            own = scratch("input", own, torch.float32).copy_(own)
        groups = _groups(coder, own)
        all_scales[piece] = found = _scales_of(groups, coder.name, _place(where))
        pack(_codes_of(groups, found, coder.name), coder.bits, codes[piece])
    return payload


def decode(coder: Codec, payload: Tensor, shape: Sequence[int], where: str) -> Tensor:
    """As :meth:`Codec.decode`."""
    scales, codes = parts(coder, payload, shape, where)
    kind = _TYPES.get(coder.name, torch.float32)
    rows = torch.empty(math.prod(shape[:-1]), shape[-1], dtype=kind, device=payload.device)
    if not coder.has_scales:
        rows.view(torch.uint8).copy_(codes)  # which may lie anywhere in a frame
        rows = rows.float()
        for piece in _pieces(rows):
            _check_values(rows[piece], _place(where))
        return rows.view(*shape)
    all_scales = scales.clone().view(torch.float32)
    _check_scales(all_scales, _place(where))
    for piece in _pieces(rows):
        _decode_piece(coder, codes[piece], all_scales[piece], rows[piece], _place(where))
    return rows.view(*shape)


def parts(coder: Codec, payload: Tensor, shape: Sequence[int], where: str = "") -> tuple[Tensor, Tensor]:
    """Bytes of a payload's scales and of its codes, a row per token; a :class:`CodecError` as :meth:`Codec.decode`."""
    if payload.dtype != torch.uint8 or payload.dim() != 1:
        found = f"{payload.dtype}, {payload.dim()} dimensions"
        raise CodecError(f"{_place(where)}a payload of {found}.", "Send flat uint8.")
    if payload.numel() != coder.wire_bytes(shape):
        found = f"{payload.numel()} bytes for {coder} and shape {tuple(shape)}"
        raise CodecError(f"{_place(where)}{found}.", f"There must be {coder.wire_bytes(shape)}.")
    tokens, _, scales, codes = coder.layout(shape)
    return payload[: tokens * scales].view(tokens, scales), payload[tokens * scales :].view(tokens, codes)


def error_bound(coder: Codec, x: Tensor) -> Tensor:
    """As :meth:`Codec.error_bound`."""
    coder.layout(x.shape)
    absolute = x.detach().float().abs()
    if not coder.has_scales:
        return float_bound_of(absolute, coder.name)
    groups = _groups(coder, absolute.reshape(-1, x.shape[-1]))
    return bound_of(groups, _scales_of(groups, coder.name, ""), coder.name).view(x.shape)


def _decode_piece(coder: Codec, packed: Tensor, scales: Tensor, out: Tensor, place: str) -> None:
    unused_bits = packed.shape[1] * 8 - out.shape[1] * coder.bits
    if unused_bits and (packed[:, -1] & (2**unused_bits - 1)).any():
        raise CodecError(f"{place}bits behind the last value of a token are set.", _DAMAGED)
    unpack(packed, values_of(coder.name, packed.device), out)
    _groups(coder, out).mul_(scales.unsqueeze(-1))
    _check_values(out, place)


def _groups(coder: Codec, rows: Tensor) -> Tensor:
    """(n, d) seen as (n, d / G, G)."""
    group = coder.group or rows.shape[1]
    return rows.view(rows.shape[0], rows.shape[1] // group, group)


def _place(where: str) -> str:
    return f"{where}: " if where else ""


def _encode_floats(rows: Tensor, out: Tensor, place: str) -> None:
    for piece in _pieces(rows):
        values = rows[piece]
        peaks = torch.stack((values.amax(), values.amin())).float().abs_()
        _check_peaks(peaks, torch.finfo(out.dtype).max, place)
        out[piece] = values


def _scales_of(groups: Tensor, name: str, place: str) -> Tensor:
    """(n, d / G) from (n, d / G, G)."""
    absolute = torch.abs(groups, out=scratch("work", groups, torch.float32))
    peaks = absolute.amax(dim=-1)
    _check_peaks(peaks, _LARGEST, place)
    scales = _mean(absolute, peaks) if name == "sign" else peaks / TOP[name]
    return scales.masked_fill_(scales < _SMALLEST_NORMAL, 0.0)


def _codes_of(groups: Tensor, scales: Tensor, name: str) -> Tensor:
    """uint8 (n, d), one code per value, in a scratch buffer."""
    work, codes = scratch("work", groups, torch.float32), scratch("codes", groups, torch.uint8)
    if name in BOOKS:
        codes = nearest(torch.mul(groups, _divisors(scales).reciprocal_(), out=work), name)
    elif name == "sign":
        torch.signbit(groups, out=codes.view(torch.bool))
    elif name == "fp8":
        codes.view(torch.float8_e4m3fn).copy_(torch.div(groups, _divisors(scales), out=work))
    else:
        codes.view(torch.int8).copy_(torch.div(groups, _divisors(scales), out=work).round_())
    return codes.view(codes.shape[0], -1)


def _check_peaks(peaks: Tensor, largest: float, place: str) -> None:
    """Refuse NaN, Inf and what is too large; both survive the reduction that made the peaks."""
    if (peaks <= largest).all():
        return
    if peaks.isfinite().all():
        problem = f"{place}an activation of {peaks.max().item():.3g} is too large for this codec."
        raise BadInput(problem, f"The largest possible is {largest:.3g}; choose bf16 or fp32.")
    kind = "NaN" if peaks.isnan().any() else "Inf"
    raise BadInput(f"{place}activations are not finite ({kind}).", "Look for an overflow in the backbone's forward.")


def _check_scales(scales: Tensor, place: str) -> None:
    """Refuse float32 scales that are neither +0 nor positive and normal."""
    bits = scales.view(torch.int32)
    wrong = (bits != 0) & ((bits < _SMALLEST_NORMAL_BITS) | (bits >= _INFINITY_BITS))
    if wrong.any():
        found = scales[wrong][0].item()
        kind = "not finite" if not math.isfinite(found) else "negative" if math.copysign(1, found) < 0 else "denormal"
        raise CodecError(f"{place}a scale is {kind} ({found:.3g}).", _DAMAGED)


def _check_values(values: Tensor, place: str) -> None:
    """Refuse decoded values that are not finite; codes outside the codebook were read as NaN."""
    if values.numel() and not torch.stack((values.amax(), values.amin())).isfinite().all():
        what = "a code outside the codebook, or NaN" if values.isnan().any() else "an infinite value"
        raise CodecError(f"{place}{what}.", _DAMAGED)


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


def nearest(y: Tensor, name: str) -> Tensor:
    """uint8 codes 0..15 of the values of a codebook nearest to ``y``, of its shape, in a scratch buffer.

    ``y`` is contiguous finite float32, in [-1, 1] up to rounding; half way between two values the lower one is taken.
    """
    order, midpoints, table = tables_of(name, y.device)
    flat = y.view(-1)
    cells = scratch("cells", flat, torch.int32).copy_(cells_of(flat, scratch("places", flat, torch.float32)))
    codes = torch.index_select(table, 0, cells, out=scratch("codes", flat, torch.uint8))
    marked = torch.eq(codes, SEARCH, out=scratch("marked", flat, torch.bool))
    unsure = marked.nonzero().view(-1)
    codes[unsure] = order[torch.bucketize(flat[unsure], midpoints)]
    return codes.view(y.shape)


def pack(codes: Tensor, bits: int, out: Tensor) -> None:
    """Write codes (n, d) into bytes ``out`` (n, ceil(d * bits / 8)).

    ``codes`` are contiguous uint8, of which the lowest ``bits`` (1, 2, 4 or 8) count.
    """
    if bits == 8:
        out.copy_(codes)
        return
    whole, mask, factor = _GATHER[bits]
    if rest := codes.shape[1] % whole.itemsize:
        codes = F.pad(codes, (0, whole.itemsize - rest))
    several = codes.view(whole)
    gathered = torch.bitwise_and(several, mask, out=scratch("several", several, whole)).mul_(factor)
    out.copy_(gathered.bitwise_right_shift_(8 * whole.itemsize - 8))


def unpack(packed: Tensor, table: Tensor, out: Tensor) -> None:
    """Write what bytes stand for into ``out``.

    Args:
        packed: (n, b) uint8.
        table: (256, codes per byte) float32, from :func:`values_of`.
        out: (n, d) float32, contiguous, d at most b times the codes per byte.
    """
    places = scratch("places", packed, torch.int32).copy_(packed).view(-1)
    per_byte = table.shape[1]
    width = packed.shape[1] * per_byte
    whole = out if width == out.shape[1] else torch.empty(packed.shape[0], width, device=out.device)
    moved = _MOVED.get(per_byte, torch.complex128)
    target = whole.view(-1, per_byte).view(moved).squeeze(-1)
    torch.index_select(table.view(moved).squeeze(-1), 0, places, out=target)
    if whole is not out:
        out.copy_(whole[:, : out.shape[1]])


def _pieces(rows: Tensor) -> Iterator[slice]:
    """Some rows of (n, d) at a time, at least one."""
    values = PIECE if rows.device.type == "cpu" else _PIECE_ELSEWHERE
    step = max(1, values // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        yield slice(start, start + step)


def scratch(slot: str, like: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor as large as another, valid until the same slot is asked for again in this thread.

    Other devices than the CPU have allocators that do this already.
    """
    if like.device.type != "cpu":
        return torch.empty_like(like, dtype=dtype)
    buffers: dict[tuple[str, torch.dtype], Tensor] = _kept.__dict__.setdefault("buffers", {})
    count = like.numel()
    buffer = buffers.get((slot, dtype))
    if buffer is None or buffer.numel() < count:
        with torch.inference_mode(False):  # a tensor made in inference mode could not be written to outside of it
            buffer = torch.empty(max(count, PIECE), dtype=dtype)
        if count <= PIECE:
            buffers[slot, dtype] = buffer
    return buffer[:count].view(like.shape)


def release() -> None:
    """Give this thread's buffers back: for a process that has something larger to do before it encodes again."""
    _kept.__dict__.pop("buffers", None)


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
    shifts = torch.arange(8 - bits, -1, -bits)
    return values[(torch.arange(256).unsqueeze(1) >> shifts) & (2**bits - 1)].to(device)


def cells_of(y: Tensor, out: Tensor) -> Tensor:
    """The cell of each y in [-1, 1], rounded down by whoever makes it an integer; it never falls as y rises."""
    return torch.mul(y, _HALF, out=out).add_(_HALF + 1)


@cache
def tables_of(name: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of a codebook: codes by value, midpoints by value, and each cell's code or :data:`SEARCH`."""
    order = torch.tensor(ORDERS.get(name, range(16)))
    values = torch.tensor(BOOKS[name])[order]
    midpoints = (values[:-1] + values[1:]) / 2
    marked = cells_of(midpoints, torch.empty_like(midpoints)).to(torch.int32)
    table = order.to(torch.uint8)[torch.searchsorted(marked, torch.arange(_CELLS, dtype=torch.int32))]
    table[marked.long()] = SEARCH
    return order.to(torch.uint8).to(device), midpoints.to(device), table.to(device)


def bound_of(absolute: Tensor, scales: Tensor, name: str) -> Tensor:
    """Largest |x - x'|, value by value, from |x| in groups (n, d / G, G) and their scales (n, d / G)."""
    scale = scales.unsqueeze(-1)
    if name == "sign":
        bound = torch.maximum(scale, absolute.amax(dim=-1, keepdim=True) - scale)
    elif name == "fp8":
        relative, least = _rounding(torch.float8_e4m3fn)
        bound = torch.maximum(absolute * relative, scale * least)
    else:
        book = sorted(BOOKS.get(name, (0.0, 1.0)))
        bound = scale * (max(b - a for a, b in itertools.pairwise(book)) / 2)
    return torch.where(scale == 0, absolute, bound + absolute * _SLACK)


def float_bound_of(absolute: Tensor, name: str) -> Tensor:
    """The same for codecs without scales."""
    if name == "fp32":
        return torch.zeros_like(absolute)
    relative, least = _rounding(_TYPES[name])
    return (absolute * relative).clamp_min_(least)


def _rounding(dtype: torch.dtype) -> tuple[float, float]:
    """Largest relative error of a float type, and half of its smallest step."""
    info = torch.finfo(dtype)
    return info.eps / 2, info.smallest_normal * info.eps / 2
