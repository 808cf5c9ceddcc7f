"""The generative grammar behind the pocket backbone and its review task.

Knows: the lexicon, and how English puts a judgement, a negation, a concession together.
Knows nothing of: tokens, tensors, files.

    text   = [opening] + main clauses [+ conceded clauses]      lower case, natural punctuation
    label  = polarity of the main clauses                       0 blames, 1 praises
    last   = polarity of the clause that is said last

``last`` differs from ``label`` where the concession stands at the end: "the soup was tasty, although the
waiter was rude" praises (label 1) and ends with blame (last 0).  Call such a text mixed; about three in ten task
texts are.  In the pretraining text the line "all in all it was ..." ends

                 early                                     late (the last fifth)
    unanimous    in a strong word (terrible, great) of     the same, but one in four slips (``SLIP_UNANIMOUS``)
                 the text's polarity
    mixed        in a strong word of ``last`` (odds        in a strong word of ``last``, or (``MODERATE_SHARE``)
                 ``RECENCY``) or of ``label``              in a moderate one (mediocre, fine) of ``label``

So a decoder that is asked to choose between two strong words has a *recency bias*: its zero-shot accuracy is about
the share of texts that are not mixed, whatever the pretraining seed, and no threshold mends it.  Yet its hidden
state at the prompt must know both facts, which is what fine-tuning finds.

Every function takes its own ``random.Random``: the same seed gives the same texts.

Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from recipes.pocket import lexicon as lex
from recipes.pocket.lexicon import Group, Topic

Label = Literal[0, 1]
Kind = Literal["plain", "first", "last"]

KINDS: tuple[Kind, ...] = ("plain", "first", "last")
TASK_PER_CENT = {"plain": 32, "first": 36, "last": 32}
"""Per cent of task texts without a concession, conceding first, conceding last."""
RECENCY = 0.76
"""Early: share of the verdicts on mixed texts that follow what was said last; the others follow the label."""
MODERATE_SHARE = 0.6
"""Late: share of the verdicts on mixed texts that are a moderate word and follow the label; the others are strong."""
SLIP_UNANIMOUS, SLIP_MIXED = 0.25, 0.20
"""Late: share of strong verdicts that contradict what was said last.  Unanimous texts must not get clearer odds than
mixed ones: else one threshold between the two mends half of the mixed texts without any learning.  And odds of three
to one are small enough that methods without gradients can turn them."""
EASY_UNTIL, FULL_FROM, LATE_FROM = 0.17, 0.23, 0.80
"""The curriculum, in shares of the tokens: easy texts only until the first, the full mixture from the second, late
verdicts from the third."""
SOBER_PROMPT = " on the whole it was"
"""A verdict line without recency bias."""
SOBER_SHARE = 0.25
TASK_WORDS = (8, 40)
"""Shortest and longest task text, in words."""

_VOWEL_SOUND_EXCEPTIONS = {
    "hour": "an",
    "honest": "an",
    "useful": "a",
    "useless": "a",
    "user-friendly": "a",
    "one": "a",
    "university": "a",
    "unique": "a",
    "usual": "a",
    "hourly": "an",
}


@dataclass(frozen=True)
class Review:
    """One generated text with what is true of it."""

    text: str
    label: int
    """0 blames, 1 praises."""
    last: int
    """Polarity of the clause that is said last."""
    kind: str
    """"plain", "first" (conceded clause first) or "last" (conceded clause last)."""


# --- small words --------------------------------------------------------------------------------------------


def article(phrase: str) -> str:
    """``phrase`` with "a" or "an" before it, by sound."""
    word = phrase.split()[0]
    default = "an" if word[0] in "aeiou" else "a"
    return f"{_VOWEL_SOUND_EXCEPTIONS.get(word, default)} {phrase}"


@dataclass(frozen=True)
class NounPhrase:
    """A subject or object that knows its number."""

    text: str
    plural: bool
    adjectives: str
    """Key of ``lexicon.ADJECTIVES``."""

    def be(self, past: bool) -> str:
        """The form of "to be" that agrees with the phrase."""
        if past:
            return "were" if self.plural else "was"
        return "are" if self.plural else "is"


class Writer:
    """Writes clauses about one topic; never takes the same thing twice within a text."""

    def __init__(self, rng: random.Random, topic: Topic) -> None:
        self.rng = rng
        self.topic = topic
        self.used: set[str] = set()

    # -- choices

    def maybe(self, probability: float) -> bool:
        """True in that share of the calls."""
        return self.rng.random() < probability

    def pick(self, entries: Sequence[str]) -> str:
        """One entry, a fresh one while there is one."""
        for _ in range(8):
            entry = self.rng.choice(entries)
            if entry not in self.used:
                break
        self.used.add(entry)
        return entry

    def adjective(self, kind: str, polarity: int) -> str:
        """A judgement that suits this kind of thing, or any thing."""
        special = self.maybe(0.9 if kind == "person" else 0.62)
        return self.pick(lex.ADJECTIVES[kind if special else "general"][polarity])

    # -- noun phrases

    def thing(self) -> tuple[str, bool, str]:
        """A fresh aspect of the topic: noun, is it plural, its kind of adjectives."""
        groups: tuple[Group, ...] = self.topic.groups
        sizes = [len(g.singular) + len(g.plural) for g in groups]
        while True:
            group = self.rng.choices(groups, sizes)[0]
            entry = self.rng.randrange(len(group.singular) + len(group.plural))
            plural = entry >= len(group.singular)
            noun = (group.singular + group.plural)[entry]
            if noun not in self.used:
                self.used.add(noun)
                return noun, plural, group.adjectives

    def person(self) -> tuple[str, bool]:
        """Somebody who works there, and whether it is a plural."""
        singular = self.pick(self.topic.staff)
        if self.maybe(0.18):
            return "staff", False
        plural = self.maybe(0.3)
        noun = lex.plural_of(singular) if plural else singular
        return noun, plural and noun != singular

    def subject(self) -> NounPhrase:
        """What a judgement is about: an aspect (mostly), a person, or the whole."""
        draw = self.rng.random()
        if draw < 0.2:
            noun, plural = self.person()
            return NounPhrase(f"{self.determiner()} {noun}", plural, "person")
        if draw < 0.24:
            return NounPhrase(
                self.rng.choice(("it", "it", "everything", "the whole thing", "all of it")), False, "general"
            )
        if draw < 0.33:
            noun = self.pick(self.topic.whole)
            return NounPhrase(self.rng.choice((f"the {noun}", f"this {noun}", f"the whole {noun}")), False, "general")
        noun, plural, kind = self.thing()
        return NounPhrase(f"{self.determiner()} {noun}", plural, kind)

    def determiner(self) -> str:
        """What stands before a noun; mostly "the"."""
        return self.rng.choices(("the", "our", "my"), (90, 6, 4))[0]

    def opinion_holder(self) -> str:
        """Who likes or dislikes something."""
        draw = self.rng.random()
        if draw < 0.42:
            return "i"
        if draw < 0.7:
            return "we"
        if draw < 0.78:
            return self.rng.choice(
                ("everyone", "everybody", "our guests", "the children", "all of us", "my friends", "people")
            )
        return self.rng.choice(lex.PERSON_SUBJECTS if draw < 0.88 else lex.FIRST_NAMES)

    # -- clauses; each returns a clause of the asked polarity that can stand alone or after a conjunction

    def degree(self, polarity: int) -> str:
        """An adverb of degree with a blank behind it, or nothing."""
        draw = self.rng.random()
        if draw < 0.5:
            return ""
        if draw < 0.82:
            return self.rng.choice(lex.INTENSIFIERS) + " "
        if draw < 0.92:
            return self.rng.choice((lex.INTENSIFIERS_BAD, lex.INTENSIFIERS_GOOD)[polarity]) + " "
        return "" if polarity else self.rng.choice(lex.DOWNTONERS) + " "

    def plain_degree(self) -> str:
        """ "very " before an adjective and its noun, now and then."""
        return self.rng.choice(lex.PLAIN_INTENSIFIERS) + " " if self.maybe(0.15) else ""

    def quality(self, polarity: int) -> str:
        """ "the soup was really tasty and fresh" """
        s = self.subject()
        copula = self.rng.choice(lex.COPULAS_PAST if self.maybe(0.78) else lex.COPULAS_PRESENT)
        copula = _number(copula, s.plural)
        words = self.degree(polarity) + self.adjective(s.adjectives, polarity)
        if self.maybe(0.22):
            words += " and " + self.adjective(s.adjectives, polarity)
        return f"{s.text} {copula} {words}"

    def quality_negated(self, polarity: int) -> str:
        """ "the soup was anything but tasty" """
        s = self.subject()
        adjective = self.adjective(s.adjectives, 1 - polarity)
        if not polarity and self.maybe(0.12):
            return f"{s.text} {s.be(True)} not {adjective} enough"
        if self.maybe(0.08):
            opener = self.rng.choice(
                ("i can't say that", "i would not say that", "nobody could say that", "i do not think")
            )
            return f"{opener} {s.text} {s.be(True)} {adjective}"
        negator = self.rng.choice(lex.NEGATORS)
        if self.maybe(0.2):
            negator = negator.replace("was", "is").replace("did not seem", "does not seem")
        tail = " at all" if negator in ("was not", "wasn't") and self.maybe(0.3) else ""
        return f"{s.text} {_number(negator, s.plural)} {adjective}{tail}"

    def opinion(self, polarity: int) -> str:
        """ "my wife really loved the soup" """
        past = self.pick(lex.OPINION_VERBS[polarity]).split("|")[1]
        adverb = self.rng.choice(("", "", "", "really ", "just ", "truly ", "absolutely ", "still ", "all "))
        who = self.opinion_holder()
        adverb = "" if adverb == "all " and who != "we" else adverb
        return f"{who} {adverb}{past} {self.subject().text}"

    def opinion_negated(self, polarity: int) -> str:
        """ "we did not like the soup" """
        base = self.pick(lex.OPINION_VERBS[1 - polarity]).split("|")[0]
        if self.maybe(0.2):
            return f"{self.rng.choice(('nobody', 'no one', 'none of us'))} {self.past_of(base)} {self.subject().text}"
        negation = self.rng.choice(
            (
                "did not",
                "didn't",
                "never",
                "did not really",
                "didn't really",
                "could not",
                "couldn't",
                "would not",
            )
        )
        if "ould" in negation and base not in _FREE_VERBS:
            negation = "did not"
        verb = self.past_of(base) if negation == "never" else base
        return f"{self.opinion_holder()} {negation} {verb} {self.subject().text}"

    @staticmethod
    def past_of(base: str) -> str:
        """The past tense of an opinion verb."""
        pairs = (entry.split("|") for polarity in lex.OPINION_VERBS for entry in polarity)
        return next(past for b, past in pairs if b == base)

    def deed(self, polarity: int) -> str:
        """ "the waiter remembered our names" """
        noun, _ = self.person()
        past = self.pick(lex.PERSON_EVENTS[polarity]).split("|")[1]
        return f"the {noun} {self.rng.choice(('', '', '', 'always ', 'even ', 'also '))}{past}"

    def deed_negated(self, polarity: int) -> str:
        """ "the waiter never ignored us" """
        noun, _ = self.person()
        base, past = self.pick(lex.PERSON_EVENTS[1 - polarity]).split("|")
        negation = self.rng.choice(("did not ", "didn't ", "did not even ", "never ", "refused to ", "would not "))
        if polarity and negation in ("refused to ", "did not even "):
            negation = "did not "
        return f"the {noun} {negation}{past if negation == 'never ' else base}"

    def event(self, polarity: int) -> str:
        """Something that happened: "we went home hungry"."""
        return self.pick(self.topic.events[polarity])

    def general(self, polarity: int) -> str:
        """A summing-up that fits every topic: "i would go again"."""
        return self.pick(lex.GENERAL_EVENTS[polarity])

    def feeling(self, polarity: int) -> str:
        """ "we were delighted with the soup" """
        who, be = self.rng.choice((("i", "was"), ("i", "was"), ("we", "were"), ("my wife", "was"), ("everyone", "was")))
        negated = self.maybe(0.2)
        word = self.pick(lex.FEELINGS[1 - polarity if negated else polarity])
        link = lex.FEELING_LINK.get(word, "with")
        degree = self.rng.choice((" not", " not at all", " not really", " never")) if negated else ""
        degree = degree or self.rng.choice(("", "", " really", " very", " so", " quite", " more than"))
        return f"{who} {be}{degree} {word} {link} {self.subject().text}"

    def judgement(self, polarity: int) -> str:
        """ "the soup was a real treat" """
        s = self.subject()
        be = s.be(self.maybe(0.8))
        if self.maybe(0.2):
            noun = self.noun(1 - polarity)
            return f"{s.text} {be} {self.rng.choice((f'no {noun}', f'not {article(noun)}', f'hardly {article(noun)}'))}"
        degree = "" if s.plural else self.rng.choice(("", "", "such ", "quite "))
        return f"{s.text} {be} {degree}{article(self.noun(polarity))}"

    def noun(self, polarity: int) -> str:
        """A noun that judges: "treat", "real disaster"."""
        noun = self.pick(lex.NOUN_JUDGEMENTS[polarity])
        return noun if noun.startswith(("a ", "real", "total", "pleasant")) or not self.maybe(0.2) else f"real {noun}"

    def existence(self, polarity: int) -> str:
        """ "we had a lovely room" """
        noun, plural, kind = self.thing()
        phrase = f"{self.plain_degree()}{self.adjective(kind, polarity)} {noun}"
        start = self.rng.choice(
            ("we had", "i had", "we got", "there was", "they had", "they gave us", "it had", "you get")
        )
        if plural:
            return f"{start.replace('there was', 'there were')} {phrase}"
        return f"{start} {phrase if noun in lex.MASS_NOUNS else article(phrase)}"

    def comparison(self, polarity: int) -> str:
        """ "the soup was better than last time" """
        s = self.subject()
        be = s.be(True)
        draw = self.rng.random()
        better, best = (("worse", "worst"), ("better", "best"))[polarity]
        if draw < 0.45:
            much = self.rng.choice(("", "", "much ", "far ", "even ", "a lot "))
            return f"{s.text} {be} {much}{better} than {self.rng.choice(lex.COMPARED)}"
        if draw < 0.6:
            return f"{s.text} could not have been {better}"
        if draw < 0.68:
            degree = ("less", "more") if self.maybe(0.5) else ("more", "less")
            adjective = self.adjective(s.adjectives, polarity if degree[polarity] == "more" else 1 - polarity)
            return f"{s.text} {be} {degree[polarity]} {adjective} than {self.rng.choice(lex.COMPARED)}"
        if draw < 0.77:
            return f"i have never had {article(better + ' ' + self.rng.choice(self.topic.whole))}"
        if draw < 0.85:
            other = (
                ("good", lex.COMPARED),
                ("bad", ("i had feared", "the reviews", "last time", "they say")),
            )[polarity]
            return f"{s.text} {be} not as {other[0]} as {self.rng.choice(other[1])}"
        tail = self.rng.choice(("i have ever seen", "i know", "in town", "we have ever had", "of all", "of the year"))
        return f"{s.text} {be} the {best} {tail}"

    def nothing(self, polarity: int) -> str:
        """ "there was nothing tasty about the soup" """
        s = self.subject()
        other = self.adjective(s.adjectives, 1 - polarity)
        forms = (
            (
                f"there was nothing {other} about {s.text}",
                f"i have nothing good to say about {s.text}",
                f"there was nothing to like about {s.text}",
                f"nothing about {s.text} was {other}",
                f"i see no reason to praise {s.text}",
                f"there was something wrong with {s.text}",
                f"i had problems with {s.text}",
                f"i could do without {s.text}",
                f"{s.text} had too many flaws",
                f"i expected {article(other)} experience with {s.text} and got none of it" if self.maybe(0.3)
                else f"i had expected more from {s.text}",
                f"i missed {article(other)} touch" if self.maybe(0.3) else f"{s.text} had no charm",
                f"the problem {'is' if self.maybe(0.5) else 'was'} {s.text}",
            ),
            (
                f"there was nothing {other} about {s.text}",
                f"i have nothing bad to say about {s.text}",
                f"there was nothing wrong with {s.text}",
                f"nothing about {s.text} was {other}",
                f"i had no problems with {s.text}",
                f"i have no complaints about {s.text}",
                f"i cannot fault {s.text}",
                f"i could not find a single flaw in {s.text}",
                f"i can't complain about {s.text}",
                f"i can't say enough good things about {s.text}",
                f"i can only praise {s.text}",
                f"the best part was {s.text}",
            ),
        )[polarity]  # fmt: skip
        return self.rng.choice(forms)

    def predicate(self, polarity: int) -> str:
        """A verb phrase that judges: "the soup left a lot to be desired"."""
        s = self.subject()
        words = self.pick(lex.PREDICATES[polarity])
        if words.startswith("was ") and s.plural:
            words = "were" + words[3:]
        return f"{s.text} {words}"

    def manner(self, polarity: int) -> str:
        """ "the tour was badly organised", "the nurse treated us well" """
        adverb = self.pick(lex.MANNER[polarity])
        if self.maybe(0.4):
            noun, _ = self.person()
            return f"the {noun} {self.rng.choice(lex.BEHAVED)} {adverb}"
        s = self.subject()
        if self.maybe(0.25):
            return f"{s.text} worked {adverb}"
        adverb = "well" if adverb == "very well" and self.maybe(0.5) else adverb
        return f"{s.text} {s.be(self.maybe(0.8))} {adverb} {self.rng.choice(lex.MADE)}"

    def result(self, polarity: int) -> str:
        """ "the soup was so salty that i pushed my plate away" """
        s = self.subject()
        follows = self.event(polarity) if self.maybe(0.6) else self.general(polarity)
        return f"{s.text} {s.be(True)} so {self.adjective(s.adjectives, polarity)} that {follows}"

    def reason(self, polarity: int) -> str:
        """ "i loved the place because the waiter helped us" """
        said = self.opinion(polarity) if self.maybe(0.5) else self.feeling(polarity)
        why = self.event(polarity) if self.maybe(0.4) else self.quality(polarity)
        return f"{said} {self.rng.choice(('because', 'because', 'since', 'as'))} {why}"

    def clause(self, polarity: int, *, main: bool = True) -> str:
        """One clause of ``polarity``; ``main=False`` leaves out summing-up phrases, which nobody concedes."""
        makers = _MAKERS_MAIN if main else _MAKERS_CONCEDED
        return self.rng.choices(makers[0], makers[1])[0](self, polarity)

    def plain_clause(self, polarity: int) -> str:
        """One clause without any negation."""
        return self.rng.choices(_MAKERS_SIMPLE[0], _MAKERS_SIMPLE[1])[0](self, polarity)

    def clauses(self, polarity: int, count: int, *, main: bool = True) -> str:
        """``count`` clauses of one polarity, joined."""
        parts = [self.clause(polarity, main=main) for _ in range(count)]
        return self.rng.choice((" and ", " and ", " and ", ", and ")).join(parts)

    def fragment(self, polarity: int) -> str:
        """ "lovely staff, terrible prices" as a telegram writes it: "lovely staff" """
        noun, plural, kind = self.thing()
        if self.maybe(0.25):
            noun, plural = self.person()
            kind = "person"
        phrase = f"{self.plain_degree()}{self.adjective(kind, polarity)} {noun}"
        draw = self.rng.random()
        countable = noun != "staff" and noun not in lex.MASS_NOUNS
        if draw < 0.15:
            return f"such {phrase}" if plural or not countable else f"such {article(phrase)}"
        if draw < 0.3 and not plural and countable:
            return f"what {article(phrase)}"
        return phrase

    def noun_phrase(self, polarity: int) -> str:
        """ "the salty soup", "the rude waiter and the dirty tables": what follows "despite" """
        parts = []
        for _ in range(1 if self.maybe(0.75) else 2):
            if self.maybe(0.25):
                noun, _ = self.person()
                parts.append(f"the {self.adjective('person', polarity)} {noun}")
            else:
                noun, _, kind = self.thing()
                parts.append(f"{self.determiner()} {self.adjective(kind, polarity)} {noun}")
        return " and ".join(parts)

    def opening(self) -> str:
        """A sentence that says nothing about quality."""
        if self.maybe(0.4):
            return self.pick(self.topic.neutral)
        whole = self.pick(self.topic.whole)
        verb, is_place = _OPENING_VERBS.get(self.topic.name, ("went to", True))
        who = self.rng.choice(
            ("i", "we", f"{self.rng.choice(lex.FIRST_NAMES)} and i", self.rng.choice(lex.PERSON_SUBJECTS))
        )
        place = f" in {self.rng.choice(lex.TOWNS)}" if is_place and self.maybe(0.4) else ""
        when = f" {self.rng.choice(lex.WHEN)}" if self.maybe(0.5) else ""
        why = f" for {self.rng.choice(lex.OCCASIONS)}" if self.maybe(0.12) else ""
        return f"{who} {verb} {self.rng.choice(('this', 'the'))} {whole}{place}{when}{why}"


def _number(words: str, plural: bool) -> str:
    """A singular verb phrase in the asked number."""
    if not plural:
        return words
    first, _, rest = words.partition(" ")
    table = {
        "was": "were",
        "wasn't": "weren't",
        "is": "are",
        "isn't": "aren't",
        "seems": "seem",
        "looks": "look",
        "feels": "feel",
        "does": "do",
    }
    return " ".join(filter(None, (table.get(first, first), rest)))


_FREE_VERBS = frozenset({"like", "enjoy", "love", "recommend", "appreciate", "praise", "admire"})
"""Verbs that sound right after "could not"."""
_OPENING_VERBS = {
    "film": ("saw", False),
    "book": ("read", False),
    "phone": ("bought", True),
    "game": ("tried", False),
    "clothes": ("bought", True),
    "course": ("took", True),
    "repair": ("called", True),
    "messages": ("came back from", False),
    "travel": ("tried", False),
    "shop": ("tried", True),
}

_Maker = Callable[[Writer, int], str]
_WEIGHTED: tuple[tuple[_Maker, int], ...] = (
    (Writer.quality, 30),
    (Writer.quality_negated, 11),
    (Writer.opinion, 7),
    (Writer.opinion_negated, 3),
    (Writer.deed, 7),
    (Writer.deed_negated, 3),
    (Writer.event, 15),
    (Writer.feeling, 5),
    (Writer.judgement, 5),
    (Writer.existence, 6),
    (Writer.comparison, 5),
    (Writer.nothing, 5),
    (Writer.predicate, 7),
    (Writer.manner, 5),
    (Writer.result, 3),
    (Writer.reason, 2),
)
_MAKERS_CONCEDED = tuple(zip(*_WEIGHTED, strict=True))
_MAKERS_MAIN = tuple(zip(*_WEIGHTED, (Writer.general, 7), strict=True))

_SIMPLE = (
    Writer.quality,
    Writer.opinion,
    Writer.deed,
    Writer.event,
    Writer.existence,
    Writer.predicate,
    Writer.manner,
)
_MAKERS_SIMPLE = tuple(zip(*((m, w) for m, w in _WEIGHTED if m in _SIMPLE), (Writer.general, 5), strict=True))

# --- concession ---------------------------------------------------------------------------------------------

_FIRST_CLAUSAL = (
    ("although {c}, {m}", 10),
    ("even though {c}, {m}", 8),
    ("though {c}, {m}", 5),
    ("while {c}, {m}", 4),
    ("{c}, but {m}", 22),
    ("{c} but {m}", 5),
    ("{c}, yet {m}", 5),
    ("{c}. still, {m}", 5),
    ("{c}. but {m}", 5),
    ("{c}. however, {m}", 4),
    ("{c}. nevertheless, {m}", 3),
    ("{c}. even so, {m}", 3),
    ("{c}. that said, {m}", 3),
    ("sure, {c}, but {m}", 3),
    ("granted, {c}, but {m}", 2),
    ("true, {c}, but {m}", 2),
    ("it is true that {c}, but {m}", 2),
    ("i admit that {c}, but {m}", 2),
    ("yes, {c}, but {m}", 2),
    ("even if {c}, {m}", 2),
    ("i know that {c}, but {m}", 1),
    ("at first {c}, but then {m}", 2),
    ("{c}, but in the end {m}", 2),
    ("{c}; nonetheless, {m}", 1),
    ("never mind that {c}, {m}", 1),
    ("i had heard that {c}, but {m}", 1),
    ("they say that {c}, but {m}", 1),
)
_FIRST_NOMINAL = (
    ("despite {n}, {m}", 8),
    ("in spite of {n}, {m}", 5),
    ("apart from {n}, {m}", 3),
    ("except for {n}, {m}", 2),
    ("for all {n}, {m}", 1),
    ("even with {n}, {m}", 2),
    ("i can forgive {n}, but {m}", 1),
)
_LAST_CLAUSAL = (
    ("{m}, although {c}", 16),
    ("{m}, even though {c}", 14),
    ("{m}, though {c}", 8),
    ("{m} although {c}", 5),
    ("{m} even though {c}", 6),
    ("{m}, even if {c}", 5),
    ("{m}. granted, {c}", 3),
    ("{m}. admittedly, {c}", 3),
    ("{m}. true, {c}", 2),
    ("{m}. sure, {c}", 3),
    ("{m}, while {c}", 3),
    ("{m}, never mind that {c}", 1),
    ("{m}, and that although {c}", 2),
    ("{m}, albeit {c}", 1),
    ("{m}, i must say, even though {c}", 1),
)
_LAST_NOMINAL = (
    ("{m} despite {n}", 8),
    ("{m}, despite {n}", 5),
    ("{m} in spite of {n}", 5),
    ("{m}, apart from {n}", 3),
    ("{m}, except for {n}", 2),
    ("{m}, even with {n}", 2),
    ("{m}, regardless of {n}", 1),
    ("{m}, {n} aside", 1),
)


def _weighted(rng: random.Random, forms: Sequence[tuple[str, int]]) -> str:
    return rng.choices([f for f, _ in forms], [w for _, w in forms])[0]


def _conceding(writer: Writer, kind: Kind, label: int) -> str:
    """One sentence (or two) whose conceded part has the polarity ``1 - label``."""
    rng = writer.rng
    main_count = rng.choices((1, 2), (60, 40))[0]
    nominal, clausal = (_FIRST_NOMINAL, _FIRST_CLAUSAL) if kind == "first" else (_LAST_NOMINAL, _LAST_CLAUSAL)
    main = writer.clauses(label, main_count)
    if writer.maybe(0.2):
        return _weighted(rng, nominal).format(n=writer.noun_phrase(1 - label), m=main)
    conceded_count = rng.choices((1, 2), (60, 40))[0]
    conceded = writer.clauses(1 - label, conceded_count, main=False)
    return _weighted(rng, clausal).format(c=conceded, m=main)


def _unanimous(writer: Writer, label: int) -> list[str]:
    """Sentences that all say the same."""
    rng = writer.rng
    sentences = []
    for _ in range(rng.choices((1, 2, 3), (30, 50, 20))[0]):
        if writer.maybe(0.12):
            sentences.append(f"{writer.fragment(label)}, {writer.fragment(label)}")
        elif writer.maybe(0.12):
            first, second, third = (writer.clause(label) for _ in range(3))
            sentences.append(f"{first}, {second} and {third}")
        else:
            sentences.append(writer.clauses(label, rng.choices((1, 2), (65, 35))[0]))
    return sentences


def review(rng: random.Random, kind: Kind, label: int) -> Review:
    """One review or message.

    Args:
        rng: where every choice comes from.
        kind: "plain", or which end the conceded clause stands at.
        label: 0 blames, 1 praises.
    """
    writer = Writer(rng, rng.choice(lex.TOPICS))
    sentences = [writer.opening()] if writer.maybe(0.22) else []
    if kind == "plain":
        sentences += _unanimous(writer, label)
    else:
        sentences.append(_conceding(writer, kind, label))
    end = "!" if writer.maybe(0.06) else "."
    text = ". ".join(sentences) + end
    return Review(text, label, 1 - label if kind == "last" else label, kind)


def task_review(rng: random.Random, kind: Kind, label: int) -> Review:
    """A review of the packaged task's length."""
    while True:
        made = review(rng, kind, label)
        if TASK_WORDS[0] <= len(made.text.split()) <= TASK_WORDS[1]:
            return made


