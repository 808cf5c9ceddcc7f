"""An exported block with its weights in 8 or 4 bits.

    w ≈ s q        q whole, |q| ≤ 127 (int8) or -8 ≤ q ≤ 7 (int4);  one s for 32 weights along d_in

Only what activations are multiplied with is coded; norms and biases stay float32, and so do the activations, since one
scale for a whole batch of them, as dynamic quantization has it, loses ten times as much on models with outliers
(`docs/log.md`).  A row's result does not depend on its neighbours.

Knows: a graph's file.  Knows nothing of: models, torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mobillm_kit.common import quiet

Precision = Literal["float32", "int8", "int4"]

GROUP = 32
"""Weights along d_in that share a scale."""
WITHIN: dict[Precision, float] = {"float32": 1e-5, "int8": 0.05, "int4": 0.5}
"""Largest difference of a layer from PyTorch, relative to the layer's largest value; a wrong block is off by 1."""


def shrink(path: Path, precision: Precision) -> None:
    """Write the block's file again, its weights in that precision.

    ``Gemm`` hides a product from the quantizer, which knows ``MatMul`` alone; shapes that the exporter noted are
    dropped first, or the rewritten graph contradicts them.
    """
    if precision == "float32":
        return
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    graph = onnx.load(path)
    del graph.graph.value_info[:]
    products = ONNXModel(graph)
    products.replace_gemm_with_matmul()
    with quiet():  # a line for each node of the graph
        coder = MatMulNBitsQuantizer(
            products.model, bits=8 if precision == "int8" else 4, block_size=GROUP, is_symmetric=True
        )
        coder.process()
    onnx.save_model(coder.model.model, str(path))
