"""What of a plan and its welcome can be wrong although every field is of its type.

A plan is also held against what training would take of the server's memory, before any of it is taken.

Knows: messages and plans.  Knows nothing of: sockets, tensors, sessions.
Taught in: notebooks/08_device_and_server.ipynb
"""

from mobillm_kit.channel.messages import VERSION, Plan, Welcome, WireError
from mobillm_kit.common import FLOAT_BYTES
from mobillm_kit.errors import BadInput, few

ACTIVATION_COPIES = {"full-width": 5, "ladder": 7}
"""Of a batch's activations, decoded: themselves, what autograd saves of them, and what is made on the way."""


def batch_bytes(plan: Plan) -> int:
    """The largest batch's activations, decoded: 4 L B T d."""
    return FLOAT_BYTES * len(plan.side.layers) * plan.max_rows * plan.max_tokens * plan.side.width


def training_bytes(plan: Plan) -> int:
    """The most that training by this plan takes; never less than ``mobillm memory`` predicts for the server.

        17 n + c · 4 L B T d + 4 L B T² [ladder]

    17 n: n weights with gradient and two moments, and an optimizer's temporaries; c: :data:`ACTIVATION_COPIES`; the
    last term is a ladder's attention.
    """
    side = plan.side
    pairs = plan.max_rows * plan.max_tokens**2 if side.kind == "ladder" else 0
    return (
        17 * side.values() + ACTIVATION_COPIES[side.kind] * batch_bytes(plan) + FLOAT_BYTES * len(side.layers) * pairs
    )


KEPT_CHECKPOINTS = 3
"""Of a session, the newest; one more while it is written."""

SAMPLE_HEADER_BYTES = 1024
"""The most that stands in a cached sample's file beside its activations."""


def checkpoint_bytes(plan: Plan) -> int:
    """The most that a session's checkpoints take: weights, two moments, and a loss a step."""
    return (KEPT_CHECKPOINTS + 1) * (3 * FLOAT_BYTES * plan.side.values() + 8 * plan.steps)


def samples_bytes(plan: Plan) -> int:
    """The most that every sample's activations take, cached."""
    return plan.n_samples * (batch_bytes(plan) // plan.max_rows + SAMPLE_HEADER_BYTES)


def check_plan(plan: Plan) -> None:
    """Refuse a plan that no side network could be made of.

    Raises:
        WireError: ``bad-plan``.
    """
    side = plan.side
    if side.start != "random":
        raise _bad_plan("The side network would start from the backbone's weights, and a server has no backbone.")
    try:
        side.check()
    except BadInput as error:
        raise _bad_plan(error.problem) from error
    if (plan.head is None) == (side.pooling is None):
        raise _bad_plan("A side network has either label words' head or a pooling.")
    if plan.head is not None and (plan.head.width != side.width or plan.head.rows != side.n_labels):
        raise _bad_plan(
            f"The head is {plan.head.rows} x {plan.head.width}, the side network {side.n_labels} x {side.width}."
        )


def check_welcome(welcome: Welcome, plan: Plan) -> None:
    """Refuse a welcome that does not fit the plan it answers; a device asks before it believes the ranges.

    Raises:
        WireError: ``version``, ``bad-sequence`` or ``bad-values``.
    """
    if welcome.version != VERSION:
        raise WireError(
            "version",
            f"The server speaks version {welcome.version} of the protocol, here is version {VERSION}.",
            "Install the same version of mobillm_kit on both sides.",
        )
    if welcome.resume > plan.steps:
        raise WireError(
            "bad-sequence",
            f"The server wants batch {welcome.resume} of a plan of {plan.steps} steps.",
            "Begin a new session.",
        )
    ends = [end for both in welcome.held for end in both]
    backwards = any(first > last for first, last in welcome.held) or ends != sorted(ends)
    if backwards or (ends and ends[-1] >= plan.n_samples):
        raise WireError(
            "bad-values",
            f"The server names cached samples {few(welcome.held)}; they must be ascending and below {plan.n_samples}.",
            "Begin a new session.",
        )


def _bad_plan(problem: str) -> WireError:
    return WireError("bad-plan", problem, "Ask for a side network that the backbone allows.")
