"""Figures and sliders of predicted memory: what they say is what was predicted."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from mobillm_kit.common import MIB
from mobillm_kit.errors import BadInput
from mobillm_kit.memory.live_tensors import CATEGORIES
from mobillm_kit.memory.prediction import predict
from mobillm_kit.show.plots_memory import PARTS, memory_growth, step_memory
from tests.families import TINY


@pytest.fixture(scope="module")
def needs():
    model_type, settings = TINY["opt"]
    config = AutoConfig.for_model(model_type, **settings)
    return {name: predict(config, name, batch_size=4, length=16) for name in ("full", "lora", "mobillm-ladder")}


def test_every_category_has_a_name_and_a_colour_of_its_own():
    assert set(PARTS) == set(CATEGORIES)
    assert len({color for _, color in PARTS.values()}) == len(PARTS)


def test_the_bars_end_where_the_peak_is(needs):
    axes = step_memory(needs, "tiny").axes[0]
    wanted = [needs["full"][0], needs["lora"][0], *needs["mobillm-ladder"]]
    for place, need in zip(axes.get_yticks(), sorted(wanted, key=lambda need: need.party == "server"), strict=True):
        pieces = [bar for bar in axes.patches if abs(bar.get_y() + bar.get_height() / 2 - place) < 0.1]
        assert sum(bar.get_width() for bar in pieces) == pytest.approx(need.peak_bytes / MIB)


def test_servers_are_hatched_and_named(needs):
    axes = step_memory(needs).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()][-1] == "mobillm-ladder, server"
    assert any(bar.get_hatch() for bar in axes.patches)


def test_the_lines_go_through_the_peaks(needs):
    curves = {name: [(1, parties[0]), (2, parties[0])] for name, parties in needs.items()}
    chart = memory_growth(curves, "texts")
    lines = chart.axes[0].lines
    assert [line.get_ydata()[0] for line in lines] == [curve[0][1].peak_bytes / MIB for curve in curves.values()]
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 3
    assert "full from " in chart.alt


def test_the_words_name_every_bar(needs):
    words = step_memory(needs).alt
    assert all(part in words for part in ("full ", "lora ", "mobillm-ladder, device ", "mobillm-ladder, server "))


def test_nothing_to_draw_is_refused():
    with pytest.raises(BadInput, match="nothing to draw"):
        step_memory({})


def test_the_panel_answers_its_sliders():
    from mobillm_kit.show.panels import MemoryPanel

    panel = MemoryPanel(models=("pocket",), methods=("mezo",))
    before, picture = panel.text.value, panel.picture.value
    panel.batch.value = 32
    assert panel.text.value != before
    assert panel.picture.value != picture
    (need,) = predict_pocket("mezo", 32, 128)
    assert f"MeZO {need.peak_bytes / MIB:,.0f} MiB" in panel.text.value


def test_the_rank_multiplies_what_is_trained_and_moves_the_bars():
    from mobillm_kit.show.panels import MemoryPanel

    panel = MemoryPanel(("pocket",), ("full", "lora", "lora-fa"), batches=(16,), lengths=(46,), ranks=(8, 64))
    assert (
        "LoRA trains 16,384, LoRA-FA trains 8,192 parameters" in panel.text.value
    )  # 4 layers x q, v x 8 x (128 + 128)
    picture = panel.picture.value
    panel.rank.value = 64
    assert "LoRA trains 131,072, LoRA-FA trains 65,536 parameters" in panel.text.value
    assert panel.picture.value != picture
    (need,) = predict_pocket("lora", 16, 46, rank=64)
    assert f"LoRA {need.peak_bytes / MIB:,.0f} MiB" in panel.text.value


def predict_pocket(method: str, batch: int, length: int, **options: int):
    from mobillm_kit.backbone.pretrained import architecture

    return predict(architecture("pocket"), method, batch_size=batch, length=length, options=options)
