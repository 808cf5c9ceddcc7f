"""A device's end of the protocol, written from docs/protocol.md alone: nothing here comes from mobillm_kit.

Knows: the page, section by section; sockets, msgpack, numpy.  Knows nothing of: models, texts, the package.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import numpy as np
import zmq

VERSION = 3  # the page's title
HEADER_BYTES, MOST_PAYLOADS = 65_536, 130  # section 2
PART_BYTES = 1_048_576  # section 3, first
QUEUE = 5  # section 1, SNDHWM
QUIET_S, SILENCE_S = 1.0, 5.0  # section 4, seconds
TABLE = np.dtype("<f4")  # section 7, float tables

Message = dict[str, Any]
Tensors = dict[str, np.ndarray]


def digest(data: bytes) -> bytes:
    """blake2b-128: BLAKE2b with 16 bytes of output."""
    return hashlib.blake2b(data, digest_size=16).digest()


# ---------------------------------------------------------------------- section 2, frames


def to_frames(message: Message, payloads: Sequence[bytes] = ()) -> list[bytes]:
    """One message as the frames of section 2."""
    described = [{"n_bytes": len(payload), "digest": digest(payload)} for payload in payloads]
    header = msgspec.msgpack.encode({**message, "frames": described} if payloads else message)
    return [b"MBLM" + bytes([VERSION, 0, 0, 0]) + digest(header), header, *payloads]


def from_frames(frames: Sequence[bytes]) -> tuple[Message, list[bytes]]:
    """The message in ``frames`` and its payloads, checked in the page's order."""
    assert 2 <= len(frames) <= 2 + MOST_PAYLOADS, len(frames)
    preamble, header, *payloads = frames
    assert len(header) <= HEADER_BYTES
    assert preamble[:8] == b"MBLM" + bytes([VERSION, 0, 0, 0]), preamble
    assert preamble[8:] == digest(header)
    message = msgspec.msgpack.decode(header)
    described = message.pop("frames", [])
    assert described == [{"n_bytes": len(payload), "digest": digest(payload)} for payload in payloads]
    return message, payloads


# ---------------------------------------------------------------------- section 7, payloads


def fp32(tokens: np.ndarray, group: int = 0) -> bytes:
    """(N, d) floats as they are."""
    assert group == 0
    return tokens.astype("<f4").tobytes()


def int8(tokens: np.ndarray, group: int = 0) -> bytes:
    """(N, d) floats as scales, then codes; one scale per token, or per ``group`` values of it."""
    values = tokens.astype(np.float32)
    grouped = values.reshape(len(values), -1, group or values.shape[1])
    scales = np.abs(grouped).max(-1, keepdims=True) / np.float32(127)
    scales[scales < 2.0**-126] = 0
    codes = np.rint(np.divide(grouped, scales, out=np.zeros_like(grouped), where=scales > 0))
    return scales.astype("<f4").tobytes() + codes.astype(np.int8).tobytes()


CODECS = {"fp32": fp32, "int8": int8}


# ---------------------------------------------------------------------- section 3, a batch


@dataclass(frozen=True)
class Sample:
    """What a device knows of one text."""

    number: int
    layers: list[np.ndarray]
    """Per tapped layer its activations, (T, d); padding left out."""
    position: int
    """Index of the prediction token."""
    label: int
    """Stays here unless the plan says "server"."""
    backbone_logits: np.ndarray
    """(C,), of the untrained model; residual labels need them."""


@dataclass(frozen=True)
class Step:
    """What one step trains on, and how fast."""

    samples: list[Sample]
    lr: float


def differences(samples: Sequence[Sample]) -> np.ndarray:
    """Section 5, residual: onehot(y) - softmax(backbone's logits), (B, C)."""
    return _onehot(samples) - _softmax(np.stack([sample.backbone_logits for sample in samples]))


