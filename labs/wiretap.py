"""An ear on the line: passes bytes on between a device and a server, and keeps what the device sends.

    with Tap(server.address) as tap:             the device connects to tap.address and does not know
        …
    tap.messages()                               what crossed, as lists of frames

ZMTP 3: 64 bytes of greeting, then frames: a byte of flags (1 more follow, 2 long, 4 command), 1 or 8 of size, body.

Knows: sockets, how ZeroMQ frames bytes.  Knows nothing of: what the messages say.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType

GREETING, MORE, LONG, COMMAND = 64, 1, 2, 4
LIMIT_S = 10.0


class Tap:
    """Listens on a free port of this machine, for one server; every connection is recorded from its first byte."""

    def __init__(self, address: str) -> None:
        host, port = address.removeprefix("tcp://").rsplit(":", 1)
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.records: list[bytearray] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone would leave accept() waiting on Linux
        self._listener.close()
        self._accepting.join(LIMIT_S)

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed, or the server is gone
            while True:
                device, _ = self._listener.accept()
                record = bytearray()
                self.records.append(record)
                threading.Thread(target=_carry, args=(device, self._server, record), daemon=True).start()

    def messages(self) -> list[list[bytes]]:
        """Whole messages of all connections, in order; what was cut off is left out."""
        return [message for record in self.records for message in messages(bytes(record))]


def _carry(device: socket.socket, address: tuple[str, int], record: bytearray) -> None:
    """One connection, both ways, until both have ended; a server that cannot be reached ends the device's too."""
    with device, suppress(OSError), socket.create_connection(address, LIMIT_S) as server:
        server.settimeout(None)
        back = threading.Thread(target=_pass_on, args=(server, device, None), daemon=True)
        back.start()
        _pass_on(device, server, record)
        back.join()


def _pass_on(source: socket.socket, target: socket.socket, record: bytearray | None) -> None:
    """One direction, until it ends; when either end is gone, both ways end."""
    try:
        while piece := source.recv(1 << 16):
            if record is not None:
                record += piece
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def messages(stream: bytes) -> Iterator[list[bytes]]:
    """The messages in one direction of a connection; commands, such as the handshake, are left out."""
    at, frames = GREETING, []
    while at + 2 <= len(stream):
        flags, size_bytes = stream[at], 8 if stream[at] & LONG else 1
        begin = at + 1 + size_bytes
        at = begin + int.from_bytes(stream[at + 1 : begin], "big")
        if at > len(stream):
            return
        if not flags & COMMAND:
            frames.append(stream[begin:at])
            if not flags & MORE:
                yield frames
                frames = []
