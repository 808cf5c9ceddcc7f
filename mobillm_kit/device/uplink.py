"""From a device to a server in another process, or on another machine (arXiv 2502.20421).

    device: forward of batch t+1   |   link: batch t under way   |   server: training on t-1

The device's loop never waits for the server while there is credit.  What the loop has to know for its curve, losses and
the side network as trained so far, is asked for where the dev split is evaluated.  Whatever is lost on the way is made
again from the batches that the loop trains on.

Where the labels go:

    server     with each batch (MobiLLM)
    residual   r = onehot(y) - softmax(backbone's logits) goes instead (PAE MobiLLM).  Its sign gives the label away.
    device     the side network's logits come back, dL/dlogits goes up.  One round trip per step.  Its sign gives the
               label away too.

Knows: device, batches, remote server.  Knows nothing of: sockets, how the server trains.
Taught in: notebooks/08_device_and_server.ipynb
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from msgspec.structs import asdict
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from mobillm_kit.channel.frames import digest
from mobillm_kit.channel.messages import BatchMessage, FrameInfo, Hello, LabelMode, Plan
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.device.client import ServerClient, route_to
from mobillm_kit.device.forward import Device
from mobillm_kit.errors import BadInput
from mobillm_kit.link.timeline import Timeline
from mobillm_kit.quant.bitwidth import LADDER, BitWidthController
from mobillm_kit.quant.parcels import Parcel, Upload, from_bytes, merge, pack, split, to_bytes, unpack
from mobillm_kit.server.side_trainer import SideTrainer
from mobillm_kit.side.adapter import new_adapter
from mobillm_kit.side.heads import LabelWordHead
from mobillm_kit.side.portable_head import checked_result, describe_head
from mobillm_kit.texts.batches import Batches, StepBatch
from mobillm_kit.texts.encode import Batch
from mobillm_kit.training.ledger import storage_bytes
from mobillm_kit.training.method import StepResult


@dataclass(eq=False)
class Messages:
    """What the device makes of a step, the first time or again: equal bytes."""

    _device: Device
    _local: SideTrainer
    coder: BitWidthController
    labels: LabelMode
    cache: bool
    _timeline: Timeline
    batches: Batches = field(init=False)
    """What is trained on; :meth:`Wire.begin` sets it."""
    rates: dict[int, float] = field(default_factory=dict)
    """Learning rate of each step that the loop gave."""
    given: StepBatch | None = None
    """The step that the loop gave last."""
    forwards: int = 0
    """Samples that went through the backbone."""
    _residual: dict[int, Tensor] = field(default_factory=dict)

    def of_step(self, sequence: int, held: Callable[[int], bool]) -> tuple[BatchMessage, list[memoryview]]:
        """The batch of a step as a message and its payloads; samples that the server holds are not among them."""
        given = self.given
        samples = given.samples if given and given.step == sequence else self.batches.samples(sequence)
        fresh = [row for row, sample in enumerate(samples) if not (self.cache and held(sample))]
        parcel = self._parcel(sequence, [samples[row] for row in fresh]) if fresh else None
        payloads = [] if parcel is None else [to_bytes(payload) for payload in parcel.payloads]
        if self.labels == "residual":
            payloads.append(to_bytes(self._residuals(sequence, samples)))
        coder = self.coder.codec(sequence)
        message = BatchMessage(
            sequence=sequence, lr=self.rates[sequence] if sequence in self.rates else self.batches.lr(sequence),
            samples=list(samples), fresh=fresh, lengths=[] if parcel is None else list(parcel.lengths),
            positions=[] if parcel is None else list(parcel.positions),
            targets=self.batches.labels(samples) if self.labels == "server" else [], codec=coder.name,
            group=coder.group, layers=list(self._device.layers), frames=[],
        )  # fmt: skip
        return message, payloads

    def _rows(self, samples: Sequence[int]) -> Batch:
        """Samples as a batch; the one that the loop has just given where it is the same."""
        given = self.given
        return given if given is not None and given.samples == tuple(samples) else self.batches.rows(samples)

    def _parcel(self, sequence: int, wanted: Sequence[int]) -> Parcel:
        """The encoded activations of some samples of a step.

        With a cache they are made as they were the first time, together with the same neighbours: a sum of floats may
        depend in its last bit on the batch that it stands in.
        """
        if not self.cache:
            return self._encoded(sequence, wanted, wanted)
        steps = sorted({self.batches.first_step(sample) for sample in wanted})
        apart: dict[int, Parcel] = {}
        for step in steps:
            unit = self.batches.unit(step)
            needed = [sample for sample in unit if sample in wanted]
            apart |= dict(zip(needed, split(self._encoded(sequence, unit, needed)), strict=True))
        return merge([apart[sample] for sample in wanted])

    def _encoded(self, sequence: int, together: Sequence[int], needed: Sequence[int]) -> Parcel:
        with self._timeline.span("forward", sequence):
            upload = self._device.upload(self._rows(together))
        self.forwards += len(together)
        if self.labels == "residual":
            self._remember_residuals(together, upload)
        rows = [index for index, sample in enumerate(together) if sample in set(needed)]
        with self._timeline.span("encode", sequence):
            parcel = pack(upload, self.coder.codec(sequence), self._device.layers, rows)
        self.coder.made(sum(parcel.lengths) * parcel.width * len(parcel.layers), parcel.n_bytes)
        return parcel

    def gradient(self, sequence: int, rows: int, columns: int, raw: memoryview) -> tuple[bytes, float]:
        """dL/dlogits of the mean cross-entropy, and the loss in nats."""
        logits = from_bytes(raw).view(torch.float32).view(rows, columns).requires_grad_()
        loss = F.cross_entropy(logits, torch.tensor(self.batches.labels(self.batches.samples(sequence))))
        (gradient,) = torch.autograd.grad(loss, logits)
        return bytes(to_bytes(gradient)), loss.item()

    def _remember_residuals(self, samples: Sequence[int], upload: Upload) -> None:
        """r = onehot(y) - softmax(backbone's logits), per sample; a few numbers each, kept."""
        probabilities = self._local.start_logits(upload).float().softmax(dim=-1)
        truth = F.one_hot(torch.tensor(self.batches.labels(samples)), probabilities.shape[-1])
        self._residual |= dict(zip(samples, truth - probabilities, strict=True))

    def _residuals(self, sequence: int, samples: Sequence[int]) -> Tensor:
        """(B, C); samples that the server holds since another life of this process are forwarded once more."""
        unknown = [sample for sample in samples if sample not in self._residual]
        for step in sorted({self.batches.first_step(sample) for sample in unknown}):
            unit = self.batches.unit(step)
            with self._timeline.span("forward", sequence):
                self._remember_residuals(unit, self._device.upload(self._rows(unit)))
            self.forwards += len(unit)
        return torch.stack([self._residual[sample] for sample in samples])


class Wire:
    """The way to a server process, and what is made again when something is lost on it.

    Args:
        device: forward only.
        local: side network and head as they are at the start; takes the trained weights when they come back.
        server, link, keys: as for :func:`~mobillm_kit.device.client.route_to`; looked for before the first step.
        codec: how activations become bytes: a name, ``none`` (float32), or ``adaptive``, chosen per step; BadInput for
            an unknown one, and for unknown ``labels``.
        group: values per scale.
        folder: a spawned server's checkpoints go below it.
        cache: whether the server keeps activations, so that each sample is forwarded and sent once.
        checkpoint_every: steps between the server's checkpoints.
        patience_s: as for :class:`~mobillm_kit.device.conversation.Conversation`.
    """

    def __init__(
        self,
        device: Device,
        local: SideTrainer,
        server: str,
        codec: str,
        group: int,
        folder: Path | None,
        *,
        labels: LabelMode = "server",
        cache: bool = False,
        checkpoint_every: int = 25,
        link: str = "",
        keys: str = "",
        patience_s: float = TIMINGS.patience_s,
    ) -> None:
        if labels not in get_args(LabelMode):
            raise BadInput(f"labels is '{labels}'.", "Choose 'server', 'residual' or 'device'.")
        place = None if folder is None else folder / "server"
        self.timeline = Timeline()
        names = LADDER if codec == "adaptive" else ("fp32" if codec == "none" else codec,)
        coder = BitWidthController(self.timeline.average_s, group=group, names=names)
        self.messages = Messages(device, local, coder, labels, cache, self.timeline)
        self._device = device
        self._local = local
        self._reach = partial(route_to, server, link=link, keys=keys, folder=place)
        self._checkpoint_every = checkpoint_every
        self._patience_s = patience_s
        self._session = secrets.token_hex(16)
        self._sequence = 0
        self._fetched = 0
        self._counted_bytes = 0
        self._remote: ServerClient | None = None
        self._open = ExitStack()

    # ------------------------------------------------------------------ the uplink's protocol

    def step(self, batch: Batch, lr: float) -> StepResult:
        """Forward and send what the server does not hold; the loss comes later (:meth:`settle`).

        Raises:
            BadInput: a batch that does not know its place in training, so that nobody could make it again.
        """
        if not isinstance(batch, StepBatch) or batch.step != self._sequence:
            problem = f"Step {self._sequence + 1} needs its own batch: what is lost on the way is made again from it."
            raise BadInput(problem, "Take batches from Batches.step, in their order.")
        self.begin(batch.batches)
        messages = self.messages
        messages.given, messages.rates[batch.step] = batch, lr
        before = messages.forwards
        self.remote.send(batch.step + 1)
        self._sequence += 1
        return StepResult(loss=None, forwards=messages.forwards - before, bytes_sent=self._new_bytes())

    def begin(self, batches: Batches) -> None:
        """What will be trained on: the session's plan is made of it.  :meth:`step` says it by itself."""
        self.messages.batches = batches

    def settle(self) -> tuple[list[float], int]:
        """Wait until every step so far is trained; the losses since the last call, and the bytes since the last step.

        What a step hands over leaves when its turn comes, so a step's own count may lack some of it.
        """
        if self.messages.given is None:
            return [], 0
        self.remote.drain(self._sequence)
        return self.remote.take_losses(), self._new_bytes()

    @property
    def codecs(self) -> tuple[str, ...]:
        """The codec of each step, where a controller chose them."""
        return self.messages.coder.chosen

    def logits(self, batch: Batch) -> Tensor:
        """The backbone and the side network as trained so far, on the device."""
        self._fetch()
        upload = self._device.upload(batch)
        return self._local.residual_logits(upload) if self.messages.labels == "residual" else self._local.logits(upload)

    def carried(self, upload: Upload) -> tuple[Upload, int]:
        """What arrives of an upload, and the bytes of its payloads."""
        parcel = pack(upload, self.messages.coder.codec(0), self._device.layers)
        return unpack(parcel, labels=upload.labels.tolist()), parcel.n_bytes

    def waiting_bytes(self, upload: Upload) -> int:
        """The encoded upload, which waits to be sent."""
        return pack(upload, self.messages.coder.codec(0), self._device.layers).n_bytes

    def state(self) -> dict[str, Tensor]:
        """Where the session stands, durable on the server; and the weights that have come back."""
        if self.messages.given is not None:
            self.remote.checkpoint(self._sequence)
            self._fetch()
        weights = {f"weight/{name}": tensor.detach().clone() for name, tensor in self._local.parameters.items()}
        session, sequence = from_bytes(bytes.fromhex(self._session)), torch.tensor(self._sequence)
        return {"session": session, "sequence": sequence, **weights}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on with that session from where it stood."""
        self._session = bytes(state["session"].tolist()).hex()
        self._sequence = self._fetched = int(state["sequence"])
        self._put_weights({name.removeprefix("weight/"): t for name, t in state.items() if name.startswith("weight/")})

    def close(self) -> None:
        """End the session, and the server where it was started for this run."""
        self._open.close()
        self._remote = None

    def _new_bytes(self) -> int:
        """Bytes sent since the last call, everything included."""
        sent = self.remote.bytes_sent
        fresh, self._counted_bytes = sent - self._counted_bytes, sent
        return fresh

    @property
    def remote(self) -> ServerClient:
        """The session with the server; begun where it is first asked for."""
        if self._remote is None:
            plan, head = self.plan()
            connect, code = self._open.enter_context(self._reach())
            self._remote = ServerClient(
                connect, Hello(session=self._session, name="device", code=code, position=0, plan=plan, frames=[]),
                [save(head)] if head else [], self.timeline, self.messages.of_step, first=self.first_weights,
                gradient=self.messages.gradient if self.messages.labels == "device" else None, position=self._sequence,
                patience_s=self._patience_s,
            )  # fmt: skip
            self._open.callback(self._remote.close)
        return self._remote

    def _fetch(self) -> None:
        """Take the side network as it is after the last step, once per step."""
        if self._fetched == self._sequence or self._remote is None:
            return
        data = self._remote.fetch(self._sequence, storage_bytes(self._local.parameters.values()))
        self._put_weights(checked_result(data, self._local.parameters))
        self._fetched = self._sequence

    def _put_weights(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._local.parameters.items():
                parameter.copy_(tensors[name])

    def first_weights(self) -> bytes:
        """As they are sent, made anew from the backbone: training has gone over the local ones."""
        adapter = new_adapter(self._device.backbone, **asdict(self._local.model.adapter.spec))
        return save({f"adapter.{name}": weight.detach() for name, weight in adapter.named_parameters()})

    def plan(self) -> tuple[Plan, dict[str, Tensor]]:
        """What the server is asked to train, and its head's tensors."""
        head = self._local.model.head
        spec, tensors = describe_head(head) if isinstance(head, LabelWordHead) else (None, {})
        batches, side = self.messages.batches, self._local.model.adapter.spec
        first = self.first_weights() if side.start == "backbone" else b""
        plan = Plan(
            fingerprint=self._local.model.adapter.fingerprint, side=side,
            first=FrameInfo(n_bytes=len(first), digest=digest(first)) if first else None, head=spec,
            labels=self.messages.labels, **self._local.settings, steps=batches.settings.steps,
            checkpoint_every=self._checkpoint_every, max_rows=batches.settings.batch_size,
            max_tokens=1 if self._device.one_token else batches.longest, n_samples=batches.n_samples,
            cache=self.messages.cache,
        )  # fmt: skip
        return plan, tensors
