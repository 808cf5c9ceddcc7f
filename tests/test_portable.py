"""A decoder's head crosses to a server as numbers and is there what it was here, to the bit."""

from __future__ import annotations

import msgspec
import pytest
import torch

from mobillm_kit.backbone.families import family_of
from mobillm_kit.errors import BadInput
from mobillm_kit.side.heads import LabelWordHead
from mobillm_kit.side.portable_head import build_head, describe_head
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
