"""Does a training step fit into a memory, and what would: answers from shapes alone.

    fits         predicted process <= memory
    streamed     peak - weights of the backbone + 2 blocks                 one is used while the next is read
    NF4          weights of those blocks at 4.5 bits a value + the largest matrix unpacked

Knows: predictions and sizes.  Knows nothing of: this machine, how the blocks are really read.
Taught in: notebooks/01_where_memory_goes.ipynb
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from transformers import PreTrainedConfig

from mobillm_kit.errors import BadInput
from mobillm_kit.memory.prediction import RUNTIME_BYTES, MemoryNeed, predict, shape_model, shapes_only
from mobillm_kit.methods import LABELS, method_row
from mobillm_kit.training.ledger import storage_bytes

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b", re.IGNORECASE)

NF4_BYTES = 0.5 + 4 / 64
"""Of one weight: half a byte of code, and a float32 scale for 64 of them."""

FORWARD_ONLY = "mobillm-full-width"
_TEXTS = msgspec.toml.decode(Path(__file__).with_suffix(".toml").read_bytes())
ALTERNATIVES: Mapping[str, str] = _TEXTS["alternatives"]
"""What is looked at beside the method asked for, in the order in which it is shown, and its price."""
_WHY: Mapping[str, str] = _TEXTS["why"]
_KNOWN: dict[str, tuple[MemoryNeed, ...]] = {}


@dataclass(frozen=True)
class Way:
    """One way of training, and the memory it would take."""

    label: str
    device_bytes: int
    """The whole process of the device."""
    server_bytes: int | None
    """The whole process of the server; None where there is none."""
    price: str
    """What it costs, in a few words."""

    def fits(self, ram_bytes: int) -> bool:
        """Whether it needs no more than there is."""
        return self.device_bytes <= ram_bytes


@dataclass(frozen=True)
class Step:
    """A training step to plan for."""

    config: PreTrainedConfig
    method: str
    batch_size: int
    length: int
    dtype: str = "float32"
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", method_row(self.method).name)

    def needs(self, **changes: Any) -> tuple[MemoryNeed, ...]:
        """Predicted need per party, with some of the settings changed; what was predicted is not predicted again."""
        own = {} if changes.get("method", self.method) == self.method else {"options": None}
        asked = {**vars(self), **own, **changes}
        key = repr({**asked, "config": asked["config"].to_json_string(use_diff=False)})
        if key not in _KNOWN:
            _KNOWN[key] = predict(**asked)
        return _KNOWN[key]


def parse_bytes(text: str) -> int:
    """``4GiB``, ``512 MiB``, ``4GB`` (10^9) as a number of bytes; BadInput below any process's need."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        problem = f"'{text}' is not an amount of memory."
        raise BadInput(problem, "Write a number and a unit, such as 4GiB, 512MiB or 4GB.")
    number, prefix, binary = found.groups()
    size = int(float(number) * (1024 if binary else 1000) ** " kmgt".index((prefix or " ").lower()))
    if size < RUNTIME_BYTES:
        problem = f"'{text}' is less than Python and torch take before any model ({RUNTIME_BYTES // 2**20} MiB)."
        raise BadInput(problem, "Write the memory of the whole device, such as 4GiB.")
    return size


def reason(need: MemoryNeed, ram_bytes: int) -> str:
    """One or two sentences: whether it fits, and what takes the room."""
    over = need.process_bytes - ram_bytes
    if over <= 0:
        return f"It fits: {_mib(-over)} are left."
    alive = need.at_peak
    if alive.weights + RUNTIME_BYTES > ram_bytes:
        rest = "what fits must hold fewer of them at a time, or fewer bits of each."
        why = f"The weights alone take {_mib(alive.weights)}; {rest}"
    else:
        why = f"Beside the weights most goes to {_WHY[max(_WHY, key=lambda name: getattr(alive, name))]}"
    return f"It does not fit: {_mib(over)} too much. {why}"


