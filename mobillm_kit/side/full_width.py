"""The side network of full width: one bottleneck adapter per tapped layer (PAE MobiLLM, arXiv 2507.01216, eq. 1).

    x_i = (1 - mu_i) A_i + mu_i h_{i-1}         x_1 = A_1, mu_i = sigmoid(alpha_i) from the second layer on
    h_i = x_i + W_up,i gelu(W_down,i x_i)       W_up = 0 at the start: step 0 *is* the pretrained model, to the bit

With ``normalization="layer"``, which the paper has not, W_down reads a layer norm of x_i instead of x_i.

What it adds to the backbone's last state is h_L minus the same recursion without adapters, kept as a recursion of its
own so that nothing cancels:

    delta_i = mu_i delta_{i-1} + W_up,i gelu(W_down,i x_i)

Knows: activations.  Knows nothing of: the backbone that made them, tasks, sockets.
Taught in: notebooks/00_start_here.ipynb
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobillm_kit.side.description import check_layers, check_rank


class FullWidthSide(nn.Module):
    """One bottleneck adapter per tapped layer, r of 1 .. d wide."""

    token_wise = True

    def __init__(
        self, width: int, layers: Sequence[int], *, rank: int = 16, normalization: str = "none", seed: int = 0
    ) -> None:
        super().__init__()
        self.layers = check_layers(layers)
        check_rank(width, rank)
        generator = torch.Generator().manual_seed(seed)
        self.gates = nn.Parameter(torch.zeros(len(self.layers) - 1))  # mu_i = 1/2
        self.down = nn.ModuleList(linear(width, rank, generator) for _ in self.layers)
        self.up = nn.ModuleList(zero_linear(rank, width) for _ in self.layers)  # zero: the side starts as nothing
        self.norms = nn.ModuleList(nn.LayerNorm(width) if normalization == "layer" else nn.Identity() for _ in layers)

    def forward(self, taps: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Taps and mask (B, T) to what is added to the last state, (B, T, d)."""
        state: Any = None
        delta: Any = None
        gates = None, *self.gates.sigmoid()
        for tap, gate, norm, down, up in zip(taps, gates, self.norms, self.down, self.up, strict=True):
            x = tap if gate is None else (1 - gate) * tap + gate * state
            change = up(F.gelu(down(norm(x))))
            delta = change if gate is None else gate * delta + change
            state = x + change
        return delta


def linear(n_in: int, n_out: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    """Normal of deviation n_in^-1/2, a bias of 0 at the start."""
    layer = nn.Linear(n_in, n_out, bias, device="meta").to_empty(device="cpu")  # torch's global generator is not used
    nn.init.normal_(layer.weight, std=n_in**-0.5, generator=generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def zero_linear(n_in: int, n_out: int) -> nn.Linear:
    """Of a layer that adds nothing at the start."""
    layer = nn.Linear(n_in, n_out, bias=False, device="meta").to_empty(device="cpu")
    nn.init.zeros_(layer.weight)
    return layer
