"""The wire format: what goes in comes out, and whatever else comes in is refused with a documented code."""

from __future__ import annotations

import array
import ast
import os
import random
import tomllib
import tracemalloc
from pathlib import Path
from string import Formatter
from typing import get_args

import msgspec
import pytest

from mobillm_kit.channel import messages
from mobillm_kit.channel.checks import check_plan, check_welcome, training_bytes
from mobillm_kit.channel.frames import Limits, check_batch, check_digests, digest, from_frames, to_frames
from mobillm_kit.channel.messages import (
    MOST_SAMPLES,
    PART_BYTES,
    VERSION,
    Ack,
    BatchMessage,
    Bye,
    Checkpoint,
    Durable,
    Error,
    ErrorCode,
    Fetch,
    First,
    FrameInfo,
    Gradient,
    Hello,
    Logits,
    Need,
    Ping,
    Plan,
    Pong,
    Result,
    Welcome,
    WireError,
)
from mobillm_kit.quant import codec
from mobillm_kit.side.description import MOST_LAYERS, HeadSpec, SideSpec

SIDE = SideSpec(
    kind="ladder",
    width=64,
    layers=[1, 2],
    n_labels=2,
    rank=4,
    reduction=2,
    heads=2,
    causal=True,
    pooling=None,
    seed=0,
    start="random",
    feed_forward=0,
    norm_eps=1e-12,
)
HEAD = HeadSpec(norm="layer", eps=1e-5, project_out=False, bias=False, softcap=None, width=64, rows=2)
PLAN = Plan(
    fingerprint="f" * 16,
    side=SIDE,
    first=None,
    head=HEAD,
    labels="server",
    weight_decay=0.0,
    steps=10,
    checkpoint_every=5,
    max_rows=8,
    max_tokens=16,
    n_samples=100,
    cache=True,
)
HELLO = Hello(session="a" * 32, name="a phone", code="", position=0, plan=PLAN)
BATCH = BatchMessage(
    sequence=3,
    lr=1e-3,
    samples=[5, 6, 7],
    fresh=[0, 2],
    lengths=[2, 3],
    positions=[1, 2],
    targets=[0, 1, 1],
    codec="int8",
    group=0,
    layers=[1, 2],
)
FROM_DEVICE = {
    "hello": (HELLO, [b"head"]),
    "batch": (BATCH, [b"x" * 340, b"y" * 340]),
    "first": (First(offset=8), [b"f" * 40]),
    "gradient": (Gradient(sequence=3), [b"g" * 24]),
    "checkpoint": (Checkpoint(sequence=3), []),
    "fetch": (Fetch(sequence=3), []),
    "ping": (Ping(nonce=7), []),
    "bye": (Bye(), []),
}
FROM_SERVER = {
    "welcome": (
        Welcome(version=VERSION, resume=2, credit=4, budget_bytes=10, held=[(0, 3), (9, 9)], first=None),
        [],
    ),
    "ack": (Ack(sequence=3, loss=0.5, cached=True, queue_s=0.1, decode_s=0.2, train_s=0.3), []),
    "durable": (Durable(sequence=3), []),
    "need": (Need(sequence=3), []),
    "logits": (Logits(sequence=3, rows=3, columns=2), [b"l" * 24]),
    "result": (Result(sequence=3), [b"r" * 50]),
    "pong": (Pong(nonce=7), []),
    "error": (Error(code="bad-plan", sentence="No.", remedy="Yes.", sequence=None, fatal=True), []),
}
CASES = [("device", *case) for case in FROM_DEVICE.values()] + [("server", *case) for case in FROM_SERVER.values()]
NAMES = [*FROM_DEVICE, *FROM_SERVER]


def framed(message, payloads=()):
    return [bytes(frame) for frame in to_frames(message, payloads)]


def with_header(header: bytes, payloads=()) -> list[bytes]:
    """Frames of any header, with a preamble that fits."""
    return [b"MBLM" + bytes([VERSION, 0, 0, 0]) + digest(header), header, *payloads]


def fields(message, payloads=()) -> dict:
    """A message's header as plain values, ready to be spoilt."""
    return msgspec.msgpack.decode(framed(message, payloads)[1])


