"""The one description of a side network, and that of a label words' head: plain numbers, the same wherever they stand.

    command line -> method -> message to a server -> the server's side network -> the saved folder

A server makes the same first weights of it, since the seed is part of it.  Fields have bounds, because a description
may come from a stranger: msgspec holds them where it reads one, and ``check`` asks whether its numbers fit together.

Knows: numbers and their bounds.  Knows nothing of: tensors, backbones, messages.
Taught in: notebooks/06_side_network.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mobillm_kit.errors import BadInput, few

MOST_LAYERS = 128
MOST_LABELS = 65536
WIDEST = 65536

NormForm = Literal["none", "layer", "rms", "rms-plus-one", "rms-wide", "layer-wide"]
Positive = Annotated[int, Meta(ge=1, le=2**53)]
Width = Annotated[int, Meta(ge=1, le=WIDEST)]
Labels = Annotated[int, Meta(ge=2, le=MOST_LABELS)]
Layer = Annotated[int, Meta(ge=0, le=4095)]
Layers = Annotated[list[Layer], Meta(min_length=1, max_length=MOST_LAYERS)]


class SideSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A side network; the first weights are the same on every machine of one kind."""

    kind: Literal["full-width", "ladder"]
    width: Width
    """d, the backbone's."""
    layers: Layers
    """Tapped layers, ascending; the last one is the backbone's last."""
    n_labels: Labels
    """C."""
    rank: Width
    """Bottleneck r of the full-width side."""
    reduction: Width
    """k; a ladder's width is d/k."""
    heads: Annotated[int, Meta(ge=1, le=1024)]
    """Attention heads of a ladder, and of a pooling by attention."""
    causal: bool
    """Whether a ladder's attention looks back only (decoders)."""
    start: Literal["random", "backbone"]
    """``backbone``: a ladder of the backbone's own blocks, pruned by k."""
    feed_forward: Annotated[int, Meta(ge=0, le=2**20)]
    """Width inside such blocks; 0 for the others."""
    norm_eps: Annotated[float, Meta(ge=0.0, le=1.0)]
    """Of such blocks."""
    pooling: Literal["mean", "first", "attention"] | None
    """Of an encoder's classifier; None where the head is the label words'."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    """Of the first weights."""
    normalization: Literal["none", "layer"] = "none"
    """Of what the full-width side's W_down reads; left out where it is ``none``, as in descriptions of before."""
    gated: tuple[Positive, Positive] | None = None
    """Of Llama's blocks: heads of keys and values, and the base of the rotary places; left out for others."""

    @staticmethod
    def of(**given: Any) -> SideSpec:
        """The usual description, changed by ``given``."""
        return msgspec.structs.replace(USUAL, **given)

    def check(self) -> None:
        """Refuse an unknown kind, a start that the kind does not have, and sizes that do not fit together."""
        if self.start not in ("random", "backbone") or (self.start == "backbone" and self.kind != "ladder"):
            problem = f"start is '{self.start}' for side '{self.kind}'."
            raise BadInput(problem, "Choose 'random', or 'backbone' with a ladder.")
        if self.normalization != "none" and (self.normalization, self.kind) != ("layer", "full-width"):
            problem = f"normalization is '{self.normalization}' for side '{self.kind}'."
            raise BadInput(problem, "Choose 'none', or 'layer' with the full width.")
        if self.pooling not in (None, "mean", "first", "attention"):
            raise BadInput(f"pooling is '{self.pooling}'.", "Choose 'mean', 'first' or 'attention'.")
        if self.pooling == "attention" and (self.heads < 1 or self.width % self.heads):
            raise BadInput(f"{self.heads} heads of a pooling by attention do not divide the width {self.width}.")
        check_layers(self.layers)
        if self.kind == "full-width":
            check_rank(self.width, self.rank)
        elif self.kind == "ladder":
            check_ladder(self.width, self.reduction, self.heads)
            if self.start == "backbone":
                self._check_copied()
        else:
            raise BadInput(f"Unknown side network '{self.kind}'.", "Choose 'full-width' or 'ladder'.")

    def _check_copied(self) -> None:
        """Copied blocks stand between consecutive layers; Llama's are whole, and heads share keys evenly."""
        if len(self.layers) < 2 or self.layers[-1] - self.layers[0] != len(self.layers) - 1:
            problem = f"layers are {few(self.layers)}; blocks that begin as the backbone's need consecutive layers."
            raise BadInput(problem, "Give a count (4: the last four layers) or consecutive layers, at least two.")
        kv_heads, even = self.gated[0] if self.gated else 1, self.width // self.heads % 2 == 0
        if self.gated and not (even and self.reduction == 1 and self.causal and self.heads % kv_heads == 0):
            problem = f"{kv_heads} heads of keys and values for {self.heads} heads, reduction {self.reduction}."
            raise BadInput(problem, "Llama's blocks are copied whole, look back only, and share keys evenly.")

    def values(self) -> int:
        """Weights, biases and norms aside; Python's whole numbers do not overflow.

        full-width   2 · L · d · r
        ladder       B · (4 n² + 2 n F + n d) + n d,  n = d / reduction;  B = L, F = 2 n;  of a copy L - 1, its own F
        of Llama's   B · (2 n² (1 + heads of keys / heads) + 3 n F + n d) + n d
        both         + C · d where the side network has a head of its own
        """
        own_head = self.n_labels * self.width if self.pooling is not None else 0
        if self.kind == "full-width":
            return 2 * len(self.layers) * self.width * self.rank + own_head
        narrow, copied = self.width // self.reduction, self.start == "backbone"
        inside, blocks = self.feed_forward if copied else 2 * narrow, len(self.layers) - copied
        attention, mlp = 4 * narrow**2, 2 * narrow * inside
        if copied and self.gated:
            attention, mlp = 2 * narrow**2 * (self.heads + self.gated[0]) // self.heads, 3 * narrow * inside
        return blocks * (attention + mlp + narrow * self.width) + narrow * self.width + own_head


