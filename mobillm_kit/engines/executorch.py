"""ExecuTorch runs P-RGE's steps: one ``model.pte`` that holds backbone, low-rank matrices and their update.

    step_T   tokens, mask, position, one-hot, g of the last step, its rate, z   ->   losses, logits
    read     -> stacks of B                write   stacks of B, A, label words, scale, eps

The state is inside the engine and comes out only to be kept or scored.  z and A are PyTorch's own, drawn by
``noise.py``.  ExecuTorch's runtime for Python imports torch; what the driver does needs none of it.

Knows: an exported folder, arrays.  Knows nothing of: models, texts, how a step ends.
Taught in: notebooks/05_p_rge.ipynb
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobillm_kit.common import quiet
from mobillm_kit.engines import manifest as manifests
from mobillm_kit.engines.dual import F, Settings, draw_a
from mobillm_kit.engines.engine import Array
from mobillm_kit.engines.manifest import Lowered, Manifest
from mobillm_kit.engines.noise import Noise
from mobillm_kit.errors import BadInput, NotEnoughMemory, extra, first_line

MODEL = "model.pte"


def method_of(length: int) -> str:
    """The step for texts of so many tokens."""
    return f"step_{length}"


def runtime() -> Any:
    """ExecuTorch's runtime, with as many threads as ``OMP_NUM_THREADS`` says, or one.

    Raises:
        MissingExtra: it is not installed.
    """
    need = "The engine needs {}"
    with quiet(), warnings.catch_warnings(), extra("executorch", need, brings=("executorch", "torch", "torchao")):
        warnings.simplefilter("ignore")
        import executorch.extension.pybindings.portable_lib as library
        from executorch.runtime import Runtime
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    if library._threadpool_get_thread_count() != threads:
        library._unsafe_reset_threadpool(threads)
    return Runtime.get()


class ExecutorchEngine:
    """An exported folder in ExecuTorch.

    Raises:
        MissingExtra: executorch is not installed.
        BadInput: as :func:`mobillm_kit.engines.manifest.read`; or a file that the runtime cannot load.
    """

    name, title = "executorch", "ExecuTorch"

    def __init__(self, folder: str | Path) -> None:
        self._runtime = runtime()
        self.folder = Path(folder)
        self.manifest: Manifest = manifests.read(self.folder)
        manifests.check_engine(self.manifest, self.name)
        self.precision: str = self.manifest.precision
        assert self.manifest.lowered is not None  # it is written with the engine's name
        self.sizes: Lowered = self.manifest.lowered
        file = self.folder / MODEL
        try:
            self._program = self._runtime.load_program(file)
            # all of them now: a method that is loaded later would put the buffers' first values over what is there
            self._methods = {name: self._program.load_method(name) for name in self._program.method_names}
        except RuntimeError as error:
            problem = f"{file}: ExecuTorch cannot load it ({first_line(error)})."
            raise BadInput(problem, "Export the backbone again with this version: mobillm export.") from error

    def call(self, method: str, *given: Array) -> list[Array]:
        """What a method gives for arrays."""
        import torch

        try:
            found = self._methods[method].execute([torch.from_numpy(np.ascontiguousarray(each)) for each in given])
        except RuntimeError as error:
            problem = f"'{method}' of {self.folder / MODEL} failed in ExecuTorch ({first_line(error)})."
            raise NotEnoughMemory(problem, "Export again for fewer texts or shorter ones, or free memory.") from error
        return [each.numpy() for each in found]


class ExecutorchStepper:
    """A :class:`~mobillm_kit.engines.dual.Stepper` on an export for P-RGE, for these label words; A is ``seed``'s.

    Raises:
        BadInput: sizes that the file was not made for.
    """

    def __init__(self, engine: ExecutorchEngine, words: Sequence[int], settings: Settings, seed: int) -> None:
        adapted, layers = engine.manifest.adapted, engine.manifest.layers
        assert adapted is not None  # manifest.check_use has seen to it
        self._engine, self._sizes = engine, engine.sizes
        self._check(len(words), settings)
        given = draw_a(adapted, layers, settings.rank, seed)
        self.layers = tuple(given)
        self._widths = [d_out for d_out, _ in adapted.targets.values()] * layers
        low = np.concatenate([a.reshape(-1) for a in given.values()])
        fixed = np.array(words, np.int64), np.array([settings.alpha / settings.rank], F), np.array([settings.eps], F)
        self._fixed = low, *fixed
        self._put(np.zeros((2, settings.q, settings.rank * sum(self._widths)), F))

    def step(self, batch: Mapping[str, Array], g: Array, lr: float, noise: Noise) -> Array:
        """As the protocol has it."""
        z = [noise.randn(self._sizes.q, width, self._sizes.rank) for width in self._widths]
        rows, copies = len(batch["labels"]), 2 * self._sizes.q
        self._check_rows(rows)
        onehot = np.zeros((self._sizes.batch_size, self._sizes.labels), F)
        onehot[np.arange(rows), batch["labels"]] = 1
        tokens = [
            np.tile(each, (copies, *[1] * (each.ndim - 1))) for each in self._filled(batch, self._sizes.batch_size)
        ]
        return self._call(tokens, onehot, g, lr, self._flat(z))[0]

    def logits(self, batch: Mapping[str, Array], masters: Sequence[Array]) -> Array:
        """As the protocol has it; every copy of the stacks is the master, and reads texts of its own."""
        kept = self._engine.call("read")[0]
        self._put(np.broadcast_to(self._flat([master[None] for master in masters]), kept.shape))
        at_once = 2 * self._sizes.q * self._sizes.batch_size
        found = []
        try:
            for start in range(0, len(batch["labels"]), at_once):
                part = {name: each[start : start + at_once] for name, each in batch.items()}
                still = np.ones((self._sizes.batch_size, self._sizes.labels), F), np.zeros(self._sizes.q, F), 0.0
                logits = self._call(self._filled(part, at_once), *still, np.zeros_like(kept[0]))[1]
                found.append(logits.reshape(at_once, -1)[: len(part["labels"])])
        finally:
            self._put(kept)
        return np.concatenate(found)

    def read(self) -> Sequence[Array]:
        """Copies of the stacks."""
        (flat,) = self._engine.call("read")
        ends = np.cumsum([width * self._sizes.rank for width in self._widths])
        parts = zip(np.split(flat, ends[:-1], axis=-1), self._widths, strict=True)
        # contiguous: safetensors writes what lies in memory, whatever the strides
        return [np.ascontiguousarray(part).reshape(2, self._sizes.q, width, self._sizes.rank) for part, width in parts]

    def write(self, stacks: Sequence[Array]) -> None:
        """As the protocol has it."""
        self._put(np.stack([self._flat([stack[sign] for stack in stacks]) for sign in (0, 1)]))

    def _put(self, flat: Array) -> None:
        self._engine.call("write", flat, *self._fixed)

    def _flat(self, parts: Sequence[Array]) -> Array:
        """(q, P) of a (q, d_out, r) for each projection."""
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=-1)

    def _call(self, tokens: Sequence[Array], onehot: Array, g: Array, lr: float, z: Array) -> list[Array]:
        return self._engine.call(method_of(tokens[0].shape[1]), *tokens, onehot, g, np.array([lr], F), z)

    def _filled(self, batch: Mapping[str, Array], rows: int) -> list[Array]:
        """Tokens, mask and positions of ``rows`` texts, the first one again where there are fewer, padded."""
        own = batch["input_ids"].shape[1]
        length = next((each for each in self._sizes.lengths if each >= own), 0)
        if not length:
            raise BadInput(*too_long(own, self._sizes.lengths[-1]))
        first = np.r_[: len(batch["positions"]), np.zeros(rows - len(batch["positions"]), np.int64)]
        widened = [np.pad(batch[name][first], ((0, 0), (0, length - own))) for name in ("input_ids", "attention_mask")]
        return [*(each.astype(np.int64) for each in widened), batch["positions"][first].astype(np.int64)]

    def _check(self, labels: int, settings: Settings) -> None:
        for name, asked, there in (
            ("q", settings.q, self._sizes.q),
            ("rank", settings.rank, self._sizes.rank),
            ("labels", labels, self._sizes.labels),
        ):
            if asked != there:
                problem = f"The file is exported for {name} {there}, this run has {asked}."
                raise BadInput(problem, f"Export the backbone again with --{name} {asked}.")
        if not (settings.inner and settings.outer):
            raise BadInput("All copies run in one forward pass in ExecuTorch.", "Leave inner and outer out.")

    def _check_rows(self, rows: int) -> None:
        if rows > self._sizes.batch_size:
            problem = f"A batch of {rows} texts; the file is exported for {self._sizes.batch_size}."
            remedy = f"Take --batch-size {self._sizes.batch_size}, or export again with --batch-size {rows}."
            raise BadInput(problem, remedy)


def too_long(tokens: int, longest: int) -> tuple[str, str]:
    """Problem and remedy of a text that no exported length holds."""
    problem = f"A text of {tokens} tokens; the file is exported for {longest} at most."
    return problem, f"Cut texts with --max-length {longest}, or export again with --lengths."
