"""Small real runs across a link: a tiny saved model, a CSV of texts, a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import torch
from safetensors.torch import save

from mobillm_kit.engines import training
from mobillm_kit.methods.mobillm import MobiLLM
from mobillm_kit.runs.loop import FitResult, fit
from mobillm_kit.runs.prepare import build_method, prepare, training_batches
from mobillm_kit.runs.progress import Progress
from tests.builders import tiny_spec


def trained(
    place: Path,
    server: str,
    *,
    side: str = "ladder",
    model: str = "opt",
    steps: int = 12,
    checkpoint: Path | None = None,
    after_step: Callable[[int], None] = lambda step: None,
    before: Callable[[MobiLLM], None] = lambda method: None,
    settings: Mapping[str, Any] | None = None,
    **options,
) -> tuple[bytes, FitResult]:
    """The trained side network's bytes, and what the loop says."""
    options = {"server": server, **shape(side), **options}
    spec = tiny_spec(place, f"mobillm-{side}", model, steps=steps, eval_every=6, options=options, **(settings or {}))
    prepared = prepare(spec)
    method = build_method(prepared)
    before(method)

    def told(event: Progress) -> None:
        after_step(event.step)

    try:
        result = fit(
            method,
            training_batches(prepared),
            dev=prepared.dev[:8],
            checkpoint=checkpoint,
            callbacks=[told],
        )
        return save({name: tensor.contiguous() for name, tensor in method.trained().items()}), result
    finally:
        method.close()


def trained_in_engine(
    place: Path,
    server: str,
    *,
    side: str,
    steps: int,
    after_step: Callable[[int], None] = lambda step: None,
    **options,
) -> bytes:
    """The same run from a device without PyTorch: the bytes of its side network."""
    spec = tiny_spec(place, f"mobillm-{side}", steps=steps, options={"server": server, **shape(side), **options})
    exported = place / "exported-opt"
    if not exported.exists():
        from mobillm_kit.engines.export import export_backbone  # needs an extra

        export_backbone(spec.backbone, exported)
    with TemporaryDirectory() as out:
        spec = msgspec.structs.replace(spec, backbone=str(exported))
        training.train(spec, Path(out) / "run", lambda event: after_step(event.step))
        return (Path(out) / "run" / "side" / "model.safetensors").read_bytes()


def shape(side: str) -> dict[str, Any]:
    return {"rank": 4} if side == "full-width" else {"reduction": 2, "start": "random", "layers": None}


def one_thread() -> None:
    torch.set_num_threads(1)
