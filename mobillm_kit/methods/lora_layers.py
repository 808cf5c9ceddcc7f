"""Low-rank layers inside a backbone, put there by PEFT (arXiv 2106.09685).

    y = W x + (alpha / r) B A x         A: d_in -> r, random;  B: r -> d_out, zero at the start

Knows: the task model and PEFT.  Knows nothing of: how the layers are trained.
Taught in: notebooks/09_comparison.ipynb
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from mobillm_kit.backbone.split import Backbone
from mobillm_kit.common import derived_seed, quiet
from mobillm_kit.errors import BadInput
from mobillm_kit.methods.task_model import TaskModel

with quiet():
    from peft import LoraConfig, inject_adapter_in_model


def add_lora(
    model: TaskModel, *, seed: int, rank: int = 8, alpha: float = 16.0, targets: str | Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """Put LoRA layers into the backbone; at the start they change nothing, to the bit.

    Args:
        seed: of A.
        rank, alpha: r, and the numerator of the scale alpha / r.
        targets: names of the projections, a list or with commas, or ``all``; query and value of the family by default.
            BadInput for one that no layer has, and for a rank or an alpha out of range.

    Returns:
        What is trained, by name: A and B of every layer, and the classifier of encoders.
    """
    check_scale(rank, alpha)
    chosen = target_names(model.backbone, targets)
    named = {name: each for name, each in model.backbone.model.named_modules() if name.split(".")[-1] in chosen}
    inside = set(model.backbone.blocks.modules())
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(chosen),
        exclude_modules=[name for name, each in named.items() if each not in inside],  # a masked head's `dense`
        lora_dropout=0.0,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in named.values()),
    )
    with torch.random.fork_rng(devices=[]):  # PEFT draws A from the global generator of the CPU
        # torch.manual_seed would seed every accelerator as well, and nothing would take that back
        torch.default_generator.manual_seed(derived_seed(seed, "lora"))
        inject_adapter_in_model(config, model.backbone.model)
    model.backbone.freeze()
    both = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    return both | model.head_parameters()


def check_scale(rank: int, alpha: float) -> None:
    """Refuse a rank that is no whole number from 1 up, and an alpha that is no finite number above 0."""
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise BadInput(f"rank is {rank}; it must be a whole number from 1 up.")
    if not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        raise BadInput(f"alpha is {alpha}; it must be a number above 0.")


def target_names(backbone: Backbone, targets: str | Sequence[str] | None) -> tuple[str, ...]:
    """The projections to adapt; one that no layer has is refused, with a list of those there are."""
    modules = backbone.blocks.named_modules()
    there = {name.split(".")[-1] for name, module in modules if isinstance(module, (nn.Linear, Conv1D))}
    if targets == "all":
        return tuple(sorted(name for name in there if not name.startswith("pos_")))  # those read no tokens (DeBERTa)
    given = [name.strip() for name in targets.split(",")] if isinstance(targets, str) else targets
    chosen = tuple(given or backbone.family.attention_targets)
    missing = [target for target in chosen if target not in there]
    if missing:
        problem = f"'{backbone.name}' has no layer named '{missing[0]}'."
        raise BadInput(problem, f"There are: {', '.join(sorted(there))}.")
    return chosen
