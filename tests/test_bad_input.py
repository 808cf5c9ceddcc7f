"""What a server is sent that it should not be: a documented refusal each, and the device beside it does not notice."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import msgspec
import pytest
import torch
from safetensors.torch import save

from mobillm_kit.channel.ends import DeviceSocket
from mobillm_kit.channel.frames import Limits, from_frames, to_frames
from mobillm_kit.channel.join import JoinString
from mobillm_kit.channel.keys import load_or_make_keys
from mobillm_kit.channel.messages import (
    Ack,
    BatchMessage,
    Bye,
    Checkpoint,
    Error,
    ErrorCode,
    Fetch,
    Hello,
    Message,
    Need,
    Ping,
    Pong,
    Welcome,
)
from mobillm_kit.errors import ServerRefused
from mobillm_kit.methods.mobillm import MobiLLM
from mobillm_kit.runs.loop import fit
from mobillm_kit.runs.prepare import Prepared, build_method, prepare, training_batches
from mobillm_kit.server.process import ServerProcess, serve
from mobillm_kit.side.portable_head import checked_result
from tests.builders import tiny_spec
from tests.test_wire import mutated
from tests.uplink import shape

FUZZ = int(os.environ.get("MOBILLM_FUZZ", "3000"))
RESULTS = int(os.environ.get("MOBILLM_FUZZ_RESULTS", "1000"))
DRIFT_MIB = 64
ANSWER_S = 20.0
"""For a machine that is busy; what must not take longer than a second is asserted where it is."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Prepared:
    """Texts and backbone, loaded once: loading is not for several threads at a time."""
    return prepare(tiny_spec(tmp_path_factory.mktemp("uplink"), "mobillm-ladder", steps=12))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("server"), options=("--max-sessions", "32")) as process:
        yield process


def method_of(prepared: Prepared, address: str, **options) -> MobiLLM:
    changed = msgspec.structs.replace(prepared.spec, options={"server": address, **shape("ladder"), **options})
    method = build_method(dataclasses.replace(prepared, spec=changed))
    assert isinstance(method, MobiLLM)
    return method


def trained(prepared: Prepared, address: str) -> bytes:
    """What an innocent device ends with."""
    method = method_of(prepared, address, codec="fp32")
    try:
        fit(
            method,
            training_batches(prepared),
            dev=prepared.dev[:4],
        )
        return save({name: tensor.contiguous() for name, tensor in method.trained().items()})
    finally:
        method.close()


@pytest.fixture(scope="module", autouse=True)
def _an_innocent_device_beside_all_this_trains_the_same_bytes(prepared, server) -> Iterator[None]:
    """Run after run on the same server, while the tests do to it what they do."""
    own = prepare(prepared.spec)  # a backbone forwards for one thread at a time
    undisturbed = trained(own, server.address)
    stop, runs = threading.Event(), []

    def train() -> None:
        while not stop.is_set() or not runs:
            runs.append(trained(own, server.address) == undisturbed)
            stop.wait(1.0)

    thread = threading.Thread(target=train)
    thread.start()
    yield
    stop.set()
    thread.join(60)
    assert server.running
    assert runs
    assert all(runs)


class RawDevice:
    """A client that says whatever a test wants."""

    def __init__(
        self, prepared: Prepared, address: str, *, server_key: str = "", keys: Path | None = None, **options
    ) -> None:
        self.method = method_of(prepared, address, **options)
        self.uplink = self.method.uplink
        self.uplink.begin(training_batches(prepared))
        pair = None if keys is None else load_or_make_keys(keys)
        limits = Limits(frame_bytes=2**28, total_bytes=2**29, frames=2**20)
        self.socket = DeviceSocket(address, server_key=server_key or None, keys=pair, limits=limits, high_water=1000)
        self.socket.wait_connected()
        self.session = os.urandom(16).hex()

    def hello(self, **changes) -> tuple[Hello, list[bytes]]:
        plan, head = self.uplink.plan()
        values = {"session": self.session, "name": "raw", "code": "", "position": 0, "plan": plan, **changes}
        return Hello(**values), [save(head)]

    def begin(self, **changes) -> Welcome:
        self.say(*self.hello(**changes))
        return self.hear(Welcome)

    def batch(self, sequence: int = 0, **changes) -> tuple[BatchMessage, list[bytes]]:
        message, payloads = self.uplink.messages.of_step(sequence, held=lambda sample: False)
        return msgspec.structs.replace(message, **changes), [bytes(payload) for payload in payloads]

    def say(self, message: Message, payloads=()) -> None:
        self.send(to_frames(message, payloads))

    def send(self, frames) -> None:
        assert self.socket.send(frames, ANSWER_S)

    def hear(self, *kinds: type) -> Message:
        """The next message of these kinds; others are passed over."""
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            frames = self.socket.receive(0.2)
            if frames is not None:
                message, _ = from_frames(frames, sender="server", limits=Limits())
                if isinstance(message, kinds):
                    return message
        raise AssertionError(f"no {[kind.__name__ for kind in kinds]} within {ANSWER_S} seconds")

    def refused(self, code: str) -> Error:
        error = self.hear(Error)
        assert error.code == code, error
        assert error.sentence
        return error

    def close(self) -> None:
        """Free the place on the server."""
        self.say(Bye())
        self.socket.close(0.5)


