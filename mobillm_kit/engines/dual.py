"""P-RGE on a backbone in an engine: a step is one call of a stepper, and some sums over arrays.

    noise_j = (B0_j - B1_j) / 2          update = lr mean_j(g_j noise_j) / eps
    B0_j += eps z_j - noise_j - update   B1_j -= eps z_j - noise_j + update            z_j: engines/noise.py
    L, (2, q): the losses of all B0_j and B1_j, 2 q copies in one forward              g_j = (L_0j - L_1j) / (2 eps)

Equations, order of drawing, options and state are those of ``methods/prge.py``.  A stepper keeps the stacks of B and
computes the losses: ``dual_onnx.py`` has them in numpy, ``executorch.py`` inside the engine.

Knows: arrays.  Knows nothing of: engines, torch, texts, files.
Taught in: notebooks/05_p_rge.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mobillm_kit.common import derived_seed
from mobillm_kit.engines.engine import Array
from mobillm_kit.engines.manifest import Adapted
from mobillm_kit.engines.noise import Noise
from mobillm_kit.errors import BadInput

F = np.float32


@dataclass(frozen=True)
class Settings:
    """Options of the method, as ``methods/prge.py`` has them.

    Raises:
        BadInput: one of them is out of range.
    """

    q: int = 4
    eps: float = 1e-2
    clip: float | None = None
    inner: bool = True
    outer: bool = True
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        for name, count in (("q", self.q), ("rank", self.rank)):
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise BadInput(f"{name} is {count}; it must be a whole number from 1 up.")
        for name, value in (("eps", self.eps), ("alpha", self.alpha), ("clip", 1 if self.clip is None else self.clip)):
            if not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise BadInput(f"{name} is {value}; it must be a number above 0.")


class Stepper(Protocol):
    """What an engine does in a step."""

    layers: tuple[str, ...]
    """The projections: the block's number and the name in it."""

    def step(self, batch: Mapping[str, Array], g: Array, lr: float, noise: Noise) -> Array:
        """Move every stack by g, (q,), and rate of the last step and z of ``noise``; the losses there, (2, q)."""
        ...

    def logits(self, batch: Mapping[str, Array], masters: Sequence[Array]) -> Array:
        """(B, C) class logits, each projection with its B, (d_out, r); the stacks stay as they are."""
        ...

    def read(self) -> Sequence[Array]:
        """The stacks, (2, q, d_out, r) each: B0 and B1."""
        ...

    def write(self, stacks: Sequence[Array]) -> None:
        """Put others in their place."""
        ...


class DualForward:
    """P-RGE on the B of a stepper's projections; every z is drawn from ``seed``."""

    def __init__(self, stepper: Stepper, settings: Settings, seed: int) -> None:
        self.stepper, self._settings, self._seed = stepper, settings, seed
        self.g = np.zeros(settings.q, F)
        self.lr = 0.0
        self.steps = 0

    def step(self, batch: Mapping[str, Array], lr: float) -> float:
        """Apply the last step's update, perturb anew, and take g_j from 2q losses; their mean, in nats."""
        noise = Noise(derived_seed(self._seed, "z", self.steps))
        losses = self.stepper.step(batch, self.g, self.lr, noise)
        self.g = (losses[0] - losses[1]) / F(2 * self._settings.eps)
        if (clip := self._settings.clip) is not None:
            self.g = self.g.clip(F(-clip), F(clip))
        self.lr = lr
        self.steps += 1
        return float(losses.mean())

    def logits(self, batch: Mapping[str, Array]) -> Array:
        """(B, C) class logits at the master weights."""
        return self.stepper.logits(batch, [self.master(stack) for stack in self.stepper.read()])

    def master(self, stack: Array) -> Array:
        """(d_out, r): the weight as trained so far, the update of the last step included."""
        up, down = stack
        change = update((up - down) / F(2), self.g, self.lr, self._settings.eps)
        found: Array = (up + down).mean(axis=0) / F(2) - change
        return found

    def state(self) -> dict[str, Array]:
        """What a step depends on, under the names of the method with PyTorch."""
        state = {"g": self.g, "lr": np.array(self.lr), "steps": np.array(self.steps)}
        for name, (up, down) in zip(self.stepper.layers, self.stepper.read(), strict=True):
            state |= {f"up/{name}": up, f"down/{name}": down}
        return state

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Take back what :meth:`state` gave."""
        pairs = [(state[f"up/{name}"], state[f"down/{name}"]) for name in self.stepper.layers]
        self.stepper.write([np.stack(pair) for pair in pairs])
        self.g, self.lr, self.steps = np.array(state["g"], F), float(state["lr"]), int(state["steps"])


def update(noise: Array, g: Array, lr: float, eps: float) -> Array:
    """lr mean_j(g_j noise_j) / eps, (d_out, r) of (q, d_out, r)."""
    found: Array = F(lr) * (g[:, None, None] * noise).mean(axis=0) / F(eps)
    return found


def draw_a(adapted: Adapted, blocks: int, rank: int, seed: int) -> dict[str, Array]:
    """A of every projection, (r, d_in), layer after layer from one seed, uniform in ±1/sqrt(d_in)."""
    noise = Noise(derived_seed(seed, "a"))
    return {
        f"{block}.{name}": (F(2) * noise.rand(rank, d_in) - F(1)) / F(d_in**0.5)
        for block in range(blocks)
        for name, (_, d_in) in adapted.targets.items()
    }


def cross_entropy(logits: Array, labels: Array) -> Array:
    """(…, B) in nats, of (…, B, C) and class ids (B,)."""
    largest = logits.max(axis=-1, keepdims=True)
    total = np.log(np.exp(logits - largest).sum(axis=-1))
    picked: Array = (logits - largest)[..., np.arange(len(labels)), labels]
    return total - picked
