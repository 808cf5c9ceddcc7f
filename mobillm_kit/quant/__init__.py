"""Activation codecs for the link between device and server: float tensors to few bytes and back.

    s  = max|x| / (2^(k-1) - 1)       one scale per group of G values, or per token
    q  = round(x / s)                 k-bit code, symmetric: zero stays zero
    x' = q s                          |x - x'| <= s / 2

NF4 and FP4 (bitsandbytes' codebooks) take the nearest of 16 values in [-1, 1] instead of a rounded number, with
s = max|x|; fp8 rounds x / s to e4m3 with s = max|x| / 448; sign keeps one bit, with s = mean|x|, the best scale for it.
fp32, fp16 and bf16 have no scale.  This is compression, not privacy: codes can be inverted like the activations.

**Payload of a tensor (..., d)**, N = product of all dimensions but the last, all of it little-endian:

1. Scales (none for fp32, fp16, bf16): N * d / G IEEE float32 numbers, token after token, within a token group after
   group (group 0: one per token, G = d).  A scale is +0 or a positive normal number; nothing else is accepted.
2. Codes, token after token, values in order.  Each token starts at a byte of its own; where its codes do not fill the
   last byte, the rest is zero bits.

   ====== ==== =====================================================================================
   name   bits code
   ====== ==== =====================================================================================
   fp32   32   IEEE float32, finite                          bf16: 16 bits, upper half of a float32
   fp16   16   IEEE float16, finite
   fp8    8    e4m3 "fn": sign, 4 bits exponent (bias 7), 3 bits mantissa; 0x7f and 0xff refused
   int8   8    two's complement, -127..127; 0x80 refused     x' = code * s
   int4   4    two's complement, -7..7; 0x8 refused          x' = code * s
   int2   2    two's complement, -1..1; 0b10 refused         x' = code * s
   sign   1    0: x' = s, 1: x' = -s
   nf4    4    place in :data:`NF4`                          x' = NF4[code] * s
   fp4    4    place in :data:`FP4`                          x' = FP4[code] * s
   ====== ==== =====================================================================================

   Several codes in one byte: the first value in the highest bits.

A group whose scale would be below 2^-126 (all zeros, or nearly) has scale 0 and decodes to zeros.  Bytes do not depend
on the device, the number of threads, or the other tokens of the tensor.

Knows: tensors and bit widths.  Knows nothing of: models, sockets, training.
Taught in: notebooks/07_quantized_activations.ipynb
"""

from mobillm_kit.errors import CodecError
from mobillm_kit.quant.books import BITS, CODECS, FP4, NF4
from mobillm_kit.quant.codec import GROUPS, Codec, codec

__all__ = ["BITS", "CODECS", "FP4", "GROUPS", "NF4", "Codec", "CodecError", "codec"]
