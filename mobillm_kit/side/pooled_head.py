"""An encoder's classifier, trained by every method: logits = W_c pool(h) + b_c.

    attention    pool(h) = sum_t softmax_t(q·h_t / sqrt(d/H)) h_t    by head, H of them; q = 0 at the start: the mean

Knows: states.  Knows nothing of: side networks, label words, how anything is trained.
Taught in: notebooks/00_start_here.ipynb
"""

from typing import Literal

import torch
from torch import Tensor, nn

from mobillm_kit.side.heads import one_token

Pooling = Literal["mean", "first", "attention"]


class PooledHead(nn.Module):
    """A linear classifier on a pooled state, trained by every method.

    ``pooling`` is the ``mean`` over real tokens, the ``first`` token, or by ``attention``: a mean weighted by a learned
    query per head (heads divide the width); the first weights are N(0, 0.02) as BERT's, of queries 0.
    """

    def __init__(self, width: int, n_labels: int, *, pooling: Pooling = "mean", heads: int = 1, seed: int = 0) -> None:
        super().__init__()
        self.pooling = pooling
        self.n_labels = n_labels
        self.single_token = pooling == "first"
        self.classifier = nn.Linear(width, n_labels, device="meta").to_empty(device="cpu")
        nn.init.normal_(self.classifier.weight, std=0.02, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.classifier.bias)
        self.query = nn.Parameter(torch.zeros(heads, width // heads)) if pooling == "attention" else None

    def pool(self, hidden: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """The first token's state, or the mean over real tokens, weighted or not, (B, d)."""
        if self.pooling == "first":
            return one_token(hidden, positions)
        weight = mask.to(hidden.dtype).unsqueeze(-1)
        if self.query is not None:
            scores = (hidden.unflatten(-1, self.query.shape) * self.query).sum(-1) / self.query.shape[1] ** 0.5
            scores = scores.masked_fill(weight == 0, -torch.inf)  # (B, T, H)
            each = (scores - scores.detach().amax(dim=1, keepdim=True)).exp()
            weight = each.repeat_interleave(self.query.shape[1], dim=-1)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, d) to (B, C)."""
        return self.classifier(pooled.to(self.classifier.weight.dtype))
