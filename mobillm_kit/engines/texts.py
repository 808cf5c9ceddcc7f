"""The texts of a run whose backbone is an exported folder: tokenized, in their order, without PyTorch.

Knows: specifications, exported folders, texts.  Knows nothing of: torch, methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from mobillm_kit.engines.engine import Exported
from mobillm_kit.engines.tokens import FileTokenizer
from mobillm_kit.errors import BadInput
from mobillm_kit.runs.data import LONGEST_TEXT, load_data
from mobillm_kit.runs.presets import Preset, preset
from mobillm_kit.runs.progress import Progress
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.texts.batches import Batches, FitSettings
from mobillm_kit.texts.encode import Encoded, TextEncoder
from mobillm_kit.texts.tasks import Example


@dataclass(frozen=True, eq=False)
class Texts:
    """What a run trains on."""

    encoder: TextEncoder
    train: list[Encoded]
    dev: list[Example]
    """Not tokenized yet: not every run looks at them."""
    batches: Batches


def check_spec(spec: RunSpec) -> None:
    """Refuse what only PyTorch does."""
    plain = RunSpec(method=spec.method)
    for name in ("random_weights", "dtype", "weights", "stream", "revision", "head", "patience"):
        if getattr(spec, name) != getattr(plain, name):
            option = f"--{name.replace('_', '-')}"
            raise BadInput(f"{option} is not there with an engine.", f"Leave {option} out, or take --engine torch.")


def usual(spec: RunSpec, engine: Exported) -> Preset:
    """How the method is usually trained on the backbone that was exported."""
    return preset(replace(spec, backbone=engine.manifest.name), engine.manifest.kind, spec.method)


def open_texts(spec: RunSpec, engine: Exported, found: Preset, told: Callable[[Progress], object]) -> Texts:
    """Read, tokenize and order a specification's texts; ``told`` hears of labels and of texts that are left out."""
    about = engine.manifest
    tokenizer: Any = FileTokenizer(engine.folder / "tokenizer.json", about.words)
    data = load_data(spec, tokenizer)
    for note in (f"Labels: {data.label_counts}.", *data.notes):
        told(Progress(what="texts", note=note))
    length = min(spec.max_length or LONGEST_TEXT, about.context)
    encoder = TextEncoder(tokenizer, data.task, about.kind, length, spec.padding_side, about.rows)
    train = encoder.encode(data.train)
    own = {name: getattr(spec, name) for name in FitSettings.__dataclass_fields__}
    given = {name: value for name, value in own.items() if value is not None}
    return Texts(encoder, train, list(data.dev), Batches(train, encoder, FitSettings(**{**found.settings, **given})))
