"""The words of the pocket world, read from ``words.toml``: topics, things, people, judgements, events.

Knows: English words and which of them praise or blame.  Knows nothing of: sentences, tensors, files beside its own.
``grammar.py`` puts the words together; a word added to ``words.toml`` is in the next pretraining.

Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Polar = tuple[tuple[str, ...], tuple[str, ...]]
"""Entries that blame (index 0) and entries that praise (index 1): the index is the label."""


@dataclass(frozen=True)
class Group:
    """Nouns that share their adjectives."""

    adjectives: str
    """Key of ``ADJECTIVES``."""
    singular: tuple[str, ...]
    plural: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    """One field of life that people write about."""

    name: str
    whole: tuple[str, ...]
    """What the text as a whole is about, singular: "restaurant"."""
    staff: tuple[str, ...]
    """People met there, singular; the plural is made by ``plural_of``."""
    groups: tuple[Group, ...]
    events: Polar
    """Whole clauses, past tense, that say something bad or good."""
    neutral: tuple[str, ...]
    """Whole clauses, past tense, that say nothing about quality."""


_WORDS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))


def _list(name: str) -> tuple[str, ...]:
    return tuple(_WORDS[name])


def _polar(table: dict[str, list[str]]) -> Polar:
    return tuple(table["bad"]), tuple(table["good"])


def _topic(table: dict[str, Any]) -> Topic:
    groups = tuple(Group(g["adjectives"], tuple(g["singular"]), tuple(g["plural"])) for g in table["groups"])
    whole, staff, neutral = (tuple(table[key]) for key in ("whole", "staff", "neutral"))
    return Topic(table["name"], whole, staff, groups, _polar(table), neutral)


# --- judgements ---------------------------------------------------------------------------------------------

ADJECTIVES: dict[str, Polar] = {kind: _polar(table) for kind, table in _WORDS["adjectives"].items()}
OPINION_VERBS = _polar(_WORDS["opinion_verbs"])
"""``base|past``; the object follows."""
FEELINGS = _polar(_WORDS["feelings"])
FEELING_LINK: dict[str, str] = _WORDS["feeling_link"]
NOUN_JUDGEMENTS = _polar(_WORDS["noun_judgements"])
PERSON_EVENTS = _polar(_WORDS["person_events"])
"""``base|past``; the subject is one of the topic's people."""
GENERAL_EVENTS = _polar(_WORDS["general_events"])
EVERYDAY_EVENTS = _polar(_WORDS["everyday_events"])
PREDICATES = _polar(_WORDS["predicates"])
MANNER = _polar(_WORDS["manner"])
MADE, BEHAVED = _list("made"), _list("behaved")

# --- small words --------------------------------------------------------------------------------------------

INTENSIFIERS = _list("intensifiers")
INTENSIFIERS_GOOD, INTENSIFIERS_BAD = _list("intensifiers_good"), _list("intensifiers_bad")
PLAIN_INTENSIFIERS, DOWNTONERS = _list("plain_intensifiers"), _list("downtoners")
NEGATORS = _list("negators")
"""Singular past; ``grammar`` makes the plural (was → were)."""
COPULAS_PAST, COPULAS_PRESENT = _list("copulas_past"), _list("copulas_present")
PERSON_SUBJECTS, FIRST_NAMES, TOWNS = _list("person_subjects"), _list("first_names"), _list("towns")
WHEN, OCCASIONS, COMPARED = _list("when"), _list("occasions"), _list("compared")
MASS_NOUNS = frozenset(_list("mass_nouns"))
"""Nouns that take no article after an adjective: "we had lovely bread"."""
STAFF_PLURALS: dict[str, str] = _WORDS["staff_plurals"]


def plural_of(person: str) -> str:
    """``waiter`` → ``waiters``; irregular ones from the table."""
    if person in STAFF_PLURALS:
        return STAFF_PLURALS[person]
    return person[:-1] + "ies" if person.endswith("y") else person + "s"


# --- topics and verdicts ------------------------------------------------------------------------------------

TOPICS: tuple[Topic, ...] = tuple(_topic(table) for table in _WORDS["topics"])
VERDICT_WORDS = _polar(_WORDS["verdict_words"])
MODERATE_WORDS = _polar(_WORDS["moderate_words"])
"""Verdicts on texts that have two sides."""
LABEL_WORDS = ("terrible", "great")
"""The words that stand for label 0 and label 1 after ``PROMPT``."""
PROMPT = " all in all it was"
"""What follows a text when the decoder is asked for its verdict; the label word is the next token."""
