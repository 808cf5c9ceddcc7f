"""Servers, the network between, and the undisturbed runs."""

from __future__ import annotations

import threading
import time

import pytest

from mobillm_kit.server.process import ServerProcess, serve
from tests.faults.scenes import attempt, identical
from tests.proxy import FaultProxy


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """Model and texts."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def steady(tmp_path_factory):
    """A server that no scenario harms, with places for every device that vanishes without a farewell."""
    with serve(tmp_path_factory.mktemp("steady"), options=("--max-sessions", "64")) as server:
        yield server


@pytest.fixture(scope="session")
def mortal_server(tmp_path_factory):
    # more than it has: what a machine really lacks is met in the middle of training
    server = ServerProcess(tmp_path_factory.mktemp("mortal"), options=("--budget", str(2**18)))
    yield server
    server.close()


@pytest.fixture
def mortal(mortal_server):
    """A server to kill; alive again at the beginning of each scenario."""
    if not mortal_server.running:
        mortal_server.restart(same_port=False)
    return mortal_server


@pytest.fixture(scope="session")
def oracle(place, steady):
    """The side network of the undisturbed run, by configuration; trained once each."""
    known: dict[tuple, bytes] = {}

    def ask(config: str, **options) -> bytes:
        key = (config, *sorted(options.items()))
        if key not in known:
            outcome = attempt(place, steady.address, config, **options)
            identical(outcome, outcome.side)
            known[key] = outcome.side
        return known[key]

    return ask


@pytest.fixture
def proxied():
    """Makes proxies to servers: ``proxied(server)``."""
    proxies: list[FaultProxy] = []

    def make(server: ServerProcess, seed: int = 0) -> FaultProxy:
        proxies.append(FaultProxy(host_and_port(server.address), seed=seed))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()


def host_and_port(address: str) -> tuple[str, int]:
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    return host, int(port)


@pytest.fixture(autouse=True)
def _leaves_no_thread():
    """Nothing that talks is left after a scenario, however it ended."""
    yield
    deadline = time.monotonic() + 5
    while (left := _talking()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _talking() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name in ("uplink", "scenario") and t.is_alive()]
