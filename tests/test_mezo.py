"""MeZO step by step against a version written out by hand, and runs that are resumed before they are replayed."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from mobillm_kit.common import derived_seed
from mobillm_kit.errors import BadInput
from mobillm_kit.memory.live_tensors import LiveTensors
from mobillm_kit.methods import mezo, mezo_lora
from mobillm_kit.methods.zeroth_order import PIECE, ReplayLog, ZerothOrder, check_eps, perturb, replay
from mobillm_kit.training.ledger import SavedActivations
from tests.builders import random_batch, tiny_task_model

DOUBLE = torch.float64
BUILDS = [mezo.build, mezo_lora.build]


def kind_of(name: str) -> str:
    return "encoder" if name == "bert" else "decoder"


def own_loss(hf, batch) -> torch.Tensor:
    """Cross-entropy over the label words, through the Hugging Face model's own head."""
    positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    logits = hf(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions, use_cache=False
    ).logits
    return F.cross_entropy(logits[torch.arange(batch.rows), batch.positions][:, [10, 11]], batch.labels)


@pytest.mark.parametrize("name", ["opt", "gpt2", "gpt-neox"])  # Llama's norm is float32 whatever the weights are
@torch.no_grad()
def test_three_steps_equal_the_formula_written_out(name):
    """Float64: w - lr g z with weights set from copies, never moved back and forth, on the plain model."""
    method = mezo.build(tiny_task_model(name, dtype=DOUBLE), seed=9, eps=1e-4)
    hf = tiny_task_model(name, dtype=DOUBLE).backbone.model
    weights = list(hf.parameters())
    for step, lr in enumerate((1e-2, 3e-3, 1e-3)):
        batch = random_batch(seed=step)
        result = method.step(batch, lr)
        generator = torch.Generator().manual_seed(derived_seed(9, "z", step))
        start = [weight.clone() for weight in weights]
        zs = [torch.randn(weight.shape, generator=generator, dtype=DOUBLE) for weight in weights]
        losses = []
        for sign in (1, -1):
            for weight, w, z in zip(weights, start, zs, strict=True):
                weight.copy_(w + sign * 1e-4 * z)
            losses.append(own_loss(hf, batch).item())
        g = (losses[0] - losses[1]) / 2e-4
        for weight, w, z in zip(weights, start, zs, strict=True):
            weight.copy_(w - lr * g * z)
        assert result.loss == pytest.approx(sum(losses) / 2, abs=1e-8)
        assert method.log.step_sizes[step] == pytest.approx(lr * g, rel=1e-5)
        # the step is kept as float32, so the weights agree to its rounding and no further
        for trained, weight, z in zip(method.trained().values(), weights, zs, strict=True):
            allowed = 1e-5 * abs(lr * g) * z.abs().max().item() + 1e-10
            assert (trained - weight).abs().max().item() < allowed * (step + 1)


def test_tied_weights_are_perturbed_once():
    model = tiny_task_model("opt")
    assert model.backbone.lm_head.weight is model.backbone.base.embed_tokens.weight
    storages = [tensor.data_ptr() for tensor in mezo.build(model, seed=0).trained().values()]
    assert len(storages) == len(set(storages))
    assert set(storages) == {parameter.data_ptr() for parameter in model.parameters()}


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", ["opt", "bert"])
def test_a_resumed_run_is_replayed_from_its_first_step(tmp_path, build, name):
    def steps(method, start: int, stop: int):
        for step in range(start, stop):
            method.step(random_batch(kind=kind_of(name), seed=step), 1e-3 * (1 - step / 10))
        return method

    whole = steps(build(tiny_task_model(name), seed=5), 0, 10)
    half = {key: value.clone() for key, value in steps(build(tiny_task_model(name), seed=5), 0, 4).state().items()}
    resumed = build(tiny_task_model(name), seed=5)
    resumed.load_state(half)
    steps(resumed, 4, 10)
    resumed.log.save(tmp_path / "replay.safetensors")
    again = build(tiny_task_model(name), seed=5)
    start = {key: value.clone() for key, value in again.trained().items()}
    replay(again.trained(), ReplayLog.load(tmp_path / "replay.safetensors"))
    for key, tensor in whole.trained().items():
        assert torch.equal(resumed.trained()[key], tensor), key
        assert torch.equal(again.trained()[key], tensor), key
    assert any(not torch.equal(start[key], tensor) for key, tensor in whole.trained().items())


