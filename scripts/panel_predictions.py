"""Predict every setting that the memory panels of the course offer, so that a slider answers at once.

    python scripts/panel_predictions.py        writes mobillm_kit/show/panel_predictions.json in ten minutes

Blocks are alike, and memory is linear in their number: a setting is predicted with two and with three blocks and
extended to the model's depth.  `tests/test_panels.py` holds the file against whole predictions.
"""

from __future__ import annotations

import copy
from itertools import product

import msgspec
from transformers import PreTrainedConfig

from mobillm_kit.backbone.pretrained import architecture
from mobillm_kit.memory.live_tensors import Alive
from mobillm_kit.memory.prediction import MemoryNeed, predict
from mobillm_kit.record import CountedMemory
from mobillm_kit.show.panels import BATCHES, LENGTHS, LOW_RANK, RANKS, STEP_METHODS, STEP_MODELS, STORED, Setting, key

SHALLOW = (2, 3)
"""Blocks."""


def settings() -> list[Setting]:
    """Of the memory panel and of the rank panel, as they are when nothing else is asked for."""
    found: list[Setting] = [(*each, None) for each in product(STEP_MODELS, STEP_METHODS, BATCHES, LENGTHS)]
    for model in ("pocket", "opt-125m"):
        found.append((model, "full", 16, 46, None))
        found += [(model, method, 16, 46, rank) for method, rank in product(LOW_RANK, RANKS)]
    return found


def extended(setting: Setting) -> tuple[MemoryNeed, ...]:
    """The prediction at the model's own depth."""
    model, method, batch, length, rank = setting
    config, options = architecture(model), {} if rank is None else {"rank": rank}
    low, high = (
        predict(_of_depth(config, blocks), method, batch_size=batch, length=length, options=options)
        for blocks in SHALLOW
    )
    further = config.num_hidden_layers - SHALLOW[0]
    return tuple(_line(one, other, further) for one, other in zip(low, high, strict=True))


def _of_depth(config: PreTrainedConfig, blocks: int) -> PreTrainedConfig:
    shallow = copy.deepcopy(config)
    shallow.num_hidden_layers = blocks
    return shallow


def _line(low: MemoryNeed, high: MemoryNeed, further: int) -> MemoryNeed:
    """One more block than ``low`` gives ``high``; ``further`` more give this."""

    def at(one: int, other: int) -> int:
        return one + further * (other - one)

    alive = {part: at(n, getattr(high.at_peak, part)) for part, n in vars(low.at_peak).items()}
    names = [name for name in CountedMemory.__struct_fields__ if name != "party"]
    counted = {name: at(getattr(low.counted, name), getattr(high.counted, name)) for name in names}
    return MemoryNeed(low.party, Alive(**alive), lambda: CountedMemory(party=low.party, **counted))


def main() -> None:
    """Write the file."""
    found = {key(setting): extended(setting) for setting in settings()}
    rows = {key: [(need.counted, need.at_peak) for need in needs] for key, needs in found.items()}
    lines = [msgspec.json.encode({key: row}).decode()[1:-1] for key, row in rows.items()]
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
