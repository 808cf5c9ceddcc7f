"""Who is in a class: students, one-time codes, the key that spent each code, sessions and counts, in SQLite.

    a student   one name, at most one device at a time: the public CURVE key that spent the newest code
    a code      spent once; only its salted digest is kept

Knows: SQL, keys, names.  Knows nothing of: sockets, messages, what is trained.
Taught in: notebooks/12_class_lab.ipynb
"""

import hashlib
import hmac
import secrets
import sqlite3
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mobillm_kit.channel.join import CODE_ALPHABET, CODE_GROUP, CODE_GROUPS, check_code, plain_code
from mobillm_kit.classroom.database import Database
from mobillm_kit.errors import BadInput, KitError, nearest

NAME_LENGTH = 64
_RUN = "s.name, r.id, r.began, r.ended, r.why, r.steps, r.bytes + r.now_bytes, r.planned"


class NotAdmitted(KitError):
    """Why a device does not come in, in words for its student."""


@dataclass(frozen=True)
class Line:
    """A student as `mobillm class status` shows them."""

    name: str
    state: str
    """"invited", "joined" or "removed"."""
    counts: dict[str, int]
    """Of "joined", "left" and "refused"."""
    training: int
    """Sessions now."""
    sessions: int
    steps: int
    n_bytes: int


@dataclass(frozen=True)
class Run:
    """A session as the server saw it; times are seconds since 1970."""

    student: str
    session: str
    began: float
    ended: float | None
    """None while it is trained."""
    why: str
    """It ended."""
    steps: int
    n_bytes: int
    planned: int = 0
    """Steps; 0 where it is not known."""

    @property
    def complete(self) -> bool:
        """Whether it ended because there was nothing left to do."""
        return self.ended is not None and self.steps >= self.planned > 0


