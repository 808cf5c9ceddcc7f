"""Turns of a class: equal seconds for each student, a pace, and nobody who leaves holds others up."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import ExitStack, nullcontext
from pathlib import Path
from statistics import fmean

import pytest

from benchmarks import fairness
from mobillm_kit.channel.frames import Limits, from_frames, to_frames
from mobillm_kit.classroom.turns import HELD_S, InTurn, Turns
from mobillm_kit.cli import main
from mobillm_kit.server.session import Session
from tests.classroom import Serving, begin
from tests.faults.flood import batch, plan
from tests.test_service_loop import WAIT_S, PlayedTrainer, hello, said, until

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "instructor.md"


class Clock:
    """One that the test turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Class:
    """Sessions that always have another step ready, and what each student has had."""

    def __init__(self, sessions: dict[str, int], costs_s: dict[str, float], **settings) -> None:
        self.clock = Clock()
        self.turns = Turns(**settings, clock=self.clock)
        self.costs_s = costs_s
        self.seats = {self.turns.seat(key): key for key, count in sessions.items() for _ in range(count)}
        self.had_s: Counter[str] = Counter()
        self.steps: Counter[str] = Counter()
        for seat in self.seats:
            self.turns.take(seat, step=True, wait=False)

    def running(self) -> list:
        return [seat for seat in self.seats if seat.running]

    def train(self, steps: int) -> None:
        """The turn that ends first ends, so many times."""
        for _ in range(steps):
            seat = min(self.running(), key=lambda seat: seat.began + self.costs_s[self.seats[seat]])
            key = self.seats[seat]
            self.clock.now = max(self.clock.now, seat.began + self.costs_s[key])
            self.turns.end(seat, again=True, step=True)
            self.had_s[key] += self.costs_s[key]
            self.steps[key] += 1


@pytest.mark.parametrize("honest", [1, 2, 5])
@pytest.mark.parametrize("sessions", [1, 4])
def test_each_student_has_equal_seconds_beside_one_with_long_steps_and_many_sessions(honest, sessions):
    names = [f"honest {number}" for number in range(honest)]
    ran = Class({**dict.fromkeys(names, 1), "heavy": sessions}, {**dict.fromkeys(names, 1.0), "heavy": 8.0})
    ran.train(2000)
    assert max(ran.had_s.values()) - min(ran.had_s.values()) <= 8.0  # one step at most
    assert ran.steps[names[0]] == pytest.approx(8 * ran.steps["heavy"], abs=8)


def test_without_others_a_student_has_all_of_it_and_who_comes_back_has_no_claim_to_what_went_by():
    ran = Class({"stays": 2}, {"stays": 1.0, "comes": 1.0})
    ran.train(1000)
    assert ran.clock.now == 1000.0  # no turn was left out
    seat = ran.turns.seat("comes")
    ran.seats[seat] = "comes"
    ran.turns.take(seat, step=True, wait=False)
    ran.had_s.clear()
    ran.train(100)
    assert ran.had_s == {"stays": 50, "comes": 50}


def test_of_two_turns_at_once_one_student_has_both_only_while_nobody_else_waits():
    ran = Class({"heavy": 4}, {"heavy": 8.0, "light": 1.0}, at_once=2)
    assert len(ran.running()) == 2
    seat = ran.turns.seat("light")
    ran.seats[seat] = "light"
    ran.turns.take(seat, step=True, wait=False)
    ran.train(1)
    for _ in range(30):
        assert sorted(ran.seats[seat] for seat in ran.running()) == ["heavy", "light"]
        ran.train(1)


def test_a_pace_holds_a_student_back_and_nobody_else():
    ran = Class({"fast": 3, "slow": 1}, {"fast": 0.01, "slow": 1.0}, most_per_s=2)
    ran.train(400)
    seconds = ran.clock.now
    assert ran.steps["fast"] <= 2 * seconds + 2
    assert ran.steps["slow"] == pytest.approx(seconds * 0.98, rel=0.02)  # all that the other left
    assert ran.turns.held("fast")
    assert not ran.turns.held("slow")  # its steps take longer than the pause
    ran.clock.now += HELD_S
    assert not ran.turns.held("fast")
    assert not ran.turns.held("a stranger")


def test_a_held_step_begins_when_it_is_due_without_anybody_elses_help():
    turns = Turns(most_per_s=20)
    seat, began = turns.seat("key"), []
    for _ in range(5):
        assert turns.take(seat, step=True)
        began.append(time.perf_counter())
        turns.end(seat, again=False)
    assert 0.2 - 0.05 <= began[-1] - began[0] < WAIT_S  # one pause may be made good
    assert turns.take(seat, step=False)  # no training step: at once
    assert time.perf_counter() - began[-1] < 0.05 + WAIT_S


@pytest.mark.parametrize("at_once", [1, 3])
def test_whatever_happens_turns_are_used_and_no_more_of_them_than_there_are(at_once):
    draw = random.Random(0)
    clock = Clock()
    turns = Turns(at_once, clock=clock)
    seats = [turns.seat(f"key {number % 4}") for number in range(12)]
    asked: set[int] = set()
    for _ in range(5000):
        number = draw.randrange(len(seats))
        seat = seats[number]
        clock.now += draw.random()
        if draw.random() < 0.05:
            running = seat.running
            turns.leave(seat)
            if running:
                turns.end(seat, again=True)
            seats[number] = turns.seat(f"key {number % 4}")
            asked.discard(number)
        elif seat.running:
            again = draw.random() < 0.5
            turns.end(seat, again=again)
            asked = asked if again else asked - {number}
        else:
            turns.take(seat, step=False, wait=False)
            asked.add(number)
        assert sum(seat.running for seat in seats) == min(at_once, len(asked))


