"""Messages as multipart frames, and back; nothing is believed before it is checked.

    frame 0    b"MBLM", version (1 byte), three zero bytes, blake2b-128 of frame 1            24 bytes
    frame 1    header: one message in msgpack                                      at most 64 KiB
    frame 2 …  payloads; the header's ``frames`` gives the length and blake2b-128 of each

Checked in this order: number of frames, sizes, preamble, version, the header's digest, the header, the payloads'
number, lengths, shape and digests.  No memory is taken for a payload; it is a view of what came in.  A batch is then
held against its session's plan, and only then, beside the server's loop, its payloads' digests are taken: nobody who
has no session, or sends what the plan does not allow, makes a server hash.

Knows: bytes and messages.  Knows nothing of: sockets, tensors, sessions.
Taught in: notebooks/08_device_and_server.ipynb, notebooks/11_what_the_server_sees.ipynb
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from mobillm_kit.channel import messages
from mobillm_kit.channel.messages import DIGEST_BYTES, BatchMessage, FrameInfo, Message, Plan, WireError, refusal
from mobillm_kit.common import FLOAT_BYTES
from mobillm_kit.errors import BadInput, few, first_line
from mobillm_kit.quant import codec
from mobillm_kit.side.description import MOST_LAYERS

MAGIC = b"MBLM"
PREAMBLE_BYTES = len(MAGIC) + 4 + DIGEST_BYTES
SPARE = b"\0\0\0"

Payload = bytes | bytearray | memoryview
Party = Literal["device", "server"]


@dataclass(frozen=True)
class Limits:
    """The largest message that is taken in."""

    frame_bytes: int = 2**28
    total_bytes: int = 2**29
    frames: int = MOST_LAYERS + 2
    """Payload frames."""
    header_bytes: int = 2**16


_DECODERS = {
    "device": msgspec.msgpack.Decoder(messages.FromDevice),
    "server": msgspec.msgpack.Decoder(messages.FromServer),
}


def digest(data: Payload) -> bytes:
    """blake2b-128."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def to_frames(message: Message, payloads: Sequence[Payload] = ()) -> list[Payload]:
    """A message as frames; the payloads are not copied."""
    if payloads:
        described = [FrameInfo(n_bytes=memoryview(payload).nbytes, digest=digest(payload)) for payload in payloads]
        message = msgspec.structs.replace(message, frames=described)
    header = msgspec.msgpack.encode(message)
    return [MAGIC + bytes([messages.VERSION]) + SPARE + digest(header), header, *payloads]


def from_frames(frames: Sequence[Payload], *, sender: Party, limits: Limits) -> tuple[Message, list[memoryview]]:
    """The message that frames of the expected ``sender`` are, and views of its payloads.

    Raises:
        WireError: names what is wrong; nothing else is raised, whatever the bytes.
    """
    if not 2 <= len(frames) <= limits.frames + 2:
        raise refusal("frames-number", came=len(frames), most=limits.frames)
    views = [memoryview(frame).cast("B") for frame in frames]
    _check_sizes(views, limits)
    preamble = views[0]
    if len(preamble) != PREAMBLE_BYTES or bytes(preamble[:4]) != MAGIC or bytes(preamble[5:8]) != SPARE:
        raise refusal("preamble")
    if preamble[4] != messages.VERSION:
        raise refusal("version", theirs=preamble[4], ours=messages.VERSION)
    if digest(views[1]) != bytes(preamble[PREAMBLE_BYTES - DIGEST_BYTES :]):
        raise refusal("header-digest")
    message = _decoded(views[1], sender)
    described = getattr(message, "frames", [])
    _check_form(message, described, views[2:])
    if not isinstance(message, BatchMessage):
        check_digests(described, views[2:])
    return message, views[2:]


def _check_sizes(views: Sequence[memoryview], limits: Limits) -> None:
    if len(views[1]) > limits.header_bytes:
        raise refusal("header-size", n_bytes=len(views[1]), most=limits.header_bytes)
    largest, total = max(map(len, views)), sum(map(len, views))
    if largest > limits.frame_bytes or total > limits.total_bytes:
        raise refusal(
            "message-size", total=total, largest=largest, most=limits.total_bytes, most_of_frame=limits.frame_bytes
        )


def _decoded(header: memoryview, sender: Party) -> Message:
    try:
        return _DECODERS[sender].decode(header)
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:  # ValueError: all that msgspec raises
        raise refusal("header", sender=sender, reason=first_line(error)) from error


