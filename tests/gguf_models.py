"""Tiny models in GGUF files, written as llama.cpp's converter writes them: names, settings, heads in its order."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from transformers import AutoConfig, PreTrainedModel

from mobillm_kit.backbone.pretrained import from_config

WIDTH = 64
WORDS = [chr(letter) for letter in range(33, 127)] + ["Ġ", "Ċ"]
"""Bytes as GPT-2's tokenizer spells them; enough for plain texts."""
MERGES = ["b a", "ba d", "g o", "go o", "goo d", "Ġ bad", "Ġ good"]
TOKENS = ["<|end|>", *WORDS, *(merge.replace(" ", "") for merge in MERGES)]

_CONFIG = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": len(TOKENS),
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_GPT2 = {"n_embd": WIDTH, "n_layer": 3, "n_head": 4, "vocab_size": len(TOKENS), "n_positions": 1024}
CONFIGS = {
    "llama": {**_CONFIG, "head_dim": 16},
    "qwen2": _CONFIG,
    "qwen3": {**_CONFIG, "head_dim": 128},
    "gemma2": {**_CONFIG, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32},
    "starcoder2": {**_CONFIG, "use_bias": True, "tie_word_embeddings": True},
    "gpt2": {**_GPT2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0},
}


def tiny_model(family: str) -> PreTrainedModel:
    """Random weights, biases and norms too."""
    torch.manual_seed(1)
    model = from_config(AutoConfig.for_model(family, **CONFIGS[family]), torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


def write_gguf(
    file: Path,
    model: PreTrainedModel,
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    architecture: str = "",
    extra: dict[str, np.ndarray] | None = None,
) -> Path:
    """The model as llama.cpp has it; matrices of ``kind``, vectors float32."""
    writer = GGUFWriter(file, architecture or model.config.model_type)
    settings(writer, model.config)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(MERGES)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(TOKENS) - 1))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(0)
    for name, values in (tensors(model) | (extra or {})).items():
        stored = kind if values.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def settings(writer: GGUFWriter, config: AutoConfig) -> None:
    """What of the configuration the header holds."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(4 * WIDTH)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if head := getattr(config, "head_dim", None):
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_rope_dimension_count(head)
    if config.model_type == "starcoder2":
        writer.add_layer_norm_eps(config.norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.model_type == "gemma2":
        writer.add_sliding_window(config.sliding_window)
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def tensors(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """Every weight once, by llama.cpp's names, in its order."""
    config = model.config
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    found = {}
    for name, parameter in model.named_parameters():
        path, _, suffix = name.rpartition(".")
        theirs = names.get_name(path)
        values = parameter.numpy().copy()
        if config.model_type == "llama" and theirs.endswith(("attn_q", "attn_k")):
            values = interleaved(values, config.num_attention_heads if "_q" in theirs else config.num_key_value_heads)
        if config.model_type == "gpt2" and values.ndim > 1 and theirs.startswith("blk"):
            values = np.ascontiguousarray(values.T)  # Conv1D keeps (in, out)
        if config.model_type == "gemma2" and theirs.endswith("norm"):
            values = values + 1
        found[f"{theirs}.{suffix}"] = values
    return found


def interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Rotary pairs (i, i + d/2) side by side: from Hugging Face's order to llama.cpp's."""
    rows, width = values.shape
    return values.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)