@pytest.mark.parametrize("build", BUILDS)
def test_an_encoders_classifier_is_trained_too(build):
    method = build(tiny_task_model("bert"), seed=0)
    before = method.trained()["head.classifier.weight"].clone()
    method.step(random_batch(kind="encoder"), 1e-2)
    assert not torch.equal(method.trained()["head.classifier.weight"], before)


@pytest.mark.parametrize("build", BUILDS)
def test_a_step_saves_nothing_for_a_backward_pass_and_two_forwards_are_counted(build):
    model = tiny_task_model()
    method, batch = build(model, seed=0), random_batch(rows=5)
    with SavedActivations(model.parameters()) as saved:
        result = method.step(batch, 1e-3)
    assert saved.peak_bytes == 0
    assert result.forwards == 10
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_ledger_by_hand():
    model = tiny_task_model()
    device = mezo.build(model, seed=0).count_memory(random_batch())[0]
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert device.weights_bytes == 4 * sum(parameter.numel() for parameter in model.parameters()) + buffers
    assert device.gradients_bytes == 4 * max(parameter.numel() for parameter in model.parameters())
    assert (device.optimizer_bytes, device.saved_activations_bytes, device.messages_bytes) == (0, 0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beyond", [-1, 0, 1, 15, 16, 17, PIECE])
def test_a_weight_of_many_pieces_moves_by_the_z_of_the_whole_and_has_no_second_copy(dtype, beyond):
    weights = [torch.zeros(PIECE + beyond, dtype=dtype), torch.zeros(3, 5, dtype=dtype)]
    generator = torch.Generator().manual_seed(3)
    wanted = [torch.randn(weight.shape, generator=generator, dtype=dtype) for weight in weights]
    with LiveTensors() as live:
        live.add(weights, "weights")
        perturb(weights, 3, 1.0)
    assert all(map(torch.equal, weights, wanted))
    assert live.peak.transient < (PIECE + 16) * dtype.itemsize


def test_the_ledger_counts_a_piece_and_no_more():
    module = nn.Linear(2**13, 2**10, bias=False)  # two pieces
    method = ZerothOrder("mezo", module, dict(module.named_parameters()), module, seed=0, eps=1e-3)
    assert method.count_memory(random_batch())[0].gradients_bytes == 4 * PIECE


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_refused(build, dtype):
    with pytest.raises(BadInput, match=r"too coarse to add eps z.*Load the backbone in float32"):
        build(tiny_task_model(dtype=dtype), seed=0)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("eps", [-1e-3, math.inf, math.nan, "x"])
def test_an_eps_that_estimates_nothing_is_refused(build, eps):
    with pytest.raises(BadInput, match=rf"eps is {eps}; it must be a number above 0"):
        build(tiny_task_model(), seed=0, eps=eps)


@pytest.mark.parametrize("eps", [1e-9, 1, 0.5, 7.0, 1e30])
def test_an_eps_above_0_is_taken(eps):
    check_eps(eps)


def test_a_perturbation_is_one_draw_after_the_other_from_one_seed():
    weights = [torch.full((3, 2), 5.0), torch.zeros(4), torch.ones(2, dtype=DOUBLE)]
    moved = [weight.clone() for weight in weights]
    perturb(moved, 11, -0.25)
    generator = torch.Generator().manual_seed(11)
    for before, after in zip(weights, moved, strict=True):
        z = torch.randn(before.shape, generator=generator, dtype=before.dtype)
        torch.testing.assert_close(after, before - 0.25 * z, rtol=0, atol=1e-6)


def test_a_state_is_the_weights_and_the_step_sizes_and_comes_back_to_the_byte():
    method = mezo_lora.build(tiny_task_model(), seed=5)
    for step in range(3):
        method.step(random_batch(seed=step), 1e-2)
    state = method.state()
    assert state.keys() == {"step_sizes", *(f"weight/{name}" for name in method.trained())}
    assert state["step_sizes"].dtype == torch.float32
    assert state["step_sizes"].tolist() == list(method.log.step_sizes)
    assert (method.log.seed, method.log.eps, len(method.log.step_sizes)) == (5, 1e-2, 3)
    other = mezo_lora.build(tiny_task_model(), seed=5)
    assert other.state()["step_sizes"].shape == (0,)
    other.load_state(state)
    method.step(random_batch(seed=3), 1e-2)  # what was given is a copy
    assert other.state().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in other.state().items())
    other.step(random_batch(seed=3), 1e-2)
    assert all(torch.equal(tensor, method.state()[key]) for key, tensor in other.state().items())


