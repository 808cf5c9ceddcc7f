"""What a class's server keeps on disk of each session, and which of it may go.

    older than so many days, or the longest unused beyond a size            never one that is trained now

Knows: sessions' folders, their owners' names.  Knows nothing of: what lies in a folder, training.
"""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mobillm_kit.classroom.roster import Run
from mobillm_kit.common import MIB
from mobillm_kit.errors import FolderBusy
from mobillm_kit.files import only_one
from mobillm_kit.server.disk import DAY_S, SESSIONS, size_bytes


@dataclass(frozen=True)
class Kept:
    """A session's checkpoints and cached activations."""

    folder: Path
    student: str
    steps: int
    unused_s: float
    n_bytes: int
    training: bool
    """By whatever process: its folder is held."""

    def __str__(self) -> str:
        who = f"{self.student or '(unknown)'}, session {self.folder.name[:8]}"
        return f"{who}, step {self.steps}, {self.n_bytes / MIB:.1f} MiB, unused for {self.unused_s / DAY_S:.1f} days"


def kept_sessions(root: Path, runs: Sequence[Run]) -> list[Kept]:
    """Every session that a class keeps something of, the longest unused first."""
    by_session = {run.session: run for run in runs}
    found = []
    for folder in (root / "sessions").glob(SESSIONS):
        run = by_session.get(folder.name)
        who, steps = (run.student, run.steps) if run else ("", 0)
        with suppress(FileNotFoundError):  # a server that makes room was quicker
            unused_s, training = time.time() - folder.stat().st_mtime, _is_held(folder)
            found.append(Kept(folder, who, steps, unused_s, size_bytes(folder), training))
    return sorted(found, key=lambda one: one.unused_s, reverse=True)


def chosen(found: Sequence[Kept], too_old_s: float, most_bytes: int | None) -> list[Kept]:
    """Those that go, of sessions in the order of :func:`kept_sessions`; ``most_bytes`` None is no limit."""
    left, gone = sum(one.n_bytes for one in found), []
    for one in found:
        too_much = most_bytes is not None and left > most_bytes
        if not one.training and (one.unused_s > too_old_s or too_much):
            gone.append(one)
            left -= one.n_bytes
    return gone


def _is_held(folder: Path) -> bool:
    before = folder.stat()
    try:
        with only_one(folder):
            os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))  # to have looked is not to have used
        return False
    except FolderBusy:
        return True
