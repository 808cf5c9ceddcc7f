"""MobiLLM across the split equals one autograd graph, and every byte that passes is counted."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mobillm_kit.errors import BadInput
from mobillm_kit.methods import mobillm
from mobillm_kit.side.adapter import attach, new_adapter
from mobillm_kit.training.adamw import Trained
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
    optimizer = Trained(dict(enumerate(trained))).optimizer
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
    assert set(upload.__dataclass_fields__) == {"activations", "mask", "positions", "labels"}
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


@pytest.mark.parametrize(("codec", "per_token"), [("int8", 32 + 4), ("int4", 16 + 4)])
def test_a_codec_sends_codes_and_scales_and_trains_on_what_arrives(codec, per_token):
    """Three layers of every real token, 32 values to a scale of 32 bits; a label takes 4 bytes."""
    batch = random_batch(rows=4, length=9)
    method = mobillm.build(tiny_task_model(), seed=0, tokens="all", codec=codec, group=32)
    loss = method.step(batch, 1e-3).loss
    plain = mobillm.build(tiny_task_model(), seed=0, tokens="all")
    assert loss != plain.step(batch, 1e-3).loss
    assert loss == pytest.approx(F.cross_entropy(tiny_task_model().logits(batch), batch.labels).item(), abs=0.05)
    sent = mobillm.build(tiny_task_model(), seed=0, tokens="all", codec=codec, group=32).step(batch, 1e-3).bytes_sent
    assert sent == 3 * int(batch.attention_mask.sum()) * per_token + 4 * 4


def test_without_a_server_nothing_is_under_way_and_nothing_waits():
    method = mobillm.build(tiny_task_model(), seed=0)
    method.step(random_batch(), 1e-3)
    upload = method.device.upload(random_batch())
    assert method.settle() == ([], 0)
    assert method.uplink.waiting_bytes(upload) == 0
    assert method.codecs == ()
    assert method.timeline is method.uplink.timeline
    assert method.uplink.carried(upload) == (upload, upload.n_bytes)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"queue": 2}, r"Without a server there is no queue\."),
        ({"queue": 2, "keys": 1}, r"Without a server there is no queue, keys\."),
        ({"codec": "adaptive"}, r"Without a server there is no adaptive codec\. Give server=spawn, an address, or a"),
    ],
)
def test_what_needs_a_server_is_refused_without_one(options, sentence):
    with pytest.raises(BadInput, match=sentence):
        mobillm.build(tiny_task_model(), seed=0, **options)


@pytest.mark.parametrize(
    ("name", "options", "one"),
    [
        ("opt", {}, True),
        ("opt", {"tokens": "auto"}, True),
        ("opt", {"tokens": "prediction"}, True),
        ("opt", {"tokens": "all"}, False),
        ("opt", {"side": "ladder"}, False),
        ("opt", {"top_tokens": 2}, False),
        ("bert", {}, False),
    ],
)
def test_one_token_is_sent_where_that_is_exact_and_nothing_else_is_said(name, options, one):
    method = mobillm.build(tiny_task_model(name), seed=0, **options)
    assert method.device.one_token is one
    assert method.device.top_tokens == options.get("top_tokens")


@pytest.mark.parametrize(("side", "token_wise"), [("full-width", True), ("ladder", False)])
def test_a_method_is_named_by_its_side_network_and_built_of_what_was_said(side, token_wise):
    options = {"rank": 5, "reduction": 2, "heads": 4, "layers": [1, 3], "about": {"task": "reviews"}}
    method = mobillm.build(tiny_task_model(labels=3), seed=7, side=side, **options)
    spec = method.adapter.spec
    assert method.name == f"mobillm-{side}"
    assert (spec.rank, spec.reduction, spec.heads, spec.layers, spec.n_labels, spec.seed) == (5, 2, 4, [1, 3], 3, 7)
    assert (method.device.layers, method.adapter.task) == ((1, 3), "reviews")
    assert method.trained().keys() == method.server.parameters.keys()
    assert not any(tensor.requires_grad for tensor in method.trained().values())


def test_the_ledger_by_hand():
    """The device: backbone and one upload.  The server: side network and the head's rows; one gradient, two moments."""
    model = tiny_task_model()
    device, server = mobillm.build(model, seed=0, tokens="all", rank=4).count_memory(random_batch(rows=4, length=9))
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.backbone.parameters(), *model.backbone.buffers())}
    assert device.weights_bytes == sum(held.values())
    assert device.messages_bytes == 3 * 4 * 9 * 32 * 4 + 4 * 9 + 4 * 4 + 4 * 4
    trained = 4 * (2 + 3 * (4 * 32 + 4) + 3 * 32 * 4)  # gates, down with bias, up
    assert (server.gradients_bytes, server.optimizer_bytes) == (trained, 2 * trained)


def test_each_sample_is_forwarded_once_and_an_evaluation_sends_nothing():
    model = tiny_task_model()
    method = mobillm.build(model, seed=0)
    batch = random_batch(rows=5)
    torch.testing.assert_close(method.logits(batch), model.logits(batch), rtol=0, atol=1e-6)
    assert method.step(batch, 1e-3).forwards == 5


def test_weight_decay_shrinks_the_side_network_alone():
    ends, start = [], {}
    for decay in (0.0, 0.5):
        method = mobillm.build(tiny_task_model(), seed=0, rank=4, weight_decay=decay)
        start = {key: tensor.clone() for key, tensor in method.trained().items()}
        method.step(random_batch(), 1e-2)
        ends.append(method.trained())
    for key, tensor in start.items():
        torch.testing.assert_close(ends[0][key] - ends[1][key], 1e-2 * 0.5 * tensor, rtol=0, atol=1e-6)


def test_what_waits_in_the_uplink_counts_as_messages_beside_the_upload():
    method, batch = mobillm.build(tiny_task_model(), seed=0), random_batch()
    n_bytes = method.device.upload(batch).n_bytes
    assert method.count_memory(batch)[0].messages_bytes == n_bytes
    method.uplink.waiting_bytes = lambda upload: upload.n_bytes + 7
    assert method.count_memory(batch)[0].messages_bytes == 2 * n_bytes + 7