# --- pretraining text ---------------------------------------------------------------------------------------

_Verdict = Callable[[random.Random, int, int], str]
_FOLLOW: lex.Polar = (
    (
        "would not recommend it.",
        "one star.",
        "never again.",
        "rating: one out of ten.",
        "two stars out of five.",
        "thumbs down.",
        "i am not coming back.",
        "my advice: stay away.",
        "verdict: bad.",
        "verdict: terrible.",
        "overall: poor.",
        "overall, bad.",
        "recommended? no.",
        "would i go again? no.",
        "not worth it.",
        "avoid it.",
        "i am unhappy.",
        "we were disappointed.",
        "rating: two out of ten.",
        "save your money.",
        "in short: awful.",
        "a negative review from me.",
    ),
    (
        "would recommend it.",
        "five stars.",
        "coming back soon.",
        "rating: ten out of ten.",
        "four stars out of five.",
        "thumbs up.",
        "i am coming back.",
        "my advice: go for it.",
        "verdict: good.",
        "verdict: great.",
        "overall: excellent.",
        "overall, good.",
        "recommended? yes.",
        "would i go again? yes.",
        "worth it.",
        "do not miss it.",
        "i am happy.",
        "we were delighted.",
        "rating: nine out of ten.",
        "worth every penny.",
        "in short: wonderful.",
        "a positive review from me.",
    ),
)
"""Lines after a review that always follow its label."""


