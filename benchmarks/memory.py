"""The device's memory and time with a streamed backbone: `python benchmarks/memory.py [PART …] [--quick | --check]`.

    opt-1.3b    device of MobiLLM (8 x 128, 16 x 512, 1 x 64; bf16 and NF4) beside the whole model and LoRA (PEFT, fp32)
    more        int8 and FP4 weights; a window of eight batches
    exact       one training step of LoRA with checkpointing: the whole model in bf16, and streamed (bf16, int8, NF4)
    opt-6.7b    one full training step: the device streams, the server trains its side network on what was sent
    time        block-major streaming, a window of eight batches, interleaved with the whole model on the same batches
    accuracy    MobiLLM on low-precision backbones, with and without int4 activations (pocket, MiniLM)

Every measured process is fresh and does one thing.  Its peak is VmHWM from its first instruction on, Python included;
anonymous and file pages are sampled apart.  Weights are random, written to a temporary folder (--scratch) and removed.

Records go to benchmarks/results/memory.jsonl; what stands there is not made again.  ``--check`` reads them, prints each
bar with its figure, those of memory_prediction.py before, and exits 1 where one falls short.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import memory_prediction
import msgspec

from mobillm_kit.common import fresh_environment
from mobillm_kit.memory.measure import peak_rss_bytes
from mobillm_kit.record import Provenance

RESULTS = Path(__file__).resolve().parent / "results" / "memory.jsonl"
MIB = 2**20
LIMIT_S = 3600
WINDOW = 8
ROUNDS = 3
LR = 1e-3
SEEDS = (0, 1, 2)
PARTS = ("opt-1.3b", "opt-6.7b", "more", "exact", "time", "accuracy")


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What one fresh process does."""

    role: str
    """``device``, ``whole``, ``lora``, ``peft``, ``exact`` (LoRA with checkpointing), ``streamed`` (the same, blocks
    streamed), ``server``, ``time`` or ``accuracy``."""
    model: str = "opt-1.3b"
    batch: int = 8
    length: int = 128
    weights: str = "bfloat16"
    """Of the backbone: a dtype, or int8, nf4, fp4."""
    codec: str = ""
    """Of the activations."""
    window: int = 1
    task: str = ""
    seed: int = 0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file."""

    case: Case
    peak_bytes: int
    """VmHWM of the process since it started."""
    anonymous_bytes: int = 0
    """Largest sample of RssAnon."""
    file_bytes: int = 0
    """Largest sample of RssFile."""
    imports_bytes: int = 0
    """Resident with every module loaded."""
    predicted_bytes: int = 0
    """By ``StreamedBackbone.need``; of a training step by ``mobillm memory``, where it has such a row."""
    seconds: float = 0.0
    """Of the forward passes or of the step."""
    figures: dict[str, float] = {}
    provenance: Provenance | None = None


# ---------------------------------------------------------------------- inside the fresh process


class Pages:
    """Samples anonymous and file pages of this process."""

    def __init__(self, interval_s: float = 0.02) -> None:
        self.largest = {"RssAnon": 0, "RssFile": 0}
        self._interval_s = interval_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Pages:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._over.set()
        self._thread.join()

    def now(self, field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))

    def _run(self) -> None:
        while not self._over.wait(self._interval_s):
            for field in self.largest:
                self.largest[field] = max(self.largest[field], self.now(field))


def random_batch(batch: int, length: int, seed: int = 0) -> Any:
    """Texts of different lengths; the longest has T tokens."""
    import torch

    from mobillm_kit.texts.encode import Batch

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 1000, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(batch):
        mask[row, length - (row % 4) * (length // 8) :] = 0 if row % 4 else 1
    labels = torch.randint(0, 2, (batch,), generator=generator)
    return Batch(ids, mask, labels, mask.sum(dim=1) - 1)


def device(case: Case, folder: Path, out: Path | None) -> dict[str, Any]:
    """Forward and encode every layer's taps, streamed; each piece is forgotten, or appended to a file."""
    from benchmarks.lean import without

    with Pages() as pages:
        with without():
            from benchmarks.pieces import outline, pieces
            from mobillm_kit.backbone.pretrained import DTYPES
            from mobillm_kit.backbone.streaming import stream_backbone
            from mobillm_kit.quant import codec

            backbone = stream_backbone(folder, dtype=case.weights if case.weights in DTYPES else "bfloat16")
        imports_bytes = pages.now("VmRSS")
        batches = [random_batch(case.batch, case.length, seed) for seed in range(case.window)]
        layers = range(1, backbone.n_layers + 1)
        coder = codec(case.codec, 64)
        started = time.perf_counter()
        sent_bytes = 0
        with out.open("wb") if out else _nowhere() as file:
            for piece in pieces(backbone, batches, layers, coder):
                sent_bytes += piece.payload.numel()
                if file:
                    file.write(memoryview(piece.payload.numpy()))
                del piece  # sent and gone before the next block works
        seconds = time.perf_counter() - started
        frame = outline(batches[0], layers, coder, width=backbone.width)
        if out:
            write_head(backbone, out.with_suffix(".head"))
    return {
        "anonymous_bytes": pages.largest["RssAnon"],
        "file_bytes": pages.largest["RssFile"],
        "imports_bytes": imports_bytes,
        "predicted_bytes": backbone.need(case.batch, case.length).process_bytes(case.window),
        "seconds": seconds,
        "figures": {"sent_bytes": sent_bytes, "tokens": sum(frame.lengths), "modules": len(sys.modules)},
    }


