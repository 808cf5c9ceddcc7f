"""How fast the activation codecs are: `python benchmarks/codec.py [--quick | --check]`.

The activations of one batch of OPT-1.3B, 24 taps of (8, 128, 2048) float32, on one thread.  Each codec's encoding and
decoding stand beside a plain memory copy, bitsandbytes and torchao (extra: reference), all measured in turns in one
run; the figures that count are ratios.  Seconds are the thread's own (a busy machine makes waiting longer, not work).

    copy            `clone` of each tap, kept: what sending without a codec needs; like a payload, its memory is new
    copy in place   into memory that is there already, which nothing that is sent can have: the hardest comparison

The forward of OPT-1.3B is that of one decoder layer with random weights, measured in float32 and bfloat16, times 24:
neither memory nor time depends on the values, and the whole model is not needed.

``--quick`` measures fewer repeats and writes nothing; ``--check`` holds the committed record against the bars and exits
1 where one falls short.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

from mobillm_kit.errors import MissingExtra
from mobillm_kit.files import write_bytes
from mobillm_kit.quant import CODECS, codec
from mobillm_kit.record import Provenance
from mobillm_kit.runs.provenance import clean_command, provenance

RECORD = Path(__file__).resolve().parent / "results" / "codec.json"
SHAPE = (8, 128, 2048)
LAYERS, WIDTH, HEADS, INNER = 24, 2048, 32, 8192
"""Of OPT-1.3B."""
GROUP = 64
VALUES = LAYERS * 8 * 128 * 2048

NF4_TIMES_REFERENCE, INTEGER_TIMES_COPY, LARGEST_SHARE = 5.0, 0.3, 0.05
COPY, IN_PLACE, REFERENCE = "copy", "copy in place", "bitsandbytes nf4"


class Speeds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one run measured."""

    provenance: Provenance
    repeats: int
    shape: tuple[int, ...]
    group: int
    seconds: dict[str, float]
    """Of all taps, the median over the repeats, by what was done with them."""
    forward_seconds: dict[str, float]
    """Of OPT-1.3B at this shape, by number format: one layer's times 24."""


# ---------------------------------------------------------------------- measuring


def measure(repeats: int, command: str) -> Speeds:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    taps = [torch.randn(SHAPE, generator=generator) * 3 for _ in range(LAYERS)]
    seconds = in_turns(jobs_on(taps), repeats)
    del taps
    return Speeds(
        provenance=provenance(command),
        repeats=repeats,
        shape=SHAPE,
        group=GROUP,
        seconds=seconds,
        forward_seconds={name: LAYERS * layer_seconds(kind, repeats) for name, kind in FORMATS.items()},
    )


def jobs_on(taps: list[Tensor]) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    there = [tap.clone() for tap in taps]
    jobs: dict[str, Callable[[], object]] = {
        COPY: lambda: [tap.clone() for tap in taps],
        IN_PLACE: lambda: [old.copy_(tap) for old, tap in zip(there, taps, strict=True)],
    }
    for name in CODECS:
        coder = codec(name, GROUP)
        payload = coder.encode(taps[0])
        jobs[f"{name} encode"] = lambda coder=coder: [coder.encode(tap) for tap in taps]
        jobs[f"{name} decode"] = lambda coder=coder, payload=payload: [coder.decode(payload, SHAPE) for _ in taps]
    return jobs | references(taps)


def references(taps: list[Tensor]) -> dict[str, Callable[[], object]]:
    """The same by libraries that are known for it."""
    logging.disable(logging.WARNING)  # both complain of GPU parts that are not for this machine
    try:
        from bitsandbytes.functional import quantize_4bit
        from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine
    except ModuleNotFoundError as missing:
        raise MissingExtra(
            f"The comparison needs {missing.name}, which is not installed.",
            "Install the extra: pip install 'mobillm-kit[reference]'.",
        ) from missing
    finally:
        logging.disable(logging.NOTSET)
    block = (1, 1, GROUP)

    def by_torchao(tap: Tensor) -> tuple[Tensor, Tensor]:
        scale, zero = choose_qparams_affine(tap, MappingType.SYMMETRIC, block, torch.int8, -127, 127)
        return scale, quantize_affine(tap, block, scale, zero, torch.int8, -127, 127)

    return {
        REFERENCE: lambda: [quantize_4bit(tap, blocksize=GROUP, quant_type="nf4") for tap in taps],
        "bitsandbytes fp4": lambda: [quantize_4bit(tap, blocksize=GROUP, quant_type="fp4") for tap in taps],
        "torchao int8": lambda: [by_torchao(tap) for tap in taps],
    }


