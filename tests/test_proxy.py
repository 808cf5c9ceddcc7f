"""The fault suite's network does what it says, to the byte."""

from __future__ import annotations

import itertools
import random
import socket
import statistics
import threading
import time

import pytest

from tests.proxy import FaultProxy
from tests.tcp_peers import connect, echo, ended_by, open_descriptors, receive, sink, source, visit, wait_until

SLACK_S = 0.02
DATA = random.Random(0).randbytes(200_000)


def round_trip_s(client: socket.socket) -> float:
    began_s = time.perf_counter()
    client.sendall(b"p")
    assert receive(client, 1) == b"p"
    return time.perf_counter() - began_s


def differing(sent: bytes, got: bytes) -> dict[int, int]:
    assert len(sent) == len(got)
    return {at: one ^ other for at, (one, other) in enumerate(zip(sent, got, strict=True)) if one != other}


# nothing wrong


def test_without_toxics_bytes_pass_unchanged_and_at_once():
    with echo() as server, FaultProxy(server.address) as proxy, connect(proxy.address) as client:
        client.sendall(DATA)
        assert receive(client, len(DATA)) == DATA
        assert min(round_trip_s(client) for _ in range(5)) < SLACK_S
        assert (proxy.bytes_up, proxy.accepted) == (len(DATA) + 5, 1)


def test_the_target_can_move():
    with echo() as old, FaultProxy(old.address) as proxy, sink() as new:
        with connect(proxy.address) as client:
            round_trip_s(client)
        proxy.target = new.address
        with connect(proxy.address) as client:
            client.sendall(b"xyz")
            client.shutdown(socket.SHUT_WR)
            assert receive(client, 1) == b"!"
        assert bytes(new.received) == b"xyz"


# the eight verbs


def test_latency_is_added_each_way_and_healed():
    with echo() as server, FaultProxy(server.address) as proxy, connect(proxy.address) as client:
        proxy.latency(30)
        assert 0.060 <= min(round_trip_s(client) for _ in range(4)) < 0.060 + SLACK_S
        proxy.latency(0, direction="down")
        assert 0.030 <= min(round_trip_s(client) for _ in range(4)) < 0.030 + SLACK_S
        proxy.heal()
        assert min(round_trip_s(client) for _ in range(4)) < SLACK_S


def test_jitter_follows_the_seed():
    def trips_s(seed: int) -> list[float]:
        with echo() as server, FaultProxy(server.address, seed=seed) as proxy, connect(proxy.address) as client:
            proxy.latency(0, jitter_ms=80, direction="up")
            return [round_trip_s(client) for _ in range(8)]

    first, again, other = trips_s(1), trips_s(1), trips_s(2)
    assert max(first) - min(first) > 0.02
    same = sorted(abs(one - two) for one, two in zip(first, again, strict=True))
    differ = sorted(abs(one - two) for one, two in zip(first, other, strict=True))
    assert same[4] < 0.010 < differ[4]


def test_bandwidth_is_a_cap():
    with sink() as server, FaultProxy(server.address) as proxy, connect(proxy.address) as client:
        proxy.bandwidth(400_000)
        began_s = time.perf_counter()
        client.sendall(DATA)
        assert server.wait_for(len(DATA)) - began_s == pytest.approx(0.5, rel=0.15)


def test_down_drops_and_refuses_and_healing_opens_the_same_port():
    with echo() as server, FaultProxy(server.address) as proxy, connect(proxy.address) as client:
        round_trip_s(client)
        proxy.down()
        assert ended_by(client) == "reset"
        wait_until(lambda: server.ended == ["reset"])
        for _ in range(3):
            assert visit(proxy.address) == "refused"
        proxy.heal()
        with connect(proxy.address) as back:
            round_trip_s(back)


def test_slow_close_passes_the_end_late():
    with sink() as server, FaultProxy(server.address) as proxy, connect(proxy.address) as client:
        proxy.slow_close(150, direction="up")
        client.sendall(b"x")
        client.shutdown(socket.SHUT_WR)
        began_s = time.perf_counter()
        assert receive(client, 1) == b"!"
        assert 0.150 <= time.perf_counter() - began_s < 0.150 + 2 * SLACK_S


