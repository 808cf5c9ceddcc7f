"""MeZO on LoRA's parameters: the backbone stays, A and B are trained by forward passes alone (arXiv 2305.17333).

Knows: the task model.  Knows nothing of: other methods.
Taught in: notebooks/04_mezo.ipynb
"""

from typing import Any

from mobillm_kit.methods.lora_layers import add_lora
from mobillm_kit.methods.task_model import TaskModel
from mobillm_kit.methods.zeroth_order import ZerothOrder


def build(model: TaskModel, *, seed: int, eps: float = 1e-2, **lora: Any) -> ZerothOrder:
    """Train A and B, and the classifier of encoders, by SPSA (eps of the paper); ``lora`` is :func:`add_lora`'s."""
    return ZerothOrder("mezo-lora", model, add_lora(model, seed=seed, **lora), model.logits, seed=seed, eps=eps)
