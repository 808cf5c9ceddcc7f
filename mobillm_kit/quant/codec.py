"""The codecs by name: groups, sizes, and who encodes and decodes.  The package's docstring says what the bytes are.
A process without torch reads names and sizes here; torch is imported by the first one that has tensors.

Knows: names and shapes.  Knows nothing of: models, sockets, training.
Taught in: notebooks/07_quantized_activations.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mobillm_kit.errors import BadInput, UnknownName
from mobillm_kit.quant.books import BITS, CODECS, FLOATS

if TYPE_CHECKING:
    from torch import Tensor

GROUPS = (0, 32, 64, 128)
"""Values per scale that are taught and measured; 0: one scale per token."""
_POSSIBLE_GROUPS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
"""The small ones are for narrow models, whose width 32 does not divide."""


@dataclass(frozen=True)
class Codec:
    """One way to write activations as bytes; made by :func:`codec`."""

    name: str
    """One of :data:`CODECS`."""
    group: int
    """Values per scale, or 0: one scale per token; 0 for fp32, fp16 and bf16, which have none."""

    def __post_init__(self) -> None:
        if self.name not in BITS:
            raise UnknownName(f"There is no codec {self.name!r}.", f"Choose one of {', '.join(CODECS)}.")
        if type(self.group) is not int or self.group not in _POSSIBLE_GROUPS:
            problem = f"{self.group!r} values per scale are not possible."
            raise BadInput(problem, "Choose 32, 64 or 128, or 0 for one per token.")
        if self.group and not self.has_scales:
            raise BadInput(f"{self.name} has no scales, so it has no groups of {self.group}.", "Give group 0.")

    @property
    def bits(self) -> int:
        """Of one code."""
        return BITS[self.name]

    @property
    def has_scales(self) -> bool:
        """All but fp32, fp16 and bf16."""
        return self.name not in FLOATS

    def wire_bytes(self, shape: Sequence[int]) -> int:
        """Exact size of a payload of (..., d) values, ``N (4 d / G + ceil(d bits / 8))``."""
        tokens, _, scales, codes = self.layout(shape)
        return tokens * (scales + codes)

    def layout(self, shape: Sequence[int]) -> tuple[int, int, int, int]:
        """Tokens N, width d, and bytes of one token's scales and of its codes, of a shape that can be encoded."""
        if not shape or any(type(size) is not int or size < 0 for size in shape) or shape[-1] < 1:
            raise BadInput(f"{tuple(shape)} is not a shape of activations.", "Give (..., d) with d at least 1.")
        width = shape[-1]
        if self.group and width % self.group:
            fitting = [str(group) for group in GROUPS if group and width % group == 0]
            problem = f"Groups of {self.group} values do not divide the width d = {width}."
            raise BadInput(problem, f"Possible here: {', '.join([*fitting, '0 (one scale per token)'])}.")
        scales = 4 * (width // (self.group or width)) if self.has_scales else 0
        return math.prod(shape[:-1]), width, scales, -(-width * self.bits // 8)

    def encode(self, x: Tensor, where: str = "") -> Tensor:
        """Activations as flat uint8 of :meth:`wire_bytes`, on their own device.

        Args:
            x: (..., d), any float type.
            where: what ``x`` is, for the error ("layer 3").

        Raises:
            BadInput: NaN, Inf or a value too large for the codec, groups that do not divide d, or x is no float tensor.
        """
        from mobillm_kit.quant import tensors

        return tensors.encode(self, x, where)

    def decode(self, payload: Tensor, shape: Sequence[int], where: str = "") -> Tensor:
        """float32 of ``shape``, every value finite, on the payload's device; ``where`` as in :meth:`encode`.

        Raises:
            CodecError: a length that does not belong to the shape, or what the package's docstring refuses.
        """
        from mobillm_kit.quant import tensors

        return tensors.decode(self, payload, shape, where)

    def parts(self, payload: Tensor, shape: Sequence[int], where: str = "") -> tuple[Tensor, Tensor]:
        """Bytes of a payload's scales and of its codes, a row per token; a :class:`CodecError` as :meth:`decode`."""
        from mobillm_kit.quant import tensors

        return tensors.parts(self, payload, shape, where)

    def error_bound(self, x: Tensor) -> Tensor:
        """How far :meth:`decode` can be from ``x``, value by value.

        ``s / 2`` for int8, int4, int2; ``s * (largest gap) / 2`` for nf4, fp4; ``max(s, max|x| - s)`` for sign;
        ``max(|x| 2^-p, half of the smallest step)`` with p = 4, 8, 11 significant bits for fp8, bf16, fp16; 0 for fp32.
        """
        from mobillm_kit.quant import tensors

        return tensors.error_bound(self, x)

    def __str__(self) -> str:
        if not self.has_scales:
            return self.name
        return f"{self.name} with one scale per {f'{self.group} values' if self.group else 'token'}"


def codec(name: str, group: int = 64) -> Codec:
    """The codec ``name`` of :data:`CODECS`, with a scale for ``group`` values (:data:`GROUPS`; 0: for a token).

    The group of fp32, fp16 and bf16 is always 0.  BadInput for a group that cannot be, UnknownName for a name.
    """
    return Codec(name, 0 if name in FLOATS and group in _POSSIBLE_GROUPS else group)
