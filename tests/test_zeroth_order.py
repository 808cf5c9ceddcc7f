"""MeZO and P-RGE: estimates that agree with gradients and with each other, and runs that can be made again."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mobillm_kit.errors import BadInput
from mobillm_kit.methods import mezo, mezo_lora, prge
from mobillm_kit.methods.dual_forward import DualForwardLinear
from mobillm_kit.methods.zeroth_order import ReplayLog, perturb, replay
from tests.builders import random_batch, tiny_task_model

DOUBLE = torch.float64


def snapshot(method) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in method.trained().items()}


# ---------------------------------------------------------------------- MeZO


def test_plus_minus_plus_restores_the_weights_within_rounding():
    eps, weights = 1e-3, [torch.randn(50, 40, generator=torch.Generator().manual_seed(0))]
    before = weights[0].clone()
    for scale in (eps, -2 * eps, eps):
        perturb(weights, seed=7, scale=scale)
    largest = max(before.abs().max().item(), 5 * eps)
    assert (weights[0] - before).abs().max() <= 3 * torch.finfo(torch.float32).eps * largest
    perturb(weights, seed=7, scale=eps)
    assert (weights[0] - before).abs().max() > eps / 2  # a perturbation does move them


def test_no_step_touches_the_global_generator():
    before = torch.get_rng_state()
    for build in (mezo.build, mezo_lora.build, prge.build):
        method = build(tiny_task_model(), seed=3)
        method.step(random_batch(), 1e-3)
        method.logits(random_batch())
    assert torch.equal(before, torch.get_rng_state())


def test_the_projected_gradient_is_the_directional_derivative():
    """In float64: (g per step) equals z · dL/dw, from autograd, to the order of eps²."""
    model, batch, seed = tiny_task_model(dtype=DOUBLE), random_batch(), 11
    method = mezo.build(model, seed=seed, eps=1e-7)  # so small that no ReLU changes sides
    weights = list(method.trained().values())
    model.requires_grad_(True)
    gradients = torch.autograd.grad(
        F.cross_entropy(model.logits(batch), batch.labels), list(model.parameters()), allow_unused=True
    )
    model.requires_grad_(False)
    moved = [weight.clone() for weight in weights]
    perturb(moved, method_seed(seed), 1.0)
    slope = sum(((after - w) * g).sum() for after, w, g in zip(moved, weights, gradients, strict=True) if g is not None)
    method.step(batch, lr=1.0)
    assert method.log.step_sizes[0] == pytest.approx(slope.item(), rel=1e-4)


def method_seed(seed: int) -> int:
    from mobillm_kit.methods.zeroth_order import step_seed

    return step_seed(seed, 0)


def test_the_update_goes_against_g():
    method, batch = mezo.build(tiny_task_model(dtype=DOUBLE), seed=0, eps=1e-4), random_batch(rows=8)
    losses = [method.step(batch, 1e-3).loss for _ in range(150)]
    assert sum(losses[-10:]) / 10 < 0.8 * losses[0]


@pytest.mark.parametrize("build", [mezo.build, mezo_lora.build])
def test_a_run_is_its_seed_and_its_gs(tmp_path, build):
    trained = build(tiny_task_model(), seed=5)
    for step in range(30):
        trained.step(random_batch(seed=step), lr=1e-3 * (1 - step / 30))
    trained.log.save(tmp_path / "replay.safetensors")
    log = ReplayLog.load(tmp_path / "replay.safetensors")
    again = build(tiny_task_model(), seed=5)
    start = snapshot(again)
    replay(again.trained(), log)
    for name, tensor in trained.trained().items():
        assert torch.equal(again.trained()[name], tensor), name
    assert any(not torch.equal(again.trained()[name], tensor) for name, tensor in start.items())


def test_twenty_thousand_steps_are_saved_in_a_tenth_of_a_megabyte(tmp_path):
    file = tmp_path / "replay.safetensors"
    sizes = tuple(torch.randn(20_000, generator=torch.Generator().manual_seed(0)).tolist())
    ReplayLog(seed=2**63 - 1, eps=1e-3, step_sizes=sizes).save(file)
    assert file.stat().st_size < 100_000
    assert ReplayLog.load(file) == ReplayLog(2**63 - 1, 1e-3, sizes)


def test_a_file_that_is_no_log_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"no log")
    with pytest.raises(BadInput, match="not a replay log"):
        ReplayLog.load(tmp_path / "x")


def test_mezo_lora_leaves_the_backbone_bit_equal():
    model = tiny_task_model()
    method = mezo_lora.build(model, seed=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for step in range(10):
        method.step(random_batch(seed=step), 1e-2)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(".lora_" in key for key in changed)


def test_an_eps_that_cannot_be_is_refused():
    for build in (mezo.build, mezo_lora.build, prge.build):
        with pytest.raises(BadInput, match="eps is 0"):
            build(tiny_task_model(), seed=0, eps=0)


# ---------------------------------------------------------------------- P-RGE

MODES = [(True, True), (True, False), (False, True), (False, False)]


@pytest.mark.parametrize("name", ["opt", "llama", "gpt2", "bert"])
def test_the_batched_estimate_equals_the_sequential_one(name):
    """Float64, the same z: one forward of 2q copies, or 2q forwards of one."""
    kind = "encoder" if name == "bert" else "decoder"
    runs = [
        prge.build(tiny_task_model(name, dtype=DOUBLE), seed=3, q=3, inner=inner, outer=outer) for inner, outer in MODES
    ]
    for step in range(4):
        batch = random_batch(kind=kind, seed=step)
        results = [run.step(batch, 0.1) for run in runs]
        assert len({result.forwards for result in results}) == 1
        estimates = [run.state()["g"] for run in runs]
        assert estimates[0].abs().min() > 0
        for estimate in estimates[1:]:
            torch.testing.assert_close(estimate, estimates[0], rtol=1e-9, atol=1e-11)
    for other in runs[1:]:
        for key, tensor in runs[0].trained().items():
            torch.testing.assert_close(other.trained()[key], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("mode", "rows"), list(zip(MODES, ([48], [12] * 4, [24] * 2, [6] * 8), strict=True)))
def test_forward_passes_share_what_they_say(mode, rows, monkeypatch):
    """Both signs and all perturbations in one, or each in a pass of its own: rows of each forward of 6 texts, q = 4."""
    method, seen = prge.build(tiny_task_model(), seed=0, q=4, inner=mode[0], outer=mode[1]), []
    forward = method._model.logits
    monkeypatch.setattr(method._model, "logits", lambda batch: seen.append(batch.rows) or forward(batch))
    method.step(random_batch(rows=6), 0.1)
    assert seen == rows


def test_a_copy_of_the_layer_is_plain_lora_with_that_b():
    generator = torch.Generator().manual_seed(0)
    base = torch.nn.Linear(6, 5).double()
    a = torch.randn(2, 6, generator=generator, dtype=DOUBLE)
    layer = DualForwardLinear(base, a, 0.5, q=3)
    layer.copies = torch.randn(3, 5, 2, generator=generator, dtype=DOUBLE)
    x = torch.randn(3 * 4, 7, 6, generator=generator, dtype=DOUBLE)
    y = layer(x)
    for copy in range(3):
        rows = slice(4 * copy, 4 * copy + 4)
        torch.testing.assert_close(y[rows], base(x[rows]) + 0.5 * x[rows] @ a.T @ layer.copies[copy].T)


def test_the_master_weight_follows_sgd_with_g():
    """(B0 + B1) / 2 after each delayed update, for every perturbation, against plain SGD on the same z and g."""
    generator = torch.Generator().manual_seed(0)
    q, eps, lr = 3, 1e-2, 0.3
    layer = DualForwardLinear(torch.nn.Linear(6, 5).double(), torch.zeros(2, 6, dtype=DOUBLE), 1.0, q)
    master, g = torch.zeros(5, 2, dtype=DOUBLE), torch.zeros(q, dtype=DOUBLE)
    for _ in range(6):
        z = torch.randn(q, 5, 2, generator=generator, dtype=DOUBLE)
        layer.advance(g, lr, eps, z)
        for j in range(q):
            torch.testing.assert_close((layer.up[j] + layer.down[j]) / 2, master, rtol=0, atol=1e-12)
            torch.testing.assert_close((layer.up[j] - layer.down[j]) / 2, eps * z[j], rtol=0, atol=1e-12)
        g = torch.randn(q, generator=generator, dtype=DOUBLE)
        master = master - lr * (g[:, None, None] * z).mean(dim=0)
        torch.testing.assert_close(layer.master(g, lr, eps), master, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["opt", "bert"])
def test_fresh_dual_forwarding_layers_change_nothing(name):
    batch = random_batch(kind="encoder" if name == "bert" else "decoder")
    untouched = tiny_task_model(name).logits(batch)
    torch.testing.assert_close(prge.build(tiny_task_model(name), seed=0).logits(batch), untouched, rtol=0, atol=1e-6)


def test_prge_leaves_the_base_weights_bit_equal():
    model = tiny_task_model()
    before = {key: value.clone() for key, value in model.named_parameters()}
    method = prge.build(model, seed=0)
    for step in range(10):
        method.step(random_batch(seed=step), 1e-1)
    after = {key.replace(".base.", "."): value for key, value in model.named_parameters()}
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert any(tensor.abs().max() > 0 for tensor in method.trained().values())


def test_prge_learns_an_encoders_classifier_too():
    method = prge.build(tiny_task_model("bert"), seed=0)
    for step in range(3):
        method.step(random_batch(kind="encoder", seed=step), 1e-1)
    assert method.trained()["classifier.b"].abs().max() > 0


def test_prge_goes_down():
    method, batch = prge.build(tiny_task_model(dtype=DOUBLE), seed=0, q=8), random_batch(rows=8)
    losses = [method.step(batch, 1.0).loss for _ in range(60)]
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]
    assert math.isfinite(losses[-1])


@pytest.mark.parametrize("options", [{"q": 0}, {"rank": 0}, {"targets": ["nothing"]}])
def test_settings_that_cannot_be_are_refused(options):
    with pytest.raises(BadInput, match=r"q is 0|rank is 0|no layer named"):
        prge.build(tiny_task_model(), seed=0, **options)
