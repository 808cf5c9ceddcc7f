"""The comparison on the pocket backbone and on real models: `python benchmarks/compare.py NAME … [--quick | --check]`.

    pocket        3 pretraining seeds x 3 training seeds, every method, both side networks on random weights too
    minilm-sst2   MiniLM-L6 on the sentences of SST-2          minilm-rte   the same on RTE
    minilm-sst2-pruned   the same sentences, a ladder begun as the top blocks pruned to half of their width
    llama-sst2    a Llama of 0.26 M parameters, with prompts

Records go to benchmarks/results/NAME.jsonl, one per line; a run that stands there is not made again.  ``--quick``
runs a minute of it into a temporary folder; ``--check`` reads the committed records, prints each bar with its figure
and exits 1 where one falls short.  Test sets are read once, from the last checkpoint; nothing was chosen on them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from mobillm_kit.methods import LABELS, method_row
from mobillm_kit.record import RunRecord
from mobillm_kit.runs.provenance import clean_command
from mobillm_kit.runs.run import run
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.show.tables import markdown, rows
from recipes.pocket.gate import CPU_SECONDS, HANDWRITTEN, NETS, RANDOM, Bar, bars

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SHARED = Path(os.path.relpath(HERE.parent / ".." / "shared"))
SEEDS = (0, 1, 2)

CONTROLS = ("zero-shot", "threshold", "bag-of-words")
FIRST_ORDER = ("full", "lora")
ZEROTH_ORDER = ("mezo", "p-rge")
POCKET_METHODS = (*FIRST_ORDER, *ZEROTH_ORDER, "probe", *NETS)
ENCODER_METHODS = ("full", "mobillm-ladder", "probe", "lora")
PRUNED = "minilm-sst2-pruned"
CACHED = {"server": "spawn", "cache": True}
"""A server process that keeps activations: each sentence is forwarded and sent once, however long the training."""
PAPERS_OWN = {"normalization": "none", "pooling": "mean", "weight_decay": 0.0, "averaging": 0.0}
"""The full width as RTE's records have it; the encoders' preset has more since."""


@dataclass(frozen=True)
class Benchmark:
    """One file of results and the runs that fill it."""

    name: str
    specs: tuple[RunSpec, ...]


def specs(methods: Iterable[str], seeds: Sequence[int] = SEEDS, **settings: object) -> tuple[RunSpec, ...]:
    """One specification per method and seed; a control, which draws nothing, runs once."""
    return tuple(
        RunSpec(method=method, seed=seed, **settings)
        for method in methods
        for seed in (seeds if method_row(method).trained else seeds[:1])
    )


def pocket(pretraining_seed: int, folder: str) -> Benchmark:
    settings = {"backbone": folder, "preset": "pocket"}
    trained = specs((*CONTROLS, *POCKET_METHODS), **settings)
    return Benchmark(f"pocket-{pretraining_seed}", (*trained, *specs(NETS, random_weights=True, **settings)))


def benchmarks(pocket_folders: Sequence[str]) -> dict[str, Benchmark]:
    """All of them, by name."""
    minilm = {"backbone": str(SHARED / "models/minilm-l6-h384"), "limit_dev": 300}
    sst2 = {"task": "sst2", "data": str(SHARED / "data/sst2")}
    rte = {"task": "rte", "data": str(SHARED / "data/rte"), "max_length": 96}
    llama = {"backbone": str(SHARED / "models/llama-stories260K"), "limit_dev": 300}
    encoder_controls = ("majority", "bag-of-words")
    two_epochs = {"full": 280, "lora": 280, "probe": 840, **dict.fromkeys(NETS, 350)}
    found = [pocket(seed, folder) for seed, folder in enumerate(pocket_folders)]
    found += [
        Benchmark(
            "minilm-sst2",
            (
                *specs((*encoder_controls, *ENCODER_METHODS), **minilm, **sst2),
                *specs(["mobillm-full-width"], options=CACHED, **minilm, **sst2),
                *specs(ZEROTH_ORDER, SEEDS[:1], **minilm, **sst2),
            ),
        ),
        Benchmark(PRUNED, specs(["mobillm-ladder"], options={"reduction": 2, **CACHED}, **minilm, **sst2)),
        Benchmark(
            "minilm-rte",
            (
                *specs(encoder_controls, **minilm, **rte),
                *(
                    spec
                    for method, steps in two_epochs.items()
                    for spec in specs(
                        [method],
                        steps=steps,
                        eval_every=steps,
                        options=PAPERS_OWN if method == "mobillm-full-width" else {},
                        **minilm,
                        **rte,
                    )
                ),
            ),
        ),
        Benchmark("llama-sst2", specs((*CONTROLS, *POCKET_METHODS), **llama, **sst2)),
    ]
    return {benchmark.name: benchmark for benchmark in found}


# ---------------------------------------------------------------------- running


def fill(benchmark: Benchmark, file: Path, command: str) -> None:
    """Make the runs that the file does not hold yet, and add each as it is done."""
    there = {key(record.method, record.seed, is_random(record)) for record in read(file)}
    for spec in benchmark.specs:
        if key(spec.method, spec.seed, spec.random_weights) in there:
            continue
        started = time.monotonic()
        record = run(spec, command=command)
        if record.status != "done":
            raise KeyboardInterrupt  # half a run is no record
        with file.open("ab") as lines:
            lines.write(msgspec.json.encode(record) + b"\n")
        accuracy = 100 * record.scores["test_accuracy"]
        print(
            f"{benchmark.name} {spec.method} seed {spec.seed}{' random' if spec.random_weights else ''}: "
            f"test {accuracy:.1f} %, {time.monotonic() - started:.0f} s",
            flush=True,
        )


def only(benchmark: Benchmark, methods: Sequence[str]) -> Benchmark:
    """The runs of these methods.

    Raises:
        UnknownName: a method that there is not.
    """
    names = [method_row(method).name for method in methods]
    return Benchmark(benchmark.name, tuple(spec for spec in benchmark.specs if spec.method in names))


def key(method: str, seed: int, random_weights: bool) -> tuple[str, int, bool]:
    return method, seed, random_weights


def is_random(record: RunRecord) -> bool:
    return bool(record.settings["random_weights"])


def read(file: Path) -> list[RunRecord]:
    if not file.exists():
        return []
    return [msgspec.json.decode(line, type=RunRecord) for line in file.read_bytes().splitlines()]


def quick(chosen: Iterable[Benchmark]) -> None:
    """One method of each, ten steps, into a temporary folder: shows that it runs."""
    with tempfile.TemporaryDirectory() as place:
        for benchmark in chosen:
            trained = [spec for spec in benchmark.specs if method_row(spec.method).trained]
            first = next((spec for spec in trained if spec.method == "mobillm-full-width"), trained[0])
            small = {"steps": 10, "limit_train": 200, "limit_dev": 50, "limit_test": 50}
            fill(
                Benchmark(benchmark.name, (msgspec.structs.replace(first, **small),)),
                Path(place) / f"{benchmark.name}.jsonl",
                "",
            )


# ---------------------------------------------------------------------- checking


def check() -> bool:
    """Print every bar with its figure; True where all hold."""
    held = True
    for benchmark in benchmarks([f"pocket seed {seed}" for seed in SEEDS]).values():
        print(f"\n{benchmark.name} (means over training seeds)")
        for bar in bars_of(benchmark):
            print(f"  {bar}")
            held = held and bar.ok
    return held


def bars_of(benchmark: Benchmark) -> list[Bar]:
    """Every run is recorded, and what the issue of this benchmark asks for holds."""
    records = read(RESULTS / f"{benchmark.name}.jsonl")
    wanted = {key(spec.method, spec.seed, spec.random_weights) for spec in benchmark.specs}
    there = wanted & {key(record.method, record.seed, is_random(record)) for record in records}
    complete = Bar("runs recorded", len(there), len(wanted))
    if not complete.ok:
        return [complete]
    if benchmark.name.startswith("pocket"):
        return [complete, *bars(figures(records))]
    return [complete, *(real_text_bars(figures(records)) if benchmark.name.startswith("minilm") else [])]


def real_text_bars(means: dict[str, float]) -> list[Bar]:
    """On real text MobiLLM ends within 2 points of full fine-tuning and at least 2 above the probe."""
    best = max(NETS, key=lambda net: means[net])
    return [
        Bar(f"{LABELS[best]}, within 2 points of full", means[best], means["full"] - 0.02),
        Bar(f"{LABELS[best]}, 2 points above the probe", means[best], means["probe"] + 0.02),
    ]


def figures(records: Iterable[RunRecord]) -> dict[str, float]:
    """Mean test accuracy by method, with the gate's prefixes; CPU seconds are the longest."""
    values: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if is_random(record):
            values[f"{RANDOM}{record.method}"].append(record.scores["test_accuracy"])
            continue
        values[record.method].append(record.scores["test_accuracy"])
        if "handwritten_accuracy" in record.scores:
            values[f"{HANDWRITTEN}{record.method}"].append(record.scores["handwritten_accuracy"])
        values[f"{CPU_SECONDS}{record.method}"].append(record.cpu_seconds)
    return {
        name: max(found) if name.startswith(CPU_SECONDS) else statistics.mean(found) for name, found in values.items()
    }


