"""The server's activation cache: each sample is forwarded and sent once, later epochs cost the device nothing.

The backbone is frozen, so a sample's activations never change (PAE MobiLLM, arXiv 2507.01216).  They are kept as they
came, encoded; first in memory, then on disk, within two quotas.  What is on disk outlives the server.

Knows: parcels of single samples, files.  Knows nothing of: sessions, training, sockets.
Taught in: notebooks/08_device_and_server.ipynb
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load, save

from mobillm_kit.channel.frames import digest
from mobillm_kit.channel.messages import DIGEST_BYTES
from mobillm_kit.errors import SaveFailed
from mobillm_kit.files import write_bytes
from mobillm_kit.quant.parcels import Parcel


class ActivationCache:
    """Samples' parcels by number, within quotas of payload bytes in memory and of file bytes in ``folder``."""

    def __init__(self, folder: Path, *, memory_bytes: int, disk_bytes: int) -> None:
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._disk_bytes = disk_bytes
        self._in_memory: dict[int, Parcel] = {}
        self._memory_used = 0
        self._on_disk = {int(f.stem): f.stat().st_size for f in folder.glob("*.parcel") if f.stem.isdigit()}
        self._disk_used = sum(self._on_disk.values())

    def put(self, sample: int, parcel: Parcel) -> bool:
        """Keep a sample; False where neither quota (nor the disk) has room for it."""
        if sample in self._in_memory or sample in self._on_disk:
            return True
        if self._memory_used + parcel.n_bytes <= self._memory_bytes:
            self._in_memory[sample] = parcel
            self._memory_used += parcel.n_bytes
            return True
        data = _written(parcel)
        if self._disk_used + len(data) > self._disk_bytes:
            return False
        try:
            write_bytes(self._path(sample), data)
        except SaveFailed:  # a full disk is a full quota: training goes on, the device sends again
            return False
        self._on_disk[sample] = len(data)
        self._disk_used += len(data)
        return True

    def get(self, sample: int) -> Parcel | None:
        """A sample's parcel; None where it is not held, or its file is damaged."""
        if sample in self._in_memory:
            return self._in_memory[sample]
        if sample not in self._on_disk:
            return None
        parcel = _read(self._path(sample))
        if parcel is None:
            self._disk_used -= self._on_disk.pop(sample)
            with suppress(OSError):
                self._path(sample).unlink()
        return parcel

    def held(self) -> list[tuple[int, int]]:
        """The numbers held, as inclusive ranges, ascending."""
        return ranges({*self._in_memory, *self._on_disk})

    def _path(self, sample: int) -> Path:
        return self._folder / f"{sample}.parcel"


def ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as inclusive ranges, ascending."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def _written(parcel: Parcel) -> bytes:
    about = {name: value for name, value in vars(parcel).items() if name != "payloads"}
    tensors = {f"{number:04d}": payload for number, payload in enumerate(parcel.payloads)}
    body = save(tensors, metadata={"about": msgspec.json.encode(about).decode()})
    return digest(body) + body


def _read(path: Path) -> Parcel | None:
    try:
        data = path.read_bytes()
        body = data[DIGEST_BYTES:]
        if digest(body) != data[:DIGEST_BYTES]:
            return None
        tensors = load(body)  # and tensors alone: the header's free text is read beside it
        header = msgspec.json.decode(body[8 : 8 + int.from_bytes(body[:8], "little")], type=dict)
        about = msgspec.json.decode(header["__metadata__"]["about"])
        return msgspec.convert({**about, "payloads": tuple(tensors[name] for name in sorted(tensors))}, Parcel)
    except (OSError, SafetensorError, KeyError, msgspec.MsgspecError):
        return None
