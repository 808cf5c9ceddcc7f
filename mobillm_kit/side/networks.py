"""Side networks: parallel adapters beside a frozen backbone, trained where the memory is.

Full width (PAE MobiLLM, arXiv 2507.01216, eq. 1), token by token:

    x_i = (1 - mu_i) A_i + mu_i h_{i-1}         mu_i = sigmoid(alpha_i)
    h_i = x_i + W_up,i gelu(W_down,i x_i)       W_up = 0 at the start

Ladder (LST, arXiv 2206.06522), width d/k, with attention of its own:

    s_i = Block_i(g_i s_{i-1} + (1 - g_i) W_i norm(A_i))        g_i = sigmoid(alpha_i / 0.1)

or, started from the backbone's own blocks pruned to that width (LST section 3.2), fed by each block's input:

    s_i = Block_i(g_i s_{i-1} + (1 - g_i) W_i A_{i-1})

All return what the side adds to the backbone's last state.  For the ladders it is W_up s_L.  For the full width it
is h_L minus the same recursion without adapters, kept as a recursion of its own so that nothing cancels:

    delta_i = mu_i delta_{i-1} + W_up,i gelu(W_down,i x_i)

W_up starts at zero in all: at step 0 the model *is* the pretrained model, to the bit.

Knows: activations.  Knows nothing of: the backbone that made them, tasks, sockets.

Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobillm_kit.errors import BadInput
from mobillm_kit.side.description import SideSpec

OWN_STATE_FIRST = 0.2
"""alpha of blocks that begin as the backbone's: sigmoid(0.2 / 0.1) = 0.88 of the side's own state, 0.12 of the tap."""


class SideNetwork(Protocol):
    """What every side network offers."""

    layers: tuple[int, ...]
    """The tapped layers, in the order in which their activations are expected."""
    token_wise: bool
    """Whether a token's output depends on that token's activations alone."""

    def __call__(self, taps: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Activations (B, T, d) per tapped layer and mask (B, T) to what is added to the last state, (B, T, d)."""


