"""Run records with numbers of realistic size and shape, for the tests of tables, plots and pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mobillm_kit.record import (
    BackboneInfo,
    CountedMemory,
    CurvePoint,
    MeasuredMemory,
    Provenance,
    RunRecord,
    Span,
    TaskInfo,
)

MIB = 2**20
WEIGHTS = 18 * MIB


@dataclass(frozen=True)
class Sketch:
    """What one method looks like, in round numbers."""

    accuracy: float
    steps: int
    seconds: float
    trainable: int
    forwards_per_sample: int = 1
    gradients_mib: float = 0.0
    optimizer_mib: float = 0.0
    saved_mib: float = 0.0
    messages_mib: float = 0.0
    server: tuple[float, float, float, float, float] | None = None


SKETCHES = {
    "full": Sketch(0.985, 400, 38.0, 4_600_000, 1, 17.6, 35.2, 61.0),
    "full-checkpointing": Sketch(0.985, 400, 52.0, 4_600_000, 1, 17.6, 35.2, 14.0),
    "lora": Sketch(0.981, 400, 30.0, 65_536, 1, 0.25, 0.5, 49.0),
    "lora-fa": Sketch(0.972, 400, 28.0, 32_768, 1, 0.125, 0.25, 40.0),
    "mezo": Sketch(0.842, 3000, 55.0, 4_600_000, 2),
    "mezo-lora": Sketch(0.835, 3000, 48.0, 65_536, 2, messages_mib=0.0),
    "p-rge": Sketch(0.861, 1500, 45.0, 32_768, 8),
    "probe": Sketch(0.802, 400, 9.0, 514, 1, 0.002, 0.004, 0.03),
    "mobillm-full-width": Sketch(0.871, 400, 14.0, 205_000, 1, messages_mib=4.2, server=(1.6, 0.8, 1.6, 9.5, 4.2)),
    "mobillm-ladder": Sketch(0.976, 400, 19.0, 310_000, 1, messages_mib=4.2, server=(2.1, 1.2, 2.4, 14.8, 4.2)),
}

CONTROLS = {"zero-shot": 0.717, "threshold": 0.731, "bag-of-words": 0.706, "majority": 0.503}

BACKBONE = BackboneInfo(
    name="pocket", revision="", fingerprint="9f2c41d07a", kind="decoder", parameters=4_600_000, layers=6,
    width=256, dtype="float32",
)  # fmt: skip
TASK = TaskInfo(name="reviews", metric="accuracy", train=2000, dev=500, test=1000)
PROVENANCE = Provenance(
    versions={"python": "3.11.7", "mobillm_kit": "0.1.0", "torch": "2.13.0+cpu"},
    hardware={"cpu": "AMD EPYC", "cores": 2, "ram_mib": 24105, "gpu": None, "threads": 1},
    command="mobillm compare",
    commit="0123456789abcdef0123456789abcdef01234567",
    started="2026-03-01T12:00:00+00:00",
)


def spans(steps: int = 6) -> list[Span]:
    """A second of forward a step, the link half of it, the server three quarters, one step behind the other."""
    found = []
    for step in range(steps):
        found += [
            Span(stage="forward", step=step, start_s=step, seconds=0.9),
            Span(stage="encode", step=step, start_s=step + 0.9, seconds=0.1),
            Span(stage="send", step=step, start_s=step + 1.0, seconds=0.5),
            Span(stage="queue", step=step, start_s=step + 1.5, seconds=0.0),
            Span(stage="decode", step=step, start_s=step + 1.5, seconds=0.05),
            Span(stage="train", step=step, start_s=step + 1.55, seconds=0.7),
        ]
    return found


def a_record(method: str = "mobillm-full-width", seed: int = 0, **changes: object) -> RunRecord:
    """One run; ``changes`` replace fields of the record."""
    sketch = SKETCHES[method]
    noise = np.random.default_rng([seed, len(method)])
    sent = 400 * 4_200_000 if sketch.server else 0
    fields = {
        "method": method,
        "seed": seed,
        "status": "done",
        "settings": {"learning_rate": 0.001, "batch": 16, "steps": sketch.steps},
        "backbone": BACKBONE,
        "task": TASK,
        "curve": _curve(sketch, noise, sent),
        "scores": {
            "test_accuracy": round(sketch.accuracy + noise.normal(0, 0.006), 3),
            "handwritten_accuracy": round(sketch.accuracy - 0.04 + noise.normal(0, 0.01), 3),
        },
        "steps": sketch.steps,
        "forwards": sketch.steps * 16 * sketch.forwards_per_sample,
        "bytes_sent": sent,
        "seconds": sketch.seconds * noise.uniform(0.95, 1.05),
        "cpu_seconds": sketch.seconds,
        "trainable_parameters": sketch.trainable,
        "counted": _counted(sketch),
        "measured": _measured(sketch, noise),
        "timeline": tuple(spans(20)) if sketch.server else (),
        "provenance": PROVENANCE,
    }
    return RunRecord(**{**fields, **changes})


def a_control(method: str, **changes: object) -> RunRecord:
    fields = {
        "method": method, "seed": 0, "status": "done", "settings": {}, "backbone": BACKBONE, "task": TASK,
        "curve": (), "scores": {"test_accuracy": CONTROLS[method], "dev_accuracy": CONTROLS[method] + 0.01},
        "steps": 0, "forwards": 0, "bytes_sent": 0, "seconds": 0.0, "cpu_seconds": 0.0,
        "trainable_parameters": 0, "provenance": PROVENANCE,
    }  # fmt: skip
    return RunRecord(**{**fields, **changes})


def a_comparison(seeds: Sequence[int] = (0, 1, 2)) -> list[RunRecord]:
    """Every method with every seed, and the controls."""
    runs = [a_record(method, seed) for method in SKETCHES for seed in seeds]
    return runs + [a_control(name) for name in CONTROLS]


def _curve(sketch: Sketch, noise: np.random.Generator, sent: int) -> tuple[CurvePoint, ...]:
    start, points = 0.72, []
    for step in np.linspace(0, sketch.steps, 11).astype(int).tolist():
        share = step / sketch.steps
        reached = start + (sketch.accuracy - start) * (1 - math.exp(-5 * share))
        accuracy = float(np.clip(reached + noise.normal(0, 0.008) * (step > 0), 0, 1))
        points.append(
            CurvePoint(
                step=step,
                forwards=step * 16 * sketch.forwards_per_sample,
                seconds=sketch.seconds * share,
                bytes_sent=int(sent * share),
                train_loss=0.7 * math.exp(-3 * share),
                dev_loss=0.7 * math.exp(-2.5 * share),
                dev_accuracy=accuracy,
            )
        )
    return tuple(points)


def _counted(sketch: Sketch) -> tuple[CountedMemory, ...]:
    device = CountedMemory(
        party="device",
        weights_bytes=WEIGHTS,
        gradients_bytes=int(sketch.gradients_mib * MIB),
        optimizer_bytes=int(sketch.optimizer_mib * MIB),
        saved_activations_bytes=int(sketch.saved_mib * MIB),
        messages_bytes=int(sketch.messages_mib * MIB),
    )
    if sketch.server is None:
        return (device,)
    weights, gradients, optimizer, saved, messages = (int(mib * MIB) for mib in sketch.server)
    server = CountedMemory(
        party="server",
        weights_bytes=weights,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        saved_activations_bytes=saved,
        messages_bytes=messages,
    )
    return (device, server)


def _measured(sketch: Sketch, noise: np.random.Generator) -> tuple[MeasuredMemory, ...]:
    loaded = 260 * MIB
    on_top = sketch.gradients_mib + sketch.optimizer_mib + sketch.saved_mib + sketch.messages_mib

    def party(name: str, mib: float) -> MeasuredMemory:
        growth = int((mib + 14 + noise.uniform(0, 2)) * MIB)
        return MeasuredMemory(
            party=name,
            loaded_rss_bytes=loaded,
            peak_rss_bytes=loaded + growth,
            average_rss_bytes=loaded + growth // 2,
            steps=20,
            how="peak: VmHWM, reset before the first step; MALLOC_MMAP_THRESHOLD_=131072; threads: 1",
        )

    if sketch.server is None:
        return (party("both", on_top),)
    return (party("device", on_top), party("server", sum(sketch.server[1:])))
