"""Side networks of width d/k with attention of their own: ladders (LST, arXiv 2206.06522).

    s_i = Block_i(g_i s_{i-1} + (1 - g_i) W_i norm(A_i))        g_1 = 0, g_i = sigmoid(alpha_i / 0.1)

or, started from the backbone's own blocks pruned to that width (LST section 3.2), fed by each block's input:

    s_i = Block_i(g_i s_{i-1} + (1 - g_i) W_i A_{i-1})

Both add W_up s_L to the backbone's last state, and W_up starts at zero: at step 0 the model *is* the pretrained model.

Knows: activations.  Knows nothing of: the backbone that made them, tasks, sockets.
Taught in: notebooks/06_side_network.ipynb
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobillm_kit.side.description import SideSpec, check_ladder, check_layers
from mobillm_kit.side.full_width import linear, zero_linear

OWN_STATE_FIRST = 0.2
"""alpha of blocks that begin as the backbone's: sigmoid(0.2 / 0.1) = 0.88 of the side's own state, 0.12 of the tap."""


class LadderSide(nn.Module):
    """A narrow transformer beside the backbone, fed by every tapped layer (LST section 3); its heads divide d/k."""

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
        self.layers = check_layers(layers)
        check_ladder(width, reduction, heads)
        self.causal = causal
        narrow = width // reduction
        generator = torch.Generator().manual_seed(seed)
        self.gates = nn.Parameter(torch.zeros(len(self.layers) - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.layers)
        self.down = nn.ModuleList(linear(width, narrow, generator) for _ in self.layers)
        self.blocks = nn.ModuleList(LadderBlock(narrow, heads, generator) for _ in self.layers)
        self.norm = nn.LayerNorm(narrow)
        self.up = zero_linear(narrow, width)  # zero: the side starts as nothing

    def forward(self, taps: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Taps and mask (B, T) to what is added to the last state, (B, T, d)."""
        fed = (down(norm(tap)) for tap, norm, down in zip(taps, self.norms, self.down, strict=True))
        return self.up(self.norm(_climbed(fed, self.gates, self.blocks, allowed_pairs(mask, causal=self.causal))))


