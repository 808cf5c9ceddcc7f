"""P-RGE lowered for ExecuTorch: the whole model, its low-rank matrices and their update in one ``model.pte``.

    step_T   tokens, mask (2qB, T), position (2qB,), one-hot (B, K), g (q,), lr (1,), z (q, P)  ->  L (2, q), logits
    read     -> stacks (2, q, P)         write   stacks, A, words (K,), scale (1,), eps (1,) -> scale
    P = sum of d_out r over all projections, side by side: the update of all of them is one of long rows

All methods share one set of buffers.  There is a ``step_T`` for each exported length T, so that a batch is not padded
to the longest.  Rows are grouped by copy, and each copy may read other texts: with all stacks alike, 2 q B texts are
scored at once.  A row of zeros in the one-hot is padding.

Knows: backbones, ExecuTorch's exporter.  Knows nothing of: files but the one it writes, tasks, training.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobillm_kit.backbone.split import Backbone
from mobillm_kit.common import quiet
from mobillm_kit.engines.dual import Settings
from mobillm_kit.engines.dual_export import DualBlock, tables
from mobillm_kit.engines.executorch import method_of, runtime
from mobillm_kit.engines.manifest import Adapted, Lowered
from mobillm_kit.errors import BadInput, KitError
from mobillm_kit.methods.task_model import task_model
from mobillm_kit.runs.presets import preset
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.side.heads import LabelWordHead

LENGTHS = (32, 64, 128)
"""Of texts in tokens, where none are given; lowering takes about as long again for each."""
STATE = ("stacks", "low", "words", "scale", "eps")
"""Buffers that ``write`` fills."""


class DualModel(nn.Module):
    """A decoder with dual-forwarding projections, as the top of this file has it; ``backbone`` stays as it is."""

    stacks: Tensor
    low: Tensor
    words: Tensor
    scale: Tensor
    eps: Tensor

    def __init__(self, backbone: Backbone, chosen: Adapted, sizes: Lowered) -> None:
        super().__init__()
        self.q, self.rank, self.rows = sizes.q, sizes.rank, sizes.batch_size
        self.blocks = nn.ModuleList(DualBlock(copy.deepcopy(block), chosen) for block in backbone.blocks)
        self.head = cast(LabelWordHead, task_model(backbone, word_ids=range(sizes.labels)).head)  # every decoder's
        found, _ = tables(backbone)
        self.tables = tuple(found)
        for name, table in found.items():
            self.register_buffer(f"table_{name}", table.detach().float())
        self.widths = list(chosen.targets.values())
        per_rank = len(self.blocks) * self.rank
        self.register_buffer("stacks", torch.zeros(2, self.q, per_rank * sum(d_out for d_out, _ in self.widths)))
        self.register_buffer("low", torch.zeros(per_rank * sum(d_in for _, d_in in self.widths)))
        self.register_buffer("words", torch.arange(sizes.labels))
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("eps", torch.full((1,), 1e-2))

    def step(
        self, tokens: Tensor, mask: Tensor, position: Tensor, onehot: Tensor, g: Tensor, lr: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Move the stacks; the losses there, and the logits, (2, q, B, K)."""
        up, down = self.stacks[0], self.stacks[1]
        before = (up - down) / 2
        update = lr * (g[:, None] * before).mean(dim=0) / self.eps
        move = self.eps * z - before
        self.stacks.copy_(torch.stack((up + (move - update), down - (move + update))))
        logits = self._logits(tokens, mask, position).reshape(2, self.q, self.rows, -1)
        below = logits - logits.amax(dim=-1, keepdim=True)
        chance = below - below.exp().sum(dim=-1, keepdim=True).log()
        return -(onehot * chance).sum(dim=(-1, -2)) / onehot.sum(), logits

    def read(self) -> Tensor:
        """The stacks."""
        return self.stacks.clone()

    def write(self, *given: Tensor) -> Tensor:
        """Fill every buffer, in the order of ``STATE``."""
        for name, value in zip(STATE, given, strict=True):
            getattr(self, name).copy_(value)
        return self.scale.clone()

    def example(self, length: int) -> dict[str, tuple[Tensor, ...]]:
        """Inputs of every method."""
        rows, labels = 2 * self.q * self.rows, len(self.words)
        whole = torch.ones(rows, length, dtype=torch.int64)
        onehot, g, z = torch.ones(self.rows, labels), torch.zeros(self.q), torch.zeros_like(self.stacks[0])
        # the exporter takes one tensor given twice for one input
        step = (whole, whole.clone(), torch.zeros(rows, dtype=torch.int64), onehot, g, torch.zeros(1), z)
        return {"step": step, "read": (), "write": tuple(getattr(self, name).clone() for name in STATE)}

    def _logits(self, tokens: Tensor, mask: Tensor, position: Tensor) -> Tensor:
        """(2qB, K)."""
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)  # padding is not counted, on either side
        turned = {name: F.embedding(places, self._table(name)) for name in ("cos", "sin") if name in self.tables}
        hidden, bias, layers = self._embedded(tokens, places), _bias(mask), self._layers()
        for block in self.blocks:
            a, b = zip(*(next(layers) for _ in self.widths), strict=True)
            hidden = cast(DualBlock, block).all_rows(hidden, bias, self.scale, a, b, **turned)
        last = hidden[torch.arange(len(tokens)), position]
        found = self.head.read(last) @ F.embedding(self.words, self._words()).T
        cap = self.head.softcap
        return found if not cap else cap * torch.tanh(found / cap)

    def _embedded(self, tokens: Tensor, places: Tensor) -> Tensor:
        """h_0, (2qB, T, d)."""
        hidden = F.embedding(tokens, self._table("tokens"))
        if "project_in" in self.tables:
            hidden = hidden @ self._table("project_in")
        return hidden + F.embedding(places, self._table("positions")) if "positions" in self.tables else hidden

    def _layers(self) -> Iterator[tuple[Tensor, Tensor]]:
        """A (r, d_in) and the 2q copies of B (2q, d_out, r) of each projection."""
        at_low = at_high = 0
        for d_out, d_in in self.widths * len(self.blocks):
            n_low, n_high = self.rank * d_in, self.rank * d_out
            a = self.low[at_low : at_low + n_low].reshape(self.rank, d_in)
            b = self.stacks[:, :, at_high : at_high + n_high].reshape(2 * self.q, d_out, self.rank)
            at_low, at_high = at_low + n_low, at_high + n_high
            yield a, b

    def _words(self) -> Tensor:
        return self._table("words" if "words" in self.tables else "tokens")

    def _table(self, name: str) -> Tensor:
        found: Tensor = getattr(self, f"table_{name}")
        return found


