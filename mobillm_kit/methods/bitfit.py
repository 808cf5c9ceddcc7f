"""BitFit: the biases are trained and nothing else (Ben Zaken et al., arXiv 2106.10199).

    y = W x + b         b <- AdamW(b, dL/db, lr),    dL/db = sum of dL/dy over tokens: no activation enters it

Gradients and optimizer state shrink to a thousandth of full fine-tuning's.  A bias itself needs
no activation, but the backward pass on its way down still needs those of every nonlinearity, norm and attention.

Knows: the task model.  Knows nothing of: other methods.
Taught in: notebooks/01_where_memory_goes.ipynb
"""

from mobillm_kit.errors import BadInput
from mobillm_kit.methods.backprop import Backprop
from mobillm_kit.methods.task_model import TaskModel


def build(model: TaskModel, *, seed: int, weight_decay: float = 0.0) -> Backprop:
    """Train every bias, norms included, and the classifier of encoders.  ``seed`` is not used: nothing is drawn."""
    backbone = model.backbone.model
    biases = {name: p for name, p in backbone.named_parameters() if name.rpartition(".")[2] == "bias"}
    if not biases:
        raise BadInput(
            f"'{model.backbone.name}' has no biases to train ({model.backbone.config.model_type} models have none).",
            "Take 'lora', or a backbone with biases (OPT, GPT-2, BERT, RoBERTa, Qwen2).",
        )
    trained = {f"backbone.model.{name}": bias for name, bias in biases.items()}
    return Backprop("bitfit", model, {**trained, **model.head_parameters()}, model.logits, weight_decay=weight_decay)
