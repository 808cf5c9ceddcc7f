"""A run of P-RGE on an exported backbone, from texts to a folder that the library takes for its own.

    RunSpec + exported folder  ->  steps, dev scored on the way  ->  spec.json, task.json, checkpoint, engine.json

The checkpoint has the tensors of ``methods/prge.py``, so that `mobillm evaluate` and `mobillm predict` read the
folder wherever PyTorch is.  A run that was killed goes on from its last checkpoint, to the bytes of an undisturbed
one: nothing in it depends on the clock.

Knows: exported backbones, texts, run folders.  Knows nothing of: torch, how a step is computed, by which engine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mobillm_kit.common import installed_version
from mobillm_kit.engines import manifest as manifests
from mobillm_kit.engines.dual import DualForward, Settings, cross_entropy
from mobillm_kit.engines.executorch import too_long
from mobillm_kit.engines.manifest import Adapted, Lowered
from mobillm_kit.engines.steppers import AnyEngine, open_engine, stepper
from mobillm_kit.engines.texts import Texts, check_spec, open_texts, usual
from mobillm_kit.errors import BadInput, TrainingDiverged, first_line, nearest
from mobillm_kit.files import write_bytes, write_with
from mobillm_kit.runs.folders import CHECKPOINT, RECORD, check_files, keep_task, lay_out
from mobillm_kit.runs.progress import Progress
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.texts.encode import Encoded

RUN = "engine.json"
LIBRARY = {"onnx": "onnxruntime", "executorch": "executorch"}
ROWS = 32
"""Texts of a batch that is scored."""


class Look(msgspec.Struct, frozen=True):
    """One evaluation on the dev split; the first one is of the model as it was before training."""

    step: int
    train_loss: float | None
    """Mean since the last look, in nats."""
    dev_loss: float
    dev_accuracy: float


class EngineRun(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to say of a run that is done: ``engine.json``."""

    engine: str
    precision: str
    backbone: str
    fingerprint: str
    method: str
    seed: int
    steps: int
    losses: list[float]
    """Of each step, the mean over both signs and all perturbations, in nats."""
    looks: list[Look]
    forwards: int
    """Samples that passed through the backbone in training."""
    seconds: float
    """Of training and looking, since this process began."""
    versions: dict[str, str | None]


class _Progress(msgspec.Struct):
    """The checkpoint's header: where a run stands, and what it is."""

    settings: str
    losses: list[float] = []
    looks: list[Look] = []


@dataclass(frozen=True, eq=False)
class _Setting:
    """A run, made ready."""

    spec: RunSpec
    """With the backbone's own name and every option written out, as PyTorch will read it."""
    engine: AnyEngine
    texts: Texts
    dev: list[Encoded]
    method: DualForward
    settings: str
    """All that decides what is trained, in words."""


def train(spec: RunSpec, out: Path, told: Callable[[Progress], object] = id, engine: str = "onnx") -> EngineRun:
    """Train P-RGE in an engine; ``out`` is a new folder, or that of a run to go on with.

    Raises:
        BadInput: what an engine cannot do, a folder that is no export for P-RGE, or ``out`` begun otherwise.
        TrainingDiverged: a loss that is no finite number.
    """
    started = time.perf_counter()
    setting = _prepare(spec, told, engine)
    check_files(out, setting.spec)
    if (out / RECORD).exists():
        raise BadInput(f"{out}: holds a run of PyTorch.", "Name another folder, or remove this one.")
    lay_out(out, setting.spec)
    progress = _resumed(setting, out / CHECKPOINT)
    keep_task(out, setting.spec, setting.texts.encoder.task)
    _train(setting, progress, out / CHECKPOINT, told)
    found = _described(setting, progress, time.perf_counter() - started)
    write_bytes(out / RUN, msgspec.json.format(msgspec.json.encode(found)))
    return found


def _prepare(spec: RunSpec, told: Callable[[Progress], object], name: str) -> _Setting:
    check_spec(spec)
    engine = open_engine(name, Path(spec.backbone).expanduser())
    about = engine.manifest
    manifests.check_use(about, "p-rge")
    assert about.adapted is not None  # so it has
    found = usual(spec, engine)
    made = {} if about.lowered is None else {"q": about.lowered.q, "rank": about.lowered.rank}
    options = _options({**found.options, **made, **spec.options})
    targets = _targets(about.adapted, spec.options.get("targets"))
    texts = open_texts(spec, engine, found, told)
    dev = texts.encoder.encode(texts.dev)
    if about.lowered is not None:
        _check_lengths(about.lowered, [*texts.train, *dev])
    chosen = Settings(**options)
    method = DualForward(stepper(engine, texts.encoder.label_ids(), chosen, spec.seed), chosen, spec.seed)
    options["targets"] = targets
    kept = replace(spec, backbone=about.name, options=options)
    decisive = {**asdict(texts.batches.settings), **options, "seed": spec.seed}
    words = ", ".join(f"{name}={value}" for name, value in sorted(decisive.items()))
    settings = f"P-RGE in {engine.title} on {about.fingerprint[:12]}: {words}"
    return _Setting(kept, engine, texts, dev, method, settings)


