"""Bytes from one TCP connection to another, held back for as long as somebody says.

    client ═► waiting (bounded) ─► flying (each burst with the moment it is due) ═► target        "up"
    client ◄═ flying ◄─ waiting ◄═ target                                                        "down"

One thread serves every connection.  What is full is not read, so the sender's own TCP slows it down: memory is bounded.
An end of stream and a reset are passed on after the bytes that came before them.  When bursts may leave is the
subclass's (`ShapedLink`: a link; the tests' fault proxy: disturbances).

Knows: TCP.  Knows nothing of: rates, messages, models.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Self, TypeVar

from mobillm_kit.errors import BadInput, KitError

READ_BYTES = 65536
BUFFER_BYTES = 1 << 18
"""Kernel buffer on either side; left alone it grows to megabytes that no link would hold."""
CLOSE_LIMIT_S = 2.0
NEVER = float("inf")
RESET_ON_CLOSE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
"""SO_LINGER on, zero seconds: closing sends a reset instead of an end of stream."""

now = time.perf_counter
"""The one clock: `time.monotonic` ticks every 15 ms on some systems."""

Address = tuple[str, int]
_Answer = TypeVar("_Answer")


class Pipe:
    """One direction of one connection."""

    def __init__(self, direction: str, number: int, source: socket.socket, sink: socket.socket) -> None:
        self.direction = direction
        """"up" (client to target) or "down"."""
        self.number = number
        """Of the connection, from 0."""
        self.source = source
        self.sink = sink
        self.waiting: deque[tuple[float, memoryview]] = deque()
        """(moment of arrival, bytes), read but not on their way yet."""
        self.waiting_bytes = 0
        self.flying: deque[tuple[float, memoryview]] = deque()
        """(moment when due, bytes), in the order they were sent."""
        self.flying_bytes = 0
        self.ended_s: float | None = None
        """When the source said its last byte."""
        self.reset = False
        """The source ended by a reset, and so does the sink when all before it has been delivered."""
        self.blocked = True
        """The sink takes nothing at the moment (or is not connected yet)."""
        self.done = False
        """The end has been passed on."""

    def take(self, n_bytes: int) -> memoryview:
        """At most ``n_bytes`` from the head of what waits."""
        arrived_s, head = self.waiting.popleft()
        if len(head) > n_bytes:
            self.waiting.appendleft((arrived_s, head[n_bytes:]))
            head = head[:n_bytes]
        self.waiting_bytes -= len(head)
        return head

    def fly(self, due_s: float, burst: memoryview) -> None:
        """Put a burst on its way; it does not overtake the one before it."""
        self.flying.append((max(due_s, self.flying[-1][0]) if self.flying else due_s, burst))
        self.flying_bytes += len(burst)

    def drop(self) -> None:
        """Forget everything that is on its way."""
        self.waiting.clear()
        self.flying.clear()
        self.waiting_bytes = self.flying_bytes = 0


class Connection:
    """A client, a target, and a pipe each way."""

    def __init__(self, number: int, client: socket.socket, server: socket.socket) -> None:
        self.number = number
        self.client = client
        self.server = server
        self.started = False
        """Somebody has begun to connect the server's socket."""
        self.connecting = True
        self.accepted_s = now()
        self.up = Pipe("up", number, client, server)
        self.down = Pipe("down", number, server, client)
        self.down.blocked = False

    @property
    def pipes(self) -> tuple[Pipe, Pipe]:
        return self.up, self.down


