"""Real TCP servers in a thread, for the tests of what stands between two sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT_S = 10.0


class Server:
    """Serves every connection in a thread of its own until the block ends; ``arrivals`` are (second, bytes so far)."""

    def __init__(self, serve: Callable[[Server, socket.socket], None], port: int = 0) -> None:
        self.received = bytearray()
        self.arrivals: list[tuple[float, int]] = []
        self.ended: list[str] = []
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.settimeout(LIMIT_S)
        self.address = self._listener.getsockname()
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(LIMIT_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._run, args=(connection,), daemon=True))
                self._threads[-1].start()

    def _run(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._serve(self, connection)
            except ConnectionError:
                self.ended.append("reset")
            except OSError:
                self.ended.append("closed")
            else:
                self.ended.append("end")

    def take(self, data: bytes) -> None:
        self.received += data
        self.arrivals.append((time.perf_counter(), len(self.received)))

    def wait_for(self, n_bytes: int) -> float:
        """Second at which that many bytes had come."""
        wait_until(lambda: len(self.received) >= n_bytes)
        return next(second for second, so_far in self.arrivals if so_far >= n_bytes)

    def close(self) -> None:
        for each in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(LIMIT_S)


def _sink(server: Server, connection: socket.socket) -> None:
    while data := connection.recv(1 << 16):
        server.take(data)
    connection.sendall(b"!")


def _echo(server: Server, connection: socket.socket) -> None:
    while data := connection.recv(1 << 16):
        server.take(data)
        connection.sendall(data)


@contextmanager
def sink(port: int = 0) -> Iterator[Server]:
    """Takes everything, and answers the end of the stream with one byte."""
    server = Server(_sink, port)
    with contextlib.closing(server):
        yield server


@contextmanager
def echo(port: int = 0) -> Iterator[Server]:
    """Sends back what comes."""
    server = Server(_echo, port)
    with contextlib.closing(server):
        yield server


@contextmanager
def source(data: bytes) -> Iterator[Server]:
    """Sends the same bytes to whoever connects, and hears them out: closing over unread bytes is a reset."""

    def answer(_: Server, connection: socket.socket) -> None:
        connection.sendall(data)
        while connection.recv(1 << 16):
            pass

    server = Server(answer)
    with contextlib.closing(server):
        yield server


def connect(address: tuple[str, int]) -> socket.socket:
    client = socket.create_connection(address, timeout=LIMIT_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def receive(client: socket.socket, n_bytes: int) -> bytes:
    """Exactly that many bytes, or fewer where the stream ends."""
    found = bytearray()
    while len(found) < n_bytes and (data := client.recv(min(n_bytes - len(found), 1 << 16))):
        found += data
    return bytes(found)


def ended_by(client: socket.socket) -> str:
    """How the other side ends the stream: "end" or "reset"."""
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionError:
        return "reset"
    return "end"


def visit(address: tuple[str, int]) -> str:
    """How a connection ends that says nothing: "refused", "reset" (perhaps while it is made) or "end"."""
    try:
        with connect(address) as client:
            return ended_by(client)
    except ConnectionRefusedError:
        return "refused"
    except ConnectionResetError:
        return "reset"


def wait_until(claim: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Fails where the claim does not come true in time."""
    deadline_s = time.monotonic() + limit_s
    while not claim():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.002)


def open_descriptors() -> int:
    """Files and sockets of this process, where the system tells."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0
