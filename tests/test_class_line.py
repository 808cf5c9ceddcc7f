"""Where all places are taken, a class's devices wait in line: in order, told their number, and never at a dead one."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

import mobillm_kit.device.client as client_module
import mobillm_kit.server.service as service_module
from mobillm_kit.channel.ends import Peer
from mobillm_kit.channel.frames import to_frames
from mobillm_kit.channel.messages import VERSION, Bye, Error, Ping, Pong, Welcome, WireError
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.classroom.folder import ClassSettings
from mobillm_kit.classroom.line import LineService
from mobillm_kit.device.client import ServerClient
from mobillm_kit.errors import ServerGone
from mobillm_kit.link.timeline import Timeline
from tests.faults.flood import batch
from tests.test_service_loop import PlayedSocket, PlayedTrainer, hello, until


class Lossy(PlayedSocket):
    """A socket of which some peers are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: set[bytes] = set()

    def send(self, peer, frames):
        return peer.route not in self.gone and super().send(peer, frames)


class Few(ClassSettings, frozen=True, kw_only=True):
    """A class of one place."""

    max_sessions: int = 1
    per_device: int = 2
    share_bytes: int = 2**29


@pytest.fixture
def line(tmp_path, monkeypatch, request):
    """A service of one place whose loop the test turns by hand; a test may ask for ``line_minutes``."""
    monkeypatch.setattr(service_module, "SessionTrainer", lambda *_: PlayedTrainer())
    socket, door = Lossy(), SimpleNamespace(knows=lambda key: False, use_code=lambda key, code: code != "wrong")
    service = LineService(socket, Few(folder=tmp_path, line_minutes=getattr(request, "param", 15)), door)

    def say(peer: Peer, message) -> None:
        service._handle(peer, [memoryview(bytes(frame)) for frame in to_frames(message)])

    def answers(count: int) -> list[tuple[bytes, object]]:
        def found() -> list:
            service._tick()
            new, socket.sent = socket.sent, []
            return new

        return [(peer.route, message) for peer, message in until(found, lambda got: len(got) >= count)]

    yield SimpleNamespace(service=service, socket=socket, say=say, answers=answers)
    service._end()


def peer(number: int, key: str = "") -> Peer:
    return Peer(bytes([number]), key or f"key {number}")


def numbers(found) -> list[tuple[int, str]]:
    """Who was told which number, by the sentences."""
    told = [(route[0], message) for route, message in found if isinstance(message, Error)]
    assert not any(message.fatal for _, message in told)
    return [(route, message.sentence.split("number ")[-1].split(" in")[0]) for route, message in told]


def begun(line, *others: int) -> None:
    """The first has the place, and the others came in this order."""
    line.say(peer(1), hello(1))
    ((_, welcome),) = line.answers(1)  # and nothing else is said to who need not wait
    assert isinstance(welcome, Welcome)
    for place, number in enumerate(others, 1):
        line.say(peer(number), hello(number))
        assert numbers(line.answers(1)) == [(number, str(place))]


def test_they_come_in_in_the_order_in_which_they_came_and_the_others_move_up(line):
    begun(line, 2, 3, 4)
    line.say(peer(3), Ping(nonce=5))
    assert line.answers(1) == [(b"\3", Pong(nonce=5))]  # it is there, and waits
    line.say(peer(1), Bye())
    found = line.answers(5)
    assert (b"\1", Bye()) in found
    assert [route for route, message in found if isinstance(message, Welcome)] == [b"\2"]
    assert numbers(found) == [(2, "It is your turn."), (3, "1"), (4, "2")]


def test_who_asks_again_is_told_again_and_stays_where_it_is(line):
    begun(line, 2, 3)
    line.say(peer(3), hello(3))
    assert numbers(line.answers(1)) == [(3, "2")]
    line.say(peer(9, "key 2"), hello(2))  # a new connection of the first in line
    assert numbers(line.answers(1)) == [(9, "1")]
    line.say(peer(1), Bye())
    assert [r for r, message in line.answers(4) if isinstance(message, Welcome)] == [b"\x09"]


def test_who_has_a_place_asks_and_comes_back_past_the_line(line):
    begun(line, 2, 3)
    for connection in (peer(1), peer(9, "key 1")):
        line.say(connection, hello(1))
        ((route, welcome),) = line.answers(1)
        assert (route, type(welcome)) == (connection.route, Welcome)
    assert len(line.service._line) == 2


