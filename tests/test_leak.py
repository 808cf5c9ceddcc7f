"""What a server can read back from activations, residuals and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mobillm_kit.device.forward import Device
from mobillm_kit.device.inversion import (
    NearestToken,
    TrainedInverter,
    labels_by_sign,
    own_tokens,
    read_back,
    recovery,
    search,
)
from mobillm_kit.errors import BadInput
from mobillm_kit.quant import codec
from mobillm_kit.texts.encode import Batch
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
    assert recovery(found, batch.input_ids, batch.attention_mask).share == 1.0


def test_activations_of_other_texts_give_nothing_back(backbone):
    """The negative control: the same attack on somebody else's text reads that text."""
    batch, other = random_batch(rows=6, length=12, seed=0), random_batch(rows=6, length=12, seed=1)
    found = NearestToken(backbone, 2, 0).read(state(backbone, other, 0), other.attention_mask)
    assert recovery(found, batch.input_ids, batch.attention_mask).share < 0.1


def test_noise_gives_nothing_back(backbone):
    batch = random_batch(rows=6, length=12)
    noise = torch.randn(6, 12, backbone.width, generator=torch.Generator().manual_seed(0))
    found = NearestToken(backbone, 2, 0).read(noise, batch.attention_mask)
    assert recovery(found, batch.input_ids, batch.attention_mask).share < 0.15


def test_a_later_layer_is_read_with_its_own_table(backbone):
    """Every text here is the first token and one more: the very states that the attacker has made."""
    ids = torch.tensor([[2, token] for token in range(20, 40)])
    mask = torch.ones_like(ids)
    (states,) = backbone.taps(ids, mask, layers=[2])
    assert torch.equal(NearestToken(backbone, 2, 2).read(states, mask)[:, 1], ids[:, 1])


def test_padding_is_not_counted():
    found, truth = torch.tensor([[1, 2, 9]]), torch.tensor([[1, 3, 0]])
    result = recovery(found, truth, torch.tensor([[1, 1, 0]]))
    assert (result.share, result.tokens) == (0.5, 2)


def test_recovery_by_hand():
    """Two texts, of 3 and 1 tokens: 1 of 3 and 1 of 1 read."""
    found, truth = torch.tensor([[1, 1, 1], [2, 0, 0]]), torch.tensor([[1, 3, 3], [2, 9, 9]])
    result = recovery(found, truth, torch.tensor([[1, 1, 1], [1, 0, 0]]))
    assert result.share == 0.5
    assert result.chance == pytest.approx(3 / 4 * 1 / 4 + 1 / 4 * 1 / 4)  # tokens 1 and 2
    assert (result.low, result.high) == pytest.approx((1 / 3, 1.0))  # both samples the same text, a quarter each


# ---------------------------------------------------------------------- the trained ones


def known(backbone, layer, rows, seed):
    batch = random_batch(rows=rows, length=12, seed=seed)
    return batch, state(backbone, batch, layer)


@pytest.fixture(scope="module")
def inverter(backbone):
    """Trained on the last layer of other texts than those that are read."""
    batch, states = known(backbone, backbone.n_layers, 200, seed=7)
    real = batch.attention_mask.bool()
    trained = TrainedInverter(backbone)
    trained.fit(states[real], batch.input_ids[real], steps=150)
    return trained


def test_a_trained_inverter_reads_the_last_layer_of_other_texts_and_a_search_reads_the_rest(backbone, inverter):
    last = backbone.n_layers
    batch, states = known(backbone, last, 8, seed=0)
    ids, mask = batch.input_ids, batch.attention_mask
    scores = inverter.scores(states)
    trained = recovery(scores.argmax(dim=-1), ids, mask)
    assert trained.low <= trained.share <= trained.high
    assert trained.share > 0.5 > 5 * trained.chance
    searched = search(backbone, last, states, mask, scores, k=backbone.n_tokens)
    assert recovery(searched, ids, mask).share == 1.0  # every token is a candidate, and the states are exact
    assert recovery(search(backbone, last, states, mask, scores, k=8), ids, mask).share >= trained.share


def test_a_search_through_the_codec_reads_what_one_past_it_does_not(backbone, inverter):
    """A sign pattern is far from the state itself; it is the candidate's own sign pattern to the bit."""
    last = backbone.n_layers
    batch, states = known(backbone, last, 8, seed=0)
    coder = codec("sign", 16)

    def carried(x):
        return coder.decode(coder.encode(x), tuple(x.shape))

    given = (backbone, last, carried(states), batch.attention_mask, inverter.scores(states), backbone.n_tokens)
    through, past = search(*given, carried=carried), search(*given)
    shares = [recovery(found, batch.input_ids, batch.attention_mask).share for found in (through, past)]
    assert shares[0] > 0.95 > shares[1]


