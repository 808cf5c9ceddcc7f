"""The one training loop: every method goes through it, and it knows none of them.

    for step in 0 .. steps-1:   method.step(batches.step(step), batches.lr(step))

Knows: the method's protocol, the order of batches, checkpoints.  Knows nothing of: any single method, models, pictures.
Taught in: notebooks/09_comparison.ipynb
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from mobillm_kit.errors import BadInput, NotEnoughMemory, TrainingDiverged, first_line
from mobillm_kit.files import write_with
from mobillm_kit.record import CurvePoint
from mobillm_kit.runs.progress import Progress, Told
from mobillm_kit.texts.batches import Batches, FitSettings
from mobillm_kit.texts.encode import Batch, Encoded, TextEncoder
from mobillm_kit.texts.metrics import finite
from mobillm_kit.training.method import Method, Pipelined

INTERRUPTED = "interrupted"


class FitResult(msgspec.Struct):
    """Where a training stands, and in the end what it leaves to the record; it travels in the checkpoint's header."""

    settings: str = ""
    steps: int = msgspec.field(default=0, name="step")
    forwards: int = 0
    bytes_sent: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
    losses_known: int = 0
    best_dev_loss: float | None = None
    worse_evaluations: int = 0
    stopped: str = ""
    curve: list[CurvePoint] = []

    @property
    def status(self) -> Literal["done", "interrupted"]:
        """Whether somebody stopped it before its end."""
        return "interrupted" if self.stopped == INTERRUPTED else "done"

    def of_the_record(self) -> dict[str, Any]:
        """The fields that a record has as well."""
        same = ("status", "stopped", "steps", "forwards", "bytes_sent", "seconds", "cpu_seconds")
        return {"curve": tuple(self.curve), **{name: getattr(self, name) for name in same}}


def fit(
    method: Method,
    batches: Batches,
    *,
    dev: Sequence[Encoded],
    checkpoint: Path | None = None,
    callbacks: Sequence[Told] = (),
) -> FitResult:
    """Train ``method`` and evaluate it on ``dev`` as it goes; where ``checkpoint`` exists, from there on.

    A callback that returns True stops it after the step, as Ctrl-C does.
    """
    settings = batches.settings
    progress = _resume(method, settings, checkpoint)
    if not progress.curve:
        _evaluate(method, dev, batches, progress)
    with stop_after_step() as asked_to_stop:
        stop = asked_to_stop()
        while progress.steps < settings.steps and not progress.stopped and not stop:
            loss = _timed_step(method, batches, progress)
            accuracy = None
            if progress.steps % settings.eval_every == 0 or progress.steps == settings.steps:
                _settle(method, progress)
                point = _evaluate(method, dev, batches, progress)
                accuracy = point.dev_accuracy
                _judge(progress, settings, point)
                _save(method, progress, checkpoint)
            said = Progress(step=progress.steps, steps=settings.steps, loss=loss, dev_accuracy=accuracy)
            stop = True in [callback(said) for callback in callbacks] or asked_to_stop()
        if stop and progress.steps < settings.steps:
            _settle(method, progress)
            _save(method, progress, checkpoint)
            progress.stopped = INTERRUPTED  # not in the checkpoint: from there it goes on
    return progress


@torch.no_grad()
def evaluate(
    method: Method,
    examples: Sequence[Encoded],
    encoder: TextEncoder,
    *,
    batch_size: int = 64,
    device: str = "cpu",
    on_batch: Callable[[int], object] = id,
) -> tuple[float, Tensor]:
    """Mean cross-entropy in nats and the predicted labels, (N,) int64; ``on_batch`` is told how many are done."""
    logits = logits_of(method.logits, examples, encoder, batch_size, device, on_batch)
    labels = torch.tensor([example.label for example in examples])
    return F.cross_entropy(logits, labels).item(), logits.argmax(dim=-1)


