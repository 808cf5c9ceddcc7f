"""Memory predicted, counted and measured: `python benchmarks/memory_prediction.py [MODEL …] [--quick | --check]`.

    predicted   a training step on tensors without values (memory/prediction.py), plus 22 MiB of work buffers
    counted     the ledger of the same method on real tensors
    measured    VmHWM of a fresh process that builds the model with random weights and trains, less its imports

Random weights: memory does not depend on the values.  MobiLLM's device and server are two processes.  What this machine
cannot hold is predicted only, and says so.

Records go to benchmarks/results/memory-prediction.jsonl, one line per method and party; what stands there is not made
again.  ``--quick`` measures three methods on the packaged model; ``--check`` reads the committed records, prints
every figure and exits 1 where the prediction of a whole process is more than 10 % off.  What a process takes over its
imports is printed beside it: where that is little (MobiLLM's server), a few MiB of work buffers are many per cent.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from mobillm_kit.common import fresh_environment
from mobillm_kit.memory.measure import current_rss_bytes, give_back_free_memory, peak_rss_bytes, reset_peak
from mobillm_kit.record import CountedMemory, Provenance

RESULTS = Path(__file__).resolve().parent / "results" / "memory-prediction.jsonl"
MIB = 2**20
BAR = 0.10
STEPS = 2
ONE_STEP = ("opt-1.3b",)
"""Where two would take too long; AdamW's moments exist before the first, so the first takes as much as any."""
LR = 1e-3
LIMIT_S = 3600
SPARE_BYTES = 2**30
"""Left to the rest of the machine; a step that would take more is predicted only."""

METHODS = (
    "probe", "mobillm-full-width", "mobillm-ladder", "mezo", "mezo-lora", "p-rge", "lst", "lora-checkpointing",
    "lora-fa", "lora", "bitfit", "full-checkpointing", "full",
)  # fmt: skip


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One method's training step."""

    model: str
    method: str
    batch: int = 8
    length: int = 128
    dtype: str = "float32"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What the fresh process said."""

    party: str
    imports_bytes: int
    """Resident with every module loaded and no tensor."""
    loaded_bytes: int
    """With the model."""
    peak_bytes: int
    """VmHWM of the training steps."""
    counted: CountedMemory | None = None
    seconds: float
    """Of the steps."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file."""

    case: Case
    party: str
    predicted_peak_bytes: int
    """Tensors alive at the worst moment, from shapes alone."""
    predicted_process_bytes: int
    """The same and the process's constant."""
    predicted_at_peak: dict[str, int]
    predicted_counted: CountedMemory
    measured: Measured | None = None
    """None where this machine could not hold it."""
    provenance: Provenance

    @property
    def error(self) -> float | None:
        """How far the predicted process is from the measured one."""
        return None if self.measured is None else self.predicted_process_bytes / self.measured.peak_bytes - 1

    @property
    def growth_error(self) -> float | None:
        """The same without what the imports take, which hangs on what is installed."""
        if self.measured is None:
            return None
        return self.predicted_growth_bytes / (self.measured.peak_bytes - self.measured.imports_bytes) - 1

    @property
    def predicted_growth_bytes(self) -> int:
        """Tensors at the peak, and the libraries' work buffers."""
        from mobillm_kit.memory.prediction import WORK_BYTES

        return self.predicted_peak_bytes + WORK_BYTES


# ---------------------------------------------------------------------- the fresh process


