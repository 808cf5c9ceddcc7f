"""MobiLLM: the device runs the frozen backbone forward, the server trains a side network (arXiv 2502.20421).

    device: taps of the batch -> channel -> server: side network, loss, backward, step

Here both live in one process, as two objects that share nothing but the channel; ``build`` gives the method of
``mobillm_remote.py`` instead where a server is named.

Knows: device, channel and server.  Knows nothing of: other methods.

Taught in: notebooks/00_start_here.ipynb, notebooks/09_comparison.ipynb
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mobillm_kit.adapter import SideAdapter, attach, new_adapter
from mobillm_kit.channel import InProcessChannel, Upload, tensor_bytes
from mobillm_kit.device import Device
from mobillm_kit.encode import Batch
from mobillm_kit.errors import BadInput
from mobillm_kit.memory import storage_bytes
from mobillm_kit.methods.protocol import StepResult
from mobillm_kit.model import LabelWordHead, TaskModel
from mobillm_kit.record import CountedMemory
from mobillm_kit.server import Server
from mobillm_kit.side import SideKind, SideStart

if TYPE_CHECKING:
    from mobillm_kit.feed import Feed
    from mobillm_kit.methods.mobillm_remote import RemoteMobiLLM
    from mobillm_kit.quant import Codec


class MobiLLM:
    """Device and server of one run, joined by a channel.

    Args:
        device: forward only.
        server: trains.
        adapter: the side network that the server trains, for saving.
        device_weights: what the device holds, for the ledger.
        coder: how activations become bytes on their way; None hands them over as they are.
    """

    def __init__(
        self,
        device: Device,
        server: Server,
        adapter: SideAdapter,
        device_weights: Sequence[Tensor],
        coder: Codec | None = None,
    ) -> None:
        self.name = f"mobillm-{'full-width' if adapter.side.token_wise else 'ladder'}"
        self.device = device
        self.server = server
        self.adapter = adapter
        self.channel = InProcessChannel()
        self._device_weights = list(device_weights)
        self._coder = coder

    def step(self, batch: Batch, lr: float) -> StepResult:
        before = self.channel.bytes_up
        self.channel.send(*self.through_codec(self.device.upload(batch)))
        loss = self.server.train(self.channel.receive(), lr)
        return StepResult(loss=loss, forwards=batch.labels.shape[0], bytes_sent=self.channel.bytes_up - before)

    def logits(self, batch: Batch) -> Tensor:
        """The device's backbone and the side network as trained so far; nothing is counted as sent."""
        return self.server.logits(self.device.upload(batch))

    def through_codec(self, upload: Upload) -> tuple[Upload, int]:
        """What arrives of an upload, and the bytes that it took on its way."""
        if self._coder is None:
            return upload, upload.n_bytes
        from mobillm_kit.parcels import pack, unpack

        parcel = pack(upload, self._coder, self.adapter.side.layers)
        labels = upload.labels.tolist()
        arrived = unpack(parcel, sequence=upload.sequence, labels=labels)
        return arrived, parcel.n_bytes + tensor_bytes([upload.labels])

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
    start: SideStart = "random",
    tokens: str = "auto",
    top_tokens: int | None = None,
    weight_decay: float = 0.0,
    codec: str = "none",
    group: int = 64,
    server: str = "in-process",
    feed: Feed | None = None,
    folder: Path | None = None,
    about: Mapping[str, Any] | None = None,
    **uplink: Any,
) -> MobiLLM | RemoteMobiLLM:
    """A device and a server for this model.

    Args:
        model: backbone and head; the backbone stays on the device, a small copy of the head goes to the server.
        seed: of the side network's initial weights.
        side: ``full-width`` (PAE MobiLLM eq. 1) or ``ladder`` (LST).
        layers: how many layers are tapped, evenly spaced, or which; all by default.
        rank: bottleneck r of the full-width side.
        reduction: k, the ladder's width is d/k.
        heads: attention heads of the ladder.
        start: ``backbone``: the ladder's blocks begin as the backbone's own, pruned by k (BERT-like backbones), and
            ``layers`` as a number means the last ones.
        tokens: ``all``, ``prediction`` (the token that enters the loss, where that is exact), or ``auto``.
        top_tokens: send that many tokens per text at most; not exact.
        weight_decay: AdamW's.
        codec: how activations become bytes; ``none`` hands them over as they are, ``adaptive`` (across a link) picks
            one per step.
        group: values per scale, of codecs that have scales.
        server: ``in-process``, ``spawn`` (a server process for this run), an address, or a join string.
        feed: what to train on at which step; needed where the server is another process.
        folder: of the run; a spawned server keeps its checkpoints there.
        about: the task's words, kept with the side network so that its folder alone can label texts.
        uplink: ``labels``, ``cache``, ``checkpoint_every``, ``link``, ``keys``, ``patience_s``: see
            ``mobillm_remote.py``.

    Raises:
        BadInput: ``tokens="prediction"`` where it is not exact, or an option of the uplink without a server.
    """
    head = model.head
    pooling = None if isinstance(head, LabelWordHead) else head.pooling
    shape = {"rank": rank, "reduction": reduction, "heads": heads, "seed": seed}
    adapter = new_adapter(
        model.backbone,
        side=side,
        n_labels=len(head.word_ids) if isinstance(head, LabelWordHead) else head.classifier.out_features,
        layers=layers,
        pooling=pooling or "mean",
        start=start,
        **shape,
        **(about or {}),
    )
    adapter.to(model.backbone.device)
    tuned = attach(adapter, model.backbone, head)
    one_token = _one_token(tokens, exact=tuned.one_token_is_enough) and top_tokens is None
    device = Device(model.backbone, adapter.side.layers, one_token=one_token, top_tokens=top_tokens)
    weights = model.backbone.resident()
    if server == "in-process":
        if uplink or codec == "adaptive":
            raise BadInput(
                f"Without a server there is no {', '.join(uplink) or 'adaptive codec'}.",
                "Give server=spawn, an address, or a join string.",
            )
        coder = None if codec == "none" else _coder(codec, group)
        return MobiLLM(device, Server(tuned, weight_decay=weight_decay), adapter, weights, coder)
    if start == "backbone":
        raise BadInput(
            "start='backbone': a server in another process has no backbone to start from.",
            "Choose start='random' there, or server='in-process'.",
        )
    if feed is None:
        raise BadInput("A server in another process needs a feed.", "Use `mobillm train` or run().")
    from mobillm_kit.methods.mobillm_remote import build_remote

    return build_remote(
        device,
        tuned,
        feed,
        side_shape={"kind": side, "pooling": pooling, **shape},
        server=server,
        codec=codec,
        group=group,
        weight_decay=weight_decay,
        device_weights=weights,
        folder=folder,
        **uplink,
    )


UPLINK = ("server", "labels", "cache", "checkpoint_every", "link", "keys", "patience_s")
"""Options that say how a server in another process is reached and used."""


def without_server(options: Mapping[str, Any]) -> dict[str, Any]:
    """The same training with device and server in one process, to count and measure each on its own."""
    kept = {name: value for name, value in options.items() if name not in UPLINK}
    return {name: value for name, value in kept.items() if (name, value) != ("codec", "adaptive")}


def _coder(name: str, group: int) -> Codec:
    from mobillm_kit import quant

    return quant.codec(name, group)


def _one_token(tokens: str, *, exact: bool) -> bool:
    if tokens not in ("auto", "all", "prediction"):
        raise BadInput(f"tokens is '{tokens}'.", "Choose 'auto', 'all' or 'prediction'.")
    if tokens == "prediction" and not exact:
        raise BadInput(
            "tokens='prediction' is not exact here: the side network or the head reads other tokens too.",
            "Choose tokens='all', or a full-width side network with a head that reads one token.",
        )
    return exact and tokens != "all"
