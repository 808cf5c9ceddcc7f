"""Activation codecs held to numbers worked out by hand or by another formula: bounds, scales, pieces, buffers."""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
import threading

import pytest
import torch
from torch import Tensor

from mobillm_kit.errors import BadInput, CodecError, UnknownName
from mobillm_kit.quant import BITS, CODECS, FP4, GROUPS, NF4, codec
from mobillm_kit.quant.tables import SEARCH, cells_of, tables_of, values_of
from mobillm_kit.quant.tensors import PIECE, _pieces, release, scratch

CPU = torch.device("cpu")
X = torch.tensor([[0.5, -4.0, 1.0, 0.0, 3.0, -0.25, 2.0, 1e-3], [0.0, 0.0, 0.0, 0.0, -8.0, 7.0, 6.0, 1.0]])


# --- names and groups -------------------------------------------------------------------------------------------


def test_the_groups_that_are_taught_and_those_that_are_possible():
    assert GROUPS == (0, 32, 64, 128)
    for group in range(-2, 300):
        if group in (0, 1, 2, 4, 8, 16, 32, 64, 128):
            assert codec("int8", group).wire_bytes((2, 128)) == 2 * (128 + 4 * 128 // (group or 128))
        else:
            with pytest.raises(BadInput, match=f"^{group} values per scale are not possible.*32, 64 or 128, or 0"):
                codec("int8", group)


def test_a_codec_says_what_it_is():
    assert [str(codec(name)) for name in ("fp32", "fp16", "bf16")] == ["fp32", "fp16", "bf16"]
    assert str(codec("int8")) == "int8 with one scale per 64 values"
    assert str(codec("nf4", 0)) == "nf4 with one scale per token"
    assert [name for name in CODECS if not codec(name).has_scales] == ["fp32", "fp16", "bf16"]
    assert [codec(name).bits for name in CODECS] == [32, 16, 16, 8, 8, 4, 2, 1, 4, 4]


def test_a_codec_stays_what_it_is():
    coder = codec("int8")
    with pytest.raises(dataclasses.FrozenInstanceError):
        coder.group = 32
    assert coder == codec("int8", 64) != codec("int8", 32)
    assert len({coder, codec("int8", 64)}) == 1


def test_refusals_name_what_would_be_possible():
    with pytest.raises(UnknownName, match=r"int3.*fp32, fp16, bf16, fp8, int8, int4, int2, sign, nf4, fp4"):
        codec("int3")
    for width, fitting in ((96, "32, 0"), (192, "32, 64, 0"), (7, "0")):
        with pytest.raises(BadInput, match=rf"d = {width}\..*Possible here: {fitting} \(one scale per token\)"):
            codec("int8", 128).wire_bytes((1, width))
    with pytest.raises(BadInput, match=r"^activations of torch.int64\. Give"):
        codec("int8").encode(torch.ones(2, 64, dtype=torch.long))
    for n_bytes, match in ((9, r"^9 bytes for int8 with .*\(1, 4\)\. There must be 8"), (7, "^7 bytes")):
        with pytest.raises(CodecError, match=match):
            codec("int8", 0).decode(torch.zeros(n_bytes, dtype=torch.uint8), (1, 4))
    with pytest.raises(CodecError, match=r"^layer 3: a payload of torch.uint8, 2 dimensions\. Send flat uint8"):
        codec("int8", 0).decode(torch.zeros(1, 8, dtype=torch.uint8), (1, 4), "layer 3")


@pytest.mark.parametrize(
    ("values", "text"),
    [([1e-40, math.inf], r"denormal \(1e-40\)"), ([1.0, -2.0, math.nan], r"negative \(-2\)"),
     ([-0.0], r"negative \(-0\)"), ([math.inf, -1.0], r"not finite \(inf\)"), ([-math.inf], r"not finite \(-inf\)")],
)  # fmt: skip
def test_the_first_scale_that_no_encoder_writes_is_named(values, text):
    scales = struct.pack(f"<{len(values)}f", *values)
    payload = torch.frombuffer(bytearray(scales + bytes(len(values))), dtype=torch.uint8)
    with pytest.raises(CodecError, match=f"^a scale is {text}\\. No encoder writes it"):
        codec("int8", 0).decode(payload, (len(values), 1))


def test_an_overflow_is_told_from_what_is_no_number():
    x = torch.zeros(2, 32)
    for value, text in ((1e5, r"1e\+05 is too large .*possible is 6.55e\+04; choose bf16 or fp32"),
                        (math.nan, r"not finite \(NaN\)"), (-math.inf, r"not finite \(Inf\)")):  # fmt: skip
        x[1, 3] = value
        with pytest.raises(BadInput, match=text):
            codec("fp16").encode(x)
    for bits, text in ((0x7FFF, "a code outside the codebook, or NaN"), (0xFF80, "an infinite value")):
        payload = torch.tensor([0, 0, bits & 0xFF, bits >> 8], dtype=torch.uint8)
        with pytest.raises(CodecError, match=f"^{text}\\. No encoder"):
            codec("bf16").decode(payload, (1, 2))


@pytest.mark.parametrize(("name", "width"), [("int4", 3), ("int2", 5), ("int2", 6), ("int2", 7), ("sign", 9)])
def test_every_unused_bit_must_be_zero_in_every_token(name, width):
    coder = codec(name, 0)
    payload = coder.encode(torch.ones(3, width))
    unused = -width * BITS[name] % 8
    codes = payload.view(-1)[3 * 4 :].view(3, -1)
    for token, bit in itertools.product(range(3), range(8)):
        codes[token, -1] ^= 1 << bit
        if bit < unused:
            with pytest.raises(CodecError, match="bits behind the last value of a token are set"):
                coder.decode(payload, (3, width))
        elif name == "sign":
            coder.decode(payload, (3, width))
        codes[token, -1] ^= 1 << bit
    assert coder.decode(payload, (3, width)).eq(1).all()


# --- bounds and scales ------------------------------------------------------------------------------------------


def bounds_by_hand(name: str, x: Tensor) -> list[list[float]]:
    """As the papers have it: half a step of whatever grid the value is rounded to, and float32's own rounding."""
    slack, rows = 2.0**-21, []
    gaps = {"nf4": max(b - a for a, b in itertools.pairwise(NF4)), "fp4": 1 / 3, "int8": 1, "int4": 1, "int2": 1}
    tops = {"fp8": 448, "int8": 127, "int4": 7, "int2": 1, "nf4": 1, "fp4": 1}
    for row in x.double().abs().tolist():
        if name in ("fp32", "fp16", "bf16"):
            bits, least = {"fp32": (math.inf, 0.0), "fp16": (11, 2.0**-25), "bf16": (8, 2.0**-134)}[name]
            rows.append([max(value * 2.0**-bits, least) for value in row])
            continue
        scale = sum(row) / len(row) if name == "sign" else max(row) / tops[name]
        if name == "sign":
            half = [max(scale, max(row) - scale)] * len(row)
        elif name == "fp8":
            half = [max(value / 16, scale / 1024) for value in row]
        else:
            half = [scale * gaps[name] / 2] * len(row)
        rows.append([b + value * slack for b, value in zip(half, row, strict=True)])
    return rows


@pytest.mark.parametrize("name", CODECS)
def test_the_bound_is_the_one_that_another_formula_gives(name):
    steps = X.view(1, 16) * torch.tensor([[1.0], [1e-3], [1e4]])  # group 0: one scale for 16 values
    found = codec(name, 0).error_bound(steps).double()
    wanted = torch.tensor(bounds_by_hand(name, steps), dtype=torch.float64)
    # the scale of sign comes from values rounded to 2^20 levels
    assert torch.allclose(found, wanted, rtol=1e-5 if name == "sign" else 3e-7, atol=0)


@pytest.mark.parametrize("name", CODECS[3:])
def test_groups_without_a_scale_have_their_own_values_as_bound(name):
    x = torch.tensor([[1e-40, -3e-40, 0.0, 2e-41], [1.0, 2.0, 3.0, 4.0]])
    bound = codec(name, 4).error_bound(x)
    assert torch.equal(bound[0], x[0].abs())
    assert torch.allclose(bound[1].double(), torch.tensor(bounds_by_hand(name, x[1:])[0]).double(), rtol=1e-5, atol=0)


def test_a_bound_has_the_shape_of_what_is_encoded_and_refuses_what_that_refuses():
    x = torch.randn(2, 3, 64, dtype=torch.float16)
    for name in CODECS:
        assert codec(name, 32).error_bound(x).shape == x.shape
        assert codec(name, 32).error_bound(x[:0]).shape == (0, 3, 64)
    with pytest.raises(BadInput, match="do not divide"):
        codec("fp8", 128).error_bound(x)
    with pytest.raises(BadInput, match="not a shape"):
        codec("fp16").error_bound(x[..., :0])


@pytest.mark.parametrize(("count", "levels"), [(128, 2**17), (96, 2**17), (64, 2**18), (2, 2**23), (1, 2**24)])
def test_the_scale_of_sign_is_a_mean_of_whole_numbers(count, levels):
    """1.5 levels are 2 levels: half way is rounded to even, and all fits into the 24 bits of a float32."""
    x = torch.full((1, count), 1.5 / levels)
    x[0, 0] = 1.0
    (scale,) = struct.unpack("<f", bytes(codec("sign", 0).encode(x)[:4].tolist()))
    assert scale == pytest.approx((levels + 2 * (count - 1)) / levels / count, rel=2**-23)


def test_the_order_of_the_values_does_not_change_the_scale_of_sign():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 128, generator=generator)
    scales = {
        bytes(codec("sign", 128).encode(x[:, torch.randperm(128, generator=generator)])[:4].tolist()) for _ in range(50)
    }
    assert len(scales) == 1


