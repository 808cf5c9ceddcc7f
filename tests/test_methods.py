"""What a method does where nothing is said, and what each of them trains: values of the papers and of the formulas."""

from __future__ import annotations

from inspect import Parameter, signature

import pytest
import torch

from mobillm_kit.errors import BadInput
from mobillm_kit.methods import (
    bitfit,
    full,
    full_checkpointing,
    lora,
    lora_checkpointing,
    lora_fa,
    lst,
    mezo,
    mezo_lora,
    mobillm,
    prge,
    probe,
)
from mobillm_kit.methods.lora_layers import add_lora, check_scale, target_names
from mobillm_kit.methods.task_model import task_model
from mobillm_kit.side.heads import LabelWordHead
from mobillm_kit.side.ladders import LadderSide
from mobillm_kit.side.pooled_head import PooledHead
from tests.builders import random_batch, tiny_task_model
from tests.families import tiny_backbone

DECAY = {"weight_decay": 0.0}
USUAL = {
    full.build: DECAY,
    full_checkpointing.build: DECAY,
    bitfit.build: DECAY,
    probe.build: DECAY,
    lora.build: DECAY,
    lora_fa.build: DECAY,
    lora_checkpointing.build: DECAY,
    lst.build: {"reduction": 8, "heads": 2, "layers": None, **DECAY},  # the paper's k
    mezo.build: {"eps": 1e-3},  # the paper's, appendix D
    mezo_lora.build: {"eps": 1e-2},
    prge.build: {"q": 4, "eps": 1e-2, "clip": None, "inner": True, "outer": True},
    prge.add_dual_forward: {"rank": 8, "alpha": 16.0, "targets": None},
    add_lora: {"rank": 8, "alpha": 16.0, "targets": None},
    task_model: {"pooling": "mean", "seed": 0},
    mobillm.build: {
        "side": "full-width",
        "layers": None,
        "tokens": "auto",
        "top_tokens": None,
        "codec": "none",
        "group": 64,
        "server": "in-process",
        "folder": None,
        "about": None,
        "averaging": 0.0,
        **DECAY,
    },
}


@pytest.mark.parametrize("build", USUAL, ids=lambda build: f"{build.__module__.rpartition('.')[2]}.{build.__name__}")
def test_what_nobody_says_has_its_usual_value(build):
    given = {name: parameter.default for name, parameter in signature(build).parameters.items()}
    assert {name: value for name, value in given.items() if value is not Parameter.empty} == USUAL[build]


def moved(method) -> dict[str, torch.Tensor]:
    """What trains, away from the zeros that it starts from."""
    generator = torch.Generator().manual_seed(1)
    for tensor in method.trained().values():
        tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return method.trained()


FIRST_ORDER = {
    "full": full,
    "full-checkpointing": full_checkpointing,
    "bitfit": bitfit,
    "probe": probe,
    "lora": lora,
    "lora-fa": lora_fa,
    "lora-checkpointing": lora_checkpointing,
    "lst": lst,
}


@pytest.mark.parametrize("name", FIRST_ORDER)
@pytest.mark.parametrize("kind", ["opt", "bert"])
def test_weight_decay_shrinks_what_is_trained_by_its_share_and_none_does_not(name, kind):
    """AdamW at a rate a: w <- w - a d w - a m / (sqrt v + eps); two runs differ by a d w alone after one step."""
    ends, start = [], {}
    for decay in ({}, {"weight_decay": 0.5}):
        method = FIRST_ORDER[name].build(tiny_task_model(kind), seed=0, **decay)
        assert method.name == name
        start = {key: tensor.clone() for key, tensor in moved(method).items()}
        method.step(random_batch(kind="decoder" if kind == "opt" else "encoder"), 1e-2)
        ends.append(method.trained())
    assert start
    for key, tensor in start.items():
        torch.testing.assert_close(ends[0][key] - ends[1][key], 1e-2 * 0.5 * tensor, rtol=0, atol=2e-6)


