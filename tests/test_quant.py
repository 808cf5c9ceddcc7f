"""Activation codecs: what goes in comes out within a bound, in exactly the bytes that were promised."""

from __future__ import annotations

import hashlib
import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mobillm_kit.errors import BadInput, CodecError, UnknownName
from mobillm_kit.quant import BITS, CODECS, FP4, NF4, Codec, codec
from mobillm_kit.quant.books import TOP
from mobillm_kit.quant.tensors import PIECE, _kept, nearest, pack, release

SCALED = CODECS[3:]
LOSSY = CODECS[1:]
INTEGERS = ("int8", "int4", "int2")
GROUPS = (0, 32, 64, 128)
EVERY = [(name, group) for name in CODECS for group in (GROUPS if name in SCALED else (0,))]
SHAPE = (3, 5, 256)


def activations(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    """Normal values with two outlier channels, as transformers have them."""
    x = scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    x[..., 1 % shape[-1]] *= 20
    x[..., -1] *= 8
    return x


def there_and_back(coder: Codec, x: Tensor) -> Tensor:
    return coder.decode(coder.encode(x), x.shape)


# --- sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "group", "n_bytes"),
    [("fp32", 0, 4096), ("fp16", 0, 2048), ("bf16", 0, 2048), ("int8", 64, 1024 + 64), ("int4", 64, 512 + 64),
     ("int2", 128, 256 + 32), ("sign", 32, 128 + 128), ("nf4", 0, 512 + 16), ("fp8", 0, 1024 + 16)],
)  # fmt: skip
def test_size_by_hand(name, group, n_bytes):
    assert codec(name, group).wire_bytes((4, 256)) == n_bytes


@pytest.mark.parametrize(("name", "group"), EVERY)
def test_a_payload_has_the_size_that_was_promised(name, group):
    coder = codec(name, group)
    payload = coder.encode(activations(*SHAPE))
    assert payload.dtype == torch.uint8
    assert payload.shape == (coder.wire_bytes(SHAPE),)


def test_opt_125m_in_4_bits_is_a_quarter_of_fp16_and_its_scales():
    sizes = {name: 12 * codec(name).wire_bytes((16, 128, 768)) / 1e6 for name in ("fp16", "int8", "int4")}
    assert sizes["fp16"] == pytest.approx(37.7, abs=0.05)
    assert sizes["int4"] == pytest.approx(10.6, abs=0.05)


def test_a_token_without_whole_bytes_is_filled_with_zero_bits():
    for name, width in (("int4", 5), ("int2", 5), ("sign", 11), ("nf4", 7)):
        coder, x = codec(name, 0), activations(3, width)
        assert coder.wire_bytes(x.shape) == 3 * (4 + math.ceil(width * BITS[name] / 8))
        assert (there_and_back(coder, x) - x).abs().le(coder.error_bound(x)).all()


def test_no_tokens_are_no_bytes():
    for name, group in EVERY:
        coder = codec(name, group)
        assert coder.encode(torch.empty(0, 256)).numel() == 0
        assert coder.decode(torch.empty(0, dtype=torch.uint8), (2, 0, 256)).shape == (2, 0, 256)


# --- laws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "group"), EVERY)
def test_the_error_is_below_its_bound(name, group):
    coder, x = codec(name, group), activations(*SHAPE)
    assert (there_and_back(coder, x) - x).abs().le(coder.error_bound(x)).all()


@pytest.mark.parametrize("size", [1.0, 2.0**-15, 2.0**-127], ids=["normal", "fp16-denormal", "bf16-denormal"])
@pytest.mark.parametrize("name", LOSSY)
def test_the_bound_is_no_wider_than_it_must_be(name, size):
    """Somewhere the error comes within a tenth of its bound; without a scale it is the value itself."""
    size = max(size, 2.0**-15) if name == "fp16" else size  # below that all is zero
    coder, x = codec(name, 0), size * torch.linspace(-1, 1, 100_001).view(1, -1)
    error, bound = (there_and_back(coder, x) - x).abs(), coder.error_bound(x)
    assert (error / bound.clamp_min(2.0**-149)).max() > 0.9


@pytest.mark.parametrize(("name", "group"), [pair for pair in EVERY if pair[0] in LOSSY])
def test_the_error_is_really_there(name, group):
    coder, x = codec(name, group), activations(*SHAPE)
    assert (there_and_back(coder, x) - x).abs().mean() > 1e-4


