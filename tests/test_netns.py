"""The shaped link against the kernel's own: two network namespaces, a veth pair, and the token bucket of ``tc``.

Sender and receiver are the same two small programs either way; each run is timed by the sender, from its first byte to
the receiver's one-byte answer after the last.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from mobillm_kit.link.rates import Link
from mobillm_kit.link.shaping import LinkProcess

LIMIT_S = 20
GOODPUT = 1448 / 1514
"""The bucket counts Ethernet frames, a link counts what is in them."""

RECEIVE = """
import socket
with socket.create_server(("0.0.0.0", {port})) as server:
    print(server.getsockname()[1], flush=True)
    connection, _ = server.accept()
    with connection:
        while connection.recv(1 << 16):
            pass
        connection.sendall(b"!")
"""

SEND = """
import socket, time
with socket.create_connection(("{host}", {port}), timeout=20) as client:
    began_s = time.perf_counter()
    client.sendall(bytes({n_bytes}))
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b"!"
    print(time.perf_counter() - began_s)
"""


@dataclass
class Namespaces:
    """Two ends of a cable."""

    sender: str
    receiver: str
    host: str = "10.231.0.2"

    def __post_init__(self) -> None:
        self._ends = [f"{name}v" for name in (self.sender, self.receiver)]

    def make(self) -> None:
        for name in (self.sender, self.receiver):
            ip("netns", "add", name)
        ip("link", "add", self._ends[0], "type", "veth", "peer", "name", self._ends[1])
        for number, (name, end) in enumerate(zip((self.sender, self.receiver), self._ends, strict=True), 1):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.231.0.{number}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")

    def shape(self, mbit_per_s: float) -> None:
        bucket = ("tbf", "rate", f"{mbit_per_s}mbit", "burst", "32kb", "latency", "400ms")
        ip("netns", "exec", self.sender, "tc", "qdisc", "replace", "dev", self._ends[0], "root", *bucket)

    def remove(self) -> None:
        for name in (self.sender, self.receiver):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=LIMIT_S)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=LIMIT_S)


@pytest.fixture(scope="module")
def cable() -> Iterator[Namespaces]:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("needs root for network namespaces; the shaped link itself does not")
    if missing := [name for name in ("ip", "tc") if not shutil.which(name)]:
        pytest.skip(f"needs {' and '.join(missing)} (iproute2), which this machine has not")
    namespaces = Namespaces(f"mk{os.getpid()}a", f"mk{os.getpid()}b")
    try:
        namespaces.make()
        namespaces.shape(20)
    except subprocess.CalledProcessError as error:
        namespaces.remove()
        pytest.skip(f"this machine refuses `{' '.join(error.cmd)}`: {error.stderr.strip()}")
    yield namespaces
    namespaces.remove()


@contextmanager
def receiver(*prefix: str, port: int = 0) -> Iterator[int]:
    command = [*prefix, sys.executable, "-S", "-c", RECEIVE.format(port=port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline())
            assert process.wait(LIMIT_S) == 0
        finally:
            process.kill()


def seconds_to_send(*prefix: str, host: str, port: int, n_bytes: int) -> float:
    command = [*prefix, sys.executable, "-S", "-c", SEND.format(host=host, port=port, n_bytes=n_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    return float(done.stdout)


@pytest.mark.parametrize(("mbit_per_s", "n_bytes"), [(20, 2_500_000), (80, 10_000_000)])
def test_the_shaped_link_is_as_fast_as_the_kernels_token_bucket(cable, mbit_per_s, n_bytes):
    cable.shape(mbit_per_s)
    with receiver("ip", "netns", "exec", cable.receiver) as port:
        kernel_s = seconds_to_send("ip", "netns", "exec", cable.sender, host=cable.host, port=port, n_bytes=n_bytes)
    with receiver() as port, LinkProcess(("127.0.0.1", port), Link(mbit_per_s * GOODPUT)) as shaped:
        shaped_s = seconds_to_send(host=shaped.address[0], port=shaped.address[1], n_bytes=n_bytes)
    print(f"{mbit_per_s} Mb/s: tbf {kernel_s:.3f} s, shaped {shaped_s:.3f} s, ratio {shaped_s / kernel_s:.3f}")
    assert shaped_s / kernel_s == pytest.approx(1, abs=0.1)


def test_without_the_bucket_the_cable_is_far_faster(cable):
    """The control: it is the bucket that was measured, not the machine."""
    ip("netns", "exec", cable.sender, "tc", "qdisc", "del", "dev", f"{cable.sender}v", "root")
    with receiver("ip", "netns", "exec", cable.receiver) as port:
        seconds = seconds_to_send("ip", "netns", "exec", cable.sender, host=cable.host, port=port, n_bytes=10_000_000)
    assert seconds < Link(80).seconds(10_000_000) / 3
