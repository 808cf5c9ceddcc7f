"""Uploads packed for the link come back as they went, padding aside; samples can be taken apart and together."""

from __future__ import annotations

import pytest
import torch

from mobillm_kit.errors import BadInput
from mobillm_kit.quant import CODECS, codec
from mobillm_kit.quant.parcels import Upload, merge, pack, split, unpack

LAYERS = (1, 2, 4)
WIDTH = 64


def upload(*, left: bool = False, seed: int = 0) -> Upload:
    """Three texts of 5, 2 and 4 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([5, 2, 4])
    places = torch.arange(5)
    mask = places >= 5 - lengths.unsqueeze(1) if left else places < lengths.unsqueeze(1)
    positions = torch.full((3,), 4) if left else lengths - 1
    return Upload(
        sequence=3,
        activations=tuple(torch.randn(3, 5, WIDTH, generator=generator) for _ in LAYERS),
        mask=mask.to(torch.uint8),
        positions=positions.int(),
        labels=torch.tensor([1, 0, 1], dtype=torch.int32),
    )


def coder(name: str):
    return codec(name, 0 if name in ("fp32", "fp16", "bf16", "fp8") else 32)


@pytest.mark.parametrize("left", [False, True])
def test_real_tokens_come_back_as_they_went_whatever_side_the_padding_was_on(left):
    there = upload(left=left)
    back = unpack(pack(there, coder("fp32"), LAYERS), sequence=3, labels=[1, 0, 1])
    assert back.mask.sum(dim=1).tolist() == [5, 2, 4]
    for ours, theirs in zip(back.activations, there.activations, strict=True):
        assert torch.equal(ours[back.mask.bool()], theirs[there.mask.bool()])
        assert not ours[~back.mask.bool()].any()
    assert back.positions.tolist() == [4, 1, 3]
    assert back.labels.tolist() == there.labels.tolist()


def test_padding_takes_no_bytes():
    parcel = pack(upload(), coder("fp32"), LAYERS)
    assert parcel.n_bytes == len(LAYERS) * (5 + 2 + 4) * WIDTH * 4


@pytest.mark.parametrize("name", CODECS)
def test_taking_samples_apart_and_putting_them_together_changes_no_byte(name):
    whole = pack(upload(), coder(name), LAYERS)
    again = merge(split(whole))
    assert again.lengths == whole.lengths
    assert again.positions == whole.positions
    assert all(torch.equal(a, b) for a, b in zip(again.payloads, whole.payloads, strict=True))


@pytest.mark.parametrize("name", CODECS)
def test_a_sample_on_its_own_decodes_as_it_does_in_its_batch(name):
    whole = pack(upload(), coder(name), LAYERS)
    together = unpack(whole)
    for row, alone in enumerate(map(unpack, split(whole))):
        length = whole.lengths[row]
        for a, b in zip(alone.activations, together.activations, strict=True):
            assert torch.equal(a[0], b[row, :length])


def test_only_the_rows_asked_for_are_packed():
    parcel = pack(upload(), coder("int8"), LAYERS, rows=[2, 0])
    assert parcel.lengths == (4, 5)


def test_a_value_that_is_no_number_is_refused_with_its_layer():
    bad = upload()
    bad.activations[1][0, 0, 0] = float("nan")
    with pytest.raises(BadInput, match="layer 2"):
        pack(bad, coder("int8"), LAYERS)


def test_parcels_of_different_codecs_are_not_merged():
    with pytest.raises(BadInput, match="codec"):
        merge([pack(upload(), coder("int8"), LAYERS), pack(upload(), coder("int4"), LAYERS)])
