"""Training by two forward passes in place of a gradient: SPSA as MeZO uses it (arXiv 2305.17333).

    g = [L(w + eps z) - L(w - eps z)] / (2 eps)         z ~ N(0, I), drawn again from its seed, never stored
    w <- w - lr g z                                     in place, piece by piece: no weight has a second copy

A run is its seed and one number per step: :class:`ReplayLog`.

Knows: parameters and a function from batch to logits.  Knows nothing of: which parameters, and why.
Taught in: notebooks/04_mezo.ipynb
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mobillm_kit.common import derived_seed
from mobillm_kit.errors import BadInput
from mobillm_kit.files import write_with
from mobillm_kit.record import CountedMemory
from mobillm_kit.texts.encode import Batch
from mobillm_kit.training.ledger import storage_bytes
from mobillm_kit.training.method import StepResult

PIECE = 2**22
"""Values of z that are alive at a time, 16 MiB.  torch draws them in groups of 16."""


class ZerothOrder:
    """SPSA on the given parameters, in place.

    Args:
        model: everything that must be in the device's memory.
        parameters: what is trained, by name.  BadInput for 16 bits, where adding and taking back eps z drifts, and for
            an eps that is not above 0.
        logits: batch to (B, C).
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        logits: Callable[[Batch], Tensor],
        *,
        seed: int,
        eps: float,
    ) -> None:
        check_eps(eps)
        for key, parameter in parameters.items():
            if parameter.dtype not in (torch.float32, torch.float64):
                kind = str(parameter.dtype).removeprefix("torch.")
                problem = f"{name}: '{key}' is {kind}, too coarse to add eps z and take it back."
                raise BadInput(problem, "Load the backbone in float32.")
        self.name = name
        self._model = model
        self._parameters = dict(parameters)
        self._logits = logits
        self._step_sizes = array("f")
        self.log = ReplayLog(seed, eps, self._step_sizes)
        """What this run can be made again from; it grows with every step."""

    @torch.no_grad()
    def step(self, batch: Batch, lr: float) -> StepResult:
        """Two losses, at w + eps z and w - eps z, and one move along z; 2 B samples go forward."""
        seed = step_seed(self.log.seed, len(self._step_sizes))
        perturb(self._parameters.values(), seed, self.log.eps)
        up = self._loss(batch)
        perturb(self._parameters.values(), seed, -2 * self.log.eps)
        down = self._loss(batch)
        # as float32 from here on: what is used is what is logged
        self._step_sizes.append(lr * (up - down) / (2 * self.log.eps))
        perturb(self._parameters.values(), seed, self.log.eps - self._step_sizes[-1])
        return StepResult(loss=(up + down) / 2, forwards=2 * batch.rows)

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """(B, C) class logits, without gradient."""
        return self._logits(batch)

    def trained(self) -> dict[str, Tensor]:
        """The parameters that are perturbed, by name, detached."""
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def state(self) -> dict[str, Tensor]:
        """The weights and every ``lr g`` so far, whose number is the seed of the next z."""
        weights = {f"weight/{name}": tensor.clone() for name, tensor in self.trained().items()}
        return {**weights, "step_sizes": torch.tensor(self._step_sizes, dtype=torch.float32)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state` gave, in place."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(state[f"weight/{name}"])
        self._step_sizes[:] = array("f", state["step_sizes"].tolist())

    def count_memory(self, batch: Batch) -> tuple[CountedMemory, ...]:
        """No gradient is kept, but a piece of z is alive while it is added: it stands in the gradients' place."""
        parts = (part for parameter in self._parameters.values() for part in pieces(parameter))
        return forward_memory(self._model, max(part.nbytes for part in parts))

    def _loss(self, batch: Batch) -> float:
        return F.cross_entropy(self._logits(batch), batch.labels).item()


def forward_memory(model: nn.Module, z_bytes: int) -> tuple[CountedMemory, ...]:
    """The device's ledger without a backward pass; z, as much of it as is alive, stands in the gradients' place."""
    weights_bytes = storage_bytes([*model.parameters(), *model.buffers()])
    return (CountedMemory(party="device", weights_bytes=weights_bytes, gradients_bytes=z_bytes),)


def check_eps(eps: float) -> None:
    """Refuse a perturbation that estimates nothing: no finite number above 0."""
    if not isinstance(eps, (int, float)) or not 0 < eps < math.inf:
        raise BadInput(f"eps is {eps}; it must be a number above 0.")


def step_seed(seed: int, step: int) -> int:
    """Seed of z in step ``step``."""
    return derived_seed(seed, "z", step)


@torch.no_grad()
def perturb(weights: Iterable[Tensor], seed: int, scale: float) -> None:
    """``w <- w + scale z`` in place, with the z that belongs to ``seed``; the global generator is left alone."""
    generators: dict[torch.device, torch.Generator] = {}
    for part in (part for weight in weights for part in pieces(weight)):
        if part.device not in generators:
            generators[part.device] = torch.Generator(part.device).manual_seed(seed)
        z = torch.randn(part.shape, generator=generators[part.device], device=part.device, dtype=part.dtype)
        part.add_(z, alpha=scale)
        del z  # or the next one would be made beside it


def pieces(weight: Tensor) -> tuple[Tensor, ...]:
    """Views of a weight's values, in order; what a CPU draws for them is, to the byte, what it draws for the whole."""
    cuts = tuple(range(PIECE, weight.numel() - 15, PIECE))  # none leaves less than 16 behind it
    return weight.detach().view(-1).tensor_split(cuts)


@dataclass(frozen=True)
class ReplayLog:
    """Seed, eps and, per step, ``lr * g`` as float32: 4 bytes a step."""

    seed: int
    eps: float
    step_sizes: Sequence[float]

    def save(self, path: Path) -> None:
        """Write the log, whole or not at all; 20 000 steps take 80 kB."""
        header = {"seed": str(self.seed), "eps": self.eps.hex()}
        tensor = torch.tensor(self.step_sizes, dtype=torch.float32)
        write_with(path, lambda target: save_file({"step_sizes": tensor}, str(target), metadata=header))

    @classmethod
    def load(cls, path: Path) -> ReplayLog:
        """Read a log, and nothing else."""
        try:
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata()
                sizes = file.get_tensor("step_sizes").tolist()
            return cls(int(header["seed"]), float.fromhex(header["eps"]), tuple(sizes))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            problem = f"{path}: not a replay log ({error})."
            raise BadInput(problem, "Name the replay.safetensors of a MeZO run.") from error


def replay(weights: Mapping[str, Tensor], log: ReplayLog) -> None:
    """Make a run again from its log, without data and without a forward pass; the weights end in equal bytes.

    The walk of training is repeated as it was, perturbations included, because floating-point addition does not
    take back exactly what it added.  ``weights`` are those that training started from, changed in place, in the order
    in which they were trained.
    """
    for step, size in enumerate(log.step_sizes):
        seed = step_seed(log.seed, step)
        for scale in (log.eps, -2 * log.eps, log.eps - size):
            perturb(weights.values(), seed, scale)
