"""What the device sends: which tokens, and which layers are worth sending."""

from __future__ import annotations

import pytest
import torch

from mobillm_kit.device.forward import Device, farthest_tokens
from mobillm_kit.errors import BadInput
from mobillm_kit.side.adapter import gate_shares, layers_by_gate
from mobillm_kit.side.full_width import FullWidthSide
from mobillm_kit.side.ladders import LadderSide
from tests.builders import random_batch, tiny_task_model


@pytest.fixture(scope="module")
def backbone():
    return tiny_task_model().backbone


def states_of(backbone, batch):
    with torch.no_grad():
        return list(backbone.hidden_states(batch.input_ids, batch.attention_mask))


# ---------------------------------------------------------------------- tokens


def test_the_farthest_tokens_by_hand():
    first = torch.zeros(1, 4, 2)
    last = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 0.5]]])
    mask, position = torch.ones(1, 4), torch.tensor([3])
    assert farthest_tokens(first, last, mask, position, 1).tolist() == [[3]]
    assert farthest_tokens(first, last, mask, position, 2).tolist() == [[1, 3]]
    assert farthest_tokens(first, last, mask, position, 3).tolist() == [[1, 2, 3]]
    assert farthest_tokens(first, last, mask, position, 9).tolist() == [[0, 1, 2, 3]]


def test_padding_is_never_taken_before_a_real_token(backbone):
    batch = random_batch(rows=6, length=9)
    states = states_of(backbone, batch)
    kept = farthest_tokens(states[0], states[-1], batch.attention_mask, batch.positions, 5)
    for row in range(6):
        assert batch.positions[row] in kept[row]
        assert batch.attention_mask[row][kept[row]].all()


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_what_is_sent_are_the_backbones_own_states_of_those_tokens(backbone, pad, k):
    batch = random_batch(rows=5, length=9, pad=pad)
    states = states_of(backbone, batch)
    upload = Device(backbone, (1, 2), one_token=False, top_tokens=k).upload(batch)
    kept = farthest_tokens(states[0], states[-1], batch.attention_mask, batch.positions, k)
    for row in range(5):
        assert torch.equal(upload.activations[1][row], states[2][row][kept[row]])
        here = upload.positions[row].item()
        assert torch.equal(upload.activations[0][row, here], states[1][row, batch.positions[row]])
        assert upload.mask[row, here] == 1


def test_with_k_one_it_is_the_prediction_token_alone(backbone):
    batch = random_batch()
    one = Device(backbone, (1, 2), one_token=True).upload(batch)
    top = Device(backbone, (1, 2), one_token=False, top_tokens=1).upload(batch)
    assert all(torch.equal(a, b) for a, b in zip(one.activations, top.activations, strict=True))


def test_with_k_of_the_whole_text_nothing_is_left_out(backbone):
    batch = random_batch()
    every = Device(backbone, (1, 2), one_token=False).upload(batch)
    top = Device(backbone, (1, 2), one_token=False, top_tokens=batch.input_ids.shape[1]).upload(batch)
    assert all(torch.equal(a, b) for a, b in zip(every.activations, top.activations, strict=True))
    assert torch.equal(every.mask, top.mask)


def test_fewer_tokens_are_fewer_bytes(backbone):
    batch = random_batch(rows=4, length=9)
    sizes = [Device(backbone, (1, 2), one_token=False, top_tokens=k).upload(batch).n_bytes for k in (1, 2, 4, 9)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(("k", "one"), [(0, False), (-1, False), (3, True)])
def test_a_k_that_is_none_is_refused(backbone, k, one):
    with pytest.raises(BadInput, match="top_tokens"):
        Device(backbone, (1,), one_token=one, top_tokens=k)


# ---------------------------------------------------------------------- layers


def set_gates(side, *alphas):
    with torch.no_grad():
        side.gates.copy_(torch.tensor(alphas))
    return side


def test_shares_of_a_fresh_side_network_by_hand():
    """mu = 1/2 everywhere: the last enters with a half, the one before with a quarter, the first takes what is left."""
    assert gate_shares(FullWidthSide(8, (1, 2, 3, 4), rank=2)) == pytest.approx((0.125, 0.125, 0.25, 0.5))


@pytest.mark.parametrize("side", [FullWidthSide(8, (1, 2, 3, 4, 5), rank=2), LadderSide(8, (1, 2, 3, 4, 5))])
def test_shares_sum_to_one_whatever_the_gates(side):
    set_gates(side, -1.2, 2.0, 0.05, -0.4)
    assert sum(gate_shares(side)) == pytest.approx(1.0)


def test_shares_are_what_the_side_state_is_made_of():
    """Without adapters the state is linear in the taps: a tap of ones with zeros elsewhere gives its share."""
    side = set_gates(FullWidthSide(4, (1, 2, 3), rank=2), 0.7, -0.6)
    for place, share in enumerate(gate_shares(side)):
        taps = [torch.full((1, 1, 4), float(index == place)) for index in range(3)]
        state = taps[0]
        for tap, gate in zip(taps[1:], side.gates.sigmoid(), strict=True):
            state = (1 - gate) * tap + gate * state
        assert state[0, 0, 0].item() == pytest.approx(share, abs=1e-6)


def test_the_heaviest_layers_are_chosen_and_the_last_one_always():
    side = set_gates(FullWidthSide(8, (1, 2, 3, 4), rank=2), -6.0, 3.0, 4.0)
    assert layers_by_gate(side, 1) == (4,)
    assert layers_by_gate(side, 2) == (2, 4)
    assert layers_by_gate(side, 4) == (1, 2, 3, 4)


def test_a_ladders_gates_are_ten_times_as_steep():
    wide, steep = FullWidthSide(8, (1, 2), rank=2), LadderSide(8, (1, 2))
    assert gate_shares(set_gates(wide, 1.0)) == pytest.approx(gate_shares(set_gates(steep, 0.1)))


@pytest.mark.parametrize("count", [0, 5])
def test_more_layers_than_there_are_is_refused(count):
    with pytest.raises(BadInput, match=f"{count} of 4"):
        layers_by_gate(FullWidthSide(8, (1, 2, 3, 4), rank=2), count)