@torch.no_grad()
def logits_of(
    logits: Callable[[Batch], Tensor],
    rows: Sequence[Encoded],
    encoder: TextEncoder,
    size: int,
    device: str,
    on_batch: Callable[[int], object] = id,
) -> Tensor:
    """(N, C) finite float32 logits; texts of like length share a batch: half of SST-2's tokens were padding."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row].ids))
    found = []
    for start in range(0, len(rows), size):
        batch = encoder.collate([rows[row] for row in order[start : start + size]]).to(device)
        found.append(finite(logits(batch)).float().cpu())
        on_batch(min(start + size, len(rows)))
    return torch.cat(found)[torch.tensor(order).argsort()]


@contextmanager
def stop_after_step() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether somebody has asked to stop (Ctrl-C, or a polite kill).

    A step that is cut in its middle leaves perturbed weights or half an optimizer update behind. The first Ctrl-C is
    noted and the loop stops after the step; the second one stops at once.
    """
    asked = False

    def _note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # Python delivers signals to the main thread only
        return
    before = {number: signal.signal(number, _note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _timed_step(method: Method, batches: Batches, progress: FitResult) -> float | None:
    batch = batches.step(progress.steps)
    with _timed(progress), fit_memory_error(method, batch):
        result = method.step(batch, batches.lr(batch.step))
    if result.loss is not None:
        _add_losses(method, [result.loss], progress)
    progress.steps += 1
    progress.forwards += result.forwards
    progress.bytes_sent += result.bytes_sent
    return result.loss


@contextmanager
def _timed(progress: FitResult) -> Iterator[None]:
    """Counts the body as training time."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    progress.seconds += time.perf_counter() - wall
    progress.cpu_seconds += time.process_time() - cpu


def _settle(method: Method, progress: FitResult) -> None:
    """Wait for what is under way: it belongs to training, not to evaluation."""
    if isinstance(method, Pipelined):
        with _timed(progress):
            losses, n_bytes = method.settle()
        progress.bytes_sent += n_bytes
        _add_losses(method, losses, progress)


def _add_losses(method: Method, losses: Sequence[float], progress: FitResult) -> None:
    for loss in losses:
        if not math.isfinite(loss):
            problem = f"{method.name}: the loss of step {progress.losses_known + 1} is {loss}."
            raise TrainingDiverged(problem, "Lower the learning rate; the last good checkpoint is kept.")
        progress.loss_sum += loss
        progress.loss_count += 1
        progress.losses_known += 1


@contextmanager
def fit_memory_error(method: Method, batch: Batch) -> Iterator[None]:
    """Turns a failed allocation into an error that names the method and its counted need."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in text:
            raise
        raise NotEnoughMemory(
            f"{method.name}: a batch of {batch.rows} x {batch.input_ids.shape[1]} tokens does not fit into memory "
            f"({first_line(error)}); {counted_need(method, batch)}.",
            "Take a smaller batch or shorter texts, or a method that keeps less: see `mobillm methods`.",
        ) from error


def counted_need(method: Method, batch: Batch) -> str:
    """The ledger's total for this method, as a clause; the smallest batch stands in where even counting fails."""
    try:
        total = sum(party.total_bytes for party in method.count_memory(batch))
        return f"the ledger counts {total / 2**20:.0f} MiB for this batch"
    except (MemoryError, RuntimeError):
        trained = sum(tensor.numel() * tensor.element_size() for tensor in method.trained().values())
        return f"the trained parameters alone take {trained / 2**20:.0f} MiB, their gradients and moments as much again"


def _evaluate(method: Method, dev: Sequence[Encoded], batches: Batches, progress: FitResult) -> CurvePoint:
    dev_loss, predictions = evaluate(method, dev, batches.encoder, device=batches.device)
    labels = torch.tensor([example.label for example in dev])
    point = CurvePoint(
        step=progress.steps,
        forwards=progress.forwards,
        seconds=progress.seconds,
        bytes_sent=progress.bytes_sent,
        train_loss=progress.loss_sum / progress.loss_count if progress.loss_count else None,
        dev_loss=dev_loss,
        dev_accuracy=(predictions == labels).float().mean().item(),
    )
    progress.curve.append(point)
    progress.loss_sum, progress.loss_count = 0.0, 0
    return point


def _judge(progress: FitResult, settings: FitSettings, point: CurvePoint) -> None:
    if progress.best_dev_loss is None or point.dev_loss < progress.best_dev_loss:
        progress.best_dev_loss, progress.worse_evaluations = point.dev_loss, 0
        return
    progress.worse_evaluations += 1
    if settings.patience is not None and progress.worse_evaluations >= settings.patience:
        progress.stopped = f"no lower dev loss in {settings.patience} evaluations"


def _save(method: Method, progress: FitResult, checkpoint: Path | None) -> None:
    if checkpoint is None:
        return
    header = {"progress": msgspec.json.encode(progress).decode()}
    state = {name: tensor.contiguous() for name, tensor in method.state().items()}
    write_with(checkpoint, lambda target: save_file(state, str(target), metadata=header))


def _resume(method: Method, settings: FitSettings, checkpoint: Path | None) -> FitResult:
    name = f"{method.name} {settings}"
    if checkpoint is None or not checkpoint.exists():
        return FitResult(settings=name)
    try:
        with safe_open(str(checkpoint), framework="pt") as file:
            progress = msgspec.json.decode(file.metadata()["progress"], type=FitResult)
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, KeyError, TypeError, msgspec.DecodeError) as error:
        problem = f"{checkpoint}: not a checkpoint ({first_line(error)})."
        raise BadInput(problem, "Delete it to start again.") from error
    if progress.settings != name:
        problem = f"{checkpoint}: made with other settings ({progress.settings}), this run has ({name})."
        raise BadInput(problem, "Delete it to start again, or name another folder.")
    try:
        method.load_state(state)
    except (KeyError, RuntimeError) as error:
        problem = f"{checkpoint}: made with other options ({first_line(error)})."
        raise BadInput(problem, "Delete it to start again, or name another folder.") from error
    return progress
