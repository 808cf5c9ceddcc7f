"""The two ends of a connection: the server's socket and the device's.

    DEALER (device) ───► ROUTER (server)      one message = several frames; CURVE or, on loopback, plain

ZeroMQ's own defaults wait for ever, buffer without limit and drop in silence; every option that decides about that is
set here.  One thread uses a socket; :meth:`wake` and :meth:`close` may come from any other.

Knows: zmq, keys, frames.  Knows nothing of: what the frames mean, sessions, tensors.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import errno
import logging
import math
import secrets
import socket as plain_socket
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zmq
import zmq.utils.garbage  # registers its end of program here, so that ours, registered later, comes before it
from zmq.auth import Authenticator

from mobillm_kit.errors import AddressInUse, BadInput, HandshakeFailed, SocketClosed
from mobillm_kit.join import check_key, is_loopback, split_address
from mobillm_kit.keys import KeyPair

if TYPE_CHECKING:
    from collections.abc import Buffer

    from mobillm_kit.wire import Limits

log = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
"""ZeroMQ's own ping; its I/O thread sends it, so that a busy trainer thread delays nothing."""
SILENCE_S = 10.0
"""A peer that says nothing for so long is gone, unless one frame could take longer (see below)."""
HANDSHAKE_S = 5.0
"""A peer that does not finish the handshake is cut off."""
SLOWEST_LINK_BYTES_PER_S = 125_000
"""1 Mb/s.  While a frame trickles in, no heartbeat can; that must not be taken for silence."""
_DOMAIN = "mobillm"
_DEVICE_INBOX = 32  # answers are small, but libzmq hears no heartbeat while the inbox is full
_CUTS = 3  # one connection cut during the handshake may be the network's fault, three in a row are not
_GIVEN_UP_S = 0.5  # after a loss libzmq says at once that it will connect again, or never does
_LOOK_S = 0.5
_GREETING_BYTES = 64
_CURVE_BYTES = 33  # encryption adds them to each frame, and MAXMSGSIZE counts them
_SLICE_S = 0.1  # waits that no bell can end look up so often
_LEAVE_S = 0.4
_FLUSH_LIMIT_S = 0.5
_ROOM_FOR_MARKER = 3  # preamble, header, and one frame more than is allowed


@dataclass(frozen=True)
class Peer:
    """One connection of one device."""

    route: bytes
    """ZeroMQ's name of the connection; another one after every reconnect."""
    key: str
    """The device's public CURVE key, z85; proved by the handshake.  Empty where the server runs plain."""


