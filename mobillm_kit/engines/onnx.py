"""ONNX Runtime runs the blocks of an exported backbone, without PyTorch.

    h_0 = norm(E[ids] P + W[positions] + S[types])    each part only where the family has it; rows of mapped files
    h_i = block_i(h_{i-1}, bias, cos, sin)            bias (B, 1, T, T): 0 where t may look, the least float elsewhere

Positions count real tokens only, so padding may stand on either side.  Blocks stay loaded while they are small; larger
ones are read, run and forgotten one by one, so that no more than one is ever in memory.

Knows: an exported folder, arrays.  Knows nothing of: torch, tasks, what is sent.
Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mobillm_kit.common import MIB
from mobillm_kit.engines import manifest as manifests
from mobillm_kit.engines.engine import Array
from mobillm_kit.errors import BadInput, NotEnoughMemory, first_line

KEPT_BYTES = 64 * MIB
"""Of blocks that stay loaded from batch to batch; above it they are read anew for each."""

_LEAST = np.finfo(np.float32).min


class OnnxEngine:
    """An exported backbone in ONNX Runtime.

    Raises:
        MissingExtra: onnxruntime is not installed.
        BadInput: as :func:`mobillm_kit.engines.manifest.read`; or a block that the runtime cannot load.
    """

    name, title = "onnx", "ONNX Runtime"

    def __init__(self, folder: str | Path) -> None:
        manifests.check_installed("onnxruntime")
        self.folder = Path(folder)
        self.manifest = manifests.read(self.folder)
        manifests.check_engine(self.manifest, self.name)
        self.precision: str = self.manifest.precision
        blocks = {name: info for name, info in self.manifest.files.items() if name.startswith("block-")}
        self._keep = manifests.sizes(blocks) <= KEPT_BYTES
        self._kept: dict[int, Any] = {}
        tables = [name.removesuffix(".npy") for name in self.manifest.files if name.endswith(".npy")]
        self.tables = {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in tables}
        """Rows are read from the disk when they are asked for."""

    def taps(self, ids: Array, mask: Array, types: Array | None = None) -> Iterator[tuple[int, Array]]:
        """As :class:`~mobillm_kit.engines.engine.Engine` says; a batch beyond the model's positions is refused."""
        hidden, given = self.begin(ids, mask, types)
        yield 0, hidden
        for index in range(self.manifest.layers):
            hidden = self.block(index, {"hidden": hidden, **given})
            yield index + 1, hidden

    def begin(self, ids: Array, mask: Array, types: Array | None = None) -> tuple[Array, dict[str, Array]]:
        """h_0, (B, T, d), and what every block is handed beside its state."""
        self._check(ids)
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        given = {"bias": self._bias(mask)}
        given |= {name: self.tables[name][positions] for name in ("cos", "sin") if name in self.tables}
        return self._embedded(ids, positions, types), given

    def _check(self, ids: Array) -> None:
        about = self.manifest
        if ids.ndim != 2 or not ids.size:
            raise BadInput(f"A batch of shape {ids.shape}.", "Give token ids (B, T), at least one.")
        if ids.shape[1] > about.context:
            problem = f"A batch of {ids.shape[1]} tokens; '{about.name}' has positions for {about.context}."
            raise BadInput(problem, f"Cut texts to {about.context} tokens: --max-length {about.context}.")
        if not 0 <= int(ids.min()) <= int(ids.max()) < about.rows:
            problem = f"Token ids from {ids.min()} to {ids.max()}; the embedding has {about.rows} rows."
            raise BadInput(problem, "Take the tokenizer.json of the same folder.")

    def _embedded(self, ids: Array, positions: Array, types: Array | None) -> Array:
        hidden = np.asarray(self.tables["tokens"][ids])
        if "project_in" in self.tables:
            hidden = hidden @ self.tables["project_in"]
        if "types" in self.tables:
            hidden = hidden + self.tables["types"][np.zeros_like(ids) if types is None else types]
        if "positions" in self.tables:
            hidden = hidden + self.tables["positions"][positions]
        if "norm" not in self.tables:
            return hidden
        weight, bias = self.tables["norm"]
        centred = hidden - hidden.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        return centred / np.sqrt(variance + np.float32(self.manifest.eps)) * weight + bias

    def _bias(self, mask: Array) -> Array:
        """(B, 1, T, T) float32, added to the scores of attention."""
        seen = np.broadcast_to(mask[:, None, None, :].astype(bool), (len(mask), 1, mask.shape[1], mask.shape[1]))
        if self.manifest.kind == "decoder":
            seen = seen & np.tri(mask.shape[1], dtype=bool)
        return np.where(seen, np.float32(0), _LEAST)

    def block(self, index: int, given: dict[str, Array]) -> Array:
        """The state after block ``index``, counted from 0, of the inputs that its graph has."""
        session = self._kept.get(index) or self._session(index)
        if self._keep:
            self._kept[index] = session
        try:
            found: Array = session.run(None, given)[0]
        except Exception as error:  # the runtime's own classes have nothing but Exception in common
            shape = "x".join(map(str, given["hidden"].shape[:-1]))
            problem = f"Block {index} failed on a batch of {shape} tokens in ONNX Runtime ({first_line(error)})."
            raise NotEnoughMemory(problem, "Take a smaller batch or shorter texts.") from error
        return found

    def _session(self, index: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # both keep what the longest batch took
        options.log_severity_level = 4  # what goes wrong comes as an error with a sentence
        path = self.folder / f"block-{index}.onnx"
        try:
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            problem = f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it ({first_line(error)})."
            raise BadInput(problem, "Export the backbone again with this version: mobillm export.") from error
