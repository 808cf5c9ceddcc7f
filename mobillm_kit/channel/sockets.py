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
from typing import Any, Self

import zmq
import zmq.utils.garbage  # registers its end of program here, so that ours, registered later, comes before it

from mobillm_kit.channel.frames import Limits
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.errors import BadInput, SocketClosed

log = logging.getLogger(__name__)

_CURVE_BYTES = 33  # encryption adds them to each frame, and MAXMSGSIZE counts them
_ROOM_FOR_MARKER = 3  # preamble, header, and one frame more than is allowed


_OPEN: weakref.WeakSet[End] = weakref.WeakSet()


@atexit.register
def _close_forgotten() -> None:
    """A frame that is still on its way when pyzmq's collector of frames has ended crashes the process."""
    for end in list(_OPEN):
        end.close()


class End:
    """What both ends share: a private context, the socket, a bell for other threads, and an end in time.

    Args:
        kind: of zmq socket.
        limits: bounds of one message.
        outbox, inbox: messages kept per peer and direction.
        events: what is noted of the connections.
        events_wake: whether an event ends a wait for a message.
    """

    _closed = True  # until there is something to close

    def __init__(self, kind: int, limits: Limits, outbox: int, inbox: int, *, events: int, events_wake: bool) -> None:
        self._limits = limits
        self._context: zmq.Context[Any] = zmq.Context(io_threads=1)
        self._socket: zmq.Socket[Any] = self._context.socket(kind)
        self._socket.setsockopt(zmq.SNDHWM, outbox)
        self._socket.setsockopt(zmq.RCVHWM, inbox)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max(limits.frame_bytes, limits.header_bytes) + _CURVE_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, int(TIMINGS.handshake_limit_s * 1000))
        self._socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        self._socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
        self._socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
        self._socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        self._also_close: list[Callable[[], None]] = []
        self._socket.monitor("inproc://events", events)
        self._monitor: zmq.Socket[Any] = self._context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, 0)  # ZeroMQ's I/O thread would wait for a reader that fell behind
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._monitor.connect("inproc://events")
        self._events_wake = events_wake
        self._bell = Bell()
        self._using = threading.Lock()
        self._ending = threading.Lock()
        self._closing = self._closed = False
        _OPEN.add(self)

    def wake(self) -> None:
        """Let :meth:`receive` return now, or at once when it is next called; from any thread."""
        self._bell.ring()

    def close(self, flush_s: float = 0.0) -> None:
        """Close for good, within two seconds; from any thread, as often as one likes.

        Args:
            flush_s: time that messages already handed over get to leave, at most half a second.
        """
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:  # a forgotten one: a rerun cell
        if not self._closed:
            self.close()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keep :meth:`close` out while a thread is inside; SocketClosed where it is, or is being, closed."""
        with self._using:
            self._refuse_closed()
            yield

    def _refuse_closed(self) -> None:
        if self._closing:
            raise SocketClosed("This connection was closed by this program.", "Open a new one.")

    def _wait(self, wanted: int, timeout_s: float) -> bool:
        """Returns: the socket is ready; False on time-out, bell, or an event of the connection.

        Args:
            wanted: ``zmq.POLLIN``; ``zmq.POLLOUT`` or 0 (an event alone), which no bell ends, last a slice at most.
            timeout_s: longest wait.
        """
        poller = zmq.Poller()
        poller.register(self._socket, wanted)
        if self._events_wake:
            poller.register(self._monitor, zmq.POLLIN)
        if wanted == zmq.POLLIN:
            poller.register(self._bell.ear, zmq.POLLIN)
        else:
            timeout_s = min(timeout_s, TIMINGS.slice_s)
        ready = dict(poller.poll(max(0, math.ceil(timeout_s * 1000))))
        if wanted == zmq.POLLIN:
            self._bell.hush()
        self._refuse_closed()
        return self._socket in ready

    def _events(self) -> Iterator[tuple[int, int]]:
        """What happened to the connections since the last call: event and its value."""
        with suppress(zmq.Again):
            while True:
                yield struct.unpack("=HI", self._monitor.recv_multipart(zmq.DONTWAIT)[0])

    def _close_all(self, flush_s: float) -> None:
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close(linger=int(flush_s * 1000))
        for close in self._also_close:
            close()
        self._bell.close()
        # term() has no time limit of its own; with everything closed it returns once the flush is over
        ender = threading.Thread(target=self._context.term, name="zmq context end", daemon=True)
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
            key, descriptor = _said_of(frame, "User-Id", ""), _said_of(frame, zmq.SRCFD, -1)
        if len(kept) < limits.frames + _ROOM_FOR_MARKER and n_bytes <= limits.total_bytes:
            kept.append(frame.buffer)
            n_bytes += len(frame)
    return key, descriptor, kept


def _said_of(frame: zmq.Frame, what: str | int, otherwise: Any) -> Any:
    try:
        return frame.get(what)
    except zmq.ZMQError:  # a plain connection carries no key; one that has ended meanwhile, no descriptor
        return otherwise


def checked(frames: Sequence[bytes | bytearray | memoryview], limits: Limits) -> list[memoryview]:
    """Frames as ZeroMQ takes them, all checked first, so that none leaves alone; BadInput for none or beyond limits."""
    # a view with a zero in its shape cannot be cast
    views = [view.cast("B") if view.nbytes else memoryview(b"") for view in (memoryview(frame) for frame in frames)]
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
