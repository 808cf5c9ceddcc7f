"""A backbone's matrices in few bits: one scale per group of values, one code per value (int8, NF4, FP4).

    codes, s = encode(W)          once, group by group along a row
    W'       = table[codes] s     just before a matrix is used; it is dropped when the product is there

Only the blocks' matrices are coded; norms, biases and the embedding keep their type.  A folder of codes, which is
streamed like any other, and a backbone that is coded in memory give the same bits.  The paper names this as future work
(arXiv 2502.20421).

Knows: codecs, backbones, folders.  Knows nothing of: tasks, methods, how blocks are read.
Taught in: notebooks/06_side_network.ipynb
"""

import hashlib
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from mobillm_kit.backbone.meta_model import checkpoint_names, fingerprint, meta_model, need_disk, parts
from mobillm_kit.backbone.pretrained import gguf_in, load_config
from mobillm_kit.backbone.shards import INDEX, Shards, write_shards
from mobillm_kit.backbone.split import Backbone
from mobillm_kit.errors import BadInput
from mobillm_kit.files import write_bytes
from mobillm_kit.quant import codec

KINDS = ("int8", "nf4", "fp4")

FILE = "lowbit.json"
"""Says of a folder what its codes are."""

GROUP = 64
"""Values per scale, where that divides a row."""

DECODED_AT_A_TIME = 2**20
"""Values; what decoding needs beside the matrix stays small."""


class LowBit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a folder's codes are."""

    kind: str
    group: int
    fingerprint: str
    """Of the backbone that the codes stand for; see :func:`coded_fingerprint`."""
    shapes: dict[str, tuple[int, ...]]
    """Of each coded matrix, by its name without :data:`CODES`."""


CODES = ".codes"
"""Ends the name of a coded matrix's tensor in the files."""
CODES_KEY = "_codes"
"""... and in its module."""

WRITE_AGAIN = "Write the folder again with quantize_backbone."


