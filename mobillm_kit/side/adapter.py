"""A trained side network as something to keep: saved, loaded, shared, and put back on its backbone.

A folder holds ``model.safetensors``, ``config.json`` (shape of the side network, task, and the backbone's name,
revision and fingerprint) and ``README.md``, a card written from the run's record.

Knows: side networks, heads, files.  Knows nothing of: training, devices, sockets.
Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from mobillm_kit.errors import BackboneMismatch, BadInput
from mobillm_kit.files import write_with
from mobillm_kit.side.description import SideSpec, chosen_layers
from mobillm_kit.side.full_width import FullWidthSide
from mobillm_kit.side.heads import LabelWordHead, SideTuned
from mobillm_kit.side.ladders import LadderSide, PrunedLadderSide
from mobillm_kit.side.pooled_head import PooledHead
from mobillm_kit.side.pruning import block_sizes, start_from

if TYPE_CHECKING:  # a server has no backbone and need not import what loads one
    from mobillm_kit.backbone.split import Backbone

WEIGHTS_FILE = "model.safetensors"
CARD = (Path(__file__).with_name("adapter_card.md.j2")).read_text(encoding="utf-8")


class SideAdapter(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="mobillm_kit",
    license="apache-2.0",
    model_card_template=CARD,
    coders={SideSpec: (msgspec.to_builtins, lambda given: msgspec.convert(given, SideSpec))},
):
    """A side network, the trained part of its head, the backbone that it belongs to, and its task, to label texts with.

    ``fingerprint`` is of the backbone's weights: another is refused.  Its name and revision are for the reader.
    """

    def __init__(
        self,
        side: SideSpec,
        *,
        backbone: str = "",
        backbone_revision: str = "",
        fingerprint: str = "",
        task: str = "",
        prompt: str = "{text}",
        labels: Sequence[str] = (),
        label_words: Sequence[str] = (),
        paired: bool = False,
        max_length: int = 256,
    ) -> None:
        super().__init__()
        self.spec = side
        self.side = build_side(side)
        self.head: PooledHead | None = None
        if side.pooling is not None:
            self.head = PooledHead(side.width, side.n_labels, pooling=side.pooling, heads=side.heads, seed=side.seed)
        self.fingerprint = fingerprint
        self.backbone_name = backbone
        self.task = task
        self.prompt = prompt
        self.labels = tuple(labels)
        self.label_words = tuple(label_words)
        self.paired = paired
        self.max_length = max_length

    def _save_pretrained(self, save_directory: Path) -> None:
        write_with(save_directory / WEIGHTS_FILE, lambda target: save_model(self, str(target)))

    @classmethod
    def _from_pretrained(  # type: ignore[override]  # the hub's own arguments are taken out of kwargs
        cls, *, model_id: str, config: dict[str, Any], map_location: str = "cpu", **kwargs: Any
    ) -> SideAdapter:
        """Safetensors only, every weight present and none too many."""
        hub = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if key in kwargs}
        file = Path(model_id) / WEIGHTS_FILE
        if not Path(model_id).is_dir():
            file = Path(hf_hub_download(repo_id=model_id, filename=WEIGHTS_FILE, **hub))
        try:
            adapter = cls(**{**kwargs, "side": msgspec.convert(config["side"], SideSpec)})
            load_model(adapter, str(file), strict=True, device=map_location)
        except (OSError, SafetensorError, RuntimeError, TypeError, KeyError, msgspec.ValidationError) as error:
            problem = f"{model_id}: not a side network that can be loaded ({str(error).strip().splitlines()[0]})."
            raise BadInput(problem, "Name a folder that `mobillm train` or `save_pretrained` wrote.") from error
        return adapter.eval()


HUB_ARGUMENTS = ("revision", "cache_dir", "force_download", "local_files_only", "token", "strict")


def build_side(spec: SideSpec) -> FullWidthSide | LadderSide | PrunedLadderSide:
    """The side network of a description, with its first weights; numbers that do not fit together are refused."""
    spec.check()
    if spec.kind == "full-width":
        return FullWidthSide(spec.width, spec.layers, rank=spec.rank, normalization=spec.normalization, seed=spec.seed)
    if spec.start == "backbone":
        return PrunedLadderSide(spec)
    sizes = {"reduction": spec.reduction, "heads": spec.heads, "seed": spec.seed}
    return LadderSide(spec.width, spec.layers, causal=spec.causal, **sizes)


def new_adapter(
    backbone: Backbone,
    *,
    n_labels: int,
    layers: int | Sequence[int] | None = None,
    about: Mapping[str, Any] | None = None,
    **given: Any,
) -> SideAdapter:
    """A fresh side network for a backbone, whose width, depth and fingerprint it gets.

    Args:
        layers: how many, or which; all by default.
        about: the task's words, as :class:`SideAdapter` takes them.
        given: further fields of the description, over the usual ones.
    """
    spec = SideSpec.of(**given)
    words, started = backbone.lm_head is not None, spec.start == "backbone"
    if words and spec.pooling == "attention":
        raise BadInput("Label words are read at one token; there is no pooling.", "Leave pooling out.")
    spec = msgspec.structs.replace(
        spec,
        **(block_sizes(backbone, spec.reduction) if started else {}),
        width=backbone.width,
        layers=chosen_layers(backbone.n_layers, layers, last=started),
        n_labels=n_labels,
        causal=backbone.kind == "decoder",
        pooling=None if words else spec.pooling or "mean",
    )
    beside: dict[str, Any] = {"backbone_revision": backbone.revision, "fingerprint": backbone.fingerprint}
    adapter = SideAdapter(spec, backbone=backbone.name, **beside, **(about or {}))
    if isinstance(adapter.side, PrunedLadderSide):
        start_from(adapter.side, backbone)
    return adapter


def attach(adapter: SideAdapter, backbone: Backbone, head: LabelWordHead | PooledHead) -> SideTuned:
    """Put a side network, fresh or loaded, on its backbone; of a label words' head a small frozen copy is taken."""
    if adapter.fingerprint != backbone.fingerprint:
        raise BackboneMismatch(
            f"This side network was trained on '{adapter.backbone_name}' (fingerprint {adapter.fingerprint[:12]}), "
            f"not on '{backbone.name}' ({backbone.fingerprint[:12]}).",
            "Load the backbone that its config.json names.",
        )
    if adapter.side.layers[-1] != backbone.n_layers:
        problem = f"The last tapped layer is {adapter.side.layers[-1]}, the backbone's last is {backbone.n_layers}."
        raise BadInput(problem, "Tap the last layer too: its state is what the side network adds to.")
    return SideTuned(adapter, head.server_copy() if isinstance(head, LabelWordHead) else None)


