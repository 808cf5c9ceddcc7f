"""The server is killed, stopped, restored from an older copy, started elsewhere: no byte changes."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time

import pytest

from mobillm_kit.errors import ServerGone
from mobillm_kit.server.process import ServerProcess
from tests.faults.conftest import host_and_port
from tests.faults.scenes import (
    CHECKPOINT_EVERY,
    GOES_ON_S,
    HANGS_S,
    PHASES,
    TYPED_ERROR_S,
    Script,
    attempt,
    busy,
    identical,
    later,
    refused,
    table,
)

PATIENT_S = 100.0
"""A busy machine may take long to start a server; how soon training goes on is counted from its start."""


class Restart:
    """A server that is ended in some way and comes back in some way, in a thread of its own."""

    def __init__(self, server: ServerProcess, end, between=lambda: None, **how) -> None:
        self._server, self._end, self._between, self._how = server, end, between, how
        self.back_at: float | None = None
        self._thread: threading.Thread | None = None

    def __call__(self) -> None:
        self._end(self._server)
        self._thread = threading.Thread(target=self._come_back, daemon=True)
        self._thread.start()

    def _come_back(self) -> None:
        self._between()
        self._server.restart(**self._how)
        self.back_at = time.monotonic()

    def goes_on_within(self, script: Script) -> float:
        assert self._thread is not None, "the fault has not struck"
        self._thread.join()
        assert self.back_at is not None
        return script.goes_on_after(self.back_at) if any(at > self.back_at for at, _ in script.ack_moments) else 0.0


def killed(server: ServerProcess) -> None:
    server.kill()


def terminated(server: ServerProcess) -> None:
    os.kill(server.pid, signal.SIGTERM)


@pytest.mark.parametrize(("fault", "phase", "config"), table(("killed", "terminated"), {("killed", "mid-epoch")}))
def test_a_server_that_ends_and_comes_back_changes_no_byte(place, mortal, oracle, fault, phase, config):
    undisturbed = oracle(config)
    restart = Restart(mortal, {"killed": killed, "terminated": terminated}[fault])
    script = Script(strikes={phase: restart})
    identical(attempt(place, mortal.address, config, script, patience_s=PATIENT_S), undisturbed)
    assert restart.goes_on_within(script) < GOES_ON_S * busy()
    assert script.most_repeated <= CHECKPOINT_EVERY


@pytest.mark.faults
@pytest.mark.parametrize(("phase", "config"), [row.values[1:] for row in table(("moved",), set())], ids=PHASES)
def test_a_server_that_comes_back_on_another_port_changes_no_byte(place, mortal, proxied, oracle, phase, config):
    undisturbed = oracle(config)
    proxy = proxied(mortal)
    restart = Restart(mortal, killed, same_port=False)
    script = Script(strikes={phase: restart})
    follow = threading.Thread(target=lambda: _follow(proxy, mortal, restart), daemon=True)
    follow.start()
    identical(attempt(place, proxy.endpoint, config, script, patience_s=PATIENT_S), undisturbed)
    assert restart.goes_on_within(script) < GOES_ON_S * busy()


def _follow(proxy, server, restart: Restart) -> None:
    deadline = time.monotonic() + HANGS_S
    while restart.back_at is None and time.monotonic() < deadline:
        time.sleep(0.02)
    proxy.target = host_and_port(server.address)


@pytest.mark.faults
@pytest.mark.parametrize("phase", ["mid-epoch", "result"])
@pytest.mark.parametrize("config", ["ladder-int8", "full-width-int8-cache"])
def test_a_server_back_with_an_older_checkpoint_changes_no_byte(place, mortal, oracle, phase, config):
    undisturbed = oracle(config)

    def older() -> None:
        for session in (mortal.folder / "sessions").iterdir():
            kept = sorted(session.glob("checkpoint-*.safetensors"))
            for newer in kept[1:]:
                newer.unlink()

    script = Script(strikes={phase: Restart(mortal, killed, older)})
    identical(attempt(place, mortal.address, config, script, patience_s=PATIENT_S), undisturbed)


@pytest.mark.parametrize(
    "damage",
    [
        "truncated",
        pytest.param("all-truncated", marks=pytest.mark.faults),
        pytest.param("gone", marks=pytest.mark.faults),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_changes_no_byte(place, mortal, oracle, damage):
    undisturbed = oracle("ladder-int8")

    def harm() -> None:
        for session in (mortal.folder / "sessions").iterdir():
            kept = sorted(session.glob("checkpoint-*.safetensors"))
            if damage == "gone":
                shutil.rmtree(session)
                continue
            for file in kept if damage == "all-truncated" else kept[-1:]:
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    script = Script(strikes={"mid-epoch": Restart(mortal, killed, harm)})
    identical(attempt(place, mortal.address, "ladder-int8", script, patience_s=PATIENT_S), undisturbed)


@pytest.mark.faults
@pytest.mark.parametrize(("fault", "phase", "config"), table(("for-3-s", "for-8-s"), set()))
def test_a_server_stopped_and_continued_changes_no_byte(place, mortal, oracle, fault, phase, config):
    undisturbed = oracle(config)

    def stop() -> None:
        os.kill(mortal.pid, signal.SIGSTOP)
        later(float(fault.split("-")[1]), lambda: os.kill(mortal.pid, signal.SIGCONT))

    script = Script(strikes={phase: stop})
    identical(attempt(place, mortal.address, config, script), undisturbed)
    assert script.most_repeated == 0


@pytest.mark.faults
def test_a_server_stopped_for_30_s_and_continued_changes_no_byte_for_a_patient_device(place, mortal, oracle):
    undisturbed = oracle("full-width-int8-cache")

    def stop() -> None:
        os.kill(mortal.pid, signal.SIGSTOP)
        later(30.0, lambda: os.kill(mortal.pid, signal.SIGCONT))

    script = Script(strikes={"mid-epoch": stop})
    identical(attempt(place, mortal.address, "full-width-int8-cache", script, patience_s=60.0), undisturbed)


@pytest.mark.faults
@pytest.mark.parametrize("phase", PHASES)
def test_a_server_stopped_for_good_ends_in_a_typed_error(place, mortal, phase):
    script = Script(strikes={phase: lambda: os.kill(mortal.pid, signal.SIGSTOP)})
    try:
        outcome = attempt(place, mortal.address, "ladder-int8", script)
        assert isinstance(refused(outcome), ServerGone)
        assert outcome.after(script.struck_at) < TYPED_ERROR_S
    finally:
        mortal.kill()


@pytest.mark.faults
@pytest.mark.parametrize("phase", PHASES)
def test_a_server_killed_for_good_ends_in_a_typed_error(place, mortal, phase):
    script = Script(strikes={phase: mortal.kill})
    outcome = attempt(place, mortal.address, "ladder-int8", script)
    assert isinstance(refused(outcome), ServerGone)
    assert outcome.after(script.struck_at) < TYPED_ERROR_S


@pytest.mark.faults
@pytest.mark.parametrize(("phase", "config"), [row.values[1:] for row in table(("slow-close",), set())], ids=PHASES)
def test_a_connection_whose_end_is_told_late_changes_no_byte(place, mortal, proxied, oracle, phase, config):
    undisturbed = oracle(config)
    proxy = proxied(mortal)
    proxy.slow_close(3000)
    script = Script(strikes={phase: Restart(mortal, killed)})
    identical(attempt(place, proxy.endpoint, config, script, patience_s=PATIENT_S), undisturbed)
