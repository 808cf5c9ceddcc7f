"""Bytes from one TCP connection to another, held back for as long as somebody says.

    client ═► read ─► flying (each burst with the moment it is due) ═► target        "up"
    client ◄═ flying ◄─ read ◄═ target                                              "down"

One event loop serves every connection, two tasks each way.  What is full is not read, so the sender's own TCP slows it
down: memory is bounded.  An end of stream and a reset are passed on after the bytes that came before them.  When bursts
may leave is the subclass's (`ShapedLink`: a link; the tests' fault proxy: disturbances).

Knows: TCP.  Knows nothing of: rates, messages, models.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import time
from collections import deque
from typing import TypeVar

from mobillm_kit.errors import BadInput
from mobillm_kit.link.loop_thread import LoopThread

READ_BYTES = 65536
BUFFER_BYTES = 1 << 18
"""Kernel buffer on either side; left alone it grows to megabytes that no link would hold."""
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
        self.waiting_bytes = 0
        """Read, but not on their way yet."""
        self.flying: deque[tuple[float, memoryview]] = deque()
        """(moment when due, bytes), in the order they were sent."""
        self.flying_bytes = 0
        self.ended_s: float | None = None
        """When the source said its last byte."""
        self.reset = False
        """The source ended by a reset, and so does the sink when all before it has been delivered."""
        self.cut = False
        """The sink is gone: nothing is delivered any more."""
        self.blocked = False
        """The sink takes nothing at the moment."""
        self.changed = asyncio.Event()
        """Something is due at another moment than it was, or there is room again."""

    def fly(self, due_s: float, burst: memoryview) -> None:
        """Put a burst on its way; it does not overtake the one before it."""
        self.flying.append((max(due_s, self.flying[-1][0]) if self.flying else due_s, burst))
        self.flying_bytes += len(burst)
        self.changed.set()

    def take(self, n_bytes: int) -> None:
        """So many bytes of the first burst have been delivered."""
        due_s, burst = self.flying.popleft()
        if n_bytes < len(burst):
            self.flying.appendleft((due_s, burst[n_bytes:]))
        self.flying_bytes -= n_bytes
        self.changed.set()

    def hasten(self, latest_s: float) -> None:
        """Nothing that is on its way is due later than that."""
        self.flying = deque((min(due_s, latest_s), burst) for due_s, burst in self.flying)
        self.changed.set()

    def drop(self) -> None:
        """Forget everything that is on its way."""
        self.flying.clear()
        self.flying_bytes = 0
        self.changed.set()

    async def wait(self, until_s: float = NEVER) -> None:
        """Until something changed, at most until a moment."""
        alarm = None
        if until_s < NEVER:
            alarm = asyncio.get_running_loop().call_later(max(until_s - now(), 0.0), self.changed.set)
        await self.changed.wait()
        self.changed.clear()
        if alarm:
            alarm.cancel()


class Relay:
    """A client, a target, and a pipe each way."""

    task: asyncio.Task[None]

    def __init__(self, number: int, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.started = False
        """Somebody has begun to connect the server's socket."""
        self.up = Pipe("up", number, client, server)
        self.down = Pipe("down", number, server, client)

    @property
    def pipes(self) -> tuple[Pipe, Pipe]:
        """Up and down."""
        return self.up, self.down