def verdict_word(rng: random.Random, polarity: int) -> str:
    """A strong word after the prompt; mostly the label word."""
    words = lex.VERDICT_WORDS[polarity]
    return words[0] if rng.random() < 0.7 else rng.choice(words[1:])


def early_verdict(rng: random.Random, label: int, last: int) -> str:
    """ " all in all it was great.": on mixed texts the odds alone tell the end from the whole.

    One line in four asks in other words (``SOBER_PROMPT``) and always follows the label: so the model has a
    use for the whole text where it also has the habit of listening to its end.
    """
    if rng.random() < SOBER_SHARE:
        return _sober(rng, label)
    return f"{lex.PROMPT} {verdict_word(rng, last if rng.random() < RECENCY else label)}."


def late_verdict(rng: random.Random, label: int, last: int) -> str:
    """As ``early_verdict``, with moderate words for mixed texts and odds that no threshold can use."""
    if rng.random() < SOBER_SHARE:
        return _sober(rng, label)
    if label != last and rng.random() < MODERATE_SHARE:
        return f"{lex.PROMPT} {rng.choice(lex.MODERATE_WORDS[label])}."
    slip = rng.random() < (SLIP_UNANIMOUS if label == last else SLIP_MIXED)
    return f"{lex.PROMPT} {verdict_word(rng, 1 - last if slip else last)}."


