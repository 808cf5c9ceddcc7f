"""An event loop in a thread of its own.

Knows: asyncio and threads.  Knows nothing of: sockets, links.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Self, TypeVar

from mobillm_kit.errors import KitError

CLOSE_LIMIT_S = 2.0

_Answer = TypeVar("_Answer")


class LoopThread:
    """Runs from `_start` to `close`.

    Args:
        name: for errors.
        ending: called in the thread when the loop has stopped, before its tasks are waited for.
    """

    def __init__(self, name: str, ending: Callable[[], object]) -> None:
        self._name = name
        self._ending = ending
        self._loop = asyncio.SelectorEventLoop()  # the same on every system
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def closed(self) -> bool:
        """Nothing runs any more."""
        return not self._thread.is_alive()

    def close(self) -> None:
        """End the loop and wait for the thread, at most two seconds.

        Raises:
            KitError: the thread still runs after that.
        """
        with contextlib.suppress(RuntimeError):  # closed already
            self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread is threading.current_thread():
            return
        self._thread.join(CLOSE_LIMIT_S)
        if self._thread.is_alive():
            raise KitError(f"The {self._name} did not end within {CLOSE_LIMIT_S:g} s.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self) -> None:
        self._thread.start()

    def _in_loop(self, job: Callable[[], _Answer]) -> _Answer:
        """Run a job in the loop's thread and wait for it, so that its effect holds when this returns."""
        if self._thread is threading.current_thread():
            return job()
        answer: Future[_Answer] = Future()

        def run_job() -> None:
            """Answer with what the job gives or raises."""
            try:
                answer.set_result(job())
            except Exception as error:
                answer.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(run_job)
            return answer.result(CLOSE_LIMIT_S)
        except RuntimeError:
            raise KitError(f"The {self._name} is closed.", "Make a new one.") from None
        except TimeoutError:
            raise KitError(f"The {self._name} did not answer within {CLOSE_LIMIT_S:g} s.") from None

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._ending()
            if left := asyncio.all_tasks(self._loop):
                self._loop.run_until_complete(asyncio.wait(left))
            self._loop.close()