@contextmanager
def _nowhere() -> Iterator[None]:
    yield None


def write_head(backbone: Any, file: Path) -> None:
    """The frozen head at two label words: what the server gets of the backbone."""
    from safetensors.torch import save_file

    from mobillm_kit.methods.task_model import task_model

    save_file(task_model(backbone, word_ids=(10, 11)).head.server_copy().state_dict(), file)


def server(case: Case, folder: Path, sent: Path) -> dict[str, Any]:
    """Train a side network for one step on what the device sent."""
    import torch
    from safetensors.torch import load_file
    from torch import nn
    from transformers import AutoConfig

    from benchmarks.pieces import Piece, assemble, outline
    from mobillm_kit.quant import codec
    from mobillm_kit.quant.parcels import unpack
    from mobillm_kit.server.side_trainer import SideTrainer
    from mobillm_kit.side.adapter import SideAdapter
    from mobillm_kit.side.description import SideSpec
    from mobillm_kit.side.heads import LabelWordHead, SideTuned

    config = AutoConfig.from_pretrained(folder)
    batch, layers = random_batch(case.batch, case.length), range(1, config.num_hidden_layers + 1)
    coder, d = codec(case.codec, 64), config.hidden_size
    frame = outline(batch, layers, coder, width=d)
    n_bytes = coder.wire_bytes((sum(frame.lengths), d))
    with sent.open("rb") as file:
        found = [
            Piece(0, layer, torch.frombuffer(bytearray(file.read(n_bytes)), dtype=torch.uint8)) for layer in layers
        ]
    upload = unpack(assemble(frame, found), labels=batch.labels.tolist())
    weights = load_file(sent.with_suffix(".head"))
    rows = nn.Linear(weights["lm_head.weight"].shape[1], 2, bias=False)
    head = LabelWordHead(nn.LayerNorm(d), None, rows, (0, 1)).to(torch.bfloat16)
    head.load_state_dict(weights)
    adapter = SideAdapter(SideSpec.of(width=d, layers=list(layers)))
    trainer = SideTrainer(SideTuned(adapter, head.requires_grad_(False)))
    started = time.perf_counter()
    losses = [trainer.train(upload, LR), trainer.train(upload, LR)]
    seconds = (time.perf_counter() - started) / 2
    return {"seconds": seconds, "figures": {"loss_before": losses[0], "loss_after": losses[1]}}


def whole(case: Case, folder: Path) -> dict[str, Any]:
    """The ordinary forward pass, the whole model in memory."""
    import torch

    from mobillm_kit.backbone.pretrained import load_backbone

    with Pages() as pages:
        backbone = load_backbone(folder, dtype=case.weights)
        batch = random_batch(case.batch, case.length)
        started = time.perf_counter()
        with torch.no_grad():
            backbone.last_hidden(batch.input_ids, batch.attention_mask)
        seconds = time.perf_counter() - started
    return {
        "anonymous_bytes": pages.largest["RssAnon"],
        "file_bytes": pages.largest["RssFile"],
        "seconds": seconds,
    }


