"""Sliders: a chart and a line of text that are replaced when one moves.

Nothing is drawn inside an Output widget, so every front end shows it; where there is no kernel, the notebook's file
holds picture and text of the first setting.

Knows: predictions, codecs, the pipeline's arithmetic, and their charts.  Knows nothing of: training, sockets.
Taught in: notebooks/01_where_memory_goes.ipynb, 03_lora, 07_quantized_activations, 08_device_and_server, 10_real_models
"""

import asyncio
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape, unescape
from itertools import islice, starmap
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from torch import Tensor

from mobillm_kit.backbone.pretrained import BUILT_IN, architecture
from mobillm_kit.common import GIB
from mobillm_kit.errors import BadInput, KitError, extra
from mobillm_kit.link.overlap import StepCost, schedule, slowest, spans
from mobillm_kit.link.rates import Link
from mobillm_kit.memory.budget import Step, Way, alternatives, reason
from mobillm_kit.memory.live_tensors import Alive
from mobillm_kit.memory.prediction import MemoryNeed
from mobillm_kit.methods import CONTROLS, LABELS
from mobillm_kit.quant import GROUPS, codec
from mobillm_kit.quant.codec import FLOATS
from mobillm_kit.record import CountedMemory
from mobillm_kit.show.chart import Chart
from mobillm_kit.show.plots_activations import bits_per_value, one_token, relative_error
from mobillm_kit.show.plots_memory import Needs, budget_bars, step_memory
from mobillm_kit.show.plots_runs import gantt

with extra("lab", "Sliders need ipywidgets"):
    import ipywidgets as widgets
    from IPython.core.getipython import get_ipython

TRAINED = tuple(method for method in LABELS if method not in CONTROLS)
BATCHES = (1, 2, 4, 8, 16, 32)
LENGTHS = (32, 64, 128, 256, 512)
BUDGETS_GIB = (1, 2, 4, 8, 16)
RANKS = (1, 2, 4, 8, 16, 32, 64)
LOW_RANK = ("lora", "lora-fa")
STEP_MODELS = ("opt-125m", "opt-350m", "opt-1.3b")
STEP_METHODS = ("full", "lora", "mobillm-full-width")
Setting: TypeAlias = tuple[str, str, int, int, int | None]  # model, method, batch, length, rank; float32
STORED = Path(__file__).with_name("panel_predictions.json")  # what scripts/panel_predictions.py has predicted
BANDWIDTHS = (1, 2, 5, 10, 20, 60, 200, 1000)
"""Mb/s to choose from."""

GATHER_S = 0.03  # moves of a hand that follow each other within this time are one
LATENCIES_MS = (0.1, 1.0, 4.0, 15.0, 60.0)  # of a link, one way
ENOUGH_WAYS = 3  # of those that fit, shown beside a method that does not; further ones are not predicted
FIRST, STEPS = 8, 6  # steps that a link's panel draws


class Panel(widgets.VBox):
    """Rows of controls over a picture and a line of text; a subclass says in ``show`` what they show.

    A hand on a slider sees at once that something is under way; of moves faster than pictures the last one counts.
    What is ``slow`` hides its old picture meanwhile.
    """

    slow = False

    def __init__(self, *rows: Sequence[Any], text_first: bool = False) -> None:
        self.moved: Any = None  # the control under the hand
        self._moves, self._alt, self.png = 0, "", b""
        self.picture = widgets.HTML()  # an Image widget has no words for those who do not see it
        self.text = widgets.HTML()
        below = [self.text, self.picture] if text_first else [self.picture, self.text]
        super().__init__([*(widgets.HBox(list(row)) for row in rows), *below])
        for control in (control for row in rows for control in row):
            control.observe(self._move, names="value")
        self._redraw()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """For a page without a kernel: the picture and the words."""
        bundle = super()._repr_mimebundle_(**kwargs)
        still = {"image/png": self.png} if self.png else {}
        words = unescape(self.text.value.replace("<br>", "\n"))
        return {**bundle, **still, "text/plain": words}, {name: {"alt": self._alt} for name in still}

    def show(self) -> tuple[Chart | None, str]:
        """The chart, if there is one, and the text for what is chosen."""
        return None, ""

    def _move(self, change: Any) -> None:
        self.moved = change.owner
        kernel = getattr(get_ipython(), "kernel", None)
        if kernel is None or kernel.get_parent().get("header", {}).get("msg_type") != "comm_msg":
            return self._redraw()  # a cell has moved it, and may read the answer in its next line
        self._moves += 1
        self.text.value = "Working …"
        self.picture.layout.visibility = "hidden" if self.slow else "visible"  # hidden, it keeps its place
        asyncio.get_running_loop().call_later(GATHER_S, self._redraw, self._moves)

    def _redraw(self, moves: int | None = None) -> None:
        if moves not in (None, self._moves):
            return  # a later move has come
        try:
            chart, self.text.value = self.show()
        except KitError as refusal:  # what cannot be is explained
            chart, self.text.value = None, escape(str(refusal))
        self.picture.layout.visibility = "visible"
        self.png, size = (b"", {"width": 0}) if chart is None else chart._repr_png_()
        self._alt, data = "" if chart is None else chart.alt, b64encode(self.png).decode()
        shown = f'<img alt="{escape(self._alt)}" width="{size["width"]}" src="data:image/png;base64,{data}">'
        self.picture.value = shown if self.png else ""