def check_layers(layers: Sequence[int]) -> tuple[int, ...]:
    """Tapped layers: ascending, without repeats, at least one."""
    chosen = tuple(int(layer) for layer in layers)
    if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0:
        raise BadInput(f"layers are {few(chosen)}; they must be ascending, without repeats, and at least one.")
    return chosen


def chosen_layers(n_layers: int, layers: int | Sequence[int] | None, *, last: bool = False) -> list[int]:
    """The layers themselves where they are given; a count of evenly spaced ones of 1 .. L that end in L; all for None.

    With ``last`` a count is of the last ones of 0 .. L; all where there are no more.
    """
    if layers is not None and not isinstance(layers, int):
        return [int(layer) for layer in layers]
    if last:
        count = n_layers + 1 if layers is None else layers
        if count < 1:
            raise BadInput(f"Cannot choose the last {count} of the layers 0 to {n_layers}.")
        return list(range(max(0, n_layers + 1 - count), n_layers + 1))
    count = n_layers if layers is None else layers
    if not 1 <= count <= n_layers:
        raise BadInput(f"Cannot choose {count} of {n_layers} layers.")
    return [round((index + 1) * n_layers / count) for index in range(count)]


def check_rank(width: int, rank: int) -> None:
    """A bottleneck of the full-width side is no wider than the backbone."""
    if not 1 <= rank <= width:
        raise BadInput(f"rank is {rank}; it must lie in 1 .. {width}, the backbone's width.")


def check_ladder(width: int, reduction: int, heads: int) -> None:
    """A ladder's width and heads come out whole."""
    if reduction < 1 or heads < 1 or width % reduction or (width // reduction) % heads:
        problem = f"reduction {reduction} and {heads} heads do not divide the backbone's width {width}."
        raise BadInput(problem, "width / reduction must be a whole multiple of heads.")


USUAL = SideSpec(
    kind="full-width", width=1, layers=[1], n_labels=2, rank=16, reduction=4, heads=2, causal=True, start="random",
    feed_forward=0, norm_eps=1e-12, pooling=None, seed=0,
)  # fmt: skip
"""Stands where nothing else is said; width, layers and labels are the backbone's and the task's."""


class HeadSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A language model's head, read at the label words; its tensors travel beside it, as safetensors."""

    norm: NormForm
    eps: Annotated[float, Meta(ge=0.0, le=1.0)]
    project_out: bool
    bias: bool
    softcap: Annotated[float, Meta(gt=0.0, le=1e6)] | None
    width: Width
    rows: Labels
    masked: bool = False
    """Whether the projection has a bias and comes before the norm, with gelu between; left out where not."""
