"""Full fine-tuning, LoRA and their kin against plain loops that know nothing of this package's training code."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.nn import functional as F

from mobillm_kit.common import derived_seed
from mobillm_kit.errors import BadInput
from mobillm_kit.methods import full, full_checkpointing, load_method, lora, lora_fa, probe
from mobillm_kit.methods.task_model import TaskModel
from mobillm_kit.side.pooled_head import PooledHead
from tests.builders import random_batch, tiny_task_model

LR = 3e-3
DECODERS = ["opt", "opt-350m-like", "llama", "gpt2"]


def batches(kind: str = "decoder", count: int = 15):
    return [random_batch(kind=kind, seed=seed, length=7 + seed % 3) for seed in range(count)]


def own_logits(hf, batch, words=(10, 11)) -> torch.Tensor:
    """Logits of the label words at the last token, through the Hugging Face model's own head."""
    positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    logits = hf(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions, use_cache=False
    ).logits
    return logits[torch.arange(len(batch.labels)), batch.positions][:, list(words)]


def plain_loop(hf, parameters) -> list[float]:
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0)
    losses = []
    for batch in batches():
        loss = F.cross_entropy(own_logits(hf, batch), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def curve(method, kind: str = "decoder") -> list[float]:
    return [method.step(batch, LR).loss for batch in batches(kind)]


@pytest.mark.parametrize("name", DECODERS)
def test_full_fine_tuning_equals_a_plain_loop(name):
    ours = curve(full.build(tiny_task_model(name), seed=0))
    hf = tiny_task_model(name).backbone.model.requires_grad_(True)
    theirs = plain_loop(hf, hf.parameters())
    assert ours == pytest.approx(theirs, abs=2e-5)
    assert ours[-1] != ours[0]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # the reference's own
@pytest.mark.parametrize("name", DECODERS)
def test_lora_equals_a_plain_peft_loop(name):
    ours = curve(lora.build(tiny_task_model(name), seed=4, rank=4, alpha=8))
    backbone = tiny_task_model(name).backbone
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=4,
        lora_alpha=8,
        lora_dropout=0.0,
        target_modules=list(backbone.family.attention_targets),
        fan_in_fan_out=name == "gpt2",
    )
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(4, "lora"))
        hf = get_peft_model(backbone.model, config).eval()
    theirs = plain_loop(hf, [p for p in hf.parameters() if p.requires_grad])
    assert ours == pytest.approx(theirs, abs=2e-5)
    assert ours[-1] != ours[0]


def test_full_fine_tuning_of_an_encoder_equals_a_plain_loop():
    ours = curve(full.build(tiny_task_model("bert"), seed=0), "encoder")
    model = tiny_task_model("bert")
    hf, classifier = model.backbone.model.requires_grad_(True), model.head.classifier
    optimizer = torch.optim.AdamW([*hf.parameters(), *classifier.parameters()], lr=LR, weight_decay=0.0)
    theirs = []
    for batch in batches("encoder"):
        state = hf(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        mask = batch.attention_mask.unsqueeze(-1)
        loss = F.cross_entropy(classifier((state * mask).sum(1) / mask.sum(1)), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs.append(loss.item())
    assert ours == pytest.approx(theirs, abs=2e-5)


@pytest.mark.parametrize("name", ["opt", "llama", "bert"])
def test_checkpointing_changes_memory_and_not_a_single_loss(name):
    kind = "encoder" if name == "bert" else "decoder"
    plain, sparing = (m.build(tiny_task_model(name), seed=0) for m in (full, full_checkpointing))
    batch = random_batch(kind=kind, rows=16, length=24)
    kept = [method.count_memory(batch)[0].saved_activations_bytes for method in (plain, sparing)]
    assert kept[1] < 0.7 * kept[0]
    assert curve(plain, kind) == curve(sparing, kind)


@pytest.mark.parametrize("name", ["opt", "llama", "gpt2", "gpt-neox", "gemma2", "bert", "roberta"])
@pytest.mark.parametrize("method", [lora, lora_fa])
def test_fresh_lora_layers_change_nothing(name, method):
    kind = "encoder" if name in ("bert", "roberta") else "decoder"
    batch = random_batch(kind=kind)
    untouched = tiny_task_model(name).logits(batch)
    assert torch.equal(method.build(tiny_task_model(name), seed=0).logits(batch), untouched)


@pytest.mark.parametrize("method", [lora, lora_fa])
def test_the_base_weights_are_bit_equal_after_training(method):
    model = tiny_task_model()
    trained = method.build(model, seed=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    curve(trained)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    wanted = ".lora_B." if method is lora_fa else ".lora_"
    assert all(wanted in key for key in changed)


def test_lora_fa_keeps_fewer_activations_than_lora():
    batch = random_batch(rows=16, length=24)
    kept = [m.build(tiny_task_model(), seed=0).count_memory(batch)[0].saved_activations_bytes for m in (lora_fa, lora)]
    assert kept[0] < kept[1]


@pytest.mark.parametrize("name", ["opt", "bert"])
def test_the_probe_trains_a_classifier_and_nothing_else(name):
    model = tiny_task_model(name)
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    method = probe.build(model, seed=0)
    losses = curve(method, model.backbone.kind)
    assert set(method.trained()) == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())
    assert losses[0] != losses[-1]


def test_the_probe_of_a_decoder_reads_the_normed_last_state():
    model = tiny_task_model("llama")
    method, batch = probe.build(model, seed=0), random_batch()
    states = model.backbone.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=(batch.attention_mask.cumsum(1) - 1).clamp(min=0),
        output_hidden_states=True,
        use_cache=False,
    ).hidden_states[-1]
    weights = method.trained()
    by_hand = states[torch.arange(4), batch.positions] @ weights["classifier.weight"].T + weights["classifier.bias"]
    torch.testing.assert_close(method.logits(batch), by_hand)


def test_names_that_no_layer_has_are_refused():
    with pytest.raises(BadInput, match=r"'opt' has no layer named 'query'\. There are: fc1, fc2, k_proj"):
        lora.build(tiny_task_model(), seed=0, targets=["query"])
    with pytest.raises(BadInput, match="rank is 0"):
        lora.build(tiny_task_model(), seed=0, rank=0)


def test_encoders_train_their_classifier_in_every_method():
    model = tiny_task_model("bert")
    assert isinstance(model, TaskModel)
    assert isinstance(model.head, PooledHead)
    assert {"head.classifier.weight", "head.classifier.bias"} <= set(lora.build(model, seed=0).trained())


@pytest.mark.parametrize("method", ["full", "probe"])
def test_float16_weights_under_adamw_are_refused_with_the_way_out(method):
    with pytest.raises(BadInput, match=r"cannot train float16 weights.* bfloat16"):
        load_method(method)(tiny_task_model().to(torch.float16), seed=0)
