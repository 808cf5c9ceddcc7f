"""The controls do what they say, and nothing more."""

from __future__ import annotations

import pytest
import torch

from mobillm_kit.errors import BadInput
from mobillm_kit.methods import controls
from mobillm_kit.texts.tasks import Example


def example(text: str, label: int, pair: str | None = None) -> Example:
    return Example(text, pair, label)


def test_one_threshold_repairs_a_shifted_prompt_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (400,), generator=generator)
    truth = labels * 2.0 - 1
    shifted = torch.stack([torch.zeros(400), truth + 3], dim=1)
    assert (shifted.argmax(dim=-1) == labels).float().mean() < 0.6
    t = controls.best_threshold(shifted, labels)
    assert torch.equal(controls.threshold(shifted, t), labels)
    assert 2 < t < 4
    noise = torch.randn(400, 2, generator=generator)
    t = controls.best_threshold(noise, labels)
    assert (controls.threshold(noise, t) == labels).float().mean() < 0.6


def test_the_threshold_is_the_best_of_all_by_brute_force():
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(40, 2, generator=generator), torch.randint(0, 2, (40,), generator=generator)
    ours = (controls.threshold(logits, controls.best_threshold(logits, labels)) == labels).sum()
    difference = logits[:, 1] - logits[:, 0]
    cuts = [*(difference - 1e-6).tolist(), *(difference + 1e-6).tolist(), -100.0, 100.0]
    assert ours == max((controls.threshold(logits, cut) == labels).sum() for cut in cuts)


@pytest.mark.parametrize(
    ("differences", "labels", "t"),
    [
        ([-2.0, -1.0, 0.5, 3.0], [0, 0, 1, 1], -0.25),  # the middle of the gap
        ([3.0, -1.0, 0.5, -2.0], [1, 0, 1, 0], -0.25),  # in whatever order
        ([-2.0, -1.0, 0.5, 3.0], [1, 1, 1, 1], -2.5),  # half a nat below the lowest
        ([-2.0, -1.0, 0.5, 3.0], [0, 0, 0, 0], 3.5),  # and above the highest
        ([0.0, 1.0, 2.0, 6.0], [0, 1, 0, 1], 4.0),  # two cuts with one error each: the wider gap
        ([0.0, 4.0, 5.0, 6.0], [0, 1, 0, 1], 2.0),
        ([0.0, 0.25, 4.0, 6.0], [1, 1, 0, 0], -0.5),  # the wrong way round: all the same label
    ],
)
def test_of_equally_good_thresholds_the_middle_of_the_widest_gap(differences, labels, t):
    logits = torch.tensor([[1.0, 1.0 + difference] for difference in differences])
    assert controls.best_threshold(logits, torch.tensor(labels)) == t


def test_what_lies_on_the_threshold_is_label_0():
    assert controls.threshold(torch.tensor([[0.0, 1.0], [0.0, 1.5]]), 1.0).tolist() == [0, 1]


def test_one_threshold_needs_two_labels():
    with pytest.raises(BadInput, match="parts two labels; this task has 4"):
        controls.best_threshold(torch.zeros(3, 4), torch.zeros(3))


def test_bag_of_words_reads_words_and_not_their_order():
    train = [example(f"the {word} film {n}", label) for n in range(20) for label, word in enumerate(["bad", "good"])]
    texts = [example("film good the", 1), example("bad the film", 0)]
    assert controls.bag_of_words(train, texts).tolist() == [1, 0]


def test_bag_of_words_keeps_the_two_texts_of_a_pair_apart():
    train = [example(*row) for n in range(20) for row in (("yes", 1, f"no {n}"), ("no", 0, f"yes {n}"))]
    assert controls.bag_of_words(train, [example("yes", 1, "no"), example("no", 0, "yes")]).tolist() == [1, 0]


def test_majority_is_the_most_frequent_training_label():
    train = [example("a", 1), example("b", 1), example("c", 0)]
    assert controls.majority(train, 4).tolist() == [1, 1, 1, 1]