class FullWidthSide(nn.Module):
    """One bottleneck adapter per tapped layer, at the backbone's width (PAE MobiLLM eq. 1).

    Args:
        width: d.
        layers: tapped layers, ascending, 1 .. L.
        rank: bottleneck r.
        gate_init: alpha_i at the start; 0 gives mu_i = 1/2.
        seed: of the initial weights.

    Raises:
        BadInput: no layers, a layer twice or out of order, or a rank outside 1 .. d.
    """

    token_wise = True

    def __init__(
        self, width: int, layers: Sequence[int], *, rank: int = 16, gate_init: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.layers = _checked_layers(layers)
        if not 1 <= rank <= width:
            raise BadInput(f"rank is {rank}; it must lie in 1 .. {width}, the backbone's width.")
        generator = torch.Generator().manual_seed(seed)
        self.gates = nn.Parameter(torch.full((len(self.layers),), float(gate_init)))
        self.down = nn.ModuleList(_linear(width, rank, generator) for _ in self.layers)
        self.up = nn.ModuleList(_zero_linear(rank, width) for _ in self.layers)  # zero: the side starts as nothing

    def forward(self, taps: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Taps and mask (B, T) to what is added to the last state, (B, T, d)."""
        delta = torch.zeros_like(taps[0])
        state = taps[0]  # h_0: the first tap stands in, so that x_1 = A_1
        for tap, gate, down, up in zip(taps, self.gates.sigmoid(), self.down, self.up, strict=True):
            x = (1 - gate) * tap + gate * state
            change = up(F.gelu(down(x)))
            delta = gate * delta + change
            state = x + change
        return delta


class LadderSide(nn.Module):
    """A narrow transformer beside the backbone, fed by every tapped layer (LST section 3).

    Args:
        width: d.
        layers: tapped layers, ascending.
        reduction: k; the ladder's width is d/k.
        heads: attention heads of each ladder block; must divide d/k.
        causal: attention looks back only (decoders) or both ways (encoders).
        seed: of the initial weights.

    Raises:
        BadInput: bad layers, a reduction that does not divide d, heads that do not divide d/k.
    """

    token_wise = False

    def __init__(
        self,
        width: int,
        layers: Sequence[int],
        *,
        reduction: int = 4,
        heads: int = 2,
        causal: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.layers = _checked_layers(layers)
        if reduction < 1 or width % reduction or (width // reduction) % heads:
            raise BadInput(
                f"reduction {reduction} and {heads} heads do not divide the backbone's width {width}.",
                "width / reduction must be a whole multiple of heads.",
            )
        narrow = width // reduction
        generator = torch.Generator().manual_seed(seed)
        self.gates = nn.Parameter(torch.zeros(len(self.layers)))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.layers)
        self.down = nn.ModuleList(_linear(width, narrow, generator) for _ in self.layers)
        self.blocks = nn.ModuleList(LadderBlock(narrow, heads, causal, generator) for _ in self.layers)
        self.norm = nn.LayerNorm(narrow)
        self.up = _zero_linear(narrow, width)  # zero: the side starts as nothing

    def forward(self, taps: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Taps and mask (B, T) to what is added to the last state, (B, T, d)."""
        allowed = self.blocks[0].allowed(mask)
        state: Tensor | None = None
        gates = (self.gates / 0.1).sigmoid()
        for tap, gate, norm, down, block in zip(taps, gates, self.norms, self.down, self.blocks, strict=True):
            narrow = down(norm(tap))
            state = block(narrow if state is None else gate * state + (1 - gate) * narrow, allowed)
        return self.up(self.norm(state))


class LadderBlock(nn.Module):
    """A pre-norm transformer block of the ladder's width: attention, then a feed-forward of twice the width."""

    def __init__(self, width: int, heads: int, causal: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = _linear(width, 3 * width, generator)
        self.out = _linear(width, width, generator)
        self.mlp_norm = nn.LayerNorm(width)
        self.wide = _linear(width, 2 * width, generator)
        self.narrow = _linear(2 * width, width, generator)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """(B, T, r) to (B, T, r)."""
        x = x + self._attention(self.attention_norm(x), allowed)
        return x + self.narrow(F.gelu(self.wide(self.mlp_norm(x))))

    def allowed(self, mask: Tensor) -> Tensor:
        """(B, 1, T, T): which token may look at which."""
        return allowed_pairs(mask, causal=self.causal)

    def _attention(self, x: Tensor, allowed: Tensor) -> Tensor:
        b, t, w = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)  # (B, H, T, w/H)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.out(mixed.transpose(1, 2).reshape(b, t, w))


class PrunedLadderSide(nn.Module):
    """A ladder whose blocks have the shape of an encoder's own, so that they can begin as these, pruned (LST 3.2).

    ``side/pruning.py`` fills them; here their weights are random.  Between the taps A_l … A_L stand the blocks
    l + 1 … L, each fed by the input of the backbone's block; the last tap is what the result is added to.  With
    reduction 1 nothing is pruned: the side network begins as a copy of the backbone's last L - l blocks.

    Args:
        width: d.
        layers: tapped layers l … L, consecutive, at least two; 0 is the embedding.
        reduction: k; the ladder's width is d/k.
        heads: attention heads of each block.
        feed_forward: width inside each block's feed-forward.
        norm_eps: of the LayerNorms.
        seed: of the weights that nothing replaces.

    Raises:
        BadInput: layers that are not consecutive, or sizes that do not divide.
    """

    token_wise = False

    def __init__(
        self,
        width: int,
        layers: Sequence[int],
        *,
        reduction: int,
        heads: int,
        feed_forward: int,
        norm_eps: float = 1e-12,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.layers = _checked_layers(layers)
        if len(self.layers) < 2 or self.layers[-1] - self.layers[0] != len(self.layers) - 1:
            raise BadInput(
                f"layers are {list(layers)}; blocks that begin as the backbone's stand between consecutive layers.",
                "Give a count (4: the last four layers) or consecutive layers, at least two.",
            )
        if reduction < 1 or heads < 1 or width % reduction or (width // reduction) % heads:
            raise BadInput(
                f"reduction {reduction} and {heads} heads do not divide the backbone's width {width}.",
                "width / reduction must be a whole multiple of heads.",
            )
        narrow = width // reduction
        generator = torch.Generator().manual_seed(seed)
        fed = self.layers[:-1]
        self.gates = nn.Parameter(torch.full((len(fed),), OWN_STATE_FIRST))
        self.down = nn.ModuleList(_linear(width, narrow, generator) for _ in fed)
        self.blocks = nn.ModuleList(PostNormBlock(narrow, heads, feed_forward, norm_eps, generator) for _ in fed)
        self.up = _zero_linear(narrow, width)  # zero: the side starts as nothing

    def forward(self, taps: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Taps and mask (B, T) to what is added to the last state, (B, T, d)."""
        allowed = allowed_pairs(mask, causal=False)
        state: Tensor | None = None
        gates = (self.gates / 0.1).sigmoid()
        for tap, gate, down, block in zip(taps[:-1], gates, self.down, self.blocks, strict=True):
            narrow = down(tap)
            state = block(narrow if state is None else gate * state + (1 - gate) * narrow, allowed)
        return self.up(state)


class PostNormBlock(nn.Module):
    """A transformer block as BERT has it: attention, norm, feed-forward, norm."""

    def __init__(self, width: int, heads: int, feed_forward: int, norm_eps: float, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (_linear(width, width, generator) for _ in range(4))
        self.attention_norm = nn.LayerNorm(width, eps=norm_eps)
        self.wide = _linear(width, feed_forward, generator)
        self.narrow = _linear(feed_forward, width, generator)
        self.mlp_norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """(B, T, r) to (B, T, r)."""
        x = self.attention_norm(x + self._attention(x, allowed))
        return self.mlp_norm(x + self.narrow(F.gelu(self.wide(x))))

    def _attention(self, x: Tensor, allowed: Tensor) -> Tensor:
        b, t, w = x.shape
        q, k, v = (layer(x).view(b, t, self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.out(mixed.transpose(1, 2).reshape(b, t, w))


def build_side(spec: SideSpec) -> FullWidthSide | LadderSide | PrunedLadderSide:
    """The side network of a description, with its first weights.

    Raises:
        BadInput: an unknown kind, a start that the kind does not have, or sizes that do not fit.
    """
    if spec.start not in ("random", "backbone") or (spec.start == "backbone" and spec.kind != "ladder"):
        raise BadInput(
            f"start is '{spec.start}' for side '{spec.kind}'.", "Choose 'random', or 'backbone' with a ladder."
        )
    if spec.kind == "full-width":
        return FullWidthSide(spec.width, spec.layers, rank=spec.rank, seed=spec.seed)
    if spec.kind != "ladder":
        raise BadInput(f"Unknown side network '{spec.kind}'.", "Choose 'full-width' or 'ladder'.")
    sizes = {"reduction": spec.reduction, "heads": spec.heads, "seed": spec.seed}
    if spec.start == "random":
        return LadderSide(spec.width, spec.layers, causal=spec.causal, **sizes)
    return PrunedLadderSide(spec.width, spec.layers, feed_forward=spec.feed_forward, norm_eps=spec.norm_eps, **sizes)


def allowed_pairs(mask: Tensor, *, causal: bool) -> Tensor:
    """(B, 1, T, T): which token may look at which; a padding token may look at itself, so that no row is empty."""
    length = mask.shape[1]
    sees = mask.bool()[:, None, None, :].expand(-1, 1, length, length)
    if causal:
        sees = sees & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return sees | torch.eye(length, dtype=torch.bool, device=mask.device)


def last_layers(n_layers: int, count: int | None = None) -> tuple[int, ...]:
    """The last ``count`` of 0 .. L; all of them where ``count`` is None or there are no more.

    Raises:
        BadInput: count below 1.
    """
    if count is not None and count < 1:
        raise BadInput(f"Cannot choose the last {count} of the layers 0 to {n_layers}.")
    first = 0 if count is None else max(0, n_layers + 1 - count)
    return tuple(range(first, n_layers + 1))


def even_layers(n_layers: int, count: int | None = None) -> tuple[int, ...]:
    """``count`` evenly spaced layers out of 1 .. L that end in L; all of them where ``count`` is None.

    Raises:
        BadInput: count outside 1 .. L.
    """
    count = n_layers if count is None else count
    if not 1 <= count <= n_layers:
        raise BadInput(f"Cannot choose {count} of {n_layers} layers.")
    return tuple(round((index + 1) * n_layers / count) for index in range(count))


def gate_shares(side: FullWidthSide | LadderSide) -> tuple[float, ...]:
    """Each tapped layer's share in the side state at the end, adapters and blocks left out; they sum to 1.

        share_i = (1 - mu_i) prod_{j>i} mu_j            share_1 = prod_{j>1} mu_j

    since the first tap enters whole.  mu is the gate: sigmoid(alpha), of the ladder sigmoid(alpha / 0.1).
    """
    gates = (side.gates if side.token_wise else side.gates / 0.1).detach().sigmoid().double().tolist()
    shares, kept = [], 1.0
    for place in range(len(gates) - 1, -1, -1):
        enters = 1 - gates[place] if place else 1.0
        shares.append(enters * kept)
        kept *= gates[place]
    return tuple(reversed(shares))


def layers_by_gate(side: FullWidthSide | LadderSide, count: int) -> tuple[int, ...]:
    """The ``count`` tapped layers of a trained side network that weigh most in it, ascending (filtering by layer).

    The last one is always among them: its state is what the side network adds to.

    Args:
        side: trained; of a fresh one every gate is the same, and the choice says nothing.
        count: how many layers are to be sent.

    Raises:
        BadInput: count outside 1 .. number of tapped layers.
    """
    if not 1 <= count <= len(side.layers):
        raise BadInput(f"Cannot choose {count} of {len(side.layers)} layers.")
    *others, last = zip(gate_shares(side), side.layers, strict=True)
    heaviest = sorted(others, reverse=True)[: count - 1]
    return tuple(sorted([layer for _, layer in heaviest] + [last[1]]))


def _checked_layers(layers: Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(int(layer) for layer in layers)
    if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0:
        raise BadInput(f"layers are {list(layers)}; they must be ascending, without repeats, and at least one.")
    return chosen


def _linear(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, device="meta").to_empty(device="cpu")  # meta: torch's global generator is not used
    nn.init.normal_(layer.weight, std=n_in**-0.5, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _zero_linear(n_in: int, n_out: int) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, bias=False, device="meta").to_empty(device="cpu")
    nn.init.zeros_(layer.weight)
    return layer
