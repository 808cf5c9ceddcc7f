"""P-RGE as a whole against SPSA written out over PEFT's own LoRA layers, on every family."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mobillm_kit.common import derived_seed
from mobillm_kit.errors import BadInput
from mobillm_kit.methods import prge
from mobillm_kit.methods.dual_forward import DualForwardLinear
from mobillm_kit.methods.lora_layers import add_lora
from mobillm_kit.training.ledger import SavedActivations
from tests.builders import random_batch, tiny_task_model
from tests.families import TINY

DOUBLE = torch.float64
MODES = [(True, True), (True, False), (False, True), (False, False)]
RANK, ALPHA, EPS = 4, 8.0, 1e-2


def kind_of(name: str) -> str:
    return "encoder" if name in ("bert", "roberta") else "decoder"


def batch_for(name: str, seed: int):
    """Padded on the left and on the right in turn; encoders read two segments."""
    batch = random_batch(kind=kind_of(name), seed=seed, pad=("right", "left")[seed % 2])
    if name != "bert":
        return batch
    second_begins = 3 + torch.arange(batch.rows)[:, None]  # at another token in every row
    return replace(batch, token_type_ids=(torch.arange(batch.input_ids.shape[1]) >= second_begins).long())


class PlainSpsa:
    """The formula of the paper, one weight at a time: PEFT's LoRA with A given, no stack, no delayed update."""

    def __init__(self, name: str, a_of: dict[str, torch.Tensor], seed: int) -> None:
        self.model = tiny_task_model(name, dtype=DOUBLE)
        self.seed = seed
        layers = add_lora(self.model, rank=RANK, alpha=ALPHA, targets=None, seed=0)
        self.places: dict[str, torch.Tensor] = {}
        for layer, a in a_of.items():
            if layer == "classifier":
                self.places[layer] = self.model.head.classifier.weight
                continue
            (down,) = (value for key, value in layers.items() if f".{layer}.lora_A." in key)
            (up,) = (value for key, value in layers.items() if f".{layer}.lora_B." in key)
            down.data.copy_(a)
            self.places[layer] = up
        self.weights = {layer: place.detach().clone() for layer, place in self.places.items()}

    @torch.no_grad()
    def logits(self, batch, moved=None) -> torch.Tensor:
        for layer, place in self.places.items():
            place.copy_(self.weights[layer] + (0 if moved is None else moved[layer]))
        return self.model.logits(batch)

    def step(self, batch, lr: float, q: int, step: int) -> list[float]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "z", step))
        zs = {
            layer: torch.randn(q, *weight.shape, generator=generator, dtype=DOUBLE)
            for layer, weight in self.weights.items()
        }
        gs = []
        for j in range(q):
            moved = {layer: EPS * z[j] for layer, z in zs.items()}
            up = F.cross_entropy(self.logits(batch, moved), batch.labels)
            down = F.cross_entropy(self.logits(batch, {layer: -move for layer, move in moved.items()}), batch.labels)
            gs.append(((up - down) / (2 * EPS)).item())
        for layer, z in zs.items():
            self.weights[layer] -= lr * sum(g * z[j] for j, g in enumerate(gs)) / q
        return gs


@pytest.mark.parametrize("name", ["opt", "gpt2", "bert"])  # Llama's norm is float32 whatever the weights are
@pytest.mark.parametrize(("inner", "outer"), MODES)
def test_a_run_equals_spsa_on_pefts_own_lora(name, inner, outer):
    """Float64: every g, every weight and the logits, with a learning rate that changes from step to step."""
    model = tiny_task_model(name, dtype=DOUBLE)
    method = prge.build(model, seed=3, q=3, eps=EPS, rank=RANK, alpha=ALPHA, inner=inner, outer=outer)
    offsets = {"classifier.b": model.head.classifier.base.weight} if kind_of(name) == "encoder" else {}
    a_of = {key[: -len(".a")]: value for key, value in model.backbone.blocks.named_buffers() if key.endswith(".a")}
    plain = PlainSpsa(name, a_of | ({"classifier": torch.empty(0)} if offsets else {}), seed=3)
    for step, lr in enumerate((0.3, 0.1, 0.2, 0.05)):
        batch = batch_for(name, step)
        result = method.step(batch, lr)
        gs = plain.step(batch, lr, 3, step)
        assert result.forwards == 2 * 3 * batch.rows
        assert method.state()["g"].tolist() == pytest.approx(gs, rel=1e-9, abs=1e-10)
        for layer, weight in plain.weights.items():
            ours = method.trained()[f"{layer}.b"] + offsets.get(f"{layer}.b", 0)
            torch.testing.assert_close(ours, weight, rtol=0, atol=1e-10)
        torch.testing.assert_close(method.logits(batch), plain.logits(batch), rtol=0, atol=1e-10)
    assert max(abs(g) for g in gs) > 1e-4


