"""Ctrl-C between two steps, never inside one.

A step that is cut in its middle leaves perturbed weights or half an optimizer update behind.  While this context
holds, the first Ctrl-C is noted and the loop stops after the step; the second one stops at once.

Knows: signals.  Knows nothing of: training.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_after_step() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether somebody has asked to stop (Ctrl-C, or a polite kill)."""
    asked = False

    def _note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # Python delivers signals to the main thread only
        return
    before = {number: signal.signal(number, _note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
