"""The closed set of messages between device and server, and what each of them holds.

Field types are strict: a bool or a float is no whole number, an unknown or missing field is refused, every list and
text has a longest length.  docs/protocol.md is the same in prose, for clients in other languages.

Knows: fields and their bounds.  Knows nothing of: frames, sockets, tensors, sessions.
Taught in: notebooks/08_device_and_server.ipynb, notebooks/11_what_the_server_sees.ipynb
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from mobillm_kit.errors import KitError
from mobillm_kit.side.description import MOST_LAYERS, HeadSpec, Labels, Layers, SideSpec

VERSION = 3
"""Of the protocol; raised whenever a message changes its meaning."""

DIGEST_BYTES = 16
MOST_SAMPLES = 2048
"""Of a batch: the largest one's header, with five numbers per sample, stays below 64 KiB."""
PART_BYTES = 2**20
"""Of a message with a part of the first weights: a lost connection costs one part, and a slow link is heard between."""
MOST_RANGES = 4096
"""Of cached samples that a welcome names; the others are sent again."""

Count = Annotated[int, Meta(ge=0, le=2**53)]
Size = Annotated[int, Meta(ge=1, le=2**31)]
Seconds = Annotated[float, Meta(ge=0.0, le=1e9)]
Loss = Annotated[float, Meta(ge=-1e300, le=1e300)]
Digest = Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
# \Z, not $: that one would let a line break follow.  Control and direction characters could paint over a terminal, and
# a name with / or \ looks like a path to whoever puts it into one.
Name = Annotated[
    str, Meta(max_length=64, pattern=r"\A[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff/\\]+\Z")
]
SENTENCE_LENGTH = 2000
Sentence = Annotated[str, Meta(max_length=SENTENCE_LENGTH)]
SessionId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
PerSample = Annotated[list[Count], Meta(max_length=MOST_SAMPLES)]

LabelMode = Literal["server", "residual", "device"]

ErrorCode = Literal[
    "not-our-protocol", "version", "bad-frames", "too-large", "bad-digest", "bad-header", "hello-first", "session-over",
    "not-your-session", "bad-code", "bad-plan", "too-many-sessions", "over-quota", "over-credit", "bad-sequence",
    "bad-shape", "bad-codec", "bad-values", "diverged", "server-trouble",
]  # fmt: skip
"""Everything that a server refuses with, and nothing else."""


class WireError(KitError):
    """A message that may not be sent, or not now; ``code`` is one of :data:`ErrorCode`."""

    def __init__(self, code: ErrorCode, problem: str, remedy: str = "") -> None:
        self.code: ErrorCode = code
        super().__init__(problem, remedy)

    def said(self, *, fatal: bool, sequence: int | None = None) -> Error:
        """As a message; a sentence that is too long for one is cut short."""
        problem, remedy = self.problem[:SENTENCE_LENGTH], self.remedy[:SENTENCE_LENGTH]
        return Error(code=self.code, sentence=problem, remedy=remedy, sequence=sequence, fatal=fatal)


class _Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    code: ErrorCode
    problem: str
    remedy: str = ""


_REFUSALS = msgspec.toml.decode(Path(__file__).with_name("refusals.toml").read_bytes(), type=dict[str, _Refusal])


def refusal(name: str, **found: object) -> WireError:
    """The one of that name in ``refusals.toml``, with what was ``found`` in its sentences."""
    row = _REFUSALS[name]
    return WireError(row.code, row.problem.format(**found), row.remedy.format(**found))


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A piece of a message."""


class _Message(_Part, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag=str.lower):
    """A message; its header says which one by its lower-case name."""


class _OfStep(_Message, frozen=True):
    """A message about one step, or everything up to it."""

    sequence: Count


class FrameInfo(_Part, frozen=True):
    """One payload frame."""

    n_bytes: Count
    digest: Digest
    """blake2b-128 of the frame."""


Frames = Annotated[list[FrameInfo], Meta(max_length=MOST_LAYERS + 2)]


class Plan(_Part, frozen=True, omit_defaults=True):
    """Everything that decides what the server trains."""

    fingerprint: Annotated[str, Meta(max_length=128)]
    """Of the backbone's weights."""
    side: SideSpec
    first: FrameInfo | None
    """The first weights, safetensors, where they are the backbone's; None where they follow from the seed."""
    head: HeadSpec | None
    labels: LabelMode
    weight_decay: Annotated[float, Meta(ge=0.0, le=1e3)]
    steps: Size
    checkpoint_every: Size
    max_rows: Annotated[int, Meta(ge=1, le=MOST_SAMPLES)]
    max_tokens: Annotated[int, Meta(ge=1, le=2**20)]
    """Of one sample."""
    n_samples: Size
    cache: bool
    averaging: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    """Of the weights, beta of a running mean, below 1; left out where it is 0, as in plans of before."""