def refused(frames, code: str, sender: str = "device", limits: Limits | None = None) -> WireError:
    with pytest.raises(WireError) as found:
        from_frames(frames, sender=sender, limits=limits or Limits())
    assert found.value.code == code, found.value
    return found.value


@pytest.mark.parametrize(("sender", "message", "payloads"), CASES, ids=NAMES)
def test_every_message_comes_back_equal_with_its_payloads(sender, message, payloads):
    back, views = from_frames(framed(message, payloads), sender=sender, limits=Limits())
    assert msgspec.structs.replace(back, **({"frames": []} if payloads else {})) == message
    assert [bytes(view) for view in views] == payloads


def test_payloads_are_not_copied():
    payload = bytearray(b"x" * 100)
    assert to_frames(Result(sequence=0), [payload])[2] is payload
    _, views = from_frames(to_frames(Result(sequence=0), [payload]), sender="server", limits=Limits())
    payload[0] = 7
    assert views[0][0] == 7


@pytest.mark.parametrize("sender", ["device", "server"])
def test_the_other_sides_messages_are_refused(sender):
    other = FROM_SERVER if sender == "device" else FROM_DEVICE
    for name, (message, payloads) in other.items():
        if name != "bye":
            refused(framed(message, payloads), "bad-header", sender)


# ---------------------------------------------------------------------- transport


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        pytest.param([], "bad-frames", id="zero frames"),
        pytest.param([b"GET / HTTP/1.1"], "bad-frames", id="one frame"),
        pytest.param([b"GET / HTTP/1.1", b"Host: x"], "not-our-protocol", id="HTTP GET"),
        pytest.param([bytes(range(24)), b"x"], "not-our-protocol", id="random bytes"),
        pytest.param([b"\xff" + b"\0" * 8 + b"\x7f\3\1NULL" + b"\0" * 11, b""], "not-our-protocol", id="ZMTP garbage"),
        pytest.param([b""] * 200_000, "bad-frames", id="200 000 empty frames"),
        pytest.param([*framed(BATCH, [b"x"]), b"extra"], "bad-frames", id="extra frame"),
        pytest.param(framed(BATCH, [b"x", b"y"])[:-1], "bad-frames", id="missing frame"),
        pytest.param([framed(Bye())[0][:20], framed(Bye())[1]], "not-our-protocol", id="cut preamble"),
    ],
)
def test_what_is_no_message_is_refused(frames, code):
    refused(frames, code)


def test_a_frame_over_the_limit_and_a_total_over_the_budget():
    frames = framed(BATCH, [b"x" * 600, b"y" * 600])
    refused(frames, "too-large", limits=Limits(frame_bytes=500))
    refused(frames, "too-large", limits=Limits(total_bytes=1000))
    refused(with_header(b"\0" * 70_000), "too-large")


def test_another_version_is_named():
    frames = framed(Bye())
    frames[0] = b"MBLM" + bytes([9]) + frames[0][5:]
    assert "9" in refused(frames, "version").problem


def test_a_flipped_bit_is_noticed_wherever_it_is():
    frames = [bytearray(part) for part in framed(BATCH, [b"x" * 50, b"y" * 50])]
    frames[1][10] ^= 4
    refused(frames, "bad-digest")
    frames = [bytearray(part) for part in framed(BATCH, [b"x" * 50, b"y" * 50])]
    frames[2][10] ^= 4
    message, payloads = from_frames(frames, sender="device", limits=Limits())  # hashed by whoever trains on it
    with pytest.raises(WireError, match="Payload 0"):
        check_digests(message.frames, payloads)
    frames = [bytearray(part) for part in framed(BATCH, [b"x" * 50, b"y" * 50])]
    frames[0][12] ^= 4
    refused(frames, "bad-digest")


def test_a_payload_of_another_length_than_described():
    frames = framed(BATCH, [b"x" * 50, b"y" * 50])
    refused([*frames[:3], b"y" * 49], "bad-frames")


