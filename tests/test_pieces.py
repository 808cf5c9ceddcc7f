"""An upload that leaves in pieces is the upload that leaves whole."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from benchmarks.pieces import assemble, outline, pieces
from mobillm_kit.backbone.streaming import stream_backbone
from mobillm_kit.device.forward import Device
from mobillm_kit.errors import BadInput
from mobillm_kit.quant import codec
from mobillm_kit.quant.parcels import pack
from tests.builders import random_batch
from tests.families import tiny_backbone

LAYERS = (1, 3)


@pytest.fixture
def backbone(tmp_path):
    tiny_backbone("opt").model.save_pretrained(tmp_path)
    return stream_backbone(tmp_path)


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("one_token", [False, True])
@pytest.mark.parametrize("name", ["fp16", "int8", "int4", "nf4"])
def test_pieces_put_together_are_the_parcel_of_the_whole_upload(backbone, name, one_token, pad):
    coder = codec(name, 0 if name == "fp16" else 32)
    window = [random_batch(seed=seed, rows=2 + seed, length=7 + seed, pad=pad) for seed in range(3)]
    device = Device(backbone, LAYERS, one_token=one_token)
    found = list(pieces(backbone, window, LAYERS, coder, one_token=one_token))
    for number, batch in enumerate(window):
        frame = outline(batch, LAYERS, coder, width=backbone.width, one_token=one_token)
        ours = assemble(frame, [piece for piece in found if piece.batch == number])
        whole = pack(device.upload(batch), coder, LAYERS)
        assert all(torch.equal(a, b) for a, b in zip(ours.payloads, whole.payloads, strict=True))
        assert (ours.lengths, ours.positions, ours.layers, ours.width) == (
            whole.lengths,
            whole.positions,
            whole.layers,
            whole.width,
        )


def test_pieces_come_layer_by_layer_as_the_blocks_do(backbone):
    window = [random_batch(seed=seed) for seed in range(2)]
    order = [(piece.layer, piece.batch) for piece in pieces(backbone, window, (1, 2, 3), codec("fp16", 0))]
    assert order == [(layer, batch) for layer in (1, 2, 3) for batch in (0, 1)]


def test_an_activation_is_freed_when_the_next_block_has_run(backbone):
    alive = []
    tap_major = backbone.block_major
    backbone.block_major = lambda window, layers: (
        alive.append(weakref.ref(t[2])) or t for t in tap_major(window, layers)
    )
    for piece in pieces(backbone, [random_batch()], (1, 2, 3), codec("int8", 32)):
        gc.collect()
        assert sum(reference() is not None for reference in alive) == 1, piece.layer


def test_a_missing_piece_is_named(backbone):
    coder = codec("fp16", 0)
    batch = random_batch()
    found = [piece for piece in pieces(backbone, [batch], LAYERS, coder) if piece.layer != 3]
    with pytest.raises(BadInput, match="piece of layer 3 is missing"):
        assemble(outline(batch, LAYERS, coder, width=32), found)