@pytest.fixture
def raw(prepared, server):
    device = RawDevice(prepared, server.address, codec="fp32")
    yield device
    device.close()


# ---------------------------------------------------------------------- state


@pytest.mark.parametrize("message", [Ping(nonce=1), Checkpoint(sequence=0), Fetch(sequence=0)], ids=str)
def test_before_hello(raw, message):
    raw.say(message)
    assert not raw.refused("hello-first").fatal


def test_a_batch_before_hello(raw):
    raw.say(*raw.batch())
    raw.refused("hello-first")


def test_a_batch_after_bye(raw):
    raw.begin()
    raw.say(Bye())
    raw.hear(Bye)
    raw.say(*raw.batch())
    raw.refused("hello-first")


def test_more_batches_than_credit(prepared, server):
    raw = RawDevice(
        prepared, server.address, codec="fp32", labels="device"
    )  # none is acknowledged without its gradient
    credit = raw.begin().credit
    for sequence in range(credit + 1):
        raw.say(*raw.batch(sequence))
    raw.refused("over-credit")
    raw.close()


def test_a_plan_over_the_budget(raw):
    hello, head = raw.hello()
    side = msgspec.structs.replace(hello.plan.side, layers=list(range(1, 129)))
    plan = msgspec.structs.replace(hello.plan, max_tokens=16_000, side=side)
    raw.say(msgspec.structs.replace(hello, plan=plan), head)
    raw.refused("over-quota")


def test_a_side_network_too_large_for_the_share_is_refused_with_both_figures(raw):
    hello, head = raw.hello()
    side = msgspec.structs.replace(hello.plan.side, width=16_384, heads=8)
    described = msgspec.structs.replace(hello.plan.head, width=16_384)
    plan = msgspec.structs.replace(hello.plan, max_tokens=1, max_rows=1, side=side, head=described)
    raw.say(msgspec.structs.replace(hello, plan=plan), head)
    assert re.search(r"take \d{4,} MiB .* share is 128 MiB", raw.refused("over-quota").sentence)


def test_a_repeated_batch_is_trained_once(raw):
    raw.begin()
    for _ in range(3):
        raw.say(*raw.batch(0))
    assert raw.hear(Ack).sequence == 0
    raw.say(*raw.batch(1))
    assert raw.hear(Ack).sequence == 1


def test_a_skipped_batch_is_asked_for(raw):
    raw.begin()
    raw.say(*raw.batch(2))
    assert raw.hear(Need).sequence == 0


def test_a_sequence_number_beyond_the_plan(raw):
    raw.begin()
    message, payloads = raw.batch(0)
    raw.say(msgspec.structs.replace(message, sequence=10**9), payloads)
    raw.refused("bad-sequence")


def test_another_plan_in_the_same_session(raw):
    hello, head = raw.hello()
    raw.begin()
    raw.say(msgspec.structs.replace(hello, plan=msgspec.structs.replace(hello.plan, weight_decay=0.5)), head)
    raw.refused("bad-plan")


def test_a_question_about_a_step_that_is_not_reached(raw):
    raw.begin()
    raw.say(Fetch(sequence=5))
    assert not raw.refused("bad-sequence").fatal
    raw.say(*raw.batch(0))
    assert raw.hear(Ack).sequence == 0


def test_a_head_that_is_described_and_does_not_come(raw):
    raw.say(raw.hello()[0])
    raw.refused("bad-plan")


@pytest.mark.parametrize("head", [b"", b"\x80\x04pickle", b"\xff" * 100, save({"strange": torch.ones(2)})])
def test_a_head_that_is_none(raw, head):
    raw.say(raw.hello()[0], [head])
    raw.refused("bad-plan")