# ---------------------------------------------------------------------- header


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"{not msgpack", id="not msgpack"),
        pytest.param(framed(BATCH)[1][:-5], id="truncated"),
        pytest.param(b"\x91" * 5000 + b"\xc0", id="5 000 levels deep"),
        pytest.param(b"\x82\xa4type\xa4ping\xa5nonce" + b"\x91" * 5000 + b"\xc0", id="5 000 levels deep inside"),
        pytest.param(b"\x82\xa1x" + b"\x91" * 5000 + b"\xc0\xa4type\xa3bye", id="5 000 levels deep and unknown"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="array of 2^32"),
        pytest.param(b"\x81\xa4type\xa4ping" + b"\xdf\xff\xff\xff\xff", id="trailing bytes"),
        pytest.param(b"\x81\xa4type\xa2\xff\xfe", id="bad UTF-8"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_header_that_is_no_message(header):
    refused(with_header(header), "bad-header")


def spoilt(message, **changes) -> bytes:
    values = fields(message)
    for name, value in changes.items():
        if value is ...:
            del values[name]
        else:
            values[name] = value
    return msgspec.msgpack.encode(values)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        pytest.param(BATCH, {"type": "bach"}, id="unknown type"),
        pytest.param(BATCH, {"extra": 1}, id="unknown field"),
        pytest.param(BATCH, {"lr": ...}, id="missing field"),
        pytest.param(BATCH, {"sequence": True}, id="bool for int"),
        pytest.param(BATCH, {"sequence": 3.5}, id="float for int"),
        pytest.param(BATCH, {"sequence": -1}, id="negative sequence"),
        pytest.param(BATCH, {"sequence": 2**60}, id="huge sequence"),
        pytest.param(BATCH, {"lr": float("nan")}, id="NaN"),
        pytest.param(BATCH, {"lr": float("inf")}, id="Inf"),
        pytest.param(BATCH, {"lr": -1.0}, id="negative rate"),
        pytest.param(BATCH, {"samples": []}, id="no samples"),
        pytest.param(BATCH, {"samples": list(range(5000))}, id="too many samples"),
        pytest.param(BATCH, {"layers": list(range(500))}, id="too many layers"),
        pytest.param(HELLO, {"session": "a" * 31}, id="short session id"),
        pytest.param(HELLO, {"session": "../../" + "a" * 26}, id="path in the session id"),
        pytest.param(HELLO, {"session": "A" * 32}, id="capitals in the session id"),
        pytest.param(HELLO, {"name": "n" * 10_000}, id="10 kB name"),
        pytest.param(HELLO, {"name": ""}, id="empty name"),
        pytest.param(HELLO, {"name": "../../etc"}, id="../../ in a name"),
        pytest.param(HELLO, {"name": "a\x1b[2Jphone"}, id="terminal codes in a name"),
        pytest.param(HELLO, {"name": "a phone\n"}, id="line break after a name"),
        pytest.param(HELLO, {"session": "a" * 32 + "\n"}, id="line break after a session id"),
        pytest.param(HELLO, {"frames": [{"n_bytes": 1, "digest": "x" * 16}]}, id="text for bytes"),
        pytest.param(HELLO, {"frames": [{"n_bytes": 1, "digest": b"x" * 15}]}, id="short digest"),
        pytest.param(HELLO, {"position": "0"}, id="text for int"),
    ],
)
def test_a_field_that_cannot_be(message, changes):
    refused(with_header(spoilt(message, **changes)), "bad-header")


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 0},
        {"width": 2**40},
        {"n_labels": 1},
        {"heads": 0},
        {"layers": []},
        {"layers": [-1]},
        {"kind": "wide"},
        {"norm_eps": float("nan")},
        {"gated": [0, 10_000]},
        {"gated": [2]},
        {"start": "elsewhere"},
        {"causal": 1},
    ],
    ids=str,
)
def test_a_side_network_that_cannot_be(changes):
    values = fields(HELLO)
    values["plan"]["side"] |= changes
    refused(with_header(msgspec.msgpack.encode(values)), "bad-header")