@pytest.mark.parametrize("build", [mezo.build, mezo_lora.build, prge.build])
def test_names_of_the_methods_without_gradients(build):
    names = {mezo.build: "mezo", mezo_lora.build: "mezo-lora", prge.build: "p-rge"}
    assert build(tiny_task_model(), seed=0).name == names[build]


# ---------------------------------------------------------------------- low-rank layers


@pytest.mark.parametrize(("name", "options", "scale"), [("opt", {}, 2.0), ("gpt2", {"rank": 4, "alpha": 6}, 1.5)])
def test_a_low_rank_layer_is_its_formula(name, options, scale):
    """W x + (alpha / r) B A x, of rank 8 and alpha 16 where nothing is said; A in +-1/sqrt(d_in), B zero at first."""
    model = tiny_task_model(name)
    parameters = add_lora(model, seed=0, **options)
    rank = options.get("rank", 8)
    layer = next(module for module in model.backbone.blocks.modules() if hasattr(module, "lora_A"))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert (a.shape[0], b.shape[1]) == (rank, rank)
    assert 0.9 / 32**0.5 < a.abs().max() <= 1 / 32**0.5
    assert not b.any()
    assert {id(a), id(b)} <= {id(parameter) for parameter in parameters.values()}
    with torch.no_grad():
        b.copy_(torch.randn(b.shape, generator=torch.Generator().manual_seed(2)))
        x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(3))
        base = layer.base_layer(x)
        torch.testing.assert_close(layer(x), base + scale * (x @ a.T @ b.T), rtol=1e-5, atol=1e-5)
        assert torch.equal(layer.train()(x), layer.eval()(x))  # nothing is dropped out


@pytest.mark.parametrize("scale", [(1, 16.0), (1, 0.5), (64, 1), (8, 1e30)])
def test_a_rank_from_1_and_an_alpha_above_0_are_taken(scale):
    check_scale(*scale)


@pytest.mark.parametrize("rank", [0, -1, 1.0, False, True, "8", None])
def test_other_ranks_are_refused(rank):
    with pytest.raises(BadInput, match=f"rank is {rank}; it must be a whole number from 1 up"):
        check_scale(rank, 1.0)


@pytest.mark.parametrize("alpha", [0, 0.0, -0.5, float("inf"), float("nan"), "1", None])
def test_other_alphas_are_refused(alpha):
    with pytest.raises(BadInput, match=f"alpha is {alpha}; it must be a number above 0"):
        check_scale(1, alpha)


def test_of_several_targets_that_are_not_there_the_first_is_named():
    backbone = tiny_backbone("opt")
    there = r"There are: fc1, fc2, k_proj, out_proj, q_proj, v_proj\."
    for targets in ("q_proj, one, two", ["q_proj", "one", "two"]):
        with pytest.raises(BadInput, match=r"'opt' has no layer named 'one'\. " + there):
            target_names(backbone, targets)
    assert target_names(backbone, None) == target_names(backbone, []) == ("q_proj", "v_proj")
    assert target_names(backbone, " fc1 ,k_proj") == ("fc1", "k_proj")
    assert target_names(backbone, "all") == ("fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj")


# ---------------------------------------------------------------------- what is put on a backbone


@pytest.mark.parametrize("count", [0, 1])
def test_a_task_of_fewer_than_two_labels_is_refused(count):
    with pytest.raises(BadInput, match=rf"A task needs at least two labels, here are {count}\."):
        task_model(tiny_backbone("opt"), word_ids=range(count))


@pytest.mark.parametrize(("name", "scale"), [("opt", 1.0), ("cohere", 0.0625), ("granite", 1 / 8)])
def test_logits_are_scaled_as_the_family_scales_them(name, scale):
    """Cohere multiplies by logit_scale, Granite divides by logits_scaling."""
    assert task_model(tiny_backbone(name), word_ids=[7, 3]).head.scale == scale


