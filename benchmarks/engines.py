"""P-RGE trained inside ONNX Runtime beside the same run in PyTorch: `python benchmarks/engines.py [--quick | --check]`.

    follows    50 steps on the packaged model: largest difference of a loss, and of B relative to its largest value
    learns     the preset's run on `reviews` for three seeds, scored with PyTorch: test accuracy beside that of
               the comparison's records (benchmarks/results/pocket-0.jsonl)
    takes      a fresh process on random tokens, 8 × 64, q 2, r 16: peak memory, milliseconds a step, and what of it
               is the update; and the peak of the whole of `mobillm train p-rge --engine onnx` on `reviews`

The process that trains in the engine has neither torch nor transformers nor peft among its modules; it says so itself.
One thread; milliseconds are medians, and worth what the machine's other work leaves of them.

The record is benchmarks/results/engines.json.  ``--check`` holds it against the bars and exits 1 where one falls short;
``--quick`` makes the parts but ``learns`` and keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from mobillm_kit.common import MIB, fresh_environment
from mobillm_kit.files import write_bytes
from mobillm_kit.memory.measure import peak_rss_bytes
from mobillm_kit.record import Provenance, RunRecord
from mobillm_kit.runs.provenance import clean_command, provenance
from recipes.pocket.gate import Bar

RECORD = Path(__file__).resolve().parent / "results" / "engines.json"
LIMIT_S = 3600
SEEDS = (0, 1, 2)
STEPS = 50
SHAPE = (8, 64)
PRGE = {"q": 2, "rank": 16, "alpha": 32.0}
ABSENT = {"torch", "transformers", "peft"}


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """One seed."""

    seed: int
    torch: float
    """Test accuracy of PyTorch's run."""
    engine: float


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """Of one fresh process."""

    what: str
    peak_bytes: int
    step_ms: float | None = None
    update_ms: float | None = None
    """Of it, drawing z and moving the stacks."""
    modules: list[str] = []
    """Those of torch, transformers and peft that are loaded at its end."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The committed record."""

    provenance: Provenance
    loss_difference: float
    """Largest of 50 steps, in nats."""
    adapter_difference: float
    """Largest of a layer's B, relative to the layer's largest value."""
    scores: tuple[Score, ...]
    taken: tuple[Taken, ...]


# ---------------------------------------------------------------------- inside a fresh process


def loaded() -> list[str]:
    return sorted(ABSENT & {name.split(".")[0] for name in sys.modules})


def tokens(step: int) -> dict[str, Any]:
    """A batch of random tokens."""
    import numpy as np

    rows, length = SHAPE
    ids = np.random.RandomState(step).randint(10, 4000, SHAPE)
    ends, labels = np.full(rows, length - 1), np.arange(rows) % 2
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "positions": ends, "labels": labels}


def steps_of(step: Any, update: Any) -> tuple[float, float]:
    """Median milliseconds of a step, and of the update alone, of which two more are taken at its end."""
    took: list[float] = []
    for number in range(STEPS):
        batch = tokens(number)
        started = time.perf_counter()
        step(batch)
        took.append(time.perf_counter() - started)
    moved = []
    for _ in range(9):
        started = time.perf_counter()
        update()
        moved.append(time.perf_counter() - started)
    return 1e3 * statistics.median(took[1:]), 1e3 * statistics.median(moved)


def engine_steps(folder: str) -> Taken:
    from mobillm_kit.engines.dual import DualForward, Settings
    from mobillm_kit.engines.dual_onnx import OnnxStepper
    from mobillm_kit.engines.noise import Noise
    from mobillm_kit.engines.onnx import OnnxEngine

    settings = Settings(**PRGE)
    stepper = OnnxStepper(OnnxEngine(folder), (10, 20), settings, 0)
    method = DualForward(stepper, settings, 0)
    step_ms, update_ms = steps_of(
        lambda batch: method.step(batch, 1e-4), lambda: stepper.move(method.g, 1e-4, Noise(0))
    )
    return Taken(what="engine", peak_bytes=peak_rss_bytes(), step_ms=step_ms, update_ms=update_ms, modules=loaded())


def torch_steps(folder: str) -> Taken:
    import torch

    from mobillm_kit.backbone.pretrained import load_backbone
    from mobillm_kit.methods.prge import PRGE as Method
    from mobillm_kit.methods.task_model import task_model
    from mobillm_kit.texts.encode import Batch

    torch.set_num_threads(1)
    method = Method(task_model(load_backbone("pocket"), word_ids=(10, 20)), seed=0, targets="all", **PRGE)

    def _step(batch: dict[str, Any]) -> None:
        method.step(Batch(**{name: torch.from_numpy(each) for name, each in batch.items()}), 1e-4)

    with torch.no_grad():
        step_ms, update_ms = steps_of(_step, method._advance)
    return Taken(what="torch", peak_bytes=peak_rss_bytes(), step_ms=step_ms, update_ms=update_ms, modules=loaded())


def command_line(folder: str) -> Taken:
    """The whole command, texts and looks at the dev split included."""
    from mobillm_kit.cli import main as mobillm

    with tempfile.TemporaryDirectory() as out:
        given = ["train", "p-rge", "--engine", "onnx", "--backbone", folder, "--out", out, "--steps", str(STEPS)]
        if mobillm(given):
            raise RuntimeError("the run failed")
    return Taken(what="mobillm train", peak_bytes=peak_rss_bytes(), modules=loaded())


PROCESSES = {"engine": engine_steps, "torch": torch_steps, "mobillm train": command_line}


# ---------------------------------------------------------------------- the run


