"""A side network's first weights out of the backbone's own, by magnitude (LST, arXiv 2206.06522, section 3.2).

    importance of feature j = sum over the blocks of |W_q[:, j]| + |W_k[:, j]| + |W_v[:, j]| + |W_wide[:, j]|
    kept: the d/k features with the largest sums, the same in every block; then, block by block and on these,
          the H/k attention heads and the F/k feed-forward units with the largest sums
    W_i = the rows of the identity at the kept features

LST prunes each layer on its own; here one choice of features holds for all of them, since they meet in one residual
stream.  The server needs these weights: they are the public backbone's, and hold nothing of the user's.  Blocks are
read, and decoded, one at a time: once for the choice, once for the copy.

Knows: BERT-like blocks and the side network of their shape.  Knows nothing of: training, tasks, sockets.
Taught in: notebooks/09_comparison.ipynb
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mobillm_kit.errors import BadInput
from mobillm_kit.side.ladders import PostNormBlock, PrunedLadderSide

if TYPE_CHECKING:
    from mobillm_kit.backbone.split import Backbone

READERS = ("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense")
"""What reads the residual stream."""

BERT_LIKE = ("bert", "roberta", "xlm-roberta")


def block_sizes(backbone: Backbone, reduction: int) -> dict[str, Any]:
    """Fields of the description that say what a backbone's blocks look like, pruned by k."""
    config = backbone.config
    gated = config.model_type == "llama"
    if not (_is_plain_llama(config) if gated else config.model_type in BERT_LIKE and config.hidden_act == "gelu"):
        problem = f"start='backbone': the blocks of '{backbone.name}' ({config.model_type}) are not of a known shape."
        raise BadInput(problem, f"Choose start='random', or a backbone of {', '.join(BERT_LIKE)} or llama.")
    sizes = (config.hidden_size, config.num_attention_heads, config.intermediate_size)
    if reduction < 1 or any(size % reduction for size in sizes):
        raise BadInput(
            f"start='backbone': reduction {reduction} does not divide width {sizes[0]}, {sizes[1]} heads and "
            f"feed-forward {sizes[2]} of '{backbone.name}'.",
            "Choose a reduction that divides all three, or start='random'.",
        )
    own = {"heads": config.num_attention_heads // reduction, "feed_forward": config.intermediate_size // reduction}
    if not gated:
        return {**own, "norm_eps": config.layer_norm_eps}
    gates = (config.num_key_value_heads, int(config.rope_parameters["rope_theta"]))
    return {**own, "norm_eps": config.rms_norm_eps, "gated": gates}


def _is_plain_llama(config: Any) -> bool:
    """Whether ``GatedBlock`` is its block: no biases, unscaled rotary places, heads that add up to the width."""
    plain = config.hidden_act == "silu" and not (config.attention_bias or config.mlp_bias)
    heads = config.head_dim * config.num_attention_heads == config.hidden_size
    rope = config.rope_parameters
    return plain and heads and rope.get("rope_type") == "default" and rope["rope_theta"] == int(rope["rope_theta"])


@torch.no_grad()
def start_from(side: PrunedLadderSide, backbone: Backbone) -> None:
    """Give the side network's blocks the weights of the backbone's blocks l + 1 … L: Llama's whole, BERT's pruned."""
    sources = side.layers[:-1]  # A_l enters blocks[l]
    width, gated = side.up.in_features, side.causal
    features = torch.arange(width) if gated else kept_features(map(backbone.dense, sources), width)
    places: Iterable[Any] = zip(map(backbone.dense, sources), side.blocks, side.down, strict=True)
    for source, block, down in places:
        if gated:
            block.load_state_dict({name: source[name] for name in block.state_dict()})  # coded ones hold codes too
        else:
            _fill(block, source, features)
        down.weight.zero_()
        down.weight[torch.arange(len(features)), features] = 1.0
        down.bias.zero_()


def kept_features(blocks: Iterable[Mapping[str, Tensor]], count: int) -> Tensor:
    """(count,) indices, ascending: the residual stream's features that the blocks read with the largest weights."""
    each = (block[f"{name}.weight"].float().abs().sum(dim=0) for block in blocks for name in READERS)
    return _largest(sum(each, torch.zeros(())), count)


def _fill(block: PostNormBlock, source: Mapping[str, Tensor], features: Tensor) -> None:
    *projections, wide = READERS
    head_width = block.query.out_features // block.heads
    each = (source[f"{name}.weight"][:, features].float().abs().sum(dim=1) for name in projections)
    per_row = sum(each, torch.zeros(()))
    heads = _largest(per_row.view(-1, head_width).sum(dim=1), block.heads)
    rows = (heads.unsqueeze(1) * head_width + torch.arange(head_width)).flatten()
    units = _largest(source[f"{wide}.weight"][:, features].float().abs().sum(dim=1), block.wide.out_features)
    for target, name in zip((block.query, block.key, block.value), projections, strict=True):
        _copy(target, source, name, rows, features)
    _copy(block.out, source, "attention.output.dense", features, rows)
    _copy(block.wide, source, wide, units, features)
    _copy(block.narrow, source, "output.dense", features, units)
    for norm, output in ((block.attention_norm, "attention.output"), (block.mlp_norm, "output")):
        norm.weight.copy_(source[f"{output}.LayerNorm.weight"][features])
        norm.bias.copy_(source[f"{output}.LayerNorm.bias"][features])


def _largest(values: Tensor, count: int) -> Tensor:
    return values.topk(count).indices.sort().values.cpu()


def _copy(target: nn.Linear, source: Mapping[str, Tensor], name: str, rows: Tensor, columns: Tensor) -> None:
    target.weight.copy_(source[f"{name}.weight"][rows][:, columns])
    target.bias.copy_(source[f"{name}.bias"][rows])