def test_negative_zero_is_negative_for_sign():
    assert codec("sign", 0).encode(torch.tensor([[0.0, -0.0, 1.0, -1.0]]))[4:].tolist() == [0b0101_0000]


# --- tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODECS[3:])
def test_what_each_byte_stands_for(name):
    table = values_of(name, CPU)
    bits = BITS[name]
    assert table.shape == (256, 8 // bits)
    assert values_of(name, CPU) is table  # made once
    for byte in range(256):
        codes = [byte >> (8 - bits - shift) & (2**bits - 1) for shift in range(0, 8, bits)]
        for code, value in zip(codes, table[byte].tolist(), strict=True):
            if name in ("nf4", "fp4"):
                wanted = {"nf4": NF4, "fp4": FP4}[name][code]
            elif name == "sign":
                wanted = 1 - 2 * code
            elif name == "fp8":
                power, part = code >> 3 & 15, code & 7
                size = part * 2.0**-9 if power == 0 else (8 + part) * 2.0 ** (power - 10)
                wanted = math.nan if code & 127 == 127 else -size if code >> 7 else size
            else:
                top = 2 ** (bits - 1)
                wanted = math.nan if code == top else code - 2 * top if code > top else code
            assert value == pytest.approx(wanted, rel=1e-7, abs=0, nan_ok=True)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_a_codebook_has_65536_cells_of_which_15_hold_a_midpoint(name):
    order, midpoints, table = tables_of(name, CPU)
    assert tables_of(name, CPU)[2] is table
    assert table.shape == (65536,)
    marked = (table == SEARCH).nonzero().view(-1)
    assert SEARCH == 255
    assert marked.tolist() == [math.floor(32767 * y + 32768) for y in midpoints.tolist()]
    assert table[marked - 1].tolist() == order[:-1].tolist()
    assert table[marked + 1].tolist() == order[1:].tolist()
    ends = torch.tensor([-1.0, 0.0, 1.0])
    assert cells_of(ends, torch.empty(3)).tolist() == [1.0, 32768.0, 65535.0]


# --- pieces and buffers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "values"), [("cpu", 2**19), ("meta", 2**22)])
def test_a_piece_is_two_mebibytes_on_a_processor_and_sixteen_elsewhere(device, values):
    def steps(n: int, d: int) -> list[int]:
        rows = torch.empty(1, 1, device=device).expand(n, d)
        starts = [piece.start for piece in _pieces(rows)]
        assert sum(rows[piece].shape[0] for piece in _pieces(rows)) == n
        return starts

    assert PIECE == 2**19
    assert steps(3, values) == [0, 1, 2]
    assert steps(3, values + 1) == [0, 1, 2]  # at least one row
    assert steps(3, values // 2) == [0, 2]
    assert steps(9, values // 4 + 1) == [0, 3, 6]
    assert steps(0, 8) == []


def test_a_buffer_is_the_same_memory_for_the_same_slot_and_no_others():
    release()
    like = torch.empty(4, 8)
    first = scratch("a", like, torch.float32)
    assert (first.shape, first.dtype) == (like.shape, torch.float32)
    own = first.data_ptr()
    assert scratch("a", torch.empty(PIECE), torch.float32).data_ptr() == own
    assert scratch("a", torch.empty(7), torch.float32).data_ptr() == own
    others = [scratch("b", like, torch.float32), scratch("a", like, torch.int32)]
    assert len({own, *(other.data_ptr() for other in others)}) == 3
    elsewhere: list[Tensor] = []
    thread = threading.Thread(target=lambda: elsewhere.append(scratch("a", like, torch.float32)))
    thread.start()
    thread.join()
    assert elsewhere[0].data_ptr() != own
    large = scratch("a", torch.empty(PIECE + 1), torch.float32)  # not kept
    assert large.numel() == PIECE + 1
    assert scratch("a", like, torch.float32).data_ptr() == own
    scratch("c", torch.empty(PIECE + 1), torch.uint8)
    kept = scratch("c", like, torch.uint8)
    assert scratch("c", torch.empty(PIECE), torch.uint8).data_ptr() == kept.data_ptr()
    assert scratch("a", torch.empty(2, device="meta"), torch.float32).device.type == "meta"
    release()


def test_a_buffer_made_in_inference_mode_can_be_written_to_outside():
    release()
    with torch.inference_mode():
        scratch("a", torch.empty(3), torch.float32)
    scratch("a", torch.empty(3), torch.float32).copy_(torch.ones(3, requires_grad=True).detach())
    assert not scratch("a", torch.empty(3), torch.float32).is_inference()
    release()


@pytest.mark.parametrize(("name", "rows", "width"), [("int4", 6, 5), ("int2", 8, 5), ("sign", 16, 9), ("int4", 1, 1)])
def test_tokens_that_do_not_fill_their_bytes_come_back_whatever_their_number(name, rows, width):
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    coder = codec(name, 0)
    back = coder.decode(coder.encode(x), x.shape)
    assert (back - x).abs().le(coder.error_bound(x)).all()
    assert torch.equal(back[-1:], coder.decode(coder.encode(x[-1:]), (1, width)))


def test_parts_of_a_payload_are_views_of_it_a_row_per_token():
    payload = codec("int4", 32).encode(torch.randn(3, 64))
    scales, codes = codec("int4", 32).parts(payload, (3, 64))
    assert (scales.shape, codes.shape) == ((3, 8), (3, 32))
    assert scales.data_ptr() == payload.data_ptr()
    assert codes.data_ptr() == payload.data_ptr() + 24
    nothing, floats = codec("fp16").parts(codec("fp16").encode(torch.randn(3, 5)), (3, 5))
    assert (nothing.shape, floats.shape) == ((3, 0), (3, 10))
