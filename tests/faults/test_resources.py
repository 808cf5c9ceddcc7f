"""Too slow, too full, too large, too early: the side network is the same, or the error says what to do."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import msgspec
import psutil
import pytest

from mobillm_kit.channel.messages import Hello
from mobillm_kit.common import fresh_environment
from mobillm_kit.device.client import ServerClient, route_to
from mobillm_kit.errors import ServerRefused
from mobillm_kit.link.timeline import Timeline
from mobillm_kit.server.process import serve
from tests.faults import flood
from tests.faults.device import ROOT
from tests.faults.scenes import (
    CONFIGS,
    HANGS_S,
    TYPED_ERROR_S,
    Script,
    attempt,
    identical,
    later,
    refused,
    table,
    within,
)

TENTH = 0.1
BEAT_S = 0.2


class Slowed:
    """A process that gets a tenth of the time: stopped for the rest."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __call__(self) -> None:
        self._thread.start()

    def __enter__(self) -> Slowed:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _beat(self) -> None:
        while not self._over.is_set():
            os.kill(self._pid, signal.SIGSTOP)
            self._over.wait(BEAT_S * (1 - TENTH))
            os.kill(self._pid, signal.SIGCONT)
            self._over.wait(BEAT_S * TENTH)


@pytest.mark.parametrize(("fault", "phase", "config"), table(("slow-trainer",), {("slow-trainer", "handshake")}))
def test_a_trainer_ten_times_slower_than_the_device_changes_no_byte(place, mortal, oracle, fault, phase, config):
    undisturbed = oracle(config)
    with Slowed(mortal.pid) as slowed:
        identical(attempt(place, mortal.address, config, Script(strikes={phase: slowed})), undisturbed)


@pytest.mark.faults
@pytest.mark.parametrize("config", ["ladder-int8", "full-width-int8-cache", "ladder-fp32-device-labels"])
def test_a_slow_device_changes_no_byte(place, steady, oracle, config):
    undisturbed = oracle(config)
    outcome = attempt(
        place, steady.address, config, Script(), after_step=lambda step: time.sleep(1.2 if step == 5 else 0.2)
    )
    identical(outcome, undisturbed)


# ---------------------------------------------------------------------- full disks


@pytest.fixture
def full_disk(mortal):
    """Lets no file of the server grow beyond a few bytes, from the call on."""
    before = resource.prlimit(mortal.pid, resource.RLIMIT_FSIZE)
    yield lambda: resource.prlimit(mortal.pid, resource.RLIMIT_FSIZE, (64, before[1]))
    resource.prlimit(mortal.pid, resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("fault", "phase", "config"), table(("disk-full",), {("disk-full", "mid-epoch")}))
def test_a_full_disk_on_the_server_changes_no_byte_while_it_lives(
    place, mortal, oracle, full_disk, fault, phase, config
):
    """A checkpoint that is due and does not fit is left out: nobody waits for it."""
    identical(attempt(place, mortal.address, config, Script(strikes={phase: full_disk})), oracle(config))


@pytest.mark.faults
@pytest.mark.parametrize("phase", ["handshake", "mid-epoch", "result"])
def test_a_full_disk_where_the_device_needs_the_checkpoint_is_said(place, mortal, full_disk, tmp_path, phase):
    script = Script(strikes={phase: full_disk})
    checkpoint = tmp_path / "checkpoint.safetensors"
    outcome = attempt(place, mortal.address, "ladder-int8", script, checkpoint=checkpoint, checkpoint_every=5)
    error = refused(outcome)
    assert isinstance(error, ServerRefused)
    assert error.code == "server-trouble"
    assert "checkpoint" in error.problem
    assert outcome.after(script.struck_at) < TYPED_ERROR_S


@pytest.mark.faults
def test_after_a_full_disk_the_run_goes_on_to_the_same_bytes(place, mortal, full_disk, oracle, tmp_path):
    undisturbed = oracle("ladder-int8")
    checkpoint = tmp_path / "checkpoint.safetensors"
    before = resource.prlimit(mortal.pid, resource.RLIMIT_FSIZE)
    refused(
        attempt(place, mortal.address, "ladder-int8", Script(strikes={"mid-epoch": full_disk}), checkpoint=checkpoint)
    )
    resource.prlimit(mortal.pid, resource.RLIMIT_FSIZE, before)
    identical(attempt(place, mortal.address, "ladder-int8", checkpoint=checkpoint), undisturbed)


@pytest.mark.faults
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root on Linux")
def test_a_disk_that_really_runs_full_changes_no_byte(place, oracle, tmp_path):
    undisturbed = oracle("full-width-int8-cache")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"this system lets nobody mount: {mounted.stderr.decode().strip()}")
    try:
        with serve(small, options=("--cache-memory", "0")) as server:
            identical(attempt(place, server.address, "full-width-int8-cache"), undisturbed)
    finally:
        subprocess.run(["umount", str(small)], check=True)


