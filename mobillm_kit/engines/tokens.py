"""A ``tokenizer.json``, called as the texts' encoder calls a tokenizer of transformers, which it does without.

Knows: the file, and what an export noted beside it.  Knows nothing of: prompts, models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mobillm_kit.engines.manifest import Words

AT_A_TIME = 64
"""Texts: what the library says of each, offsets and words too, takes kilobytes."""


class FileTokenizer:
    """Texts to token ids."""

    mask_token = None
    """Label words at a mask are not predicted here."""

    def __init__(self, path: Path, words: Words) -> None:
        self._own = Tokenizer.from_file(str(path))
        self._own.no_truncation()  # a file may ask for both, and rows are cut and padded elsewhere
        self._own.no_padding()
        self._segments = words.segments
        self.pad_token_id, self.eos_token_id = words.pad_token_id, words.eos_token_id
        self.unk_token_id = words.unk_token_id

    def __call__(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        return_special_tokens_mask: bool = False,
        truncation: str | None = None,
        max_length: int = 0,
        verbose: bool = False,
    ) -> dict[str, list[list[int]]]:
        """Ids, with the special tokens that the file adds, and what else is asked for, a list per text or pair.

        ``verbose`` is there for transformers' tokenizers; this one says nothing.
        """
        given: list[Any] = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        if truncation is not None:
            self._own.enable_truncation(max_length, strategy=truncation)
        wanted = {"input_ids": "ids"} | ({"token_type_ids": "type_ids"} if self._segments else {})
        wanted |= {"special_tokens_mask": "special_tokens_mask"} if return_special_tokens_mask else {}
        rows: dict[str, list[list[int]]] = {name: [] for name in wanted}
        for start in range(0, len(given), AT_A_TIME):
            found = self._own.encode_batch(given[start : start + AT_A_TIME])
            for name, own in wanted.items():
                rows[name] += [getattr(row, own) for row in found]
        self._own.no_truncation()
        return rows

    def __len__(self) -> int:
        return self._own.get_vocab_size()

    def convert_ids_to_tokens(self, number: int) -> str | None:
        """The token of an id."""
        token: str | None = self._own.id_to_token(number)
        return token

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Of a text, or of two."""
        return int(self._own.num_special_tokens_to_add(pair))
