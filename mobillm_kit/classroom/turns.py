"""Whose turn it is to be trained: equal seconds of the trainer for each student, however many sessions they have.

    start-time fair queueing     S = max(v, F)     F = S + seconds of the turn     v = S of the turn that began last

The next turn is the waiting key's with the smallest S; a step's seconds need not be known before it (Goyal, Vin, Cheng,
SIGCOMM 1996).  Who was away has no claim to what went by; a step that runs is not cut short.  With a pace of r steps a
second, a key's next step is held back until 1 / r after its last one.

Knows: keys, seconds, the training thread.  Knows nothing of: sockets, names, how a batch is trained.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from mobillm_kit.channel.messages import BatchMessage
from mobillm_kit.server.session import Job, MakeTrainer, Session, TrainingThread

LOOK_S = 1.0
"""Longest wait without a look."""
HELD_S = 2.0
"""Held back in the last so many seconds is held back now."""


@dataclass(eq=False)
class _Share:
    """What a key has had."""

    finish_s: float = 0.0
    running: int = 0
    due: float = 0.0
    """Its next step may begin, on the clock."""
    held_at: float = float("-inf")
    line: "deque[Seat]" = field(default_factory=deque)

    def first(self, now: float) -> "Seat | None":
        """Whose turn is next of the key's sessions; a step that is not due yet is passed over."""
        for seat in self.line:
            if not seat.step or self.due <= now:
                return seat
            self.held_at = now
        return None


@dataclass(eq=False)
class Seat:
    """A session's way to its turns."""

    share: _Share
    changed: threading.Condition  # of all seats' one lock
    step: bool = False
    """It waits for a training step, which the pace counts."""
    running: bool = False
    left: bool = False
    began: float = 0.0


class Turns:
    """Gives turns, ``at_once`` at a time; any method from any thread.

    Args:
        most_per_s: training steps per second of a key; 0 is no limit.
        clock: seconds, steady.
    """

    def __init__(self, at_once: int = 1, most_per_s: float = 0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._at_once = at_once
        self._pause_s = 1 / most_per_s if most_per_s else 0.0
        self._clock = clock
        self._lock = threading.Lock()
        self._shares: dict[str, _Share] = {}
        self._running = 0
        self._now_s = 0.0  # v

    def seat(self, key: str) -> Seat:
        """For one session of a key."""
        with self._lock:
            return Seat(self._shares.setdefault(key, _Share()), threading.Condition(self._lock))

    def take(self, seat: Seat, *, step: bool, wait: bool = True) -> bool:
        """Line up, unless it stands there, and wait for the turn; False where it has none, or the session has left."""
        with self._lock:
            self._line_up(seat, step)
            self._call()
            while wait and not (seat.running or seat.left):
                due_s = seat.share.due - self._clock() if step else 0.0
                seat.changed.wait(min(due_s, LOOK_S) if due_s > 0 else LOOK_S)
                self._call()
            return seat.running

    def end(self, seat: Seat, *, again: bool, step: bool = False) -> None:
        """The turn is over; ``again`` lines up anew at once: a moment later somebody's heavy step would have begun."""
        with self._lock:
            seat.running = False
            self._running -= 1
            seat.share.running -= 1
            seat.share.finish_s += self._clock() - seat.began
            if again:
                self._line_up(seat, step)
            self._call()

    def leave(self, seat: Seat) -> None:
        """Wait no more, now and from now on; a turn that has begun is ended by who has it."""
        with self._lock:
            seat.left = True
            if seat in seat.share.line:
                seat.share.line.remove(seat)
            seat.changed.notify()

    def held(self, key: str) -> bool:
        """Whether a step of a key was held back lately."""
        return key in self._shares and self._clock() - self._shares[key].held_at < HELD_S

    # ------------------------------------------------------------------ inside, the lock held

    def _line_up(self, seat: Seat, step: bool) -> None:
        if not (seat.left or seat.running or seat in seat.share.line):
            seat.step = step
            seat.share.line.append(seat)

    def _call(self) -> None:
        """Begin as many turns as may be."""
        while self._running < self._at_once:
            now = self._clock()
            found = [seat for share in self._shares.values() if (seat := share.first(now))]
            if not found:
                return
            # of a key that has a turn already, another one only where nobody else waits
            seat = min(found, key=lambda seat: (seat.share.running, max(self._now_s, seat.share.finish_s)))
            share = seat.share
            self._now_s = share.finish_s = max(self._now_s, share.finish_s)
            share.line.remove(seat)
            share.running += 1
            self._running += 1
            if seat.step:  # what came late by less than a pause is made good
                share.due = max(share.due, now - self._pause_s) + self._pause_s
            seat.running, seat.began = True, now
            seat.changed.notify()


class InTurn(TrainingThread):
    """A session's training thread that does each of its jobs in a turn."""

    def __init__(
        self, turns: Turns, key: str, session: Session, trainer: MakeTrainer, *, wake: Callable[[], None], threads: int
    ) -> None:
        self._turns, self._seat = turns, turns.seat(key)
        super().__init__(session, trainer, wake=wake, threads=threads)

    def close(self) -> None:
        """Who waits for a turn waits no more."""
        super().close()
        self._turns.leave(self._seat)

    def _do(self, job: Job) -> None:
        """This job and those that wait behind it."""
        following: Job | None = job
        while following is not None and self._turns.take(self._seat, step=_is_step(following)):
            job, following = following, None
            try:
                super()._do(job)
                following = self._next_job(wait=False)
            finally:
                self._turns.end(self._seat, again=following is not None, step=_is_step(following))


def _is_step(job: Job | None) -> bool:
    return job is not None and isinstance(job.message, BatchMessage)