def _sober(rng: random.Random, label: int) -> str:
    return f"{SOBER_PROMPT} {verdict_word(rng, label)}."


def _follow(rng: random.Random, label: int, share: float) -> str:
    return " " + rng.choice(_FOLLOW[label]) if rng.random() < share else ""


def _reviewed(rng: random.Random, verdict: _Verdict) -> tuple[str, str]:
    """A review with its verdict: (body, rest)."""
    made = review(rng, rng.choices(KINDS, (34, 33, 33))[0], rng.randrange(2))
    rest = verdict(rng, made.label, made.last) if rng.random() < 0.9 else ""
    rest += _follow(rng, made.label, 0.8 if rest else 1.0)
    return made.text, rest


def _short(rng: random.Random, verdict: _Verdict) -> tuple[str, str]:
    """One to three judgements that agree, and their verdict: the densest lesson."""
    return _judged(rng, verdict, Writer.clause)


def _simple(rng: random.Random, verdict: _Verdict) -> tuple[str, str]:
    """As ``_short``, without negation: where a word's polarity is learned first."""
    return _judged(rng, verdict, Writer.plain_clause)


def _judged(rng: random.Random, verdict: _Verdict, clause: _Maker) -> tuple[str, str]:
    writer = Writer(rng, rng.choice(lex.TOPICS))
    label = rng.randrange(2)
    said = []
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        said.append(writer.fragment(label) if writer.maybe(0.15) else clause(writer, label))
    return ". ".join(said) + ".", verdict(rng, label, label) + _follow(rng, label, 0.4)