# ---------------------------------------------------------------------- memory


def huge_session(address: str) -> ServerClient:
    """A session whose side network takes gibibytes."""
    plan = flood.plan()
    side = msgspec.structs.replace(plan.side, width=16384, rank=8000, layers=[0, 1])
    plan = msgspec.structs.replace(plan, side=side, max_rows=1, max_tokens=1)
    hello = Hello(session=os.urandom(16).hex(), name="huge", code="", position=0, plan=plan, frames=[])
    connect, _ = ExitStack().enter_context(route_to(address))
    return ServerClient(connect, hello, [], Timeline(), flood.made)


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("handshake", marks=pytest.mark.faults),
        "mid-epoch",
        pytest.param("result", marks=pytest.mark.faults),
    ],
)
def test_a_trainer_out_of_memory_ends_its_own_session_only(place, mortal, oracle, phase):
    undisturbed = oracle("full-width-int8-cache")
    others = []

    def begin_another() -> None:
        used = psutil.Process(mortal.pid).memory_info().vms
        resource.prlimit(mortal.pid, resource.RLIMIT_AS, (used + 2**29, resource.RLIM_INFINITY))
        remote = huge_session(mortal.address)

        def wait() -> bytes:
            try:
                return remote.send(0) or b""
            finally:
                remote.close()

        others.append(within(TYPED_ERROR_S, wait))

    beside = threading.Thread(target=begin_another)
    try:
        script = Script(strikes={phase: beside.start})
        identical(attempt(place, mortal.address, "full-width-int8-cache", script), undisturbed)
        beside.join(HANGS_S)
        error = refused(others[0])
        assert isinstance(error, ServerRefused)
        assert error.code == "server-trouble"
    finally:
        resource.prlimit(mortal.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["dead", "slow", "silent"])
def test_a_devices_memory_grows_by_two_credit_windows_at_most(mortal, proxied, fault):
    """Dead: killed; slow: a tenth of the time; silent: the network swallows everything."""
    proxy = proxied(mortal)
    device = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.flood", proxy.endpoint],
        cwd=ROOT,
        env=fresh_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert device.stdin is not None
    assert device.stdout is not None
    with Slowed(mortal.pid) as slowed:
        assert device.stdout.readline() == b"ready\n"
        {"dead": mortal.kill, "slow": slowed, "silent": proxy.black_hole}[fault]()
        device.stdin.write(b"go\n")
        device.stdin.flush()
        said, _ = device.communicate(timeout=HANGS_S)
    grown = json.loads(said)
    assert grown["window"] == flood.CREDIT * flood.BATCH_BYTES
    assert grown["peak"] - grown["steady"] <= 2 * grown["window"]


# ---------------------------------------------------------------------- clocks

SHIFTED = "import time\n_now = time.time\ntime.time = lambda: _now() + ({seconds})\n"


@pytest.mark.faults
@pytest.mark.parametrize("seconds", [600, -600])
@pytest.mark.parametrize("fault", ["steady", "killed"])
def test_a_servers_clock_off_by_ten_minutes_changes_no_byte(place, oracle, tmp_path, monkeypatch, seconds, fault):
    undisturbed = oracle("ladder-int8")
    (tmp_path / "sitecustomize.py").write_text(SHIFTED.format(seconds=seconds))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with serve(tmp_path / "server") as server:
        monkeypatch.delenv("PYTHONPATH")

        def strike() -> None:
            server.kill()
            later(0.0, server.restart)  # back with the right time: the clock has jumped

        script = Script(strikes={"mid-epoch": strike} if fault == "killed" else {})
        identical(attempt(place, server.address, "ladder-int8", script, patience_s=100.0), undisturbed)


class Numbers(Script):
    """Collects every number that crosses the wire, in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[float] = set()

    def up(self, message, frames):
        self._collect(msgspec.to_builtins(message))
        return super().up(message, frames)

    def down(self, message, frames):
        self._collect(msgspec.to_builtins(message))
        return super().down(message, frames)

    def _collect(self, value: object) -> None:
        if isinstance(value, dict | list):
            for each in value.values() if isinstance(value, dict) else value:
                self._collect(each)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            self.found.add(float(value))


def test_no_time_of_day_crosses_the_wire(place, steady):
    numbers = Numbers()
    outcome = attempt(place, steady.address, "ladder-int8-cache", numbers)
    assert outcome.error is None
    assert len(numbers.found) > len(CONFIGS)
    for unit in (1, 1e3, 1e6, 1e9):
        assert not any(0.9 < number / (time.time() * unit) < 1.1 for number in numbers.found)
