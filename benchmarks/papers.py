"""The papers' memory figures beside ours: `python benchmarks/papers.py [--measure] [--quick] [--check]`.

    predicted   from shapes (mobillm_kit/memory/prediction.py): the whole process, Python and torch included
    measured    VmHWM of a fresh process; for PocketLLM under a limit that the kernel enforces (RLIMIT_DATA)

Published figures come from other machines, other precisions and mostly from GPUs, and MobiLLM's tables are not public:
compare ratios before bytes.  1 GB is 10^9 bytes here, as in the papers.

Results go to benchmarks/results/papers.json.  Without arguments everything is predicted again, and what was measured
stays; ``--measure`` runs PocketLLM's limits, and what was predicted stays; ``--quick`` predicts one table on OPT-125M;
``--check`` reads the file, prints it and the ratios behind the headlines (those of memory.jsonl too), and exits 1 where
a claim of the papers does not hold.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import memory
import msgspec
from memory_prediction import Case, Measured

from mobillm_kit.common import fresh_environment
from mobillm_kit.record import Provenance

RESULTS = Path(__file__).resolve().parent / "results" / "papers.json"
GB = 10**9
LIMIT_S = 3600
BATCHES = (4, 8, 16, 32)
LENGTHS = (64, 128, 256, 512)
MOBILLM_MODELS = ("opt-350m", "opt-1.3b")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a paper, and ours."""

    table: str
    what: str
    published: str
    """As printed; ``not public`` where no figure could be read."""
    ours_gb: float | None
    """Whole process of the device, GB; None where the process was refused the memory."""
    how: str
    """predicted, measured, or what stopped it."""


