"""What a server keeps on disk: one folder per session, within a total, for so many days.

    ROOT/sessions/KEY/SESSION/   checkpoint-STEP.safetensors, cache/, and .lock, held while it is trained

What is removed costs its device time and nothing else: it sends again from step 0.

Knows: folders, bytes, days.  Knows nothing of: what lies in the folders, training, sockets.
Taught in: notebooks/08_device_and_server.ipynb
"""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mobillm_kit.channel.messages import refusal
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.common import MIB
from mobillm_kit.errors import FolderBusy
from mobillm_kit.files import only_one
from mobillm_kit.server import ServiceSettings

DAY_S = 86400.0

SESSIONS = "*/" + 32 * "[0-9a-f]"
"""Nothing of another name was made here."""


class Disk:
    """The folders of a server's sessions; one that nobody trained for ``keep_s`` is removed.

    All of them together take ``total_bytes``; those in training count with what they may come to need.
    """

    def __init__(self, root: Path, *, total_bytes: int, keep_s: float) -> None:
        self._root = root / "sessions"
        self._total_bytes = total_bytes
        self._keep_s = keep_s
        self._needs: dict[Path, int] = {}
        self._one_at_a_time = threading.Lock()

    @contextmanager
    def session(self, owner: str, name: str, need_bytes: int) -> Iterator[Path]:
        """A session's folder, held; others go where there is no room for ``need_bytes``, the longest unused first.

        The WireError is ``server-trouble`` if who trained it has not ended, ``over-quota`` if the rest is in training.
        """
        folder = self._root / owner / name
        with ExitStack() as held:
            try:
                held.enter_context(only_one(folder, TIMINGS.end_s))
            except FolderBusy as error:
                raise refusal("still-training") from error
            self._needs[folder] = need_bytes
            try:
                os.utime(folder)
                used_bytes = self.make_room()[1]
                if used_bytes > self._total_bytes:
                    raise refusal("over-disk", used_mib=used_bytes / MIB, total_mib=self._total_bytes / MIB)
                yield folder
                os.utime(folder)
            finally:
                del self._needs[folder]

    def make_room(self) -> tuple[int, int]:
        """Remove what is unused for too long or beyond the total; how many sessions went, and the bytes of the rest."""
        with self._one_at_a_time:
            found = (folder for folder in self._root.glob(SESSIONS) if folder.is_dir())
            unused_s = {folder: time.time() - folder.stat().st_mtime for folder in found}
            sizes = {folder: max(size_bytes(folder), self._needs.get(folder, 0)) for folder in unused_s}
            for folder in sorted(unused_s, key=unused_s.__getitem__, reverse=True):
                if (unused_s[folder] > self._keep_s or sum(sizes.values()) > self._total_bytes) and removed(folder):
                    del sizes[folder]
        return len(unused_s) - len(sizes), sum(sizes.values())


def disk_of(settings: ServiceSettings) -> Disk:
    """What the sessions of such a server keep, within the total and the days."""
    return Disk(settings.folder, total_bytes=settings.disk * MIB, keep_s=settings.keep_days * DAY_S)


def size_bytes(folder: Path) -> int:
    """Of all files below a folder."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):  # gone meanwhile
            total += file.stat().st_size if file.is_file() else 0
    return total


def removed(folder: Path) -> bool:
    """Remove a session's folder, unless it is in training, by whatever process."""
    try:
        with only_one(folder):
            shutil.rmtree(folder, ignore_errors=True)
    except FolderBusy:
        return False
    shutil.rmtree(folder, ignore_errors=True)  # what an open lock file held on some systems
    return not folder.exists()
