"""From a specification to what it describes: texts, tokens, model, training settings, method.

Knows: specifications and every room that one names.  Knows nothing of: training, records, folders.
Taught in: notebooks/00_start_here.ipynb
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mobillm_kit.backbone.lowbit import quantize_in_memory
from mobillm_kit.backbone.pretrained import load_backbone, load_tokenizer, random_backbone
from mobillm_kit.backbone.split import Backbone
from mobillm_kit.backbone.streaming import stream_backbone
from mobillm_kit.errors import BadInput
from mobillm_kit.methods import METHODS, check_options, load_method, method_row
from mobillm_kit.methods.task_model import TaskModel, task_model
from mobillm_kit.runs.data import LONGEST_TEXT, load_data
from mobillm_kit.runs.presets import Preset, preset
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.texts.batches import Batches, FitSettings
from mobillm_kit.texts.encode import Encoded, TextEncoder
from mobillm_kit.texts.loading import TaskData, handwritten
from mobillm_kit.training.method import Method


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
    """The sentences written by hand; empty for tasks that are not packaged."""
    device: str

    @property
    def backbone(self) -> Backbone:
        """The model without its head."""
        return self.model.backbone


def prepare(spec: RunSpec, data: TaskData | None = None, tell: Callable[[str], object] = str) -> Prepared:
    """Load texts (unless they are given), tokenizer and backbone of a specification and put the task's head on.

    ``tell`` hears of the labels and of every text that was left out, a sentence each, before anything can fail on them.
    """
    device = choose_device(spec.accelerator)
    tokenizer = load_tokenizer(spec.backbone, revision=spec.revision)
    data = data or load_data(spec, tokenizer)
    for note in (f"Labels: {data.label_counts}.", *data.notes):
        tell(note)
    backbone = open_backbone(spec, device)
    if backbone.kind == "decoder" and spec.head == "classifier":
        raise BadInput(f"'{spec.backbone}' is a decoder: it predicts with label words.", "Leave --head out.")
    _ = backbone.fingerprint  # taken now: methods change or wrap the weights
    masked = backbone.kind == "encoder" and backbone.lm_head is not None
    encoder = TextEncoder(
        tokenizer=tokenizer,
        task=data.task.at_mask() if masked else data.task,
        kind="masked" if masked else backbone.kind,
        max_length=min(spec.max_length or LONGEST_TEXT, backbone.context),
        padding_side=spec.padding_side,
        vocabulary=backbone.n_tokens,
    )
    words = range(len(data.task.labels)) if backbone.lm_head is None else encoder.label_ids()
    model = task_model(backbone, word_ids=words, pooling=spec.pooling, seed=spec.seed)
    by_hand = handwritten(spec.task)
    train, dev, test, written = (encoder.encode(texts) for texts in (data.train, data.dev, data.test, by_hand))
    return Prepared(spec, data, encoder, model, train, dev, test, written, device)


def open_backbone(spec: RunSpec, device: str) -> Backbone:
    """The specification's backbone: whole or streamed, pretrained or random, as it is or in few bits."""
    if (spec.stream or spec.weights) and not ((row := method_row(spec.method)).forward_only or row.streams):
        able = ", ".join(row.name for row in METHODS.values() if (row.forward_only or row.streams) and row.trained)
        raise BadInput(
            f"Method '{spec.method}' trains through the backbone, which must be whole and in floating point for that.",
            f"Leave --stream and --weights out, or choose one of: {able}.",
        )
    masked = spec.head == "label-words"
    if spec.stream:
        if spec.random_weights or spec.weights:
            problem = "A streamed backbone has the weights that its files hold."
            remedy = "Leave --random-weights and --weights out; write a folder of codes with `mobillm quantize` first."
            raise BadInput(problem, remedy)
        if device != "cpu":
            raise BadInput(f"Blocks are streamed into the CPU's memory, not '{device}'.", "Use --accelerator cpu.")
        return stream_backbone(spec.backbone, revision=spec.revision, dtype=spec.dtype, masked=masked)
    backbone = load_backbone(spec.backbone, revision=spec.revision, dtype=spec.dtype, device=device, masked=masked)
    if spec.random_weights:
        backbone = random_backbone(backbone, seed=spec.seed)
    return quantize_in_memory(backbone, spec.weights) if spec.weights else backbone


def choose_device(accelerator: str) -> str:
    """``auto`` takes CUDA, then Apple's MPS, then the CPU."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if accelerator == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if accelerator not in there:
        raise BadInput(f"Unknown accelerator '{accelerator}'.", f"Choose one of: auto, {', '.join(there)}.")
    if not there[accelerator]:
        raise BadInput(f"This machine has no '{accelerator}'.", "Use --accelerator auto or cpu.")
    return accelerator


def chosen_preset(prepared: Prepared) -> Preset:
    """The preset that the specification names, or the backbone's; it says how to pool only where a mean would."""
    found = preset(prepared.spec, prepared.backbone.kind, prepared.spec.method)
    mean = prepared.model.head.pooling == "mean"  # not where one token is asked for, or words at a mask
    own = {name: value for name, value in found.options.items() if mean or name != "pooling"}
    return found._replace(options=own)


def fit_settings(prepared: Prepared) -> FitSettings:
    """The training settings: what the specification gives, over the preset."""
    spec = {name: getattr(prepared.spec, name) for name in FitSettings.__dataclass_fields__}
    given = {name: value for name, value in spec.items() if value is not None}
    return FitSettings(**{**chosen_preset(prepared).settings, **given})


def training_batches(prepared: Prepared) -> Batches:
    """What the run trains on, step by step."""
    return Batches(prepared.train, prepared.encoder, fit_settings(prepared), prepared.device)


def build_method(prepared: Prepared, folder: Path | None = None) -> Method:
    """The method of the specification on the prepared model; ``folder`` is the run's, where it has one."""
    spec = prepared.spec
    options = {**chosen_preset(prepared).options, **spec.options}
    check_options(spec.method, options)
    extra = {"about": _about(prepared), "folder": folder} if method_row(spec.method).module == "mobillm" else {}
    method: Method = load_method(spec.method)(prepared.model, seed=spec.seed, **extra, **options)
    return method


def _about(prepared: Prepared) -> dict[str, Any]:
    """What a side network has to know of its task to label texts on its own."""
    task = prepared.encoder.task
    return {
        "task": task.name,
        "prompt": task.prompt,
        "labels": list(task.labels),
        "label_words": list(task.label_words),
        "paired": task.pair_column is not None,
        "max_length": prepared.encoder.max_length,
    }
