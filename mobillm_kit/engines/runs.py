"""What an engine trains: MobiLLM's side networks on a server, P-RGE by itself.

Knows: which run belongs to which method.  Knows nothing of: how any of them works.
"""

from collections.abc import Callable
from pathlib import Path

from mobillm_kit.errors import BadInput
from mobillm_kit.methods import method_row
from mobillm_kit.runs.progress import Progress
from mobillm_kit.runs.spec import RunSpec


def train(spec: RunSpec, out: Path, told: Callable[[Progress], object], engine: str) -> str:
    """Train in an engine, and say in a sentence what came out.

    Raises:
        BadInput: a method that no engine trains, and what each run refuses.
    """
    if method_row(spec.method).module == "mobillm":
        if engine != "onnx":
            raise BadInput(f"MobiLLM has no device in --engine {engine}.", "Take --engine onnx, or torch.")
        from mobillm_kit.engines import training

        losses = training.train(spec, out, told).losses
        return f"Loss of the last step: {losses[-1]:.4f}. The side network is in {out / 'side'}"
    if spec.method != "p-rge":
        problem = f"An engine trains no '{spec.method}': it only runs forward."
        raise BadInput(problem, "Choose p-rge, or a method of MobiLLM.")
    from mobillm_kit.engines import prge

    last = prge.train(spec, out, told, engine).looks[-1]
    scores = f"Accuracy on the dev split: {last.dev_accuracy:.4f}, loss {last.dev_loss:.4f}."
    return f"{scores} Kept in {out}; `mobillm evaluate` scores the held-out texts with PyTorch."
