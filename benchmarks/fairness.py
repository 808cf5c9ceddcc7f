"""What one heavy student costs the others of a class: `python benchmarks/fairness.py [--quick | --check]`.

    alone     N honest students train as fast as they can             share   alone's mean x N / (N + 1)
    heavy     one more, with several sessions, 8 x the tokens a batch and no pause            ratio   heavy / share

Paces are steps per CPU second of the server, which other programs of the machine cannot take; the shares of its core
that it had are in the record, and near 1 where it had always something to do and nobody else did.

A real class server with its keys, on a core of its own; the devices are real ones but for their backbone: each session
sends the same random activations again and again, so that the server sets the pace.  The heavy student is another
process.  Both phases are taken in turns, round by round, in one run; a student's ratio is the median over the rounds.
Below 1, the heavy student took more than its equal part.

The record is benchmarks/results/fairness.json; ``--as NAME`` names the part that is measured, ``--quick`` takes half a
minute and records nothing, ``--check`` holds the part "turns" of the record against the bars.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import msgspec
import psutil
import torch

from benchmarks.two_cores import Cores, on_core, two_cores
from mobillm_kit.channel.messages import BatchMessage, Hello, Plan
from mobillm_kit.common import fresh_environment
from mobillm_kit.device.client import ServerClient, route_to
from mobillm_kit.errors import KitError, SocketClosed
from mobillm_kit.files import write_bytes
from mobillm_kit.link.timeline import Timeline
from mobillm_kit.quant import codec
from mobillm_kit.quant.parcels import to_bytes
from mobillm_kit.record import Provenance
from mobillm_kit.runs.provenance import clean_command, provenance
from mobillm_kit.side.description import SideSpec
from recipes.pocket.gate import Bar

RECORD = Path(__file__).resolve().parent / "results" / "fairness.json"
HONEST = 4
SESSIONS = 4
"""Of the heavy student."""
ROWS, TOKENS, TIMES = 8, 16, 8
"""Of an honest batch; a heavy one has so many times the rows."""
WIDTH, LAYERS = 128, (1, 2, 3, 4)
"""The packaged pocket model's."""
CODEC, GROUP = "int8", 64
COSTS_AT_MOST = 0.10
"""Of an honest student's equal share."""
SETTLE_S = 1.0
"""After the heavy student begins or stops, before anything is counted."""
START_S = 90.0


@dataclass(frozen=True)
class Size:
    """How long is measured."""

    rounds: int
    phase_s: float


RECORDED, QUICK = Size(7, 8.0), Size(2, 3.0)


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """Both phases of a round; steps per second of the clock."""

    alone: tuple[float, ...]
    """Of each honest student."""
    heavy: tuple[float, ...]
    """The same beside the heavy student."""
    heavys: float
    """The heavy student's own, all its sessions together."""
    cores: tuple[float, float]
    """That the server had in each phase: CPU seconds by seconds."""

    def ratios(self) -> list[float]:
        """Each honest student's pace beside the heavy one, by its equal share of the pace alone."""
        n = len(self.alone)
        share = statistics.mean(self.alone) / self.cores[0] * n / (n + 1)
        return [found / self.cores[1] / share for found in self.heavy]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    honest: int
    sessions: int
    """Of the heavy student."""
    times: int
    """Its rows, by those of the others."""
    rounds: tuple[Round, ...]
    provenance: Provenance

    def medians(self) -> list[float]:
        """Each honest student's ratio."""
        return [statistics.median(found) for found in zip(*(one.ratios() for one in self.rounds), strict=True)]


# ---------------------------------------------------------------------- a device


def plan(rows: int) -> Plan:
    side = SideSpec(
        kind="full-width", width=WIDTH, layers=list(LAYERS), n_labels=2, rank=8, reduction=2, heads=4, causal=False,
        pooling="mean", seed=0, start="random", feed_forward=0, norm_eps=1e-5,
    )  # fmt: skip
    return Plan(
        fingerprint="fairness", side=side, first=None, head=None, labels="server", weight_decay=0.0, steps=1_000_000,
        checkpoint_every=1_000_000, max_rows=rows, max_tokens=TOKENS, n_samples=rows, cache=False,
    )  # fmt: skip


