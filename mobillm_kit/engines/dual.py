"""P-RGE on an exported backbone: a step is a forward pass in the engine and some sums over arrays.

    noise_j = (B0_j - B1_j) / 2          update = lr mean_j(g_j noise_j) / eps
    B0_j += eps z_j - noise_j - update   B1_j -= eps z_j - noise_j + update            z_j: engines/noise.py
    L, (2, q): the losses of all B0_j and B1_j, 2 q copies in one forward              g_j = (L_0j - L_1j) / (2 eps)

Equations, order of drawing, options and state are those of ``methods/prge.py``.  The stacks of B stand here and not in
the graph: its inputs are views of them, so that no second set exists, and one export serves every q and rank.

Knows: an exported folder, arrays.  Knows nothing of: torch, texts, files.
Taught in: notebooks/05_p_rge.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mobillm_kit.common import cut, derived_seed
from mobillm_kit.engines.engine import Array
from mobillm_kit.engines.head import WordHead
from mobillm_kit.engines.noise import Noise
from mobillm_kit.engines.onnx import OnnxEngine
from mobillm_kit.errors import BadInput

F = np.float32


@dataclass(frozen=True, eq=False)
class Layer:
    """One projection."""

    name: str
    """The block's number and the name in it."""
    a: Array
    """(r, d_in), frozen."""
    stack: Array
    """(2, q, d_out, r): B0 and B1, changed in place."""


class DualForward:
    """A backbone in the engine, and P-RGE on the B of its projections.

    Args:
        engine: an export for P-RGE.
        seed: of A and of every z.
        q, eps, clip, inner, outer, rank, alpha: as ``methods/prge.py`` has them.

    Raises:
        BadInput: one of them is out of range.
    """

    def __init__(
        self,
        engine: OnnxEngine,
        head: WordHead,
        *,
        seed: int,
        q: int = 4,
        eps: float = 1e-2,
        clip: float | None = None,
        inner: bool = True,
        outer: bool = True,
        rank: int = 8,
        alpha: float = 16.0,
    ) -> None:
        for name, count in (("q", q), ("rank", rank)):
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise BadInput(f"{name} is {count}; it must be a whole number from 1 up.")
        for name, value in (("eps", eps), ("alpha", alpha), ("clip", 1 if clip is None else clip)):
            if not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise BadInput(f"{name} is {value}; it must be a number above 0.")
        self._engine, self._head, self._seed = engine, head, seed
        self._eps, self._clip, self._scale = eps, clip, np.array([alpha / rank], F)
        self._passes = [(signs, these) for signs in cut(2, whole=inner) for these in cut(q, whole=outer)]
        self.layers = _layers(engine, q, rank, seed)
        self.g = np.zeros(q, F)
        self.lr = 0.0
        self.steps = 0

    def step(self, batch: Mapping[str, Array], lr: float) -> float:
        """Apply the last step's update, perturb anew, and take g_j from 2q losses; their mean, in nats."""
        self._advance()
        losses = self.losses(batch)
        self.g = (losses[0] - losses[1]) / F(2 * self._eps)
        if self._clip is not None:
            self.g = self.g.clip(F(-self._clip), F(self._clip))
        self.lr = lr
        self.steps += 1
        return float(losses.mean())

    def losses(self, batch: Mapping[str, Array]) -> Array:
        """(2, q): the loss at every perturbed weight."""
        losses = np.empty((2, len(self.g)), F)
        for signs, these in self._passes:
            copies = [layer.stack[signs, these].reshape(-1, *layer.stack.shape[2:]) for layer in self.layers]
            each = cross_entropy(self._logits(batch, copies), batch["labels"]).mean(axis=-1)
            losses[signs, these] = each.reshape(losses[signs, these].shape)
        return losses

    def logits(self, batch: Mapping[str, Array]) -> Array:
        """(B, C) class logits at the master weights."""
        found: Array = self._logits(batch, [self.master(layer)[None] for layer in self.layers])[0]
        return found

    def master(self, layer: Layer) -> Array:
        """(d_out, r): the weight as trained so far, the update of the last step included."""
        up, down = layer.stack
        found: Array = (up + down).mean(axis=0) / F(2) - self._update((up - down) / F(2))
        return found

    def state(self) -> dict[str, Array]:
        """What a step depends on, under the names of the method with PyTorch."""
        state = {"g": self.g, "lr": np.array(self.lr), "steps": np.array(self.steps)}
        for layer in self.layers:
            state |= {f"up/{layer.name}": layer.stack[0], f"down/{layer.name}": layer.stack[1]}
        return state

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Take back what :meth:`state` gave."""
        for layer in self.layers:
            layer.stack[0], layer.stack[1] = state[f"up/{layer.name}"], state[f"down/{layer.name}"]
        self.g, self.lr, self.steps = np.array(state["g"], F), float(state["lr"]), int(state["steps"])

    def _advance(self) -> None:
        noise = Noise(derived_seed(self._seed, "z", self.steps))
        for layer in self.layers:
            up, down = layer.stack
            before = (up - down) / F(2)
            update = self._update(before)
            move = F(self._eps) * noise.randn(*up.shape) - before
            up += move - update
            down -= move + update

    def _update(self, noise: Array) -> Array:
        found: Array = F(self.lr) * (self.g[:, None, None] * noise).mean(axis=0) / F(self._eps)
        return found

    def _logits(self, batch: Mapping[str, Array], copies: Sequence[Array]) -> Array:
        """(C, B, classes) of C copies of every B."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        hidden, given = self._engine.begin(ids, mask)
        hidden = np.broadcast_to(hidden, (len(copies[0]), *hidden.shape))
        per_block = len(self.layers) // self._engine.manifest.layers
        for index in range(self._engine.manifest.layers):
            inputs = {"hidden": np.ascontiguousarray(hidden), "scale": self._scale, **given}
            for place in range(per_block):
                number = index * per_block + place
                inputs |= {f"a_{place}": self.layers[number].a, f"b_{place}": np.ascontiguousarray(copies[number])}
            hidden = self._engine.block(index, inputs)
        return self._head(hidden[:, np.arange(len(ids)), batch["positions"]])


def cross_entropy(logits: Array, labels: Array) -> Array:
    """(…, B) in nats, of (…, B, C) and class ids (B,)."""
    largest = logits.max(axis=-1, keepdims=True)
    total = np.log(np.exp(logits - largest).sum(axis=-1))
    picked: Array = (logits - largest)[..., np.arange(len(labels)), labels]
    return total - picked


def _layers(engine: OnnxEngine, q: int, rank: int, seed: int) -> list[Layer]:
    """Every block's projections; A is drawn layer after layer from one seed, uniform in ±1/sqrt(d_in)."""
    adapted = engine.manifest.adapted
    assert adapted is not None  # manifest.check_use has seen to it
    noise = Noise(derived_seed(seed, "a"))
    layers = []
    for block in range(engine.manifest.layers):
        for name, (d_out, d_in) in adapted.targets.items():
            a = (F(2) * noise.rand(rank, d_in) - F(1)) / F(d_in**0.5)
            layers.append(Layer(f"{block}.{name}", a, np.zeros((2, q, d_out, rank), F)))
    return layers
