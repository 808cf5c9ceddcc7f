"""The split step against formulas written out in plain tensors: nothing here calls the code that it checks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mobillm_kit.methods import METHODS, load_method
from mobillm_kit.quant.parcels import Upload
from mobillm_kit.server.side_trainer import SideTrainer
from mobillm_kit.side.adapter import attach, new_adapter
from tests.builders import random_batch, tiny_task_model

LR = 1e-2


def stirred(module: torch.nn.Module, seed: int = 1) -> None:
    """Every parameter moved away from its start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def full_width(p: dict[str, torch.Tensor], taps: list[torch.Tensor]) -> torch.Tensor:
    """Equation 1 with adapters, minus the same recursion without."""
    state = plain = taps[0]
    for i, tap in enumerate(taps):
        mu = 1 / (1 + torch.exp(-p["gates"][i]))
        x = (1 - mu) * tap + mu * state
        bottleneck = F.gelu(x @ p[f"down.{i}.weight"].T + p[f"down.{i}.bias"])
        state, plain = x + bottleneck @ p[f"up.{i}.weight"].T, (1 - mu) * tap + mu * plain
    return state - plain


def norm(p: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(p: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def ladder_block(p: dict[str, torch.Tensor], at: str, x: torch.Tensor, mask: torch.Tensor, causal: bool, heads: int):
    """Pre-norm attention and feed-forward, text by text, token by token, head by head."""
    qkv = linear(p, f"{at}.qkv", norm(p, f"{at}.attention_norm", x))
    w = x.shape[-1]
    size, mixed = w // heads, torch.zeros_like(x)
    for row in range(x.shape[0]):
        for t in range(x.shape[1]):
            seen = [s for s in range(x.shape[1]) if s == t or (mask[row, s] and (s < t or not causal))]
            for head in range(heads):
                q, k, v = (qkv[row][:, part * w + head * size : part * w + (head + 1) * size] for part in range(3))
                weights = torch.softmax(torch.stack([q[t] @ k[s] for s in seen]) / size**0.5, 0)
                mixed[row, t, head * size : (head + 1) * size] = weights @ v[seen]
    x = x + linear(p, f"{at}.out", mixed)
    return x + linear(p, f"{at}.narrow", F.gelu(linear(p, f"{at}.wide", norm(p, f"{at}.mlp_norm", x))))


def ladder(p: dict[str, torch.Tensor], taps: list[torch.Tensor], mask: torch.Tensor, causal: bool, heads: int = 2):
    state = None
    for i, tap in enumerate(taps):
        fed = linear(p, f"down.{i}", norm(p, f"norms.{i}", tap))
        gate = 1 / (1 + torch.exp(-10 * p["gates"][i]))
        state = fed if state is None else gate * state + (1 - gate) * fed
        state = ladder_block(p, f"blocks.{i}", state, mask, causal, heads)
    return norm(p, "norm", state) @ p["up.weight"].T


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


def test_prediction_differences_are_trained_by_the_mean_square_written_out():
    """Two steps of AdamW on mean (f - r)^2, f the change of the logits since step 0: figures and weights."""
    model = tiny_task_model()
    adapter = new_adapter(model.backbone, kind="full-width", n_labels=2, rank=4)
    tuned = attach(adapter, model.backbone, model.head)
    batch = random_batch()
    taps = model.backbone.taps(batch.input_ids, batch.attention_mask, layers=(1, 2, 3))
    upload = Upload(0, tuple(taps), batch.attention_mask, batch.positions, batch.labels)
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