class CodedMatrix:
    """A matrix (n, d) that exists as codes, at most ``group`` values per scale, and is dense when its module runs."""

    def __init__(self, kind: str, shape: tuple[int, ...], *, group: int = GROUP, dtype: torch.dtype) -> None:
        if kind not in KINDS:
            raise BadInput(f"Unknown weight type '{kind}'.", f"Choose one of: {', '.join(KINDS)}.")
        self.shape = shape
        self._coder = codec(kind, math.gcd(group, shape[-1]))
        self.dtype = dtype

    @property
    def n_bytes(self) -> int:
        """Of the codes with their scales."""
        return self._coder.wire_bytes(self.shape)

    def encode(self, dense: Tensor, where: str = "") -> Tensor:
        """The codes of (n, d), flat uint8: every row's scales, then every row's codes."""
        return self._coder.encode(dense.float(), where)

    def dense(self, codes: Tensor) -> Tensor:
        """(n, d), as the codes say, some rows at a time."""
        rows, width = self.shape
        matrix = torch.empty(self.shape, dtype=self.dtype, device=codes.device)
        scales, codes = self._coder.parts(codes, self.shape)
        step = max(1, DECODED_AT_A_TIME // width)
        for start in range(0, rows, step):
            end = min(start + step, rows)
            part = torch.cat((scales[start:end].reshape(-1), codes[start:end].reshape(-1)))
            matrix[start:end] = self._coder.decode(part, (end - start, width))
        return matrix


def attach_codes(block: nn.Module, key: str, matrix: CodedMatrix, codes: Tensor) -> None:
    """Keep a block's matrix as a buffer of codes; it is dense for as long as its module's forward pass takes."""
    path, _, attribute = key.rpartition(".")
    owner = block.get_submodule(path)
    block.__dict__.setdefault("coded", {})[key] = lambda tensors: matrix.dense(tensors[key + CODES_KEY])
    absent = nn.Parameter(torch.empty(matrix.shape, dtype=matrix.dtype, device="meta"), requires_grad=False)
    owner._parameters[attribute] = absent
    owner.register_buffer(attribute + CODES_KEY, codes, persistent=False)

    def _before(module: nn.Module, given: Any) -> None:
        dense = matrix.dense(module.get_buffer(attribute + CODES_KEY))
        module._parameters[attribute] = nn.Parameter(dense, requires_grad=False)

    def _after(module: nn.Module, given: Any, output: Any) -> None:
        module._parameters[attribute] = absent

    owner.register_forward_pre_hook(_before)
    owner.register_forward_hook(_after, always_call=True)


def coded_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Which of a block's tensors are coded: the matrices."""
    return [name for name, tensor in tensors.items() if tensor.dim() == 2 and tensor.is_floating_point()]


def coded_fingerprint(fingerprint: str, kind: str, group: int) -> str:
    """Of a coded backbone, from that of the backbone it was made of: coding is a function."""
    return hashlib.sha256(f"{fingerprint} {kind} {group}".encode()).hexdigest()


def quantize_in_memory(backbone: Backbone, kind: str, *, group: int = GROUP) -> Backbone:
    """Replace the blocks' matrices of a whole backbone by codes, of :data:`KINDS`; it is changed and returned."""
    stands_for = coded_fingerprint(backbone.fingerprint, kind, group)
    for block in backbone.blocks:
        tensors = dict(block.named_parameters())
        for name in coded_names(tensors):
            dense = tensors[name].detach()
            matrix = CodedMatrix(kind, tuple(dense.shape), group=group, dtype=dense.dtype)
            attach_codes(block, name, matrix, matrix.encode(dense, name))
    backbone.fingerprint = stands_for  # in the place of the cached one: the weights it was taken of are gone
    return backbone


def quantize_backbone(folder_in: str | Path, folder_out: str | Path, kind: str, *, group: int = GROUP) -> Path:
    """Write a model's twin in codes of :data:`KINDS`, block by block; the whole model is never in memory.

    Args:
        folder_in: a model with safetensors.
        folder_out: empty or not there yet; gets the codes, the configuration and the tokenizer, and is returned.

    Raises:
        BadInput: no such kind; a folder that holds something; a model that is damaged, another's, or coded already.
        KitError: the disk has no room; nothing is written.
    """
    source, target = Path(folder_in), Path(folder_out)
    if target.exists() and any(target.iterdir()):
        raise BadInput(f"{target}: is not empty.", "Name a new folder.")
    if file := gguf_in(source):
        problem = f"{file}: holds codes already."
        raise BadInput(problem, "Stream it as it is, or name the folder of the unquantized model.")
    shards = Shards(source)
    if read_low_bit(source):
        raise BadInput(f"{source}: is coded already.", "Name the folder of the unquantized model.")
    model = meta_model(load_config(str(source)), torch.float32)
    names = checkpoint_names(model, shards)
    around, *blocks = parts(model)
    shapes = {name: tuple(block[name].shape) for block in blocks for name in coded_names(block)}
    matrices = {name: CodedMatrix(kind, shape, group=group, dtype=torch.float32) for name, shape in shapes.items()}
    plain = [name for part in (around, *blocks) for name in part if name not in shapes]
    sizes = [matrix.n_bytes for matrix in matrices.values()] + [shards.entries[names[n]].n_bytes for n in plain]
    need_disk(target, sum(sizes))
    stands_for = coded_fingerprint(fingerprint(shards, names), kind, group)
    coded = (_coded_part(part, names, shards, matrices) for part in (around, *blocks))
    write_shards(target, coded, 1 + len(blocks))
    about = LowBit(kind=kind, group=group, fingerprint=stands_for, shapes=shapes)
    write_bytes(target / FILE, msgspec.json.encode(about))
    for file in source.iterdir():  # the configuration and the tokenizer
        if file.is_file() and file.suffix in (".json", ".txt", ".model") and file.name != INDEX:
            shutil.copy(file, target / file.name)
    return target


def _coded_part(
    part: Iterable[str], names: Mapping[str, str], shards: Shards, matrices: Mapping[str, CodedMatrix]
) -> dict[str, Tensor]:
    dense = ((name, shards.read(names[name])) for name in part)
    return dict(
        (name + CODES, matrices[name].encode(tensor, name)) if name in matrices else (name, tensor)
        for name, tensor in dense
    )


def read_low_bit(folder: str | Path) -> LowBit | None:
    """What a folder's codes are; None for an ordinary model."""
    file = Path(folder) / FILE
    if not file.is_file():
        return None
    try:
        return msgspec.json.decode(file.read_bytes(), type=LowBit)
    except msgspec.DecodeError as error:
        raise BadInput(f"{file}: cannot be read ({error}).", WRITE_AGAIN) from error
