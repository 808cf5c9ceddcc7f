"""Figures and the panel of what fits where: cells, bars and sentences are what was predicted."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from mobillm_kit.backbone.pretrained import architecture
from mobillm_kit.common import GIB
from mobillm_kit.errors import BadInput
from mobillm_kit.memory.prediction import predict
from mobillm_kit.show.plots_memory import budget_bars, fit_grid

GRID = {
    "small": {"full": 2 * GIB, "streamed": GIB},
    "large": {"full": 99 * GIB, "streamed": 2 * GIB + 1},
}


def test_a_cell_says_its_gib_and_has_the_colour_of_the_smallest_budget_that_is_enough():
    axes = fit_grid(GRID).axes[0]
    assert [text.get_text() for text in axes.texts if "." in text.get_text()] == ["2.0", "1.0", "99.0", "2.0"]
    small_full, small_streamed, large_full, large_streamed = axes.patches
    assert small_full.get_facecolor() == small_streamed.get_facecolor()  # 2 GiB fit into 2 GiB, one byte more does not
    assert len({patch.get_facecolor() for patch in (small_full, large_full, large_streamed)}) == 3
    assert [bool(patch.get_hatch()) for patch in axes.patches] == [False, False, True, False]
    assert [label.get_text() for label in axes.get_legend().get_texts()] == [
        "fits in 2 GiB", "fits in 4 GiB", "in none of them",
    ]  # fmt: skip


def test_the_words_count_the_models_that_fit():
    assert fit_grid(GRID, budgets=(2 * GIB, 4 * GIB)).alt == (
        "Models that fit, of 2. full: 1 in 2 GiB, 1 in 4 GiB; streamed: 1 in 2 GiB, 2 in 4 GiB."
    )


def test_the_bars_are_the_processes_and_the_lines_the_budgets():
    axes = budget_bars(GRID["large"], budgets=(4 * GIB, 8 * GIB)).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([99.0, 2.0])
    assert [line.get_xdata()[0] for line in axes.lines] == [4.0, 8.0]
    assert budget_bars(GRID["large"]).alt == (
        "Bars of the device's whole process: full 99.0 GiB, fits in none; streamed 2.0 GiB, fits in 4 GiB."
    )


@pytest.mark.parametrize("budgets", [(), (4 * GIB, 2 * GIB), (GIB, GIB), (1, 2, 3, 4, 5)])
def test_budgets_that_cannot_be_told_apart_are_refused(budgets):
    with pytest.raises(BadInput, match="not budgets to compare with"):
        budget_bars(GRID["small"], budgets=budgets)


@pytest.mark.parametrize("grid", [{}, {"a": {}}, {"a": {"full": 1}, "b": {"lora": 1}}])
def test_a_grid_with_holes_is_refused(grid):
    with pytest.raises(BadInput, match="no grid to draw"):
        fit_grid(grid)


def test_the_panel_says_that_it_fits_and_follows_its_sliders():
    from mobillm_kit.show.panels import FitPanel

    panel = FitPanel(models=("pocket",), methods=("full",))
    picture = panel.picture.value
    panel.batch.value = 32
    (need,) = predict(architecture("pocket"), "full", batch_size=32, length=128)
    assert panel.text.value == f"It fits: {(2 * GIB - need.process_bytes) / 2**20:,.0f} MiB are left."
    assert panel.picture.value != picture


def test_the_panel_answers_what_cannot_be_with_the_sentence_of_the_refusal():
    from mobillm_kit.show.panels import FitPanel

    panel = FitPanel(models=("llama-2-7b",), methods=("bitfit",))
    assert "has no biases to train" in panel.text.value
    assert panel.png == b""


def test_the_panel_offers_ways_that_fit_where_the_method_does_not(tmp_path):
    from mobillm_kit.show.panels import FitPanel

    wide = {"hidden_size": 2048, "ffn_dim": 8192, "word_embed_proj_dim": 2048, "num_attention_heads": 32}
    # one block, predicted in a moment; its 8 texts take more than 1 GiB, and one of them does not
    shallow = AutoConfig.for_model("opt", num_hidden_layers=1, vocab_size=40_000, **wide)
    shallow.save_pretrained(tmp_path)
    panel = FitPanel(models=(str(tmp_path / "config.json"),), methods=("lora",))
    assert panel.text.value.startswith("It fits: ")
    panel.budget.value = 1
    assert panel.text.value.startswith("It does not fit: ")
    assert "LoRA, batch " in panel.text.value
    assert panel.text.value.count("its price") == 3