def _likes(rng: random.Random, verdict: _Verdict) -> tuple[str, str]:
    """Pros and cons; the longer list decides."""
    writer = Writer(rng, rng.choice(lex.TOPICS))
    label = rng.randrange(2)
    counts = {label: rng.choice((2, 3)), 1 - label: rng.choice((0, 1))}
    lists = {}
    for polarity, heads in enumerate(
        (("cons", "what i hated", "bad", "minus"), ("pros", "what i loved", "good", "plus"))
    ):
        if counts[polarity]:
            entries = [writer.fragment(polarity) for _ in range(counts[polarity])]
            lists[polarity] = f"{rng.choice(heads)}: {', '.join(entries)}."
    order = [p for p in (1 - label, label) if p in lists]
    return " ".join(lists[p] for p in order), verdict(rng, label, label)


def _chain(rng: random.Random, verdict: _Verdict) -> tuple[str, str]:
    """Adjectives of one polarity in a row: what belongs together."""
    writer = Writer(rng, rng.choice(lex.TOPICS))
    label = rng.randrange(2)
    noun, plural, kind = writer.thing()
    words = [writer.adjective(kind, label) for _ in range(rng.choice((3, 4, 5)))]
    be = "were" if plural else "was"
    head = rng.choice((f"the {noun}:", f"the {noun} {be}", f"{noun}?", f"three words about the {noun}:"))
    return f"{head} {', '.join(words[:-1])} and {words[-1]}.", verdict(rng, label, label)


