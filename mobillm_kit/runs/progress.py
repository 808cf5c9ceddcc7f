"""How far a run is: one type, from the training loop and the worker processes to the bars of the command line.

Knows: steps, and how rich draws them.  Knows nothing of: what a step does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rich.console import Console


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is said after a step."""

    step: int = 0
    steps: int = 0
    """0 where it is not known yet."""
    what: str = ""
    """What the steps are, where they are not training's."""
    note: str = ""
    """A sentence on the texts, said before the first step."""
    loss: float | None = None
    """Of the step; None where it is still under way."""
    dev_accuracy: float | None = None
    """There when the dev split was evaluated."""
    ended: bool = False
    """Nothing more will be said."""
    error: str = ""
    remedy: str = ""


Told = Callable[[Progress], object]


class Bars(AbstractContextManager["Bars"]):
    """Bars with name, steps, dev accuracy and time left; each shows from its first word on."""

    def __init__(self, console: Console) -> None:
        from rich import progress as rich  # a worker process says how far it is and draws nothing

        steps, note = rich.MofNCompleteColumn(), rich.TextColumn("{task.fields[note]}")
        name, bar = rich.TextColumn("{task.description}"), rich.BarColumn(bar_width=30)
        self._bars = rich.Progress(name, bar, steps, note, rich.TimeRemainingColumn(), console=console)
        self._tasks: dict[str, Any] = {}
        self._said: set[str] = set()

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def of(self, label: str) -> Told:
        """What moves the bar of that name."""

        def _show(said: Progress) -> None:
            if said.note:
                if said.note not in self._said:
                    self._bars.console.print(said.note, markup=False, highlight=False, soft_wrap=True)
                self._said.add(said.note)
                return
            self._bars.start()
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(label, total=None, note="")
            changes: dict[str, Any] = {"completed": said.step, "total": said.steps or None}
            if said.what or said.dev_accuracy is not None:
                changes["note"] = said.what or f"dev {100 * (said.dev_accuracy or 0):.1f} %"
            if said.ended:
                changes = {"completed": 1, "total": 1, "note": "done"}
            self._bars.update(self._tasks[label], **changes)

        return _show
