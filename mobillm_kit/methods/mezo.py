"""MeZO: every weight trained by forward passes alone (arXiv 2305.17333; on a phone: PocketLLM, arXiv 2407.01031).

    memory = weights + a piece of z, 16 MiB at most

Knows: the task model.  Knows nothing of: other methods.
Taught in: notebooks/04_mezo.ipynb
"""

from mobillm_kit.methods.task_model import TaskModel
from mobillm_kit.methods.zeroth_order import ZerothOrder


def build(model: TaskModel, *, seed: int, eps: float = 1e-3) -> ZerothOrder:
    """Train all of ``model`` by SPSA; 1e-3 is the paper's eps."""
    return ZerothOrder("mezo", model, dict(model.named_parameters()), model.logits, seed=seed, eps=eps)
