"""The controller takes the widest codec with which the link is not the slowest stage."""

from __future__ import annotations

import math

import pytest

from mobillm_kit.quant import codec
from mobillm_kit.quant.bitwidth import LADDER, BitWidthController, bytes_per_value


class Stages:
    """Averages that a test sets."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, stage):
        return self.seconds.get(stage)


def controller(stages: Stages, n_bytes: int = 1_000_000) -> BitWidthController:
    made = BitWidthController(stages)
    made.made(1_000_000, n_bytes)
    return made


def test_before_anything_is_known_it_begins_with_the_fewest_bytes():
    assert BitWidthController(Stages()).codec(0).name == LADDER[-1]


@pytest.mark.parametrize("forward_s", [4.0, 2.0, 1.2, 0.7, 0.4, 0.2])
def test_the_choice_is_the_widest_whose_sending_fits_beside_the_slowest_stage(forward_s):
    """A megabyte takes a second, a batch has a million values: sending takes bytes-per-value seconds."""
    chosen = controller(Stages(send=1.0, forward=forward_s, train=0.1)).codec(0)
    fitting = [n for n in LADDER if bytes_per_value(codec(n)) <= forward_s]
    assert chosen.name == (fitting[0] if fitting else LADDER[-1])


def test_a_fast_link_gets_the_widest_and_a_slow_one_the_narrowest():
    assert controller(Stages(send=0.001, forward=1.0)).codec(0).name == LADDER[0]
    assert controller(Stages(send=100.0, forward=1.0)).codec(0).name == LADDER[-1]


def test_a_slow_server_gives_room_as_well_as_a_slow_device():
    assert controller(Stages(send=1.0, forward=0.1, train=5.0)).codec(0).name == LADDER[0]


def test_what_is_encoded_and_decoded_counts_with_its_own_side():
    apart = Stages(send=1.0, forward=1.5, encode=1.0, train=0.1)
    assert controller(apart).codec(0).name == LADDER[0]


def test_a_choice_once_made_stays_when_a_batch_is_made_again():
    stages = Stages(send=0.001, forward=1.0)
    chosen = controller(stages)
    first = chosen.codec(3).name
    stages.seconds["send"] = 100.0
    assert chosen.codec(3).name == first == LADDER[0]
    assert chosen.codec(4).name == LADDER[-1]
    assert chosen.choices == {3: LADDER[0], 4: LADDER[-1]}


def test_the_link_gets_better_and_the_codec_wider_again():
    stages = Stages(send=100.0, forward=1.0)
    chosen = controller(stages)
    names = []
    for step, send_s in enumerate([100.0, 10.0, 1.0, 0.1, 0.01]):
        stages.seconds["send"] = send_s
        names.append(chosen.codec(step).name)
    places = [LADDER.index(name) for name in names]
    assert places == sorted(places, reverse=True)
    assert places[0] > places[-1]


def test_bytes_of_a_value_are_code_and_its_share_of_a_scale():
    assert bytes_per_value(codec("fp16", 0)) == 2.0
    assert 1.0 < bytes_per_value(codec("int8", 64)) <= 1.0 + 4 / 64


def narrowest_forward_s(made: list[tuple[int, int]], name: str, **others: float) -> float:
    """The shortest forward with which a codec is still chosen, found by halving."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        chosen = BitWidthController(Stages(send=2.0, forward=middle, **others), names=(name, "sign"))
        for n_values, n_bytes in made:
            chosen.made(n_values, n_bytes)
        low, high = (low, middle) if chosen.codec(0).name == name else (middle, high)
    return high


@pytest.mark.parametrize(
    ("made", "values", "n_bytes"),
    [([(100, 400)], 100, 400), ([(100, 400), (200, 800)], 125, 500), ([(100, 400), (200, 800), (25, 100)], 100, 400),
     ([(100, 400), (300, 100)], 150, 325)],
)  # fmt: skip
def test_the_averages_by_hand_the_newest_counts_a_quarter(made, values, n_bytes):
    """send_s = values * bytes per value / (bytes / 2 s): fp16 has 2, int8 in groups of 64 has 1 + 4 / 64."""
    assert narrowest_forward_s(made, "fp16") == pytest.approx(values * 2 * 2 / n_bytes)
    assert narrowest_forward_s(made, "int8") == pytest.approx(values * 1.0625 * 2 / n_bytes)


def test_stages_by_hand():
    """A hundred values in 400 bytes took 2 s: fp16 would take 1 s."""
    assert narrowest_forward_s([(100, 400)], "fp16", encode=0.25) == pytest.approx(0.75)
    assert narrowest_forward_s([(100, 400)], "fp16", train=0.5, decode=0.25) == pytest.approx(1.0)
    chosen = [
        BitWidthController(Stages(send=2.0, **stages), names=("fp16", "int2"))
        for stages in ({}, {"decode": 0.5, "train": 0.5}, {"decode": 1.0}, {"train": 1.0}, {"encode": 1.0},
                       {"forward": 1.0}, {"forward": math.nextafter(1.0, 0.0)}, {"decode": 0.5, "encode": 0.5})
    ]  # fmt: skip
    for controller_ in chosen:
        controller_.made(100, 400)
    names = [controller_.codec(0).name for controller_ in chosen]
    assert names == ["int2", "fp16", "fp16", "fp16", "fp16", "fp16", "int2", "int2"]


def test_without_a_send_or_without_a_batch_it_begins_with_the_fewest_bytes():
    ready = Stages(send=1e-9, forward=1.0)
    assert BitWidthController(ready).codec(0).name == "int2"
    unsent = BitWidthController(Stages(forward=1.0))
    unsent.made(100, 400)
    assert unsent.codec(0).name == "int2"


def test_the_usual_codecs_have_groups_of_64():
    assert LADDER == ("fp16", "int8", "int4", "int2")
    assert BitWidthController(Stages()).codec(0) == codec("int2", 64)
    assert BitWidthController(Stages(), group=32).codec(0) == codec("int2", 32)
    assert bytes_per_value(codec("int8", 0)) == 1 + 4 / 4096
    with pytest.raises(TypeError):
        BitWidthController(Stages(), 32)
