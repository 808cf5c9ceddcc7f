"""A server and a shaped link on one core, the device on the other.

Knows: cores, processes.  Knows nothing of: what is measured on them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mobillm_kit.errors import KitError
from mobillm_kit.link.rates import Link
from mobillm_kit.link.shaping import LinkProcess
from mobillm_kit.server.process import ServerProcess, serve


@dataclass(frozen=True)
class Cores:
    device: int
    server: int


def two_cores() -> Cores:
    """The first two this process may use.

    Raises:
        KitError: there is only one, or the system cannot pin.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise KitError("This system cannot pin a process to a core.", "Run this benchmark on Linux.")
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise KitError("This benchmark needs two cores.", "Device and server are pinned to one each.")
    return Cores(usable[0], usable[1])


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started inside inherits the core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def started_server(stack: ExitStack, cores: Cores, keys: Path | None = None) -> ServerProcess:
    with on_core(cores.server):
        return stack.enter_context(serve(keys=keys))


def address_through(stack: ExitStack, cores: Cores, server: ServerProcess, link: Link) -> str:
    host, port = server.address.removeprefix("tcp://").rsplit(":", 1)
    with on_core(cores.server):
        return stack.enter_context(LinkProcess((host, int(port)), link)).endpoint


PERIOD_S = 0.04
"""Short beside a step, long beside a scheduler's turn."""
DUTY = """
import os, signal, sys, time
pid, share, period_s = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
try:
    while os.getppid() == pid:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(period_s * (1 - share))
        os.kill(pid, signal.SIGCONT)
        time.sleep(period_s * share)
finally:
    os.kill(pid, signal.SIGCONT)
"""


@contextmanager
def slowed(cores: Cores, times: float) -> Iterator[None]:
    """This process runs one part in ``times`` of the time: another one, on the other core, stops it in between.

    Raises:
        KitError: the other one ended before the body, so that what was timed was not slowed.
    """
    argv = [sys.executable, "-c", DUTY, str(os.getpid()), str(1 / times), str(PERIOD_S)]
    with on_core(cores.server):
        pauser = subprocess.Popen(argv)
    try:
        yield
        if pauser.poll() is not None:
            raise KitError("The process that slows this one ended too early.", "Run the part again.")
    finally:
        pauser.terminate()
        pauser.wait(timeout=10)