def crafted(described: dict[str, object], n_bytes: int = 0) -> bytes:
    header = json.dumps({"words.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]} | described})
    return len(header).to_bytes(8, "little") + header.encode() + bytes(n_bytes)


@pytest.mark.parametrize(
    "head",
    [
        *(crafted({"shape": shape, "data_offsets": [0, 0]}) for shape in ([0, 2**40, 2**40], [0, 2**63], [0], [2**62])),
        *(crafted({"shape": shape}, 32) for shape in ([-1, 4], [2**31, 2**31], [2**64, 1], [1] * 100, "2", [2.5])),
        *(crafted({"data_offsets": ends}, 32) for ends in ([32, 0], [0, 2**63], [-32, 0], [0], [4, 36])),
        *(crafted({"dtype": dtype}, 32) for dtype in ("I64", "F8_E4M3", "", 3)),
        *(crafted({}, n_bytes) for n_bytes in (0, 31, 33)),
        b"\xff" * 8 + b"{}",
        (2**63).to_bytes(8, "little"),
        (4).to_bytes(8, "little") + b"null",
    ],
    ids=lambda head: str(head[8:90]),
)
def test_a_head_whose_header_lies(raw, head):
    raw.say(raw.hello()[0], [head])
    raw.refused("bad-plan")
    raw.begin()


def test_a_head_with_values_that_are_not_finite(raw):
    hello, _ = raw.hello()
    _, head = raw.uplink.plan()
    raw.say(hello, [save({name: torch.full_like(tensor, float("nan")) for name, tensor in head.items()})])
    raw.refused("bad-plan")


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_activations_that_are_not_finite(raw, value):
    raw.begin()
    message, payloads = raw.batch(0)
    spoilt = torch.frombuffer(bytearray(payloads[0]), dtype=torch.float32).clone()
    spoilt[3] = value
    raw.say(message, [spoilt.numpy().tobytes(), *payloads[1:]])
    raw.refused("bad-values")


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, 1e-42], ids=["nan", "inf", "negative", "denormal"])
def test_scales_that_no_encoder_writes(prepared, server, scale):
    raw = RawDevice(prepared, server.address, codec="int8", group=8)
    raw.begin()
    message, payloads = raw.batch(0)
    spoilt = bytearray(payloads[0])
    spoilt[:4] = torch.tensor([scale]).numpy().tobytes()
    raw.say(message, [bytes(spoilt), *payloads[1:]])
    raw.refused("bad-values")
    raw.close()


def test_a_damaged_payload_is_asked_for_again_and_the_session_goes_on(raw):
    raw.begin()
    frames = [bytearray(frame) for frame in to_frames(*raw.batch(0))]
    frames[2][5] ^= 1
    raw.send([bytes(frame) for frame in frames])
    assert not raw.refused("bad-digest").fatal
    raw.say(*raw.batch(0))
    assert raw.hear(Ack).sequence == 0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"targets": [0, 1, 2, 0]}, "bad-values"),
        ({"targets": []}, "bad-shape"),
        ({"layers": [1, 2]}, "bad-shape"),
        ({"codec": "zip"}, "bad-codec"),
        ({"codec": "int8", "group": 24}, "bad-codec"),
        ({"fresh": []}, "bad-shape"),
        ({"lengths": [1, 1, 1, 1]}, "bad-shape"),
    ],
    ids=str,
)
def test_a_batch_that_does_not_fit_its_plan(raw, changes, code):
    raw.begin()
    raw.say(*raw.batch(0, **changes))
    raw.refused(code)


# ---------------------------------------------------------------------- bytes that are no messages


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", os.urandom(4096), b"\xff" + b"\0" * 8 + b"\x7f\3\1" + b"\xff" * 500],
    ids=["HTTP GET", "random bytes", "ZMTP garbage"],
)
def test_strange_bytes_at_the_port_end_nothing(server, raw, data):
    host, port = server.address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as strange:
        strange.sendall(data)
        raw.begin()
        raw.say(Ping(nonce=4))
        assert raw.hear(Pong).nonce == 4


def test_two_hundred_thousand_empty_frames(raw):
    raw.begin()
    raw.send([b""] * 200_000)
    assert raw.refused("bad-frames").remedy
    raw.say(Ping(nonce=5))
    assert raw.hear(Pong).nonce == 5


# ---------------------------------------------------------------------- keys


@contextmanager
def guarded(tmp_path: Path, *options: str) -> Iterator[ServerProcess]:
    with serve(tmp_path / "server", keys=tmp_path / "keys", options=options) as process:
        yield process


