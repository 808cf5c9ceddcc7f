"""What a fine-tuning method is: the small face that the training loop knows.

A method owns its parameters and its optimizer.  The loop hands it batches and learning rates and asks for logits;
nothing else passes between them.

Knows: tensors and batches.  Knows nothing of: any single method, the loop, records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from mobillm_kit.link.timeline import Timeline
from mobillm_kit.record import CountedMemory

if TYPE_CHECKING:  # a server has no backbone and need not import what loads one
    from mobillm_kit.texts.encode import Batch


@dataclass(frozen=True)
class StepResult:
    """What one training step cost and gave."""

    loss: float | None
    """Mean cross-entropy of the batch in nats, before the update; None where not known yet (:class:`Pipelined`)."""
    forwards: int
    """Samples that went through the backbone."""
    bytes_sent: int = 0
    """Bytes that left the device."""


class Method(Protocol):
    """One way of fine-tuning."""

    name: str

    def step(self, batch: Batch, lr: float) -> StepResult:
        """Train on one batch at this learning rate."""

    def logits(self, batch: Batch) -> Tensor:
        """(B, C) class logits of the model as trained so far, without gradient."""

    def trained(self) -> Mapping[str, Tensor]:
        """The parameters that this method trains, by name."""

    def state(self) -> dict[str, Tensor]:
        """Everything that a run needs to go on to the same bytes: parameters, optimizer state, counters."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""

    def count_memory(self, batch: Batch) -> tuple[CountedMemory, ...]:
        """The ledger for one training step on this batch, per party; trains nothing."""


@runtime_checkable
class Pipelined(Protocol):
    """A method whose steps are still under way when :meth:`Method.step` returns."""

    timeline: Timeline

    @property
    def codecs(self) -> tuple[str, ...]:
        """Per step, where a controller chose them."""

    def settle(self) -> tuple[list[float], int]:
        """Wait until they are done; their losses since the last call, in order, and bytes that left since the step."""

    def close(self) -> None:
        """Let go of whatever runs beside the training loop."""