@pytest.mark.parametrize(
    ("name", "targets"),
    [*((name, None) for name in TINY), *((name, "all") for name in ("opt", "llama", "gpt2", "bert", "deberta"))],
)
def test_every_family_is_trained_and_its_own_weights_stay(name, targets):
    model = tiny_task_model(name)
    before = {key: value.clone() for key, value in model.named_parameters()}
    method = prge.build(model, seed=0, targets=targets)
    for step in range(3):
        method.step(batch_for(name, step), 1e-1)
    after = {key.replace(".base.", "."): value for key, value in model.named_parameters()}
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(tensor.abs().max() > 0 for tensor in method.trained().values())


@pytest.mark.parametrize(("inner", "outer"), MODES)
def test_no_second_set_of_bs_is_ever_made(inner, outer):
    """What a forward reads is a view of the counted stack, so the ledger misses nothing."""
    model = tiny_task_model()
    method = prge.build(model, seed=0, inner=inner, outer=outer)
    method.step(random_batch(), 1e-2)
    layers = [module for module in model.modules() if hasattr(module, "copies")]
    assert layers
    for layer in layers:
        assert layer.copies.untyped_storage().data_ptr() == layer.stack.untyped_storage().data_ptr()


def test_the_ledger_by_hand():
    model, q, rank = tiny_task_model(), 5, 4
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    device = prge.build(model, seed=0, q=q, rank=rank).count_memory(random_batch())[0]
    layers, width = 3 * 2, 32
    a_and_stack = layers * (rank * width + 2 * q * width * rank) * 4
    assert device.weights_bytes == weights + buffers + a_and_stack
    assert device.gradients_bytes == q * width * rank * 4
    assert (device.optimizer_bytes, device.saved_activations_bytes, device.messages_bytes) == (0, 0, 0)


def test_a_step_saves_nothing_for_a_backward_pass():
    model = tiny_task_model()
    method = prge.build(model, seed=0)
    with SavedActivations(model.parameters()) as saved:
        method.step(random_batch(), 1e-2)
    assert saved.peak_bytes == 0


def test_a_copy_of_the_batch_follows_the_other():
    batch = batch_for("bert", 0)
    twice = batch.repeated(2)
    for field in ("input_ids", "attention_mask", "labels", "positions", "token_type_ids"):
        assert torch.equal(getattr(twice, field), torch.cat([getattr(batch, field)] * 2)), field


@pytest.mark.parametrize("q", [0, -1, 2.5, True, "four"])
def test_a_q_that_cannot_be_is_refused(q):
    with pytest.raises(BadInput, match=rf"q is {q}; it must be a whole number from 1 up"):
        prge.build(tiny_task_model(), seed=0, q=q)


def test_a_perturbation_that_estimates_nothing_is_refused():
    with pytest.raises(BadInput, match="eps is inf; it must be a number above 0"):
        prge.build(tiny_task_model(), seed=0, eps=float("inf"))


def test_a_clip_bounds_each_projected_gradient_and_touches_no_smaller_one():
    free, bound = (prge.build(tiny_task_model(), seed=0, clip=clip) for clip in (None, 0.01))
    for method in (free, bound):
        method.step(random_batch(), 1e-2)
    assert free.state()["g"].abs().max() > 0.01
    assert torch.equal(bound.state()["g"], free.state()["g"].clamp(-0.01, 0.01))


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_a_clip_that_lets_nothing_pass_is_refused(clip):
    with pytest.raises(BadInput, match="clip"):
        prge.build(tiny_task_model(), seed=0, clip=clip)


@pytest.mark.parametrize("clip", [1e-9, 0.5, 3])
def test_any_clip_above_0_is_taken(clip):
    method = prge.build(tiny_task_model(), seed=0, clip=clip)
    method.step(random_batch(), 1e-2)
    assert method.state()["g"].abs().max() <= clip


