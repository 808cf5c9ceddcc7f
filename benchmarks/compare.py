"""The comparison on the pocket backbone and on real models: `python benchmarks/compare.py NAME … [--quick | --check]`.

    pocket        3 pretraining seeds x 3 training seeds, every method, both side networks on random weights too
    turns         the second packaged task on the same three backbones; MeZO and P-RGE on the packaged one
    minilm-sst2   MiniLM-L6 on the sentences of SST-2; MobiLLM on two processes with int8 activations
    minilm-sst2-pruned   the same with a pruned copy        minilm-rte   the same model on RTE
    llama-sst2    a Llama of 0.26 M parameters, with prompts
    smollm2-sst2  SmolLM2-135M from its GGUF file, with prompts; MobiLLM on two processes with int8 activations
    smollm2-sst2-random   the ladder begun at random, in place of a copy        smollm2-rte   the same model on RTE

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
from mobillm_kit.texts.loading import handwritten
from recipes.pocket.gate import CPU_SECONDS, HANDWRITTEN, NETS, RANDOM, Bar, bars
from recipes.turns import gate as turns_gate

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SHARED = Path(os.path.relpath(HERE.parent / ".." / "shared"))
SEEDS = (0, 1, 2)
NOT_YET = ("minilm-sst2-pruned", "smollm2-rte")
"""Without a record so far: ``--check`` says so and goes on."""

CONTROLS = ("zero-shot", "threshold", "bag-of-words")
FIRST_ORDER = ("full", "lora")
ZEROTH_ORDER = ("mezo", "p-rge")
POCKET_METHODS = (*FIRST_ORDER, *ZEROTH_ORDER, "probe", *NETS)
CACHED = {"server": "spawn", "codec": "int8", "cache": True}
"""A server process that keeps activations: each sentence is forwarded and sent once, however long the training."""
PRUNED = {"steps": 1000, "lr": 4e-4, "eval_every": 500, "options": CACHED | {"reduction": 2}}
"""Of half the width: a copy of the top four blocks whose weaker half is cut away (chosen on dev, `docs/log.md`)."""
TOP_BLOCKS = {"start": "backbone", "reduction": 1, "layers": 13}
"""A copy of the top twelve of SmolLM2's thirty blocks (chosen on dev, `docs/log.md`)."""
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


def turns(pretraining_seed: int, folder: str) -> Benchmark:
    settings: dict[str, object] = {"backbone": folder, "preset": "turns", "task": "turns"}
    if pretraining_seed:  # curves are drawn of the packaged backbone alone; looks at dev change no training
        settings["eval_every"] = 300
    trained = specs((*CONTROLS, *FIRST_ORDER, "probe", *NETS), **settings)
    slow = specs(() if pretraining_seed else ZEROTH_ORDER, **settings)
    return Benchmark(f"turns-{pretraining_seed}", (*trained, *slow))


def benchmarks(pocket_folders: Sequence[str]) -> dict[str, Benchmark]:
    """All of them, by name."""
    minilm = {"backbone": str(SHARED / "models/minilm-l6-h384"), "limit_dev": 300}
    sst2 = {"task": "sst2", "data": str(SHARED / "data/sst2")}
    rte = {"task": "rte", "data": str(SHARED / "data/rte"), "max_length": 96}
    llama = {"backbone": str(SHARED / "models/llama-stories260K"), "limit_dev": 300}
    encoder_controls = ("majority", "bag-of-words")
    two_epochs = {"full": 280, "lora": 280, "probe": 840, **dict.fromkeys(NETS, 350)}
    found = [make(seed, folder) for make in (pocket, turns) for seed, folder in enumerate(pocket_folders)]
    found += [
        Benchmark(
            "minilm-sst2",
            (
                *specs((*encoder_controls, "probe"), **minilm, **sst2),
                *specs(FIRST_ORDER, eval_every=25, **minilm, **sst2),
                *specs(NETS, eval_every=50, options=CACHED, **minilm, **sst2),
                *specs(ZEROTH_ORDER, SEEDS[:1], **minilm, **sst2),
            ),
        ),
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
        Benchmark("minilm-sst2-pruned", specs(["mobillm-ladder"], **PRUNED, **minilm, **sst2)),
        Benchmark("llama-sst2", specs((*CONTROLS, *POCKET_METHODS), **llama, **sst2)),
        Benchmark("smollm2-sst2", smollm2(2000, **sst2)),
        Benchmark("smollm2-sst2-random", smollm2(2000, random_ladder=True, **sst2)),
        Benchmark("smollm2-rte", smollm2(1000, **(rte | {"max_length": 128}))),
    ]
    return {benchmark.name: benchmark for benchmark in found}