class Hello(_Message, frozen=True):
    """A device opens or resumes a session; the head is in its frame."""

    session: SessionId
    name: Name
    """For people; two devices may have the same."""
    code: Annotated[str, Meta(max_length=64)]
    position: Count
    """How many losses the device knows: acknowledgements of later steps that are trained already come again."""
    plan: Plan
    frames: Frames = []


class First(_Message, frozen=True):
    """A part of the first weights, from byte ``offset`` on."""

    offset: Count
    frames: Frames = []


class BatchMessage(_OfStep, frozen=True, tag="batch"):
    """One step's samples, with the activations that the server does not hold."""

    lr: Annotated[float, Meta(ge=0.0, le=1e3)]
    samples: Annotated[list[Count], Meta(min_length=1, max_length=MOST_SAMPLES)]
    fresh: PerSample
    """Indices into ``samples``, ascending, of those whose activations are in the frames."""
    lengths: PerSample
    positions: PerSample
    targets: PerSample
    codec: Annotated[str, Meta(max_length=16)]
    group: Annotated[int, Meta(ge=0, le=65536)]
    layers: Layers
    frames: Frames = []


class Gradient(_OfStep, frozen=True):
    """Logits' gradient, where the labels stay on the device."""

    frames: Frames = []


class Checkpoint(_OfStep, frozen=True):
    """Make everything up to ``sequence`` durable."""


class Fetch(_OfStep, frozen=True):
    """Send the trained side network."""


class Ping(_Message, frozen=True):
    """Are you there?"""

    nonce: Count


class Bye(_Message, frozen=True):
    """The device ends the session."""


class Welcome(_Message, frozen=True):
    """The session is open; says where it goes on, and within what."""

    version: Count
    resume: Count
    """The sequence number that comes next."""
    credit: Size
    budget_bytes: Count
    held: Annotated[list[tuple[Count, Count]], Meta(max_length=MOST_RANGES)]
    """Samples in the cache, as inclusive ranges."""
    first: Count | None
    """The byte of the first weights that comes next; None where none is missing, and batches may come."""


class Ack(_OfStep, frozen=True):
    """One batch is trained."""

    loss: Loss
    cached: bool
    queue_s: Seconds
    decode_s: Seconds
    train_s: Seconds


class Durable(_OfStep, frozen=True):
    """Everything up to ``sequence`` survives a crash."""


class Need(_OfStep, frozen=True):
    """Send the activations of this batch again."""


class Logits(_OfStep, frozen=True):
    """One batch's logits, for a device that keeps its labels."""

    rows: Annotated[int, Meta(ge=1, le=MOST_SAMPLES)]
    columns: Labels
    frames: Frames = []


class Result(_OfStep, frozen=True):
    """The trained side network's tensors."""

    frames: Frames = []


class Pong(_Message, frozen=True):
    """The answer to a ping."""

    nonce: Count


class Error(_Message, frozen=True):
    """The server says no."""

    code: ErrorCode
    sentence: Sentence
    remedy: Sentence
    sequence: Count | None
    fatal: bool
    """False: the session goes on."""


Question = Checkpoint | Fetch
Answer = Durable | Result
FromDevice = Hello | First | BatchMessage | Gradient | Checkpoint | Fetch | Ping | Bye
FromServer = Welcome | Ack | Durable | Need | Logits | Result | Pong | Error | Bye
Message = FromDevice | FromServer
