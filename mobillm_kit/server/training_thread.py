"""The thread that trains one session, and the lock around the session's state.

The server's loop hands messages in and takes replies out; it never waits for training.

Knows: one session, one trainer, a clock.  Knows nothing of: sockets, keys, other sessions.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

from mobillm_kit.channel import (
    VERSION,
    Ack,
    BatchMessage,
    Checkpoint,
    Fetch,
    Gradient,
    Hello,
    Message,
    Welcome,
    WireError,
)
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.server.session import Job, Session
from mobillm_kit.server.session_trainer import Reply, SessionTrainer

HELD_RANGES = 3000
"""Ranges of cached samples that fit into a welcome's header; the others are sent once more."""


class TrainingThread:
    """Trains a session until it is closed.

    Args:
        session: its state; nobody else may touch it.
        trainer: makes the trainer; called on the thread itself, since it may read a checkpoint.
        wake: called when there is something to send.
        threads: torch threads of this thread.
    """

    def __init__(
        self, session: Session, trainer: Callable[[], SessionTrainer], *, wake: Callable[[], None], threads: int = 1
    ) -> None:
        self.last_heard = time.monotonic()
        self._session = session
        self._make_trainer = trainer
        self._trainer: SessionTrainer | None = None
        self._closing = False
        self._wake = wake
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, args=(threads,), daemon=True, name="trainer")
        self._thread.start()

    # ------------------------------------------------------------------ for the server's loop

    @property
    def failed(self) -> bool:
        """Whether the session has ended with an error."""
        return self._session.failed

    def receive(self, message: Message, payloads: list[memoryview], *, again: bool = False) -> None:
        """Take a message in; arguments and errors as for :meth:`Session.greet` and :meth:`Session.receive`."""
        self.last_heard = time.monotonic()
        with self._changed:
            if isinstance(message, Hello):
                self._session.greet(message, time.perf_counter(), again=again)
            else:
                self._session.receive(message, payloads, time.perf_counter())
            self._changed.notify()

    def damaged(self) -> None:
        """A message of this session arrived damaged: ask for it again."""
        with self._changed:
            self._session.damaged()

    def replies(self) -> list[Reply]:
        """What is to be sent now, oldest first."""
        with self._changed:
            return self._session.replies()

    def close(self) -> None:
        """Let the thread end after the step it is in; returns at once."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    @property
    def closed(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def wait_closed(self, timeout_s: float = TIMINGS.end_s) -> None:
        """Wait for the thread's end."""
        self._thread.join(timeout_s)

    # ------------------------------------------------------------------ on the thread

    def _work(self, threads: int) -> None:
        torch.set_num_threads(threads)  # counted per thread by OpenMP
        while (job := self._next_job()) is not None:
            self._do(job)
        self._trainer = None  # its memory goes, even while somebody still holds this session

    def _next_job(self) -> Job | None:
        with self._changed:
            while not self._closing:
                waiting = self._trainer is not None and self._trainer.waiting
                job = self._session.next_job(waiting=waiting)
                if job is not None:
                    return job
                self._changed.wait()
            return None

    def _do(self, job: Job) -> None:
        try:
            if self._trainer is None:
                self._trainer = self._make_trainer()
            replies = self._answer(self._trainer, job)
        except WireError as error:
            self._fail(job, error)
        except Exception as error:  # whatever it is, the device must hear of it and not wait
            reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
            problem = f"The server could not train this batch ({reason})."
            remedy = "Give the server more memory, or send smaller batches; then run again."
            self._fail(job, WireError("server-trouble", problem, remedy))
        else:
            with self._changed:
                self._session.done(job, replies, self._trainer.sequence)
        self._wake()

    def _fail(self, job: Job, error: WireError) -> None:
        with self._changed:
            self._session.fail(job, error)

    def _answer(self, trainer: SessionTrainer, job: Job) -> list[Reply]:
        message = job.message
        if isinstance(message, Hello):
            return self._welcome(trainer, message, job.again)
        if isinstance(message, BatchMessage):
            return trainer.batch(message, job.payloads, time.perf_counter() - job.arrived)
        if isinstance(message, Gradient):
            return trainer.gradient(message, job.payloads)
        if isinstance(message, Checkpoint):
            return _checkpoint(trainer, message)
        assert isinstance(message, Fetch)
        return trainer.result(message.sequence)

    def _welcome(self, trainer: SessionTrainer, hello: Hello, again: bool) -> list[Reply]:
        """Where training stands, and the losses of the steps whose acknowledgements the device may have missed.

        A device that missed more than acknowledgements on their way is another life of it: it goes on from an older
        checkpoint of its own, and training goes back to where it can follow.
        """
        session = self._session
        trainer.forget_waiting()
        on_their_way = 0 if session.plan.labels == "device" else session.credit
        if not again and hello.position + on_their_way < trainer.sequence:
            trainer.roll_back(hello.position)
        resume = trainer.sequence
        with self._changed:
            session.resume(hello, resume)
        welcome = Welcome(
            version=VERSION,
            resume=resume,
            credit=session.credit,
            budget_bytes=session.budget_bytes,
            held=[] if trainer.cache is None else _longest(trainer.cache.held()),
        )
        missed: list[Reply] = [
            (Ack(sequence=step, loss=trainer.losses[step], cached=False, queue_s=0.0, decode_s=0.0, train_s=0.0), [])
            for step in range(hello.position, resume)
        ]
        return [(welcome, []), *missed]


def _checkpoint(trainer: SessionTrainer, message: Checkpoint) -> list[Reply]:
    if message.sequence != trainer.sequence:
        raise WireError(
            "bad-sequence",
            f"A checkpoint of step {message.sequence} was asked for, training stands at {trainer.sequence}.",
            "Ask after all batches are acknowledged.",
        )
    return trainer.checkpoint()


def _longest(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted(sorted(ranges, key=lambda ends: ends[0] - ends[1])[:HELD_RANGES])
