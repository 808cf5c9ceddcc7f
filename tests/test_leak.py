"""What a server can read back from activations, residuals and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mobillm_kit.device.inversion import NearestToken, labels_by_sign, recovered
from mobillm_kit.errors import BadInput
from tests.builders import random_batch, tiny_task_model


@pytest.fixture(scope="module")
def backbone():
    return tiny_task_model().backbone


def state(backbone, batch, layer):
    with torch.no_grad():
        return list(backbone.hidden_states(batch.input_ids, batch.attention_mask))[layer]


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("name", ["opt", "llama"])
def test_the_embedding_gives_every_token_back(name, pad):
    backbone = tiny_task_model(name).backbone
    batch = random_batch(rows=6, length=12, pad=pad)
    found = NearestToken(backbone, 2, 0).read(state(backbone, batch, 0), batch.attention_mask)
    assert recovered(found, batch.input_ids, batch.attention_mask) == 1.0


def test_activations_of_other_texts_give_nothing_back(backbone):
    """The negative control: the same attack on somebody else's text reads that text."""
    batch, other = random_batch(rows=6, length=12, seed=0), random_batch(rows=6, length=12, seed=1)
    found = NearestToken(backbone, 2, 0).read(state(backbone, other, 0), other.attention_mask)
    assert recovered(found, batch.input_ids, batch.attention_mask) < 0.1


def test_noise_gives_nothing_back(backbone):
    batch = random_batch(rows=6, length=12)
    noise = torch.randn(6, 12, backbone.width, generator=torch.Generator().manual_seed(0))
    found = NearestToken(backbone, 2, 0).read(noise, batch.attention_mask)
    assert recovered(found, batch.input_ids, batch.attention_mask) < 0.15


def test_a_later_layer_is_read_with_its_own_table(backbone):
    """Every text here is the first token and one more: the very states that the attacker has made."""
    ids = torch.tensor([[2, token] for token in range(20, 40)])
    mask = torch.ones_like(ids)
    (states,) = backbone.taps(ids, mask, layers=[2])
    assert torch.equal(NearestToken(backbone, 2, 2).read(states, mask)[:, 1], ids[:, 1])


def test_padding_is_not_counted():
    found, truth = torch.tensor([[1, 2, 9]]), torch.tensor([[1, 3, 0]])
    assert recovered(found, truth, torch.tensor([[1, 1, 0]])) == 0.5


def test_another_width_is_refused(backbone):
    with pytest.raises(BadInput, match="width 3"):
        NearestToken(backbone, 2, 0).read(torch.zeros(1, 2, 3), torch.ones(1, 2))


def test_the_sign_of_prediction_differences_gives_every_label_away():
    generator = torch.Generator().manual_seed(0)
    logits, labels = 9 * torch.randn(500, 4, generator=generator), torch.randint(0, 4, (500,), generator=generator)
    assert (logits.argmax(1) == labels).float().mean() < 0.5  # it is not the model's knowledge
    assert torch.equal(labels_by_sign(F.one_hot(labels, 4) - logits.softmax(1)), labels)


def test_so_does_the_losss_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 4, generator=generator).requires_grad_()
    labels = torch.randint(0, 4, (500,), generator=generator)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), logits)
    assert torch.equal(labels_by_sign(-gradient), labels)
