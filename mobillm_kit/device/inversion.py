"""What can be read back from activations: a leak meter of four attacks, and the figure of a run's own setting.

    labels     y = argmax_c r_c                                              r, or -dL/dlogits: the sign alone tells
    nearest    v_t = argmin_v || a_t - h_l(v) ||²                            h_l(v): v alone after the first token
    inverter   v_t = argmax_v s e_v · W_2 gelu(W_1 norm(a_t))                trained on activations of other texts
    search     v_t = argmin_v || a_t - h_l(v_1 … v_{t-1} v)_t ||²            decoders, over the likeliest candidates

e_v is row v of the backbone's embedding, centred and of length 1.  All of it is public but the activations, so
that a server can do the same.  What is recovered is a floor of what can be read, not a ceiling.

Knows: backbones, devices, activations.  Knows nothing of: training the side network, sockets.
Taught in: notebooks/11_what_the_server_sees.ipynb
"""

from collections.abc import Callable
from itertools import islice
from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobillm_kit.backbone.split import Backbone
from mobillm_kit.device.forward import Device
from mobillm_kit.errors import BadInput
from mobillm_kit.quant import Codec
from mobillm_kit.quant.parcels import pack, unpack
from mobillm_kit.record import Recovery
from mobillm_kit.side.full_width import linear
from mobillm_kit.texts.encode import Batch

CHUNK = 1024
"""Tokens of the vocabulary that are forwarded together, or that training tells the known ones from."""


class NearestToken:
    """Reads tokens from one layer's activations, with the public backbone as its only knowledge.

    What a position adds is taken from the embedding: exact at layer 0 where positions are added there (OPT) or not at
    all (rotary), an approximation everywhere else.  ``first_id`` begins every text, such as BOS; ``layer`` is 0 .. L.
    """

    @torch.no_grad()
    def __init__(self, backbone: Backbone, first_id: int, layer: int) -> None:
        self._backbone = backbone
        vocabulary = torch.arange(int(backbone.config.vocab_size))
        parts = []
        for ids in vocabulary.split(CHUNK):
            two = torch.stack((torch.full_like(ids, first_id), ids), dim=1)
            parts.append(_state(backbone, two, layer)[:, 1].float())
        self._tokens = torch.cat(parts)  # (V, d)

    @torch.no_grad()
    def scores(self, activations: Tensor, mask: Tensor) -> Tensor:
        """How likely each token is at each place, (B, T, V), the higher the likelier; at padding it means nothing.

        ``activations``: (B, T, d), every token sent; ``mask``: (B, T), 1 at real tokens.  Another width is a BadInput.
        """
        if activations.shape[-1] != self._backbone.width:
            raise BadInput(f"Activations of width {activations.shape[-1]}, the backbone has {self._backbone.width}.")
        places = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        states = activations.float() - self._of_position(max(2, int(places.max()) + 1))[places]
        # ||a - e||² = ||a||² - 2 a·e + ||e||², and ||a||² is the same for every token
        return 2 * states @ self._tokens.T - self._tokens.square().sum(dim=1)

    def read(self, activations: Tensor, mask: Tensor) -> Tensor:
        """The likeliest token of each activation, (B, T)."""
        return self.scores(activations, mask).argmax(dim=-1)

    def _of_position(self, length: int) -> Tensor:
        """What a position adds to the embedding, (T, d), less what the second one adds."""
        same = torch.zeros(1, length, dtype=torch.long)
        states, _ = self._backbone.begin(same, torch.ones_like(same))
        return states[0].float() - states[0, 1].float()


class TrainedInverter(nn.Module):
    """Reads tokens from the activations of any layers, after training on texts that the attacker knows.

    ``n_layers`` are read together, each token's activations concatenated; ``seed`` is of first weights and order.
    """

    def __init__(self, backbone: Backbone, n_layers: int = 1, *, seed: int = 0) -> None:
        super().__init__()
        embedding = attrgetter(backbone.family.embedding)(backbone.base).weight.detach().float().cpu()
        rows = embedding - embedding.mean(dim=0)
        self._rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-6)
        self._generator = torch.Generator().manual_seed(seed)
        width, own = n_layers * backbone.width, rows.shape[1]
        self.down, self.up = linear(width, 4 * own, self._generator), linear(4 * own, own, self._generator)
        self.scale = nn.Parameter(torch.tensor(10.0))
        self._mean, self._deviation = torch.zeros(width), torch.ones(width)

    def fit(self, activations: Tensor, ids: Tensor, *, steps: int = 400, lr: float = 3e-3) -> None:
        """Train on activations (N, n_layers d) of N real tokens, and on what they were, ``ids`` (N,).

        A step has 128 tokens, softmax over the known ones and ``CHUNK`` others; AdamW at ``lr``, weight decay 0.01.
        """
        known, seen = activations.float(), ids.unique()
        self._mean, self._deviation = known.mean(dim=0), known.std(dim=0).clamp(min=1e-6)
        optimizer = torch.optim.AdamW(self.parameters(), lr, weight_decay=0.01)
        for _ in range(steps):
            drawn = torch.randint(len(ids), (128,), generator=self._generator)
            candidates = torch.cat((seen, torch.randint(len(self._rows), (CHUNK,), generator=self._generator))).unique()
            optimizer.zero_grad()
            logits = self._logits(known[drawn], self._rows[candidates])
            F.cross_entropy(logits, torch.searchsorted(candidates, ids[drawn])).backward()
            optimizer.step()

    @torch.no_grad()
    def scores(self, activations: Tensor) -> Tensor:
        """(…, n_layers d) to (…, V), the higher the likelier."""
        return self._logits(activations.float(), self._rows)

    def _logits(self, activations: Tensor, rows: Tensor) -> Tensor:
        known = (activations - self._mean) / self._deviation
        return self.scale * self.up(F.gelu(self.down(known))) @ rows.T


