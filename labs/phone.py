"""A device with 600 MiB on a link of 20 Mb/s: what a design costs there, and what it learns on the pocket model.

    design = {"method": "mobillm-full-width", "blocks": "nf4", "batch": 8, "layers": 4, "codec": "int8",
              "tokens": "one", "cache": False}

    memory       the library's prediction for OPT-1.3B; a whole model along the line of 2 and 3 blocks
    one epoch    steps · max(reading + computing, link)             stages overlap: the slowest sets the pace
    sent         epochs · texts · layers · tokens · width · bits / 8             one epoch only with the cache
    accuracy     real trainings on the pocket model with the same choice, in float32

Knows: the library's public face.  Knows nothing of: limits, points.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import mobillm_kit as kit

MODEL, LENGTH, TEXTS, EPOCHS = "opt-1.3b", 128, 1000, 3
WIDTH, N_BLOCKS, PARAMETERS = 2048, 24, 1.3e9
FLASH_BYTES_PER_S, FLOP_PER_S = 1e9, 1e12
"""Assumed, not measured: flash that reads 1 GB/s, and 10^12 operations a second."""
LINK = kit.Link(20.0, latency_ms=15.0)
GROUP = 64

CHOICES: Mapping[str, tuple[Any, ...]] = {
    "method": ("full", "lora", "lora-checkpointing", "probe", "mobillm-full-width"),
    "blocks": ("whole", "bfloat16", "nf4"),
    "layers": (1, 2, 3, 4),
    "codec": ("fp32", "fp16", "int8", "int4", "int2", "sign"),
}
PASSES = {"full": 3, "lora": 3, "lora-checkpointing": 4}
"""Forward passes' worth of arithmetic in a step; 1 for the others."""
STEPS = {"reviews": 40, "turns": 300}
SENDS = "mobillm-full-width"


def problem(design: Mapping[str, Any]) -> str:
    """What is wrong with a design, as a sentence; empty where it can be priced."""
    for name, allowed in CHOICES.items():
        if design.get(name) not in allowed:
            return f"`{name}` is {design.get(name)!r}; choose one of {', '.join(map(str, allowed))}."
    tokens, batch = design.get("tokens", "one"), design.get("batch")
    if not isinstance(batch, int) or not 1 <= batch <= 64:
        return f"`batch` is {batch!r}; choose a number from 1 to 64."
    if tokens not in ("one", "all") and not (isinstance(tokens, int) and 1 <= tokens <= LENGTH):
        return f"`tokens` is {tokens!r}; choose 'one', 'all' or a number from 1 to {LENGTH}."
    if design["blocks"] != "whole" and design["method"] in ("full", "lora"):
        return f"'{design['method']}' changes or keeps the whole model: its blocks cannot be streamed."
    if design["blocks"] == "nf4" and design["method"] == "lora-checkpointing":
        return "LoRA goes back through the blocks; these have to be in floating point for that."
    return ""


def step_on(n_blocks: int, batch: int, method: str = "lora") -> kit.Step:
    """The step of a batch on the model, cut to so many blocks."""
    config = kit.architecture(MODEL)
    config.num_hidden_layers = n_blocks
    return kit.Step(config, method, batch_size=batch, length=LENGTH, dtype="bfloat16")


@cache
def streamed_bytes(batch: int) -> dict[str, int]:
    """The whole process of a device that streams MobiLLM's blocks, by the kind of its blocks; any depth."""
    ways = kit.streamed(step_on(2, batch))
    return {blocks: next(ways).device_bytes for blocks in ("bfloat16", "nf4")}


@cache
def _deep_bytes(method: str, blocks: str, batch: int) -> int:
    def of(n_blocks: int) -> int:
        step = step_on(n_blocks, batch, method)
        if blocks == "whole":
            return step.needs()[0].process_bytes
        return next(way for way in kit.streamed(step) if way.label.startswith("LoRA")).device_bytes

    return of(2) + (N_BLOCKS - 2) * (of(3) - of(2))


def memory_bytes(design: Mapping[str, Any]) -> int:
    """The device's whole process.  The probe's is MobiLLM's; tokens that are picked at the end wait in every layer."""
    if wrong := problem(design):
        raise ValueError(wrong)
    method, blocks, batch = (design[name] for name in ("method", "blocks", "batch"))
    streams = blocks != "whole" and method != "lora-checkpointing"
    need = streamed_bytes(batch)[blocks] if streams else _deep_bytes(method, blocks, batch)
    picked = method == SENDS and isinstance(design.get("tokens"), int)
    return need + picked * design["layers"] * batch * LENGTH * WIDTH * 2


def text_bytes(design: Mapping[str, Any]) -> float:
    """What one text puts on the line."""
    if design["method"] != SENDS:
        return 0.0
    tokens = {"one": 1, "all": LENGTH}.get(design["tokens"], design["tokens"])
    bits = kit.bits_per_value(kit.codec(design["codec"], GROUP), WIDTH)
    return design["layers"] * tokens * WIDTH * bits / 8


def sent_bytes(design: Mapping[str, Any]) -> float:
    """What the whole training puts on the line."""
    return (1 if design.get("cache") else EPOCHS) * TEXTS * text_bytes(design)


def step_cost(design: Mapping[str, Any]) -> kit.StepCost:
    """One step: what the device reads and computes, what is on the line; the server is quick."""
    method, batch = design["method"], design["batch"]
    _, block, _ = _backbone_bytes()
    bits = {"whole": 0.0, "bfloat16": 1.0, "nf4": 4.5 / 16}[design["blocks"]]
    reads = N_BLOCKS * block * bits * (2 if method == "lora-checkpointing" else 1)
    computes = PASSES.get(method, 1) * 2 * PARAMETERS * LENGTH * batch
    return kit.StepCost(reads / FLASH_BYTES_PER_S + computes / FLOP_PER_S, int(batch * text_bytes(design)), 0.0)


def epoch_seconds(design: Mapping[str, Any]) -> tuple[str, float]:
    """Who sets the pace of the first epoch, and its seconds."""
    who, seconds = kit.slowest(step_cost(design), LINK)
    return who, -(-TEXTS // design["batch"]) * seconds


@cache
def _backbone_bytes() -> tuple[int, int, int]:
    return kit.backbone_bytes(step_on(2, 1).config, "bfloat16")


def accuracy(design: Mapping[str, Any], task: str) -> float:
    """Dev accuracy of a real training on the pocket model, in float32; method, layers and so on are the design's."""
    options: dict[str, Any] = {}
    if design["method"] == SENDS:
        tokens = design["tokens"]
        options = {"layers": design["layers"], "codec": design["codec"], "group": GROUP}
        sent = {"one": "prediction", "all": "all"}
        options |= {"tokens": sent[tokens]} if tokens in sent else {"top_tokens": tokens}
    return _trained(design["method"], task, tuple(sorted(options.items())))


@cache
def _trained(method: str, task: str, options: tuple[tuple[str, Any], ...]) -> float:
    length: dict[str, Any] = {"steps": STEPS[task], "eval_every": STEPS[task], "limit_dev": 120, "limit_test": 1}
    spec = kit.RunSpec(method=method, task=task, options=dict(options), accelerator="cpu", read_back=False, **length)
    return kit.run(spec).curve[-1].dev_accuracy
