"""Progress bars with the time left, for the command line.

Knows: rich, and what runs say of themselves.  Knows nothing of: how they run.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mobillm_kit.compare import Job
from mobillm_kit.fit import FitEvent
from mobillm_kit.worker import Progress as Said


def bars(console: Console) -> Progress:
    """Name, bar, steps, dev accuracy, time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
    )


class ProgressBars:
    """One bar per worker process."""

    def __init__(self, console: Console) -> None:
        self._bars = bars(console)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBars:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def listen(self, job: Job, said: Said) -> None:
        """Move the bar of a job."""
        if job.label not in self._tasks:
            self._tasks[job.label] = self._bars.add_task(job.label, total=None, note="")
        updates: dict[str, Any] = {"completed": said.step, "total": said.steps or None}
        if said.dev_accuracy is not None:
            updates["note"] = f"dev {100 * said.dev_accuracy:.1f} %"
        if said.testing:
            updates["note"] = "test"
        if said.ended:
            updates = {"completed": 1, "total": 1, "note": "done"}
        self._bars.update(self._tasks[job.label], **updates)


class OneBar:
    """The bar of one run in this process: training, then its held-out texts.  It shows from its first word on."""

    def __init__(self, console: Console, label: str) -> None:
        self._bars = bars(console)
        self._label = label
        self._task = self._bars.add_task(label, total=None, note="")

    def __enter__(self) -> OneBar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def on_step(self, event: FitEvent) -> None:
        self._bars.start()
        note = {} if event.point is None else {"note": f"dev {100 * event.point.dev_accuracy:.1f} %"}
        self._bars.update(self._task, completed=event.step, total=event.steps, **note)

    def on_test(self, done: int, total: int) -> None:
        self._bars.start()
        self._bars.update(self._task, description=f"{self._label}, test", completed=done, total=total, note="")
