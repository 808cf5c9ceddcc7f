"""A decoder's head crosses to a server as numbers and is there what it was here, to the bit."""

from __future__ import annotations

import json
import re

import msgspec
import pytest
import torch
from safetensors.torch import save

from mobillm_kit.backbone.families import family_of
from mobillm_kit.errors import BadInput, ServerRefused
from mobillm_kit.side.description import HeadSpec
from mobillm_kit.side.heads import LabelWordHead
from mobillm_kit.side.portable_head import (
    Float32Norm,
    build_head,
    checked_result,
    describe_head,
    read_tensors,
)
from tests.builders import tiny_task_model
from tests.families import TINY

DECODERS = [name for name, (kind, _) in TINY.items() if family_of(kind).kind == "decoder"]


def head_of(name: str) -> LabelWordHead:
    """As after training: no weight of the norm is the zero or the one that it starts from."""
    head = tiny_task_model(name).head
    assert isinstance(head, LabelWordHead)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in head.norm.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", DECODERS)
def test_every_familys_head_is_rebuilt_to_the_bit(name, dtype):
    head = head_of(name).to(dtype)
    spec, tensors = describe_head(head)
    again = build_head(msgspec.json.decode(msgspec.json.encode(spec), type=type(spec)), tensors)
    states = torch.randn(5, spec.width, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(states), head(states))


@pytest.mark.parametrize("name", DECODERS)
def test_a_rebuilt_head_asks_for_no_gradient(name):
    spec, tensors = describe_head(head_of(name))
    assert not any(parameter.requires_grad for parameter in build_head(spec, tensors).parameters())


def changed(tensors, name, tensor):
    return {**tensors, name: tensor}


def test_a_missing_a_strange_and_a_misshapen_tensor_are_refused():
    spec, tensors = describe_head(head_of("opt"))
    with pytest.raises(BadInput, match="must be"):
        build_head(spec, {name: t for name, t in tensors.items() if name != "norm.bias"})
    with pytest.raises(BadInput, match="must be"):
        build_head(spec, changed(tensors, "extra", torch.ones(1)))
    with pytest.raises(BadInput, match="shape"):
        build_head(spec, changed(tensors, "norm.weight", torch.ones(3)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(bad):
    spec, tensors = describe_head(head_of("opt"))
    with pytest.raises(BadInput, match="finite"):
        build_head(spec, changed(tensors, "norm.weight", torch.full_like(tensors["norm.weight"], bad)))


def test_a_norm_of_no_known_form_is_refused_by_its_name():
    class OddNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(8))

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden.abs() * self.weight

    head = LabelWordHead(OddNorm(), None, torch.nn.Linear(8, 20, bias=False), range(2))
    with pytest.raises(BadInput, match="OddNorm"):
        describe_head(head)


# ---------------------------------------------------------------------- forms and formulas


DESCRIBED = {
    "opt": HeadSpec(norm="layer", eps=1e-5, project_out=False, bias=False, softcap=None, width=32, rows=2),
    "opt-350m-like": HeadSpec(norm="none", eps=0.0, project_out=True, bias=False, softcap=None, width=32, rows=2),
    "llama": HeadSpec(norm="rms", eps=1e-6, project_out=False, bias=False, softcap=None, width=32, rows=2),
    "gemma2": HeadSpec(norm="rms-plus-one", eps=1e-6, project_out=False, bias=False, softcap=30.0, width=32, rows=2),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_head_is_described_by_its_norms_form_and_its_sizes(name):
    spec, tensors = describe_head(head_of(name))
    assert spec == DESCRIBED[name]
    widths = {"words.weight": (2, 16 if spec.project_out else 32), "norm.weight": (32,), "norm.bias": (32,)}
    widths |= {"project_out.weight": (16, 32)}
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {key: widths[key] for key in tensors}


@pytest.mark.parametrize("form", ["rms", "rms-wide", "rms-plus-one", "layer-wide"])
def test_the_norms_of_float32_are_their_formulas(form):
    """States of three axes and of unlike lengths: each token is measured alone, over its own width."""
    generator = torch.Generator().manual_seed(3)
    weight, states = torch.randn(8, generator=generator), 5 * torch.randn(2, 3, 8, generator=generator)
    for row in range(2):
        for token in range(3):
            h = states[row, token].double()
            h = h - h.mean() if form == "layer-wide" else h
            unit = h / ((h * h).sum() / 8 + 0.25).sqrt()
            expected = unit * (weight.double() + 1) if form == "rms-plus-one" else unit * weight.double()
            ours = Float32Norm(weight, 0.25, form)(states)[row, token]
            torch.testing.assert_close(ours.double(), expected, rtol=1e-6, atol=1e-6)


def test_a_rebuilt_norm_that_adds_one_adds_it():
    weights = {"words.weight": torch.eye(2, 4), "norm.weight": torch.tensor([0.0, 1.0, 5.0, 7.0])}
    spec = HeadSpec(norm="rms-plus-one", eps=0.0, project_out=False, bias=False, softcap=None, width=4, rows=2)
    state = torch.tensor([[2.0, -2.0, 2.0, 2.0]])  # of root mean square 2
    assert build_head(spec, weights)(state).tolist() == [[1.0, -2.0]]
    assert build_head(msgspec.structs.replace(spec, norm="rms"), weights)(state).tolist() == [[0.0, -1.0]]


@pytest.mark.parametrize("cap", [None, 2.0])
def test_a_head_with_bias_projection_and_cap_written_out(cap):
    """W_c P h + b_c, capped: c tanh(x / c)."""
    generator = torch.Generator().manual_seed(4)
    outward, words = torch.nn.Linear(6, 4, bias=False), torch.nn.Linear(4, 20)
    head = LabelWordHead(None, outward, words, [3, 17, 5], cap)
    states = 4 * torch.randn(5, 6, generator=generator)
    plain = states @ outward.weight.T @ words.weight[[3, 17, 5]].T + words.bias[[3, 17, 5]]
    expected = (
        plain
        if cap is None
        else cap * ((plain / cap).exp() - (-plain / cap).exp()) / ((plain / cap).exp() + (-plain / cap).exp())
    )
    spec, tensors = describe_head(head)
    assert spec == HeadSpec(norm="none", eps=0.0, project_out=True, bias=True, softcap=cap, width=6, rows=3)
    again = build_head(spec, tensors)
    torch.testing.assert_close(head(states), expected)
    assert torch.equal(again(states), head(states))
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert (again.n_labels, again.word_ids.tolist()) == (3, [0, 1, 2])
    assert (again.lm_head.in_features, again.lm_head.out_features) == (4, 3)


def test_a_norm_without_an_eps_has_none():
    class Bare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.linspace(1, 2, 8))

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.weight * (hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True)))

    spec, _ = describe_head(LabelWordHead(Bare(), None, torch.nn.Linear(8, 20, bias=False), range(2)))
    assert (spec.norm, spec.eps) == ("rms", 0.0)


