"""What of a message can be wrong although every field is of its type: shapes that do not fit together.

A plan is also held against what its side network would take of the server's memory, before any of it is taken: its
weights, and B · T² flags of a ladder's attention.

Knows: messages and plans.  Knows nothing of: sockets, tensors, sessions.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mobillm_kit.channel.messages import VERSION, BatchMessage, Gradient, Plan, Welcome, WireError
from mobillm_kit.common import FLOAT_BYTES
from mobillm_kit.errors import BadInput, few

MOST_SIDE_VALUES = 2**29
"""Weights of a side network: 2 GiB in float32, three times that with its optimizer."""
MOST_PAIRS = 2**30
"""B · T² of a ladder's attention."""
SAY_ALIKE = "Send what the plan says, or begin a new session with another plan."

PayloadBytes = Callable[[str, int, tuple[int, int]], int]
"""From codec, group and (N, d) to bytes."""


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
    if side.values() > MOST_SIDE_VALUES:
        raise _bad_plan(f"The side network has {side.values()} weights; {MOST_SIDE_VALUES} is the most.")
    if side.kind == "ladder" and plan.max_rows * plan.max_tokens**2 > MOST_PAIRS:
        raise _bad_plan(
            f"A ladder's attention over {plan.max_rows} x {plan.max_tokens} x {plan.max_tokens} pairs of tokens; "
            f"{MOST_PAIRS} is the most."
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


def check_batch(batch: BatchMessage, plan: Plan, sizes: Sequence[int], payload_bytes: PayloadBytes) -> None:
    """Refuse a batch whose numbers do not fit together, or do not fit the plan.

    Args:
        batch: its header.
        plan: of the session.
        sizes: of the payload frames, in bytes.
        payload_bytes: of a codec; raises ``BadInput`` for one that does not exist, or a group that does not divide d.

    Raises:
        WireError: ``bad-sequence``, ``bad-shape``, ``bad-codec`` or ``bad-values``.
    """
    if batch.sequence >= plan.steps:
        raise WireError(
            "bad-sequence", f"Batch {batch.sequence} of a plan of {plan.steps} steps.", "Begin a new session."
        )
    _check_samples(batch, plan)
    _check_targets(batch, plan)
    _check_fresh(batch, plan)
    expected = _expected_sizes(batch, plan, payload_bytes)
    if list(sizes) != expected:
        raise WireError(
            "bad-shape",
            f"{len(sizes)} payload frames of {few(sizes)} bytes; {len(expected)} of {few(expected)} fit the shapes.",
            "Send one frame per layer, sized by the codec for the sum of the lengths.",
        )


def check_gradient(gradient: Gradient, sizes: Sequence[int]) -> None:
    """Refuse a gradient that is not one frame.

    Raises:
        WireError: ``bad-shape``.
    """
    if len(sizes) != 1:
        raise WireError("bad-shape", f"The gradient came in {len(sizes)} frames.", "Send one, (B, C) float32.")


def _check_samples(batch: BatchMessage, plan: Plan) -> None:
    rows = len(batch.samples)
    if rows > plan.max_rows:
        raise WireError("bad-shape", f"{rows} samples in a batch; the plan says {plan.max_rows} at most.", SAY_ALIKE)
    strange = [sample for sample in batch.samples if sample >= plan.n_samples]
    if strange:
        raise WireError("bad-values", f"Sample {strange[0]} of {plan.n_samples}.", "Number samples from 0.")


def _check_targets(batch: BatchMessage, plan: Plan) -> None:
    wanted = len(batch.samples) if plan.labels == "server" else 0
    if len(batch.targets) != wanted:
        raise WireError(
            "bad-shape",
            f"{len(batch.targets)} labels for {len(batch.samples)} samples; the plan's label mode "
            f"'{plan.labels}' wants {wanted}.",
            "Send one label per sample where the server computes the loss, else none.",
        )
    strange = [target for target in batch.targets if target >= plan.side.n_labels]
    if strange:
        raise WireError("bad-values", f"Label {strange[0]} of {plan.side.n_labels}.", "Number labels from 0.")


def _check_fresh(batch: BatchMessage, plan: Plan) -> None:
    fresh = list(batch.fresh)
    if fresh != sorted(set(fresh)) or (fresh and fresh[-1] >= len(batch.samples)):
        raise WireError(
            "bad-shape", f"'fresh' is {few(fresh)} for {len(batch.samples)} samples.", "Send ascending indices."
        )
    if not plan.cache and len(fresh) != len(batch.samples):
        raise WireError(
            "bad-shape",
            f"{len(fresh)} of {len(batch.samples)} samples came with activations, and the plan has no cache.",
            "Send every sample's, or plan with a cache.",
        )
    if len(batch.lengths) != len(fresh) or len(batch.positions) != len(fresh):
        raise WireError(
            "bad-shape",
            f"{len(fresh)} fresh samples, {len(batch.lengths)} lengths, {len(batch.positions)} positions.",
            "Send one length and one position per fresh sample.",
        )
    for length, position in zip(batch.lengths, batch.positions, strict=True):
        if not 1 <= length <= plan.max_tokens or position >= length:
            raise WireError(
                "bad-shape",
                f"A sample of {length} tokens with its prediction token at {position}; the plan allows 1 to "
                f"{plan.max_tokens} tokens.",
                "Count positions from 0, below the length.",
            )
    if list(batch.layers) != list(plan.side.layers):
        raise WireError(
            "bad-shape", f"Layers {few(batch.layers)} came; the plan says {few(plan.side.layers)}.", SAY_ALIKE
        )


def _expected_sizes(batch: BatchMessage, plan: Plan, payload_bytes: PayloadBytes) -> list[int]:
    try:
        per_layer = payload_bytes(batch.codec, batch.group, (sum(batch.lengths), plan.side.width))
    except BadInput as error:
        raise WireError("bad-codec", error.problem, error.remedy) from error
    sizes = [per_layer] * len(batch.layers) if batch.fresh else []
    if plan.labels == "residual":
        sizes.append(len(batch.samples) * plan.side.n_labels * FLOAT_BYTES)
    return sizes


def _bad_plan(problem: str) -> WireError:
    return WireError("bad-plan", problem, "Ask for a side network that the backbone allows.")
