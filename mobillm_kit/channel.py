"""What travels between device and server, and a channel inside one process that counts it.

    bytes of an upload = activations (layers · B · T · d · bytes per value) + mask (B · T) + positions and labels (8 B)

Knows: uploads and bytes.  Knows nothing of: backbones, side networks, sockets.

Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from mobillm_kit.errors import BadInput


@dataclass(frozen=True)
class Upload:
    """One batch on its way to the server.  Raw text is not in it; activations are, and they can be inverted."""

    sequence: int
    activations: tuple[Tensor, ...]
    """Per tapped layer (B, T, d), or (B, 1, d) where the prediction token is enough."""
    mask: Tensor
    """(B, T) uint8, 1 at real tokens."""
    positions: Tensor
    """(B,) int32, index of the prediction token."""
    labels: Tensor
    """(B,) int32."""

    @property
    def n_bytes(self) -> int:
        return tensor_bytes((*self.activations, self.mask, self.positions, self.labels))


class InProcessChannel:
    """A queue between two objects of one process; every byte that passes is counted.

    Args:
        capacity: uploads that may wait; one more is refused, as a server without credit would.
    """

    def __init__(self, capacity: int = 4) -> None:
        self._queue: deque[Upload] = deque()
        self._capacity = capacity
        self.bytes_up = 0

    def send(self, upload: Upload, n_bytes: int | None = None) -> None:
        """Device to server.

        Args:
            upload: as it arrives.
            n_bytes: what it took on its way, where it was encoded.

        Raises:
            BadInput: ``capacity`` uploads are waiting already.
        """
        if len(self._queue) >= self._capacity:
            raise BadInput(
                f"{self._capacity} uploads are waiting already.", "Let the server train before sending more."
            )
        self._queue.append(upload)
        self.bytes_up += upload.n_bytes if n_bytes is None else n_bytes

    def receive(self) -> Upload:
        """The oldest upload that waits.

        Raises:
            BadInput: nothing waits.
        """
        if not self._queue:
            raise BadInput("No upload is waiting.", "The device has to send a batch first.")
        return self._queue.popleft()


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