def in_turns(jobs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each job; one of each, then again, so that all meet the same machine."""
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(-1, repeats):  # the first round fills tables and buffers
        for name, job in jobs.items():
            start = time.thread_time()
            kept = job()
            if turn >= 0:
                found[name].append(time.thread_time() - start)
            del kept
    return {name: statistics.median(times) for name, times in found.items()}


FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def layer_seconds(kind: torch.dtype, repeats: int) -> float:
    """Median seconds of one decoder layer's forward."""
    from transformers import OPTConfig
    from transformers.models.opt.modeling_opt import OPTDecoderLayer

    config = OPTConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, ffn_dim=INNER, num_hidden_layers=1, attn_implementation="sdpa"
    )
    generator = torch.Generator().manual_seed(0)
    layer = OPTDecoderLayer(config, layer_idx=0).to(kind).eval()
    x = torch.randn(SHAPE, generator=generator).to(kind)
    with torch.inference_mode():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
        return in_turns({"layer": lambda: layer(x)}, repeats)["layer"]


# ---------------------------------------------------------------------- reading


def gb_per_s(speeds: Speeds, name: str) -> float:
    """Of float32 activations read or written."""
    return 4 * VALUES / speeds.seconds[name] / 1e9


def times(speeds: Speeds, name: str, other: str) -> float:
    """How many times as fast as another."""
    return speeds.seconds[other] / speeds.seconds[name]


def share(speeds: Speeds, name: str, kind: str) -> float:
    """Encoding every tap, as a share of the forward."""
    return speeds.seconds[f"{name} encode"] / speeds.forward_seconds[kind]


def table(speeds: Speeds) -> str:
    """All that was measured, as Markdown."""
    lines = [
        "| | encode, GB/s | of a copy | of a copy in place | decode, GB/s | 24 taps, of an fp32 / bf16 forward |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name in CODECS:
        encode = f"{name} encode"
        lines.append(
            f"| {name} | {gb_per_s(speeds, encode):.2f} | {times(speeds, encode, COPY):.2f} "
            f"| {times(speeds, encode, IN_PLACE):.2f} | {gb_per_s(speeds, f'{name} decode'):.2f} "
            f"| {share(speeds, name, 'fp32'):.2%} / {share(speeds, name, 'bf16'):.2%} |"
        )
    for name in speeds.seconds:
        if not name.endswith(("encode", "decode")):
            lines.append(f"| *{name}* | {gb_per_s(speeds, name):.2f} | {times(speeds, name, COPY):.2f} | | | |")
    return "\n".join(lines)


def bars(speeds: Speeds) -> list[tuple[str, float, float, bool]]:
    """Name, figure, bar, held."""
    nf4 = times(speeds, "nf4 encode", REFERENCE)
    found = [("NF4 encode, times bitsandbytes", nf4, NF4_TIMES_REFERENCE, nf4 >= NF4_TIMES_REFERENCE)]
    for name in ("int8", "int4"):
        ratio = times(speeds, f"{name} encode", COPY)
        found.append((f"{name} encode, times a copy", ratio, INTEGER_TIMES_COPY, ratio >= INTEGER_TIMES_COPY))
    for kind in FORMATS:
        worst = max(CODECS, key=lambda name: speeds.seconds[f"{name} encode"])
        part = share(speeds, worst, kind)
        found.append((f"24 taps of a {kind} forward, {worst}, the slowest", part, LARGEST_SHARE, part <= LARGEST_SHARE))
    return found


def report(speeds: Speeds) -> bool:
    """Print everything; whether every bar holds."""
    print(table(speeds) + "\n")
    for name, figure, bar, held in bars(speeds):
        print(f"  {'ok  ' if held else 'FAIL'}  {name}: {figure:.3g} (bar {bar:g})")
    return all(held for *_, held in bars(speeds))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute of it; nothing is written")
    parser.add_argument("--check", action="store_true", help="hold the committed record against the bars")
    given = parser.parse_args()
    if given.check:
        if not RECORD.exists():
            print("  FAIL  benchmarks/results/codec.json: no record")
            return 1
        return 0 if report(msgspec.json.decode(RECORD.read_bytes(), type=Speeds)) else 1
    speeds = measure(2 if given.quick else 15, clean_command(sys.argv))
    held = report(speeds)
    if not given.quick:
        RECORD.parent.mkdir(exist_ok=True)
        write_bytes(RECORD, msgspec.json.format(msgspec.json.encode(speeds), indent=1) + b"\n")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
