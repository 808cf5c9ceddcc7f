"""LoRA: low-rank updates of some projections, with AdamW (arXiv 2106.09685), through PEFT.

    memory = weights + every saved activation on the way + gradients and moments of A and B

It saves gradients and optimizer state, hardly activations: the backward pass still runs through the whole backbone.

Knows: the task model.  Knows nothing of: other methods.

Taught in: notebooks/09_comparison.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence

from mobillm_kit.methods.backprop import Backprop
from mobillm_kit.methods.lora_layers import add_lora
from mobillm_kit.methods.task_model import TaskModel


def build(
    model: TaskModel,
    *,
    seed: int,
    rank: int = 8,
    alpha: float = 16.0,
    targets: str | Sequence[str] | None = None,
    weight_decay: float = 0.0,
) -> Backprop:
    """Train A and B of the targeted projections, and the classifier of encoders.

    Args:
        model: its backbone gets the layers.
        seed: of A.
        rank: r.
        alpha: numerator of the scale alpha / r.
        targets: names of projections, as a list or with commas; query and value by default.
        weight_decay: AdamW's.
    """
    layers = add_lora(model, rank=rank, alpha=alpha, targets=targets, seed=seed)
    return Backprop("lora", model, {**layers, **model.head_parameters()}, model.logits, weight_decay=weight_decay)
