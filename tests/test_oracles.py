"""The split step against formulas written out in plain tensors: nothing here calls the code that it checks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mobillm_kit.methods import METHODS, load_method
from mobillm_kit.quant.parcels import Upload
from mobillm_kit.server.side_trainer import SideTrainer
from mobillm_kit.side.adapter import attach, new_adapter
from mobillm_kit.side.description import SideSpec
from mobillm_kit.side.full_width import FullWidthSide
from mobillm_kit.side.ladders import LadderSide, PrunedLadderSide
from tests.builders import random_batch, tiny_task_model

LR = 1e-2


def stirred(module: torch.nn.Module, seed: int = 1) -> None:
    """Every parameter moved away from its start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def full_width(p: dict[str, Tensor], taps: list[Tensor]) -> Tensor:
    """Equation 1 with adapters, minus the same recursion without."""
    state = plain = taps[0]
    for i, tap in enumerate(taps):
        mu = 1 / (1 + torch.exp(-p["gates"][i - 1])) if i else 0.0
        x = (1 - mu) * tap + mu * state
        read = norm(p, f"norms.{i}", x) if f"norms.{i}.weight" in p else x
        bottleneck = F.gelu(read @ p[f"down.{i}.weight"].T + p[f"down.{i}.bias"])
        state, plain = x + bottleneck @ p[f"up.{i}.weight"].T, (1 - mu) * tap + mu * plain
    return state - plain


def norm(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, causal: bool, heads: int) -> Tensor:
    """Text by text, token by token, head by head; a padding token sees itself too."""
    size, mixed = q.shape[-1] // heads, torch.zeros_like(q)
    for row, t, head in itertools.product(*(range(n) for n in (*q.shape[:2], heads))):
        seen = [s for s in range(q.shape[1]) if s == t or (mask[row, s] and (s < t or not causal))]
        at = slice(head * size, (head + 1) * size)
        weights = torch.softmax(torch.stack([q[row, t, at] @ k[row, s, at] for s in seen]) / size**0.5, 0)
        mixed[row, t, at] = weights @ v[row, seen, at]
    return mixed


def ladder_block(p: dict[str, Tensor], at: str, x: Tensor, mask: Tensor, causal: bool) -> Tensor:
    q, k, v = linear(p, f"{at}.qkv", norm(p, f"{at}.attention_norm", x)).chunk(3, dim=-1)
    x = x + linear(p, f"{at}.out", attention(q, k, v, mask, causal=causal, heads=2))
    return x + linear(p, f"{at}.narrow", F.gelu(linear(p, f"{at}.wide", norm(p, f"{at}.mlp_norm", x))))


def ladder(p: dict[str, Tensor], taps: list[Tensor], mask: Tensor, causal: bool) -> Tensor:
    state = None
    for i, tap in enumerate(taps):
        fed = linear(p, f"down.{i}", norm(p, f"norms.{i}", tap))
        gate = 1 / (1 + torch.exp(-10 * p["gates"][i - 1])) if i else 0.0
        state = ladder_block(p, f"blocks.{i}", fed if state is None else gate * state + (1 - gate) * fed, mask, causal)
    return norm(p, "norm", state) @ p["up.weight"].T


def post_norm_block(p: dict[str, Tensor], at: str, x: Tensor, mask: Tensor) -> Tensor:
    q, k, v = (linear(p, f"{at}.{name}", x) for name in ("query", "key", "value"))
    x = norm(p, f"{at}.attention_norm", x + linear(p, f"{at}.out", attention(q, k, v, mask, causal=False, heads=2)))
    return norm(p, f"{at}.mlp_norm", x + linear(p, f"{at}.narrow", F.gelu(linear(p, f"{at}.wide", x))))


def copied(width: int, **shape: Any) -> SideSpec:
    """Of blocks between three layers."""
    usual = {"kind": "ladder", "start": "backbone", "layers": [1, 2, 3], "heads": 2, "reduction": 1}
    return SideSpec.of(**{**usual, "width": width, **shape})


def test_a_pruned_ladder_is_fed_by_all_taps_but_the_last_through_its_gates_written_out():
    side = PrunedLadderSide(copied(16, reduction=2, feed_forward=12, norm_eps=1e-5))
    stirred(side)
    generator = torch.Generator().manual_seed(0)
    taps = [torch.randn(2, 5, 16, generator=generator) for _ in range(3)]
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    p = {key: value.detach() for key, value in side.state_dict().items()}
    state = post_norm_block(p, "blocks.0", linear(p, "down.0", taps[0]), mask)
    gate = 1 / (1 + torch.exp(-10 * p["gates"][0]))
    state = post_norm_block(p, "blocks.1", gate * state + (1 - gate) * linear(p, "down.1", taps[1]), mask)
    torch.testing.assert_close(side(taps, mask).detach(), state @ p["up.weight"].T, atol=2e-6, rtol=2e-5)


def test_what_reads_begins_with_unit_variance_what_writes_with_nothing_and_each_gate_at_its_share():
    for side in (
        FullWidthSide(256, [1, 2], rank=64),
        LadderSide(256, [1, 2], reduction=2),
        PrunedLadderSide(copied(256, reduction=2, feed_forward=512)),
        PrunedLadderSide(copied(256, feed_forward=512, gated=(1, 10_000))),
    ):
        for name, module in side.named_modules():
            if isinstance(module, torch.nn.Linear) and name.startswith("up"):
                assert not module.weight.any()
            elif isinstance(module, torch.nn.Linear):
                assert module.weight.std().item() * module.in_features**0.5 == pytest.approx(1, abs=0.03), name
                assert module.bias is None or not module.bias.any()
        share = 1 / (1 + math.exp(-2)) if isinstance(side, PrunedLadderSide) else 0.5
        steep = 1 if side.token_wise else 10
        torch.testing.assert_close(torch.sigmoid(steep * side.gates), torch.full_like(side.gates, share))


