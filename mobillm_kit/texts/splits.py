"""Choosing among examples: seeded choices, held-out texts that train does not hold, sentences without their phrases.

A labelled test file is the test.  Where there is none (GLUE keeps its test labels), the official dev set is, and a
seeded tenth of train is dev.  Texts of train that also occur in dev or test, or that carry two labels, are left out.
Every such decision is told in a sentence.  Which texts are equal is the tokenizer's to say: "Good" and "good" are to
one that knows no capitals, ":)" and ":(" are not.

Knows: examples.  Knows nothing of: files, tasks, models.
Taught in: notebooks/00_start_here.ipynb
"""

import random
import unicodedata
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from itertools import combinations

from mobillm_kit.errors import BadInput
from mobillm_kit.texts.tasks import Example

SPLITS = ("train", "dev", "test")

DEV_SHARE, DEV_MOST = 10, 1000
"""Where dev is cut from train, it gets one text in this many, and never more than this many texts."""

Splits = dict[str, tuple[Example, ...]]

Seen = Callable[[list[str]], Sequence[Hashable]]
"""What of each text is seen, such as its token ids; ``list`` for the texts as they are."""

Keys = Mapping[Example, Hashable]
"""Examples with equal keys are seen alike."""


def chosen(count: int, most: int, seed: str) -> list[int]:
    """At most ``most`` of the indices 0..count-1, ascending; a smaller choice is part of a larger one."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return sorted(order[:most])


def alike(examples: Sequence[Example], seen: Seen) -> Keys:
    """The key of each example: what is seen of its text and of its pair."""
    texts = list({text for example in examples for text in (example.text, example.pair or "")})
    key = dict(zip(texts, seen(texts), strict=True))
    return {example: (key[example.text], key[example.pair or ""]) for example in examples}


def in_three(examples: Sequence[Example], keys: Keys, seed: int) -> Splits:
    """Train, dev and test, 80/10/10 within each label; what is seen alike stays on one side.

    A label of one or two different texts is in train alone; any other has a text at least in each.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(keys[example], []).append(index)
    of_label: dict[int, list[list[int]]] = {}
    for group in groups.values():
        of_label.setdefault(examples[group[0]].label, []).append(group)
    parts: dict[str, list[int]] = {name: [] for name in SPLITS}
    for label, own in of_label.items():
        random.Random(f"{seed} split {label}").shuffle(own)
        tenth = max(1, round(len(own) / 10)) if len(own) > 2 else 0
        for name, some in (("test", own[:tenth]), ("dev", own[tenth : 2 * tenth]), ("train", own[2 * tenth :])):
            parts[name] += [index for group in some for index in group]
    return {name: tuple(examples[index] for index in sorted(part)) for name, part in parts.items()}


def hold_out(
    splits: Mapping[str, tuple[Example, ...]], seed: int, task: str, seen: Seen = list
) -> tuple[Splits, list[str]]:
    """Train, dev and test of ``task`` as the module's head says, and what was decided on the way, in sentences."""
    train, dev, test = (splits.get(name) for name in SPLITS)
    notes = []
    if test is None:
        test, dev = dev, None
        notes.append("test: the official dev set is the held-out test, as there is no labelled test.")
    if train is None or test is None:
        problem = f"The task '{task}' has neither a dev file nor a test file with labels."
        raise BadInput(problem, "Add one of them beside the train file.")
    keys = alike((*train, *test, *(dev or ())), seen)
    clean, contradictions = without_contradictions(train, keys)
    notes += [f"train: {said}" for said in contradictions]
    kept = _without(clean, (*test, *(dev or ())), keys)
    leaked = len(clean) - len(kept)
    if dev is None:
        taken = set(chosen(len(kept), min(DEV_MOST, max(1, len(kept) // DEV_SHARE)), f"{seed} dev from train"))
        dev = tuple(kept[index] for index in sorted(taken))
        notes.append(f"dev: {len(dev)} texts cut from train with seed {seed}.")
        rest = tuple(example for index, example in enumerate(kept) if index not in taken)
        kept = _without(rest, dev, keys)
        leaked += len(rest) - len(kept)
    if leaked:
        notes.append(f"train: {leaked} rows left out because their text also occurs in dev or test.")
    if both := len(dev) - len(_without(dev, test, keys)):
        notes.append(f"dev: {both} of {len(dev)} rows also occur in test, so test is not held out from choices on dev.")
    if not kept:
        problem = f"The task '{task}' has no train text left: all occur in dev or test, or carry two labels."
        raise BadInput(problem, "Give a train file with texts of its own.")
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
            problem = f"The limit {split!r}: {most!r} cannot be used."
            raise BadInput(problem, "Limits are whole numbers from 1, for train, dev and test.")


def without_contradictions(examples: Sequence[Example], keys: Keys) -> tuple[tuple[Example, ...], list[str]]:
    """The examples whose text carries one label only, and a sentence on the others, where there are any."""
    labels: dict[Hashable, set[int]] = {}
    for example in examples:
        labels.setdefault(keys[example], set()).add(example.label)
    both = {key for key, found in labels.items() if len(found) > 1}
    kept = tuple(example for example in examples if keys[example] not in both)
    said = f"{len(examples) - len(kept)} rows left out because their text carries two labels ({len(both)} texts)."
    return kept, [said] if both else []


def _without(train: Sequence[Example], held_out: Iterable[Example], keys: Keys) -> tuple[Example, ...]:
    """Train without the rows whose text is held out."""
    forbidden = {keys[example] for example in held_out}
    return tuple(example for example in train if keys[example] not in forbidden)


def bare(text: str) -> str:
    """A text without case, white space and punctuation, if anything is left; symbols such as + or an emoji stay."""
    dropped = ("P", "Z", "C", "Sk")  # Sk holds the backtick, a quotation mark in GLUE's tokenised texts
    return "".join(char for char in text.casefold() if not unicodedata.category(char).startswith(dropped)) or text


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
            words = text.split(" ")
            spans = (" ".join(words[start:end]) for start, end in combinations(range(len(words) + 1), 2))
            inside |= known.intersection(spans) - {text}
    return {text for text, spaced_out in spaced.items() if spaced_out not in inside}
