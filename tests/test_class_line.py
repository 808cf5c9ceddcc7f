"""Where all places are taken, a class's devices wait in line: in order, told their number, and never at a dead one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import mobillm_kit.server.service as service_module
from mobillm_kit.channel.ends import Peer
from mobillm_kit.channel.frames import to_frames
from mobillm_kit.channel.messages import Bye, Error, Ping, Pong, Welcome
from mobillm_kit.classroom.line import LineService
from tests.test_service_loop import PlayedSocket, PlayedTrainer, Shares, hello, until


class Lossy(PlayedSocket):
    """A socket of which some peers are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: set[bytes] = set()

    def send(self, peer, frames):
        return peer.route not in self.gone and super().send(peer, frames)


@pytest.fixture
def line(tmp_path, monkeypatch):
    """A service of one place whose loop the test turns by hand."""
    monkeypatch.setattr(service_module, "SessionTrainer", lambda *_: PlayedTrainer())
    socket, door = Lossy(), SimpleNamespace(knows=lambda key: False, use_code=lambda key, code: code != "wrong")
    service = LineService(socket, Shares(folder=tmp_path, max_sessions=1, per_device=2), door)

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
