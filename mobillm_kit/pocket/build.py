"""Building the pocket backbone from nothing, and seeing that it is good for something.

Knows: pretraining, runs, the gate.  Knows nothing of: how any of them works.

Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mobillm_kit.pocket import gate as gates
from mobillm_kit.pocket.pretrain import DEFAULT_TOKENS, pretrain
from mobillm_kit.record import RunRecord
from mobillm_kit.run import RunSpec, run

TRAINED = ("full", "lora", "mezo", "p-rge", *gates.NETS)
CONTROLS = ("zero-shot", "threshold", "bag-of-words")


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
    listener: Callable[[str], None] = lambda what: None,
) -> BuildReport:
    """Pretrain a pocket backbone into ``out`` and hold it against the gate, on the dev split.

    Args:
        out: folder of the model.
        seed: of text and initial weights.
        tokens: of pretraining; the full build's by default.
        gate: whether to train every method on it and check the bars.
        listener: told what is done next.

    Raises:
        SaveFailed: the folder cannot be written.
    """
    pretrain(out, seed=seed, tokens=tokens or DEFAULT_TOKENS)
    if not gate:
        return BuildReport(())
    figures: dict[str, float] = {}
    for name in CONTROLS:
        figures[name] = run(_spec(out, name)).scores["dev_accuracy"]
    for name in TRAINED:
        listener(f"gate: {name}")
        figures |= _figures(name, run(_spec(out, name)))
    for name in gates.NETS:
        listener(f"gate: {name} on random weights")
        figures[f"{gates.RANDOM}{name}"] = _dev(run(_spec(out, name, random_weights=True)))
    return BuildReport(tuple(gates.bars(figures)))


def _spec(folder: Path, method: str, *, random_weights: bool = False) -> RunSpec:
    return RunSpec(method=method, backbone=str(folder), preset="pocket", random_weights=random_weights)


def _figures(name: str, record: RunRecord) -> dict[str, float]:
    return {
        name: _dev(record),
        f"{gates.HANDWRITTEN}{name}": record.scores["handwritten_accuracy"],
        f"{gates.CPU_SECONDS}{name}": record.cpu_seconds,
    }


def _dev(record: RunRecord) -> float:
    return record.curve[-1].dev_accuracy
