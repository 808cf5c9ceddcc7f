"""The ledger: bytes of tensors, counted, so that the number is the same on every machine.

    weights | gradients | optimizer state | activations saved for backward | messages

Each storage counts once and whole, however many tensors look into it: tied weights, views and slices add nothing.
Temporaries that live for less than one operation are not in the ledger; what a process really needs on top of it is
measured in mobillm_kit.memory.measure.

Knows: tensors, storages, autograd's hooks.  Knows nothing of: methods, models, processes.
Taught in: notebooks/09_comparison.ipynb
"""

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, UntypedStorage
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind ``tensors``, each once; any device, any mix of views, slices and tied tensors."""
    return sum(storage.nbytes() for storage in _storages(tensors))


def saved_for_backward(forward: Callable[[], T], exclude: Iterable[Tensor]) -> tuple[T, int]:
    """The result of ``forward``, and the bytes that autograd kept of it; ``exclude`` as :class:`SavedActivations`."""
    with SavedActivations(exclude) as saved:
        result = forward()
        return result, saved.live_bytes


class SavedActivations(TorchDispatchMode):
    """Counts what autograd saves between forward and backward, as long as it is saved.

    Wrap a whole training step to get its peak. Under gradient checkpointing the blocks' inputs count from the forward
    pass on, and the activations that the backward pass computes again, block by block, count while they live: torch's
    checkpoint puts hooks of its own over ours, but during a backward pass only a recomputation runs with gradients
    enabled. When it is over, the next operation has gradients disabled, and of the storages made meanwhile just those
    are alive that checkpoint has kept.  What to ``exclude`` is counted elsewhere: as a rule parameters and buffers.
    """

    def __init__(self, exclude: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak_bytes = 0
        """Largest number of bytes saved at one time, so far."""
        self._excluded = weakref.WeakSet(_storages(exclude))
        self._live: weakref.WeakKeyDictionary[UntypedStorage, int] = weakref.WeakKeyDictionary()
        self._hooks = saved_tensors_hooks(partial(_Saved, self), _Saved.unpack)
        self._made: weakref.WeakSet[UntypedStorage] = weakref.WeakSet()

    @property
    def live_bytes(self) -> int:
        """Bytes saved at this moment."""
        return sum(storage.nbytes() for storage in self._live)

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        recomputing = False
        if torch._C._current_graph_task_id() != -1:  # a backward pass is running
            recomputing = torch.is_grad_enabled()
            if not recomputing and self._made:
                kept = [storage for storage in self._made if storage not in self._live]
                self._made.clear()
                self.hold(kept)  # no release: the storage leaves the ledger when checkpoint lets it die
        result = func(*args, **(kwargs or {}))
        if recomputing:
            self._made.update(_storages(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)))
        return result

    def hold(self, storages: Iterable[UntypedStorage]) -> None:
        """Note one more reason to keep each of ``storages``."""
        for storage in storages:
            if storage not in self._excluded:
                self._live[storage] = self._live.get(storage, 0) + 1
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def release(self, storage: UntypedStorage) -> None:
        """Take one reason back; without a reason left the storage counts no more."""
        if storage not in self._live:
            return
        self._live[storage] -= 1
        if self._live[storage] == 0:
            del self._live[storage]


class _Saved:
    """What autograd keeps in a saved tensor's place: it is dropped exactly when the tensor would be."""

    def __init__(self, ledger: SavedActivations, tensor: Tensor) -> None:
        # detached: a node that saves its own output would otherwise hold itself alive
        self.tensor = tensor.detach()
        self._ledger = ledger
        ledger.hold([tensor.untyped_storage()])

    def unpack(self) -> Tensor:
        """What autograd asks for in the backward pass."""
        return self.tensor

    def __del__(self) -> None:
        self._ledger.release(self.tensor.untyped_storage())


def _storages(tensors: Iterable[Tensor]) -> set[UntypedStorage]:
    # torch hands out one Python object per storage as long as the storage lives
    return {tensor.untyped_storage() for tensor in tensors}
