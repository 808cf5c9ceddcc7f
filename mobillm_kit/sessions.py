"""One device's session on the server: what it may send when, and a thread that trains.

The thread that owns the socket calls :meth:`Session.receive` and sends what :meth:`Session.replies` gives; it never
waits for training.  The session's own thread trains, strictly in sequence.

    expected   the next sequence number that is taken in           trained   the next one that is trained
    expected - trained <= credit,     bytes waiting <= budget

Knows: messages, one trainer, one thread.  Knows nothing of: sockets, keys, other sessions.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mobillm_kit.quant import codec
from mobillm_kit.trainer import Reply, Trainer
from mobillm_kit.wire import (
    VERSION,
    Ack,
    Batch,
    Checkpoint,
    Error,
    Fetch,
    Gradient,
    Hello,
    Message,
    Need,
    Ping,
    Plan,
    Pong,
    Welcome,
    WireError,
    check_batch,
    check_gradient,
)

FAREWELL_S = 5.0

OTHER_JOBS = 16
"""Hellos, gradients and questions that may wait beside the batches."""

HELD_RANGES = 3000
"""Ranges of cached samples that fit into a welcome's header; the others are sent once more."""


@dataclass(frozen=True)
class _Job:
    message: Message
    payloads: list[memoryview]
    arrived: float
    n_bytes: int
    again: bool
    """Of a hello: not the first one of its connection."""


