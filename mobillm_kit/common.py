"""What several rooms share: units, seeds for private generators, what is installed, the environment of a fresh process.

Knows: numbers and words.  Knows nothing of: tensors, files, models.
"""

import hashlib
import logging
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata

MIB = 2**20
GIB = 2**30

FLOAT_BYTES = 4
"""Of one float32."""


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that depends on ``seed`` and on every word of ``purpose``, and looks unrelated to others."""
    words = "/".join(str(word) for word in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "little") >> 1


def twister(seed: int) -> random.Random:
    """Python's MT19937 in the state in which PyTorch's begins with ``seed``; the two are seeded in other ways."""
    state = [seed % 2**32]
    for place in range(1, 624):
        state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + place) % 2**32)
    made = random.Random()
    made.setstate((3, (*state, 624), None))
    return made


def cut(n: int, *, whole: bool) -> list[slice]:
    """0 … n - 1 in one pass, or each in a pass of its own."""
    return [slice(0, n)] if whole else [slice(i, i + 1) for i in range(n)]


def installed_version(distribution: str) -> str | None:
    """None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of libraries: transformers and PEFT load torchao, and that warns of kernels that nobody asks for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


MMAP_THRESHOLD = "MALLOC_MMAP_THRESHOLD_"
MMAP_THRESHOLD_BYTES = 131072
"""Blocks from this size on are mapped one by one and go back to the system when they are freed."""


def fresh_environment(*, threads: int = 1) -> dict[str, str]:
    """The environment in which a child process can be measured: this one's, with the settings that matter."""
    return {
        **os.environ,
        MMAP_THRESHOLD: str(MMAP_THRESHOLD_BYTES),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "PYTHONHASHSEED": "0",
        # the sampler is a fork, of which a parallel tokenizer would warn
        "TOKENIZERS_PARALLELISM": "false",
    }


def when_parent_ends(end: Callable[[], object]) -> None:
    """Call ``end``, in a thread of its own, when the parent closes our standard input: nobody waits for us any more."""

    def _watch() -> None:
        with suppress(OSError):
            while os.read(0, 1):  # the bare file: a lock on sys.stdin would be inherited by forks
                pass
        end()

    threading.Thread(target=_watch, daemon=True).start()
