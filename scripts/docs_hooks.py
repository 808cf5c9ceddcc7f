"""What mkdocs does on the way: the page of the API lists the public names as the package has them today.

Knows: the map of public names.  Knows nothing of: how a docstring is set (mkdocstrings does that).
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARK = "<!-- public names -->"

if str(ROOT) not in sys.path:  # mkdocs does not put the checkout there
    sys.path.insert(0, str(ROOT))


def floors() -> list[str]:
    """The rooms from the lowest floor up, as the contract in pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = (c["layers"] for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return [room for layer in reversed(layers) for room in layer.split(" | ")]


def path_of(name: str, home: str) -> str:
    """Where a reader of source text finds the name: `quant.codec` would be the module, `quant.codec.codec` is meant."""
    module = ROOT / home.replace(".", "/") / f"{name}.py"
    return f"{home}.{name}.{name}" if module.is_file() else f"{home}.{name}"


def public_names() -> str:
    """One heading per room, and one mkdocstrings block per public name."""
    homes = import_module("mobillm_kit")._HOME
    lines = []
    for room in floors():
        inside = {name: home for name, home in homes.items() if home.split(".")[1] == room}
        if inside:
            lines += [f"## {room}", *(f"::: {path_of(name, inside[name])}" for name in sorted(inside, key=str.lower))]
    return "\n\n".join(lines)


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace(MARK, public_names()) if MARK in markdown else markdown


def on_page_content(html: str, **_: Any) -> str:
    """Roles such as ``:func:`reset_peak` `` are for editors; a page shows the name alone."""
    return re.sub(r":(?:attr|class|data|func|meth|mod):(?=<code>)", "", html)