def _check_lengths(lowered: Lowered, rows: list[Encoded]) -> None:
    longest = max(len(row.ids) for row in rows)
    if longest > lowered.lengths[-1]:
        raise BadInput(*too_long(longest, lowered.lengths[-1]))


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """The method's options but for targets; one that it has not is refused."""
    known = {each.name: each.default for each in fields(Settings)}
    for name in given:
        if name not in (*known, "targets"):
            raise BadInput(f"P-RGE in an engine has no option '{name}'.", nearest(name, known))
    return {**known, **{name: value for name, value in given.items() if name != "targets"}}


def _targets(adapted: Adapted, wanted: object) -> str:
    """The export's projections, as an option names them; others are refused."""
    there = list(dict.fromkeys(name.rpartition(".")[2] for name in adapted.targets))
    asked = str(wanted or "").split(",") if not isinstance(wanted, list) else wanted
    same = {str(name).strip() for name in asked} == set(there) or (wanted == "all" and adapted.every)
    if wanted and not same:
        problem = f"The folder is exported for the projections {','.join(there)}, this run asks for {wanted}."
        raise BadInput(problem, "Leave targets out, or export the backbone again with --targets.")
    return ",".join(there)


def _train(setting: _Setting, progress: _Progress, file: Path, told: Callable[[Progress], object]) -> None:
    batches, losses = setting.texts.batches, progress.losses
    steps, often = batches.settings.steps, batches.settings.eval_every
    if not progress.looks:
        _look(setting, progress)
    for step in range(len(losses), steps):
        loss = setting.method.step(_arrays(setting, batches.samples(step)), batches.lr(step))
        if not math.isfinite(loss):
            problem = f"p-rge: the loss of step {step + 1} is {loss}."
            raise TrainingDiverged(problem, "Lower the learning rate; the last good checkpoint is kept.")
        losses.append(loss)
        accuracy = None
        if (step + 1) % often == 0 or step + 1 == steps:
            accuracy = _look(setting, progress).dev_accuracy
            _save(setting, progress, file)
        told(Progress(step=step + 1, steps=steps, loss=loss, dev_accuracy=accuracy))


def _arrays(setting: _Setting, samples: tuple[int, ...]) -> dict[str, np.ndarray]:
    return setting.texts.encoder.arrays([setting.texts.train[sample] for sample in samples])


def _look(setting: _Setting, progress: _Progress) -> Look:
    """Score the dev split; texts of like length share a batch."""
    often = setting.texts.batches.settings.eval_every
    dev = sorted(setting.dev, key=lambda row: len(row.ids))
    total, right = 0.0, 0
    for start in range(0, len(dev), ROWS):
        batch = setting.texts.encoder.arrays(dev[start : start + ROWS])
        logits = setting.method.logits(batch)
        total += float(cross_entropy(logits, batch["labels"]).sum())
        right += int((logits.argmax(axis=-1) == batch["labels"]).sum())
    since = progress.losses[-((len(progress.losses) - 1) % often + 1) :] if progress.losses else []
    mean = sum(since) / len(since) if since else None
    progress.looks.append(Look(len(progress.losses), mean, total / len(dev), right / len(dev)))
    return progress.looks[-1]


def _save(setting: _Setting, progress: _Progress, file: Path) -> None:
    header = {"progress": msgspec.json.encode(progress).decode()}
    write_with(file, lambda target: save_file(setting.method.state(), target, header))


def _resumed(setting: _Setting, file: Path) -> _Progress:
    """Where the run of this folder stands, its state loaded; a new one where there is no checkpoint."""
    new = _Progress(setting.settings)
    if not file.exists():
        return new
    try:
        with safe_open(str(file), framework="np") as opened:
            progress = msgspec.json.decode(opened.metadata()["progress"], type=_Progress)
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, KeyError, TypeError, msgspec.DecodeError) as error:
        problem = f"{file}: not a checkpoint ({first_line(error)})."
        raise BadInput(problem, "Delete it to start again.") from error
    if progress.settings != new.settings:
        problem = f"{file}: made elsewhere or otherwise ({progress.settings}), this run is '{new.settings}'."
        raise BadInput(problem, "Give the same settings and engine, or name another folder.")
    try:
        setting.method.load_state(state)
    except (KeyError, ValueError) as error:
        problem = f"{file}: its tensors are not this run's ({first_line(error)})."
        raise BadInput(problem, "Delete it to start again.") from error
    return progress


def _described(setting: _Setting, progress: _Progress, seconds: float) -> EngineRun:
    about, batches = setting.engine.manifest, setting.texts.batches
    return EngineRun(
        engine=setting.engine.name,
        precision=setting.engine.precision,
        backbone=about.name,
        fingerprint=about.fingerprint,
        method=setting.spec.method,
        seed=setting.spec.seed,
        steps=batches.settings.steps,
        losses=progress.losses,
        looks=progress.looks,
        forwards=2 * len(setting.method.g) * batches.settings.batch_size * len(progress.losses),
        seconds=seconds,
        versions={
            name: installed_version(name) for name in ("mobillm-kit", LIBRARY[about.engine], "numpy", "tokenizers")
        },
    )
