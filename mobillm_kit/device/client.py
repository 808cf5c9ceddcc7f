"""The server as its device sees it: the ways to one, a thread that talks, and what the training thread may ask.

    send       every batch up to a step is made and handed over; again where the server asks for something again
    drain      everything up to a step is trained
    fetch      the trained side network            checkpoint   everything so far is durable on the server

What is said when is decided in ``device/conversation.py``; here are clock, lock, thread and connection.

Knows: addresses, keys, links, the conversation, one connection.  Knows nothing of: zmq, activations, what is trained.
Taught in: notebooks/08_device_and_server.ipynb
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from mobillm_kit.channel import messages
from mobillm_kit.channel.ends import DeviceSocket
from mobillm_kit.channel.frames import Limits, Payload, from_frames, to_frames
from mobillm_kit.channel.join import JoinString
from mobillm_kit.channel.keys import load_or_make_keys
from mobillm_kit.channel.messages import PART_BYTES, BatchMessage, Message, Question, WireError
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.common import MIB
from mobillm_kit.device.conversation import ConnectionLost, Conversation, Frames, stuck
from mobillm_kit.errors import BadInput, HandshakeFailed, KitError, ServerGone, ServerRefused, SocketClosed
from mobillm_kit.link.shaping import LinkProcess
from mobillm_kit.link.timeline import Timeline
from mobillm_kit.server.process import serve

_now = time.perf_counter  # the timeline's clock


LIMITS = Limits(frame_bytes=1024 * MIB, total_bytes=1024 * MIB)
"""Of one message, in either direction."""

DEVICE_KEYS = Path("~/.config/mobillm_kit/device")


class ServerClient:
    """A session with a server, kept alive by a thread.

    Args:
        connect: opens a connection; called again after every loss.
        hello: the session's first message, its position aside, and its payloads.
        timeline: gets a span for everything sent and everything that the server reports.
        make: a step's batch and its payloads, the first time or again; told what the server :meth:`holds`.
        first: makes the first weights, where the plan announces them; again where the server has lost them.
        gradient: called with (sequence, rows, columns, logits' bytes) where the loss is the device's; gives the
            gradient's bytes and the loss.
        position, patience_s: as for :class:`Conversation`.
    """

    def __init__(
        self,
        connect: Callable[[], DeviceSocket],
        hello: messages.Hello,
        hello_payloads: Sequence[bytes],
        timeline: Timeline,
        make: Callable[[int, Callable[[int], bool]], tuple[BatchMessage, Sequence[Payload]]],
        *,
        first: Callable[[], bytes] = bytes,
        gradient: Callable[[int, int, int, memoryview], tuple[bytes, float]] | None = None,
        position: int = 0,
        patience_s: float = TIMINGS.patience_s,
    ) -> None:
        self.bytes_sent = 0
        self._connect = connect
        self._hello_payloads = list(hello_payloads)
        self._timeline = timeline
        self._make = make
        self._first = first
        self._first_data = b""  # there while the server takes it
        self._gradient = gradient
        # only ever under the lock
        self._link = Conversation(hello, position=position, now=_now(), patience_s=patience_s)
        self._error: KitError | None = None
        self._closing = False
        self._cond = threading.Condition()
        self._socket: DeviceSocket | None = None
        self._thread = threading.Thread(target=self._live, daemon=True, name="uplink")
        self._thread.start()

    # ------------------------------------------------------------------ for the training thread

    def holds(self, sample: int) -> bool:
        """Whether the server has, or is about to have, a sample's activations."""
        with self._cond:
            return self._link.holds(sample)

    def send(self, upto: int) -> None:
        """Make and hand over every batch below ``upto`` that the server wants; one at most waits to be sent.

        KitError where the server is gone or has refused.
        """
        while True:
            with self._cond:
                self._must(lambda: self._link.welcome or (self._link.first_at is not None and not self._first_data))
                missing, sequence = not self._link.welcome, self._link.wanted
            self._first_data = self._first() if missing else b""  # on this thread: a backbone is for one at a time
            if missing:
                continue
            if sequence >= upto:
                return
            message, payloads = self._make(sequence, self.holds)
            frames = to_frames(message, payloads)
            with self._cond:
                self._must(lambda: self._link.outbox is None)  # it is too where another one is wanted by now
                self._link.offer(message, frames)
            self._nudge()

    def drain(self, upto: int) -> None:
        """Wait until all steps below ``upto`` are trained; what is lost meanwhile is made again."""
        while not self._until(lambda: self._link.trained(upto), upto):
            self.send(upto)

    def take_losses(self) -> list[float]:
        """The losses that have become known since the last call, in the order of the steps."""
        with self._cond:
            return self._link.take_losses()

    def fetch(self, sequence: int, n_bytes: int) -> bytes:
        """The side network after ``sequence`` steps, about ``n_bytes``: a long transfer is no silence."""
        self._ask(messages.Fetch(sequence=sequence), lambda: self._link.result is not None, n_bytes)
        with self._cond:
            result, self._link.result = self._link.result, None
        assert result is not None
        return result

    def checkpoint(self, sequence: int) -> None:
        """Wait until everything before ``sequence`` is on the server's disk."""
        self._ask(messages.Checkpoint(sequence=sequence), lambda: self._link.durable >= sequence)

    def close(self) -> None:
        """End the session; within two seconds, whatever the server does."""
        with self._cond:
            self._closing = True
            self._cond.notify_all()
        self._nudge()
        self._thread.join(TIMINGS.leave_s)
        socket = self._socket
        if socket is not None:
            socket.close()  # whatever it waits for ends here
        self._thread.join(TIMINGS.leave_s)

    def _ask(self, request: Question, answered: Callable[[], bool], answer_bytes: int = 0) -> None:
        """Ask until there is an answer."""
        self.drain(request.sequence)
        while not answered():
            with self._cond:
                self._link.ask(request, answer_bytes)
            self._nudge()
            if not self._until(answered, request.sequence):
                self.drain(request.sequence)

    def _until(self, done: Callable[[], bool], upto: int) -> bool:
        """Wait until ``done``; False where a step below ``upto`` has to be made again first."""
        with self._cond:
            self._must(lambda: done() or self._link.wanted < upto)
            return done()

    def _must(self, done: Callable[[], bool]) -> None:
        """Wait, the lock held, until ``done``; KitError where the server is gone, has refused, or does nothing."""
        while not self._cond.wait_for(lambda: done() or self._error or self._closing, TIMINGS.stuck_s):
            if _now() - self._link.patience.progress > TIMINGS.stuck_s:  # who waits in line is told so
                raise stuck()
        if self._error is not None:
            raise self._error
        if self._closing:
            raise SocketClosed("This session was ended by this program.", "Begin a new one.")

    def _nudge(self) -> None:
        socket = self._socket
        if socket is not None:
            socket.wake()  # closed meanwhile by the other thread: that one will look by itself

    # ------------------------------------------------------------------ the talking thread

    def _live(self) -> None:
        try:
            while not self._closing:
                try:
                    self._one_connection()
                except ConnectionLost:
                    with self._cond:
                        self._link.patience.lost(_now())
                        self._cond.wait_for(lambda: self._closing, TIMINGS.retry_s)
        except Exception as error:  # whatever it is, the training thread must hear of it and not wait
            gone = ServerGone(f"Talking to the server failed ({type(error).__name__}: {error}).")
            with self._cond:
                self._error = error if isinstance(error, KitError) else gone
                self._cond.notify_all()

    def _one_connection(self) -> None:
        try:
            self._socket = socket = self._connect()
            try:
                socket.wait_connected(self._link.patience.handshake_s(_now()))
                self._talk(socket)
            finally:
                self._socket = None
                socket.close(TIMINGS.flush_s if self._closing else 0.0)
        except HandshakeFailed as error:
            raise (ConnectionLost() if error.may_pass else error) from error

    def _talk(self, socket: DeviceSocket) -> None:
        with self._cond:
            hello = self._link.connected(_now())
        self._say(socket, hello)
        while not self._closing:
            if not socket.connected or socket.connections > 1:
                raise ConnectionLost
            with self._cond:
                said = self._link.tick(_now())
                upload = self._link.next_upload(_now()) or self._next_part()
                request = self._link.next_request() if upload is None else None
                self._cond.notify_all()
            for message in said if request is None else [*said, request]:
                self._say(socket, message)
            if upload is not None:
                self._put(socket, upload)
            frames = socket.receive(TIMINGS.tick_s)
            if frames is not None:
                self._take(socket, frames)
        self._say(socket, messages.Bye())

    def _next_part(self) -> Frames | None:
        """The part of the first weights that the server waits for, once."""
        at, data = self._link.first_at, self._first_data
        if at is None or not data:
            return None
        part = memoryview(data)[at : at + PART_BYTES]
        self._link.first_at, self._link.part_bytes = None, len(part)
        return to_frames(messages.First(offset=at), [part])

    def _say(self, socket: DeviceSocket, message: Message) -> None:
        self._put(socket, to_frames(message, self._hello_payloads if isinstance(message, messages.Hello) else ()))

    def _put(self, socket: DeviceSocket, frames: Frames) -> None:
        if not socket.send(frames, TIMINGS.send_s):
            raise ConnectionLost
        self.bytes_sent += sum(len(frame) for frame in frames)

    def _take(self, socket: DeviceSocket, frames: list[memoryview]) -> None:
        self._link.patience.heard(_now())
        try:
            message, payloads = from_frames(frames, sender="server", limits=LIMITS)
        except WireError as error:
            raise ConnectionLost from error  # a damaged answer: the next hello brings everything again
        if isinstance(message, messages.Logits):
            self._answer_logits(socket, message, payloads[0])
            return
        with self._cond:
            upload = self._link.take(message, payloads, _now())
            if upload is not None and isinstance(message, messages.Ack):
                stages = message.queue_s, message.decode_s, message.train_s
                self._timeline.arrived(message.sequence, upload.sent_at, *stages)
            self._cond.notify_all()

    def _answer_logits(self, socket: DeviceSocket, message: messages.Logits, logits: memoryview) -> None:
        if self._gradient is None:
            raise ServerRefused("The server sent logits that nobody asked for.", "Begin a new session.")
        with self._cond:
            if not self._link.wants_gradient(message, _now()):
                return
        gradient, loss = self._gradient(message.sequence, message.rows, message.columns, logits)
        self._link.own_losses[message.sequence] = loss
        self._put(socket, to_frames(messages.Gradient(sequence=message.sequence), [gradient]))


@contextmanager
def route_to(
    server: str, *, link: str = "", keys: str = "", folder: Path | None = None
) -> Iterator[tuple[Callable[[], DeviceSocket], str]]:
    """A way to a server for the time of a ``with`` block: what opens another connection, and the one-time code.

    Args:
        server: ``spawn`` starts a process for this run; otherwise ``tcp://host:port`` on this machine, or a join
            string.
        link: a shaped link to put between, as ``wifi-60`` or ``20mbit,10ms``; empty for none.
        keys: folder of this device's keys; the user's configuration folder by default.
        folder: of a spawned server's checkpoints; a temporary one by default.

    Raises:
        BadInput: not an address, a join string or ``spawn``; or a link that is not one.
    """
    with ExitStack() as stack:
        address, server_key, code = _address(server, stack, folder)
        pair = load_or_make_keys(Path(keys) if keys else DEVICE_KEYS.expanduser()) if server_key else None
        if link:
            host, port = address.removeprefix("tcp://").rsplit(":", 1)
            address = stack.enter_context(LinkProcess((host, int(port)), link)).endpoint
        yield partial(DeviceSocket, address, server_key=server_key or None, keys=pair, limits=LIMITS), code


def _address(server: str, stack: ExitStack, folder: Path | None) -> tuple[str, str, str]:
    if server == "spawn":
        return stack.enter_context(serve(folder, options=("--max-sessions", "1"))).address, "", ""  # ours alone
    if server.startswith("mobillm://"):
        join = JoinString.parse(server)
        return join.address, join.server_key, join.code
    if server.startswith("tcp://"):
        return JoinString(server).address, "", ""
    problem = "No file keeps where the server was." if server == "elsewhere" else f"'{server}' is no server."
    raise BadInput(problem, "Give 'spawn', tcp://127.0.0.1:PORT, or a join string mobillm://…")
