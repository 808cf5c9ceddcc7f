"""One run, from its specification to its record: data, backbone, method, training, held-out scores.

    RunSpec -> prepare (texts, tokens, model) -> fit -> scores on test -> RunRecord

Knows: every room below it.  Knows nothing of: processes, folders of many runs, pictures.

Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from mobillm_kit.backbone import Backbone, load_backbone, load_tokenizer, random_backbone
from mobillm_kit.batches import Batches, FitSettings
from mobillm_kit.encode import Encoded, TextEncoder
from mobillm_kit.errors import BadInput
from mobillm_kit.fit import FitEvent, evaluate, fit
from mobillm_kit.lowbit import quantize_in_memory
from mobillm_kit.methods import METHODS, controls, load_method, method_row
from mobillm_kit.methods.protocol import Method, Pipelined
from mobillm_kit.methods.zeroth_order import ZerothOrder
from mobillm_kit.metrics import score
from mobillm_kit.model import Pooling, TaskModel, task_model
from mobillm_kit.presets import Preset, preset
from mobillm_kit.provenance import provenance
from mobillm_kit.record import BackboneInfo, MeasuredMemory, RunRecord, Scalar, TaskInfo
from mobillm_kit.streaming import stream_backbone
from mobillm_kit.tasks import Example
from mobillm_kit.texts import TaskData, custom_task, handwritten, load_task

LONGEST_TEXT = 256
"""Tokens; longer texts are cut unless the specification says otherwise."""


class RunSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to run.  Where training fields are None, the preset of the backbone's class decides."""

    method: str
    backbone: str = "pocket"
    """``pocket``, a folder, or a name on the hub."""
    revision: str | None = None
    random_weights: bool = False
    """The backbone's architecture with fresh random weights: a control."""
    dtype: str = "float32"
    weights: str = ""
    """``int8``, ``nf4`` or ``fp4``: the backbone's matrices in few bits; as they are, if empty."""
    stream: bool = False
    """Read each block from its file when it is needed; the folder must hold safetensors."""
    accelerator: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``mps``."""
    task: str = "reviews"
    """A task's name, or ``custom`` with ``data`` naming a file and the columns below."""
    data: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | None = None
    prompt: str | None = None
    label_words: tuple[str, ...] | None = None
    limit_train: int | None = None
    limit_dev: int | None = None
    limit_test: int | None = None
    max_length: int | None = None
    padding_side: str = "right"
    pooling: Pooling = "mean"
    seed: int = 0
    preset: str | None = None
    """``pocket``, ``encoder`` or ``decoder``; by the backbone where not given."""
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    schedule: str | None = None
    warmup: float | None = None
    eval_every: int | None = None
    patience: int | None = None
    options: dict[str, Scalar | list[int]] = {}
    """Of the method, over the preset's."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Texts, tokens and model of a run, before any method touches them."""

    spec: RunSpec
    data: TaskData
    encoder: TextEncoder
    model: TaskModel
    train: list[Encoded]
    dev: list[Encoded]
    test: list[Encoded]
    handwritten: list[Encoded]
    """The sentences written by hand; empty for other tasks than the packaged one."""
    device: str

    @property
    def backbone(self) -> Backbone:
        return self.model.backbone


def run(
    spec: RunSpec,
    *,
    folder: Path | None = None,
    command: str = "",
    callbacks: Sequence[Callable[[FitEvent], None]] = (),
    measured: Sequence[MeasuredMemory] = (),
    on_test: Callable[[int, int], None] | None = None,
) -> RunRecord:
    """Train one method (or score one control) and say what came out.

    Args:
        spec: what to run.
        folder: keeps ``checkpoint.safetensors``, ``record.json`` and, for MobiLLM, ``side/``; a run that was
            interrupted there goes on.  None keeps nothing.
        command: for the record's provenance.
        callbacks: told after each step.
        measured: memory measured in processes of their own, to be kept in the record.
        on_test: told how many of how many held-out texts are labelled.

    Raises:
        KitError: anything that the user can put right; see ``errors.py``.
    """
    method_row(spec.method)
    prepared = prepare(spec)
    if not method_row(spec.method).trained:
        record = control_record(prepared, command)
    else:
        method = build_method(prepared, folder)
        try:
            record = _trained_record(prepared, method, folder, command, callbacks, measured, on_test)
        finally:
            if isinstance(method, Pipelined):
                method.close()
        if folder is not None and record.status == "done":
            shutil.rmtree(folder / "server", ignore_errors=True)  # a spawned server's checkpoints have served
    if folder is not None:
        record.save(folder / "record.json")
    return record


