"""Linear probe: the backbone stays as it is, a linear classifier reads its last state.

    logits = W norm(pool(h_L)) + b

The honest floor of every method that keeps the backbone frozen: what a classifier alone can read.

Knows: the task model.  Knows nothing of: other methods.
Taught in: notebooks/09_comparison.ipynb
"""

import torch
from torch import Tensor, nn

from mobillm_kit.methods.backprop import Backprop
from mobillm_kit.methods.task_model import TaskModel
from mobillm_kit.side.heads import LabelWordHead
from mobillm_kit.side.pooled_head import PooledHead
from mobillm_kit.texts.encode import Batch


def build(model: TaskModel, *, seed: int, weight_decay: float = 0.0) -> Backprop:
    """Train a classifier on the last state alone: an encoder's own, a decoder's in place of its label words."""
    head = model.head
    if isinstance(head, PooledHead):
        classifier = head
    else:  # on features that are pooled already: its own pooling is never asked
        classifier = PooledHead(model.backbone.width, head.n_labels, seed=seed)
        classifier.to(model.backbone.device, model.backbone.dtype)

    def logits(batch: Batch) -> Tensor:
        """(B, C); the graph reaches the classifier alone."""
        with torch.no_grad():
            pooled = head.pool(model.hidden(batch), batch.attention_mask, batch.positions)
            features = head.norm(pooled) if type(head) is LabelWordHead else pooled  # an encoder's are normed
        return classifier(features)

    whole, trained = nn.ModuleList([model, classifier]), dict(classifier.named_parameters())
    return Backprop("probe", whole, trained, logits, weight_decay=weight_decay)