def test_timeout_swallows_and_closes():
    with echo() as server, FaultProxy(server.address) as proxy, connect(proxy.address) as client:
        round_trip_s(client)
        proxy.timeout(120)
        began_s = time.perf_counter()
        client.sendall(b"lost")
        assert ended_by(client) == "end"
        assert 0.1 <= time.perf_counter() - began_s < 0.120 + 2 * SLACK_S
        assert bytes(server.received) == b"p"
        proxy.heal()
        with connect(proxy.address) as back:
            round_trip_s(back)


def test_reset_hits_those_who_are_there_and_no_others():
    with echo() as server, FaultProxy(server.address) as proxy, connect(proxy.address) as client:
        round_trip_s(client)
        proxy.reset()
        assert ended_by(client) == "reset"
        wait_until(lambda: server.ended == ["reset"])
        with connect(proxy.address) as back:
            round_trip_s(back)


def test_slices_are_small_and_many_and_the_stream_is_whole():
    with echo() as server, FaultProxy(server.address) as proxy, connect(proxy.address) as client:
        proxy.slicer(64, delay_ms=1, direction="up")
        client.sendall(DATA[:2000])
        assert receive(client, 2000) == DATA[:2000]
        sizes = [later - sooner for (_, sooner), (_, later) in itertools.pairwise(server.arrivals)]
        assert len(sizes) >= 15
        assert statistics.median(sizes) <= 64  # a busy reader may find a few together
        proxy.heal()
        client.sendall(DATA)
        assert receive(client, len(DATA)) == DATA


@pytest.mark.parametrize("n_bytes", [1, 1000, 100_001])
def test_limit_cuts_every_connection_after_exactly_so_many_bytes(n_bytes):
    with sink() as server, FaultProxy(server.address) as proxy:
        proxy.limit(n_bytes)
        for turn in (1, 2):
            with connect(proxy.address) as client:
                client.sendall(DATA)
                ended_by(client)
            wait_until(lambda turn=turn: len(server.ended) == turn)
            assert bytes(server.received) == DATA[:n_bytes] * turn


def test_limit_can_cut_once_only():
    with sink() as server, FaultProxy(server.address) as proxy:
        proxy.limit(1000, times=1)
        with connect(proxy.address) as client:
            client.sendall(DATA)
            ended_by(client)
        with connect(proxy.address) as client:
            client.sendall(DATA)
            server.wait_for(1000 + len(DATA))


# four more


def test_black_hole_swallows_old_and_new_connections_without_a_word():
    with echo() as server, FaultProxy(server.address) as proxy, connect(proxy.address) as client:
        round_trip_s(client)
        proxy.black_hole()
        with connect(proxy.address) as newcomer:
            for each in (client, newcomer):
                each.sendall(DATA)
                each.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    each.recv(1)
            assert bytes(server.received) == b"p"
            proxy.heal()
            for each in (client, newcomer):
                assert ended_by(each) == "reset"  # their streams have holes
        with connect(proxy.address) as back:
            round_trip_s(back)


def test_a_one_way_black_hole_lets_answers_through():
    with echo() as server, FaultProxy(server.address) as proxy, connect(proxy.address) as client:
        proxy.black_hole(direction="down")
        client.sendall(b"hello")
        server.wait_for(5)
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_hold_loses_nothing():
    with echo() as server, FaultProxy(server.address) as proxy, connect(proxy.address) as client:
        proxy.hold()
        client.sendall(DATA[:50_000])
        time.sleep(0.1)
        assert not server.received
        proxy.heal()
        assert receive(client, 50_000) == DATA[:50_000]


@pytest.mark.parametrize("at_byte", [0, 1, 65_535, 65_536, 199_999])
def test_corrupt_changes_exactly_one_byte_once(at_byte):
    with echo() as server, FaultProxy(server.address) as proxy, connect(proxy.address) as client:
        proxy.corrupt(at_byte, mask=0x80)
        client.sendall(DATA)
        assert differing(DATA, receive(client, len(DATA))) == {at_byte: 0x80}
        client.sendall(DATA)
        assert receive(client, len(DATA)) == DATA


