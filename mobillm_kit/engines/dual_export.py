"""What P-RGE exports of a block: the block with its low-rank matrices as inputs, C copies of them in one forward.

    hidden (C, B, T, d), bias, scale, a_k (r, d_in), b_k (C, d_out, r)   ->   next (C, B, T, d)
    projection k of copy c:    y_c = W x_c + scale · A_k x_c B_{k,c}^T

C, B, T and r are free: one export serves every q, rank, alpha and seed, the batch that trains (C = 2 q) and the weights
as they stand (C = 1).

Knows: backbones, the engine, P-RGE with PyTorch.  Knows nothing of: files, tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobillm_kit.backbone.split import Backbone
from mobillm_kit.engines.dual import DualForward, Settings
from mobillm_kit.engines.manifest import Adapted, Lowered
from mobillm_kit.engines.steppers import AnyEngine, stepper
from mobillm_kit.errors import BadInput, KitError
from mobillm_kit.methods.lora_layers import target_names
from mobillm_kit.methods.prge import PRGE
from mobillm_kit.methods.task_model import task_model
from mobillm_kit.texts.encode import Batch

WITHIN = 1e-5
"""Largest difference of a loss from PyTorch's, in nats."""
ANY = Lowered(q=2, rank=4, batch_size=2, labels=2, lengths=(9,))
"""Sizes of the steps that are compared, where an export serves all."""
RATE = 1e-4
"""Of the steps that are compared: so low that a difference in the losses, which g is 50 times, does not grow."""


def chosen_targets(backbone: Backbone, targets: str) -> Adapted:
    """The projections that are to be adapted, and their sizes."""
    if backbone.kind == "encoder":
        problem = f"'{backbone.name}' is an encoder; P-RGE in an engine trains decoders only."
        raise BadInput(problem, "Train it with PyTorch: mobillm train p-rge.")
    chosen, block = target_names(backbone, targets), backbone.blocks[0]
    sizes: dict[str, tuple[int, int]] = {}
    for name, module in block.named_modules():
        if name.rpartition(".")[2] in chosen:
            d_out, d_in = module.weight.shape  # decoders that are exported have plain linear layers
            sizes[name] = (d_out, d_in)
    return Adapted(method="p-rge", targets=sizes, every=set(chosen) == set(target_names(backbone, "all")))


def rotary(backbone: Backbone, rows: int, length: int) -> dict[str, Tensor]:
    """cos and sin, (rows, length, d_head) each, of families that turn queries and keys."""
    turn: Any = getattr(backbone.base, "rotary_emb", None)
    if turn is None:
        return {}
    given = torch.zeros(1, 1, 1), torch.arange(length).expand(rows, length)
    return dict(zip(("cos", "sin"), turn(*given), strict=True))


def tables(backbone: Backbone) -> tuple[dict[str, Tensor], float]:
    """What h_0 and the blocks look up, row by row, and the eps of an encoder's first norm."""
    base: Any = backbone.base
    if backbone.kind == "encoder":
        own = base.embeddings
        norm = torch.stack((own.LayerNorm.weight, own.LayerNorm.bias))
        named = {
            "tokens": own.word_embeddings,
            "positions": own.position_embeddings,
            "types": own.token_type_embeddings,
        }
        return {**{name: each.weight for name, each in named.items()}, "norm": norm}, float(own.LayerNorm.eps)
    tables = {"tokens": base.embed_tokens.weight}
    if getattr(base, "project_in", None) is not None:
        tables["project_in"] = base.project_in.weight.T
    if hasattr(base, "embed_positions"):
        tables["positions"] = base.embed_positions.weight[base.embed_positions.offset :]
    tables |= {name: each[0] for name, each in rotary(backbone, 1, backbone.context).items()}
    lm_head: Any = backbone.lm_head
    if lm_head.weight is not base.embed_tokens.weight:
        tables["words"] = lm_head.weight
    return tables, 0.0


