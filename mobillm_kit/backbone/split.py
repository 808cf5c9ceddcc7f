"""A frozen Hugging Face model, split into embedding, blocks, final norm and head.

    h_0 = embed(tokens)            h_i = block_i(h_{i-1})            tap_i = h_i,  i = 0 .. L

The split never copies a model's code: the model prepares masks, positions and rotary angles itself while its
blocks stand aside, and each block is then called with exactly what the model handed to it.

Knows: models and token ids.  Knows nothing of: tasks, methods, the side network.
Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from mobillm_kit.backbone.families import Family, Kind, family_of
from mobillm_kit.errors import BadInput


@dataclass(frozen=True)
class BlockInputs:
    """What the model hands to one block beside the hidden state: masks, positions, rotary angles."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Backbone(nn.Module):
    """Any supported Hugging Face model behind one face, as an Auto class returns it; for one thread at a time."""

    def __init__(self, model: nn.Module, *, name: str = "", revision: str = "") -> None:
        super().__init__()
        self.model = model.eval()
        self.name = name
        self.revision = revision
        self.config: PreTrainedConfig = cast(PreTrainedConfig, model.config)
        self.family: Family = family_of(self.config.model_type)
        self.kind: Kind = self.family.kind
        if getattr(self.config, self.family.cannot or "_", 0):
            problem = f"'{name}' has {self.family.cannot} in its config.json: something works between its blocks."
            raise BadInput(problem, "Take a model of the family without it (DeBERTa v3), or another family.")
        self.width = int(self.config.hidden_size)
        """Width d of the hidden state between blocks."""
        self.base: nn.Module = attrgetter(self.family.base)(model) if self.family.base else cast(Any, model).base_model
        self.blocks: nn.ModuleList = attrgetter(self.family.blocks)(self.base)
        self.n_layers = len(self.blocks)
        """L, the number of blocks."""
        norm = getattr(self.base, self.family.norm) if self.family.norm else None
        self.norm: nn.Module | None = norm if self.kind == "decoder" else None
        self.closing_norm: nn.Module | None = norm if self.kind == "encoder" else None
        self.project_out: nn.Module | None = getattr(self.base, self.family.project_out or "_", None)
        words = getattr(model, self.family.lm_head) if self.family.lm_head else cast(Any, model).get_output_embeddings()
        self.lm_head: nn.Module | None = words  # an encoder has one where it is a masked-language model
        starts_late = self.family.positions_start_after_padding_id
        self._position_offset = int(self.config.pad_token_id) + 1 if starts_late else 0
        self.context = int(self.config.max_position_embeddings) - self._position_offset
        """The longest text in tokens."""
        self.freeze()

    @property
    def n_parameters(self) -> int:
        """Tied weights once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def n_tokens(self) -> int:
        """V, rows of the embedding."""
        return int(attrgetter(self.family.embedding)(self.base).num_embeddings)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.model.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every weight's name, shape and bfloat16 bytes; ask before a method changes the weights."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{key}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def resident(self) -> list[Tensor]:
        """The weights that this process holds, in whatever form."""
        return [tensor for tensor in (*self.model.parameters(), *self.model.buffers()) if not tensor.is_meta]

    def dense(self, index: int, held: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Tensors of block ``index`` by their names in it, codes decoded: those ``held``, or its own."""
        block = self.blocks[index]
        tensors = held or dict(block.named_parameters()) | dict(block.named_buffers())
        return tensors | {key: decoded(tensors) for key, decoded in getattr(block, "coded", {}).items()}

    def freeze(self) -> None:
        """No gradient and no dropout, from here on, until a method asks for its own parameters."""
        self.model.requires_grad_(False)
        self.model.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode: every method here runs without dropout, so that each is deterministic."""
        return super().train(False)

    def begin(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, list[BlockInputs]]:
        """Embed the tokens, h_0 (B, T, d), and learn what each block will be handed.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T), 1 at real tokens; padding may stand on either side.
            token_type_ids: (B, T) for encoders that read two texts.
        """
        counted = attention_mask.long().cumsum(dim=1) - 1  # real tokens only: padding on the left moves nothing
        positions = counted.clamp(min=0) + self._position_offset
        kwargs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": positions}
        if self.kind == "decoder":
            kwargs["use_cache"] = False
        elif token_type_ids is not None and getattr(self.config, "type_vocab_size", 0) > 1:  # one row says nothing
            kwargs["token_type_ids"] = token_type_ids
        with _blocks_aside(self.blocks, self.family.returns_tuple) as seen:
            self.base(**kwargs)
        return seen[0][0], [inputs for _, inputs in seen]

    def block(self, index: int, hidden: Tensor, inputs: BlockInputs) -> Tensor:
        """h_i from h_{i-1}: (B, T, d) to (B, T, d); ``index`` counts from 0."""
        return self.state(index, self.blocks[index](hidden, *inputs.args, **inputs.kwargs))

    def state(self, index: int, returned: Any) -> Tensor:
        """h_i of what its block returned; an encoder's final norm (ModernBERT) belongs to its last block."""
        hidden = returned[0] if self.family.returns_tuple else returned
        return self.closing_norm(hidden) if self.closing_norm and index == self.n_layers - 1 else hidden

    def hidden_states(self, *tokens: Any) -> Iterator[Tensor]:
        """h_0, h_1 … h_L, each (B, T, d), before the final norm, one at a time; ``tokens`` as in :meth:`begin`."""
        hidden, inputs = self.begin(*tokens)
        yield hidden
        for index, handed in enumerate(inputs):
            hidden = self.block(index, hidden, handed)
            yield hidden

    def taps(self, *tokens: Any, layers: Sequence[int]) -> list[Tensor]:
        """The activations of the chosen layers, (B, T, d) each, in the order of ``layers`` (1 .. L; 0 = embedding)."""
        self.check_layers(layers)
        kept = {index: state for index, state in enumerate(self.hidden_states(*tokens)) if index in layers}
        return [kept[index] for index in layers]

    def check_layers(self, layers: Sequence[int]) -> None:
        """Refuse a layer outside 0 .. L."""
        missing = sorted(layer for layer in layers if not 0 <= layer <= self.n_layers)
        if missing:
            raise BadInput(f"Layer {missing[0]} does not exist: '{self.name}' has layers 0 to {self.n_layers}.")

    def last_hidden(self, *tokens: Any) -> Tensor:
        """h_L, (B, T, d), before the final norm."""
        return deque(self.hidden_states(*tokens), maxlen=1).pop()


@contextmanager
def _blocks_aside(blocks: nn.ModuleList, as_tuple: bool) -> Iterator[list[tuple[Tensor, BlockInputs]]]:
    """While it holds, a block returns its input untouched and notes what it was handed."""
    seen: list[tuple[Tensor, BlockInputs]] = []

    def _stand_aside(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        seen.append((hidden, BlockInputs(args, kwargs)))
        return (hidden, None) if as_tuple else hidden

    for block in blocks:
        block.forward = _stand_aside
    try:
        yield seen
    finally:
        for block in blocks:
            del block.forward