def test_float32_comes_back_as_it_went():
    x = activations(*SHAPE)
    assert torch.equal(there_and_back(codec("fp32"), x), x)
    assert not codec("fp32").error_bound(x).any()


@pytest.mark.parametrize(("name", "group"), [pair for pair in EVERY if pair[0] != "sign"])
def test_what_came_back_once_stays_as_it_is(name, group):
    coder = codec(name, group)
    once = there_and_back(coder, activations(*SHAPE))
    twice = there_and_back(coder, once)
    assert (twice - once).abs().max() <= 1e-5 * once.abs().max()


@pytest.mark.parametrize("group", GROUPS)
def test_more_bits_mean_a_smaller_error(group):
    x = activations(*SHAPE)
    errors = [(there_and_back(codec(name, group), x) - x).square().mean() for name in INTEGERS]
    assert errors == sorted(errors)


def test_one_scale_per_token_loses_to_one_per_group_where_channels_stand_out():
    x = activations(8, 16, 1024)
    grouped, whole = ((there_and_back(codec("int4", group), x) - x)[..., 2:-1].norm() for group in (64, 0))
    assert whole > 3 * grouped


@pytest.mark.parametrize("name", SCALED)
def test_zeros_come_back_as_zeros_beside_others(name):
    x = activations(2, 128)
    x[0, 32:64] = 0
    back = there_and_back(codec(name, 32), x)
    assert not back[0, 32:64].any()
    assert back[0, :32].any()


@pytest.mark.parametrize("name", [name for name in SCALED if name != "sign"])
def test_the_largest_value_of_a_group_keeps_its_size(name):
    x = activations(4, 64)
    place = x.abs().argmax(dim=1, keepdim=True)
    top = there_and_back(codec(name, 64), x).gather(1, place)
    assert torch.allclose(top, x.gather(1, place), rtol=1e-6)


def test_the_scale_of_sign_is_the_mean():
    x = activations(4, 64)
    back = there_and_back(codec("sign", 64), x)
    assert torch.equal(back.sign(), x.sign())
    assert torch.allclose(back.abs(), x.abs().mean(dim=1, keepdim=True).expand(4, 64), rtol=1e-4)


FLOAT32 = st.floats(-(2.0**126), 2.0**126, width=32)


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(FLOAT32, min_size=1, max_size=96),
    name=st.sampled_from(CODECS),
    group=st.sampled_from((0, 1, 2, 8, 32)),
)
def test_any_finite_values_come_back_within_the_bound_or_are_refused_as_too_large(values, name, group):
    coder = codec(name, group)
    width = coder.group or len(values)
    x = torch.tensor(values[: len(values) // width * width]).view(-1, width)
    if name == "fp16" and x.numel() and x.abs().max() > 65504:
        with pytest.raises(BadInput, match="too large"):
            coder.encode(x)
        return
    payload = coder.encode(x)
    assert payload.numel() == coder.wire_bytes(x.shape)
    assert (coder.decode(payload, x.shape) - x).abs().le(coder.error_bound(x)).all()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-100, 100), name=st.sampled_from(INTEGERS))
def test_a_power_of_two_changes_the_scales_and_no_code(seed, exponent, name):
    coder, x = codec(name, 32), activations(2, 64, seed=seed)
    _, codes = coder.parts(coder.encode(x), x.shape)
    assert torch.equal(codes, coder.parts(coder.encode(x * 2.0**exponent), x.shape)[1])


# --- bytes ------------------------------------------------------------------------------------------------------


def test_bytes_by_hand():
    x = torch.tensor([[7.0, -7.0, 1.0, 0.0]])
    scale = struct.pack("<f", 1.0)
    assert bytes(codec("int4", 0).encode(x).tolist()) == scale + bytes([0x79, 0x10])
    assert bytes(codec("int2", 0).encode(x / 7).tolist()) == scale + bytes([0b01_11_00_00])
    assert bytes(codec("int8", 0).encode(x / 7 * 127).tolist()) == scale + bytes([127, 0x81, 18, 0])
    assert bytes(codec("sign", 0).encode(torch.tensor([[1.0, -1.0, -1.0, 1.0]])).tolist()) == scale + bytes([0x60])
    assert bytes(codec("nf4", 0).encode(torch.tensor([[1.0, -1.0, 0.0, 0.5]])).tolist()) == scale + bytes([0xF0, 0x7C])
    assert bytes(codec("fp8", 0).encode(torch.tensor([[448.0, 1.0]])).tolist()) == scale + bytes([0x7E, 0x38])
    assert bytes(codec("bf16").encode(torch.tensor([[1.0]])).tolist()) == b"\x80\x3f"


