"""One device's session on the server as a state machine: what it may send when, and what is to be trained next.

    expected   the next sequence number that is taken in           trained   the next one that is trained
    expected - trained <= credit,     bytes waiting <= budget

Messages come in, jobs go out, strictly in sequence; what a job gave comes in, and replies go out.

Knows: messages, and the moments it is told.  Knows nothing of: clocks, sockets, threads, training, other sessions.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mobillm_kit.channel import (
    BatchMessage,
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
    WireError,
    check_batch,
    check_gradient,
)
from mobillm_kit.quant import codec
from mobillm_kit.server.session_trainer import Reply

OTHER_JOBS = 16
"""Hellos, gradients and questions that may wait beside the batches."""


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
    """A session from its first hello to its end.

    Args:
        plan: what the device asked for.
        credit: batches that may wait.
        budget_bytes: payload bytes that may wait.
    """

    def __init__(self, plan: Plan, *, credit: int, budget_bytes: int) -> None:
        self.plan = plan
        self.credit = credit
        self.budget_bytes = budget_bytes
        self.failed = False
        self._expected: int | None = None  # between a hello and its welcome nothing is taken in
        self._trained = 0
        self._asked: int | None = None
        self._waiting_bytes = 0
        self._waiting_jobs = 0
        self._hello: Hello | None = None
        self._jobs: deque[Job] = deque()
        self._replies: deque[Reply] = deque()

    # ------------------------------------------------------------------ from the device

    def greet(self, hello: Hello, now: float, *, again: bool) -> None:
        """Answer a hello with where training stands.

        Args:
            hello: of this session.
            now: the present moment, in seconds.
            again: it came over the connection that the device has already: it asks, and is no other life of it.

        Raises:
            WireError: ``bad-plan``; it is not the plan that the session was begun with.
        """
        if hello.plan != self.plan:
            raise WireError(
                "bad-plan", "This session was begun with another plan.", "Begin a new session, or send the same plan."
            )
        self._hello = hello
        self._expected = self._asked = None
        self._replies.clear()  # the welcome says it all again
        self._put(Job(hello, [], now, again))

    def receive(self, message: Message, payloads: list[memoryview], now: float) -> None:
        """Take any other message in.

        Raises:
            WireError: it may not be sent now, or does not fit the plan; nothing has changed.
        """
        if isinstance(message, Ping):
            if len(self._replies) < OTHER_JOBS:  # else nobody takes them
                self._replies.append((Pong(nonce=message.nonce), []))
        elif self.failed:
            raise WireError("session-over", "This session has ended with an error.", "Start a new session.")
        elif isinstance(message, BatchMessage):
            check_batch(message, self.plan, [len(payload) for payload in payloads], _payload_bytes)
            self._take_batch(Job(message, payloads, now), message.sequence)
        elif isinstance(message, Gradient | Checkpoint | Fetch):
            if isinstance(message, Gradient):
                check_gradient(message, [len(payload) for payload in payloads])
            self._put(Job(message, payloads, now))
        else:
            raise WireError("bad-header", f"A device does not send '{type(message).__name__}' here.", "")

    def damaged(self) -> None:
        """A message of this session arrived damaged: ask for it again."""
        self._asked = None
        self._ask()

    def replies(self) -> list[Reply]:
        """What is to be sent now, oldest first."""
        found = list(self._replies)
        self._replies.clear()
        return found

    # ------------------------------------------------------------------ to and from the trainer

    def next_job(self, *, waiting: bool) -> Job | None:
        """What to do now.

        Args:
            waiting: a step stands in its middle, for the device's gradient; batches and questions come after it.
        """
        if self.failed:  # what was trained last may be half a step
            self._jobs.clear()
        for number, job in enumerate(self._jobs):
            if waiting and isinstance(job.message, BatchMessage | Checkpoint | Fetch):
                continue
            if isinstance(job.message, Hello):
                while number:  # what has waited since before it
                    self._count_off(self._jobs.popleft())
                    number -= 1
            del self._jobs[number]
            return job
        return None

    def resume(self, hello: Hello, sequence: int) -> None:
        """Training stands at ``sequence``: take batches in from there, unless the device has asked again meanwhile."""
        if hello is self._hello:
            self._expected = sequence

    def done(self, job: Job, replies: Sequence[Reply], trained: int) -> None:
        """A job is done; ``trained`` is the step that comes next."""
        self._count_off(job)
        self._trained = trained
        for message, _ in replies:
            if isinstance(message, Need) and self._expected is not None:
                self._expected = self._asked = message.sequence
        if not isinstance(job.message, Hello) or job.message is self._hello or self.failed:
            self._replies.extend(replies)  # else the device has asked again meanwhile

    def fail(self, job: Job, error: WireError) -> None:
        """It cannot go on: everything that waits is dropped, the session is over, others do not notice."""
        self.failed = True
        sequence = getattr(job.message, "sequence", None)
        said = Error(code=error.code, sentence=error.problem, remedy=error.remedy, sequence=sequence, fatal=True)
        self.done(job, [(said, [])], self._trained)

    # ------------------------------------------------------------------ inside

    def _take_batch(self, job: Job, sequence: int) -> None:
        if self._expected is None or sequence < self._expected:
            return  # the welcome will ask for it; or it has been seen, and its acknowledgement is on its way
        if sequence > self._expected:
            self._ask()
            return
        if self._expected - self._trained >= self.credit:
            raise WireError("over-credit", f"{self.credit} batches are waiting already.", "Wait for acknowledgements.")
        if self._waiting_bytes + job.n_bytes > self.budget_bytes:
            raise WireError(
                "over-quota",
                f"{self._waiting_bytes + job.n_bytes} bytes would wait, the budget is {self.budget_bytes}.",
                "Send smaller batches or fewer bits.",
            )
        self._put(job)
        self._expected += 1
        self._asked = None

    def _ask(self) -> None:
        """Ask once for what is missing; a second gap before it comes says nothing new."""
        if self._expected is not None and self._asked != self._expected:
            self._asked = self._expected
            self._replies.append((Need(sequence=self._expected), []))

    def _put(self, job: Job) -> None:
        if self._waiting_jobs >= self.credit + OTHER_JOBS:
            raise WireError("over-credit", "Too many messages are waiting already.", "Wait for the answers.")
        self._waiting_jobs += 1
        self._waiting_bytes += job.n_bytes
        self._jobs.append(job)

    def _count_off(self, job: Job) -> None:
        self._waiting_jobs -= 1
        self._waiting_bytes -= job.n_bytes


def _payload_bytes(name: str, group: int, shape: Sequence[int]) -> int:
    return codec(name, group).wire_bytes(shape)
