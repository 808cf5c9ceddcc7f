"""Strangers and hostile devices at a real server: a run beside them ends in the same bytes, memory stays small.

Each attack is one that once ended a server, filled its memory or took its places; it goes on for as long as the run.
"""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from mobillm_kit.channel.ends import DeviceSocket
from mobillm_kit.channel.frames import Limits, to_frames
from mobillm_kit.channel.messages import BatchMessage, Bye, HeadSpec, Hello, Message, Plan
from mobillm_kit.common import MIB
from mobillm_kit.server.process import ServerProcess, serve
from tests.faults import flood
from tests.faults.scenes import attempt, identical
from tests.raw_peer import part, raw_peer
from tests.test_bad_input import crafted

GROWTH_BYTES = 128 * MIB
"""Of a server's peak, beside a run: the limits of strangers (64 x 8 MiB) are never met at once."""
AT_LEAST_S = 3.0


def endless_frames(address: str) -> None:
    """A message that never ends."""
    with closing(raw_peer(address)) as peer, suppress(OSError):
        for _ in range(1200):
            peer.sendall(part(MIB))


def one_message_of_many_frames(address: str) -> None:
    """A message that does end, far beyond what a hello takes."""
    with closing(raw_peer(address)) as peer, suppress(OSError):
        peer.sendall(part(MIB) * 200)
        peer.sendall(b"\x00\x01x")


def silent_connections(address: str) -> None:
    """Two hundred that never answer a ping."""
    with ExitStack() as stack:
        for _ in range(200):
            with suppress(OSError):
                stack.enter_context(closing(raw_peer(address)))
        time.sleep(1)


def say(address: str, *messages: tuple[Message, list[bytes]]) -> None:
    with DeviceSocket(address, limits=Limits(2**28, 2**28)) as device:
        device.wait_connected()
        for message, payloads in messages:
            device.send(to_frames(message, payloads), 1)
        device.receive(0.5)


def hello(plan: Plan) -> Hello:
    return Hello(session=secrets.token_hex(16), name="mallory", code="", position=0, plan=plan, frames=[])


def batches_without_a_hello(address: str) -> None:
    """Large ones, which would be hashed."""
    plan = flood.plan()
    batch = BatchMessage(
        sequence=0,
        lr=0.1,
        samples=[0],
        fresh=[0],
        lengths=[1],
        positions=[0],
        targets=[0],
        codec="fp32",
        group=0,
        layers=plan.side.layers,
        frames=[],
    )
    say(address, *[(batch, [bytes(32 * MIB)])] * 3)


def a_session_per_hello(address: str) -> None:
    """Every place, from one connection."""
    say(address, *[(hello(flood.plan()), []) for _ in range(60)], (Bye(), []))


def a_plan_of_many_weights(address: str) -> None:
    """2^28 weights with their gradients and moments."""
    plan = flood.plan()
    say(address, (hello(replace(plan, side=replace(plan.side, width=2**14, rank=2**13))), []))


def a_head_that_lies(address: str) -> None:
    """A tiny safetensors of 2^81 values."""
    plan = flood.plan()
    head = HeadSpec(norm="none", eps=0.0, project_out=False, bias=False, softcap=None, width=plan.side.width, rows=2)
    asked = hello(replace(plan, side=replace(plan.side, pooling=None), head=head))
    for shape in ([0, 2**40, 2**40], [0, 2**63]):
        say(address, (asked, [crafted({"shape": shape, "data_offsets": [0, 0]})]))


ATTACKS = (
    endless_frames,
    one_message_of_many_frames,
    silent_connections,
    batches_without_a_hello,
    a_session_per_hello,
    a_plan_of_many_weights,
    a_head_that_lies,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One as a user starts it."""
    with serve(tmp_path_factory.mktemp("attacked")) as server:
        yield server


def peak_bytes(server: ServerProcess) -> int:
    """Resident, at most, since :func:`forget_peak`."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def forget_peak(server: ServerProcess) -> None:
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how many bytes came, and a process's peak")
@pytest.mark.parametrize(
    "attack",
    [pytest.param(attack, marks=() if attack is endless_frames else pytest.mark.faults) for attack in ATTACKS],
    ids=lambda attack: attack.__name__,
)
def test_an_attack_changes_no_byte_of_a_run_beside_it_and_takes_little_memory(
    place, server, oracle, attack: Callable[[str], None]
):
    undisturbed = oracle("full-width-int8-cache")
    identical(attempt(place, server.address, "full-width-int8-cache"), undisturbed)  # warm
    forget_peak(server)
    before, over, rounds = peak_bytes(server), threading.Event(), []

    def go_on() -> None:
        ends = time.monotonic() + AT_LEAST_S
        while not over.is_set() or time.monotonic() < ends:
            attack(server.address)
            rounds.append(peak_bytes(server))

    attacker = threading.Thread(target=go_on, daemon=True)
    attacker.start()
    outcome = attempt(place, server.address, "full-width-int8-cache")
    over.set()
    attacker.join(60)
    assert rounds
    assert not attacker.is_alive()
    identical(outcome, undisturbed)
    identical(attempt(place, server.address, "full-width-int8-cache"), undisturbed)
    assert max(rounds) - before < GROWTH_BYTES
