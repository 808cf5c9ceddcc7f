"""Where the parts of each Hugging Face model family lie: embedding, blocks, final norm, output projection.

A new family is a new row in ``families.toml`` (and a tiny configuration in ``tests/families.py``).

Knows: names.  Knows nothing of: tensors, tasks, training.
Taught in: notebooks/00_start_here.ipynb
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

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
    masked_head: tuple[str, ...] = ()
    """Of ``AutoModelForMaskedLM``: the head's matrix, its norm, and the setting of what is between, empty for gelu."""


_ROWS = msgspec.toml.decode(Path(__file__).with_name("families.toml").read_bytes())
FAMILIES = {name: msgspec.convert(row, Family) for row in _ROWS.values() for name in row["types"]}
"""By transformers' model type."""


def family_of(model_type: str) -> Family:
    """The row of a model type."""
    try:
        return FAMILIES[model_type]
    except KeyError:
        problem = f"Model type '{model_type}' has no row in mobillm_kit/backbone/families.toml."
        raise UnknownName(problem, f"Supported: {', '.join(sorted(FAMILIES))}.") from None
