"""Buffers for intermediate results, kept from call to call, one set per thread.

Fresh memory costs more than the arithmetic done in it: the system hands it out page by page.  What a codec needs
between reading and writing is 8 MiB at most, so it is kept.

Knows: tensors.  Knows nothing of: what stands in them.
Taught in: notebooks/07_quantized_activations.ipynb
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

PIECE = 2**19
"""Values worked on at a time on a CPU: 2 MiB of float32.  Less means more starts, more leaves the cache."""
_PIECE_ELSEWHERE = 2**22

_kept = threading.local()


def pieces(rows: Tensor) -> Iterator[slice]:
    """Some rows of (n, d) at a time, at least one."""
    values = PIECE if rows.device.type == "cpu" else _PIECE_ELSEWHERE
    step = max(1, values // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        yield slice(start, min(start + step, rows.shape[0]))


def scratch(slot: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor that is valid until the same slot is asked for again, in this thread.

    Other devices than the CPU have allocators that do this already.
    """
    if device.type != "cpu":
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    buffers: dict[tuple[str, torch.dtype], Tensor] = _kept.__dict__.setdefault("buffers", {})
    count = math.prod(shape)
    buffer = buffers.get((slot, dtype))
    if buffer is None or buffer.numel() < count:
        with torch.inference_mode(False):  # a tensor made in inference mode could not be written to outside of it
            buffer = torch.empty(max(count, PIECE), dtype=dtype)
        if count <= PIECE:
            buffers[slot, dtype] = buffer
    return buffer[:count].view(tuple(shape))


def release() -> None:
    """Give this thread's buffers back: for a process that has something larger to do before it encodes again."""
    _kept.__dict__.pop("buffers", None)
