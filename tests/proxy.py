"""A TCP proxy that disturbs what it forwards, by call or at an exact byte: the network of the fault suite.

    proxy = FaultProxy(("127.0.0.1", 5555), seed=3)          clients connect to proxy.address or proxy.endpoint
    proxy.latency(40, jitter_ms=20)                          Toxiproxy's eight verbs, and four more
    proxy.after_bytes(100_000, proxy.reset)                  the 100 001st byte finds the connection gone
    proxy.heal()

"up" is from the client to the target.  Bytes are counted from the call on, over all connections of that direction; for
`limit` per connection.  Every call holds when it returns; actions run in the proxy's own thread, while nothing passes.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self, TypeVar

from mobillm_kit.common import derived_seed
from mobillm_kit.link.forwarder import BUFFER_BYTES, NEVER, READ_BYTES, Address, Pipe, ShapedLink, now
from mobillm_kit.link.rates import Link

DIRECTIONS = {"up": ("up",), "down": ("down",), "both": ("up", "down")}
LIMIT_S = 2.0

_Answer = TypeVar("_Answer")


class ThreadedLink(ShapedLink):
    """A shaped link in a thread of this process, from construction to `close`."""

    def __init__(self, target: Address, link: Link | str | None, **options: int) -> None:
        super().__init__(target, link, **options)
        self._loop = asyncio.SelectorEventLoop()
        self._loop.call_soon(self.open)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def target(self) -> Address:
        """Where the next connection goes."""
        return self._target

    @target.setter
    def target(self, target: Address) -> None:
        self._target = target

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    @property
    def closed(self) -> bool:
        return not self._thread.is_alive()

    def set(self, link: Link | str) -> None:
        self._in_loop(lambda: ShapedLink.set(self, link))

    def close(self) -> None:
        if not self.closed:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(LIMIT_S)
            assert self.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self) -> None:
        self._loop.run_forever()
        super().close()
        if left := asyncio.all_tasks(self._loop):
            self._loop.run_until_complete(asyncio.wait(left))
        self._loop.close()

    def _in_loop(self, job: Callable[[], _Answer]) -> _Answer:
        """What the job gives; its effect holds when this returns."""

        async def done() -> _Answer:
            return job()

        if self._thread is threading.current_thread():
            return job()
        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(LIMIT_S)


@dataclass
class Corruption:
    """One byte to change."""

    remaining_bytes: int
    mask: int


@dataclass
class Trigger:
    """Something to do at one byte."""

    remaining_bytes: int
    action: Callable[[], object]
    fired: threading.Event


@dataclass
class Toxics:
    """What is wrong with one direction."""

    draws: random.Random
    latency_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float = 0.0
    free_s: float = 0.0
    slice_bytes: int = 0
    slice_delay_s: float = 0.0
    held: bool = False
    swallowing: bool = False
    slow_close_s: float = 0.0
    limit_bytes: int = 0
    cuts_left: float = 0
    corruptions: list[Corruption] = field(default_factory=list)
    triggers: list[Trigger] = field(default_factory=list)


class FaultProxy(ThreadedLink):
    """Forwards to ``target`` (which may be set anew at any time) and disturbs on demand.

    Args:
        target: host and port of the server.
        seed: of jitter and of slice sizes.
        port: to listen on; 0 takes a free one.
    """

    def __init__(self, target: Address, *, seed: int = 0, port: int = 0) -> None:
        self.bytes_up = 0
        """Bytes that the target's side has been given."""
        self.bytes_down = 0
        """Bytes that the clients' side has been given."""
        self._refusing = False
        self._timeout_s = NEVER
        self._alarms: list[asyncio.TimerHandle] = []
        self._passed_bytes: dict[Pipe, int] = {}
        self._lost: set[Pipe] = set()
        """Connections whose streams have a hole."""
        self._toxics = fresh(seed)
        super().__init__(target, None, seed=seed, port=port)

    # ------------------------------------------------------------------------------------------- toxics by call

    def latency(self, ms: float, *, jitter_ms: float = 0.0, direction: str = "both") -> None:
        """Everything is late by ``ms`` and up to ``jitter_ms`` more, in order."""
        self._change(direction, latency_s=ms / 1e3, jitter_s=jitter_ms / 1e3)

    def bandwidth(self, bytes_per_s: float, *, direction: str = "both") -> None:
        self._change(direction, bytes_per_s=bytes_per_s)

    def slicer(self, max_bytes: int, *, delay_ms: float = 0.0, direction: str = "both") -> None:
        """Pieces of 1 … ``max_bytes``, each sent on its own, ``delay_ms`` after the one before."""
        self._change(direction, slice_bytes=max_bytes, slice_delay_s=delay_ms / 1e3)

    def slow_close(self, ms: float, *, direction: str = "both") -> None:
        """An end of stream is passed on ``ms`` late."""
        self._change(direction, slow_close_s=ms / 1e3)

    def limit(self, n_bytes: int, *, direction: str = "up", times: float = NEVER) -> None:
        """Each connection (old ones from now on) is closed after ``n_bytes``; only the first ``times`` of them."""
        self._in_loop(self._passed_bytes.clear)
        self._change(direction, limit_bytes=n_bytes, cuts_left=times)

    def hold(self, *, direction: str = "both") -> None:
        """Nothing passes and nothing is lost: a machine asleep.  `heal` lets it go on."""
        self._change(direction, held=True)

    def black_hole(self, *, direction: str = "both") -> None:
        """Connections are accepted and stay; what is sent vanishes.  `heal` resets those that have lost bytes."""
        self._change(direction, swallowing=True)

    def timeout(self, ms: float) -> None:
        """What is sent vanishes, and each connection is closed after ``ms``."""

        def begin() -> None:
            self._timeout_s = ms / 1e3
            for connection in self._connections:
                self._limit_time(connection)

        self._change("both", swallowing=True)
        self._in_loop(begin)

    def down(self) -> None:
        """Drop every connection and refuse new ones: no machine there, or no server."""
        self._in_loop(self._refuse)

    def reset(self) -> None:
        """Reset the connections of this moment, on both sides; new ones are welcome."""
        self._in_loop(lambda: [self._abort(connection) for connection in list(self._connections)])

    def heal(self) -> None:
        """Take every disturbance away, those included that have not fired yet."""
        self._in_loop(self._heal)

    # ------------------------------------------------------------------------------------------- at an exact byte

    def corrupt(self, at_byte: int, *, mask: int = 0x01, direction: str = "up") -> None:
        """Change the byte number ``at_byte`` (0 is the next one) by exclusive or; once."""
        for name in DIRECTIONS[direction]:
            self._in_loop(lambda name=name: self._toxics[name].corruptions.append(Corruption(at_byte, mask)))

    def after_bytes(self, n_bytes: int, action: Callable[[], object], *, direction: str = "up") -> threading.Event:
        """Do something when exactly ``n_bytes`` more have passed; once.  The event is set when it is done.

        The action runs in the proxy's thread: it may call every verb of the proxy, and nothing passes meanwhile.
        """
        if n_bytes < 1:
            raise ValueError("after_bytes counts bytes that pass: 1 or more")
        trigger = Trigger(n_bytes, action, threading.Event())
        self._in_loop(lambda: self._toxics[direction].triggers.append(trigger))
        return trigger.fired

    # ------------------------------------------------------------------------------------------- in the loop

    def _change(self, direction: str, **toxics: float) -> None:
        def change() -> None:
            for name in DIRECTIONS[direction]:
                for key, value in toxics.items():
                    setattr(self._toxics[name], key, value)
            for pipe in self._pipes():
                if self._toxics[pipe.direction].swallowing and pipe.flying_bytes:
                    self._swallow(pipe)
                pipe.changed.set()

        self._in_loop(change)

    def _refuse(self) -> None:
        if self._refusing:
            return
        self._refusing = True
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._listener = bound_socket(self.address)
        for connection in list(self._connections):
            self._abort(connection)

    def _heal(self) -> None:
        self._toxics = fresh(self._seed)
        self._timeout_s = NEVER
        while self._alarms:
            self._alarms.pop().cancel()
        if self._refusing:
            self._refusing = False
            self._listener.listen(64)
            self._loop.add_reader(self._listener, self._accept)
        for connection in list(self._connections):
            if connection in self._lost:
                self._abort(connection)
        for pipe in self._pipes():
            pipe.hasten(0.0)

    def _limit_time(self, connection: Pipe) -> None:
        if self._timeout_s < NEVER:
            self._alarms.append(self._loop.call_later(self._timeout_s, self._end, connection))

    async def _connect(self, up: Pipe) -> None:
        self._limit_time(up)
        if not all(toxics.swallowing for toxics in self._toxics.values()):
            await super()._connect(up)
            return
        self._lost.add(up)
        while await self._loop.sock_recv(up.source, READ_BYTES):
            pass
        await asyncio.Event().wait()  # until it is healed

    def _swallow(self, pipe: Pipe) -> None:
        self._lost.add(connection_of(pipe))
        pipe.flying.clear()

    async def _admit(self, pipe: Pipe, data: memoryview) -> None:
        toxics = self._toxics[pipe.direction]
        if not data:
            pipe.fly(now() + toxics.slow_close_s, data)
        while len(data) and not toxics.swallowing:
            n_bytes = READ_BYTES
            due_s = now()
            if toxics.slice_bytes:
                n_bytes = toxics.draws.randint(1, toxics.slice_bytes)
                due_s = max(due_s, toxics.free_s) + toxics.slice_delay_s
            if toxics.bytes_per_s:
                n_bytes = min(n_bytes, max(int(toxics.bytes_per_s / 100), 1))
            burst, data = data[:n_bytes], data[n_bytes:]
            if toxics.bytes_per_s:
                due_s = max(due_s, toxics.free_s) + len(burst) / toxics.bytes_per_s
            toxics.free_s = due_s
            pipe.fly(due_s + toxics.latency_s + toxics.draws.random() * toxics.jitter_s, burst)
        if len(data):
            self._swallow(pipe)
        while pipe.flying_bytes >= BUFFER_BYTES:
            await pipe.wait()

    def _due_s(self, pipe: Pipe) -> float:
        toxics = self._toxics[pipe.direction]
        return NEVER if toxics.swallowing or toxics.held else super()._due_s(pipe)

    def _piece(self, pipe: Pipe) -> bytes | memoryview:
        toxics = self._toxics[pipe.direction]
        due_s, burst = pipe.flying.popleft()
        ahead = [each.remaining_bytes for each in (*toxics.corruptions, *toxics.triggers)]
        if toxics.limit_bytes and toxics.cuts_left:
            ahead.append(toxics.limit_bytes - self._passed_bytes.get(pipe, 0))
        masks = [corruption.mask for corruption in toxics.corruptions if corruption.remaining_bytes == 0]
        n_bytes = 1 if masks else min(ahead, default=len(burst))
        if n_bytes < len(burst):
            pipe.flying.appendleft((due_s, burst[n_bytes:]))
        piece = bytearray(burst[:n_bytes])
        for mask in masks if piece else ():
            piece[0] ^= mask
        return bytes(piece)

    async def _send(self, pipe: Pipe) -> int:
        n_bytes = await super()._send(pipe)
        if pipe.direction == "up":
            self.bytes_up += n_bytes
        else:
            self.bytes_down += n_bytes
        if n_bytes:
            self._passed(pipe, n_bytes)
        return n_bytes

    def _passed(self, pipe: Pipe, n_bytes: int) -> None:
        toxics = self._toxics[pipe.direction]
        self._passed_bytes[pipe] = self._passed_bytes.get(pipe, 0) + n_bytes
        toxics.corruptions = [each for each in toxics.corruptions if each.remaining_bytes > 0]
        for each in (*toxics.corruptions, *toxics.triggers):
            each.remaining_bytes -= n_bytes
        if toxics.limit_bytes and toxics.cuts_left and self._passed_bytes[pipe] >= toxics.limit_bytes:
            toxics.cuts_left -= 1
            self._end(connection_of(pipe))
        self._fire(toxics)

    def _fire(self, toxics: Toxics) -> None:
        due = [trigger for trigger in toxics.triggers if trigger.remaining_bytes == 0]
        toxics.triggers = [trigger for trigger in toxics.triggers if trigger.remaining_bytes > 0]
        for trigger in due:
            trigger.action()
            trigger.fired.set()

    def _end(self, up: Pipe) -> None:
        super()._end(up)
        self._lost.discard(up)
        for pipe in (up, up.back):
            self._passed_bytes.pop(pipe, None)


def fresh(seed: int) -> dict[str, Toxics]:
    """Nothing wrong, either way."""
    return {name: Toxics(random.Random(derived_seed(seed, "proxy", name))) for name in DIRECTIONS["both"]}


def bound_socket(address: Address) -> socket.socket:
    """It does not listen: the port stays ours, and refuses."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if hasattr(socket, "SO_REUSEPORT"):  # not on Windows, where SO_REUSEADDR would steal a port that is in use
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    sock.setblocking(False)
    sock.bind(address)
    return sock


def connection_of(pipe: Pipe) -> Pipe:
    """Its pipe up, by which a connection is known."""
    return pipe if pipe.direction == "up" else pipe.back