@pytest.mark.parametrize(("name", "group"), EVERY)
def test_bytes_are_the_same_for_one_token_alone_and_among_others(name, group):
    coder, x = codec(name, group), activations(7, 256)
    scales, codes = coder.parts(coder.encode(x), x.shape)
    own_scales, own_codes = coder.parts(coder.encode(x[3:4]), (1, 256))
    assert torch.equal(scales[3:4], own_scales)
    assert torch.equal(codes[3:4], own_codes)


@pytest.mark.parametrize("name", CODECS)
def test_a_tensor_that_is_worked_on_in_pieces_has_the_bytes_of_its_parts(name):
    coder = codec(name, 64)
    x = activations(PIECE // 512 + 3, 512)
    whole = coder.encode(x)
    scales, codes = coder.parts(whole, x.shape)
    for part in (slice(0, 5), slice(x.shape[0] - 5, x.shape[0])):
        alone = coder.encode(x[part])
        own_scales, own_codes = coder.parts(alone, (5, 512))
        assert torch.equal(scales[part], own_scales)
        assert torch.equal(codes[part], own_codes)
    assert torch.equal(coder.decode(whole, x.shape)[-5:], coder.decode(alone, (5, 512)))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_float32_would_be(name, dtype):
    x = activations(*SHAPE).to(dtype)
    assert torch.equal(codec(name).encode(x), codec(name).encode(x.float()))


@pytest.mark.parametrize("name", CODECS)
def test_strides_and_threads_do_not_change_the_bytes(name):
    x = activations(600, 512)
    one = codec(name).encode(x)
    assert torch.equal(codec(name).encode(x.t().contiguous().t()), one)
    torch.set_num_threads(2)
    try:
        assert torch.equal(codec(name).encode(x), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("name", CODECS)
def test_what_was_encoded_in_inference_mode_can_be_trained_on_after_decoding(name):
    with torch.inference_mode():
        payload = codec(name).encode(activations(2, 3, 64, seed=1))
    codec(name).encode(activations(2, 3, 64, seed=2))
    weight = torch.ones(64, requires_grad=True)
    (codec(name).decode(payload, (2, 3, 64)) * weight).sum().backward()
    assert weight.grad.isfinite().all()


def test_the_activations_are_left_as_they_were():
    for name in CODECS:
        x = activations(4, 64)
        codec(name).encode(x)
        assert torch.equal(x, activations(4, 64))


@pytest.mark.parametrize("name", CODECS)
def test_a_payload_may_lie_anywhere_in_a_received_frame(name):
    coder, x = codec(name), activations(4, 64)
    payload = coder.encode(x)
    frame = torch.cat((torch.zeros(3, dtype=torch.uint8), payload))
    assert torch.equal(coder.decode(frame[3:], x.shape), coder.decode(payload, x.shape))


# --- codebooks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "book"), [("nf4", NF4), ("fp4", FP4)])
def test_the_table_finds_the_nearest_value_also_beside_every_midpoint(name, book):
    ordered = torch.tensor(sorted(set(book)))
    middle = (ordered[:-1] + ordered[1:]) / 2
    steps = torch.arange(-40, 41, dtype=torch.int32)
    y = torch.cat(((middle.view(torch.int32).unsqueeze(1) + steps).view(-1).view(torch.float32), ordered,
                   torch.linspace(-1, 1, 100_003)))  # fmt: skip
    codes = nearest(y, name).long()
    chosen = torch.tensor(book, dtype=torch.float64)[codes]
    distance = (y.double().unsqueeze(1) - torch.tensor(book, dtype=torch.float64)).abs()
    # nearest, up to float32's own rounding of the midpoint
    assert ((y.double() - chosen).abs() - distance.amin(dim=1)).max() < 2**-23
    # and exactly what a search says
    assert torch.equal(torch.tensor(book)[codes], ordered[torch.bucketize(y, middle)])


REFERENCE_DIGESTS = {
    ("nf4", 32): "58052bcb4b6110a2ac62bf9419288a2a", ("nf4", 64): "ff4042ec9450ddb5346c8186252f976b",
    ("nf4", 128): "171c360a3932650b01b2088a1b7710c6", ("fp4", 32): "7f527db60d1dd4d53732e29583950d7f",
    ("fp4", 64): "76307d2f6dd198a14d1d15b3b0aa58bc", ("fp4", 128): "b6839359ba5ae088b3487f8e805993af",
}  # fmt: skip
"""Of what bitsandbytes 0.50.2 makes of the values below, scales first; test_quant_reference.py asks it itself."""


@pytest.mark.parametrize(("name", "group"), REFERENCE_DIGESTS)
def test_bytes_equal_those_that_bitsandbytes_made(name, group):
    spread = (torch.arange(64 * 256, dtype=torch.float64) * 0.6180339887498949) % 1 * 2 - 1
    x = (spread * spread * spread * 4).float().view(64, 256)
    x[:, ::61] *= 32
    x[3] = 0
    payload = bytes(codec(name, group).encode(x).tolist())
    assert hashlib.blake2b(payload, digest_size=16).hexdigest() == REFERENCE_DIGESTS[name, group]


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("width", [1, 7, 8, 32, 33])
def test_packed_codes_stand_with_the_first_in_the_highest_bits(bits, width):
    codes = torch.randint(0, 2**bits, (3, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    out = torch.empty(3, math.ceil(width * bits / 8), dtype=torch.uint8)
    pack(codes, bits, out)
    for row, packed in zip(codes.tolist(), out.tolist(), strict=True):
        text = "".join(f"{code:0{bits}b}" for code in row)
        assert "".join(f"{byte:08b}" for byte in packed) == text.ljust(8 * len(packed), "0")


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "Inf"), (-math.inf, "Inf")])
def test_activations_that_are_not_finite_are_refused_by_the_name_of_their_layer(name, value, word):
    x = activations(600, 512)
    x[590, 77] = value
    with pytest.raises(BadInput, match=rf"^layer 3: .*{word}"):
        codec(name).encode(x, "layer 3")


@pytest.mark.parametrize(("name", "value"), [("fp16", 1e5), ("int8", 2e38), ("nf4", 3e38)])
def test_values_that_a_codec_cannot_hold_are_refused(name, value):
    x = activations(2, 64)
    x[1, 5] = value
    with pytest.raises(BadInput, match=r"layer 1: .*too large"):
        codec(name).encode(x, "layer 1")


@pytest.mark.parametrize("name", SCALED)
def test_the_largest_value_that_can_be_held_is_held_and_the_next_is_refused(name):
    most = torch.full((1, 32), 2.0**127)
    assert (there_and_back(codec(name, 32), most) / most - 1).abs().max() < 1e-6
    with pytest.raises(BadInput, match="too large"):
        codec(name, 32).encode(most.nextafter(torch.tensor(math.inf)))


@pytest.mark.parametrize("name", SCALED)
def test_the_smallest_normal_scale_is_a_scale_and_the_next_smaller_is_none(name):
    tiny = torch.finfo(torch.float32).tiny
    coder, top = codec(name, 32), torch.zeros(1, 32)
    payload = coder.encode(top + 1)
    for scale, accepted in ((tiny, True), (tiny * (1 - 2.0**-23), False), (torch.finfo(torch.float32).max, True)):
        payload[:4] = torch.tensor([scale]).view(torch.uint8)
        payload[4:] = 0
        if accepted:
            coder.decode(payload, (1, 32))
        else:
            with pytest.raises(CodecError, match="denormal"):
                coder.decode(payload, (1, 32))
    peak = tiny * TOP.get(name, 1.0)
    assert coder.encode(top + peak)[:4].any()
    assert not coder.encode(top + peak * (1 - 2.0**-20))[:4].any()


def test_groups_that_do_not_divide_the_width_are_refused_with_those_that_do():
    with pytest.raises(BadInput, match=r"64 values do not divide the width d = 96.*32, 0"):
        codec("int8", 64).encode(activations(2, 96))
    with pytest.raises(BadInput, match="do not divide"):
        codec("int8", 64).wire_bytes((2, 96))


@pytest.mark.parametrize("shape", [(), (2, 0), (-1, 64), (2.0, 64), (True, 64)])
def test_what_is_no_shape_is_refused(shape):
    with pytest.raises(BadInput, match="not a shape"):
        codec("int8").wire_bytes(shape)


def test_names_and_groups_that_do_not_exist_are_refused():
    with pytest.raises(UnknownName, match="int3"):
        codec("int3")
    for group in (-1, 48, 256, True, 64.0, "64"):
        with pytest.raises(BadInput, match="per scale"):
            codec("int8", group)
    with pytest.raises(BadInput, match="no scales"):
        Codec("fp16", 64)


def test_whole_numbers_are_no_activations():
    with pytest.raises(BadInput, match=r"layer 2: activations of torch\.int64"):
        codec("int8").encode(torch.ones(2, 64, dtype=torch.long), "layer 2")


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_payload_of_another_length_is_refused(name, change):
    coder = codec(name)
    n_bytes = coder.wire_bytes((2, 64)) + change
    with pytest.raises(CodecError, match=rf"layer 5: {n_bytes} bytes .*There must be {n_bytes - change}"):
        coder.decode(torch.zeros(n_bytes, dtype=torch.uint8), (2, 64), "layer 5")


def test_a_payload_that_is_not_flat_bytes_is_refused():
    for payload in (torch.zeros(4, 32, dtype=torch.uint8), torch.zeros(132)):
        with pytest.raises(CodecError, match="flat uint8"):
            codec("int8", 0).decode(payload, (2, 62))


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize(
    ("scale", "kind"),
    [(math.nan, "not finite"), (math.inf, "not finite"), (-1.0, "negative"), (-0.0, "negative"), (1e-40, "denormal")],
)
def test_scales_that_no_encoder_writes_are_refused(name, scale, kind):
    coder = codec(name, 32)
    payload = coder.encode(activations(2, 64))
    payload[4:8] = torch.frombuffer(bytearray(struct.pack("<f", scale)), dtype=torch.uint8)
    with pytest.raises(CodecError, match=f"layer 1: a scale is {kind}"):
        coder.decode(payload, (2, 64), "layer 1")


@pytest.mark.parametrize(
    ("name", "byte"),
    [("int8", 0x80), ("int4", 0x80), ("int4", 0x18), ("int2", 0b10_000000), ("int2", 0b00_01_11_10), ("fp8", 0x7F),
     ("fp8", 0xFF)],
)  # fmt: skip
def test_codes_outside_the_codebook_are_refused(name, byte):
    coder = codec(name, 32)
    payload = coder.encode(activations(2, 64))
    payload[-1] = byte
    with pytest.raises(CodecError, match="layer 1: a code outside the codebook"):
        coder.decode(payload, (2, 64), "layer 1")


@pytest.mark.parametrize(("name", "width"), [("int4", 5), ("int2", 5), ("sign", 11), ("nf4", 5), ("fp4", 5)])
def test_bits_behind_the_last_value_are_refused(name, width):
    coder = codec(name, 0)
    payload = coder.encode(activations(2, width))
    payload[-1] |= 1
    with pytest.raises(CodecError, match="behind the last value"):
        coder.decode(payload, (2, width))


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_floats_that_are_not_finite_are_refused(name):
    coder = codec(name)
    payload = coder.encode(activations(2, 64))
    payload[-2:] = 0xFF
    payload[-1] = 0x7F
    with pytest.raises(CodecError, match="layer 1: "):
        coder.decode(payload, (2, 64), "layer 1")


def test_a_large_scale_that_overflows_is_refused():
    payload = codec("int8", 0).encode(torch.full((1, 32), 127.0))
    payload[:4] = torch.frombuffer(bytearray(struct.pack("<f", 3e38)), dtype=torch.uint8)
    with pytest.raises(CodecError, match="infinite"):
        codec("int8", 0).decode(payload, (1, 32))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), name=st.sampled_from(CODECS), width=st.sampled_from((5, 32, 64)))
def test_any_bytes_decode_to_finite_values_or_to_the_codecs_own_error(data, name, width):
    coder = codec(name, 0)
    size = coder.wire_bytes((2, width))
    payload = data.draw(st.binary(min_size=size, max_size=size))
    try:
        back = coder.decode(torch.frombuffer(bytearray(payload), dtype=torch.uint8), (2, width))
    except CodecError:
        return
    assert back.isfinite().all()


def test_buffers_are_kept_until_they_are_released():
    coder = codec("int4", 64)
    coder.encode(torch.randn(4, 128))
    assert _kept.__dict__["buffers"]
    release()
    assert "buffers" not in _kept.__dict__
    assert coder.encode(torch.ones(4, 128)).numel() == coder.wire_bytes((4, 128))
