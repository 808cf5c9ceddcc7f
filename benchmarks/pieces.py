"""An upload in pieces: one layer of one batch at a time, encoded as it appears and then forgotten.

    outline(batch)     what the server must know first: lengths, positions, layers, codec
    pieces(window)     block by block, batch by batch: tap -> codec -> Piece        a tap lives until it is encoded
    assemble           outline + its pieces -> the same parcel as `parcels.pack` of the whole upload, to the byte

A whole upload of OPT-1.3B at 16 x 512 tokens has 768 MiB in bfloat16; its largest piece has 32.

Knows: streamed backbones, batches, codecs.  Knows nothing of: sockets, side networks.

Taught in: notebooks/06_side_network.ipynb
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mobillm_kit.backbone.streaming import StreamedBackbone, Tap, Tokens
from mobillm_kit.errors import BadInput
from mobillm_kit.quant import Codec
from mobillm_kit.quant.parcels import Parcel
from mobillm_kit.quant.tensors import release
from mobillm_kit.texts.encode import Batch


@dataclass(frozen=True, eq=False)
class Piece:
    """The encoded activations of one layer of one batch."""

    batch: int
    """Index within the window."""
    layer: int
    payload: Tensor
    """Flat uint8."""


def outline(batch: Batch, layers: Sequence[int], coder: Codec, *, width: int, one_token: bool = False) -> Parcel:
    """A batch's parcel without its payloads.

    Args:
        batch: (B, T) tokens.
        layers: tapped, ascending.
        coder: how values become bytes.
        width: d.
        one_token: the prediction token alone.
    """
    real = batch.attention_mask.bool()
    places = (real.long().cumsum(dim=1) - 1).gather(1, batch.positions.unsqueeze(1)).squeeze(1)
    rows = batch.rows
    return Parcel(
        codec=coder.name,
        group=coder.group,
        layers=tuple(layers),
        width=width,
        lengths=(1,) * rows if one_token else tuple(real.sum(dim=1).tolist()),
        positions=(0,) * rows if one_token else tuple(places.tolist()),
        payloads=(),
    )


@torch.no_grad()
def pieces(
    backbone: StreamedBackbone,
    window: Sequence[Batch],
    layers: Sequence[int],
    coder: Codec,
    *,
    one_token: bool = False,
) -> Iterator[Piece]:
    """Forward a window of batches, each block read once, and hand out every tap as soon as it is encoded.

    Args:
        backbone: streamed.
        window: batches whose hidden states are in memory together; see ``backbone.need(…).largest_window(…)``.
        layers: tapped, ascending.
        coder: how values become bytes.
        one_token: the prediction tokens alone; exact where the side network works token by token.

    Raises:
        BadInput: a layer that does not exist, or an activation that is not a finite number (names its layer).
    """
    tokens = [Tokens(batch.input_ids, batch.attention_mask, batch.token_type_ids) for batch in window]
    for tap in backbone.block_major(tokens, layers):
        piece = _encoded(tap, window[tap.batch], coder, one_token)
        del tap  # the hidden state must not outlive its turn
        release()
        yield piece
        del piece


def _encoded(tap: Tap, batch: Batch, coder: Codec, one_token: bool) -> Piece:
    rows = torch.arange(batch.rows)
    kept = tap.activations[rows, batch.positions] if one_token else tap.activations[batch.attention_mask.bool()]
    return Piece(tap.batch, tap.layer, coder.encode(kept, f"layer {tap.layer}"))


def assemble(frame: Parcel, found: Iterable[Piece]) -> Parcel:
    """Put one batch's pieces into its outline.

    Raises:
        BadInput: a layer's piece is missing.
    """
    payloads = {piece.layer: piece.payload for piece in found}
    missing = [layer for layer in frame.layers if layer not in payloads]
    if missing:
        raise BadInput(f"The piece of layer {missing[0]} is missing.", "Send every tapped layer.")
    return replace(frame, payloads=tuple(payloads[layer] for layer in frame.layers))
