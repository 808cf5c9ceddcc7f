"""MobiLLM: the device runs the frozen backbone forward, the server trains a side network (arXiv 2502.20421).

    device: taps of the batch -> channel -> server: side network, loss, backward, step

Here both live in one process, as two objects that share nothing but the channel.

Knows: device, channel and server.  Knows nothing of: other methods.

Taught in: notebooks/00_start_here.ipynb, notebooks/09_comparison.ipynb
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mobillm_kit.adapter import SideAdapter, attach, new_adapter
from mobillm_kit.channel import InProcessChannel
from mobillm_kit.device import Device
from mobillm_kit.encode import Batch
from mobillm_kit.errors import BadInput
from mobillm_kit.memory import storage_bytes
from mobillm_kit.methods.protocol import StepResult
from mobillm_kit.model import LabelWordHead, TaskModel
from mobillm_kit.record import CountedMemory
from mobillm_kit.server import Server
from mobillm_kit.side import SideKind


class MobiLLM:
    """Device and server of one run, joined by a channel.

    Args:
        device: forward only.
        server: trains.
        adapter: the side network that the server trains, for saving.
        device_weights: what the device holds, for the ledger.
    """

    def __init__(self, device: Device, server: Server, adapter: SideAdapter, device_weights: Sequence[Tensor]) -> None:
        self.name = f"mobillm-{'full-width' if adapter.side.token_wise else 'ladder'}"
        self.device = device
        self.server = server
        self.adapter = adapter
        self.channel = InProcessChannel()
        self._device_weights = list(device_weights)

    def step(self, batch: Batch, lr: float) -> StepResult:
        before = self.channel.bytes_up
        self.channel.send(self.device.upload(batch))
        loss = self.server.train(self.channel.receive(), lr)
        return StepResult(loss=loss, forwards=batch.labels.shape[0], bytes_sent=self.channel.bytes_up - before)

    def logits(self, batch: Batch) -> Tensor:
        """The device's backbone and the side network as trained so far; nothing is counted as sent."""
        return self.server.logits(self.device.upload(batch))

    def trained(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.server.parameters.items()}

    def state(self) -> dict[str, Tensor]:
        return self.server.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.server.load_state(state)

    def count_memory(self, batch: Batch) -> tuple[CountedMemory, ...]:
        upload = self.device.upload(batch)
        device = CountedMemory(
            party="device",
            weights_bytes=storage_bytes(self._device_weights),
            gradients_bytes=0,
            optimizer_bytes=0,
            saved_activations_bytes=0,
            messages_bytes=upload.n_bytes,
        )
        return device, self.server.count_memory(upload)


def build(
    model: TaskModel,
    *,
    seed: int,
    side: SideKind = "full-width",
    layers: int | Sequence[int] | None = None,
    rank: int = 16,
    reduction: int = 4,
    heads: int = 2,
    tokens: str = "auto",
    weight_decay: float = 0.0,
    about: Mapping[str, Any] | None = None,
) -> MobiLLM:
    """A device and a server for this model.

    Args:
        model: backbone and head; the backbone stays on the device, a small copy of the head goes to the server.
        seed: of the side network's initial weights.
        side: ``full-width`` (PAE MobiLLM eq. 1) or ``ladder`` (LST).
        layers: how many layers are tapped, evenly spaced, or which; all by default.
        rank: bottleneck r of the full-width side.
        reduction: k, the ladder's width is d/k.
        heads: attention heads of the ladder.
        tokens: ``all``, ``prediction`` (the token that enters the loss, where that is exact), or ``auto``.
        weight_decay: AdamW's.
        about: the task's words, kept with the side network so that its folder alone can label texts.

    Raises:
        BadInput: ``tokens="prediction"`` where it is not exact.
    """
    head = model.head
    adapter = new_adapter(
        model.backbone,
        side=side,
        n_labels=len(head.word_ids) if isinstance(head, LabelWordHead) else head.classifier.out_features,
        layers=layers,
        pooling="mean" if isinstance(head, LabelWordHead) else head.pooling,
        rank=rank,
        reduction=reduction,
        heads=heads,
        seed=seed,
        **(about or {}),
    )
    adapter.to(model.backbone.device)
    tuned = attach(adapter, model.backbone, head)
    device = Device(model.backbone, adapter.side.layers, one_token=_one_token(tokens, exact=tuned.one_token_is_enough))
    weights = [*model.backbone.parameters(), *model.backbone.buffers()]
    return MobiLLM(device, Server(tuned, weight_decay=weight_decay), adapter, weights)


def _one_token(tokens: str, *, exact: bool) -> bool:
    if tokens not in ("auto", "all", "prediction"):
        raise BadInput(f"tokens is '{tokens}'.", "Choose 'auto', 'all' or 'prediction'.")
    if tokens == "prediction" and not exact:
        raise BadInput(
            "tokens='prediction' is not exact here: the side network or the head reads other tokens too.",
            "Choose tokens='all', or a full-width side network with a head that reads one token.",
        )
    return exact and tokens != "all"
