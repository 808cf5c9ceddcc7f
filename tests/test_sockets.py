"""Two real sockets on a random port: nothing waits for ever, is lost in silence, or lets a stranger in."""

from __future__ import annotations

import gc
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress
from types import SimpleNamespace

import psutil
import pytest
import zmq

from mobillm_kit.channel.ends import DeviceSocket, Peer, ServerSocket
from mobillm_kit.channel.frames import Limits
from mobillm_kit.channel.keys import AllowList, new_keys
from mobillm_kit.errors import AddressInUse, BadInput, HandshakeFailed, SocketClosed

MIB = 2**20
LIMITS = Limits(frame_bytes=MIB, total_bytes=4 * MIB, frames=130, header_bytes=64 * 1024)
WAIT_S = 10.0
"""Longest wait of any test for something that comes at once on an idle machine."""
LOOPBACK = "tcp://127.0.0.1:0"

SERVER, DEVICE, STRANGER = new_keys(), new_keys(), new_keys()


@pytest.fixture
def server():
    with ServerSocket(LOOPBACK, limits=LIMITS) as made:
        yield made


def door(may_connect):
    """A server's keys, and who may come in."""
    return SimpleNamespace(keys=SERVER, may_connect=may_connect)


@pytest.fixture
def guarded():
    """A server with CURVE that knows one device."""
    with ServerSocket(LOOPBACK, door=door(lambda key: key == DEVICE.public), limits=LIMITS) as made:
        yield made


@contextmanager
def device_of(server, **options):
    with DeviceSocket(server.address, limits=LIMITS, **options) as made:
        made.wait_connected()
        yield made


def _curve(keys=DEVICE):
    return {"server_key": SERVER.public, "keys": keys}


