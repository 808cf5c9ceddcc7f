"""A model's shape without its weights, which name in the files belongs to which of its parameters, and random weights.

    meta model        the model as transformers builds it; parameters have a shape and no values, buffers are real
    checkpoint names  parameter -> tensor in the files (a prefix more or less, old names, tied weights once)
    random folder     a folder as save_pretrained writes it, made block by block: memory and time of a forward pass
                      do not depend on the values

Knows: configurations, names, files.  Knows nothing of: forward passes, texts, memory limits.
Taught in: notebooks/06_side_network.ipynb
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PreTrainedConfig

from mobillm_kit.backbone.families import family_of
from mobillm_kit.backbone.pretrained import check_complete, from_config
from mobillm_kit.backbone.shards import Shards, write_shards
from mobillm_kit.common import derived_seed
from mobillm_kit.errors import BadInput, KitError

_OLD_NAMES = (("gamma", "weight"), ("beta", "bias"))
"""LayerNorm's parameters in checkpoints from TensorFlow's time."""

_READ_AT_A_TIME = 4 * 2**20
"""Values."""


def meta_model(config: PreTrainedConfig, dtype: torch.dtype, masked: bool = False) -> nn.Module:
    """The model that :func:`from_config` builds, without values."""
    with torch.random.fork_rng(devices=[]), parameters_on_meta():  # the global generator stays as it was
        return from_config(config, dtype, masked).eval().requires_grad_(False)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """While it holds, every parameter that a module registers loses its values; buffers keep theirs."""

    def _without_values(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:  # a tied parameter is registered twice and stays one
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    hook = register_module_parameter_registration_hook(_without_values)  # type: ignore[arg-type]  # it may return
    try:
        yield
    finally:
        hook.remove()


def checkpoint_names(
    model: nn.Module, shards: Shards, coded: Mapping[str, tuple[int, ...]] = MappingProxyType({})
) -> dict[str, str]:
    """Which tensor of the files each entry of the model's state is; tied weights share one.

    ``coded`` has names and shapes of matrices that the files hold as codes, under another name.
    """
    state = model.state_dict(keep_vars=True)
    same: dict[int, list[str]] = {}
    for key, tensor in state.items():
        same.setdefault(id(tensor), []).append(key)
    names: dict[str, str] = {}
    missing = []
    for keys in same.values():
        spellings = [name for key in keys for name in _spellings(key, getattr(model, "base_model_prefix", ""))]
        found = next((name for name in spellings if name in shards.entries or name in coded), None)
        if found is None:
            missing.append(keys[0])
            continue
        _check(shards, coded, found, state[keys[0]])
        names |= dict.fromkeys(keys, found)
    check_complete(shards.folder, missing, type(model).__name__.endswith("ForMaskedLM"))
    return names


def fingerprint(shards: Shards, names: Mapping[str, str]) -> str:
    """As :attr:`mobillm_kit.backbone.split.Backbone.fingerprint`, read piece by piece."""
    digest = hashlib.sha256()
    for key in sorted(names):
        entry = shards.entries[names[key]]
        digest.update(f"{key}{entry.shape}".encode())
        for start in range(0, entry.n_values, _READ_AT_A_TIME):
            part = shards.read_part(names[key], start, _READ_AT_A_TIME).to(torch.bfloat16)
            digest.update(part.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _spellings(key: str, prefix: str) -> Iterator[str]:
    """A parameter's possible names: saved with or without its head, or long ago."""
    bare = key.removeprefix(f"{prefix}.")
    for name in (key, bare, f"{prefix}.{key}"):
        yield name
        for old, new in _OLD_NAMES:
            if name.endswith(f"LayerNorm.{new}"):
                yield name.removesuffix(new) + old
        if name.startswith("lm_head."):
            yield name.replace("lm_head", "embed_out", 1)  # GPT-NeoX


def _check(shards: Shards, coded: Mapping[str, tuple[int, ...]], name: str, wanted: Tensor) -> None:
    entry = None if name in coded else shards.entries[name]
    file, shape = (entry.file, entry.shape) if entry else (shards.folder, coded[name])
    if shape != tuple(wanted.shape):
        problem = f"{file}: '{name}' has the shape {shape}, the configuration says {tuple(wanted.shape)}"
        raise BadInput(f"{problem}: the file is another model's.", "Copy the model's folder again, every file of it.")
    if entry and wanted.is_floating_point() and not entry.dtype.is_floating_point:
        problem = f"{file}: '{name}' is stored as {entry.dtype}, a weight must be a floating-point number."
        raise BadInput(problem, "Name the folder of the unquantized model, or one that `quantize_backbone` wrote.")


def random_folder(
    config: PreTrainedConfig, folder: str | Path, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Path:
    """Write a model with random weights: one shard for what stands around the blocks, one per block.

    Matrices are N(0, 0.02), norms' weights 1, biases 0.  No more than one shard is in memory.
    """
    folder = Path(folder)
    model = meta_model(config, dtype)
    pieces = parts(model)
    need_disk(folder, sum(tensor.nbytes for piece in pieces for tensor in piece.values()))
    seeds = (derived_seed(seed, "random weights", number) for number in range(1, len(pieces) + 1))
    write_shards(folder, map(_random, pieces, seeds), len(pieces))
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    return folder


def need_disk(folder: Path, n_bytes: int) -> None:
    """Refuse where the disk of ``folder`` has less than ``n_bytes`` free."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < n_bytes:
        raise KitError(
            f"{folder}: {n_bytes / 2**20:,.0f} MiB are to be written and {free / 2**20:,.0f} MiB are free; "
            f"{(n_bytes - free) / 2**20:,.0f} MiB are missing.",
            "Free some space or choose another folder.",
        )


def parts(model: nn.Module) -> list[Mapping[str, Tensor]]:
    """The parameters around the blocks, then those of each block, each tensor once."""
    family = family_of(cast(PreTrainedConfig, model.config).model_type)
    base = f"{family.base}." if family.base else ""
    blocks = attrgetter(base + family.blocks)(model)
    rest: dict[str, Tensor] = {}
    inside: list[dict[str, Tensor]] = [{} for _ in blocks]
    for name, parameter in model.named_parameters():  # tied parameters come once
        number = name.removeprefix(f"{base}{family.blocks}.").partition(".")[0]
        part = inside[int(number)] if name.startswith(f"{base}{family.blocks}.") else rest
        part[name] = parameter
    return [rest, *inside]


def _random(part: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.empty_like(like, device="cpu") for name, like in part.items()}
    for name, tensor in tensors.items():
        if tensor.dim() > 1:
            tensor.normal_(std=0.02, generator=generator)
        else:
            tensor.fill_(0.0 if name.endswith("bias") else 1.0)
    return tensors
