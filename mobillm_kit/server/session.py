"""One device's session on the server: its state, and the thread that trains it.

    expected   the next sequence number that is taken in           trained   the next one that is trained
    expected - trained <= credit,     bytes waiting <= budget

:class:`Session` is a state machine: messages come in, jobs go out, strictly in sequence; what a job gave comes in, and
replies go out.  :class:`TrainingThread` is the clock, the lock and the thread around it; whoever hands it messages
never waits for training.

Knows: messages, one trainer.  Knows nothing of: sockets, keys, other sessions.
Taught in: notebooks/08_device_and_server.ipynb
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import torch

from mobillm_kit.channel import messages
from mobillm_kit.channel.frames import check_batch, check_digests
from mobillm_kit.channel.messages import VERSION, Ack, BatchMessage, Message, Plan, Question, WireError, refusal
from mobillm_kit.errors import first_line
from mobillm_kit.server.session_trainer import Reply, SessionTrainer

log = logging.getLogger(__name__)

HELD_RANGES = 3000
"""Ranges of cached samples that fit into a welcome's header; the others are sent once more."""

OTHER_JOBS = 16
"""Hellos, gradients and questions that may wait beside the batches."""

MakeTrainer = Callable[[], AbstractContextManager[SessionTrainer]]


@dataclass(frozen=True)
class Job:
    """A message that waits for the trainer."""

    message: Message
    payloads: list[memoryview]
    arrived: float
    again: bool = False
    """Of a hello: not the first one of its connection."""

    @property
    def n_bytes(self) -> int:
        """Of a batch's payloads; other messages count by their number."""
        return sum(map(len, self.payloads)) if isinstance(self.message, BatchMessage) else 0


class Session:
    """A session from its first hello to its end; ``credit`` batches, ``budget_bytes`` of payloads may wait."""

    def __init__(self, plan: Plan, *, credit: int, budget_bytes: int) -> None:
        self.plan = plan
        self.credit = credit
        self.budget_bytes = budget_bytes
        self.failed = False
        self._expected: int | None = None  # between a hello and its welcome nothing is taken in
        self._trained = 0
        self._asked: int | None = None
        self._working: list[Job] = []  # the one in training, which counts as waiting
        self.hello: messages.Hello
        self._jobs: deque[Job] = deque()
        self._replies: deque[Reply] = deque()

    # ------------------------------------------------------------------ from the device

    def greet(self, hello: messages.Hello, now: float, *, again: bool) -> None:
        """Answer a hello with where training stands; ``bad-plan`` for another plan than the session was begun with.

        ``again``: it came over the connection that the device has already; it asks, and is no other life of it.
        """
        if hello.plan != self.plan:
            raise refusal("another-plan")
        self.hello = hello
        self._expected = self._asked = None
        self._replies.clear()  # the welcome says it all again
        self._put(Job(hello, [], now, again))

    def receive(self, message: Message, payloads: list[memoryview], now: float) -> None:
        """Take any other message in; a WireError, and nothing changed, where it may not be sent now or fits no plan."""
        if isinstance(message, messages.Ping):
            if len(self._replies) < OTHER_JOBS:  # else nobody takes them
                self._replies.append((messages.Pong(nonce=message.nonce), []))
        elif self.failed:
            raise refusal("session-over")
        elif isinstance(message, BatchMessage):
            check_batch(message, self.plan, [len(payload) for payload in payloads])
            self._take_batch(Job(message, payloads, now), message.sequence)
        elif isinstance(message, messages.First):
            # one at a time: the answer asks for more
            if not any(isinstance(job.message, messages.First) for job in self._jobs):
                self._put(Job(message, payloads, now))
        elif isinstance(message, messages.Gradient | Question):
            if isinstance(message, messages.Gradient) and len(payloads) != 1:
                raise refusal("gradient-frames", came=len(payloads))
            self._put(Job(message, payloads, now))
        else:
            raise refusal("unexpected-kind", kind=type(message).__name__)

    def damaged(self) -> None:
        """A message of this session arrived damaged: ask for it again."""
        self._asked = None
        self._ask()

    def replies(self) -> list[Reply]:
        """What is to be sent now, oldest first."""
        found, self._replies = list(self._replies), deque()
        return found

    # ------------------------------------------------------------------ to and from the trainer

    def next_job(self, *, waiting: bool) -> Job | None:
        """What to do now; while a step is ``waiting`` for the device's gradient, no batch and no question."""
        if self.failed:  # what was trained last may be half a step
            self._jobs.clear()
        for number, job in enumerate(self._jobs):
            if waiting and isinstance(job.message, BatchMessage | Question):
                continue
            if isinstance(job.message, messages.Hello):
                while self._jobs[0] is not job:  # what has waited since before it
                    self._jobs.popleft()
                number = 0
            del self._jobs[number]
            self._working = [job]
            return job
        return None

    def resume(self, hello: messages.Hello, sequence: int) -> None:
        """Training stands at ``sequence``: take batches in from there, unless the device has asked again meanwhile."""
        if hello is self.hello:
            self._expected = sequence

    def done(self, job: Job, replies: Sequence[Reply], trained: int) -> None:
        """A job is done; ``trained`` is the step that comes next."""
        self._working = []
        self._trained = trained
        for message, _ in replies:
            if isinstance(message, messages.Need) and self._expected is not None:
                self._expected = self._asked = message.sequence
        again = any(isinstance(other.message, messages.Hello) for other in self._jobs)
        if not (again and isinstance(job.message, messages.Hello | messages.First)) or self.failed:
            self._replies.extend(replies)  # else the device has asked again meanwhile

    def fail(self, job: Job, error: WireError) -> None:
        """It cannot go on: everything that waits is dropped, the session is over, others do not notice."""
        self.failed = True
        self.done(job, [(error.said(fatal=True, sequence=getattr(job.message, "sequence", None)), [])], self._trained)

    # ------------------------------------------------------------------ inside

    def _take_batch(self, job: Job, sequence: int) -> None:
        if self._expected is None or sequence < self._expected:
            return  # the welcome will ask for it; or it has been seen, and its acknowledgement is on its way
        if sequence > self._expected:
            self._ask()
            return
        if self._expected - self._trained >= self.credit:
            raise refusal("over-credit", credit=self.credit)
        n_bytes = sum(each.n_bytes for each in (*self._working, *self._jobs, job))
        if n_bytes > self.budget_bytes:
            raise refusal("over-budget", n_bytes=n_bytes, budget=self.budget_bytes)
        self._put(job)
        self._expected += 1
        self._asked = None

    def _ask(self) -> None:
        """Ask once for what is missing; a second gap before it comes says nothing new."""
        if self._expected is not None and self._asked != self._expected:
            self._asked = self._expected
            self._replies.append((messages.Need(sequence=self._expected), []))

    def _put(self, job: Job) -> None:
        if len(self._working) + len(self._jobs) >= self.credit + OTHER_JOBS:
            raise refusal("too-many-waiting")
        self._jobs.append(job)


