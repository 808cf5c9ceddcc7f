"""From a specification to its texts, without torch.

Knows: specifications and texts.  Knows nothing of: models, training.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from mobillm_kit.errors import BadInput
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.texts.loading import TaskData, custom_task, load_task
from mobillm_kit.texts.splits import Seen
from mobillm_kit.texts.tasks import PACKAGED

LONGEST_TEXT = 256
"""Tokens; longer texts are cut unless the specification says otherwise."""


def load_data(spec: RunSpec, tokenizer: Any) -> TaskData:
    """The texts of a specification: a known task, or a file of the user's; equal ones have equal token ids."""
    limits = {"train": spec.limit_train, "dev": spec.limit_dev, "test": spec.limit_test}
    limit = {split: most for split, most in limits.items() if most is not None}
    if spec.task in PACKAGED and spec.backbone == "pocket" and spec.data is None:
        return _packaged(spec.task, tuple(limit.items()))
    seen = _ids(tokenizer)
    if spec.task != "custom":
        return load_task(spec.task, data=spec.data, limit=limit, seed=0, seen=seen)
    if spec.data is None or spec.text is None or spec.label is None:
        problem = "A task of your own needs a file and its columns."
        raise BadInput(problem, "Give --data FILE --text COLUMN --label COLUMN.")
    columns: dict[str, Any] = {name: getattr(spec, name) for name in ("text", "pair", "label", "prompt", "label_words")}
    return custom_task(Path(spec.data), labels=spec.label_names, limit=limit, seed=0, seen=seen, **columns)


@lru_cache(maxsize=8)
def _packaged(task: str, limits: tuple[tuple[str, int], ...]) -> TaskData:
    """A packaged task for the packaged model: neither changes while a process runs, and each run needs it."""
    from mobillm_kit.backbone.pretrained import load_tokenizer  # it brings transformers

    return load_task(task, limit=dict(limits), seed=0, seen=_ids(load_tokenizer("pocket")))


def _ids(tokenizer: Any) -> Seen:
    return lambda texts: list(map(tuple, tokenizer(texts, verbose=False)["input_ids"]))
