"""The build gate: is a pocket backbone the teaching instrument that it should be?

Each bar is one sentence about accuracies: prompting alone is fair but not good, no threshold and no bag of words
explains the rest, every method gains, and a random backbone gains nothing.

Knows: accuracies by method.  Knows nothing of: how they were obtained.

Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RANDOM = "random/"
"""Before a method's name: the same method on a backbone with random weights."""
HANDWRITTEN = "handwritten/"
"""Before a method's name: its accuracy on the sentences written by hand."""
CPU_SECONDS = "cpu-seconds/"
"""Before a method's name: CPU seconds of its training."""

NETS = ("mobillm-full-width", "mobillm-ladder")


@dataclass(frozen=True)
class Bar:
    """One requirement with its figure."""

    what: str
    value: float
    low: float = float("-inf")
    high: float = float("inf")

    @property
    def ok(self) -> bool:
        return self.low - 1e-9 <= self.value <= self.high + 1e-9

    def __str__(self) -> str:
        need = [f">= {self.low:.3f}"] if self.low > float("-inf") else []
        need += [f"<= {self.high:.3f}"] if self.high < float("inf") else []
        if not need:
            return f"[--] {self.what}: {self.value:.3f}"
        return f"[{'ok' if self.ok else 'fail'}] {self.what}: {self.value:.3f} ({' and '.join(need)})"


def bars(figures: Mapping[str, float]) -> list[Bar]:
    """The bars of one backbone.

    Args:
        figures: accuracy (0 .. 1) by method, and under the prefixes above; means where there are several seeds.
    """
    zero = figures["zero-shot"]
    full = figures["full"]
    return [
        Bar("zero-shot by prompt", zero, 0.60, 0.80),
        Bar("one threshold on the zero-shot logits", figures["threshold"], high=zero + 0.03),
        Bar("bag of words", figures["bag-of-words"], high=0.75),
        Bar("full fine-tuning", full, 0.95),
        Bar("LoRA, within 2 points of full", figures["lora"], full - 0.02),
        Bar("MeZO, 10 points over zero-shot", figures["mezo"], zero + 0.10),
        Bar("MeZO, CPU seconds", figures[f"{CPU_SECONDS}mezo"], high=60),
        Bar("P-RGE, 10 points over zero-shot", figures["p-rge"], zero + 0.10),
        Bar("P-RGE, CPU seconds", figures[f"{CPU_SECONDS}p-rge"], high=60),
        Bar("MobiLLM full width, 12 points over zero-shot", figures["mobillm-full-width"], zero + 0.12),
        Bar("MobiLLM ladder, within 2 points of full", figures["mobillm-ladder"], full - 0.02),
        *(Bar(f"{net} on random weights", figures[f"{RANDOM}{net}"], high=0.55) for net in NETS),
        Bar("hand-written sentences, full", figures[f"{HANDWRITTEN}full"], 0.85),
        *(Bar(f"hand-written sentences, {net}", figures[f"{HANDWRITTEN}{net}"], 0.80) for net in NETS),
    ]
