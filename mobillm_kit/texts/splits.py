"""Choosing among examples: seeded choices, held-out texts that train does not hold, sentences without their phrases.

A labelled test file is the test.  Where there is none (GLUE keeps its test labels), the official dev set is the
held-out test, and a seeded tenth of train, at most 1000 texts, is dev.  Texts of train that also occur in dev or test,
or that carry two labels, are left out.  Every such decision is told in a sentence.

Knows: examples.  Knows nothing of: files, tasks, models.
Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache

from mobillm_kit.errors import BadInput
from mobillm_kit.texts.tasks import Example

SPLITS = ("train", "dev", "test")

DEV_SHARE = 10
"""Where dev is cut from train, it gets one text in this many."""
DEV_MOST = 1000
"""... and never more than this many texts."""

Splits = dict[str, tuple[Example, ...]]


def chosen(count: int, most: int, seed: str) -> list[int]:
    """At most ``most`` of the indices 0..count-1, ascending; a smaller choice is part of a larger one."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return sorted(order[:most])


def in_three(examples: Sequence[Example], seed: int) -> Splits:
    """Train, dev and test, 80/10/10."""
    tenth = max(1, len(examples) // 10)
    test = set(chosen(len(examples), tenth, f"{seed} split"))
    held_out = set(chosen(len(examples), 2 * tenth, f"{seed} split"))
    parts = (set(range(len(examples))) - held_out, held_out - test, test)
    return {name: tuple(examples[i] for i in sorted(part)) for name, part in zip(SPLITS, parts, strict=True)}


def hold_out(splits: Mapping[str, tuple[Example, ...]], seed: int, task: str) -> tuple[Splits, list[str]]:
    """Train, dev and test of ``task`` as the module's head says, and what was decided on the way, in sentences."""
    train, dev, test = (splits.get(name) for name in SPLITS)
    notes = []
    if test is None:
        test, dev = dev, None
        notes.append("test: the official dev set is the held-out test, as there is no labelled test.")
    if train is None or test is None:
        raise BadInput(
            f"The task '{task}' has neither a dev file nor a test file with labels.",
            "Add one of them beside the train file.",
        )
    clean, two_labels = _without_contradictions(train)
    kept = _without(clean, (*test, *(dev or ())))
    leaked = len(clean) - len(kept)
    if dev is None:
        taken = set(chosen(len(kept), min(DEV_MOST, max(1, len(kept) // DEV_SHARE)), f"{seed} dev from train"))
        dev = tuple(kept[index] for index in sorted(taken))
        notes.append(f"dev: {len(dev)} texts cut from train with seed {seed}.")
        rest = tuple(example for index, example in enumerate(kept) if index not in taken)
        kept = _without(rest, dev)
        leaked += len(rest) - len(kept)
    if two_labels:
        notes.append(f"train: {two_labels} different texts left out because they carry two labels.")
    if leaked:
        notes.append(f"train: {leaked} rows left out because their text also occurs in dev or test.")
    if not kept:
        raise BadInput(
            f"The task '{task}' has no train text left: all occur in dev or test, or carry two labels.",
            "Give a train file with texts of its own.",
        )
    return {"train": kept, "dev": dev, "test": test}, notes


def limited(splits: Splits, limit: Mapping[str, int], seed: int) -> tuple[Splits, list[str]]:
    """At most ``limit[split]`` examples of each split, and a sentence for each split that was cut."""
    found, notes = {}, []
    for split, examples in splits.items():
        most = limit.get(split, len(examples))
        found[split] = tuple(examples[index] for index in chosen(len(examples), most, f"{seed} {split}"))
        if most < len(examples):
            notes.append(f"{split}: {most} of {len(examples)} texts chosen with seed {seed}.")
    return found, notes


def check_limit(limit: Mapping[str, int]) -> None:
    """Refuse what is no limit."""
    for split, most in limit.items():
        if split not in SPLITS or not isinstance(most, int) or most < 1:
            raise BadInput(
                f"The limit {split!r}: {most!r} cannot be used.",
                "Limits are whole numbers from 1, for train, dev and test.",
            )


def _without_contradictions(train: Sequence[Example]) -> tuple[tuple[Example, ...], int]:
    """Train without the texts that carry two labels, and how many different texts those were."""
    labels: dict[tuple[str, str], set[int]] = {}
    for example in train:
        labels.setdefault(_key(example), set()).add(example.label)
    both = {key for key, found in labels.items() if len(found) > 1}
    return tuple(example for example in train if _key(example) not in both), len(both)


def _without(train: Sequence[Example], held_out: Iterable[Example]) -> tuple[Example, ...]:
    """Train without the rows whose text is held out."""
    forbidden = {_key(example) for example in held_out}
    return tuple(example for example in train if _key(example) not in forbidden)


def _key(example: Example) -> tuple[str, str]:
    return bare(example.text), bare(example.pair or "")


def bare(text: str) -> str:
    """A text without case, white space and punctuation: texts that are then equal say the same.

    A text of nothing but punctuation stays whole. Symbols such as + or an emoji carry meaning and stay.
    """
    return "".join(char for char in text.casefold() if not _is_punctuation(char)) or text


@cache
def _is_punctuation(char: str) -> bool:
    category = unicodedata.category(char)
    # Sk holds the backtick, a quotation mark in GLUE's tokenised texts.
    return category[0] in "PZC" or category == "Sk"


def maximal_texts(texts: Collection[str]) -> set[str]:
    """The texts that are no part, word by word, of a longer one among them.

    From the longest to the shortest: a text that was met inside an earlier one is out; every other one marks the
    texts inside it, n (n + 1) / 2 look-ups for n words: 1.5 million for SST-2, under a second.
    """
    spaced = {text: " ".join(text.split()) for text in texts}
    known = set(spaced.values())
    inside: set[str] = set()
    for text in sorted(known, key=lambda text: -text.count(" ")):
        if text not in inside:
            inside.update(span for span in _proper_spans(text) if span in known)
    return {text for text, words in spaced.items() if words not in inside}


def _proper_spans(text: str) -> Iterator[str]:
    """All runs of whole words of ``text``, except the text itself."""
    breaks = [index for index, char in enumerate(text) if char == " "]
    starts, ends = [0, *(index + 1 for index in breaks)], [*breaks, len(text)]
    for first, start in enumerate(starts):
        for end in ends[first:]:
            if end - start < len(text):
                yield text[start:end]
