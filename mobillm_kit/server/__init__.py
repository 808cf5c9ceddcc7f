"""The server: uploads in, steps of the side network's training out; here, what one allows.

Knows: side networks, messages, files.  Knows nothing of: the backbone's weights, texts.
"""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from mobillm_kit.common import MIB

Count = Annotated[int, Meta(ge=1)]


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a server allows: options of `mobillm server`, read without torch."""

    folder: Path = Path("runs/server")
    """Checkpoints and cached activations."""
    credit: Count = 4
    """Batches of a device that may wait."""
    budget: Count = 4096
    """MiB of training and of batches that wait, all devices together."""
    max_sessions: Count = 8
    """Devices at a time."""
    per_device: Count = 4
    """Sessions of one device's key at a time; half of --max-sessions at most."""
    cache_memory: Annotated[int, Meta(ge=0)] = 1024
    """MiB of cached activations in memory, per device."""
    cache_disk: Annotated[int, Meta(ge=0)] = 8192
    """MiB of cached activations on disk, per device."""
    disk: Count = 65536
    """MiB of all devices' checkpoints and cached activations; beyond it the longest unused go."""
    keep_days: Annotated[float, Meta(ge=0)] = 30.0
    """A device's checkpoints and activations that nobody trained on for so long are removed."""
    threads: Count = 1
    """Threads of this process."""

    @property
    def share_bytes(self) -> int:
        """One session's part of the budget: training, and batches that wait."""
        return self.budget * MIB // self.max_sessions