def test_who_leaves_while_it_waits_waits_no_more_and_lets_the_next_one_go():
    turns = Turns()
    has, leaves, stays = (turns.seat(key) for key in "abc")
    assert turns.take(has, step=True)
    found: dict[str, bool] = {}
    waiting = [
        threading.Thread(target=lambda name=name, seat=seat: found.setdefault(name, turns.take(seat, step=True)))
        for name, seat in (("leaves", leaves), ("stays", stays))
    ]
    for thread in waiting:
        thread.start()
    turns.leave(leaves)
    waiting[0].join(WAIT_S)
    assert found == {"leaves": False}
    turns.end(has, again=False)
    waiting[1].join(WAIT_S)
    assert found == {"leaves": False, "stays": True}
    assert not turns.take(leaves, step=True)  # nor later


# ---------------------------------------------------------------------- the threads


@pytest.fixture
def threads():
    turns, made = Turns(), []

    def make(key: str, trainer) -> InTurn:
        session = Session(plan(), credit=4, budget_bytes=2**40)
        made.append(InTurn(turns, key, session, lambda: nullcontext(trainer), wake=lambda: None, threads=1))
        made[-1].receive(hello(), [])
        said(made[-1], 1)
        return made[-1]

    yield make
    for thread in made:
        thread.close()
        assert thread.wait_closed(WAIT_S)


def send(thread: InTurn, sequence: int) -> None:
    thread.receive(*from_frames(to_frames(*batch(sequence)), sender="device", limits=Limits()))


class Held(PlayedTrainer):
    """Trains when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.may = threading.Event(), threading.Event()

    def batch(self, *given):
        self.began.set()
        assert self.may.wait(WAIT_S)
        return super().batch(*given)


def test_a_session_that_is_closed_while_it_waits_for_its_turn_ends_at_once_and_trains_nothing(threads):
    holds, waits = Held(), PlayedTrainer()
    first, second = threads("a", holds), threads("b", waits)
    send(first, 0)
    assert holds.began.wait(WAIT_S)
    send(second, 0)
    time.sleep(0.05)
    second.close()
    assert second.wait_closed(WAIT_S)
    assert waits.losses == []
    holds.may.set()
    said(first, 1)
    assert holds.losses == [0.0]


def test_a_step_that_fails_and_a_session_that_is_closed_in_its_turn_give_it_back(threads):
    class Fails(PlayedTrainer):
        def batch(self, *given):
            raise MemoryError("no room")

    failing, holds, others = threads("a", Fails()), Held(), PlayedTrainer()
    send(failing, 0)
    until(lambda: [failing.failed], any)
    closing, other = threads("b", holds), threads("c", others)
    send(closing, 0)
    assert holds.began.wait(WAIT_S)
    closing.close()
    send(other, 0)
    holds.may.set()
    said(other, 1)
    assert others.losses == [0.0]


def test_a_step_that_waits_for_its_devices_gradient_holds_nobody_up(threads):
    class Asks(PlayedTrainer):
        def batch(self, *given):
            self.waiting = True
            return []

    asking, others = Asks(), PlayedTrainer()
    first, other = threads("a", asking), threads("b", others)
    for sequence in range(3):
        send(first, sequence)
    until(lambda: [asking.waiting], any)
    send(other, 0)
    said(other, 1)
    assert others.losses == [0.0]


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # who is kicked is refused
def test_a_heavy_student_who_is_kicked_while_its_sessions_wait_is_gone_and_the_other_trains_on(tmp_path):
    joins, going = begin(tmp_path / "bio", "Ada", "Heavy"), threading.Event()
    going.set()
    with Serving(tmp_path / "bio") as server, ExitStack() as sessions:

        def begun(name: str, rows: int) -> fairness.Session:
            session = fairness.Session(joins[name], tmp_path / name, rows, going)
            sessions.callback(session.close)
            server.until(f"{name} joined")
            until(lambda: [session.trained], any)
            return session

        ada = begun("Ada", 8)
        for _ in range(fairness.SESSIONS):
            begun("Heavy", 64)
        assert main(["class", "kick", str(tmp_path / "bio"), "Heavy"]) == 0
        server.until("Heavy left: turned out", fairness.SESSIONS)
        trained = ada.trained
        until(lambda: [ada.trained > trained + 20], any)
        server.process.terminate()
        assert server.process.wait(20) == 0


def test_the_instructors_guide_says_what_the_record_has():
    parts = fairness.read()
    assert all(bar.ok for bar in fairness.bars(parts["turns"]))
    said = " ".join(GUIDE.read_text(encoding="utf-8").split())
    assert f"without turns it was about {fmean(parts['no turns'].medians()):.1f} of it" in said
    assert {(part.honest, part.sessions, part.times) for part in parts.values()} == {(4, 4, 8)}