@pytest.mark.parametrize("side", ["full-width", "ladder"])
@pytest.mark.parametrize("name", ["opt", "bert"])
def test_the_servers_logits_are_the_head_on_the_last_state_plus_the_side_written_out(name, side):
    model = tiny_task_model(name)
    adapter = new_adapter(model.backbone, kind=side, n_labels=2, rank=4)
    stirred(adapter)
    batch = random_batch(kind=model.backbone.kind)
    mask, taps = batch.attention_mask, model.backbone.taps(batch.input_ids, batch.attention_mask, layers=(1, 2, 3))
    p = {key: value.detach() for key, value in adapter.side.state_dict().items()}
    added = full_width(p, list(taps)) if side == "full-width" else ladder(p, list(taps), mask, name == "opt")
    hidden = taps[-1] + added
    if name == "opt":
        outer = {f"norm.{key}": value.detach() for key, value in model.backbone.norm.state_dict().items()}
        at = norm(outer, "norm", hidden[torch.arange(4), batch.positions])
        expected = at @ model.backbone.lm_head.weight.detach()[[10, 11]].T
    else:
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        expected = linear({k: v.detach() for k, v in adapter.head.state_dict().items()}, "classifier", mean)
    logits = attach(adapter, model.backbone, model.head)(taps, mask, batch.positions).detach()
    assert added[mask.bool()].abs().mean() > 0.01
    torch.testing.assert_close(logits, expected, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("normalization", ["none", "layer"])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_the_full_width_with_norms_and_attention_written_out_begins_as_the_pretrained_model(normalization, pooling):
    model = tiny_task_model("bert")
    shape = {"rank": 4, "heads": 4, "normalization": normalization, "pooling": pooling}
    adapter = new_adapter(model.backbone, n_labels=2, **shape)
    batch = random_batch(kind="encoder")
    mask, taps = batch.attention_mask, model.backbone.taps(batch.input_ids, batch.attention_mask, layers=(1, 2, 3))
    tuned = attach(adapter, model.backbone, model.head)
    assert torch.equal(tuned(taps, mask, batch.positions), model.logits(batch))
    stirred(adapter)
    p = {key: value.detach() for key, value in adapter.state_dict().items()}
    side = {key.removeprefix("side."): value for key, value in p.items() if key.startswith("side.")}
    hidden = taps[-1] + full_width(side, list(taps))
    pooled = torch.zeros(4, 32)
    for row in range(4):
        real = hidden[row, mask[row].bool()]
        for head in range(4):
            part = real[:, 8 * head : 8 * head + 8]
            score = part @ p["head.query"][head] / 8**0.5 if pooling == "attention" else torch.zeros(len(part))
            pooled[row, 8 * head : 8 * head + 8] = torch.softmax(score, 0) @ part
    expected = linear(p, "head.classifier", pooled)
    logits = tuned(taps, mask, batch.positions).detach()
    torch.testing.assert_close(logits, expected, atol=2e-6, rtol=2e-5)
    assert not torch.allclose(logits, model.logits(batch).detach(), atol=1e-2)


def test_prediction_differences_are_trained_by_the_mean_square_written_out():
    """Two steps of AdamW on mean (f - r)^2, f the change of the logits since step 0: figures and weights."""
    model = tiny_task_model()
    adapter = new_adapter(model.backbone, kind="full-width", n_labels=2, rank=4)
    tuned = attach(adapter, model.backbone, model.head)
    batch = random_batch()
    taps = model.backbone.taps(batch.input_ids, batch.attention_mask, layers=(1, 2, 3))
    upload = Upload(tuple(taps), batch.attention_mask, batch.positions, batch.labels)
    start = tuned(taps, batch.attention_mask, batch.positions).detach()
    residual = F.one_hot(batch.labels, 2) - start.softmax(-1)
    own = {n: p.detach().clone() for n, p in tuned.named_parameters() if p.requires_grad}
    moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in own.items()}
    server = SideTrainer(tuned)
    for step in (1, 2, 3):
        leaves = {n: p.clone().requires_grad_() for n, p in own.items()}
        logits = torch.func.functional_call(tuned, leaves, (taps, batch.attention_mask, batch.positions))
        error = logits - start - residual
        loss = (error * error).sum() / error.numel()
        for (n, weight), g in zip(leaves.items(), torch.autograd.grad(loss, list(leaves.values())), strict=True):
            m, v = moments[n] = (0.9 * moments[n][0] + 0.1 * g, 0.999 * moments[n][1] + 0.001 * g * g)
            change = m / (1 - 0.9**step) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            own[n] = (weight - LR * change).detach()
        assert server.train_residual(upload, residual, LR) == pytest.approx(loss.item(), rel=1e-5)
    for n, expected in own.items():
        torch.testing.assert_close(server.parameters[n].detach(), expected, atol=1e-5, rtol=1e-4)


PASSES = {"mezo": 2, "mezo-lora": 2, "p-rge": 2 * 3}


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.trained])
def test_every_method_counts_each_sample_once_for_each_pass_over_it(name):
    options = {"q": 3} if name == "p-rge" else {}
    method = load_method(name)(tiny_task_model(), seed=0, **options)
    for rows in (3, 5):
        result = method.step(random_batch(rows=rows), 1e-4)
        assert result.forwards == PASSES.get(name, 1) * rows
