"""The device's session as a state machine: messages and moments in, messages out.

    made, not sent     outbox (one)            wanted     the sequence number to make next
    sent, not trained  under way (≤ credit)    acked      everything below it is trained

A batch that is lost is made again: the welcome, or a ``need``, sets ``wanted`` back.  Nothing is kept here but one
batch that waits to be sent.

Knows: messages, and the moments it is told.  Knows nothing of: clocks, sockets, threads, what is trained.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from mobillm_kit.channel import (
    Ack,
    BatchMessage,
    Bye,
    Checkpoint,
    Durable,
    Error,
    Fetch,
    Hello,
    Logits,
    Message,
    Need,
    Ping,
    Result,
    Welcome,
    WireError,
    check_welcome,
)
from mobillm_kit.channel.timings import TIMINGS, Timings
from mobillm_kit.device.patience import Patience
from mobillm_kit.errors import ServerRefused, TrainingDiverged

Frames = Sequence[bytes | bytearray | memoryview]


class ConnectionLost(Exception):
    """The connection is silent, gone or damaged: open another one."""


@dataclass(frozen=True)
class Outgoing:
    """A batch that waits to be sent, or is on its way."""

    message: BatchMessage
    frames: Frames
    n_bytes: int
    sent_at: float = 0.0

    @property
    def carried(self) -> list[int]:
        """The samples whose activations it carries."""
        return [self.message.samples[row] for row in self.message.fresh]


class Conversation:
    """One session, from its first hello to its end.

    Args:
        hello: the session's first message, its position aside.
        position: losses that the device knows already.
        now: the present moment, of any steady clock; every later one is of the same.
        patience_s: silence after which the server counts as gone.
    """

    def __init__(
        self, hello: Hello, *, position: int, now: float, patience_s: float, timings: Timings = TIMINGS
    ) -> None:
        self.patience = Patience(now, patience_s, timings)
        self.wanted = self.acked = self.known = position
        """``known``: steps whose losses are known."""
        self.welcome = False
        self.outbox: Outgoing | None = None
        self.durable = 0
        self.result: tuple[int, bytes] | None = None
        self._hello = hello
        self._sent = 0  # one more than the highest sequence number sent since the welcome
        self._credit = 0
        self._under_way: dict[int, Outgoing] = {}
        self._held: set[int] = set()
        self._losses: list[float] = []
        self._early_losses: dict[int, float] = {}  # of steps whose predecessors' losses are not known yet
        self.own_losses: dict[int, float] = {}
        """Of steps whose labels stay here."""
        self._request: Fetch | Checkpoint | None = None
        self._request_sent = False
        self._answer_bytes = 0

    # ------------------------------------------------------------------ what the training asks

    def holds(self, sample: int) -> bool:
        """Whether the server has, or is about to have, a sample's activations."""
        return sample in self._held or any(sample in upload.carried for upload in self._under_way.values())

    def offer(self, message: BatchMessage, frames: Frames) -> bool:
        """Put one batch into the outbox; False where it is no longer the one that is wanted."""
        if self.wanted != message.sequence:
            return False
        self.outbox = Outgoing(message, frames, sum(len(frame) for frame in frames))
        self.wanted += 1
        return True

    def trained(self, upto: int) -> bool:
        """Whether all steps below ``upto`` are trained and their losses known."""
        return self.acked >= upto and self.known >= upto

    def take_losses(self) -> list[float]:
        """The losses that have become known since the last call, in the order of the steps."""
        taken, self._losses = self._losses, []
        return taken

    def ask(self, request: Fetch | Checkpoint, answer_bytes: int = 0) -> None:
        """A question to be sent after the batches; a long answer of ``answer_bytes`` is no silence."""
        self._request, self._request_sent, self._answer_bytes = request, False, answer_bytes
        self.result = None

    # ------------------------------------------------------------------ what the connection brings

    def connected(self, now: float) -> Hello:
        """A new connection stands; returns what to say first."""
        self.patience.connected(now)
        self._under_way.clear()
        return self._say_hello(now)

    def tick(self, now: float) -> list[Message]:
        """Time has passed; returns what to say.

        Raises:
            ConnectionLost: nothing was heard for too long.
            ServerGone: nothing was trained for very long.
        """
        transfer_s = self._transfer_s()
        if self.patience.is_silent(now, transfer_s):
            raise ConnectionLost
        said: list[Message] = [Ping(nonce=max(0, int(now * 1000)))] if self.patience.pings(now) else []
        unknown = self.acked > self.known
        waiting = not self.welcome or bool(self._under_way) or self._request is not None or unknown
        if self.patience.asks_again(now, waiting, transfer_s):
            said.append(self._say_hello(now))
        return said

    def next_upload(self, now: float) -> Frames | None:
        """The batch to send now, if its turn has come."""
        if not self.welcome or self.outbox is None or len(self._under_way) >= self._credit:
            return None
        sequence, frames = self.outbox.message.sequence, self.outbox.frames
        # its frames are the socket's now: on its way it is a note of what was sent, and a lost one is made again
        self._under_way[sequence] = Outgoing(self.outbox.message, (), self.outbox.n_bytes, now)
        self._sent = max(self._sent, sequence + 1)
        self.outbox = None
        return frames

    def next_request(self) -> Fetch | Checkpoint | None:
        """The question to send now, if no batch waits before it."""
        if not self.welcome or self.outbox is not None or self._request_sent:
            return None
        self._request_sent = self._request is not None
        return self._request

    def take(self, message: Message, payloads: Sequence[memoryview], now: float) -> Outgoing | None:
        """A message came.

        Returns:
            the batch that it acknowledges, if it does.

        Raises:
            ConnectionLost: the server has said farewell, or does not know this connection.
            ServerRefused, TrainingDiverged: it said so.
        """
        if isinstance(message, Welcome):
            if not self.welcome:  # else it answers a hello that was answered already
                self._begin(message, now)
        elif isinstance(message, Error):
            _refused(message)
        elif not self.welcome:
            return None  # meant for the connection before this one
        elif isinstance(message, Ack):
            return self._ack(message, now)
        elif isinstance(message, Need):
            self._send_again_from(message.sequence)
        elif isinstance(message, Durable | Result):
            self._answered(message, payloads, now)
        elif isinstance(message, Bye):
            raise ConnectionLost
        return None

    def wants_gradient(self, message: Logits, now: float) -> bool:
        """Whether logits are of a step on its way; else they were asked before, and answered."""
        found = self.welcome and message.sequence in self._under_way
        if found:
            self.patience.progressed(now)
        return found

    # ------------------------------------------------------------------ inside

    def _say_hello(self, now: float) -> Hello:
        self.welcome = self._request_sent = False
        self.patience.asked(now)
        return replace(self._hello, position=self.known)

    def _transfer_s(self) -> float:
        up_bytes = sum(upload.n_bytes for upload in self._under_way.values())
        asked = self._request_sent and isinstance(self._request, Fetch)
        return self.patience.transfer_s(up_bytes, self._answer_bytes if asked else 0)

    def _begin(self, message: Welcome, now: float) -> None:
        """Everything from ``resume`` is made anew: it is lost, or has never been."""
        try:
            check_welcome(message, self._hello.plan)
        except WireError as error:
            raise ServerRefused(error.problem, error.remedy, error.code) from error
        self.patience.resumed(now)
        self._credit = message.credit
        self._held = {sample for first, last in message.held for sample in range(first, last + 1)}
        self.welcome = True
        self.wanted = self._sent = self.acked = message.resume
        self.outbox = None
        self._under_way.clear()
        self._early_losses.clear()
        self.durable = min(self.durable, message.resume)
        self._forget_request()

    def _forget_request(self) -> None:
        """Whoever asked asks again, when the steps before it are made again."""
        if self._request is not None and self._request.sequence > self.wanted:
            self._request = None

    def _send_again_from(self, sequence: int) -> None:
        """A batch is missing on the server, or samples of it are; those before it are not."""
        if not self.acked <= sequence <= self.wanted:
            return  # overtaken by what came since
        missing = self._under_way.get(sequence)
        if missing is not None:
            self._held.difference_update(missing.message.samples)
        self._under_way = {number: upload for number, upload in self._under_way.items() if number < sequence}
        self.wanted = sequence
        self.outbox = None
        self._forget_request()

    def _ack(self, message: Ack, now: float) -> Outgoing | None:
        """A step is trained; so are those before it, whose own acknowledgements may be lost."""
        if message.sequence >= self._sent:
            return None  # never sent: it belongs to another session
        upload = self._under_way.get(message.sequence)
        self.acked = max(self.acked, message.sequence + 1)
        self.wanted = max(self.wanted, self.acked)
        self._under_way = {number: one for number, one in self._under_way.items() if number >= self.acked}
        if self.outbox is not None and self.outbox.message.sequence < self.acked:
            self.outbox = None
        self._note_loss(message)
        if upload is not None:
            (self._held.update if message.cached else self._held.difference_update)(upload.carried)
            on_server_s = message.queue_s + message.decode_s + message.train_s
            self.patience.trained(now, upload.n_bytes, now - upload.sent_at - on_server_s)
        self.patience.progressed(now)
        return upload

    def _note_loss(self, message: Ack) -> None:
        if message.sequence >= self.known:
            self._early_losses[message.sequence] = self.own_losses.pop(message.sequence, message.loss)
        while self.known in self._early_losses:
            self._losses.append(self._early_losses.pop(self.known))
            self.known += 1

    def _answered(self, message: Durable | Result, payloads: Sequence[memoryview], now: float) -> None:
        self.patience.progressed(now)
        if isinstance(message, Durable):
            self.durable = max(self.durable, message.sequence)
            if isinstance(self._request, Checkpoint) and self.durable >= self._request.sequence:
                self._request = None
        elif self._request == Fetch(sequence=message.sequence):
            self.result, self._request = (message.sequence, bytes(payloads[0])), None


def _refused(message: Error) -> None:
    if message.code == "hello-first":
        raise ConnectionLost  # the server was started again under a connection that stood
    if message.fatal and message.code == "diverged":
        raise TrainingDiverged(message.sentence, message.remedy)
    if message.fatal:
        raise ServerRefused(f"The server refused ({message.code}): {message.sentence}", message.remedy, message.code)
