"""The wire format: messages, their frames, and what fits together.

Knows: bytes.  Knows nothing of: sockets, tensors, sessions.

Taught in: notebooks/08_device_and_server.ipynb
"""

from mobillm_kit.channel.checks import check_plan, check_welcome
from mobillm_kit.channel.frames import (
    Limits,
    check_batch,
    check_digests,
    check_gradient,
    digest,
    from_frames,
    to_frames,
)
from mobillm_kit.channel.messages import (
    ERROR_CODES,
    MOST_RANGES,
    VERSION,
    Ack,
    BatchMessage,
    Bye,
    Checkpoint,
    Durable,
    Error,
    ErrorCode,
    Fetch,
    FrameInfo,
    Gradient,
    Hello,
    Logits,
    Message,
    Need,
    Ping,
    Plan,
    Pong,
    Result,
    Welcome,
    WireError,
)

__all__ = [
    "ERROR_CODES",
    "MOST_RANGES",
    "VERSION",
    "Ack",
    "BatchMessage",
    "Bye",
    "Checkpoint",
    "Durable",
    "Error",
    "ErrorCode",
    "Fetch",
    "FrameInfo",
    "Gradient",
    "Hello",
    "Limits",
    "Logits",
    "Message",
    "Need",
    "Ping",
    "Plan",
    "Pong",
    "Result",
    "Welcome",
    "WireError",
    "check_batch",
    "check_digests",
    "check_gradient",
    "check_plan",
    "check_welcome",
    "digest",
    "from_frames",
    "to_frames",
]
