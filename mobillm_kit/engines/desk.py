"""The command `mobillm export`.

Knows: what can be exported.  Knows nothing of: how words on a command line become a command.
"""

from pathlib import Path
from typing import Any, Literal

import msgspec
from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional

from mobillm_kit.engines.manifest import Count, EngineName
from mobillm_kit.errors import BadInput

screen = Console()


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """Write a backbone for an engine: for a device without PyTorch (extra `onnx`), or to train P-RGE there."""

    model: Positional[str]
    """'pocket', a model folder, a GGUF file, or a name on the hub."""
    out: Positional[Path]
    """Folder to write; it must not be there yet."""
    engine: EngineName = "onnx"
    """What will run it: ONNX Runtime; or ExecuTorch, for p-rge alone (extra `executorch`, a minute or two)."""
    method: Literal["mobillm", "p-rge"] = "mobillm"
    """What it is for: a device of MobiLLM, or to train P-RGE on it."""
    targets: str | None = None
    """p-rge: projections to adapt, with commas, or 'all', which is usual; rank, q and alpha are chosen in training."""
    precision: Literal["float32", "int8", "int4"] = "float32"
    """Of the blocks' weights: int8 takes about a third of the disk, int4 a sixth, and both move the activations."""

    q: Count | None = None
    """executorch: perturbations a step; its file is made for these sizes, the preset's if not given."""
    rank: Count | None = None
    """executorch: of the low-rank matrices."""
    batch_size: Count | None = None
    """executorch: the most texts of a batch."""
    labels: Count | None = None
    """executorch: label words of the task, 2 if not given."""
    lengths: str | None = None
    """executorch: lengths in tokens to make a step for, with commas; 32,64,128 if not given."""

    def __call__(self) -> int:
        """Export, and say where."""
        if self.method == "mobillm" and self.targets is not None:
            raise BadInput("--targets is P-RGE's.", "Give --method p-rge too, or leave it out.")
        from mobillm_kit.engines.export import export_backbone

        targets = None if self.method == "mobillm" else self.targets or "all"
        more: dict[str, Any] = {"precision": self.precision, "engine": self.engine, "sizes": self._sizes()}
        with screen.status(f"exporting {escape(self.model)}"):
            written = export_backbone(self.model, self.out, targets=targets, **more)
        screen.print(f"Kept in {written}", markup=False, highlight=False, soft_wrap=True)
        return 0

    def _sizes(self) -> dict[str, Any]:
        """Those that were given."""
        given = {"q": self.q, "rank": self.rank, "batch_size": self.batch_size, "labels": self.labels}
        try:
            lengths = None if self.lengths is None else [int(each) for each in self.lengths.split(",")]
        except ValueError:
            raise BadInput(f"--lengths {self.lengths}: not whole numbers.", "Write them as 32,64.") from None
        return {name: value for name, value in {**given, "lengths": lengths}.items() if value is not None}
