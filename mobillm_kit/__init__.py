"""mobillm_kit: fine-tune a language model from a device that runs forward passes only.

    import mobillm_kit as kit

The names below are imported when they are first used, so that ``import mobillm_kit`` costs nothing: no torch, no
sockets, no plots.  They are what the notebooks use, and the notebooks use nothing else; ``docs/architecture.md`` draws
the house behind them.

Knows: where each public name lives.  Knows nothing of: what it does.
Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

import ast
import sys
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobillm_kit.backbone.lowbit import quantize_backbone, quantize_in_memory
    from mobillm_kit.backbone.meta_model import random_folder
    from mobillm_kit.backbone.pretrained import architecture, load_backbone
    from mobillm_kit.backbone.streaming import Tokens, stream_backbone
    from mobillm_kit.channel.frames import Limits, from_frames, to_frames
    from mobillm_kit.channel.messages import BatchMessage
    from mobillm_kit.common import derived_seed, fresh_environment
    from mobillm_kit.device.forward import Device
    from mobillm_kit.device.inversion import NearestToken, TrainedInverter, labels_by_sign, recovery, search
    from mobillm_kit.errors import BadInput, NotEnoughMemory
    from mobillm_kit.link.overlap import StepCost, slowest
    from mobillm_kit.link.rates import Link
    from mobillm_kit.link.shaping import LinkProcess
    from mobillm_kit.memory.budget import Step, backbone_bytes, parse_bytes, reason, streamed
    from mobillm_kit.memory.measure import current_rss_bytes, give_back_free_memory, peak_rss_bytes, reset_peak
    from mobillm_kit.memory.prediction import RUNTIME_BYTES, predict, shape_batch, shape_model
    from mobillm_kit.methods import LABELS, load_method
    from mobillm_kit.methods.zeroth_order import replay, step_seed
    from mobillm_kit.quant import FP4, NF4, codec
    from mobillm_kit.quant.parcels import pack
    from mobillm_kit.record import packaged_records
    from mobillm_kit.runs.doctor import examine
    from mobillm_kit.runs.inference import Predictor, load_side
    from mobillm_kit.runs.loop import evaluate
    from mobillm_kit.runs.prepare import build_method, fit_settings, prepare
    from mobillm_kit.runs.run import run, untrained_logits
    from mobillm_kit.runs.spec import RunSpec
    from mobillm_kit.server.process import serve
    from mobillm_kit.show.chart import Chart
    from mobillm_kit.show.panels import CodecPanel, FitPanel, LinkPanel, MemoryPanel
    from mobillm_kit.show.panels_learning import GatePanel, MezoMapPanel, MonitorPanel, SentencePanel, mezo_runs
    from mobillm_kit.show.plots_activations import (
        accuracies_in_order,
        accuracy_by_bits,
        bits_per_value,
        channels,
        defence_costs,
        error_against_size,
        layer_shares,
        lost,
        relative_error,
        token_with_outlier,
    )
    from mobillm_kit.show.plots_memory import (
        budget_bars,
        device_memory,
        fit_grid,
        memory_growth,
        memory_over_time,
        step_memory,
    )
    from mobillm_kit.show.plots_runs import convergence, gantt, pareto
    from mobillm_kit.show.tables import markdown, rows
    from mobillm_kit.side.adapter import SideAdapter, gate_shares, layers_by_gate
    from mobillm_kit.side.full_width import FullWidthSide
    from mobillm_kit.texts.batches import batch_indices
    from mobillm_kit.texts.metrics import accuracy
    from mobillm_kit.texts.tasks import Example
    from mobillm_kit.training.ledger import saved_for_backward

__version__ = "0.1.0"

if sys.version_info < (3, 11):  # noqa: UP036  pip looks too, but a kernel may find this folder without pip
    raise ImportError(f"mobillm-kit needs Python 3.11 or newer; this kernel runs {sys.version.split()[0]}.")


def _homes() -> dict[str, str]:
    """Per public name its module: the imports above, which type checkers read, are read here as text."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    found = ((node.module or "", node.names) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return {name.name: room for room, names in found if room.startswith(f"{__name__}.") for name in names}


_HOME = _homes()

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    """Import the module that holds the public ``name``; an error about a name that nothing has names the closest."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    close = get_close_matches(name, _HOME, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else f" Public names: {', '.join(sorted(_HOME))}."
    raise AttributeError(
        f"mobillm_kit {__version__}, as this process imported it, has no public name {name!r}.{hint} "
        "A newer one counts after a restart of the kernel"  # Python itself may add a sentence to this one
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
