"""Classification tasks: a prompt and label words turn a text with a label into next-word prediction.

    "a moving film", label 1   ->   "a moving film It was" + " great"              (MeZO, arXiv 2305.17333)

The loss is the cross-entropy over the label words' logits after the prompt, or at an encoder's mask; encoders with a
classifier read the bare text.  ``tasks.toml`` holds the tasks that are known by name, with the origin of every prompt.

Knows: prompts, labels, names of columns.  Knows nothing of: files, tokens, tensors, models.
Taught in: notebooks/00_start_here.ipynb
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import msgspec

from mobillm_kit.errors import BadInput, UnknownName, nearest
from mobillm_kit.files import data_folder

METRIC_NAMES = ("accuracy", "f1", "matthews")
"""What ``Task.metric`` may be; computed by ``mobillm_kit.texts.metrics``."""

PACKAGED = ("reviews", "turns")
"""The packaged tasks; prompt and label words belong to their texts and stand beside them (``task.json``)."""

MASK = "[MASK]"
"""In a prompt: where an encoder's label word would stand, whatever the tokenizer's own mask is called."""


@dataclass(frozen=True)
class Example:
    """One text, or a pair of texts, with its label."""

    text: str
    pair: str | None
    label: int
    """Label id: index into ``Task.labels``."""


@dataclass(frozen=True)
class Task:
    """What a classification task is, without its texts. Checked when it is made."""

    name: str
    description: str
    text_column: str
    label_column: str
    labels: tuple[str, ...]
    """Human names; the index is the label id."""
    prompt: str
    """Decoder template with ``{text}`` (and ``{pair}``); the label word follows directly."""
    label_words: tuple[str, ...]
    """One per label, with a leading space where the prompt ends without white space."""
    metric: str
    """``accuracy``, ``f1`` or ``matthews``: GLUE's metric of the task."""
    source: str
    """Citation, and where the prompt comes from."""
    pair_column: str | None = None
    """Of the second text, where a row has two."""
    hub: tuple[str, ...] = ()
    """Repository, configuration and revision on the Hugging Face hub, as far as they are needed."""
    masked_prompt: str = ""
    """For an encoder's label words; where empty, ``prompt``, with " [MASK]." at its end unless it has a mask."""
    other_columns: Mapping[str, str] = field(default_factory=dict)
    """Columns' names in other copies of the data, and the names that are meant."""
    headerless: tuple[str, ...] = ()
    """Columns of a file that comes without a header."""

    def __post_init__(self) -> None:
        for slot, needed in (("{text}", True), ("{pair}", self.pair_column is not None)):
            times = self.prompt.count(slot)
            if times != int(needed):
                problem = f"Task '{self.name}': {slot} stands {times} times in the prompt {self.prompt!r}."
                remedy = "It must stand there once." if needed else "The task has one text column: leave it out."
                raise BadInput(problem, remedy)
        if len(self.labels) < 2 or len(self.label_words) != len(self.labels):
            raise BadInput(
                f"Task '{self.name}': {len(self.label_words)} label words for {len(self.labels)} labels "
                f"({', '.join(self.labels)}).",
                "Give at least two labels and one word for each, in the order of the labels.",
            )
        if not all(word.strip() for word in self.label_words) or len(set(self.label_words)) < len(self.labels):
            problem = f"Task '{self.name}': the label words {self.label_words} are not all different words."
            raise BadInput(problem, "Give each label its own word: --label-words ' bad| good'.")
        if self.metric not in METRIC_NAMES:
            problem = f"Task '{self.name}': there is no metric '{self.metric}'."
            raise BadInput(problem, f"Known: {', '.join(METRIC_NAMES)}.")

    @property
    def text_columns(self) -> list[str]:
        """One or two."""
        return [self.text_column] if self.pair_column is None else [self.text_column, self.pair_column]

    def at_mask(self) -> Self:
        """The task as an encoder with label words reads it: its prompt holds the mask."""
        prompt = self.masked_prompt or self.prompt
        return replace(self, prompt=prompt if MASK in prompt else f"{prompt.rstrip()} {MASK}.")

    def fill(self, text: str, pair: str | None = None) -> str:
        """The prompt with ``text`` (and ``pair``) in place; braces inside the texts stay as they are."""
        values = {"{text}": text, "{pair}": pair or ""}
        return re.sub(r"\{text\}|\{pair\}", lambda slot: values[slot[0]], self.prompt)


def _known_tasks() -> dict[str, Task]:
    rows: dict[str, dict[str, Any]] = msgspec.toml.decode(Path(__file__).with_name("tasks.toml").read_bytes())
    for name in PACKAGED:
        rows[name] |= msgspec.json.decode((data_folder(name) / "task.json").read_bytes())
    return msgspec.convert({name: row | {"name": name} for name, row in rows.items()}, dict[str, Task])


TASKS: Mapping[str, Task] = _known_tasks()
"""All tasks that are known by name."""


def get_task(name: str) -> Task:
    """The task called ``name``."""
    if name in TASKS:
        return TASKS[name]
    problem = f"There is no task '{name}'. {nearest(name.lower(), TASKS)}".rstrip()
    raise UnknownName(problem, f"Known: {', '.join(TASKS)}; for a file of your own use custom_task (--data FILE).")
