"""Imports that a device does without: packages that transformers takes along when it finds them installed.

transformers imports scipy for the losses of object detectors, accelerate for models on many devices, and so on, only
because they are there.  A device that runs a text model's forward pass uses none of them; left out they save about 40
of 370 MiB.  What a device cannot do without is Python, torch and one model family of transformers.

Knows: names of packages.  Knows nothing of: models.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

NOT_NEEDED = (
    "accelerate",
    "bitsandbytes",
    "executorch",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "pandas",
    "peft",
    "PIL",
    "scipy",
    "sentencepiece",
    "sklearn",
    "torchao",
    "torchaudio",
    "torchvision",
)
"""Optional packages of transformers."""


@contextmanager
def without(packages: Sequence[str] = NOT_NEEDED) -> Iterator[None]:
    """While it holds, these packages count as not installed; transformers remembers what it found.

    For the start of a process that does nothing but stream a backbone: a package that is imported already stays.
    """
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # None: Python's own sign for "do not look for it"
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name, name) is None:
                del sys.modules[name]
