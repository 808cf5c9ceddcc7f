"""Choosing among texts: seeded choices, comparison of texts, sentences without their phrases.

Knows: strings.  Knows nothing of: files, tasks, labels.
Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Collection, Iterator
from functools import cache


def chosen(count: int, most: int, seed: str) -> list[int]:
    """At most ``most`` of the indices 0..count-1, ascending; a smaller choice is part of a larger one."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return sorted(order[:most])


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

    From the longest to the shortest: a text that was met inside an earlier one is out; every other one marks
    the texts inside it. Parts of a text that is out need no look, as the longer text holds them too. That
    makes n (n + 1) / 2 look-ups for each text of n words that stays: 1.5 million for SST-2, under a second.
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
