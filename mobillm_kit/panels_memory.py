"""Sliders over predicted memory: model, batch and length, or LoRA's rank, and the bars of each method move.

A picture and a line of text that are replaced when a slider moves; nothing is drawn inside an Output widget, so every
front end shows it.

Knows: predictions and their figures.  Knows nothing of: training.

Taught in: notebooks/01_where_memory_goes.ipynb, notebooks/03_lora.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from html import escape

from mobillm_kit.architectures import BUILT_IN, architecture
from mobillm_kit.common import GIB
from mobillm_kit.errors import KitError, MissingExtra
from mobillm_kit.fits import Step, Way, alternatives, reason
from mobillm_kit.methods import CONTROLS, LABELS
from mobillm_kit.plots_memory import budget_bars, step_memory, step_memory_alt
from mobillm_kit.shapes import Need, predict

try:
    import ipywidgets as widgets
except ModuleNotFoundError as missing:
    raise MissingExtra(
        "Sliders need ipywidgets, which is not installed.", "Install the extra: pip install 'mobillm-kit[lab]'."
    ) from missing

BATCHES = (1, 2, 4, 8, 16, 32)
LENGTHS = (32, 64, 128, 256, 512)
BUDGETS_GIB = (1, 2, 4, 8, 16)
ENOUGH_WAYS = 3
"""Of those that fit, shown beside a method that does not; further ones are not predicted."""
RANKS = (1, 2, 4, 8, 16, 32, 64)


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


class RankPanel(widgets.VBox):
    """Full fine-tuning's bar beside those of LoRA and LoRA-FA at one rank, and how much the two train.

    Args:
        models: names of architectures to choose from.
        batch_size: B.
        length: T.
    """

    def __init__(self, models: Sequence[str] = ("pocket", "opt-125m"), batch_size: int = 16, length: int = 46) -> None:
        self._size = (batch_size, length)
        self.model = widgets.Dropdown(options=list(models), value=models[0], description="model")
        self.rank = widgets.SelectionSlider(options=RANKS, value=8, description="rank", continuous_update=False)
        self.picture = widgets.Image(format="png")
        self.text = widgets.HTML()
        super().__init__([widgets.HBox([self.model, self.rank]), self.picture, self.text])
        for control in (self.model, self.rank):
            control.observe(self._redraw, names="value")
        self._redraw()

    def _redraw(self, _change: object = None) -> None:
        model, rank, (batch, length) = self.model.value, self.rank.value, self._size
        full = _needs(model, "full", batch, length)
        low = {LABELS[name]: _needs(model, name, batch, length, rank) for name in ("lora", "lora-fa")}
        needs = {LABELS["full"]: full, **low}
        subtitle = f"{model}, rank {rank}, batch {batch} × {length} tokens, float32; predicted"
        self.picture.value, size = step_memory(needs, subtitle)._repr_png_()
        self.picture.width = str(size["width"])
        trains = [f"{label} trains {need.counted.gradients_bytes // 4:,}" for label, (need,) in low.items()]
        self.text.value = f"Rank {rank}: {', '.join(trains)} parameters. {step_memory_alt(needs)}"


class FitPanel(widgets.VBox):
    """Whether a method fits into a device's memory, why, and what would fit instead.

    Args:
        models: names of architectures to choose from.
        methods: names of methods to choose from.
    """

    def __init__(
        self,
        models: Sequence[str] = BUILT_IN,
        methods: Sequence[str] = tuple(name for name in LABELS if name not in CONTROLS),
    ) -> None:
        first = "opt-125m" if "opt-125m" in models else models[0]
        method = "lora" if "lora" in methods else methods[0]
        self.model = widgets.Dropdown(options=list(models), value=first, description="model")
        self.method = widgets.Dropdown(
            options=[(LABELS[name], name) for name in methods], value=method, description="method"
        )
        self.batch = widgets.SelectionSlider(options=BATCHES, value=8, description="batch", continuous_update=False)
        self.length = widgets.SelectionSlider(options=LENGTHS, value=128, description="length", continuous_update=False)
        self.budget = widgets.SelectionSlider(
            options=[(f"{size} GiB", size) for size in BUDGETS_GIB], value=2, description="memory",
            continuous_update=False,
        )  # fmt: skip
        self.picture = widgets.Image(format="png")
        self.text = widgets.HTML()
        choices = [self.model, self.method]
        sizes = [self.batch, self.length, self.budget]
        super().__init__([widgets.HBox(choices), widgets.HBox(sizes), self.text, self.picture])
        for control in (*choices, *sizes):
            control.observe(self._redraw, names="value")
        self._redraw()

    def _redraw(self, _change: object = None) -> None:
        model, method = self.model.value, self.method.value
        batch, length, budget_gib = self.batch.value, self.length.value, self.budget.value
        self.text.value = "Predicting …"
        try:
            need = _needs(model, method, batch, length)[0]
            ram_bytes = budget_gib * GIB
            ways = () if need.process_bytes <= ram_bytes else _ways(model, method, batch, length, ram_bytes)
        except KitError as refusal:
            self.text.value, self.picture.value = escape(str(refusal)), b""
            return
        bars = {LABELS[method]: need.process_bytes, **{way.label: way.device_bytes for way in ways}}
        figure = budget_bars(
            bars, f"{model}, batch {batch} × {length} tokens, float32 unless said; predicted", (ram_bytes,)
        )
        self.picture.value, size = figure._repr_png_()
        self.picture.width = str(size["width"])
        prices = "".join(f"<br>{escape(way.label)} fits; its price: {escape(way.price)}." for way in ways)
        none = "<br>None of the other ways fits either." if need.process_bytes > ram_bytes and not ways else ""
        self.text.value = escape(reason(need, ram_bytes)) + prices + none


@cache
def _ways(model: str, method: str, batch: int, length: int, ram_bytes: int) -> tuple[Way, ...]:
    """The first ways that fit instead."""
    ways = []
    for way in alternatives(Step(architecture(model), method, batch, length), ram_bytes):
        if way.fits(ram_bytes):
            ways.append(way)
        if len(ways) == ENOUGH_WAYS:
            break
    return tuple(ways)


@cache
def _needs(model: str, method: str, batch: int, length: int, rank: int | None = None) -> tuple[Need, ...]:
    options = {} if rank is None else {"rank": rank}
    return predict(architecture(model), method, batch_size=batch, length=length, options=options)