def lora(case: Case, folder: Path) -> dict[str, Any]:
    """One training step of this kit's LoRA r8 (PEFT's layers, logits of two label words), the whole model in memory.

    The same with checkpointing (``exact``), and over blocks that are read from the folder (``streamed``).
    """
    from mobillm_kit.backbone.pretrained import DTYPES, load_backbone
    from mobillm_kit.backbone.streaming import stream_backbone
    from mobillm_kit.methods import load_method
    from mobillm_kit.methods.task_model import task_model

    opened = stream_backbone if case.role == "streamed" else load_backbone
    with Pages() as pages:
        backbone = opened(folder, dtype=case.weights if case.weights in DTYPES else "bfloat16")
        model = task_model(backbone, word_ids=(10, 11))
        method = load_method("lora" if case.role == "lora" else "lora-checkpointing")(model, seed=0)
        opened_bytes = pages.now("VmRSS")
        started, cpu = time.perf_counter(), time.process_time()
        loss = method.step(random_batch(case.batch, case.length), LR).loss
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    found = {
        "anonymous_bytes": pages.largest["RssAnon"],
        "file_bytes": pages.largest["RssFile"],
        "seconds": seconds,
    }
    if case.role == "lora":
        return found
    return found | {"figures": {"loss": loss, "cpu_s": cpu_s, "opened_bytes": opened_bytes}}


def predicted_step(case: Case) -> int:
    """The process of a training step from shapes alone, in this process: it needs memory of its own."""
    from mobillm_kit.backbone.pretrained import architecture
    from mobillm_kit.memory.budget import Step, streamed

    step = Step(architecture(case.model), "lora-checkpointing", case.batch, case.length, "bfloat16")
    if case.role == "exact":
        return step.needs()[0].process_bytes
    *_, way = streamed(step)
    return way.device_bytes if case.weights == "bfloat16" else 0


