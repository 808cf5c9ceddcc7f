"""From texts to tensors: prompts filled in and tokenized, rows padded to a batch.

    decoder   ids = [BOS] prompt(text, pair)             loss at the last real token, over the label words
    masked    ids = [CLS] prompt(text, pair) [SEP]       loss at the prompt's mask, over the label words
    encoder   ids = [CLS] text [SEP] (pair [SEP])        loss at the first token

A text that does not fit is cut at its end, the longer of two first, and the prompt around it stays whole: the
prediction hangs on the prompt's last words.

Knows: tokenizers, prompts, padding.  Knows nothing of: models, devices, the order of batches.
Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mobillm_kit.errors import BadInput
from mobillm_kit.texts.sources import check_characters
from mobillm_kit.texts.tasks import MASK, Example, Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

_log = logging.getLogger("mobillm_kit")

_STAND_IN = "it"
"""Takes the text's place where only the prompt matters."""


@dataclass(frozen=True)
class Encoded:
    """One example as token ids."""

    ids: tuple[int, ...]
    type_ids: tuple[int, ...] | None
    """Segment of each token (first or second text), where the tokenizer has segments."""
    label: int


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows padded to one length T."""

    input_ids: Tensor
    """(B, T), int64."""
    attention_mask: Tensor
    """(B, T), int64, 1 at real tokens."""
    labels: Tensor
    """(B,), int64, label ids."""
    positions: Tensor
    """(B,), int64, the token that enters the loss: decoder the last real one, encoder the first, or the mask."""
    token_type_ids: Tensor | None = None
    """(B, T), int64."""

    @property
    def rows(self) -> int:
        """B."""
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        return self.each(lambda tensor: tensor.to(device))

    def repeated(self, times: int) -> Batch:
        """The batch, one copy after the other: (times · B, T)."""
        return self.each(lambda tensor: tensor.repeat(times, *[1] * (tensor.dim() - 1)))

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed alike."""
        tensors = {each.name: getattr(self, each.name) for each in fields(Batch)}
        changed: dict[str, Any] = {name: each if each is None else change(each) for name, each in tensors.items()}
        return Batch(**changed)


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """Encodes the texts of one task for one backbone."""

    tokenizer: PreTrainedTokenizerFast
    task: Task
    kind: Literal["decoder", "encoder", "masked"]
    """``masked`` is an encoder that predicts the label word at its prompt's mask."""
    max_length: int
    """The context: most tokens in one row."""
    padding_side: Literal["left", "right"] = "right"
    vocabulary: int | None = None
    """Rows of the model's embedding; ids from there on are refused, and padding is done with one that it has."""
    notes: list[str] = field(default_factory=list)
    """One sentence for every call of :meth:`encode` that had to cut texts."""

    def __post_init__(self) -> None:
        for name, known in {"kind": ("decoder", "encoder", "masked"), "padding_side": ("left", "right")}.items():
            if getattr(self, name) not in known:
                raise BadInput(f"The {name} '{getattr(self, name)}' does not exist.", f"Give {' or '.join(known)}.")
        if self.kind == "masked" and self.tokenizer.mask_token is None:
            raise BadInput("The tokenizer has no mask token for label words to stand at.", "Use --head classifier.")
        if self.kind == "masked" and (times := self.task.prompt.count(MASK)) != 1:
            raise BadInput(f"The prompt {self.task.prompt!r} has {MASK} {times} times.", "Put it there once.")
        _ = self.pad_id
        if self.max_length <= self._frame_tokens():
            raise BadInput(
                f"A context of {self.max_length} tokens leaves no room for a text: the task "
                f"'{self.task.name}' needs {self._frame_tokens()} for what stands around it.",
                "Give a longer context, or a shorter prompt.",
            )

    @property
    def pad_id(self) -> int:
        """Token that fills rows up: the padding token, else the end-of-text token, else the unknown token."""
        tokenizer = self.tokenizer
        for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id):
            if token_id is not None and (self.vocabulary is None or token_id < self.vocabulary):
                return token_id  # any will do, since no text attends to it
        problem = "The tokenizer has no padding token, no end-of-text token and no unknown token that the model knows."
        raise BadInput(problem, "Set tokenizer.pad_token to a token of its vocabulary.")

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Token ids of every example, at most ``max_length`` each; texts that are cut are counted and warned of."""
        self._check(examples)
        if not examples:
            return []
        rows = self._segments(examples) if self.kind == "encoder" else self._prompts(examples)
        long = [number for number, row in enumerate(rows) if len(row.ids) > self.max_length]
        for number in long:
            rows[number] = self._shortened(examples[number])
        self._check_ids(max(max(row.ids) for row in rows))
        if long:
            cut = f"{len(long)} of {len(rows)} texts did not fit"
            note = f"{cut} into {self.max_length} tokens and were cut at their end."
            if not self.notes:
                _log.warning("%s", note)
            self.notes.append(note)
        return rows

    def collate(self, rows: Sequence[Encoded], pad_to: int | None = None) -> Batch:
        """Rows padded on ``padding_side`` to the longest of them, or to ``pad_to`` tokens."""
        import torch  # a device whose engine is another one has arrays enough

        arrays = self.arrays(rows, pad_to)
        return Batch(**{name: torch.from_numpy(array) for name, array in arrays.items()})

    def arrays(self, rows: Sequence[Encoded], pad_to: int | None = None) -> dict[str, np.ndarray]:
        """The fields of a :class:`Batch` by name, without torch; segments only where the tokenizer has some."""
        if not rows:
            raise BadInput("A batch of no rows was asked for.", "Give at least one encoded example.")
        lengths = np.array([len(row.ids) for row in rows], dtype=np.int64)
        width = int(lengths.max())
        if pad_to is not None and width > pad_to:
            raise BadInput(f"A row of {width} tokens does not fit into pad_to={pad_to}.", "Give a larger pad_to.")
        width = pad_to or width
        left = self.padding_side == "left"
        starts = width - lengths if left else np.zeros_like(lengths)
        if self.kind == "masked":
            starts += np.array([row.ids.index(self.tokenizer.mask_token_id) for row in rows], dtype=np.int64)
        arrays = {
            "input_ids": _padded([row.ids for row in rows], width, self.pad_id, left),
            "attention_mask": _padded([(1,) * len(row.ids) for row in rows], width, 0, left),
            "labels": np.array([row.label for row in rows], dtype=np.int64),
            "positions": starts + lengths - 1 if self.kind == "decoder" else starts,
        }
        if rows[0].type_ids is not None:
            arrays["token_type_ids"] = _padded([row.type_ids or () for row in rows], width, 0, left)
        return arrays

    def label_ids(self) -> tuple[int, ...]:
        """For each label, its word's first token as it really follows the prompt, or its only one at the mask."""
        if self.kind == "encoder":
            raise BadInput("An encoder predicts with a classifier, not with label words.", "Use its pooled head.")
        words, prompt = self.task.label_words, self.task.fill(_STAND_IN, _STAND_IN)
        if self.kind == "masked":  # with the space that BPE and SentencePiece keep in a word's token, as MeZO does
            bare: list[int] = []
            with_words = [self.tokenizer(f" {word.strip()}", add_special_tokens=False)["input_ids"] for word in words]
        else:
            bare, *with_words = self._prompts_ids([prompt, *(prompt + word for word in words)])
        found: dict[int, str] = {}
        for word, ids in zip(words, with_words, strict=True):
            if self.kind == "masked" and (len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id):
                problem = f"The label word {word!r} is {len(ids)} tokens to this tokenizer, or an unknown one."
                raise BadInput(problem, "A mask is one token: choose other words, --label-words 'bad|good'.")
            if ids[: len(bare)] != bare or len(ids) == len(bare):
                problem = f"The label word {word!r} has no token of its own after the prompt {self.task.prompt!r}."
                remedy = "End the prompt with a word and begin the label word with a space: --label-words ' bad| good'."
                raise BadInput(problem, remedy)
            first = ids[len(bare)]
            if first in found:
                token = self.tokenizer.convert_ids_to_tokens(first)
                raise BadInput(
                    f"The label words {found[first]!r} and {word!r} both begin with the token {token!r} (id {first}).",
                    "Choose words whose first tokens differ for this tokenizer: --label-words ' bad| good'.",
                )
            self._check_ids(first)
            found[first] = word
        return tuple(found)

    def _check(self, examples: Sequence[Example]) -> None:
        paired = self.task.pair_column is not None
        for number, example in enumerate(examples, 1):
            if (example.pair is not None) != paired:
                has, reads = ("one text", "two") if paired else ("two texts", "one")
                problem = f"Example {number} has {has}, the task '{self.task.name}' reads {reads}."
                raise BadInput(problem, f"Give pair={'...' if paired else 'None'}.")
            if not example.text.strip() or (paired and not (example.pair or "").strip()):
                raise BadInput(f"Example {number} has an empty text.", "Give it a text, or leave it out.")
            check_characters(example.text + (example.pair or ""), f"Example {number}")

    def _check_ids(self, largest: int) -> None:
        if self.vocabulary is not None and largest >= self.vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise BadInput(
                f"The tokenizer has {len(self.tokenizer)} tokens, the model's embedding {self.vocabulary} rows: "
                f"{token!r} is token {largest}.",
                "Take the model's own tokenizer, or call resize_token_embeddings and save the model again.",
            )

    def _frame_tokens(self) -> int:
        """Tokens of a row with an empty text."""
        if self.kind == "encoder":
            return self.tokenizer.num_special_tokens_to_add(pair=self.task.pair_column is not None)
        return len(self._prompts_ids([self._filled("", "")])[0])

    def _filled(self, text: str, pair: str | None) -> str:
        """The prompt with the texts in it; of a masked one the mask is the tokenizer's own, and the only one."""
        if self.kind == "decoder":
            return self.task.fill(text, pair)
        own = str(self.tokenizer.mask_token)
        bare = [(each or "").replace(MASK, " ").replace(own, " ") for each in (text, pair)]
        return self.task.fill(*bare).replace(MASK, own)

    def _prompts_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids with the tokenizer's opening tokens; without its closing ones where the label word is to follow."""
        # verbose=False: the tokenizer's own remark on length comes before the text is cut.
        encoded = self.tokenizer(list(prompts), return_special_tokens_mask=True, verbose=False)
        rows = []
        for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
            end = len(ids)
            while self.kind == "decoder" and end and special[end - 1]:
                end -= 1
            rows.append(ids[:end])
        return rows

    def _prompts(self, examples: Sequence[Example]) -> list[Encoded]:
        ids = self._prompts_ids([self._filled(example.text, example.pair) for example in examples])
        return [Encoded(tuple(own), None, example.label) for own, example in zip(ids, examples, strict=True)]

    def _shortened(self, example: Example) -> Encoded:
        """The longer segment cut, or the prompt around the first n characters of each text, the largest n that fits."""
        if self.kind == "encoder":
            return self._segments([example], truncation="longest_first", max_length=self.max_length)[0]
        text, pair = example.text, example.pair
        fits, too_many = 0, max(len(text), len(pair or ""))
        best: Encoded | None = None
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            start = replace(example, text=text[:middle].rstrip(), pair=pair and pair[:middle].rstrip())
            row = self._prompts([start])[0]
            if len(row.ids) <= self.max_length:
                fits, best = middle, row
            else:
                too_many = middle
        if best is None:
            problem = f"A context of {self.max_length} tokens leaves no room for one character of '{text[:40]}'."
            raise BadInput(problem, "Give a longer context, or a shorter prompt.")
        return best

    def _segments(self, examples: Sequence[Example], **cut: Any) -> list[Encoded]:
        pairs = None if self.task.pair_column is None else [example.pair for example in examples]
        encoded = self.tokenizer([example.text for example in examples], pairs, verbose=False, **cut)
        types = encoded.get("token_type_ids") or [None] * len(examples)
        return [
            Encoded(tuple(ids), None if kinds is None else tuple(kinds), example.label)
            for example, ids, kinds in zip(examples, encoded["input_ids"], types, strict=True)
        ]


def _padded(rows: Sequence[Sequence[int]], width: int, fill: int, left: bool) -> np.ndarray:
    """(B, width), int64."""
    return np.array(
        [[*[fill] * (width - len(row)), *row] if left else [*row, *[fill] * (width - len(row))] for row in rows]
    )
