"""Whose sessions a server trains, on which connections, and who makes room for whom.

    a connection   one session            a key   a few, never more than half of the server's

Knows: connections, keys, training threads.  Knows nothing of: messages, plans, how a batch is trained.
Taught in: notebooks/08_device_and_server.ipynb
"""

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from mobillm_kit.channel.ends import Peer, ServerSocket
from mobillm_kit.channel.messages import WireError, refusal
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.server.session import TrainingThread

log = logging.getLogger(__name__)


@dataclass
class Place:
    """A session that is being trained."""

    name: str
    owner: str
    """The key that began it; empty on a plain socket."""
    thread: TrainingThread
    peer: Peer
    """Where its device is at present."""
    unsent: deque[Sequence[bytes | bytearray | memoryview]] = field(default_factory=deque)
    n_bytes: int = 0
    """What its device has sent."""

    @property
    def silent_s(self) -> float:
        """Seconds since its device said anything; devices ping every second."""
        return time.monotonic() - self.thread.last_heard


class Places:
    """The sessions of one server, ``most`` at a time, in all and of a key; ``socket`` is told where sessions stand."""

    def __init__(self, socket: ServerSocket, most: int, most_per_key: int) -> None:
        self._socket = socket
        self._most, self._most_per_key = most, most_per_key
        self._by_name: dict[str, Place] = {}
        self._by_route: dict[bytes, Place] = {}

    def all(self) -> list[Place]:
        """Every session; they may be dropped meanwhile."""
        return list(self._by_name.values())

    def at(self, peer: Peer) -> Place | None:
        """The session that stands on a connection."""
        return self._by_route.get(peer.route)

    def of(self, peer: Peer, name: str) -> Place | None:
        """A session that this key began; the WireError ``not-your-session`` for another key's."""
        place = self._by_name.get(name)
        if place is not None and place.owner != peer.key:
            raise refusal("another-key")
        return place

    def make_room(self, peer: Peer, name: str) -> None:
        """Drop what is left or has failed, to begin another session; ``too-many-sessions`` where all are at work."""
        for left in (self.at(peer), self._by_name.get(name)):
            if left is not None:
                self.drop(left, "failed" if left.thread.failed else "began another session")
        own = [place for place in self.all() if peer.key and place.owner == peer.key]
        most = max(1, min(self._most_per_key, self._most // 2))
        if len(own) >= most:
            self._drop_quietest(own, TIMINGS.left_s, refusal("sessions-of-key", most=most))
        if len(self._by_name) >= self._most:
            self._drop_quietest(self.all(), TIMINGS.silent_s, refusal("sessions", most=self._most))

    def take(self, peer: Peer, name: str, thread: TrainingThread) -> Place:
        """Give a session a place."""
        self._by_name[name] = place = Place(name, peer.key, thread, peer)
        log.info("joined", extra={"place": place})
        return place

    def bind(self, place: Place, peer: Peer) -> bool:
        """A session's device is here now; whether it was here before."""
        again = self._by_route.get(peer.route) is place
        self._let_go(place)
        place.peer = peer
        place.unsent.clear()
        self._by_route[peer.route] = place
        self._socket.know(peer, True)
        return again

    def drop(self, place: Place, why: str) -> None:
        """End a session's training after the step it is in; its checkpoints stay."""
        if self._by_name.pop(place.name, None) is not None:
            log.info("left", extra={"place": place, "why": why})
        place.thread.close()
        self._let_go(place)

    def drop_idle(self, idle_s: float) -> None:
        """Those whose devices have said nothing for so long."""
        for place in self.all():
            if place.silent_s > idle_s:
                self.drop(place, "silent")

    def end_all(self) -> None:
        """Every session ends the step it is in; waits for that."""
        for place in self.all():
            place.thread.close()
        deadline = time.monotonic() + TIMINGS.end_s
        for place in self.all():
            place.thread.wait_closed(max(0.0, deadline - time.monotonic()))
            self.drop(place, "the server ended")

    def _drop_quietest(self, places: Sequence[Place], silent_s: float, otherwise: WireError) -> None:
        place = max(places, key=lambda place: (place.thread.failed, place.silent_s))
        if not place.thread.failed and place.silent_s <= silent_s:
            raise otherwise
        self.drop(place, "failed" if place.thread.failed else "silent, and others waited")

    def _let_go(self, place: Place) -> None:
        if self._by_route.get(place.peer.route) is place:
            del self._by_route[place.peer.route]
            self._socket.know(place.peer, False)