class Session:
    """Sends one batch again and again while ``going`` is set; counts what was trained."""

    def __init__(self, join: str, keys: Path, rows: int, going: threading.Event) -> None:
        self.trained = 0
        self._rows, self._going = rows, going
        values = torch.randn(rows * TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
        self._payloads = [to_bytes(codec(CODEC, group=GROUP).encode(values))] * len(LAYERS)
        with ExitStack() as route:
            connect, code = route.enter_context(route_to(join, keys=str(keys)))
            hello = Hello(
                session=secrets.token_hex(16), name="device", code=code, position=0, plan=plan(rows), frames=[]
            )
            self._client = ServerClient(connect, hello, [], Timeline(), self._made, patience_s=START_S)
        threading.Thread(target=self._train, daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._client.close()

    def _made(self, sequence: int, _: Callable[[int], bool]) -> tuple[BatchMessage, list[memoryview]]:
        rows = list(range(self._rows))
        message = BatchMessage(
            sequence=sequence, lr=1e-4, samples=rows, fresh=rows, lengths=[TOKENS] * self._rows,
            positions=[TOKENS - 1] * self._rows, targets=[row % 2 for row in rows], codec=CODEC, group=GROUP,
            layers=list(LAYERS), frames=[],
        )  # fmt: skip
        return message, list(self._payloads)

    def _train(self) -> None:
        with suppress(SocketClosed):
            for step in count(1):
                self._going.wait()
                self._client.send(step)
                self.trained += len(self._client.take_losses())


def heavy(join: str, keys: Path) -> None:
    """The heavy student's process: "go" and "stop" come in, the steps so far go out."""
    torch.set_num_threads(1)
    going = threading.Event()
    going.set()
    sessions = [Session(join, keys, ROWS * TIMES, going) for _ in range(SESSIONS)]
    for line in sys.stdin:
        if word := line.strip():
            (going.set if word == "go" else going.clear)()
        print(sum(session.trained for session in sessions), flush=True)


class Heavy:
    """That process, from outside."""

    def __init__(self, stack: ExitStack, join: str, keys: Path) -> None:
        words = [sys.executable, __file__, "--heavy", join, "--keys", str(keys)]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=fresh_environment(), text=True
        )
        stack.callback(self._process.wait, 10)
        stack.callback(self._process.kill)

    def tell(self, word: str = "") -> int:
        """ "go", "stop" or nothing; how many steps it has trained."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline() or 0)


# ---------------------------------------------------------------------- a class


def begun_class(stack: ExitStack, place: Path, cores: Cores) -> tuple[psutil.Process, list[str]]:
    """A class server on its core, and a join string for each student."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        bind = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    words, sheet = [sys.executable, "-m", "mobillm_kit.cli", "class"], place / "sheet.txt"
    for more in (["init", str(place / "class"), "--bind", bind, "--board", "0"],
                 ["invite", str(place / "class"), "--count", str(HONEST + 1), "--out", str(sheet)]):  # fmt: skip
        subprocess.run([*words, *more], check=True, stdout=subprocess.DEVNULL)
    with on_core(cores.server):
        server = subprocess.Popen(
            [*words, "serve", str(place / "class")], stdout=subprocess.DEVNULL, env=fresh_environment()
        )
    stack.callback(server.wait, 20)
    stack.callback(server.terminate)
    return psutil.Process(server.pid), re.findall(r"--join '(.+?)'", sheet.read_text(encoding="utf-8"))


def measured(size: Size, command: str) -> Part:
    cores, going, made = two_cores(), threading.Event(), provenance(command)
    going.set()
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(on_core(cores.device))
        server, (*joins, last) = begun_class(stack, place, cores)
        honest = [Session(join, place / f"keys-{number}", ROWS, going) for number, join in enumerate(joins)]
        for session in honest:
            stack.callback(session.close)
        loud = Heavy(stack, last, place / "keys-heavy")
        deadline = time.monotonic() + START_S
        while not (all(session.trained for session in honest) and loud.tell()):
            if time.monotonic() > deadline:
                raise KitError(f"Not every student trains after {START_S:.0f} s.", "Look at the server's words above.")
            time.sleep(0.5)
        rounds = []
        for number in range(size.rounds):
            rounds.append(one_round(honest, loud, server, size.phase_s))
            print(f"round {number + 1}: {in_words(rounds[-1].ratios())}", flush=True)
        return Part(honest=HONEST, sessions=SESSIONS, times=TIMES, rounds=tuple(rounds), provenance=made)


def one_round(honest: Sequence[Session], loud: Heavy, server: psutil.Process, phase_s: float) -> Round:
    loud.tell("stop")
    alone, _, alones = paces(honest, loud, server, phase_s)
    loud.tell("go")
    beside, heavys, besides = paces(honest, loud, server, phase_s)
    return Round(alone=alone, heavy=beside, heavys=heavys, cores=(alones, besides))


def paces(
    honest: Sequence[Session], loud: Heavy, server: psutil.Process, phase_s: float
) -> tuple[tuple[float, ...], float, float]:
    """Steps per second of each, of the heavy one, and the CPU seconds per second of the server."""
    time.sleep(SETTLE_S)
    before = counted(honest, loud, server)
    time.sleep(phase_s)
    after = counted(honest, loud, server)
    at, heavys, cores, *each = (b - a for a, b in zip(before, after, strict=True))
    return tuple(steps / at for steps in each), heavys / at, cores / at


def counted(honest: Sequence[Session], loud: Heavy, server: psutil.Process) -> list[float]:
    """Now: seconds, the heavy student's steps, the server's CPU seconds, each honest student's steps."""
    used = server.cpu_times()
    return [time.perf_counter(), loud.tell(), used.user + used.system, *(session.trained for session in honest)]


# ---------------------------------------------------------------------- bars


def in_words(figures: Sequence[float]) -> str:
    return ", ".join(f"{figure:.2f}" for figure in figures)


def bars(part: Part) -> list[Bar]:
    medians = part.medians()
    return [
        Bar("rounds", len(part.rounds), RECORDED.rounds),
        Bar("pace / equal share, the worst off", min(medians), 1 - COSTS_AT_MOST),
        Bar("no bar: the best off", max(medians)),
    ]


def check(parts: dict[str, Part]) -> bool:
    """Print every part's rounds, then the bars of the turns; True where they hold."""
    for name, part in parts.items():
        print(f"\n{name}: {part.honest} honest students, one with {part.sessions} sessions of {part.times} x the rows")
        for one in part.rounds:
            alone, beside = statistics.mean(one.alone), statistics.mean(one.heavy)
            print(f"  {alone:.1f} steps/s alone, {beside:.1f} beside {one.heavys:.1f}; ratios {in_words(one.ratios())}")
            print(f"  the server had {one.cores[0]:.2f} and {one.cores[1]:.2f} of its core")
        print(f"  medians {in_words(part.medians())}")
    found = bars(parts["turns"]) if "turns" in parts else [Bar("parts recorded", 0, 1)]
    print(*found, sep="\n")
    return all(bar.ok for bar in found)


def read() -> dict[str, Part]:
    return msgspec.json.decode(RECORD.read_bytes(), type=dict[str, Part]) if RECORD.exists() else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--as", dest="name", default="turns", help="the part of the record")
    parser.add_argument("--quick", action="store_true", help="half a minute, nothing recorded")
    parser.add_argument("--check", action="store_true", help="hold the committed record against the bars")
    parser.add_argument("--heavy", help=argparse.SUPPRESS)
    parser.add_argument("--keys", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.heavy:
        heavy(given.heavy, given.keys)
        return 0
    if given.check:
        return 0 if check(read()) else 1
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    part = measured(QUICK if given.quick else RECORDED, clean_command(sys.argv))
    parts = {given.name: part} if given.quick else {**read(), given.name: part}
    if not given.quick:
        write_bytes(RECORD, msgspec.json.format(msgspec.json.encode(parts), indent=1))
    check(parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