def gradient(samples: Sequence[Sample], logits: np.ndarray) -> np.ndarray:
    """Section 5, device: dL/dlogits of the mean cross-entropy, (softmax - onehot) / B, (B, C)."""
    return (_softmax(logits) - _onehot(samples)) / np.float32(len(samples))


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def _onehot(samples: Sequence[Sample]) -> np.ndarray:
    classes = len(samples[0].backbone_logits)
    return np.eye(classes, dtype=np.float32)[[sample.label for sample in samples]]


# ---------------------------------------------------------------------- section 4, what the side network computes


def predict(plan: Message, head: Tensors, trained: Tensors, samples: Sequence[Sample]) -> np.ndarray:
    """The logits that the page's formulas give with the tensors of a `result`, (B, C)."""
    side = plan["side"]
    own = {name.removeprefix("adapter.side."): tensor for name, tensor in trained.items()}
    add = _full_width if side["kind"] == "full-width" else _ladder
    rows = []
    for sample in samples:
        hidden = sample.layers[-1] + add(side, own, sample.layers)  # (T, d)
        if side["pooling"] is None:
            rows.append(_words(plan["head"], head, hidden[sample.position]))
        else:
            pooled = hidden.mean(0) if side["pooling"] == "mean" else hidden[sample.position]
            rows.append(_linear(trained, "adapter.head.classifier", pooled))
    return np.stack(rows)


def _full_width(side: Message, own: Tensors, layers: Sequence[np.ndarray]) -> np.ndarray:
    state, total = layers[0], np.zeros_like(layers[0])
    for i, tap in enumerate(layers):
        gate = _logistic(own["gates"][i - 1]) if i else 0.0
        x = (1 - gate) * tap + gate * state
        change = _gelu(_linear(own, f"down.{i}", x)) @ own[f"up.{i}.weight"].T
        total, state = gate * total + change, x + change
    return total


def _ladder(side: Message, own: Tensors, layers: Sequence[np.ndarray]) -> np.ndarray:
    state = 0.0
    for i, tap in enumerate(layers):
        gate = _logistic(10 * own["gates"][i - 1]) if i else 0.0
        narrow = _linear(own, f"down.{i}", _normed(own, f"norms.{i}", tap))
        state = gate * state + (1 - gate) * narrow
        block = f"blocks.{i}."
        mixed = _attention(side, _linear(own, block + "qkv", _normed(own, block + "attention_norm", state)))
        state = state + _linear(own, block + "out", mixed)
        wide = _gelu(_linear(own, block + "wide", _normed(own, block + "mlp_norm", state)))
        state = state + _linear(own, block + "narrow", wide)
    return _normed(own, "norm", state) @ own["up.weight"].T


def _attention(side: Message, qkv: np.ndarray) -> np.ndarray:
    """(T, 3m) to (T, m)."""
    tokens = len(qkv)
    q, k, v = qkv.reshape(tokens, 3, side["heads"], -1).transpose(1, 2, 0, 3)  # (heads, T, m / heads)
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
    if side["causal"]:
        scores = np.where(np.tri(tokens, dtype=bool), scores, -np.inf)
    return (_softmax(scores) @ v).transpose(1, 0, 2).reshape(tokens, -1)


def _words(about: Message, head: Tensors, hidden: np.ndarray) -> np.ndarray:
    """A decoder's head on one token, (d,) to (C,)."""
    if about["norm"].startswith("layer"):
        hidden = hidden - hidden.mean()
    if about["norm"] != "none":
        weight = head["norm.weight"] + (about["norm"] == "rms-plus-one")
        hidden = hidden / np.sqrt((hidden**2).mean() + about["eps"]) * weight + head.get("norm.bias", 0)
    if about["project_out"]:
        hidden = head["project_out.weight"] @ hidden
    logits = head["words.weight"] @ hidden + head.get("words.bias", 0)
    cap = about["softcap"]
    return cap * np.tanh(logits / cap) if cap else logits


