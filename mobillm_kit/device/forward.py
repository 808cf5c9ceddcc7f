"""The device's side of MobiLLM: a frozen backbone and the data, forward passes only (arXiv 2502.20421).

    batch -> backbone, block by block -> activations of the tapped layers -> upload

No gradient is made here and none comes back.  Which tokens' activations are sent:

    all          every real token
    prediction   the one that enters the loss; exact where the side network works token by token
    top k        the prediction token and the k - 1 others that the backbone has moved farthest,
                 score_t = ||h_L,t - h_0,t||; not exact (the paper's future work: task-oriented filtering)

Knows: the backbone and batches.  Knows nothing of: the side network's weights, the loss, the optimizer.
Taught in: notebooks/00_start_here.ipynb, notebooks/08_device_and_server.ipynb
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mobillm_kit.backbone.split import Backbone
from mobillm_kit.errors import BadInput
from mobillm_kit.quant.parcels import Upload
from mobillm_kit.texts.encode import Batch


class Device:
    """Runs the backbone forward and keeps what the server needs.

    Args:
        backbone: frozen.
        layers: tapped layers, ascending.
        one_token: send the prediction token's activations alone.  Exact only where the server's side network works
            token by token and its head reads that token.
        top_tokens: k, send that many tokens per text at most; None sends all of them.  BadInput for k below 1, or
            together with ``one_token``.
    """

    def __init__(
        self, backbone: Backbone, layers: Sequence[int], *, one_token: bool, top_tokens: int | None = None
    ) -> None:
        if top_tokens is not None and (top_tokens < 1 or one_token):
            raise BadInput(f"top_tokens is {top_tokens}, one_token {one_token}.", "Give k >= 1, or one_token alone.")
        self.one_token = one_token
        self.top_tokens = top_tokens
        self.backbone = backbone
        self.layers = tuple(layers)

    def upload(self, batch: Batch) -> Upload:
        """Forward one batch: (B, T) token ids to the activations of the tapped layers."""
        return self.upload_and_places(batch)[0]

    @torch.no_grad()
    def upload_and_places(self, batch: Batch) -> tuple[Upload, Tensor]:
        """The upload, and where its tokens stood in the batch, (B, K): that is not sent."""
        states = self.backbone.hidden_states(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        kept = batch.positions.unsqueeze(1) if self.one_token else None  # (B, K) tokens that are sent; None for all
        taps: list[Tensor] = []
        first: Tensor | None = None
        for layer, state in enumerate(states):
            if self.top_tokens and layer == 0:
                first = state
            if layer in self.layers:
                taps.append(state if kept is None else _picked(state, kept))
        if first is not None and self.top_tokens:
            kept = farthest_tokens(first, state, batch.attention_mask, batch.positions, self.top_tokens)
            taps = [_picked(tap, kept) for tap in taps]
        mask, positions = batch.attention_mask.to(torch.uint8), batch.positions
        if kept is not None:
            mask = mask.gather(1, kept)
            positions = (kept == positions.unsqueeze(1)).int().argmax(dim=1)
        upload = Upload(activations=tuple(taps), mask=mask, positions=positions.int(), labels=batch.labels.int())
        return upload, torch.arange(mask.shape[1]).expand(mask.shape) if kept is None else kept


def farthest_tokens(first: Tensor, last: Tensor, mask: Tensor, positions: Tensor, k: int) -> Tensor:
    """Which tokens are sent: (B, min(k, T)) indices, ascending; padding only where a text has too few tokens.

    Args:
        first, last: h_0 and h_L, (B, T, d).
        mask: (B, T), 1 at real tokens.
        positions: (B,), the prediction tokens, which are always among them.
        k: tokens per text.
    """
    score = (last - first).float().norm(dim=-1).masked_fill(mask == 0, -1.0)
    score = score.scatter(1, positions.unsqueeze(1), torch.inf)
    return score.topk(min(k, mask.shape[1]), dim=1).indices.sort(dim=1).values


def _picked(state: Tensor, tokens: Tensor) -> Tensor:
    """(B, T, d) and (B, K) indices to (B, K, d)."""
    return state.gather(1, tokens.unsqueeze(-1).expand(-1, -1, state.shape[-1]))
