"""Figures and the slider of the codec notebook show what the codecs do."""

from __future__ import annotations

import pytest
import torch

from mobillm_kit.errors import BadInput
from mobillm_kit.quant import codec
from mobillm_kit.show import plots_activations
from mobillm_kit.show.panels import CodecPanel


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    found = torch.randn(60, 128, generator=torch.Generator().manual_seed(0))
    found[:, 40] *= 30
    return found


def test_the_channel_that_stands_out_is_marked(x):
    figure = plots_activations.channels(x)
    assert "40" in [text.get_text() for text in figure.axes[0].texts]
    assert "channel 40" in figure.alt


def test_finer_scales_lie_lower_and_further_right(x):
    axes = plots_activations.error_against_size(x, ("int4", "fp16")).axes[0]
    line = axes.lines[0]
    assert list(line.get_xdata()) == sorted(line.get_xdata())
    assert list(line.get_ydata()) == sorted(line.get_ydata(), reverse=True)
    assert len(axes.lines[2].get_xdata()) == 1


def test_one_token_shows_the_decoded_values(x):
    coder = codec("int4", 0)
    axes = plots_activations.one_token(x[0], coder).axes[0]
    assert torch.equal(torch.tensor(axes.lines[0].get_ydata()), coder.decode(coder.encode(x[:1]), (1, 128))[0])
    zeros = (axes.lines[0].get_ydata() == 0).sum()
    assert plots_activations.lost(x[0], coder).startswith(f"{zeros} of 128")


def test_the_token_with_an_outlier_is_found_by_rank():
    y = torch.ones(5, 8)
    y[:, 2] = torch.tensor([9.0, 2.0, 50.0, 4.0, 3.0])
    assert torch.equal(plots_activations.token_with_outlier(y, 0.5), y[3])
    assert torch.equal(plots_activations.token_with_outlier(y, 1.0), y[2])


def test_accuracies_stand_at_the_size_of_their_codec():
    axes = plots_activations.accuracy_by_bits({"int8": 0.9, "sign": 0.5}, 128, {"zero-shot": 0.6}).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [8.5, 1.5]
    with pytest.raises(BadInput, match="No accuracies"):
        plots_activations.accuracy_by_bits({}, 128, {})


def test_each_defences_line_begins_without_it_and_says_its_figures():
    start = ("as it is", 0.9, 0.8)
    figure = plots_activations.defence_costs(
        {"noise": [start, ("4", 0.5, 0.6)], "fewer tokens": [start, ("1", 0.04, 0.8)]}
    )
    (noise, tokens), axes = figure.axes[0].lines, figure.axes[0]
    assert [*zip(noise.get_xdata(), noise.get_ydata(), strict=True)] == [(90, 80), (50, 60)]
    assert tokens.get_xdata()[1] == 4
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["noise", "fewer tokens"]
    assert axes.get_xlabel() == "tokens that a trained inverter reads back, %"
    assert "noise 4 50% at 60%" in figure.alt


def test_sliders_change_picture_and_text(x):
    panel = CodecPanel(x, x[0])
    before, text = panel.picture.value, panel.text.value
    panel.group.value = 32
    assert "32 values" in panel.text.value
    assert "token:" in text
    assert panel.picture.value != before
    panel.codec.value = "fp16"
    assert panel.text.value.startswith("fp16: 16.00 bits")
