"""The gate of the task: does it tell the methods apart?

Counting words and prompting alone find nothing; what a classifier reads at the prediction token is little; what a
token-wise side network makes of it is more; whoever reads all tokens, or changes the backbone, solves it.

Knows: runs, accuracies on dev.  Knows nothing of: how a method works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mobillm_kit.runs.run import run
from mobillm_kit.runs.spec import RunSpec
from recipes.pocket.gate import Bar

METHODS = ("bag-of-words", "zero-shot", "full", "lora", "probe", "mobillm-full-width", "mobillm-ladder")


def figures(backbone: str, seed: int, listener: Callable[[str], None] = lambda method: None) -> dict[str, float]:
    """Accuracy on dev (0 .. 1) by method, each trained once on the presets; ``listener`` hears which begins."""
    found = {}
    for method in METHODS:
        listener(method)
        record = run(RunSpec(method=method, backbone=backbone, task="turns", preset="turns", seed=seed))
        found[method] = record.curve[-1].dev_accuracy if record.curve else record.scores["dev_accuracy"]
    return found


def bars(found: Mapping[str, float]) -> list[Bar]:
    """The bars of accuracies by method; means where there are several seeds."""
    full, probe, width = found["full"], found["probe"], found["mobillm-full-width"]
    return [
        Bar("bag of words", found["bag-of-words"], high=0.60),
        Bar("zero-shot by prompt", found["zero-shot"], high=0.60),
        Bar("full fine-tuning", full, 0.92),
        Bar("LoRA, within 2 points of full", found["lora"], full - 0.02),
        Bar("linear probe, 15 points under full", probe, high=full - 0.15),
        Bar("MobiLLM full width, 3 points over the probe", width, probe + 0.03),
        Bar("MobiLLM ladder, within 4 points of full and 5 over full width", found["mobillm-ladder"],
            max(full - 0.04, width + 0.05)),
    ]  # fmt: skip
