"""Panels that watch learning: a run as it goes, a map of runs, gates by hand, a sentence of one's own.

What trains, answers or listens is handed in as a function; a panel only asks.

Knows: progress, run by run, and the charts of learning.  Knows nothing of: how a run is made.
Taught in: notebooks/04_mezo.ipynb, 06_side_network, 09_comparison, 11_what_the_server_sees
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from mobillm_kit.errors import KitError
from mobillm_kit.record import Provenance
from mobillm_kit.show.chart import Chart
from mobillm_kit.show.panels import Panel, slider, widgets
from mobillm_kit.show.plots_activations import layer_shares
from mobillm_kit.show.plots_learning import mezo_map, progress_so_far
from mobillm_kit.side.adapter import shares_of_gates

if TYPE_CHECKING:
    from mobillm_kit.runs.inference import Prediction
    from mobillm_kit.runs.progress import Told

MAP = Path(__file__).with_name("panel_map.json")  # what scripts/panel_map.py has trained
LOOK_S = 0.5  # between two pictures of a run
END_S = 3600.0  # longest wait for the end of one


class MonitorPanel(Panel):
    """A run in a thread of its own: its loss and dev accuracy as they come, and a button that stops it.

    ``train`` runs, and tells the function it is handed of each step: ``lambda told: kit.run(spec, callbacks=[told])``.
    """

    def __init__(self, train: Callable[[Told], Any]) -> None:
        self._train, self._stop = train, Event()
        self._worker: Thread | None = None
        self._losses: dict[int, float] = {}
        self._accuracies: dict[int, float] = {}
        self._said = "Not started."
        self._result: Any = None
        self._failure: BaseException | None = None
        self.start = widgets.Button(description="Start", tooltip="Train from the beginning")
        self.stop = widgets.Button(description="Stop", tooltip="Stop after this step", disabled=True)
        self.start.on_click(lambda _: self.begin())
        self.stop.on_click(lambda _: self._stop.set())
        super().__init__([self.start, self.stop])

    def show(self) -> tuple[Chart | None, str]:
        """The losses so far, and where the run stands."""
        drawn = progress_so_far(self._losses, self._accuracies) if self._losses or self._accuracies else None
        return drawn, escape(self._said)

    def begin(self) -> None:
        """Start a run, unless one is under way."""
        if self._worker is not None and self._worker.is_alive():
            return
        self._stop.clear()
        self._losses, self._accuracies, self._result, self._failure = {}, {}, None, None
        self.start.disabled, self.stop.disabled = True, False
        self._worker = Thread(target=self._work, args=(torch.get_num_threads(),), daemon=True)
        self._worker.start()

    def wait(self, seconds: float = END_S) -> Any:
        """What ``train`` gives back, when it has ended; what it failed with is raised here."""
        if self._worker is None:
            raise KitError("No run was started.", "Press Start, or call begin().")
        self._worker.join(seconds)
        if self._worker.is_alive():
            raise KitError(f"The run has not ended in {seconds:g} s.", "Wait again, or press Stop.")
        if self._failure is not None:
            raise self._failure
        return self._result

    def _work(self, threads: int) -> None:
        torch.set_num_threads(threads)  # OpenMP counts them per thread
        shown = 0.0

        def _told(said: Any) -> bool:
            nonlocal shown
            if said.loss is not None and not said.what:
                self._losses[said.step] = said.loss
            if said.dev_accuracy is not None:
                self._accuracies[said.step] = said.dev_accuracy
            self._said = said.note or f"{said.what or 'step'} {said.step:,} of {said.steps:,}"
            if time.monotonic() - shown > LOOK_S or said.dev_accuracy is not None:
                self._redraw()
                shown = time.monotonic()
            return self._stop.is_set()

        try:
            self._result = self._train(_told)
            self._said = f"Stopped at step {max(self._losses, default=0):,}." if self._stop.is_set() else "Done."
        except Exception as failure:  # it is the reader's to see, here and in wait()
            self._failure, self._said = failure, f"It has failed. {failure}"
        self.start.disabled, self.stop.disabled = False, True
        self._redraw()


class MezoMapPanel(Panel):
    """MeZO's learning rate × ε: the dev loss after some steps of the packaged task, and one run of the map in words."""

    def __init__(self) -> None:
        found = mezo_runs()
        self.rate, self.eps = (
            slider([(f"{value:g}", value) for value in values], values[len(values) // 2], name)
            for values, name in ((found.rates, "η"), (found.epsilons, "ε"))
        )
        super().__init__([self.rate, self.eps])

    def show(self) -> tuple[Chart, str]:
        """The map with the chosen run framed, and how that run went."""
        found, at = mezo_runs(), (self.rate.value, self.eps.value)
        losses = found.losses[found.epsilons.index(at[1])][found.rates.index(at[0])]
        went = ", ".join(f"{step}: {loss:.2f}" for step, loss in zip(found.steps, losses, strict=True))
        return mezo_map(found.rates, found.epsilons, found.losses, found.steps[-1], at), f"Dev loss at step {went}."


class MezoRuns(msgspec.Struct, frozen=True):
    """Runs of MeZO on the packaged task and model."""

    rates: list[float]
    epsilons: list[float]
    steps: list[int]
    """At which dev loss was looked at; the first is 0."""
    losses: list[list[list[float]]]
    """Per ε, per rate, per step looked at: nats."""
    made_with: Provenance


@cache
def mezo_runs() -> MezoRuns:
    """The stored map."""
    return msgspec.json.decode(MAP.read_bytes(), type=MezoRuns)


class GatePanel(Panel):
    """A trained side network's gates, moved by hand: what each layer then contributes, and how many texts are right.

    ``gates`` are μ_2 … μ_L as trained, each 0..1; ``accuracy`` gives the share of texts right with others.
    """

    def __init__(self, gates: Sequence[float], accuracy: Callable[[Sequence[float]], float]) -> None:
        self._gates, self._accuracy, self._trained = tuple(gates), accuracy, accuracy(gates)
        steps = {"min": 0.0, "max": 1.0, "step": 0.01, "continuous_update": False}
        self.gates = [
            widgets.FloatSlider(value=round(gate, 2), description=f"gate μ{layer}", **steps)
            for layer, gate in enumerate(gates, start=2)
        ]
        super().__init__(self.gates)

    def show(self) -> tuple[Chart, str]:
        """Shares of the layers, as trained and as the sliders stand, and the accuracy of both."""
        yours = [gate.value for gate in self.gates]
        shares = {"trained": shares_of_gates(self._gates), "yours": shares_of_gates(yours)}
        said = f"{self._accuracy(yours):.0%} of the texts are right, with the trained gates {self._trained:.0%}."
        return layer_shares(shares, "adapters as trained"), said


class SentencePanel(Panel):
    """A sentence of one's own: what each trained method answers, what is sent for it, and what can be read of that.

    ``answers`` are by label, such as :meth:`mobillm_kit.runs.inference.Predictor.predict`; ``overheard`` says how many
    bytes a text sends and what an attack makes of them.
    """

    def __init__(
        self,
        text: str,
        answers: Mapping[str, Callable[[Sequence[str]], Sequence[Prediction]]],
        overheard: Callable[[str], tuple[int, str]],
    ) -> None:
        self._answers, self._overheard = dict(answers), overheard
        self.sentence = widgets.Text(value=text, description="text", continuous_update=False)
        self.sentence.layout.width = "90%"
        super().__init__([self.sentence])

    def show(self) -> tuple[None, str]:
        """One line per method, then what was sent and read."""
        text = self.sentence.value.strip()
        if not text:
            return None, "Write a sentence, then press Enter."
        given = {label: predict([text])[0] for label, predict in self._answers.items()}
        lines = [f"{label}: {answer.label} ({answer.probability:.0%})" for label, answer in given.items()]
        n_bytes, read = self._overheard(text)
        lines += [f"sent: {n_bytes:,} bytes for {len(text.encode()):,} bytes of text", f"read back: {read}"]
        return None, "<br>".join(map(escape, lines))
