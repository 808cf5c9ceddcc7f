"""What is alive at each moment of a step: every storage from its first tensor to its last, by category.

    alive = weights + optimizer state + gradients + saved activations + messages + transients        bytes

Knows: tensors and storages.  Knows nothing of: methods, models, processes.
Taught in: notebooks/01_where_memory_goes.ipynb
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mobillm_kit.training.ledger import SavedActivations

Category = Literal["weights", "gradients", "optimizer", "saved", "messages", "transient"]
CATEGORIES: tuple[Category, ...] = get_args(Category)


@dataclass(frozen=True)
class Alive:
    """Bytes alive at one moment, by category."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    saved: int = 0
    messages: int = 0
    transient: int = 0
    """Alive and nothing of the above: hidden states on their way, the optimizer's temporaries, a perturbation."""

    @property
    def total(self) -> int:
        """Bytes alive at this point."""
        return sum(vars(self).values())


@dataclass
class _Entry:
    bytes: int
    category: Category


class LiveTensors(TorchDispatchMode):
    """Follows every storage from its first tensor to its last while its block runs, real or without values."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = Alive()
        """Bytes by category at the moment at which most was alive, so far."""
        self._entries: weakref.WeakKeyDictionary[UntypedStorage, _Entry] = weakref.WeakKeyDictionary()
        self._bytes: dict[Category, int] = dict.fromkeys(CATEGORIES, 0)

    @property
    def now(self) -> Alive:
        """Bytes alive at this moment."""
        return Alive(**self._bytes)

    def alive(self) -> list[UntypedStorage]:
        """The storages that are alive at this moment."""
        return list(self._entries)

    def add(self, made: Iterable[Tensor | UntypedStorage], category: Category) -> None:
        """Follow what was made before; a storage that is followed already keeps its category."""
        for each in made:
            self._follow(_storage(each), category)

    def mark(self, made: Tensor | UntypedStorage, category: Category) -> None:
        """Say what was a transient until now, or is one again; weights, messages and optimizer state stay so."""
        entry = self._entries.get(_storage(made))
        if entry is None or entry.category in ("weights", "messages", "optimizer"):
            return
        self._bytes[entry.category] -= entry.bytes
        self._bytes[category] += entry.bytes
        entry.category = category

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].dtype.is_floating_point else 1
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf.untyped_storage(), "transient")
        return result

    def _follow(self, storage: UntypedStorage, category: Category) -> None:
        if storage in self._entries:
            return
        entry = self._entries[storage] = _Entry(storage.nbytes(), category)
        self._bytes[category] += entry.bytes
        if sum(self._bytes.values()) > self.peak.total:
            self.peak = self.now
        weakref.finalize(storage, self._drop, entry).atexit = False

    def _drop(self, entry: _Entry) -> None:
        self._bytes[entry.category] -= entry.bytes


def _storage(made: Tensor | UntypedStorage) -> UntypedStorage:
    return made.untyped_storage() if isinstance(made, Tensor) else made


class NotesSaved(SavedActivations):
    """Tells a follower of storages which of them autograd keeps."""

    def __init__(self, live: LiveTensors) -> None:
        super().__init__(())
        self._follower = live

    def hold(self, storages: Iterable[UntypedStorage]) -> None:
        """Autograd has saved these for its backward pass."""
        storages = list(storages)
        super().hold(storages)
        for storage in storages:
            self._follower.mark(storage, "saved")

    def release(self, storage: UntypedStorage) -> None:
        """Autograd has let go of one tensor of this storage."""
        super().release(storage)
        if storage not in self._live:
            self._follower.mark(storage, "transient")
