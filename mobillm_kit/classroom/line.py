"""A service whose devices wait in line where all places are taken, each told its number, in place of a refusal.

Who has a place is trained when its student's turn comes (``turns.py``).

    hello ─► the door's answer ─► a place, or the end of the line ─► a place, or its time in line is over

A number in line is an answer that is not given yet: the service keeps such a device's connection and answers its pings.

Knows: the service, its places.  Knows nothing of: keys' names, how a batch is trained.
Taught in: notebooks/12_class_lab.ipynb
"""

import time
from concurrent.futures import Future

from mobillm_kit.channel.ends import Peer, ServerSocket
from mobillm_kit.channel.frames import to_frames
from mobillm_kit.channel.keys import Door
from mobillm_kit.channel.messages import Hello, WireError
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.classroom.folder import ClassSettings
from mobillm_kit.classroom.turns import InTurn, Turns
from mobillm_kit.common import usable_cores
from mobillm_kit.server.service import Service, log
from mobillm_kit.server.session import MakeTrainer, Session, TrainingThread

_FULL = "Come back later with the same command; whoever runs the class can allow more sessions, or a longer wait."


class LineService(Service):
    """First come, first served, for ``line_minutes``; of one key so many wait as may train."""

    def __init__(self, socket: ServerSocket, settings: ClassSettings, door: Door | None = None) -> None:
        super().__init__(socket, settings, door)
        self._limit = f"{settings.line_minutes:g} minutes"
        self._limit_s = 60 * settings.line_minutes
        self._line: dict[bytes, tuple[Future[bool], Peer, Hello, float]] = {}
        """By connection, in the order in which the door let them in; and since when they wait."""
        self._told: dict[bytes, int] = {}
        """The number that each heard last."""
        self.waiting: tuple[str, ...] = ()
        """Keys in the order of the line; any thread may read it."""
        self._pace = f"held back: {settings.steps_per_second:g} steps a second at most"
        self._turns = Turns(max(1, usable_cores() - 1), settings.steps_per_second)  # a core is left to the loop

    def held(self, key: str) -> str:
        """Why a key's steps wait longer than for their turn, from any thread; empty where they do not."""
        return self._pace if self._turns.held(key) else ""

    def _hello(self, peer: Peer, hello: Hello, payloads: list[memoryview]) -> None:
        """Who waits and asks again is told again."""
        if peer.route in self._told:
            self._told[peer.route] = -1
        super()._hello(peer, hello, payloads)

    def _admit(self) -> None:
        self._line_up()
        number = 0
        for route, (turn, peer, hello, since) in list(self._line.items()):
            with self._fence(peer):
                free = self._has_place(peer, hello.session) or (number == 0 and self._has_room())
                if not self._tell(peer, 0 if free else number + 1):  # gone while it waited
                    del self._line[route], self._asked[route]
                elif free:
                    del self._line[route]
                    turn.set_result(True)
                    super()._admit()
                elif time.monotonic() - since > self._limit_s:
                    del self._line[route], self._told[route]
                    problem = f"No place of this class became free within {self._limit}."
                    turn.set_exception(WireError("too-many-sessions", problem, _FULL))
                else:
                    number += 1
        super()._admit()
        self.waiting = tuple(peer.key for _, peer, *_ in self._line.values())

    def _thread(self, key: str, session: Session, make: MakeTrainer) -> TrainingThread:
        return InTurn(self._turns, key, session, make, wake=self._socket.wake, threads=self._settings.threads)

    def _line_up(self) -> None:
        """Whom the door has let in goes to the end of the line."""
        for route, (answer, peer, hello, payloads) in list(self._asked.items()):
            if route in self._line or not answer.done() or answer.exception() or not answer.result():
                continue  # those who stay out are told so by the service
            turn: Future[bool] = Future()
            self._asked[route] = turn, peer, hello, payloads
            before = [
                at
                for at, (_, other, said, _) in self._line.items()
                if (other.key, said.session) == (peer.key, hello.session)
            ]
            if before:  # the same session on a new connection: it keeps its number
                del self._asked[before[0]]
                self._told.pop(before[0], None)
                since = self._line[before[0]][3]
                self._line = {route if at == before[0] else at: one for at, one in self._line.items()}
                self._line[route] = turn, peer, hello, since
            elif sum(other.key == peer.key for _, other, *_ in self._line.values()) >= self._settings.per_device:
                turn.set_exception(WireError("too-many-sessions", "This device waits in line already.", "Be patient."))
            else:
                self._line[route] = turn, peer, hello, time.monotonic()

    def _has_place(self, peer: Peer, session: str) -> bool:
        """Whether that session is being trained, and its device asks, or is back on a new connection."""
        return any(place.name == session or place.peer.route == peer.route for place in self._places.all())

    def _has_room(self) -> bool:
        """Whether another session can begin now."""
        places = self._places.all()
        left = any(place.thread.failed or place.silent_s > TIMINGS.silent_s for place in places)
        return len(places) < self._settings.max_sessions or left

    def _tell(self, peer: Peer, number: int) -> bool:
        """Say the number in line where it has changed, 0 as the turn comes; False where nobody is there any more."""
        if self._told.get(peer.route, 0) == number:  # who never waited is not called either
            return True
        if peer.route not in self._told:
            log.info("waits", extra={"peer": peer, "why": f"number {number} in line"})
        where = f"All places of this class are taken: you are number {number} in line. You wait {self._limit} at most."
        words = where if number else "It is your turn."
        self._socket.know(peer, True)  # no stranger: it may wait longer
        self._told[peer.route] = number
        said = self._socket.send(peer, to_frames(WireError("too-many-sessions", words).said(fatal=False)))
        if not (said and number):
            del self._told[peer.route]
        return said
