"""What to run: the one description, from the command line to ``spec.json`` and the record.

Knows: names and numbers.  Knows nothing of: tensors, models, files, how anything runs.
Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from mobillm_kit.errors import BadInput
from mobillm_kit.methods import USUAL
from mobillm_kit.record import Scalar

Count = Annotated[int, Meta(ge=1)]
"""From one up."""

HOW_REACHED = ("server", "keys", "patience_s")
"""Options that say how a server is reached: no part of what is trained, and a join string may hold a one-time code."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What runs of several methods and seeds have in common.

    Where a field of training is None, the preset of the backbone's class decides.
    """

    backbone: str = "pocket"
    """'pocket' (packaged), a model folder, a GGUF file, or a name on the Hugging Face hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    random_weights: bool = False
    """The same architecture without its pretraining: a control."""
    dtype: str = "float32"
    """float32, bfloat16 or float16, whatever the files hold."""
    weights: str = ""
    """The frozen backbone's matrices in few bits: int8, nf4 or fp4; as they are, if empty."""
    stream: bool = False
    """Read the backbone block by block from its files: safetensors, or one GGUF file."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""
    task: str = "reviews"
    """A name from `mobillm tasks`, or 'custom' for a file of yours."""
    data: str | None = None
    """Folder in GLUE's layout (train.tsv, dev.tsv …), or your CSV, TSV, JSONL or JSON file."""
    text: str | None = None
    """custom: column of the text."""
    pair: str | None = None
    """custom: column of the second text."""
    label: str | None = None
    """custom: column of the label."""
    label_names: tuple[str, ...] | None = None
    """custom: the labels, such as 'neg|pos'; what the column holds if not given."""
    prompt: str | None = None
    """custom: prompt for label words, such as '{text} It was', or '{text} It was [MASK].' for encoders."""
    label_words: tuple[str, ...] | None = None
    """custom: the word after the prompt for each label, such as ' bad| good'."""
    limit_train: Count | None = None
    """Use so many training texts only."""
    limit_dev: Count | None = None
    """Use so many texts of the dev split only."""
    limit_test: Count | None = None
    """Use so many held-out texts only."""
    max_length: Annotated[int, Meta(ge=4)] | None = None
    """Longest text in tokens; longer ones are cut."""
    padding_side: Literal["left", "right"] = "right"
    """Where short texts are filled up; no score depends on it."""
    head: Literal["label-words", "classifier"] | None = None
    """Encoders: a classifier, which is usual, or label words at the prompt's [MASK]; decoders have label words."""
    pooling: Literal["mean", "first"] = "mean"
    """An encoder's classifier: the mean over tokens, or the first token."""
    read_back: bool = True
    """MobiLLM: measure at the end how many tokens of training texts can be read from what is sent."""
    preset: str | None = None
    """pocket, turns, encoder or decoder; by the backbone if not given."""
    steps: Count | None = None
    """Training steps; the preset's where not given, as all that follows."""
    batch_size: Count | None = None
    """Texts in a batch."""
    lr: float | None = None
    """Learning rate."""
    schedule: Literal["constant", "linear", "cosine"] | None = None
    """How the learning rate goes on after the warm-up."""
    warmup: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Share of the steps in which the learning rate rises from 0."""
    eval_every: Count | None = None
    """Steps between two looks at the dev split."""
    patience: Count | None = None
    """Stop after so many looks without a lower dev loss."""


class RunSpec(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run: a method, a seed, and the settings."""

    method: str
    """A name from `mobillm methods`; 'mobillm' is its usual side network, full width."""
    seed: int = 0
    """Of initial weights, the order of texts and whatever else a method draws."""
    options: dict[str, Scalar | list[int]] = {}
    """Of the method, over the preset's."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "method", USUAL.get(self.method, self.method))
        if not 0 <= self.seed < 2**63:
            raise BadInput(f"The seed is {self.seed}.", "Give a whole number from 0 to 9223372036854775807 (2^63 - 1).")

    def reach(self) -> dict[str, Scalar | list[int]]:
        """How a server is reached, which :meth:`kept` leaves out."""
        return {name: self.options[name] for name in HOW_REACHED if name in self.options}

    def kept(self) -> RunSpec:
        """What files keep and runs are compared by: of a server elsewhere, only that there is one."""
        options = {name: value for name, value in self.options.items() if name not in HOW_REACHED}
        if "server" in self.options:
            server = self.options["server"]
            options["server"] = server if server in ("in-process", "spawn") else "elsewhere"
        return msgspec.structs.replace(self, options=options)