def _check_form(message: Message, described: Sequence[FrameInfo], payloads: Sequence[memoryview]) -> None:
    """What may be said of the payloads without knowing the session; a batch's need its plan."""
    if len(described) != len(payloads):
        raise refusal("frames-described", described=len(described), came=len(payloads))
    for number, (info, payload) in enumerate(zip(described, payloads, strict=True)):
        if info.n_bytes != len(payload):
            raise refusal("payload-length", number=number, came=len(payload), said=info.n_bytes)
    single = isinstance(message, messages.Logits | messages.Result | messages.First)
    if (single and len(described) != 1) or (isinstance(message, messages.Hello) and len(described) > 1):
        raise refusal("frames-of-kind", kind=type(message).__struct_config__.tag, described=len(described))
    if isinstance(message, messages.First) and described[0].n_bytes > messages.PART_BYTES:
        raise refusal("part-size", most=messages.PART_BYTES)
    if isinstance(message, messages.Logits) and described[0].n_bytes != message.rows * message.columns * FLOAT_BYTES:
        raise refusal("logits-size", n_bytes=described[0].n_bytes, rows=message.rows, columns=message.columns)


def check_digests(described: Sequence[FrameInfo], payloads: Sequence[memoryview]) -> None:
    """Refuse, by the WireError ``bad-digest``, payloads that are not those that the header describes."""
    for number, (info, payload) in enumerate(zip(described, payloads, strict=True)):
        if info.digest != digest(payload):
            raise refusal("payload-digest", number=number)


def check_batch(batch: BatchMessage, plan: Plan, sizes: Sequence[int]) -> None:
    """Refuse a batch whose numbers, or whose payload frames' ``sizes`` in bytes, do not fit together or the plan.

    Raises:
        WireError: ``bad-sequence``, ``bad-shape``, ``bad-codec`` or ``bad-values``.
    """
    if batch.sequence >= plan.steps:
        raise refusal("beyond-plan", sequence=batch.sequence, steps=plan.steps)
    if len(batch.samples) > plan.max_rows:
        raise refusal("rows", rows=len(batch.samples), most=plan.max_rows)
    strange = [sample for sample in batch.samples if sample >= plan.n_samples]
    if strange:
        raise refusal("sample", number=strange[0], n_samples=plan.n_samples)
    _check_targets(batch, plan)
    _check_fresh(batch, plan)
    expected = _expected_sizes(batch, plan)
    if list(sizes) != expected:
        raise refusal("payload-sizes", came=len(sizes), sizes=few(sizes), wanted=len(expected), fitting=few(expected))


def _check_targets(batch: BatchMessage, plan: Plan) -> None:
    wanted = len(batch.samples) if plan.labels == "server" else 0
    if len(batch.targets) != wanted:
        raise refusal("labels", labels=len(batch.targets), samples=len(batch.samples), mode=plan.labels, wanted=wanted)
    strange = [target for target in batch.targets if target >= plan.side.n_labels]
    if strange:
        raise refusal("label", number=strange[0], n_labels=plan.side.n_labels)


def _check_fresh(batch: BatchMessage, plan: Plan) -> None:
    fresh = list(batch.fresh)
    if fresh != sorted(set(fresh)) or (fresh and fresh[-1] >= len(batch.samples)):
        raise refusal("fresh-order", fresh=few(fresh), samples=len(batch.samples))
    if not plan.cache and len(fresh) != len(batch.samples):
        raise refusal("no-cache", fresh=len(fresh), samples=len(batch.samples))
    if len(batch.lengths) != len(fresh) or len(batch.positions) != len(fresh):
        raise refusal("fresh-numbers", fresh=len(fresh), lengths=len(batch.lengths), positions=len(batch.positions))
    for length, position in zip(batch.lengths, batch.positions, strict=True):
        if not 1 <= length <= plan.max_tokens or position >= length:
            raise refusal("tokens", length=length, position=position, most=plan.max_tokens)
    if list(batch.layers) != list(plan.side.layers):
        raise refusal("layers", came=few(batch.layers), wanted=few(plan.side.layers))


def _expected_sizes(batch: BatchMessage, plan: Plan) -> list[int]:
    try:
        per_layer = codec(batch.codec, batch.group).wire_bytes((sum(batch.lengths), plan.side.width))
    except BadInput as error:
        raise WireError("bad-codec", error.problem, error.remedy) from error
    sizes = [per_layer] * len(batch.layers) if batch.fresh else []
    if plan.labels == "residual":
        sizes.append(len(batch.samples) * plan.side.n_labels * FLOAT_BYTES)
    return sizes
