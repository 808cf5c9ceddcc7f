"""Sliders: a chart and a line of text that are replaced when one moves.

Nothing is drawn inside an Output widget, so every front end shows it.

Knows: predictions, codecs, the pipeline's arithmetic, and their charts.  Knows nothing of: training, sockets.
Taught in: notebooks/01_where_memory_goes.ipynb, 03_lora, 07_quantized_activations, 08_device_and_server, 10_real_models
"""

from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from itertools import islice
from typing import Any

from torch import Tensor

from mobillm_kit.backbone.pretrained import BUILT_IN, architecture
from mobillm_kit.common import GIB
from mobillm_kit.errors import BadInput, KitError, lab
from mobillm_kit.link.overlap import StepCost, schedule, slowest, spans
from mobillm_kit.link.rates import Link
from mobillm_kit.memory.budget import Step, Way, alternatives, reason
from mobillm_kit.memory.prediction import MemoryNeed, predict
from mobillm_kit.methods import CONTROLS, LABELS
from mobillm_kit.quant import GROUPS, codec
from mobillm_kit.show.chart import Chart
from mobillm_kit.show.plots_activations import bits_per_value, one_token, relative_error
from mobillm_kit.show.plots_memory import budget_bars, step_memory
from mobillm_kit.show.plots_runs import gantt

with lab("Sliders need ipywidgets"):
    import ipywidgets as widgets

TRAINED = tuple(method for method in LABELS if method not in CONTROLS)
BATCHES = (1, 2, 4, 8, 16, 32)
LENGTHS = (32, 64, 128, 256, 512)
BUDGETS_GIB = (1, 2, 4, 8, 16)
RANKS = (1, 2, 4, 8, 16, 32, 64)
BANDWIDTHS = (1, 2, 5, 10, 20, 60, 200, 1000)
"""Mb/s to choose from."""

LATENCY_MS = 4.0
"""Of a link, one way."""

ENOUGH_WAYS = 3
"""Of those that fit, shown beside a method that does not; further ones are not predicted."""

FIRST, STEPS = 8, 6
"""Steps that a link's panel draws."""


class Panel(widgets.VBox):
    """Rows of controls over a picture and a line of text; a subclass says in ``show`` what they show."""

    def __init__(self, *rows: Sequence[Any], text_first: bool = False) -> None:
        self.picture = widgets.Image(format="png")
        self.text = widgets.HTML()
        below = [self.text, self.picture] if text_first else [self.picture, self.text]
        super().__init__([*(widgets.HBox(list(row)) for row in rows), *below])
        for control in (control for row in rows for control in row):
            control.observe(self._redraw, names="value")
        self._redraw()

    def show(self) -> tuple[Chart | None, str]:
        """The chart, if there is one, and the text for what is chosen."""
        return None, ""

    def _redraw(self, _change: object = None) -> None:
        chart, self.text.value = self.show()
        self.picture.value = b""
        if chart is not None:
            self.picture.value, size = chart._repr_png_()
            self.picture.width = str(size["width"])


def _slider(options: Sequence[Any], value: Any, description: str) -> Any:
    return widgets.SelectionSlider(options=options, value=value, description=description, continuous_update=False)


class MemoryPanel(Panel):
    """Bars of predicted memory, one per method: model, batch and length."""

    def __init__(
        self,
        models: Sequence[str] = ("opt-125m", "opt-350m", "opt-1.3b"),
        methods: Sequence[str] = ("full", "lora", "mobillm-full-width"),
    ) -> None:
        self._methods = tuple(methods)
        self.model = widgets.Dropdown(options=models, description="model")
        self.batch = _slider(BATCHES, 8, "batch")
        self.length = _slider(LENGTHS, 128, "length")
        super().__init__([self.model, self.batch, self.length])

    def show(self) -> tuple[Chart, str]:
        """The methods' bars at these sizes, and the same in words."""
        model, batch, length = self.model.value, self.batch.value, self.length.value
        needs = {LABELS[method]: _needs(model, method, batch, length) for method in self._methods}
        chart = step_memory(needs, f"{model}, batch {batch} × {length} tokens, float32; predicted")
        return chart, chart.alt


class RankPanel(Panel):
    """Full fine-tuning's bar beside those of LoRA and LoRA-FA at one rank, and how much the two train."""

    def __init__(self, models: Sequence[str] = ("pocket", "opt-125m"), batch_size: int = 16, length: int = 46) -> None:
        self._size = (batch_size, length)
        self.model = widgets.Dropdown(options=models, description="model")
        self.rank = _slider(RANKS, 8, "rank")
        super().__init__([self.model, self.rank])

    def show(self) -> tuple[Chart, str]:
        """The three bars, and what the two train."""
        model, rank, (batch, length) = self.model.value, self.rank.value, self._size
        low = {LABELS[name]: _needs(model, name, batch, length, rank) for name in ("lora", "lora-fa")}
        needs = {LABELS["full"]: _needs(model, "full", batch, length), **low}
        chart = step_memory(needs, f"{model}, rank {rank}, batch {batch} × {length} tokens, float32; predicted")
        trains = [f"{label} trains {need.counted.gradients_bytes // 4:,}" for label, (need,) in low.items()]
        return chart, f"Rank {rank}: {', '.join(trains)} parameters. {chart.alt}"