def slider(options: Sequence[Any], value: Any, description: str) -> Any:
    """One that stops at each of the options; what it shows is drawn when the hand has let go."""
    return widgets.SelectionSlider(options=options, value=value, description=description, continuous_update=False)


class MemoryPanel(Panel):
    """Bars of a step's predicted memory, one per method; thin above each stands the bar of the last setting.

    While one control moves, the axis stays. What there is one choice of has no control.
    """

    def __init__(
        self,
        models: Sequence[str] = STEP_MODELS,
        methods: Sequence[str] = STEP_METHODS,
        *,
        batches: Sequence[int] = BATCHES,
        lengths: Sequence[int] = LENGTHS,
        ranks: Sequence[int] = (),
    ) -> None:
        self._methods = tuple(methods)
        self._before: Needs | None = None
        self.slow = not {*models} <= {*STEP_MODELS, "pocket"}
        self.model = widgets.Dropdown(options=models, description="model")
        self.batch = slider(batches, 8 if 8 in batches else batches[0], "batch")
        self.length = slider(lengths, 128 if 128 in lengths else lengths[0], "length")
        self.rank = slider(ranks or (0,), 8 if 8 in ranks else (*ranks, 0)[0], "rank")
        self._controls = (self.model, self.batch, self.length, self.rank)
        super().__init__([control for control in self._controls if len(control.options) > 1])

    def show(self) -> tuple[Chart, str]:
        """The bars, and the same in words."""
        settings = self._settings()
        needs = {LABELS[each[1]]: _needs(*each) for each in settings}
        rank = f", rank {self.rank.value}" if self.rank.value else ""
        subtitle = (
            f"{self.model.value}{rank}, batch {self.batch.value} × {self.length.value} tokens, float32; predicted"
        )
        chart = step_memory(needs, subtitle, before=self._before, end_bytes=self._reach())
        self._before = needs
        low = [each for each in settings if each[-1]]
        trains = [f"{LABELS[each[1]]} trains {_needs(*each)[0].counted.gradients_bytes // 4:,}" for each in low]
        return chart, (f"Rank {self.rank.value}: {', '.join(trains)} parameters. " if low else "") + chart.alt

    def _settings(self, moved: object = None, value: Any = None) -> list[Setting]:
        """One per method, as the controls stand, or with one of them moved to another value."""
        model, batch, length, rank = (value if each is moved else each.value for each in self._controls)
        return [(model, name, batch, length, rank or None if name in LOW_RANK else None) for name in self._methods]

    def _reach(self) -> int:
        """The longest bar that the control under the hand leads to, of those that were predicted beforehand."""
        values = self.moved.options if self.moved else ()
        every = [each for value in values for each in self._settings(self.moved, value)]
        return max((n.peak_bytes for each in every if key(each) in _stored() for n in _needs(*each)), default=0)


