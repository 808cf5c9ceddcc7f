"""How each student of a class stands, once a second, as the two texts that the board's pages draw.

    the list (SQLite) + sessions in training + the line + what the journal told  ─►  the class's view, the instructor's

It runs on a thread beside the service's and reads what others may read at any time: the loop never waits for it.

Knows: the roster, places, events.  Knows nothing of: browsers, links, how a batch is trained.
Taught in: notebooks/12_class_lab.ipynb
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from mobillm_kit.classroom.curve import Curve
from mobillm_kit.classroom.journal import Told, event_of
from mobillm_kit.classroom.roster import Line, Roster, Run
from mobillm_kit.common import MIB
from mobillm_kit.server.places import Place

MOST_EVENTS = 20
"""Of what happened last, for the instructor."""
QUIET_S = 5.0
"""A device that pings every second has something wrong after so long."""
RATE_S = 5.0
"""Steps per second are counted over so long."""
MEASURES = {"server": "loss", "residual": "squared error", "device": ""}
"""What the server knows of a step, by where the labels are."""
TROUBLE = ("failed", "an error of the server")
"""Reasons to leave that are nobody's wish."""


class Recent(logging.Handler):
    """What the journal told last, without what goes well; written by its thread, read by another."""

    def __init__(self) -> None:
        super().__init__()
        self._events: deque[dict[str, Any]] = deque(maxlen=MOST_EVENTS)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one event."""
        event = event_of(record)
        if event["event"] != "joined":
            why = event.get("why") or event.get("said", "").partition("\n")[0]
            key = event.get("key", "")[:8]
            self._events.append({"at": event["at"], "event": event["event"], "student": event.get("student", "")})
            self._events[-1] |= {"why": why, "key": key}

    def newest_first(self) -> list[dict[str, Any]]:
        """All that is kept."""
        return list(self._events)[::-1]


class Standing:
    """The class at a moment.

    Args:
        title: name of the class.
        told: knows who is trained now.
        recent: what happened last.
        waiting: keys in line, in order.
        name_of: student of a key.
        held: why a key's steps wait longer than for their turn; empty where they do not.
    """

    def __init__(
        self,
        title: str,
        roster: Roster,
        told: Told,
        recent: Recent,
        waiting: Callable[[], Sequence[str]],
        name_of: Callable[[str], str | None],
        held: Callable[[str], str] = lambda key: "",
    ) -> None:
        self._title, self._roster, self._told, self._recent = title, roster, told, recent
        self._waiting, self._name_of, self._held = waiting, name_of, held
        self._curves: dict[str, tuple[str, Curve]] = {}
        """Of each session what is measured, and how it went."""
        self._done: deque[tuple[float, int]] = deque()
        self._steps: dict[str, int] = {}

    def look(self) -> tuple[bytes, bytes]:
        """The class's view and the instructor's, as JSON; RosterError where the list cannot be used."""
        lines, last, live = self._roster.lines(), self._roster.last_runs(), self._told.live()
        self._follow(live, last)
        training = {name: place for place in live if (name := self._name_of(place.owner))}
        line = [self._name_of(key) for key in self._waiting()]
        rows = [
            self._row(at, training.get(at.name), last.get(at.name), line)
            for at in lines
            if at.state != "–"  # who came and is nobody's student
        ]
        states = [row["state"] for row in rows]
        counts = {state: states.count(state) for state in ("trains", "waits", "done")}
        seen = {"title": self._title, "at": time.time(), "rate": self._rate(), "counts": counts, "students": rows}
        strangers = sum(at.counts.get("refused", 0) for at in lines if at.state == "–")
        own = seen | {"controls": True, "strangers": strangers, "events": self._recent.newest_first()}
        return msgspec.json.encode(seen), msgspec.json.encode(own)

    def _follow(self, live: Sequence[Place], last: dict[str, Run]) -> None:
        """Curves of what is trained, and of each student's last run; steps since the last look."""
        kept = {place.name for place in live} | {run.session for run in last.values()}
        self._curves = {session: curve for session, curve in self._curves.items() if session in kept}
        new = 0
        for place in (*self._told.left(), *live):  # who has left since the last look has trained some more steps
            session, losses = place.name, place.thread.losses
            n = len(losses)
            new += max(0, n - self._steps.get(session, n))  # one that comes may bring the steps of an earlier life
            self._steps[session] = n
            measure, curve = self._curves.setdefault(session, (MEASURES[place.thread.plan.labels], Curve()))
            if measure:
                curve.follow(losses)
        self._steps = {place.name: self._steps[place.name] for place in live}
        self._done.append((time.monotonic(), new))
        while self._done[-1][0] - self._done[0][0] > RATE_S:
            self._done.popleft()

    def _rate(self) -> float:
        """Steps per second of the whole class."""
        seconds = self._done[-1][0] - self._done[0][0]
        return sum(new for _, new in list(self._done)[1:]) / seconds if seconds else 0.0

    def _row(self, at: Line, place: Place | None, last: Run | None, line: Sequence[str | None]) -> dict[str, Any]:
        """What one line of the table says."""
        state, note = _state(at, place, last, line)
        if place is not None and state == "trains":
            note = self._held(place.owner)
        session = place.name if place else last.session if last else ""
        steps = len(place.thread.losses) if place else last.steps if last else 0
        planned = place.thread.plan.steps if place else last.planned if last else 0
        row: dict[str, Any] = {"name": at.name, "state": state, "note": note, "step": steps, "steps": planned}
        row |= {"mib": round(at.n_bytes / MIB, 1), "runs": at.sessions, "removed": at.state == "removed"}
        row |= {event: at.counts.get(event, 0) for event in ("refused", "left")}
        row["measure"], curve = self._curves.get(session, ("loss", Curve()))
        if curve.seen:
            points = [float(f"{point:.3g}") for point in curve.points()]
            row |= {"per": curve.per, "points": points, "lately": float(f"{curve.lately:.3g}")}
        return row


def _state(at: Line, place: Place | None, last: Run | None, line: Sequence[str | None]) -> tuple[str, str]:
    """A word, and what it leaves open."""
    if place is not None and place.thread.failed:
        return "error", "the device's screen says why"
    if place is not None:
        quiet = place.silent_s > QUIET_S
        return ("silent", f"no answer for {place.silent_s:.0f} s") if quiet else ("trains", "")
    if at.state == "removed":
        return "removed", "let in no longer"
    if at.name in line:
        return "waits", f"number {line.index(at.name) + 1} in line"
    if last is None:
        return ("joined", "has not trained yet") if at.state == "joined" else ("invited", "not here yet")
    if last.why in TROUBLE:
        return "error", last.why
    if last.complete:
        return "done", ""
    if last.ended is None:  # it joined a moment ago
        return "trains", ""
    if last.why == "the server ended":
        return "silent", "the server began anew, its device is not back yet"
    return "left", "stopped before its end" if last.why == "said farewell" else last.why
