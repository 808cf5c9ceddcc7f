"""A pretrained model's files: where a name leads, and how they are read.

    "pocket"  ->  the packaged folder    a folder, a GGUF file  ->  itself    anything else  ->  a name on the hub

Knows: names, folders, transformers' loaders.  Knows nothing of: how a backbone is split, tasks.
Taught in: notebooks/10_real_models.ipynb
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.utils import logging as hf_logging

from mobillm_kit.backbone.families import Kind, family_of
from mobillm_kit.backbone.split import Backbone
from mobillm_kit.errors import BadInput, UnknownName, first_line, nearest
from mobillm_kit.files import data_folder

_ARCHITECTURES = Path(__file__).with_name("architectures")
"""A ``config.json`` each, for planning before a download; the figures are the authors' (OPT: arXiv 2205.01068, table 1;
RoBERTa: 1907.11692; TinyLlama: 2401.02385; Qwen2: 2407.10671; Llama 2: 2307.09288)."""

BUILT_IN: tuple[str, ...] = tuple(sorted(path.stem for path in _ARCHITECTURES.glob("*.json")))
"""Names of the built-in architectures."""

LARGEST_POINTER_BYTES = 1024
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_backbone(
    name: str | Path, *, revision: str | None = None, dtype: str = "float32", device: str = "cpu", masked: bool = False
) -> Backbone:
    """Load a frozen backbone.

    Args:
        name: ``"pocket"`` (packaged), a folder, a GGUF file, or a name on the Hugging Face hub.
        revision: a branch, tag or commit of the hub.
        dtype: ``float32``, ``bfloat16`` or ``float16``, whatever the checkpoint is stored in.
        masked: an encoder comes with its masked-language head, which label words need.

    Raises:
        BadInput: no such folder or name, a folder without ``config.json`` or weights, an unknown dtype.
        UnknownName: a model family without a row in ``backbone/families.toml``.
    """
    from mobillm_kit.backbone.gguf_file import load_gguf  # both stand on what this module loads
    from mobillm_kit.backbone.lowbit import read_low_bit

    source = resolve(name)
    low_bit = read_low_bit(source)
    if low_bit:
        problem = f"{source}: holds {low_bit.kind} weights, which are not loaded whole."
        raise BadInput(problem, "Use stream_backbone, or load the unquantized model and call quantize_in_memory.")
    config = load_config(source, revision)
    if is_gguf(source):
        model = load_gguf(source, config, torch_dtype(dtype))
    else:
        loader, extra = auto_class(config.model_type, masked)
        model, report = from_pretrained(
            loader, source, revision=revision, dtype=torch_dtype(dtype), output_loading_info=True, **extra
        )
        check_complete(name, sorted(report["missing_keys"]), masked)
        model = all_of(torch_dtype(dtype), model)
    return Backbone(model.to(device), name=public_name(name), revision=revision or "")


def backbone_kind(name: str | Path, *, revision: str | None = None) -> Kind:
    """Whether a model is a decoder or an encoder, from its configuration alone."""
    return family_of(load_config(resolve(name), revision).model_type).kind


def load_tokenizer(name: str | Path, *, revision: str | None = None) -> Any:
    """The tokenizer that belongs to a backbone."""
    source = resolve(name)
    if Path(source).is_dir() and not any((Path(source) / file).is_file() for file in TOKENIZER_FILES):
        raise BadInput(f"{name}: the folder holds no tokenizer.", f"It needs one of: {', '.join(TOKENIZER_FILES)}.")
    return from_pretrained(AutoTokenizer, source, revision=revision)


def random_backbone(like: Backbone, *, seed: int) -> Backbone:
    """The same architecture with fresh random weights: the control for "it is the pretraining that helps"."""
    with torch.random.fork_rng(devices=[]):  # the global generator stays as it was
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every accelerator for good
        model = from_config(like.config, like.dtype, like.lm_head is not None)
    return Backbone(model.to(like.device), name=f"{like.name} (random weights)")


def resolve(name: str | Path) -> str:
    """The folder, or the name on the hub, that a backbone's name stands for."""
    if str(name) == "pocket":
        return str(data_folder("pocket"))
    path = Path(name).expanduser()
    if file := gguf_in(path):
        return str(file)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BadInput(f"{name}: the folder holds no config.json.", "Name the folder that save_pretrained wrote.")
        for file in sorted(path.iterdir()):
            _no_pointer(file)
        return str(path)
    if path.is_absolute() or str(name).startswith((".", "~")):
        raise BadInput(f"{name}: no such folder.", "Name a model folder, a name on the hub, or 'pocket'.")
    return str(name)


