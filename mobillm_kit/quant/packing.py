"""Several small codes in one byte, the first value in the highest bits.

A row of bytes is read as integers that hold as many codes as one byte shall: a few shifts and additions then do for all
codes what picking every second byte does slowly.

Knows: bytes.  Knows nothing of: what the codes mean.
Taught in: notebooks/07_quantized_activations.ipynb
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mobillm_kit.quant.scratch import scratch

_GATHER_BITS = 0x8040201008040201 - 2**64
"""As a signed number; times eight bytes of 0 or 1 it has them as the bits of its highest byte, first byte first."""


def pack(codes: Tensor, bits: int, out: Tensor) -> None:
    """Write codes (n, d) into bytes ``out`` (n, ceil(d * bits / 8)).

    ``codes`` are contiguous uint8, of which the lowest ``bits`` (1, 2, 4 or 8) count.
    """
    per_byte = 8 // bits
    if per_byte == 1:
        out.copy_(codes)
        return
    if rest := codes.shape[1] % per_byte:
        codes = F.pad(codes, (0, per_byte - rest))
    _PACKERS[bits](codes, out)


def _four(codes: Tensor, out: Tensor) -> None:
    pair = codes.view(torch.int16)
    second = torch.bitwise_right_shift(pair, 8, out=_like("second", pair)).bitwise_and_(15)
    out.copy_(torch.add(second, pair, alpha=16, out=second))


def _two(codes: Tensor, out: Tensor) -> None:
    four = torch.bitwise_and(codes.view(torch.int32), 0x03030303, out=_like("four", codes.view(torch.int32)))
    total, moved = _like("total", four), _like("moved", four)
    torch.bitwise_left_shift(four, 6, out=total)
    for distance in (4, 14, 24):
        total.add_(torch.bitwise_right_shift(four, distance, out=moved))
    out.copy_(total)


def _one(codes: Tensor, out: Tensor) -> None:
    eight = codes.view(torch.int64)
    bits = torch.bitwise_and(eight, 0x0101010101010101, out=_like("bits", eight))
    out.copy_(bits.mul_(_GATHER_BITS).bitwise_right_shift_(56))


_PACKERS = {4: _four, 2: _two, 1: _one}


def _like(slot: str, tensor: Tensor) -> Tensor:
    return scratch(slot, tensor.shape, tensor.dtype, tensor.device)


def packed_bytes(width: int, bits: int) -> int:
    """Bytes of one row of ``width`` codes."""
    return -(-width * bits // 8)


def unpack(packed: Tensor, table: Tensor, out: Tensor) -> None:
    """Write what bytes stand for into ``out``.

    Args:
        packed: (n, b) uint8.
        table: (256, codes per byte) float32, from :func:`byte_table`.
        out: (n, d) float32, contiguous, d at most b times the codes per byte.
    """
    places = scratch("places", packed.shape, torch.int32, packed.device).copy_(packed).view(-1)
    per_byte = table.shape[1]
    width = packed.shape[1] * per_byte
    whole = out if width == out.shape[1] else torch.empty(packed.shape[0], width, device=out.device)
    if per_byte == 1:
        torch.index_select(table.view(-1), 0, places, out=whole.view(-1))
    elif per_byte == 2:  # two float32 move as one number of eight bytes
        torch.index_select(table.view(torch.int64).view(-1), 0, places, out=whole.view(torch.int64).view(-1))
    else:
        torch.index_select(table, 0, places, out=whole.view(-1, per_byte))
    if whole is not out:
        out.copy_(whole[:, : out.shape[1]])


def byte_table(values: Tensor, bits: int) -> Tensor:
    """What each byte stands for, (256, 8 / bits), from what each code stands for, (2 ** bits,)."""
    shifts = torch.arange(8 - bits, -1, -bits)
    return values[(torch.arange(256).unsqueeze(1) >> shifts) & (2**bits - 1)]


def to_bytes(tensor: Tensor) -> memoryview:
    """The values of ``tensor``, row by row, without a copy where it lies contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def from_bytes(payload: bytes | memoryview) -> Tensor:
    """(n,) uint8 over a buffer; copied only where the buffer is read-only, as torch wants one that may be written."""
    if not len(payload):
        return torch.empty(0, dtype=torch.uint8)
    view = memoryview(payload)
    return torch.frombuffer(bytearray(view) if view.readonly else view, dtype=torch.uint8)
