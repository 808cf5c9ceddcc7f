"""Which layers are tapped: all, a count of them, or those that weigh most in a trained side network.

Knows: numbers of layers, gates.  Knows nothing of: backbones, activations.
Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence

from mobillm_kit.errors import BadInput
from mobillm_kit.side.full_width import FullWidthSide
from mobillm_kit.side.ladders import LadderSide


def chosen_layers(n_layers: int, layers: int | Sequence[int] | None, *, last: bool = False) -> list[int]:
    """The layers themselves where they are given; a count of evenly spaced ones of 1 .. L that end in L; all for None.

    Args:
        last: of a count, the last ones of 0 .. L instead; all where there are no more.

    Raises:
        BadInput: a count below 1, or of evenly spaced ones above L.
    """
    if layers is not None and not isinstance(layers, int):
        return [int(layer) for layer in layers]
    if last:
        count = n_layers + 1 if layers is None else layers
        if count < 1:
            raise BadInput(f"Cannot choose the last {count} of the layers 0 to {n_layers}.")
        return list(range(max(0, n_layers + 1 - count), n_layers + 1))
    count = n_layers if layers is None else layers
    if not 1 <= count <= n_layers:
        raise BadInput(f"Cannot choose {count} of {n_layers} layers.")
    return [round((index + 1) * n_layers / count) for index in range(count)]


def gate_shares(side: FullWidthSide | LadderSide) -> tuple[float, ...]:
    """Each tapped layer's share in the side state at the end, adapters and blocks left out; they sum to 1.

        share_i = (1 - mu_i) prod_{j>i} mu_j            share_1 = prod_{j>1} mu_j

    since the first tap enters whole.  mu is the gate: sigmoid(alpha), of the ladder sigmoid(alpha / 0.1).
    """
    gates = (side.gates if side.token_wise else side.gates / 0.1).detach().sigmoid().double().tolist()
    shares, kept = [], 1.0
    for place in range(len(gates) - 1, -1, -1):
        enters = 1 - gates[place] if place else 1.0
        shares.append(enters * kept)
        kept *= gates[place]
    return tuple(reversed(shares))


def layers_by_gate(side: FullWidthSide | LadderSide, count: int) -> tuple[int, ...]:
    """The ``count`` tapped layers of a trained side network that weigh most in it, ascending (filtering by layer).

    The last one is always among them: its state is what the side network adds to.

    Args:
        side: trained; of a fresh one every gate is the same, and the choice says nothing.
        count: how many layers are to be sent, at most all that are tapped.
    """
    if not 1 <= count <= len(side.layers):
        raise BadInput(f"Cannot choose {count} of {len(side.layers)} layers.")
    *others, last = zip(gate_shares(side), side.layers, strict=True)
    heaviest = sorted(others, reverse=True)[: count - 1]
    return tuple(sorted([layer for _, layer in heaviest] + [last[1]]))
