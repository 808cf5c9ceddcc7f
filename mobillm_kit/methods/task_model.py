"""What every method trains: a backbone with a head for one task, from a batch of tokens to class logits.

Knows: backbones, heads and batches.  Knows nothing of: how anything is trained.
Taught in: notebooks/00_start_here.ipynb
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import cast

from torch import Tensor, nn

from mobillm_kit.backbone.split import Backbone
from mobillm_kit.errors import BadInput
from mobillm_kit.side.heads import LabelWordHead, MaskedWordHead
from mobillm_kit.side.pooled_head import PooledHead, Pooling
from mobillm_kit.texts.encode import Batch


class TaskModel(nn.Module):
    """A backbone and a head: what full fine-tuning, LoRA and the zeroth-order methods train."""

    def __init__(self, backbone: Backbone, head: LabelWordHead | PooledHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def hidden(self, batch: Batch) -> Tensor:
        """h_L, (B, T, d), before the final norm."""
        return self.backbone.last_hidden(batch.input_ids, batch.attention_mask, batch.token_type_ids)

    def logits(self, batch: Batch) -> Tensor:
        """(B, C)."""
        return self.head(self.head.pool(self.hidden(batch), batch.attention_mask, batch.positions))

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """What of the head every method trains: the classifier of encoders, nothing for label words."""
        if isinstance(self.head, PooledHead):
            return {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}
        return {}


def task_model(backbone: Backbone, *, word_ids: Sequence[int], pooling: Pooling = "mean", seed: int = 0) -> TaskModel:
    """Put the head of a task on a backbone.

    Args:
        word_ids: one token id per label, at least two; an encoder's classifier uses only their number.
        pooling, seed: of an encoder's classifier.
    """
    if len(word_ids) < 2:
        raise BadInput(f"A task needs at least two labels, here are {len(word_ids)}.")
    lm_head = cast(nn.Linear, backbone.lm_head)  # every decoder has one
    if backbone.kind == "encoder" and backbone.lm_head is None:
        head = PooledHead(backbone.width, len(word_ids), pooling=pooling, seed=seed)
        return TaskModel(backbone, head.to(backbone.device, backbone.dtype))
    if backbone.kind == "encoder":
        *parts, setting = backbone.family.masked_head or ("",)
        if not parts or getattr(backbone.config, setting or "_", "gelu") != "gelu":
            raise BadInput(f"The masked-language head of '{backbone.name}' is not read here.", "Use --head classifier.")
        dense, norm = attrgetter(*parts)(backbone.model)
        return TaskModel(backbone, MaskedWordHead(norm, dense, lm_head, word_ids))
    cap = getattr(backbone.config, "final_logit_softcapping", None)
    scale = getattr(backbone.config, "logit_scale", None) or 1 / getattr(backbone.config, "logits_scaling", 1)
    return TaskModel(backbone, LabelWordHead(backbone.norm, backbone.project_out, lm_head, word_ids, cap, scale))
