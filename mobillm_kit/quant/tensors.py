"""Codecs over torch's tensors: encode, decode, how far off, and what is refused on the way.

Work goes through the tensor in pieces that stay in the processor's cache: the intermediate results never reach the
main memory, and no float32 copy of the whole tensor is made.  Fresh memory costs more than the arithmetic done in it,
as the system hands it out page by page; so what a piece needs between reading and writing, 8 MiB at most, is kept from
call to call, one set per thread.

Knows: payloads and tensors.  Knows nothing of: models, sockets, training.
Taught in: notebooks/07_quantized_activations.ipynb
"""

import math
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mobillm_kit.errors import BadInput, CodecError
from mobillm_kit.quant.books import BOOKS, TOP
from mobillm_kit.quant.codec import Codec
from mobillm_kit.quant.tables import SEARCH, TYPES, bound_of, cells_of, float_bound_of, tables_of, values_of

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


def encode(coder: Codec, x: Tensor, where: str) -> Tensor:
    """As :meth:`Codec.encode`."""
    if not x.is_floating_point():
        raise BadInput(f"{_place(where)}activations of {x.dtype}.", "Give float32, float16 or bfloat16.")
    payload = torch.empty(coder.wire_bytes(x.shape), dtype=torch.uint8, device=x.device)
    rows = x.detach().reshape(-1, x.shape[-1])
    if not coder.has_scales:
        _encode_floats(rows, payload.view(TYPES[coder.name]).view(rows.shape), _place(where))
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
    kind = TYPES.get(coder.name, torch.float32)
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
