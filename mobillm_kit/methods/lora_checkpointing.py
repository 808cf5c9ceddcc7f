"""LoRA with gradient checkpointing: exact gradients, one block's activations in memory at a time.

    saved = h_0 … h_L + one block's activations,  at the price of a second forward

The honest rival of every method that avoids back-propagation.  With the frozen blocks read from disk one at a
time as well it is the idea of MeBP (arXiv 2510.03425); mobillm_kit/memory/budget.py predicts what that would take.

Knows: the task model.  Knows nothing of: other methods.
Taught in: notebooks/01_where_memory_goes.ipynb
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mobillm_kit.methods.backprop import Backprop
from mobillm_kit.methods.full_checkpointing import checkpointed_logits
from mobillm_kit.methods.lora_layers import add_lora
from mobillm_kit.methods.task_model import TaskModel


def build(model: TaskModel, *, seed: int, weight_decay: float = 0.0, **lora: Any) -> Backprop:
    """Train A and B as LoRA does, with equal gradients; ``lora`` as :func:`add_lora` takes it."""
    trained, logits = add_lora(model, seed=seed, **lora), partial(checkpointed_logits, model)
    return Backprop("lora-checkpointing", model, trained, logits, weight_decay=weight_decay)
