"""First-order training of named parameters with AdamW: the part that every method with gradients shares.

    g = dL/dw,    w <- AdamW(w, g, lr)          L = cross-entropy over the task's labels

Knows: parameters and a function from batch to logits.  Knows nothing of: which parameters, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobillm_kit.memory import SavedActivations, storage_bytes
from mobillm_kit.methods.protocol import StepResult
from mobillm_kit.record import CountedMemory

if TYPE_CHECKING:  # a server has no backbone and need not import what loads one
    from mobillm_kit.encode import Batch

ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")


class Backprop:
    """AdamW on the given parameters.

    Args:
        name: the method's name.
        model: everything that must be in the device's memory.
        parameters: what is trained, by name; all of it asks for gradients from here on.
        logits: batch to (B, C), with the autograd graph.
        weight_decay: AdamW's.
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
        return StepResult(loss=loss.item(), forwards=batch.labels.shape[0])

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
                messages_bytes=0,
            ),
        )


# ------------------------------------------------------------------ shared with the server's trainer


def adamw(parameters: Iterable[nn.Parameter], weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW (0.9, 0.999) with its moments made at once, so that memory and checkpoints are complete from step 0."""
    optimizer = torch.optim.AdamW(list(parameters), lr=0.0, weight_decay=weight_decay, foreach=False)
    for parameter in optimizer.param_groups[0]["params"]:
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0),
            **{moment: torch.zeros_like(parameter) for moment in ADAM_MOMENTS},
        }
    return optimizer


def apply_gradients(optimizer: torch.optim.Optimizer, loss: Tensor, lr: float) -> None:
    """Backward, one optimizer step at ``lr``, and the gradients are gone."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def training_state(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters and optimizer state as one flat table of tensors, ready for safetensors."""
    state: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        state[f"weight/{name}"] = parameter.detach().clone()
        for key, value in optimizer.state[parameter].items():
            state[f"{key}/{name}"] = value.detach().clone()
    return state


def load_training_state(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]
) -> None:
    """Take back what :func:`training_state` gave."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[f"weight/{name}"])
            for key, value in optimizer.state[parameter].items():
                value.copy_(state[f"{key}/{name}"])
