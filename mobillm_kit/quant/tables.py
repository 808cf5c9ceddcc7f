"""What codes stand for, as tensors: values, tables to look codes up in, and how far off a value can come out.

A codebook's code is the number of midpoints between neighbouring values that lie below y.  A search over the 15
midpoints is slow.  Here [-1, 1] is cut into 2^16 equal cells and the code is read from a table of the cells; the 15
cells with a midpoint inside are marked, and only the few values in them are searched.

Knows: tensors, codes by name of codec.  Knows nothing of: payloads, scales to be found.
Taught in: notebooks/07_quantized_activations.ipynb
"""

import itertools
import math
from functools import cache

import torch
from torch import Tensor

from mobillm_kit.quant.books import BITS, BOOKS, FLOATS, ORDERS

_CELLS = 2**16
_HALF = _CELLS // 2 - 1
SEARCH = 255
"""Marks a cell with a midpoint inside."""

_SLACK = 2.0**-21
"""Relative room for float32's own rounding in a bound."""

TYPES = {name: getattr(torch, kind) for name, kind in FLOATS.items()}


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
    relative, least = _rounding(TYPES[name])
    return (absolute * relative).clamp_min_(least)


def _rounding(dtype: torch.dtype) -> tuple[float, float]:
    """Largest relative error of a float type, and half of its smallest step."""
    info = torch.finfo(dtype)
    return info.eps / 2, info.smallest_normal * info.eps / 2
