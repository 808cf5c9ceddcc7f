"""Figures of merit for classification, as GLUE uses them.

    accuracy = (number of i with p_i = y_i) / n
    F1       = 2 TP / (2 TP + FP + FN)                                                       positive class: 1
    Matthews = (c n - sum_k p_k t_k) / sqrt((n^2 - sum_k p_k^2) (n^2 - sum_k t_k^2))

with c the number of right predictions, p_k and t_k how often class k was predicted and how often it is true.

Knows: integer tensors.  Knows nothing of: models, tasks, texts.
Taught in: notebooks/09_comparison.ipynb
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mobillm_kit.errors import BadInput, TrainingDiverged, UnknownName


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of right predictions, 0 to 1; (N,) class ids, integers, as everywhere here."""
    _check(predictions, labels)
    return int((predictions == labels).sum()) / labels.numel()


def f1(predictions: Tensor, labels: Tensor) -> float:
    """F1 of class 1, 0 to 1; 0 where nothing is 1 and nothing was called 1."""
    _check(predictions, labels)
    said, true = predictions == 1, labels == 1
    denominator = int(said.sum()) + int(true.sum())
    return 2 * int((said & true).sum()) / denominator if denominator else 0.0


def matthews(predictions: Tensor, labels: Tensor) -> float:
    """Matthews correlation, -1 to 1, for any number of classes (Gorodkin's R_K); 0 where one side is of one class."""
    _check(predictions, labels)
    classes = int(torch.maximum(predictions.max(), labels.max())) + 1
    said = torch.bincount(predictions, minlength=classes).tolist()
    true = torch.bincount(labels, minlength=classes).tolist()
    n, right = labels.numel(), int((predictions == labels).sum())
    # Python integers: n^4 overflows 64 bits from 55 000 rows on.
    spread_said = n * n - sum(p * p for p in said)
    spread_true = n * n - sum(t * t for t in true)
    if not spread_said or not spread_true:
        return 0.0
    covariance = right * n - sum(p * t for p, t in zip(said, true, strict=True))
    return covariance / math.sqrt(spread_said * spread_true)


METRICS: Mapping[str, Callable[[Tensor, Tensor], float]] = {"accuracy": accuracy, "f1": f1, "matthews": matthews}
"""Metrics by name; ``Task.metric`` is one of these names."""


def finite(logits: Tensor) -> Tensor:
    """The logits as they are; refused where one is no finite number: a label would be read off it all the same."""
    bad = int((~torch.isfinite(logits)).any(dim=-1).sum())
    if bad:
        problem = f"The model's logits are not finite numbers for {bad} of {len(logits)} texts."
        remedy = "Load the backbone in bfloat16 or float32 (--dtype); if training did it, lower the learning rate."
        raise TrainingDiverged(problem, remedy)
    return logits


def score(metric: str, predictions: Tensor, labels: Tensor) -> float:
    """The metric called ``metric``; ``UnknownName`` where there is none of that name."""
    if metric not in METRICS:
        raise UnknownName(f"There is no metric '{metric}'.", f"Known: {', '.join(METRICS)}.")
    return METRICS[metric](predictions, labels)


def _check(predictions: Tensor, labels: Tensor) -> None:
    if predictions.shape != labels.shape or labels.dim() != 1:
        problem = f"Predictions have shape {tuple(predictions.shape)}, labels {tuple(labels.shape)}."
        raise BadInput(problem, "Both must be (N,), one class id per row.")
    if not labels.numel():
        raise BadInput("A metric of no rows was asked for.", "Give at least one prediction and its label.")
    for name, values in (("Predictions", predictions), ("Labels", labels)):
        if values.is_floating_point() or values.is_complex():
            raise BadInput(f"{name} are {values.dtype}, not class ids.", "Take the argmax of the logits first.")
        if int(values.min()) < 0:
            raise BadInput(f"{name} hold the class id {int(values.min())}.", "Class ids count from 0.")
