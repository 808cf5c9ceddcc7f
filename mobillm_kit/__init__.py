"""mobillm_kit: fine-tune a language model from a device that runs forward passes only.

The names below are imported when they are first used, so that ``import mobillm_kit`` costs nothing: no
torch, no sockets, no plots.  ``fit`` and ``compare`` stand in modules of their own name and are imported from
there (``from mobillm_kit.runs.loop import fit``): a package attribute of that name would be the function or the
module, depending on what was imported first.

Knows: where each public name lives.  Knows nothing of: what it does.

Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobillm_kit.backbone.split import Backbone, load_backbone
    from mobillm_kit.methods import METHODS, load_method
    from mobillm_kit.record import RunRecord, load_record
    from mobillm_kit.side.networks import FullWidthSide, LadderSide
    from mobillm_kit.texts.loading import TaskData, load_task
    from mobillm_kit.texts.tasks import Task, get_task

__version__ = "0.1.0"

_HOME = {
    "Backbone": "backbone",
    "load_backbone": "backbone",
    "FullWidthSide": "side",
    "LadderSide": "side",
    "Task": "tasks",
    "TaskData": "texts",
    "get_task": "tasks",
    "load_task": "texts",
    "METHODS": "methods",
    "load_method": "methods",
    "RunRecord": "record",
    "load_record": "record",
}

__all__ = [
    "METHODS",
    "Backbone",
    "FullWidthSide",
    "LadderSide",
    "RunRecord",
    "Task",
    "TaskData",
    "__version__",
    "get_task",
    "load_backbone",
    "load_method",
    "load_record",
    "load_task",
]


def __getattr__(name: str) -> Any:
    """Import the module that holds the public ``name``.

    Raises:
        AttributeError: there is no such name; the closest one is named.
    """
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    close = get_close_matches(name, _HOME, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else f" Public names: {', '.join(sorted(_HOME))}."
    raise AttributeError(f"mobillm_kit has no public name {name!r}.{hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
