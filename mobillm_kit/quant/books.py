"""Codebooks of 16 values, and the nearest value of one without a search.

    code(y) = number of midpoints between neighbouring values that lie below y

A search over the 15 midpoints is slow.  Here y is cut into 2^16 equal cells and the code is read from a table of the
cells; the 15 cells with a midpoint inside are marked, and only the few values in them are searched.

Values: QLoRA (arXiv 2305.14314), appendix E, and bitsandbytes' FP4, in its order of codes.

Knows: numbers in [-1, 1].  Knows nothing of: scales, payloads.
Taught in: notebooks/07_quantized_activations.ipynb
"""

from __future__ import annotations

import itertools
from functools import cache

import torch
from torch import Tensor

from mobillm_kit.quant.scratch import scratch

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution, as float32."""

_FP4_POSITIVE = (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
FP4 = (*_FP4_POSITIVE, *(-value for value in _FP4_POSITIVE))
"""Bit 3 is the sign, two bits exponent, one bit mantissa; code 8 is a second zero, for small positive values."""

_FP4_ORDER = (11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3)
"""Codes of FP4 by value.  Code 8 stands right of 0, as in bitsandbytes."""

BOOKS = {"nf4": NF4, "fp4": FP4}
_ORDERS = {"fp4": _FP4_ORDER}
"""The others stand in the order of their values."""

_CELLS = 2**16
_HALF = _CELLS // 2 - 1
_SEARCH = 255
"""Marks a cell with a midpoint inside."""


def nearest(y: Tensor, name: str) -> Tensor:
    """Codes of the values of a codebook nearest to ``y``.

    Args:
        y: contiguous finite float32, in [-1, 1] up to rounding.

    Returns:
        uint8 codes 0..15, of y's shape, in a scratch buffer.  Half way between two values the lower one is taken.
    """
    order, midpoints, table = _tables(name, y.device)
    flat = y.view(-1)
    cells = scratch("cells", flat.shape, torch.int32, y.device).copy_(
        _cells(flat, scratch("places", flat.shape, torch.float32, y.device))
    )
    codes = torch.index_select(table, 0, cells, out=scratch("codes", flat.shape, torch.uint8, y.device))
    marked = torch.eq(codes, _SEARCH, out=scratch("marked", flat.shape, torch.uint8, y.device))
    unsure = marked.view(torch.bool).nonzero().view(-1)
    codes[unsure] = order[torch.bucketize(flat[unsure], midpoints)]
    return codes.view(y.shape)


def largest_gap(name: str) -> float:
    """Largest distance between neighbouring values of a codebook."""
    return max(b - a for a, b in itertools.pairwise(sorted(BOOKS[name])))


def _cells(y: Tensor, out: Tensor) -> Tensor:
    """The cell of each value, rounded down by whoever makes it an integer; it never falls as y rises."""
    return torch.mul(y, _HALF, out=out).add_(_HALF + 1)


@cache
def _tables(name: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Codes by value, midpoints by value, and each cell's code or the mark that says "search"."""
    order = torch.tensor(_ORDERS.get(name, range(16)))
    values = torch.tensor(BOOKS[name])[order]
    midpoints = (values[:-1] + values[1:]) / 2
    marked = _cells(midpoints, torch.empty_like(midpoints)).to(torch.int32)
    table = order.to(torch.uint8)[torch.searchsorted(marked, torch.arange(_CELLS, dtype=torch.int32))]
    table[marked.long()] = _SEARCH
    return order.to(torch.uint8).to(device), midpoints.to(device), table.to(device)
