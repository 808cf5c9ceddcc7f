"""Tiny random models of every supported family, for the tests."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from mobillm_kit.backbone.families import family_of
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
}


def tiny_backbone(name: str, *, seed: int = 0) -> Backbone:
    """A tiny random backbone; torch's global generator is left as it was."""
    model_type, settings = TINY[name]
    config = AutoConfig.for_model(model_type, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if family_of(model_type).kind == "decoder":
            model = AutoModelForCausalLM.from_config(config)
        else:
            model = AutoModel.from_config(config, add_pooling_layer=False)
    return Backbone(model, name=name)
