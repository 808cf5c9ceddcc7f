"""From a last state to class logits: heads that read label words, and what a server runs, a side network with its head.

    decoders:  logits_c = W_head[word_c] · P(norm(h[prediction token]))         label words, MeZO section 2
    masked:    logits_c = W_head[word_c] · norm(gelu(W_t h[mask] + b_t)) + b[word_c]    an encoder's label words
    encoders:  a trained classifier                                             side/pooled_head.py
    server:    h = A_L + side(A_1 … A_L)                                        without a side network h is h_L

Knows: states, side networks.  Knows nothing of: backbones, how anything is trained, files, sockets.
Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mobillm_kit.side.adapter import SideAdapter
    from mobillm_kit.side.pooled_head import PooledHead


class LabelWordHead(nn.Module):
    """The frozen language-model head, read at the label words only.

    Args:
        norm: the final norm, None for post-norm models.
        project_out: projection to the embedding's width d_e, None where it is equal.
        word_ids: token id of each label's word, C of them.
        softcap: the final logits' cap c of Gemma 2, ``c tanh(x / c)``; None for the others.
        scale: of the logits, as Cohere and Granite have one.
    """

    pooling = None
    single_token = True
    """Whether one token's state is all that the head reads."""
    word_ids: Tensor

    def __init__(
        self,
        norm: nn.Module | None,
        project_out: nn.Module | None,
        lm_head: nn.Linear,
        word_ids: Sequence[int],
        softcap: float | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.norm = norm if norm is not None else nn.Identity()
        self.project_out = project_out if project_out is not None else nn.Identity()
        self.lm_head = lm_head
        self.softcap = softcap
        self.scale = scale
        self.n_labels = len(word_ids)
        self.register_buffer("word_ids", torch.tensor(list(word_ids)), persistent=False)

    def pool(self, hidden: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """The prediction token's state, (B, d)."""
        return one_token(hidden, positions)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, d) to (B, C)."""
        words, bias = self._word_rows()
        pooled = pooled.to(words.dtype)  # a side network may hand over a wider type
        logits = nn.functional.linear(self.read(pooled), words, bias)
        return logits if not self.softcap else self.softcap * torch.tanh(logits / self.softcap)

    def read(self, state: Tensor) -> Tensor:
        """P(norm(h)), (B, d) to (B, d_e)."""
        return cast(Tensor, self.project_out(self.norm(state)))

    def server_copy(self) -> LabelWordHead:
        """A frozen copy that holds the C rows of the label words instead of the whole vocabulary."""
        words, bias = self._word_rows()
        rows = frozen_linear(words.detach().clone(), None if bias is None else bias.detach().clone())
        norm, project_out = copy.deepcopy(self.norm), copy.deepcopy(self.project_out)
        return type(self)(norm, project_out, rows, range(len(words)), self.softcap).requires_grad_(False)

    def _word_rows(self) -> tuple[Tensor, Tensor | None]:
        """The label words' rows of the projection, (C, d_e), and of its bias, (C,), times the scale."""
        rows = [None if each is None else each[self.word_ids] for each in (self.lm_head.weight, self.lm_head.bias)]
        scaled = rows if self.scale == 1.0 else [None if each is None else each * self.scale for each in rows]
        return cast(Tensor, scaled[0]), scaled[1]


class MaskedWordHead(LabelWordHead):
    """An encoder's frozen masked-language head; ``project_out`` is its matrix W_t, the prediction token the mask."""

    def read(self, state: Tensor) -> Tensor:
        """norm(gelu(W_t h + b_t)), (B, d) to (B, d_e)."""
        return cast(Tensor, self.norm(nn.functional.gelu(self.project_out(state))))

    def server_copy(self) -> LabelWordHead:
        """As a decoder's; a bias that is not there (ModernBERT) is zero."""
        copied = super().server_copy()
        for part in (copied.project_out, copied.norm):
            if part.bias is None:
                part.bias = nn.Parameter(part.weight.new_zeros(len(part.weight)), requires_grad=False)
        return copied


def frozen_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of these very tensors."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def one_token(hidden: Tensor, positions: Tensor) -> Tensor:
    """The state at each text's position (B,), of (B, T, d)."""
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), positions]


class SideTuned(nn.Module):
    """What the server runs: the side network and its head, frozen where it reads label words, else the adapter's."""

    def __init__(self, adapter: SideAdapter, head: LabelWordHead | None) -> None:
        super().__init__()
        self.adapter = adapter
        own = head or adapter.head
        assert own is not None  # an encoder's adapter holds one
        self.head: LabelWordHead | PooledHead = own

    def forward(self, taps: Sequence[Tensor], mask: Tensor, positions: Tensor) -> Tensor:
        """Taps (B, T, d) per layer, the last of them h_L; mask (B, T); positions (B,); to logits (B, C).

        The side network works in its own precision, whatever the taps arrive in.
        """
        wide = [tap.to(self.adapter.side.gates.dtype) for tap in taps]
        return self.head(self.head.pool(wide[-1] + self.adapter.side(wide, mask), mask, positions))

    @property
    def one_token_is_enough(self) -> bool:
        """Exact with the prediction token alone: the side works token by token and the head reads one token."""
        return self.adapter.side.token_wise and self.head.single_token