def fresh(what: str, folder: Path) -> Taken:
    """The answer of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.engines", "--part", json.dumps([what, str(folder)])]
    done = subprocess.run(command, env=fresh_environment(), capture_output=True, timeout=LIMIT_S, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-2000:])
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Taken)


def follows(folder: Path, place: Path) -> tuple[float, float]:
    """Both differences after 50 steps on `reviews`."""
    from safetensors.torch import load_file

    from mobillm_kit.engines.prge import train
    from mobillm_kit.runs.prepare import build_method, prepare, training_batches
    from mobillm_kit.runs.spec import RunSpec

    spec = RunSpec(method="p-rge", steps=STEPS, accelerator="cpu")
    found = train(msgspec.structs.replace(spec, backbone=str(folder)), place)
    prepared = prepare(spec)
    method, batches = build_method(prepared), training_batches(prepared)
    losses = [method.step(batches.step(step), batches.lr(step)).loss for step in range(STEPS)]
    wanted = method.trained()
    method.load_state(load_file(place / "checkpoint.safetensors"))
    apart = [(method.trained()[name] - own).abs().max() / own.abs().max() for name, own in wanted.items()]
    return max(abs(a - b) for a, b in zip(losses, found.losses, strict=True)), float(max(apart))


def learns(folder: Path, place: Path, seeds: tuple[int, ...]) -> tuple[Score, ...]:
    """The preset's run in the engine, all seeds at once, a process each; PyTorch's is in the comparison's records."""
    from mobillm_kit.runs.inference import score_run

    train = [sys.executable, "-m", "mobillm_kit.cli", "train", "p-rge", "--engine", "onnx", "--backbone", str(folder)]
    running = {}
    for seed in seeds:
        given = [*train, "--out", str(place / str(seed)), "--seed", str(seed)]
        running[seed] = subprocess.Popen(given, env=fresh_environment(), stdout=subprocess.DEVNULL)
    found = []
    for seed, process in running.items():
        if process.wait(LIMIT_S):
            raise RuntimeError(f"the run of seed {seed} failed")
        engine = score_run(place / str(seed))["test_accuracy"]
        found.append(Score(seed=seed, torch=reference(seed), engine=engine))
    return tuple(found)


def reference(seed: int) -> float:
    """Test accuracy of the same run in PyTorch, as the comparison has it."""
    lines = (RECORD.parent / "pocket-0.jsonl").read_bytes().splitlines()
    records = [msgspec.json.decode(line, type=RunRecord) for line in lines]
    return next(each.scores["test_accuracy"] for each in records if (each.method, each.seed) == ("p-rge", seed))


def record(seeds: tuple[int, ...], command: str) -> Found:
    """Everything, on an export that is made for it."""
    from mobillm_kit.engines.export import export_backbone

    with tempfile.TemporaryDirectory() as place:
        folder = export_backbone("pocket", Path(place) / "pocket", targets="all")
        loss, adapter = follows(folder, Path(place) / "follows")
        return Found(
            taken=tuple(fresh(what, folder) for what in PROCESSES),
            provenance=provenance(command),
            loss_difference=loss,
            adapter_difference=adapter,
            scores=learns(folder, Path(place), seeds),
        )


# ---------------------------------------------------------------------- the record


def bars(found: Found) -> list[Bar]:
    """Close to PyTorch, as good, and small."""
    made = [
        Bar("largest difference of a loss, 50 steps, nats · 10⁶", 1e6 * found.loss_difference, high=10.0),
        Bar("largest relative difference of B · 10⁶", 1e6 * found.adapter_difference, high=100.0),
        Bar("seeds", len(found.scores), low=len(SEEDS)),
    ]
    for score in found.scores:
        points = 100 * abs(score.torch - score.engine)
        made.append(Bar(f"seed {score.seed}: points between the test accuracies", points, high=1.0))
    for each in found.taken:
        if each.what != "torch":
            made.append(Bar(f"{each.what}: peak, MiB", each.peak_bytes / MIB, high=170.0))
            made.append(Bar(f"{each.what}: modules of PyTorch", len(each.modules), high=0))
    return made


def tables(found: Found) -> str:
    """Scores and processes."""
    lines = ["| seed | torch, test % | engine, test % |", "|---|--:|--:|"]
    lines += [f"| {each.seed} | {100 * each.torch:.1f} | {100 * each.engine:.1f} |" for each in found.scores]
    lines += ["", "| process | peak, MiB | ms a step | of it the update |", "|---|--:|--:|--:|"]
    for each in found.taken:
        took = [f"{ms:.0f}" if ms is not None else "–" for ms in (each.step_ms, each.update_ms)]
        lines.append(f"| {each.what} | {each.peak_bytes / MIB:.0f} | {' | '.join(took)} |")
    return "\n".join(lines)


def main() -> int:
    """One of the three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="no run to its end; nothing is kept")
    parser.add_argument("--check", action="store_true", help="read the record")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        what, folder = json.loads(asked.part)
        print(msgspec.json.encode(PROCESSES[what](folder)).decode())
        return 0
    if asked.check:
        found = msgspec.json.decode(RECORD.read_bytes(), type=Found)
    else:
        found = record(() if asked.quick else SEEDS, clean_command(sys.argv))
    if not asked.check and not asked.quick:
        write_bytes(RECORD, msgspec.json.format(msgspec.json.encode(found), indent=1))
    held = [bar for bar in bars(found) if not (asked.quick and bar.what == "seeds")]
    print(tables(found), "", *held, sep="\n")
    return 0 if all(bar.ok for bar in held) else 1


if __name__ == "__main__":
    sys.exit(main())
