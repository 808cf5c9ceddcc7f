"""Sliders over predicted memory: model, batch and length, and the bars of each method move.

A picture and a line of text that are replaced when a slider moves; nothing is drawn inside an Output widget, so every
front end shows it.

Knows: predictions and their figure.  Knows nothing of: training.

Taught in: notebooks/01_where_memory_goes.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from mobillm_kit.architectures import architecture
from mobillm_kit.errors import MissingExtra
from mobillm_kit.methods import LABELS
from mobillm_kit.plots_memory import step_memory, step_memory_alt
from mobillm_kit.shapes import Need, predict

try:
    import ipywidgets as widgets
except ModuleNotFoundError as missing:
    raise MissingExtra(
        "Sliders need ipywidgets, which is not installed.", "Install the extra: pip install 'mobillm-kit[lab]'."
    ) from missing

BATCHES = (1, 2, 4, 8, 16, 32)
LENGTHS = (32, 64, 128, 256, 512)


class MemoryPanel(widgets.VBox):
    """Bars of predicted memory under three controls.

    Args:
        models: names of architectures to choose from.
        methods: one bar each.
    """

    def __init__(
        self,
        models: Sequence[str] = ("opt-125m", "opt-350m", "opt-1.3b"),
        methods: Sequence[str] = ("full", "lora", "mobillm-full-width"),
    ) -> None:
        self._methods = tuple(methods)
        self.model = widgets.Dropdown(options=list(models), value=models[0], description="model")
        self.batch = widgets.SelectionSlider(options=BATCHES, value=8, description="batch", continuous_update=False)
        self.length = widgets.SelectionSlider(options=LENGTHS, value=128, description="length", continuous_update=False)
        self.picture = widgets.Image(format="png")
        self.text = widgets.HTML()
        super().__init__([widgets.HBox([self.model, self.batch, self.length]), self.picture, self.text])
        for control in (self.model, self.batch, self.length):
            control.observe(self._redraw, names="value")
        self._redraw()

    def _redraw(self, _change: object = None) -> None:
        model, batch, length = self.model.value, self.batch.value, self.length.value
        needs = {LABELS[method]: _needs(model, method, batch, length) for method in self._methods}
        figure = step_memory(needs, f"{model}, batch {batch} × {length} tokens, float32; predicted")
        self.picture.value, size = figure._repr_png_()
        self.picture.width = str(size["width"])
        self.text.value = step_memory_alt(needs)


@cache
def _needs(model: str, method: str, batch: int, length: int) -> tuple[Need, ...]:
    return predict(architecture(model), method, batch_size=batch, length=length)
