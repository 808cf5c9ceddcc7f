"""Ladder side tuning on the device itself: no server, and no backward pass through the backbone (arXiv 2206.06522).

    A_1 … A_L = backbone(tokens), without gradient          s_i = Block_i(g_i s_{i-1} + (1 - g_i) W_i norm(A_i))
    logits = head(pool(A_L + W_up norm(s_L)))               g_1 = 0, g_i = sigmoid(alpha_i / 0.1)

    memory = weights + every A_i + the ladder's own gradients, moments and saved activations (width d/k)

The ladder is the one that MobiLLM's server trains (side/ladders.py).  It departs from the paper's in five points: each
A_i is normalized before W_i; no s_0 is made of the embedding, so that the first gate is nothing to learn; there is no
dropout; the backbone's last state is added, so that step 0 is the pretrained model; the blocks start at random, not as
the backbone's, pruned.

Knows: the task model and the ladder.  Knows nothing of: other methods, servers.
Taught in: notebooks/01_where_memory_goes.ipynb
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mobillm_kit.methods.backprop import Backprop
from mobillm_kit.methods.task_model import TaskModel
from mobillm_kit.side.description import chosen_layers
from mobillm_kit.side.ladders import LadderSide
from mobillm_kit.texts.encode import Batch


def build(
    model: TaskModel,
    *,
    seed: int,
    reduction: int = 8,
    heads: int = 2,
    layers: int | Sequence[int] | None = None,
    weight_decay: float = 0.0,
) -> Backprop:
    """Train a ladder beside the backbone, and the classifier of encoders.

    Args:
        reduction: k, the ladder's width is d/k; the paper's 8.  BadInput where it or the heads do not divide the width.
        layers: how many layers are tapped, evenly spaced, or which; all by default.  BadInput for others.
    """
    backbone = model.backbone
    causal = backbone.kind == "decoder"
    chosen = chosen_layers(backbone.n_layers, layers)
    side = LadderSide(backbone.width, chosen, reduction=reduction, heads=heads, causal=causal, seed=seed)
    side.to(backbone.device)

    def logits(batch: Batch) -> Tensor:
        """(B, C); the graph reaches the ladder and the head, not the backbone."""
        with torch.no_grad():
            taps = backbone.taps(batch.input_ids, batch.attention_mask, batch.token_type_ids, layers=chosen)
        wide = [tap.to(side.gates.dtype) for tap in taps]
        hidden = wide[-1] + side(wide, batch.attention_mask)
        return model.head(model.head.pool(hidden, batch.attention_mask, batch.positions))

    trained = {f"side.{name}": parameter for name, parameter in side.named_parameters()}
    trained |= model.head_parameters()
    return Backprop("lst", nn.ModuleList([model, side]), trained, logits, weight_decay=weight_decay)
