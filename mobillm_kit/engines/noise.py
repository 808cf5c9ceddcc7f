"""PyTorch's random numbers without PyTorch: what ``torch.rand`` and ``torch.randn`` draw on a CPU from the same seed.

    word     MT19937 from the seed's lower 32 bits
    rand     u = (word mod 2^24) / 2^24
    randn    sqrt(-2 ln(1 - u_j)) · (cos, sin)(2 pi u_{j+8})        j = 0 .. 7 of every 16: pairs of Box and Muller

``torch.randn`` computes eight pairs at a time with the polynomials of Cephes and fused multiply-add, and so does this
file: equal to the byte where the processor has AVX2.  Elsewhere PyTorch asks the C library, and its values lie some
units in the last place away.

Knows: numbers.  Knows nothing of: torch, what is perturbed.
"""

import math
from collections.abc import Iterator

import numpy as np

from mobillm_kit.common import twister
from mobillm_kit.engines.engine import Array
from mobillm_kit.errors import BadInput

GROUP = 16
"""Values that are drawn together."""
PIECE = 2**13
"""Values worked on at a time: what is made on the way stays in the cache, and is too small to be mapped by itself."""

F, D = np.float32, np.float64

_LOG = tuple(map(F, (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1)))
_LOG += tuple(map(F, (-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)))
_LN2_LOW, _LN2_HIGH = F(-2.12194440e-4), F(0.693359375)
_SIN = tuple(map(F, (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)))
_COS = tuple(map(F, (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)))
_EIGHTHS = F(1.27323954473516)
"""4 / pi."""
_MINUS_EIGHTH = tuple(map(F, (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)))
"""-pi / 4 in three parts, of which the first ones have so few bits that a small multiple is exact."""


class Noise:
    """A generator: each call goes on where the last one ended, as a ``torch.Generator`` does."""

    def __init__(self, seed: int) -> None:
        self._twister = twister(seed)

    def rand(self, *shape: int) -> Array:
        """Uniform in [0, 1), float32."""
        count = math.prod(shape)
        words = self._twister.getrandbits(32 * count).to_bytes(4 * count, "little") if count else b""
        drawn = np.frombuffer(words, "<u4") & np.uint32(0xFFFFFF)
        return (drawn.astype(F) * F(2**-24)).reshape(shape)

    def randn(self, *shape: int) -> Array:
        """Standard normal, float32.

        Raises:
            BadInput: fewer than 16 values, which PyTorch draws in another way.
        """
        count = math.prod(shape)
        if count < GROUP:
            raise BadInput(
                f"{count} random values are fewer than {GROUP}.", "Take a larger rank, or more perturbations."
            )
        drawn = self.rand(count)
        whole = count - count % GROUP
        for piece in _pieces(whole):
            drawn[piece] = _box_muller(drawn[piece])
        if whole < count:  # PyTorch draws the last sixteen anew, over some that it has made already
            drawn[-GROUP:] = _box_muller(self.rand(GROUP))
        return drawn.reshape(shape)


def _pieces(count: int) -> Iterator[slice]:
    return (slice(start, min(start + PIECE, count)) for start in range(0, count, PIECE))


def _box_muller(uniform: Array) -> Array:
    pairs = uniform.reshape(-1, 2, GROUP // 2)
    radius = np.sqrt(F(-2) * _log(F(1) - pairs[:, 0]))
    sine, cosine = _sine_cosine(F(2 * math.pi) * pairs[:, 1])
    return np.stack([radius * cosine, radius * sine], axis=1).reshape(-1) + F(0)  # as there: no negative zero


def _fused(a: Array, b: Array | np.float32, c: Array | np.float32) -> Array:
    """``a b + c`` rounded once: a product of two float32 is exact in float64."""
    return (a.astype(D) * b + c).astype(F)


def _polynomial(x: Array, coefficients: tuple[np.float32, ...]) -> Array:
    found = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        found = _fused(found, x, coefficient)
    return found


def _log(x: Array) -> Array:
    """Natural logarithm of normal numbers above 0."""
    bits = x.view(np.uint32)
    exponent = ((bits >> 23).astype(np.int32) - 126).astype(F)
    x = ((bits & np.uint32(0x007FFFFF)) | np.uint32(0x3F000000)).view(F)  # in [1/2, 1)
    small = x < F(math.sqrt(0.5))
    exponent = exponent - small.astype(F)
    x = x - F(1) + np.where(small, x, F(0))
    square = x * x
    y = _fused(_polynomial(x, _LOG) * x, square, exponent * _LN2_LOW) - square * F(0.5)
    return _fused(exponent, _LN2_HIGH, x + y)


def _sine_cosine(x: Array) -> tuple[Array, Array]:
    """Both of angles from 0 to 2 pi."""
    octant = ((x * _EIGHTHS).astype(np.int32) + 1) & ~1
    turns = octant.astype(F)
    for part in _MINUS_EIGHTH:
        x = _fused(turns, part, x)
    square = x * x
    cosine = _fused(_polynomial(square, _COS) * square, square, -(square * F(0.5))) + F(1)
    sine = _fused(_polynomial(square, _SIN) * square, x, x)
    straight = (octant & 2) == 0
    first, second = np.where(straight, sine, cosine), np.where(straight, cosine, sine)
    return np.where(octant & 4, -first, first), np.where((octant - 2) & 4, second, -second)
