"""P-RGE's batched step beside its own forms in a row and MeZO: `python benchmarks/prge.py [--quick | --check]`.

    parallel      both signs of all q perturbations in one forward of 2 q B rows (MobiZO, arXiv 2409.15520)
    inner         both signs in one forward, the q perturbations one after the other
    sequential    2 q forwards of B rows: the same arithmetic, one at a time
    mezo          every weight perturbed in place, q = 1 with B = 16; mezo-lora: A and B of LoRA alone

q B = 16 throughout, so each step passes 32 rows, as in the paper's figure.  Weights are random (no time depends on
them), in float32, one thread.  OPT-1.3B has its widths and four of its 24 blocks: what a block costs is what is asked.
Every model and length is a fresh process, which takes the ways in turns over one set of weights; seconds are medians
over the rounds.  Peaks are those of a fresh process per way.

The record is benchmarks/results/prge.json.  ``--check`` prints ratios and exits 1 where a cell is missing, where the
batched form is not the sooner one at q = 16 on short texts.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from mobillm_kit.common import MIB, fresh_environment
from mobillm_kit.files import write_bytes
from mobillm_kit.record import Provenance
from mobillm_kit.runs.provenance import clean_command, provenance
from recipes.pocket.gate import Bar

RECORD = Path(__file__).resolve().parent / "results" / "prge.json"
LIMIT_S = 3600
ROWS = 16
"""q B."""
QUERIES = (1, 2, 4, 8, 16)
LENGTHS = (8, 32, 64, 128, 256)
PAPERS = 4.3
"""How many times sooner the paper's step is than MeZO's, at most (Llama2-7B on an A100)."""

POCKET = {"hidden_size": 128, "ffn_dim": 512, "num_attention_heads": 4, "num_hidden_layers": 4, "vocab_size": 4096}
OPT_1_3B = {"hidden_size": 2048, "ffn_dim": 8192, "num_attention_heads": 32, "num_hidden_layers": 4}
MODELS: dict[str, dict[str, int]] = {"pocket": POCKET, "opt-125m": {}, "opt-1.3b, 4 blocks": OPT_1_3B}
ROUNDS = {"pocket": 9, "opt-125m": 3, "opt-1.3b, 4 blocks": 3}
FORMS = {
    "parallel": {"inner": True, "outer": True},
    "inner": {"inner": True, "outer": False},
    "sequential": {"inner": False, "outer": False},
}
OTHERS = ("mezo", "mezo-lora")
LORA = {"rank": 16, "alpha": 32.0, "targets": "all"}
"""The paper's: every projection."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One way of taking a step: seconds, median over the rounds."""

    model: str
    length: int
    way: str
    q: int
    step_s: float


class Peak(msgspec.Struct, frozen=True, kw_only=True):
    """Resident memory of a fresh process that takes two steps."""

    model: str
    length: int
    way: str
    q: int
    loaded_bytes: int
    peak_bytes: int


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The committed record."""

    provenance: Provenance
    cells: tuple[Cell, ...]
    peaks: tuple[Peak, ...]


# ---------------------------------------------------------------------- inside a fresh process


def network(model: str) -> Any:
    """Random weights; one set for every way."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    return OPTForCausalLM(OPTConfig(max_position_embeddings=512, **MODELS[model]))


def ready(raw: Any, way: str, q: int, length: int) -> Callable[[], object]:
    """A step of one way on a network's weights and texts of ``length`` tokens, to be called again and again."""
    import torch

    from mobillm_kit.backbone.split import Backbone
    from mobillm_kit.methods import load_method
    from mobillm_kit.methods.task_model import task_model
    from mobillm_kit.texts.encode import Batch

    own = copy.deepcopy(raw, {id(weight): weight for weight in raw.parameters()})  # layers of its own, no weights
    task = task_model(Backbone(own, name="random weights"), word_ids=(10, 20))
    form = way in FORMS
    options: dict[str, Any] = {**LORA, "q": q, **FORMS[way]} if form else dict(LORA) if way == "mezo-lora" else {}
    method = load_method("p-rge" if form else way)(task, seed=0, **options)
    rows = ROWS // q if form else ROWS
    ids = torch.randint(10, 4000, (rows, length), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids, torch.ones_like(ids), torch.arange(rows) % 2, torch.full((rows,), length - 1))
    return lambda: method.step(batch, 1e-4)


def ways() -> Iterator[tuple[str, int]]:
    yield from ((way, q) for q in QUERIES for way in FORMS)
    yield from ((way, 1) for way in OTHERS)


def in_turns(model: str, length: int, rounds: int) -> list[Cell]:
    """Every way once a round; the first round is not counted."""
    raw = network(model)
    steps = {each: ready(raw, *each, length) for each in ways()}
    seconds: dict[tuple[str, int], list[float]] = {each: [] for each in steps}
    for _ in range(rounds + 1):
        for each, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[each].append(time.perf_counter() - started)
    return [
        Cell(model=model, length=length, way=way, q=q, step_s=statistics.median(found[1:]))
        for (way, q), found in seconds.items()
    ]


