"""What the codes of each codec stand for: bits, largest codes, codebooks.

Values: QLoRA (arXiv 2305.14314), appendix E, and bitsandbytes' FP4, in its order of codes.

Knows: numbers by name of codec.  Knows nothing of: scales to be found, payloads.
Taught in: notebooks/07_quantized_activations.ipynb
"""

BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "int8": 8, "int4": 4, "int2": 2, "sign": 1, "nf4": 4, "fp4": 4}
"""Bits of one code, scales not counted, by name; floats first."""

CODECS: tuple[str, ...] = tuple(BITS)

FLOATS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Codecs without scales, and what their type is called."""

TOP = {"fp8": 448.0, "int8": 127.0, "int4": 7.0, "int2": 1.0, "nf4": 1.0, "fp4": 1.0}
"""Largest code; the largest value of a group becomes it."""

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution, as float32."""

_FP4_POSITIVE = (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
FP4 = (*_FP4_POSITIVE, *(-value for value in _FP4_POSITIVE))
"""Bit 3 is the sign, two bits exponent, one bit mantissa; code 8 is a second zero, for small positive values."""

_FP4_ORDER = (11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3)
"""Codes of FP4 by value.  Code 8 stands right of 0, as in bitsandbytes."""

BOOKS = {"nf4": NF4, "fp4": FP4}
ORDERS = {"fp4": _FP4_ORDER}
"""The others stand in the order of their values."""
