"""MobiLLM across the split equals one autograd graph, and every byte that passes is counted."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mobillm_kit.errors import BadInput
from mobillm_kit.methods import mobillm
from mobillm_kit.side.adapter import attach, new_adapter
from mobillm_kit.training.adamw import adamw
from tests.builders import random_batch, tiny_task_model

CASES = [
    ("opt", "full-width"),
    ("opt", "ladder"),
    ("llama", "ladder"),
    ("bert", "full-width"),
    ("bert", "ladder"),
]


def batches(kind: str, count: int = 6):
    return [random_batch(kind=kind, seed=seed, length=7 + seed % 3) for seed in range(count)]


@pytest.mark.parametrize(("name", "side"), CASES)
def test_split_training_equals_one_autograd_graph_bit_for_bit(name, side):
    model = tiny_task_model(name)
    kind = model.backbone.kind
    split = mobillm.build(model, seed=3, side=side, rank=4, tokens="all")
    adapter = new_adapter(model.backbone, kind=side, n_labels=2, rank=4, seed=3)
    whole = attach(adapter, model.backbone, model.head)
    trained = [p for p in whole.parameters() if p.requires_grad]
    optimizer = adamw(trained)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    for batch in batches(kind):
        result = split.step(batch, 1e-2)
        taps = model.backbone.taps(batch.input_ids, batch.attention_mask, layers=adapter.side.layers)
        loss = F.cross_entropy(whole(taps, batch.attention_mask, batch.positions), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert result.loss == loss.item()
    for (key, ours), theirs in zip(split.trained().items(), trained, strict=True):
        assert torch.equal(ours, theirs), key


@pytest.mark.parametrize(("name", "side"), CASES)
def test_the_backbone_is_bit_equal_after_training(name, side):
    model = tiny_task_model(name)
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    method = mobillm.build(model, seed=0, side=side, rank=4)
    for batch in batches(model.backbone.kind):
        method.step(batch, 1e-2)
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())


def test_the_prediction_token_alone_trains_the_same_full_width_side():
    runs = [mobillm.build(tiny_task_model(), seed=0, rank=4, tokens=tokens) for tokens in ("all", "prediction")]
    for batch in batches("decoder"):
        whole, short = (run.step(batch, 1e-2) for run in runs)
        assert short.loss == pytest.approx(whole.loss, abs=1e-5)
        assert short.bytes_sent < whole.bytes_sent / 4
    for key, value in runs[0].trained().items():
        torch.testing.assert_close(runs[1].trained()[key], value, atol=2e-4, rtol=1e-3)


def test_one_token_is_refused_where_it_is_not_exact():
    for name, options in [("opt", {"side": "ladder"}), ("bert", {"side": "full-width"})]:
        with pytest.raises(BadInput, match="not exact here"):
            mobillm.build(tiny_task_model(name), seed=0, tokens="prediction", **options)
    with pytest.raises(BadInput, match="tokens is 'some'"):
        mobillm.build(tiny_task_model(), seed=0, tokens="some")


def test_bytes_by_hand():
    method = mobillm.build(tiny_task_model(), seed=0, tokens="all")  # 3 layers, d 32
    result = method.step(random_batch(rows=4, length=9), 1e-3)
    assert result.bytes_sent == 3 * 4 * 9 * 32 * 4 + 4 * 9 + 4 * 4 + 4 * 4


def test_what_travels_holds_no_token_ids_and_no_graph():
    method = mobillm.build(tiny_task_model(), seed=0)
    upload = method.device.upload(random_batch())
    assert set(upload.__dataclass_fields__) == {"sequence", "activations", "mask", "positions", "labels"}
    assert all(a.grad_fn is None and not a.requires_grad for a in upload.activations)


def test_only_what_the_side_network_needs_is_on_the_server():
    model = tiny_task_model()
    method = mobillm.build(model, seed=0)
    on_server = sum(p.numel() for p in method.server.model.parameters())
    assert on_server < model.backbone.n_parameters / 2
    device, server = method.count_memory(random_batch())
    assert (device.party, server.party) == ("device", "server")
    assert device.gradients_bytes == device.optimizer_bytes == device.saved_activations_bytes == 0
    assert server.optimizer_bytes == 2 * server.gradients_bytes > 0


def test_it_learns():
    """On a rule that the tokens show, the loss at least halves."""
    method = mobillm.build(tiny_task_model(), seed=0, side="ladder", reduction=2)
    batch = random_batch(rows=8, seed=5)
    losses = [method.step(batch, 1e-2).loss for _ in range(60)]
    assert losses[-1] < losses[0] / 2
