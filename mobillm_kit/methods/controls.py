"""What every comparison has to be compared with: predictions that need no fine-tuning.

    zero-shot      argmax_c logit_c                             the label words after the prompt
    threshold      positive where  logit_1 - logit_0 > t        t chosen on dev: a shifted prompt, nothing learnt
    bag of words   logistic regression on word counts           no language model at all
    majority       the most frequent training label

Knows: logits, texts, labels.  Knows nothing of: training loops, methods.
Taught in: notebooks/09_comparison.ipynb
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mobillm_kit.errors import BadInput, extra
from mobillm_kit.texts.tasks import Example


def best_threshold(logits: Tensor, labels: Tensor) -> float:
    """The t that makes ``logit_1 - logit_0 > t`` right most often; (N, 2) logits, two labels and no more, (N,) labels.

    Of equally good thresholds the middle of the widest gap is taken, so that it does not hang on one text.
    """
    if logits.shape[1] != 2:
        raise BadInput(f"One threshold parts two labels; this task has {logits.shape[1]}.")
    difference, order = (logits[:, 1] - logits[:, 0]).double().sort()
    gained = torch.where(labels[order] == 0, 1, -1).cumsum(0)
    right = torch.cat([torch.zeros(1), gained])  # right[k]: the k smallest are called 0; against calling none so
    edges = torch.cat([difference[:1] - 1, difference, difference[-1:] + 1])
    gaps = torch.where(right == right.max(), edges[1:] - edges[:-1], torch.tensor(-1.0, dtype=torch.float64))
    best = int(gaps.argmax())
    return ((edges[best] + edges[best + 1]) / 2).item()


def threshold(logits: Tensor, t: float) -> Tensor:
    """(N, 2) logits to (N,) labels by one threshold."""
    return (logits[:, 1] - logits[:, 0] > t).long()


def bag_of_words(train: Sequence[Example], texts: Sequence[Example]) -> Tensor:
    """Labels of ``texts``, (N,), by scikit-learn's logistic regression on the training texts' word counts."""
    with extra("lab", "The bag-of-words control needs scikit-learn"):
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    model = make_pipeline(CountVectorizer(token_pattern=r"\S+"), LogisticRegression(max_iter=1000))
    model.fit([_words(example) for example in train], [example.label for example in train])
    return torch.tensor(model.predict([_words(example) for example in texts]))


def majority(train: Sequence[Example], n: int) -> Tensor:
    """(N,) times the most frequent training label."""
    labels = torch.tensor([example.label for example in train])
    return torch.full((n,), int(labels.bincount().argmax()))


def _words(example: Example) -> str:
    """Words of a pair are kept apart by text, as a premise and its hypothesis mean different things."""
    if example.pair is None:
        return example.text.lower()
    texts = {"a": example.text, "b": example.pair}
    return " ".join(f"{which}:{word}" for which, text in texts.items() for word in text.lower().split())
