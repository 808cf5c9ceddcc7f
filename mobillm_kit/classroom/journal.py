"""What a class's server says: a line on the screen, an object a line in a log that turns over, a count in the roster.

    {"at": "2026-11-27T09:15:02.113+00:00", "event": "joined", "student": "Ada", "key": "…", "session": "…"}

The server's rooms log what happens to places and peers; here a key becomes a student's name.  All writing is done by a
thread of its own, so that a slow disk holds no training up.

Knows: log records, names, the roster.  Knows nothing of: sockets, messages, who may come in.
"""

import logging
import logging.handlers
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec

from mobillm_kit.classroom.database import RosterError
from mobillm_kit.classroom.roster import Roster
from mobillm_kit.common import MIB
from mobillm_kit.server.places import Place

log = logging.getLogger(__name__)

FILE_BYTES = 4 * MIB
"""Of log.jsonl; then it becomes log.jsonl.1, and so on."""
FILES = 5
MOST_WAITING = 5000
"""Events that wait to be written."""
MOST_LEFT = 500
"""Sessions that have ended and wait to be looked at once more."""
QUIET_S = 60.0
"""The same trouble is told so often at most."""
STRANGER = "a device that nobody knows"


class Told(logging.handlers.QueueHandler):
    """Makes an event of a record, at once and in the thread where it happens: places and names change."""

    def __init__(self, queue: "SimpleQueue[Any]", name_of: Callable[[str], str | None]) -> None:
        super().__init__(queue)
        self._waiting = queue
        self._live: dict[str, Place] = {}
        self._left: deque[Place] = deque(maxlen=MOST_LEFT)
        self._name_of = name_of

    def enqueue(self, record: logging.LogRecord) -> None:
        """Never waits, and keeps no more than so many: whoever knocks a thousand times a second costs no memory."""
        if self._waiting.qsize() < MOST_WAITING:
            self._waiting.put_nowait(record)

    def progress(self) -> list[tuple[str, int, int]]:
        """Session, steps and bytes of each that is trained now; from any thread."""
        return [(place.name, len(place.thread.losses), place.n_bytes) for place in self.live()]

    def live(self) -> list[Place]:
        """What is trained now; from any thread."""
        return list(self._live.values())

    def left(self) -> list[Place]:
        """What has ended since this was asked last; from one thread."""
        return [self._left.popleft() for _ in range(len(self._left))]

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """The record with its event, and nothing that is still in use."""
        place, peer, error = (getattr(record, name, None) for name in ("place", "peer", "error"))
        key = place.owner if place else peer.key if peer else ""
        at = datetime.fromtimestamp(record.created, UTC)
        event: dict[str, Any] = {"at": at.isoformat(timespec="milliseconds")}
        if place or peer:
            event |= {"event": record.msg, "student": self._name_of(key) or "", "key": key}
        else:
            event |= {"event": "trouble", "said": self.format(record)}
        if peer:
            event["why"] = error.problem if error else getattr(record, "why", "")
        if error:
            event["code"] = error.code
        if isinstance(place, Place):
            event |= {"session": place.name, "planned": place.thread.plan.steps}
            self._live[place.name] = place
            if record.msg == "left":
                del self._live[place.name]
                self._left.append(place)
                event |= {"why": getattr(record, "why", ""), "steps": len(place.thread.losses), "bytes": place.n_bytes}
        plain = logging.LogRecord(record.name, record.levelno, "", 0, "", (), None)
        plain.event = event
        return plain


class _Lines(logging.handlers.RotatingFileHandler):
    """The structured log; a disk that takes no more costs a sentence on the screen, now and then."""

    said_at = -QUIET_S

    def handleError(self, record: logging.LogRecord) -> None:
        """Instead of a traceback for each line."""
        if time.monotonic() - self.said_at >= QUIET_S:
            self.said_at = time.monotonic()
            print(f"{self.baseFilename}: could not be written ({sys.exc_info()[1]}).", file=sys.stderr, flush=True)


class _AsJson(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One object."""
        return msgspec.json.encode(event_of(record)).decode()


class _AsLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """A line for the instructor's eyes."""
        event = event_of(record)
        who = event.get("student") or STRANGER
        why = f": {event['why']}" if "why" in event else ""
        verb = {"refused": "was refused"}.get(event["event"], event["event"])
        said = event["said"].splitlines()[0] if event["event"] == "trouble" else f"{who} {verb}{why}"
        return f"{time.strftime('%H:%M:%S')}  {said}"


class _Counts(logging.Handler):
    """Keeps in the roster what happened; where that cannot be used, says so and goes on."""

    def __init__(self, roster: Roster) -> None:
        super().__init__()
        self._roster = roster
        self._said_at = -QUIET_S
        self._given_up = False
        self.ending = False
        """The server ends: a list that somebody holds is then waited for once, and not for each event."""

    def emit(self, record: logging.LogRecord) -> None:
        """One event."""
        event = event_of(record)
        if event["event"] == "trouble" or (self.ending and self._given_up):
            return
        try:
            self._roster.count(event["key"], event["event"])
            if event["event"] == "joined":
                self._roster.session_began(event["session"], event["key"], event["planned"])
            elif event["event"] == "left":
                self._roster.session_ended(event["session"], event["why"], event["steps"], event["bytes"])
        except RosterError as error:
            self._given_up = self.ending
            if time.monotonic() - self._said_at >= QUIET_S:
                self._said_at = time.monotonic()
                log.warning("%s", error)


def event_of(record: logging.LogRecord) -> dict[str, Any]:
    """What the journal made of a record."""
    return record.event  # type: ignore[attr-defined]


def _wanted(record: logging.LogRecord) -> bool:
    """Warnings and events; not what happens of itself when a server was started again under its devices."""
    told = hasattr(record, "place") or hasattr(record, "peer")
    return record.levelno >= logging.WARNING or (
        told and getattr(getattr(record, "error", None), "code", "") != "hello-first"
    )


@contextmanager
def journal(path: Path, roster: Roster, name_of: Callable[[str], str | None], *more: logging.Handler) -> Iterator[Told]:
    """Tell, for the time of a ``with`` block, what the server's rooms log; gives what knows who trains now.

    ``more`` handlers hear the same events, on the journal's own thread.
    """
    file = _Lines(path, maxBytes=FILE_BYTES, backupCount=FILES, encoding="utf-8", delay=True)
    file.setFormatter(_AsJson())
    screen = logging.StreamHandler(sys.stdout)
    screen.setFormatter(_AsLine())
    told = Told(SimpleQueue(), name_of)
    told.addFilter(_wanted)
    counts = _Counts(roster)
    listener = logging.handlers.QueueListener(told.queue, file, screen, counts, *more)
    rooms = logging.getLogger("mobillm_kit")
    level = rooms.level
    rooms.addHandler(told)
    rooms.setLevel(logging.INFO)
    listener.start()
    try:
        yield told
    finally:
        counts.ending = True
        listener.stop()
        rooms.removeHandler(told)
        rooms.setLevel(level)
        file.close()
