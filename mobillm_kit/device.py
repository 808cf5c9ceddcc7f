"""The device's side of MobiLLM: a frozen backbone and the data, forward passes only (arXiv 2502.20421).

    batch -> backbone, block by block -> activations of the tapped layers -> upload

No gradient is made here and none comes back.

Knows: the backbone and batches.  Knows nothing of: the side network's weights, the loss, the optimizer.

Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mobillm_kit.backbone import Backbone
from mobillm_kit.channel import Upload
from mobillm_kit.encode import Batch


class Device:
    """Runs the backbone forward and keeps what the server needs.

    Args:
        backbone: frozen.
        layers: tapped layers, ascending.
        one_token: send the prediction token's activations alone.  Exact only where the server's side network works
            token by token and its head reads that token.
    """

    def __init__(self, backbone: Backbone, layers: Sequence[int], *, one_token: bool) -> None:
        self._backbone = backbone
        self._layers = tuple(layers)
        self._one_token = one_token
        self._sequence = 0

    @torch.no_grad()
    def upload(self, batch: Batch) -> Upload:
        """Forward one batch: (B, T) token ids to the activations of the tapped layers."""
        rows = torch.arange(batch.labels.shape[0], device=batch.positions.device)
        states = enumerate(self._backbone.hidden_states(batch.input_ids, batch.attention_mask, batch.token_type_ids))
        taps = tuple(
            state[rows, batch.positions].unsqueeze(1) if self._one_token else state
            for layer, state in states
            if layer in self._layers
        )
        mask = batch.attention_mask.to(torch.uint8)
        upload = Upload(
            sequence=self._sequence,
            activations=taps,
            mask=torch.ones_like(mask[:, :1]) if self._one_token else mask,
            positions=(torch.zeros_like(batch.positions) if self._one_token else batch.positions).int(),
            labels=batch.labels.int(),
        )
        self._sequence += 1
        return upload