def _received(end):
    """The next message; short waits that end for another reason are tried again."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        message = end.receive(0.2)
        if message is not None:
            return message
    raise AssertionError(f"nothing came within {WAIT_S} s")


def _texts(frames):
    return [bytes(frame) for frame in frames]


def _round_trip(server, device, text=b"hello"):
    """A message there and its echo back."""
    assert device.send([text], WAIT_S)
    peer, frames = _received(server)
    assert _texts(frames) == [text]
    assert server.send(peer, [text, b"back"])
    assert _texts(_received(device)) == [text, b"back"]
    return peer


def _port(server):
    return int(server.address.rpartition(":")[2])


# --- messages


def test_a_message_goes_there_and_back(server):
    with device_of(server) as device:
        assert _round_trip(server, device).key == ""


def test_frames_of_every_size_arrive_as_they_left(server):
    frames = [b"", b"a", os.urandom(65_536), os.urandom(MIB), b""]
    with device_of(server) as device:
        assert device.send(frames, WAIT_S)
        peer, received = _received(server)
        assert _texts(received) == frames
        assert server.send(peer, received)  # what came may be sent on
        assert _texts(_received(device)) == frames


def test_any_buffer_can_be_a_frame(server):
    import numpy as np

    frames = [bytearray(b"ab"), memoryview(b"cd"), np.arange(3, dtype="<f4"), np.empty((0, 4), np.float32)]
    with device_of(server) as device:
        assert device.send(frames, WAIT_S)
        assert _texts(_received(server)[1]) == [b"ab", b"cd", np.arange(3, dtype="<f4").tobytes(), b""]


def test_devices_are_told_apart_and_each_gets_its_own_answer(server):
    with device_of(server) as first, device_of(server) as second:
        peers = {}
        for device, name in ((first, b"first"), (second, b"second")):
            assert device.send([name], WAIT_S)
            peer, frames = _received(server)
            peers[bytes(frames[0])] = peer
        for name, peer in peers.items():
            assert server.send(peer, [name])
        assert _texts(_received(first)) == [b"first"]
        assert _texts(_received(second)) == [b"second"]


def test_a_wait_ends_when_its_time_is_up(server):
    with device_of(server) as device:
        for end in (server, device):
            started = time.monotonic()
            assert end.receive(0.2) is None
            assert time.monotonic() - started < 2


# --- who is who


def test_the_message_carries_the_key_that_the_handshake_proved(guarded):
    with device_of(guarded, **_curve()) as device:
        assert _round_trip(guarded, device).key == DEVICE.public


def test_the_largest_frame_survives_encryption(guarded):
    with device_of(guarded, **_curve()) as device:
        assert device.send([bytes(LIMITS.frame_bytes)] * 4, WAIT_S)
        peer, frames = _received(guarded)
        assert [len(frame) for frame in frames] == [LIMITS.frame_bytes] * 4
        assert guarded.send(peer, frames)
        assert len(_received(device)) == 4


def test_the_allow_list_decides_while_the_server_runs(tmp_path):
    allowed = AllowList(tmp_path / "allowed.json")
    with (
        ServerSocket(LOOPBACK, door=door(lambda key: key in allowed), limits=LIMITS) as server,
        DeviceSocket(server.address, limits=LIMITS, **_curve()) as device,
    ):
        with pytest.raises(HandshakeFailed):
            device.wait_connected()
        allowed.add(DEVICE.public, "tablet")
        device.wait_connected()  # the very same socket gets in now
        _round_trip(server, device)


def test_an_allow_list_that_fails_lets_nobody_in_and_the_next_one_still_can(caplog):
    broken = True

    def admit(key):
        if broken:
            raise OSError("the disk is gone")
        return True

    with ServerSocket(LOOPBACK, door=door(admit), limits=LIMITS) as server:
        with DeviceSocket(server.address, limits=LIMITS, **_curve()) as device, pytest.raises(HandshakeFailed):
            device.wait_connected()
        assert "the disk is gone" in caplog.text
        broken = False
        with device_of(server, **_curve()) as device:
            _round_trip(server, device)


# --- the handshake failures, each by its name and in time


def _failure(address, timeout_s=4.5, **options):
    started = time.monotonic()
    with DeviceSocket(address, limits=LIMITS, **options) as device:
        with pytest.raises(HandshakeFailed) as caught:
            device.wait_connected(timeout_s)
        assert not device.connected
    assert time.monotonic() - started < 5
    assert address in caught.value.problem
    assert caught.value.remedy
    return caught.value


def test_nothing_listens(server):
    server.close()
    failure = _failure(server.address, timeout_s=2)
    assert failure.reason == "nothing-listens"
    assert failure.problem == f"Nothing listens at {server.address}."
    assert failure.may_pass


def test_the_key_is_not_on_the_allow_list(guarded):
    failure = _failure(guarded.address, **_curve(STRANGER))
    assert failure.reason == "key-not-allowed"
    assert "does not know this device's key" in failure.problem
    assert not failure.may_pass


def test_the_server_key_is_the_wrong_one(guarded):
    failure = _failure(guarded.address, server_key=STRANGER.public, keys=DEVICE)
    assert failure.reason == "wrong-server-key"
    assert "does not hold the key in the join string" in failure.problem


def test_a_plain_device_at_a_server_with_keys(guarded):
    failure = _failure(guarded.address)
    assert failure.reason == "no-curve"
    assert "speaks CURVE only" in failure.problem


def test_a_device_with_keys_at_a_plain_server(server):
    failure = _failure(server.address, **_curve())
    assert failure.reason == "no-curve"
    assert "speaks without encryption" in failure.problem


@contextmanager
def _other_service(answer):
    """Something that is no ZeroMQ: answers each connection with some bytes (None: says nothing) and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    open_connections.append(connection)
                    if answer is not None:
                        connection.sendall(answer)
                        connection.close()

        open_connections = []
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(WAIT_S)
            for connection in open_connections:
                connection.close()


@pytest.mark.parametrize("options", [{}, _curve()], ids=["plain", "curve"])
@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_another_service_at_the_port(answer, options):
    with _other_service(answer) as address:
        assert _failure(address, **options).reason == "not-mobillm"


def test_a_port_that_accepts_and_says_nothing():
    with _other_service(None) as address:
        failure = _failure(address, timeout_s=1)
        assert failure.reason == "no-answer"
        assert failure.may_pass


def test_a_port_that_accepts_and_hangs_up():
    with _other_service(b"") as address:
        assert _failure(address, timeout_s=1).reason == "no-answer"


