"""What is trained on at step t: a function of seed and step alone, so that any batch can be made again.

    step(t)    the batch: its samples' numbers, in their order, and the encoded rows
    unit(t)    those of its samples that no earlier step has seen: forwarded together, once, where a server keeps them

So a run goes on from a checkpoint to the same bytes, and no method's random numbers can move another's data.

Knows: encoded texts, the order of training, the learning rate.  Knows nothing of: methods, backbones, servers.
Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from mobillm_kit.common import derived_seed, twister
from mobillm_kit.errors import BadInput
from mobillm_kit.texts.encode import Batch, Encoded, TextEncoder

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast to train."""

    steps: int
    batch_size: int
    lr: float
    schedule: Schedule = "linear"
    warmup: float = 0.0
    """Share of the steps in which the learning rate rises from 0."""
    eval_every: int = 50
    patience: int | None = None
    """Evaluations without a lower dev loss after which training stops; None trains to the end."""
    seed: int = 0
    """Of the data's order."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "eval_every"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.lr >= 0 or not math.isfinite(self.lr):
            raise BadInput(f"lr is {self.lr}; it must be a number from 0 up.")
        if self.schedule not in ("constant", "linear", "cosine"):
            raise BadInput(f"Unknown schedule '{self.schedule}'.", "Choose constant, linear or cosine.")
        if not 0 <= self.warmup <= 1:
            raise BadInput(f"warmup is {self.warmup}; it must lie in 0 .. 1.")


@dataclass(frozen=True, kw_only=True)
class StepBatch(Batch):
    """A batch that knows its place in training, and with it how to be made again."""

    step: int
    samples: tuple[int, ...]
    """Numbers of the training examples, one per row."""
    batches: Batches


class Batches:
    """Every batch of a run, by step."""

    def __init__(
        self, train: Sequence[Encoded], encoder: TextEncoder, settings: FitSettings, device: str = "cpu"
    ) -> None:
        if len(train) < settings.batch_size:
            raise BadInput(f"{len(train)} training examples are fewer than one batch of {settings.batch_size}.")
        self.settings = settings
        self.encoder = encoder
        self.device = device
        self.n_samples = len(train)
        self._train = train
        self._first: dict[int, int] = {}
        self._seen_to = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return max(len(row.ids) for row in self._train)

    def step(self, step: int) -> StepBatch:
        """The batch of a step."""
        samples = self.samples(step)
        return StepBatch(**vars(self.rows(samples)), step=step, samples=samples, batches=self)

    def samples(self, step: int) -> tuple[int, ...]:
        """The numbers of the samples of a step, in their order."""
        return tuple(batch_indices(self.n_samples, self.settings.batch_size, step, self.settings.seed))

    def rows(self, samples: Sequence[int]) -> Batch:
        """Any samples as a batch."""
        return self.encoder.collate([self._train[sample] for sample in samples]).to(self.device)

    def labels(self, samples: Sequence[int]) -> list[int]:
        """(B,) label ids."""
        return [self._train[sample].label for sample in samples]

    def lr(self, step: int) -> float:
        """The rate at ``step`` (from 0): warm-up to ``lr``, then constant, linear to 0, or half a cosine to 0."""
        settings = self.settings
        warm = round(settings.warmup * settings.steps)
        if step < warm:
            return settings.lr * (step + 1) / warm
        if settings.schedule == "constant":
            return settings.lr
        done = (step - warm) / max(1, settings.steps - warm)
        return settings.lr * (1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))

    def first_step(self, sample: int) -> int:
        """The first step that sees a sample."""
        while sample not in self._first:
            for number in self.samples(self._seen_to):
                self._first.setdefault(number, self._seen_to)
            self._seen_to += 1
        return self._first[sample]

    def unit(self, step: int) -> tuple[int, ...]:
        """The samples that this step is the first to see, in their order."""
        return tuple(sample for sample in self.samples(step) if self.first_step(sample) == step)


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Which examples step ``step`` sees: shuffled anew each epoch, the ragged end of an epoch left out."""
    epoch, place = divmod(step, n // batch_size)
    return _order(n, epoch, seed)[place * batch_size : (place + 1) * batch_size]


@lru_cache(maxsize=2)
def _order(n: int, epoch: int, seed: int) -> list[int]:
    """What ``torch.randperm`` gives for the seed."""
    drawn, order = twister(derived_seed(seed, "order", epoch)), list(range(n))
    for place in range(n - 1):
        other = place + drawn.getrandbits(32) % (n - place)
        order[place], order[other] = order[other], order[place]
    return order
