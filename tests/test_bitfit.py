"""BitFit against a plain loop, and that the biases are all that moves."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mobillm_kit.errors import BadInput
from mobillm_kit.methods import bitfit, full
from tests.builders import random_batch, tiny_task_model

LR = 3e-3
STEPS = 10


def kind_of(name: str) -> str:
    return "encoder" if name in ("bert", "roberta") else "decoder"


def curve(method, name: str) -> list[float]:
    return [method.step(random_batch(kind=kind_of(name), seed=step), LR).loss for step in range(STEPS)]


@pytest.mark.parametrize("name", ["opt", "opt-350m-like", "gpt2"])
def test_bitfit_equals_a_plain_loop_over_the_biases(name):
    ours = curve(bitfit.build(tiny_task_model(name), seed=0), name)
    hf = tiny_task_model(name).backbone.model
    biases = [parameter for key, parameter in hf.named_parameters() if key.endswith(".bias")]
    for bias in biases:
        bias.requires_grad_(True)
    optimizer = torch.optim.AdamW(biases, lr=LR, weight_decay=0.0)
    theirs = []
    for step in range(STEPS):
        batch = random_batch(seed=step)
        positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        logits = hf(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions, use_cache=False
        ).logits[torch.arange(len(batch.labels)), batch.positions][:, [10, 11]]
        loss = F.cross_entropy(logits, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs.append(loss.item())
    assert ours == pytest.approx(theirs, abs=2e-5)
    assert ours[-1] != ours[0]


@pytest.mark.parametrize("name", ["opt", "gpt2", "bert", "roberta"])
def test_the_biases_change_and_nothing_else(name):
    model = tiny_task_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    method = bitfit.build(model, seed=0)
    curve(method, name)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(key.endswith(".bias") or key.startswith("head.classifier.") for key in changed)
    assert ("head.classifier.weight" in changed) == (kind_of(name) == "encoder")


def test_a_model_without_biases_is_refused():
    with pytest.raises(BadInput, match="'llama' has no biases to train"):
        bitfit.build(tiny_task_model("llama"), seed=0)


def test_no_linear_layer_keeps_its_input_for_a_bias():
    batch = random_batch(rows=16, length=24)
    ours, theirs = (m.build(tiny_task_model(), seed=0).count_memory(batch)[0] for m in (bitfit, full))
    assert ours.gradients_bytes + ours.optimizer_bytes < 0.05 * (theirs.gradients_bytes + theirs.optimizer_bytes)
    assert 0.3 * theirs.saved_activations_bytes < ours.saved_activations_bytes < theirs.saved_activations_bytes