def test_a_server_that_starts_a_little_later_is_found(server):
    server.close()
    with DeviceSocket(server.address, limits=LIMITS) as device:
        late = threading.Timer(0.7, lambda: started.append(ServerSocket(server.address, limits=LIMITS)))
        started = []
        late.start()
        try:
            device.wait_connected()
            late.join(WAIT_S)
            _round_trip(started[0], device)
        finally:
            late.join(WAIT_S)
            for late_server in started:
                late_server.close()


# --- where a server may listen


@pytest.mark.parametrize("bind", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://[::]:0", "tcp://192.0.2.1:5555"])
def test_an_address_open_to_others_needs_keys_and_a_list(bind):
    with pytest.raises(BadInput, match="no keys and no allow-list"):
        ServerSocket(bind, limits=LIMITS)


def test_all_addresses_with_keys_and_a_list():
    admit = {DEVICE.public}.__contains__
    with (
        ServerSocket("tcp://0.0.0.0:0", door=door(admit), limits=LIMITS) as server,
        DeviceSocket(f"tcp://127.0.0.1:{_port(server)}", limits=LIMITS, **_curve()) as device,
    ):
        device.wait_connected()
        _round_trip(server, device)


def test_a_busy_port_is_named(server):
    with pytest.raises(AddressInUse, match=re.escape(server.address)):
        ServerSocket(server.address, limits=LIMITS)


def test_a_port_is_free_again_after_close(server):
    with device_of(server) as device:
        _round_trip(server, device)
        server.close()
        with ServerSocket(server.address, limits=LIMITS) as second:
            assert second.address == server.address


@pytest.mark.parametrize("bind", ["", "ipc:///tmp/x", "tcp://127.0.0.1", "tcp://127.0.0.1:x", "127.0.0.1:5555"])
def test_an_address_that_is_none_is_refused(bind):
    with pytest.raises(BadInput, match="address"):
        ServerSocket(bind, limits=LIMITS)
    with pytest.raises(BadInput, match="address"):
        DeviceSocket(bind, limits=LIMITS)


def test_an_address_of_another_machine_cannot_be_listened_at():
    with pytest.raises(BadInput, match="cannot listen"):
        ServerSocket("tcp://192.0.2.1:5555", door=door(lambda key: True), limits=LIMITS)


@pytest.mark.parametrize("half", [{"server_key": SERVER.public}, {"keys": DEVICE}])
def test_a_device_with_one_key_only_is_refused(half):
    with pytest.raises(BadInput, match="without the other"):
        DeviceSocket("tcp://127.0.0.1:5555", limits=LIMITS, **half)


# --- nothing is queued without limit, nothing is dropped in silence


def test_a_device_without_a_server_queues_nothing(server):
    server.close()
    process = psutil.Process()
    payload = bytes(MIB)
    with DeviceSocket(server.address, limits=LIMITS) as device:
        before = process.memory_info().rss
        assert not any(device.send([payload, payload, payload], 0.01) for _ in range(50))
        assert process.memory_info().rss - before < 16 * MIB


def test_a_stalled_server_stops_the_device_after_a_few_messages(server):
    payload = bytes(MIB)
    with device_of(server, high_water=2) as device:
        taken = 0
        while device.send([payload, payload, payload], 0.3):
            taken += 1
            assert taken < 100
        # the two queues (2 + 8 messages) and what TCP holds
        assert taken <= 2 + 8 + 8
        for _ in range(taken):
            assert len(_received(server)[1]) == 3
        assert device.send([b"room again"], WAIT_S)


def test_the_server_is_told_when_a_device_takes_nothing():
    with ServerSocket(LOOPBACK, limits=LIMITS, high_water=2) as server, device_of(server) as device:
        peer = _round_trip(server, device)
        payload = bytes(MIB)
        taken = 0
        while server.send(peer, [payload, payload]):
            taken += 1
            time.sleep(0.002)  # let what is sent leave
            assert taken < 200
        for _ in range(taken):
            assert len(_received(device)) == 2
        _round_trip(server, device)


def test_the_server_is_told_when_a_device_is_gone(server):
    with device_of(server) as device:
        peer = _round_trip(server, device)
    deadline = time.monotonic() + WAIT_S
    while server.send(peer, [b"x"]):
        assert time.monotonic() < deadline
        server.receive(0.01)
    assert not server.send(Peer(b"nobody", ""), [b"x"])


@pytest.mark.parametrize(
    ("frames", "complaint"),
    [
        ([], "without frames"),
        ([bytes(MIB + 1)], "bytes in one frame"),
        ([bytes(MIB)] * 5, "bytes in all"),
        ([b""] * 133, "133 frames"),
    ],
)
def test_a_message_over_the_limits_is_refused_by_its_sender(server, frames, complaint):
    with device_of(server) as device:
        peer = _round_trip(server, device)
        with pytest.raises(BadInput, match=complaint):
            device.send(frames, WAIT_S)
        with pytest.raises(BadInput, match=complaint):
            server.send(peer, frames)
        _round_trip(server, device)


def test_a_frame_that_is_no_buffer_leaves_nothing_half_sent(server):
    with device_of(server) as device:
        with pytest.raises(TypeError):
            device.send([b"first", "text"], WAIT_S)
        _round_trip(server, device)


# --- a hostile peer, and an innocent one beside it


class _Raw:
    """A ZMTP 3 peer without security, written byte by byte."""

    GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)

    def __init__(self, port, identity=b""):
        self.connection = socket.create_connection(("127.0.0.1", port), WAIT_S)
        self.connection.sendall(self.GREETING)
        self._await(64)
        ready = b"\x05READY" + self._property(b"Socket-Type", b"DEALER") + self._property(b"Identity", identity)
        self.connection.sendall(b"\x04" + bytes([len(ready)]) + ready)
        self._await(2)

    def send(self, frames):
        self.connection.sendall(b"".join(self._frame(frame, last=False) for frame in frames[:-1]))
        self.connection.sendall(self._frame(frames[-1], last=True))

    def close(self):
        self.connection.close()

    def _await(self, n_bytes):
        while n_bytes > 0:
            n_bytes -= len(self.connection.recv(n_bytes))

    @staticmethod
    def _property(name, value):
        return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value

    @staticmethod
    def _frame(body, *, last):
        return bytes([2 + (not last)]) + struct.pack(">Q", len(body)) + body


