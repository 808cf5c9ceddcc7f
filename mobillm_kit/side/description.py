"""The one description of a side network, and that of a decoder's head: plain numbers, the same wherever they stand.

    command line -> method -> message to a server -> the server's side network -> the saved folder

A server makes the same first weights of it, since the seed is part of it.  Fields have bounds, because a description
may come from a stranger: msgspec holds them where it reads one.

Knows: numbers and their bounds.  Knows nothing of: tensors, backbones, messages.

Taught in: notebooks/06_side_network.ipynb
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

MOST_LAYERS = 128
MOST_LABELS = 65536
WIDEST = 65536

Width = Annotated[int, Meta(ge=1, le=WIDEST)]
Labels = Annotated[int, Meta(ge=2, le=MOST_LABELS)]
Layer = Annotated[int, Meta(ge=0, le=4095)]
Layers = Annotated[list[Layer], Meta(min_length=1, max_length=MOST_LAYERS)]


class SideSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A side network: with its seed it gives the first weights, the same on every machine of one kind."""

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
    """Attention heads of a ladder."""
    causal: bool
    """Whether a ladder's attention looks back only (decoders)."""
    start: Literal["random", "backbone"]
    """``backbone``: a ladder of the backbone's own blocks, pruned by k."""
    feed_forward: Annotated[int, Meta(ge=0, le=2**20)]
    """Width inside such blocks; 0 for the others."""
    norm_eps: Annotated[float, Meta(ge=0.0, le=1.0)]
    """Of such blocks."""
    pooling: Literal["mean", "first"] | None
    """Of an encoder's classifier; None where the head is the label words'."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    """Of the first weights."""

    @staticmethod
    def of(**given: Any) -> SideSpec:
        """The usual description, changed by ``given``."""
        return msgspec.structs.replace(USUAL, **given)


USUAL = SideSpec(
    kind="full-width",
    width=1,
    layers=[1],
    n_labels=2,
    rank=16,
    reduction=4,
    heads=2,
    causal=True,
    start="random",
    feed_forward=0,
    norm_eps=1e-12,
    pooling=None,
    seed=0,
)
"""Stands where nothing else is said; width, layers and labels are the backbone's and the task's."""


class HeadSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A decoder's head, read at the label words; its tensors travel beside it, as safetensors."""

    norm: Literal["none", "layer", "rms", "rms-plus-one"]
    eps: Annotated[float, Meta(ge=0.0, le=1.0)]
    project_out: bool
    bias: bool
    softcap: Annotated[float, Meta(gt=0.0, le=1e6)] | None
    width: Width
    rows: Labels