def test_who_is_gone_holds_nobody_up(line):
    begun(line, 2, 3, 4)
    line.socket.gone = {b"\2", b"\3"}
    line.say(peer(1), Bye())
    found = line.answers(3)
    assert [route for route, message in found if isinstance(message, Welcome)] == [b"\4"]
    assert not line.service._asked
    assert not line.service._line


def test_a_silent_session_makes_room_for_the_line(line):
    begun(line, 2)
    (place,) = line.service._places.all()
    place.thread.last_heard -= 61
    assert [route for route, message in line.answers(2) if isinstance(message, Welcome)] == [b"\2"]


def test_one_device_does_not_fill_the_line_and_a_stranger_does_not_stand_in_it(line):
    begun(line, 2)
    line.say(peer(3, "key 2"), hello(3))
    assert numbers(line.answers(1)) == [(3, "2")]
    line.say(peer(4, "key 2"), hello(4))
    ((_, error),) = line.answers(1)
    assert (error.code, error.fatal) == ("too-many-sessions", True)
    line.say(peer(5), hello(5, code="wrong"))
    ((_, error),) = line.answers(1)
    assert (error.code, error.fatal) == ("bad-code", True)
    assert len(line.service._line) == 2


@pytest.mark.parametrize("line", [0.01], indirect=True)  # 0.6 s
def test_who_has_waited_as_long_as_the_class_allows_is_told_so_and_holds_nobody_up(line):
    line.say(peer(1), hello(1))
    line.answers(1)
    line.say(peer(2), hello(2))
    ((_, told),) = line.answers(1)
    assert told.sentence.endswith("are taken: you are number 1 in line. You wait 0.01 minutes at most.")
    time.sleep(0.3)
    line.say(peer(9, "key 2"), hello(2))  # a new connection waits on, and not anew
    line.say(peer(3), hello(3))
    assert numbers(line.answers(2)) == [(9, "1"), (3, "2")]
    (over,) = (message for route, message in line.answers(2) if route == b"\x09")
    assert (over.code, over.fatal) == ("too-many-sessions", True)
    assert over.sentence == "No place of this class became free within 0.01 minutes."
    assert "Come back later with the same command" in over.remedy
    assert [route for route, _ in line.service._line.items()] == [b"\3"]
    line.say(peer(1), Bye())
    assert b"\3" in [route for route, message in line.answers(3) if isinstance(message, Welcome)]


class ToldSocket:
    """A connection to a server that says the same again and again, and welcomes who has waited long enough."""

    connected, connections = True, 1

    def __init__(self, says: Error | Pong, welcome_after_s: float) -> None:
        self.says = says
        self.welcome_at = time.monotonic() + welcome_after_s

    def wait_connected(self, timeout_s: float) -> None: ...

    def send(self, frames, timeout_s: float) -> bool:
        return True

    def receive(self, timeout_s: float) -> list[memoryview]:
        time.sleep(timeout_s)
        welcome = Welcome(version=VERSION, resume=0, credit=4, budget_bytes=2**30, held=[], first=None)
        message = self.says if time.monotonic() < self.welcome_at else welcome
        return [memoryview(bytes(frame)) for frame in to_frames(message)]

    def wake(self) -> None: ...

    def close(self, flush_s: float = 0.0) -> None: ...


@pytest.mark.parametrize("told", [True, False])
def test_a_device_waits_as_long_as_it_is_told_that_it_stands_in_line_and_not_for_a_server_that_only_answers(
    told, monkeypatch
):
    monkeypatch.setattr(client_module, "TIMINGS", replace(TIMINGS, stuck_s=0.3, tick_s=0.02))
    line = WireError("too-many-sessions", "You are number 1 in line.").said(fatal=False)
    socket = ToldSocket(line if told else Pong(nonce=1), welcome_after_s=1.0 if told else 60.0)
    client = ServerClient(lambda: socket, hello(), [], Timeline(), lambda sequence, held: batch(sequence))
    try:
        if told:
            client.send(1)
            assert time.monotonic() > socket.welcome_at
        else:
            with pytest.raises(ServerGone, match="has trained nothing for"):
                client.send(1)
    finally:
        client.close()
