"""What a job asks of a node: cores, memory, a GPU.

    memory = predicted process of the device (+ that of a server it starts)       mobillm_kit/memory/prediction.py

Knows: specifications, predictions of memory.  Knows nothing of: Ray, nodes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from mobillm_kit.backbone.pretrained import architecture, backbone_kind
from mobillm_kit.cluster.order import Need, places
from mobillm_kit.errors import KitError
from mobillm_kit.memory.budget import Step, backbone_bytes
from mobillm_kit.memory.prediction import RUNTIME_BYTES
from mobillm_kit.methods import method_row
from mobillm_kit.runs.compare import Job
from mobillm_kit.runs.data import LONGEST_TEXT
from mobillm_kit.runs.folders import load_spec
from mobillm_kit.runs.presets import preset
from mobillm_kit.runs.spec import RunSpec

OF_THE_LINK = ("codec", "group", "server", "labels", "cache", "checkpoint_every", "link", "keys", "patience_s")
"""Options of MobiLLM's uplink; what they take is no part of the prediction."""
CONTROL = "probe"
"""What stands for a control, which only forwards texts: the smallest of what is trained."""


def need_of(job: Job, threads: int) -> Need:
    """Of the run in a job's folder that needs most; ``--accelerator cuda`` asks for a GPU."""
    specs = [load_spec(place) for place in places(job)]
    each = [_memory_bytes(msgspec.json.encode(spec), alone=job.arguments[0] == "memory") for spec in specs]
    return Need(threads, max(each), int(any(spec.accelerator == "cuda" for spec in specs)))


@cache
def _memory_bytes(spec_json: bytes, alone: bool) -> int:
    """What cannot be predicted (an architecture that only its files know) asks for Python and torch alone."""
    try:
        return _predicted(msgspec.json.decode(spec_json, type=RunSpec), alone)
    except KitError:
        return RUNTIME_BYTES


def _predicted(spec: RunSpec, alone: bool) -> int:
    config: Any = architecture(spec.backbone)
    method = spec.method if method_row(spec.method).trained else CONTROL
    usual = preset(spec, backbone_kind(spec.backbone, revision=spec.revision), method)
    options = {**usual.options, **(spec.options if method == spec.method else {})}
    options = {name: value for name, value in options.items() if name not in OF_THE_LINK}
    context = getattr(config, "max_position_embeddings", None) or LONGEST_TEXT
    length = min(spec.max_length or LONGEST_TEXT, context)
    batch_size = spec.batch_size or usual.settings["batch_size"]
    needs = Step(config, method, batch_size, length, spec.dtype, options).needs()
    sizes = [need.process_bytes for need in needs]
    if spec.stream:
        whole, block, _ = backbone_bytes(config, spec.dtype)
        sizes[0] += 2 * block - whole
    elsewhere = spec.kept().options.get("server") == "elsewhere"
    return sizes[0] if elsewhere else max(sizes) if alone else sum(sizes)
