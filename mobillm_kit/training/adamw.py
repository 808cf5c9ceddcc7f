"""AdamW as every method with gradients uses it: moments made at once, one step, its state and its ledger.

    g = dL/dw,    m <- 0.9 m + 0.1 g,    v <- 0.999 v + 0.001 g^2,    w <- w - lr (m^ / (sqrt(v^) + eps) + decay w)
    averaging:    a <- beta a + (1 - beta) w  after each step, a = w at the start; a is what is kept, g is taken at w

Knows: parameters and losses.  Knows nothing of: which parameters, and why.
Taught in: notebooks/02_full_finetuning.ipynb
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from mobillm_kit.errors import BadInput
from mobillm_kit.record import CountedMemory
from mobillm_kit.training.ledger import SavedActivations, storage_bytes

ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")


class Trained:
    """Parameters by name under AdamW (0.9, 0.999), whose memory and checkpoints are complete from step 0.

    With ``averaging`` beta above 0 they are the average, and ``stepped``, copies of them, are what the loss must read.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], weight_decay: float = 0, averaging: float = 0) -> None:
        if not 0 <= averaging < 1:
            raise BadInput(f"averaging is {averaging}; it must lie in 0 .. 1, without 1.", "0.995 is usual, 0 is none.")
        self.parameters = dict(parameters)
        self.averaging = averaging
        copies = {name: nn.Parameter(weight.detach().clone()) for name, weight in parameters.items() if averaging}
        self.stepped = copies or self.parameters
        weights = [parameter.requires_grad_(True) for parameter in self.stepped.values()]
        if any(weight.dtype == torch.float16 for weight in weights):
            problem = "AdamW cannot train float16 weights: its eps and small squares are 0 there, and the step is nan."
            raise BadInput(problem, "Load the backbone in bfloat16 or float32 (--dtype).")
        self.optimizer = torch.optim.AdamW(weights, lr=0.0, weight_decay=weight_decay, foreach=False)
        for weight in weights:
            moments = {moment: torch.zeros_like(weight) for moment in ADAM_MOMENTS}
            self.optimizer.state[weight] = {"step": torch.tensor(0.0), **moments}

    def descend(self, loss: Tensor, lr: float) -> None:
        """Backward, one step at ``lr``, and the gradients are gone."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.averaging:
            for name, weight in self.stepped.items():
                self.parameters[name].detach().lerp_(weight.detach(), 1 - self.averaging)

    def detached(self) -> dict[str, Tensor]:
        """The parameters themselves, without gradient."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def state(self) -> dict[str, Tensor]:
        """Weights, moments, step counts and averages, what the next step depends on, as one flat table of copies."""
        return {key: tensor.detach().clone() for key, tensor in self._table().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state` gave, in place."""
        with torch.no_grad():
            for key, tensor in self._table().items():
                tensor.copy_(state[key])

    def _table(self) -> dict[str, Tensor]:
        table: dict[str, Tensor] = {}
        for name, parameter in self.stepped.items():
            table[f"weight/{name}"] = parameter
            table |= {f"average/{name}": self.parameters[name]} if self.averaging else {}
            table |= {f"{key}/{name}": value for key, value in self.optimizer.state[parameter].items()}
        return table

    def count_memory(
        self,
        party: Literal["device", "server"],
        model: nn.Module,
        loss: Callable[[], Tensor],
        received: Iterable[Tensor] = (),
        messages_bytes: int = 0,
        held: Iterable[Tensor] = (),
    ) -> CountedMemory:
        """Weights, gradients, moments and what autograd saves for one backward pass of ``loss``; trains nothing.

        ``received`` is what ``loss`` reads of a message, which ``messages_bytes`` counts already; ``held`` are weights
        beside the model's parameters: the buffers of a streamed backbone.
        """
        copies = self.stepped.values() if self.averaging else ()
        weights = [t for t in (*model.parameters(), *model.buffers(), *held, *copies) if not t.is_meta]
        with SavedActivations([*weights, *received]) as saved:
            torch.autograd.grad(loss(), list(self.stepped.values()), allow_unused=True)
        trained_bytes = storage_bytes(self.parameters.values())
        return CountedMemory(
            party=party,
            weights_bytes=storage_bytes(weights),
            gradients_bytes=trained_bytes,
            optimizer_bytes=len(ADAM_MOMENTS) * trained_bytes,
            saved_activations_bytes=saved.peak_bytes,
            messages_bytes=messages_bytes,
        )
