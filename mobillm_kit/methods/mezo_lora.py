"""MeZO on LoRA's parameters: the backbone stays, A and B are trained by forward passes alone (arXiv 2305.17333).

Knows: the task model.  Knows nothing of: other methods.

Taught in: notebooks/09_comparison.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence

from mobillm_kit.methods.lora_layers import add_lora
from mobillm_kit.methods.task_model import TaskModel
from mobillm_kit.methods.zeroth_order import ZerothOrder


def build(
    model: TaskModel,
    *,
    seed: int,
    eps: float = 1e-2,
    rank: int = 8,
    alpha: float = 16.0,
    targets: str | Sequence[str] | None = None,
) -> ZerothOrder:
    """Train A and B, and the classifier of encoders, by SPSA; the paper's eps for LoRA is 1e-2."""
    layers = add_lora(model, rank=rank, alpha=alpha, targets=targets, seed=seed)
    parameters = {**layers, **model.head_parameters()}
    return ZerothOrder("mezo-lora", model, parameters, model.logits, seed=seed, eps=eps)
