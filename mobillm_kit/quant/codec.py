"""The codecs: names, sizes, encode, decode, error bounds.  The package's docstring says what the bytes are.

Work goes through the tensor in pieces that stay in the processor's cache: the intermediate results never reach the
main memory, and no float32 copy of the whole tensor is made.

Knows: payloads and shapes.  Knows nothing of: models, sockets, training.
Taught in: notebooks/07_quantized_activations.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mobillm_kit.errors import BadInput, CodecError, UnknownName
from mobillm_kit.quant import kernels
from mobillm_kit.quant.kernels import BITS, CODECS, FLOATS
from mobillm_kit.quant.packing import pack, packed_bytes, unpack
from mobillm_kit.quant.scratch import pieces, scratch

GROUPS = (0, 32, 64, 128)
"""Values per scale that are taught and measured; 0: one scale per token."""
_POSSIBLE_GROUPS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
"""Small ones are for narrow models, whose width 32 does not divide."""


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
            raise BadInput(
                f"{self.group!r} values per scale are not possible.", "Choose 32, 64 or 128, or 0 for one per token."
            )
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

    def scale_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of the scales, with which a payload begins."""
        tokens, width = self._tokens(shape)
        return 4 * tokens * (width // (self.group or width)) if self.has_scales else 0

    def wire_bytes(self, shape: Sequence[int]) -> int:
        """Exact size of a payload of (..., d) values, ``N (4 d / G + ceil(d bits / 8))``."""
        tokens, width = self._tokens(shape)
        return self.scale_bytes(shape) + tokens * packed_bytes(width, self.bits)

    def encode(self, x: Tensor, where: str = "") -> Tensor:
        """Write activations as bytes.

        Args:
            x: (..., d), any float type, on any device.
            where: what ``x`` is, for the error ("layer 3").

        Returns:
            Flat uint8 of :meth:`wire_bytes`, on x's device.

        Raises:
            BadInput: NaN, Inf or a value too large for the codec, groups that do not divide d, or x is no float tensor.
        """
        if not x.is_floating_point():
            raise BadInput(f"{_place(where)}activations of {x.dtype}.", "Give float32, float16 or bfloat16.")
        payload = torch.empty(self.wire_bytes(x.shape), dtype=torch.uint8, device=x.device)
        rows = x.detach().reshape(-1, x.shape[-1])
        if not self.has_scales:
            _encode_floats(rows, payload.view(FLOATS[self.name]).view(rows.shape), _place(where))
            return payload
        scales, codes = self._parts(payload, x.shape)
        all_scales = scales.view(torch.float32)
        for piece in pieces(rows):
            groups = self._groups(_as_float32(rows[piece]))
            found = kernels.scales_of(groups, self.name, _place(where))
            all_scales[piece] = found
            pack(kernels.codes_of(groups, found, self.name), self.bits, codes[piece])
        return payload

    def decode(self, payload: Tensor, shape: Sequence[int], where: str = "") -> Tensor:
        """Read activations of ``shape`` back from what :meth:`encode` wrote; ``where`` as there.

        Returns:
            float32 of ``shape``, on the payload's device, every value finite.

        Raises:
            CodecError: a length that does not belong to the shape, a scale that is negative, denormal or not finite, a
                code outside the codebook, or values that are not finite.
        """
        self._check_payload(payload, shape, _place(where))
        rows = torch.empty(math.prod(shape[:-1]), shape[-1], device=payload.device)
        if not self.has_scales:
            whole = payload if payload.storage_offset() % 4 == 0 else payload.clone()
            rows.copy_(whole.view(FLOATS[self.name]).view(rows.shape))
            for piece in pieces(rows):
                kernels.check_values(rows[piece], _place(where))
            return rows.view(*shape)
        scales, codes = self._parts(payload, shape)
        all_scales = scales.clone().view(torch.float32)
        kernels.check_scales(all_scales, _place(where))
        for piece in pieces(rows):
            self._decode_piece(codes[piece], all_scales[piece], rows[piece], _place(where))
        return rows.view(*shape)

    def error_bound(self, x: Tensor) -> Tensor:
        """How far :meth:`decode` can be from ``x``, value by value.

        ``s / 2`` for int8, int4, int2; ``s * (largest gap) / 2`` for nf4, fp4; ``max(s, max|x| - s)`` for sign;
        ``max(|x| 2^-p, half of the smallest step)`` with p = 4, 8, 11 significant bits for fp8, bf16, fp16; 0 for fp32.
        """
        self.wire_bytes(x.shape)
        bounds = torch.empty(x.shape, device=x.device).view(-1, x.shape[-1])
        rows = x.detach().reshape(bounds.shape)
        for piece in pieces(rows):
            absolute = _as_float32(rows[piece]).abs()
            if not self.has_scales:
                bounds[piece] = kernels.float_bound_of(absolute, self.name)
                continue
            groups = self._groups(absolute)
            scales = kernels.scales_of(groups, self.name, "")
            self._groups(bounds[piece]).copy_(kernels.bound_of(groups, scales, self.name))
        return bounds.view(x.shape)

    def __str__(self) -> str:
        if not self.has_scales:
            return self.name
        return f"{self.name} with one scale per {f'{self.group} values' if self.group else 'token'}"

    def _decode_piece(self, packed: Tensor, scales: Tensor, out: Tensor, place: str) -> None:
        kernels.check_rest(packed, packed.shape[1] * 8 - out.shape[1] * self.bits, place)
        unpack(packed, kernels.values_of(self.name, packed.device), out)
        self._groups(out).mul_(scales.unsqueeze(-1))
        kernels.check_values(out, place)

    def _tokens(self, shape: Sequence[int]) -> tuple[int, int]:
        """Number of tokens and width d of a shape that can be encoded."""
        if not shape or any(type(size) is not int or size < 0 for size in shape) or shape[-1] < 1:
            raise BadInput(f"{tuple(shape)} is not a shape of activations.", "Give (..., d) with d at least 1.")
        width = shape[-1]
        if self.group and width % self.group:
            fitting = [str(group) for group in GROUPS if group and width % group == 0]
            raise BadInput(
                f"Groups of {self.group} values do not divide the width d = {width}.",
                f"Possible here: {', '.join([*fitting, '0 (one scale per token)'])}.",
            )
        return math.prod(shape[:-1]), width

    def _groups(self, rows: Tensor) -> Tensor:
        """(n, d) seen as (n, d / G, G)."""
        group = self.group or rows.shape[1]
        return rows.view(rows.shape[0], rows.shape[1] // group, group)

    def _parts(self, payload: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Bytes of the scales and of the codes, a row per token."""
        tokens, width = self._tokens(shape)
        border = self.scale_bytes(shape)
        per_token = 4 * (width // (self.group or width))
        return payload[:border].view(tokens, per_token), payload[border:].view(tokens, packed_bytes(width, self.bits))

    def _check_payload(self, payload: Tensor, shape: Sequence[int], place: str) -> None:
        wanted = self.wire_bytes(shape)
        if payload.dtype != torch.uint8 or payload.dim() != 1:
            raise CodecError(f"{place}a payload of {payload.dtype}, {payload.dim()} dimensions.", "Send flat uint8.")
        if payload.numel() != wanted:
            raise CodecError(
                f"{place}{payload.numel()} bytes for {self} and shape {tuple(shape)}.", f"There must be {wanted}."
            )


def codec(name: str, group: int = 64) -> Codec:
    """The codec of a name.

    Args:
        name: one of :data:`CODECS`.
        group: values per scale: 32, 64 or 128 (smaller powers of two for narrow models), or 0: one scale per token.
            Without meaning for fp32, fp16 and bf16, whose group is always 0.
    """
    return Codec(name, 0 if name in FLOATS and group in _POSSIBLE_GROUPS else group)


def _place(where: str) -> str:
    return f"{where}: " if where else ""


def _as_float32(rows: Tensor) -> Tensor:
    if rows.dtype == torch.float32:
        return rows
    return scratch("input", rows.shape, torch.float32, rows.device).copy_(rows)


def _encode_floats(rows: Tensor, out: Tensor, place: str) -> None:
    for piece in pieces(rows):
        values = rows[piece]
        peaks = torch.stack((values.amax(), values.amin())).float().abs_()
        kernels.check_peaks(peaks, torch.finfo(out.dtype).max, place)
        out[piece] = values