def smollm2(texts: int, *, random_ladder: bool = False, **task: object) -> tuple[RunSpec, ...]:
    """Each text twice for what trains through the backbone; slow methods with one seed, and last."""
    settings = {"backbone": str(SHARED / "models/smollm2-135m"), "limit_train": texts, "limit_dev": 300, **task}
    epoch, looks = texts // 16, 10  # at dev: benchmarks/pipeline.py finds in these curves when the goal is reached
    ways = {
        "probe": {"steps": 4 * epoch, "lr": 3e-3, "eval_every": 4 * epoch // looks},
        "mobillm-full-width": {"steps": 4 * epoch, "lr": 1e-3, "eval_every": 4 * epoch // looks, "options": CACHED},
        "mobillm-ladder": {
            "steps": 3 * epoch,
            "lr": 1e-4,
            "eval_every": 3 * epoch // looks,
            "options": CACHED | TOP_BLOCKS,
        },
        "lora": {"steps": 2 * epoch, "lr": 5e-4, "eval_every": 2 * epoch // looks},
        "full": {"steps": 2 * epoch, "lr": 5e-5, "eval_every": 2 * epoch // looks},
        "mezo": {"steps": 4 * epoch, "eval_every": 2 * epoch},
        "p-rge": {"steps": 4 * epoch, "lr": 4e-3, "eval_every": 2 * epoch},  # chosen on dev: docs/log.md, 2026-11-28
    }
    if random_ladder:
        at_random = {"steps": 4 * epoch, "lr": 1e-3, "eval_every": 4 * epoch // looks, "options": CACHED}
        return specs(["mobillm-ladder"], SEEDS[:1], **settings, **at_random)
    seeds = {way: SEEDS if way not in ("full", *ZEROTH_ORDER) else SEEDS[:1] for way in ways}
    order = [(way, seed) for seed in SEEDS for way in ways if seed in seeds[way]]
    trained = (specs([way], [seed], **settings, **ways[way])[0] for way, seed in order)
    return (*specs(CONTROLS, **settings), *trained)


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
        if benchmark.name in NOT_YET and not read(RESULTS / f"{benchmark.name}.jsonl"):
            print(f"\n{benchmark.name}: not run yet")
            continue
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
    if benchmark.name.startswith("turns"):
        return [complete, *turns_bars(figures(records))]
    if benchmark.name in ("smollm2-sst2", "smollm2-rte"):
        return [complete, *decoder_bars(records)]
    if benchmark.name == "minilm-sst2-pruned":
        return [complete, pruned_bar(figures(records), figures(read(RESULTS / "minilm-sst2.jsonl")))]
    return [complete, *(real_text_bars(records) if benchmark.name.startswith("minilm") else [])]


def pruned_bar(pruned: dict[str, float], others: dict[str, float]) -> Bar:
    """On the bar of the full width; full fine-tuning is of the unpruned file."""
    low = others["full"] - 0.025
    return Bar("MobiLLM, pruned copy, within 2.5 points of full", pruned["mobillm-ladder"], low)


def turns_bars(means: dict[str, float]) -> list[Bar]:
    """The gate of the task, on test; prompting with a threshold and zeroth-order methods are shown as they come."""
    shown = [Bar(LABELS[name], means[name]) for name in ("threshold", *ZEROTH_ORDER) if name in means]
    return [*turns_gate.bars(means), Bar("sentences written by hand", len(handwritten("turns")), 100), *shown]


def real_text_bars(records: Sequence[RunRecord]) -> list[Bar]:
    """On real text MobiLLM ends within 2 points of full fine-tuning and at least 2 above the probe."""
    means = figures(records)
    best = max(NETS, key=lambda net: means[net])
    (row,) = rows([record for record in records if record.method == best and not is_random(record)])  # as tables say
    found = [
        Bar(f"{row.label}, within 2 points of full", means[best], means["full"] - 0.02),
        Bar(f"{row.label}, 2 points above the probe", means[best], means["probe"] + 0.02),
    ]
    if records[0].task.name == "sst2":
        paper = means["mobillm-full-width"]
        found.append(Bar("MobiLLM, full width, within 2.5 points of full", paper, means["full"] - 0.025))
    return found


def decoder_bars(records: Sequence[RunRecord]) -> list[Bar]:
    """The better net near LoRA and above the probe; zeroth-order methods above the untrained model's threshold."""
    means = figures(records)
    best = max(means[net] for net in NETS)
    held = [Bar(f"{LABELS[name]}, above the threshold", means[name], means["threshold"]) for name in ZEROTH_ORDER]
    if records[0].task.name == "sst2":
        held.append(Bar("MobiLLM's better net, within 2 points of LoRA", best, means["lora"] - 0.02))
        held.append(Bar("MobiLLM's better net, 2 points above the probe", best, means["probe"] + 0.02))
    return held


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
