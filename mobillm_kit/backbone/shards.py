"""The tensors of a model folder, read from its safetensors files when they are asked for.

    file = 8 bytes n | n bytes of JSON: name -> dtype, shape, [begin, end) | the tensors' bytes, without gaps

Bytes are read into buffers of this process and not mapped into it: mapped pages of the file would count as resident
memory, and stay.  (safetensors' own ``safe_open`` maps the file, or reads a whole tensor to give one row of it; it
reads the headers, when the folder is opened, so that a copy that broke off is found before training starts.)

Knows: files, names, bytes.  Knows nothing of: models, what a tensor is for.
Taught in: notebooks/06_side_network.ipynb
"""

import json
import math
import threading
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mobillm_kit.errors import BadInput
from mobillm_kit.files import write_bytes

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

STORED_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32":
    torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""safetensors' names of the types that can be read here."""

_CONVERT_BYTES = 8 * 2**20
"""Read at a time where the file's type is not the one asked for."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """First byte in the file."""

    @property
    def n_values(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """In the file."""
        return self.n_values * self.dtype.itemsize


class Shards:
    """The tensors by name of a folder with ``model.safetensors``, or with an index and its shards."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.entries = self.listed()
        self._open: dict[Path, FileIO] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._open)

    def listed(self) -> dict[str, Entry]:
        """Where each tensor lies, by its name, from the files' headers."""
        found: dict[str, Entry] = {}
        for file, promised in _files(self.folder).items():
            entries = _header(file)
            absent = sorted(promised - entries.keys())
            if absent:
                raise BadInput(
                    f"{file}: the shard does not hold '{absent[0]}', which the index promises: it is another model's.",
                    "Copy the model's folder again, every file of it.",
                )
            found |= entries
        return found

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor, whole; in the file's type, unless another is given."""
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=dtype or entry.dtype)
        self.read_into(name, tensor)
        return tensor

    def read_into(self, name: str, target: Tensor) -> None:
        """Fill ``target``, contiguous and of the tensor's shape, with one tensor, in ``target``'s type."""
        entry = self.entries[name]
        flat = target.view(-1)
        if entry.dtype == target.dtype:
            self._fill(entry, 0, flat)
            return
        step = _CONVERT_BYTES // entry.dtype.itemsize
        for start in range(0, entry.n_values, step):
            flat[start : start + step].copy_(self.read_part(name, start, step))

    def read_rows(self, name: str, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Some rows of a matrix (V, d), ``(\\*rows.shape, d)``; the others are not read."""
        entry = self.entries[name]
        distinct, places = torch.unique(rows, return_inverse=True)
        if distinct.numel() and not 0 <= int(distinct[0]) <= int(distinct[-1]) < entry.shape[0]:
            raise IndexError(
                f"{name} has rows 0 to {entry.shape[0] - 1}, asked for {int(distinct[0])} to {int(distinct[-1])}."
            )
        width = entry.shape[1]
        read = torch.empty(len(distinct), width, dtype=entry.dtype)
        for target, row in zip(read, distinct.tolist(), strict=True):
            self._fill(entry, row * width, target)
        return read.to(dtype or entry.dtype)[places]

    def read_part(self, name: str, start: int, values: int) -> Tensor:
        """``values`` values of a tensor from value ``start`` on, flat, in the file's type."""
        entry = self.entries[name]
        part = torch.empty(min(values, entry.n_values - start), dtype=entry.dtype)
        self._fill(entry, start, part)
        return part

    def close(self) -> None:
        """Close the files; they are opened again when something is read."""
        with self._lock:
            _close(self._open)

    def _fill(self, entry: Entry, start: int, target: Tensor) -> None:
        """Read ``target.numel()`` values from value ``start`` of the tensor on."""
        if not target.numel():
            return
        view = target.view(torch.uint8).numpy().data
        try:
            with self._lock:
                file = self._open.get(entry.file)
                if file is None:
                    file = self._open[entry.file] = FileIO(entry.file)
                file.seek(entry.begin + start * entry.dtype.itemsize)
                while view:
                    n_bytes = file.readinto(view)
                    if not n_bytes:
                        raise OSError("it ends too early")
                    view = view[n_bytes:]
        except OSError as error:
            problem = f"{entry.file}: could not be read ({error.strerror or error})."
            raise BadInput(problem, "The file must stay as it was when the model was opened.") from error


def write_shards(folder: Path, parts: Iterable[Mapping[str, Tensor]], count: int) -> None:
    """Write a model's tensors, one file a part, and the index; no more than one part is in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    places: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{count:05d}.safetensors"
        save_file(dict(part), folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    write_bytes(folder / INDEX, json.dumps({"metadata": {}, "weight_map": places}, indent=1).encode())


def _close(files: dict[Path, FileIO]) -> None:
    while files:
        files.popitem()[1].close()


def _files(folder: Path) -> dict[Path, set[str]]:
    """The folder's files, and the names that the index promises of each (none without an index)."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder.", "Name the folder that save_pretrained wrote.")
    if (folder / INDEX).is_file():
        return _indexed(folder)
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: set()}
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    if shards:
        problem = f"{folder}: holds {shards[0]} but no {INDEX}, which says what lies in which shard."
        raise BadInput(problem, "Copy the index too.")
    problem = f"{folder}: holds no safetensors files, and only those can be read in parts."
    raise BadInput(problem, "Load the model once with transformers and write it with save_pretrained.")


def _indexed(folder: Path) -> dict[Path, set[str]]:
    try:
        places: Any = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        promised: dict[Path, set[str]] = {}
        for name, file in places.items():
            promised.setdefault(folder / Path(file).name, set()).add(name)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadInput(f"{folder / INDEX}: is no index ({error}).", "Copy the model's folder again.") from error
    missing = sorted(file.name for file in promised if not file.is_file())
    if missing:
        problem = f"{folder}: {len(missing)} of {len(promised)} shards are missing, the first is {missing[0]}."
        raise BadInput(problem, "Copy the model's folder again, every file of it.")
    return promised


def _header(file: Path) -> dict[str, Entry]:
    """What a file holds; safetensors checks that its length is what its header says."""
    try:
        with safe_open(file, "np") as opened, file.open("rb") as raw:
            begin = 8 + int.from_bytes(raw.read(8), "little")
            slices = {name: opened.get_slice(name) for name in opened.offset_keys()}  # in the order of their bytes
            listed = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        problem = f"{file}: is no safetensors file, or one that was cut off or written over ({error})."
        raise BadInput(problem, "Copy it again.") from error
    entries: dict[str, Entry] = {}
    for name, (stored, shape) in listed.items():
        if stored not in STORED_DTYPES:
            problem = f"{file}: '{name}' is stored as {stored}, which cannot be read here."
            raise BadInput(problem, f"Convert the model to one of {', '.join(STORED_DTYPES)}.")
        entries[name] = Entry(file, STORED_DTYPES[stored], shape, begin)
        begin += entries[name].n_bytes
    return entries
