"""AdamW against its formula, its state against what training goes on from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mobillm_kit.errors import BadInput
from mobillm_kit.training.adamw import ADAM_MOMENTS, Trained

GRADIENTS = [torch.tensor([0.5, -2.0, 0.0]), torch.tensor([-1.0, 0.25, 0.0]), torch.tensor([3.0, 1.0, 0.0])]


def parameters() -> dict[str, nn.Parameter]:
    return {"a": nn.Parameter(torch.tensor([1.0, -1.0, 2.0])), "b": nn.Parameter(torch.tensor([0.5, 0.5, 0.5]))}


def steps(trained: Trained, gradients, lr: float) -> None:
    for gradient in gradients:
        a, b = trained.parameters["a"], trained.parameters["b"]
        trained.descend((a * gradient).sum() + (b * gradient).sum() / 2, lr)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_three_steps_are_those_of_the_formula(decay):
    trained, lr = parameters(), 0.01
    steps(Trained(trained, weight_decay=decay), GRADIENTS, lr)
    w, m, v = torch.tensor([1.0, -1.0, 2.0]).double(), torch.zeros(3).double(), torch.zeros(3).double()
    for t, g in enumerate(GRADIENTS, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - lr * decay * w
        w = w - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    assert (trained["a"].double() - w).abs().max() < 1e-6


def test_what_has_no_gradient_stays_where_it_is_unless_decay_is_asked_for():
    trained = parameters()
    steps(Trained(trained), GRADIENTS, 0.01)
    assert trained["a"][2] == 2.0
    assert trained["b"][2] == 0.5


def test_the_state_is_whole_before_the_first_step_and_gradients_are_gone_after_each():
    trained = parameters()
    under = Trained(trained)
    assert under.optimizer.param_groups[0]["lr"] == 0.0  # a step that nobody gave a rate changes nothing
    state = under.state()
    assert sorted(state) == sorted(f"{kind}/{name}" for kind in ("weight", "step", *ADAM_MOMENTS) for name in "ab")
    for name in "ab":
        assert torch.equal(state[f"weight/{name}"], trained[name])
        assert state[f"step/{name}"] == 0
        assert all(not state[f"{moment}/{name}"].any() for moment in ADAM_MOMENTS)
    steps(under, GRADIENTS[:1], 0.01)
    assert trained["a"].grad is trained["b"].grad is None
    assert not torch.equal(state["weight/a"], trained["a"])  # a copy: training does not reach into it


def test_training_goes_on_from_its_state_to_the_same_bytes():
    first, second = Trained(parameters(), 0.1), Trained(parameters(), 0.1)
    steps(first, GRADIENTS[:2], 0.01)
    second.load_state(first.state())
    for trained in (first, second):
        steps(trained, GRADIENTS[2:], 0.02)
    for name, tensor in first.state().items():
        assert torch.equal(tensor, second.state()[name]), name
    assert second.state()["step/b"] == 3


def test_an_average_of_the_weights_is_its_recursion_and_training_is_as_without_it():
    plain, beta = Trained(parameters()), 0.75
    averaged = Trained(parameters(), averaging=beta)
    expected = {name: tensor.detach().clone() for name, tensor in plain.parameters.items()}
    for gradient in GRADIENTS:
        for trained in (plain, averaged):
            trained.descend((trained.stepped["a"] * gradient).sum() + (trained.stepped["b"] * gradient).sum() / 2, 0.1)
        expected = {name: beta * a + (1 - beta) * plain.parameters[name].detach() for name, a in expected.items()}
    for name, tensor in expected.items():
        assert torch.equal(averaged.stepped[name], plain.parameters[name])
        torch.testing.assert_close(averaged.parameters[name].detach(), tensor)
        assert not torch.allclose(averaged.parameters[name][:2], plain.parameters[name][:2], atol=1e-3)


def test_an_average_goes_on_from_its_state_to_the_same_bytes_and_its_copy_is_counted():
    first, second = (Trained(parameters(), averaging=0.9) for _ in range(2))
    for trained, gradients in ((first, GRADIENTS[:2]), (second, GRADIENTS[:1])):
        for gradient in gradients:
            trained.descend((trained.stepped["a"] * gradient).sum() + (trained.stepped["b"] * gradient).sum(), 0.1)
    second.load_state(first.state())
    for trained in (first, second):
        trained.descend((trained.stepped["a"] * GRADIENTS[2]).sum() + trained.stepped["b"].sum(), 0.1)
    for name, tensor in first.state().items():
        assert torch.equal(tensor, second.state()[name]), name
    assert {f"average/{name}" for name in "ab"} < first.state().keys()
    layer = nn.Linear(3, 2, bias=False)
    trained = Trained(dict(layer.named_parameters()), averaging=0.9)
    counted = trained.count_memory("device", layer, lambda: trained.stepped["weight"].sum())
    assert (counted.weights_bytes, counted.gradients_bytes, counted.optimizer_bytes) == (48, 24, 48)


@pytest.mark.parametrize("averaging", [-0.1, 1.0, float("nan")])
def test_an_average_that_cannot_be_is_refused(averaging):
    with pytest.raises(BadInput, match=f"averaging is {averaging}; it must lie in 0 .. 1"):
        Trained(parameters(), averaging=averaging)


def test_the_ledger_of_a_linear_layer_by_hand():
    """3 x 2 weights in float32; the loss keeps its input of 5 x 3; nothing is trained, no gradient stays."""
    layer, x = nn.Linear(3, 2, bias=False), torch.ones(5, 3)
    trained = Trained(dict(layer.named_parameters()))
    before = layer.weight.detach().clone()
    counted = trained.count_memory("device", layer, lambda: layer(x).sum())
    assert (counted.party, counted.weights_bytes) == ("device", 24)
    assert (counted.gradients_bytes, counted.optimizer_bytes) == (24, 48)
    assert (counted.saved_activations_bytes, counted.messages_bytes) == (60, 0)
    received = trained.count_memory("server", layer, lambda: layer(x).sum(), [x], 60)
    assert (received.party, received.saved_activations_bytes, received.messages_bytes) == ("server", 0, 60)
    assert torch.equal(layer.weight, before)
    assert layer.weight.grad is None


def test_a_step_goes_weight_by_weight_so_that_no_second_copy_of_them_all_is_ever_made():
    assert Trained(parameters()).optimizer.defaults["foreach"] is False


@pytest.mark.parametrize(("key", "count"), [("weight/side.gates", 3), ("weight/head.bias", 3), ("weight/head.bias", 4)])
def test_other_lengths_are_not_taken(key, count):
    trained = Trained({"side.gates": nn.Parameter(torch.zeros(2)), "head.bias": nn.Parameter(torch.zeros(2))})
    with pytest.raises(RuntimeError, match="must match"):
        trained.load_state({**trained.state(), key: torch.zeros(count)})
