"""The architectures that are built in: configurations without weights, for planning before anything is downloaded.

One JSON file each, in the form of Hugging Face's ``config.json``; the figures are those that the authors published
(OPT: arXiv 2205.01068, table 1; RoBERTa: 1907.11692; TinyLlama: 2401.02385; Qwen2: 2407.10671; Llama 2: 2307.09288).

Knows: configuration files.  Knows nothing of: weights, methods, memory.
Taught in: notebooks/01_where_memory_goes.ipynb
"""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from mobillm_kit.backbone.families import family_of
from mobillm_kit.backbone.pretrained import resolve
from mobillm_kit.errors import BadInput, UnknownName

_FOLDER = Path(__file__).resolve().parent

BUILT_IN: tuple[str, ...] = tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))
"""Names of the built-in architectures."""


def architecture(name: str | Path) -> PreTrainedConfig:
    """The configuration of a model; no weight is read.

    Args:
        name: a built-in architecture (``opt-1.3b``, any case, an organisation before a slash is ignored), ``pocket``, a
            model folder, a JSON file like a ``config.json``, or ``organisation/name`` on the Hugging Face hub.

    Raises:
        UnknownName: no such architecture or model type.
        BadInput: a folder without ``config.json``, a file that is no configuration, or a hub that does not give one.
    """
    path = Path(name).expanduser()
    bare = str(name).lower().rpartition("/")[2]
    if str(name) == "pocket" or path.is_dir():
        return _from_file(Path(resolve(name)) / "config.json")
    if path.is_file():
        return _from_file(path)
    if bare in BUILT_IN:
        return _from_file(_FOLDER / f"{bare}.json")
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        return _from_hub(str(name))
    close = get_close_matches(bare, BUILT_IN, n=1)
    hint = f"Did you mean '{close[0]}'?" if close else f"Built in: {', '.join(BUILT_IN)}."
    raise UnknownName(
        f"There is no model '{name}': no folder, no configuration file, nothing built in.",
        f"{hint} Or name a folder or a file with a config.json.",
    )


def _from_hub(name: str) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"{name}: neither a folder, nor built in, nor given by the Hugging Face hub ({reason}).",
            f"Built in: {', '.join(BUILT_IN)}. Or name a folder or a file with a config.json.",
        ) from error
    family_of(config.model_type)
    return config


def _from_file(path: Path) -> PreTrainedConfig:
    try:
        settings: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path}: not a configuration ({error}).", "Name a model's config.json.") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise BadInput(f"{path}: names no model_type.", "Name a model's config.json.")
    family_of(settings["model_type"])
    try:
        return AutoConfig.for_model(**settings)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{path}: not a configuration of a {settings['model_type']} model ({error}).") from error