def _linear(tensors: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    return x @ tensors[name + ".weight"].T + tensors[name + ".bias"]


def _normed(tensors: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * tensors[name + ".weight"] + tensors[name + ".bias"]


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# ---------------------------------------------------------------------- section 4, a session


class Refused(Exception):
    """The server's `error`."""

    def __init__(self, message: Message) -> None:
        super().__init__(f"{message['code']}: {message['sentence']} {message['remedy']}")
        self.code, self.fatal, self.sequence = message["code"], message["fatal"], message["sequence"]


@dataclass
class PageClient:
    """One session with one server."""

    join: str
    """``tcp://HOST:PORT`` of a server without keys, or a join string."""
    plan: Message
    head: bytes = b""
    """The head's tensors as safetensors, where the plan has a head."""
    first: bytes = b""
    """The first weights as safetensors, where the side network starts from the backbone."""
    codec: str = "fp32"
    group: int = 0
    session: str = field(default_factory=lambda: secrets.token_hex(16))
    keys: tuple[bytes, bytes] = field(default_factory=zmq.curve_keypair)
    """This device's CURVE keys, public and secret."""

    def __post_init__(self) -> None:
        self.losses: list[float] = []
        self.held: set[int] = set()
        self.carried = 0
        """Samples whose activations were sent."""
        self._steps: Sequence[Step] = ()
        self._wanted = 0
        self._whole = -1  # the step of the last need: nothing of it is known to be held
        self._under_way: dict[int, int] = {}  # payload bytes of each step without an ack
        self._context = zmq.Context()
        self._socket: zmq.Socket | None = None

    def __enter__(self) -> PageClient:
        self.connect()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None and self._socket is not None:
            self.send("bye")
            while self.receive()[0]["type"] != "bye":
                pass
        self.drop()
        self._context.term()

    # ------------------------------------------------------------------ connection

    def connect(self) -> Message:
        """A new connection and hello on it, the first time or again; the answer is the server's `welcome`."""
        self.drop()
        url = urlsplit(self.join)
        options = parse_qs(url.query)
        self._socket = socket = self._context.socket(zmq.DEALER)
        socket.linger, socket.sndhwm, socket.immediate, socket.tcp_keepalive = 0, QUEUE, 1, 1
        socket.sndtimeo = int(1000 * SILENCE_S)
        if "key" in options:
            socket.curve_serverkey = options["key"][0].encode()
            socket.curve_publickey, socket.curve_secretkey = self.keys
        socket.connect(f"tcp://{url.hostname}:{url.port}")
        return self.hello(options.get("code", [""])[0])

    def drop(self) -> None:
        """Cuts the connection without a word."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send(self, kind: str, payloads: Sequence[bytes] = (), **fields: Any) -> None:
        """One message."""
        self.send_frames(to_frames({"type": kind, **fields}, payloads))

    def send_frames(self, frames: Sequence[bytes]) -> None:
        """Frames as they are."""
        self._socket.send_multipart(frames)

    def receive(self) -> tuple[Message, list[bytes]]:
        """The server's next message but `pong`; a ping after each second of quiet.

        Raises:
            Refused: an `error`.
            TimeoutError: nothing at all for 5 s.
        """
        heard = time.monotonic()
        while time.monotonic() - heard < SILENCE_S:
            if not self._socket.poll(int(1000 * QUIET_S)):
                self.send("ping", nonce=secrets.randbits(53))
                continue
            heard = time.monotonic()
            message, payloads = from_frames(self._socket.recv_multipart())
            if message["type"] == "error":
                raise Refused(message)
            if message["type"] != "pong":
                return message, payloads
        raise TimeoutError("the server is silent")

    def expect(self, kind: str) -> tuple[Message, list[bytes]]:
        """The next message of one kind; what is said of steps meanwhile is not lost."""
        while True:
            message, payloads = self.receive()
            if message["type"] == kind:
                return message, payloads
            self._hear(message, payloads)

    # ------------------------------------------------------------------ questions

    def hello(self, code: str = "") -> Message:
        """Begins the session or takes it up again; what is wanted and held is what `welcome` says."""
        payloads = [self.head] if self.head else []
        known = {"session": self.session, "position": len(self.losses), "plan": self.plan}
        self.send("hello", payloads, name="a client of the page", code=code, **known)
        welcome, _ = self.expect("welcome")
        while (at := welcome["first"]) is not None:
            self.send("first", [self.first[at : at + PART_BYTES]], offset=at)
            welcome, _ = self.expect("welcome")
        assert welcome["version"] == VERSION
        self.credit, self.budget_bytes = welcome["credit"], welcome["budget_bytes"]
        self.held = {sample for first, last in welcome["held"] for sample in range(first, last + 1)}
        self._wanted = welcome["resume"]
        self._under_way.clear()
        del self.losses[self._wanted :]  # a server that was started again trains these once more
        return welcome

    def checkpoint(self) -> int:
        """Steps that are on the server's disk from now on; all that was sent must be acknowledged."""
        self.send("checkpoint", sequence=len(self.losses))
        return self.expect("durable")[0]["sequence"]

    def fetch(self, sequence: int | None = None) -> bytes:
        """The side network as it is, a safetensors file; all that was sent must be acknowledged."""
        self.send("fetch", sequence=len(self.losses) if sequence is None else sequence)
        return self.expect("result")[1][0]

    # ------------------------------------------------------------------ training

    def train(self, steps: Sequence[Step], upto: int | None = None) -> None:
        """Everything below ``upto`` (all by default), as many at once as credit and budget let."""
        self._steps = steps
        last = len(steps) if upto is None else upto
        while len(self.losses) < last:
            if not (self._wanted < last and len(self._under_way) < self.credit and self._send_next()):
                self._hear(*self.receive())

    def _send_next(self) -> bool:
        """Sends the step that is wanted; False where the budget has no room for it now."""
        message, payloads = self.batch(self._wanted, self._steps[self._wanted])
        n_bytes = sum(map(len, payloads))
        if sum(self._under_way.values()) + n_bytes > self.budget_bytes:
            return False
        self.send("batch", payloads, **message)
        self.carried += len(message["fresh"])
        self._under_way[self._wanted] = n_bytes
        self._wanted += 1
        return True

    def batch(self, sequence: int, step: Step) -> tuple[Message, list[bytes]]:
        """One step as a message and its payloads; samples that the server holds are only named."""
        known = set() if sequence == self._whole or not self.plan["cache"] else self.held
        numbers = [sample.number for sample in step.samples]
        fresh = [
            row
            for row, number in enumerate(numbers)
            if number not in known and not (self.plan["cache"] and number in numbers[:row])
        ]
        sent = [step.samples[row] for row in fresh]
        layers, labels = self.plan["side"]["layers"], self.plan["labels"]
        payloads = [self._encoded(sent, layer) for layer in range(len(layers))] if sent else []
        if labels == "residual":
            payloads.append(differences(step.samples).astype(TABLE).tobytes())
        return {
            "sequence": sequence,
            "lr": step.lr,
            "samples": numbers,
            "fresh": fresh,
            "lengths": [len(sample.layers[0]) for sample in sent],
            "positions": [sample.position for sample in sent],
            "targets": [sample.label for sample in step.samples] if labels == "server" else [],
            "codec": self.codec,
            "group": self.group,
            "layers": layers,
        }, payloads

    def _encoded(self, samples: Sequence[Sample], layer: int) -> bytes:
        return CODECS[self.codec](np.concatenate([sample.layers[layer] for sample in samples]), self.group)

    def _hear(self, message: Message, payloads: Sequence[bytes]) -> None:
        """What the server says of steps."""
        sequence = message.get("sequence")
        if message["type"] == "ack" and sequence >= len(self.losses):  # else it was said before the last hello too
            assert sequence == len(self.losses)
            self.losses.append(message["loss"])
            self._under_way.pop(sequence, None)
            if message["cached"]:
                self.held.update(sample.number for sample in self._steps[sequence].samples)
        elif message["type"] == "need":
            self._wanted = self._whole = sequence
            self._under_way = {step: n_bytes for step, n_bytes in self._under_way.items() if step < sequence}
        elif message["type"] == "logits":
            logits = np.frombuffer(payloads[0], TABLE).reshape(message["rows"], message["columns"])
            answer = gradient(self._steps[sequence].samples, logits)
            self.send("gradient", [answer.astype(TABLE).tobytes()], sequence=sequence)
