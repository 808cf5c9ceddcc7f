"""The server's side of MobiLLM: the side network, the loss, the optimizer, and all back-propagation.

    labels     upload -> side network -> logits -> cross-entropy -> gradients of the side network -> AdamW
    residual   f = logits - logits at step 0,   loss = mean (f - r)^2     r: the device's prediction differences
    device     the logits go back, the loss's gradient with respect to them comes from the device

Knows: uploads and the side network.  Knows nothing of: the backbone's weights, the text, sockets.
Taught in: notebooks/00_start_here.ipynb, notebooks/08_device_and_server.ipynb
"""

import copy

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from mobillm_kit.quant.parcels import Upload
from mobillm_kit.record import CountedMemory
from mobillm_kit.side.heads import SideTuned
from mobillm_kit.training.adamw import Trained

FLOOR = 1e-6
"""Lowest probability of a label where prediction differences are added to probabilities."""


class SideTrainer:
    """Trains a side network on uploads.

    Args:
        model: side network and head; what of it asks for gradients is trained.
        averaging: of the weights (``training/adamw.py``); the model then holds the average.
    """

    def __init__(self, model: SideTuned, *, weight_decay: float = 0.0, averaging: float = 0.0) -> None:
        self.model = model
        self.settings = {"weight_decay": weight_decay, "averaging": averaging}
        asking = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._trained = Trained(asking, **self.settings)
        self.parameters, self.stepped = self._trained.parameters, self._trained.stepped
        self.trained = self._trained.detached
        self.state, self.load_state = self._trained.state, self._trained.load_state
        self._start_head = copy.deepcopy(model.head).requires_grad_(False)
        self._waiting: Tensor | None = None

    def train(self, upload: Upload, lr: float) -> float:
        """One step on the labels; returns the loss before it, in nats."""
        loss = self._loss(upload)
        self._trained.descend(loss, lr)
        return loss.item()

    def train_residual(self, upload: Upload, residual: Tensor, lr: float) -> float:
        """One step on prediction differences (PAE MobiLLM's additive side network); returns the squared error.

        ``residual`` is r = onehot(y) - softmax(backbone's logits), (B, C).  Its only positive entry is the label's:
        whoever reads r knows the label.
        """
        loss = F.mse_loss(self._stepped_logits(upload) - self.start_logits(upload), residual)
        self._trained.descend(loss, lr)
        return loss.item()

    def propose(self, upload: Upload) -> Tensor:
        """First half of a step whose loss is the device's: (B, C) logits; the graph is kept for :meth:`accept`."""
        self._waiting = self._stepped_logits(upload)
        return self._waiting.detach()

    def accept(self, gradient: Tensor, lr: float) -> None:
        """Second half: ``gradient`` is dL/dlogits, (B, C), of the logits last proposed."""
        assert self._waiting is not None
        self._trained.descend((self._waiting * gradient).sum(), lr)
        self._waiting = None

    @torch.no_grad()
    def logits(self, upload: Upload) -> Tensor:
        """(B, C), without gradient."""
        return self._logits(upload)

    @torch.no_grad()
    def residual_logits(self, upload: Upload) -> Tensor:
        """(B, C), without gradient, of a side network trained on prediction differences: log(p + f)."""
        start = self.start_logits(upload)
        return (start.float().softmax(dim=-1) + (self._logits(upload) - start)).clamp_min(FLOOR).log()

    @torch.no_grad()
    def start_logits(self, upload: Upload) -> Tensor:
        """(B, C) logits of step 0, which are the pretrained model's."""
        last = upload.activations[-1].to(self.model.adapter.side.gates.dtype)
        return self._start_head(self._start_head.pool(last, upload.mask, upload.positions.long()))

    def count_memory(self, upload: Upload) -> CountedMemory:
        """The server's ledger for one training step on this upload; trains nothing."""
        return self._trained.count_memory(
            "server", self.model, lambda: self._loss(upload), upload.activations, upload.n_bytes
        )

    def _logits(self, upload: Upload) -> Tensor:
        return self.model(upload.activations, upload.mask, upload.positions.long())

    def _stepped_logits(self, upload: Upload) -> Tensor:
        """Of the weights that the optimizer steps, which are the model's own unless it holds their average."""
        given = upload.activations, upload.mask, upload.positions.long()
        # the head is one module in two places: swapped as "tied", its average would not come back
        logits: Tensor = functional_call(self.model, dict(self.stepped), given, tie_weights=False)
        return logits

    def _loss(self, upload: Upload) -> Tensor:
        return F.cross_entropy(self._stepped_logits(upload), upload.labels.long())
