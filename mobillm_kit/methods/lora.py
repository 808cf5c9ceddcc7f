"""LoRA: low-rank updates of some projections, with AdamW (arXiv 2106.09685), through PEFT.

    memory = weights + every saved activation on the way + gradients and moments of A and B

It saves gradients and optimizer state, hardly activations: the backward pass still runs through the whole backbone.

Knows: the task model.  Knows nothing of: other methods.
Taught in: notebooks/09_comparison.ipynb
"""

from typing import Any

from mobillm_kit.methods.backprop import Backprop
from mobillm_kit.methods.lora_layers import add_lora
from mobillm_kit.methods.task_model import TaskModel


def build(model: TaskModel, *, seed: int, weight_decay: float = 0.0, **lora: Any) -> Backprop:
    """Train A and B of the projections, and the classifier of encoders; ``lora`` as :func:`add_lora` takes it."""
    return Backprop("lora", model, add_lora(model, seed=seed, **lora), model.logits, weight_decay=weight_decay)