def _no_pointer(file: Path) -> None:
    small = file.is_file() and file.stat().st_size < LARGEST_POINTER_BYTES
    if small and file.read_bytes().startswith(b"version https://git-lfs"):
        problem = f"{file}: is a pointer of Git's large-file store, a few lines in place of the file."
        raise BadInput(problem, "Run `git lfs pull` where it was cloned, or download the file itself.")


def gguf_in(path: Path) -> Path | None:
    """The GGUF file that a path is or, as a folder without ``config.json``, holds; several, or none, are refused."""
    if path.suffix == ".gguf" and not path.is_dir():
        file = path
    elif path.is_dir() and not (path / "config.json").is_file() and (held := sorted(path.glob("*.gguf"))):
        if len(held) > 1:
            raise BadInput(f"{path}: holds {len(held)} GGUF files.", f"Name one of them, such as {held[0]}.")
        file = held[0]
    else:
        return None
    if not file.is_file():
        raise BadInput(f"{file}: no such file.", "Name a GGUF file, a model folder, a name on the hub, or 'pocket'.")
    _no_pointer(file)
    if find_spec("gguf") is None:
        problem = f"{file}: a GGUF file is read with the package gguf, which is not installed."
        raise BadInput(problem, "Install it with: pip install 'mobillm-kit[gguf]'")
    return file


def is_gguf(source: str) -> bool:
    """Whether what :func:`resolve` gave is a GGUF file."""
    return source.endswith(".gguf")


def load_config(source: str, revision: str | None = None) -> PreTrainedConfig:
    """A model's configuration; one whose weights are somebody's codes is refused."""
    config: PreTrainedConfig = from_pretrained(AutoConfig, source, revision=revision)
    codes = getattr(config, "quantization_config", None)
    if codes:
        how = codes.get("quant_method", "quantized") if isinstance(codes, dict) else type(codes).__name__
        raise BadInput(
            f"{source}: its weights are {how} codes (quantization_config in config.json), which cannot be read here.",
            "Name the model it was made of; `--weights nf4` or `mobillm quantize` makes few bits of that.",
        )
    return config


