"""A notebook's server: a cell run twice, interrupted, a kernel that is killed. Two seconds later no server is left."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.kernels import START_S, Kernel


def gone_s() -> float:
    """Two seconds where a core is free; where others want it too, longer in proportion."""
    return 2.0 * max(1.0, min(5.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


SERVE = """
from mobillm_kit.server.process import serve
with serve() as server:
    print("pid", server.pid)
    {then}
"""


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    started = Kernel()
    try:
        yield started
    finally:
        started.end()


def assert_gone(pid: int) -> None:
    within_s = gone_s()
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not lives(pid):
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} lives after {within_s} s")


def lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_cell_run_twice_leaves_no_server(kernel):
    pids = []
    for _ in range(2):
        cell = kernel.start(SERVE.format(then="pass"))
        pids.append(int(kernel.until_said(cell, "pid")))
        assert kernel.until_done(cell) == "ok"
        assert_gone(pids[-1])
    assert pids[0] != pids[1]


def test_an_interrupted_cell_ends_its_server_and_returns_in_time(kernel):
    cell = kernel.start(SERVE.format(then="import time; time.sleep(600)"))
    pid = int(kernel.until_said(cell, "pid"))
    assert lives(pid)
    interrupted = time.monotonic()
    kernel.manager.interrupt_kernel()
    assert kernel.until_done(cell) == "KeyboardInterrupt"
    assert time.monotonic() - interrupted < gone_s()
    assert_gone(pid)


def test_a_cell_interrupted_while_its_server_starts_leaves_none(kernel):
    cell = kernel.start(SERVE.format(then="pass"))
    pid = kernel.until_it_has_a_server()
    kernel.manager.interrupt_kernel()
    assert kernel.until_done(cell) == "KeyboardInterrupt"
    assert_gone(pid)


def test_a_server_whose_parent_has_gone_ends_before_it_imports_torch():
    """An interrupt may come while the process is being made, when nobody can end it yet: then its input is closed."""
    command = [sys.executable, "-X", "importtime", "-m", "mobillm_kit.cli", "server", "--json", "--with-parent"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_S)
    imported = {line.rsplit("|", 1)[1].strip() for line in ended.stderr.splitlines() if "|" in line}
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "mobillm_kit.commands.tools" in imported
    assert "mobillm_kit.server.service" not in imported


def test_after_an_interrupt_the_same_cell_runs_again(kernel):
    cell = kernel.start(SERVE.format(then="import time; time.sleep(600)"))
    kernel.until_said(cell, "pid")
    kernel.manager.interrupt_kernel()
    kernel.until_done(cell)
    cell = kernel.start(SERVE.format(then="print('address', server.address)"))
    assert kernel.until_said(cell, "address").startswith("tcp://127.0.0.1:")
    assert kernel.until_done(cell) == "ok"


def test_a_server_that_was_never_closed_ends_with_its_kernel(kernel):
    """Started without `with`: what a learner does by hand."""
    code = """
import tempfile
from pathlib import Path
from mobillm_kit.server.process import ServerProcess
server = ServerProcess(Path(tempfile.mkdtemp()))
print("pid", server.pid)
"""
    cell = kernel.start(code)
    pid = int(kernel.until_said(cell, "pid"))
    assert kernel.until_done(cell) == "ok"
    assert lives(pid)
    kernel.manager.shutdown_kernel(now=True)  # SIGKILL: nothing of the kernel's runs any more
    assert_gone(pid)


def test_a_kernel_killed_in_the_middle_of_a_cell_leaves_no_server(kernel):
    cell = kernel.start(SERVE.format(then="import time; time.sleep(600)"))
    pid = int(kernel.until_said(cell, "pid"))
    kernel.manager.shutdown_kernel(now=True)
    assert_gone(pid)