# ---------------------------------------------------------------------- preparing


def prepare(spec: RunSpec) -> Prepared:
    """Load texts, tokenizer and backbone of a specification and put the task's head on."""
    device = choose_device(spec.accelerator)
    data = load_data(spec)
    backbone = open_backbone(spec, device)
    _ = backbone.fingerprint  # taken now: methods change or wrap the weights
    encoder = TextEncoder(
        tokenizer=load_tokenizer(spec.backbone, revision=spec.revision),
        task=data.task,
        kind=backbone.kind,
        max_length=min(spec.max_length or LONGEST_TEXT, backbone.context),
        padding_side=spec.padding_side,
    )
    decoder = backbone.kind == "decoder"
    words = encoder.label_ids() if decoder else range(len(data.task.labels))
    model = task_model(backbone, word_ids=words, pooling=spec.pooling, seed=spec.seed)
    by_hand = handwritten() if spec.task == "reviews" else ()
    return Prepared(
        spec=spec,
        data=data,
        encoder=encoder,
        model=model,
        train=encoder.encode(data.train),
        dev=encoder.encode(data.dev),
        test=encoder.encode(data.test),
        handwritten=encoder.encode(by_hand),
        device=device,
    )


def open_backbone(spec: RunSpec, device: str) -> Backbone:
    """The specification's backbone: whole or streamed, pretrained or random, as it is or in few bits.

    Raises:
        BadInput: a method that goes back through the backbone or changes it, on one that is streamed or coded.
    """
    if (spec.stream or spec.weights) and not method_row(spec.method).forward_only:
        able = ", ".join(row.name for row in METHODS.values() if row.forward_only and row.trained)
        raise BadInput(
            f"Method '{spec.method}' trains through the backbone, which must be whole and in floating point for that.",
            f"Leave --stream and --weights out, or choose one of: {able}.",
        )
    if spec.stream:
        return _streamed(spec, device)
    backbone = load_backbone(spec.backbone, revision=spec.revision, dtype=spec.dtype, device=device)
    if spec.random_weights:
        backbone = random_backbone(backbone, seed=spec.seed)
    return quantize_in_memory(backbone, spec.weights) if spec.weights else backbone


def _streamed(spec: RunSpec, device: str) -> Backbone:
    if spec.random_weights or spec.weights:
        raise BadInput(
            "A streamed backbone has the weights that its files hold.",
            "Leave --random-weights and --weights out; write a folder of codes with `mobillm quantize` first.",
        )
    if device != "cpu":
        raise BadInput(f"Blocks are streamed into the CPU's memory, not '{device}'.", "Use --accelerator cpu.")
    return stream_backbone(spec.backbone, revision=spec.revision, dtype=spec.dtype)


def load_data(spec: RunSpec) -> TaskData:
    """The texts of a specification: a known task, or a file of the user's."""
    limits = {"train": spec.limit_train, "dev": spec.limit_dev, "test": spec.limit_test}
    limit = {split: most for split, most in limits.items() if most is not None}
    if spec.task != "custom":
        return load_task(spec.task, data=spec.data, limit=limit, seed=0)
    if spec.data is None or spec.text is None or spec.label is None:
        raise BadInput(
            "A task of your own needs a file and its columns.",
            "Give --data FILE --text COLUMN --label COLUMN.",
        )
    return custom_task(
        Path(spec.data),
        text=spec.text,
        pair=spec.pair,
        label=spec.label,
        prompt=spec.prompt,
        label_words=spec.label_words,
        limit=limit,
        seed=0,
    )


def choose_device(accelerator: str) -> str:
    """``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        BadInput: an unknown name, or an accelerator that this machine does not have.
    """
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if accelerator == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if accelerator not in there:
        raise BadInput(f"Unknown accelerator '{accelerator}'.", f"Choose one of: auto, {', '.join(there)}.")
    if not there[accelerator]:
        raise BadInput(f"This machine has no '{accelerator}'.", "Use --accelerator auto or cpu.")
    return accelerator


def chosen_preset(prepared: Prepared) -> Preset:
    """The preset that the specification names, or that belongs to the backbone."""
    spec = prepared.spec
    by_backbone = "pocket" if spec.backbone == "pocket" else prepared.backbone.kind
    return preset(spec.preset or by_backbone, spec.method)