class FitPanel(Panel):
    """Whether a method fits into a device's memory, why, and what would fit instead."""

    slow = True

    def __init__(self, models: Sequence[str] = BUILT_IN, methods: Sequence[str] = TRAINED) -> None:
        model = "opt-125m" if "opt-125m" in models else models[0]
        method = "lora" if "lora" in methods else methods[0]
        named = [(LABELS[name], name) for name in methods]
        self.model = widgets.Dropdown(options=models, value=model, description="model")
        self.method = widgets.Dropdown(options=named, value=method, description="method")
        self.batch = slider(BATCHES, 8, "batch")
        self.length = slider(LENGTHS, 128, "length")
        self.budget = slider([(f"{size} GiB", size) for size in BUDGETS_GIB], 2, "memory")
        super().__init__([self.model, self.method], [self.batch, self.length, self.budget], text_first=True)

    def show(self) -> tuple[Chart, str]:
        """The method's bar and those of ways that fit instead, with their prices."""
        model, method, batch, length = (c.value for c in (self.model, self.method, self.batch, self.length))
        ram_bytes = self.budget.value * GIB
        need = _needs(model, method, batch, length)[0]
        ways = () if need.process_bytes <= ram_bytes else _ways(model, method, batch, length, ram_bytes)
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
        self.codec = slider(["sign", "int2", "int4", "nf4", "int8", "fp16"], "int4", "codec")
        groups = [(str(group) if group else "a token", group) for group in (0, *reversed(GROUPS[1:]))]
        self.group = slider(groups, 0, "scale per")
        super().__init__([self.codec, self.group])

    def show(self) -> tuple[Chart, str]:
        """The token, and what a value costs and loses."""
        coder = codec(self.codec.value, self.group.value)
        self.group.disabled = self.codec.value in FLOATS
        scale = " It has no scale, so its slider rests." if self.group.disabled else ""
        return one_token(self._token, coder), (
            f"{coder}: {bits_per_value(coder, self._x.shape[-1]):.2f} bits per value, "
            f"relative error over all {len(self._x)} tokens {relative_error(coder, self._x):.3f}.{scale}"
        )


class LinkPanel(Panel):
    """The predicted pace of a run across a link: who sets it, and the timeline that follows.

    ``costs`` says, by what is sent, what a step costs each side; an epoch has ``epoch_steps``.
    """

    def __init__(self, costs: Mapping[str, StepCost], epoch_steps: int = 0) -> None:
        if not costs:
            raise BadInput("No costs of a step to choose from.", "Give at least one StepCost with a name.")
        self._costs, self._epoch_steps = dict(costs), epoch_steps
        self.bandwidth = slider(BANDWIDTHS, 20, "Mb/s")
        self.latency = slider(LATENCIES_MS, 4.0, "latency, ms")
        self.sent = widgets.Dropdown(options=list(self._costs), description="sent")
        super().__init__([self.bandwidth, self.latency, self.sent])

    def show(self) -> tuple[Chart, str]:
        """The timeline at this bandwidth and latency, and who sets the pace."""
        cost, link = self._costs[self.sent.value], Link(float(self.bandwidth.value), float(self.latency.value))
        times = schedule([cost] * (FIRST + STEPS + 1), link)
        seconds = self._epoch_steps * slowest(cost, link)[1]
        epoch = f" An epoch of {self._epoch_steps:,} steps takes {seconds:.1f} s." if self._epoch_steps else ""
        return gantt(spans(times), first=FIRST, steps=STEPS, whose="predicted"), pace_text(cost, link) + epoch


def pace_text(cost: StepCost, link: Link) -> str:
    """One sentence: bytes, pace, and who sets it."""
    who, seconds = slowest(cost, link)
    sent = f"{cost.n_bytes:,} bytes a step over {link.mbit_per_s:g} Mb/s"
    return f"{sent}: {1e3 * seconds:.1f} ms a step, and the {who} sets the pace."


@cache
def _ways(model: str, method: str, batch: int, length: int, ram_bytes: int) -> tuple[Way, ...]:
    ways = alternatives(Step(architecture(model), method, batch, length), ram_bytes)
    return tuple(islice((way for way in ways if way.fits(ram_bytes)), ENOUGH_WAYS))


def key(setting: Setting) -> str:
    """Under which name a setting is stored."""
    return " ".join(str(part) for part in setting if part is not None)


@cache
def _stored() -> dict[str, tuple[MemoryNeed, ...]]:
    found = msgspec.json.decode(STORED.read_bytes(), type=dict[str, list[tuple[CountedMemory, Alive]]])
    return {key: tuple(starmap(_remembered, needs)) for key, needs in found.items()}


def _remembered(counted: CountedMemory, alive: Alive) -> MemoryNeed:
    return MemoryNeed(counted.party, alive, lambda: counted)


@cache
def _needs(model: str, method: str, batch: int, length: int, rank: int | None = None) -> tuple[MemoryNeed, ...]:
    if known := _stored().get(key((model, method, batch, length, rank))):
        return known
    options = None if rank is None else {"rank": rank}
    return Step(architecture(model), method, batch, length, options=options).needs()