def test_a_log_is_a_safetensors_file_of_float32_with_seed_and_eps_to_the_bit(tmp_path):
    ReplayLog(seed=12, eps=0.1, step_sizes=(0.5, -2.0)).save(tmp_path / "log")
    with safe_open(str(tmp_path / "log"), framework="pt") as file:
        assert file.metadata() == {"seed": "12", "eps": "0x1.999999999999ap-4"}
        assert file.get_tensor("step_sizes").dtype == torch.float32
        assert file.get_tensor("step_sizes").tolist() == [0.5, -2.0]


@pytest.mark.parametrize(
    ("tensors", "header"),
    [
        ({"other": torch.ones(1)}, {"seed": "1", "eps": "0x1p-4"}),
        ({"step_sizes": torch.ones(1)}, {"eps": "0x1p-4"}),
        ({"step_sizes": torch.ones(1)}, {"seed": "1"}),
        ({"step_sizes": torch.ones(1)}, {"seed": "one", "eps": "0x1p-4"}),
        ({"step_sizes": torch.ones(1)}, None),
        (None, None),
    ],
)
def test_a_file_that_lacks_a_part_of_a_log_is_refused_by_its_name(tmp_path, tensors, header):
    if tensors is not None:
        save_file(tensors, str(tmp_path / "log"), metadata=header)
    with pytest.raises(BadInput, match=r"log: not a replay log \(.*Name the replay.safetensors of a MeZO run"):
        ReplayLog.load(tmp_path / "log")


@torch.no_grad()
def test_a_replay_walks_as_training_walked():
    weights, expected = {"w": torch.ones(40)}, torch.ones(40)
    replay(weights, ReplayLog(seed=3, eps=1e-2, step_sizes=(0.5, -0.25)))
    for step, size in enumerate((0.5, -0.25)):
        z = torch.randn(40, generator=torch.Generator().manual_seed(derived_seed(3, "z", step)))
        expected = expected - size * z
    torch.testing.assert_close(weights["w"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_weight_too_coarse_is_named_with_its_type(build, dtype):
    model = tiny_task_model(dtype=getattr(torch, dtype))
    name = "mezo" if build is mezo.build else "mezo-lora"
    with pytest.raises(BadInput, match=f"{name}: '.*' is {dtype}, too coarse"):
        build(model, seed=0)


@pytest.mark.parametrize("build", BUILDS)
def test_nothing_is_kept_for_a_backward_pass_even_where_weights_ask_for_one(build):
    model = tiny_task_model()
    method = build(model, seed=0)
    model.requires_grad_(True)
    assert not method.logits(random_batch()).requires_grad
    with SavedActivations(model.parameters()) as saved:
        method.step(random_batch(), 1e-2)
    assert saved.peak_bytes == 0


def test_a_weight_that_asks_for_a_gradient_is_perturbed_too():
    weight = torch.nn.Parameter(torch.zeros(3))
    perturb([weight], 5, 2.0)
    assert torch.equal(weight.detach(), 2.0 * torch.randn(3, generator=torch.Generator().manual_seed(5)))


def test_seed_and_eps_of_a_run_stay_what_they_were():
    with pytest.raises(FrozenInstanceError):
        ReplayLog(seed=1, eps=0.1, step_sizes=()).seed = 2