def tables() -> None:
    """The tables of all records, as Markdown."""
    for name in benchmarks([f"pocket seed {seed}" for seed in SEEDS]):
        records = read(RESULTS / f"{name}.jsonl")
        if not records:
            continue
        print(f"\n## {name}\n")
        print(markdown(rows([record for record in records if not is_random(record)])))
        for control, mean in figures(record for record in records if is_random(record)).items():
            print(f"\n{control}: {100 * mean:.1f} % on test, mean over seeds")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="which to run; all by default")
    parser.add_argument("--quick", action="store_true", help="a minute of it, into a temporary folder")
    parser.add_argument("--check", action="store_true", help="hold the committed records against the bars")
    parser.add_argument("--tables", action="store_true", help="print the committed records as tables")
    parser.add_argument(
        "--pockets",
        default="pocket",
        help="comma-separated pocket backbones of pretraining seeds 0, 1, 2 (made by `python -m recipes.pocket`)",
    )
    parser.add_argument("--methods", help="comma-separated; only these, so that several processes can share the work")
    given = parser.parse_args()
    if given.check:
        return 0 if check() else 1
    if given.tables:
        tables()
        return 0
    torch.set_num_threads(1)
    known = benchmarks(given.pockets.split(","))
    unknown = [name for name in given.names if name not in known]
    if unknown:
        parser.error(f"no benchmark '{unknown[0]}'; there are {', '.join(known)}")
    methods = given.methods.split(",") if given.methods else list(LABELS)
    chosen = [only(known[name], methods) for name in given.names or known]
    if given.quick:
        quick(chosen)
        return 0
    RESULTS.mkdir(exist_ok=True)
    for benchmark in chosen:
        fill(benchmark, RESULTS / f"{benchmark.name}.jsonl", clean_command(sys.argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
