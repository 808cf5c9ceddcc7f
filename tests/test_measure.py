"""Measured memory, each time in a real fresh process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mobillm_kit.common import fresh_environment
from mobillm_kit.errors import MissingExtra
from mobillm_kit.memory.measure import current_rss_bytes, measured, peak_rss_bytes, reset_peak

MIB = 2**20
ROOT = Path(__file__).resolve().parent.parent
linux = pytest.mark.skipif(sys.platform != "linux", reason="VmHWM and its reset belong to Linux")

PRELUDE = """
import json, os, sys, time
import numpy as np
from mobillm_kit.memory.measure import *
def touched(mib):
    return np.ones(int(mib * 2**20), dtype=np.uint8)
def show(m):
    print(json.dumps([m.loaded_rss_bytes, m.peak_rss_bytes, m.average_rss_bytes, m.training_bytes, m.how]))
"""


def fresh(code: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**fresh_environment(), **changes},
    )


def answer(code: str, **changes: str) -> list:
    done = fresh(code, **changes)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


ONE_ARRAY = """
def run():
    x = touched({mib})
    time.sleep({seconds})
show(measured(run, party="both", steps=1))
"""


@linux
@pytest.mark.parametrize("mib", [40, 200])
def test_what_training_allocates_is_what_is_measured(mib):
    *_, training_bytes, _ = answer(ONE_ARRAY.format(mib=mib, seconds=0))
    assert abs(training_bytes / MIB - mib) <= 3


@linux
def test_what_was_there_before_counts_as_loaded():
    loaded, _, _, training_bytes, _ = answer("model = touched(150)" + ONE_ARRAY.format(mib=20, seconds=0))
    assert loaded > 150 * MIB
    assert abs(training_bytes / MIB - 20) <= 3


@linux
def test_a_peak_before_training_does_not_count():
    *_, training_bytes, _ = answer("x = touched(300); del x" + ONE_ARRAY.format(mib=20, seconds=0))
    assert abs(training_bytes / MIB - 20) <= 3


@linux
def test_the_sampler_adds_nothing_to_the_process_it_watches():
    *_, training_bytes, _ = answer(
        'show(measured(lambda: time.sleep(0.2), party="both", steps=0))',
    )
    assert training_bytes < 1.5 * MIB


@linux
def test_a_huge_parent_leaves_no_trace_in_its_child():
    # ru_maxrss fails this: it is inherited
    child = "print(peak_rss_bytes())"
    parent = f"""
import subprocess
x = touched(400)
done = subprocess.run([sys.executable, "-c", {PRELUDE + child!r}], capture_output=True, text=True, check=True)
print(json.dumps([int(done.stdout), peak_rss_bytes()]))
"""
    of_child, of_parent = answer(parent)
    assert of_parent > 400 * MIB
    assert of_child < 100 * MIB


@linux
def test_the_average_is_the_time_share_of_the_peak():
    code = """
def run():
    x = touched(100)
    time.sleep(0.5)
    del x
    time.sleep(0.5)
show(measured(run, party="both", steps=1))
"""
    loaded, _, average, *_ = answer(code)
    assert 30 < (average - loaded) / MIB < 70


@linux
def test_freed_blocks_go_back_to_the_system_under_our_settings_and_not_by_default():
    # many blocks below glibc's moving threshold: the reason why the environment matters
    code = """
def churn():
    for _ in range(3):
        blocks = [touched(2) for _ in range(40)]
        keep = blocks[::8]
        del blocks
    return keep
kept = churn()
print(json.dumps(current_rss_bytes()))
"""
    ours = answer(code)
    done = fresh(code, MALLOC_MMAP_THRESHOLD_=str(32 * MIB), MALLOC_TRIM_THRESHOLD_=str(1024 * MIB))
    assert int(done.stdout) - ours > 30 * MIB


@linux
def test_a_short_run_is_run_once():
    # memory-profiler repeats a function that was too short for five samples
    code = """
calls = []
m = measured(lambda: calls.append(1), party="device", steps=1)
print(json.dumps([len(calls), m.party, m.steps, m.average_rss_bytes]))
"""
    calls, party, steps, average = answer(code)
    assert (calls, party, steps) == (1, "device", 1)
    assert average > MIB


def test_the_record_says_how_it_was_measured():
    how = answer('show(measured(lambda: None, party="both", steps=0))')[-1]
    assert "MALLOC_MMAP_THRESHOLD_=131072" in how
    assert "threads: 1" in how
    assert "every 10 ms" in how
    if sys.platform == "linux":
        assert "VmHWM" in how


def test_an_error_in_training_comes_through_and_no_child_is_killed():
    # memory-profiler kills every child of the process on an exception, a MobiLLM server included
    code = """
import subprocess
server = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
def run():
    raise ValueError("the loss is not a number")
try:
    measured(run, party="device", steps=1)
except ValueError as error:
    print(json.dumps([str(error), server.poll()]))
server.communicate(b"done\\n")
"""
    assert answer(code) == ["the loss is not a number", None]


@pytest.mark.skipif(os.name != "posix", reason="process groups are a matter of POSIX")
def test_ctrl_c_reaches_training_and_leaves_nothing_behind():
    code = """
def run():
    print("ready", flush=True)
    time.sleep(30)
try:
    measured(run, party="both", steps=1)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=fresh_environment(),
        start_new_session=True,
    )
    assert child.stdout.readline() == "ready\n"
    os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=20)
    assert out == "stopped\n"
    assert err == ""
    assert _group_is_gone(child.pid)


def _group_is_gone(group: int, patience_s: float = 5.0) -> bool:
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_fresh_process_keeps_the_environment_and_gets_the_settings():
    environment = fresh_environment(threads=2)
    assert environment["PATH"] == os.environ["PATH"]
    assert environment["MALLOC_MMAP_THRESHOLD_"] == "131072"
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["PYTHONHASHSEED"] == "0"


def test_a_missing_profiler_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "memory_profiler", None)
    with pytest.raises(MissingExtra, match=r"mobillm-kit\[lab\]"):
        measured(lambda: None, party="both", steps=0)


@linux
def test_the_peak_starts_again_when_it_is_reset():
    code = """
x = touched(100); del x
before = peak_rss_bytes()
assert reset_peak()
print(json.dumps(before - peak_rss_bytes()))
"""
    assert answer(code) > 90 * MIB


def test_the_peak_is_never_below_the_present():
    reset_peak()
    assert peak_rss_bytes() + MIB >= current_rss_bytes() > MIB
