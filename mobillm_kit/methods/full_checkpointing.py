"""Full fine-tuning with gradient checkpointing: each block's activations are made again in the backward pass.

    saved = h_0 … h_L + one block's activations,  at the price of a second forward
    (Chen et al., arXiv 1604.06174)

Knows: the task model.  Knows nothing of: other methods.
Taught in: notebooks/09_comparison.ipynb
"""

from functools import partial

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mobillm_kit.methods.backprop import Backprop
from mobillm_kit.methods.task_model import TaskModel
from mobillm_kit.texts.encode import Batch


def build(model: TaskModel, *, seed: int, weight_decay: float = 0.0) -> Backprop:
    """Train all of ``model``, one block's graph in memory at a time; equal gradients to full fine-tuning."""
    parameters, logits = dict(model.named_parameters()), partial(checkpointed_logits, model)
    return Backprop("full-checkpointing", model, parameters, logits, weight_decay=weight_decay)


def checkpointed_logits(model: TaskModel, batch: Batch) -> Tensor:
    """(B, C), each block a checkpoint of its own."""
    backbone = model.backbone
    hidden, inputs = backbone.begin(batch.input_ids, batch.attention_mask, batch.token_type_ids)
    for index, handed in enumerate(inputs):
        hidden = checkpoint(backbone.block, index, hidden, handed, use_reentrant=False, preserve_rng_state=False)
    return model.head(model.head.pool(hidden, batch.attention_mask, batch.positions))
