"""Heads by hand: what they read, what they draw, what a server gets of them."""

from __future__ import annotations

from inspect import signature

import pytest
import torch

from mobillm_kit.side.heads import LabelWordHead, frozen_linear
from mobillm_kit.side.pooled_head import PooledHead

HIDDEN = torch.tensor([[[1.0, 10.0], [3.0, 30.0], [8.0, 80.0]], [[2.0, 0.0], [4.0, 6.0], [6.0, 3.0]]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])
POSITIONS = torch.tensor([1, 2])


def test_a_mean_is_over_real_tokens_and_one_token_is_the_one_named():
    assert PooledHead(2, 2, pooling="mean").pool(HIDDEN, MASK, POSITIONS).tolist() == [[2.0, 20.0], [4.0, 3.0]]
    assert PooledHead(2, 2, pooling="first").pool(HIDDEN, MASK, POSITIONS).tolist() == [[3.0, 30.0], [6.0, 3.0]]
    words = LabelWordHead(None, None, torch.nn.Linear(2, 5), [1, 4])
    assert words.pool(HIDDEN, MASK, POSITIONS).tolist() == [[3.0, 30.0], [6.0, 3.0]]


def test_a_mean_weighted_by_attention_begins_as_the_mean_to_the_bit_and_is_a_softmax_by_head_written_out():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 5, 6, generator=generator)
    for mask in (torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])):
        head = PooledHead(6, 2, pooling="attention", heads=2)
        mean = PooledHead(6, 2).pool(hidden, mask, mask)
        assert torch.equal(head.pool(hidden, mask, mask), mean)
        with torch.no_grad():
            head.query.normal_(generator=generator)
        pooled = head.pool(hidden, mask, mask)
        for row in range(2):
            real = hidden[row, mask[row].bool()]
            for number, query in enumerate(head.query):
                part = real[:, 3 * number : 3 * number + 3]
                weights = torch.softmax(part @ query / 3**0.5, 0)
                torch.testing.assert_close(pooled[row, 3 * number : 3 * number + 3], weights @ part)
        assert not torch.allclose(pooled, mean, atol=1e-2)


def test_only_a_mean_reads_more_than_one_token():
    words = LabelWordHead(None, None, torch.nn.Linear(2, 5), [1, 4])
    assert (words.single_token, words.pooling, words.n_labels) == (True, None, 2)
    for pooling, single in (("first", True), ("mean", False), ("attention", False)):
        head = PooledHead(2, 7, pooling=pooling)
        assert (head.single_token, head.pooling, head.n_labels) == (single, pooling, 7)
    assert PooledHead(2, 2).pooling == "mean"


def test_a_classifier_begins_as_berts_from_its_seed():
    """N(0, 0.02), no bias, drawn by a generator of its own."""
    before = torch.get_rng_state()
    drawn = PooledHead(300, 200, seed=5).classifier
    expected = 0.02 * torch.randn(200, 300, generator=torch.Generator().manual_seed(5))
    assert torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(drawn.weight.detach(), expected, rtol=1e-6, atol=0)
    assert not drawn.bias.any()
    assert drawn.weight.requires_grad
    assert signature(PooledHead).parameters["seed"].default == 0


def test_a_classifier_is_its_formula_in_its_own_type():
    head = PooledHead(2, 3)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]]))
        head.classifier.bias.copy_(torch.tensor([0.5, 0.0, -0.5]))
    assert head(torch.tensor([[3.0, 4.0]], dtype=torch.float64)).tolist() == [[3.5, 8.0, 0.5]]
    assert head(torch.tensor([[3.0, 4.0]], dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("cap", [None, 0.0, 2.0])
def test_label_words_are_rows_of_the_vocabulary_with_the_cap_written_out(cap):
    vocabulary = torch.nn.Linear(2, 4)
    with torch.no_grad():
        vocabulary.weight.copy_(torch.tensor([[9.0, 9.0], [1.0, 0.0], [9.0, 9.0], [0.0, 0.5]]))
        vocabulary.bias.copy_(torch.tensor([9.0, 1.0, 9.0, -1.0]))
    head = LabelWordHead(None, None, vocabulary, [3, 1], cap)
    plain = torch.tensor([[0.5 * 4 - 1, 3.0 + 1]])
    capped = 2 * torch.tanh(plain / 2) if cap else plain
    torch.testing.assert_close(head(torch.tensor([[3.0, 4.0]])), capped)
    torch.testing.assert_close(head(torch.tensor([[3.0, 4.0]], dtype=torch.float64)), capped)


def test_a_server_gets_a_frozen_copy_of_the_label_words_rows_and_of_nothing_more():
    vocabulary, norm, outward = torch.nn.Linear(3, 50), torch.nn.LayerNorm(4), torch.nn.Linear(4, 3)
    head = LabelWordHead(norm, outward, vocabulary, [7, 40], 30.0)
    copy, states = head.server_copy(), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    before = head(states).detach()
    assert torch.equal(copy(states), before)
    assert torch.equal(copy.lm_head.weight, vocabulary.weight[[7, 40]])
    assert torch.equal(copy.lm_head.bias, vocabulary.bias[[7, 40]])
    assert (copy.word_ids.tolist(), copy.n_labels, copy.softcap) == ([0, 1], 2, 30.0)
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert all(parameter.requires_grad for parameter in head.parameters())
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    assert torch.equal(copy(states), before)  # a copy, not a view


def test_a_scale_multiplies_the_logits_once_here_and_at_the_server():
    vocabulary = torch.nn.Linear(4, 9)
    states = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    scaled = LabelWordHead(None, None, vocabulary, [2, 3], scale=0.25)
    expected = 0.25 * (states @ vocabulary.weight[[2, 3]].T + vocabulary.bias[[2, 3]])
    torch.testing.assert_close(scaled(states), expected)
    torch.testing.assert_close(scaled.server_copy()(states), expected)


def test_the_words_of_a_task_are_not_among_the_weights():
    assert "word_ids" not in LabelWordHead(None, None, torch.nn.Linear(2, 5), [1, 4]).state_dict()


@pytest.mark.parametrize("bias", [None, torch.tensor([1.0, 2.0, 3.0])])
def test_a_frozen_linear_layer_is_of_these_very_tensors(bias):
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    layer = frozen_linear(weight, bias)
    assert (layer.in_features, layer.out_features) == (2, 3)
    assert layer.weight.data_ptr() == weight.data_ptr()
    assert (layer.bias is None) if bias is None else (layer.bias.data_ptr() == bias.data_ptr())
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    expected = torch.tensor([[1.0, 4.0, 9.0]]) + (0 if bias is None else bias)
    assert torch.equal(layer(torch.tensor([[1.0, 2.0]])), expected)