def child(case: Case, party: str) -> Measured:
    """Build, train two steps, and say what it took; runs in a process of its own."""
    import time

    import torch
    from transformers import AutoConfig

    from mobillm_kit.backbone.pretrained import architecture
    from mobillm_kit.memory.prediction import shape_model
    from mobillm_kit.methods import load_method

    torch.set_num_threads(1)
    build = load_method(case.method)
    config = architecture(case.model)
    # the family's module is imported before anything is measured, the weights of this one take no memory
    with torch.device("meta"):
        shape_model(AutoConfig.for_model(config.model_type))
    give_back_free_memory()
    imports_bytes = current_rss_bytes()
    torch.manual_seed(0)
    model = shape_model(config, dtype=case.dtype)
    method = build(model, seed=0)
    batch = random_batch(case, model.backbone.kind)
    run, count = _server_part(method, model, batch) if party == "server" else _device_part(method, batch)
    del method
    give_back_free_memory()
    loaded_bytes = current_rss_bytes()
    reset_peak()
    started = time.perf_counter()
    for _ in range(1 if case.model in ONE_STEP else STEPS):
        run()
    seconds = time.perf_counter() - started
    peak_bytes = peak_rss_bytes()
    return Measured(
        party=party,
        imports_bytes=imports_bytes,
        loaded_bytes=loaded_bytes,
        peak_bytes=peak_bytes,
        counted=count(),
        seconds=seconds,
    )


Part = tuple[Callable[[], object], Callable[[], CountedMemory]]
"""One step of a party, and its ledger."""


def _device_part(method: Any, batch: Any) -> Part:
    """Everything, or for MobiLLM the device alone: server and side network are let go."""
    if not hasattr(method, "device"):
        return lambda: method.step(batch, LR), lambda: method.count_memory(batch)[0]
    device, counted = method.device, method.count_memory(batch)[0]
    return lambda: device.upload(batch), lambda: counted


def _server_part(method: Any, model: Any, batch: Any) -> Part:
    """The server with one upload; the backbone is let go."""
    upload, server = method.device.upload(batch), method.server
    model.backbone.to("meta")
    return lambda: server.train(upload, LR), lambda: server.count_memory(upload)


