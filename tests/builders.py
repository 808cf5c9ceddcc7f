"""Small real things for tests: a task model on a tiny random backbone, and batches of random tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mobillm_kit.methods.task_model import TaskModel, task_model
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.side.pooled_head import Pooling
from mobillm_kit.texts.encode import Batch
from tests.families import tiny_backbone


def tiny_task_model(
    name: str = "opt", *, seed: int = 0, pooling: Pooling = "mean", labels: int = 2, dtype=torch.float32
) -> TaskModel:
    backbone = tiny_backbone(name, seed=seed)
    backbone.model.to(dtype)
    return task_model(backbone, word_ids=range(10, 10 + labels), pooling=pooling, seed=seed)


def random_batch(
    *,
    rows: int = 4,
    length: int = 9,
    kind: str = "decoder",
    labels: int = 2,
    seed: int = 0,
    pad: str = "right",
) -> Batch:
    """Texts of different lengths; decoders predict from the last real token, encoders from the first."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(12, 100, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    first, last = torch.zeros(rows, dtype=torch.long), torch.full((rows,), length - 1)
    for row in range(rows):
        short = row % 3
        cut = slice(length - short, length) if pad == "right" else slice(0, short)
        ids[row, cut], mask[row, cut] = 1, 0
        if pad == "right":
            last[row] -= short
        else:
            first[row] += short
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        labels=torch.randint(0, labels, (rows,), generator=generator),
        positions=last if kind == "decoder" else first,
    )


WORDS = ["good", "fine", "great", "lovely", "bad", "awful", "poor", "terrible", "it", "was", "the", "a", "film"]
WORDS += ["food", "very", "not", "really", "quite", "is", "and"]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A real tokenizer of a few words; unknown ones become one token."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<pad>", "</s>", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", eos_token="</s>", bos_token="</s>"
    )


def save_tiny_model(folder: Path, name: str = "opt", *, masked: bool = False) -> Path:
    """A model folder as `save_pretrained` writes it: tiny random weights, and a tokenizer."""
    tiny_backbone(name, masked=masked).model.save_pretrained(folder)
    tokenizer = word_tokenizer()
    if masked:
        tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.save_pretrained(folder)
    return folder


def save_texts(file: Path, rows: int = 60) -> Path:
    """A CSV whose label is which of two words the text holds."""
    lines = ["text,label"]
    for number in range(rows):
        label = number % 2
        word, filler = ("good" if label else "bad"), WORDS[8 + number % 12]
        lines.append(f"the {filler} film {number} is {word},{'yes' if label else 'no'}")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def tiny_spec(place: Path, method: str = "mobillm-full-width", model: str = "opt", **changes) -> RunSpec:
    """A run of seconds on real files: a saved model and a CSV."""
    folder, file = place / f"model-{model}", place / "texts.csv"
    if not folder.exists():
        save_tiny_model(folder, model, masked=changes.get("head") == "label-words")
    if not file.exists():
        save_texts(file)
    settings = {
        "backbone": str(folder),
        "task": "custom",
        "data": str(file),
        "text": "text",
        "label": "label",
        "prompt": "{text} it was",
        "label_words": (" bad", " good"),
        "steps": 8,
        "batch_size": 4,
        "eval_every": 4,
        "lr": 1e-2,
        "options": {"rank": 4} if method == "mobillm-full-width" else {},
        **changes,
    }
    return RunSpec(method=method, **settings)


WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "peft"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())  # as in an environment without them
from mobillm_kit.cli import main
code = main(sys.argv[1:])
print("LOADED", *sorted(sys.modules))
sys.exit(code)
"""
"""A command line, in a process where none of the three can be imported; prints what was."""
