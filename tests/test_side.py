"""The side network starts as nothing, follows its equations, and comes back from disk as it was."""

from __future__ import annotations

import json
from inspect import Parameter, signature

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from mobillm_kit.errors import BackboneMismatch, BadInput
from mobillm_kit.methods import mobillm
from mobillm_kit.side.adapter import SideAdapter, attach, build_side, new_adapter
from mobillm_kit.side.description import USUAL, SideSpec, chosen_layers
from mobillm_kit.side.full_width import FullWidthSide
from mobillm_kit.side.ladders import LadderSide, PrunedLadderSide
from mobillm_kit.side.pruning import block_sizes, kept_features
from mobillm_kit.training.adamw import Trained
from tests.builders import random_batch, tiny_task_model
from tests.families import TINY

SIDES = ["full-width", "ladder"]
COPIED = SideSpec.of(
    kind="ladder", start="backbone", width=16, layers=[1, 2, 3], reduction=2, heads=2, feed_forward=24, causal=False
)
GATED = replace(COPIED, reduction=1, heads=4, gated=(2, 10_000), norm_eps=1e-5, causal=True)


def taps(count: int = 3, width: int = 16, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 5, width, generator=generator) for _ in range(count)]


def stirred(module: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """Every parameter moved away from its start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("side", SIDES)
def test_at_step_0_the_model_is_the_pretrained_model_to_the_bit(name, side):
    model = tiny_task_model(name)
    kind = model.backbone.kind
    adapter = new_adapter(model.backbone, kind=side, n_labels=2, rank=4)
    tuned = attach(adapter, model.backbone, model.head)
    batch = random_batch(kind=kind)
    activations = model.backbone.taps(batch.input_ids, batch.attention_mask, layers=adapter.side.layers)
    assert torch.equal(tuned(activations, batch.attention_mask, batch.positions), model.logits(batch))


BERT_LIKE = ["bert", "roberta", "xlm-roberta"]
COPIES = [*((name, reduction) for name in BERT_LIKE for reduction in (1, 2)), ("llama", 1)]


def dense(backbone) -> list:
    return [backbone.dense(index) for index in range(backbone.n_layers)]


def started(model, **options) -> SideAdapter:
    return new_adapter(model.backbone, kind="ladder", start="backbone", n_labels=2, **options)


@pytest.mark.parametrize(("name", "reduction"), COPIES)
def test_started_from_the_backbone_the_model_is_still_the_pretrained_one_to_the_bit(name, reduction):
    model = tiny_task_model(name)
    adapter = started(model, reduction=reduction, layers=3)
    assert adapter.side.layers == (1, 2, 3)
    tuned = attach(adapter, model.backbone, model.head)
    batch = random_batch(kind=model.backbone.kind)
    activations = model.backbone.taps(batch.input_ids, batch.attention_mask, layers=adapter.side.layers)
    assert torch.equal(tuned(activations, batch.attention_mask, batch.positions), model.logits(batch))


@pytest.mark.parametrize("name", [*BERT_LIKE, "llama"])
@pytest.mark.parametrize("layers", [2, 3, None])
@pytest.mark.parametrize("pad", ["right", "left"])
def test_with_nothing_pruned_the_ladder_computes_what_the_backbone_computes(name, layers, pad):
    backbone = tiny_task_model(name).backbone
    adapter = started(tiny_task_model(name), reduction=1, layers=layers)
    torch.nn.init.eye_(adapter.side.up.weight)  # the side's last state as it is
    batch = random_batch(kind=backbone.kind, pad=pad)
    activations = backbone.taps(batch.input_ids, batch.attention_mask, layers=adapter.side.layers)
    real = batch.attention_mask.bool()
    state = adapter.side(activations, batch.attention_mask)
    torch.testing.assert_close(state[real], activations[-1][real], atol=1e-5, rtol=1e-5)


def test_pruning_keeps_the_features_heads_and_units_with_the_largest_weights():
    model = tiny_task_model("bert")  # width 32, 4 heads of 8, feed-forward 64
    features, heads, units = [1, *range(17, 32)], [0, 3], [*range(8), *range(40, 64)]
    rows = [head * 8 + place for head in heads for place in range(8)]
    with torch.no_grad():
        for block in model.backbone.blocks:
            attention = block.attention.self
            for layer in (attention.query, attention.key, attention.value):
                layer.weight[:, features] += 1.0
                layer.weight[rows] *= 3.0
            block.intermediate.dense.weight[units] *= 3.0
    source, block = model.backbone.blocks[2], started(model, reduction=2).side.blocks[2]
    assert kept_features(dense(model.backbone), 16).tolist() == features
    assert torch.equal(block.query.weight, source.attention.self.query.weight[rows][:, features])
    assert torch.equal(block.out.weight, source.attention.output.dense.weight[features][:, rows])
    assert torch.equal(block.wide.weight, source.intermediate.dense.weight[units][:, features])
    assert torch.equal(block.narrow.weight, source.output.dense.weight[features][:, units])
    assert torch.equal(block.mlp_norm.weight, source.output.LayerNorm.weight[features])


def test_every_tensor_of_a_pruned_block_is_the_backbones_at_the_features_kept():
    """Heads and units too: each head of 8 rows and each unit by the sum of what it reads from these features."""
    model = tiny_task_model("bert")
    stirred(model.backbone.blocks)
    features = kept_features(dense(model.backbone), 16)
    side = started(model, reduction=2).side
    for source, block, down in zip(model.backbone.blocks, side.blocks, side.down, strict=True):
        own, out, wide = source.attention.self, source.attention.output, source.intermediate.dense
        readers = {"query": own.query, "key": own.key, "value": own.value}
        read = sum(layer.weight[:, features].abs() for layer in readers.values()).sum(1).tolist()
        heads = sorted(sorted(range(4), key=lambda head: -sum(read[8 * head : 8 * head + 8]))[:2])
        rows = [8 * head + place for head in heads for place in range(8)]
        units = wide.weight[:, features].abs().sum(1).argsort(descending=True)[:32].sort().values
        expected = {f"{name}.weight": layer.weight[rows][:, features] for name, layer in readers.items()}
        expected |= {f"{name}.bias": layer.bias[rows] for name, layer in readers.items()}
        expected |= {"out.weight": out.dense.weight[features][:, rows], "out.bias": out.dense.bias[features]}
        expected |= {"wide.weight": wide.weight[units][:, features], "wide.bias": wide.bias[units]}
        expected |= {"narrow.weight": source.output.dense.weight[features][:, units]}
        expected |= {"narrow.bias": source.output.dense.bias[features]}
        for name, norm in (("attention_norm", out.LayerNorm), ("mlp_norm", source.output.LayerNorm)):
            expected |= {f"{name}.weight": norm.weight[features], f"{name}.bias": norm.bias[features]}
        assert block.state_dict().keys() == expected.keys()
        for name, tensor in block.state_dict().items():
            assert torch.equal(tensor, expected[name]), name
        assert torch.equal(down.weight, torch.eye(32)[features])
        assert not down.bias.any()


def test_a_feature_weighs_what_query_key_value_and_the_wide_layer_of_every_block_read_of_it():
    backbone = tiny_task_model("bert").backbone
    weights = torch.zeros(32)
    for block in backbone.blocks:
        own = block.attention.self
        for layer in (own.query, own.key, own.value, block.intermediate.dense):
            weights += layer.weight.detach().abs().sum(0)
    for count in (1, 5, 32):
        assert kept_features(dense(backbone), count).tolist() == sorted(
            weights.argsort(descending=True)[:count].tolist()
        )


def test_the_sizes_of_pruned_blocks_by_hand():
    backbone = tiny_task_model("bert").backbone  # width 32, 4 heads, feed-forward 64
    for reduction in (1, 2, 4):
        sizes = {"heads": 4 // reduction, "feed_forward": 64 // reduction, "norm_eps": 1e-12}
        assert block_sizes(backbone, reduction) == sizes


@pytest.mark.parametrize("reduction", [-1, 0, 3, 8])
def test_a_reduction_that_does_not_divide_the_backbones_sizes_is_refused_with_them(reduction):
    sentence = f"reduction {reduction} does not divide width 32, 4 heads and feed-forward 64 of 'bert'"
    with pytest.raises(BadInput, match=sentence):
        block_sizes(tiny_task_model("bert").backbone, reduction)


@pytest.mark.parametrize("spec", [COPIED, GATED], ids=["bert", "llama"])
def test_the_pruned_ladder_does_not_read_padding(spec):
    side = stirred(PrunedLadderSide(spec))
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    changed = [torch.where(mask[..., None].bool(), a, -a) for a in taps()]
    torch.testing.assert_close(side(taps(), mask)[mask.bool()], side(changed, mask)[mask.bool()])


def test_every_tensor_of_a_llama_block_is_the_backbones_and_it_learns_while_the_backbone_stays():
    model = tiny_task_model("llama")
    before = {name: value.clone() for name, value in model.backbone.model.state_dict().items()}
    method = mobillm.build(model, seed=0, side="ladder", start="backbone", reduction=1, layers=3)
    for source, block in zip(model.backbone.blocks[1:], method.adapter.side.blocks, strict=True):
        theirs, ours = source.state_dict(), block.state_dict()
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    losses = [method.step(random_batch(rows=8), 3e-3).loss for _ in range(12)]
    assert losses[-1] < losses[0] - 0.1
    trained = method.adapter.side.blocks[0].mlp["up_proj"].weight
    assert not torch.equal(trained, model.backbone.blocks[1].mlp.up_proj.weight)
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.model.state_dict().items())


def test_a_ladder_started_from_the_backbone_learns_and_leaves_the_backbone_as_it_was():
    model = tiny_task_model("bert")
    before = {name: value.clone() for name, value in model.backbone.model.state_dict().items()}
    method = mobillm.build(model, seed=0, side="ladder", start="backbone", reduction=1, layers=3)
    batch = random_batch(kind="encoder", rows=8)
    losses = [method.step(batch, 3e-3).loss for _ in range(12)]
    assert losses[-1] < losses[0] - 0.1
    assert not torch.equal(
        method.adapter.side.blocks[0].query.weight, before["encoder.layer.1.attention.self.query.weight"]
    )
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.model.state_dict().items())


@pytest.mark.parametrize(
    "spec", [replace(COPIED, start="random"), replace(COPIED, kind="full-width", start="random"), COPIED, GATED]
)
def test_too_few_and_too_many_taps_are_refused(spec):
    side = build_side(spec)
    for count in (2, 4):
        with pytest.raises(ValueError, match="zip"):
            side(taps(count), torch.ones(2, 5))


@pytest.mark.parametrize("kind", [FullWidthSide, LadderSide])
def test_a_side_network_may_have_one_tap(kind):
    side = stirred(kind(16, [3]))
    assert side(taps(1), torch.ones(2, 5)).shape == (2, 5, 16)


@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_a_ladder_is_as_wide_as_the_backbone_by_its_reduction(reduction):
    shapes = {name: tuple(value.shape) for name, value in LadderSide(16, [1], reduction=reduction).state_dict().items()}
    narrow = 16 // reduction
    assert shapes["down.0.weight"] == (narrow, 16)
    assert shapes["blocks.0.qkv.weight"] == (3 * narrow, narrow)
    assert shapes["blocks.0.wide.weight"] == (2 * narrow, narrow)
    assert shapes["up.weight"] == (16, narrow)


@pytest.mark.parametrize("kind", [FullWidthSide, LadderSide])
def test_what_is_not_said_has_the_usual_descriptions_value(kind):
    for name, parameter in signature(kind).parameters.items():
        assert parameter.default in (Parameter.empty, getattr(USUAL, name)), name


def test_full_width_reads_each_token_alone_and_the_ladder_does_not():
    wide, ladder = stirred(FullWidthSide(16, [1, 2, 3])), stirred(LadderSide(16, [1, 2, 3]))
    assert (wide.token_wise, ladder.token_wise, PrunedLadderSide.token_wise) == (True, False, False)
    mask, activations = torch.ones(2, 5), taps()
    alone = [a[:, 3:4] for a in activations]
    assert torch.allclose(wide(alone, mask[:, :1]), wide(activations, mask)[:, 3:4], atol=1e-6)
    assert not torch.allclose(ladder(alone, mask[:, :1]), ladder(activations, mask)[:, 3:4], atol=1e-3)


def test_a_causal_ladder_never_looks_ahead_and_a_free_one_does():
    causal, free = (stirred(LadderSide(16, [1, 2, 3], causal=flag)) for flag in (True, False))
    changed = [a.clone() for a in taps()]
    for a in changed:
        a[:, 4] = -a[:, 4]  # a shift alone would be lost in the LayerNorm
    mask = torch.ones(2, 5)
    llama = stirred(PrunedLadderSide(GATED))
    assert torch.equal(llama(taps(), mask)[:, :4], llama(changed, mask)[:, :4])
    assert torch.equal(causal(taps(), mask)[:, :4], causal(changed, mask)[:, :4])
    assert not torch.allclose(free(taps(), mask)[:, :4], free(changed, mask)[:, :4], atol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
def test_the_ladder_does_not_read_padding(causal):
    side = stirred(LadderSide(16, [1, 2, 3], causal=causal))
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    changed = [torch.where(mask[..., None].bool(), a, -a) for a in taps()]
    real = mask.bool()
    torch.testing.assert_close(side(taps(), mask)[real], side(changed, mask)[real])


def test_initial_weights_come_from_their_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    same = [LadderSide(16, [1, 2], seed=7).state_dict() for _ in range(2)]
    other = LadderSide(16, [1, 2], seed=8).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(same[0][key], same[1][key]) for key in same[0])
    assert not torch.equal(same[0]["down.0.weight"], other["down.0.weight"])


SCALED = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}


def with_config(model, **changes):
    for name, value in changes.items():
        setattr(model.backbone.config, name, value)
    return model


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: FullWidthSide(16, []), "layers are"),
        (lambda: FullWidthSide(16, [2, 1]), "ascending"),
        (lambda: FullWidthSide(16, [1], rank=0), "rank is 0"),
        (lambda: FullWidthSide(16, [1], rank=17), "rank is 17"),
        (lambda: LadderSide(16, [1], reduction=3), "do not divide"),
        (lambda: LadderSide(16, [1], reduction=4, heads=3), "do not divide"),
        (lambda: chosen_layers(4, 5), "Cannot choose 5 of 4"),
        (lambda: chosen_layers(4, 0), "Cannot choose 0 of 4"),
        (lambda: chosen_layers(4, 0, last=True), "last 0 of the layers 0 to 4"),
        (lambda: build_side(replace(COPIED, layers=[1, 3])), "consecutive"),
        (lambda: build_side(replace(COPIED, layers=[3])), "consecutive"),
        (lambda: build_side(replace(COPIED, reduction=3)), "do not divide"),
        (lambda: build_side(replace(GATED, gated=(3, 10_000))), "3 heads of keys and values for 4 heads"),
        (lambda: build_side(replace(GATED, reduction=2)), "reduction 2.*copied whole"),
        (lambda: build_side(replace(GATED, heads=16)), "for 16 heads"),
        (lambda: build_side(replace(GATED, causal=False)), "look back only"),
        (
            lambda: build_side(SideSpec.of(kind="full-width", start="backbone", width=8, layers=[1], n_labels=2)),
            "with a ladder",
        ),
        (
            lambda: build_side(SideSpec.of(kind="ladder", start="pruned", width=8, layers=[1], n_labels=2)),
            "start is 'pruned'",
        ),
        (lambda: started(tiny_task_model("opt")), "not of a known shape"),
        (lambda: started(tiny_task_model("qwen2")), "'qwen2' .* not of a known shape"),
        (lambda: started(with_config(tiny_task_model("llama"), attention_bias=True)), "not of a known shape"),
        (lambda: started(with_config(tiny_task_model("llama"), rope_parameters=SCALED)), "not of a known shape"),
        (lambda: started(with_config(tiny_task_model("llama"), head_dim=4)), "not of a known shape"),
        (lambda: started(tiny_task_model("llama"), reduction=2), "copied whole"),
        (lambda: mobillm.build(tiny_task_model("opt"), seed=0, pooling="attention"), "there is no pooling"),
        (lambda: mobillm.build(tiny_task_model("bert"), seed=0, averaging=1.0), "averaging is 1.0"),
        (lambda: started(tiny_task_model("bert"), reduction=8), "does not divide"),
        (lambda: build_side(SideSpec.of(kind="wide", width=8, layers=[1], n_labels=2)), "Unknown side network"),
    ],
)
def test_shapes_that_cannot_be_are_refused(make, sentence):
    with pytest.raises(BadInput, match=sentence):
        make()


def test_even_layers_end_in_the_last():
    assert chosen_layers(6, None) == [1, 2, 3, 4, 5, 6]
    assert chosen_layers(6, 3) == [2, 4, 6]
    assert chosen_layers(24, 1) == [24]
    assert chosen_layers(6, 4, last=True) == [3, 4, 5, 6]
    assert chosen_layers(6, 1, last=True) == [6]
    assert chosen_layers(2, None, last=True) == chosen_layers(2, 5, last=True) == [0, 1, 2]


# ---------------------------------------------------------------------- saved and loaded


@pytest.mark.parametrize("name", ["opt", "bert"])
@pytest.mark.parametrize("side", SIDES)
def test_save_and_load_give_equal_bytes_and_equal_logits(tmp_path, capsys, name, side):
    model = tiny_task_model(name)
    adapter = stirred(
        new_adapter(
            model.backbone,
            kind=side,
            n_labels=2,
            rank=4,
            about={"labels": ["no", "yes"], "label_words": [" bad", " good"]},
        )
    )
    adapter.save_pretrained(tmp_path)
    loaded = SideAdapter.from_pretrained(tmp_path)
    assert capsys.readouterr().out == ""
    for key, value in adapter.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key])
    batch = random_batch(kind=model.backbone.kind)
    activations = model.backbone.taps(batch.input_ids, batch.attention_mask, layers=adapter.side.layers)
    logits = [
        attach(a, model.backbone, model.head)(activations, batch.attention_mask, batch.positions)
        for a in (adapter, loaded)
    ]
    assert torch.equal(*logits)


@pytest.mark.parametrize("normalization", ["none", "layer"])
def test_norms_and_a_pooling_by_attention_come_back_and_a_folder_names_only_what_there_is(tmp_path, normalization):
    model = tiny_task_model("bert")
    shape = {"rank": 4, "heads": 4, "pooling": "attention", "normalization": normalization}
    adapter = stirred(new_adapter(model.backbone, n_labels=2, **shape))
    adapter.save_pretrained(tmp_path)
    side = json.loads((tmp_path / "config.json").read_text())["side"]
    assert side.get("normalization", "left out") == ("layer" if normalization == "layer" else "left out")
    loaded = SideAdapter.from_pretrained(tmp_path)
    assert loaded.spec == adapter.spec
    batch = random_batch(kind="encoder")
    activations = model.backbone.taps(batch.input_ids, batch.attention_mask, layers=adapter.side.layers)
    ours, theirs = (
        attach(a, model.backbone, model.head)(activations, batch.attention_mask, batch.positions)
        for a in (adapter, loaded)
    )
    assert torch.equal(ours, theirs)


def test_a_pruned_ladder_comes_back_as_it_was_without_its_backbone(tmp_path):
    model = tiny_task_model("bert")
    adapter = stirred(started(model, reduction=2, layers=3))
    adapter.save_pretrained(tmp_path)
    loaded = SideAdapter.from_pretrained(tmp_path)
    assert loaded.side.layers == adapter.side.layers
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in adapter.state_dict().items())


class IdleGate(FullWidthSide):
    """The side network as it was: the first gate mixes the first tap with itself."""

    def __init__(self, *given, **named) -> None:
        super().__init__(*given, **named)
        self.gates = torch.nn.Parameter(torch.zeros(len(self.layers)))

    def forward(self, taps, mask):
        state, delta = taps[0], torch.zeros_like(taps[0])
        for tap, gate, down, up in zip(taps, self.gates.sigmoid(), self.down, self.up, strict=True):
            x = (1 - gate) * tap + gate * state
            change = up(torch.nn.functional.gelu(down(x)))
            delta, state = gate * delta + change, x + change
        return delta


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_without_the_idle_gate_training_gives_the_same_bytes(decay):
    trained = []
    for net in (FullWidthSide, IdleGate):
        side = net(16, (1, 2, 3), rank=4, seed=3)
        optimizer = Trained(dict(side.named_parameters()), decay)
        for step in range(5):
            wanted = side(taps(seed=step), torch.ones(2, 5))
            optimizer.descend((wanted - taps(seed=9)[0]).pow(2).mean(), 0.01)
        trained.append(dict(side.named_parameters()))
    now, before = trained
    assert before["gates"][0] == 0
    assert before["gates"][1:].all()
    assert torch.equal(now.pop("gates"), before.pop("gates")[1:])
    assert all(torch.equal(value, before[name]) for name, value in now.items())


def test_the_folder_says_which_backbone_it_belongs_to(tmp_path):
    model = tiny_task_model()
    new_adapter(model.backbone, kind="ladder", n_labels=2, about={"task": "reviews"}).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["fingerprint"] == model.backbone.fingerprint
    assert (config["backbone"], config["backbone_revision"], config["task"]) == ("opt", "", "reviews")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_another_backbone_is_refused_with_a_sentence():
    model = tiny_task_model()
    adapter = new_adapter(model.backbone, kind="full-width", n_labels=2)
    other = tiny_task_model(seed=1)
    ours, theirs = model.backbone.fingerprint[:12], other.backbone.fingerprint[:12]
    sentence = rf"was trained on 'opt' \(fingerprint {ours}\), not on 'opt' \({theirs}\)\."
    with pytest.raises(BackboneMismatch, match=sentence):
        attach(adapter, other.backbone, other.head)


def test_a_side_network_that_skips_the_last_layer_is_refused():
    model = tiny_task_model()
    adapter = new_adapter(model.backbone, kind="full-width", n_labels=2, layers=[0, 1, 2])
    with pytest.raises(BadInput, match=r"The last tapped layer is 2, the backbone's last is 3\."):
        attach(adapter, model.backbone, model.head)


@pytest.mark.parametrize("damage", ["truncated", "missing", "extra"])
def test_a_damaged_folder_is_refused(tmp_path, damage):
    adapter = new_adapter(tiny_task_model().backbone, kind="full-width", n_labels=2)
    adapter.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-40])
    elif damage == "missing":
        weights.unlink()
    else:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "side": {**config["side"], "layers": [2, 3]}}))
    with pytest.raises(BadInput, match="not a side network"):
        SideAdapter.from_pretrained(tmp_path)


@pytest.mark.parametrize("spoil", ["left out", "too many"])
def test_a_folder_whose_weights_are_not_all_and_only_those_described_is_refused_in_one_line(tmp_path, spoil):
    new_adapter(tiny_task_model().backbone, kind="full-width", n_labels=2).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if spoil == "left out":
        del weights["side.down.1.bias"]
    else:
        weights["side.extra"] = torch.ones(1)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(
        BadInput, match=r"not a side network that can be loaded \(Error.* for SideAdapter:\)"
    ) as refused:
        SideAdapter.from_pretrained(tmp_path)
    assert "\n" not in str(refused.value)


def test_what_a_folder_does_not_say_of_its_task_has_the_usual_value():
    adapter = SideAdapter(SideSpec.of(width=8, rank=4, layers=[1]))
    assert (adapter.prompt, adapter.paired, adapter.max_length) == ("{text}", False, 256)
    assert (adapter.task, adapter.labels, adapter.label_words) == ("", (), ())
    assert (adapter.backbone_name, adapter.fingerprint, adapter.head) == ("", "", None)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_an_encoders_adapter_holds_a_classifier_of_its_description(pooling):
    adapter = SideAdapter(SideSpec.of(width=8, rank=4, layers=[1], n_labels=3, pooling=pooling, seed=6))
    assert (adapter.head.pooling, adapter.head.n_labels) == (pooling, 3)
    drawn = 0.02 * torch.randn(3, 8, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(adapter.head.classifier.weight.detach(), drawn, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["opt", "bert"])
def test_a_fresh_adapters_description_is_the_backbones_and_the_tasks(name):
    backbone = tiny_task_model(name).backbone
    spec = new_adapter(backbone, n_labels=3, kind="ladder", layers=1, seed=4).spec
    about = {"width": 32, "layers": [3], "n_labels": 3, "kind": "ladder", "seed": 4}
    about |= {"causal": name == "opt", "pooling": None if name == "opt" else "mean"}
    assert spec == SideSpec.of(**about)
    assert new_adapter(backbone, n_labels=2, layers=None).spec.layers == [1, 2, 3]
    first = new_adapter(backbone, n_labels=2, pooling="first").spec.pooling
    assert first == (None if name == "opt" else "first")