def gate_shares(side: FullWidthSide | LadderSide) -> tuple[float, ...]:
    """Each tapped layer's share in the side state at the end, adapters and blocks left out; they sum to 1.

    Its gates are sigmoid(alpha), of the ladder sigmoid(alpha / 0.1).
    """
    return shares_of_gates((side.gates if side.token_wise else side.gates / 0.1).detach().sigmoid().double().tolist())


def shares_of_gates(gates: Sequence[float]) -> tuple[float, ...]:
    """The same for gates mu_2 … mu_L, each 0..1.

        share_i = (1 - mu_i) prod_{j>i} mu_j            share_1 = prod_{j>1} mu_j

    since the first tap enters whole, mu_1 = 0.
    """
    shares, kept = [], 1.0
    for gate in reversed([0.0, *gates]):
        shares.append((1 - gate) * kept)
        kept *= gate
    return tuple(reversed(shares))


def layers_by_gate(side: FullWidthSide | LadderSide, count: int) -> tuple[int, ...]:
    """The ``count`` tapped layers of a trained side network that weigh most in it, ascending (filtering by layer).

    The last one is always among them: its state is what the side network adds to.  Of a fresh side network every gate
    is the same, and the choice says nothing.
    """
    if not 1 <= count <= len(side.layers):
        raise BadInput(f"Cannot choose {count} of {len(side.layers)} layers.")
    *others, last = zip(gate_shares(side), side.layers, strict=True)
    heaviest = sorted(others, reverse=True)[: count - 1]
    return tuple(sorted([layer for _, layer in heaviest] + [last[1]]))
