"""The command `mobillm export`.

Knows: what can be exported.  Knows nothing of: how words on a command line become a command.
"""

from pathlib import Path
from typing import Literal

import msgspec
from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional

from mobillm_kit.errors import BadInput

screen = Console()


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """Write a backbone for a device without PyTorch: a file per block, tables, tokenizer (extra `onnx`)."""

    model: Positional[str]
    """'pocket', a model folder, a GGUF file, or a name on the hub."""
    out: Positional[Path]
    """Folder to write; it must not be there yet."""
    engine: Literal["onnx"] = "onnx"
    """What will run it: ONNX Runtime."""
    method: Literal["mobillm", "p-rge"] = "mobillm"
    """What it is for: a device of MobiLLM, or to train P-RGE on it."""
    targets: str | None = None
    """p-rge: projections to adapt, with commas, or 'all', which is usual; rank, q and alpha are chosen in training."""
    precision: Literal["float32", "int8", "int4"] = "float32"
    """Of the blocks' weights: int8 takes about a third of the disk, int4 a sixth, and both move the activations."""

    def __call__(self) -> int:
        """Export, and say where."""
        if self.method == "mobillm" and self.targets is not None:
            raise BadInput("--targets is P-RGE's.", "Give --method p-rge too, or leave it out.")
        from mobillm_kit.engines.export import export_backbone

        targets = None if self.method == "mobillm" else self.targets or "all"
        with screen.status(f"exporting {escape(self.model)}"):
            written = export_backbone(self.model, self.out, targets=targets, precision=self.precision)
        screen.print(f"Kept in {written}", markup=False, highlight=False, soft_wrap=True)
        return 0
