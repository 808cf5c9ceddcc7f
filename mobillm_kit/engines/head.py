"""Label words' logits of a decoder's last states, over arrays.

    logits_c = softcap( W_c · P(norm(h)) )        W: a row per label word, of a file that is read row by row

Knows: an exported folder, arrays.  Knows nothing of: torch, texts, training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from safetensors.numpy import load_file

from mobillm_kit.engines import manifest as manifests
from mobillm_kit.engines.engine import Array
from mobillm_kit.engines.onnx import OnnxEngine


def word_rows(engine: OnnxEngine, word_ids: Sequence[int]) -> Array:
    """(C, d_e): the projection's rows of these tokens."""
    return np.array(engine.tables.get("words", engine.tables["tokens"])[list(word_ids)])


class WordHead:
    """The head for chosen label words."""

    def __init__(self, engine: OnnxEngine, word_ids: Sequence[int]) -> None:
        about = engine.manifest.head
        assert about is not None  # only decoders are exported for this
        self._about = about
        self._words = word_rows(engine, word_ids)
        self._tensors = load_file(engine.folder / manifests.HEAD)

    def __call__(self, states: Array) -> Array:
        """(…, d) to (…, C)."""
        states = self._normed(states)
        if self._about.project_out:
            states = states @ self._tensors["project_out.weight"].T
        logits: Array = states @ self._words.T
        cap = self._about.softcap
        return logits if not cap else np.float32(cap) * np.tanh(logits / np.float32(cap))

    def _normed(self, states: Array) -> Array:
        """The final norm, in the forms that ``side/portable_head.py`` lists."""
        form = self._about.norm
        if form == "none":
            return states
        weight, eps = self._tensors["norm.weight"], np.float32(self._about.eps)
        if form.startswith("layer"):
            states = states - states.mean(axis=-1, keepdims=True)
        states = states / np.sqrt(np.square(states).mean(axis=-1, keepdims=True) + eps)
        if form == "rms-plus-one":
            weight = weight + np.float32(1)
        return states * weight + self._tensors.get("norm.bias", np.float32(0))