def peft(case: Case, folder: Path) -> dict[str, Any]:
    """One training step of LoRA r8 as PEFT's users write it: the model's own loss, over the whole vocabulary."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with Pages() as pages:
        whole_model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, case.weights))
        model = get_peft_model(whole_model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=LR)
        batch = random_batch(case.batch, case.length)
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        started = time.perf_counter()
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss.backward()
        optimizer.step()
        seconds = time.perf_counter() - started
    return {
        "anonymous_bytes": pages.largest["RssAnon"],
        "file_bytes": pages.largest["RssFile"],
        "seconds": seconds,
    }


def timing(case: Case, folder: Path) -> dict[str, Any]:
    """Seconds per batch, whole and streamed block-major, one after the other and again."""
    import torch

    from mobillm_kit.backbone.pretrained import load_backbone
    from mobillm_kit.backbone.streaming import Tokens, stream_backbone

    loaded, streamed = load_backbone(folder, dtype=case.weights), stream_backbone(folder, dtype=case.weights)
    batches = [random_batch(case.batch, case.length, seed) for seed in range(case.window)]
    window = [Tokens(batch.input_ids, batch.attention_mask) for batch in batches]
    layers = range(1, loaded.n_layers + 1)
    seconds: dict[str, list[float]] = {"whole": [], "streamed": []}
    with torch.no_grad():
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for tokens in window:
                for _ in loaded.hidden_states(*tokens):
                    pass
            seconds["whole"].append((time.perf_counter() - started) / case.window)
            started = time.perf_counter()
            for _ in streamed.block_major(window, layers):
                pass
            seconds["streamed"].append((time.perf_counter() - started) / case.window)
    ratios = [ours / theirs for ours, theirs in zip(seconds["streamed"], seconds["whole"], strict=True)]
    return {
        "seconds": statistics.median(seconds["streamed"]),
        "figures": {"whole_s": statistics.median(seconds["whole"]), "ratio": statistics.median(ratios)},
    }


ROLES = {"whole": whole, "lora": lora, "exact": lora, "streamed": lora, "peft": peft, "time": timing}


def child(case: Case, folder: Path, sent: Path | None) -> Result:
    """Do what the case says, in this process, and say what it took."""
    if case.role == "device":
        found = device(case, folder, sent)
    elif case.role == "server":
        found = server(case, folder, sent)
    else:
        found = ROLES[case.role](case, folder)
    return Result(case=case, peak_bytes=peak_rss_bytes(), **found)


# ---------------------------------------------------------------------- parts


def in_fresh_process(case: Case, folder: Path, sent: Path | None = None, *, threads: int = 1) -> Result:
    """Run :func:`child` elsewhere; nothing of this process is inherited but the command."""
    argv = [sys.executable, __file__, "--child", msgspec.json.encode(case).decode(), str(folder), str(sent or "")]
    environment = {**fresh_environment(threads=threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, timeout=LIMIT_S, check=True)
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Result)


@contextmanager
def random_model(name: str, scratch: Path | None, dtype: str = "bfloat16") -> Iterator[Path]:
    """A folder with random weights of a built-in architecture, removed afterwards."""
    from mobillm_kit.backbone.meta_model import random_folder
    from mobillm_kit.backbone.pretrained import DTYPES, architecture

    with tempfile.TemporaryDirectory(dir=scratch, prefix="mobillm-") as place:
        yield random_folder(architecture(name), Path(place) / name, dtype=DTYPES[dtype])


@contextmanager
def coded_model(folder: Path, kind: str) -> Iterator[Path]:
    """The low-precision twin of a folder, removed afterwards."""
    from mobillm_kit.backbone.lowbit import quantize_backbone

    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        yield quantize_backbone(folder, Path(place) / kind, kind)


_DEVICE = Case(role="device", codec="int4")
SMALL = _DEVICE
TINY = msgspec.structs.replace(_DEVICE, batch=1, length=64)
LARGE = msgspec.structs.replace(_DEVICE, batch=16, length=512)
NF4 = msgspec.structs.replace(_DEVICE, weights="nf4")
WHOLE = Case(role="whole")
LORA = Case(role="lora", weights="float32")
PEFT = Case(role="peft", weights="float32")
BIG = msgspec.structs.replace(_DEVICE, model="opt-6.7b")
BIG_SERVER = Case(role="server", model="opt-6.7b", codec="int4")
OF_EIGHT = msgspec.structs.replace(_DEVICE, window=WINDOW)
TIMED = Case(role="time", window=WINDOW)
EXACT = Case(role="exact")
STREAMED = Case(role="streamed")

CASES = {
    "opt-1.3b": (SMALL, TINY, NF4, WHOLE, LORA, PEFT, LARGE),
    "opt-6.7b": (BIG, BIG_SERVER),
    "more": (OF_EIGHT, *(msgspec.structs.replace(_DEVICE, weights=kind) for kind in ("int8", "fp4"))),
    "exact": (EXACT, STREAMED, *(msgspec.structs.replace(STREAMED, weights=kind) for kind in ("int8", "nf4"))),
    "time": (TIMED,),
}


def run_part(part: str, file: Path, command: str, scratch: Path | None, threads: int) -> None:
    """Make the results of one part that the file does not hold yet."""
    todo = missing(CASES[part], file)
    if not todo:
        return
    with random_model(todo[0].model, scratch) as folder:
        sent = folder.parent / "sent"
        for case in todo:
            if case.weights in ("int8", "nf4", "fp4"):
                with coded_model(folder, case.weights) as coded:
                    keep(in_fresh_process(case, coded, threads=threads), file, command)
            elif part == "opt-6.7b":
                keep(in_fresh_process(case, folder, sent, threads=threads), file, command)
            else:
                keep(in_fresh_process(case, folder, threads=threads), file, command)


def missing(cases: Iterable[Case], file: Path) -> list[Case]:
    there = {result.case for result in read(file)}
    return [case for case in cases if case not in there]


def keep(result: Result, file: Path, command: str) -> None:
    """Add a result to the file, with where it comes from."""
    from mobillm_kit.runs.provenance import provenance

    result = msgspec.structs.replace(result, provenance=provenance(command))
    if result.case.role in ("exact", "streamed"):
        result = msgspec.structs.replace(result, predicted_bytes=predicted_step(result.case))
    with file.open("ab") as lines:
        lines.write(msgspec.json.encode(result) + b"\n")
    print(line(result), flush=True)


def read(file: Path) -> list[Result]:
    return [msgspec.json.decode(one, type=Result) for one in file.read_bytes().splitlines()] if file.exists() else []


def line(result: Result) -> str:
    case = result.case
    what = f"{case.role:8} {case.model:12} {case.batch:>2} x {case.length:<4} {case.weights:9} {case.codec:5} "
    what += f"window {case.window}"
    if case.role == "accuracy":
        return f"{what}  {case.task} seed {case.seed}: {100 * result.figures['test_accuracy']:.1f} %"
    return (
        f"{what}  peak {result.peak_bytes / MIB:7.0f} MiB (anonymous {result.anonymous_bytes / MIB:.0f}, "
        f"file {result.file_bytes / MIB:.0f}; imports {result.imports_bytes / MIB:.0f}; "
        f"predicted {result.predicted_bytes / MIB:.0f})  {result.seconds:.1f} s  {json.dumps(result.figures)}"
    )


# ---------------------------------------------------------------------- accuracy on low-precision backbones

HALF = {"steps": 500, "eval_every": 250}
PAPERS_OWN = {"normalization": "none", "pooling": "mean", "weight_decay": 0.0, "averaging": 0.0}
"""As the records on MiniLM were made, before the encoders' preset had more."""
BACKBONES = {
    "pocket": {"backbone": "pocket", "preset": "pocket"},
    "minilm-sst2": {
        "backbone": "../shared/models/minilm-l6-h384",
        "task": "sst2",
        "data": "../shared/data/sst2",
        **HALF,
    },
    "minilm-rte": {
        "backbone": "../shared/models/minilm-l6-h384",
        "task": "rte",
        "data": "../shared/data/rte",
        "max_length": 96,
        "steps": 350,
        "eval_every": 350,
    },
}
TASKS = ("pocket",)


