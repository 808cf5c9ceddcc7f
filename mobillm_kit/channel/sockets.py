"""What the two ends of a connection share: options, waits with an end, frames within limits, and closing in time.

ZeroMQ's own defaults wait for ever, buffer without limit and drop in silence; every option that decides about that is
set here.  One thread uses a socket; waking and closing it may come from any other.

Knows: zmq, keys, frames.  Knows nothing of: what the frames mean, sessions, tensors.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import atexit
import logging
import math
import socket as plain_socket
import struct
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import zmq
import zmq.utils.garbage  # registers its end of program here, so that ours, registered later, comes before it

from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.errors import BadInput, SocketClosed

if TYPE_CHECKING:
    from mobillm_kit.channel.frames import Limits

log = logging.getLogger(__name__)

_CURVE_BYTES = 33  # encryption adds them to each frame, and MAXMSGSIZE counts them
_ROOM_FOR_MARKER = 3  # preamble, header, and one frame more than is allowed


_OPEN: weakref.WeakSet[Core] = weakref.WeakSet()


@atexit.register
def _close_forgotten() -> None:
    """A frame that is still on its way when pyzmq's collector of frames has ended crashes the process."""
    for core in list(_OPEN):
        core.close(0.0)


class Core:
    """What both ends share: a private context, the socket, a bell for other threads, and an end in time."""

    def __init__(self, kind: int, limits: Limits, outbox: int, inbox: int) -> None:
        self.limits = limits
        self.context: zmq.Context[Any] = zmq.Context(io_threads=1)
        self.socket: zmq.Socket[Any] = self.context.socket(kind)
        _set_common_options(self.socket, limits, outbox, inbox)
        self.also_close: list[Callable[[], None]] = []
        self._monitor: zmq.Socket[Any] | None = None
        self._bell = Bell()
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
        """Raises: SocketClosed: it is closed, or being closed."""
        if self._closing:
            raise SocketClosed("This connection was closed by this program.", "Open a new one.")

    def wait_for_message(self, timeout_s: float) -> bool:
        """Returns: a message is there; False on time-out, bell, or an event of the connection."""
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self._bell.ear, zmq.POLLIN)
        if self._monitor is not None and self._events_wake:
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
        poller.poll(_milliseconds(min(timeout_s, TIMINGS.slice_s)))
        self.refuse_closed()

    def wait_for_event(self, timeout_s: float) -> None:
        """Wait until something happened to the connection or the time (at most a slice of it) is up."""
        if self._monitor is not None:
            self._monitor.poll(_milliseconds(min(timeout_s, TIMINGS.slice_s)))
        self.refuse_closed()

    def watch(self, events: int, *, wake: bool) -> None:
        """Begin to note what happens to the connections; ``wake``: it ends a wait for a message."""
        self._events_wake = wake
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
        """End a wait for a message; from any thread."""
        self._bell.ring()

    def close(self, flush_s: float) -> None:
        """Close for good; messages already handed over get ``flush_s`` to leave."""
        self._closing = True
        self._bell.ring()
        with self._ending:
            if self._closed:
                return
            inside = not self._using.acquire(timeout=TIMINGS.socket_leave_s)
            if inside:  # a thread is stuck inside; closing under it would crash the process
                log.error(
                    "A thread did not leave its socket within %s s; the socket stays open.", TIMINGS.socket_leave_s
                )
                return
            try:
                self._closed = True
                self._close_all(min(max(flush_s, 0.0), TIMINGS.flush_s))
            finally:
                self._using.release()

    def _close_all(self, flush_s: float) -> None:
        if self._monitor is not None:
            self.socket.disable_monitor()
            self._monitor.close()
        self.socket.close(linger=int(flush_s * 1000))
        for close in self.also_close:
            close()
        self._bell.close()
        # term() has no time limit of its own; with everything closed it returns once the flush is over
        ender = threading.Thread(target=self.context.term, name="zmq context end", daemon=True)
        ender.start()
        ender.join(flush_s + TIMINGS.socket_leave_s)
        if ender.is_alive():
            log.error("ZeroMQ did not end its context within %.1f s.", flush_s + TIMINGS.socket_leave_s)


class Bell:
    """Ends the wait of another thread."""

    def __init__(self) -> None:
        self.ear, self._mouth = plain_socket.socketpair()
        self.ear.setblocking(False)
        self._mouth.setblocking(False)

    def ring(self) -> None:
        """End the wait, or the next one."""
        with suppress(OSError):  # full: it has been rung already; closed: nobody waits
            self._mouth.send(b"!")

    def hush(self) -> None:
        """Forget how often it was rung."""
        with suppress(BlockingIOError):
            while self.ear.recv(4096):
                pass

    def close(self) -> None:
        """Give both ends back."""
        self.ear.close()
        self._mouth.close()


def _set_common_options(socket: zmq.Socket[Any], limits: Limits, outbox: int, inbox: int) -> None:
    socket.setsockopt(zmq.SNDHWM, outbox)
    socket.setsockopt(zmq.RCVHWM, inbox)
    socket.setsockopt(zmq.MAXMSGSIZE, max(limits.frame_bytes, limits.header_bytes) + _CURVE_BYTES)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.HANDSHAKE_IVL, int(TIMINGS.handshake_limit_s * 1000))
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)


def take_message(socket: zmq.Socket[Any], limits: Limits) -> tuple[str, int, list[memoryview]]:
    """Take the rest of a message off, frame by frame; keep only as much as tells that it is too long.

    Returns:
        the sender's key, its connection's descriptor, and the frames.  More than ``limits.frames + 2`` of them, or
        more than ``limits.total_bytes`` bytes, mean that the message exceeded a limit; the rest of it is gone.
    """
    key, descriptor = "", -1
    kept: list[memoryview] = []
    n_bytes = 0
    more = True
    while more:
        frame = socket.recv(zmq.DONTWAIT, copy=False)
        more = frame.more
        if not kept:
            key, descriptor = _key_of(frame), _descriptor_of(frame)
        if len(kept) < limits.frames + _ROOM_FOR_MARKER and n_bytes <= limits.total_bytes:
            kept.append(frame.buffer)
            n_bytes += len(frame)
    return key, descriptor, kept


def _key_of(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:  # a plain connection carries none
        return ""


def _descriptor_of(frame: zmq.Frame) -> int:
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:  # libzmq names none: the connection has ended meanwhile
        return -1


def checked(frames: Sequence[bytes | bytearray | memoryview], limits: Limits) -> list[memoryview]:
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


def _as_bytes(frame: bytes | bytearray | memoryview) -> memoryview:
    view = memoryview(frame)
    return view.cast("B") if view.nbytes else memoryview(b"")  # a view with a zero in its shape cannot be cast


def _milliseconds(seconds: float) -> int:
    return max(0, math.ceil(seconds * 1000))