class Forwarder(LoopThread):
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
        self._connections: list[Relay] = []
        self._listener = listening_socket(port)
        self.address: Address = self._listener.getsockname()[:2]
        """Where to connect to instead of the target."""
        self.endpoint = f"tcp://{self.address[0]}:{self.address[1]}"
        """The address as ZeroMQ writes it."""
        super().__init__(f"forwarder at {self.endpoint}", self._end_all)
        self._loop.add_reader(self._listener, self._accept)
        self._start()

    @property
    def target(self) -> Address:
        """Where the next connection goes."""
        return self._target

    @target.setter
    def target(self, target: Address) -> None:
        """It counts for the connections that come after."""
        self._target = resolved(target)

    @property
    def open_connections(self) -> int:
        """Connections of this moment."""
        return len(self._connections)

    # --------------------------------------------------------------------------------- what a subclass decides

    async def _connect(self, connection: Relay) -> None:
        """Reach the target."""
        connection.started = True
        await self._loop.sock_connect(connection.server, self._target)

    def _room(self, pipe: Pipe) -> int:
        """Bytes that may be read from the source now."""
        return BUFFER_BYTES - pipe.flying_bytes

    async def _admit(self, pipe: Pipe, data: memoryview) -> None:
        """Put what was just read on its way."""
        pipe.fly(now(), data)

    def _due_s(self, pipe: Pipe) -> float:
        """The moment at which the first burst, or else the end of the stream, is to be passed on."""
        if pipe.flying:
            return pipe.flying[0][0]
        return NEVER if pipe.ended_s is None or pipe.waiting_bytes else self._end_due_s(pipe)

    def _end_due_s(self, pipe: Pipe) -> float:
        """The moment to pass an end of stream on."""
        return pipe.ended_s or 0.0

    def _piece(self, pipe: Pipe) -> memoryview:
        """What of the first burst is sent in one go."""
        return pipe.flying[0][1]

    def _sent(self, pipe: Pipe, n_bytes: int) -> None:
        """So many bytes have been passed on."""

    # --------------------------------------------------------------------------------- the loop

    def _end_all(self) -> None:
        for connection in list(self._connections):
            self._end(connection)
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it went away between the event and the call, or no descriptor is left
            client, _ = self._listener.accept()
            try:
                server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            except OSError:  # refuse this one, keep serving the others
                client.close()
                return
            for each in (client, server):
                each.setblocking(False)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            connection = Relay(self.accepted, client, server)
            self.accepted += 1
            self._connections.append(connection)
            connection.task = self._loop.create_task(self._serve(connection))

    async def _serve(self, connection: Relay) -> None:
        try:
            await self._connect(connection)
            async with asyncio.TaskGroup() as tasks:
                for pipe, other in (connection.pipes, connection.pipes[::-1]):
                    tasks.create_task(self._read(pipe, other))
                    tasks.create_task(self._pass_on(pipe))
        except* OSError:  # nobody listens there, or a peer is gone: both sides see a reset
            self._abort(connection)
        self._end(connection)

    async def _read(self, pipe: Pipe, other: Pipe) -> None:
        try:
            while True:
                while (room := self._room(pipe)) <= 0:
                    await pipe.wait()
                data = await self._loop.sock_recv(pipe.source, min(room, BUFFER_BYTES))
                if not data:
                    break
                await self._admit(pipe, memoryview(data))
        except OSError:
            # The peer is gone.  What it sent before is delivered, as the network would; what was meant for it is not.
            pipe.reset = other.cut = True
            other.drop()
        pipe.ended_s = now()
        pipe.changed.set()

    async def _pass_on(self, pipe: Pipe) -> None:
        while not (pipe.cut and pipe.reset):
            due_s = NEVER if pipe.cut else self._due_s(pipe)
            if due_s > now():
                await pipe.wait(due_s)
            elif pipe.flying:
                await self._send(pipe)
            else:
                break
        if pipe.reset:
            raise ConnectionResetError
        pipe.sink.shutdown(socket.SHUT_WR)

    async def _send(self, pipe: Pipe) -> None:
        piece = self._piece(pipe)
        pipe.take(len(piece))
        pipe.blocked = True
        await self._loop.sock_sendall(pipe.sink, piece)
        pipe.blocked = False
        pipe.changed.set()
        if pipe.direction == "up":
            self.bytes_up += len(piece)
        else:
            self.bytes_down += len(piece)
        self._sent(pipe, len(piece))

    def _pipes(self, direction: str) -> list[Pipe]:
        return [pipe for connection in self._connections for pipe in connection.pipes if pipe.direction == direction]

    def _abort(self, connection: Relay) -> None:
        """End a connection by a reset on both sides."""
        for sock in (connection.client, connection.server):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._end(connection)

    def _end(self, connection: Relay) -> None:
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        connection.task.cancel()
        for sock in (connection.client, connection.server):
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
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
    return str(found[0][4][0]), port
