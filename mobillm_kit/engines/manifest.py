"""What an exported backbone's folder holds, and whether it still does.

    manifest.json      of which backbone, of what shape, by which versions; size and SHA-256 of every other file
    block-0.onnx …     one file per block          tokens.npy …   tables whose rows are looked up
    tokenizer.json     read by `tokenizers`        head.safetensors   what label words' logits need of the head

Exported for P-RGE, each block's graph takes the low-rank matrices of its projections as inputs.  ExecuTorch's folder
has one `model.pte` in place of blocks, tables and head; its sizes are fixed when it is made.

Knows: files and numbers.  Knows nothing of: torch, engines, models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from mobillm_kit.errors import BackboneMismatch, BadInput, MissingExtra, first_line
from mobillm_kit.side.description import HeadSpec

FILE = "manifest.json"
HEAD = "head.safetensors"
FAMILIES = ("opt", "llama", "bert")
"""Types of transformers whose blocks can be exported."""

_CHUNK_BYTES = 2**20
_AGAIN = "Export the backbone again: mobillm export MODEL FOLDER."

EngineName = Literal["onnx", "executorch"]
Count = Annotated[int, Meta(ge=1)]


class FileInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the folder."""

    n_bytes: int
    sha256: str


class Words(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tokenizer's own file does not say."""

    pad_token_id: int | None
    eos_token_id: int | None
    unk_token_id: int | None
    segments: bool
    """Whether rows have the type of each token (first or second text)."""


class Adapted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Blocks whose projections take low-rank matrices as inputs, of any rank and number."""

    method: Literal["p-rge"]
    targets: dict[str, tuple[Count, Count]]
    """(d_out, d_in) of each projection by its name in a block, in the order in which the method draws."""
    every: bool
    """Whether these are all projections of a block."""


class Lowered(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes that a ``.pte`` is made for."""

    q: Count
    rank: Count
    batch_size: Count
    """The most texts of a batch."""
    labels: Annotated[int, Meta(ge=2)]
    lengths: Annotated[tuple[Count, ...], Meta(min_length=1)]
    """In tokens, rising; a batch is padded to the next one."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An exported backbone."""

    version: Literal[1] = 1
    engine: EngineName
    precision: Literal["float32", "int8", "int4"]
    """Of the blocks' weights; tables and activations are float32."""
    name: str
    revision: str
    fingerprint: str
    """Of the backbone's weights, as a side network's folder names it."""
    family: Literal["opt", "llama", "bert"]
    kind: Literal["decoder", "encoder"]
    width: Count
    layers: Count
    context: Count
    """The longest text in tokens."""
    rows: Count
    """Of the embedding."""
    eps: float
    """Of the norm after an encoder's embedding."""
    head: HeadSpec | None
    """Of label words, for any two of them; None of an encoder."""
    adapted: Adapted | None = None
    """None: the blocks as they are, for a device of MobiLLM."""
    lowered: Lowered | None = None
    """Of ExecuTorch's folders alone."""
    words: Words
    versions: dict[str, str]
    """Of the libraries that wrote it."""
    files: dict[str, FileInfo]


def described(path: Path) -> FileInfo:
    """Size and digest of a file, read a piece at a time."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            digest.update(piece)
            size += len(piece)
    return FileInfo(size, digest.hexdigest())


def read(folder: Path) -> Manifest:
    """The folder's manifest, every file held against it.

    Raises:
        BadInput: no such folder, no exported one, of another version, or a file that is missing, cut or altered.
    """
    path = folder / FILE
    if not path.is_file():
        raise BadInput(f"{folder}: no exported backbone (it has no {FILE}).", _AGAIN)
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({first_line(error)}).", _AGAIN) from error
    for name, info in manifest.files.items():
        _check(folder / name, info)
    return manifest


def _check(path: Path, info: FileInfo) -> None:
    if not path.is_file():
        raise BadInput(f"{path}: the file is missing.", _AGAIN)
    if (size := path.stat().st_size) != info.n_bytes:
        raise BadInput(f"{path}: has {size} bytes, {info.n_bytes} were written: it is cut short or altered.", _AGAIN)
    if described(path) != info:
        raise BadInput(f"{path}: its bytes are not those that were written (SHA-256 differs).", _AGAIN)


def check_fingerprint(manifest: Manifest, wanted: str) -> None:
    """Refuse a folder of another backbone than the one that is ``wanted``."""
    if manifest.fingerprint != wanted:
        problem = f"The folder is an export of '{manifest.name}' ({manifest.fingerprint[:12]}), not of {wanted[:12]}."
        raise BackboneMismatch(problem, "Name the export of the backbone that this run began with.")


def check_use(manifest: Manifest, method: str | None) -> None:
    """Refuse a folder that was exported for something else than to train ``method``; None: than for a device."""
    own = manifest.adapted.method if manifest.adapted else None
    if own != method:
        problem = f"The folder is an export of '{manifest.name}' for {_use(own)}, not for {_use(method)}."
        chosen = "" if method is None else f" --method {method}"
        raise BadInput(problem, f"Export the backbone again: mobillm export{chosen} MODEL FOLDER.")


def check_engine(manifest: Manifest, engine: str) -> None:
    """Refuse a folder that was exported for another engine."""
    if manifest.engine != engine:
        problem = f"The folder is an export of '{manifest.name}' for --engine {manifest.engine}, not for {engine}."
        raise BadInput(problem, f"Train with --engine {manifest.engine}, or export again with --engine {engine}.")


def _use(method: str | None) -> str:
    return "a device of MobiLLM" if method is None else f"the method '{method}'"


def check_family(model_type: str) -> None:
    """Refuse a model whose blocks no engine runs."""
    if model_type not in FAMILIES:
        problem = f"Models of type '{model_type}' cannot be exported to an engine."
        raise BadInput(problem, f"Possible are: {', '.join(FAMILIES)}; every family runs with PyTorch.")


def check_installed(*modules: str, extra: str = "onnx") -> None:
    """Refuse to go on without the engine's libraries, which the ``extra`` brings."""
    for module in modules:
        if find_spec(module) is None:
            problem = f"The engine needs {module}, which is not installed."
            raise MissingExtra(problem, f"Install the extra: pip install 'mobillm-kit[{extra}]'.")


def encoded(manifest: Manifest) -> bytes:
    """The manifest as its file holds it."""
    return msgspec.json.format(msgspec.json.encode(manifest))


def sizes(files: Mapping[str, FileInfo]) -> int:
    """Bytes of all files."""
    return sum(info.n_bytes for info in files.values())