class TrainingThread:
    """Trains a session until it is closed.

    Args:
        session: its state; nobody else may touch it.
        trainer: makes the trainer, and holds its folder until the thread ends; entered on the thread itself, since it
            may read a checkpoint.
        wake: called when there is something to send.
        threads: torch threads of this thread.
    """

    def __init__(self, session: Session, trainer: MakeTrainer, *, wake: Callable[[], None], threads: int = 1) -> None:
        self.last_heard = time.monotonic()
        self.plan = session.plan
        self.losses: list[float] = []  # of each step so far, earlier lives' too; for any thread to read
        self._session = session
        self._make_trainer = trainer
        self._trainer: SessionTrainer | None = None
        self._held = ExitStack()
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
            if isinstance(message, messages.Hello):
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

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait for the thread's end; whether it came."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # ------------------------------------------------------------------ on the thread

    def _work(self, threads: int) -> None:
        torch.set_num_threads(threads)  # counted per thread by OpenMP
        with self._held:
            while (job := self._next_job()) is not None:
                self._do(job)
            self._trainer = None  # its memory goes, even while somebody still holds this session

    def _next_job(self, *, wait: bool = True) -> Job | None:
        with self._changed:
            while not self._closing:
                waiting = self._trainer is not None and self._trainer.waiting
                if (job := self._session.next_job(waiting=waiting)) is not None:
                    return job
                if not wait:
                    break
                self._changed.wait()
            return None

    def _do(self, job: Job) -> None:
        try:
            if self._trainer is None:
                self._trainer = self._held.enter_context(self._make_trainer())
            replies = self._answer(self._trainer, job)
        except WireError as error:
            self._fail(job, error)
        except Exception as error:  # whatever it is, the device must hear of it and not wait
            log.exception("A step of one session met an error of this server; the others go on.")
            self._fail(job, refusal("not-trained", reason=first_line(error)))
        else:
            with self._changed:
                self._session.done(job, replies, self._trainer.sequence)
                self.losses = self._trainer.losses
        self._wake()

    def _fail(self, job: Job, error: WireError) -> None:
        with self._changed:
            self._session.fail(job, error)

    def _answer(self, trainer: SessionTrainer, job: Job) -> list[Reply]:
        message = job.message
        if isinstance(message, messages.Hello):
            return self._welcome(trainer, message, job.again)
        if isinstance(message, messages.First):
            taken = trainer.first(message.offset, job.payloads[0])
            return self._welcome(trainer, self._session.hello, True) if taken else []
        if isinstance(message, BatchMessage):
            try:
                check_digests(message.frames, job.payloads)
            except WireError as error:
                return [(error.said(fatal=False), []), (messages.Need(sequence=message.sequence), [])]
            return trainer.batch(message, job.payloads, time.perf_counter() - job.arrived)
        if isinstance(message, messages.Gradient):
            return trainer.gradient(message, job.payloads)
        assert isinstance(message, Question)
        return _told(trainer, message)

    def _welcome(self, trainer: SessionTrainer, hello: messages.Hello, again: bool) -> list[Reply]:
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
        if trainer.first_at is None:
            with self._changed:
                session.resume(hello, resume)
        held = [] if trainer.cache is None else trainer.cache.held()
        welcome = messages.Welcome(
            version=VERSION,
            resume=resume,
            credit=session.credit,
            budget_bytes=session.budget_bytes,
            held=sorted(sorted(held, key=lambda ends: ends[0] - ends[1])[:HELD_RANGES]),
            first=trainer.first_at,
        )
        missed: list[Reply] = [
            (Ack(sequence=step, loss=trainer.losses[step], cached=False, queue_s=0.0, decode_s=0.0, train_s=0.0), [])
            for step in range(hello.position, resume)
        ]
        return [(welcome, []), *missed]


def _told(trainer: SessionTrainer, question: Question) -> list[Reply]:
    """The answer to a question; one about another step than training stands at changes nothing."""
    stands = "its first weights" if trainer.first_at is not None else trainer.sequence
    if question.sequence != stands:
        error = refusal("another-step", sequence=question.sequence, stands=stands)
        return [(error.said(fatal=False, sequence=question.sequence), [])]
    return trainer.checkpoint() if isinstance(question, messages.Checkpoint) else trainer.result()
