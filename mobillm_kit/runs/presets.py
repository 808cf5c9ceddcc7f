"""Settings with names: ``presets.toml``, beside this file, has a row for each method on each kind of backbone.

Knows: numbers.  Knows nothing of: what they do.
Taught in: notebooks/09_comparison.ipynb
"""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from mobillm_kit.errors import UnknownName
from mobillm_kit.runs.spec import Settings


class Preset(NamedTuple):
    """How one method is trained."""

    settings: dict[str, Any]
    """Fields of :class:`mobillm_kit.texts.batches.FitSettings`."""
    options: dict[str, Any]
    """Method options that go over the method's own defaults."""


def _presets() -> dict[str, dict[str, Preset]]:
    kinds = msgspec.toml.decode(Path(__file__).with_name("presets.toml").read_bytes())
    alike = kinds.pop("alike")
    for rows in kinds.values():
        for method, row in rows.items():
            options = row.pop("options", {})
            rows[method] = Preset({"batch_size": 16, **row}, options)
        rows |= {method: rows[other] for method, other in alike.items() if other in rows}
    return kinds | {"turns": kinds["pocket"] | kinds["turns"]}


PRESETS = _presets()
"""By kind of backbone (the pocket one: by its task), and method."""


def preset(settings: Settings, kind: str, method: str) -> Preset:
    """The one that the settings name, or that belongs to their backbone, of that ``kind``, and its task."""
    own = "turns" if settings.task == "turns" else "pocket"
    name = settings.preset or (own if settings.backbone == "pocket" else kind)
    try:
        return PRESETS[name][method]
    except KeyError:
        raise UnknownName(f"There is no preset for '{method}' on '{name}'.") from None
