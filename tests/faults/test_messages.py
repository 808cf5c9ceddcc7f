"""Single messages are lost, doubled, overtaken, repeated from another time, or cut: the side network is the same."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from mobillm_kit.channel.ends import DeviceSocket
from mobillm_kit.channel.frames import from_frames
from mobillm_kit.channel.messages import Ack, BatchMessage, Bye, Durable, Error, Fetch, Hello, Pong, Result, Welcome
from tests.faults.scenes import LIMITS, MIDDLE, STEPS, Script, attempt, identical, table

UP = {"handshake": (Hello, None), "mid-epoch": (BatchMessage, MIDDLE), "result": (Fetch, STEPS)}
DOWN = {"handshake": (Welcome, None), "mid-epoch": (Ack, MIDDLE), "result": (Result, STEPS)}


@dataclass
class Tampered(Script):
    """Does something to the first message of a kind, in one direction."""

    fault: str = ""
    kind: tuple[type, int | None] = (Hello, None)
    struck: bool = False
    delayed: list = field(default_factory=list)

    def up(self, message, frames):
        return self._changed(message, super().up(message, frames))

    def down(self, message, frames):
        return self._changed(message, super().down(message, frames))

    def _changed(self, message, passing):
        if self.delayed:  # overtaken by this one
            passing, self.delayed = [*passing, *self.delayed], []
        kind, sequence = self.kind
        if self.struck or not isinstance(message, kind) or sequence not in (None, getattr(message, "sequence", None)):
            return passing
        self.struck = True
        if self.fault == "lost":
            return []
        if self.fault == "duplicated":
            return [*passing, *passing]
        if self.fault == "reordered":
            self.delayed = list(passing)
            return []
        if self.fault == "cut":
            return [[*frames[:-1], bytes(frames[-1])[: len(frames[-1]) // 2]] for frames in passing]
        raise AssertionError(self.fault)


FAULTS = {
    f"{direction}-{fault}": (fault, kinds)
    for direction, kinds in (("question", UP), ("answer", DOWN))
    for fault in ("lost", "duplicated", "reordered", "cut")
}
QUICK = {
    ("question-duplicated", "mid-epoch"),
    ("answer-duplicated", "mid-epoch"),
    ("answer-cut", "result"),
    ("question-cut", "mid-epoch"),
}


@pytest.mark.parametrize(("fault", "phase", "config"), table(FAULTS, QUICK))
def test_a_message_that_goes_astray_changes_no_byte(place, steady, oracle, fault, phase, config):
    undisturbed = oracle(config)
    what, kinds = FAULTS[fault]
    script = Tampered(fault=what, kind=kinds[phase])
    identical(attempt(place, steady.address, config, script), undisturbed)
    assert script.struck


@pytest.mark.faults
@pytest.mark.parametrize(
    "kind",
    [(Ack, 0), (Ack, STEPS - 1), (Durable, 3), (BatchMessage, 0), (BatchMessage, STEPS - 1)],
    ids=["first-ack", "last-ack", "durable", "first-batch", "last-batch"],
)
def test_a_lost_message_at_an_edge_changes_no_byte(place, steady, oracle, kind):
    undisturbed = oracle("ladder-int8")
    script = Tampered(fault="lost", kind=kind)
    identical(attempt(place, steady.address, "ladder-int8", script), undisturbed)
    assert script.struck


@dataclass
class Chaos(Script):
    """Loses, doubles and delays at random, both ways."""

    seed: int = 0

    def __post_init__(self):
        self._draws = random.Random(self.seed)
        self._late: dict[bool, list] = {True: [], False: []}

    def up(self, message, frames):
        return self._mixed(True, super().up(message, frames))

    def down(self, message, frames):
        return self._mixed(False, super().down(message, frames))

    def _mixed(self, up, passing):
        passing = [*passing, *self._late[up]]
        self._late[up] = []
        draw = self._draws.random()
        if draw < 0.02:
            return []
        if draw < 0.10:
            return passing * 2
        if draw < 0.18:
            self._late[up] = passing
            return []
        return passing


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("config", ["ladder-int8", "full-width-int8-cache"])
def test_chaos_changes_no_byte(place, steady, oracle, seed, config):
    identical(attempt(place, steady.address, config, Chaos(seed=seed)), oracle(config))


@dataclass
class Recorder(Script):
    """Keeps what the device sends."""

    sent: list = field(default_factory=list)

    def up(self, message, frames):
        self.sent.append((message, [bytes(frame) for frame in frames]))
        return super().up(message, frames)


@pytest.fixture(scope="module")
def old_session(place, steady):
    """Every message of a session that trained something else."""
    recorder = Recorder()
    outcome = attempt(place, steady.address, "ladder-int8", recorder, model="llama")
    assert outcome.error is None
    return recorder.sent


def replayed(address: str, messages) -> list:
    """Send recorded messages over a connection of their own; what comes back."""
    with DeviceSocket(address, limits=LIMITS) as socket:
        socket.wait_connected()
        for _, frames in messages:
            assert socket.send(frames, 5.0)
        answers = []
        while (frames := socket.receive(1.5)) is not None:
            answers.append(from_frames(frames, sender="server", limits=LIMITS)[0])
        return answers


@pytest.mark.parametrize("phase", ["handshake", "mid-epoch", "result"])
def test_batches_replayed_from_an_old_session_are_refused_and_change_no_byte(place, steady, oracle, old_session, phase):
    undisturbed = oracle("ladder-int8")
    batches = [(message, frames) for message, frames in old_session if isinstance(message, BatchMessage | Fetch)]
    answers = []
    script = Script(strikes={phase: lambda: answers.extend(replayed(steady.address, batches))})
    identical(attempt(place, steady.address, "ladder-int8", script), undisturbed)
    assert {answer.code for answer in answers if isinstance(answer, Error)} == {"hello-first"}
    assert not any(isinstance(answer, Ack | Result) for answer in answers)


@pytest.mark.faults
@pytest.mark.parametrize("phase", ["handshake", "mid-epoch", "result"])
def test_a_whole_old_session_replayed_beside_changes_no_byte(place, steady, oracle, old_session, phase):
    undisturbed = oracle("ladder-int8")
    whole = [(message, frames) for message, frames in old_session if not isinstance(message, Bye)]
    answers = []
    script = Script(strikes={phase: lambda: answers.extend(replayed(steady.address, whole))})
    identical(attempt(place, steady.address, "ladder-int8", script), undisturbed)
    assert any(isinstance(answer, Welcome | Pong) for answer in answers)


@dataclass
class OwnPast(Script):
    """Repeats this session's own earlier messages, late."""

    kept: list = field(default_factory=list)
    moments: list[int] = field(default_factory=lambda: [4, MIDDLE])

    def up(self, message, frames):
        self.kept.append([bytes(frame) for frame in frames])
        passing = super().up(message, frames)
        if isinstance(message, BatchMessage) and message.sequence in self.moments:
            self.moments.remove(message.sequence)
            return [*passing, *self.kept[::3]]
        return passing


@pytest.mark.faults
@pytest.mark.parametrize("config", ["ladder-int8", "full-width-int8-cache", "ladder-fp32-device-labels"])
def test_messages_repeated_from_a_sessions_own_past_change_no_byte(place, steady, oracle, config):
    identical(attempt(place, steady.address, config, OwnPast()), oracle(config))
