"""Devices side by side, killed, asleep, interrupted; and what they leave behind: nothing, and the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psutil
import pytest

from mobillm_kit.common import fresh_environment
from mobillm_kit.errors import ServerGone, ServerRefused
from mobillm_kit.methods.mobillm import MobiLLM
from mobillm_kit.server.process import serve
from tests.faults.conftest import host_and_port
from tests.faults.device import ROOT, DeviceProcess
from tests.faults.scenes import (
    CHECKPOINT_EVERY,
    CONFIGS,
    HANGS_S,
    MIDDLE,
    PHASES,
    STEPS,
    Outcome,
    Script,
    attempt,
    between,
    busy,
    identical,
    later,
    refused,
    within,
)
from tests.proxy import FaultProxy
from tests.uplink import trained

# ---------------------------------------------------------------------- devices beside each other


LOADING = threading.Lock()


def beside(place, address, config, before=lambda method: None) -> Outcome:
    """A device in a thread; models are loaded one after the other, because transformers cannot do it in two threads."""

    def loaded(method: MobiLLM) -> None:
        before(method)
        LOADING.release()

    assert LOADING.acquire(timeout=HANGS_S)
    return attempt(place, address, config, before=loaded)


def side_by_side(*devices: Callable[[], Outcome]) -> list[Outcome]:
    with ThreadPoolExecutor(len(devices)) as pool:
        return [future.result() for future in [pool.submit(device) for device in devices]]


@pytest.mark.faults
def test_two_devices_with_one_name_train_beside_each_other(place, steady, oracle):
    """Every device says the name 'device'; sessions are told apart by their numbers."""
    configs = ("ladder-int8", "full-width-int8-cache")
    undisturbed = [oracle(config) for config in configs]
    found = side_by_side(*(partial(beside, place, steady.address, config) for config in configs))
    for outcome, expected in zip(found, undisturbed, strict=True):
        identical(outcome, expected)


@pytest.mark.faults
def test_two_devices_with_one_session_end_in_the_same_bytes(place, steady, oracle):
    """A copied run folder, running twice: they take the session from each other, and neither harms the other."""
    undisturbed = oracle("ladder-int8")

    def same(method: MobiLLM) -> None:
        method.uplink._session = "ab" * 16

    def one() -> Outcome:
        return beside(place, steady.address, "ladder-int8", same)

    found = side_by_side(one, one)
    for outcome in found:
        if outcome.error is None:
            identical(outcome, undisturbed)
        else:
            assert isinstance(refused(outcome), ServerRefused | ServerGone)
    assert any(outcome.error is None for outcome in found)


# ---------------------------------------------------------------------- the device's process


@pytest.fixture(scope="module")
def undisturbed_device(place, steady, tmp_path_factory):
    """Side network of `mobillm train`, and the bytes that passed up and down meanwhile."""
    with FaultProxy(host_and_port(steady.address)) as proxy:
        device = DeviceProcess(place, tmp_path_factory.mktemp("device") / "run", proxy.endpoint)
        status, said = device.ended(HANGS_S)
        assert status == 0, said
        return device.side(), proxy.bytes_up, proxy.bytes_down


def arm(proxy, phase: str, up: int, down: int, action) -> threading.Event:
    """Let the action happen in the middle of the phase's bytes."""
    if phase == "handshake":
        return proxy.after_bytes(300, action)  # the greetings are done, the hello is on its way
    if phase == "mid-epoch":
        return proxy.after_bytes(up * 65 // 100, action)
    return proxy.after_bytes(down * 95 // 100, action, direction="down")


@pytest.mark.faults
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("fault", ["killed", "interrupted", "asleep"])
def test_a_device_process_that_ends_or_sleeps_and_goes_on_changes_no_byte(
    place, steady, proxied, tmp_path, undisturbed_device, fault, phase
):
    side, up, down = undisturbed_device
    proxy = proxied(steady)
    device = DeviceProcess(place, tmp_path / "run", proxy.endpoint)

    def sleep() -> None:
        device.signal(signal.SIGSTOP)
        later(8.0, lambda: device.signal(signal.SIGCONT))

    struck = arm(
        proxy, phase, up, down, {"killed": device.kill, "interrupted": device.interrupt, "asleep": sleep}[fault]
    )
    status, said = device.ended(HANGS_S)
    assert struck.is_set(), said
    if fault == "killed":
        assert status == -signal.SIGKILL
    else:
        assert status in (0, 130), said
    if fault != "asleep" and not (device.folder / "side").exists():
        device = DeviceProcess(place, tmp_path / "run", proxy.endpoint)
        status, said = device.ended(HANGS_S)
        assert status == 0, said
    assert device.side() == side


@pytest.mark.parametrize("phase", ["handshake", pytest.param("mid-epoch", marks=pytest.mark.faults)])
def test_an_interrupted_cell_leaves_nothing_behind_and_runs_again(place, steady, proxied, oracle, phase):
    undisturbed = oracle("ladder-int8")
    proxy = proxied(steady)
    command = [sys.executable, "-m", "tests.faults.cell", str(place), proxy.endpoint, steady.address]
    cell = subprocess.Popen(command, cwd=ROOT, env=fresh_environment(), stdout=subprocess.PIPE, start_new_session=True)

    def stop_button() -> None:
        proxy.black_hole()
        for wait_s in (0.5, 1.0):  # the first asks to stop after the step, the second means it
            later(wait_s, lambda: os.kill(cell.pid, signal.SIGINT))

    struck = proxy.after_bytes(300 if phase == "handshake" else 30_000, stop_button)
    said, _ = cell.communicate(timeout=HANGS_S)
    assert struck.is_set()
    left = json.loads(said)
    assert 0 < left["close_s"] < 2.0 * busy()
    assert (left["threads"], left["connections"], left["processes"]) == ([], 0, 0)
    assert left["side"] == hashlib.sha256(undisturbed).hexdigest()


@pytest.mark.faults
def test_a_server_started_for_a_device_ends_with_it_even_if_that_is_killed(place, tmp_path):
    device = DeviceProcess(place, tmp_path / "run", "spawn", session_options=("patience_s=30.0",))
    children = []
    deadline = time.monotonic() + HANGS_S
    while not (tmp_path / "run" / "server" / "sessions").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    children = psutil.Process(device.pid).children(recursive=True)
    assert children
    device.kill()
    device.ended(10.0)
    _, alive = psutil.wait_procs(children, timeout=15.0)
    assert not alive


@pytest.mark.faults
@pytest.mark.parametrize("phase", PHASES)
def test_closing_takes_less_than_two_seconds_whatever_the_network_does(place, steady, proxied, phase):
    """The device's own end of the session, while nothing passes."""
    proxy = proxied(steady)
    seen = []

    class Stop(Exception):
        pass

    def closing(method: MobiLLM) -> None:
        close = method.close

        def timed() -> None:
            began = time.monotonic()
            close()
            seen.append(time.monotonic() - began)

        method.close = timed

    at = {"handshake": 1, "mid-epoch": MIDDLE, "result": STEPS}[phase]

    def stop(step: int) -> None:
        if step == at:
            proxy.black_hole()
            raise Stop

    script = Script()

    def before(method):
        between(script)(method)
        closing(method)

    chosen = {**CONFIGS["ladder-int8"], "steps": STEPS, "checkpoint_every": CHECKPOINT_EVERY}
    outcome = within(HANGS_S, lambda: trained(place, proxy.endpoint, before=before, after_step=stop, **chosen)[0])
    assert isinstance(outcome.error, Stop)
    assert seen[0] < 2.0 * busy()


def test_a_spawned_server_is_gone_when_the_block_ends(tmp_path):
    with serve(tmp_path) as server:
        pid = server.pid
        began = time.monotonic()
    assert time.monotonic() - began < 2.0 * busy()
    assert not os.path.exists(f"/proc/{pid}") or not server.running
