"""What the server runs: a side network of a description, and the head that reads the sum.

    logits = head(pool(A_L + side(A_1 … A_L)))

Knows: side networks and heads.  Knows nothing of: the backbone that made the activations, files, sockets.
Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mobillm_kit.side.description import SideSpec
from mobillm_kit.side.full_width import FullWidthSide
from mobillm_kit.side.ladders import LadderSide, PrunedLadderSide

if TYPE_CHECKING:
    from mobillm_kit.side.adapter import SideAdapter
    from mobillm_kit.side.heads import LabelWordHead, PooledHead


def build_side(spec: SideSpec) -> FullWidthSide | LadderSide | PrunedLadderSide:
    """The side network of a description, with its first weights; numbers that do not fit together are refused."""
    spec.check()
    if spec.kind == "full-width":
        return FullWidthSide(spec.width, spec.layers, rank=spec.rank, seed=spec.seed)
    sizes = {"reduction": spec.reduction, "heads": spec.heads, "seed": spec.seed}
    if spec.start == "random":
        return LadderSide(spec.width, spec.layers, causal=spec.causal, **sizes)
    return PrunedLadderSide(spec.width, spec.layers, feed_forward=spec.feed_forward, norm_eps=spec.norm_eps, **sizes)


class SideTuned(nn.Module):
    """What the server runs: the side network and the head, from activations to logits.

    Args:
        adapter: the side network; for encoders it holds the classifier too.
        head: the frozen label-word head for decoders, None for encoders.
    """

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
        hidden = wide[-1] + self.adapter.side(wide, mask)
        return self.head(self.head.pool(hidden, mask, positions))

    @property
    def one_token_is_enough(self) -> bool:
        """Exact with the prediction token alone: the side works token by token and the head reads one token."""
        return self.adapter.side.token_wise and self.head.single_token