class ServerSocket:
    """The server's end: many devices, one socket.

    Args:
        bind: ``tcp://host:port``; port 0 takes a free one.
        keys: the server's key pair; None runs plain, on a loopback address only.
        admit: whether a device's public key (z85) may connect; asked during each handshake, from another thread; an
            exception counts as no.
        limits: bounds of one message; what exceeds them is cut short so that ``wire.from_frames`` refuses it.  libzmq
            itself bounds the single frame only, and takes in a whole message before anybody can look at it.
        high_water: messages kept per device and direction.

    Raises:
        BadInput: the address is no address of this machine, or is open to others without keys and an allow-list.
        AddressInUse: somebody listens there.
    """

    def __init__(
        self,
        bind: str,
        *,
        keys: KeyPair | None = None,
        admit: Callable[[str], bool] | None = None,
        limits: Limits,
        high_water: int = 8,
    ) -> None:
        host, _ = split_address(bind)
        _check_protected(bind, host, keys, admit)
        _make_routes_unpredictable()
        self._core = _Core(zmq.ROUTER, limits, high_water, high_water)
        weakref.finalize(self, self._core.close, 0.0)  # forgotten sockets: a rerun cell, the end of the program
        self._encrypted = keys is not None
        try:
            self._core.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            self._core.socket.setsockopt(zmq.IPV6, ":" in host)
            if keys is not None and admit is not None:
                self._core.door = _Door(self._core.context, admit)
                self._protect(keys)
            _bind(self._core.socket, bind)
            self.address: str = self._core.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        except BaseException:
            self.close()
            raise

    def receive(self, timeout_s: float) -> tuple[Peer, list[memoryview]] | None:
        """The next message, from whomever.

        Returns:
            who sent it and its frames; None when none came in time or :meth:`wake` was called.
        """
        with self._core.in_use():
            if not self._core.wait_for_message(timeout_s):
                return None
            try:
                route = self._core.socket.recv(zmq.DONTWAIT)
            except zmq.Again:  # its sender left between the two calls
                return None
            key, frames = _take_message(self._core.socket, self._core.limits)
            if self._encrypted and not key:
                return None  # cannot happen while CURVE is on; were it off, nobody's message counts
            return Peer(route, key), frames

    def send(self, peer: Peer, frames: Sequence[Buffer]) -> bool:
        """Hand a message to ZeroMQ; never waits.  A large frame is not copied: leave its memory unchanged.

        Returns:
            False when the peer is gone or its queue is full; nothing was sent then.

        Raises:
            BadInput: a frame is larger, or the message longer, than the limits.
        """
        parts = _checked(frames, self._core.limits)
        with self._core.in_use():
            try:
                self._core.socket.send_multipart([peer.route, *parts], zmq.DONTWAIT, copy=False)
            except zmq.ZMQError as error:
                if error.errno in (errno.EAGAIN, errno.EHOSTUNREACH):
                    return False
                raise
            return True

    def wake(self) -> None:
        """Let :meth:`receive` return now, or at once when it is next called; from any thread."""
        self._core.wake()

    def close(self, flush_s: float = 0.0) -> None:
        """Close for good, within two seconds; from any thread, as often as one likes.

        Args:
            flush_s: time that messages already handed over get to leave, at most half a second.
        """
        self._core.close(flush_s)

    def __enter__(self) -> ServerSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _protect(self, keys: KeyPair) -> None:
        socket = self._core.socket
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt_string(zmq.CURVE_SECRETKEY, keys.secret)
        socket.setsockopt_string(zmq.ZAP_DOMAIN, _DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody enters when nobody answers at the door


class DeviceSocket:
    """The device's end: one server.

    ZeroMQ connects, and after a loss connects again, by itself.  What was under way is lost then, and the server sees
    a new :class:`Peer`: whoever sees :attr:`connections` grow has to say hello again.

    Args:
        address: ``tcp://host:port``.
        server_key: the server's public CURVE key, z85; None speaks plain.
        keys: this device's key pair; needed with ``server_key``.
        limits: bounds of one message, as on the server.
        high_water: messages that may wait to leave: credit + 1.

    Raises:
        BadInput: the address or a key is malformed, or one key came without the other.
    """

    def __init__(
        self,
        address: str,
        *,
        server_key: str | None = None,
        keys: KeyPair | None = None,
        limits: Limits,
        high_water: int = 5,
    ) -> None:
        host, _ = split_address(address)
        if (server_key is None) != (keys is None):
            raise BadInput("One key came without the other.", "CURVE needs the server's key and this device's pair.")
        self.address = address
        self._encrypted = server_key is not None
        self.connected = False
        """Whether the handshake was done and the connection stands; brought up to date by every wait."""
        self.connections = 0
        """How often the handshake was done since the beginning."""
        self._reason = "nothing-listens"
        self._cuts = 0
        self._last_event, self._last_event_at = 0, 0.0
        self._core = _Core(zmq.DEALER, limits, high_water, _DEVICE_INBOX)
        weakref.finalize(self, self._core.close, 0.0)
        try:
            socket = self._core.socket
            socket.setsockopt(zmq.IPV6, ":" in host)
            socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a server that is not there
            socket.setsockopt(zmq.RECONNECT_IVL, 100)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
            socket.setsockopt(zmq.CONNECT_TIMEOUT, 3000)
            if server_key is not None and keys is not None:
                socket.setsockopt_string(zmq.CURVE_SERVERKEY, check_key(server_key, "server key"))
                socket.setsockopt_string(zmq.CURVE_PUBLICKEY, keys.public)
                socket.setsockopt_string(zmq.CURVE_SECRETKEY, keys.secret)
            self._core.watch(_WATCHED)
            _connect(socket, address)
        except BaseException:
            self.close()
            raise

    def wait_connected(self, timeout_s: float = 4.5) -> None:
        """Wait until the handshake is done.

        Raises:
            HandshakeFailed: naming the cause.  A refusal is reported as soon as it is known; silence, and a port where
                nothing listens, when the time is up, because the server may be about to start.  The socket goes on
                trying: one may wait again.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with self._core.in_use():
                self._hear_events()
                if self.connected:
                    return
                self._core.wait_for_event(deadline - time.monotonic())
            if self._cuts >= _CUTS:
                self._reason, self._cuts = self._look_closer(), 0
            failure = HandshakeFailed(*_sentence(self._reason, self.address, self._encrypted), reason=self._reason)
            if not failure.may_pass or time.monotonic() >= deadline:
                self._reason = "nothing-listens"  # so that the next wait judges anew
                raise failure

    def send(self, frames: Sequence[Buffer], timeout_s: float) -> bool:
        """Hand a message to ZeroMQ as soon as there is a connection with room.  Large frames are not copied: leave
        their memory unchanged.

        Returns:
            False when there was none in time; nothing was sent then.

        Raises:
            BadInput: a frame is larger, or the message longer, than the limits.
        """
        parts = _checked(frames, self._core.limits)
        deadline = time.monotonic() + timeout_s
        with self._core.in_use():
            while True:
                self._hear_events()
                with suppress(zmq.Again):
                    self._core.socket.send_multipart(parts, zmq.DONTWAIT, copy=False)
                    return True
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self._core.wait_for_room(left_s)

    def receive(self, timeout_s: float) -> list[memoryview] | None:
        """The next message.

        Returns:
            its frames; None when none came in time, :meth:`wake` was called, or there is no connection, or a new one.
        """
        with self._core.in_use():
            # while libzmq may have given up, nothing else would end the wait
            arrived = self._core.wait_for_message(timeout_s if self.connected else min(timeout_s, _GIVEN_UP_S))
            self._hear_events()
            with suppress(zmq.Again):  # its sender left between the two calls
                return _take_message(self._core.socket, self._core.limits)[1] if arrived else None
            return None

    def wake(self) -> None:
        """Let :meth:`receive` return now, or at once when it is next called; from any thread."""
        self._core.wake()

    def close(self, flush_s: float = 0.0) -> None:
        """Close for good, within two seconds; from any thread, as often as one likes.

        Args:
            flush_s: time that messages already handed over get to leave, at most half a second.
        """
        self._core.close(flush_s)
        self.connected = False

    def __enter__(self) -> DeviceSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hear_events(self) -> None:
        for event, value in self._core.events():
            self._last_event, self._last_event_at = event, time.monotonic()
            if event == zmq.EVENT_CONNECTED:
                self._reason = "no-answer"
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.connected = True
                self.connections += 1
                self._cuts = 0
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._reason = "key-not-allowed"
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
                    self._reason = "no-curve"
            elif event == zmq.EVENT_DISCONNECTED:
                self._cuts += not self.connected
                self.connected = False
            elif event == zmq.EVENT_CLOSED:  # the attempt to reach the port failed
                self._reason = "nothing-listens"
        self._connect_anew_if_given_up()

    def _connect_anew_if_given_up(self) -> None:
        """libzmq connects again after a loss, but not after bytes that break its protocol, nor after a refusal."""
        given_up = self._last_event == zmq.EVENT_DISCONNECTED
        if given_up and time.monotonic() - self._last_event_at > _GIVEN_UP_S:
            self._last_event = 0
            with suppress(zmq.ZMQError):  # it has forgotten the address already
                self._core.socket.disconnect(self.address)
            _connect(self._core.socket, self.address)

    def _look_closer(self) -> str:
        """Why the other side breaks off the handshake; ZeroMQ itself does not say."""
        mechanism = _mechanism_at(self.address)
        if mechanism is None:
            return "no-answer"
        if mechanism not in ("NULL", "CURVE"):
            return "not-mobillm"
        if (mechanism == "CURVE") != self._encrypted:
            return "no-curve"
        # a server that has taken this key before holds it still: then it is the network that cuts
        return "wrong-server-key" if self._encrypted and not self.connections else "no-answer"


_WATCHED = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_DELAYED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)

_SENTENCES = {
    "nothing-listens": (
        "Nothing listens at {address}.",
        "Start the server, or ask for its present join string; a firewall may also stand between.",
    ),
    "no-answer": (
        "Something listens at {address}, but it does not answer as a MobiLLM server does.",
        "Check host and port; if they are right the server hangs or the network loses what is sent.",
    ),
    "key-not-allowed": (
        "The server at {address} does not know this device's key.",
        "Ask whoever runs the server to put the key on its allow-list, or for a fresh one-time code.",
    ),
    "wrong-server-key": (
        "The server at {address} does not hold the key in the join string: it broke off the key exchange.",
        "Ask for its present join string; if that one fails too, somebody else answers at this address.",
    ),
    "not-mobillm": ("What listens at {address} is no MobiLLM server.", "Check host and port."),
    "no-curve-there": (
        "The server at {address} speaks without encryption (no CURVE), and this device has a key for it.",
        "Start the server with keys, or join without one if it runs on this very machine.",
    ),
    "no-curve-here": (
        "The server at {address} speaks CURVE only, and this device came without keys.",
        "Use the whole join string: it holds the server's key.",
    ),
}


def _sentence(reason: str, address: str, encrypted: bool) -> tuple[str, str]:
    """Returns: problem and remedy."""
    if reason == "no-curve":
        reason = "no-curve-there" if encrypted else "no-curve-here"
    problem, remedy = _SENTENCES[reason]
    return problem.format(address=address), remedy


def _mechanism_at(address: str) -> str | None:
    """Ask a port for its ZMTP greeting (RFC 23): 64 bytes, of which 12..31 name the security mechanism.

    Returns:
        "NULL", "CURVE", another name, "" when something answers in another language, None when nothing answers.
    """
    ours = b"\xff" + bytes(8) + b"\x7f\x03"  # signature and version; named no mechanism, the server names its own
    theirs = b""
    with suppress(OSError), plain_socket.create_connection(split_address(address), _LOOK_S) as probe:
        probe.settimeout(_LOOK_S)
        probe.sendall(ours)
        deadline = time.monotonic() + _LOOK_S
        while len(theirs) < _GREETING_BYTES and time.monotonic() < deadline:
            received = probe.recv(_GREETING_BYTES - len(theirs))
            if not received:
                break
            theirs += received
    if not theirs:
        return None
    if len(theirs) < 32 or theirs[:1] != b"\xff" or theirs[9:10] != b"\x7f":
        return ""
    return theirs[12:32].rstrip(b"\0").decode("ascii", errors="replace")


_OPEN: weakref.WeakSet[_Core] = weakref.WeakSet()


@atexit.register
def _close_forgotten() -> None:
    """A frame that is still on its way when pyzmq's collector of frames has ended crashes the process."""
    for core in list(_OPEN):
        core.close(0.0)


class _Core:
    """What both ends share: a private context, the socket, a bell for other threads, and an end in time."""

    def __init__(self, kind: int, limits: Limits, outbox: int, inbox: int) -> None:
        self.limits = limits
        self.context: zmq.Context[Any] = zmq.Context(io_threads=1)
        self.socket: zmq.Socket[Any] = self.context.socket(kind)
        _set_common_options(self.socket, limits, outbox, inbox)
        self.door: _Door | None = None
        self._monitor: zmq.Socket[Any] | None = None
        self._bell = _Bell()
        self._using = threading.Lock()
        self._ending = threading.Lock()
        self._closing = self._closed = False
        _OPEN.add(self)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep :meth:`close` out while a thread is inside.

        Raises:
            SocketClosed: it is closed, or being closed.
        """
        with self._using:
            self.refuse_closed()
            yield

    def refuse_closed(self) -> None:
        if self._closing:
            raise SocketClosed("This connection was closed by this program.", "Open a new one.")

    def wait_for_message(self, timeout_s: float) -> bool:
        """Returns: a message is there; False on time-out, bell, or an event of the connection."""
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self._bell.ear, zmq.POLLIN)
        if self._monitor is not None:
            poller.register(self._monitor, zmq.POLLIN)
        ready = dict(poller.poll(_milliseconds(timeout_s)))
        self._bell.hush()
        self.refuse_closed()
        return self.socket in ready

    def wait_for_room(self, timeout_s: float) -> None:
        """Wait until something may be sent, an event came, or the time (at most a slice of it) is up."""
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLOUT)
        if self._monitor is not None:
            poller.register(self._monitor, zmq.POLLIN)
        poller.poll(_milliseconds(min(timeout_s, _SLICE_S)))
        self.refuse_closed()

    def wait_for_event(self, timeout_s: float) -> None:
        """Wait until something happened to the connection or the time (at most a slice of it) is up."""
        if self._monitor is not None:
            self._monitor.poll(_milliseconds(min(timeout_s, _SLICE_S)))
        self.refuse_closed()

    def watch(self, events: int) -> None:
        """Begin to note what happens to the connection."""
        address = "inproc://events"
        self.socket.monitor(address, events)
        self._monitor = self.context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, 0)  # ZeroMQ's I/O thread would wait for a reader that fell behind
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._monitor.connect(address)

    def events(self) -> Iterator[tuple[int, int]]:
        """What happened since the last call: event and its value."""
        while self._monitor is not None:
            try:
                body, _ = self._monitor.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            yield struct.unpack("=HI", body)

    def wake(self) -> None:
        self._bell.ring()

    def close(self, flush_s: float) -> None:
        self._closing = True
        self._bell.ring()
        with self._ending:
            if self._closed:
                return
            inside = not self._using.acquire(timeout=_LEAVE_S)
            if inside:  # a thread is stuck inside; closing under it would crash the process
                log.error("A thread did not leave its socket within %s s; the socket stays open.", _LEAVE_S)
                return
            try:
                self._closed = True
                self._close_all(min(max(flush_s, 0.0), _FLUSH_LIMIT_S))
            finally:
                self._using.release()

    def _close_all(self, flush_s: float) -> None:
        if self._monitor is not None:
            self.socket.disable_monitor()
            self._monitor.close()
        self.socket.close(linger=int(flush_s * 1000))
        if self.door is not None:
            self.door.close()
        self._bell.close()
        # term() has no time limit of its own; with everything closed it returns once the flush is over
        ender = threading.Thread(target=self.context.term, name="zmq context end", daemon=True)
        ender.start()
        ender.join(flush_s + _LEAVE_S)
        if ender.is_alive():
            log.error("ZeroMQ did not end its context within %.1f s.", flush_s + _LEAVE_S)


class _Bell:
    """Ends the wait of another thread."""

    def __init__(self) -> None:
        self.ear, self._mouth = plain_socket.socketpair()
        self.ear.setblocking(False)
        self._mouth.setblocking(False)

    def ring(self) -> None:
        with suppress(OSError):  # full: it has been rung already; closed: nobody waits
            self._mouth.send(b"!")

    def hush(self) -> None:
        with suppress(BlockingIOError):
            while self.ear.recv(4096):
                pass

    def close(self) -> None:
        self.ear.close()
        self._mouth.close()


class _Door:
    """Answers ZeroMQ's question (ZAP, RFC 27) whether a key may enter; in a thread of its own."""

    def __init__(self, context: zmq.Context[Any], admit: Callable[[str], bool]) -> None:
        self._admit = admit
        self._bell = _Bell()
        self._authenticator = Authenticator(context, log=log)
        self._authenticator.configure_curve_callback(_DOMAIN, self)
        self._authenticator.start()
        self._thread = threading.Thread(target=self._answer, name="mobillm door", daemon=True)
        self._thread.start()

    def callback(self, _domain: str, key: bytes) -> bool:
        """What the authenticator asks; the key comes as z85 already."""
        try:
            return bool(self._admit(key.decode("ascii")))
        except Exception:  # a damaged allow-list lets nobody in, and must not end this thread either
            log.exception("Whether a key may connect could not be decided; it may not.")
            return False

    def close(self) -> None:
        self._bell.ring()
        self._thread.join(_LEAVE_S)

    def _answer(self) -> None:
        questions = self._authenticator.zap_socket
        poller = zmq.Poller()
        poller.register(questions, zmq.POLLIN)
        poller.register(self._bell.ear, zmq.POLLIN)
        try:
            # the authenticator's method is a coroutine, though one that never waits
            with suppress(zmq.ContextTerminated), asyncio.Runner() as runner:
                while questions in dict(poller.poll()):
                    runner.run(self._authenticator.handle_zap_message(questions.recv_multipart()))
        finally:
            self._authenticator.stop()
            self._bell.close()


def _make_routes_unpredictable() -> None:
    """Seed the C library's generator, from which libzmq takes the first route of a ROUTER.

    libzmq 4.3.5 never seeds it, so that every server hands out the same routes, and it ends the whole process
    ("Assertion failed: ok") when a stranger claims the very route that is next.  Nobody else here uses that generator.
    """
    library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
    library.srand(ctypes.c_uint(secrets.randbits(32)))


def _set_common_options(socket: zmq.Socket[Any], limits: Limits, outbox: int, inbox: int) -> None:
    silence_s = max(SILENCE_S, limits.frame_bytes / SLOWEST_LINK_BYTES_PER_S)
    socket.setsockopt(zmq.SNDHWM, outbox)
    socket.setsockopt(zmq.RCVHWM, inbox)
    socket.setsockopt(zmq.MAXMSGSIZE, max(limits.frame_bytes, limits.header_bytes) + _CURVE_BYTES)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.HANDSHAKE_IVL, int(HANDSHAKE_S * 1000))
    socket.setsockopt(zmq.HEARTBEAT_IVL, int(HEARTBEAT_S * 1000))
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(silence_s * 1000))
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)