class FitPanel(Panel):
    """Whether a method fits into a device's memory, why, and what would fit instead."""

    def __init__(self, models: Sequence[str] = BUILT_IN, methods: Sequence[str] = TRAINED) -> None:
        model = "opt-125m" if "opt-125m" in models else models[0]
        method = "lora" if "lora" in methods else methods[0]
        named = [(LABELS[name], name) for name in methods]
        self.model = widgets.Dropdown(options=models, value=model, description="model")
        self.method = widgets.Dropdown(options=named, value=method, description="method")
        self.batch = _slider(BATCHES, 8, "batch")
        self.length = _slider(LENGTHS, 128, "length")
        self.budget = _slider([(f"{size} GiB", size) for size in BUDGETS_GIB], 2, "memory")
        super().__init__([self.model, self.method], [self.batch, self.length, self.budget], text_first=True)

    def show(self) -> tuple[Chart | None, str]:
        """The method's bar and those of ways that fit instead, with their prices; or why it cannot be."""
        model, method, batch, length = (c.value for c in (self.model, self.method, self.batch, self.length))
        self.text.value, ram_bytes = "Predicting …", self.budget.value * GIB
        try:
            need = _needs(model, method, batch, length)[0]
            ways = () if need.process_bytes <= ram_bytes else _ways(model, method, batch, length, ram_bytes)
        except KitError as refusal:
            return None, escape(str(refusal))
        bars = {LABELS[method]: need.process_bytes, **{way.label: way.device_bytes for way in ways}}
        subtitle = f"{model}, batch {batch} × {length} tokens, float32 unless said; predicted"
        prices = "".join(f"<br>{escape(way.label)} fits; its price: {escape(way.price)}." for way in ways)
        none = "<br>None of the other ways fits either." if need.process_bytes > ram_bytes and not ways else ""
        return budget_bars(bars, subtitle, (ram_bytes,)), escape(reason(need, ram_bytes)) + prices + none


class CodecPanel(Panel):
    """One token's channels (d,) before and after a codec, and the error over all tokens (N, d).

    A group says how many values share a scale; 0 is one scale per token.
    """

    def __init__(self, x: Tensor, token: Tensor) -> None:
        self._x, self._token = x, token
        self.codec = _slider(["sign", "int2", "int4", "nf4", "int8", "fp16"], "int4", "codec")
        groups = [(str(group) if group else "a token", group) for group in reversed(GROUPS)]
        self.group = _slider(groups, 0, "scale per")
        super().__init__([self.codec, self.group])

    def show(self) -> tuple[Chart, str]:
        """The token, and what a value costs and loses."""
        coder = codec(self.codec.value, self.group.value)
        return one_token(self._token, coder), (
            f"{coder}: {bits_per_value(coder, self._x.shape[-1]):.2f} bits per value, "
            f"relative error over all {len(self._x)} tokens {relative_error(coder, self._x):.3f}"
        )


class LinkPanel(Panel):
    """The predicted pace of a run across a link: who sets it, and the timeline that follows.

    ``costs`` says, by what is sent, what a step costs each side.
    """

    def __init__(self, costs: Mapping[str, StepCost]) -> None:
        if not costs:
            raise BadInput("No costs of a step to choose from.", "Give at least one StepCost with a name.")
        self._costs = dict(costs)
        self.bandwidth = _slider(BANDWIDTHS, 20, "Mb/s")
        self.sent = widgets.Dropdown(options=list(self._costs), description="sent")
        super().__init__([self.bandwidth, self.sent])

    def show(self) -> tuple[Chart, str]:
        """The timeline at this bandwidth, and who sets the pace."""
        cost, link = self._costs[self.sent.value], Link(float(self.bandwidth.value), LATENCY_MS)
        times = schedule([cost] * (FIRST + STEPS + 1), link)
        return gantt(spans(times), first=FIRST, steps=STEPS), pace_text(cost, link)


def pace_text(cost: StepCost, link: Link) -> str:
    """One sentence: bytes, pace, and who sets it."""
    who, seconds = slowest(cost, link)
    return (
        f"{cost.n_bytes:,} bytes a step over {link.mbit_per_s:g} Mb/s: {1e3 * seconds:.1f} ms a step, "
        f"and the {who} sets the pace."
    )


@cache
def _ways(model: str, method: str, batch: int, length: int, ram_bytes: int) -> tuple[Way, ...]:
    ways = alternatives(Step(architecture(model), method, batch, length), ram_bytes)
    return tuple(islice((way for way in ways if way.fits(ram_bytes)), ENOUGH_WAYS))


@cache
def _needs(model: str, method: str, batch: int, length: int, rank: int | None = None) -> tuple[MemoryNeed, ...]:
    options = {} if rank is None else {"rank": rank}
    return predict(architecture(model), method, batch_size=batch, length=length, options=options)
