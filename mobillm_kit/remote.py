"""The server as its device sees it: a thread that talks, and a few questions that the training thread may ask.

    wanted     the sequence number to make next; it goes back when the server asks for something again
    offer      one made batch; waits while another one waits to be sent
    drain      everything up to a step is trained
    fetch      the trained side network            checkpoint   everything so far is durable on the server

A connection that falls silent is closed and opened again; the server then says where training stands.  What is lost is
made again by the training thread.  Nothing is kept here but one batch that waits to be sent: batches on their way are
in the socket's queue, at most ``credit`` of them.

Knows: messages and one socket.  Knows nothing of: backbones, activations, what is trained.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from mobillm_kit.errors import (
    HandshakeFailed,
    KitError,
    ServerGone,
    ServerRefused,
    SocketClosed,
    TrainingDiverged,
)
from mobillm_kit.timeline import Timeline
from mobillm_kit.wire import (
    Ack,
    Batch,
    Bye,
    Checkpoint,
    Durable,
    Error,
    Fetch,
    Gradient,
    Hello,
    Limits,
    Logits,
    Message,
    Need,
    Ping,
    Pong,
    Result,
    Welcome,
    WireError,
    check_welcome,
    from_frames,
    to_frames,
)

PATIENCE_S = 20.0
"""Silence after which the server counts as gone."""

STUCK_S = 900.0
"""A server that answers pings and trains nothing for so long counts as gone too."""

SILENCE_S = 5.0
"""Silence after which the connection is closed and opened again; more where a large message is on its way."""

STALL_S = 5.0
"""Time without an answer to a batch, while the server answers pings, after which the device asks where training
stands: a message was lost, or steps take long.  More where steps are known to take longer, and each time anew."""

SLOWEST_LINK_BYTES_PER_S = 125_000
"""1 Mb/s: what a link can do of which nothing is known yet."""

SLACK = 4.0
"""How many times longer than seen so far something may take before it counts as lost."""

LOST_IN_A_ROW = 5
"""Connections lost, with no step trained in between, after which patience counts although the server answers."""

PING_S = 1.0
TICK_S = 0.05
RETRY_S = 0.3
FAREWELL_S = 0.5
LEAVE_S = 0.7
"""Time that the talking thread gets to leave by itself; twice that and the socket's own end stay below 2 s."""
SEND_S = 2.0
HANDSHAKE_S = 4.5
SHORTEST_HANDSHAKE_S = 0.2


class Connection(Protocol):
    """What is needed of a socket; see ``sockets.DeviceSocket``."""

    connected: bool
    connections: int

    def wait_connected(self, timeout_s: float = ...) -> None: ...
    def send(self, frames: Sequence[bytes | memoryview], timeout_s: float) -> bool: ...
    def receive(self, timeout_s: float) -> list[memoryview] | None: ...
    def wake(self) -> None: ...
    def close(self, flush_s: float = ...) -> None: ...


@dataclass
class _Sent:
    """A batch on its way."""

    samples: tuple[int, ...]
    """All that it trains on."""
    carried: tuple[int, ...]
    """Those whose activations it carries."""
    n_bytes: int
    at: float


@dataclass(frozen=True)
class _Outgoing:
    """A batch that waits to be sent."""

    sequence: int
    frames: list[bytes | memoryview]
    samples: tuple[int, ...]
    carried: tuple[int, ...]


class _Lost(Exception):
    """The connection is silent or gone."""


@dataclass
class _State:
    """What both threads look at; only ever under the lock."""

    wanted: int = 0
    sent: int = 0
    """One more than the highest sequence number sent since the welcome."""
    acked: int = 0
    credit: int = 0
    welcome: bool = False
    outbox: _Outgoing | None = None
    under_way: dict[int, _Sent] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    losses: list[float] = field(default_factory=list)
    early_losses: dict[int, float] = field(default_factory=dict)
    """Of steps whose predecessors' losses are not known yet."""
    request: Fetch | Checkpoint | None = None
    request_sent: bool = False
    durable: int = 0
    result: tuple[int, bytes] | None = None
    error: KitError | None = None
    closing: bool = False


