"""LoRA-FA: LoRA with A frozen as it was drawn, only B trained (arXiv 2308.03303), through PEFT.

    grad_B needs A x (r values a token) instead of x (d values a token)

PEFT has an optimizer of this name that projects the gradient; it computes in bfloat16 where the processor can, so its
result depends on the machine, and it keeps its state by the parameters' names.  Here B is trained with AdamW, as in the
paper's first form.

Knows: the task model.  Knows nothing of: other methods.
Taught in: notebooks/09_comparison.ipynb
"""

from typing import Any

from mobillm_kit.methods.backprop import Backprop
from mobillm_kit.methods.lora_layers import add_lora
from mobillm_kit.methods.task_model import TaskModel


def build(model: TaskModel, *, seed: int, weight_decay: float = 0.0, **lora: Any) -> Backprop:
    """Train B of the targeted projections, and the classifier of encoders; ``lora`` as :func:`add_lora` takes it."""
    both = add_lora(model, seed=seed, **lora)
    trained = {name: parameter for name, parameter in both.items() if ".lora_A." not in name}
    return Backprop("lora-fa", model, trained, model.logits, weight_decay=weight_decay)