def test_another_devices_session_and_a_code_that_is_used_up(prepared, tmp_path):
    with guarded(tmp_path) as process:
        join = JoinString.parse(process.join)
        first = RawDevice(prepared, join.address, server_key=join.server_key, keys=tmp_path / "one", codec="fp32")
        first.begin(code=join.code)
        with pytest.raises(Exception, match="key"):
            RawDevice(prepared, join.address, server_key=join.server_key, keys=tmp_path / "two", codec="fp32")
        second = RawDevice(prepared, join.address, server_key=join.server_key, keys=tmp_path / "one", codec="fp32")
        second.session = first.session
        second.begin()  # the same key may come back under another connection
        first.close()
        second.close()


def test_more_sessions_than_places(prepared, tmp_path):
    with serve(tmp_path, options=("--max-sessions", "1")) as process:
        first = RawDevice(prepared, process.address, codec="fp32")
        first.begin()
        second = RawDevice(prepared, process.address, codec="fp32")
        second.say(*second.hello())
        second.refused("too-many-sessions")
        first.say(Bye())
        first.hear(Bye)
        second.begin()
        first.close()
        second.close()


# ---------------------------------------------------------------------- whatever comes


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def test_mutated_messages_through_a_real_socket(prepared, server):
    chance = random.Random(1)
    raw = RawDevice(prepared, server.address, codec="int8", group=8)
    raw.begin()
    raw.say(*raw.batch(0))
    raw.hear(Ack)
    originals = [
        [bytes(frame) for frame in to_frames(*said)]
        for said in (
            raw.batch(1),
            raw.hello(),
            (Ping(nonce=1), []),
            (Fetch(sequence=1), []),
            (Checkpoint(sequence=1), []),
        )
    ]
    before = resident_mib(server.pid)
    codes: set[str] = set()
    for number in range(FUZZ):
        raw.send(mutated(chance.choice(originals), chance))
        _listen(raw, codes)
        if number % 1000 == 999:
            assert _answers(raw) < 1.0 + ANSWER_S * (os.getloadavg()[0] > 2)
    assert codes <= {*get_args(ErrorCode)}
    assert server.running
    assert resident_mib(server.pid) - before < DRIFT_MIB
    raw.close()


def _listen(raw: RawDevice, codes: set[str]) -> None:
    while (frames := raw.socket.receive(0.0)) is not None:
        message, _ = from_frames(frames, sender="server", limits=Limits())
        if isinstance(message, Error):
            codes.add(message.code)


def _answers(raw: RawDevice) -> float:
    """Seconds until a ping, or a refusal of it, comes back."""
    nonce = int(time.monotonic() * 1000)
    started = time.monotonic()
    raw.say(Ping(nonce=nonce))
    while True:
        answer = raw.hear(Pong, Error)
        if isinstance(answer, Error) or answer.nonce == nonce:
            return time.monotonic() - started


def test_mutated_result_files_are_refused_or_whole():
    expected = {"a": torch.randn(4, 3), "b": torch.randn(5)}
    data = save(expected)
    chance = random.Random(2)
    refused = 0
    for _ in range(RESULTS):
        spoilt = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            how, place = chance.randrange(3), chance.randrange(len(spoilt))
            if how == 0:
                spoilt[place] ^= 1 << chance.randrange(8)
            elif how == 1:
                del spoilt[place : place + chance.randint(1, 16)]
            else:
                spoilt[place:place] = os.urandom(chance.randint(1, 16))
            if not spoilt:
                break
        try:
            tensors = checked_result(bytes(spoilt), expected)
        except ServerRefused:
            refused += 1
        else:
            assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert refused > RESULTS // 3


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(save({"a": torch.ones(2)})[:20], "not safetensors", id="truncated"),
        pytest.param((100 * 2**20).to_bytes(8, "little") + b"{" * 100, "not safetensors", id="100 MB header"),
        pytest.param(save({"a": torch.tensor([1.0, float("nan")])}), "finite", id="NaN"),
        pytest.param(save({"b": torch.ones(2)}), "other tensors", id="wrong key"),
        pytest.param(save({}), "other tensors", id="missing key"),
        pytest.param(save({"a": torch.ones(2), "b": torch.ones(1)}), "other tensors", id="extra key"),
        pytest.param(save({"a": torch.ones(2, dtype=torch.float64)}), "float64", id="wrong dtype"),
        pytest.param(save({"a": torch.ones(3)}), "(3,)", id="wrong shape"),
        pytest.param(b"\x80\x04\x95pickle.", "not safetensors", id="a pickle"),
        pytest.param(b"", "not safetensors", id="empty"),
    ],
)
def test_a_side_network_that_cannot_be_ours(data, words):
    with pytest.raises(ServerRefused) as found:
        checked_result(data, {"a": torch.ones(2)})
    assert words in str(found.value)