class Session:
    """A session from its first hello to its end.

    Args:
        plan: what the device asked for.
        trainer: makes the trainer; called on the session's own thread, since it may read a checkpoint.
        credit: batches that may wait.
        budget_bytes: payload bytes that may wait.
        wake: called when there is something to send.
        threads: torch threads of the session's thread.
    """

    def __init__(
        self,
        plan: Plan,
        trainer: Callable[[], Trainer],
        *,
        credit: int,
        budget_bytes: int,
        wake: Callable[[], None],
        threads: int = 1,
    ) -> None:
        self.plan = plan
        self.credit = credit
        self.budget_bytes = budget_bytes
        self.last_heard = time.monotonic()
        self.failed = False
        self._trainer: Trainer | None = None
        self._expected: int | None = None  # between a hello and its welcome nothing is taken in
        self._trained = 0
        self._asked: int | None = None
        self._waiting_bytes = 0
        self._waiting_jobs = 0
        self._hello: Hello | None = None
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._closing = False
        self._replies: deque[Reply] = deque()
        self._lock = threading.Lock()
        self._wake = wake
        self._thread = threading.Thread(target=self._work, args=(trainer, threads), daemon=True, name="trainer")
        self._thread.start()

    # ------------------------------------------------------------------ on the socket's thread

    def greet(self, hello: Hello, *, again: bool) -> None:
        """Answer a hello with where training stands.

        Args:
            hello: of this session.
            again: it came over the connection that the device has already: it asks, and is no other life of it.

        Raises:
            WireError: ``bad-plan``; it is not the plan that the session was begun with.
        """
        self.last_heard = time.monotonic()
        if hello.plan != self.plan:
            raise WireError(
                "bad-plan", "This session was begun with another plan.", "Begin a new session, or send the same plan."
            )
        with self._lock:
            self._hello = hello
            self._expected = self._asked = None
            self._replies.clear()  # the welcome says it all again
        self._put(hello, [], again=again)

    def receive(self, message: Message, payloads: list[memoryview]) -> None:
        """Take any other message in.

        Raises:
            WireError: it may not be sent now, or does not fit the plan; nothing has changed.
        """
        self.last_heard = time.monotonic()
        if isinstance(message, Ping):
            self._pong(message)
        elif self.failed:
            raise WireError("session-over", "This session has ended with an error.", "Start a new session.")
        elif isinstance(message, Batch):
            self._take_batch(message, payloads)
        elif isinstance(message, Gradient | Checkpoint | Fetch):
            if isinstance(message, Gradient):
                check_gradient(message, [len(payload) for payload in payloads])
            self._put(message, payloads)
        else:
            raise WireError("bad-header", f"A device does not send '{type(message).__name__}' here.", "")

    def replies(self) -> list[Reply]:
        """What is to be sent now, oldest first."""
        with self._lock:
            found = list(self._replies)
            self._replies.clear()
        return found

    def damaged(self) -> None:
        """A message of this session arrived damaged: ask for it again."""
        with self._lock:
            self._asked = None
        self._ask()

    def close(self) -> None:
        """Let the thread end after the step it is in; returns at once."""
        self._closing = True
        self._jobs.put(None)

    @property
    def closed(self) -> bool:
        return not self._thread.is_alive()

    def wait_closed(self, timeout_s: float = FAREWELL_S) -> None:
        self._thread.join(timeout_s)

    def _take_batch(self, message: Batch, payloads: list[memoryview]) -> None:
        check_batch(message, self.plan, [len(payload) for payload in payloads], _payload_bytes)
        n_bytes = sum(len(payload) for payload in payloads)
        with self._lock:
            if self._expected is None or message.sequence < self._expected:
                return  # the welcome will ask for it; or it has been seen, and its acknowledgement is on its way
            in_turn = message.sequence == self._expected
            if in_turn and self._expected - self._trained >= self.credit:
                raise WireError(
                    "over-credit", f"{self.credit} batches are waiting already.", "Wait for acknowledgements."
                )
            if in_turn and self._waiting_bytes + n_bytes > self.budget_bytes:
                raise WireError(
                    "over-quota",
                    f"{self._waiting_bytes + n_bytes} bytes would wait, the budget is {self.budget_bytes}.",
                    "Send smaller batches or fewer bits.",
                )
            if in_turn:
                self._expected += 1
                self._waiting_bytes += n_bytes
                self._asked = None
        if in_turn:
            self._put(message, payloads, n_bytes)
        else:
            self._ask()

    def _ask(self) -> None:
        """Ask once for what is missing; a second gap before it comes says nothing new."""
        with self._lock:
            if self._expected is None or self._asked == self._expected:
                return
            self._asked = self._expected
            self._replies.append((Need(sequence=self._expected), []))
        self._wake()

    def _put(self, message: Message, payloads: list[memoryview], n_bytes: int = 0, *, again: bool = False) -> None:
        with self._lock:
            if self._waiting_jobs >= self.credit + OTHER_JOBS:
                raise WireError("over-credit", "Too many messages are waiting already.", "Wait for the answers.")
            self._waiting_jobs += 1
        self._jobs.put(_Job(message, payloads, time.perf_counter(), n_bytes, again))

    def _pong(self, ping: Ping) -> None:
        with self._lock:
            if len(self._replies) < OTHER_JOBS:  # else nobody takes them
                self._replies.append((Pong(nonce=ping.nonce), []))
        self._wake()

    # ------------------------------------------------------------------ on the session's own thread

    def _work(self, make_trainer: Callable[[], Trainer], threads: int) -> None:
        torch.set_num_threads(threads)  # counted per thread by OpenMP
        deferred: deque[_Job] = deque()
        while True:
            waiting = self._trainer is not None and self._trainer.waiting
            job = deferred.popleft() if deferred and not waiting else self._jobs.get()
            if job is None or self._closing:
                self._trainer = None  # its memory goes, even while somebody still holds this session
                return
            if self.failed:
                continue  # what was trained last may be half a step
            if waiting and isinstance(job.message, Batch | Checkpoint | Fetch):
                deferred.append(job)  # its turn comes after the gradient
                continue
            if isinstance(job.message, Hello):
                self._forget(deferred)  # from before it
            self._do(job, make_trainer)

    def _forget(self, jobs: deque[_Job]) -> None:
        with self._lock:
            self._waiting_jobs -= len(jobs)
            self._waiting_bytes -= sum(job.n_bytes for job in jobs)
        jobs.clear()

    def _do(self, job: _Job, make_trainer: Callable[[], Trainer]) -> None:
        try:
            if self._trainer is None:
                self._trainer = make_trainer()
            replies = self._answer(self._trainer, job)
        except WireError as error:
            replies = [self._failure(error.code, error.problem, error.remedy, job)]
        except Exception as error:  # whatever it is, the device must hear of it and not wait
            reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
            replies = [
                self._failure(
                    "server-trouble",
                    f"The server could not train this batch ({reason}).",
                    "Give the server more memory, or send smaller batches; then run again.",
                    job,
                )
            ]
        with self._lock:
            self._waiting_jobs -= 1
            self._waiting_bytes -= job.n_bytes
            if self._trainer is not None:
                self._trained = self._trainer.sequence
            for message, _ in replies:
                if isinstance(message, Need) and self._expected is not None:
                    self._expected, self._asked = message.sequence, message.sequence
            if isinstance(job.message, Hello) and job.message is not self._hello and not self.failed:
                return  # the device has asked again meanwhile
            self._replies.extend(replies)
        self._wake()

    def _answer(self, trainer: Trainer, job: _Job) -> list[Reply]:
        message = job.message
        if isinstance(message, Hello):
            return self._welcome(trainer, message, job.again)
        if isinstance(message, Batch):
            return trainer.batch(message, job.payloads, time.perf_counter() - job.arrived)
        if isinstance(message, Gradient):
            return trainer.gradient(message, job.payloads)
        if isinstance(message, Checkpoint):
            return self._checkpoint(trainer, message)
        return trainer.result(message.sequence)

    def _welcome(self, trainer: Trainer, hello: Hello, again: bool) -> list[Reply]:
        """Where training stands, and the losses of the steps whose acknowledgements the device may have missed.

        A device that missed more than acknowledgements on their way is another life of it: it goes on from an older
        checkpoint of its own, and training goes back to where it can follow.
        """
        trainer.forget_waiting()
        on_their_way = 0 if self.plan.labels == "device" else self.credit
        if not again and hello.position + on_their_way < trainer.sequence:
            trainer.roll_back(hello.position)
        resume = trainer.sequence
        with self._lock:
            if hello is self._hello:
                self._expected = resume
        welcome = Welcome(
            version=VERSION,
            resume=resume,
            credit=self.credit,
            budget_bytes=self.budget_bytes,
            held=[] if trainer.cache is None else _longest(trainer.cache.held()),
        )
        missed = [
            (Ack(sequence=step, loss=trainer.losses[step], cached=False, queue_s=0.0, decode_s=0.0, train_s=0.0), [])
            for step in range(hello.position, resume)
        ]
        return [(welcome, []), *missed]

    def _checkpoint(self, trainer: Trainer, message: Checkpoint) -> list[Reply]:
        if message.sequence != trainer.sequence:
            raise WireError(
                "bad-sequence",
                f"A checkpoint of step {message.sequence} was asked for, training stands at {trainer.sequence}.",
                "Ask after all batches are acknowledged.",
            )
        return trainer.checkpoint()

    def _failure(self, code: str, sentence: str, remedy: str, job: _Job) -> Reply:
        """What cannot go on: everything that waits is dropped, the session is over, others do not notice."""
        self.failed = True
        sequence = getattr(job.message, "sequence", None)
        return Error(code=code, sentence=sentence, remedy=remedy, sequence=sequence, fatal=True), []


def _longest(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted(sorted(ranges, key=lambda ends: ends[0] - ends[1])[:HELD_RANGES])


def _payload_bytes(name: str, group: int, shape: Sequence[int]) -> int:
    return codec(name, group).wire_bytes(shape)
