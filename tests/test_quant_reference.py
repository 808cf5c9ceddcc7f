"""NF4 and FP4 give the codes and scales of bitsandbytes, bit for bit."""

from __future__ import annotations

import pytest
import torch

from mobillm_kit.quant import FP4, NF4, codec

functional = pytest.importorskip(
    "bitsandbytes.functional", reason="bitsandbytes, the reference for NF4 and FP4, is not installed (extra: test)"
)
BOOKS = {"nf4": NF4, "fp4": FP4}


def activations(kind: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 1024, generator=generator)
    if kind == "outliers":
        x[:, ::97] *= 40
    if kind == "uniform":
        x = torch.rand(40, 1024, generator=generator) * 2 - 1
    if kind == "few-values":
        x = torch.randint(-8, 9, (40, 1024), generator=generator) / 8
    if kind == "zeros":
        x[:, 256:512] = 0
    return x * 10.0 ** (seed - 2)


@pytest.mark.parametrize("kind", ["normal", "outliers", "uniform", "few-values", "zeros"])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
@pytest.mark.parametrize("seed", [0, 4])
def test_codes_and_scales_equal_the_reference_library(name, group, kind, seed):
    x, coder = activations(kind, seed), codec(name, group)
    codes, state = functional.quantize_4bit(x, blocksize=group, quant_type=name)
    ours = [part.reshape(-1) for part in coder.parts(coder.encode(x), x.shape)]
    assert torch.equal(ours[0].view(torch.float32), state.absmax)
    assert torch.equal(ours[1], codes.view(-1))


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_values_beside_every_midpoint_get_the_code_of_the_reference_library(name):
    values = torch.tensor(sorted(set(BOOKS[name])))
    middle = (values[:-1] + values[1:]) / 2
    steps = torch.arange(-30, 31, dtype=torch.int32)
    near = (middle.view(torch.int32).unsqueeze(1) + steps).view(-1).view(torch.float32)
    x = torch.ones(near.numel(), 32)
    x[:, 1] = near
    codes, _ = functional.quantize_4bit(x, blocksize=32, quant_type=name)
    coder = codec(name, 32)
    assert torch.equal(coder.parts(coder.encode(x), x.shape)[1].reshape(-1), codes.view(-1))


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_decoded_values_equal_those_of_the_reference_library(name):
    x, coder = activations("outliers", 2), codec(name, 64)
    theirs = functional.dequantize_4bit(*functional.quantize_4bit(x, blocksize=64, quant_type=name))
    assert torch.allclose(coder.decode(coder.encode(x), x.shape), theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_the_codebook_is_that_of_the_reference_library(name):
    assert torch.equal(functional.get_4bit_type(name, device="cpu"), torch.tensor(BOOKS[name]))