class LadderBlock(nn.Module):
    """A pre-norm transformer block of the ladder's width: attention, then a feed-forward of twice the width."""

    def __init__(self, width: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = linear(width, 3 * width, generator)
        self.out = linear(width, width, generator)
        self.mlp_norm = nn.LayerNorm(width)
        self.wide = linear(width, 2 * width, generator)
        self.narrow = linear(2 * width, width, generator)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """(B, T, r) to (B, T, r)."""
        qkv = self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        x = x + self.out(_mixed(qkv, self.heads, allowed))
        return x + self.narrow(F.gelu(self.wide(self.mlp_norm(x))))


class PrunedLadderSide(nn.Module):
    """A ladder whose blocks have the shape of the backbone's own, so that they can begin as these, pruned (LST 3.2).

    ``side/pruning.py`` fills them; here their weights are random.  Between the taps A_l … A_L stand the blocks
    l + 1 … L; with reduction 1 they begin as a copy of the backbone's.  They are BERT's, or Llama's where the
    description is ``gated``, and then look back only.
    """

    token_wise = False

    def __init__(self, spec: SideSpec) -> None:
        super().__init__()
        spec.check()
        self.layers, self.causal = check_layers(spec.layers), spec.gated is not None
        narrow = spec.width // spec.reduction
        generator = torch.Generator().manual_seed(spec.seed)
        fed = self.layers[:-1]
        self.gates = nn.Parameter(torch.full((len(fed) - 1,), OWN_STATE_FIRST))
        self.down = nn.ModuleList(linear(spec.width, narrow, generator) for _ in fed)
        shape = GatedBlock if spec.gated else PostNormBlock
        self.blocks = nn.ModuleList(shape(spec, narrow, generator) for _ in fed)
        self.up = zero_linear(narrow, spec.width)  # zero: the side starts as nothing

    def forward(self, taps: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Taps and mask (B, T) to what is added to the last state, (B, T, d)."""
        fed = (down(tap) for tap, down in zip(taps[:-1], self.down, strict=True))
        return self.up(_climbed(fed, self.gates, self.blocks, allowed_pairs(mask, causal=self.causal)))


class PostNormBlock(nn.Module):
    """A transformer block as BERT has it: attention, norm, feed-forward, norm."""

    def __init__(self, spec: SideSpec, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = spec.heads
        self.query, self.key, self.value, self.out = (linear(width, width, generator) for _ in range(4))
        self.attention_norm = nn.LayerNorm(width, eps=spec.norm_eps)
        self.wide = linear(width, spec.feed_forward, generator)
        self.narrow = linear(spec.feed_forward, width, generator)
        self.mlp_norm = nn.LayerNorm(width, eps=spec.norm_eps)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """(B, T, r) to (B, T, r)."""
        qkv = self.query(x), self.key(x), self.value(x)
        x = self.attention_norm(x + self.out(_mixed(qkv, self.heads, allowed)))
        return self.mlp_norm(x + self.narrow(F.gelu(self.wide(x))))


class GatedBlock(nn.Module):
    """A transformer block as Llama has it, by Llama's own names: a copy is one ``load_state_dict``.

    x' = x + O attention(turned Q n, turned K n, V n)        n = rms_norm(x); heads share keys and values
    y  = x' + D (silu(G n') * U n')                          n' = rms_norm(x')
    """

    def __init__(self, spec: SideSpec, width: int, generator: torch.Generator) -> None:
        super().__init__()
        kv_heads, self.theta = spec.gated or (spec.heads, 0)
        self.heads = spec.heads
        shared, inside = width // spec.heads * kv_heads, spec.feed_forward
        attention = {"q": (width, width), "k": (width, shared), "v": (width, shared), "o": (width, width)}
        gated = {"gate": (width, inside), "up": (width, inside), "down": (inside, width)}
        self.self_attn, self.mlp = (
            nn.ModuleDict({f"{name}_proj": linear(*size, generator, bias=False) for name, size in part.items()})
            for part in (attention, gated)
        )
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(width, spec.norm_eps) for _ in range(2))

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """(B, T, d) to (B, T, d)."""
        normed = self.input_layernorm(x)
        qkv = (self.self_attn[f"{name}_proj"](normed) for name in "qkv")
        x = x + self.self_attn["o_proj"](_mixed(qkv, self.heads, allowed, self.theta))
        normed = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](normed)) * self.mlp["up_proj"](normed))


def _climbed(fed: Iterable[Tensor], gates: Tensor, blocks: nn.ModuleList, allowed: Tensor) -> Tensor:
    """s_L of what each block is fed with."""
    state: Any = None
    for narrow, gate, block in zip(fed, (0.0, *(gates / 0.1).sigmoid()), blocks, strict=True):
        state = block(narrow if state is None else gate * state + (1 - gate) * narrow, allowed)
    return state


def _mixed(qkv: Iterable[Tensor], heads: int, allowed: Tensor, theta: int = 0) -> Tensor:
    """Attention of queries (B, T, r), keys and values, of as many heads or of fewer, (B, T, ·), to (B, T, r)."""
    q, *others = qkv
    head = q.shape[-1] // heads
    q, k, v = (each.unflatten(-1, (-1, head)).transpose(1, 2) for each in (q, *others))  # (B, H, T, r/H)
    if theta:
        q, k = _turned(q, theta), _turned(k, theta)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=q.shape[1] != k.shape[1])
    return mixed.transpose(1, 2).flatten(2)


def _turned(x: Tensor, theta: int) -> Tensor:
    """Rotary places (arXiv 2104.09864): of token t, values i and i + h/2 of a head turned by t · theta^(-2i/h).

    Attention sees differences of places alone, so padding on the left does no harm.
    """
    length, half = x.shape[-2], x.shape[-1] // 2
    speeds = theta ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(length, device=x.device).unsqueeze(1) * speeds
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def allowed_pairs(mask: Tensor, *, causal: bool) -> Tensor:
    """(B, 1, T, T): which token may look at which; a padding token may look at itself, so that no row is empty."""
    length = mask.shape[1]
    sees = mask.bool()[:, None, None, :].expand(-1, 1, length, length)
    if causal:
        sees = sees & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return sees | torch.eye(length, dtype=torch.bool, device=mask.device)
