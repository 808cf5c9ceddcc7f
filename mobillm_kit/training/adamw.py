"""AdamW as every method with gradients uses it: moments made at once, one step, its state as a flat table.

    g = dL/dw,    m <- 0.9 m + 0.1 g,    v <- 0.999 v + 0.001 g^2,    w <- w - lr (m^ / (sqrt(v^) + eps) + decay w)

Knows: parameters and losses.  Knows nothing of: which parameters, and why.
Taught in: notebooks/02_full_finetuning.ipynb
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mobillm_kit.errors import BadInput

ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")


def adamw(parameters: Iterable[nn.Parameter], weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW (0.9, 0.999) with its moments made at once, so that memory and checkpoints are complete from step 0."""
    trained = list(parameters)
    if any(parameter.dtype == torch.float16 for parameter in trained):
        raise BadInput(
            "AdamW cannot train float16 weights: its eps and small squared gradients are 0 there, and the step is nan.",
            "Load the backbone in bfloat16 or float32 (--dtype).",
        )
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=weight_decay, foreach=False)
    for parameter in trained:
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
