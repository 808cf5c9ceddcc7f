"""What one session trains on the server: batches in strict order, the cache, checkpoints, the result.

    checkpoint   trained parameters, optimizer, losses so far; written in one step, checked by a digest when read
    step 0       always known: the first weights follow from the plan's seed, or come once and are checkpoint 0

So whatever is lost, training goes on from some step e, and the device sends everything from e again.

Knows: the server's training, plans, batches as messages.  Knows nothing of: sockets, threads, other sessions.
Taught in: notebooks/08_device_and_server.ipynb
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mobillm_kit.channel import messages
from mobillm_kit.channel.checks import KEPT_CHECKPOINTS
from mobillm_kit.channel.frames import digest
from mobillm_kit.channel.messages import Ack, BatchMessage, Message, Plan, WireError, refusal
from mobillm_kit.errors import BadInput, SaveFailed
from mobillm_kit.files import write_with
from mobillm_kit.quant.parcels import Parcel, Upload, from_bytes, merge, split, to_bytes, unpack
from mobillm_kit.server.cache import ActivationCache
from mobillm_kit.server.side_trainer import SideTrainer
from mobillm_kit.side.adapter import SideAdapter
from mobillm_kit.side.heads import SideTuned
from mobillm_kit.side.portable_head import build_head, tensors_like

Reply = tuple[Message, list[bytes | memoryview]]


class SessionTrainer:
    """Trains one session's side network.

    Args:
        head: the tensors of a label words' head; empty for classifiers.
        folder: of the session's checkpoints.
        cache: None where the plan does not ask for one.

    Raises:
        WireError: ``bad-plan``; the side network or the head cannot be built as described.
    """

    def __init__(self, plan: Plan, head: Mapping[str, Tensor], folder: Path, cache: ActivationCache | None) -> None:
        self.plan = plan
        self.cache = cache
        self._head = head
        self._folder = folder
        self._waiting: tuple[BatchMessage, bool, float, float] | None = None
        self._asked_for: int | None = None
        self._start()
        self._load(self._checkpoints())

    @property
    def sequence(self) -> int:
        """The step that comes next."""
        return len(self.losses)

    @property
    def waiting(self) -> bool:
        """Whether a step stands in its middle, waiting for the device's gradient."""
        return self._waiting is not None

    def batch(self, message: BatchMessage, payloads: Sequence[memoryview], queue_s: float = 0.0) -> list[Reply]:
        """Train on a batch; a batch out of turn is left out without a word (its turn comes again)."""
        if message.sequence != self.sequence:
            return []
        started = time.perf_counter()
        try:
            upload, cached = self._upload(message, payloads)
        except BadInput as error:
            raise WireError("bad-values", error.problem, error.remedy) from error
        if upload is None:
            return self._ask_again(message)
        self._waiting = message, cached, queue_s, time.perf_counter() - started
        if self.plan.labels == "device":
            logits = self._server.propose(upload).float().contiguous()
            rows, columns = logits.shape
            return [(messages.Logits(sequence=message.sequence, rows=rows, columns=columns), [to_bytes(logits)])]
        if self.plan.labels == "residual":
            residual = _floats(payloads[-1], len(message.samples), self.plan.side.n_labels)
            return self._step(lambda: self._server.train_residual(upload, residual, message.lr))
        return self._step(lambda: self._server.train(upload, message.lr))

    def gradient(self, message: messages.Gradient, payloads: Sequence[memoryview]) -> list[Reply]:
        """The second half of a step whose loss is the device's."""
        if self._waiting is None or message.sequence != self.sequence:
            return []
        batch = self._waiting[0]
        gradient = _floats(payloads[0], len(batch.samples), self.plan.side.n_labels)
        return self._step(lambda: self._server.accept(gradient, batch.lr))

    def forget_waiting(self) -> None:
        """The device is back from elsewhere and will send the batch again."""
        self._waiting = self._asked_for = None

    def roll_back(self, sequence: int) -> None:
        """Go back to the newest checkpoint of at most ``sequence`` steps; later ones are left behind."""
        older = [path for path in self._checkpoints() if path.name <= _name(sequence)]
        for path in set(self._checkpoints()) - set(older):
            path.unlink(missing_ok=True)
        self._start()
        self._load(older)

    def checkpoint(self) -> list[Reply]:
        """Write everything so far to disk; the WireError ``server-trouble`` where that is full."""
        try:
            self._save()
        except SaveFailed as error:
            raise refusal("no-checkpoint", sequence=self.sequence, problem=error.problem) from error
        return [(messages.Durable(sequence=self.sequence), [])]

    def result(self) -> list[Reply]:
        """The trained side network as it is now, as safetensors."""
        trained = {name: parameter.detach().contiguous() for name, parameter in self._server.parameters.items()}
        return [(messages.Result(sequence=self.sequence), [save(trained)])]

    def _upload(self, message: BatchMessage, payloads: Sequence[memoryview]) -> tuple[Upload | None, bool]:
        """The batch's activations, fresh ones from the message and the others from the cache."""
        fresh = None
        if message.fresh:
            fresh = Parcel(
                codec=message.codec, group=message.group, layers=tuple(message.layers), width=self.plan.side.width,
                lengths=tuple(message.lengths), positions=tuple(message.positions),
                payloads=tuple(from_bytes(payload) for payload in payloads[: len(message.layers)]),
            )  # fmt: skip
        if self.cache is None:
            if fresh is None:
                raise BadInput("A batch without activations, and the plan asks for no cache.", "Send every sample's.")
            return unpack(fresh, labels=message.targets), False
        came = [message.samples[row] for row in message.fresh]
        apart = {} if fresh is None else dict(zip(came, split(fresh), strict=True))
        parcels = [apart.get(sample) or self.cache.get(sample) for sample in message.samples]
        if any(parcel is None for parcel in parcels):
            return None, False
        upload = _unpacked([parcel for parcel in parcels if parcel is not None], message)
        return upload, all(self.cache.put(sample, parcel) for sample, parcel in apart.items())

    def _ask_again(self, message: BatchMessage) -> list[Reply]:
        """Ask for a step's samples, once: who sends the same again would be asked for ever."""
        if self._asked_for == message.sequence:
            raise refusal("not-held", sequence=message.sequence)
        self._asked_for = message.sequence
        return [(messages.Need(sequence=message.sequence), [])]

    def _step(self, train: Callable[[], float | None]) -> list[Reply]:
        """Train on the batch that waits; ``train`` gives the loss where it is known here."""
        assert self._waiting is not None
        message, cached, queue_s, decode_s = self._waiting
        sequence, started = message.sequence, time.perf_counter()
        loss, train_s = train() or 0.0, time.perf_counter() - started
        self._waiting = None
        if not math.isfinite(loss):
            raise refusal("diverged", step=sequence + 1, loss=loss)
        self.losses.append(loss)
        ack = Ack(sequence=sequence, loss=loss, cached=cached, queue_s=queue_s, decode_s=decode_s, train_s=train_s)
        replies: list[Reply] = [(ack, [])]
        if self.sequence % self.plan.checkpoint_every == 0:
            replies += self._due_checkpoint()
        return replies

    def _due_checkpoint(self) -> list[Reply]:
        """One that nobody waits for: a full disk is said, and training goes on."""
        try:
            return self.checkpoint()
        except WireError as error:
            return [(error.said(fatal=False, sequence=self.sequence), [])]

    # ------------------------------------------------------------------ checkpoints

    def _save(self) -> None:
        state = {name: tensor.contiguous() for name, tensor in self._server.state().items()}
        state["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        about = {"plan": plan_digest(self.plan), "digest": tensors_digest(state)}
        path = self._folder / _name(self.sequence)
        try:
            write_with(path, lambda target: save_file(state, str(target), metadata=about))
        except SafetensorError as error:  # its writer wraps the system's own errors, a full disk among them
            raise SaveFailed(f"{path.name}: could not be written ({error}).", "Free some space.") from error
        for old in self._checkpoints()[KEPT_CHECKPOINTS:]:
            old.unlink(missing_ok=True)

    def _start(self) -> None:
        """Step 0."""
        plan = self.plan
        try:
            head = None if plan.head is None else build_head(plan.head, self._head)
            model = SideTuned(SideAdapter(plan.side, fingerprint=plan.fingerprint), head)
            self._server = SideTrainer(model, weight_decay=plan.weight_decay, averaging=plan.averaging)
        except BadInput as error:
            raise WireError("bad-plan", error.problem, error.remedy) from error
        self.losses: list[float] = []
        self._first: bytearray | None = bytearray() if plan.first else None

    def _load(self, checkpoints: Sequence[Path]) -> None:
        """The first checkpoint that is whole; a damaged one is passed over."""
        for path in checkpoints:
            state = read_checkpoint(path, self.plan)
            if state is not None:
                self.losses = state.pop("losses").tolist()
                self._server.load_state(state)
                self._first = None
                return

    @property
    def first_at(self) -> int | None:
        """The byte of the first weights that comes next; None where none is missing."""
        return None if self._first is None else len(self._first)

    def first(self, offset: int, payload: memoryview) -> bool:
        """Take the next part of the first weights, False for another; others than the plan's are refused."""
        announced = self.plan.first
        if announced is None or self._first is None or offset != len(self._first):
            return False
        self._first += payload
        if len(self._first) < announced.n_bytes:
            return True
        whole, self._first = bytes(self._first), None
        if digest(whole) != announced.digest:
            raise refusal("first-digest")
        try:
            tensors = tensors_like(whole, self._server.parameters)
        except BadInput as error:
            raise refusal("first-weights", problem=error.problem) from error
        with torch.no_grad():
            for name, parameter in (*self._server.parameters.items(), *self._server.stepped.items()):
                parameter.copy_(tensors[name])
        self._due_checkpoint()
        return True

    def _checkpoints(self) -> list[Path]:
        """The newest first; whatever else lies there is passed over."""
        found = self._folder.glob(f"checkpoint-{8 * '[0-9]'}.safetensors")
        return sorted((path for path in found if path.is_file()), reverse=True)


def _name(step: int) -> str:
    return f"checkpoint-{step:08d}.safetensors"


def plan_digest(plan: Plan) -> str:
    """Tells two plans apart."""
    return hashlib.blake2b(msgspec.json.encode(plan, order="deterministic"), digest_size=16).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Tells two sets of weights apart."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(to_bytes(tensors[name]))
    return digest.hexdigest()


def read_checkpoint(path: Path, plan: Plan | None = None) -> dict[str, Tensor] | None:
    """What a session's file holds; None where it is damaged, gone, or another plan's."""
    try:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError):  # the last two: a header that lies
        return None
    other = plan is not None and about.get("plan") != plan_digest(plan)
    return None if other or about.get("digest") != tensors_digest(state) else state


def _unpacked(parcels: Sequence[Parcel], message: BatchMessage) -> Upload:
    """One upload; samples that came at different bit widths are decoded apart."""
    labels = list(message.targets)
    if len({(parcel.codec, parcel.group) for parcel in parcels}) == 1:
        return unpack(merge(parcels), labels=labels)
    wide = [unpack(parcel) for parcel in parcels]
    taps = zip(*(upload.activations for upload in wide), strict=True)
    return Upload(
        activations=tuple(pad_sequence([tap[0] for tap in layer], batch_first=True) for layer in taps),
        mask=pad_sequence([upload.mask[0] for upload in wide], batch_first=True),
        positions=torch.cat([upload.positions for upload in wide]),
        labels=torch.tensor(labels or [0] * len(wide), dtype=torch.int32),
    )


def _floats(payload: memoryview, rows: int, columns: int) -> Tensor:
    values = from_bytes(payload)
    if values.numel() != 4 * rows * columns:
        raise refusal("floats", n_bytes=values.numel(), rows=rows, columns=columns)
    table = values.clone().view(torch.float32).view(rows, columns)  # off its frame: a sum depends on where values lie
    if not torch.isfinite(table).all():
        raise refusal("not-finite")
    return table