def peak(model: str, way: str, q: int, length: int) -> Peak:
    """Two steps: memory repeats from the second on."""
    from mobillm_kit.memory.measure import current_rss_bytes, give_back_free_memory, peak_rss_bytes, reset_peak

    step = ready(network(model), way, q, length)
    give_back_free_memory()
    loaded_bytes = current_rss_bytes()
    reset_peak()
    step()
    step()
    asked = {"model": model, "way": way, "q": q, "length": length}
    return Peak(**asked, loaded_bytes=loaded_bytes, peak_bytes=peak_rss_bytes())


# ---------------------------------------------------------------------- the run


def fresh(kind: str, **asked: Any) -> Any:
    """The answer of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.prge", f"--{kind}", json.dumps(asked)]
    done = subprocess.run(command, env=fresh_environment(), capture_output=True, timeout=LIMIT_S, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-2000:])
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=list[Cell] if kind == "cells" else Peak)


def record(models: list[str], lengths: tuple[int, ...], rounds: int | None, command: str) -> Found:
    """Every cell; a peak of each way with one query and with sixteen, on the longest texts (``rounds``: two ways)."""
    cells: list[Cell] = []
    peaks: list[Peak] = []
    for model in models:
        for length in lengths:
            cells += fresh("cells", model=model, length=length, rounds=rounds or ROUNDS[model])
            print(f"{model}, {length} tokens: {ratio_line(cells, model, length)}", flush=True)
        for way, q in [("parallel", 16), ("mezo", 1)] if rounds else ways():
            if q in (1, max(QUERIES)):
                peaks.append(fresh("peak", model=model, way=way, q=q, length=lengths[-1]))
    return Found(provenance=provenance(command), cells=tuple(cells), peaks=tuple(peaks))


def seconds(cells: list[Cell], model: str, length: int) -> dict[tuple[str, int], float]:
    return {(cell.way, cell.q): cell.step_s for cell in cells if (cell.model, cell.length) == (model, length)}


def ratio_line(cells: list[Cell], model: str, length: int) -> str:
    """Sequential over parallel, by q."""
    of = seconds(cells, model, length)
    return ", ".join(f"q {q} {of['sequential', q] / of['parallel', q]:.2f}" for q in QUERIES if ("parallel", q) in of)


# ---------------------------------------------------------------------- the record


def bars(found: Found) -> list[Bar]:
    """Whole, and the batched form ahead where the paper says that it is: many queries, short texts."""
    wanted = len(MODELS) * len(LENGTHS) * len(list(ways()))
    made = [Bar("cells recorded", len(found.cells), wanted)]
    for model in MODELS:
        of = seconds(list(found.cells), model, LENGTHS[0])
        if of:
            made.append(Bar(f"{model}: q 16 at once ÷ in a row", of["sequential", 16] / of["parallel", 16], 1.0))
    return made


def tables(found: Found) -> str:
    """How many times sooner the batched step is than its own sequential form, and than MeZO; peaks."""
    lines = []
    for other in (("sequential", None), ("mezo", 1), ("mezo-lora", 1)):
        name, fixed = other
        lines += ["", f"| {name} ÷ parallel | " + " | ".join(f"q {q}" for q in QUERIES) + " |"]
        lines += ["|---|" + "--:|" * len(QUERIES)]
        for model in MODELS:
            for length in LENGTHS:
                of = seconds(list(found.cells), model, length)
                shown = [f"{of[name, fixed or q] / of['parallel', q]:.2f}" for q in QUERIES]
                lines.append(f"| {model}, {length} tokens | " + " | ".join(shown) + " |")
    lines += ["", "| peak beyond what is loaded, MiB | way, q | |", "|---|---|--:|"]
    for each in found.peaks:
        grown = (each.peak_bytes - each.loaded_bytes) / MIB
        lines.append(f"| {each.model}, {each.length} tokens | {each.way}, {each.q} | {grown:,.0f} |")
    return "\n".join(lines)


def main() -> int:
    """One of the three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="pocket and short texts alone, one round; nothing is kept")
    parser.add_argument("--check", action="store_true", help="read the record")
    for kind in ("cells", "peak"):
        parser.add_argument(f"--{kind}", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.cells or asked.peak:
        made = in_turns(**json.loads(asked.cells)) if asked.cells else peak(**json.loads(asked.peak))
        print(msgspec.json.encode(made).decode())
        return 0
    if asked.check:
        if not RECORD.exists():
            print(f"benchmarks/results/{RECORD.name}: not run yet")
            return 1
        found = msgspec.json.decode(RECORD.read_bytes(), type=Found)
        print(tables(found), "", *bars(found), sep="\n")
        return 0 if all(bar.ok for bar in bars(found)) else 1
    if asked.quick:
        record(["pocket"], LENGTHS[:1], 1, "")
        return 0
    found = record(list(MODELS), LENGTHS, None, clean_command(sys.argv))
    write_bytes(RECORD, msgspec.json.format(msgspec.json.encode(found), indent=1))
    print(tables(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
