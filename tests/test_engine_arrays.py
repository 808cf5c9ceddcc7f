"""The codecs over arrays make the bytes that the codecs over tensors make; so does the order of samples."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillm_kit.common import derived_seed
from mobillm_kit.engines import arrays
from mobillm_kit.errors import BadInput
from mobillm_kit.quant import CODECS, GROUPS, codec
from mobillm_kit.texts.batches import batch_indices

KINDS = ("normal", "outliers", "constant", "zeros", "tiny", "huge", "ties", "negative zero")


def values(kind: str, tokens: int, width: int, seed: int) -> torch.Tensor:
    """Activations, and what could be confused with them."""
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))
    if kind == "outliers":
        x[:, seed % width] *= 500
    made = {
        "constant": torch.full_like(x, 1.5),
        "zeros": torch.zeros_like(x),
        "tiny": x * 2.0**-128,  # scales above and below the smallest normal number
        "huge": x.sign() * 6e4 * x.abs().clamp(max=1),
        "ties": (x * 6).round() / 2,  # half way between codes
        "negative zero": torch.where(x > 0.5, x, -0.0),
    }
    return made.get(kind, x)


def both(coder, x: torch.Tensor) -> tuple[bytes, bytes]:
    return bytes(arrays.payload([arrays.encode(coder, x.numpy())])), coder.encode(x).numpy().tobytes()


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=60, deadline=None)
@given(
    group=st.sampled_from((*GROUPS, 8)),
    groups=st.integers(1, 3),
    tokens=st.integers(0, 5),
    kind=st.sampled_from(KINDS),
    odd=st.integers(0, 7),
    seed=st.integers(0, 2**31),
)
def test_every_codec_makes_the_bytes_that_it_makes_of_tensors(name, group, groups, tokens, kind, odd, seed):
    width = groups * (group or 16) + (odd if not group else 0)  # codes of odd widths do not fill their last byte
    ours, theirs = both(codec(name, group), values(kind, tokens, width, seed))
    assert ours == theirs


@pytest.mark.parametrize("name", CODECS)
def test_pieces_do_not_show_in_the_bytes(name):
    x = values("outliers", 3 * arrays.PIECE // 192 + 7, 192, 0)
    ours, theirs = both(codec(name, 64), x)
    assert ours == theirs


@pytest.mark.parametrize("name", CODECS)
def test_every_float32_up_to_the_largest_code_is_rounded_alike(name):
    """All upper halves of a float32 beside a first value that sets the scale to 1, in both signs."""
    bits = torch.arange(0, 2**15, dtype=torch.int32) << 16
    each = torch.cat([(bits + low).view(torch.float32) for low in (0, 1, 0x7FFF, 0x8000, 0x8001)])
    top = {"fp8": 448.0, "int8": 127.0, "int4": 7.0, "int2": 1.0}.get(name, 1.0)
    kept = each[each <= top]
    kept = torch.cat([kept, -kept])
    rows = kept[: len(kept) // 31 * 31].view(-1, 31)
    ours, theirs = both(codec(name, 32), torch.cat([torch.full((len(rows), 1), top), rows], dim=1))
    assert ours == theirs


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3.4e38])
def test_what_tensors_are_refused_for_arrays_are_refused_for(name, value):
    x = torch.ones(3, 64)
    x[1, 5] = value
    said = []
    for encode in (lambda: codec(name).encode(x, "layer 3"), lambda: arrays.encode(codec(name), x.numpy(), "layer 3")):
        try:
            encode()
            said.append("taken")
        except BadInput as error:
            said.append(str(error))
    assert said[0] == said[1]
    assert (said[0] == "taken") == (value == 3.4e38 and name == "fp32")


def test_other_types_and_groups_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match=r"^layer 1: activations of float64, 2 dimensions\. Give float32"):
        arrays.encode(codec("int8"), np.ones((2, 64)), "layer 1")
    with pytest.raises(BadInput, match=r"Groups of 64 values do not divide the width d = 40"):
        arrays.encode(codec("int8"), np.ones((2, 40), np.float32))


@pytest.mark.parametrize("name", ["fp16", "int4", "sign"])
def test_samples_cut_out_and_put_together_are_the_batch(name):
    x = values("normal", 9, 40, 3).numpy()
    coder = codec(name, 8)
    scales, codes = arrays.encode(coder, x)
    apart = [(scales[rows], codes[rows]) for rows in (slice(0, 4), slice(4, 5), slice(5, 9))]
    assert bytes(arrays.payload(apart)) == bytes(arrays.payload([(scales, codes)]))
    alone = arrays.encode(coder, x[4:5])
    assert bytes(arrays.payload([apart[1]])) == bytes(arrays.payload([alone]))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 3000), epoch=st.integers(0, 5), seed=st.integers(0, 2**63 - 1))
def test_the_order_of_samples_is_torchs_permutation(n, epoch, seed):
    generator = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
    assert batch_indices(n, n, epoch, seed) == torch.randperm(n, generator=generator).tolist()


def test_order_codecs_client_and_texts_are_there_without_torch():
    modules = ("engines.arrays", "quant.bitwidth", "device.client", "texts.batches", "runs.data", "server.process")
    probe = f"import sys, {', '.join(f'mobillm_kit.{name}' for name in modules)}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split()
    assert "numpy" in found
    assert not {"torch", "transformers", "peft"} & set(found)
