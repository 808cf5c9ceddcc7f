"""Where jobs run that do not run here: a cluster, through a child process that is Ray's driver.

Ray ends its driver without a word where the head dies, or the node that it is connected to.  So the driver is a process
of its own, and what it cannot say any more is said here; this process never imports Ray.

Knows: jobs, a child process and its lines.  Knows nothing of: Ray.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO

import msgspec

from mobillm_kit.cluster.need import need_of
from mobillm_kit.cluster.order import Errand, Order, Said
from mobillm_kit.common import fresh_environment
from mobillm_kit.errors import BadInput, KitError
from mobillm_kit.runs.compare import PATIENCE_S, Job, Listener, Runner

LAST_WORDS_S = 2 * PATIENCE_S
"""How long a driver may take to have its jobs stopped and their files back, before it is ended."""


def runner_on(on: str, jobs: int | None, threads: int, command: str, listener: Listener | None = None) -> Runner | None:
    """What does ``jobs`` at a time at a place of ``--on``, or as many as have room; None for processes here."""
    if on == "here":
        return None
    if on not in ("ray", "ray:local") and not re.fullmatch(r"ray://[^\s/:]+:\d+", on):
        remedy = "Choose here, ray (the cluster of this machine), ray:local (one for this command), ray://HOST:10001."
        raise BadInput(f"--on {on}: no such place.", remedy)
    cluster = OnRay(on, threads, command, listener)
    return lambda todo, _: cluster.run(todo, jobs or len(todo))


class OnRay:
    """The jobs of a comparison or a sweep on a cluster."""

    def __init__(self, address: str, threads: int, command: str, listener: Listener | None) -> None:
        self._address, self._threads, self._command = address, threads, command
        self._tell = listener or (lambda _job, _progress: None)

    def run(self, jobs: Sequence[Job], at_a_time: int) -> None:
        """Do them all; on the first refusal, or on Ctrl-C, those that run save and end, and the rest is left.

        Raises:
            KitError: what was refused; no cluster, no room for a job, a node that cannot do it, a cluster that is gone.
        """
        if not jobs:
            return
        errands = [Errand(job, need_of(job, self._threads)) for job in jobs]
        order = Order(self._address, self._threads, self._command, at_a_time, errands)
        with tempfile.TemporaryFile() as complaints, _driver(complaints) as driver:
            try:
                refusal = self._through(driver, order)
            except BaseException:
                driver.send_signal(signal.SIGINT)
                _await(driver)
                raise
            complaints.seek(0)
            said = complaints.read().decode(errors="replace")
        if refusal is not None:
            label = "" if refusal.number is None else f"{jobs[refusal.number].label}: "
            raise KitError(f"{label}{refusal.progress.error}", refusal.progress.remedy)
        if driver.returncode:
            raise KitError(*_silent_end(driver.returncode, said))

    def _through(self, driver: subprocess.Popen[bytes], order: Order) -> Said | None:
        """Hand the order over and hear the driver to its end; what it refused."""
        refusal = None
        assert driver.stdin is not None and driver.stdout is not None  # noqa: PT018 - pipes, as asked for
        driver.stdin.write(msgspec.json.encode(order) + b"\n")
        driver.stdin.flush()
        for line in driver.stdout:
            said = msgspec.json.decode(line, type=Said)
            if said.progress.error:
                refusal = refusal or said
            elif said.number is not None:
                self._tell(order.errands[said.number].job, said.progress)
        driver.wait()
        return refusal


def _driver(complaints: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "mobillm_kit.cluster.driver"],
        stdin=subprocess.PIPE,  # held open: its end tells the driver that we are gone
        stdout=subprocess.PIPE,
        stderr=complaints,
        env=fresh_environment(),
        start_new_session=True,  # Ctrl-C reaches it through us, once
    )


def _await(driver: subprocess.Popen[bytes]) -> None:
    """Let it have the jobs saved; end it where it does not, or where Ctrl-C is pressed again."""
    try:
        driver.wait(LAST_WORDS_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        driver.kill()


def _silent_end(code: int, said: str) -> tuple[str, str]:
    last = said.strip().splitlines()[-1:] or ["It said nothing."]
    problem = (
        f"The cluster is gone: its head, or the node of this machine, has ended (driver: {code}, {last[0][:200]})."
    )
    return problem, "What is done is kept. Start Ray again, then give the same command."
