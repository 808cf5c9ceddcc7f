"""Texts of the second packaged task: three things judged in turn, and the question which of them is meant.

    text       "the soup was cold. the waiter seemed really kind. the plates were dirty."
    question   one of ``QUESTIONS``: the first judgement, the next, or the last
    label      polarity of that judgement, 0 blames, 1 praises

One of the three, the odd one, contradicts the two others; half of the questions ask for it.  So neither counting
words nor the text's end answers: what is asked stands at a place that only the question names, and the state of a
backbone that was pretrained to sum up has no reason to keep it until the prediction token.

Knows: the pocket grammar.  Knows nothing of: tokens, models, methods.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from recipes.pocket import lexicon as lex
from recipes.pocket.grammar import Writer
from recipes.pocket.pretrain import text_hash, write_splits

SEED = 2507
SPLITS = {"train": 6000, "dev": 500, "test": 1000}
WORDS = (8, 32)
"""Shortest and longest text."""
QUESTIONS = ("at first", "then", "in the end")


@dataclass(frozen=True)
class Turns:
    """One text with its question."""

    text: str
    question: str
    label: int


def turns(rng: random.Random, asked: int, label: int, *, odd: bool) -> Turns:
    """One text.

    Args:
        rng: where every choice of words comes from.
        asked: which judgement is asked for, 0, 1 or 2.
        label: its polarity.
        odd: whether it contradicts both others; else one of them agrees with it.
    """
    while True:
        others = [1 - label, 1 - label if odd else label]
        rng.shuffle(others)
        polarities = [*others[:asked], label, *others[asked:]]
        writer = Writer(rng, rng.choice(lex.TOPICS))
        text = "".join(f"{_judgement(writer, polarity)}. " for polarity in polarities).strip()
        if WORDS[0] <= len(text.split()) <= WORDS[1]:
            return Turns(text, QUESTIONS[asked], label)


def _judgement(writer: Writer, polarity: int) -> str:
    """ "the soup was really cold": one thing or person, one adjective, no negation."""
    if writer.maybe(0.2):
        (noun, plural), kind = writer.person(), "person"
    else:
        noun, plural, kind = writer.thing()
    copula = writer.rng.choice(lex.COPULAS_PAST) if writer.maybe(0.5) else "was"
    if plural:
        copula = copula.replace("was", "were")
    degree = writer.degree(polarity) if writer.maybe(0.5) else ""
    return f"the {noun} {copula} {degree}{writer.adjective(kind, polarity)}"


def task_turns(seed: int = SEED) -> dict[str, list[Turns]]:
    """The packaged task: split → texts, questions, labels and odd ones in turn, no text twice."""
    rng = random.Random(f"turns task {seed}")
    seen: set[str] = set()
    splits: dict[str, list[Turns]] = {}
    for split, count in SPLITS.items():
        made: list[Turns] = []
        while len(made) < count:
            n = len(made)
            one = turns(rng, n % 3, n // 3 % 2, odd=n // 6 % 2 == 0)
            if text_hash(one.text) not in seen:
                seen.add(text_hash(one.text))
                made.append(one)
        rng.shuffle(made)
        splits[split] = made
    return splits


def make_task(out: Path, *, seed: int = SEED) -> None:
    """Write ``train.tsv``, ``dev.tsv``, ``test.tsv`` (header ``text<TAB>question<TAB>label``) into ``out``.

    ``handwritten.tsv``, which lies beside them, is written by a person and left alone.
    """
    made = task_turns(seed).items()
    rows = {split: [(one.text, one.question, one.label) for one in texts] for split, texts in made}
    write_splits(out, ("text", "question", "label"), rows)
