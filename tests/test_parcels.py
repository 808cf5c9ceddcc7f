"""Uploads packed for the link come back as they went, padding aside; samples can be taken apart and together."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mobillm_kit.errors import BadInput, CodecError
from mobillm_kit.quant import CODECS, codec
from mobillm_kit.quant.parcels import Upload, from_bytes, merge, pack, split, to_bytes, unpack

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
    back = unpack(pack(there, coder("fp32"), LAYERS), labels=[1, 0, 1])
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


@pytest.mark.parametrize("name", CODECS)
def test_samples_of_unequal_length_are_put_together_in_any_order(name):
    one, two, three = split(pack(upload(), coder(name), LAYERS))
    other = merge([merge([three, one]), two])
    assert (other.lengths, other.positions) == ((4, 5, 2), (3, 4, 1))
    again = pack(upload(), coder(name), LAYERS, rows=[2, 0, 1])
    assert other.positions == again.positions
    assert all(torch.equal(a, b) for a, b in zip(other.payloads, again.payloads, strict=True))
    assert [parcel.n_bytes for parcel in (one, two, three)] == [
        len(LAYERS) * coder(name).wire_bytes((tokens, WIDTH)) for tokens in (5, 2, 4)
    ]


def test_a_sample_outlives_its_batch():
    whole = pack(upload(), coder("int8"), LAYERS)
    alone = split(whole)[1]
    before = [payload.clone() for payload in alone.payloads]
    for payload in whole.payloads:
        payload.zero_()
    assert all(torch.equal(a, b) for a, b in zip(alone.payloads, before, strict=True))


def test_a_parcel_says_what_is_in_it():
    parcel = pack(upload(), codec("int8", 32), LAYERS)
    assert (parcel.codec, parcel.group, parcel.layers, parcel.width) == ("int8", 32, LAYERS, WIDTH)
    assert (parcel.lengths, parcel.positions) == ((5, 2, 4), (4, 1, 3))
    assert parcel.coder == codec("int8", 32)
    assert parcel.n_bytes == 3 * 11 * (64 + 4 * 2)
    assert upload().n_bytes == 3 * 3 * 5 * 64 * 4 + 3 * 5 + 3 * 4 + 3 * 4
    for thing, field in ((parcel, "codec"), (upload(), "mask")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, field, None)


def test_one_layer_is_enough_and_labels_that_do_not_travel_are_zeros():
    there = upload()
    alone = dataclasses.replace(there, activations=there.activations[:1])
    back = unpack(pack(alone, codec("fp32"), LAYERS[:1]))
    assert (back.labels.tolist(), back.labels.dtype) == ([0, 0, 0], torch.int32)
    assert (back.positions.dtype, back.mask.dtype) == (torch.int32, torch.uint8)
    with pytest.raises(TypeError):
        unpack(pack(alone, codec("fp32"), LAYERS[:1]), 3)


def test_layers_and_payloads_must_be_as_many():
    with pytest.raises(ValueError, match="zip"):
        pack(upload(), codec("fp32"), LAYERS[:2])
    parcel = pack(upload(), codec("fp32"), LAYERS)
    with pytest.raises(ValueError, match="zip"):
        unpack(dataclasses.replace(parcel, layers=LAYERS[:2]))
    with pytest.raises(ValueError, match="zip"):
        split(dataclasses.replace(parcel, positions=(0,)))


def test_a_payload_that_is_too_short_is_not_taken_apart():
    parcel = pack(upload(), codec("int8", 32), LAYERS)
    short = dataclasses.replace(parcel, payloads=tuple(payload[:-1] for payload in parcel.payloads))
    for work in (split, lambda parcel: merge([parcel, parcel])):
        with pytest.raises(CodecError, match="There must be 792"):
            work(short)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [("codec", "int4", "codec (int8, int4)"), ("group", 64, "group (32, 64)"), ("width", 32, "width (64, 32)"),
     ("layers", (1, 2, 5), "layers ((1, 2, 4), (1, 2, 5))")],
)  # fmt: skip
def test_only_parcels_of_one_kind_are_merged(field, value, text):
    parcel = pack(upload(), codec("int8", 32), LAYERS)
    with pytest.raises(BadInput) as refused:
        merge([parcel, parcel, dataclasses.replace(parcel, **{field: value})])
    assert f"Parcels of different {text}." in str(refused.value)


def test_tensors_go_to_bytes_row_by_row_and_back():
    x = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int16)
    assert bytes(to_bytes(x)) == bytes([1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0])
    assert bytes(to_bytes(x.t())) == bytes([1, 0, 4, 0, 2, 0, 5, 0, 3, 0, 6, 0])
    assert bytes(to_bytes(torch.tensor(258, dtype=torch.int16))) == bytes([2, 1])
    assert bytes(to_bytes(torch.ones(1, requires_grad=True))) == bytes([0, 0, 0x80, 0x3F])
    assert len(to_bytes(x[:0])) == 0
    x[0, 0] = 9
    assert to_bytes(x)[0] == 9
    assert (from_bytes(b"\x07\x08").tolist(), from_bytes(b"").shape) == ([7, 8], (0,))
    assert from_bytes(b"").dtype == from_bytes(b"a").dtype == torch.uint8


def test_bytes_that_may_be_written_are_not_copied_and_others_are():
    own, fixed = bytearray(b"abc"), b"abc"
    from_bytes(own)[0] = 1
    from_bytes(memoryview(fixed))[0] = 1
    assert (own[0], fixed) == (1, b"abc")
    to_bytes(numbers := torch.zeros(2))[0] = 1
    assert numbers[0] > 0
