"""What strangers may take of a server: many connections, much time, messages that never end."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import closing, suppress

import pytest

from mobillm_kit.channel.connections import MOST_STRANGERS, STRANGER_BYTES, Connections
from mobillm_kit.channel.ends import DeviceSocket, ServerSocket
from mobillm_kit.channel.frames import Limits
from mobillm_kit.channel.timings import TIMINGS
from tests.raw_peer import part, raw_peer

LIMITS = Limits(frame_bytes=2**22, total_bytes=2**23)
counts_bytes = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how many bytes came (TCP_INFO)")


def cut_after(server: ServerSocket, peer: socket.socket, data: bytes, limit_s: float = 10.0) -> int:
    """Bytes sent until the server cuts the connection."""
    sent, ends = 0, time.monotonic() + limit_s
    with suppress(OSError):
        while time.monotonic() < ends:
            peer.sendall(data)
            sent += len(data)
            server.receive(0)
            server.cut_off()
        raise AssertionError(f"{sent} bytes, and still connected")
    return sent


@counts_bytes
def test_a_message_without_an_end_is_cut_before_it_takes_memory():
    with ServerSocket("tcp://127.0.0.1:0", limits=LIMITS) as server, closing(raw_peer(server.address)) as peer:
        assert cut_after(server, peer, part(2**20)) < STRANGER_BYTES + 2**24


@counts_bytes
def test_one_who_has_a_session_may_send_a_message_and_no_more():
    with ServerSocket("tcp://127.0.0.1:0", limits=LIMITS) as server, closing(raw_peer(server.address)) as peer:
        peer.sendall(b"\x00\x05hello")
        found = server.receive(5) or server.receive(5)
        server.know(found[0], True)
        assert 2 * LIMITS.total_bytes < cut_after(server, peer, part(2**20)) < 2 * LIMITS.total_bytes + 2**24


def test_an_honest_device_sends_as_much_as_it_likes():
    with (
        ServerSocket("tcp://127.0.0.1:0", limits=LIMITS) as server,
        DeviceSocket(server.address, limits=LIMITS) as device,
    ):
        device.wait_connected()
        for number in range(40):
            assert device.send([bytes(2**20), bytes(2**20)], 5)
            found = None
            while found is None:
                found = server.receive(5)
            server.know(found[0], True)
            server.cut_off()
            assert len(found[1]) == 2, number
        assert device.connected


def test_strangers_are_few_and_the_oldest_goes_first():
    with ServerSocket("tcp://127.0.0.1:0", limits=LIMITS) as server:
        peers = [raw_peer(server.address) for _ in range(MOST_STRANGERS + 3)]
        server.receive(0.1)
        server.cut_off()
        assert [peer.recv(1) for peer in peers[:3]] == [b""] * 3
        peers[3].settimeout(0.1)
        with pytest.raises(TimeoutError):
            peers[3].recv(1)
        for peer in peers:
            peer.close()


def test_strangers_get_little_time_and_sessions_all_they_want():
    with ServerSocket("tcp://127.0.0.1:0", limits=LIMITS) as server:
        connections = Connections(2**20)
        with closing(raw_peer(server.address)) as peer, closing(raw_peer(server.address)) as other:
            for number, known in ((peer.fileno(), False), (other.fileno(), True)):
                connections.accepted(number, 0.0)
                connections.know(number, known, 0.0)
            connections.cut(TIMINGS.stranger_s - 1)
            peer.sendall(b"\x00\x01x")
            connections.cut(TIMINGS.stranger_s + 1)
            with pytest.raises(OSError):
                peer.sendall(b"\x00\x01x")
            other.sendall(b"\x00\x01x")


def test_a_descriptor_that_is_another_by_now_is_left_alone():
    connections = Connections(2**20)
    gone, (ours, theirs) = socket.socket(), socket.socketpair()
    connections.accepted(gone.fileno(), 0.0)
    os.dup2(ours.fileno(), gone.fileno())
    connections.cut(TIMINGS.stranger_s + 1)
    ours.sendall(b"x")
    assert theirs.recv(1) == b"x"
    for end in (gone, ours, theirs):
        end.close()