@pytest.mark.parametrize(("sender", "message", "payloads"), CASES, ids=NAMES)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), True, "1", None], ids=str)
def test_no_number_of_any_message_may_be_anything_else(sender, message, payloads, wrong):
    values = fields(message, payloads)
    places = list(numbers(values))
    for place in places:
        part = values
        for key in place[:-1]:
            part = part[key]
        right, part[place[-1]] = part[place[-1]], wrong
        if place[-1] not in ("softcap", "sequence") or wrong is not None:  # these two may be nil
            refused(with_header(msgspec.msgpack.encode(values), payloads), "bad-header", sender)
        part[place[-1]] = right
    from_frames(with_header(msgspec.msgpack.encode(values), payloads), sender=sender, limits=Limits())


def numbers(values, place=()):
    """Where the numbers of a header are; bools and what is in lists too."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, dict | list):
            yield from numbers(value, (*place, key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*place, key)


def test_the_largest_batch_has_a_header_within_the_limit():
    rows, layers = MOST_SAMPLES, MOST_LAYERS
    batch = BatchMessage(
        sequence=2**31,
        lr=1e-5,
        samples=[2**31 - 1] * rows,
        fresh=list(range(rows)),
        lengths=[2**20] * rows,
        positions=[2**20 - 1] * rows,
        targets=[65535] * rows,
        codec="fp16",
        group=128,
        layers=[4095] * layers,
    )
    payloads = [b"x"] * (layers + 1)
    described = [FrameInfo(n_bytes=2**33, digest=b"d" * 16) for _ in payloads]
    header = msgspec.msgpack.encode(msgspec.structs.replace(batch, frames=described))
    assert len(header) <= Limits().header_bytes
    back, _ = from_frames(framed(batch, payloads), sender="device", limits=Limits())
    assert len(back.samples) == rows


def test_a_payload_is_counted_in_bytes_whatever_its_items_are():
    floats = memoryview(array.array("f", [1.0, 2.0]))
    frames = to_frames(Gradient(sequence=0), [floats])
    back, views = from_frames(frames, sender="device", limits=Limits())
    assert back.frames[0].n_bytes == len(views[0]) == 8


@pytest.mark.parametrize(
    ("sender", "message", "payloads", "code"),
    [
        pytest.param("device", HELLO, [b"head", b"tail"], "bad-frames", id="two heads"),
        pytest.param("server", Result(sequence=3), [], "bad-frames", id="result without its file"),
        pytest.param("server", Result(sequence=3), [b"r", b"r"], "bad-frames", id="two results"),
        pytest.param("server", Logits(sequence=3, rows=3, columns=2), [], "bad-frames", id="no logits"),
        pytest.param("server", Logits(sequence=3, rows=3, columns=2), [b"l" * 23], "bad-shape", id="logits cut"),
    ],
)
def test_payloads_that_the_message_cannot_have(sender, message, payloads, code):
    refused(framed(message, payloads), code, sender)


def test_frames_are_counted_before_anything_is_taken_for_them():
    frames = [b""] * 200_000
    tracemalloc.start()
    refused(frames, "bad-frames")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000  # a view of each would be 30 MB


@pytest.mark.parametrize(
    "kind", [b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"], ids=["array", "map", "str", "bin", "ext"]
)
def test_a_header_that_promises_four_billion_items_gets_no_memory_for_them(kind):
    header = b"\x82\xa4type\xa5batch\xa7samples" + kind + b"\xff" * 4
    tracemalloc.start()
    refused(with_header(header), "bad-header")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


# ---------------------------------------------------------------------- what does not fit together


def sizes(batch: BatchMessage) -> list[int]:
    one = codec(batch.codec, batch.group).wire_bytes((sum(batch.lengths), 64))
    return [one] * len(batch.layers) if batch.fresh else []


def test_a_batch_that_fits_its_plan():
    check_batch(BATCH, PLAN, sizes(BATCH))
    cached = msgspec.structs.replace(BATCH, fresh=[], lengths=[], positions=[])
    check_batch(cached, PLAN, [])


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param({"sequence": 10}, "bad-sequence", id="beyond the last step"),
        pytest.param({"samples": [5, 6, 100]}, "bad-values", id="sample out of range"),
        pytest.param({"samples": list(range(9)), "targets": [0] * 9}, "bad-shape", id="too many rows"),
        pytest.param({"targets": [0, 1, 2]}, "bad-values", id="label out of range"),
        pytest.param({"targets": []}, "bad-shape", id="no label left"),
        pytest.param({"fresh": [2, 0]}, "bad-shape", id="fresh not ascending"),
        pytest.param({"fresh": [0, 0]}, "bad-shape", id="fresh twice"),
        pytest.param({"fresh": [0, 3]}, "bad-shape", id="fresh out of range"),
        pytest.param({"lengths": [2]}, "bad-shape", id="a length missing"),
        pytest.param({"lengths": [0, 3]}, "bad-shape", id="zero dimension"),
        pytest.param({"lengths": [2, 17]}, "bad-shape", id="longer than the plan"),
        pytest.param({"lengths": [2**50, 2**50]}, "bad-shape", id="product overflow"),
        pytest.param({"positions": [2, 2]}, "bad-shape", id="position outside the text"),
        pytest.param({"layers": [1]}, "bad-shape", id="layer missing"),
        pytest.param({"layers": [1, 9]}, "bad-shape", id="layer out of range"),
        pytest.param({"codec": "int9"}, "bad-codec", id="unknown codec"),
        pytest.param({"codec": "int4", "group": 48}, "bad-codec", id="group that does not divide"),
    ],
)
def test_a_batch_that_does_not_fit(changes, code):
    batch = msgspec.structs.replace(BATCH, **changes)
    with pytest.raises(WireError) as found:
        check_batch(batch, PLAN, sizes(BATCH))
    assert found.value.code == code, found.value


def test_bytes_that_are_not_the_shapes_are_refused():
    for wrong in ([], sizes(BATCH)[:1], [size - 1 for size in sizes(BATCH)], [*sizes(BATCH), 4]):
        with pytest.raises(WireError, match="bytes"):
            check_batch(BATCH, PLAN, wrong)


def test_without_a_cache_every_sample_has_to_come():
    with pytest.raises(WireError, match="cache"):
        check_batch(BATCH, msgspec.structs.replace(PLAN, cache=False), sizes(BATCH))


def test_residuals_are_one_more_frame():
    plan = msgspec.structs.replace(PLAN, labels="residual")
    batch = msgspec.structs.replace(BATCH, targets=[])
    check_batch(batch, plan, [*sizes(BATCH), 3 * 2 * 4])
    with pytest.raises(WireError):
        check_batch(batch, plan, sizes(BATCH))


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": [2, 1]},
        {"layers": [1, 1]},
        {"kind": "full-width", "rank": 65},
        {"reduction": 3},
        {"heads": 5},
        {"pooling": "mean"},
        {"width": 32},
        {"n_labels": 3},
    ],
    ids=str,
)
def test_a_plan_that_does_not_fit_together(changes):
    check_plan(PLAN)
    side = msgspec.structs.replace(SIDE, **changes)
    with pytest.raises(WireError) as found:
        check_plan(msgspec.structs.replace(PLAN, side=side))
    assert found.value.code == "bad-plan"


@pytest.mark.parametrize(
    ("plan", "side"),
    [
        pytest.param({}, {"kind": "full-width", "width": 65536, "rank": 65536}, id="full-width, 32 GiB"),
        pytest.param({}, {"width": 65536, "reduction": 1, "layers": list(range(128))}, id="ladder, 20 TiB"),
        pytest.param({"head": None}, {"pooling": "mean", "width": 65536, "n_labels": 65536}, id="head, 16 GiB"),
        pytest.param({"max_tokens": 2**20, "max_rows": 1}, {}, id="attention over a million tokens"),
        pytest.param({"max_tokens": 2**15, "max_rows": 1}, {"width": 8}, id="32 768 tokens"),
    ],
)
def test_what_a_plan_would_take_of_the_servers_memory_is_counted_before_it_does(plan, side):
    side = msgspec.structs.replace(SIDE, **side)
    head = msgspec.structs.replace(HEAD, width=side.width, rows=side.n_labels)
    assert training_bytes(msgspec.structs.replace(PLAN, **{"head": head, "side": side, **plan})) > 2**33


FIRST = FrameInfo(n_bytes=1000, digest=bytes(16))
LLAMA = {"gated": (2, 10_000), "causal": True}
COPY = msgspec.structs.replace(SIDE, start="backbone", feed_forward=8)
STARTED = msgspec.structs.replace(PLAN, side=COPY, first=FIRST)


def test_first_weights_are_announced_exactly_where_the_side_network_starts_from_a_backbone():
    check_plan(STARTED)
    flat = msgspec.structs.replace(STARTED, side=msgspec.structs.replace(COPY, feed_forward=0))
    for plan in (msgspec.structs.replace(STARTED, first=None), msgspec.structs.replace(PLAN, first=FIRST), flat):
        with pytest.raises(WireError, match="have first weights and a feed_forward; no others have") as found:
            check_plan(plan)
        assert found.value.code == "bad-plan"


def test_announced_first_weights_count_against_a_sessions_share_before_they_come():
    hostile = msgspec.structs.replace(STARTED, first=FrameInfo(n_bytes=2**40, digest=bytes(16)))
    assert training_bytes(hostile) > 2**41
    wide = msgspec.structs.replace(STARTED.side, feed_forward=2**20)
    assert training_bytes(msgspec.structs.replace(STARTED, side=wide)) > 17 * 2 * 32 * 2**20


def test_a_part_of_the_first_weights_has_a_longest_length():
    message, views = from_frames(framed(First(offset=0), [bytes(PART_BYTES)]), sender="device", limits=Limits())
    assert (message.offset, len(views[0])) == (0, PART_BYTES)
    assert f"at most {PART_BYTES}" in refused(framed(First(offset=0), [bytes(PART_BYTES + 1)]), "too-large").remedy
    refused(framed(First(offset=0), [b"a", b"b"]), "bad-frames")


@pytest.mark.parametrize(
    "side",
    [
        {"kind": "full-width", "width": 2048, "rank": 64, "layers": list(range(1, 25))},
        {"kind": "ladder", "width": 2048, "reduction": 8, "heads": 2, "layers": list(range(1, 25))},
        {"kind": "ladder", "width": 4096, "reduction": 4, "heads": 8, "layers": list(range(1, 33))},
    ],
    ids=["full-width beside OPT-1.3B", "ladder beside OPT-1.3B", "ladder beside Llama-7B"],
)
def test_side_networks_of_real_backbones_are_allowed(side):
    side = msgspec.structs.replace(SIDE, **side)
    head = msgspec.structs.replace(HEAD, width=side.width)
    check_plan(msgspec.structs.replace(PLAN, side=side, head=head, max_rows=32, max_tokens=512))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("full-width", {"rank": 4}),
        ("ladder", {"reduction": 2, "heads": 2}),
        ("ladder", {"reduction": 2, "heads": 2, "start": "backbone", "feed_forward": 24}),
        ("ladder", {"reduction": 1, "start": "backbone", "feed_forward": 256}),
        ("ladder", {"reduction": 1, "heads": 4, "start": "backbone", "feed_forward": 24, **LLAMA}),
    ],
)
@pytest.mark.parametrize("pooling", [None, "mean"])
def test_the_weights_of_a_side_network_are_counted_as_they_are(kind, options, pooling):
    from mobillm_kit.side.adapter import SideAdapter

    side = msgspec.structs.replace(SIDE, kind=kind, pooling=pooling)
    built = SideAdapter(msgspec.structs.replace(side, **options))
    matrices = sum(parameter.numel() for parameter in built.parameters() if parameter.ndim == 2)
    assert matrices == built.spec.values()


def test_a_welcome_asks_for_first_weights_that_there_are_and_before_the_first_step():
    check_welcome(msgspec.structs.replace(WELCOME, resume=0, first=999), STARTED)
    for wrong in ({"resume": 0, "first": 1000}, {"resume": 2, "first": 0}):
        with pytest.raises(WireError, match="first weights that are not there"):
            check_welcome(msgspec.structs.replace(WELCOME, **wrong), STARTED)


WELCOME = Welcome(version=VERSION, resume=2, credit=4, budget_bytes=10, held=[(0, 3), (9, 9)], first=None)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param({"version": VERSION + 1}, "version", id="another version"),
        pytest.param({"resume": 11}, "bad-sequence", id="beyond the plan"),
        pytest.param({"held": [(0, 2**53)]}, "bad-values", id="more samples than there are"),
        pytest.param({"held": [(5, 4)]}, "bad-values", id="backwards"),
        pytest.param({"held": [(9, 9), (0, 3)]}, "bad-values", id="out of order"),
        pytest.param({"resume": 0, "first": 0}, "bad-values", id="first weights that the plan does not announce"),
    ],
)
def test_a_welcome_that_does_not_fit_its_plan(changes, code):
    check_welcome(WELCOME, PLAN)
    with pytest.raises(WireError) as found:
        check_welcome(msgspec.structs.replace(WELCOME, **changes), PLAN)
    assert found.value.code == code


def test_a_refusal_is_short_enough_to_be_sent_whatever_it_quotes():
    long = [4095] * 128
    with pytest.raises(WireError) as plan:
        check_plan(msgspec.structs.replace(PLAN, side=msgspec.structs.replace(SIDE, layers=long)))
    with pytest.raises(WireError) as batch:
        check_batch(msgspec.structs.replace(BATCH, layers=long), PLAN, sizes(BATCH))
    for found in (plan.value, batch.value):
        assert found.remedy
        said = Error(code=found.code, sentence=found.problem, remedy=found.remedy, sequence=None, fatal=True)
        assert from_frames(framed(said), sender="server", limits=Limits())[0] == said


# ---------------------------------------------------------------------- whatever comes


def test_there_are_at_most_twenty_error_codes_and_each_is_documented(root):
    assert len(get_args(ErrorCode)) <= 20
    text = (root / "docs" / "protocol.md").read_text(encoding="utf-8")
    assert all(f"`{code}`" in text for code in get_args(ErrorCode))


def mutated(frames: list[bytes], chance: random.Random) -> list[bytes]:
    """A few bytes changed, cut, doubled or swapped; half of the time with a digest that fits again."""
    parts = [bytearray(frame) for frame in frames]
    for _ in range(chance.randint(1, 4)):
        part = parts[chance.randrange(len(parts))]
        place = chance.randrange(len(part)) if part else 0
        how = chance.randrange(4)
        if how == 0 and part:
            part[place] = chance.randrange(256)
        elif how == 1:
            del part[place : place + chance.randint(1, 8)]
        elif how == 2:
            part[place:place] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 8)))
        else:
            chance.shuffle(parts)
    if chance.random() < 0.5 and len(parts) > 1:
        parts[0] = bytearray(b"MBLM" + bytes([VERSION, 0, 0, 0]) + digest(parts[1]))
    return [bytes(part) for part in parts]


def test_no_mutated_message_raises_anything_but_a_documented_refusal():
    chance, codes = random.Random(0), set()
    originals = [(sender, framed(message, payloads)) for sender, message, payloads in CASES]
    for _ in range(int(os.environ.get("MOBILLM_FUZZ", "3000"))):
        sender, frames = chance.choice(originals)
        try:
            message, payloads = from_frames(mutated(frames, chance), sender=sender, limits=Limits())
            if isinstance(message, BatchMessage):
                check_batch(message, PLAN, [len(payload) for payload in payloads])
            elif isinstance(message, Hello):
                check_plan(message.plan)
        except WireError as error:
            codes.add(error.code)
    assert codes <= {*get_args(ErrorCode)}
    assert len(codes) > 3


def test_every_refusal_has_a_row_and_every_row_a_use_with_its_words():
    package = Path(messages.__file__).parent.parent
    calls = (node for file in package.rglob("*.py") for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    found = [c for c in calls if isinstance(c, ast.Call) and isinstance(c.func, ast.Name) and c.func.id == "refusal"]
    uses = {call.args[0].value: {word.arg for word in call.keywords} for call in found}
    rows = tomllib.loads((package / "channel" / "refusals.toml").read_text(encoding="utf-8"))
    words = {
        name: {word for text in (row["problem"], row.get("remedy", "")) for _, word, _, _ in Formatter().parse(text)}
        for name, row in rows.items()
    }
    assert uses == {name: found - {None} for name, found in words.items()}