class DualBlock(nn.Module):
    """A block whose projections are given their low-rank matrices anew in every forward; it changes ``block``."""

    def __init__(self, block: nn.Module, chosen: Adapted) -> None:
        super().__init__()
        self.block = block
        self._layers: list[_Dual] = []
        self._sizes = list(chosen.targets.values())
        for name in chosen.targets:
            parent, _, child = name.rpartition(".")
            self._layers.append(_Dual(block.get_submodule(name)))
            setattr(block.get_submodule(parent), child, self._layers[-1])

    def forward(
        self,
        hidden: Tensor,
        bias: Tensor,
        scale: Tensor,
        a: list[Tensor],
        b: list[Tensor],
        cos: Tensor | None = None,
        sin: Tensor | None = None,
    ) -> Tensor:
        """As the top of this file has it; ``bias``, ``cos`` and ``sin`` are those of one copy."""
        copies, rows, length, width = hidden.shape

        def _for_all(each: Tensor | None) -> Tensor | None:
            return each if each is None else each.unsqueeze(0).expand(copies, *each.shape).flatten(0, 1)

        given = hidden.reshape(copies * rows, length, width), _for_all(bias), scale, a, b, _for_all(cos), _for_all(sin)
        return self.all_rows(*given).reshape(copies, rows, length, width)

    def all_rows(
        self,
        hidden: Tensor,
        bias: Tensor | None,
        scale: Tensor,
        a: Sequence[Tensor],
        b: Sequence[Tensor],
        cos: Tensor | None = None,
        sin: Tensor | None = None,
    ) -> Tensor:
        """(C·B, T, d) to the same; ``bias``, ``cos`` and ``sin`` are those of every row."""
        for layer, low, high in zip(self._layers, a, b, strict=True):
            layer.given = [low, high, scale]
        turned = {} if cos is None or sin is None else {"position_embeddings": (cos, sin)}
        found = self.block(hidden, attention_mask=bias, **turned)
        for layer in self._layers:
            layer.given = []  # the exporter refuses tensors that stay behind
        return found[0] if isinstance(found, tuple) else found

    def example(self, backbone: Backbone) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs by name, and which sizes are free; no two of these are equal, so that none is taken for another."""
        copies, rows, length, rank = 4, 3, 5, 6
        given: dict[str, Any] = {
            "hidden": torch.randn(copies, rows, length, backbone.width),
            "bias": torch.zeros(rows, 1, length, length),
            "scale": torch.ones(1),
            "a": [torch.randn(rank, d_in) for _, d_in in self._sizes],
            "b": [torch.randn(copies, d_out, rank) for d_out, _ in self._sizes],
            **rotary(backbone, rows, length),
        }
        c, b, t, r = (torch.export.Dim(name, min=1) for name in "CBTR")
        free: dict[str, Any] = {"hidden": {0: c, 1: b, 2: t}, "bias": {0: b, 2: t, 3: t}, "scale": {}}
        free |= {"a": [{0: r} for _ in self._sizes], "b": [{0: c, 2: r} for _ in self._sizes]}
        return given, free | {name: {0: b, 1: t} for name in ("cos", "sin") if name in given}


class _Dual(nn.Module):
    """As ``methods/dual_forward.py``, with everything but W from outside."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.given: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """(C·B, T, d_in) to (C·B, T, d_out)."""
        a, b, scale = self.given
        low = (x @ a.T).reshape(b.shape[0], -1, a.shape[0])
        change = torch.bmm(low, b.transpose(1, 2)).reshape(*x.shape[:-1], -1)
        found: Tensor = self.base(x) + scale * change
        return found


def check_step(backbone: Backbone, engine: AnyEngine) -> float:
    """Some steps in the engine and in PyTorch, whose layers then stand in ``backbone``; the largest difference."""
    adapted = engine.manifest.adapted
    assert adapted is not None  # it has been exported for this
    sizes = engine.manifest.lowered or ANY
    words, settings, lengths = range(sizes.labels), Settings(q=sizes.q, rank=sizes.rank), sizes.lengths
    ours = DualForward(stepper(engine, words, settings, 0), settings, 0)
    names = sorted({name.rpartition(".")[2] for name in adapted.targets})
    theirs = PRGE(task_model(backbone, word_ids=words), targets=names, seed=0, q=settings.q, rank=settings.rank)
    worst = 0.0
    # the first update is applied in the second step, by the third it shows; and every length has a step
    for step in range(max(3, len(lengths))):
        batch = _batch(backbone, step, lengths[step % len(lengths)], min(2, sizes.batch_size))
        found, wanted = ours.step(batch, RATE), theirs.step(_tensors(batch), RATE)
        assert wanted.loss is not None  # P-RGE knows its loss at once
        worst = max(worst, abs(found - wanted.loss))
        if not worst <= WITHIN:  # NaN, too, is none
            problem = (
                f"Step {step} of P-RGE on '{backbone.name}' comes out {worst:.1e} away from PyTorch in {engine.title}."
            )
            raise KitError(problem, f"{WITHIN:g} is allowed: keep to --engine torch for this model, and report it.")
    return worst


def _batch(backbone: Backbone, seed: int, length: int, rows: int) -> dict[str, np.ndarray]:
    """Texts, the second one shorter."""
    length = min(length, backbone.context)
    ids = np.random.RandomState(seed).randint(0, backbone.n_tokens, (rows, length))
    mask = np.ones_like(ids)
    mask[1:, math.ceil(length / 2) :] = 0
    ends = mask.sum(axis=1) - 1
    return {"input_ids": ids, "attention_mask": mask, "labels": np.arange(rows) % 2, "positions": ends}


def _tensors(batch: dict[str, np.ndarray]) -> Batch:
    return Batch(**{name: torch.from_numpy(each) for name, each in batch.items()})
