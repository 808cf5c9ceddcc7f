"""P-RGE: parallel randomized gradient estimation (MobiZO, arXiv 2409.15520).

    g_j = [L(B + eps z_j) - L(B - eps z_j)] / (2 eps),   j = 1 .. q          B <- B - lr mean_j(g_j z_j)

outer loop: the q perturbations run in one batched forward; inner loop: both signs run in it too.  With q B = 16 kept
the same, more perturbations cost nothing.  Only B of LoRA-FA is perturbed.

Knows: the task model.  Knows nothing of: other methods.
Taught in: notebooks/05_p_rge.ipynb
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from mobillm_kit.common import cut, derived_seed
from mobillm_kit.errors import BadInput
from mobillm_kit.methods.dual_forward import DualForwardLinear
from mobillm_kit.methods.lora_layers import check_scale, target_names
from mobillm_kit.methods.task_model import TaskModel
from mobillm_kit.methods.zeroth_order import check_eps, forward_memory
from mobillm_kit.record import CountedMemory
from mobillm_kit.side.pooled_head import PooledHead
from mobillm_kit.texts.encode import Batch
from mobillm_kit.training.method import StepResult


class PRGE:
    """Dual-forwarding layers in a backbone, and P-RGE on their B.

    Args:
        model: its projections are wrapped; of an encoder's classifier the whole weight is perturbed (A = 1).
        seed: of A and of every z.
        q: perturbations a step.
        eps: the perturbation; the paper's 1e-2 for LoRA-FA.
        clip: the largest |g_j|.  Not in the paper: the few large g of a run (one in a hundred is ten times the
            median) throw it off what it has found, at any rate that finds it in time.
        inner, outer: run both signs, and all perturbations, in the same forward.
        lora: rank, alpha and targets, as ``add_lora`` takes them.  BadInput for whatever is out of range.
    """

    name = "p-rge"

    def __init__(
        self,
        model: TaskModel,
        *,
        seed: int,
        q: int = 4,
        eps: float = 1e-2,
        clip: float | None = None,
        inner: bool = True,
        outer: bool = True,
        **lora: Any,
    ) -> None:
        if not isinstance(q, int) or isinstance(q, bool) or q < 1:
            raise BadInput(f"q is {q}; it must be a whole number from 1 up.")
        check_eps(eps)
        if clip is not None and not clip > 0:
            raise BadInput(f"clip is {clip}; it must be a number above 0.")
        self._model = model
        self._layers = add_dual_forward(model, q=q, seed=seed, **lora)
        self._eps = eps
        self._seed = seed
        self._clip = clip
        self._passes = [(signs, these) for signs in cut(2, whole=inner) for these in cut(q, whole=outer)]
        reference = next(iter(self._layers.values())).up
        self._g = torch.zeros(q, dtype=reference.dtype, device=reference.device)
        self._lr = 0.0
        self._steps = 0

    @torch.no_grad()
    def step(self, batch: Batch, lr: float) -> StepResult:
        """Apply the last step's update, perturb anew, and take g_j from 2q losses; 2 q B samples go forward."""
        self._advance()
        losses = self.losses(batch)
        self._g = (losses[0] - losses[1]) / (2 * self._eps)
        if self._clip is not None:
            self._g = self._g.clamp(-self._clip, self._clip)
        self._lr = lr
        self._steps += 1
        return StepResult(loss=losses.mean().item(), forwards=losses.numel() * batch.rows)

    def losses(self, batch: Batch) -> Tensor:
        """(2, q): the loss at every perturbed weight."""
        losses = torch.empty(2, len(self._g), dtype=self._g.dtype, device=self._g.device)
        for signs, these in self._passes:
            for layer in self._layers.values():
                # a pass reads a block of the stack, so its copies are a view and no second set of Bs exists
                layer.copies = layer.stack[signs, these].flatten(0, 1)
            found = losses[signs, these]
            logits = self._model.logits(batch.repeated(found.numel()))
            each = F.cross_entropy(logits, batch.labels.repeat(found.numel()), reduction="none")
            found.copy_(each.view(*found.shape, -1).mean(dim=-1))
        return losses

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """(B, C) class logits at the master weights."""
        for name, layer in self._layers.items():
            layer.copies = self._master(name).unsqueeze(0)
        return self._model.logits(batch)

    def trained(self) -> dict[str, Tensor]:
        """The master B of every layer, (d_out, r), the last update included."""
        return {f"{name}.b": self._master(name) for name in self._layers}

    def state(self) -> dict[str, Tensor]:
        """Both stacks of B, and the last step's g and rate, which the next step applies."""
        state = {"g": self._g.clone(), "lr": torch.tensor(self._lr, dtype=torch.float64)}
        for name, layer in self._layers.items():
            state |= {f"up/{name}": layer.up.clone(), f"down/{name}": layer.down.clone()}
        return {**state, "steps": torch.tensor(self._steps)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state` gave, in place."""
        for name, layer in self._layers.items():
            layer.up.copy_(state[f"up/{name}"])
            layer.down.copy_(state[f"down/{name}"])
        self._g = state["g"].to(self._g)
        self._lr = state["lr"].item()
        self._steps = int(state["steps"])

    def count_memory(self, batch: Batch) -> tuple[CountedMemory, ...]:
        """The stacks of B count as weights; the new z of the largest stack stands in the gradients' place."""
        return forward_memory(self._model, max(layer.up.nbytes for layer in self._layers.values()))

    def _master(self, name: str) -> Tensor:
        return self._layers[name].master(self._g, self._lr, self._eps)

    def _advance(self) -> None:
        device = self._g.device
        generator = torch.Generator(device).manual_seed(derived_seed(self._seed, "z", self._steps))
        for layer in self._layers.values():
            z = torch.randn(layer.up.shape, generator=generator, dtype=layer.up.dtype, device=device)
            layer.advance(self._g, self._lr, self._eps, z)


build = PRGE


def add_dual_forward(
    model: TaskModel,
    *,
    q: int,
    seed: int,
    rank: int = 8,
    alpha: float = 16.0,
    targets: str | Sequence[str] | None = None,
) -> dict[str, DualForwardLinear]:
    """Put the layers in place of the targets and of an encoder's classifier; at the start they change nothing."""
    check_scale(rank, alpha)
    chosen = target_names(model.backbone, targets)
    generator = torch.Generator().manual_seed(derived_seed(seed, "a"))
    blocks = model.backbone.blocks
    layers: dict[str, DualForwardLinear] = {}
    for name, module in list(blocks.named_modules()):
        parent, _, child = name.rpartition(".")
        if child in chosen:
            layers[name] = DualForwardLinear(module, _draw_a(module, rank, generator), alpha / rank, q)
            setattr(blocks.get_submodule(parent), child, layers[name])
    if isinstance(model.head, PooledHead):
        classifier = model.head.classifier
        identity = torch.eye(classifier.in_features).to(classifier.weight)
        layers["classifier"] = DualForwardLinear(classifier, identity, 1.0, q)
        model.head.classifier = layers["classifier"]  # type: ignore[assignment]  # it stands in for a linear layer
    return layers


def _draw_a(layer: nn.Linear | Conv1D, rank: int, generator: torch.Generator) -> Tensor:
    """(r, d_in), uniform in ±1/sqrt(d_in) as PEFT draws it."""
    width = layer.weight.shape[0] if isinstance(layer, Conv1D) else layer.weight.shape[1]
    return ((2 * torch.rand(rank, width, generator=generator) - 1) / width**0.5).to(layer.weight)