class Roster:
    """The database of a class.  Any method raises RosterError where it cannot be used."""

    def __init__(self, path: Path) -> None:
        self._database = Database(path)

    @classmethod
    def make(cls, path: Path) -> "Roster":
        """A new, empty one."""
        Database.make(path)
        return cls(path)

    # ------------------------------------------------------------------ the instructor

    def invite(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Name and fresh one-time code of each; a student who is there gets another code, their device stays for now.

        The code of an earlier invitation that nobody spent is void.
        """
        with self._database.writing() as db:
            return [(name, _invite(db, name)) for name in names]

    def numbered(self, count: int) -> list[str]:
        """The next free names of the form "student 07"."""
        with self._database.reading() as db:
            taken = {folded for (folded,) in db.execute("SELECT folded FROM students")}
        names: list[str] = []
        number = 0
        while len(names) < count:
            number += 1
            names += [name for name in [f"student {number:02d}"] if fold(name) not in taken]
        return names

    def remove(self, name: str) -> str:
        """A student's device is let in no longer; the name as it was invited, BadInput for one that is not there."""
        with self._database.writing() as db:
            known = dict(db.execute("SELECT folded, name FROM students"))
            if fold(name) not in known:
                meant = nearest(name, known.values(), "`mobillm class status` lists the names.")
                raise BadInput(f"Nobody in this class is called '{name}'.", meant)
            db.execute("UPDATE students SET removed = ? WHERE folded = ?", (time.time(), fold(name)))
            whose = "student = (SELECT id FROM students WHERE folded = ?)"
            db.execute(f"DELETE FROM codes WHERE spent IS NULL AND {whose}", (fold(name),))
        return str(known[fold(name)])

    def lines(self) -> list[Line]:
        """Everybody, in the order of the invitations; then, where some were refused, the devices that nobody knows."""
        with self._database.reading() as db:
            counts: dict[int, dict[str, int]] = {}
            for student, event, n in db.execute("SELECT student, event, n FROM counts"):
                counts.setdefault(student, {})[event] = n
            rows = db.execute(
                "SELECT s.id, s.name,"
                " CASE WHEN removed IS NOT NULL THEN 'removed' WHEN key IS NOT NULL THEN 'joined' ELSE 'invited' END,"
                " COUNT(r.id) - COUNT(r.ended), COUNT(r.id), TOTAL(r.steps), TOTAL(r.bytes + r.now_bytes)"
                " FROM students s LEFT JOIN sessions r ON r.student = s.id GROUP BY s.id ORDER BY s.id"
            ).fetchall()
        found = [
            Line(name, state, counts.get(number, {}), training, sessions, int(steps), int(n_bytes))
            for number, name, state, training, sessions, steps, n_bytes in rows
        ]
        if 0 in counts:
            found.append(Line("(unknown)", "–", counts[0], training=0, sessions=0, steps=0, n_bytes=0))
        return found

    def runs(self) -> list[Run]:
        """Every session, the oldest first."""
        with self._database.reading() as db:
            rows = db.execute(
                f"SELECT {_RUN} FROM sessions r JOIN students s ON s.id = r.student ORDER BY r.began, r.id"
            ).fetchall()
        return [Run(*row) for row in rows]

    def last_runs(self) -> dict[str, Run]:
        """Of each student who trained at all, the session that began last."""
        with self._database.reading() as db:
            rows = db.execute(
                # with MAX, SQLite takes the other columns from the row that has it
                f"SELECT {_RUN}, MAX(r.began) FROM sessions r JOIN students s ON s.id = r.student GROUP BY s.id"
            ).fetchall()
        return {row[0]: Run(*row[:-1]) for row in rows}

    # ------------------------------------------------------------------ the server

    def admit(self, key: str, code: str) -> str:
        """The student whose device has this key; NotAdmitted says why it has none.

        A fresh code is spent, and binds its student to the key in place of the one before.
        """
        with self._database.reading() as db:
            name, fresh = _judged(db, key, code)
        if fresh is None:
            return name
        with self._database.writing() as db:
            name, fresh = _judged(db, key, code)  # anew: somebody may have been quicker
            if fresh is not None:
                now = time.time()
                db.execute("UPDATE codes SET spent = ?, key = ? WHERE id = ?", (now, key, fresh))
                db.execute(
                    "UPDATE students SET key = ?, removed = NULL WHERE id = (SELECT student FROM codes WHERE id = ?)",
                    (key, fresh),
                )
        return name

    def names(self) -> tuple[dict[str, str], set[str]]:
        """The student of each key that was ever let in; and which of these keys are let in no longer."""
        with self._database.reading() as db:
            rows = db.execute(
                # of a key that moved from one student to another, the one that has it now
                "SELECT c.key, s.name, MAX(s.key IS c.key AND s.removed IS NULL) FROM codes c"
                " JOIN students s ON s.id = c.student WHERE c.key IS NOT NULL GROUP BY c.key"
            ).fetchall()
        return {key: name for key, name, _ in rows}, {key for key, _, now in rows if not now}

    def count(self, key: str, event: str) -> None:
        """Something happened to a key's student, or to a device that nobody knows."""
        with self._database.writing() as db:
            student = _student(db, key) or 0
            db.execute(
                "INSERT INTO counts VALUES (?, ?, 1) ON CONFLICT (student, event) DO UPDATE SET n = n + 1",
                (student, event),
            )

    def session_began(self, session: str, key: str, planned: int) -> None:
        """A key's session of so many steps is being trained, for the first time or again."""
        with self._database.writing() as db:
            student = _student(db, key)
            if student is not None:
                db.execute(
                    "INSERT INTO sessions (id, student, began, planned) VALUES (?, ?, ?, ?)"
                    " ON CONFLICT (id) DO UPDATE SET ended = NULL, why = '', planned = excluded.planned",
                    (session, student, time.time(), planned),
                )

    def session_ended(self, session: str, why: str, steps: int, n_bytes: int) -> None:
        """It is trained no longer; it stands at so many steps, and so many bytes came since it began."""
        with self._database.writing() as db:
            db.execute(
                "UPDATE sessions SET ended = ?, why = ?, steps = MAX(steps, ?), bytes = bytes + ?, now_bytes = 0"
                " WHERE id = ?",
                (time.time(), why, steps, n_bytes, session),
            )

    def progress(self, found: Sequence[tuple[str, int, int]]) -> None:
        """Sessions that are trained now: steps, and bytes since each began."""
        with self._database.writing() as db:
            rows = [(steps, n_bytes, session) for session, steps, n_bytes in found]
            db.executemany(
                "UPDATE sessions SET steps = MAX(steps, ?), now_bytes = ? WHERE id = ? AND ended IS NULL", rows
            )

    def all_ended(self, why: str) -> None:
        """A server begins: whatever the last one trained has ended."""
        with self._database.writing() as db:
            db.execute(
                "UPDATE sessions SET ended = ?, why = ?, bytes = bytes + now_bytes, now_bytes = 0 WHERE ended IS NULL",
                (time.time(), why),
            )


def fold(name: str) -> str:
    """What makes two names one: neither case, nor blanks, nor how a letter's accent is written."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())


def check_name(name: str, where: str) -> str:
    """The name itself; BadInput where it cannot be shown on one line of a list."""
    remedy = f"A name has 1 to {NAME_LENGTH} printable characters, without / and \\."
    if not name or len(name) > NAME_LENGTH:
        raise BadInput(f"{where}: the name {name[:40]!r} has {len(name)} characters.", remedy)
    odd = next((character for character in name if not character.isprintable() or character in "/\\"), None)
    if odd is not None:
        raise BadInput(f"{where}: the name {name!a} holds {odd!a}.", remedy)
    return name


def _invite(db: sqlite3.Connection, name: str) -> str:
    db.execute("INSERT INTO students (name, folded) VALUES (?, ?) ON CONFLICT DO NOTHING", (name, fold(name)))
    (student,) = db.execute("SELECT id FROM students WHERE folded = ?", (fold(name),)).fetchone()
    db.execute("DELETE FROM codes WHERE student = ? AND spent IS NULL", (student,))
    code = check_code("".join(secrets.choice(CODE_ALPHABET) for _ in range(CODE_GROUPS * CODE_GROUP)))
    salt = secrets.token_bytes(16)
    row = (student, salt, _digest(salt, code), time.time())
    db.execute("INSERT INTO codes (student, salt, digest, made) VALUES (?, ?, ?, ?)", row)
    return code


def _student(db: sqlite3.Connection, key: str) -> int | None:
    """Also of a key that was let in once."""
    for question in ("SELECT id FROM students WHERE key = ?", "SELECT student FROM codes WHERE key = ?"):
        row = db.execute(question, (key,)).fetchone()
        if row is not None:
            return int(row[0])
    return None


def _judged(db: sqlite3.Connection, key: str, code: str) -> tuple[str, int | None]:
    """The student's name, and the code that is to be spent for it; NotAdmitted where there is no way in."""
    owner = db.execute("SELECT id, name, removed FROM students WHERE key = ?", (key,)).fetchone()
    shown = _code(db, code) if code else None
    if shown is not None and owner is not None and shown[1] != owner[0]:
        raise NotAdmitted(
            f"This device is {owner[1]}'s, and the code is another student's.",
            "Each student has a device of their own; two on one machine give --keys, each another folder.",
        )
    if shown is not None and shown[3] is None:
        return shown[2], shown[0]
    if owner is not None and owner[2] is None:
        return owner[1], None
    if owner is not None:
        raise NotAdmitted(f"{owner[1]} was removed from this class.", "Ask the instructor for a new invitation.")
    if shown is not None and shown[4] == key:
        raise NotAdmitted("A newer invitation of this student was used on another device.", _ANEW)
    if shown is not None:
        raise NotAdmitted("This code was used already, on another device.", _ANEW)
    if code:
        problem = "This code is none of this class, or a newer invitation replaced it."
        raise NotAdmitted(problem, "Take the whole command from your newest invitation, or ask the instructor for one.")
    raise NotAdmitted("This class does not know this device.", "Join once with the whole command of your invitation.")


_ANEW = "Join with that device, or ask the instructor for a new invitation: it moves you to the device that uses it."


def _code(db: sqlite3.Connection, code: str) -> tuple[int, int, str, float | None, str | None] | None:
    """Code, student, name, when it was spent and by which key.

    Every code is compared, in constant time: how long the answer takes says nothing about how near a guess was.
    """
    rows = db.execute(
        "SELECT c.id, c.student, s.name, c.spent, c.key, c.salt, c.digest FROM codes c"
        " JOIN students s ON s.id = c.student"
    ).fetchall()
    same = [row[:5] for row in rows if hmac.compare_digest(row[6], _digest(row[5], code))]
    return same[0] if same else None


def _digest(salt: bytes, code: str) -> bytes:
    return hashlib.blake2b(plain_code(code).encode(), salt=salt, digest_size=32).digest()
