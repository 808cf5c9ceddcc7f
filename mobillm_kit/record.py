"""The record of one training run: what was done, on what, and what came out.

A record is a plain value, written as JSON, that loads back equal.

Knows: numbers and names.  Knows nothing of: tensors, models, how a run is made.
Taught in: notebooks/09_comparison.ipynb
"""

from pathlib import Path
from typing import Literal

import msgspec

from mobillm_kit.errors import RecordError
from mobillm_kit.files import data_folder, write_bytes

FORMAT = 1
"""Version of the record's fields; raised whenever a field changes its meaning."""

Scalar = str | int | float | bool | None


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation on the dev split; the first one is of the model as it was before training."""

    step: int
    """Optimizer steps done."""
    forwards: int
    """Samples that have passed through the backbone in training (a sample perturbed q times counts q times)."""
    seconds: float
    """Wall-clock seconds of training, evaluation left out."""
    bytes_sent: int
    """Bytes that have left the device; 0 where nothing is sent."""
    train_loss: float | None
    """Mean training loss since the last point, in nats; None before the first step."""
    dev_loss: float
    dev_accuracy: float


class CountedMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The ledger of one party: bytes of tensors, counted, the same on every machine."""

    party: Literal["device", "server"]
    weights_bytes: int
    gradients_bytes: int = 0
    optimizer_bytes: int = 0
    saved_activations_bytes: int = 0
    """Tensors that autograd keeps between forward and backward, each storage once, parameters left out."""
    messages_bytes: int = 0
    """Activations and labels that wait in the channel or are being encoded."""

    @property
    def by_category(self) -> dict[str, int]:
        """Bytes of each category, by its short name."""
        return {
            "weights": self.weights_bytes,
            "gradients": self.gradients_bytes,
            "optimizer": self.optimizer_bytes,
            "saved": self.saved_activations_bytes,
            "messages": self.messages_bytes,
        }

    @property
    def total_bytes(self) -> int:
        """All categories together."""
        return sum(self.by_category.values())


class MeasuredMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Resident memory of a fresh process that did nothing else than this party's part of training."""

    party: Literal["device", "server", "both"]
    loaded_rss_bytes: int
    """Resident after imports, model and data are loaded, before the first step."""
    peak_rss_bytes: int
    """VmHWM of the training steps (the counter is reset before the first one)."""
    average_rss_bytes: int
    """Mean of memory-profiler's samples over the training steps."""
    steps: int
    how: str
    """Allocator setting, threads, sampling interval."""

    @property
    def training_bytes(self) -> int:
        """What training needs on top of the loaded model."""
        return max(0, self.peak_rss_bytes - self.loaded_rss_bytes)


Stage = Literal["forward", "encode", "send", "queue", "decode", "train"]


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of one step, on the device's clock."""

    stage: Stage
    step: int
    start_s: float
    """Since the run's first step."""
    seconds: float


class BackboneInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Which backbone it was; the fingerprint is of its weights."""

    name: str
    revision: str
    fingerprint: str
    kind: Literal["decoder", "encoder"]
    parameters: int
    layers: int
    width: int
    dtype: str


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Which task it was, and how many texts each split had."""

    name: str
    metric: str
    train: int
    dev: int
    test: int
    notes: tuple[str, ...] = ()


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where the numbers come from."""

    versions: dict[str, str]
    hardware: dict[str, Scalar]
    command: str
    commit: str
    started: str
    """UTC, ISO 8601."""


class Recovery(msgspec.Struct, frozen=True):
    """Which share of texts' tokens an attack has read, with a 95 % interval: 2 000 bootstrap samples of texts."""

    share: float
    low: float
    high: float
    chance: float
    """What the same guesses get when they are dealt out anew: sum_v p_found(v) p_truth(v)."""
    tokens: int


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one run leaves behind, from its settings to its held-out scores."""

    format: int = FORMAT
    method: str
    seed: int
    status: Literal["done", "interrupted"]
    stopped: str = ""
    """Why training ended before its last step; empty where it did not."""
    settings: dict[str, Scalar]
    backbone: BackboneInfo
    task: TaskInfo
    curve: tuple[CurvePoint, ...]
    scores: dict[str, float] = {}
    """From the last checkpoint: ``test_accuracy``, ``test_<metric>``, ``handwritten_accuracy`` ..."""
    steps: int
    forwards: int
    bytes_sent: int
    seconds: float
    """Wall-clock seconds of training, evaluation left out."""
    cpu_seconds: float
    """CPU seconds of training, evaluation left out."""
    trainable_parameters: int
    counted: tuple[CountedMemory, ...] = ()
    measured: tuple[MeasuredMemory, ...] = ()
    timeline: tuple[Span, ...] = ()
    """When which stage of the first steps ran; empty where device and server are one process."""
    codecs: tuple[str, ...] = ()
    """Per step, where a controller chose the codec."""
    read_back: Recovery | None = None
    """Of training texts, from what this run sends of them (``device/inversion.py``); stronger attacks read more."""
    provenance: Provenance

    def save(self, path: Path) -> None:
        """Write the record as JSON; what stood there before stays whole if the write fails."""
        write_bytes(path, msgspec.json.format(msgspec.json.encode(self), indent=2))


def load_record(path: str | Path) -> RunRecord:
    """Read a record; one that is damaged or of another format version is refused with a :class:`RecordError`."""
    path = Path(path)
    try:
        raw = path.read_bytes()
        version = msgspec.json.decode(raw, type=_Version).format
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror}).") from error
    except msgspec.DecodeError as error:
        raise RecordError(f"{path}: not a run record ({error}).") from error
    if version != FORMAT:
        problem = f"{path}: a record of format {version}, this version of mobillm_kit reads format {FORMAT}."
        raise RecordError(problem, "Read it with the version that wrote it, or run it again.")
    try:
        return msgspec.json.decode(raw, type=RunRecord)
    except msgspec.DecodeError as error:
        raise RecordError(f"{path}: a damaged run record ({error}).") from error


def packaged_records(task: str) -> list[RunRecord]:
    """The records that come with a packaged ``task``; none, or damaged ones, are refused by a :class:`RecordError`."""
    path = data_folder(task) / "records.jsonl"
    try:
        return [msgspec.json.decode(line, type=RunRecord) for line in path.read_bytes().splitlines()]
    except (OSError, msgspec.DecodeError) as error:
        remedy = "The task 'turns' comes with records; `mobillm compare` makes those of another."
        raise RecordError(f"{path}: no run records ({error}).", remedy) from error


class _Version(msgspec.Struct):
    format: int