class RemoteServer:
    """A session with a server, kept alive by a thread.

    Args:
        connect: opens a connection; called again after every loss.
        hello: the session's first message, its position aside, and its payloads.
        limits: of one message.
        timeline: gets a span for everything sent and everything that the server reports.
        gradient: called with (sequence, rows, columns, logits' bytes) where the loss is the device's; gives the
            gradient's bytes and the loss.
        patience_s: silence after which the server counts as gone.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        hello: Hello,
        hello_payloads: Sequence[bytes],
        limits: Limits,
        timeline: Timeline,
        *,
        gradient: Callable[[int, int, int, memoryview], tuple[bytes, float]] | None = None,
        position: int = 0,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.bytes_sent = 0
        self.reconnects = -1
        self._connect = connect
        self._hello = hello
        self._hello_payloads = list(hello_payloads)
        self._limits = limits
        self._timeline = timeline
        self._gradient = gradient
        self._patience_s = patience_s
        self._own_losses: dict[int, float] = {}
        self._position = position
        self._state = _State(wanted=position, acked=position)
        self._cond = threading.Condition()
        self._socket: Connection | None = None
        self._heard = self._progress = time.monotonic()
        self._heard_here = self._said_hello = self._pinged = 0.0
        self._stalls = 0
        self._longest_step_s = 0.0
        self._bytes_per_s = 0.0
        self._slower = 1.0
        self._lost_in_a_row = 0
        self._first_lost = 0.0
        self._answer_bytes = 0
        self._thread = threading.Thread(target=self._live, daemon=True, name="uplink")
        self._thread.start()

    # ------------------------------------------------------------------ for the training thread

    def wanted(self) -> int:
        """The sequence number to make next.

        Raises:
            KitError: the server is gone or has refused.
        """
        with self._cond:
            self._must(lambda: self._state.welcome)
            return self._state.wanted

    def holds(self, sample: int) -> bool:
        """Whether the server has, or is about to have, a sample's activations."""
        with self._cond:
            state = self._state
            return sample in state.held or any(sample in sent.carried for sent in state.under_way.values())

    def offer(self, message: Batch, payloads: Sequence[bytes | memoryview]) -> bool:
        """Hand over one batch; waits while another one waits to be sent.

        Returns:
            False where it is no longer the one that is wanted.
        """
        frames = to_frames(message, payloads)
        carried = tuple(message.samples[row] for row in message.fresh)
        with self._cond:
            self._must(lambda: self._state.outbox is None or self._state.wanted != message.sequence)
            if self._state.wanted != message.sequence:
                return False
            self._state.outbox = _Outgoing(message.sequence, frames, tuple(message.samples), carried)
            self._state.wanted += 1
        self._nudge()
        return True

    def drained(self, upto: int) -> bool:
        """Wait until all steps below ``upto`` are trained; False where something has to be made again first."""

        def trained() -> bool:
            return self._state.acked >= upto and self._known >= upto

        with self._cond:
            self._must(lambda: trained() or self._state.wanted < upto)
            return trained()

    def take_losses(self) -> list[float]:
        """The losses that have become known since the last call, in the order of the steps."""
        with self._cond:
            taken, self._state.losses = self._state.losses, []
            self._position += len(taken)
            return taken

    def fetch(self, sequence: int, n_bytes: int = 0) -> bytes | None:
        """The side network after ``sequence`` steps; None where something has to be made again first.

        Args:
            sequence: steps.
            n_bytes: about how many bytes it has: a long transfer is no silence.
        """
        with self._cond:
            self._answer_bytes = n_bytes
            self._state.result = None
            self._ask(Fetch(sequence=sequence))
            self._must(lambda: self._state.result is not None or self._state.wanted < sequence)
            result, self._state.result = self._state.result, None
            return result[1] if result is not None and result[0] == sequence else None

    def checkpoint(self, sequence: int) -> bool:
        """Everything before ``sequence`` on the server's disk; False where something has to be made again first."""
        with self._cond:
            if self._state.durable < sequence:
                self._ask(Checkpoint(sequence=sequence))
            self._must(lambda: self._state.durable >= sequence or self._state.wanted < sequence)
            return self._state.durable >= sequence

    def close(self) -> None:
        """End the session; within two seconds, whatever the server does."""
        with self._cond:
            self._state.closing = True
            self._cond.notify_all()
        self._nudge()
        self._thread.join(LEAVE_S)
        socket = self._socket
        if socket is not None:
            socket.close()  # whatever it waits for ends here
        self._thread.join(LEAVE_S)

    @property
    def _known(self) -> int:
        return self._position + len(self._state.losses)

    def _ask(self, request: Fetch | Checkpoint) -> None:
        self._state.request, self._state.request_sent = request, False
        self._nudge()

    def _must(self, done: Callable[[], bool]) -> None:
        """Wait until ``done``; the lock is held.

        Raises:
            KitError: the server is gone, has refused, or does nothing.
        """

        def over() -> bool:
            return done() or self._state.error is not None or self._state.closing

        in_time = self._cond.wait_for(over, STUCK_S)
        if self._state.error is not None:
            raise self._state.error
        if self._state.closing:
            raise SocketClosed("This session was ended by this program.", "Begin a new one.")
        if not in_time:
            raise _stuck()

    def _nudge(self) -> None:
        socket = self._socket
        if socket is not None:
            try:
                socket.wake()
            except KitError:  # just closed by the other thread, which will look by itself
                return

    # ------------------------------------------------------------------ the talking thread

    def _live(self) -> None:
        try:
            while not self._state.closing:
                try:
                    self._one_connection()
                except _Lost:
                    self._count_loss()
                    self._check_patience()
                    with self._cond:
                        self._cond.wait_for(lambda: self._state.closing, RETRY_S)
        except KitError as error:
            self._fail(error)
        except Exception as error:  # whatever it is, the training thread must hear of it and not wait
            self._fail(ServerGone(f"Talking to the server failed ({type(error).__name__}: {error})."))

    def _one_connection(self) -> None:
        try:
            socket = self._connect()
        except HandshakeFailed as error:
            raise (_Lost() if error.may_pass else error) from error
        self._socket = socket
        try:
            self._open(socket)
            self._talk(socket)
        finally:
            self._socket = None
            socket.close(FAREWELL_S if self._state.closing else 0.0)

    def _open(self, socket: Connection) -> None:
        try:
            socket.wait_connected(min(HANDSHAKE_S, max(SHORTEST_HANDSHAKE_S, self._patience_left_s())))
        except HandshakeFailed as error:
            raise (_Lost() if error.may_pass else error) from error
        self.reconnects += 1
        self._stalls = 0
        with self._cond:
            self._state.under_way.clear()
        self._say_hello(socket)

    def _say_hello(self, socket: Connection) -> None:
        with self._cond:
            self._state.welcome = False
            self._state.request_sent = False
            position = self._known
        self._said_hello = time.monotonic()
        self._send(socket, _with_position(self._hello, position), self._hello_payloads)

    def _talk(self, socket: Connection) -> None:
        self._heard_here = self._pinged = time.monotonic()
        while not self._state.closing:
            self._check_connection(socket)
            self._ping_where_quiet(socket)
            self._send_what_waits(socket)
            frames = socket.receive(TICK_S)
            if frames is not None:
                self._heard_here = self._heard = time.monotonic()
                self._take(socket, frames)
            self._check_progress(socket)
        self._send(socket, Bye())

    def _check_connection(self, socket: Connection) -> None:
        if not socket.connected or socket.connections > 1:
            raise _Lost
        transfer_s = self._transfer_s()
        if time.monotonic() - self._heard_here > SILENCE_S + transfer_s:
            self._heard = max(self._heard, time.monotonic() - SILENCE_S)  # the time of a transfer costs no patience
            self._slower *= SLACK if transfer_s else 1.0
            raise _Lost

    def _transfer_s(self) -> float:
        """How long what is on its way may fill the link, so that nothing else can be heard."""
        with self._cond:
            up_bytes = sum(sent.n_bytes for sent in self._state.under_way.values())
            asked = self._state.request_sent and isinstance(self._state.request, Fetch)
        down_bytes = self._answer_bytes if asked else 0
        up_s = SLACK * up_bytes / self._bytes_per_s if self._bytes_per_s else up_bytes / SLOWEST_LINK_BYTES_PER_S
        return self._slower * (up_s + down_bytes / SLOWEST_LINK_BYTES_PER_S)

    def _ping_where_quiet(self, socket: Connection) -> None:
        """One at a time: behind a large batch they would only pile up."""
        unanswered = self._pinged > self._heard_here
        if not unanswered and time.monotonic() - max(self._pinged, self._heard_here) > PING_S:
            self._pinged = time.monotonic()
            self._send(socket, Ping(nonce=int(self._pinged * 1000)))

    def _send_what_waits(self, socket: Connection) -> None:
        with self._cond:
            state = self._state
            if not state.welcome:
                return
            ready = state.outbox is not None and len(state.under_way) < state.credit
            outbox = state.outbox if ready else None
            if outbox is not None:
                state.outbox = None
                n_bytes = sum(len(frame) for frame in outbox.frames)
                sent = _Sent(outbox.samples, outbox.carried, n_bytes, time.perf_counter())
                state.under_way[outbox.sequence] = sent
                state.sent = max(state.sent, outbox.sequence + 1)
                self._cond.notify_all()
            request = state.request if not state.request_sent and outbox is None and state.outbox is None else None
        if outbox is not None:
            self._put(socket, outbox.frames)
        elif request is not None:
            self._send(socket, request)
            with self._cond:
                state.request_sent = True

    def _send(self, socket: Connection, message: Message, payloads: Sequence[bytes] = ()) -> None:
        self._put(socket, to_frames(message, payloads))

    def _put(self, socket: Connection, frames: Sequence[bytes | memoryview]) -> None:
        if not socket.send(frames, SEND_S):
            raise _Lost
        self.bytes_sent += sum(len(frame) for frame in frames)

    def _take(self, socket: Connection, frames: list[memoryview]) -> None:
        try:
            message, payloads = from_frames(frames, sender="server", limits=self._limits)
        except WireError as error:
            raise _Lost from error  # a damaged answer: the next hello brings everything again
        if isinstance(message, Welcome):
            if not self._state.welcome:  # else it answers a hello that was answered already
                self._welcome(message)
        elif isinstance(message, Error):
            self._refused(message)
        elif isinstance(message, Pong):
            return
        elif not self._state.welcome:
            return  # meant for the connection before this one
        elif isinstance(message, Ack):
            self._ack(message)
        elif isinstance(message, Need):
            self._send_again_from(message.sequence)
        elif isinstance(message, Logits):
            self._answer_logits(socket, message, payloads[0])
        elif isinstance(message, Durable):
            self._durable(message.sequence)
        elif isinstance(message, Result):
            self._result(message.sequence, payloads[0])
        elif isinstance(message, Bye):
            raise _Lost

    def _durable(self, sequence: int) -> None:
        self._made_progress()
        with self._cond:
            state = self._state
            state.durable = max(state.durable, sequence)
            if isinstance(state.request, Checkpoint) and state.durable >= state.request.sequence:
                state.request = None
            self._cond.notify_all()

    def _result(self, sequence: int, data: memoryview) -> None:
        self._made_progress()
        with self._cond:
            if self._state.request == Fetch(sequence=sequence):
                self._state.result, self._state.request = (sequence, bytes(data)), None
                self._cond.notify_all()

    def _welcome(self, message: Welcome) -> None:
        """Everything from ``resume`` is made anew: it is lost, or has never been."""
        try:
            check_welcome(message, self._hello.plan)
        except WireError as error:
            raise ServerRefused(error.problem, error.remedy, error.code) from error
        self._progress = time.monotonic()
        with self._cond:
            state = self._state
            state.credit = message.credit
            state.held = {sample for first, last in message.held for sample in range(first, last + 1)}
            state.welcome = True
            state.wanted = state.sent = state.acked = message.resume
            state.outbox = None
            state.under_way.clear()
            state.early_losses.clear()
            state.durable = min(state.durable, message.resume)
            self._forget_request()
            self._cond.notify_all()

    def _forget_request(self) -> None:
        """Whoever asked asks again, when the steps before it are made again."""
        state = self._state
        if state.request is not None and state.request.sequence > state.wanted:
            state.request = None

    def _send_again_from(self, sequence: int) -> None:
        """A batch is missing on the server, or samples of it are; those before it are not."""
        with self._cond:
            state = self._state
            if not state.acked <= sequence <= state.wanted:
                return  # overtaken by what came since
            missing = state.under_way.get(sequence)
            if missing is not None:
                state.held.difference_update(missing.samples)
            state.under_way = {number: sent for number, sent in state.under_way.items() if number < sequence}
            state.wanted = sequence
            state.outbox = None
            self._forget_request()
            self._cond.notify_all()

    def _ack(self, message: Ack) -> None:
        """A step is trained; so are those before it, whose own acknowledgements may be lost."""
        now = time.monotonic()
        with self._cond:
            state = self._state
            if message.sequence >= state.sent:
                return  # never sent: it belongs to another session
            sent = state.under_way.get(message.sequence)
            state.acked = max(state.acked, message.sequence + 1)
            state.wanted = max(state.wanted, state.acked)
            state.under_way = {number: one for number, one in state.under_way.items() if number >= state.acked}
            if state.outbox is not None and state.outbox.sequence < state.acked:
                state.outbox = None
            self._note_loss(message)
            if sent is not None:
                (state.held.update if message.cached else state.held.difference_update)(sent.carried)
                self._note_speed(message, sent, now)
                self._timeline.arrived(message.sequence, sent.at, message.queue_s, message.decode_s, message.train_s)
            self._made_progress()
            self._cond.notify_all()

    def _note_loss(self, message: Ack) -> None:
        state = self._state
        if message.sequence >= self._known:
            state.early_losses[message.sequence] = self._own_losses.pop(message.sequence, message.loss)
        while self._known in state.early_losses:
            state.losses.append(state.early_losses.pop(self._known))

    def _note_speed(self, message: Ack, sent: _Sent, now: float) -> None:
        self._longest_step_s = max(self._longest_step_s, now - self._progress)
        on_link_s = time.perf_counter() - sent.at - message.queue_s - message.decode_s - message.train_s
        self._bytes_per_s = sent.n_bytes / max(on_link_s, 1e-3)

    def _answer_logits(self, socket: Connection, message: Logits, logits: memoryview) -> None:
        if self._gradient is None:
            raise ServerRefused("The server sent logits that nobody asked for.", "Begin a new session.")
        if message.sequence not in self._state.under_way:
            return  # asked before, and answered
        self._made_progress()
        gradient, loss = self._gradient(message.sequence, message.rows, message.columns, logits)
        self._own_losses[message.sequence] = loss
        self._send(socket, Gradient(sequence=message.sequence), [gradient])

    def _refused(self, message: Error) -> None:
        if message.code == "hello-first":
            raise _Lost  # the server was started again under a connection that stood
        if not message.fatal:
            return
        if message.code == "diverged":
            raise TrainingDiverged(message.sentence, message.remedy)
        raise ServerRefused(f"The server refused ({message.code}): {message.sentence}", message.remedy, message.code)

    def _made_progress(self) -> None:
        self._progress = time.monotonic()
        self._stalls = self._lost_in_a_row = 0
        self._slower = 1.0

    def _count_loss(self) -> None:
        if not self._lost_in_a_row:
            self._first_lost = time.monotonic()
        self._lost_in_a_row += 1

    def _patience_left_s(self) -> float:
        return self._heard + self._patience_s - time.monotonic()

    def _check_patience(self) -> None:
        fruitless_s = time.monotonic() - self._first_lost
        if self._lost_in_a_row >= LOST_IN_A_ROW and fruitless_s > self._patience_s:
            raise ServerGone(
                f"The connection was lost {self._lost_in_a_row} times in {fruitless_s:.0f} seconds, and no batch "
                "came through in between.",
                "Look at the network; a smaller batch or fewer bits may pass.  Run again; training goes on.",
            )
        if self._patience_left_s() < 0:
            raise ServerGone(
                f"The server has not answered for {self._patience_s:.0f} seconds.",
                "Start it again with the same folder and run again; training goes on where the server's last "
                "checkpoint and this run's stand.",
            )

    def _check_progress(self, socket: Connection) -> None:
        """Ask where training stands when an answer does not come; give up when none comes for very long."""
        now = time.monotonic()
        with self._cond:
            state = self._state
            unknown = state.acked > self._known
            waiting = not state.welcome or bool(state.under_way) or state.request is not None or unknown
        if not waiting:
            self._progress = now
        elif now - self._progress > STUCK_S:
            raise _stuck()
        usual_s = max(STALL_S, SLACK * self._longest_step_s) * 2**self._stalls
        if waiting and now - max(self._progress, self._said_hello) > usual_s + self._transfer_s():
            self._stalls += 1
            self._say_hello(socket)

    def _fail(self, error: KitError) -> None:
        with self._cond:
            self._state.error = error
            self._cond.notify_all()


def _stuck() -> ServerGone:
    return ServerGone(
        f"The server answers, but has trained nothing for {STUCK_S:.0f} seconds.",
        "Look at its output, then run again; training goes on from its last checkpoint.",
    )


def _with_position(hello: Hello, position: int) -> Hello:
    return msgspec.structs.replace(hello, position=position)