def test_they_read_nothing_of_a_text_that_was_not_sent(backbone, inverter):
    """The negative control: within the interval, no better than the same guesses dealt out anew."""
    sent, states = known(backbone, backbone.n_layers, 40, seed=0)
    other, _ = known(backbone, backbone.n_layers, 40, seed=1)
    found = inverter.scores(states).argmax(dim=-1)
    result = recovery(found, other.input_ids, sent.attention_mask & other.attention_mask)
    assert abs(result.share - result.chance) < 0.02 + (result.high - result.low) / 2


def test_the_same_seed_reads_the_same(backbone):
    batch, states = known(backbone, 1, 8, seed=0)
    real = batch.attention_mask.bool()
    twice = []
    for _ in range(2):
        trained = TrainedInverter(backbone, seed=3)
        trained.fit(states[real], batch.input_ids[real], steps=3)
        twice.append(trained.scores(states))
    assert torch.equal(*twice)


def test_an_encoder_is_not_searched():
    encoder = tiny_task_model("bert").backbone
    with pytest.raises(BadInput, match="is an encoder"):
        search(encoder, 1, torch.zeros(1, 2, encoder.width), torch.ones(1, 2), torch.zeros(1, 2, encoder.n_tokens))


def test_a_layer_that_is_not_there_is_refused(backbone):
    with pytest.raises(BadInput, match="Layer 99 does not exist"):
        NearestToken(backbone, 2, 99)


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


# ---------------------------------------------------------------------- a run's own setting


@pytest.mark.parametrize("pad", ["left", "right"])
def test_what_stands_in_every_text_is_not_a_texts_own(pad):
    rows = [[2, 7, 8, 5, 6], [2, 7, 9, 9, 5, 6], [2, 3, 5, 6]]
    width = max(map(len, rows))
    filled = [[0] * (width - len(row)) + row if pad == "left" else row + [0] * (width - len(row)) for row in rows]
    ids = torch.tensor(filled)
    own = own_tokens(Batch(ids, (ids > 0).long(), torch.zeros(3), torch.zeros(3)))
    assert [row[mask].tolist() for row, mask in zip(ids, own, strict=True)] == [[7, 8], [7, 9, 9], [3]]


def test_of_texts_that_are_all_alike_every_token_counts():
    ids = torch.tensor([[2, 7, 8], [2, 7, 8]])
    assert own_tokens(Batch(ids, torch.ones_like(ids), torch.zeros(2), torch.zeros(2))).all()


def sent_and_known(rows=200):
    return random_batch(rows=rows, length=12, seed=7), random_batch(rows=24, length=12, seed=0)


def test_fewer_tokens_leave_less_to_read_and_one_leaves_the_commonest(backbone):
    """One prediction token is the same in no two of these texts; of the others the guess is one token for all."""
    theirs, sent = sent_and_known()
    layers, coder = range(1, backbone.n_layers + 1), codec("fp32")
    ways = ({}, {"top_tokens": 4}, {"top_tokens": 2}, {"one_token": True})
    devices = [Device(backbone, layers, **{"one_token": False, **way}) for way in ways]
    every, four, two, one = (read_back(device, coder, theirs, sent) for device in devices)
    assert every.share > 0.9 > four.share > two.share > one.share
    assert one.tokens == int(own_tokens(sent).sum())
    guess = theirs.input_ids[own_tokens(theirs)].mode().values
    by_guess = ((sent.input_ids == guess) & own_tokens(sent)).sum(dim=1)
    assert 0 <= one.share * one.tokens - by_guess.sum() <= sent.rows  # a text's last token is its own here, and is sent


def test_places_say_which_tokens_an_upload_holds(backbone):
    batch = random_batch(rows=6, length=12)
    upload, places = Device(backbone, [1], one_token=False, top_tokens=3).upload_and_places(batch)
    (states,) = backbone.taps(batch.input_ids, batch.attention_mask, layers=[1])
    assert torch.equal(upload.activations[0], states.gather(1, places.unsqueeze(-1).expand(-1, -1, backbone.width)))
    whole, every = Device(backbone, [1], one_token=False).upload_and_places(batch)
    assert torch.equal(every, torch.arange(12).expand(6, 12))
    assert torch.equal(whole.activations[0], states)


def test_a_setting_is_read_through_its_own_codec(backbone):
    """Lossy: signs leave less than float32 in this much training, and both are the same when asked again."""
    theirs, sent = sent_and_known()
    device = Device(backbone, [backbone.n_layers], one_token=False)
    exact, signs, again = (read_back(device, codec(name, 32), theirs, sent) for name in ("fp32", "sign", "fp32"))
    assert exact.share > signs.share > 3 * signs.chance
    assert exact == again