def fit_settings(prepared: Prepared) -> FitSettings:
    """The training settings: what the specification gives, over the preset."""
    spec = prepared.spec
    chosen = chosen_preset(prepared)

    def over(name: str) -> Any:
        given = getattr(spec, name)
        return getattr(chosen, name) if given is None else given

    names = ("steps", "batch_size", "lr", "schedule", "warmup", "eval_every")
    return FitSettings(**{name: over(name) for name in names}, patience=spec.patience, seed=spec.seed)


def training_batches(prepared: Prepared) -> Batches:
    """What the run trains on, step by step."""
    return Batches(prepared.train, prepared.encoder, fit_settings(prepared), prepared.device)


def method_options(prepared: Prepared) -> dict[str, Any]:
    """The method's options: what the specification gives, over the preset."""
    return {**chosen_preset(prepared).options, **prepared.spec.options}


def build_method(prepared: Prepared, folder: Path | None = None) -> Method:
    """The method of the specification on the prepared model; ``folder`` is the run's, where it has one.

    Raises:
        BadInput: an option that the method does not have.
    """
    spec = prepared.spec
    options = method_options(prepared)
    extra = {"about": _about(prepared), "folder": folder} if method_row(spec.method).module == "mobillm" else {}
    build = load_method(spec.method)
    try:
        return build(prepared.model, seed=spec.seed, **extra, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise BadInput(f"Method '{spec.method}': {error}.", "See `mobillm methods --help`.") from error


def _about(prepared: Prepared) -> dict[str, Any]:
    """What a side network has to know of its task to label texts on its own."""
    task = prepared.data.task
    return {
        "task": task.name,
        "prompt": task.prompt,
        "labels": list(task.labels),
        "label_words": list(task.label_words),
        "paired": task.pair_column is not None,
        "max_length": prepared.encoder.max_length,
    }


# ---------------------------------------------------------------------- records


def _trained_record(
    prepared: Prepared,
    method: Method,
    folder: Path | None,
    command: str,
    callbacks: Sequence[Callable[[FitEvent], None]],
    measured: Sequence[MeasuredMemory],
    on_test: Callable[[int, int], None] | None,
) -> RunRecord:
    batches = training_batches(prepared)
    first = batches.rows(range(batches.settings.batch_size))
    info = backbone_info(prepared.backbone)
    result = fit(
        method,
        batches,
        dev=prepared.dev,
        checkpoint=None if folder is None else folder / "checkpoint.safetensors",
        callbacks=callbacks,
    )
    record = RunRecord(
        method=prepared.spec.method,
        seed=prepared.spec.seed,
        status="interrupted" if result.interrupted else "done",
        stopped=result.stopped,
        settings=flat_settings(prepared),
        backbone=info,
        task=task_info(prepared.data, prepared.encoder),
        curve=result.curve,
        scores={} if result.interrupted else held_out_scores(method, prepared, on_test),
        steps=result.steps,
        forwards=result.forwards,
        bytes_sent=result.bytes_sent,
        seconds=result.seconds,
        cpu_seconds=result.cpu_seconds,
        trainable_parameters=sum(tensor.numel() for tensor in method.trained().values()),
        counted=method.count_memory(first),
        measured=tuple(measured),
        timeline=method.timeline.spans() if isinstance(method, Pipelined) else (),
        codecs=method.codecs if isinstance(method, Pipelined) else (),
        provenance=provenance(command),
    )
    if folder is not None and method_row(prepared.spec.method).module == "mobillm" and not result.interrupted:
        method.adapter.save_pretrained(folder / "side", model_card_kwargs={"record": record})
    if folder is not None and isinstance(method, ZerothOrder):
        method.log.save(folder / "replay.safetensors")
    return record


def held_out_scores(
    method: Method, prepared: Prepared, on_test: Callable[[int, int], None] | None = None
) -> dict[str, float]:
    """Scores of the model as it is now on the held-out texts; ``on_test`` is told how many of how many are done."""

    def tell(done: int) -> None:
        if on_test is not None:
            on_test(done, len(prepared.test))

    loss, predictions = evaluate(method, prepared.test, prepared.encoder, device=prepared.device, on_batch=tell)
    scores = {"test_loss": loss, **_scores("test", predictions, prepared.test, prepared.data.task.metric)}
    if prepared.handwritten:
        _, predictions = evaluate(method, prepared.handwritten, prepared.encoder, device=prepared.device)
        scores |= _scores("handwritten", predictions, prepared.handwritten, "accuracy")
    return scores


def _scores(split: str, predictions: Tensor, examples: Sequence[Encoded], metric: str) -> dict[str, float]:
    labels = torch.tensor([example.label for example in examples])
    return {f"{split}_{name}": score(name, predictions, labels) for name in dict.fromkeys(("accuracy", metric))}


def control_record(prepared: Prepared, command: str) -> RunRecord:
    """The record of a control: scores, and nothing trained, sent or kept."""
    metric = prepared.data.task.metric
    scores = _scores("dev", _control(prepared, prepared.dev, prepared.data.dev), prepared.dev, "accuracy")
    scores |= _scores("test", _control(prepared, prepared.test, prepared.data.test), prepared.test, metric)
    if prepared.handwritten:
        predictions = _control(prepared, prepared.handwritten, handwritten())
        scores |= _scores("handwritten", predictions, prepared.handwritten, "accuracy")
    return RunRecord(
        method=prepared.spec.method,
        seed=prepared.spec.seed,
        status="done",
        settings=flat_settings(prepared),
        backbone=backbone_info(prepared.backbone),
        task=task_info(prepared.data, prepared.encoder),
        curve=(),
        scores=scores,
        steps=0,
        forwards=0,
        bytes_sent=0,
        seconds=0.0,
        cpu_seconds=0.0,
        trainable_parameters=0,
        provenance=provenance(command),
    )


def _control(prepared: Prepared, rows: Sequence[Encoded], texts: Sequence[Example]) -> Tensor:
    name = prepared.spec.method
    if name == "majority":
        return controls.majority(prepared.data.train, len(texts))
    if name == "bag-of-words":
        return controls.bag_of_words(prepared.data.train, texts)
    if prepared.backbone.kind == "encoder":
        raise BadInput(
            f"'{name}' reads label words after a prompt; '{prepared.backbone.name}' is an encoder and has none.",
            "Its controls are bag-of-words and majority.",
        )
    logits = untrained_logits(prepared, rows)
    if name == "zero-shot":
        return controls.zero_shot(logits)
    labels = torch.tensor([row.label for row in prepared.dev])
    return controls.threshold(logits, controls.best_threshold(untrained_logits(prepared, prepared.dev), labels))


@torch.no_grad()
def untrained_logits(prepared: Prepared, rows: Sequence[Encoded], batch_size: int = 64) -> Tensor:
    """(N, C) logits of the pretrained model after the prompt."""
    parts = [
        prepared.model.logits(prepared.encoder.collate(rows[start : start + batch_size]).to(prepared.device))
        for start in range(0, len(rows), batch_size)
    ]
    return torch.cat(parts).float().cpu()


def flat_settings(prepared: Prepared) -> dict[str, Scalar]:
    """Everything that decided this run, as one flat table: enough to make the same :class:`RunSpec` again."""
    spec = msgspec.to_builtins(prepared.spec)
    options = spec.pop("options")
    label_words = spec.pop("label_words")
    flat: dict[str, Scalar] = {key: value for key, value in spec.items() if value is not None}
    if label_words is not None:
        flat["label_words"] = "|".join(label_words)
    if method_row(prepared.spec.method).trained:
        settings = fit_settings(prepared)
        names = ("steps", "batch_size", "lr", "schedule", "warmup", "eval_every")
        flat |= {name: getattr(settings, name) for name in names}
        options = method_options(prepared)
    for name, value in options.items():
        flat[f"option.{name}"] = ",".join(map(str, value)) if isinstance(value, list) else value
    return flat


def backbone_info(backbone: Backbone) -> BackboneInfo:
    return BackboneInfo(
        name=backbone.name,
        revision=backbone.revision,
        fingerprint=backbone.fingerprint,
        kind=backbone.kind,
        parameters=backbone.n_parameters,
        layers=backbone.n_layers,
        width=backbone.width,
        dtype=str(backbone.dtype).removeprefix("torch."),
    )


def task_info(data: TaskData, encoder: TextEncoder) -> TaskInfo:
    return TaskInfo(
        name=data.task.name,
        metric=data.task.metric,
        train=len(data.train),
        dev=len(data.dev),
        test=len(data.test),
        notes=(*data.notes, *encoder.notes),
    )