# ---------------------------------------------------------------------- what a peer sends instead


MISFITS = [
    ("opt", "words.weight", torch.ones(2, 31), "'words.weight' has shape (2, 31); it must have (2, 32)"),
    ("opt", "words.weight", torch.ones(3, 32), "'words.weight' has shape (3, 32); it must have (2, 32)"),
    ("opt", "norm.bias", torch.ones(32, 1), "'norm.bias' has shape (32, 1); it must have (32,)"),
    ("opt", "norm.bias", torch.ones(32).long(), "'norm.bias' holds values that are not finite numbers"),
    ("opt-350m-like", "words.weight", torch.ones(32), "'words.weight' has shape (32,); it must have (2, 32)"),
    (
        "opt-350m-like",
        "words.weight",
        torch.ones(2, 8),
        "'project_out.weight' has shape (16, 32); it must have (8, 32)",
    ),
    ("opt-350m-like", "words.weight", None, "it has other tensors (words.weight)"),
]


@pytest.mark.parametrize(("name", "key", "tensor", "sentence"), MISFITS)
def test_a_tensor_that_does_not_fit_the_description_is_named(name, key, tensor, sentence):
    spec, tensors = describe_head(head_of(name))
    given = {**tensors, key: tensor} if tensor is not None else {k: v for k, v in tensors.items() if k != key}
    with pytest.raises(BadInput, match=re.escape(f"The head that came is not the one described: {sentence}")):
        build_head(spec, given)


OURS = {"down": torch.tensor([[1.0, 2.0]]), "gates": torch.tensor([0.5]), "up": torch.zeros(2, 1, dtype=torch.float64)}


def test_a_side_network_that_came_back_is_what_was_sent():
    back = checked_result(save(OURS), {name: torch.zeros_like(tensor) for name, tensor in OURS.items()})
    assert back.keys() == OURS.keys()
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in OURS.items())


