"""Panels: the picture of a page without a kernel, an axis that stays, a hand that is faster than pictures."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

import pytest
import torch

from mobillm_kit.backbone.pretrained import architecture
from mobillm_kit.common import MIB
from mobillm_kit.memory.prediction import predict
from mobillm_kit.show import panels
from mobillm_kit.show.panels import BATCHES, LENGTHS, STEP_METHODS, STEP_MODELS, CodecPanel, FitPanel, MemoryPanel
from tests.kernels import Kernel


@pytest.mark.parametrize(
    "setting",
    [
        ("pocket", "full", 16, 46, None),
        ("opt-125m", "lora", 1, 512, None),
        ("opt-350m", "mobillm-full-width", 32, 32, None),
        ("pocket", "lora-fa", 16, 46, 64),
        ("pocket", "lora", 16, 46, 1),
    ],
)
def test_what_is_stored_is_what_would_be_predicted(setting):
    model, method, batch, length, rank = setting
    options = {} if rank is None else {"rank": rank}
    whole = predict(architecture(model), method, batch_size=batch, length=length, options=options)
    stored = panels._stored()[panels.key(setting)]
    assert [(need.counted, need.at_peak) for need in stored] == [(need.counted, need.at_peak) for need in whole]


def test_every_setting_of_the_course_is_stored():
    sizes = itertools.product(STEP_MODELS, STEP_METHODS, BATCHES, LENGTHS)
    assert all(panels.key((*each, None)) in panels._stored() for each in sizes)


def test_a_page_without_a_kernel_has_the_picture_and_the_words():
    bundle, about = MemoryPanel()._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert bundle["text/plain"].startswith("Stacked bars of tensors alive at the peak of one training step: Full")
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert about["image/png"]["alt"] == bundle["text/plain"]


def test_what_has_no_picture_says_why_there_too():
    bundle, _ = FitPanel(models=("llama-2-7b",), methods=("bitfit",))._repr_mimebundle_()
    assert "image/png" not in bundle
    assert "has no biases to train" in bundle["text/plain"]


def test_a_setting_that_cannot_be_is_explained_and_the_next_one_is_drawn():
    panel = MemoryPanel(("pocket",), ("mezo",))
    panel.length.value = 512
    assert "512 tokens are more than this model reads" in panel.text.value
    assert not panel.picture.value
    panel.length.value = 32
    assert panel.picture.value


def drawn(monkeypatch) -> list[tuple[float, int]]:
    """Of each picture of memory from now on: where its axis ends, and how many bars it has."""
    found = []
    draw = panels.step_memory

    def _noted(*given, **named):
        chart = draw(*given, **named)
        found.append((chart.axes[0].get_xlim()[1], len({round(patch.get_y(), 3) for patch in chart.axes[0].patches})))
        return chart

    monkeypatch.setattr(panels, "step_memory", _noted)
    return found


def test_the_axis_stays_while_one_slider_moves_and_the_last_setting_is_shown(monkeypatch):
    seen = drawn(monkeypatch)
    panel = MemoryPanel()
    for batch in (1, 32, 2):
        panel.batch.value = batch
    (_, first), *moved = seen
    longest = max(n.peak_bytes for name in STEP_METHODS for n in panels._needs("opt-125m", name, 32, 128)) / MIB
    assert [end for end, _ in moved] == [pytest.approx(1.04 * longest)] * 3
    assert {bars for _, bars in moved} == {2 * first}
    panel.length.value = 32  # another slider, another axis
    assert seen[-1][0] < moved[0][0]


def at_work_on(kind: str) -> SimpleNamespace:
    """What a panel asks IPython for: which kind of message the kernel works on."""
    return SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda: {"header": {"msg_type": kind}}))


def test_of_moves_of_a_hand_that_are_faster_than_pictures_the_last_one_counts(monkeypatch):
    async def _moved() -> list[str]:
        panel = MemoryPanel()
        seen = drawn(monkeypatch)
        monkeypatch.setattr(panels, "get_ipython", lambda: at_work_on("comm_msg"))
        for batch in (1, 2, 4, 16):
            panel.batch.value = batch
        said = [panel.text.value]
        await asyncio.sleep(10 * panels.GATHER_S)
        assert len(seen) == 1
        return [*said, panel.text.value]

    working, answer = asyncio.run(_moved())
    (need,) = panels._needs("opt-125m", "lora", 16, 128)
    assert working == "Working …"
    assert f"LoRA {need.peak_bytes / MIB:,.0f} MiB" in answer


def test_what_takes_seconds_hides_its_old_picture_meanwhile(monkeypatch):
    async def _moved() -> list[str]:
        panel = FitPanel(models=("pocket",), methods=("mezo",))
        monkeypatch.setattr(panels, "get_ipython", lambda: at_work_on("comm_msg"))
        panel.batch.value = 1
        seen = [panel.picture.layout.visibility]
        await asyncio.sleep(10 * panels.GATHER_S)
        return [*seen, panel.picture.layout.visibility]

    assert asyncio.run(_moved()) == ["hidden", "visible"]


def test_a_cell_that_moves_a_slider_has_the_answer_in_its_next_line(monkeypatch):
    monkeypatch.setattr(panels, "get_ipython", lambda: at_work_on("execute_request"))
    panel = MemoryPanel()
    panel.batch.value = 1
    assert panel.text.value != "Working …"


def test_a_codec_without_a_scale_says_so_and_its_slider_rests():
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    panel = CodecPanel(x, x[0])
    assert [label for label, _ in panel.group.options] == ["a token", "128", "64", "32"]
    panel.codec.value = "fp16"
    assert panel.group.disabled
    assert panel.text.value.endswith("It has no scale, so its slider rests.")
    panel.codec.value = "int4"
    assert not panel.group.disabled


PANEL = """
import mobillm_kit as kit
panel = kit.MemoryPanel()
print("ids", panel.batch.model_id, panel.text.model_id)
"""


def test_a_real_kernel_takes_three_fast_moves_of_a_front_end_for_one():
    kernel = Kernel()
    try:
        slider, text = kernel.until_said(kernel.start(PANEL), "ids").split()
        for place in (0, 1, 5):
            kernel.move(slider, index=place)
        said = [kernel.told(text, "value")]
        while said[-1] == "Working …":
            said.append(kernel.told(text, "value"))
    finally:
        kernel.end()
    (need,) = panels._needs("opt-125m", "lora", BATCHES[5], 128)
    assert said[:-1] == ["Working …"]  # said once: a value that stays is not sent again
    assert f"LoRA {need.peak_bytes / MIB:,.0f} MiB" in said[-1]
