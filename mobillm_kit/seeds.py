"""Seeds for private generators: one number for every purpose, from one seed and a few words.

Knows: numbers and words.  Knows nothing of: what they are for.
"""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that depends on ``seed`` and on every word of ``purpose``, and looks unrelated to others."""
    words = "/".join(str(word) for word in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "little") >> 1
