"""Weights that come from their files when they are needed: blocks in two buffers, rows of a matrix one by one.

Knows: files, tensors' names.  Knows nothing of: modules, forward passes, which block is needed when.
Taught in: notebooks/06_side_network.ipynb
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mobillm_kit.backbone.shards import Shards
from mobillm_kit.errors import BadInput, KitError

READ_LIMIT_S = 600.0
"""One block must be read within this time."""


class RowsOnDisk:
    """Stands where a module has its embedding matrix (V, d) and reads the rows that are asked for."""

    requires_grad = False
    device = torch.device("cpu")

    def __init__(self, shards: Shards, name: str, dtype: torch.dtype) -> None:
        self._shards = shards
        self._name = name
        self.dtype = dtype
        self.shape = torch.Size(shards.entries[name].shape)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """(…) indices to (…, d)."""
        return self._shards.read_rows(self._name, rows, self.dtype)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Tensor:
        """``F.embedding(rows, self)``, however a model's own embedding module calls it, and nothing else."""
        if function is not F.embedding:
            problem = f"'{function.__name__}' needs the whole embedding, which a streamed backbone leaves in its file."
            raise BadInput(problem, "Use the whole model: load_backbone.")
        matrix = args[1] if len(args) > 1 else (kwargs or {})["weight"]
        return matrix[args[0] if args else (kwargs or {})["input"]]


@dataclass(frozen=True, eq=False)
class Place:
    """Where one tensor of a block lies in the buffer."""

    name: str
    """In the files."""
    key: str
    """In the block."""
    shape: torch.Size
    dtype: torch.dtype
    offset: int

    @property
    def end(self) -> int:
        """First byte behind it."""
        return self.offset + self.shape.numel() * self.dtype.itemsize

    def view(self, memory: Tensor) -> Tensor:
        """Its bytes in the buffer, as what they are."""
        return memory[self.offset : self.end].view(self.dtype).view(self.shape)


class BufferedBlocks:
    """Blocks in two buffers: one works while the other is filled."""

    def __init__(self, places: Sequence[Sequence[Place]], shards: Shards) -> None:
        self._places = places
        self._shards = shards
        self._largest = max(place.end for block in places for place in block)
        self.memory_bytes = 2 * self._largest
        """Of the buffers, each as large as the largest block."""
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="block-reader")
        self._reading: tuple[int, Future[None]] | None = None
        self.memory: list[Tensor] = []
        """The buffers, as far as they are made."""
        self._turn = 0
        self._held: int | None = None

    def tensors(self, index: int) -> dict[str, Tensor]:
        """Block ``index``, by the names in it; the next call with another index may overwrite them."""
        if index != self._held:
            back = self._held == index + 1 and index > 0  # a backward pass, from the last block to the first
            self._held = None
            if not self.memory:
                self.memory += [torch.empty(self._largest, dtype=torch.uint8) for _ in range(2)]
            ready = self._awaited()
            if ready is not None:
                self._turn = 1 - self._turn
            if ready != index:
                self._read(index, self._turn)
            self._held = index
            following = (index + (-1 if back else 1)) % len(self._places)
            self._reading = following, self._reader.submit(self._read, following, 1 - self._turn)
        return {place.key: place.view(self.memory[self._turn]) for place in self._places[index]}

    def release(self) -> None:
        """Let go of every weight; they are read again when they are needed."""
        self._awaited()
        self._held = None
        self.memory.clear()

    def _read(self, index: int, turn: int) -> None:
        for place in self._places[index]:
            self._shards.read_into(place.name, place.view(self.memory[turn]))
        if not self.memory[turn].is_inference():  # a graph that holds these weights must fail, not go on with others
            torch.autograd.graph.increment_version(self.memory[turn])

    def _awaited(self) -> int | None:
        """Which block was being read, and now is."""
        reading, self._reading = self._reading, None
        if reading is None:
            return None
        try:
            reading[1].result(READ_LIMIT_S)
            return reading[0]
        except TimeoutError:
            problem = f"{self._shards.folder}: a block was not read within {READ_LIMIT_S:g} s."
            raise KitError(problem, "Copy the model to a faster disk.") from None
