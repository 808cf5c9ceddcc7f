"""A slider over the link's bandwidth: who sets the pace, and the Gantt figure that follows.

Knows: the pipeline's arithmetic and its figure.  Knows nothing of: sockets, how costs were measured.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

from collections.abc import Mapping

import ipywidgets as widgets

from mobillm_kit.errors import BadInput
from mobillm_kit.link import Link
from mobillm_kit.overlap import StepCost, schedule, slowest, spans
from mobillm_kit.plots_link import gantt

BANDWIDTHS = (1, 2, 5, 10, 20, 60, 200, 1000)
"""Mb/s to choose from."""

FIRST, STEPS = 8, 6
"""Steps that are drawn."""


class LinkPanel(widgets.VBox):
    """The predicted pace of a run under two controls.

    Args:
        costs: by what is sent, what a step costs each side.
        latency_ms: one way.

    Raises:
        BadInput: nothing to choose from.
    """

    def __init__(self, costs: Mapping[str, StepCost], latency_ms: float = 4.0) -> None:
        if not costs:
            raise BadInput("No costs of a step to choose from.", "Give at least one StepCost with a name.")
        self._costs = dict(costs)
        self._latency_ms = latency_ms
        self.bandwidth = widgets.SelectionSlider(
            options=BANDWIDTHS, value=20, description="Mb/s", continuous_update=False
        )
        self.sent = widgets.Dropdown(options=list(self._costs), description="sent")
        self.picture = widgets.Image(format="png")
        self.text = widgets.HTML()
        super().__init__([widgets.HBox([self.bandwidth, self.sent]), self.picture, self.text])
        for control in (self.bandwidth, self.sent):
            control.observe(self._redraw, names="value")
        self._redraw()

    def _redraw(self, _change: object = None) -> None:
        cost, link = self._costs[self.sent.value], Link(float(self.bandwidth.value), self._latency_ms)
        times = schedule([cost] * (FIRST + STEPS + 1), link)
        figure = gantt(spans(times), first=FIRST, steps=STEPS)
        self.picture.value, size = figure._repr_png_()
        self.picture.width = str(size["width"])
        self.text.value = pace_text(cost, link)


def pace_text(cost: StepCost, link: Link) -> str:
    """One sentence: bytes, pace, and who sets it."""
    who, seconds = slowest(cost, link)
    return (
        f"{cost.n_bytes:,} bytes a step over {link.mbit_per_s:g} Mb/s: {1e3 * seconds:.1f} ms a step, "
        f"and the {who} sets the pace."
    )
