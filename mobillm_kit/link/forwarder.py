"""A link that really holds bytes back: a TCP forwarder in user space, on any system, without root.

    client ═► read ─► flying (each burst with the moment it is due) ═► target        "up"
    client ◄═ flying ◄─ read ◄═ target                                              "down"

    a burst leaves at   start = max(arrival, line free, now - 20 ms)
    line free           = start + 8 n / rate, and later by the burst's retransmissions
    it is delivered at    line free + latency + jitter, never before the burst that went ahead of it

- The line is booked 20 ms ahead and may be booked 20 ms late: who oversleeps would lose 10 to 30 % otherwise.
- All connections share one line each way, as they share the radio of a phone.
- Losses are retransmissions, see `mobillm_kit.link.rates`; while one lasts, the line stands still for all connections.
- Setting a connection up is not delayed.  An end of stream and a reset are passed on after the bytes before them.
- Each direction holds back at most 40 ms of data (never under 16 KiB) plus what is on its way, beside two kernel
  buffers of 256 KiB.  What is full is not read: a sender that is faster is slowed down by its own TCP.

Knows: TCP and links.  Knows nothing of: processes, messages, models.
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

from mobillm_kit.errors import BadInput
from mobillm_kit.link.rates import SEGMENT_BYTES, Delays, Link, parse_link

READ_BYTES = 65536
BUFFER_BYTES = 1 << 18
"""Kernel buffer on either side; left alone it grows to megabytes that no link would hold."""
RUN_AHEAD_S = 0.02
WAKE_AHEAD_S = 0.015
"""The line is looked at again when so much of it is still booked."""
BURST_S = 0.0025
"""Time on the line of one burst, where that is a segment or more: what arrives together."""
QUEUE_S = 0.04
SMALLEST_QUEUE_BYTES = 1 << 14
LARGEST_FLIGHT_BYTES = 1 << 25
"""Above this much on its way (1 Gb/s times 0.27 s) the link is slower than it says."""
NEVER = float("inf")
RESET_ON_CLOSE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
"""SO_LINGER on, zero seconds: closing sends a reset instead of an end of stream."""

now = time.perf_counter
"""The one clock: `time.monotonic` ticks every 15 ms on some systems."""

Address = tuple[str, int]


class Pipe:
    """One direction of one connection."""

    back: Pipe
    """The other direction."""

    def __init__(self, direction: str, source: socket.socket, sink: socket.socket, delays: Delays) -> None:
        self.direction = direction
        """"up" (client to target) or "down"."""
        self.source = source
        self.sink = sink
        self.delays = delays
        self.flying: deque[tuple[float, memoryview]] = deque()
        """(moment when due, bytes), in the order they were sent; no bytes are the end of the stream."""
        self.reset = False
        """The source ended by a reset, and so does the sink when all before it has been delivered."""
        self.blocked = False
        """The sink takes nothing at the moment."""
        self.changed = asyncio.Event()
        """Something is due at another moment than it was, or there is room again."""

    @property
    def flying_bytes(self) -> int:
        """Bytes that are on their way."""
        return sum(len(burst) for _, burst in self.flying)

    def fly(self, due_s: float, burst: memoryview) -> None:
        """Put a burst on its way; it does not overtake the one before it."""
        self.flying.append((max(due_s, self.flying[-1][0]) if self.flying else due_s, burst))
        self.changed.set()

    def hasten(self, latest_s: float) -> None:
        """Nothing that is on its way is due later than that."""
        self.flying = deque((min(due_s, latest_s), burst) for due_s, burst in self.flying)
        self.changed.set()

    async def wait(self, until_s: float = NEVER) -> None:
        """Until something changed, at most until a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(until_s - now()):
                await self.changed.wait()
        self.changed.clear()


class Line:
    """One direction of the link: when the next burst may leave."""

    def __init__(self, link: Link) -> None:
        self.turn = asyncio.Lock()
        """First come, first served: one connection does not shut another out."""
        self._changed = asyncio.Event()
        self.set(link)

    def set(self, link: Link) -> None:
        """Another link, from now on, and nothing is booked on it yet."""
        self.link = link
        self._began_s = self._free_s = now()
        self._changed.set()

    def rate(self) -> float:
        """Bytes per second now; a trace counts from the moment it was set."""
        return self.link.mbit_at(now() - self._began_s) * 1e6 / 8

    def book(self, arrived_s: float, n_bytes: int, delays: Delays) -> float:
        """The moment at which a burst is due at the other end."""
        start_s = max(arrived_s, self._free_s, now() - RUN_AHEAD_S)
        jitter_s, stop_s = delays.burst(self.link, n_bytes)
        self._free_s = self._began_s + self.link.finish_s(n_bytes, start_s - self._began_s) + stop_s
        return self._free_s + self.link.latency_ms / 1e3 + jitter_s

    async def nearly_free(self) -> None:
        """Until no more than the run ahead is booked."""
        while self._free_s >= now() + RUN_AHEAD_S:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._free_s - WAKE_AHEAD_S - now())