def _take_message(socket: zmq.Socket[Any], limits: Limits) -> tuple[str, list[memoryview]]:
    """Take the rest of a message off, frame by frame; keep only as much as tells that it is too long.

    Returns:
        the sender's key, and the frames.  More than ``limits.frames + 2`` of them, or more than
        ``limits.total_bytes`` bytes, mean that the message exceeded a limit; the rest of it is gone.
    """
    key = ""
    kept: list[memoryview] = []
    n_bytes = 0
    more = True
    while more:
        frame = socket.recv(zmq.DONTWAIT, copy=False)
        more = frame.more
        if not kept:
            key = _key_of(frame)
        if len(kept) < limits.frames + _ROOM_FOR_MARKER and n_bytes <= limits.total_bytes:
            kept.append(frame.buffer)
            n_bytes += len(frame)
    return key, kept


def _key_of(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:  # a plain connection carries none
        return ""


def _checked(frames: Sequence[Buffer], limits: Limits) -> list[memoryview]:
    """Frames as ZeroMQ takes them; all are looked at before the first leaves, so that none leaves alone.

    Raises:
        BadInput: no frame, too many, one too large, or too many bytes in all.
    """
    views = [_as_bytes(frame) for frame in frames]
    longest = max((view.nbytes for view in views), default=0)
    # libzmq cuts the connection of whoever sends a frame over the limit, and says nothing
    for found, limit, what in (
        (len(views), limits.frames + 2, "frames"),
        (longest, limits.frame_bytes, "bytes in one frame"),
        (sum(view.nbytes for view in views), limits.total_bytes, "bytes in all"),
    ):
        if found > limit:
            raise BadInput(f"The message has {found} {what}; {limit} are allowed.", "Send smaller batches.")
    if not views:
        raise BadInput("A message without frames cannot be sent.", "Send at least one.")
    return views


def _as_bytes(frame: Buffer) -> memoryview:
    view = memoryview(frame)
    return view.cast("B") if view.nbytes else memoryview(b"")  # a view with a zero in its shape cannot be cast


def _milliseconds(seconds: float) -> int:
    return max(0, math.ceil(seconds * 1000))


def _check_protected(bind: str, host: str, keys: KeyPair | None, admit: Callable[[str], bool] | None) -> None:
    """Raises: BadInput: others can reach the address, and there are no keys or no allow-list."""
    if (keys is None) != (admit is None):
        raise BadInput("Keys and allow-list came one without the other.", "Give both, or on loopback neither.")
    if keys is None and not is_loopback(host):
        raise BadInput(
            f"{bind} can be reached by others, and the server has no keys and no allow-list.",
            "Give it both, or bind to tcp://127.0.0.1:0.",
        )


def _bind(socket: zmq.Socket[Any], address: str) -> None:
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"{address}: another program listens there.", "Stop it, or choose another port (0 takes a free one)."
            ) from error
        raise BadInput(f"{address}: cannot listen there ({error}).", "Name an address of this machine.") from error


def _connect(socket: zmq.Socket[Any], address: str) -> None:
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        raise BadInput(f"{address}: cannot connect ({error}).", "It has the form tcp://host:port.") from error
