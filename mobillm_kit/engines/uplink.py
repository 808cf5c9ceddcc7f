"""What a device without PyTorch makes of a step: forward, bytes of each tapped layer as it comes out, a message.

    engine -> h_i of layer i -> real tokens -> scales and codes -> payload        no layer waits for the next

The same order of samples, the same neighbours in each forward pass, the same bytes as ``device/uplink.py`` makes.

Knows: an engine, batches, codecs, messages.  Knows nothing of: sockets, how a server trains.
Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mobillm_kit.channel.messages import BatchMessage
from mobillm_kit.engines import arrays
from mobillm_kit.engines.engine import Array, Engine
from mobillm_kit.link.timeline import Timeline
from mobillm_kit.quant import Codec
from mobillm_kit.quant.bitwidth import BitWidthController
from mobillm_kit.texts.batches import Batches
from mobillm_kit.texts.encode import Encoded


@dataclass(frozen=True)
class Sent:
    """What is sent of one sample."""

    length: int
    """Tokens kept."""
    position: int
    """Of the prediction token among them."""
    parts: tuple[tuple[Array, Array], ...]
    """Per layer, bytes of scales and of codes, a row per token."""


class ArrayMessages:
    """A step's message and payloads, the first time or again: equal bytes.

    Args:
        engine: runs the backbone.
        train: the samples, by their numbers.
        layers: tapped, ascending.
        one_token: send the prediction token's activations alone.
        cache: whether the server keeps what it was sent.
    """

    def __init__(
        self,
        engine: Engine,
        batches: Batches,
        train: Sequence[Encoded],
        coder: BitWidthController,
        timeline: Timeline,
        *,
        layers: Sequence[int],
        width: int,
        one_token: bool,
        cache: bool,
    ) -> None:
        self.forwards = 0
        """Samples that went through the backbone."""
        self._engine, self._batches, self._train = engine, batches, train
        self._coder, self._timeline = coder, timeline
        self._layers, self._width = tuple(layers), width
        self._one_token, self._cache = one_token, cache

    def of_step(self, sequence: int, held: Callable[[int], bool]) -> tuple[BatchMessage, list[memoryview]]:
        """The batch of a step; samples that the server holds are not among its payloads."""
        samples = self._batches.samples(sequence)
        fresh = [row for row, sample in enumerate(samples) if not (self._cache and held(sample))]
        coder = self._coder.codec(sequence)
        found = self._found(sequence, [samples[row] for row in fresh], coder)
        layers = range(len(self._layers)) if found else ()
        message = BatchMessage(
            sequence=sequence,
            lr=self._batches.lr(sequence),
            samples=list(samples),
            fresh=fresh,
            lengths=[sent.length for sent in found],
            positions=[sent.position for sent in found],
            targets=self._batches.labels(samples),
            codec=coder.name,
            group=coder.group,
            layers=list(self._layers),
            frames=[],
        )
        return message, [arrays.payload([sent.parts[layer] for sent in found]) for layer in layers]

    def _found(self, sequence: int, wanted: Sequence[int], coder: Codec) -> list[Sent]:
        """Each sample together with the neighbours of its first time: a sum of floats may depend on them."""
        units: list[Sequence[int]] = [wanted] if wanted else []
        if self._cache:
            steps = sorted({self._batches.first_step(sample) for sample in wanted})
            units = [self._batches.unit(step) for step in steps]
        found: dict[int, Sent] = {}
        for unit in units:
            needed = [sample for sample in unit if sample in set(wanted)]
            found |= dict(zip(needed, self._encoded(sequence, unit, needed, coder), strict=True))
        return [found[sample] for sample in wanted]

    def _encoded(self, sequence: int, unit: Sequence[int], needed: Sequence[int], coder: Codec) -> list[Sent]:
        """Forward ``unit`` and encode ``needed``, layer by layer."""
        started, encode_s, n_bytes = time.perf_counter(), 0.0, 0
        batch = self._batches.encoder.arrays([self._train[sample] for sample in unit])
        self.forwards += len(unit)
        rows = np.array([unit.index(sample) for sample in needed])
        mask, positions = batch["attention_mask"], batch["positions"]
        real = mask[rows].astype(bool)
        places = np.take_along_axis(real.cumsum(axis=1) - 1, positions[rows, None], axis=1)[:, 0]
        lengths = np.ones(len(rows), np.int64) if self._one_token else real.sum(axis=1)
        ends = lengths.cumsum()
        parts: list[list[tuple[Array, Array]]] = [[] for _ in needed]
        for layer, state in self._engine.taps(batch["input_ids"], mask, batch.get("token_type_ids")):
            if layer not in self._layers:
                continue
            before = time.perf_counter()
            chosen = state[rows, positions[rows]] if self._one_token else state[rows][real]
            scales, codes = arrays.encode(coder, chosen, f"layer {layer}")
            n_bytes += scales.nbytes + codes.nbytes
            for own, end, length in zip(parts, ends, lengths, strict=True):
                own.append((scales[end - length : end], codes[end - length : end]))
            encode_s += time.perf_counter() - before
        forward_s = time.perf_counter() - started - encode_s
        self._timeline.add("forward", sequence, started, forward_s)
        self._timeline.add("encode", sequence, started + forward_s, encode_s)
        self._coder.made(int(ends[-1]) * self._width * len(self._layers), n_bytes)
        kept = np.zeros_like(places) if self._one_token else places
        about = zip(lengths.tolist(), kept.tolist(), parts, strict=True)
        return [Sent(length, place, tuple(own)) for length, place, own in about]