def test_a_ladder_on_the_device_is_added_to_the_last_state():
    model, batch = tiny_task_model(), random_batch()
    method = lst.build(model, seed=0, reduction=4)
    side = LadderSide(32, [1, 2, 3], reduction=4)
    side.load_state_dict({name.removeprefix("side."): tensor for name, tensor in moved(method).items()})
    taps = model.backbone.taps(batch.input_ids, batch.attention_mask, layers=(1, 2, 3))
    added = side(taps, batch.attention_mask)
    states = (taps[-1] + added)[torch.arange(batch.rows), batch.positions]
    assert added.abs().mean() > 0.01
    torch.testing.assert_close(method.logits(batch), model.head(states), rtol=1e-5, atol=1e-6)


def test_a_decoder_gets_the_label_words_and_nothing_to_train():
    model = task_model(tiny_backbone("gemma2"), word_ids=[7, 3, 9])
    assert isinstance(model.head, LabelWordHead)
    assert (model.head.word_ids.tolist(), model.head.softcap) == ([7, 3, 9], 30.0)
    assert model.head_parameters() == {}
    assert task_model(tiny_backbone("opt"), word_ids=[7, 3]).head.softcap is None


@pytest.mark.parametrize(
    ("options", "pooling", "seed"), [({}, "mean", 0), ({"pooling": "first", "seed": 4}, "first", 4)]
)
def test_an_encoder_gets_a_classifier_of_the_number_of_labels(options, pooling, seed):
    model = task_model(tiny_backbone("bert"), word_ids=[7, 3, 9], **options)
    assert isinstance(model.head, PooledHead)
    assert (model.head.pooling, model.head.n_labels) == (pooling, 3)
    drawn = 0.02 * torch.randn(3, 32, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(model.head.classifier.weight.detach(), drawn, rtol=1e-6, atol=0)
    classifier = model.head.classifier
    expected = {"head.classifier.weight": classifier.weight, "head.classifier.bias": classifier.bias}
    assert {name: id(tensor) for name, tensor in model.head_parameters().items()} == {
        name: id(tensor) for name, tensor in expected.items()
    }


def test_a_classifier_is_of_its_backbones_type():
    backbone = tiny_backbone("bert")
    backbone.model.to(torch.bfloat16)
    assert task_model(backbone, word_ids=[7, 3]).head.classifier.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_probe_of_a_decoder_begins_with_a_classifier_from_its_seed(dtype):
    method = probe.build(tiny_task_model(dtype=dtype, labels=3), seed=8)
    drawn = (0.02 * torch.randn(3, 32, generator=torch.Generator().manual_seed(8))).to(dtype)
    torch.testing.assert_close(method.trained()["classifier.weight"], drawn, rtol=1e-6, atol=0)
    assert not method.trained()["classifier.bias"].any()


def test_a_probe_of_an_encoder_trains_the_classifier_it_has():
    model = tiny_task_model("bert")
    assert (
        probe.build(model, seed=8).trained()["classifier.weight"].data_ptr() == model.head.classifier.weight.data_ptr()
    )


def test_a_probe_counts_its_classifier_beside_the_model_and_no_activation_of_the_backbone():
    model = tiny_task_model()
    device = probe.build(model, seed=0).count_memory(random_batch(rows=4))[0]
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    classifier = 4 * (2 * 32 + 2)
    assert device.weights_bytes == 4 * sum(parameter.numel() for parameter in model.parameters()) + buffers + classifier
    assert (device.gradients_bytes, device.optimizer_bytes) == (classifier, 2 * classifier)
    assert device.saved_activations_bytes < 4 * (4 * 32 + 4 * 2 * 4)


def test_a_block_is_made_again_without_a_look_at_any_generator(monkeypatch):
    """Nothing is drawn in a block, so a checkpoint keeps and restores no state of a generator."""
    method = full_checkpointing.build(tiny_task_model(), seed=0)
    monkeypatch.setattr(torch, "get_rng_state", lambda: pytest.fail("the generator's state was asked for"))
    method.step(random_batch(), 1e-3)