class Forwarder:
    """Listens on 127.0.0.1 and forwards every connection to ``target``; runs from construction to `close`.

    Args:
        target: host and port; may be set anew, and counts for the connections that come after.
        port: to listen on; 0 takes a free one.

    Raises:
        BadInput: no such host, or a port that is taken or out of range.
    """

    def __init__(self, target: Address, *, port: int = 0) -> None:
        self.bytes_up = 0
        """Bytes that the target's side has been given."""
        self.bytes_down = 0
        """Bytes that the clients' side has been given."""
        self.accepted = 0
        """Connections so far."""
        self._target = resolved(target)
        self._connections: list[Connection] = []
        self._jobs: deque[Callable[[], None]] = deque()
        self._closing = False
        self._listener = listening_socket(port)
        self._address: Address = self._listener.getsockname()[:2]
        self._wake_end, self._loop_end = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for end in (self._wake_end, self._loop_end):
            end.setblocking(False)
        self._watch(self._loop_end, selectors.EVENT_READ, None)
        self._watch(self._listener, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name=f"{type(self).__name__}:{self._address[1]}", daemon=True)
        self._thread.start()

    @property
    def address(self) -> Address:
        """Where to connect to instead of the target."""
        return self._address

    @property
    def endpoint(self) -> str:
        """The address as ZeroMQ writes it."""
        return f"tcp://{self._address[0]}:{self._address[1]}"

    @property
    def target(self) -> Address:
        return self._target

    @target.setter
    def target(self, target: Address) -> None:
        self._target = resolved(target)

    @property
    def closed(self) -> bool:
        return not self._thread.is_alive()

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    def close(self) -> None:
        """End every connection, free the port, and wait for the thread, at most two seconds.

        Raises:
            KitError: the thread still runs after that.
        """
        self._closing = True
        self._wake()
        if self._thread is threading.current_thread():
            return
        self._thread.join(CLOSE_LIMIT_S)
        if self._thread.is_alive():
            raise KitError(f"The forwarder at {self.endpoint} did not end within {CLOSE_LIMIT_S:g} s.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --------------------------------------------------------------------------------- what a subclass decides

    def _schedule(self) -> float:
        """Move what may travel from waiting to flying; return the moment to be asked again."""
        for connection in self._connections:
            for pipe in connection.pipes:
                while pipe.waiting:
                    pipe.fly(now(), pipe.take(READ_BYTES))
        return NEVER

    def _room(self, pipe: Pipe) -> int:
        """Bytes that may be read from the source now."""
        return BUFFER_BYTES - pipe.waiting_bytes - pipe.flying_bytes

    def _piece(self, pipe: Pipe, burst: memoryview) -> memoryview:
        """The part of a burst that is due which may be sent now; empty: nothing."""
        return burst

    def _sent(self, pipe: Pipe, n_bytes: int) -> None:
        """So many bytes have been passed on."""

    def _end_due_s(self, pipe: Pipe) -> float:
        """The moment to pass an end of stream on."""
        return pipe.ended_s or 0.0

    # --------------------------------------------------------------------------------- the loop

    def _in_loop(self, job: Callable[[], _Answer]) -> _Answer:
        """Run a job in the loop's thread and wait for it, so that its effect holds when this returns."""
        if self._thread is threading.current_thread():
            return job()
        answer: Future[_Answer] = Future()

        def run() -> None:
            try:
                answer.set_result(job())
            except Exception as error:
                answer.set_exception(error)

        self._jobs.append(run)
        self._wake()
        deadline_s = now() + CLOSE_LIMIT_S
        while not wait([answer], timeout=0.05).done:
            if self.closed:
                raise KitError(f"The forwarder at {self.endpoint} is closed.", "Make a new one.")
            if now() > deadline_s:
                raise KitError(f"The forwarder at {self.endpoint} did not answer within {CLOSE_LIMIT_S:g} s.")
        return answer.result()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake already; closed: nobody is left to wake
            self._wake_end.send(b"\0")

    def _run(self) -> None:
        try:
            while not self._closing:
                self._round()
        finally:
            for connection in list(self._connections):
                self._end(connection)
            self._selector.close()
            for each in (self._listener, self._wake_end, self._loop_end):
                each.close()

    def _round(self) -> None:
        while self._jobs:
            self._jobs.popleft()()
        next_s = self._schedule()
        for connection in list(self._connections):
            next_s = min(next_s, self._deliver(connection))
        for connection in self._connections:
            self._watch_connection(connection)
        wait_s = None if next_s == NEVER else max(next_s - now(), 0.0)
        for key, events in self._selector.select(wait_s):
            if key.fileobj is self._loop_end:
                with contextlib.suppress(BlockingIOError):
                    self._loop_end.recv(4096)
            elif key.fileobj is self._listener:
                self._accept()
            elif key.data in self._connections:  # else an earlier event of this round ended it
                self._serve(key.data, key.fileobj, events)

    def _watch(self, sock: socket.socket, events: int, connection: Connection | None) -> None:
        known = self._selector.get_map().get(sock) if sock.fileno() >= 0 else None
        if known is None:
            if events and sock.fileno() >= 0:
                self._selector.register(sock, events, connection)
        elif not events:
            self._selector.unregister(sock)
        elif known.events != events:
            self._selector.modify(sock, events, connection)

    def _watch_connection(self, connection: Connection) -> None:
        for sock, incoming, outgoing in (
            (connection.client, connection.up, connection.down),
            (connection.server, connection.down, connection.up),
        ):
            reading = incoming.ended_s is None and self._room(incoming) > 0
            writing = outgoing.blocked and not outgoing.done
            if connection.connecting and sock is connection.server:
                reading, writing = False, connection.started
            self._watch(sock, reading * selectors.EVENT_READ | writing * selectors.EVENT_WRITE, connection)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # it went away between the event and the call
        try:
            server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        except OSError:  # no descriptor left: refuse this one, keep serving the others
            client.close()
            return
        for each in (client, server):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        connection = Connection(self.accepted, client, server)
        self.accepted += 1
        self._connections.append(connection)
        self._connect(connection)

    def _connect(self, connection: Connection) -> None:
        connection.started = True
        code = connection.server.connect_ex(self._target)
        if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK, getattr(errno, "WSAEWOULDBLOCK", 0)):
            self._abort(connection)

    def _serve(self, connection: Connection, sock: socket.socket, events: int) -> None:
        incoming, outgoing = connection.pipes if sock is connection.client else reversed(connection.pipes)
        if events & selectors.EVENT_WRITE:
            if connection.connecting and sock is connection.server:
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self._abort(connection)  # nobody listens there: the client sees a reset, as from a dead server
                    return
                connection.connecting = False
            outgoing.blocked = False
        if events & selectors.EVENT_READ:
            self._read(connection, incoming, outgoing)

    def _read(self, connection: Connection, incoming: Pipe, outgoing: Pipe) -> None:
        try:
            data = incoming.source.recv(min(BUFFER_BYTES, max(self._room(incoming), 1)))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            # The peer is gone.  What it sent before is delivered, as the network would; what was meant for it is not.
            incoming.reset = True
            outgoing.drop()
            outgoing.ended_s = outgoing.ended_s or now()
            outgoing.done = True
            data = b""
        if data:
            incoming.waiting.append((now(), memoryview(data)))
            incoming.waiting_bytes += len(data)
        else:
            incoming.ended_s = now()

    def _deliver(self, connection: Connection) -> float:
        """Send what is due; return the moment at which the next burst is."""
        next_s = NEVER
        for pipe in connection.pipes:
            try:
                next_s = min(next_s, self._send_due(pipe))
            except OSError:
                self._abort(connection)
                return NEVER
            if connection not in self._connections:  # ended by what the sent bytes set off
                return NEVER
            if pipe.reset and pipe.done:
                self._abort(connection)
                return NEVER
        if all(pipe.done for pipe in connection.pipes):
            self._end(connection)
        return next_s

    def _send_due(self, pipe: Pipe) -> float:
        while pipe.flying and not pipe.blocked:
            due_s, burst = pipe.flying[0]
            if due_s > now():
                return due_s
            piece = self._piece(pipe, burst)
            if not piece:
                return NEVER
            try:
                n_bytes = pipe.sink.send(piece)
            except (BlockingIOError, InterruptedError):
                pipe.blocked = True
                return NEVER
            self._forget_sent(pipe, n_bytes)
        if pipe.ended_s is None or pipe.waiting or pipe.flying or pipe.done or pipe.blocked:
            return NEVER
        end_s = self._end_due_s(pipe)
        if end_s > now():
            return end_s
        if not pipe.reset:
            pipe.sink.shutdown(socket.SHUT_WR)
        pipe.done = True
        return NEVER

    def _forget_sent(self, pipe: Pipe, n_bytes: int) -> None:
        due_s, burst = pipe.flying.popleft()
        if n_bytes < len(burst):
            pipe.flying.appendleft((due_s, burst[n_bytes:]))
        pipe.flying_bytes -= n_bytes
        if pipe.direction == "up":
            self.bytes_up += n_bytes
        else:
            self.bytes_down += n_bytes
        self._sent(pipe, n_bytes)

    def _abort(self, connection: Connection) -> None:
        """End a connection by a reset on both sides."""
        for sock in (connection.client, connection.server):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._end(connection)

    def _end(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        for sock in (connection.client, connection.server):
            self._watch(sock, 0, None)
            sock.close()


def listening_socket(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1.

    Raises:
        BadInput: the port is taken, or no port at all.
    """
    listener = bound_socket(port)
    listener.listen(64)
    return listener


def bound_socket(port: int) -> socket.socket:
    """A socket that holds a port of 127.0.0.1 and, as long as it does not listen, refuses whoever connects.

    Raises:
        BadInput: the port is taken, or no port at all.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise BadInput(f"{port!r} is no port.", "Give a number from 0 to 65535; 0 takes a free one.")
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if hasattr(socket, "SO_REUSEPORT"):  # not on Windows, where SO_REUSEADDR would steal a port that is in use
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)  # accepted connections inherit it
    sock.setblocking(False)
    try:
        sock.bind(("127.0.0.1", port))
    except OSError as error:
        sock.close()
        raise BadInput(f"Port {port} cannot be used: {error.strerror}.", "Free it, or take port 0.") from None
    return sock


def resolved(target: Address) -> Address:
    """The target with a numeric host.

    Raises:
        BadInput: no such host, or no port.
    """
    try:
        host, port = target
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, TypeError, ValueError, OverflowError, UnicodeError):
        raise BadInput(f"{target!r} is no address.", "Give host and port, such as ('127.0.0.1', 5555).") from None
    if not isinstance(port, int) or not 0 < port <= 65535:
        raise BadInput(f"{target!r} has no usable port.", "Give a port from 1 to 65535.")
    return found[0][4][:2]