class Papers(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    predicted: tuple[Row, ...] = ()
    measured: tuple[Row, ...] = ()
    provenance: Provenance


# ---------------------------------------------------------------------- predicted


@cache
def device_gb(model: str, method: str, batch: int, length: int, dtype: str = "float32", **options: object) -> float:
    """Predicted process of the device, GB."""
    from mobillm_kit.backbone.pretrained import architecture
    from mobillm_kit.memory.prediction import predict

    needs = predict(
        architecture(model), method, batch_size=batch, length=length, dtype=dtype, options=dict(options) or None
    )
    return needs[0].process_bytes / GB


@cache
def streamed_gb(model: str, batch: int, length: int) -> dict[str, float]:
    """Predicted processes whose blocks are read one after the other, GB, by the way's name."""
    from mobillm_kit.backbone.pretrained import architecture
    from mobillm_kit.memory.budget import Step, streamed

    ways = streamed(Step(architecture(model), "lora", batch, length, "bfloat16"))
    return {way.label: way.device_bytes / GB for way in ways}


def predicted(table: str, what: str, published: str, ours_gb: float) -> Row:
    return Row(table=table, what=what, published=published, ours_gb=ours_gb, how="predicted")


def mobillm_headline() -> Iterable[Row]:
    """arXiv 2502.20421: memory divided by 4 against fine-tuning on the device; its tables are not public."""
    for model in MOBILLM_MODELS:
        for method in ("full", "lora", "bitfit", "lst", "mobillm-full-width", "mobillm-ladder"):
            published = "÷4 (headline)" if method.startswith("mobillm") else "not public"
            yield predicted(f"MobiLLM, {model}, 16 × 256", method, published, device_gb(model, method, 16, 256))
        for label, gigabytes in streamed_gb(model, 16, 256).items():
            yield predicted(f"MobiLLM, {model}, 16 × 256", label, "–", gigabytes)


def mobillm_grid() -> Iterable[Row]:
    """The same paper: memory nearly constant over batch size and sequence length."""
    for model in MOBILLM_MODELS:
        for method in ("mobillm-full-width", "lora"):
            for batch in BATCHES:
                for length in LENGTHS:
                    published = "nearly constant" if method.startswith("mobillm") else "grows"
                    yield predicted(
                        f"batch × length, {model}, {method}",
                        f"{batch} × {length}",
                        published,
                        device_gb(model, method, batch, length),
                    )


def mezo() -> Iterable[Row]:
    """arXiv 2305.17333: OPT on MultiRC (about 400 tokens), batch 1; inference, MeZO and full fine-tuning with Adam."""
    published = {"opt-1.3b": (4, 4, 27), "opt-2.7b": (7, 7, 55), "opt-6.7b": (14, 14, 156)}
    for model, figures in published.items():
        for what, method, gigabytes in zip(
            ("inference", "MeZO", "full"), ("probe", "mezo", "full"), figures, strict=True
        ):
            yield predicted(
                f"MeZO, {model}, 1 × 400, float32", what, f"{gigabytes} GB", device_gb(model, method, 1, 400)
            )


def pocketllm() -> Iterable[Row]:
    """arXiv 2407.01031: MeZO on a phone where Adam does not fit."""
    for model, published in (("roberta-large", "4 GB"), ("opt-1.3b", "6.5 GB")):
        yield predicted(f"PocketLLM, {model}, 8 × 64", "MeZO", published, device_gb(model, "mezo", 8, 64))
        yield predicted(f"PocketLLM, {model}, 8 × 64", "Adam", "does not fit", device_gb(model, "full", 8, 64))


def p_rge() -> Iterable[Row]:
    """arXiv 2409.15520: q · B = 16 kept the same, r 16 on all projections; its headline is speed, 4.3 × MeZO's."""
    projections = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
    for model in ("tinyllama-1.1b", "llama-2-7b"):
        table = f"P-RGE, {model}, q · B = 16, T 128"
        yield predicted(table, "inference, batch 16", "–", device_gb(model, "probe", 16, 128))
        yield predicted(table, "MeZO, batch 16", "–", device_gb(model, "mezo", 16, 128))
        for q, batch in ((1, 16), (4, 4), (16, 1)):
            ours = device_gb(model, "p-rge", batch, 128, q=q, rank=16, alpha=32, targets=projections)
            yield predicted(table, f"P-RGE, q {q}, batch {batch}", "not public", ours)


def side_tuning() -> Iterable[Row]:
    """arXiv 2401.07159 (QST): OPT-1.3B, GLUE, batch 16, T 512, on a GPU in 16 bits."""
    for what, method, published in (("LST", "lst", "20.9 GB"), ("LoRA", "lora", "32.9 GB")):
        ours = device_gb("opt-1.3b", method, 16, 512, "bfloat16")
        yield predicted("QST's table, opt-1.3b, 16 × 512, bfloat16", what, published, ours)


def fed_mobillm() -> Iterable[Row]:
    """arXiv 2508.06765: RoBERTa-base, MRPC, device memory 0.38 GB."""
    table = "Fed MobiLLM, roberta-base, 16 × 128"
    yield predicted(table, "whole model, float32", "0.38 GB", device_gb("roberta-base", "mobillm-full-width", 16, 128))
    for label, gigabytes in streamed_gb("roberta-base", 16, 128).items():
        if label.startswith("MobiLLM"):
            yield predicted(table, label, "0.38 GB", gigabytes)


RIVALS = (
    "full", "full-checkpointing", "lora", "lora-fa", "bitfit", "lst", "lora-checkpointing", "mezo", "probe",
    "mobillm-full-width",
)  # fmt: skip


def rivals() -> Iterable[Row]:
    """Exact gradients without a server: checkpointing, and MeBP's idea (arXiv 2510.03425), frozen blocks streamed."""
    for model, batch, length in (("opt-1.3b", 8, 128), ("opt-1.3b", 16, 256), ("qwen2-0.5b", 1, 256)):
        table = f"Rivals, {model}, {batch} × {length}"
        for method in RIVALS:
            yield predicted(table, method, "–", device_gb(model, method, batch, length))
        for label, gigabytes in streamed_gb(model, batch, length).items():
            published = "MeBP: 0.5-4B under 1 GB on a phone" if label.startswith("LoRA") else "–"
            yield predicted(table, label, published, gigabytes)


TABLES: tuple[Callable[[], Iterable[Row]], ...] = (
    mobillm_headline, mobillm_grid, mezo, pocketllm, p_rge, side_tuning, fed_mobillm, rivals,
)  # fmt: skip


# ---------------------------------------------------------------------- measured under a limit


def under_limit(case: Case, limit_bytes: int) -> Measured | str:
    """Train two steps in a process that the kernel refuses more than ``limit_bytes`` of writable memory.

    Returns:
        What it took, or the sentence with which the allocation was refused.
    """

    def lower_limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))

    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("memory_prediction.py")), "--child",
         msgspec.json.encode(case).decode(), "device"],
        env={**fresh_environment(), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        timeout=LIMIT_S,
        preexec_fn=lower_limit,
        check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return msgspec.json.decode(done.stdout.splitlines()[-1], type=Measured)
    said = done.stderr.decode(errors="replace").strip().splitlines()
    refused = [line for line in said if "allocate" in line or "MemoryError" in line]
    if not refused:
        raise RuntimeError(f"The step failed for another reason than memory: {said[-1:]}")
    return f"refused: {refused[-1].split('DefaultCPUAllocator: ')[-1].split(' Error code')[0][:80]}"


def limits() -> Iterable[Row]:
    """PocketLLM's claim, really run."""
    for model, limit_gb in (("roberta-large", 4.0), ("opt-1.3b", 6.5)):
        for method in ("mezo", "full"):
            found = under_limit(Case(model=model, method=method, batch=8, length=64), int(limit_gb * GB))
            row = Row(
                table=f"PocketLLM, {model}, 8 × 64, limit {limit_gb} GB",
                what="MeZO" if method == "mezo" else "Adam",
                published="fits" if method == "mezo" else "does not fit",
                ours_gb=found.peak_bytes / GB if isinstance(found, Measured) else None,
                how="measured under RLIMIT_DATA" if isinstance(found, Measured) else found,
            )
            print(line(row), flush=True)
            yield row


# ---------------------------------------------------------------------- showing and checking


def line(row: Row) -> str:
    ours = "   –   " if row.ours_gb is None else f"{row.ours_gb:>7.2f}"
    return f"  {row.what:46} {row.published:>36} {ours}  {row.how}"


def show(rows: Iterable[Row]) -> None:
    table = ""
    for row in rows:
        if row.table != table:
            table = row.table
            print(f"\n{table}\n  {'':46} {'published':>36} ours, GB")
        print(line(row))


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    says: str
    figure: str
    holds: bool


def claims(found: Papers) -> list[Claim]:
    """What the papers claim, held against the figures above."""
    of = {(row.table, row.what): row for row in (*found.predicted, *found.measured)}

    def gb(table: str, what: str) -> float:
        return of[table, what].ours_gb or 0.0

    made = []
    for model in MOBILLM_MODELS:
        table = f"MobiLLM, {model}, 16 × 256"
        device = gb(table, "mobillm-full-width")
        for rival in ("full", "lora", "bitfit", "lst"):
            times = gb(table, rival) / device
            bar = 4.0 if rival == "full" else 1.0
            made.append(Claim(says=f"{model}: {rival} / MobiLLM ≥ {bar:g}", figure=f"{times:.2f}", holds=times >= bar))
        low, high = (gb(f"batch × length, {model}, mobillm-full-width", cell) for cell in ("4 × 64", "32 × 512"))
        lora = [gb(f"batch × length, {model}, lora", cell) for cell in ("4 × 64", "32 × 512")]
        made.append(
            Claim(
                says=f"{model}: from 4 × 64 to 32 × 512 MobiLLM grows less than LoRA",
                figure=f"{high / low:.2f} × against {lora[1] / lora[0]:.2f} ×",
                holds=high / low < lora[1] / lora[0],
            )
        )
    for model in ("opt-1.3b", "opt-2.7b", "opt-6.7b"):
        table = f"MeZO, {model}, 1 × 400, float32"
        over = gb(table, "MeZO") / gb(table, "inference")
        made.append(Claim(says=f"{model}: MeZO ≤ 1.15 × inference", figure=f"{over:.2f}", holds=over <= 1.15))
    for row in found.measured:
        fits = row.ours_gb is not None
        figure = f"{row.ours_gb:.2f} GB" if fits else "refused"
        made.append(
            Claim(
                says=f"{row.table}: {row.what} {row.published}", figure=figure, holds=fits == (row.published == "fits")
            )
        )
    return made


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """How many times as much memory as MobiLLM's device a rival takes."""

    of: str
    against: str
    times: float


def ratios(found: Papers, measured: dict[memory.Case, memory.Result]) -> list[Ratio]:
    """The ÷ 4 against every rival in one precision, and the streamed device against LoRA in two and in one."""
    made = []
    gb = {(row.table, row.what): row.ours_gb or 0.0 for row in found.predicted}
    for model in MOBILLM_MODELS:
        table = f"MobiLLM, {model}, 16 × 256"
        for rival in ("full", "lora", "bitfit", "lst"):
            times = gb[table, rival] / gb[table, "mobillm-full-width"]
            made.append(Ratio(of=f"{model}, float32, whole backbone, 16 × 256, predicted", against=rival, times=times))
    device = measured[memory.SMALL].peak_bytes
    for case, who in (
        (memory.PEFT, "LoRA float32, PEFT"),
        (memory.LORA, "LoRA float32, this kit"),
        (memory.PEFT_BF16, "LoRA bfloat16, PEFT"),
        (memory.LORA_BF16, "LoRA bfloat16, this kit"),
    ):
        of = "opt-1.3b, bfloat16 blocks streamed, 8 × 128, measured"
        made.append(Ratio(of=of, against=who, times=measured[case].peak_bytes / device))
    return made


def check(file: Path) -> bool:
    """Print the file, the ratios and every claim; False where one does not hold or was not measured."""
    if not file.exists():
        print(f"{file.name}: no results; run benchmarks/papers.py --measure first")
        return False
    found = msgspec.json.decode(file.read_bytes(), type=Papers)
    show((*found.predicted, *found.measured))
    print("\nratios to MobiLLM's device (published: ÷ 4)")
    for ratio in ratios(found, {result.case: result for result in memory.read(memory.RESULTS)}):
        print(f"  {ratio.of:56} {ratio.against:26} ÷ {ratio.times:.2f}")
    made = claims(found)
    print("\nclaims")
    for claim in made:
        print(f"  {'ok    ' if claim.holds else 'MISSED'} {claim.says}: {claim.figure}")
    if len(found.measured) < 4:
        print(f"  MISSED PocketLLM's limits: {len(found.measured)} of 4 runs made")
    return all(claim.holds for claim in made) and len(found.measured) >= 4


def main() -> int:
    from mobillm_kit.runs.provenance import clean_command, provenance

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="run PocketLLM's limits (7 GB of memory free)")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if given.check:
        return 0 if check(given.out) else 1
    if given.quick:
        show(
            predicted("opt-125m, 8 × 128", method, "–", device_gb("opt-125m", method, 8, 128))
            for method in ("full", "lora", "mezo", "mobillm-full-width")
        )
        return 0
    before = msgspec.json.decode(given.out.read_bytes(), type=Papers) if given.out.exists() else None
    rows: list[Row] = [] if before is None else list(before.predicted)
    measured = () if before is None else before.measured
    if given.measure:
        measured = tuple(limits())
    else:
        rows = []
        for table in TABLES:
            made = list(table())
            show(made)
            sys.stdout.flush()
            rows += made
    result = Papers(predicted=tuple(rows), measured=measured, provenance=provenance(clean_command(sys.argv)))
    given.out.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
