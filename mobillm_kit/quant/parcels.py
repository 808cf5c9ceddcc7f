"""What travels from device to server: an upload, and how it is made small for the link.

    bytes of an upload = activations (layers · B · T · d · bytes per value) + mask (B · T) + positions and labels (8 B)

    pack      (B, T, d) per layer, mask   ->   N = sum of lengths real tokens, one codec payload of (N, d) per layer
    unpack    the way back; padding is filled with zeros on the right
    split     a parcel of many samples -> one parcel each, for the activation cache
    merge     the way back

A sample's scales and codes do not depend on its neighbours, so that ``merge(split(p))`` is ``p``, to the byte.

Knows: tensors and codecs.  Knows nothing of: sockets, sessions, side networks.
Taught in: notebooks/08_device_and_server.ipynb
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mobillm_kit.errors import BadInput
from mobillm_kit.quant import Codec, codec


@dataclass(frozen=True)
class Upload:
    """One batch on its way to the server.  Raw text is not in it; activations are, and they can be inverted."""

    activations: tuple[Tensor, ...]
    """Per tapped layer (B, T, d), or (B, 1, d) where the prediction token is enough."""
    mask: Tensor
    """(B, T) uint8, 1 at real tokens."""
    positions: Tensor
    """(B,) int32, index of the prediction token."""
    labels: Tensor
    """(B,) int32."""

    @property
    def n_bytes(self) -> int:
        """Of all that is sent."""
        return sum(tensor.nbytes for tensor in (*self.activations, self.mask, self.positions, self.labels))


@dataclass(frozen=True)
class Parcel:
    """Encoded activations of some samples.  Raw text is not in it; activations are, and they can be inverted."""

    codec: str
    group: int
    layers: tuple[int, ...]
    width: int
    """d."""
    lengths: tuple[int, ...]
    """Tokens kept of each sample; their sum is N."""
    positions: tuple[int, ...]
    """Index of each sample's prediction token among its kept tokens."""
    payloads: tuple[Tensor, ...]
    """Per layer, flat uint8."""

    @property
    def n_bytes(self) -> int:
        """Of all payloads."""
        return sum(payload.numel() for payload in self.payloads)

    @property
    def coder(self) -> Codec:
        """The codec that reads the payloads."""
        return codec(self.codec, self.group)


def pack(upload: Upload, coder: Codec, layers: Sequence[int], rows: Sequence[int] | None = None) -> Parcel:
    """Encode an upload's real tokens, of all samples or ``rows``; ``layers`` are numbers for errors and the server."""
    chosen = torch.arange(upload.mask.shape[0]) if rows is None else torch.tensor(list(rows), dtype=torch.long)
    real = upload.mask[chosen].bool()
    positions = (real.long().cumsum(dim=1) - 1).gather(1, upload.positions[chosen].long().unsqueeze(1)).squeeze(1)
    payloads = tuple(
        coder.encode(tap[chosen][real], f"layer {layer}") for layer, tap in zip(layers, upload.activations, strict=True)
    )
    return Parcel(
        codec=coder.name, group=coder.group, layers=tuple(layers), width=upload.activations[0].shape[-1],
        lengths=tuple(real.sum(dim=1).tolist()), positions=tuple(positions.tolist()), payloads=payloads,
    )  # fmt: skip


def unpack(parcel: Parcel, *, labels: Sequence[int] = ()) -> Upload:
    """Decode a parcel to float32 activations (B, T, d), T the longest sample, padded with zeros on the right.

    ``labels`` are zeros where they do not travel.
    """
    lengths = torch.tensor(parcel.lengths)
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)  # (B, T)
    shape = (int(lengths.sum()), parcel.width)
    activations = []
    for layer, payload in zip(parcel.layers, parcel.payloads, strict=True):
        padded = torch.zeros(*mask.shape, parcel.width)
        padded[mask] = parcel.coder.decode(payload, shape, f"layer {layer}")
        activations.append(padded)
    return Upload(
        activations=tuple(activations),
        mask=mask.to(torch.uint8),
        positions=torch.tensor(parcel.positions, dtype=torch.int32),
        labels=torch.tensor(list(labels) or [0] * len(lengths), dtype=torch.int32),
    )


def split(parcel: Parcel) -> list[Parcel]:
    """One parcel per sample; the bytes are copied, so that a sample outlives its batch."""
    layers = []
    for number in range(len(parcel.layers)):
        scales, codes = (part.split(parcel.lengths) for part in _parts(parcel, number))
        layers.append([_flat(pair) for pair in zip(scales, codes, strict=True)])
    samples = zip(parcel.lengths, parcel.positions, zip(*layers, strict=True), strict=True)
    return [replace(parcel, lengths=(length,), positions=(at,), payloads=own) for length, at, own in samples]


def merge(parcels: Sequence[Parcel]) -> Parcel:
    """Several samples' parcels as one."""
    first = parcels[0]
    for other in parcels[1:]:
        for name in ("codec", "group", "width", "layers"):
            if getattr(other, name) != getattr(first, name):
                raise BadInput(f"Parcels of different {name} ({getattr(first, name)}, {getattr(other, name)}).")
    return replace(
        first,
        lengths=sum((parcel.lengths for parcel in parcels), ()),
        positions=sum((parcel.positions for parcel in parcels), ()),
        payloads=tuple(_joined(parcels, number) for number in range(len(first.layers))),
    )


def _joined(parcels: Sequence[Parcel], number: int) -> Tensor:
    scales, codes = zip(*(_parts(parcel, number) for parcel in parcels), strict=True)
    return _flat((*scales, *codes))


def _parts(parcel: Parcel, number: int) -> tuple[Tensor, Tensor]:
    return parcel.coder.parts(parcel.payloads[number], (sum(parcel.lengths), parcel.width))


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def to_bytes(tensor: Tensor) -> memoryview:
    """The values of ``tensor``, row by row, without a copy where it lies contiguous on the CPU."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def from_bytes(payload: bytes | memoryview) -> Tensor:
    """(n,) uint8 over a buffer; copied only where the buffer is read-only, as torch wants one that may be written."""
    if not len(payload):
        return torch.empty(0, dtype=torch.uint8)
    view = memoryview(payload)
    return torch.frombuffer(bytearray(view) if view.readonly else view, dtype=torch.uint8)
