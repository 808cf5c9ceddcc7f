"""A link that holds bytes back: how fast, how late, in which order, and what it leaves behind."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mobillm_kit.errors import BadInput, KitError
from mobillm_kit.link.rates import Delays, Link, retransmit_s
from mobillm_kit.link.shaping import LinkProcess
from tests.proxy import ThreadedLink
from tests.tcp_peers import connect, echo, ended_by, open_descriptors, receive, sink, source, visit, wait_until

SLACK_S = 0.015
"""A busy machine wakes a thread late."""


def upload_seconds(link: ThreadedLink | LinkProcess, server, n_bytes: int) -> float:
    with connect(link.address) as client:
        before, began_s = len(server.received), time.perf_counter()
        client.sendall(bytes(n_bytes))
        return server.wait_for(before + n_bytes) - began_s


def round_trips_s(address: tuple[str, int], n: int) -> list[float]:
    found = []
    with connect(address) as client:
        for _ in range(n):
            began_s = time.perf_counter()
            client.sendall(b"p")
            receive(client, 1)
            found.append(time.perf_counter() - began_s)
    return found


# how fast


@pytest.mark.parametrize(("mbit_per_s", "n_bytes"), [(20, 3_000_000), (80, 10_000_000)])
def test_bandwidth_is_within_ten_percent(mbit_per_s, n_bytes):
    link = Link(mbit_per_s, latency_ms=5)
    with sink() as server, ThreadedLink(server.address, link) as shaped:
        ratio = link.seconds(n_bytes) / upload_seconds(shaped, server, n_bytes)
    assert 0.9 <= ratio <= 1.02


def test_the_way_down_is_as_slow():
    data = bytes(2_000_000)
    with source(data) as server, ThreadedLink(server.address, "20mbit") as shaped, connect(shaped.address) as client:
        began_s = time.perf_counter()
        assert len(receive(client, len(data))) == len(data)
        assert 0.9 <= Link(20).seconds(len(data)) / (time.perf_counter() - began_s) <= 1.02


def test_a_lone_message_is_not_early_after_a_pause():
    with sink() as server, ThreadedLink(server.address, "20mbit") as shaped:
        for _ in range(3):
            assert upload_seconds(shaped, server, 100_000) >= Link(20).seconds(100_000) - 0.001
            time.sleep(0.1)


def test_two_connections_share_one_line():
    with (
        sink() as server,
        ThreadedLink(server.address, "40mbit") as shaped,
        connect(shaped.address) as one,
        connect(shaped.address) as other,
        ThreadPoolExecutor(2) as pool,
    ):
        began_s = time.perf_counter()
        list(pool.map(lambda client: client.sendall(bytes(2_000_000)), (one, other)))
        seconds = server.wait_for(4_000_000) - began_s
    assert 0.9 <= Link(40).seconds(4_000_000) / seconds <= 1.02


def test_up_only_leaves_the_way_down_alone():
    data = bytes(8_000_000)
    with (
        source(data) as server,
        ThreadedLink(server.address, "2mbit,40ms", up_only=True) as shaped,
        connect(shaped.address) as client,
    ):
        began_s = time.perf_counter()
        receive(client, len(data))
        assert time.perf_counter() - began_s < Link(2).seconds(len(data)) / 20
    with echo() as server, ThreadedLink(server.address, "2mbit,40ms", up_only=True) as shaped:
        assert 0.040 <= min(round_trips_s(shaped.address, 5)) < 0.040 + SLACK_S


# how late


def test_a_round_trip_takes_twice_the_latency():
    with echo() as server, ThreadedLink(server.address, "100mbit,20ms") as shaped:
        shortest_s = min(round_trips_s(shaped.address, 11))  # a busy machine makes some of them longer, none shorter
    assert 0.040 <= shortest_s < 0.040 + SLACK_S


def jitter_s(seed: int, n: int = 12) -> list[float]:
    with (
        echo() as server,
        ThreadedLink(server.address, "100mbit,jitter=60ms", seed=seed, up_only=True) as shaped,
    ):
        return round_trips_s(shaped.address, n)


def test_same_seed_same_delays_and_they_are_the_ones_that_link_draws():
    drawn = Delays(7, "up", 0)
    expected = [drawn.burst(Link(100, jitter_ms=60), 1)[0] for _ in range(12)]
    late_s = sorted(measured - wanted for measured, wanted in zip(jitter_s(7), expected, strict=True))
    assert late_s[0] >= 0
    assert late_s[6] < SLACK_S
    other_s = sorted(abs(measured - wanted) for measured, wanted in zip(jitter_s(8), expected, strict=True))
    assert other_s[6] > late_s[6]


def test_losses_cost_what_the_seed_says():
    link = Link(40, latency_ms=20, loss=0.01)
    n_bytes = 2_000_000
    lost_s = Delays(3, "up", 0).burst(link, n_bytes)[1]
    assert lost_s >= 5 * retransmit_s(link)
    clean_s = Link(40, latency_ms=20).seconds(n_bytes)
    with sink() as server, ThreadedLink(server.address, link, seed=3) as shaped:
        measured_s = upload_seconds(shaped, server, n_bytes)
    # a burst that does not fill its last segment counts one more: the sequence may be a few losses further on
    assert clean_s + lost_s - SLACK_S <= measured_s <= (clean_s + lost_s) * 1.2


def test_bytes_arrive_whole_and_in_order_through_jitter_and_loss():
    data = random.Random(0).randbytes(500_000)
    with echo() as server, ThreadedLink(server.address, "80mbit,1ms,jitter=5ms,loss=0.5%") as shaped:
        with connect(shaped.address) as client, ThreadPoolExecutor(1) as pool:
            sending = pool.submit(client.sendall, data)
            assert receive(client, len(data)) == data
            sending.result()
        assert bytes(server.received) == data


# a rate that changes


def carried(server, begin_s: float, end_s: float) -> int:
    counts = [so_far for second, so_far in server.arrivals if begin_s < second <= end_s]
    return counts[-1] - counts[0]


def test_a_trace_is_followed():
    trace = Link.trace([(0, 8), (0.6, 0), (1.0, 40)], latency_ms=1)
    with sink() as server, ThreadedLink(server.address, trace) as shaped, connect(shaped.address) as client:
        began_s = time.perf_counter()
        client.sendall(bytes(3_000_000))
        measured_s = server.wait_for(3_000_000) - began_s
    assert 0.9 <= trace.seconds(3_000_000) / measured_s <= 1.05
    assert carried(server, began_s, began_s + 0.58) == pytest.approx(580_000, rel=0.1)
    gap_s = max(later - sooner for (sooner, _), (later, _) in itertools.pairwise(server.arrivals))
    assert gap_s == pytest.approx(0.4, rel=0.15)


def test_the_rate_can_be_set_while_bytes_are_under_way():
    with sink() as server, ThreadedLink(server.address, "8mbit") as shaped, connect(shaped.address) as client:
        client.sendall(bytes(3_000_000))
        server.wait_for(500_000)
        shaped.set("80mbit")
        changed_s, so_far = time.perf_counter(), len(server.received)
        seconds = server.wait_for(3_000_000) - changed_s
        assert shaped.link == Link(80)
    assert seconds == pytest.approx(Link(80).seconds(3_000_000 - so_far), rel=0.2, abs=SLACK_S)


def test_setting_a_link_ends_an_outage_at_once():
    outage = Link.trace([(0, 0), (600, 1)])
    with echo() as server, ThreadedLink(server.address, outage) as shaped, connect(shaped.address) as client:
        client.sendall(b"hello")
        time.sleep(0.2)
        assert not server.received
        began_s = time.perf_counter()
        shaped.set("20mbit")
        assert receive(client, 5) == b"hello"
        assert time.perf_counter() - began_s < 0.2


# memory


def fill(client: socket.socket) -> int:
    """Bytes that can be sent before nobody takes any for half a second."""
    client.settimeout(0.5)
    taken = 0
    with contextlib.suppress(TimeoutError):
        while True:
            taken += client.send(bytes(1 << 16))
    return taken


def held_bytes(shaped: ThreadedLink) -> int:
    """On their way up, and what is read at most in one go and waits for the line."""
    (up,) = shaped._connections
    return up.flying_bytes + shaped._read_bytes(up)


def test_a_sender_is_slowed_down_instead_of_stored():
    """A server that does not read: the link takes its buffers full, and no more."""
    with (
        socket.create_server(("127.0.0.1", 0)) as deaf,
        ThreadedLink(deaf.getsockname(), "1000mbit,5ms") as shaped,
        connect(shaped.address) as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        assert fill(client) < 32 << 20
        assert held_bytes(shaped) <= (1 << 22) + 1000e6 / 8 * 0.05  # queue of 4 MiB, 50 ms under way


def test_a_slow_link_holds_little():
    with (
        sink() as server,
        ThreadedLink(server.address, "0.5mbit,5ms") as shaped,
        connect(shaped.address) as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(bytes(1 << 16))
        time.sleep(0.2)
        assert 0 < held_bytes(shaped) < 1 << 15


# ends


def test_the_end_of_a_stream_comes_after_its_bytes_and_answers_still_pass():
    with sink() as server, ThreadedLink(server.address, "8mbit,10ms") as shaped, connect(shaped.address) as client:
        client.sendall(bytes(200_000))
        client.shutdown(socket.SHUT_WR)
        assert receive(client, 2) == b"!"
        assert len(server.received) == 200_000
        wait_until(lambda: shaped.open_connections == 0)


def test_a_reset_comes_after_the_bytes_before_it():
    with echo() as server, ThreadedLink(server.address, "8mbit,10ms", up_only=True) as shaped:
        client = connect(shaped.address)
        client.sendall(bytes(100_000))
        receive(client, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        time.sleep(0.05)  # what was sent has left this socket
        client.close()
        wait_until(lambda: server.ended)
        assert server.ended == ["reset"]
        wait_until(lambda: shaped.open_connections == 0)


def test_a_dead_target_resets_and_a_new_one_serves():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()
    with echo() as server, ThreadedLink(nobody, "100mbit") as shaped:
        assert visit(shaped.address) == "reset"
        shaped.target = server.address
        assert len(round_trips_s(shaped.address, 2)) == 2
        assert shaped.accepted == 2


def test_closing_under_load_is_quick_and_leaves_nothing():
    descriptors, threads = open_descriptors(), threading.active_count()
    with sink() as server:
        shaped = ThreadedLink(server.address, "1mbit,200ms")
        clients = [connect(shaped.address) for _ in range(5)]
        for client in clients:
            client.sendall(bytes(300_000))
        began_s = time.perf_counter()
        shaped.close()
        assert time.perf_counter() - began_s < 2
        assert shaped.closed
        assert [ended_by(client) for client in clients]
        with pytest.raises(OSError):
            socket.create_connection(shaped.address, timeout=1)
        for client in clients:
            client.close()
        shaped.close()
    assert threading.active_count() == threads
    assert open_descriptors() == descriptors


def test_a_hundred_connections_leave_nothing_while_it_runs():
    with echo() as server, ThreadedLink(server.address, "100mbit,jitter=1ms") as shaped:
        round_trips_s(shaped.address, 1)
        wait_until(lambda: shaped.open_connections == 0)
        for _ in range(100):
            round_trips_s(shaped.address, 1)
        wait_until(lambda: shaped.open_connections == 0)


def test_a_port_can_be_chosen_and_used_again():
    with echo() as server:
        with ThreadedLink(server.address, "100mbit") as shaped:
            port = shaped.address[1]
            round_trips_s(shaped.address, 1)
            with pytest.raises(BadInput, match=rf"Port {port} cannot be used: [^(]*\. Free it"):
                ThreadedLink(server.address, "100mbit", port=port)
        with ThreadedLink(server.address, "100mbit", port=port) as shaped:
            assert shaped.endpoint == f"tcp://127.0.0.1:{port}"
            round_trips_s(shaped.address, 1)


@pytest.mark.parametrize("port", [-1, 70_000, "x", 1.5, None])
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(BadInput, match="is no port"):
        ThreadedLink(("127.0.0.1", 80), "20mbit", port=port)


@pytest.mark.parametrize("target", ["127.0.0.1:80", ("127.0.0.1",), ("no such host!", 80), ("127.0.0.1", 0), None])
def test_a_target_that_is_none_is_refused(target):
    threads = threading.active_count()
    with pytest.raises(BadInput, match=r"no address|no usable port"):
        ThreadedLink(target, "20mbit")
    assert threading.active_count() == threads


def test_a_link_that_is_none_is_refused_and_the_old_one_stays():
    with echo() as server, ThreadedLink(server.address, "20mbit") as shaped:
        with pytest.raises(BadInput, match="names no link"):
            shaped.set("quick")
        assert shaped.link == Link(20)


# as a process


def shaping(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mobillm_kit.link.shaping", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_process_gives_its_address_obeys_and_ends_with_its_input():
    with echo() as server, shaping("--target", f"127.0.0.1:{server.address[1]}", "--link", "20mbit,10ms") as process:
        said = json.loads(process.stdout.readline())
        assert said["endpoint"] == f"tcp://{said['host']}:{said['port']}"
        address = said["host"], said["port"]
        assert min(round_trips_s(address, 3)) >= 0.020
        process.stdin.write("100mbit\nquick\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == {"link": "100.0mbit"}
        assert "names no link" in json.loads(process.stdout.readline())["error"]
        assert min(round_trips_s(address, 3)) < 0.020
        process.stdin.close()
        assert process.wait(5) == 0
        assert not process.stderr.read()


@pytest.mark.parametrize(
    ("target", "link", "complaint"),
    [("nowhere", "20mbit", "Write host:port"), ("127.0.0.1:80", "quick", "names no link")],
)
def test_a_process_that_cannot_start_says_why(target, link, complaint):
    with shaping("--target", target, "--link", link) as process:
        _, complaints = process.communicate(timeout=10)
    assert process.returncode == 2
    assert complaint in complaints
    assert "Traceback" not in complaints


def test_a_link_process_is_used_like_a_link():
    threads, descriptors = threading.active_count(), open_descriptors()
    with echo() as server:
        with LinkProcess(server.address, "20mbit,10ms") as shaped:
            assert 0.020 <= min(round_trips_s(shaped.address, 5)) < 0.040
            shaped.set(Link.trace([(0, 50), (100, 1)], latency_ms=30))
            assert shaped.link.latency_ms == 30
            assert min(round_trips_s(shaped.address, 3)) >= 0.060
            with pytest.raises(BadInput, match="names no link"):
                shaped.set("quick")
            with pytest.raises(BadInput, match="names no link"):
                LinkProcess(server.address, "quick")
        assert shaped._process.poll() == 0
        with pytest.raises(KitError, match="is closed"):
            shaped.set("20mbit")
    assert threading.active_count() == threads
    assert open_descriptors() == descriptors


def test_a_link_process_that_was_killed_says_so():
    with LinkProcess(("127.0.0.1", 9), "20mbit") as shaped:
        shaped._process.kill()
        with pytest.raises(KitError, match="process has ended"):
            shaped.set("40mbit")


@pytest.mark.faults  # a rate: on two cores that both compute already, it is the machine's
def test_a_link_process_keeps_its_rate_while_this_one_computes():
    link = Link(80, latency_ms=5)
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(1000))

    with sink() as server, LinkProcess(server.address, link) as shaped, ThreadPoolExecutor(1) as pool:
        pool.submit(compute)
        try:
            ratios = [link.seconds(8_000_000) / upload_seconds(shaped, server, 8_000_000) for _ in range(3)]
        finally:
            over.set()
    assert max(ratios) >= 0.85  # others may have had both cores for a while
    assert max(ratios) <= 1.02


def test_a_process_needs_no_heavy_library():
    code = "import sys, mobillm_kit.link.shaping; print(sorted({'torch', 'zmq', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
