"""What of a plan and its welcome can be wrong although every field is of its type.

A plan is also held against what training would take of the server's memory, before any of it is taken.

Knows: messages and plans.  Knows nothing of: sockets, tensors, sessions.
Taught in: notebooks/08_device_and_server.ipynb
"""

from mobillm_kit.channel.messages import VERSION, Plan, Welcome, refusal
from mobillm_kit.common import FLOAT_BYTES
from mobillm_kit.errors import BadInput, few

ACTIVATION_COPIES = {"full-width": 5, "ladder": 7}
"""Of a batch's activations, decoded: themselves, what autograd saves of them, and what is made on the way."""


def batch_bytes(plan: Plan) -> int:
    """The largest batch's activations, decoded: 4 L B T d."""
    return FLOAT_BYTES * len(plan.side.layers) * plan.max_rows * plan.max_tokens * plan.side.width


def training_bytes(plan: Plan) -> int:
    """The most that training by this plan takes; never less than ``mobillm memory`` predicts for the server.

        17 n + c · 4 L B T d + 4 L B T² [ladder]      averaging 4 n more, norms 4 L B T d, pooling by attention 12 B T d

    17 n: n weights with gradient and two moments, and an optimizer's temporaries, or 12 n and twice the first weights
    as they came, where that is more; c: :data:`ACTIVATION_COPIES`, for a copy of the backbone's blocks
    2 + (5 m + 2 F) / d, m = d / k, of Llama's 2 + (9 m + 4 F) / d; the last term is a ladder's attention.
    """
    side = plan.side
    pairs = plan.max_rows * plan.max_tokens**2 if side.kind == "ladder" else 0
    weights, inside = 17 * side.values(), side.feed_forward
    acts = (ACTIVATION_COPIES[side.kind] + (side.normalization == "layer")) * batch_bytes(plan)
    if plan.first is not None:
        weights = max(weights, 12 * side.values() + 2 * plan.first.n_bytes)
        per_token = 2 * side.width + (9 if side.gated else 5) * side.width // side.reduction
        acts = batch_bytes(plan) * (per_token + (4 if side.gated else 2) * inside) // side.width
    weights += FLOAT_BYTES * side.values() * (plan.averaging > 0)
    acts += 3 * batch_bytes(plan) // len(side.layers) * (side.pooling == "attention")
    return weights + acts + FLOAT_BYTES * len(side.layers) * pairs


KEPT_CHECKPOINTS = 3
"""Of a session, the newest; one more while it is written."""

SAMPLE_HEADER_BYTES = 1024
"""The most that stands in a cached sample's file beside its activations."""


def checkpoint_bytes(plan: Plan) -> int:
    """The most that a session's checkpoints take: weights, two moments, averages if any, and a loss a step."""
    return (KEPT_CHECKPOINTS + 1) * ((3 + (plan.averaging > 0)) * FLOAT_BYTES * plan.side.values() + 8 * plan.steps)


def samples_bytes(plan: Plan) -> int:
    """The most that every sample's activations take, cached."""
    return plan.n_samples * (batch_bytes(plan) // plan.max_rows + SAMPLE_HEADER_BYTES)


def check_plan(plan: Plan) -> None:
    """Refuse, by the WireError ``bad-plan``, a plan that no side network could be made of."""
    side = plan.side
    copied = side.start == "backbone"
    if copied != (plan.first is not None) or (copied and not side.feed_forward):
        raise refusal("plan-start")
    try:
        side.check()
    except BadInput as error:
        raise refusal("plan-side", problem=error.problem) from error
    if (plan.head is None) == (side.pooling is None):
        raise refusal("plan-head")
    if plan.head is not None and (plan.head.width != side.width or plan.head.rows != side.n_labels):
        head, net = f"{plan.head.rows} x {plan.head.width}", f"{side.n_labels} x {side.width}"
        raise refusal("plan-head-size", head=head, net=net)


def check_welcome(welcome: Welcome, plan: Plan) -> None:
    """Refuse a welcome that does not fit the plan it answers; a device asks before it believes the ranges.

    Raises:
        WireError: ``version``, ``bad-sequence`` or ``bad-values``.
    """
    if welcome.version != VERSION:
        raise refusal("server-version", theirs=welcome.version, ours=VERSION)
    first = 0 if welcome.first is None else welcome.first + 1
    if first > (plan.first.n_bytes if plan.first else 0) or (first and welcome.resume):
        raise refusal("no-first-weights")
    if welcome.resume > plan.steps:
        raise refusal("resume-beyond-plan", resume=welcome.resume, steps=plan.steps)
    ends = [end for both in welcome.held for end in both]
    backwards = any(first > last for first, last in welcome.held) or ends != sorted(ends)
    if backwards or (ends and ends[-1] >= plan.n_samples):
        raise refusal("held-samples", held=few(welcome.held), n_samples=plan.n_samples)
