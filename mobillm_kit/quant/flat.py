"""A tensor's bytes as they lie in memory, and back.

Knows: tensors and buffers.  Knows nothing of: codecs, messages.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
