"""When each stage of a step ran, on the device's clock.

    device   forward, encode          link   send          server   queue, decode, train

The server reports how long its stages took, never what its clock says: two machines' clocks may be hours apart.  Its
stages are placed backwards from the moment its acknowledgement arrived; ``send`` is what remains of the time between
handing the batch to the socket, or the end of the batch before it on the line, and that moment.

Knows: durations.  Knows nothing of: what happens in a stage.
Taught in: notebooks/08_device_and_server.ipynb
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mobillm_kit.record import Span, Stage

KEPT_STEPS = 48
"""Steps of which spans are kept: enough to see the rhythm, few enough for a record."""

NEWEST = 0.25
"""Weight of the newest duration in a running average."""


class Timeline:
    """Collects spans; from any thread."""

    def __init__(self, keep_steps: int = KEPT_STEPS) -> None:
        self._keep_steps = keep_steps
        self._spans: list[Span] = []
        self._begin: float | None = None
        self._line_free = float("-inf")
        self._average_s: dict[Stage, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def span(self, stage: Stage, step: int) -> Iterator[None]:
        """The time that the body takes."""
        started = time.perf_counter()
        yield
        self.add(stage, step, started, time.perf_counter() - started)

    def add(self, stage: Stage, step: int, started: float, seconds: float) -> None:
        """A stage that began at ``started`` on ``time.perf_counter``."""
        with self._lock:
            if self._begin is None:
                self._begin = started
            average = self._average_s.get(stage, seconds)
            self._average_s[stage] = average + NEWEST * (seconds - average)
            if step < self._keep_steps:
                span = Span(stage=stage, step=step, start_s=started - self._begin, seconds=max(0.0, seconds))
                self._spans.append(span)

    def arrived(self, step: int, sent: float, queue_s: float, decode_s: float, train_s: float) -> None:
        """An acknowledgement has just come: place the link's and the server's stages before now."""
        now = time.perf_counter()
        received = now - queue_s - decode_s - train_s
        begun = max(sent, self._line_free)  # batches wait for each other in the socket; the line carries one
        self.add("send", step, begun, max(0.0, received - begun))
        self._line_free = max(received, self._line_free)
        self.add("queue", step, received, queue_s)
        self.add("decode", step, now - decode_s - train_s, decode_s)
        self.add("train", step, now - train_s, train_s)

    def average_s(self, stage: Stage) -> float | None:
        """Running average of a stage's seconds; None where it has not run yet."""
        with self._lock:
            return self._average_s.get(stage)

    def spans(self) -> tuple[Span, ...]:
        """What was done when, in order of beginning."""
        with self._lock:
            return tuple(sorted(self._spans, key=lambda span: (span.start_s, span.step)))