def alternatives(step: Step, ram_bytes: int) -> Iterator[Way]:
    """Other ways of training the same model on the same batch, smaller batches first.

    Each is predicted when it is asked for (a second or two on a billion parameters).
    """
    largest = largest_batch(step, ram_bytes)
    if largest is not None and largest[0] != step.batch_size:
        size, needs = largest
        times = -(-step.batch_size // size)
        yield _way(f"{LABELS[step.method]}, batch {size}", needs, f"{times} × the steps for the same texts")
    for method, price in ALTERNATIVES.items():
        with suppress(BadInput):  # MeZO takes no rounded weights
            if method != step.method:
                yield _way(LABELS[method], step.needs(method=method), price)
    if step.dtype == "float32":
        half = step.needs(method=FORWARD_ONLY, dtype="bfloat16")
        yield _way(f"{LABELS[FORWARD_ONLY]}, bfloat16", half, "rounded weights")
    yield from streamed(step)


def largest_batch(step: Step, ram_bytes: int) -> tuple[int, tuple[MemoryNeed, ...]] | None:
    """The largest batch up to the step's own with which its method fits, and its need; None where one text is too much.

    More texts never take less memory, so the place is found by bisection: log2(B) + 1 predictions.
    """
    sizes = range(1, step.batch_size + 1)
    size = bisect_right(sizes, ram_bytes, key=lambda size: step.needs(batch_size=size)[0].process_bytes)
    return (size, step.needs(batch_size=size)) if size else None


def streamed(step: Step) -> Iterator[Way]:
    """Ways in which the backbone's blocks are read from disk one after the other and dropped again.

    ``--stream`` runs them: MobiLLM's device, also with NF4 weights, LoRA with checkpointing (MeBP, arXiv 2510.03425).
    """
    half = "bfloat16"
    whole, block, matrix = backbone_bytes(step.config, half)
    # one tap: each is sent as it appears and then freed
    device = step.needs(method=FORWARD_ONLY, dtype=half, options={"layers": 1})[0].at_peak
    server = step.needs(method=FORWARD_ONLY, dtype=half)[1].process_bytes
    working = device.total - device.weights
    yield Way(
        "MobiLLM, bfloat16 blocks streamed", 2 * block + working + RUNTIME_BYTES, server, "a server, a link, reading"
    )
    packed = int(2 * block / 2 * NF4_BYTES) + matrix
    yield Way("MobiLLM, NF4 blocks streamed", packed + working + RUNTIME_BYTES, server, "the same, and coarser weights")
    exact = step.needs(method="lora-checkpointing", dtype=half, options=None)[0].at_peak
    alone = exact.total - whole + 2 * block + RUNTIME_BYTES
    price = "two readings of the model a step; no server"
    yield Way("LoRA + checkpointing, bfloat16 blocks streamed", alone, None, price)


def backbone_bytes(config: PreTrainedConfig, dtype: str) -> tuple[int, int, int]:
    """Bytes of the whole backbone, of its largest block, and of the largest matrix in a block."""
    with shapes_only():
        backbone = shape_model(config, dtype=dtype).backbone
        blocks = [list(block.parameters()) for block in backbone.blocks]
        return (
            storage_bytes([*backbone.parameters(), *backbone.buffers()]),
            max(storage_bytes(block) for block in blocks),
            max(tensor.numel() * tensor.element_size() for block in blocks for tensor in block),
        )


def table(need: MemoryNeed) -> list[tuple[str, int | None, int]]:
    """Rows of one party: category, bytes at its own highest, bytes at the peak of the step; the process last."""
    counted, names = need.counted.by_category, {"saved": "saved activations"}
    return [
        *((names.get(part, part), counted.get(part), alive) for part, alive in vars(need.at_peak).items()),
        ("tensors", None, need.peak_bytes),
        ("Python, torch, libraries", None, RUNTIME_BYTES),
        ("whole process", None, need.process_bytes),
    ]


def _way(label: str, needs: tuple[MemoryNeed, ...], price: str) -> Way:
    server = needs[1].process_bytes if len(needs) > 1 else None
    return Way(label, needs[0].process_bytes, server, price)


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.0f} MiB"
