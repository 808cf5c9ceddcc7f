"""MobiLLM with its server in another process, or on another machine (arXiv 2502.20421).

    device: forward of batch t+1   |   link: batch t under way   |   server: training on t-1

The device's loop never waits for the server while there is credit.  What the loop has to know for its curve, losses and
the side network as trained so far, is asked for where the dev split is evaluated.

Where the labels go:

    server     with each batch (MobiLLM)
    residual   r = onehot(y) - softmax(backbone's logits) goes instead (PAE MobiLLM).  Its sign gives the label away.
    device     the side network's logits come back, dL/dlogits goes up.  One round trip per step.  Its sign gives the
               label away too.

Knows: device, feed, remote server.  Knows nothing of: sockets, other methods.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F

from mobillm_kit import quant, serve
from mobillm_kit.adapter import SideTuned
from mobillm_kit.bitwidth import BitWidthController
from mobillm_kit.channel import Upload
from mobillm_kit.common import MIB
from mobillm_kit.device import Device
from mobillm_kit.encode import Batch
from mobillm_kit.errors import BadInput, ServerRefused
from mobillm_kit.feed import Feed
from mobillm_kit.memory import storage_bytes
from mobillm_kit.methods.protocol import StepResult
from mobillm_kit.model import LabelWordHead
from mobillm_kit.parcels import Parcel, merge, pack, split
from mobillm_kit.portable import describe_head
from mobillm_kit.quant import Codec
from mobillm_kit.quant.flat import from_bytes, to_bytes
from mobillm_kit.record import CountedMemory
from mobillm_kit.remote import PATIENCE_S, RemoteServer
from mobillm_kit.serve import Reach
from mobillm_kit.server import Server
from mobillm_kit.timeline import Timeline
from mobillm_kit.wire import Batch as BatchMessage
from mobillm_kit.wire import Hello, Limits, Plan, SideSpec

LabelMode = Literal["server", "residual", "device"]
MESSAGE_LIMIT_BYTES = 1024 * MIB
FLOOR = 1e-6
"""Lowest probability of a label where prediction differences are added to probabilities."""


class RemoteMobiLLM:
    """The device's half of a run whose other half is a server process.

    Args:
        device: forward only.
        tuned: side network and head as they are at the start; takes the trained weights when they come back.
        feed: what to train on at which step.
        reach: finds the server; not called before the first step.
        coder: how activations become bytes; None lets ``controller`` choose per step.
        controller: picks a codec per step; None where ``coder`` is fixed.
        labels: where they go.
        cache: whether the server keeps activations, so that each sample is forwarded and sent once.
        checkpoint_every: steps between the server's checkpoints.
        side: from which the server makes the same side network, with the same first weights.
        weight_decay: AdamW's.
        patience_s: silence after which the server counts as gone.
        timeline: gets the spans of all stages.
    """

    def __init__(
        self,
        device: Device,
        tuned: SideTuned,
        feed: Feed,
        reach: Callable[[], Reach],
        side: SideSpec,
        timeline: Timeline,
        *,
        coder: Codec | None,
        controller: BitWidthController | None = None,
        labels: LabelMode = "server",
        cache: bool = False,
        checkpoint_every: int = 25,
        weight_decay: float = 0.0,
        device_weights: Sequence[Tensor] = (),
        patience_s: float = PATIENCE_S,
    ) -> None:
        adapter = tuned.adapter
        self.name = f"mobillm-{'full-width' if adapter.side.token_wise else 'ladder'}"
        self.adapter = adapter
        self.timeline = timeline
        self._device = device
        self._server = Server(tuned, weight_decay=weight_decay)  # holds the weights that come back; trains nothing
        self._feed = feed
        self._reach = reach
        self._reached: Reach | None = None
        self._coder = coder
        self._controller = controller
        self._labels = labels
        self._cache = cache
        self._checkpoint_every = checkpoint_every
        self._weight_decay = weight_decay
        self._side = side
        self._device_weights = list(device_weights)
        self._patience_s = patience_s
        self._session = secrets.token_hex(16)
        self._sequence = 0
        self._fetched = 0
        self._counted_bytes = 0
        self._forwards = 0
        self._residual: dict[int, Tensor] = {}
        self._remote: RemoteServer | None = None

    # ------------------------------------------------------------------ the method's protocol

    def step(self, batch: Batch, lr: float) -> StepResult:
        """Forward and send what the server does not hold; the loss comes later (:meth:`settle`)."""
        before = self._forwards
        self._make_up_to(self._sequence + 1)
        self._sequence += 1
        return StepResult(loss=None, forwards=self._forwards - before, bytes_sent=self._new_bytes())

    def settle(self) -> list[float]:
        """Wait until every step so far is trained; the losses since the last call, in their order."""
        if self._sequence == 0:
            return []
        self._drain()
        return self._uplink().take_losses()

    @property
    def codecs(self) -> tuple[str, ...]:
        """The codec of each step, where a controller chose them."""
        choices = {} if self._controller is None else self._controller.choices
        return tuple(choices[step] for step in sorted(choices))

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """The backbone and the side network as trained so far, on the device."""
        self._fetch()
        upload = self._device.upload(batch)
        if self._labels != "residual":
            return self._server.logits(upload)
        start = self._server.start_logits(upload)
        change = self._server.logits(upload) - start
        return (start.float().softmax(dim=-1) + change).clamp_min(FLOOR).log()

    def trained(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._server.parameters.items()}

    def state(self) -> dict[str, Tensor]:
        """Where the session stands, durable on the server; and the weights that have come back."""
        if self._sequence:
            self._drain()
            while not self._uplink().checkpoint(self._sequence):
                self._drain()
            self._fetch()
        return {
            "session": from_bytes(bytes.fromhex(self._session)),
            "sequence": torch.tensor(self._sequence),
            **{f"weight/{name}": tensor.clone() for name, tensor in self.trained().items()},
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._session = bytes(state["session"].tolist()).hex()
        self._sequence = self._fetched = int(state["sequence"])
        self._put_weights({name.removeprefix("weight/"): t for name, t in state.items() if name.startswith("weight/")})

    def count_memory(self, batch: Batch) -> tuple[CountedMemory, ...]:
        upload = self._device.upload(batch)
        parcel = pack(upload, self._codec(0), self.adapter.side.layers)
        device = CountedMemory(
            party="device",
            weights_bytes=storage_bytes(self._device_weights),
            gradients_bytes=0,
            optimizer_bytes=0,
            saved_activations_bytes=0,
            messages_bytes=upload.n_bytes + parcel.n_bytes,
        )
        return device, self._server.count_memory(upload)

    def close(self) -> None:
        """End the session, and the server where it was started for this run."""
        if self._remote is not None:
            self._remote.close()
            self._remote = None
        if self._reached is not None:
            self._reached.close()
            self._reached = None

    # ------------------------------------------------------------------ making batches

    def _make_up_to(self, upto: int) -> None:
        """Hand over every batch below ``upto`` that the server wants, again where it asks again."""
        remote = self._uplink()
        while (sequence := remote.wanted()) < upto:
            remote.offer(*self._made(sequence))

    def _made(self, sequence: int) -> tuple[BatchMessage, list[memoryview]]:
        samples = self._feed.samples(sequence)
        fresh = [row for row, sample in enumerate(samples) if not self._held(sample)]
        parcel = self._parcel(sequence, [samples[row] for row in fresh]) if fresh else None
        payloads = [] if parcel is None else [to_bytes(payload) for payload in parcel.payloads]
        if self._labels == "residual":
            payloads.append(to_bytes(self._residuals(sequence, samples)))
        coder = self._codec(sequence)
        message = BatchMessage(
            sequence=sequence,
            lr=self._feed.lr(sequence),
            samples=samples,
            fresh=fresh,
            lengths=[] if parcel is None else list(parcel.lengths),
            positions=[] if parcel is None else list(parcel.positions),
            targets=self._feed.labels(samples) if self._labels == "server" else [],
            codec=coder.name,
            group=coder.group,
            layers=list(self.adapter.side.layers),
            frames=[],
        )
        return message, payloads

    def _held(self, sample: int) -> bool:
        return self._cache and self._uplink().holds(sample)

    def _parcel(self, sequence: int, wanted: Sequence[int]) -> Parcel:
        """The encoded activations of some samples of a step.

        With a cache they are made as they were the first time, together with the same neighbours: a sum of floats may
        depend in its last bit on the batch that it stands in.
        """
        if not self._cache:
            return self._encoded(sequence, wanted, wanted)
        steps = sorted({self._feed.first_step(sample) for sample in wanted})
        apart: dict[int, Parcel] = {}
        for step in steps:
            unit = self._feed.unit(step)
            needed = [sample for sample in unit if sample in wanted]
            apart |= dict(zip(needed, split(self._encoded(sequence, unit, needed)), strict=True))
        return merge([apart[sample] for sample in wanted])

    def _encoded(self, sequence: int, together: Sequence[int], needed: Sequence[int]) -> Parcel:
        with self.timeline.span("forward", sequence):
            upload = self._device.upload(self._feed.batch(together))
        self._forwards += len(together)
        if self._labels == "residual":
            self._remember_residuals(together, upload)
        rows = [index for index, sample in enumerate(together) if sample in set(needed)]
        with self.timeline.span("encode", sequence):
            parcel = pack(upload, self._codec(sequence), self.adapter.side.layers, rows)
        if self._controller is not None:
            self._controller.made(sum(parcel.lengths) * parcel.width * len(parcel.layers), parcel.n_bytes)
        return parcel

    def _codec(self, sequence: int) -> Codec:
        if self._controller is None:
            assert self._coder is not None
            return self._coder
        return self._controller.codec(sequence)

    # ------------------------------------------------------------------ asking the server

    def _uplink(self) -> RemoteServer:
        if self._remote is None:
            plan, head = self._plan()
            self._reached = reached = self._reach()
            self._remote = RemoteServer(
                reached.connect,
                Hello(session=self._session, name="device", code=reached.code, position=0, plan=plan, frames=[]),
                [save(head)] if head else [],
                Limits(frame_bytes=MESSAGE_LIMIT_BYTES, total_bytes=MESSAGE_LIMIT_BYTES),
                self.timeline,
                gradient=self._gradient if self._labels == "device" else None,
                position=self._sequence,
                patience_s=self._patience_s,
            )
        return self._remote

    def _drain(self) -> None:
        remote = self._uplink()
        while not remote.drained(self._sequence):
            self._make_up_to(self._sequence)

    def _fetch(self) -> None:
        """Take the side network as it is after the last step, once per step."""
        if self._fetched == self._sequence or self._remote is None:
            return
        self._drain()
        n_bytes = storage_bytes(self._server.parameters.values())
        while (data := self._uplink().fetch(self._sequence, n_bytes)) is None:
            self._drain()
        self._put_weights(checked_result(data, self.trained()))
        self._fetched = self._sequence

    def _put_weights(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._server.parameters.items():
                parameter.copy_(tensors[name])

    def _new_bytes(self) -> int:
        sent = self._uplink().bytes_sent
        fresh, self._counted_bytes = sent - self._counted_bytes, sent
        return fresh

    def _plan(self) -> tuple[Plan, dict[str, Tensor]]:
        head = self._server.model.head
        spec, tensors = describe_head(head) if isinstance(head, LabelWordHead) else (None, {})
        settings = self._feed.settings
        plan = Plan(
            fingerprint=self.adapter.fingerprint,
            side=self._side,
            head=spec,
            labels=self._labels,
            weight_decay=self._weight_decay,
            steps=settings.steps,
            checkpoint_every=self._checkpoint_every,
            max_rows=settings.batch_size,
            max_tokens=1 if self._device.one_token else self._feed.longest,
            n_samples=self._feed.n_samples,
            cache=self._cache,
        )
        return plan, tensors

    # ------------------------------------------------------------------ labels that stay here

    def _gradient(self, sequence: int, rows: int, columns: int, raw: memoryview) -> tuple[bytes, float]:
        """dL/dlogits of the mean cross-entropy, and the loss in nats."""
        logits = from_bytes(raw).view(torch.float32).view(rows, columns).requires_grad_()
        loss = F.cross_entropy(logits, torch.tensor(self._feed.labels(self._feed.samples(sequence))))
        (gradient,) = torch.autograd.grad(loss, logits)
        return bytes(to_bytes(gradient)), loss.item()

    def _remember_residuals(self, samples: Sequence[int], upload: Upload) -> None:
        """r = onehot(y) - softmax(backbone's logits), per sample; a few numbers each, kept."""
        probabilities = self._server.start_logits(upload).float().softmax(dim=-1)
        truth = F.one_hot(torch.tensor(self._feed.labels(samples)), probabilities.shape[-1])
        self._residual |= dict(zip(samples, truth - probabilities, strict=True))

    def _residuals(self, sequence: int, samples: Sequence[int]) -> Tensor:
        """(B, C); samples that the server holds since another life of this process are forwarded once more."""
        unknown = [sample for sample in samples if sample not in self._residual]
        for step in sorted({self._feed.first_step(sample) for sample in unknown}):
            unit = self._feed.unit(step)
            with self.timeline.span("forward", sequence):
                self._remember_residuals(unit, self._device.upload(self._feed.batch(unit)))
            self._forwards += len(unit)
        return torch.stack([self._residual[sample] for sample in samples])


def build_remote(
    device: Device,
    tuned: SideTuned,
    feed: Feed,
    *,
    side_shape: Mapping[str, Any],
    server: str,
    codec: str,
    group: int,
    weight_decay: float,
    device_weights: Sequence[Tensor],
    folder: Path | None,
    labels: LabelMode = "server",
    cache: bool = False,
    checkpoint_every: int = 25,
    link: str = "",
    keys: str = "",
    patience_s: float = PATIENCE_S,
) -> RemoteMobiLLM:
    """The device's half of a run.

    Args:
        device, tuned, feed, weight_decay, device_weights: as for :class:`RemoteMobiLLM`.
        side_shape: kind, pooling, rank, reduction, heads, seed of the side network.
        server: ``spawn``, an address or a join string.
        codec: a codec's name, ``none`` for float32, or ``adaptive``.
        group: values per scale.
        folder: of the run.
        labels: ``server``, ``residual`` or ``device``.
        cache: keep activations on the server; each sample is forwarded and sent once.
        checkpoint_every: steps between the server's checkpoints.
        link: a shaped link to put between, for experiments.
        keys: folder of this device's keys.
        patience_s: silence after which the server counts as gone.

    Raises:
        BadInput: an unknown label mode or codec.
    """
    if labels not in ("server", "residual", "device"):
        raise BadInput(f"labels is '{labels}'.", "Choose 'server', 'residual' or 'device'.")
    adapter = tuned.adapter
    timeline = Timeline()
    adaptive = codec == "adaptive"
    name = "fp32" if codec == "none" else codec
    spec = SideSpec(
        **side_shape,
        layers=list(adapter.side.layers),
        width=adapter.width,
        n_labels=adapter.n_labels,
        causal=adapter.causal,
        options={},
    )
    return RemoteMobiLLM(
        device,
        tuned,
        feed,
        lambda: serve.reach(server, link=link, keys=keys, folder=None if folder is None else folder / "server"),
        spec,
        timeline,
        coder=None if adaptive else quant.codec(name, group),
        controller=BitWidthController(timeline.average_s, group=group) if adaptive else None,
        labels=labels,
        cache=cache,
        checkpoint_every=checkpoint_every,
        weight_decay=weight_decay,
        device_weights=device_weights,
        patience_s=patience_s,
    )


def checked_result(data: bytes, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The side network that came back, safe to put into place.

    Raises:
        ServerRefused: not safetensors, other names, shapes or types than expected, or values that are not finite.
    """
    remedy = "Keep the last checkpoint and look at the server."
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ServerRefused(f"The side network that came back is not safetensors ({error}).", remedy) from error
    if set(tensors) != set(expected):
        odd = sorted(set(tensors) ^ set(expected))[:3]
        raise ServerRefused(f"The side network that came back has other tensors than ours ({', '.join(odd)}).", remedy)
    for name, tensor in tensors.items():
        ours = expected[name]
        if tensor.shape != ours.shape or tensor.dtype != ours.dtype:
            raise ServerRefused(
                f"'{name}' came back as {tensor.dtype} {tuple(tensor.shape)}, "
                f"ours is {ours.dtype} {tuple(ours.shape)}.",
                remedy,
            )
        if not torch.isfinite(tensor).all():
            raise ServerRefused(f"'{name}' came back with values that are not finite.", remedy)
    return tensors