def public_name(name: str | Path) -> str:
    """A folder is recorded by its own name: paths say more about a machine than about a model."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else str(name)


def torch_dtype(name: str) -> torch.dtype:
    """``float32``, ``bfloat16`` or ``float16``."""
    try:
        return DTYPES[name]
    except KeyError:
        raise BadInput(f"Unknown dtype '{name}'.", f"Choose one of: {', '.join(DTYPES)}.") from None


def from_pretrained(loader: Any, source: str, **kwargs: Any) -> Any:
    """``loader.from_pretrained(source, **kwargs)``, without bars and reports; code that comes with it never runs."""
    failures: tuple[type[Exception], ...] = (OSError, ValueError, SafetensorError)
    if is_gguf(source):
        kwargs["gguf_file"], failures = Path(source).name, (Exception,)  # a damaged header fails in any way
    try:
        with _quiet_transformers():
            place = str(Path(source).parent) if is_gguf(source) else source
            return loader.from_pretrained(place, trust_remote_code=False, **kwargs)
    except failures as error:
        if "trust_remote_code" in str(error):
            problem = f"{source}: needs code of its own (auto_map), and code that comes with a model is never run here."
            raise BadInput(problem, "Name a model that transformers itself knows.") from error
        if is_gguf(source):
            problem = f"{source}: is no whole GGUF file, or one that transformers cannot read ({first_line(error)})."
            remedy = "Copy it again, or take a file of another family, or with types that the gguf package here knows."
            raise BadInput(problem, remedy) from error
        raise BadInput(
            f"{source}: could not be loaded ({first_line(error)}).",
            "Name a model folder with config.json and weights, a name on the hub (needs a connection), or 'pocket'.",
        ) from error


def from_config(config: PreTrainedConfig, dtype: torch.dtype, masked: bool = False) -> nn.Module:
    """A model of this configuration with random weights, drawn from the global generator."""
    factory, extra = auto_class(config.model_type, masked)
    return all_of(dtype, factory.from_config(config, dtype=dtype, trust_remote_code=False, **extra))


def all_of(dtype: torch.dtype, model: nn.Module) -> nn.Module:
    """The model, with every parameter of this type: DeBERTa keeps two in float32, whatever it is asked for."""
    for parameter in model.parameters():
        if parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    return model


def auto_class(model_type: str, masked: bool = False) -> tuple[Any, dict[str, Any]]:
    """The Auto class that makes a model of this type, and the arguments it needs beside the configuration."""
    family = family_of(model_type)
    if family.kind == "decoder":
        return AutoModelForCausalLM, {}
    if masked:
        return AutoModelForMaskedLM, {}
    return AutoModel, {"add_pooling_layer": False} if family.poolable else {}


def check_complete(where: str | Path, missing: Sequence[str], masked: bool = False) -> None:
    """Refuse a model with weights that its files do not hold."""
    if missing:
        problem = f"{where}: {len(missing)} weights of the model are not in its files, the first is '{missing[0]}'."
        remedy = f"Name the folder of a whole pretrained model{', its MLM head too, or --head classifier' * masked}."
        raise BadInput(problem, remedy)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bars and no report of unused weights: what matters of it, missing weights, is an error here."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def architecture(name: str | Path) -> PreTrainedConfig:
    """The configuration of a model; no weight is read.

    Args:
        name: a built-in architecture (``opt-1.3b``, any case, an organisation before a slash is ignored), ``pocket``, a
            model folder, a JSON file like a ``config.json``, or ``organisation/name`` on the Hugging Face hub.
    """
    path = Path(name).expanduser()
    bare, built_in = str(name).lower().rpartition("/")[2], f"Built in: {', '.join(BUILT_IN)}."
    if str(name) == "pocket" or path.is_dir() or is_gguf(str(name)):
        source = resolve(name)
        config = load_config(source) if is_gguf(source) else _from_file(Path(source) / "config.json")
        family_of(config.model_type)
        return config
    if path.is_file():
        return _from_file(path)
    if bare in BUILT_IN:
        return _from_file(_ARCHITECTURES / f"{bare}.json")
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        try:
            config = AutoConfig.from_pretrained(str(name), trust_remote_code=False)
        except (OSError, ValueError) as error:
            problem = (
                f"{name}: neither a folder, nor built in, nor given by the Hugging Face hub ({first_line(error)})."
            )
            raise BadInput(problem, f"{built_in} Or name a folder or a file with a config.json.") from error
        family_of(config.model_type)
        return config
    problem = f"There is no model '{name}': no folder, no configuration file, nothing built in."
    raise UnknownName(problem, f"{nearest(bare, BUILT_IN, built_in)} Or name a folder or a file with a config.json.")


def _from_file(path: Path) -> PreTrainedConfig:
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        family_of(settings["model_type"])
        return AutoConfig.for_model(**settings)
    except UnknownName:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        problem = f"{path}: not a configuration, or one that names no model_type ({error})."
        raise BadInput(problem, "Name a model's config.json.") from error
