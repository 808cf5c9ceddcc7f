"""Ladder side tuning on the device: the same training as MobiLLM's ladder, in another place."""

from __future__ import annotations

import pytest
import torch

from mobillm_kit.errors import BadInput
from mobillm_kit.methods import full, lora, lora_checkpointing, lst, mobillm
from tests.builders import random_batch, tiny_task_model

LR = 3e-3
STEPS = 6


def kind_of(name: str) -> str:
    return "encoder" if name in ("bert", "roberta") else "decoder"


def curve(method, name: str = "opt") -> list[float]:
    return [method.step(random_batch(kind=kind_of(name), seed=step), LR).loss for step in range(STEPS)]


@pytest.mark.parametrize("name", ["opt", "opt-350m-like", "llama", "gpt2", "bert"])
def test_its_losses_are_those_of_mobillms_ladder(name):
    # an encoder's classifier is drawn from the model's seed here, from the method's there
    here = curve(lst.build(tiny_task_model(name, seed=3), seed=3, reduction=4), name)
    away = curve(mobillm.build(tiny_task_model(name, seed=3), seed=3, side="ladder", reduction=4), name)
    assert here == pytest.approx(away, abs=1e-6)
    assert here[0] != here[-1]


@pytest.mark.parametrize("name", ["opt", "llama", "bert"])
def test_step_0_is_the_pretrained_model_to_the_bit(name):
    batch = random_batch(kind=kind_of(name))
    untouched = tiny_task_model(name).logits(batch)
    assert torch.equal(lst.build(tiny_task_model(name), seed=0, reduction=4).logits(batch), untouched)


def test_no_gradient_reaches_the_backbone():
    model = tiny_task_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    method = lst.build(model, seed=0, reduction=4)
    curve(method)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(name.startswith("side.") for name in method.trained())


def test_what_it_saves_is_the_ladders_and_not_the_backbones():
    batch = random_batch(rows=16, length=24)
    ladder, whole = (
        m.build(tiny_task_model(), seed=0).count_memory(batch)[0].saved_activations_bytes for m in (lst, full)
    )
    assert ladder < 0.6 * whole


def test_a_ladder_that_does_not_divide_the_width_is_refused():
    with pytest.raises(BadInput, match="reduction 5 and 2 heads do not divide the backbone's width 32"):
        lst.build(tiny_task_model(), seed=0, reduction=5)


@pytest.mark.parametrize("name", ["opt", "llama", "bert"])
def test_lora_with_checkpointing_saves_less_and_changes_no_loss(name):
    plain, sparing = (m.build(tiny_task_model(name), seed=0) for m in (lora, lora_checkpointing))
    batch = random_batch(kind=kind_of(name), rows=16, length=24)
    kept = [method.count_memory(batch)[0].saved_activations_bytes for method in (plain, sparing)]
    assert kept[1] < 0.7 * kept[0]
    assert curve(plain, name) == curve(sparing, name)