@pytest.mark.parametrize("name", ["opt", "gpt2", "bert"])
def test_every_a_is_drawn_as_peft_draws_it_and_every_stack_begins_at_zero(name):
    """Uniform in +-1/sqrt(d_in), layer after layer from one seed; alpha / r before; the identity for a classifier."""
    model = tiny_task_model(name)
    layers = prge.add_dual_forward(model, q=3, seed=9, rank=4, alpha=6.0, targets=None)
    generator = torch.Generator().manual_seed(derived_seed(9, "a"))
    classifier = layers.pop("classifier", None)
    assert (classifier is not None) == (name == "bert")
    assert len(layers) == 3 * len(model.backbone.family.attention_targets)
    for layer in layers.values():
        drawn = (2 * torch.rand(4, 32, generator=generator) - 1) / 32**0.5
        torch.testing.assert_close(layer.a, drawn, rtol=0, atol=1e-7)
        assert (layer.scale, tuple(layer.stack.shape[:2]), layer.stack.shape[-1]) == (1.5, (2, 3), 4)
        assert not layer.stack.any()
    if classifier is not None:
        assert torch.equal(classifier.a, torch.eye(32))
        assert (classifier.scale, tuple(classifier.stack.shape)) == (1.0, (2, 3, 2, 32))


def test_rank_8_and_alpha_16_where_nothing_is_said():
    method = prge.build(tiny_task_model(), seed=0)
    layers = [module for module in method._model.modules() if isinstance(module, DualForwardLinear)]
    assert {(layer.scale, layer.a.shape[0], layer.stack.shape[1]) for layer in layers} == {(2.0, 8, 4)}


def test_a_state_comes_back_to_the_byte_and_the_run_goes_on_as_it_would_have():
    whole, resumed = (prge.build(tiny_task_model(), seed=2, q=2) for _ in range(2))
    for step in range(3):
        whole.step(random_batch(seed=step), 0.1 / (step + 1))
    state = whole.state()
    names = [key.removesuffix(".b") for key in whole.trained()]
    assert state.keys() == {"g", "lr", "steps", *(f"{side}/{name}" for name in names for side in ("up", "down"))}
    assert (state["steps"].item(), state["lr"].item(), state["lr"].dtype) == (3, 0.1 / 3, DOUBLE)
    kept = {key: tensor.clone() for key, tensor in state.items()}
    resumed.load_state(state)
    results = [method.step(random_batch(seed=3), 0.05) for method in (whole, resumed)]
    assert results[0] == results[1]
    assert all(torch.equal(tensor, kept[key]) for key, tensor in state.items())  # a copy
    for key, tensor in whole.state().items():
        assert torch.equal(resumed.state()[key], tensor), key


def test_the_loss_of_a_step_is_the_mean_over_both_signs_and_all_perturbations():
    method, batch = prge.build(tiny_task_model(), seed=0, q=2), random_batch()
    result = method.step(batch, 0.1)
    assert result.loss == pytest.approx(method.losses(batch).mean().item(), abs=1e-6)
    assert method.losses(batch).shape == (2, 2)


@pytest.mark.parametrize(("q", "rank"), [(1, 1), (1, 8), (5, 1)])
def test_the_smallest_numbers_train_too(q, rank):
    method = prge.build(tiny_task_model(), seed=0, q=q, rank=rank)
    assert method.step(random_batch(rows=3), 0.1).forwards == 2 * q * 3


def test_a_fresh_layer_reads_its_upper_stack_and_asks_for_no_gradient():
    base = torch.nn.Linear(6, 5)
    layer = DualForwardLinear(base, torch.ones(2, 6), 0.5, q=3)
    assert layer.copies.shape == (3, 5, 2)
    assert layer.copies.data_ptr() == layer.up.data_ptr() == layer.stack[0].data_ptr()
    assert layer.down.data_ptr() == layer.stack[1].data_ptr()
    assert layer.weight is base.weight


def test_nothing_is_kept_for_a_backward_pass_even_where_weights_ask_for_one():
    model = tiny_task_model()
    method = prge.build(model, seed=0)
    model.requires_grad_(True)
    assert not method.logits(random_batch()).requires_grad
    with SavedActivations(model.parameters()) as saved:
        method.step(random_batch(), 1e-2)
    assert saved.peak_bytes == 0


def test_before_the_first_step_there_is_no_rate_and_no_g():
    state = prge.build(tiny_task_model(), seed=0).state()
    assert (state["lr"].item(), state["steps"].item(), state["g"].tolist()) == (0.0, 0, [0.0] * 4)
