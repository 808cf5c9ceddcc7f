"""Whatever comes in, from_frames gives a message of the documented form or a documented refusal, and nothing else.

``MOBILLM_FUZZ`` says how many messages are tried.  Seeded: a failure comes again.
"""

from __future__ import annotations

import gc
import math
import os
import random
import time
import tracemalloc
from typing import get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mobillm_kit.channel.checks import check_plan, check_welcome
from mobillm_kit.channel.frames import Limits, check_batch, check_digests, from_frames, to_frames
from mobillm_kit.channel.messages import BatchMessage, ErrorCode, Hello, Welcome, WireError
from tests.test_wire import CASES, NAMES, PLAN, fields, with_header

FUZZ = int(os.environ.get("MOBILLM_FUZZ", "3000"))
SLOWEST_S = 1.0
"""Of processor time, for one message: the machine may be busy with others."""
ROUNDS = settings(
    max_examples=max(50, FUZZ // 30),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.sampled_from([0, -1, 1, 2**31, 2**53, 2**53 + 1, 2**63, 0.0, -0.0, 5e-324, 1e308, math.nan, math.inf])
    | st.floats(width=64)
    | st.text(max_size=40)
    | st.sampled_from(["", "../../etc", "server", "fp32", "int9", "a" * 32, "n" * 10_000, "\x1b[2J", "\ud7ff\uffff"])
    | st.binary(max_size=40)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=6),
    max_leaves=12,
)


def judged(frames, sender: str) -> str:
    """The code of the refusal, or "" where a message came out, and that one is sound."""
    started, refusal = time.thread_time(), None
    try:
        message, payloads = from_frames(frames, sender=sender, limits=Limits())
        if isinstance(message, BatchMessage):
            check_batch(message, PLAN, [len(payload) for payload in payloads])
            check_digests(message.frames, payloads)
        elif isinstance(message, Hello):
            check_plan(message.plan)
        elif isinstance(message, Welcome):
            check_welcome(message, PLAN)
    except WireError as error:
        refusal = error
    assert time.thread_time() - started < SLOWEST_S
    if refusal is not None:
        assert refusal.code in get_args(ErrorCode)
        assert 0 < len(refusal.problem) <= 2000
        assert refusal.remedy
        return refusal.code
    again, _ = from_frames(to_frames(message, payloads), sender=sender, limits=Limits())
    assert again == message
    assert_finite(msgspec.to_builtins(message))
    return ""


def assert_finite(value: object) -> None:
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            assert_finite(item)
    elif isinstance(value, float):
        assert math.isfinite(value)


def places(value, at=()):
    """Every field and item of a header, at any depth."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*at, key)
        if isinstance(item, dict | list):
            yield from places(item, (*at, key))


def inside(value, place):
    for key in place[:-1]:
        value = value[key]
    return value, place[-1]


@pytest.mark.parametrize(("sender", "message", "payloads"), CASES, ids=NAMES)
@settings(ROUNDS, max_examples=max(20, FUZZ // 150))
@given(st.data())
def test_any_value_in_any_field_of_a_message_whose_digests_fit(sender, message, payloads, data):
    values = fields(message, payloads)
    for _ in range(data.draw(st.integers(1, 3))):
        found = list(places(values))
        if not found:
            break
        part, key = inside(values, data.draw(st.sampled_from(found)))
        how = data.draw(st.sampled_from(["replace", "replace", "replace", "drop", "add"]))
        if how == "drop":
            del part[key]
        elif how == "replace":
            part[key] = data.draw(VALUES)
        elif isinstance(part, dict):
            part[data.draw(st.text(max_size=8))] = data.draw(VALUES)
        else:
            part.insert(key, data.draw(VALUES))
    judged(with_header(msgspec.msgpack.encode(values), payloads), sender)


@ROUNDS
@given(st.sampled_from(["device", "server"]), st.binary(max_size=300))
def test_any_bytes_as_a_header_whose_digest_fits(sender, header):
    judged(with_header(header), sender)


@ROUNDS
@given(st.sampled_from(["device", "server"]), VALUES, st.lists(st.binary(max_size=20), max_size=4))
def test_any_msgpack_as_a_header_whose_digest_fits(sender, value, payloads):
    judged(with_header(msgspec.msgpack.encode(value), payloads), sender)


@ROUNDS
@given(st.sampled_from(["device", "server"]), st.lists(st.binary(max_size=60), max_size=6))
def test_any_frames(sender, frames):
    assert judged(frames, sender)


def test_any_byte_changed_cut_or_added_in_a_header_whose_digest_fits():
    """One byte at a time is where untyped decoders lose their way; the digest would hide it."""
    chance, codes = random.Random(1), set()
    headers = [(sender, to_frames(message, payloads)[1], payloads) for sender, message, payloads in CASES]
    for _ in range(FUZZ):
        sender, header, payloads = chance.choice(headers)
        spoilt, place = bytearray(header), chance.randrange(len(header))
        how = chance.randrange(3)
        if how == 0:
            spoilt[place] = chance.randrange(256)
        elif how == 1:
            del spoilt[place : place + chance.randint(1, 4)]
        else:
            spoilt[place:place] = chance.randbytes(chance.randint(1, 4))
        codes.add(judged(with_header(bytes(spoilt), payloads), sender))
    assert {"", "bad-header", "bad-digest", "bad-frames", "bad-shape"} <= codes


def test_refusing_keeps_no_memory():
    chance = random.Random(2)
    headers = [(sender, to_frames(message, payloads)[1], payloads) for sender, message, payloads in CASES]

    def round_of(n: int) -> None:
        for _ in range(n):
            sender, header, payloads = chance.choice(headers)
            spoilt = bytearray(header)
            spoilt[chance.randrange(len(header))] = chance.randrange(256)
            judged(with_header(bytes(spoilt), payloads), sender)

    round_of(500)
    tracemalloc.start()
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    round_of(max(500, FUZZ // 20))
    gc.collect()  # errors and their tracebacks are cycles
    grown_bytes = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown_bytes < 100_000
