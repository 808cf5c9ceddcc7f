"""A model in one GGUF file, as llama.cpp runs it: a tensor is decoded when it is asked for.

    file = header: settings, tokenizer, name -> type, shape, first byte | each tensor's codes
    W    = turned back(dequantize(codes))     the ``gguf`` package decodes; llama.cpp keeps some families' heads in an
                                              order of its own, and transformers knows which

A whole model and a streamed one have the same values.  Codes are read into buffers of this process and not mapped into
it, as :mod:`mobillm_kit.backbone.shards` says; of an embedding, only the rows that are asked for.

Knows: GGUF files, names, values.  Knows nothing of: how a backbone is split, tasks.
Taught in: notebooks/10_real_models.ipynb
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from mobillm_kit.backbone.meta_model import checkpoint_names, meta_model
from mobillm_kit.backbone.shards import Entry, Shards
from mobillm_kit.errors import BadInput

TABLES = ("token_embd.weight", "output.weight")
"""Matrices with a row per token: no family keeps them in another order, so that each row is decoded by itself."""


class GgufTensors(Shards):
    """The weights of ``model``, which needs no values, by their names there; by their own, the codes as rows of bytes.

    Raises:
        BadInput: no GGUF file, or one cut short; a type that cannot be decoded; a tensor that the model does not use.
    """

    def __init__(self, file: str | Path, model: Any) -> None:
        self._model = model
        self._codes: dict[str, str] = {}
        self._decode: dict[str, Any] = {}
        super().__init__(file)

    def listed(self) -> dict[str, Entry]:
        """Both names of every tensor."""
        from transformers import modeling_gguf_pytorch_utils as known

        reader = _reader(self.folder)
        architecture = known.read_field(reader, "general.architecture")[0]
        heads = known.TENSOR_PROCESSORS.get(architecture, known.TensorProcessor)(config=self._model.config.to_dict())
        whole = SimpleNamespace(config=self._model.config, state_dict=self._model.state_dict, named_children=list)
        names = known.get_gguf_hf_weights_map(whole, heads)  # with its children it would make a map of each
        found: dict[str, Entry] = {}
        for stored in reader.tensors:
            name, begin = str(stored.name), int(stored.data_offset)
            if name not in names:
                raise BadInput(
                    f"{self.folder}: holds '{name}', of which transformers' {self._model.config.model_type} knows "
                    "nothing: without it, the model would be another one.",
                    "Name a folder of the same model with safetensors.",
                )
            self._codes[names[name]] = name
            self._decode[name] = partial(_decoded, name, stored.tensor_type, heads)
            _check_kind(self.folder, name, stored.tensor_type)
            found[name] = Entry(self.folder, torch.uint8, stored.data.view(np.uint8).shape, begin)
            empty = np.empty(stored.shape.tolist()[::-1], np.float32)
            shape = heads.process(empty, name=name).weights.shape
            found[names[name]] = Entry(self.folder, torch.float32, shape, begin)
        return found

    def read_into(self, name: str, target: Tensor) -> None:
        """As :meth:`Shards.read_into`; a weight is decoded."""
        if name not in self._codes:
            return super().read_into(name, target)
        codes = self._codes[name]
        target.copy_(torch.from_numpy(self._decode[codes](self.read(codes).numpy())))

    def read_rows(self, name: str, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """As :meth:`Shards.read_rows`; the rows alone are decoded."""
        codes = self._codes[name]
        if codes not in TABLES:
            return self.read(name, dtype)[rows]
        read = super().read_rows(codes, rows).numpy()
        return torch.from_numpy(self._decode[codes](read)).to(dtype or torch.float32)

    def read_part(self, name: str, start: int, values: int) -> Tensor:
        """As :meth:`Shards.read_part`."""
        entry = self.entries[name]
        if self._codes[name] not in TABLES:
            return self.read(name).view(-1)[start : start + values]
        width, end = entry.shape[1], min(start + values, entry.n_values)
        rows = self.read_rows(name, torch.arange(start // width, -(-end // width)))
        return rows.view(-1)[start % width :][: end - start]


def load_gguf(file: str, config: PreTrainedConfig, dtype: torch.dtype) -> nn.Module:
    """The whole model of a file, every weight decoded and of this type."""
    model = meta_model(config, dtype)
    tensors = GgufTensors(file, model)
    names = checkpoint_names(model, tensors)
    weights = {name: nn.Parameter(tensors.read(name, dtype), requires_grad=False) for name in set(names.values())}
    model.load_state_dict({key: weights[name] for key, name in names.items()}, assign=True)  # tied ones stay one
    return model


def _reader(file: Path) -> Any:
    """The header, read; the package maps the file and touches no more of it than that."""
    from gguf import GGUFReader, GGUFValueType

    class _WithoutArrays(GGUFReader):
        """Steps over the tokenizer's words: a view of each costs 140 MiB, and here they are not asked for."""

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
            if raw_type != GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            kind, count = self._get(orig_offs, np.uint32)[0], int(self._get(orig_offs + 4, np.uint64)[0])
            end = orig_offs + 12
            if kind in self.gguf_scalar_to_np:
                end += count * np.dtype(self.gguf_scalar_to_np[kind]).itemsize
            else:
                for _ in range(count):
                    end += super()._get_field_parts(end, kind)[0]
            return end - orig_offs, [], [], []

    try:
        return _WithoutArrays(file)
    except Exception as error:  # a damaged header fails as whatever is made of its numbers
        raise BadInput(f"{file}: is no whole GGUF file ({error}).", "Copy the file again.") from error


def _check_kind(file: Path, name: str, kind: Any) -> None:
    from gguf import GGML_QUANT_SIZES, dequantize

    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError as error:
        problem = f"{file}: '{name}' is stored as {kind.name}, which cannot be decoded here."
        raise BadInput(problem, "Take a file of the model in another type, such as Q4_K, Q8_0 or F16.") from error


def _decoded(name: str, kind: Any, heads: Any, codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Values of a tensor, or of some rows of a table, float32."""
    from gguf import dequantize

    values = dequantize(codes, kind)
    return values if name in TABLES else heads.process(values, name=name).weights
