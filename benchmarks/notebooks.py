"""What each notebook and lab costs to run: `python benchmarks/notebooks.py [NAME … | --quick | --check]`.

Each is run from top to bottom by nbconvert in a fresh kernel, two at a time as in `make test`, and not written back.

    seconds             from the start of nbconvert to its end
    processor seconds   of all processes that it started: the kernel, and the servers of `08`
    peak memory         most of the sum of their resident sizes at one time, read twenty times a second (Linux): a
                        page that two share counts twice, a peak between two readings not at all

``NAME`` measures only the notebooks whose name begins so; the others keep their figures.  ``--quick`` measures the
shortest and writes nothing; ``--check`` holds the committed record against the bars and exits 1 where one falls short.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psutil

from mobillm_kit.files import write_bytes
from mobillm_kit.record import Provenance
from mobillm_kit.runs.provenance import clean_command, provenance
from recipes.pocket.gate import Bar
from scripts.uncompared import cells, reasons

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "results" / "notebooks.json"
SHORTEST = "notebooks/07_quantized_activations"
AT_ONCE = 2
MOST_SECONDS, MOST_TOGETHER, BINDER_MIB = 90, 8 * 60, 1.5 * 1024
LONGEST = 900
RSS_UNIT = os.sysconf("SC_PAGE_SIZE")


class Cost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one notebook, and when and where it was measured."""

    name: str
    seconds: float
    processor_seconds: float
    peak_mib: float
    provenance: Provenance


def measure(name: str, command: str) -> Cost:
    """Run one notebook and look at its processes while it runs."""
    with tempfile.TemporaryDirectory() as folder:
        run = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--log-level=ERROR"]
        where = ["--output-dir", folder, str(ROOT / f"{name}.ipynb")]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        started = time.monotonic()
        process = psutil.Popen([*run, *where], env=environment)
        peak = 0
        spent: dict[int, float] = {}
        while process.poll() is None:
            if time.monotonic() - started > LONGEST:
                process.kill()
                raise TimeoutError(f"{name} ran longer than {LONGEST} s")
            processes = [process, *children(process)]  # to list them costs milliseconds, to read their memory does not
            spent |= {each.pid: seconds for each in processes if (seconds := used(each))}
            for _ in range(10):
                peak = max(peak, sum(map(resident, processes)))
                time.sleep(0.05)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, [*run, f"{name}.ipynb"])
        seconds = time.monotonic() - started
    return Cost(name, round(seconds, 1), round(sum(spent.values()), 1), round(peak / 2**20), provenance(command))


def children(process: psutil.Process) -> list[psutil.Process]:
    """Every process below this one that still lives."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def resident(process: psutil.Process) -> int:
    """Bytes at this moment; 0 of a process that has just ended."""
    try:
        return RSS_UNIT * int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def used(process: psutil.Process) -> float:
    """Processor seconds of a process itself; its ended children stand in their own last figure."""
    try:
        times = process.cpu_times()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0.0
    return times.user + times.system


def bars(costs: Iterable[Cost]) -> list[Bar]:
    """Each notebook on its bar of time; the notebooks together; the memory of what Binder opens first."""
    costs = list(costs)
    missing = sorted(set(cells()) - {cost.name for cost in costs})
    together = sum(cost.seconds for cost in costs if cost.name.startswith("notebooks/")) / AT_ONCE
    return [
        Bar("notebooks without a figure", len(missing), high=0),
        *[Bar(f"seconds of {cost.name}", cost.seconds, high=MOST_SECONDS) for cost in costs],
        Bar(f"seconds of the notebooks, {AT_ONCE} at a time", together, high=MOST_TOGETHER),
        Bar("MiB of the hungriest notebook, at most", max(cost.peak_mib for cost in costs), high=BINDER_MIB),
    ]


def read() -> dict[str, Cost]:
    """The committed figures by name."""
    found = msgspec.json.decode(RECORD.read_bytes(), type=list[Cost]) if RECORD.exists() else []
    return {cost.name: cost for cost in found}


def table(costs: Iterable[Cost]) -> str:
    """One row a notebook."""
    lines = [
        "| notebook | code cells | compared | seconds | processor seconds | peak MiB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for cost in costs:
        code = cells()[cost.name]
        compared = 1 - len(reasons(code)) / len(code)
        figures = f"{compared:.0%} | {cost.seconds:.0f} | {cost.processor_seconds:.0f} | {cost.peak_mib:.0f}"
        lines.append(f"| `{cost.name}` | {len(code)} | {figures} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="how a path begins: notebooks/04")
    parser.add_argument("--quick", action="store_true", help="the shortest alone; nothing is written")
    parser.add_argument("--check", action="store_true", help="hold the committed record against the bars")
    given = parser.parse_args()
    known = read()
    if not given.check:
        asked = (SHORTEST,) if given.quick else tuple(given.names) or ("",)
        command = clean_command(sys.argv)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            fresh = list(pool.map(lambda name: measure(name, command), [n for n in cells() if n.startswith(asked)]))
        known = dict(sorted((known | {cost.name: cost for cost in fresh}).items()))
        print(table(fresh if given.quick else known.values()))
        if given.quick:
            return 0
        write_bytes(RECORD, msgspec.json.format(msgspec.json.encode(list(known.values())), indent=1) + b"\n")
    found = bars(known.values())
    print(*found, sep="\n")
    return 0 if all(bar.ok for bar in found) else 1


if __name__ == "__main__":
    sys.exit(main())
