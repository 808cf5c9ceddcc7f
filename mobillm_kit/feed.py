"""What a device trains on at step t: a pure function of the seed, so that any batch can be made again.

    samples(t)    the numbers of the batch's samples
    unit(t)       those of them that no earlier step has seen: forwarded together, once, where the server has a cache

Knows: encoded texts and the order of training.  Knows nothing of: backbones, servers.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence

from mobillm_kit.encode import Batch, Encoded, TextEncoder
from mobillm_kit.fit import FitSettings, batch_indices, learning_rate


class Feed:
    """Batches by step.

    Args:
        train: encoded examples.
        encoder: pads rows to batches.
        settings: steps, batch size, learning rate, seed.
        device: where batches go.
    """

    def __init__(
        self, train: Sequence[Encoded], encoder: TextEncoder, settings: FitSettings, device: str = "cpu"
    ) -> None:
        self.settings = settings
        self.n_samples = len(train)
        self._train = train
        self._encoder = encoder
        self._device = device
        self._first: dict[int, int] = {}
        self._seen_to = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return max(len(row.ids) for row in self._train)

    def samples(self, step: int) -> list[int]:
        """The numbers of the samples of a step, in their order."""
        return batch_indices(self.n_samples, self.settings.batch_size, step, self.settings.seed)

    def lr(self, step: int) -> float:
        return learning_rate(self.settings, step)

    def first_step(self, sample: int) -> int:
        """The first step that sees a sample."""
        while sample not in self._first:
            for number in self.samples(self._seen_to):
                self._first.setdefault(number, self._seen_to)
            self._seen_to += 1
        return self._first[sample]

    def unit(self, step: int) -> list[int]:
        """The samples that this step is the first to see, in their order."""
        return [sample for sample in self.samples(step) if self.first_step(sample) == step]

    def labels(self, samples: Sequence[int]) -> list[int]:
        return [self._train[sample].label for sample in samples]

    def batch(self, samples: Sequence[int]) -> Batch:
        return self._encoder.collate([self._train[sample] for sample in samples]).to(self._device)
