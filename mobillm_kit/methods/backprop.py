"""First-order training of named parameters with AdamW: the part that every method with gradients shares.

    g = dL/dw,    w <- AdamW(w, g, lr)          L = cross-entropy over the task's labels

Knows: parameters and a function from batch to logits.  Knows nothing of: which parameters, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobillm_kit.record import CountedMemory
from mobillm_kit.training.adamw import ADAM_MOMENTS, adamw, apply_gradients, load_training_state, training_state
from mobillm_kit.training.ledger import SavedActivations, storage_bytes
from mobillm_kit.training.method import StepResult

if TYPE_CHECKING:  # a server has no backbone and need not import what loads one
    from mobillm_kit.texts.encode import Batch


class Backprop:
    """AdamW on the given parameters.

    Args:
        model: everything that must be in the device's memory.
        parameters: what is trained, by name; all of it asks for gradients from here on.
        logits: batch to (B, C), with the autograd graph.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        logits: Callable[[Batch], Tensor],
        *,
        weight_decay: float = 0.0,
    ) -> None:
        self.name = name
        self._model = model
        self._parameters = dict(parameters)
        self._logits = logits
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        self._optimizer = adamw(self._parameters.values(), weight_decay)

    def step(self, batch: Batch, lr: float) -> StepResult:
        """One AdamW step on the mean cross-entropy of the batch; B samples go forward and backward."""
        loss = F.cross_entropy(self._logits(batch), batch.labels)
        apply_gradients(self._optimizer, loss, lr)
        return StepResult(loss=loss.item(), forwards=len(batch.labels))

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """(B, C) class logits, without gradient."""
        return self._logits(batch)

    def trained(self) -> dict[str, Tensor]:
        """The parameters under AdamW, by name, detached."""
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def state(self) -> dict[str, Tensor]:
        """Parameters, both moments and the step counts: what the next step depends on."""
        return training_state(self._parameters, self._optimizer)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state` gave, in place."""
        load_training_state(self._parameters, self._optimizer, state)

    def count_memory(self, batch: Batch) -> tuple[CountedMemory, ...]:
        """Weights, gradients, moments and what autograd saves for one backward pass; trains nothing."""
        weights = [*self._model.parameters(), *self._model.buffers()]
        with SavedActivations(weights) as saved:
            loss = F.cross_entropy(self._logits(batch), batch.labels)
            torch.autograd.grad(loss, list(self._parameters.values()), allow_unused=True)
        return (
            CountedMemory(
                party="device",
                weights_bytes=storage_bytes(weights),
                gradients_bytes=storage_bytes(self._parameters.values()),
                optimizer_bytes=len(ADAM_MOMENTS) * storage_bytes(self._parameters.values()),
                saved_activations_bytes=saved.peak_bytes,
            ),
        )