def accuracy_cases(tasks: Sequence[str]) -> list[Case]:
    """Each weight type with activations as they are; on the packaged task int4 activations and more seeds too."""
    plain = [("float32", ""), ("nf4", ""), ("fp4", ""), ("int8", "")]
    coded = [("nf4", "int4"), ("float32", "int4")]
    return [
        Case(role="accuracy", model="", task=task, weights=weights, codec=codec, seed=seed)
        for task in tasks
        for weights, codec in (plain + coded if task in TASKS else plain)
        for seed in (SEEDS if task in TASKS else SEEDS[:1])
    ]


def accuracy(file: Path, command: str, tasks: Sequence[str] = TASKS) -> None:
    """Train MobiLLM on each low-precision backbone and read the test set once, at the end."""
    for case in missing(accuracy_cases(tasks), file):
        keep(accuracy_of(case), file, command)


def accuracy_of(case: Case, **changes: Any) -> Result:
    import torch

    from mobillm_kit.backbone.lowbit import KINDS, quantize_in_memory
    from mobillm_kit.runs.loop import fit
    from mobillm_kit.runs.prepare import build_method, prepare, training_batches
    from mobillm_kit.runs.run import held_out_scores
    from mobillm_kit.runs.spec import RunSpec

    torch.set_num_threads(1)
    options = {"codec": case.codec} if case.codec else {} if case.task == "pocket" else PAPERS_OWN
    spec = RunSpec(method="mobillm-full-width", seed=case.seed, options=options, **{**BACKBONES[case.task], **changes})
    prepared = prepare(spec)
    if case.weights in KINDS:
        quantize_in_memory(prepared.backbone, case.weights)
    method = build_method(prepared)
    started = time.perf_counter()
    fit(method, training_batches(prepared), dev=prepared.dev)
    seconds = time.perf_counter() - started
    scores = held_out_scores(method, prepared)
    return Result(case=case, peak_bytes=peak_rss_bytes(), seconds=seconds, figures=scores)


# ---------------------------------------------------------------------- the bars


def check(file: Path) -> bool:
    """Print every committed figure and every bar; False where one falls short or is not recorded."""
    found = {result.case: result for result in read(file)}
    for result in found.values():
        print(line(result))
    print()
    if SMALL in found and LORA in found:
        leaner = found[SMALL].peak_bytes / found[LORA].peak_bytes
        print(f"no bar  OPT-1.3B, 8 x 128, device, over the kit's own leaner LoRA fp32: {leaner:.4g} x")
    held = [_held(*bar) for bar in bars(found)]
    return all(held)


Bar = tuple[str, float | None, float, str]
"""What, the figure (None: not recorded), the most it may be, and its unit."""


