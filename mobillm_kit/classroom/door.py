"""Who may train in a class: one code per student, spent once, then the device's key.

Knows: the roster, keys, codes.  Knows nothing of: sockets, sessions, how a student is shown.
"""

import logging
from pathlib import Path

from mobillm_kit.channel.keys import Door
from mobillm_kit.channel.messages import WireError
from mobillm_kit.classroom.database import RosterError
from mobillm_kit.classroom.roster import NotAdmitted, Roster

log = logging.getLogger(__name__)


class ClassDoor(Door):
    """The door of a class's server; what was read of the roster last stands in where it cannot be read."""

    def __init__(self, keys: Path, roster: Roster) -> None:
        super().__init__(keys)
        self._roster = roster
        self._names: dict[str, str] = {}
        self._gone: set[str] = set()

    def may_connect(self, key: str) -> bool:
        """Anybody who knows the server's key: why one stays out is a sentence that only a connection carries."""
        return True

    def knows(self, key: str) -> bool:
        """Nobody: the roster is asked each time, beside the loop, and sees whose code a known key shows."""
        return False

    def use_code(self, key: str, code: str) -> bool:
        """Let a key in, its code spent where it is a fresh one; the WireError says why it stays out."""
        try:
            self._names[key] = self._roster.admit(key, code)
            self._gone.discard(key)
        except NotAdmitted as error:
            raise WireError("bad-code", error.problem, error.remedy) from error
        except RosterError as error:
            log.warning("%s", error)
            if key not in self._names or key in self._gone:
                raise WireError("server-trouble", "The class's list cannot be used at present.", _LATER) from error
        return True

    def new_code(self) -> str:
        """None: each student has one of their own."""
        return ""

    def look(self) -> set[str]:
        """Read the roster anew; the keys that were let in once and are no longer."""
        found = self._roster.names()
        self._names |= found[0]
        self._gone = found[1]
        return self._gone

    def name_of(self, key: str) -> str | None:
        """The student of a key, also of one that is let in no longer."""
        return self._names.get(key)


_LATER = "Try again in a minute; whoever runs the server finds the reason in its log."
