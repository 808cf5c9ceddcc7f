"""What can be read back from activations: the nearest token.

    token(a) = argmin_v || a - h_l(v) ||²        h_l(v): layer l's state of v, alone after the text's first token

Whoever knows the backbone knows every h_l(v).  At layer 0, where nothing but the position has been added, this gives
every token back; the residual stream carries the token on from block to block, so that it gives many back at the first
tapped layers too.  It is a simple attack without any training: what it recovers is a floor of what a server can read,
not a ceiling.

Knows: backbones, activations.  Knows nothing of: training, sockets.
Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import torch
from torch import Tensor

from mobillm_kit.backbone.split import Backbone
from mobillm_kit.errors import BadInput

CHUNK = 1024
"""Tokens of the vocabulary that are forwarded together."""


class NearestToken:
    """Reads tokens from one layer's activations, with the public backbone as its only knowledge.

    Args:
        backbone: the one that the device runs.  What a position adds is taken from its embedding: exact at layer 0
            where positions are added there (OPT) or not at all (rotary), an approximation everywhere else.
        first_id: the token that every text begins with, such as BOS.
        layer: 0 .. L.
    """

    @torch.no_grad()
    def __init__(self, backbone: Backbone, first_id: int, layer: int) -> None:
        self._backbone = backbone
        self._layer = layer
        vocabulary = torch.arange(int(backbone.config.vocab_size))
        parts = []
        for ids in vocabulary.split(CHUNK):
            two = torch.stack((torch.full_like(ids, first_id), ids), dim=1)
            (states,) = backbone.taps(two, torch.ones_like(two), layers=[layer])
            parts.append(states[:, 1].float())
        self._tokens = torch.cat(parts)  # (V, d)

    @torch.no_grad()
    def read(self, activations: Tensor, mask: Tensor) -> Tensor:
        """The likeliest token of each activation.

        Args:
            activations: (B, T, d) of this layer, every token sent.
            mask: (B, T), 1 at real tokens; positions count them from the left.

        Returns:
            (B, T) token ids; what they are at padding means nothing.

        Raises:
            BadInput: another width than the backbone's.
        """
        if activations.shape[-1] != self._backbone.width:
            raise BadInput(f"Activations of width {activations.shape[-1]}, the backbone has {self._backbone.width}.")
        places = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        states = activations.float() - self._of_position(max(2, int(places.max()) + 1))[places]
        # ||a - e||² = ||a||² - 2 a·e + ||e||², and ||a||² is the same for every token
        return (self._tokens.square().sum(dim=1) - 2 * states @ self._tokens.T).argmin(dim=-1)

    def _of_position(self, length: int) -> Tensor:
        """What a position adds to the embedding, (T, d), less what the second one adds."""
        same = torch.zeros(1, length, dtype=torch.long)
        states, _ = self._backbone.begin(same, torch.ones_like(same))
        return states[0].float() - states[0, 1].float()


def recovered(found: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Share of the real tokens that were read right, 0 .. 1; all (B, T)."""
    real = mask.bool()
    return (found == truth)[real].float().mean().item()


def labels_by_sign(values: Tensor) -> Tensor:
    """The labels that prediction differences give away: the only positive entry of a row is the label's.

        r = onehot(y) - softmax(z)              r_y = 1 - p_y > 0,       r_c = -p_c < 0 for all others

    The gradient of the cross-entropy, dL/dz = (softmax(z) - onehot(y)) / B, does the same with the opposite sign.

    Args:
        values: (B, C), r or -dL/dz.

    Returns:
        (B,), int64.
    """
    return values.argmax(dim=1)