NOT_OURS = [
    ({**OURS, "up": torch.zeros(2, 2)}, "is not ours: 'up' has shape (2, 2); it must have (2, 1)"),
    ({**OURS, "up": torch.zeros(2, 1)}, "is not ours: 'up' came as torch.float32; it must be torch.float64"),
    ({**OURS, "gates": torch.tensor([float("nan")])}, "is not ours: 'gates' holds values that are not finite numbers"),
    (
        {"down": OURS["down"], "up": OURS["up"]},
        "is not ours: it has other tensors (gates); they must be [down, gates, up]",
    ),
    ({**OURS, **{name: torch.ones(1) for name in "dcba"}}, "is not ours: it has other tensors (a, b, c); they must be"),
]


@pytest.mark.parametrize(("sent", "sentence"), NOT_OURS)
def test_a_side_network_that_is_not_ours_is_refused_with_the_reason(sent, sentence):
    with pytest.raises(ServerRefused, match=re.escape(sentence) + ".*Keep the last checkpoint and look at the server"):
        checked_result(save(sent), OURS)


def written(header: dict, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def about(dtype: str, shape: list[int], begin: int, end: int, **more) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def test_tensors_are_read_from_bytes_written_by_hand():
    header = {
        "__metadata__": {"by": "hand"},
        "b": about("BF16", [2, 1, 1, 1], 20, 24),
        "a": about("F32", [3], 0, 12),
        "c": about("F64", [1], 12, 20),
        "d": about("F16", [], 24, 26),
        "e": about("F32", [0], 26, 26),
    }
    data = torch.tensor([1.0, 2.0, 3.0]).numpy().tobytes() + torch.tensor([4.0]).double().numpy().tobytes()
    data += bytes.fromhex("803f 0040 003c")  # 1 and 2 in bfloat16, 1 in float16
    tensors = read_tensors(written(header, data))
    assert {name: tensor.flatten().tolist() for name, tensor in tensors.items()} == {
        "a": [1.0, 2.0, 3.0],
        "b": [1.0, 2.0],
        "c": [4.0],
        "d": [1.0],
        "e": [],
    }


WHOLE = written({"a": about("F32", [1], 0, 4)}, bytes(4))
REFUSED = [
    (b"", "What came is not safetensors"),
    (WHOLE[:7] + b"\x01" + WHOLE[8:], "What came is not safetensors"),  # a header of 2^56 bytes
    (written({"a": about("I64", [1], 0, 8)}, bytes(8)), "What came is not safetensors"),
    (written({"a": about("F32", [-1], 0, 0)}, b""), "What came is not safetensors"),
    (written({"a": about("F32", [1] * 5, 0, 4)}, bytes(4)), "What came is not safetensors"),
    (written({"a": about("F32", [2**31 + 1], 0, 4)}, bytes(4)), "What came is not safetensors"),
    (written({"a": about("F32", [1], 0, 4, more=1)}, bytes(4)), "What came is not safetensors"),
    (written({"a": about("F32", [2**31], 0, 4)}, bytes(4)), "A tensor of shape [2147483648] does not fill its bytes"),
    (written({"a": about("F32", [2], 0, 4)}, bytes(4)), "A tensor of shape [2] does not fill its bytes"),
    (
        written({"a": about("F32", [1], 0, 4), "b": about("F32", [1, 1], 6, 10)}, bytes(10)),
        "A tensor of shape [1, 1] does not fill its bytes",
    ),
    (
        written({"a": about("F32", [1], 0, 4), "b": about("F32", [1, 1], 0, 4)}, bytes(4)),
        "A tensor of shape [1, 1] does not fill its bytes",
    ),
    (written({"a": about("F32", [1], 1, 5)}, bytes(5)), "A tensor of shape [1] does not fill its bytes"),
    (written({"a": about("F32", [1], 0, 4)}, bytes(5)), "bytes came, the tensors take"),
    (written({"a": about("F32", [1], 0, 4)}, bytes(3)), "bytes came, the tensors take"),
]


@pytest.mark.parametrize(("data", "sentence"), REFUSED)
def test_bytes_that_are_no_tensors_are_refused_before_the_library_sees_them(data, sentence, monkeypatch):
    monkeypatch.setattr("mobillm_kit.side.portable_head.load", lambda raw: pytest.fail("the library saw them"))
    with pytest.raises(BadInput, match=re.escape(sentence)):
        read_tensors(data)


def test_bytes_too_many_are_counted():
    with pytest.raises(BadInput, match=f"{len(WHOLE) + 2} bytes came, the tensors take {len(WHOLE)}"):
        read_tensors(WHOLE + b"ab")
