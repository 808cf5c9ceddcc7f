"""A job on a node: its run's files in a folder of its own, the same processes as on one machine, the files back.

Knows: jobs, and a desk to talk to.  Knows nothing of: other nodes, which jobs there are.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from mobillm_kit.cluster.order import Files, packed, places, unpack, worth_saying
from mobillm_kit.errors import KitError
from mobillm_kit.runs.compare import Job, Workers
from mobillm_kit.runs.progress import Progress

LOOK_S = 0.3
"""Between two words to the desk."""
ANSWER_S = 30.0
"""Longest wait for the desk; who hears nothing from it any more stops and saves."""
KEEP_S = 30.0
"""Between two copies of a checkpoint sent on: what a lost node costs."""

Outcome = tuple[list[Files], str, str]
"""Files of each run, and the two sentences of what was refused."""


def work(number: int, job: Job, files: Sequence[Files], cwd: str, threads: int, command: str, desk: Any) -> Outcome:
    """Do a job; ``desk`` is an actor of :class:`mobillm_kit.cluster.order.Desk`, ``cwd`` where paths begin."""
    with suppress(OSError):  # a relative path is then refused by who reads it
        os.chdir(cwd)
    with tempfile.TemporaryDirectory(prefix="mobillm-") as top:
        here = {str(place): Path(top) / str(n) for n, place in enumerate(places(job))}
        for place, held in zip(here.values(), files, strict=True):
            unpack(place, held)
        told: SimpleQueue[Progress] = SimpleQueue()
        workers = Workers(threads, command, lambda _job, progress: told.put(progress))
        problem = remedy = ""
        with _talking(number, told, list(here.values()), desk, workers.stop):
            try:
                moved = tuple(str(here.get(word, word)) for word in job.arguments)
                workers.run([replace(job, arguments=moved)], 1)
            except KitError as error:
                problem, remedy = error.problem, error.remedy
        for there, place in here.items():
            problem, remedy = problem.replace(str(place), there), remedy.replace(str(place), there)
        return [packed(place) for place in here.values()], problem, remedy


@contextmanager
def _talking(
    number: int, told: SimpleQueue[Progress], folders: Sequence[Path], desk: Any, stop: Callable[[], object]
) -> Iterator[None]:
    """A thread that passes on what is said and written, and stops the job when it has to."""
    ended = threading.Event()

    def _talk() -> None:
        kept = time.time()
        while not ended.wait(LOOK_S):
            words: list[Any] = worth_saying([told.get() for _ in range(told.qsize())])
            if time.time() - kept > KEEP_S:
                files, kept = [packed(place, newer_than=kept) for place in folders], time.time()
                words += [files] if any(files) else []
            if _must_stop(desk, number, words):
                stop()
                return

    talker = threading.Thread(target=_talk, daemon=True)
    talker.start()
    try:
        yield
    finally:
        ended.set()
        talker.join()


def _must_stop(desk: Any, number: int, words: list[Any]) -> bool:
    import ray

    try:
        return bool(ray.get(desk.tell.remote(number, words), timeout=ANSWER_S))
    except ray.exceptions.RayError:
        return True
