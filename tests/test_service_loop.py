"""The server's loop and its training threads without processes: a socket and a trainer that the test plays."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

import mobillm_kit.server.service as service_module
from mobillm_kit.channel.checks import batch_bytes, training_bytes
from mobillm_kit.channel.ends import Peer
from mobillm_kit.channel.frames import Limits, from_frames, to_frames
from mobillm_kit.channel.messages import Ack, Bye, Checkpoint, Error, Fetch, Hello, Ping, Pong, Result, Welcome
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.errors import BadInput, FolderBusy, SaveFailed
from mobillm_kit.server import ServiceSettings
from mobillm_kit.server.service import Service, owner_folder
from mobillm_kit.server.session import Session, TrainingThread
from tests.faults.flood import batch, plan

WAIT_S = 10.0
PEER, OTHER = Peer(b"1", "key"), Peer(b"2", "key")


class PlayedTrainer:
    """Trains nothing; its losses are the numbers of the steps."""

    def __init__(self, done: int = 0) -> None:
        self.losses = [float(step) for step in range(done)]
        self.cache = None
        self.waiting = False
        self.first_at = None
        self.rolled_back: list[int] = []

    @property
    def sequence(self) -> int:
        return len(self.losses)

    def batch(self, message, payloads, queue_s):
        self.losses.append(float(message.sequence))
        loss = self.losses[-1]
        return [(Ack(sequence=message.sequence, loss=loss, cached=False, queue_s=0, decode_s=0, train_s=0), [])]

    def result(self):
        return [(Result(sequence=self.sequence), [b"side"])]

    def checkpoint(self):
        raise MemoryError("no room\nand more")

    def forget_waiting(self):
        self.waiting = False

    def roll_back(self, sequence):
        self.rolled_back.append(sequence)
        self.losses = self.losses[:sequence]


class PlayedSocket:
    """Takes what the server sends, unless it is full."""

    def __init__(self) -> None:
        self.arriving: deque = deque()
        self.sent: list[tuple[Peer, object]] = []
        self.full = False

    def receive(self, timeout_s):
        return self.arriving.popleft() if self.arriving else None

    def send(self, peer, frames):
        if not self.full:
            self.sent.append((peer, from_frames(frames, sender="server", limits=Limits())[0]))
        return not self.full

    def wake(self):
        pass

    def know(self, peer, known):
        pass

    def cut_off(self):
        pass


def hello(number: int = 0, **changes) -> Hello:
    session = f"{number:032x}"
    return replace(Hello(session=session, name="test", code="", position=0, plan=plan(), frames=[]), **changes)


@pytest.fixture
def threads():
    made: list[TrainingThread] = []

    def make(trainer, credit: int = 4) -> TrainingThread:
        session = Session(plan(), credit=credit, budget_bytes=2**40)
        made.append(TrainingThread(session, lambda: nullcontext(trainer), wake=lambda: None))
        return made[-1]

    yield make
    for thread in made:
        thread.close()
        assert thread.wait_closed(WAIT_S)


def until(found, enough):
    """All that ``found`` gives until ``enough`` says so."""
    deadline, all_found = time.monotonic() + WAIT_S, []
    while not enough(all_found):
        assert time.monotonic() < deadline, all_found
        all_found += found()
        time.sleep(0.002)
    return all_found


def said(thread: TrainingThread, count: int) -> list:
    return [message for message, _ in until(thread.replies, lambda found: len(found) >= count)]


# --- a training thread


def test_a_thread_welcomes_and_trains(threads):
    thread = threads(PlayedTrainer())
    thread.receive(hello(), [])
    assert isinstance(said(thread, 1)[0], Welcome)
    for sequence in range(2):
        thread.receive(*from_frames(to_frames(*batch(sequence)), sender="device", limits=Limits()))
    assert [message.loss for message in said(thread, 2)] == [0.0, 1.0]
    thread.receive(Fetch(sequence=2), [])
    assert said(thread, 1) == [Result(sequence=2)]


def test_a_welcome_brings_the_losses_that_were_missed(threads):
    trainer = PlayedTrainer(done=3)
    thread = threads(trainer)
    thread.receive(hello(position=1), [])
    welcome, *missed = said(thread, 3)
    assert welcome.resume == 3
    assert [(ack.sequence, ack.loss) for ack in missed] == [(1, 1.0), (2, 2.0)]
    assert trainer.rolled_back == []


@pytest.mark.parametrize(("again", "resume"), [(False, 1), (True, 9)])
def test_a_device_from_an_older_checkpoint_takes_training_back_and_one_that_only_asks_does_not(threads, again, resume):
    thread = threads(PlayedTrainer(done=9), credit=4)
    thread.receive(hello(position=1), [], again=again)
    assert said(thread, 1)[0].resume == resume


def test_whatever_goes_wrong_is_said_in_one_sentence_and_ends_the_session(threads):
    thread = threads(PlayedTrainer())
    thread.receive(hello(), [])
    said(thread, 1)
    thread.receive(Checkpoint(sequence=0), [])
    (error,) = said(thread, 1)
    assert error == Error(
        code="server-trouble",
        sentence="The server could not train this batch (no room).",
        remedy="Give the server more memory, or send smaller batches; then run again.",
        sequence=0,
        fatal=True,
    )
    assert thread.failed


@pytest.mark.parametrize("kind", [Checkpoint, Fetch])
def test_a_question_about_another_step_is_refused_and_the_session_goes_on(threads, kind):
    thread = threads(PlayedTrainer())
    thread.receive(hello(), [])
    said(thread, 1)
    thread.receive(kind(sequence=5), [])
    (error,) = said(thread, 1)
    assert (error.code, error.sequence, error.fatal) == ("bad-sequence", 5, False)
    assert "Step 5 was asked about, training stands at 0." in error.sentence
    thread.receive(Fetch(sequence=0), [])
    assert isinstance(said(thread, 1)[0], Result)


# --- the loop


class Shares(ServiceSettings):
    """A server of so many bytes for each session."""

    share_bytes: int = 2**29


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A service whose loop the test turns by hand."""
    monkeypatch.setattr(service_module, "SessionTrainer", lambda *_: PlayedTrainer())
    made = []

    def make(door=None, **settings):
        socket = PlayedSocket()
        service = Service(socket, Shares(folder=tmp_path, **settings), door)
        made.append(service)

        def say(peer: Peer, message, payloads=()) -> None:
            service._handle(peer, [memoryview(bytes(frame)) for frame in to_frames(message, payloads)])

        def answers(count: int) -> list:
            def found() -> list:
                service._tick()
                new, socket.sent = socket.sent, []
                return new

            return [message for _, message in until(found, lambda got: len(got) >= count)]

        def only() -> TrainingThread:
            (place,) = service._places.all()
            return place.thread

        return SimpleNamespace(service=service, socket=socket, say=say, answers=answers, only=only)

    yield make
    for service in made:
        service._end()


