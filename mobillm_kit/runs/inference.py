"""A trained run put to use: from its folder, back to a model that labels texts.

Knows: runs, side networks and their folders.  Knows nothing of: how they were trained.
Taught in: notebooks/00_start_here.ipynb
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace
from safetensors.torch import load_file
from torch import Tensor

from mobillm_kit.device.forward import Device
from mobillm_kit.errors import BadInput
from mobillm_kit.methods import method_row
from mobillm_kit.runs.folders import CHECKPOINT, SPEC, check_files, load_spec, load_task
from mobillm_kit.runs.loop import logits_of
from mobillm_kit.runs.prepare import Prepared, build_method, prepare
from mobillm_kit.runs.progress import Told
from mobillm_kit.runs.run import control_scores, held_out_scores
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.side.adapter import SideAdapter, attach
from mobillm_kit.texts.encode import Batch, TextEncoder
from mobillm_kit.texts.loading import TaskData
from mobillm_kit.texts.tasks import Example, Task
from mobillm_kit.training.method import Method


@dataclass(frozen=True)
class Prediction:
    """The label of one text, and how sure it is."""

    label: str
    probability: float
    """Of that label, softmax over the task's labels."""


@dataclass(frozen=True)
class Predictor:
    """Labels texts with ``logits``, from a batch on ``device`` to (B, C)."""

    encoder: TextEncoder
    logits: Callable[[Batch], Tensor]
    device: str = "cpu"

    def predict(self, texts: Sequence[str], pair: str | None = None, batch_size: int = 64) -> list[Prediction]:
        """Label each text; ``pair`` is the second text of all of them, for tasks with two."""
        if not texts:
            return []
        rows = self.encoder.encode([Example(text, pair, 0) for text in texts])
        logits = logits_of(self.logits, rows, self.encoder, batch_size, self.device)
        best, index = logits.softmax(dim=-1).max(dim=-1)
        named = zip(best.tolist(), index.tolist(), strict=True)
        return [Prediction(self.encoder.task.labels[label], share) for share, label in named]


def load_run(folder: str | Path, backbone: str | Path | None = None) -> Predictor:
    """The trained model of a run's folder, or of a side network's, on ``backbone``; no training text is read."""
    place = Path(folder)
    if not (place / SPEC).exists() and (place / "config.json").exists():
        return load_side(place, backbone)
    kept, spec = load_task(place), _spec(place, backbone)
    prepared = prepare(spec, TaskData(kept.task, (), (), (), ()) if kept else None)
    if not method_row(prepared.spec.method).trained:
        raise BadInput(f"{folder}: '{prepared.spec.method}' is a control.", "Name the folder of a trained method.")
    return Predictor(prepared.encoder, _trained(prepared, place).logits, prepared.device)


def score_run(
    folder: str | Path, callbacks: Sequence[Told] = (), backbone: str | Path | None = None
) -> dict[str, float]:
    """Scores of a run's model, on ``backbone``, on its held-out texts, computed again."""
    place = Path(folder)
    spec = _spec(place, backbone)
    check_files(place, spec)
    prepared = prepare(spec)
    if not method_row(prepared.spec.method).trained:
        return control_scores(prepared)
    return held_out_scores(_trained(prepared, place), prepared, callbacks)


def load_side(folder: str | Path, backbone: str | Path | None = None) -> Predictor:
    """A side network as it is saved and shared, put back on its backbone.

    Args:
        folder: what ``save_pretrained`` wrote, or a name on the hub.
        backbone: ``pocket``, a folder, or a name on the hub; None for the name that the side network knows.
    """
    adapter = SideAdapter.from_pretrained(folder)
    name = str(backbone or adapter.backbone_name)
    spec = RunSpec(method="mobillm", backbone=name, task="custom", max_length=adapter.max_length, accelerator="cpu")
    spec = replace(spec, head=None if adapter.head else "label-words")
    task = Task(
        name=adapter.task or "side", description="the task of a side network", source="the side network's config.json",
        text_column="text", pair_column="pair" if adapter.paired else None, label_column="label", metric="accuracy",
        labels=adapter.labels, prompt=adapter.prompt, label_words=adapter.label_words,
    )  # fmt: skip
    prepared = prepare(spec, TaskData(task, (), (), (), ()))
    tuned = attach(adapter, prepared.backbone, prepared.model.head)
    device = Device(prepared.backbone, adapter.side.layers, one_token=tuned.one_token_is_enough)

    def _logits(batch: Batch) -> Tensor:
        upload = device.upload(batch)
        return tuned(upload.activations, upload.mask, upload.positions.long())

    return Predictor(prepared.encoder, _logits)


def _spec(place: Path, backbone: str | Path | None) -> RunSpec:
    spec = load_spec(place)
    return replace(spec, backbone=str(backbone or spec.backbone))


def _trained(prepared: Prepared, folder: Path) -> Method:
    file = folder / CHECKPOINT
    if not file.exists():
        raise BadInput(f"{folder}: holds no checkpoint.", "Train it first.")
    method = build_method(prepared)
    method.load_state(load_file(file))
    return method
