"""What one connection may take of a server before and between its messages: few strangers, short, and small.

    a stranger (no session stands on it)   10 s, 8 MiB, and 64 of them at a time; the oldest goes first
    any connection                         no more bytes since its last whole message than two messages may weigh

libzmq takes in whatever a peer sends until the message is whole, however long that is, and has no call that ends one
connection.  It does say which descriptor it accepted, and from which one a message came; the kernel counts what a
descriptor has received (TCP_INFO, on Linux; elsewhere time and number alone are bounded), and can shut it down.

Knows: descriptors, bytes, seconds.  Knows nothing of: keys, messages, sessions.
Taught in: notebooks/08_device_and_server.ipynb
"""

import logging
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.common import MIB

log = logging.getLogger(__name__)

MOST_STRANGERS = 64
STRANGER_BYTES = 8 * MIB
"""A hello with its head's tensors: label words' rows, a projection."""

_INFO_BYTES = 256
_RECEIVED_AT = 128
"""Where struct tcp_info has tcpi_bytes_received, 8 bytes (linux/tcp.h)."""


@dataclass
class _Connection:
    inode: int
    """Tells a descriptor from a later one of the same number."""
    since: float
    known: bool = False
    """Whether a session stands on it."""
    counted: int = 0
    """Bytes it had received when its last whole message was taken off."""


class Connections:
    """The connections of one listening socket, by descriptor; ``message_bytes`` is what one message may weigh."""

    def __init__(self, message_bytes: int) -> None:
        self._most_bytes = 2 * message_bytes + MIB
        self._open: dict[int, _Connection] = {}

    def accepted(self, descriptor: int, now: float) -> None:
        """A connection begins."""
        try:
            self._open[descriptor] = _Connection(os.fstat(descriptor).st_ino, now)
        except OSError:  # gone again already
            self._open.pop(descriptor, None)

    def closed(self, descriptor: int) -> None:
        """A connection has ended."""
        self._open.pop(descriptor, None)

    def heard(self, descriptor: int) -> None:
        """A whole message came."""
        connection = self._open.get(descriptor)
        if connection is not None and connection.known:
            connection.counted = self._received(descriptor)

    def know(self, descriptor: int, known: bool, now: float) -> None:
        """Whether a session stands on it from now on."""
        connection = self._open.get(descriptor)
        if connection is not None and connection.known != known:
            connection.known, connection.since = known, now
            connection.counted = self._received(descriptor)

    def cut(self, now: float) -> None:
        """End the connections that take more than they may."""
        strangers = sorted((c.since, fd) for fd, c in self._open.items() if not c.known)
        too_many = {descriptor for _, descriptor in strangers[: max(0, len(strangers) - MOST_STRANGERS)]}
        for descriptor, connection in list(self._open.items()):
            most = self._most_bytes if connection.known else STRANGER_BYTES
            late = not connection.known and now - connection.since > TIMINGS.stranger_s
            if late or descriptor in too_many or self._received(descriptor) - connection.counted > most:
                self._end(descriptor, connection)

    def _received(self, descriptor: int) -> int:
        """Bytes so far; 0 where the system does not say."""
        if not hasattr(socket, "TCP_INFO"):
            return 0
        try:
            with _borrowed(descriptor) as connection:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
            return int(struct.unpack_from("=Q", info, _RECEIVED_AT)[0])
        except (OSError, struct.error):  # gone, or a kernel that counts no bytes
            return 0

    def _end(self, descriptor: int, connection: _Connection) -> None:
        self.closed(descriptor)
        try:
            if os.fstat(descriptor).st_ino != connection.inode:
                return
            with _borrowed(descriptor) as open_still:
                open_still.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
        log.warning("A connection was cut that took more time or memory than a device needs.")


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """A descriptor of libzmq's as a socket; it stays libzmq's to close."""
    borrowed = socket.socket(fileno=descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()
