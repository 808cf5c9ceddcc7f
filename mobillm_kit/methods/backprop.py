"""First-order training of named parameters with AdamW: the part that every method with gradients shares.

    g = dL/dw,    w <- AdamW(w, g, lr)          L = cross-entropy over the task's labels

Knows: parameters and a function from batch to logits.  Knows nothing of: which parameters, and why.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobillm_kit.backbone.split import Backbone
from mobillm_kit.record import CountedMemory
from mobillm_kit.texts.encode import Batch
from mobillm_kit.training.adamw import Trained
from mobillm_kit.training.method import StepResult


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
        self._logits = logits
        self._trained = Trained(parameters, weight_decay)
        self.trained = self._trained.detached
        self.state, self.load_state = self._trained.state, self._trained.load_state

    def step(self, batch: Batch, lr: float) -> StepResult:
        """One AdamW step on the mean cross-entropy of the batch; B samples go forward and backward."""
        loss = self._loss(batch)
        self._trained.descend(loss, lr)
        return StepResult(loss=loss.item(), forwards=len(batch.labels))

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """(B, C) class logits, without gradient."""
        return self._logits(batch)

    def count_memory(self, batch: Batch) -> tuple[CountedMemory, ...]:
        """The device's ledger of one training step; trains nothing."""
        backbones = [module for module in self._model.modules() if isinstance(module, Backbone)]
        if any(parameter.is_meta for parameter in self._model.parameters()):
            self.logits(batch)  # a streamed backbone makes its buffers when it first runs
        held = [tensor for backbone in backbones for tensor in backbone.resident()]
        return (self._trained.count_memory("device", self._model, lambda: self._loss(batch), held=held),)

    def _loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self._logits(batch), batch.labels)
