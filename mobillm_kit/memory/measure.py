"""Measured memory: what the operating system says about a process that does one thing only.

    resident before training     VmRSS, after imports, model and data; free pages given back first
    peak of training             VmHWM, reset just before (write 5 to /proc/self/clear_refs)
    average of training          mean of memory-profiler's samples

Two settings decide whether the number means something. glibc keeps freed blocks below a threshold that grows by
itself, which nearly doubles LoRA's figure; MALLOC_MMAP_THRESHOLD_=131072 fixes it and has to be set before the
process starts. And each method needs a fresh process: a heap is never as clean again as at the start. ``ru_maxrss``
is never read: a child inherits its parent's.

Knows: processes, /proc, the allocator.  Knows nothing of: tensors, methods, what is run.
Taught in: notebooks/09_comparison.ipynb
"""

import ctypes
import gc
import os
import platform
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import psutil

from mobillm_kit.common import MIB, MMAP_THRESHOLD
from mobillm_kit.errors import extra
from mobillm_kit.record import MeasuredMemory

INTERVAL_S = 0.01
"""Between two samples of the average."""


def current_rss_bytes() -> int:
    """Resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def peak_rss_bytes() -> int:
    """Highest resident memory of this process since it started or since :func:`reset_peak`.

    Linux: VmHWM. Windows: the peak working set. Elsewhere the resident memory of this moment, since the system keeps
    no peak that belongs to this process alone; :func:`measured` then takes the highest sample.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))


def reset_peak() -> bool:
    """Let the peak start again from the present resident memory; False where the system does not offer that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def give_back_free_memory() -> None:
    """Collect garbage and return free heap pages to the system, where the allocator can (glibc)."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def measured(run: Callable[[], object], *, party: Literal["device", "server", "both"], steps: int) -> MeasuredMemory:
    """Run training once and measure this process meanwhile, a fresh one with :func:`fresh_environment`'s settings.

    Args:
        run: the training. What it raises is raised here, and MissingExtra without memory-profiler.
        party: whose part of the work this process does.
        steps: how many steps ``run`` takes, for the record.
    """
    with extra("lab", "Measuring memory needs memory-profiler"):
        from memory_profiler import memory_usage
    give_back_free_memory()
    loaded_bytes = current_rss_bytes()
    reset = reset_peak()
    samples_mib = _sampled(memory_usage, run)
    has_peak = reset or platform.system() == "Windows"
    peak_bytes = peak_rss_bytes() if has_peak else max(current_rss_bytes(), round(MIB * max(samples_mib)))
    return MeasuredMemory(
        party=party,
        loaded_rss_bytes=loaded_bytes,
        peak_rss_bytes=peak_bytes,
        average_rss_bytes=round(MIB * (sum(samples_mib) / len(samples_mib))),
        steps=steps,
        how=_how(reset),
    )


def _sampled(sample: Callable[..., list[float]], run: Callable[[], object]) -> list[float]:
    """Resident memory in MiB while ``run`` runs, from a process of its own."""
    failure: list[BaseException] = []

    def _guarded() -> None:
        # memory_usage kills every child of this process on an exception, so it must not see one
        try:
            with _interrupts(signal.SIG_UNBLOCK):
                run()
        except BaseException as error:
            failure.append(error)

    with warnings.catch_warnings(), _interrupts(signal.SIG_BLOCK):
        # the forked sampler touches neither torch nor threads
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        # without max_iterations a run of fewer than five samples would be run again
        samples = sample((_guarded, ()), interval=INTERVAL_S, max_iterations=1)
    if failure:
        raise failure[0]
    return samples


@contextmanager
def _interrupts(how: int) -> Iterator[None]:
    """Block or unblock Ctrl-C for this thread; the sampler, a fork, starts with what is set here.

    Ctrl-C reaches the whole process group. The sampler has to outlive it, or the average is lost and a trace from a
    process that nobody knows of is printed.
    """
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(how, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _how(reset: bool) -> str:
    if reset:
        peak = "peak: VmHWM, reset before the first step"
    elif platform.system() == "Windows":
        peak = "peak: peak working set since the process started"
    else:
        peak = "peak: highest sample"
    threshold = os.environ.get(MMAP_THRESHOLD)
    allocator = f"{MMAP_THRESHOLD}={threshold}" if threshold else "default allocator settings"
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else os.environ.get("OMP_NUM_THREADS", "not set")
    return f"{peak}; {allocator}; threads: {threads}; sampled every {1e3 * INTERVAL_S:g} ms"
