"""The instructor's commands: `mobillm class init | invite | serve | status | kick | export | prune`.

Knows: the class's folder and roster.  Knows nothing of: how words on a command line become a command.
"""

import os
from pathlib import Path
from typing import Annotated

import msgspec
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from tyro.conf import Positional, subcommand

from mobillm_kit.classroom import invitations
from mobillm_kit.classroom.folder import ClassFolder, ClassSettings, begin, own_address
from mobillm_kit.classroom.grades import read_grades
from mobillm_kit.classroom.roster import Roster
from mobillm_kit.common import MIB, when_parent_ends
from mobillm_kit.errors import BadInput

screen = Console()


class Init(msgspec.Struct, frozen=True, kw_only=True):
    """Begin a class: a folder with the server's key, settings.toml and an empty list of students."""

    folder: Positional[Path]
    """Folder to make; its name is the class's."""
    bind: str = "tcp://0.0.0.0:7000"
    """Where the server will listen; 0.0.0.0 is every address of this machine, 127.0.0.1 this machine alone."""
    advertise: str = ""
    """Host name or address by which students' devices reach this machine; found out if not given."""
    board: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8080
    """TCP port of the board, a page that shows the class; 0 for none."""

    def __call__(self) -> int:
        """Make it, and say what comes next."""
        advertise = self.advertise or own_address(self.bind)
        settings = ClassSettings(bind=self.bind, advertise=advertise, board=self.board)
        begin(self.folder, settings)
        Roster.make(self.folder / "class.sqlite")
        say(f"Devices will join at {settings.reachable}; {self.folder / 'settings.toml'} says so, and may be changed.")
        say(f"Next: mobillm class invite {self.folder} --students names.txt")
        return 0


class Invite(msgspec.Struct, frozen=True, kw_only=True):
    """Write a sheet with a one-time code, and the command to join with, for each student.

    Who is in the class already gets a code too: it moves them to the device that uses it.
    """

    folder: Positional[Path]
    """Folder of the class."""
    students: Path | None = None
    """Text file, one name a line."""
    count: Annotated[int, msgspec.Meta(ge=0)] = 0
    """So many students without names: student 01, student 02 …"""
    out: Path | None = None
    """The sheet: a page to print, or plain text where the name ends in .txt; invitations-1.html … if not given."""

    def __call__(self) -> int:
        """Make the codes and the sheet, which is the only place where they stand."""
        if (self.students is None) == (self.count == 0):
            raise BadInput("Who is invited?", "Give --students FILE, one name a line, or --count 30.")
        there = ClassFolder(self.folder)
        roster = Roster(there.database)
        sheet = invitations.free_sheet(self.folder, self.out)
        if self.students is not None:
            names = invitations.names_in(self.students)
        else:
            names = roster.numbered(len(invitations.counted([""] * self.count, "")))
        to = there.join  # settings and key are looked at before a code is made
        to("")
        joins = [(name, to(code)) for name, code in roster.invite(names)]
        invitations.write_sheet(sheet, there.title, joins)
        say(f"{len(joins)} invitations in {sheet}: print it, cut it, and keep it from others.")
        return 0