def bars(found: dict[Case, Result]) -> list[Bar]:
    """The issue's table."""
    small, large, big, trained, timed = (found.get(case) for case in (SMALL, LARGE, BIG, BIG_SERVER, TIMED))

    def peak(result: Result | None) -> float | None:
        return None if result is None else result.peak_bytes / MIB

    def over(one: Result | None, other: Result | None) -> float | None:
        return None if one is None or other is None else one.peak_bytes / other.peak_bytes

    one_step = (
        None if trained is None or not trained.figures["loss_after"] < trained.figures["loss_before"] else peak(big)
    )
    return [
        ("OPT-1.3B, 8 x 128, device", peak(small), 700, "MiB"),
        ("  over the whole model's bf16 forward", over(small, found.get(WHOLE)), 0.22, "x"),
        ("  over LoRA fp32 (PEFT, the model's own loss)", over(small, found.get(PEFT)), 1 / 14, "x"),
        ("OPT-1.3B, 16 x 512, device", peak(large), 1024, "MiB"),
        ("  over 1 x 64", over(large, found.get(TINY)), 1.8, "x"),
        ("OPT-1.3B, a window of eight, per batch, over the whole model", timed and timed.figures["ratio"], 1.10, "x"),
        ("OPT-6.7B, 8 x 128, device of a training step", one_step, 1.6 * 1024, "MiB"),
        ("OPT-1.3B, NF4, 8 x 128, device", peak(found.get(NF4)), 500, "MiB"),
        ("OPT-1.3B, LoRA + checkpointing streamed, 8 x 128, one step", peak(found.get(STREAMED)), 1024, "MiB"),
        ("  over the same with the whole model in memory", over(found.get(STREAMED), found.get(EXACT)), 0.33, "x"),
        ("  its prediction, off by", _off(found.get(STREAMED)), 10, "%"),
        ("pocket, NF4 weights + int4 activations, points below fp32", _lost(found), 2, "points"),
    ]


def _off(result: Result | None) -> float | None:
    """Per cent by which the predicted process misses the measured one."""
    return None if result is None else 100 * abs(result.predicted_bytes / result.peak_bytes - 1)


def _lost(found: dict[Case, Result]) -> float | None:
    """Points of test accuracy, mean over seeds."""
    means = []
    for weights, codec in (("float32", ""), ("nf4", "int4")):
        cases = [c for c in accuracy_cases(["pocket"]) if (c.weights, c.codec) == (weights, codec)]
        if any(case not in found for case in cases):
            return None
        means.append(statistics.mean(found[case].figures["test_accuracy"] for case in cases))
    return 100 * (means[0] - means[1])


def _held(what: str, figure: float | None, most: float, unit: str) -> bool:
    ok = figure is not None and figure <= most
    shown = "not recorded" if figure is None else f"{figure:.4g} {unit}"
    print(f"{'ok    ' if ok else 'MISSED'}  {what:62} {shown:>14}   at most {most:.4g}")
    return ok


def quick() -> None:
    """A minute of it on small shapes, nothing kept: shows that it runs."""
    with random_model("opt-125m", None) as folder:
        for case in (
            Case(role="whole", model="opt-125m", batch=2, length=32),
            Case(role="device", model="opt-125m", batch=2, length=32, codec="int8"),
        ):
            print(line(in_fresh_process(case, folder)), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="a minute of it, nothing kept")
    parser.add_argument("--check", action="store_true", help="hold the committed records against the bars")
    parser.add_argument("--scratch", type=Path, help="folder for the random weights (15 GB free for OPT-6.7B)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"of the accuracy part: {', '.join(BACKBONES)}")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        case = msgspec.json.decode(given.child[0].encode(), type=Case)
        sent = Path(given.child[2]) if given.child[2] else None
        print(msgspec.json.encode(child(case, Path(given.child[1]), sent)).decode())
        return 0
    if given.check:
        predicted = memory_prediction.check(memory_prediction.RESULTS)
        print()
        return 0 if check(given.out) and predicted else 1
    if given.quick:
        quick()
        return 0
    from mobillm_kit.runs.provenance import clean_command

    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part '{unknown[0]}'; there are {', '.join(PARTS)}")
    given.out.parent.mkdir(exist_ok=True)
    command = clean_command(sys.argv)
    for part in given.parts or PARTS:
        if part == "accuracy":
            accuracy(given.out, command, given.tasks.split(","))
        else:
            run_part(part, given.out, command, given.scratch, given.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