def test_several_bytes_of_the_way_down_can_be_corrupted():
    with source(DATA) as server, FaultProxy(server.address) as proxy:
        for at_byte, mask in ((5, 1), (5, 2), (6, 4), (1000, 255)):
            proxy.corrupt(at_byte, mask=mask, direction="down")
        with connect(proxy.address) as client:
            assert differing(DATA, receive(client, len(DATA))) == {5: 3, 6: 4, 1000: 255}


# at an exact byte


@pytest.mark.parametrize("n_bytes", [1, 12_345, 131_072])
def test_an_action_runs_when_exactly_so_many_bytes_have_passed(n_bytes):
    with sink() as server, FaultProxy(server.address) as proxy, connect(proxy.address) as client:
        fired = proxy.after_bytes(n_bytes, proxy.reset)
        client.sendall(DATA)
        assert fired.wait(5)
        wait_until(lambda: server.ended)
        assert proxy.bytes_up == n_bytes
        assert DATA[:n_bytes].startswith(server.received)  # a reset may overtake what the server has not read


def test_bytes_are_counted_over_reconnections_and_the_action_runs_once():
    with sink() as server, FaultProxy(server.address) as proxy:
        seen = []
        fired = proxy.after_bytes(3000, lambda: seen.append(proxy.bytes_up))
        for _ in range(4):
            with connect(proxy.address) as client:
                client.sendall(DATA[:1000])
                client.shutdown(socket.SHUT_WR)
                assert receive(client, 1) == b"!"
        assert fired.is_set()
        assert seen == [3000]
        assert len(server.received) == 4000


def test_an_action_may_use_every_verb_and_set_the_next():
    with echo() as server, FaultProxy(server.address) as proxy, connect(proxy.address) as client:
        opened = threading.Event()

        def later() -> None:
            proxy.hold(direction="up")
            threading.Timer(0.1, lambda: (proxy.heal(), opened.set())).start()

        fired = proxy.after_bytes(10, later, direction="down")
        client.sendall(b"0123456789")
        assert receive(client, 10) == b"0123456789"
        assert fired.wait(5)
        client.sendall(b"more")
        assert receive(client, 4) == b"more"
        assert opened.wait(5)


def test_down_at_a_byte_and_back_later():
    with sink() as server, FaultProxy(server.address) as proxy, connect(proxy.address) as client:
        fired = proxy.after_bytes(50_000, proxy.down)
        client.sendall(DATA[:100_000])
        assert fired.wait(5)
        assert ended_by(client) == "reset"
        assert visit(proxy.address) == "refused"
        proxy.heal()
        with connect(proxy.address) as back:
            back.sendall(b"!")
            wait_until(lambda: server.received.endswith(b"!"))


def test_healing_disarms_what_has_not_fired():
    with echo() as server, FaultProxy(server.address) as proxy, connect(proxy.address) as client:
        fired = proxy.after_bytes(10, proxy.reset)
        proxy.corrupt(3)
        proxy.limit(5)
        proxy.heal()
        client.sendall(DATA)
        assert receive(client, len(DATA)) == DATA
        assert not fired.is_set()


def test_counting_starts_at_one_byte():
    with FaultProxy(("127.0.0.1", 9)) as proxy, pytest.raises(ValueError, match="1 or more"):
        proxy.after_bytes(0, proxy.reset)


def test_a_closed_proxy_leaves_nothing_whatever_was_wrong():
    descriptors, threads = open_descriptors(), threading.active_count()
    with sink() as server:
        for verb in ("down", "hold", "black_hole", "heal"):
            proxy = FaultProxy(server.address)
            client = connect(proxy.address)
            client.sendall(DATA)
            getattr(proxy, verb)()
            began_s = time.perf_counter()
            proxy.close()
            assert time.perf_counter() - began_s < 2
            client.close()
    assert threading.active_count() == threads
    assert open_descriptors() == descriptors