class Serve(msgspec.Struct, frozen=True, kw_only=True):
    """Train side networks for the students of a class, until Ctrl-C, and say who joins, leaves and is refused.

    A page shows the class as it trains: one link for all to watch, one for the instructor (extra `class`).
    """

    folder: Positional[Path]
    """Folder of the class."""
    with_parent: bool = False
    """For programs: end when standard input closes."""

    def __call__(self) -> int:
        """Serve, and say where."""
        there = ClassFolder(self.folder)
        if self.with_parent:
            when_parent_ends(lambda: os._exit(0))  # at once: checkpoints are whole at any moment
        from mobillm_kit.classroom.serving import serve_class

        serve_class(there, say)
        return 0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Show who is in the class, how many runs each has, now and in all, and who was refused, server running or not."""

    folder: Positional[Path]
    """Folder of the class."""

    def __call__(self) -> int:
        """Print a line per student."""
        there = ClassFolder(self.folder)
        lines = Roster(there.database).lines()
        table = Table(Column("student", no_wrap=True), "state", title=Text(there.title))
        for column in ("now", "runs", "steps", "MiB", "joined", "left", "refused"):
            table.add_column(column, justify="right")
        for line in lines:
            counts = (str(line.counts.get(event, 0)) for event in ("joined", "left", "refused"))
            ran = (str(line.training), str(line.sessions), str(line.steps), f"{line.n_bytes / MIB:.1f}")
            table.add_row(Text(line.name), line.state, *ran, *counts)
        screen.print(table)
        return 0


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """Write what the class did as the server saw it: runs.csv, students.csv, index.html, and the side networks."""

    folder: Positional[Path]
    """Folder of the class."""
    out: Path | None = None
    """Folder for all of it; export/ in the class's folder if not given."""
    grades: Path | None = None
    """File that `nbgrader export` wrote: its grades are joined by the students' names."""
    records: Path | None = None
    """Folder with runs that students handed in (what --out of `mobillm device` named): adds their test accuracy."""

    def __call__(self) -> int:
        """Write it, over that of before."""
        from mobillm_kit.classroom.networks import handed_in, write_networks
        from mobillm_kit.classroom.report import run_rows, student_rows, write_report

        there, out = ClassFolder(self.folder), self.out or self.folder / "export"
        lines, runs = Roster(there.database).lines(), Roster(there.database).runs()
        grades, others = read_grades(self.grades, [line.name for line in lines]) if self.grades else ({}, [])
        accuracy, said = handed_in(self.records) if self.records else ({}, [])
        networks = write_networks(there.root, runs, out / "networks")
        write_report(out, there.title, student_rows(lines, grades), run_rows(lines, runs, networks, accuracy))
        for sentence in (*said, *(f"{self.grades}: '{name}' is nobody of this class, left out." for name in others)):
            say(sentence)
        say(f"{len(runs)} runs of {len(lines)} students in {out / 'runs.csv'} and {out / 'index.html'}")
        return 0


class Prune(msgspec.Struct, frozen=True, kw_only=True):
    """Remove checkpoints, caches and side networks of runs that ended long ago, or beyond a size; of none that runs.

    What is removed costs its student time and nothing else: their device sends again from step 0.  The list, the log
    and the export keep what the runs were.
    """

    folder: Positional[Path]
    """Folder of the class."""
    older_than: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Days in which nobody trained on it."""
    disk: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """MiB that all sessions together may keep; beyond them the longest unused go."""
    dry_run: bool = False
    """Show what would be removed, and remove nothing."""

    def __call__(self) -> int:
        """Print a line per session that goes, and what is left."""
        from mobillm_kit.classroom.pruning import chosen, kept_sessions
        from mobillm_kit.server.disk import DAY_S, removed

        if self.older_than is None and self.disk is None:
            raise BadInput("What is to go?", "Give --older-than DAYS, or --disk MIB, or both.")
        there = ClassFolder(self.folder)
        found = kept_sessions(there.root, Roster(there.database).runs())
        days = float("inf") if self.older_than is None else self.older_than
        too_old_s, most_bytes = days * DAY_S, None if self.disk is None else self.disk * MIB
        gone = [one for one in chosen(found, too_old_s, most_bytes) if self.dry_run or removed(one.folder)]
        for one in gone:
            say(f"{'would remove' if self.dry_run else 'removed'}  {one}")
        left = sum(one.n_bytes for one in found) - sum(one.n_bytes for one in gone)
        verb = "would go" if self.dry_run else "went"
        say(f"{len(gone)} of {len(found)} sessions {verb}; the others hold {left / MIB:.1f} MiB.")
        return 0


class Kick(msgspec.Struct, frozen=True, kw_only=True):
    """Let a student's device in no longer; a server that runs ends their sessions within seconds."""

    folder: Positional[Path]
    """Folder of the class."""
    student: Positional[str]
    """Name, as `mobillm class status` shows it."""

    def __call__(self) -> int:
        """Take the student off; a new invitation would bring them back."""
        name = Roster(ClassFolder(self.folder).database).remove(self.student)
        say(f"{name} is let in no longer; `mobillm class invite` would bring them back.")
        return 0


Class = Annotated[
    Init | Invite | Serve | Status | Kick | Export | Prune,
    subcommand("class", description="One server for a class: invitations, who is there, who trains."),
]
"""`mobillm class …`, for the command line."""


def say(line: str) -> None:
    """Print a line as it is, however wide."""
    screen.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
