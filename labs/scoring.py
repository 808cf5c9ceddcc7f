"""Scores of the labs: goals with a limit and points, a card that adds them up and says what is missing.

    met       all points of the goal
    missed    points / 2 · limit / value       (a floor instead of a limit: value / floor), rounded down

Knows: numbers.  Knows nothing of: designs, the right answers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle

import mobillm_kit as kit

TASK_POINTS = 10
"""Of each closed task."""
_COLORS, _HATCHES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7"), ("", "//", "..", "xx")


@dataclass(frozen=True)
class Goal:
    """One figure of a design, and what it may be."""

    what: str
    value: float | None
    """None where it could not be measured."""
    limit: float
    unit: str
    points: int
    at_least: bool = False
    rough: bool = False
    """Where it is met, the figure is not shown: its last digits differ from processor to processor."""
    instead: str = ""
    """What is said where there is no value."""

    @property
    def used(self) -> float:
        """Share of the limit; above 1 it is missed."""
        if self.value is None:
            return float("nan")
        if self.at_least:
            return self.limit / self.value if self.value else float("inf")
        return self.value / self.limit if self.limit else 1.0 + self.value

    @property
    def met(self) -> bool:
        """Whether the figure is on the right side of the limit."""
        return self.used <= 1

    @property
    def earned(self) -> int:
        """All points, or at most half of them, the fewer the farther away."""
        if self.value is None:
            return 0
        return self.points if self.met else int(self.points / 2 / self.used)

    @property
    def verdict(self) -> str:
        """Met, or by how much not."""
        if self.value is None:
            return self.instead
        unit = self.unit.replace("%", "percentage points")
        return "met" if self.met else f"missed by {_short(abs(self.value - self.limit))} {unit}"

    def __str__(self) -> str:
        asked = f"{self.limit:,g} {self.unit} at {'least' if self.at_least else 'most'}"
        shown = "" if self.value is None or (self.rough and self.met) else f"{_short(self.value)} of "
        return f"{self.what + ':':22}{shown + asked + ', ' + self.verdict:58}{self.earned:2} of {self.points} points"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


@dataclass(frozen=True)
class Card:
    """All goals of one design."""

    name: str
    goals: Sequence[Goal]

    @property
    def points(self) -> int:
        """Of all goals."""
        return sum(goal.earned for goal in self.goals)

    @property
    def missed(self) -> str:
        """The goals that are missed, as one text; empty where there is none."""
        return "; ".join(f"{goal.what}, {goal.verdict}" for goal in self.goals if not goal.met)

    def __str__(self) -> str:
        most = sum(goal.points for goal in self.goals)
        last = [f"  {self.points} of {most} points"] if self.goals else []
        return "\n".join([self.name, *(f"  {goal}" for goal in self.goals), *last])


def accuracy_goal(what: str, percent: float | None, least: float, points: int) -> Goal:
    """An accuracy in per cent; None where the design does not start."""
    return Goal(what, percent, least, "%", points, at_least=True, rough=True, instead="does not start")


def card_of(name: str, goals: Callable[[], Iterable[Goal]]) -> Card:
    """The card of a design; where it cannot be made, the sentence that says why stands in its place, with 0 points."""
    try:
        return Card(name, [*goals()])
    except (NotImplementedError, ValueError, KeyError, TypeError) as error:
        return Card(f"{name}: {error}", ())


def total(card: Card, passed: Collection[int], tasks: int) -> str:
    """The score of a whole sheet, from 0 to 100, and where it comes from."""
    missing = [str(task) for task in range(1, tasks + 1) if task not in passed]
    lines = [f"tasks 1 to {tasks}: {TASK_POINTS * (tasks - len(missing))} of {TASK_POINTS * tasks} points"]
    lines[0] += f"; not passed: {', '.join(missing)}" if missing else ""
    lines += [str(card), f"SCORE {card.points + TASK_POINTS * (tasks - len(missing))} of 100"]
    return "\n".join(lines)


def used(cards: Sequence[Card]) -> kit.Chart:
    """Which share of each limit the designs use, on a logarithmic axis; beyond 100 % a goal is missed."""
    names = [goal.what for goal in cards[0].goals]
    missed = [(card.name, [goal.what for goal in card.goals if not goal.met] or ["nothing"]) for card in cards]
    alt = "; ".join(f"{name} misses {', '.join(which)}" for name, which in missed)
    figure = kit.Chart(figsize=(7.6, 0.9 + 0.62 * len(names)), facecolor="white", alt=f"Bars of the goals: {alt}.")
    axes, high = figure.subplots(), 0.8 / len(cards)
    for row, (card, color, hatch) in enumerate(zip(cards, cycle(_COLORS), cycle(_HATCHES), strict=False)):
        places = [place + (row - (len(cards) - 1) / 2) * high for place in range(len(names))]
        shares = [100 * goal.used for goal in card.goals]
        axes.barh(places, shares, high, color=color, hatch=hatch, edgecolor="white", label=card.name)
        for place, goal, share in zip(places, card.goals, shares, strict=True):
            told = goal.instead if goal.value is None else f"{_short(goal.value)} {goal.unit}"
            at, box = 1.0 if goal.value is None else max(1.0, share), {"color": "white", "pad": 1, "linewidth": 0}
            axes.text(1.12 * at, place, told, va="center", fontsize=9, bbox=box)
    axes.axvline(100, color="black", linewidth=1.5)
    most = max((100 * goal.used for card in cards for goal in card.goals if goal.value is not None), default=100.0)
    axes.set(xscale="log", xlim=(1, 8 * max(100.0, most)), ylim=(len(names) - 0.5, -0.5))
    axes.set_xlabel("figure / limit in % (accuracy: limit / figure); beyond the black line: missed")
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:,.0f}")
    axes.set_yticks(range(len(names)), names)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(cards), frameon=False, fontsize=9)
    return figure
