"""Building the pocket backbone from nothing, and seeing that it is good for something.

Knows: pretraining, runs, the gate.  Knows nothing of: how any of them works.

Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mobillm_kit.record import RunRecord
from mobillm_kit.runs.run import run
from mobillm_kit.runs.spec import RunSpec
from recipes.pocket import gate as gates
from recipes.pocket.pretrain import DEFAULT_TOKENS, pretrain

TRAINED = ("full", "lora", "mezo", "p-rge", *gates.NETS)
UNTRAINED = ("zero-shot", "threshold", "bag-of-words")


@dataclass(frozen=True)
class BuildReport:
    """The gate's verdict; no bars where it was not asked."""

    bars: tuple[gates.Bar, ...]

    @property
    def passed(self) -> bool:
        return all(bar.ok for bar in self.bars)


def build_pocket(
    out: Path,
    *,
    seed: int = 0,
    tokens: int | None = None,
    gate: bool = True,
    listener: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> BuildReport:
    """Pretrain a pocket backbone into ``out`` and hold it against the gate, on the dev split.

    Args:
        out: folder of the model.
        seed: of text and initial weights.
        tokens: of pretraining; the full build's by default.
        gate: whether to train every method on it and check the bars.
        listener: told which run of the gate begins, how many are done, and of how many.

    Raises:
        SaveFailed: the folder cannot be written.
    """
    pretrain(out, seed=seed, tokens=tokens or DEFAULT_TOKENS)
    return BuildReport(tuple(gates.bars(gate_figures(out, listener))) if gate else ())


def gate_figures(folder: Path, listener: Callable[[str, int, int], None]) -> dict[str, float]:
    """What the gate asks for: every run once, accuracies on dev, and on the sentences written by hand."""
    specs = [_spec(folder, name) for name in (*UNTRAINED, *TRAINED)]
    specs += [_spec(folder, name, random_weights=True) for name in gates.NETS]
    figures: dict[str, float] = {}
    for done, spec in enumerate(specs):
        listener(spec.method, done, len(specs))
        figures |= _figures(spec, run(spec))
    return figures


def _spec(folder: Path, method: str, *, random_weights: bool = False) -> RunSpec:
    return RunSpec(method=method, backbone=str(folder), preset="pocket", random_weights=random_weights)


def _figures(spec: RunSpec, record: RunRecord) -> dict[str, float]:
    dev = record.curve[-1].dev_accuracy if record.curve else record.scores["dev_accuracy"]
    if spec.random_weights:
        return {f"{gates.RANDOM}{spec.method}": dev}
    return {
        spec.method: dev,
        f"{gates.HANDWRITTEN}{spec.method}": record.scores["handwritten_accuracy"],
        f"{gates.CPU_SECONDS}{spec.method}": record.cpu_seconds,
    }
