"""Small real things for tests: a task model on a tiny random backbone, and batches of random tokens."""

from __future__ import annotations

import torch

from mobillm_kit.encode import Batch
from mobillm_kit.model import Pooling, TaskModel, task_model
from tests.families import tiny_backbone


def tiny_task_model(
    name: str = "opt", *, seed: int = 0, pooling: Pooling = "mean", labels: int = 2, dtype=torch.float32
) -> TaskModel:
    backbone = tiny_backbone(name, seed=seed)
    backbone.model.to(dtype)
    return task_model(backbone, word_ids=range(10, 10 + labels), pooling=pooling, seed=seed)


def random_batch(
    *, rows: int = 4, length: int = 9, kind: str = "decoder", labels: int = 2, seed: int = 0, pad: str = "right"
) -> Batch:
    """Texts of different lengths; decoders predict from the last real token, encoders from the first."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(12, 100, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    first, last = torch.zeros(rows, dtype=torch.long), torch.full((rows,), length - 1)
    for row in range(rows):
        short = row % 3
        cut = slice(length - short, length) if pad == "right" else slice(0, short)
        ids[row, cut], mask[row, cut] = 1, 0
        if pad == "right":
            last[row] -= short
        else:
            first[row] += short
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        labels=torch.randint(0, labels, (rows,), generator=generator),
        positions=last if kind == "decoder" else first,
    )
