"""One run, from its specification to its record: data, backbone, method, training, held-out scores.

Knows: every room below it.  Knows nothing of: processes, folders of many runs, pictures.
Taught in: notebooks/00_start_here.ipynb
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from mobillm_kit.device.inversion import read_back
from mobillm_kit.errors import BadInput
from mobillm_kit.methods import controls, method_row
from mobillm_kit.methods.mobillm import MobiLLM
from mobillm_kit.methods.zeroth_order import ZerothOrder
from mobillm_kit.quant import books, codec
from mobillm_kit.record import BackboneInfo, MeasuredMemory, Recovery, RunRecord, Scalar, TaskInfo
from mobillm_kit.runs.folders import CHECKPOINT, RECORD, check_files, keep_task, lay_out
from mobillm_kit.runs.loop import INTERRUPTED, FitResult, evaluate, fit, logits_of
from mobillm_kit.runs.prepare import Prepared, build_method, chosen_preset, fit_settings, prepare, training_batches
from mobillm_kit.runs.progress import Progress, Told
from mobillm_kit.runs.provenance import provenance
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.texts.encode import Encoded
from mobillm_kit.texts.loading import handwritten
from mobillm_kit.texts.metrics import score
from mobillm_kit.texts.tasks import Example
from mobillm_kit.training.method import Method, Pipelined


def run(
    spec: RunSpec,
    *,
    folder: Path | None = None,
    command: str = "",
    callbacks: Sequence[Told] = (),
    measured: Sequence[MeasuredMemory] = (),
) -> RunRecord:
    """Train one method (or score one control) and say what came out.

    Args:
        folder: keeps ``spec.json``, ``checkpoint.safetensors``, ``record.json`` and, for MobiLLM, ``side/``; a run
            that was interrupted there goes on.  None keeps nothing.
        callbacks: told of the texts, after each step (True stops the run there), and how many held-out texts are done.
        measured: memory measured in processes of their own, to be kept in the record.

    Raises:
        BadInput: among others, the folder holds a run with other settings or on other texts.
    """

    def _tell(note: str) -> None:
        for callback in callbacks:
            callback(Progress(what="texts", note=note))

    if folder is not None:
        check_files(folder, spec)
        lay_out(folder, spec)
    prepared = prepare(spec, tell=_tell)
    if folder is not None:
        keep_task(folder, spec, prepared.data.task)
    if method_row(spec.method).trained:
        record = _trained_record(prepared, folder, command, callbacks, measured)
    else:
        scores, nothing = control_scores(prepared), FitResult().of_the_record()
        record = RunRecord(**_about(prepared, command), **nothing, scores=scores, trainable_parameters=0)
    if folder is not None:
        record.save(folder / RECORD)
    return record


def _trained_record(
    prepared: Prepared, folder: Path | None, command: str, callbacks: Sequence[Told], measured: Sequence[MeasuredMemory]
) -> RunRecord:
    method = build_method(prepared, folder)
    pipeline = method if isinstance(method, Pipelined) else None
    try:
        batches = training_batches(prepared)
        first = batches.rows(range(batches.settings.batch_size))
        about = _about(prepared, command)
        checkpoint = None if folder is None else folder / CHECKPOINT
        result = fit(method, batches, dev=prepared.dev, checkpoint=checkpoint, callbacks=callbacks).of_the_record()
        interrupted = result["status"] == INTERRUPTED
        record = RunRecord(
            **about,
            **result,
            scores={} if interrupted else held_out_scores(method, prepared, callbacks),
            trainable_parameters=sum(tensor.numel() for tensor in method.trained().values()),
            counted=method.count_memory(first),
            measured=tuple(measured),
            timeline=pipeline.timeline.spans() if pipeline else (),
            codecs=pipeline.codecs if pipeline else (),
        )
    finally:
        if pipeline:
            pipeline.close()
    if isinstance(method, MobiLLM) and prepared.spec.read_back and not (interrupted or prepared.spec.stream):
        record = msgspec.structs.replace(record, read_back=_read_back(method, prepared, record))
    if folder is not None:
        _keep(method, record, folder)
    return record


def _read_back(method: MobiLLM, prepared: Prepared, record: RunRecord) -> Recovery:
    """What dev's texts teach a server to read of training texts; of several codecs, through the widest one used."""
    name = max(record.codecs or [str(record.settings.get("option.codec"))], key=lambda name: books.BITS.get(name, 0))
    coder = codec(name if name in books.BITS else "fp32", int(record.settings.get("option.group") or 64))
    return read_back(method.device, coder, *map(prepared.encoder.collate, (prepared.dev[:200], prepared.train[:48])))


