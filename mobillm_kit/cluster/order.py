"""What is handed to Ray's driver and to a node, and what comes back; files travel as bytes.

Knows: jobs, files.  Knows nothing of: Ray.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from mobillm_kit.common import MIB
from mobillm_kit.files import write_bytes
from mobillm_kit.runs.compare import Job
from mobillm_kit.runs.progress import Progress

Files = dict[str, bytes]
"""By path below a run's folder."""


class Need(Struct, frozen=True):
    """Resources of one job."""

    cpus: int
    memory_bytes: int
    gpus: int = 0

    def __str__(self) -> str:
        gpu = f", {self.gpus} GPU" if self.gpus else ""
        return f"{self.cpus} core{'s' * (self.cpus > 1)}{gpu} and {self.memory_bytes / MIB:,.0f} MiB"


def places(job: Job) -> list[Path]:
    """The folders of a job's runs."""
    what, *words = job.arguments
    return [Path(word) for word in (words if what == "train" else words[:1])]


class Errand(Struct, frozen=True):
    """A job and what it needs."""

    job: Job
    need: Need


class Order(Struct, frozen=True):
    """All that a driver is asked for."""

    address: str
    threads: int
    command: str
    at_a_time: int
    errands: list[Errand]


class Said(Struct, frozen=True):
    """One line of a driver: a word on the errand of that number, or on all of them."""

    progress: Progress
    number: int | None = None


def packed(place: Path, newer_than: float = 0.0) -> Files:
    """The files of a run's folder, or those that were written since; half-written ones and locks are left out."""
    found = (file for file in sorted(place.rglob("*")) if file.is_file())
    whole = (file for file in found if not file.name.startswith("."))
    return {
        file.relative_to(place).as_posix(): file.read_bytes() for file in whole if file.stat().st_mtime > newer_than
    }


def unpack(place: Path, files: Files) -> None:
    """Write them, each in one step."""
    for name, data in files.items():
        write_bytes(place / name, data)


class Desk:
    """Between the driver and the nodes: what these say until it is asked for, and whether they have to stop."""

    def __init__(self) -> None:
        self._said: list[tuple[int, Progress | list[Files]]] = []
        self._stopping = False

    def tell(self, number: int, words: list[Progress | list[Files]]) -> bool:
        """Leave progress, or files that are worth keeping, of one errand; whether it has to stop."""
        self._said += [(number, word) for word in words]
        return self._stopping

    def heard(self) -> list[tuple[int, Progress | list[Files]]]:
        """What was said since the last time."""
        said, self._said = self._said, []
        return said

    def stop(self) -> None:
        """Whoever asks next, has to stop."""
        self._stopping = True


def worth_saying(words: list[Progress]) -> list[Progress]:
    """Of one errand's progress: every note and look at dev, and the last word."""
    return [word for word in words if word.note or word.dev_accuracy is not None or word is words[-1]]
