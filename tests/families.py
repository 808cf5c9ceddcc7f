"""Tiny random models of every supported family, for the tests."""

from __future__ import annotations

import torch
from transformers import AutoConfig

from mobillm_kit.backbone.pretrained import from_config
from mobillm_kit.backbone.split import Backbone

_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2, "head_dim": 8}
_TABLES = {"vocab_size": 100, "max_position_embeddings": 64, "pad_token_id": 1}
_DISENTANGLED = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "initializer_range": 0.2,
}
_OPT = {**_SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}

TINY: dict[str, tuple[str, dict]] = {
    "opt": ("opt", _OPT),
    "opt-350m-like": ("opt", {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "llama": ("llama", _GROUPED),
    "mistral": ("mistral", {**_GROUPED, "sliding_window": 4}),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3": ("qwen3", _GROUPED),
    "gemma": ("gemma", _GROUPED),
    "gemma2": ("gemma2", {**_GROUPED, "sliding_window": 4}),
    "gemma3": ("gemma3_text", {**_GROUPED, "num_hidden_layers": 7, "sliding_window": 4}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 100, "n_positions": 64}),
    "gpt-neox": ("gpt_neox", _SMALL),
    "bert": ("bert", _SMALL),
    "roberta": ("roberta", _SMALL),
    "xlm-roberta": ("xlm-roberta", _SMALL),
    "smollm3": ("smollm3", {**_SMALL, "num_key_value_heads": 2, "no_rope_layer_interval": 2}),
    "olmo2": ("olmo2", _GROUPED),
    "granite": (
        "granite",
        {**_GROUPED, "logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22},
    ),
    "cohere": ("cohere", {**_GROUPED, "logit_scale": 0.0625, "use_qk_norm": True}),
    "starcoder2": ("starcoder2", {**_GROUPED, "sliding_window": 4}),
    "phi": ("phi", _SMALL),
    "phi3": ("phi3", {**_GROUPED, "sliding_window": 4}),
    "gpt-j": ("gptj", {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4, "vocab_size": 100, "n_positions": 64}),
    "camembert": ("camembert", _SMALL),
    "mobilebert": ("mobilebert", {**_SMALL, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}),
    "electra": ("electra", {**_SMALL, "embedding_size": 16}),
    "distilbert": ("distilbert", {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, **_TABLES}),
    "deberta": ("deberta", {**_SMALL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v3-like": ("deberta-v2", {**_SMALL, **_DISENTANGLED}),
    "modernbert": ("modernbert", {**_SMALL, "local_attention": 4, "initializer_range": 0.2}),
}


def tiny_backbone(name: str, *, seed: int = 0, masked: bool = False, **changes) -> Backbone:
    """A tiny random backbone; torch's global generator is left as it was."""
    model_type, settings = TINY[name]
    config = AutoConfig.for_model(model_type, **settings | changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = from_config(config, torch.float32, masked)
    return Backbone(model, name=name)
