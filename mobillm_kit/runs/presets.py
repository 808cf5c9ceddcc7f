"""Settings with names: how long and how fast each method trains on each kind of backbone.

    pocket     the packaged decoder of about a million parameters and its review task
    encoder    BERT-like models of some ten million parameters, GLUE
    decoder    decoders with prompts; the zeroth-order values are MeZO's and P-RGE's own

Found on dev sets (docs/log.md says how); test sets were read once, at the end.

Knows: numbers.  Knows nothing of: what they do.
Taught in: notebooks/09_comparison.ipynb
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mobillm_kit.errors import UnknownName


@dataclass(frozen=True)
class Preset:
    """How one method is trained."""

    steps: int
    lr: float
    batch_size: int = 16
    schedule: str = "linear"
    warmup: float = 0.0
    eval_every: int = 50
    options: dict[str, Any] = field(default_factory=dict)
    """Method options that go over the method's own defaults."""


_POCKET = {
    "full": Preset(steps=300, lr=3e-4, schedule="cosine", warmup=0.07, eval_every=25),
    "lora": Preset(steps=300, lr=3e-3, schedule="cosine", warmup=0.07, eval_every=25),
    "lst": Preset(steps=300, lr=2e-3, schedule="cosine", warmup=0.07, eval_every=25, options={"reduction": 2}),
    "mezo": Preset(steps=1000, lr=1e-4, schedule="constant", eval_every=100),
    "mezo-lora": Preset(steps=1000, lr=1e-3, schedule="constant", eval_every=100),
    "p-rge": Preset(
        steps=1200,
        lr=6.5e-3,
        batch_size=8,
        schedule="cosine",
        eval_every=100,
        # the paper's own: every projection, r 16, alpha 32; query and value alone barely reach the label words
        options={"targets": "q_proj,k_proj,v_proj,out_proj,fc1,fc2", "rank": 16, "alpha": 32, "q": 2, "clip": 1.0},
    ),
    "probe": Preset(steps=300, lr=3e-3, schedule="cosine", warmup=0.07, eval_every=25),
    "mobillm-full-width": Preset(steps=300, lr=3e-3, schedule="cosine", warmup=0.07, eval_every=25),
    "mobillm-ladder": Preset(
        steps=300, lr=2e-3, schedule="cosine", warmup=0.07, eval_every=25, options={"reduction": 2}
    ),
}

# A backward pass costs about two forward passes: 1200 forward-only steps take the device's time of 400 full ones.
# The probe gets them; the ladder needs no more than 500, and the full width is given as many.
_ENCODER = {
    "full": Preset(steps=400, lr=5e-5, warmup=0.1, eval_every=200),
    "lora": Preset(steps=400, lr=1e-3, warmup=0.1, eval_every=200),
    "lst": Preset(steps=1200, lr=1e-3, warmup=0.1, eval_every=400, options={"reduction": 4}),
    "mezo": Preset(steps=600, lr=1e-5, schedule="constant", eval_every=200),
    "mezo-lora": Preset(steps=600, lr=1e-3, schedule="constant", eval_every=200),
    "p-rge": Preset(steps=600, lr=1e-3, batch_size=4, schedule="constant", eval_every=200),
    "probe": Preset(steps=1200, lr=1e-2, warmup=0.1, eval_every=400),
    "mobillm-full-width": Preset(steps=500, lr=1e-3, warmup=0.1, eval_every=250, options={"rank": 64}),
    # begun as a copy of the backbone's last four blocks, it needs 500 steps; a random ladder overfits 7 000 sentences
    "mobillm-ladder": Preset(
        steps=500,
        lr=2e-4,
        warmup=0.1,
        eval_every=250,
        options={"start": "backbone", "reduction": 1, "layers": 5},
    ),
}

_DECODER = {
    "full": Preset(steps=400, lr=1e-4, warmup=0.1, eval_every=100),
    "lora": Preset(steps=400, lr=1e-3, warmup=0.1, eval_every=100),
    "lst": Preset(steps=1200, lr=2e-3, warmup=0.1, eval_every=200),
    "mezo": Preset(steps=1000, lr=1e-6, schedule="constant", eval_every=100),
    "mezo-lora": Preset(steps=1000, lr=5e-5, schedule="constant", eval_every=100),
    "p-rge": Preset(steps=1000, lr=1e-4, batch_size=4, schedule="constant", eval_every=100),
    "probe": Preset(steps=1200, lr=3e-3, warmup=0.1, eval_every=200),
    "mobillm-full-width": Preset(steps=1200, lr=3e-3, warmup=0.1, eval_every=200),
    "mobillm-ladder": Preset(steps=1200, lr=2e-3, warmup=0.1, eval_every=200),
}

_ALIKE = {"full-checkpointing": "full", "lora-checkpointing": "lora", "lora-fa": "lora", "bitfit": "lora"}
"""Methods that are trained as another one is."""

PRESETS: dict[str, dict[str, Preset]] = {
    name: {**rows, **{method: rows[other] for method, other in _ALIKE.items()}}
    for name, rows in {"pocket": _POCKET, "encoder": _ENCODER, "decoder": _DECODER}.items()
}


def preset(backbone_class: str, method: str) -> Preset:
    """The settings of a method on a class of backbones."""
    try:
        return PRESETS[backbone_class][method]
    except KeyError:
        raise UnknownName(f"There is no preset for '{method}' on '{backbone_class}'.") from None