def _keep(method: Method, record: RunRecord, folder: Path) -> None:
    """What a method leaves beside its record: a side network to share, the numbers that replay a zeroth-order run."""
    if isinstance(method, ZerothOrder):
        method.log.save(folder / "replay.safetensors")
    if record.status == INTERRUPTED:
        return
    if isinstance(method, MobiLLM):
        method.adapter.save_pretrained(folder / "side", model_card_kwargs={"record": record})
    shutil.rmtree(folder / "server", ignore_errors=True)  # a spawned server's checkpoints have served


def held_out_scores(method: Method, prepared: Prepared, callbacks: Sequence[Told] = ()) -> dict[str, float]:
    """Scores of the model as it is now on the held-out texts; callbacks are told how many of how many are done."""

    def _tell(done: int) -> None:
        for callback in callbacks:
            callback(Progress(step=done, steps=len(prepared.test), what="test"))

    loss, predictions = evaluate(method, prepared.test, prepared.encoder, device=prepared.device, on_batch=_tell)
    scores = {"test_loss": loss, **_scores("test", predictions, prepared.test, prepared.data.task.metric)}
    if prepared.handwritten:
        _, predictions = evaluate(method, prepared.handwritten, prepared.encoder, device=prepared.device)
        scores |= _scores("handwritten", predictions, prepared.handwritten, "accuracy")
    return scores


def _scores(split: str, predictions: Tensor, examples: Sequence[Encoded], metric: str) -> dict[str, float]:
    labels = torch.tensor([example.label for example in examples])
    return {f"{split}_{name}": score(name, predictions, labels) for name in dict.fromkeys(("accuracy", metric))}


def control_scores(prepared: Prepared) -> dict[str, float]:
    """The scores of a control, for which nothing is trained, sent or kept."""
    data = prepared.data
    scores: dict[str, float] = {}
    for split, rows, texts, metric in (
        ("dev", prepared.dev, data.dev, "accuracy"),
        ("test", prepared.test, data.test, data.task.metric),
        ("handwritten", prepared.handwritten, handwritten(prepared.spec.task), "accuracy"),
    ):
        if rows:
            scores |= _scores(split, _control(prepared, rows, texts), rows, metric)
    return scores


def _control(prepared: Prepared, rows: Sequence[Encoded], texts: Sequence[Example]) -> Tensor:
    name = prepared.spec.method
    if name == "majority":
        return controls.majority(prepared.data.train, len(texts))
    if name == "bag-of-words":
        return controls.bag_of_words(prepared.data.train, texts)
    if prepared.backbone.lm_head is None:
        problem = f"'{name}' reads label words after a prompt; '{prepared.backbone.name}' is an encoder and has none."
        raise BadInput(problem, "Its controls are bag-of-words and majority, or take --head label-words.")
    logits = untrained_logits(prepared, rows)
    if name == "zero-shot":
        return logits.argmax(dim=-1)
    labels = torch.tensor([row.label for row in prepared.dev])
    return controls.threshold(logits, controls.best_threshold(untrained_logits(prepared, prepared.dev), labels))


def untrained_logits(prepared: Prepared, rows: Sequence[Encoded], batch_size: int = 64) -> Tensor:
    """(N, C) logits of the pretrained model after the prompt."""
    return logits_of(prepared.model.logits, rows, prepared.encoder, batch_size, prepared.device)


def _about(prepared: Prepared, command: str) -> dict[str, Any]:
    """The fields of a record that say what was run, on what."""
    backbone, data = prepared.backbone, prepared.data
    return {
        "method": prepared.spec.method,
        "seed": prepared.spec.seed,
        "settings": flat_settings(prepared),
        "backbone": BackboneInfo(
            **{name: getattr(backbone, name) for name in ("name", "revision", "fingerprint", "kind", "width")},
            parameters=backbone.n_parameters,
            layers=backbone.n_layers,
            dtype=str(backbone.dtype).removeprefix("torch."),
        ),
        "task": TaskInfo(
            **{split: len(getattr(data, split)) for split in ("train", "dev", "test")},
            name=data.task.name,
            metric=data.task.metric,
            notes=(*data.notes, *prepared.encoder.notes),
        ),
        "provenance": provenance(command),
    }


def flat_settings(prepared: Prepared) -> dict[str, Scalar]:
    """Everything that decided this run, as one flat table: enough to make the same :class:`RunSpec` again."""
    spec = prepared.spec.kept()
    flat: dict[str, Any] = msgspec.to_builtins(spec)
    flat |= {name: "|".join(flat[name] or ()) or None for name in ("label_names", "label_words")}
    options = flat.pop("options")
    if method_row(spec.method).trained:
        flat |= asdict(fit_settings(prepared))
        options = {**chosen_preset(prepared).options, **options}
    lists = {f"option.{name}": value for name, value in options.items()}
    flat |= {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in lists.items()}
    return {name: value for name, value in flat.items() if value is not None}