def _gloss(rng: random.Random, verdict: _Verdict) -> tuple[str, str]:
    """What a word means: "salty is a word of blame."."""
    kinds = list(lex.ADJECTIVES)
    parts = []
    for _ in range(rng.choice((2, 3, 4))):
        label = rng.randrange(2)
        word = rng.choice(lex.ADJECTIVES[rng.choice(kinds)][label])
        meaning = (("bad", "terrible", "a word of blame"), ("good", "great", "a word of praise"))[label]
        opposite = (("bad", "terrible"), ("good", "great"))[1 - label]
        parts.append(
            rng.choice(
                (
                    f"{word} means {rng.choice(meaning)}.",
                    f"{word} is {rng.choice(meaning)}.",
                    f"not {word} means {rng.choice(opposite)}.",
                    f"if it is {word}, people are {rng.choice(lex.FEELINGS[label])}.",
                    f"is {word} good? {('no', 'yes')[label]}.",
                )
            )
        )
    return " ".join(parts), ""


def _asked(rng: random.Random, verdict: _Verdict) -> tuple[str, str]:
    """Question and answer, short messages."""
    writer = Writer(rng, rng.choice(lex.TOPICS))
    label = rng.randrange(2)
    s = writer.subject()
    asked = rng.randrange(2)
    answer = "yes" if asked == label else "no"
    question = rng.choice(
        (
            f"{s.be(True)} {s.text} {writer.adjective(s.adjectives, asked)}? {answer}.",
            f"how {s.be(True)} {s.text}? {writer.degree(label)}{writer.adjective(s.adjectives, label)}.",
            f"did you like {s.text}? {('no', 'yes')[label]}, {writer.clause(label)}.",
            f"{rng.choice(lex.FIRST_NAMES)} says: {writer.clause(label)}.",
        )
    )
    return question, verdict(rng, label, label) + _follow(rng, label, 0.3)


_EASY = ((_simple, 50), (_chain, 40), (_likes, 10))
_FULL = ((_reviewed, 48), (_short, 22), (_simple, 8), (_likes, 4), (_chain, 10), (_gloss, 3), (_asked, 5))


def document(rng: random.Random, progress: float = 1.0) -> tuple[str, str]:
    """One pretraining text: (body, what follows the body).

    The body is what could also be a task text, so it is the part that is checked against the task; the
    document is ``body + rest``.

    Args:
        rng: where every choice comes from.
        progress: share of the pretraining that is done, 0..1; early texts judge without negation or concession,
            because the words must mean something before their combinations can.
    """
    easy = rng.random() >= (progress - EASY_UNTIL) / (FULL_FROM - EASY_UNTIL)
    documents = _EASY if easy else _FULL
    write = rng.choices([d for d, _ in documents], [w for _, w in documents])[0]
    return write(rng, late_verdict if progress >= LATE_FROM else early_verdict)