def test_a_session_from_hello_to_farewell(served):
    end = served()
    end.say(PEER, hello())
    assert isinstance(end.answers(1)[0], Welcome)
    end.say(PEER, Ping(nonce=7))
    assert end.answers(1) == [Pong(nonce=7)]
    end.say(PEER, Bye())
    assert end.answers(1) == [Bye()]
    end.say(PEER, Ping(nonce=8))
    (error,) = end.answers(1)
    assert (error.code, error.fatal) == ("hello-first", False)


def test_bytes_that_are_no_message_are_refused_and_harm_nothing(served):
    end = served()
    end.say(PEER, hello())
    end.answers(1)
    end.service._handle(PEER, [memoryview(b"x"), memoryview(b"y")])
    assert end.answers(1)[0].code == "not-our-protocol"
    end.say(PEER, Ping(nonce=1))
    assert Pong(nonce=1) in end.answers(1)


def test_who_is_not_admitted_is_turned_away(served):
    end = served(SimpleNamespace(knows=lambda key: False, use_code=lambda key, code: code == "right"))
    end.say(PEER, hello(code="wrong"))
    assert end.answers(1)[0].code == "bad-code"
    end.say(PEER, hello(code="right"))
    assert isinstance(end.answers(1)[0], Welcome)


def test_a_session_belongs_to_the_key_that_began_it(served):
    end = served()
    end.say(PEER, hello())
    end.answers(1)
    end.say(Peer(b"3", "another key"), hello())
    assert end.answers(1)[0].code == "not-your-session"


def test_a_device_that_comes_back_is_answered_on_its_new_connection(served):
    end = served()
    end.say(PEER, hello())
    end.answers(1)
    end.say(OTHER, hello())
    end.answers(1)
    end.say(PEER, Ping(nonce=1))
    assert end.answers(1)[0].code == "hello-first"
    end.say(OTHER, Ping(nonce=2))
    assert end.answers(1) == [Pong(nonce=2)]


def test_where_all_places_are_taken_only_a_failed_or_a_silent_session_makes_room(served):
    end = served(max_sessions=1)
    end.say(PEER, hello(1))
    end.answers(1)
    end.say(OTHER, hello(2))
    assert end.answers(1)[0].code == "too-many-sessions"
    end.only().last_heard -= 61
    end.say(OTHER, hello(2))
    assert isinstance(end.answers(1)[0], Welcome)


def test_a_plan_whose_smallest_batch_exceeds_the_share_is_refused(served):
    end = served(share_bytes=1000)
    end.say(PEER, hello())
    assert end.answers(1)[0].code == "over-quota"


def test_credit_is_as_many_of_the_largest_batches_as_fit(served):
    end = served(share_bytes=training_bytes(plan()) + 3 * batch_bytes(plan()), credit=8)
    end.say(PEER, hello())
    assert end.answers(1)[0].credit == 3


def test_what_a_full_queue_does_not_take_waits_for_a_device_that_lives(served):
    end = served()
    end.say(PEER, hello())
    end.answers(1)
    end.socket.full = True
    end.say(PEER, Ping(nonce=1))
    end.service._flush()
    end.service._flush()
    end.socket.full = False
    assert end.answers(1) == [Pong(nonce=1)]


