"""Where the parts of each Hugging Face model family lie: embedding, blocks, final norm, output projection.

A new family is a new row (and a tiny configuration in ``tests/families.py``).

Knows: names.  Knows nothing of: tensors, tasks, training.
Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mobillm_kit.errors import UnknownName

Kind = Literal["decoder", "encoder"]


@dataclass(frozen=True)
class Family:
    """Attribute paths, from the model that ``AutoModel…`` returns."""

    kind: Kind
    base: str
    """The model without its head; empty where the loaded model is that already."""
    embedding: str
    """The token embedding, below ``base``."""
    blocks: str
    norm: str
    """Final norm; empty for post-norm families, whose blocks end in their own norm."""
    lm_head: str
    project_out: str = ""
    """Projection from the blocks' width to the embedding's (OPT-350M: 1024 to 512)."""
    attention_targets: tuple[str, ...] = ("q_proj", "v_proj")
    """The projections that LoRA adapts by default: query and value."""
    positions_start_after_padding_id: bool = False
    """RoBERTa counts positions from ``padding_idx + 1``, the others from 0."""
    poolable: bool = True
    """Whether the encoder's class has a pooler to leave out."""
    returns_tuple: bool = False
    """Whether a block returns ``(h, attention)`` (DeBERTa)."""
    whole: tuple[str, ...] = ()
    """Tables of which every block reads all rows: DeBERTa's relative positions."""
    cannot: str = ""
    """A setting that puts something between the blocks: such a model is refused."""


_FUSED = ("query_key_value",)
_LLAMA_LIKE = Family("decoder", "model", "embed_tokens", "layers", "norm", "lm_head")
_BERT_LIKE = Family(
    "encoder", "", "embeddings.word_embeddings", "encoder.layer", "", "", attention_targets=("query", "value")
)
_ROBERTA_LIKE = replace(_BERT_LIKE, positions_start_after_padding_id=True)
_BARE_BERT = replace(_BERT_LIKE, poolable=False)
_DEBERTA = replace(_BARE_BERT, returns_tuple=True, whole=("encoder.rel_embeddings",), cannot="conv_kernel_size")

_LLAMAS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "olmo2", "granite")

FAMILIES: dict[str, Family] = {
    "opt": Family("decoder", "model.decoder", "embed_tokens", "layers", "final_layer_norm", "lm_head", "project_out"),
    **dict.fromkeys((*_LLAMAS, "cohere", "starcoder2"), _LLAMA_LIKE),
    "phi": replace(_LLAMA_LIKE, norm="final_layernorm"),
    "phi3": replace(_LLAMA_LIKE, attention_targets=("qkv_proj",)),
    "gptj": Family("decoder", "transformer", "wte", "h", "ln_f", "lm_head"),
    "gpt2": Family("decoder", "transformer", "wte", "h", "ln_f", "lm_head", attention_targets=("c_attn",)),
    "gpt_neox": Family(
        "decoder", "gpt_neox", "embed_in", "layers", "final_layer_norm", "lm_head", attention_targets=_FUSED
    ),
    **dict.fromkeys(("bert", "mobilebert"), _BERT_LIKE),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), _ROBERTA_LIKE),
    "electra": _BARE_BERT,
    "distilbert": replace(_BARE_BERT, blocks="transformer.layer", attention_targets=("q_lin", "v_lin")),
    "deberta": replace(_DEBERTA, attention_targets=("in_proj",)),
    "deberta-v2": replace(_DEBERTA, attention_targets=("query_proj", "value_proj")),
    "modernbert": replace(
        _BARE_BERT,
        embedding="embeddings.tok_embeddings",
        blocks="layers",
        norm="final_norm",
        attention_targets=("Wqkv",),
    ),
}

MASKED_HEADS = {
    "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "hidden_act"),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), ("lm_head.dense", "lm_head.layer_norm", "")),
    "distilbert": ("vocab_transform", "vocab_layer_norm", "activation"),
    "electra": ("generator_predictions.dense", "generator_predictions.LayerNorm", ""),
    "modernbert": ("head.dense", "head.norm", "classifier_activation"),
}
"""Of a masked-language model's head: its matrix, its norm, and the setting that names the function between (gelu)."""


def family_of(model_type: str) -> Family:
    """The row of a model type."""
    try:
        return FAMILIES[model_type]
    except KeyError:
        raise UnknownName(
            f"Model type '{model_type}' has no row in mobillm_kit/backbone/families.py.",
            f"Supported: {', '.join(sorted(FAMILIES))}.",
        ) from None