class ShapedLink:
    """Listens on 127.0.0.1 and forwards to ``target``; the bytes take as long as they would over ``link``.

    It listens from construction on, and forwards from `open` to `close`; these two and `set` are called in an event
    loop, the same one.  A subclass may hold bytes back by other rules, and spoil them: it says how a connection is made
    (`_connect`), when what was read is due (`_admit`, `_due_s`), and what is sent then (`_piece`, `_send`).

    Args:
        target: host and port of the server.
        link: a `Link` (a trace starts now), what `parse_link` reads, or None: nothing is held back.
        seed: of jitter and losses; connection and direction have sequences of their own.
        up_only: hold back what goes to the target only; answers pass at once.
        port: to listen on; 0 takes a free one.

    Raises:
        BadInput: a target, link or port that is none, or a port that is taken.
    """

    _loop: asyncio.AbstractEventLoop

    def __init__(
        self, target: Address, link: Link | str | None, *, seed: int = 0, up_only: bool = False, port: int = 0
    ) -> None:
        self.accepted = 0
        """Connections so far."""
        self._target = resolved(target)
        self._seed = seed
        self._lines: dict[str, Line] = {}
        if link is not None:
            found = parse_link(link)
            self._lines = {direction: Line(found) for direction in (("up",) if up_only else ("up", "down"))}
        self._connections: dict[Pipe, asyncio.Task[None]] = {}
        """By the pipe up."""
        self._listener = listening_socket(port)
        self.address: Address = self._listener.getsockname()[:2]
        """Where to connect to instead of the target."""
        self.endpoint = f"tcp://{self.address[0]}:{self.address[1]}"
        """The address as ZeroMQ writes it."""

    @property
    def link(self) -> Link:
        """What holds now."""
        return self._lines["up"].link

    def open(self) -> None:
        """Begin to forward."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """End every connection, and listen no more."""
        for up in list(self._connections):
            self._end(up)
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def set(self, link: Link | str) -> None:
        """Change the link while it runs; a trace starts anew.  What had not left yet leaves now."""
        found = parse_link(link)
        # What is still on the line was booked at the old rate, which may have been an outage of minutes: it is 20 ms of
        # data and a burst at most, and leaves now.
        latest_s = now() + (self.link.latency_ms + self.link.jitter_ms) / 1e3
        for line in self._lines.values():
            line.set(found)
        for pipe in self._pipes():
            pipe.hasten(latest_s)

    # ------------------------------------------------------------------------------------------- one connection

    def _accept(self) -> None:
        # it went away between the event and the call, or no descriptor is left: keep serving the others
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            client = stack.enter_context(self._listener.accept()[0])
            server = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            for each in (client, server):
                each.setblocking(False)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            up = Pipe("up", client, server, Delays(self._seed, "up", self.accepted))
            up.back = Pipe("down", server, client, Delays(self._seed, "down", self.accepted))
            up.back.back = up
            self.accepted += 1
            self._connections[up] = self._loop.create_task(self._serve(up))
            stack.pop_all()

    async def _serve(self, up: Pipe) -> None:
        try:
            await self._connect(up)
            async with asyncio.TaskGroup() as tasks:
                for pipe in (up, up.back):
                    tasks.create_task(self._read(pipe))
                    tasks.create_task(self._pass_on(pipe))
        except* OSError:  # nobody listens there, or a peer is gone: both sides see a reset
            self._abort(up)
        self._end(up)

    async def _connect(self, up: Pipe) -> None:
        """Reach the target."""
        await self._loop.sock_connect(up.sink, self._target)

    def _abort(self, up: Pipe) -> None:
        """End a connection by a reset on both sides."""
        for sock in (up.source, up.sink):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._end(up)

    def _end(self, up: Pipe) -> None:
        if task := self._connections.pop(up, None):
            task.cancel()
            for sock in (up.source, up.sink):
                self._loop.remove_reader(sock)
                self._loop.remove_writer(sock)
                sock.close()

    def _pipes(self) -> list[Pipe]:
        return [pipe for up in self._connections for pipe in (up, up.back)]

    # ------------------------------------------------------------------------------------------- one direction

    async def _read(self, pipe: Pipe) -> None:
        data = None
        while data != b"":
            # a receiver that takes nothing stops the line, or what is on its way would pile up
            while pipe.blocked or pipe.flying_bytes >= LARGEST_FLIGHT_BYTES:
                await pipe.wait()
            try:
                data = await self._loop.sock_recv(pipe.source, self._read_bytes(pipe))
            except OSError:
                # The peer is gone.  What it sent before is delivered, as the network would; what was meant for it is
                # not.
                pipe.reset = True
                pipe.back.changed.set()
                data = b""
            await self._admit(pipe, memoryview(data))

    def _read_bytes(self, pipe: Pipe) -> int:
        line = self._lines.get(pipe.direction)
        return min(max(int(line.rate() * QUEUE_S), SMALLEST_QUEUE_BYTES), BUFFER_BYTES) if line else BUFFER_BYTES

    async def _admit(self, pipe: Pipe, data: memoryview) -> None:
        """Put what was just read, or the end of the stream, on its way."""
        line = self._lines.get(pipe.direction)
        if line is None or not data:
            pipe.fly(now() + line.link.latency_ms / 1e3 if line else 0.0, data)
            return
        arrived_s = now()
        while data:
            async with line.turn:
                await line.nearly_free()
                segments = max(int(line.rate() * BURST_S) // SEGMENT_BYTES, 1)
                burst = data[: min(segments * SEGMENT_BYTES, READ_BYTES)]
                data = data[len(burst) :]
                pipe.fly(line.book(arrived_s, len(burst), pipe.delays), burst)

    async def _pass_on(self, pipe: Pipe) -> None:
        while not (pipe.reset and pipe.back.reset):
            due_s = NEVER if pipe.back.reset else self._due_s(pipe)  # nothing is delivered to who is gone
            if due_s > now():
                await pipe.wait(due_s)
            elif not await self._send(pipe):
                break
        if pipe.reset:
            raise ConnectionResetError
        pipe.sink.shutdown(socket.SHUT_WR)

    def _due_s(self, pipe: Pipe) -> float:
        """The moment at which the next is to be passed on."""
        return pipe.flying[0][0] if pipe.flying else NEVER

    async def _send(self, pipe: Pipe) -> int:
        """Pass on what is due; 0 bytes at the end of the stream."""
        piece = self._piece(pipe)
        pipe.blocked = True
        await self._loop.sock_sendall(pipe.sink, piece)
        pipe.blocked = False
        pipe.changed.set()
        return len(piece)

    def _piece(self, pipe: Pipe) -> bytes | memoryview:
        """Take off what goes in one call: all that is due, since each call to the system gives the processor away."""
        moment_s = now()
        due = [pipe.flying.popleft()[1]]
        while pipe.flying and pipe.flying[0][0] <= moment_s and pipe.flying[0][1] and sum(map(len, due)) < BUFFER_BYTES:
            due.append(pipe.flying.popleft()[1])
        return b"".join(due)


def listening_socket(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1."""
    if not isinstance(port, int) or not 0 <= port <= 65535:
        raise BadInput(f"{port!r} is no port.", "Give a number from 0 to 65535; 0 takes a free one.")
    try:
        listener = socket.create_server(("127.0.0.1", port), backlog=64)
    except OSError as error:
        why = str(error.strerror).partition(" (while ")[0]  # the standard library adds where it tried
        raise BadInput(f"Port {port} cannot be used: {why}.", "Free it, or take port 0.") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)  # accepted connections inherit it
    listener.setblocking(False)
    return listener


def resolved(target: Address) -> Address:
    """The target with a numeric host."""
    try:
        host, port = target
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, TypeError, ValueError, OverflowError, UnicodeError):
        raise BadInput(f"{target!r} is no address.", "Give host and port, such as ('127.0.0.1', 5555).") from None
    if not isinstance(port, int) or not 0 < port <= 65535:
        raise BadInput(f"{target!r} has no usable port.", "Give a port from 1 to 65535.")
    return str(found[0][4][0]), port
