"""The device's session as a state machine: messages and moments in, messages out.

    first weights      part by part, each answered by a welcome; batches begin after the last one
    made, not sent     outbox (one)            wanted     the sequence number to make next
    sent, not trained  under way (≤ credit)    acked      everything below it is trained

A batch that is lost is made again: the welcome, or a ``need``, sets ``wanted`` back.  Nothing is kept here but one
batch that waits to be sent.  When a silence is a loss, and when losses are the end:

    transfer     slower · (slack · bytes up / bytes per s  +  bytes down / slowest link)
    lost         nothing heard for silence_s + transfer
    ask again    nothing trained for max(stall_s, slack · longest step) · 2^stalls + transfer

Knows: messages, and the moments it is told.  Knows nothing of: clocks, sockets, threads, what is trained.
Taught in: notebooks/08_device_and_server.ipynb
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from mobillm_kit.channel import messages
from mobillm_kit.channel.checks import check_welcome
from mobillm_kit.channel.messages import Answer, BatchMessage, Message, Question, WireError
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.errors import ServerGone, ServerRefused, TrainingDiverged

log = logging.getLogger(__name__)

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

    def __init__(self, hello: messages.Hello, *, position: int, now: float, patience_s: float) -> None:
        self.patience = Patience(now, patience_s)
        self.wanted = self.acked = self.known = position
        """``known``: steps whose losses are known."""
        self.welcome = False
        self._place = ""  # in line, as it was said last
        self.first_at: int | None = None  # the byte of the first weights that the server waits for
        self.part_bytes = 0  # of them on their way
        self.outbox: Outgoing | None = None
        self.durable = 0
        self.result: bytes | None = None
        self._hello = hello
        self._sent = 0  # one more than the highest sequence number sent since the welcome
        self._credit = 0
        self._under_way: dict[int, Outgoing] = {}
        self._held: set[int] = set()
        self._losses: list[float] = []
        self._early_losses: dict[int, float] = {}  # of steps whose predecessors' losses are not known yet
        self.own_losses: dict[int, float] = {}
        """Of steps whose labels stay here."""
        self._request: Question | None = None
        self._request_sent = False
        self._answer_bytes = 0

    # ---- what the training asks

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

    def ask(self, request: Question, answer_bytes: int = 0) -> None:
        """A question to be sent after the batches; a long answer of ``answer_bytes`` is no silence."""
        self._request, self._request_sent, self._answer_bytes = request, False, answer_bytes
        self.result = None

    # ---- what the connection brings

    def connected(self, now: float) -> messages.Hello:
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
        up_bytes = sum(upload.n_bytes for upload in self._under_way.values()) + self.part_bytes
        fetching = self._request_sent and isinstance(self._request, messages.Fetch)
        transfer_s = self.patience.transfer_s(up_bytes, self._answer_bytes if fetching else 0)
        if self.patience.is_silent(now, transfer_s):
            raise ConnectionLost
        said: list[Message] = [messages.Ping(nonce=max(0, int(now * 1000)))] if self.patience.pings(now) else []
        waiting = not self.welcome or bool(self._under_way) or self.acked > self.known or self._request is not None
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

    def next_request(self) -> Question | None:
        """The question to send now, if no batch waits before it."""
        if not self.welcome or self.outbox is not None or self._request_sent:
            return None
        self._request_sent = self._request is not None
        return self._request

    def take(self, message: Message, payloads: Sequence[memoryview], now: float) -> Outgoing | None:
        """A message came; returns the batch that it acknowledges, if it does.

        Raises:
            ConnectionLost: the server has said farewell, or does not know this connection.
            ServerRefused, TrainingDiverged: it said so.
        """
        if isinstance(message, messages.Welcome):
            if not self.welcome:  # else it answers a hello that was answered already
                self._begin(message, now)
        elif isinstance(message, messages.Error):
            _refused(message, asked=self._request is not None and self._request.sequence == message.sequence)
            if message.code == "too-many-sessions":  # it waits in line, and the user wants to know where
                self.patience.progressed(now)
                if message.sentence != self._place:
                    self._place = message.sentence
                    log.warning("%s", message.sentence)
        elif not self.welcome:
            return None  # meant for the connection before this one
        elif isinstance(message, messages.Ack):
            return self._ack(message, now)
        elif isinstance(message, messages.Need):
            self._send_again_from(message.sequence)
        elif isinstance(message, Answer):
            self._answered(message, payloads, now)
        elif isinstance(message, messages.Bye):
            raise ConnectionLost
        return None

    def wants_gradient(self, message: messages.Logits, now: float) -> bool:
        """Whether logits are of a step on its way; else they were asked before, and answered."""
        found = self.welcome and message.sequence in self._under_way
        if found:
            self.patience.progressed(now)
        return found

    def _say_hello(self, now: float) -> messages.Hello:
        self.welcome = self._request_sent = False
        self.first_at, self.part_bytes = None, 0
        self.patience.asked = now
        return replace(self._hello, position=self.known)

    def _begin(self, message: messages.Welcome, now: float) -> None:
        """Everything from ``resume`` is made anew: it is lost, or has never been."""
        try:
            check_welcome(message, self._hello.plan)
        except WireError as error:
            raise ServerRefused(error.problem, error.remedy, error.code) from error
        self.patience.progress = now
        if self.part_bytes:  # it has arrived
            self.patience.progressed(now)
        self.first_at, self.part_bytes = message.first, 0
        self._credit = message.credit
        self._held = {sample for first, last in message.held for sample in range(first, last + 1)}
        self.welcome = message.first is None
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
        self.wanted, self.outbox = sequence, None
        self._forget_request()

    def _ack(self, message: messages.Ack, now: float) -> Outgoing | None:
        """A step is trained; so are those before it, whose own acknowledgements may be lost."""
        if message.sequence >= self._sent:
            return None  # never sent: it belongs to another session
        upload = self._under_way.get(message.sequence)
        self.acked = max(self.acked, message.sequence + 1)
        self.wanted = max(self.wanted, self.acked)
        self._under_way = {number: one for number, one in self._under_way.items() if number >= self.acked}
        if self.outbox is not None and self.outbox.message.sequence < self.acked:
            self.outbox = None
        if message.sequence >= self.known:
            self._early_losses[message.sequence] = self.own_losses.pop(message.sequence, message.loss)
        while self.known in self._early_losses:
            self._losses.append(self._early_losses.pop(self.known))
            self.known += 1
        if upload is not None:
            (self._held.update if message.cached else self._held.difference_update)(upload.carried)
            on_server_s = message.queue_s + message.decode_s + message.train_s
            self.patience.trained(now, upload.n_bytes, now - upload.sent_at - on_server_s)
        self.patience.progressed(now)
        return upload

    def _answered(self, message: Answer, payloads: Sequence[memoryview], now: float) -> None:
        self.patience.progressed(now)
        if isinstance(message, messages.Durable):
            self.durable = max(self.durable, message.sequence)
            if isinstance(self._request, messages.Checkpoint) and self.durable >= self._request.sequence:
                self._request = None
        elif self._request == messages.Fetch(sequence=message.sequence):
            self.result, self._request = bytes(payloads[0]), None


def _refused(message: messages.Error, *, asked: bool) -> None:
    if message.code == "hello-first":
        raise ConnectionLost  # the server was started again under a connection that stood
    if message.fatal and message.code == "diverged":
        raise TrainingDiverged(message.sentence, message.remedy)
    if message.fatal or (asked and message.code == "bad-sequence"):  # nothing else will answer that question
        raise ServerRefused(f"The server refused ({message.code}): {message.sentence}", message.remedy, message.code)


class Patience:
    """The moments of one session; every method is told the present one (seconds of any steady clock)."""

    def __init__(self, now: float, patience_s: float) -> None:
        self._patience_s = patience_s
        self._heard = self._heard_here = self._pinged = now
        self.asked = self.progress = now  # a hello left; a step was trained, or its wait begins anew
        self._stalls = 0
        self._longest_step_s = self._bytes_per_s = 0.0
        self._slower = 1.0
        self._lost_in_a_row = 0
        self._first_lost = now

    def connected(self, now: float) -> None:
        """A new connection; what was heard before it says nothing about it."""
        self._heard_here = self._pinged = now
        self._stalls = 0

    def heard(self, now: float) -> None:
        """Anything came."""
        self._heard_here = self._heard = now

    def progressed(self, now: float) -> None:
        """Something was trained, kept or given back."""
        self.progress = now
        self._stalls = self._lost_in_a_row = 0
        self._slower = 1.0

    def trained(self, now: float, n_bytes: int, seconds: float) -> None:
        """A step was acknowledged whose ``n_bytes`` took ``seconds`` on the link."""
        self._longest_step_s = max(self._longest_step_s, now - self.progress)
        self._bytes_per_s = n_bytes / max(seconds, 1e-3)

    def transfer_s(self, up_bytes: int, down_bytes: int) -> float:
        """How long what is on its way may fill the link, so that nothing else can be heard."""
        slowest = TIMINGS.slowest_link_bytes_per_s
        up_s = TIMINGS.slack * up_bytes / self._bytes_per_s if self._bytes_per_s else up_bytes / slowest
        return self._slower * (up_s + down_bytes / slowest)

    def is_silent(self, now: float, transfer_s: float) -> bool:
        """Whether the connection counts as lost; the time of a transfer costs no patience."""
        if now - self._heard_here <= TIMINGS.silence_s + transfer_s:
            return False
        self._heard = max(self._heard, now - TIMINGS.silence_s)
        self._slower *= TIMINGS.slack if transfer_s else 1.0
        return True

    def pings(self, now: float) -> bool:
        """Whether to ping now; one at a time: behind a large batch they would only pile up."""
        due = self._pinged <= self._heard_here and now - max(self._pinged, self._heard_here) > TIMINGS.ping_s
        if due:
            self._pinged = now
        return due

    def asks_again(self, now: float, waiting: bool, transfer_s: float) -> bool:
        """Whether to ask where training stands, as an awaited answer stays away; ServerGone where it does very long."""
        if not waiting:
            self.progress = now
            return False
        if now - self.progress > TIMINGS.stuck_s:
            raise stuck()
        usual_s = max(TIMINGS.stall_s, TIMINGS.slack * self._longest_step_s) * 2**self._stalls
        due = now - max(self.progress, self.asked) > usual_s + transfer_s
        self._stalls += due
        return due

    def handshake_s(self, now: float) -> float:
        """How long a handshake may take."""
        return min(TIMINGS.handshake_s, max(TIMINGS.shortest_handshake_s, self._heard + self._patience_s - now))

    def lost(self, now: float) -> None:
        """A connection was lost; ServerGone after too many in a row, or where the server is silent for too long."""
        if not self._lost_in_a_row:
            self._first_lost = now
        self._lost_in_a_row += 1
        fruitless_s = now - self._first_lost
        if self._lost_in_a_row >= TIMINGS.lost_in_a_row and fruitless_s > self._patience_s:
            raise ServerGone(
                f"The connection was lost {self._lost_in_a_row} times in {fruitless_s:.0f} seconds, and no batch "
                "came through in between.",
                "Look at the network; a smaller batch or fewer bits may pass.  Run again; training goes on.",
            )
        if now - self._heard > self._patience_s:
            raise ServerGone(
                f"The server has not answered for {self._patience_s:.0f} seconds.",
                "Start it again with the same folder and run again; training goes on where the server's last "
                "checkpoint and this run's stand.",
            )


def stuck() -> ServerGone:
    """What is said of a server that answers and trains nothing."""
    problem = f"The server answers, but has trained nothing for {TIMINGS.stuck_s:.0f} seconds."
    return ServerGone(problem, "Look at its output, then run again; training goes on from its last checkpoint.")
