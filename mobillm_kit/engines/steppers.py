"""Which engine runs an exported folder, and what steps there.

Knows: the engines by name.  Knows nothing of: how any of them works.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mobillm_kit.engines.dual import Settings, Stepper
from mobillm_kit.engines.dual_onnx import OnnxStepper
from mobillm_kit.engines.executorch import ExecutorchEngine, ExecutorchStepper
from mobillm_kit.engines.onnx import OnnxEngine

AnyEngine = OnnxEngine | ExecutorchEngine


def open_engine(name: str, folder: Path) -> AnyEngine:
    """The engine of that name on an exported folder; what each raises."""
    return ExecutorchEngine(folder) if name == "executorch" else OnnxEngine(folder)


def stepper(engine: AnyEngine, words: Sequence[int], settings: Settings, seed: int) -> Stepper:
    """P-RGE's steps there, for these label words."""
    if isinstance(engine, ExecutorchEngine):
        return ExecutorchStepper(engine, words, settings, seed)
    return OnnxStepper(engine, words, settings, seed)
