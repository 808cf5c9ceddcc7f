"""Ray's driver: hands jobs to nodes, writes what comes back into the runs' folders, tries again what a node lost.

    python -m mobillm_kit.cluster.driver      one order as a JSON line on standard input; words as JSON lines back

A job whose node or process is lost goes to another one, from the last checkpoint that had come; what a run refuses is
refused once.  SIGINT, or the end of standard input, has what runs saved and brought back.

Knows: Ray, jobs, the runs' folders.  Knows nothing of: how a job is done, what is shown of it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

import msgspec

from mobillm_kit.cluster.connection import check_nodes, check_room, connected, here
from mobillm_kit.cluster.node import work
from mobillm_kit.cluster.order import Desk, Order, Said, packed, places, unpack
from mobillm_kit.common import when_parent_ends
from mobillm_kit.errors import KitError, first_line
from mobillm_kit.runs.compare import PATIENCE_S
from mobillm_kit.runs.progress import Progress

TRIES = 3
"""How often a job is begun whose node or process is lost."""
LOOK_S = 0.2
"""Between two looks at what has ended and what is said."""
ROOM_S = 900.0
"""Longest wait for room on a cluster on which none of our jobs runs."""
ANSWER_S = 60.0
"""Longest wait for an answer that needs no room."""

_WORDS = os.dup(1)  # Ray, and whatever it loads, prints on standard output too
os.dup2(2, 1)


class Errands:
    """The jobs of one order, from the first to the last."""

    def __init__(self, order: Order, ray: Any) -> None:
        self._order, self._ray = order, ray
        self._waiting = list(range(len(order.errands)))
        self._running: dict[Any, int] = {}
        self._begun: set[int] = set()
        self._tries = [0] * len(order.errands)
        self._moved = time.monotonic()
        self._refusal: Said | None = None
        self._ends_at: float | None = None
        self._desk = ray.remote(num_cpus=0)(Desk).options(scheduling_strategy=here(ray)).remote()
        self._task = ray.remote(max_retries=0)(work)
        self.stopping = threading.Event()

    def run(self) -> Said | None:
        """Do them all; what the first refusal was."""
        while self._waiting or self._running:
            if self.stopping.is_set() and self._let_stop():
                break
            while self._waiting and len(self._running) < self._order.at_a_time:
                self._hand_out(self._waiting.pop(0))
            ended, _ = self._ray.wait(list(self._running), timeout=LOOK_S)
            self._pass_on()
            for reference in ended:
                self._ended(reference)
            self._check_for_room()
        return self._refusal

    def _hand_out(self, number: int) -> None:
        errand = self._order.errands[number]
        need, self._moved = errand.need, time.monotonic()
        task = self._task.options(num_cpus=need.cpus, num_gpus=need.gpus, memory=need.memory_bytes)
        files = [packed(place) for place in places(errand.job)]
        how = (os.getcwd(), self._order.threads, self._order.command)
        self._running[task.remote(number, errand.job, files, *how, self._desk)] = number

    def _pass_on(self) -> None:
        for number, word in self._ray.get(self._desk.heard.remote(), timeout=ANSWER_S):
            self._begun.add(number)
            self._moved = time.monotonic()
            if isinstance(word, Progress):
                if not self.stopping.is_set():
                    say(Said(word, number))
                continue
            for place, files in zip(places(self._order.errands[number].job), word, strict=True):
                unpack(place, files)

    def _ended(self, reference: Any) -> None:
        number = self._running.pop(reference)
        failures = self._ray.exceptions
        try:
            files, problem, remedy = self._ray.get(reference, timeout=ANSWER_S)
        except failures.TaskCancelledError:
            return
        except failures.RayTaskError as error:  # raised by the task itself: another node would raise it too
            return self._refuse(number, f"the node could not do it ({first_line(error.cause)}).", "")
        except failures.RayError as error:
            return self._lost(number, error)
        for place, of_place in zip(places(self._order.errands[number].job), files, strict=True):
            unpack(place, of_place)
        self._moved = time.monotonic()
        if problem:
            self._refuse(number, problem.removeprefix(f"{self._order.errands[number].job.label}: "), remedy)
        elif not self.stopping.is_set():
            say(Said(Progress(ended=True), number))

    def _lost(self, number: int, error: Exception) -> None:
        self._tries[number] += 1
        self._begun.discard(number)
        if self.stopping.is_set():
            return
        reason = f"{type(error).__name__}, try {self._tries[number]} of {TRIES}"
        if self._tries[number] == TRIES:
            remedy = "See `ray status` and the nodes' logs; what is done is kept."
            return self._refuse(number, f"its node or process was lost each time ({reason}).", remedy)
        label = self._order.errands[number].job.label
        say(Said(Progress(note=f"{label}: its node or process was lost ({reason}); it is begun again."), number))
        self._waiting.insert(0, number)

    def _refuse(self, number: int | None, problem: str, remedy: str) -> None:
        self._refusal = self._refusal or Said(Progress(error=problem, remedy=remedy), number)
        self.stopping.set()

    def _let_stop(self) -> bool:
        """Have what runs saved; True when it has taken too long."""
        if self._ends_at is None:
            self._ends_at = time.monotonic() + 1.5 * PATIENCE_S
            self._waiting.clear()
            self._desk.stop.remote()
            for reference, number in self._running.items():
                if number not in self._begun:
                    self._ray.cancel(reference)
        if time.monotonic() < self._ends_at:
            return False
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        return True

    def _check_for_room(self) -> None:
        if self._begun.intersection(self._running.values()) or time.monotonic() - self._moved < ROOM_S:
            return
        problem = f"The cluster has had no room for a job for {ROOM_S:g} s; others hold it."
        self._refuse(None, problem, "See `ray status`; what is done is kept.")


def main() -> int:
    """Read the order and carry it out; 2 where the user has to put something right."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    when_parent_ends(lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with connected(order.address) as ray:
            check_nodes(ray)
            check_room(ray, order.errands)
            refusal = _carried_out(order, ray)
    except KitError as error:
        refusal = Said(Progress(error=error.problem, remedy=error.remedy))
    except Exception as error:  # whatever Ray raises when the cluster is gone
        problem = f"The cluster is gone, or does not answer ({type(error).__name__}: {first_line(error)})."
        refusal = Said(
            Progress(error=problem, remedy="What is done is kept. Give the same command when Ray runs again.")
        )
    if refusal is not None:
        say(refusal)
    return 2 if refusal else 0


def _carried_out(order: Order, ray: Any) -> Said | None:
    errands = Errands(order, ray)
    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray has set its own
        signal.signal(number, lambda *_: errands.stopping.set())
    return errands.run()


def say(said: Said) -> None:
    """One line to who has started us; nobody listens any more where that has failed."""
    line = msgspec.json.encode(said) + b"\n"
    try:
        while line:
            line = line[os.write(_WORDS, line) :]
    except BrokenPipeError:
        pass


if __name__ == "__main__":
    sys.exit(main())