def test_many_empty_frames_are_counted_and_dropped(server):
    with device_of(server) as device, closing(_Raw(_port(server))) as hostile:
        hostile.send([b""] * 200_000)
        started = time.monotonic()
        _, frames = _received(server)
        assert len(frames) == LIMITS.frames + 3
        assert time.monotonic() - started < WAIT_S
        _round_trip(server, device)


def test_a_message_over_the_total_is_cut_short(server):
    with device_of(server) as device, closing(_Raw(_port(server))) as hostile:
        hostile.send([bytes(MIB)] * 40)
        _, frames = _received(server)
        kept_bytes = sum(len(frame) for frame in frames)
        assert LIMITS.total_bytes < kept_bytes <= LIMITS.total_bytes + LIMITS.frame_bytes
        _round_trip(server, device)


def test_a_frame_over_the_limit_ends_its_sender_only(server):
    with device_of(server) as device, closing(_Raw(_port(server))) as hostile:
        with suppress(OSError):  # cut while sending
            hostile.send([bytes(MIB + 34)])
        with suppress(ConnectionError):
            while hostile.connection.recv(4096):
                pass
        assert server.receive(0.1) is None
        _round_trip(server, device)


def _garbage():
    yield "http", [b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"]
    yield "tls", [bytes.fromhex("16030100c8010000c40303") + bytes(range(200))]
    yield "nothing", []
    yield "random", [os.urandom(4096) for _ in range(4)]
    yield "zmtp-greeting-cut", [_Raw.GREETING[:40]]
    yield "zmtp-no-ready", [_Raw.GREETING, b"\x00\x03abc"]
    yield "zmtp-garbage", [_Raw.GREETING, os.urandom(2000)]
    yield "zmtp-huge-length", [_Raw.GREETING, b"\x02" + b"\xff" * 8, bytes(100)]
    yield "zmtp-bad-mechanism", [_Raw.GREETING[:12] + b"MAGIC".ljust(20, b"\0") + bytes(32)]
    yield "zmtp-bad-command", [_Raw.GREETING, b"\x04\x20\x05READY\xff" + bytes(30)]
    yield "zmtp-1", [b"\x01\x00\x05\x00body\x05\x00body"]


@pytest.mark.parametrize("pieces", [pytest.param(pieces, id=name) for name, pieces in _garbage()])
@pytest.mark.parametrize("kind", ["server", "guarded"])
def test_a_server_outlives_garbage_and_serves_the_innocent(request, kind, pieces):
    server = request.getfixturevalue(kind)
    with device_of(server, **(_curve() if kind == "guarded" else {})) as device:
        peer = _round_trip(server, device)
        with socket.create_connection(("127.0.0.1", _port(server)), WAIT_S) as hostile, suppress(OSError):
            for piece in pieces:
                hostile.sendall(piece)
                time.sleep(0.02)
        while (found := server.receive(0.05)) is not None:  # garbage may look like a message of ZMTP 1; no key has it
            assert kind == "server"
            assert found[0] != peer
        assert _round_trip(server, device) == peer


def test_two_devices_that_claim_one_identity_do_not_disturb_a_third(server):
    with device_of(server) as innocent:
        route = _round_trip(server, innocent).route
        with closing(_Raw(_port(server), identity=b"same")) as first, closing(_Raw(_port(server), route)) as thief:
            first.send([b"one"])
            thief.send([b"two"])
            assert _received(server)[0].route == b"same"
            _round_trip(server, innocent)  # the thief's message never comes, the innocent's answer is not diverted
            thief.connection.settimeout(0.3)
            received = b""
            with suppress(TimeoutError):
                received = thief.connection.recv(4096)
            assert b"back" not in received


FORGED = """
import socket, sys, time
from mobillm_kit.channel.ends import DeviceSocket
from mobillm_kit.channel.ends import ServerSocket
from mobillm_kit.channel.frames import Limits
from tests.test_sockets import LIMITS, _Raw, _port, _round_trip

with ServerSocket("tcp://127.0.0.1:0", limits=LIMITS) as server:
    usual = 0x6B8B4567  # the first number of a C generator that nobody seeded
    forged = [_Raw(_port(server), b"\\0" + (usual + i).to_bytes(4, "big")) for i in range(40)]
    for raw in forged:
        raw.send([b"claimed"])
    while server.receive(0.5) is not None:
        pass
    with DeviceSocket(server.address, limits=LIMITS) as device:
        device.wait_connected()
        _round_trip(server, device)
    for raw in forged:
        raw.close()
print("survived")
"""


def test_a_stranger_cannot_end_the_server_by_claiming_the_next_route(root):
    done = subprocess.run([sys.executable, "-c", FORGED], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "survived", done.stderr


def test_a_peer_without_curve_gets_no_message_through(guarded):
    with device_of(guarded, **_curve()) as device, socket.create_connection(("127.0.0.1", _port(guarded))) as hostile:
        hostile.sendall(_Raw.GREETING + b"\x04\x06\x05READY" + b"\x00\x02hi")
        assert guarded.receive(0.3) is None
        _round_trip(guarded, device)


# --- losing and finding each other


def test_a_lost_connection_is_noticed_and_made_anew(server):
    with device_of(server) as device:
        first = _round_trip(server, device)
        assert device.connections == 1
        server.close()
        _until(device, lambda: not device.connected)
        assert not device.send([b"x"], 0.1)
        with ServerSocket(server.address, limits=LIMITS) as second:
            device.wait_connected(WAIT_S)
            assert device.connections == 2
            assert _round_trip(second, device).route != first.route


def _until(device, condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        device.receive(0.1)


def test_bytes_that_break_the_protocol_cost_one_connection_only(server):
    """libzmq itself would never connect again."""
    with _Relay() as relay:
        relay.target = _port(server)
        with DeviceSocket(relay.address, limits=LIMITS) as device:
            device.wait_connected()
            _round_trip(server, device)
            relay.inject = b"\xff" * 64
            _until(device, lambda: device.connections == 2)
            _round_trip(server, device)


class _Relay:
    """A TCP relay that can slip bytes in on the way to the device."""

    def __init__(self):
        self.target, self.inject = 0, b""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        self._ends = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._threads[0].join(WAIT_S)
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join(WAIT_S)
        for end in self._ends:
            end.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self._ends += [near, far]
                for source, sink in ((near, far), (far, near)):
                    thread = threading.Thread(target=self._pump, args=(source, sink, sink is near), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _pump(self, source, sink, to_device):
        source.settimeout(0.05)
        with suppress(OSError):
            while True:
                with suppress(TimeoutError):
                    data = source.recv(65_536)
                    if not data:
                        sink.shutdown(socket.SHUT_RDWR)
                        return
                    sink.sendall(data)
                if to_device and self.inject:
                    injected, self.inject = self.inject, b""
                    sink.sendall(injected)


# --- waking and closing


@pytest.mark.parametrize("which", ["server", "device"])
def test_a_wake_ends_the_wait_from_another_thread(server, which):
    with device_of(server) as device:
        end = {"server": server, "device": device}[which]
        assert end.receive(0.05) is None
        timer = threading.Timer(0.2, end.wake)
        timer.start()
        started = time.monotonic()
        assert end.receive(WAIT_S) is None
        assert 0.1 < time.monotonic() - started < WAIT_S / 2
        timer.join(WAIT_S)


def test_a_wake_before_the_wait_is_not_lost(server):
    for _ in range(100_000):  # more than the bell can hold
        server.wake()
    started = time.monotonic()
    assert server.receive(WAIT_S) is None
    assert time.monotonic() - started < WAIT_S / 2
    assert server.receive(0.2) is None  # and all of them were one


def test_a_wake_loses_no_message(server):
    with device_of(server) as device:
        stop = threading.Event()
        noise = threading.Thread(target=lambda: [server.wake() for _ in iter(stop.is_set, True)])
        noise.start()
        try:
            for i in range(200):
                assert device.send([str(i).encode()], WAIT_S)
                deadline = time.monotonic() + WAIT_S
                while (found := server.receive(1)) is None:
                    assert time.monotonic() < deadline
                assert _texts(found[1]) == [str(i).encode()]
        finally:
            stop.set()
            noise.join(WAIT_S)


def _closed_in_s(end, **options):
    started = time.monotonic()
    end.close(**options)
    return time.monotonic() - started


def test_close_is_quick_with_messages_that_nobody_takes(server):
    with device_of(server, high_water=2) as device:
        peer = _round_trip(server, device)
        payload = bytes(MIB)
        while device.send([payload] * 3, 0.2):
            pass
        while server.send(peer, [payload] * 3):
            pass
        assert _closed_in_s(device) < 2
        assert _closed_in_s(server) < 2


@pytest.mark.parametrize("flush_s", [0.0, 60.0])
def test_close_is_quick_without_a_peer(guarded, flush_s):
    assert _closed_in_s(guarded, flush_s=flush_s) < 2
    device = DeviceSocket(guarded.address, limits=LIMITS, **_curve())
    assert _closed_in_s(device, flush_s=flush_s) < 2


@pytest.mark.parametrize("which", ["server", "device"])
def test_close_from_another_thread_ends_a_wait(server, which):
    with device_of(server) as device:
        end = {"server": server, "device": device}[which]
        ended = []

        def wait():
            try:
                while True:
                    end.receive(60)
            except SocketClosed as error:
                ended.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)
        assert _closed_in_s(end) < 2
        thread.join(2)
        assert ended


def test_close_from_another_thread_ends_a_send(server):
    server.close()
    device = DeviceSocket(server.address, limits=LIMITS)
    timer = threading.Timer(0.2, device.close)
    timer.start()
    started = time.monotonic()
    with pytest.raises(SocketClosed):
        device.send([b"x"], 60)
    assert time.monotonic() - started < 2
    timer.join(WAIT_S)


def test_close_is_quick_while_the_allow_list_hangs():
    released = threading.Event()
    asked = threading.Event()

    def admit(key):
        asked.set()
        return released.wait(30)

    server = ServerSocket(LOOPBACK, door=door(admit), limits=LIMITS)
    try:
        with DeviceSocket(server.address, limits=LIMITS, **_curve()):
            assert asked.wait(WAIT_S)
            assert _closed_in_s(server) < 2
    finally:
        released.set()


def test_what_was_sent_last_still_arrives_when_there_is_time_to_flush(server):
    with device_of(server) as device:
        _round_trip(server, device)
        assert device.send([bytes(MIB), b"bye"], WAIT_S)
        device.close(flush_s=0.5)
        assert bytes(_received(server)[1][1]) == b"bye"


def test_a_closed_socket_says_so(server):
    device = DeviceSocket(server.address, limits=LIMITS)
    for end in (server, device):
        end.close()
        end.close()
        end.wake()
        with pytest.raises(SocketClosed):
            end.receive(0)
    with pytest.raises(SocketClosed):
        device.send([b"x"], 0)
    with pytest.raises(SocketClosed):
        device.wait_connected()
    with pytest.raises(SocketClosed):
        server.send(Peer(b"x", ""), [b"x"])


def test_a_socket_that_is_forgotten_frees_its_port():
    """A notebook cell that is run again drops the first socket without closing it."""
    forgotten = ServerSocket(LOOPBACK, door=door(lambda key: True), limits=LIMITS)
    address = forgotten.address
    del forgotten
    gc.collect()
    with ServerSocket(address, limits=LIMITS) as second:
        assert second.address == address


FORGOTTEN = """
from mobillm_kit.channel.keys import new_keys
from mobillm_kit.channel.ends import DeviceSocket
from mobillm_kit.channel.ends import ServerSocket
from types import SimpleNamespace
from tests.test_sockets import LIMITS

keys = new_keys()
door = SimpleNamespace(keys=keys, may_connect=lambda key: True)
server = ServerSocket("tcp://127.0.0.1:0", door=door, limits=LIMITS)
device = DeviceSocket(server.address, server_key=keys.public, keys=keys, limits=LIMITS)
device.wait_connected()
device.send([bytes(2**20)], 5)
print("end", flush=True)
"""


def test_programs_that_forget_to_close_still_end(root):
    """Several at a time, so that ends of program are slow: a frame still on its way then crashed every third."""
    command = [sys.executable, "-c", FORGOTTEN]
    started = [
        subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(6)
    ]
    for program in started:
        said, complaint = program.communicate(timeout=60)
        assert said.strip() == "end"
        assert program.returncode == 0, complaint


@pytest.mark.skipif(not hasattr(psutil.Process, "num_fds"), reason="file descriptors are counted on POSIX")
def test_nothing_is_left_over(guarded):
    def once():
        with ServerSocket(LOOPBACK, door=door(lambda key: True), limits=LIMITS) as server:
            with device_of(server, **_curve()) as device:
                assert device.send([bytes(MIB)], WAIT_S)
                _received(server)
            with suppress(HandshakeFailed), DeviceSocket(server.address, limits=LIMITS) as plain:
                plain.wait_connected(0.5)
        with pytest.raises(AddressInUse):
            ServerSocket(guarded.address, limits=LIMITS)

    once()  # pyzmq keeps one thread for the memory of large frames
    process = psutil.Process()
    before = process.num_fds(), process.num_threads(), set(threading.enumerate())
    for _ in range(5):
        once()
    deadline = time.monotonic() + WAIT_S  # the kernel may take a moment to count an ended thread
    while process.num_fds() > before[0] or process.num_threads() > before[1] or {*threading.enumerate()} - before[2]:
        assert time.monotonic() < deadline, (before, process.num_fds(), process.num_threads(), threading.enumerate())
        time.sleep(0.05)


# --- the options that the facts demand


def test_every_default_of_zmq_that_hurts_is_set(guarded):
    with device_of(guarded, high_water=5, **_curve()) as device:
        for end in (guarded, device):
            raw = end._socket
            assert 0 < raw.getsockopt(zmq.SNDHWM) <= 32
            assert 0 < raw.getsockopt(zmq.RCVHWM) <= 32
            assert raw.getsockopt(zmq.MAXMSGSIZE) == LIMITS.frame_bytes + 33  # what CURVE adds
            assert raw.getsockopt(zmq.LINGER) == 0
            assert raw.getsockopt(zmq.HANDSHAKE_IVL) > 0
            assert raw.getsockopt(zmq.HEARTBEAT_IVL) <= 0  # the device pings; see docs/log.md
            assert raw.getsockopt(zmq.TCP_KEEPALIVE) == 1
            assert raw.getsockopt(zmq.ROUTING_ID) == b""  # a name is never an identity
        assert device._socket.getsockopt(zmq.IMMEDIATE) == 1
        assert device._socket.getsockopt(zmq.SNDHWM) == 5
        assert guarded._socket.getsockopt(zmq.MECHANISM) == zmq.CURVE