def test_what_a_silent_device_does_not_take_is_left_out(served):
    end = served()
    end.say(PEER, hello())
    end.answers(1)
    end.socket.full = True
    end.say(PEER, Ping(nonce=1))
    end.only().last_heard -= 11
    end.service._tick()
    end.socket.full = False
    end.say(PEER, Ping(nonce=2))
    assert end.answers(1) == [Pong(nonce=2)]


def test_an_idle_session_is_put_to_sleep(served):
    end = served()
    end.say(PEER, hello())
    end.answers(1)
    end.service._tick()
    end.only().last_heard -= TIMINGS.idle_s
    end.service._tick()
    assert not end.service._places.all()


# ---------------------------------------------------------------------- what one peer does, no other peer feels


ERRORS = [
    RuntimeError("x"),
    TypeError("x"),
    MemoryError(),
    OSError(28, "disk full"),
    KeyError("x"),
    ZeroDivisionError(),
]
ERRORS += [RecursionError(), AssertionError(), SaveFailed("/home/somebody: full"), FolderBusy("busy"), BadInput("no")]
HANDLERS = ["_hello", "_begin", "_new_place", "_credit", "_bye"]


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_error_of_any_handler_ends_one_session_and_never_the_loop(served, monkeypatch, caplog, handler, error):
    end = served()
    end.say(OTHER, hello(2))
    end.answers(1)

    def fails(*_):
        raise error

    if handler == "_bye":
        end.say(PEER, hello(1))
        end.answers(1)
    with monkeypatch.context() as broken:
        broken.setattr(end.service, handler, fails)
        end.say(PEER, Bye() if handler == "_bye" else hello(1))
    (said,) = end.answers(1)
    assert (said.code, said.fatal) == ("server-trouble", True)
    assert type(error).__name__ in said.sentence
    assert "somebody" not in said.sentence
    assert "Traceback" in caplog.text
    end.say(OTHER, Ping(nonce=1))
    assert end.answers(1) == [Pong(nonce=1)]
    end.say(PEER, hello(1))
    assert isinstance(end.answers(1)[0], Welcome)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("part", ["receive", "damaged", "replies"])
def test_any_error_of_a_session_s_thread_ends_that_session_alone(served, monkeypatch, part, error):
    end = served()
    for peer, number in ((PEER, 1), (OTHER, 2)):
        end.say(peer, hello(number))
        end.answers(1)
    broken = end.service._places.at(PEER).thread
    monkeypatch.setattr(broken, part, lambda *_, **__: (_ for _ in ()).throw(error))
    if part == "damaged":
        end.service._handle(PEER, [memoryview(b"x"), memoryview(b"y")])
    else:
        end.say(PEER, Ping(nonce=1))
    assert "server-trouble" in [said.code for said in end.answers(1) if isinstance(said, Error)]
    end.say(OTHER, Ping(nonce=2))
    assert Pong(nonce=2) in end.answers(1)


def test_a_code_that_waits_for_a_file_holds_nobody_up(served):
    free = threading.Event()
    end = served(SimpleNamespace(knows=lambda key: key == "key", use_code=lambda key, code: free.wait(WAIT_S)))
    end.say(Peer(b"9", "new"), hello(9))
    started = time.monotonic()
    end.say(PEER, hello(1))
    assert isinstance(end.answers(1)[0], Welcome)
    assert time.monotonic() - started < 2
    free.set()
    assert isinstance(end.answers(1)[0], Welcome)


def test_a_connection_has_one_session(served):
    end = served(max_sessions=4)
    for number in range(20):
        end.say(Peer(b"1", ""), hello(number))
        assert isinstance(end.answers(1)[0], Welcome)
    assert len(end.service._places.all()) == 1


def test_a_key_has_a_few_sessions_and_leaves_room_for_others(served):
    end = served(max_sessions=8)
    codes = []
    for number in range(20):
        end.say(Peer(bytes([number]), "key"), hello(number))
        codes.append(getattr(end.answers(1)[0], "code", "welcome"))
    assert codes == ["welcome"] * 4 + ["too-many-sessions"] * 16
    end.say(Peer(b"other", "another"), hello(99))
    assert isinstance(end.answers(1)[0], Welcome)
    end.service._places.at(Peer(bytes([0]), "key")).thread.last_heard -= 6
    end.say(Peer(b"again", "key"), hello(50))
    assert isinstance(end.answers(1)[0], Welcome)


@pytest.mark.parametrize(("per_device", "most"), [(1, 1), (3, 3), (9, 4)])
def test_how_many_sessions_a_key_has_is_a_setting_and_half_of_the_places_at_most(served, per_device, most):
    end = served(max_sessions=8, per_device=per_device)
    codes = []
    for number in range(9):
        end.say(Peer(bytes([number]), "key"), hello(number))
        codes.append(getattr(end.answers(1)[0], "code", "welcome"))
    assert codes == ["welcome"] * most + ["too-many-sessions"] * (9 - most)


def test_another_key_never_finds_a_session_of_the_same_name(tmp_path):
    assert owner_folder("key") != owner_folder("another key")
    assert len(owner_folder("key")) == 32
