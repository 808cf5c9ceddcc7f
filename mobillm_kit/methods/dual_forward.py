"""The dual-forwarding layer of P-RGE (MobiZO, arXiv 2409.15520): LoRA-FA with many copies of B in one forward.

    y_c = W x_c + s A x_c B_c^T             rows are grouped by copy c; W x and A x are one product for all copies

Per perturbation j the layer keeps B0_j and B1_j, the weights moved up and down.  One assignment takes the last
perturbation back, applies the update of the last step, and moves on:

    noise_j = (B0_j - B1_j) / 2                     = eps z_j of the last step
    update  = lr mean_j(g_j noise_j) / eps          the delayed update
    B0_j   <- B0_j + eps z'_j - noise_j - update
    B1_j   <- B1_j - eps z'_j + noise_j - update    master weight = (B0_j + B1_j) / 2, for every j

Knows: tensors and linear layers.  Knows nothing of: losses, tasks.
Taught in: notebooks/05_p_rge.ipynb
"""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class DualForwardLinear(nn.Module):
    """A frozen linear layer ``base``, d_in -> d_out, with a frozen ``a``, (r, d_in), and stacks of B."""

    a: Tensor
    stack: Tensor
    copies: Tensor
    """(C, d_out, r): the Bs of the next forward; C must divide the rows.  In training a view of the stack."""

    def __init__(self, base: nn.Linear | Conv1D, a: Tensor, scale: float, q: int) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        width = base.weight.shape[1] if isinstance(base, Conv1D) else base.weight.shape[0]
        self.register_buffer("a", a)
        self.register_buffer("stack", torch.zeros(2, q, width, a.shape[0], dtype=a.dtype, device=a.device))
        self.copies = self.stack[0]

    @property
    def weight(self) -> Tensor:
        """W of the wrapped layer, for code that asks a linear layer for its type or device."""
        return self.base.weight

    @property
    def up(self) -> Tensor:
        """(q, d_out, r): B0, the weights moved up."""
        return self.stack[0]

    @property
    def down(self) -> Tensor:
        """(q, d_out, r): B1, the weights moved down."""
        return self.stack[1]

    def forward(self, x: Tensor) -> Tensor:
        """(C·B, …, d_in) to (C·B, …, d_out)."""
        low = (x @ self.a.T).reshape(self.copies.shape[0], -1, self.a.shape[0])  # (C, B·…, r)
        change = torch.bmm(low, self.copies.transpose(1, 2))
        return self.base(x) + self.scale * change.reshape(*x.shape[:-1], -1)

    def master(self, g: Tensor, lr: float, eps: float) -> Tensor:
        """(d_out, r): the weight as trained so far, the update of the last step included."""
        return (self.up + self.down).mean(dim=0) / 2 - self._update(g, lr, eps)

    def advance(self, g: Tensor, lr: float, eps: float, z: Tensor) -> None:
        """Take the last perturbation back, apply its update by the last g, (q,), perturb by z, (q, d_out, r)."""
        noise = (self.up - self.down) / 2
        update = self._update(g, lr, eps)
        move = eps * z - noise
        self.up.add_(move - update)
        self.down.sub_(move + update)

    def _update(self, g: Tensor, lr: float, eps: float) -> Tensor:
        noise = (self.up - self.down) / 2
        return lr * (g[:, None, None] * noise).mean(dim=0) / eps
