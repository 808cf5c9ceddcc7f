"""ONNX Runtime in a step of P-RGE: block after block, each handed the low-rank matrices of its projections.

The stacks of B stand here and not in the graph: its inputs are views of them, so that no second set exists, and one
export serves every q and rank.

Knows: an exported folder, arrays.  Knows nothing of: torch, texts, how a step ends.
Taught in: notebooks/05_p_rge.ipynb
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mobillm_kit.common import cut
from mobillm_kit.engines.dual import F, Settings, cross_entropy, draw_a, update
from mobillm_kit.engines.engine import Array
from mobillm_kit.engines.head import WordHead
from mobillm_kit.engines.noise import Noise
from mobillm_kit.engines.onnx import OnnxEngine


class OnnxStepper:
    """A :class:`~mobillm_kit.engines.dual.Stepper` on an export for P-RGE, for these label words; A is ``seed``'s."""

    def __init__(self, engine: OnnxEngine, words: Sequence[int], settings: Settings, seed: int) -> None:
        adapted = engine.manifest.adapted
        assert adapted is not None  # manifest.check_use has seen to it
        self._engine, self._head = engine, WordHead(engine, words)
        self._eps, self._scale = settings.eps, np.array([settings.alpha / settings.rank], F)
        self._shape = 2, settings.q
        self._passes = [
            (signs, these) for signs in cut(2, whole=settings.inner) for these in cut(settings.q, whole=settings.outer)
        ]
        given = draw_a(adapted, engine.manifest.layers, settings.rank, seed)
        self.layers, self._a = tuple(given), list(given.values())
        widths = [d_out for d_out, _ in adapted.targets.values()] * engine.manifest.layers
        self.stacks = [np.zeros((*self._shape, width, settings.rank), F) for width in widths]

    def step(self, batch: Mapping[str, Array], g: Array, lr: float, noise: Noise) -> Array:
        """As the protocol has it."""
        self.move(g, lr, noise)
        losses = np.empty(self._shape, F)
        for signs, these in self._passes:
            copies = [stack[signs, these].reshape(-1, *stack.shape[2:]) for stack in self.stacks]
            each = cross_entropy(self._logits(batch, copies), batch["labels"]).mean(axis=-1)
            losses[signs, these] = each.reshape(losses[signs, these].shape)
        return losses

    def move(self, g: Array, lr: float, noise: Noise) -> None:
        """Take the last perturbation back, apply its update, perturb anew: every stack, in place."""
        for up, down in self.stacks:
            before = (up - down) / F(2)
            change = update(before, g, lr, self._eps)
            by = F(self._eps) * noise.randn(*up.shape) - before
            up += by - change
            down -= by + change

    def logits(self, batch: Mapping[str, Array], masters: Sequence[Array]) -> Array:
        """As the protocol has it."""
        found: Array = self._logits(batch, [master[None] for master in masters])[0]
        return found

    def read(self) -> Sequence[Array]:
        """The stacks themselves."""
        return self.stacks

    def write(self, stacks: Sequence[Array]) -> None:
        """As the protocol has it."""
        for own, given in zip(self.stacks, stacks, strict=True):
            own[:] = given

    def _logits(self, batch: Mapping[str, Array], copies: Sequence[Array]) -> Array:
        """(C, B, classes) of C copies of every B."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        hidden, given = self._engine.begin(ids, mask)
        hidden = np.broadcast_to(hidden, (len(copies[0]), *hidden.shape))
        per_block = len(copies) // self._engine.manifest.layers
        for index in range(self._engine.manifest.layers):
            inputs = {"hidden": np.ascontiguousarray(hidden), "scale": self._scale, **given}
            for place in range(per_block):
                number = index * per_block + place
                inputs |= {f"a_{place}": self._a[number], f"b_{place}": np.ascontiguousarray(copies[number])}
            hidden = self._engine.block(index, inputs)
        return self._head(hidden[:, np.arange(len(ids)), batch["positions"]])