def _bias(mask: Tensor) -> Tensor:
    """(2qB, 1, T, T): 0 where a token may look, the least float elsewhere."""
    length = mask.shape[1]
    seen = mask[:, None, None, :].bool() & torch.ones(length, length, dtype=torch.bool).tril()
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)


def usual_sizes(backbone: Backbone, given: Mapping[str, Any]) -> Lowered:
    """What a file is made for: what is given, and else the preset's; lengths up to the model's context."""
    usual = preset(RunSpec(method="p-rge", backbone=backbone.name), backbone.kind, "p-rge")
    made = {name: usual.options.get(name, getattr(Settings(), name)) for name in ("q", "rank")}
    lengths = [min(length, backbone.context) for length in LENGTHS]
    made |= {"batch_size": usual.settings["batch_size"], "labels": 2, "lengths": lengths, **given}
    try:
        found = msgspec.convert({**made, "lengths": sorted(set(made["lengths"]))}, Lowered)
    except msgspec.ValidationError as error:
        raise BadInput(f"Sizes of an export: {error}.", "Give whole numbers from 1 up, and 2 labels or more.") from None
    if found.lengths[-1] > backbone.context:
        problem = f"A length of {found.lengths[-1]} tokens; '{backbone.name}' has positions for {backbone.context}."
        raise BadInput(problem, f"Give --lengths up to {backbone.context}.")
    return found


class _Method(nn.Module):
    """One method of a model, as the exporter wants it."""

    def __init__(self, model: DualModel, name: str) -> None:
        super().__init__()
        self.model, self._name = model, name

    def forward(self, *given: Tensor) -> Any:
        """The method's."""
        return getattr(self.model, self._name)(*given)


def lower(model: DualModel, lengths: tuple[int, ...], file: Path) -> None:
    """Write ``model`` as it stands, its buffers' values included.

    Raises:
        KitError: an operator that ExecuTorch's runtime has not.
    """
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own parts
        program = _lowered(model, lengths)
    _check_operators(program)
    with file.open("wb") as target:
        program.write_to_file(target)


def _lowered(model: DualModel, lengths: tuple[int, ...]) -> Any:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass
    from executorch.exir.passes.init_mutable_pass import InitializedMutableBufferPass

    examples = {method_of(length): ("step", model.example(length)["step"]) for length in lengths}
    examples |= {name: (name, model.example(1)[name]) for name in ("read", "write")}
    with torch.no_grad():
        methods = {
            name: torch.export.export(_Method(model, own).eval(), given) for name, (own, given) in examples.items()
        }
    # ExecuTorch's portable operators, which do what XNNPACK does not know, take some 25 times as long for a step
    lowered = to_edge_transform_and_lower(methods, partitioner={name: [XnnpackPartitioner()] for name in methods})
    config = ExecutorchBackendConfig(
        passes=[InitializedMutableBufferPass([f"model_{name}" for name in STATE])],  # else every one begins as zeros
        memory_planning_pass=MemoryPlanningPass(share_mutable_buffers=True),  # else each method has its own
        emit_mutable_buffer_names=True,
    )
    return lowered.to_executorch(config)


def _check_operators(program: Any) -> None:
    """Lowering takes operators that the runtime has not, and says nothing of it."""
    there = runtime().operator_registry.operator_names
    for plan in program.executorch_program.execution_plan:
        for each in plan.operators:
            name = f"{each.name}.{each.overload}" if each.overload else each.name
            if name not in there:
                problem = f"ExecuTorch's runtime has no operator '{name}', which '{plan.name}' of this model needs."
                raise KitError(problem, "Keep to --engine torch or onnx for this model, and report it.")
