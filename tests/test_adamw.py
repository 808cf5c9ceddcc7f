"""AdamW against its formula, its state against what training goes on from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mobillm_kit.training.adamw import ADAM_MOMENTS, adamw, apply_gradients, load_training_state, training_state

GRADIENTS = [torch.tensor([0.5, -2.0, 0.0]), torch.tensor([-1.0, 0.25, 0.0]), torch.tensor([3.0, 1.0, 0.0])]


def parameters() -> dict[str, nn.Parameter]:
    return {"a": nn.Parameter(torch.tensor([1.0, -1.0, 2.0])), "b": nn.Parameter(torch.tensor([0.5, 0.5, 0.5]))}


def steps(trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, gradients, lr: float) -> None:
    for gradient in gradients:
        apply_gradients(optimizer, (trained["a"] * gradient).sum() + (trained["b"] * gradient).sum() / 2, lr)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_three_steps_are_those_of_the_formula(decay):
    trained, lr = parameters(), 0.01
    steps(trained, adamw(trained.values(), weight_decay=decay), GRADIENTS, lr)
    w, m, v = torch.tensor([1.0, -1.0, 2.0]).double(), torch.zeros(3).double(), torch.zeros(3).double()
    for t, g in enumerate(GRADIENTS, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - lr * decay * w
        w = w - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    assert (trained["a"].double() - w).abs().max() < 1e-6


def test_what_has_no_gradient_stays_where_it_is_unless_decay_is_asked_for():
    trained = parameters()
    steps(trained, adamw(trained.values()), GRADIENTS, 0.01)
    assert trained["a"][2] == 2.0
    assert trained["b"][2] == 0.5


def test_the_state_is_whole_before_the_first_step_and_gradients_are_gone_after_each():
    trained = parameters()
    optimizer = adamw(trained.values())
    assert optimizer.param_groups[0]["lr"] == 0.0  # a step that nobody gave a rate changes nothing
    state = training_state(trained, optimizer)
    assert sorted(state) == sorted(f"{kind}/{name}" for kind in ("weight", "step", *ADAM_MOMENTS) for name in "ab")
    for name in "ab":
        assert torch.equal(state[f"weight/{name}"], trained[name])
        assert state[f"step/{name}"] == 0
        assert all(not state[f"{moment}/{name}"].any() for moment in ADAM_MOMENTS)
    steps(trained, optimizer, GRADIENTS[:1], 0.01)
    assert trained["a"].grad is trained["b"].grad is None
    assert not torch.equal(state["weight/a"], trained["a"])  # a copy: training does not reach into it


def test_training_goes_on_from_its_state_to_the_same_bytes():
    first, second = parameters(), parameters()
    one, two = adamw(first.values(), 0.1), adamw(second.values(), 0.1)
    steps(first, one, GRADIENTS[:2], 0.01)
    load_training_state(second, two, training_state(first, one))
    for trained, optimizer in ((first, one), (second, two)):
        steps(trained, optimizer, GRADIENTS[2:], 0.02)
    for name, tensor in training_state(first, one).items():
        assert torch.equal(tensor, training_state(second, two)[name]), name
    assert training_state(second, two)["step/b"] == 3