@torch.no_grad()
def search(
    backbone: Backbone, layer: int, activations: Tensor, mask: Tensor, scores: Tensor, k: int = 16,
    carried: Callable[[Tensor], Tensor] = Tensor.float,
) -> Tensor:  # fmt: skip
    """Read one text after the other from left to right: the candidate whose own state comes nearest.

    Exact as long as the token is among the ``k`` candidates: what stands to the left is known.  Encoders are refused.

    Args:
        activations: (B, T, d) of ``layer``, 1 .. L, every token sent; ``mask``, (B, T), is 1 at real tokens.
        scores: (B, T, V), how likely another attack holds each token; ids (B, T) come back, 0 at padding.
        carried: what the activations went through, such as a codec; the candidates' (k, d) go through it too.
    """
    if backbone.kind != "decoder":
        raise BadInput(f"'{backbone.name}' is an encoder; a search from left to right needs a decoder.")
    found = torch.zeros(mask.shape, dtype=torch.long)
    for row, real in enumerate(mask.bool()):
        candidates, read = scores[row, real].topk(k).indices, torch.zeros(1, 0, dtype=torch.long)
        for state, options in zip(activations[row, real], candidates, strict=True):
            tried = torch.cat((read.expand(k, -1), options.unsqueeze(1)), dim=1)
            own = carried(_state(backbone, tried, layer)[:, -1])
            read = tried[(own - state.float()).square().sum(dim=1).argmin()].unsqueeze(0)
        found[row, real] = read[0]
    return found


def _state(backbone: Backbone, ids: Tensor, layer: int) -> Tensor:
    """(B, T, d) of one layer; the blocks above it are not run."""
    backbone.check_layers([layer])
    return next(islice(backbone.hidden_states(ids, torch.ones_like(ids)), layer, None))


def own_tokens(batch: Batch) -> Tensor:
    """(B, T) bool: a text's own tokens, without those at either end that all texts have, such as a prompt's."""
    real = batch.attention_mask.bool()
    least, place = int(real.sum(dim=1).min()), real.cumsum(dim=1) - 1
    rows = [ids[mask] for ids, mask in zip(batch.input_ids, real, strict=True)]
    ends = (torch.stack([row[:least] for row in rows]), torch.stack([row.flip(0)[:least] for row in rows]))
    front, back = (int((end == end[0]).all(dim=0).long().cumprod(dim=0).sum()) for end in ends)
    own = real & (place >= front) & (place < real.sum(dim=1, keepdim=True) - back)
    return own if own.any() else real


def read_back(device: Device, coder: Codec, known: Batch, sent: Batch, *, steps: int = 100) -> Recovery:
    """What a cheap attack reads of texts from all that a device sends of them; others read more.

    A trained inverter reads the lowest layer; a token that is not sent is guessed to be the commonest.  Of ``sent``
    the :func:`own_tokens` count; the attacker's ``known`` texts go the same way, through ``coder``.
    """
    (taps, where), (theirs, there) = (arrived(device, coder, batch) for batch in (known, sent))
    inverter = TrainedInverter(device.backbone)
    inverter.fit(taps[0], known.input_ids[where], steps=steps)
    found = torch.full_like(sent.input_ids, int(known.input_ids[own_tokens(known)].mode().values))
    found[there] = torch.cat([inverter.scores(part).argmax(dim=-1) for part in theirs[0].split(CHUNK // 4)])
    return recovery(found, sent.input_ids, own_tokens(sent))


def arrived(device: Device, coder: Codec, batch: Batch) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """(N, d) per layer of all N tokens that are sent, and the rows and places where they stand in the batch."""
    upload, places = device.upload_and_places(batch.to(device.backbone.device))
    rows, kept = upload.mask.cpu().nonzero(as_tuple=True)
    decoded = unpack(pack(upload, coder, device.layers))
    return [tap[decoded.mask.bool()].cpu() for tap in decoded.activations], (rows, places.cpu()[rows, kept])


def recovery(found: Tensor, truth: Tensor, mask: Tensor) -> Recovery:
    """Guesses against what was sent, all (B, T); padding is not counted."""
    right, real = ((found == truth) & mask.bool()).sum(dim=1).double(), mask.bool().sum(dim=1).double()
    drawn = torch.randint(len(right), (2000, len(right)), generator=torch.Generator().manual_seed(0))
    shares = right[drawn].sum(dim=1) / real[drawn].sum(dim=1).clamp(min=1)
    low, high = shares.quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    size = int(max(found.max(), truth.max())) + 1
    guessed, true = (each[mask.bool()].bincount(minlength=size) / real.sum() for each in (found, truth))
    return Recovery(float(right.sum() / real.sum()), low, high, float(guessed @ true), int(real.sum()))


def labels_by_sign(values: Tensor) -> Tensor:
    """The labels that prediction differences give away: the only positive entry of a row is the label's.

        r = onehot(y) - softmax(z)              r_y = 1 - p_y > 0,       r_c = -p_c < 0 for all others

    The gradient of the cross-entropy, dL/dz = (softmax(z) - onehot(y)) / B, does the same with the opposite sign.
    ``values`` are r or -dL/dz, (B, C); what comes back is (B,), int64.
    """
    return values.argmax(dim=1)
