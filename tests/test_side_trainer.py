"""The server's steps: two halves are a whole, prediction differences by their formulas; a ledger touches nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mobillm_kit.methods import load_method
from mobillm_kit.methods.backprop import Backprop
from mobillm_kit.server.side_trainer import FLOOR, SideTrainer
from mobillm_kit.training.ledger import storage_bytes
from tests.builders import random_batch, tiny_task_model

SIDES = [("bert", "mobillm-full-width"), ("opt", "mobillm-ladder")]


def server_and_upload(family: str, name: str):
    method = load_method(name)(tiny_task_model(family), seed=0)
    return method.server, method.device.upload(random_batch())


def weights(server: SideTrainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in server.parameters.values()]


def equal(ours, theirs) -> bool:
    return all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize(("family", "name"), SIDES)
def test_the_two_halves_of_a_step_are_the_whole(family, name):
    (whole, upload), (halves, _) = server_and_upload(family, name), server_and_upload(family, name)
    for _ in range(2):
        whole.train(upload, 0.01)
        logits = halves.propose(upload)
        assert not logits.requires_grad
        with torch.enable_grad():
            wanted = logits.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(wanted, upload.labels.long()), wanted)
        halves.accept(gradient, 0.01)
    assert equal(weights(whole), weights(halves))
    with pytest.raises(AssertionError):
        halves.accept(gradient, 0.01)


@pytest.mark.parametrize(("family", "name"), SIDES)
def test_what_is_judged_after_prediction_differences_is_the_start_plus_the_change(family, name):
    server, upload = server_and_upload(family, name)
    start = server.start_logits(upload)
    assert torch.allclose(start, server.logits(upload), atol=1e-6)  # the side network starts as nothing
    probabilities = start.softmax(dim=1)
    residual = F.one_hot(upload.labels.long(), start.shape[1]) - probabilities
    for _ in range(60):
        server.train_residual(upload, residual, 0.05)
    assert torch.equal(server.start_logits(upload), start)
    change = server.logits(upload) - start
    expected = (probabilities + change).clamp(min=1e-6).log()
    assert torch.allclose(server.residual_logits(upload), expected, atol=1e-6)
    assert change.abs().max() > 0.1
    for judged in (server.start_logits(upload), server.logits(upload), server.residual_logits(upload)):
        assert not judged.requires_grad


def test_a_probability_below_the_floor_counts_as_the_floor():
    server, upload = server_and_upload("bert", "mobillm-full-width")
    away = -10 * F.one_hot(upload.labels.long(), server.start_logits(upload).shape[1]).float()
    for _ in range(200):
        server.train_residual(upload, away, 0.05)
    judged = server.residual_logits(upload)
    assert judged.min() == torch.tensor(FLOOR).log()
    assert FLOOR == 1e-6


@pytest.mark.parametrize(("family", "name"), SIDES)
def test_counting_memory_trains_nothing_and_needs_no_gradient_of_every_weight(family, name):
    server, upload = server_and_upload(family, name)
    before = weights(server)
    extra = torch.nn.Parameter(torch.ones(3))
    server.parameters["unused"] = extra
    counted = server.count_memory(upload)
    del server.parameters["unused"]
    assert equal(before, weights(server))
    assert all(parameter.grad is None for parameter in server.parameters.values())
    trained = storage_bytes(server.parameters.values()) + extra.nbytes
    assert (counted.gradients_bytes, counted.optimizer_bytes) == (trained, 2 * trained)
    assert counted.messages_bytes == upload.n_bytes
    assert counted.weights_bytes == storage_bytes([*server.model.parameters(), *server.model.buffers()])


def test_with_an_average_steps_are_taken_at_the_weights_and_the_average_is_what_judges_and_is_kept():
    shape = {"normalization": "layer", "pooling": "attention", "heads": 4}
    plain, averaged, again = (
        load_method("mobillm-full-width")(tiny_task_model("bert"), seed=0, averaging=beta, **shape)
        for beta in (0.0, 0.5, 0.5)
    )
    upload = plain.device.upload(random_batch())
    average = {name: weight.detach().clone() for name, weight in plain.server.parameters.items()}
    for _ in range(3):
        losses = {method.server.train(upload, 0.05) for method in (plain, averaged)}
        assert len(losses) == 1
        average = {name: (mean + plain.server.parameters[name].detach()) / 2 for name, mean in average.items()}
    assert equal(averaged.server.stepped.values(), plain.server.parameters.values())
    for name, kept in averaged.trained().items():
        torch.testing.assert_close(kept, average[name])
    assert not torch.allclose(averaged.server.logits(upload), plain.server.logits(upload), atol=1e-3)
    again.load_state(averaged.state())
    assert {method.server.train(upload, 0.05) for method in (averaged, again)} != losses
    assert equal(averaged.trained().values(), again.trained().values())
    with torch.no_grad():
        for name, weight in plain.server.parameters.items():
            weight.copy_(averaged.trained()[name])
    assert torch.equal(averaged.server.logits(upload), plain.server.logits(upload))
    ours, theirs = (method.server.count_memory(upload) for method in (averaged, plain))
    assert ours.weights_bytes - theirs.weights_bytes == ours.gradients_bytes == theirs.gradients_bytes


def test_the_head_of_the_start_is_a_copy_that_nothing_trains():
    server, upload = server_and_upload("bert", "mobillm-full-width")
    start = server.start_logits(upload)
    with torch.no_grad():
        for parameter in server.model.head.parameters():
            parameter.add_(1.0)
    assert torch.equal(server.start_logits(upload), start)
    assert not any(parameter.requires_grad for parameter in server._start_head.parameters())


def test_nothing_decays_unless_it_is_asked_for():
    server, upload = server_and_upload("bert", "mobillm-full-width")
    plain = SideTrainer(server.model)
    before = weights(plain)
    plain.train(replace(upload, activations=tuple(torch.zeros_like(tap) for tap in upload.activations)), 0.01)
    moved = [not torch.equal(old, new) for old, new in zip(before, weights(plain), strict=True)]
    assert not all(moved)  # what gets no gradient stays


# ---------------------------------------------------------------------- the methods that train on one machine


def backprop(**options) -> tuple[Backprop, torch.nn.Parameter]:
    model = tiny_task_model("opt")
    unused = torch.nn.Parameter(torch.ones(3))
    weights = {"norm": model.backbone.norm.weight, "unused": unused}
    return Backprop("norm", model, weights, model.logits, **options), unused


def test_a_step_of_backprop_counts_its_samples_and_judges_without_gradient():
    method, unused = backprop()
    batch = random_batch()
    result = method.step(batch, 0.01)
    assert (result.forwards, result.bytes_sent) == (len(batch.labels), 0)
    assert torch.equal(unused, torch.ones(3))
    assert not method.logits(batch).requires_grad
    assert method._trained.optimizer.param_groups[0]["weight_decay"] == 0.0
    assert backprop(weight_decay=0.1)[0]._trained.optimizer.param_groups[0]["weight_decay"] == 0.1


def test_the_ledger_of_backprop_counts_what_the_loss_does_not_reach_too():
    method, unused = backprop()
    (counted,) = method.count_memory(random_batch())
    trained = unused.nbytes + method.trained()["norm"].nbytes
    assert (counted.gradients_bytes, counted.optimizer_bytes) == (trained, 2 * trained)
