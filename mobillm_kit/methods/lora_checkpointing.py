"""LoRA with gradient checkpointing: exact gradients, one block's activations in memory at a time.

    saved = h_0 … h_L + one block's activations,  at the price of a second forward

On a streamed backbone it is the idea of MeBP (arXiv 2510.03425): the frozen blocks are read from disk one at a time, a
second time on the way back, and a step holds two blocks in place of all.  It is the honest rival of every method that
avoids back-propagation.

Knows: the task model.  Knows nothing of: other methods, how blocks are read.
Taught in: notebooks/01_where_memory_goes.ipynb
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from mobillm_kit.backbone.split import Backbone
from mobillm_kit.methods.backprop import Backprop
from mobillm_kit.methods.full_checkpointing import checkpointed_logits
from mobillm_kit.methods.lora_layers import add_lora
from mobillm_kit.methods.task_model import TaskModel


def build(model: TaskModel, *, seed: int, weight_decay: float = 0.0, **lora: Any) -> Backprop:
    """Train A and B as LoRA does, with equal gradients; ``lora`` as :func:`add_lora` takes it.

    A and B are of the weights' type; beside weights that are streamed or in few bits they are float32.
    """
    with _in_memory(model.backbone):
        trained = add_lora(model, seed=seed, **lora)
    logits = partial(checkpointed_logits, model)
    return Backprop("lora-checkpointing", model, trained, logits, weight_decay=weight_decay)


@contextmanager
def _in_memory(backbone: Backbone) -> Iterator[None]:
    """While it holds, a weight without values is one float32 zero, expanded: PEFT puts A and B where a weight lies."""
    there = ((module, module._parameters.get("weight")) for module in backbone.blocks.modules())
    weights = {module: weight for module, weight in there if weight is not None and weight.is_meta}
    for module, weight in weights.items():
        zero = torch.zeros(1, device=backbone.device).expand(weight.shape)
        module._parameters["weight"] = nn.Parameter(zero, requires_grad=False)
    try:
        yield
    finally:
        for module, weight in weights.items():
            module._parameters["weight"] = weight
