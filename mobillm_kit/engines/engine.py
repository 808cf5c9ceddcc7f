"""What runs a backbone forward: the one face of every engine, and the reference, PyTorch itself.

    ids, mask, types (B, T)   ->   (0, h_0), (1, h_1) … (L, h_L),  each (B, T, d) float32

Knows: arrays.  Knows nothing of: files, tasks, what is sent.
Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from mobillm_kit.backbone.split import Backbone
    from mobillm_kit.engines.manifest import Manifest

Array = np.ndarray


class Exported(Protocol):
    """An exported folder, and what runs it."""

    name: str
    title: str
    """The name in a sentence."""
    precision: str
    folder: Path
    manifest: Manifest


class Engine(Protocol):
    """A frozen backbone that runs forward."""

    name: str
    precision: str

    def taps(self, ids: Array, mask: Array, types: Array | None = None) -> Iterator[tuple[int, Array]]:
        """Each layer's number and state, (B, T, d) float32, one at a time; what stands at padding says nothing."""
        ...


class Eager:
    """The reference: PyTorch, block by block."""

    name, precision = "torch", "float32"

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    def taps(self, ids: Array, mask: Array, types: Array | None = None) -> Iterator[tuple[int, Array]]:
        """As :class:`Engine` says."""
        import torch

        given = [None if each is None else torch.from_numpy(each) for each in (ids, mask, types)]
        with torch.no_grad():
            for layer, state in enumerate(self._backbone.hidden_states(*given)):
                yield layer, state.numpy()
