"""A class under fire: devices killed at random, the server killed five times, and every side network its solo run's.

    make class-soak                                              30 students, 10 minutes
    python scripts/class_soak.py --students 8 --minutes 3        as many as the machine carries

Each student has a seed, keys and a folder of their own.  A device that was killed is started again with the same
command; so is the server.  Both are killed until the minutes are over; then everybody is let run to the end.  The solo
runs come last, each on a server of its own; the exit code is 1 where a side network differs from its own.
"""

from __future__ import annotations

import argparse
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from msgspec.structs import replace

from mobillm_kit.classroom.roster import Roster
from mobillm_kit.common import fresh_environment
from mobillm_kit.runs.folders import load_spec
from mobillm_kit.runs.run import run

KILLS_OF_THE_SERVER = 5
KILLS_OF_A_DEVICE = 2
"""On average."""
LOOK_S = 0.5
LIMIT_S = 1800.0
"""For everybody to join, and to end once nobody is killed any more."""
FEW = ["--batch-size", "4", "--limit-train", "64", "--limit-dev", "8", "--limit-test", "8", "--no-read-back"]


@dataclass
class Student:
    """One device, started as often as it takes."""

    number: int
    join: str
    place: Path
    steps: int
    process: subprocess.Popen[str] | None = None
    kills: int = 0
    starts: int = 0
    ended: bool = False
    said: list[str] = field(default_factory=list)

    @property
    def out(self) -> Path:
        """Where its run is kept."""
        return self.place / f"out-{self.number}"

    def start(self) -> None:
        """A new life, by the same command."""
        self.starts += 1
        where = ["--join", self.join, "--keys", str(self.place / f"keys-{self.number}"), "--out", str(self.out)]
        length = ["--seed", str(self.number), "--steps", str(self.steps), "--eval-every", str(self.steps)]
        self.process = begin(mobillm("device", *where, *length, *FEW), self.place / f"device-{self.number}.log")

    def look(self) -> None:
        """Start it again where it has ended otherwise than well."""
        if self.process is None or self.ended:
            return
        status = self.process.poll()
        self.ended = status == 0
        if status not in (None, 0):
            if status > 0:  # not killed: it gave up, and why is worth a line
                self.said.append((self.place / f"device-{self.number}.log").read_text()[-300:])
            self.start()

    def kill(self) -> None:
        """As a battery that is empty."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            self.kills += 1

    def as_alone(self) -> bool:
        """Whether its side network is, to the byte, that of the same run alone on a server of its own."""
        spec, alone = load_spec(self.out), self.place / f"alone-{self.number}"
        # on a server, since the cache is one's: what was kept is added up in another order than what has just come
        run(replace(spec, options={**spec.options, "server": "spawn"}), folder=alone)
        ours, own = (folder / "side" / "model.safetensors" for folder in (self.out, alone))
        return ours.read_bytes() == own.read_bytes()


def mobillm(*words: str) -> list[str]:
    """The command line of this checkout."""
    return [sys.executable, "-m", "mobillm_kit.cli", *words]


def begin(command: list[str], log: Path) -> subprocess.Popen[str]:
    """A process whose words go to a file."""
    with log.open("a", encoding="utf-8") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=fresh_environment(), text=True)


def begin_class(place: Path, students: int) -> list[str]:
    """A class without a board on a free port; each student's join string."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        bind = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    sheet = place / "sheet.txt"
    for words in (["init", str(place / "class"), "--bind", bind, "--board", "0"],
                  ["invite", str(place / "class"), "--count", str(students), "--out", str(sheet)]):  # fmt: skip
        subprocess.run(mobillm("class", *words), check=True, stdout=subprocess.DEVNULL)
    return re.findall(r"--join '(.+?)'", sheet.read_text(encoding="utf-8"))


def fight(students: list[Student], place: Path, minutes: float, draw: random.Random) -> tuple[int, float]:
    """Kill until the minutes are over, then let everybody end; how often the server died, and the seconds of it all.

    The minutes begin when everybody has joined: to start a process takes long where many start at once.
    """
    serving, log = mobillm("class", "serve", str(place / "class")), place / "server.log"
    roster = Roster(place / "class" / "class.sqlite")
    server = begin(serving, log)
    deaths, lasts_s = 0, 60 * minutes
    try:
        for student in students:
            student.start()
        wait_for(students, lambda: all(line.counts.get("joined") for line in roster.lines()), "joined")
        began = time.monotonic()
        while (at := time.monotonic() - began) < lasts_s:
            time.sleep(LOOK_S)
            if draw.random() < KILLS_OF_A_DEVICE * len(students) * LOOK_S / lasts_s:
                draw.choice(students).kill()
            if at > lasts_s * (deaths + 1) / (KILLS_OF_THE_SERVER + 1):
                server.kill()
                server.wait()
                deaths += 1
                server = begin(serving, log)
            for student in students:
                student.look()
        wait_for(students, lambda: all(student.ended for student in students), "ended")
    finally:
        for process in (server, *(student.process for student in students if student.process)):
            process.kill()
            process.wait()
    return deaths, time.monotonic() - began


def wait_for(students: list[Student], there: Callable[[], bool], what: str) -> None:
    """Until all is as it should be; nobody is killed, and who has given up begins again."""
    deadline = time.monotonic() + LIMIT_S
    while not there():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Not every student has {what} within {LIMIT_S:.0f} s.")
        time.sleep(LOOK_S)
        for student in students:
            student.look()


def report(students: list[Student], place: Path, deaths: int, seconds: float) -> bool:
    """The table; whether every side network is its solo run's."""
    torch.set_num_threads(1)
    lines = Roster(place / "class" / "class.sqlite").lines()
    equal = [student.as_alone() for student in students]
    print("| student | killed | starts | gave up | steps | as alone |\n|---|--:|--:|--:|--:|---|")
    for student, line, same in zip(students, lines, equal, strict=False):
        verdict = "every byte" if same else "DIFFERENT"
        numbers = f"{student.kills} | {student.starts} | {len(student.said)} | {line.steps}"
        print(f"| {line.name} | {numbers} | {verdict} |")
    kills, steps = sum(student.kills for student in students), students[0].steps
    print(f"\n{len(students)} students, {steps} steps each, {seconds:.0f} s; devices were killed {kills} times,")
    print(f"the server {deaths} times; {sum(equal)} of {len(students)} side networks are those of the solo runs.")
    for student in students:
        for words in student.said:
            print(f"device {student.number} gave up once: {' '.join(words.split())[-200:]}")
    return all(equal)


def main() -> int:
    """Fight, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", type=int, default=30, help="devices at a time, a process each: 400 MiB")
    parser.add_argument("--minutes", type=float, default=10.0, help="in which devices and server are killed")
    parser.add_argument("--steps", type=int, default=400, help="of each student: more than the minutes are enough for")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed when")
    asked = parser.parse_args()
    if asked.students < 1 or asked.minutes <= 0 or asked.steps < 1:
        parser.error("students, minutes and steps are above 0")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        joins = begin_class(place, asked.students)
        students = [Student(number, join, place, asked.steps) for number, join in enumerate(joins)]
        deaths, seconds = fight(students, place, asked.minutes, random.Random(asked.seed))
        return 0 if report(students, place, deaths, seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
