"""A peer that speaks ZMTP by hand, so that it may say what libzmq would not."""

from __future__ import annotations

import socket
import struct

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


def ready() -> bytes:
    body = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    return bytes([4, len(body)]) + body


def raw_peer(address: str) -> socket.socket:
    """Connected and greeted."""
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    peer = socket.create_connection((host, int(port)), 5)
    peer.settimeout(5)
    peer.sendall(GREETING)
    read(peer, 64)
    peer.sendall(ready())
    (length,) = read(peer, 2)[1:]
    read(peer, length)
    return peer


def read(peer: socket.socket, n_bytes: int) -> bytes:
    found = b""
    while len(found) < n_bytes:
        found += peer.recv(n_bytes - len(found))
    return found


def part(n_bytes: int) -> bytes:
    """A frame after which more are to come."""
    return b"\x03" + struct.pack(">Q", n_bytes) + bytes(n_bytes)
