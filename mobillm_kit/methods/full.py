"""Full fine-tuning: every weight of the backbone, with AdamW.

    memory = weights + gradients + 2 moments + every saved activation

Knows: the task model.  Knows nothing of: other methods.
Taught in: notebooks/09_comparison.ipynb
"""

from mobillm_kit.methods.backprop import Backprop
from mobillm_kit.methods.task_model import TaskModel


def build(model: TaskModel, *, seed: int, weight_decay: float = 0.0) -> Backprop:
    """Train all of ``model``.  ``seed`` is not used: nothing here is drawn."""
    return Backprop("full", model, dict(model.named_parameters()), model.logits, weight_decay=weight_decay)
