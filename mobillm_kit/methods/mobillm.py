"""MobiLLM: the device runs the frozen backbone forward, the server trains a side network (arXiv 2502.20421).

    device: taps of the batch -> uplink -> server: side network, loss, backward, step

The uplink is an object of this process or leads to a server in another one (``device/uplink.py``): the same device, the
same server, equal bytes.

Knows: device, server and what joins them.  Knows nothing of: other methods, sockets.
Taught in: notebooks/00_start_here.ipynb, notebooks/09_comparison.ipynb
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mobillm_kit import quant
from mobillm_kit.device.forward import Device
from mobillm_kit.errors import BadInput
from mobillm_kit.link.timeline import Timeline
from mobillm_kit.methods.task_model import TaskModel
from mobillm_kit.quant import Codec
from mobillm_kit.quant.parcels import Upload, pack, unpack
from mobillm_kit.record import CountedMemory
from mobillm_kit.server.side_trainer import SideTrainer
from mobillm_kit.side.adapter import attach, new_adapter
from mobillm_kit.side.description import USUAL
from mobillm_kit.texts.encode import Batch
from mobillm_kit.training.ledger import storage_bytes
from mobillm_kit.training.method import StepResult

if TYPE_CHECKING:
    from mobillm_kit.device.uplink import Wire

SHAPE = {name: getattr(USUAL, name) for name in ("rank", "reduction", "heads", "start", "normalization", "pooling")}
"""Fields of the side network's description that a run's options may name."""


class InProcess:
    """The server as an object beside the device: an upload is trained on as soon as it is made; None codes nothing."""

    codecs: tuple[str, ...] = ()

    def __init__(self, device: Device, server: SideTrainer, coder: Codec | None = None) -> None:
        self.timeline = Timeline()
        self._device = device
        self._server = server
        self._coder = coder
        self.state, self.load_state = server.state, server.load_state

    def step(self, batch: Batch, lr: float) -> StepResult:
        """Forward, codec and back, one training step."""
        upload, n_bytes = self.carried(self._device.upload(batch))
        return StepResult(loss=self._server.train(upload, lr), forwards=len(batch.labels), bytes_sent=n_bytes)

    def settle(self) -> tuple[list[float], int]:
        """Nothing is under way."""
        return [], 0

    def logits(self, batch: Batch) -> Tensor:
        """(B, C); nothing is counted as sent."""
        return self._server.logits(self._device.upload(batch))

    def carried(self, upload: Upload) -> tuple[Upload, int]:
        """What arrives of an upload, and the bytes that it takes on its way."""
        if self._coder is None:
            return upload, upload.n_bytes
        parcel = pack(upload, self._coder, self._device.layers)
        arrived = unpack(parcel, labels=upload.labels.tolist())
        return arrived, parcel.n_bytes + upload.labels.nbytes

    def waiting_bytes(self, upload: Upload) -> int:
        """None: the server takes the upload itself."""
        return 0

    def close(self) -> None:
        """Nothing runs beside the loop."""


class MobiLLM:
    """Device and server of one run, joined by an uplink, which makes the steps: forward here, train there.

    ``server`` trains, or holds the weights that come back from another process; ``device_weights``, for the ledger, is
    what the device holds once it has run.
    """

    def __init__(
        self, device: Device, server: SideTrainer, uplink: InProcess | Wire, device_weights: Callable[[], list[Tensor]]
    ) -> None:
        self.adapter = server.model.adapter
        self.name = f"mobillm-{'full-width' if self.adapter.side.token_wise else 'ladder'}"
        self.device = device
        self.server = server
        self.uplink = uplink
        self.step, self.settle, self.logits = uplink.step, uplink.settle, uplink.logits
        self.state, self.load_state, self.close = uplink.state, uplink.load_state, uplink.close
        self.trained, self.timeline = server.trained, uplink.timeline
        self._device_weights = device_weights

    @property
    def codecs(self) -> tuple[str, ...]:
        """Per step, where a controller chose them."""
        return self.uplink.codecs

    def count_memory(self, batch: Batch) -> tuple[CountedMemory, ...]:
        """The ledger of the device and of the server."""
        upload = self.device.upload(batch)
        held, messages = storage_bytes(self._device_weights()), upload.n_bytes + self.uplink.waiting_bytes(upload)
        device = CountedMemory(party="device", weights_bytes=held, messages_bytes=messages)
        return device, self.server.count_memory(upload)


def build(
    model: TaskModel,
    *,
    seed: int,
    side: str = "full-width",
    layers: int | Sequence[int] | None = None,
    tokens: str = "auto",
    top_tokens: int | None = None,
    weight_decay: float = 0.0,
    averaging: float = 0.0,
    codec: str = "none",
    group: int = 64,
    server: str = "in-process",
    folder: Path | None = None,
    about: Mapping[str, Any] | None = None,
    **options: Any,
) -> MobiLLM:
    """A device and a server for this model: the backbone stays on the device, a copy of the head goes to the server.

    Args:
        layers: how many are tapped (evenly spaced; the last ones with ``start=backbone``), or which; all by default.
        tokens: ``all``, ``prediction`` (the token that enters the loss, where that is exact), or ``auto``.
        top_tokens: send that many tokens per text at most; not exact.
        codec: of activations; ``none`` hands them over as they are, ``adaptive`` (across a link) picks one per step.
        server: ``in-process``, ``spawn`` (a server process for this run), an address, or a join string.
        about: the task's words, so that the side network's folder alone can label texts.
        averaging, options: beta of the mean of weights (``training/adamw.py``); ``SHAPE``; the uplink's own.
    """
    shape = {name: options.pop(name) for name in SHAPE if name in options}
    shape = {"pooling": model.head.pooling, **shape, "kind": side, "n_labels": model.head.n_labels, "seed": seed}
    adapter = new_adapter(model.backbone, layers=layers, about=about, **shape).to(model.backbone.device)
    trainer = SideTrainer(attach(adapter, model.backbone, model.head), weight_decay=weight_decay, averaging=averaging)
    one_token = _one_token(tokens, exact=trainer.model.one_token_is_enough) and top_tokens is None
    device = Device(model.backbone, adapter.side.layers, one_token=one_token, top_tokens=top_tokens)
    if server == "in-process":
        return MobiLLM(device, trainer, _in_process(device, trainer, codec, group, options), model.backbone.resident)
    from mobillm_kit.device.uplink import Wire  # sockets and keys: only where there is a server

    uplink = Wire(device, trainer, server, codec, group, folder, **options)
    return MobiLLM(device, trainer, uplink, model.backbone.resident)


def _in_process(device: Device, trainer: SideTrainer, codec: str, group: int, options: Mapping[str, Any]) -> InProcess:
    if options or codec == "adaptive":
        problem = f"Without a server there is no {', '.join(options) or 'adaptive codec'}."
        raise BadInput(problem, "Give server=spawn, an address, or a join string.")
    return InProcess(device, trainer, None if codec == "none" else quant.codec(codec, group))


def _one_token(tokens: str, *, exact: bool) -> bool:
    if tokens not in ("auto", "all", "prediction"):
        raise BadInput(f"tokens is '{tokens}'.", "Choose 'auto', 'all' or 'prediction'.")
    if tokens == "prediction" and not exact:
        problem = "tokens='prediction' is not exact here: the side network or the head reads other tokens too."
        raise BadInput(problem, "Choose tokens='all', or a full-width side network with a head that reads one token.")
    return exact and tokens != "all"