def random_batch(case: Case, kind: str) -> Any:
    """Random tokens; the texts differ in length, the longest has T tokens."""
    import torch

    from mobillm_kit.texts.encode import Batch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 1000, (case.batch, case.length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(case.batch):
        mask[row, case.length - (row % 4) * (case.length // 8) :] = 0 if row % 4 else 1
    last = mask.sum(dim=1) - 1
    labels = torch.randint(0, 2, (case.batch,), generator=generator)
    return Batch(ids, mask, labels, last if kind == "decoder" else torch.zeros_like(last))


def in_fresh_process(case: Case, party: str) -> Measured:
    """Run :func:`child` elsewhere; nothing of this process is inherited but the command."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", msgspec.json.encode(case).decode(), party],
        env={**fresh_environment(), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        timeout=LIMIT_S,
        check=True,
    )
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Measured)


# ---------------------------------------------------------------------- predicted beside measured


def results(case: Case, command: str) -> list[Result]:
    """One result per party, measured where the machine has the room."""
    from dataclasses import asdict

    from mobillm_kit.backbone.pretrained import architecture
    from mobillm_kit.memory.prediction import predict
    from mobillm_kit.runs.provenance import provenance

    needs = predict(architecture(case.model), case.method, batch_size=case.batch, length=case.length, dtype=case.dtype)
    found = []
    for need in needs:
        room = psutil.virtual_memory().available - SPARE_BYTES
        # the server's process holds the whole backbone once, before it is dropped
        largest = max(one.process_bytes for one in needs)
        measured = in_fresh_process(case, need.party) if largest <= room else None
        found.append(
            Result(
                case=case,
                party=need.party,
                predicted_peak_bytes=need.peak_bytes,
                predicted_process_bytes=need.process_bytes,
                predicted_at_peak=asdict(need.at_peak),
                predicted_counted=need.counted,
                measured=measured,
                provenance=provenance(command),
            )
        )
    return found


def cases(models: Sequence[str]) -> list[Case]:
    """Every method on each model; on OPT-1.3B full fine-tuning also in bfloat16, which this machine can hold."""
    found = [
        Case(model=model, method=method, batch=4 if model in ONE_STEP else 8) for model in models for method in METHODS
    ]
    for model in models:
        if model == "opt-125m":
            found += [
                Case(model=model, method=method, batch=16, length=256)
                for method in ("mobillm-full-width", "mezo", "lora", "full")
            ]
        if model == "opt-1.3b":
            found += [Case(model=model, method="full", batch=4, dtype="bfloat16")]
    return found


def fill(todo: Iterable[Case], file: Path, command: str) -> None:
    """Make the results that the file does not hold yet."""
    there = {result.case for result in read(file)}
    for case in todo:
        if case in there:
            continue
        made = results(case, command)
        with file.open("ab") as lines:
            for result in made:
                lines.write(msgspec.json.encode(result) + b"\n")
        for result in made:
            print(line(result), flush=True)


def read(file: Path) -> list[Result]:
    return [msgspec.json.decode(line, type=Result) for line in file.read_bytes().splitlines()] if file.exists() else []


# ---------------------------------------------------------------------- showing and checking

HEADER = (
    "model        dtype    B x T     method              party   predicted  measured   error    over imports   "
    "error  ledger"
)


def line(result: Result) -> str:
    """Predicted and measured process, tensors predicted against growth, and whether the ledger agrees to the byte."""
    case, measured = result.case, result.measured
    start = (
        f"{case.model:12} {case.dtype[:8]:8} {case.batch:>2} x {case.length:<4} {case.method:19} {result.party:7} "
        f"{result.predicted_process_bytes / MIB:>8.0f}"
    )
    if measured is None:
        return f"{start}   predicted only: more than this machine could hold"
    growth = measured.peak_bytes - measured.imports_bytes
    same = "equal" if measured.counted == result.predicted_counted else "DIFFERS"
    return (
        f"{start}  {measured.peak_bytes / MIB:>8.0f}  {100 * result.error:>+6.1f}% "
        f"{result.predicted_growth_bytes / MIB:>8.0f} {growth / MIB:>7.0f} {100 * result.growth_error:>+6.1f}%  {same}"
    )


def check(file: Path) -> bool:
    """Print every committed figure; False where a prediction is more than the bar off or the ledgers differ."""
    found = read(file)
    if not found:
        print(f"{file.name}: no records; run benchmarks/memory_prediction.py first")
        return False
    print(HEADER)
    for result in found:
        print(line(result))
    measured = [result for result in found if result.measured]
    worst = max(measured, key=lambda result: abs(result.error))
    worst_growth = max(measured, key=lambda result: abs(result.growth_error))
    differ = [result for result in measured if result.measured.counted != result.predicted_counted]
    missing = sorted(
        {(m, x) for m in ("opt-125m", "opt-1.3b") for x in METHODS} - {(r.case.model, r.case.method) for r in found}
    )
    ok = abs(worst.error) <= BAR and not differ and not missing
    print(
        f"\nworst, whole process: {100 * worst.error:+.1f} % ({worst.case.model}, {worst.case.method}, {worst.party})"
    )
    print(
        f"worst, over what the imports take: {100 * worst_growth.growth_error:+.1f} % "
        f"({worst_growth.case.model}, {worst_growth.case.method}, {worst_growth.party})"
    )
    print(f"ledger equal to the byte in {len(measured) - len(differ)} of {len(measured)}")
    print(f"missing: {missing}" if missing else "every method on both models stands here")
    print(f"{'ok' if ok else 'MISSED'}: predicted within {100 * BAR:.0f} % of measured")
    return ok


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["opt-125m", "opt-1.3b"])
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        case = msgspec.json.decode(given.child[0].encode(), type=Case)
        print(msgspec.json.encode(child(case, given.child[1])).decode())
        return 0
    if given.check:
        return 0 if check(given.out) else 1
    if given.quick:
        print(HEADER)
        for method in ("mobillm-ladder", "mezo", "lora"):
            for result in results(Case(model="pocket", method=method), ""):
                print(line(result), flush=True)
        return 0
    from mobillm_kit.runs.provenance import clean_command

    print(HEADER)
    chosen = given.methods.split(",")
    todo = [case for case in cases(given.models) if case.method in chosen]
    fill(todo, given.out, clean_command(sys.argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
