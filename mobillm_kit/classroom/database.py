"""A class's database file: SQLite, opened anew for each transaction, brought up to this version where it is older.

What breaks between two transactions costs a sentence, and a copy of the file is a whole one.  Readers never wait (WAL);
writers wait for each other, a few seconds at most.

Knows: files, SQL, versions.  Knows nothing of: what the tables mean.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from mobillm_kit.errors import KitError

BUSY_S = 3.0
"""Longest wait for another process that writes."""

_APPLICATION = 0x4D424C4D
"""SQLite's ``application_id`` of a class: other databases are not touched."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # folded: what makes two names one; key: public CURVE key of the device, z85; removed: NULL in the class
        "CREATE TABLE students (id INTEGER PRIMARY KEY, name TEXT NOT NULL, folded TEXT NOT NULL UNIQUE,"
        " key TEXT UNIQUE, removed REAL)",
        "CREATE TABLE codes (id INTEGER PRIMARY KEY, student INTEGER NOT NULL REFERENCES students (id),"
        " salt BLOB NOT NULL, digest BLOB NOT NULL, made REAL NOT NULL, spent REAL, key TEXT)",
        # ended: NULL in training, or the server was killed; now_bytes: what came since it began last
        "CREATE TABLE sessions (id TEXT PRIMARY KEY, student INTEGER NOT NULL REFERENCES students (id),"
        " began REAL NOT NULL, ended REAL, why TEXT NOT NULL DEFAULT '', steps INTEGER NOT NULL DEFAULT 0,"
        " bytes INTEGER NOT NULL DEFAULT 0, now_bytes INTEGER NOT NULL DEFAULT 0)",
        # student 0: a device that nobody knows
        "CREATE TABLE counts (student INTEGER NOT NULL, event TEXT NOT NULL, n INTEGER NOT NULL,"
        " PRIMARY KEY (student, event))",
    ),
    # 0: not known, begun by a version that did not ask
    ("ALTER TABLE sessions ADD COLUMN planned INTEGER NOT NULL DEFAULT 0",),
)
"""What leads from each version of the database (``user_version``) to the next; times are seconds since 1970."""

_TROUBLE = {
    "SQLITE_BUSY": (f"another program has been writing it for {BUSY_S:g} s", "Try again; close what else has it open."),
    "SQLITE_FULL": ("the disk is full", "Free some space and try again."),
    "SQLITE_IOERR": ("the disk does not take or give what it should", "Look whether it is full or broken."),
    "SQLITE_READONLY": ("it may not be written", "Look at who owns it, and whether the disk is read-only."),
    "SQLITE_CANTOPEN": ("it could not be opened", "Look whether the folder is there, and who owns it."),
}


class RosterError(KitError):
    """The database of a class cannot be used now, or at all."""


class Database:
    """The file; a RosterError where it cannot be used."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def make(cls, path: Path) -> "Database":
        """A new, empty one, for its owner's eyes alone."""
        path.touch(mode=0o600)
        made = cls(path)
        with made._trouble(), closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute(f"PRAGMA application_id = {_APPLICATION}")
            db.execute("PRAGMA journal_mode = WAL")
        with made.writing():
            return made

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One state for all questions."""
        with self._trouble(), self._open() as db:
            db.execute("BEGIN")
            yield db
            db.execute("COMMIT")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All of it or, where anything goes wrong, nothing; one writer at a time."""
        with self._trouble(), self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # some errors have rolled back already
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # mode=rw: a database that is gone is no empty one
        uri = f"{self._path.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None)) as db:
            db.execute("PRAGMA foreign_keys = ON")
            if db.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
                raise RosterError(f"{self._path}: this is no class's database.", "Name the folder of a class.")
            _migrate(db, self._path)
            yield db

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            damaged = (f"it is damaged ({error})", "Restore a copy of it, or begin a new class.")
            found = next((words for kind, words in _TROUBLE.items() if name.startswith(kind)), damaged)
            raise RosterError(f"{self._path}: {found[0]}.", found[1]) from error


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    if _version(db) > len(MIGRATIONS):
        problem = f"{path}: a newer version of mobillm-kit made this class."
        raise RosterError(problem, "Install that version here, or begin a new class.")
    if _version(db) < len(MIGRATIONS):
        db.execute("BEGIN IMMEDIATE")
        for version in range(_version(db), len(MIGRATIONS)):  # asked anew: another process may have been quicker
            for statement in MIGRATIONS[version]:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        db.execute("COMMIT")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
