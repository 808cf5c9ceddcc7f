"""A backbone as files that an engine runs: one per block, tables, tokenizer, manifest.  ExecuTorch's: lowering.py

    a twin of block 0 with weights all different  ->  torch.onnx.export  ->  graph     P-RGE's: dual_export.py
    graph with block i's weights in their place   ->  block-i.onnx       for every i

Export takes seconds, and every block of a model has the same graph, so it is done once.  The exporter renames weights,
transposes them and merges equal ones; in the twin each is recognised by its values.  What was written is loaded by the
engine and held against PyTorch before the folder gets its name: an export that broke off leaves nothing behind.

Knows: backbones, files, the engine.  Knows nothing of: tasks, training.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mobillm_kit.backbone.pretrained import load_backbone, load_tokenizer
from mobillm_kit.backbone.split import Backbone
from mobillm_kit.common import installed_version, quiet
from mobillm_kit.engines import manifest as manifests
from mobillm_kit.engines.dual_export import DualBlock, check_step, chosen_targets, rotary, tables
from mobillm_kit.engines.engine import Eager
from mobillm_kit.engines.executorch import MODEL
from mobillm_kit.engines.fewer_bits import WITHIN, Precision, shrink
from mobillm_kit.engines.lowering import DualModel, lower, usual_sizes
from mobillm_kit.engines.manifest import Adapted, EngineName, Lowered, Manifest, Words
from mobillm_kit.engines.onnx import OnnxEngine
from mobillm_kit.engines.steppers import open_engine
from mobillm_kit.errors import BadInput, KitError, SaveFailed
from mobillm_kit.methods.task_model import task_model
from mobillm_kit.side.description import HeadSpec
from mobillm_kit.side.heads import LabelWordHead
from mobillm_kit.side.portable_head import describe_head

OPSET = 18
LIBRARIES = ("torch", "transformers")
NEEDS = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "executorch": ("executorch", "torchao")}


def export_backbone(
    name: str | Path,
    folder: str | Path,
    *,
    revision: str | None = None,
    targets: str | None = None,
    precision: Precision = "float32",
    engine: EngineName = "onnx",
    sizes: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write ``folder``, which must not be there yet, from a model as :func:`load_backbone` takes it.

    ``targets`` names the projections that P-RGE is to adapt, with commas, or ``all``; None exports for a device, whose
    blocks may have weights of fewer bits.  ``sizes`` are those fields of :class:`Lowered` that are not to be as usual.

    Raises:
        MissingExtra: the engine's libraries are not installed.
        BadInput: an unknown family, a folder that is there, a projection that no block has, or P-RGE in few bits.
        KitError: a block that the engine does not run as PyTorch does.
    """
    place = Path(folder)
    _check(place, targets, precision, engine, sizes)
    backbone, tokenizer = load_backbone(name, revision=revision), load_tokenizer(name, revision=revision)
    manifests.check_family(str(backbone.config.model_type))
    chosen = None if targets is None else chosen_targets(backbone, targets)
    lowered = usual_sizes(backbone, sizes) if engine == "executorch" else None
    partial = _begun(place)
    try:
        _write(backbone, tokenizer, partial, chosen, precision, lowered)
        if chosen is None:
            check_equal(backbone, OnnxEngine(partial))
        else:
            check_step(backbone, open_engine(engine, partial))
        partial.chmod(0o755)  # mkdtemp's folders are for one user alone
        partial.rename(place)
    except OSError as error:
        raise SaveFailed(f"{place}: cannot be written ({error.strerror}).", "Free some space.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


def _begun(place: Path) -> Path:
    """A folder beside ``place``, to be renamed when it is whole."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".partial", dir=place.parent))
    except OSError as error:
        raise SaveFailed(f"{place}: cannot be written ({error.strerror}).", "Choose another folder.") from error


def _check(
    place: Path, targets: str | None, precision: Precision, engine: EngineName, sizes: Mapping[str, Any]
) -> None:
    manifests.check_installed(*NEEDS[engine], extra=engine)
    if place.exists():
        raise BadInput(f"{place}: is there already.", "Name a new folder, or remove this one.")
    if targets is not None and precision != "float32":
        raise BadInput(f"Blocks for P-RGE are exported in float32, not in {precision}.", "Leave the precision out.")
    if engine == "executorch" and targets is None:
        raise BadInput("ExecuTorch is there for P-RGE alone.", "Give --method p-rge too, or take --engine onnx.")
    if engine == "onnx" and sizes:
        problem = f"--{next(iter(sizes)).replace('_', '-')} is ExecuTorch's: an export for ONNX Runtime serves all."
        raise BadInput(problem, "Leave it out, or take --engine executorch.")


def check_equal(backbone: Backbone, engine: OnnxEngine) -> float:
    """Hold an engine against PyTorch on a batch with padding; the largest relative difference of a layer."""
    length = min(9, backbone.context)
    ids = np.random.RandomState(0).randint(0, backbone.n_tokens, (2, length))
    mask = np.ones_like(ids)
    mask[1, length // 2 + 1 :] = 0
    real, worst, within = mask.astype(bool), 0.0, WITHIN[engine.manifest.precision]
    for (layer, wanted), (_, found) in zip(Eager(backbone).taps(ids, mask), engine.taps(ids, mask), strict=True):
        off = float(np.abs(found - wanted)[real].max() / max(np.abs(wanted[real]).max(), 1e-30))
        if not off <= within:
            problem = f"Layer {layer} of '{backbone.name}' comes out {off:.1e} away from PyTorch in ONNX Runtime."
            raise KitError(problem, f"{within:g} is allowed: keep to --engine torch for this model, and report it.")
        worst = max(worst, off)
    return worst


def _write(
    backbone: Backbone,
    tokenizer: Any,
    folder: Path,
    chosen: Adapted | None,
    precision: Precision,
    lowered: Lowered | None,
) -> None:
    found, eps = tables(backbone)
    head, tensors = _head(backbone)
    engine: EngineName = "onnx" if lowered is None else "executorch"
    if chosen is not None and lowered is not None:
        lower(DualModel(backbone, chosen, lowered), lowered.lengths, folder / MODEL)
    else:
        _write_blocks(backbone, folder, chosen, precision)
        _write_tables(folder, found, tensors)
    words = _write_tokenizer(tokenizer, folder / "tokenizer.json")
    manifest = Manifest(
        engine=engine,
        precision=precision,
        name=backbone.name,
        revision=backbone.revision,
        fingerprint=backbone.fingerprint,
        family=cast(Any, backbone.config.model_type),
        kind=backbone.kind,
        width=backbone.width,
        layers=backbone.n_layers,
        context=backbone.context,
        rows=backbone.n_tokens,
        eps=eps,
        head=head,
        adapted=chosen,
        lowered=lowered,
        words=words,
        versions={library: installed_version(library) or "" for library in (*LIBRARIES, *NEEDS[engine])},
        files={path.name: manifests.described(path) for path in sorted(folder.iterdir())},
    )
    (folder / manifests.FILE).write_bytes(manifests.encoded(manifest))


def _write_tables(folder: Path, tables: Mapping[str, Tensor], head: dict[str, Tensor]) -> None:
    for name, table in tables.items():
        np.save(folder / f"{name}.npy", table.detach().float().contiguous().numpy())
    if head:
        save_file(head, folder / manifests.HEAD)


def _write_tokenizer(tokenizer: Any, path: Path) -> Words:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BadInput("The model's tokenizer has no tokenizer.json.", "Save it with a fast tokenizer of transformers.")
    backend.no_truncation()
    backend.no_padding()
    backend.save(str(path))
    names = ("pad_token_id", "eos_token_id", "unk_token_id")
    own = {name: getattr(tokenizer, name) for name in names}
    return Words(**own, segments="token_type_ids" in tokenizer.model_input_names)


def _head(backbone: Backbone) -> tuple[HeadSpec | None, dict[str, Tensor]]:
    """The head without its label words, whose rows a task will choose."""
    if backbone.kind == "encoder":
        return None, {}
    head = task_model(backbone, word_ids=(0, 1)).head
    assert isinstance(head, LabelWordHead)  # every decoder's
    spec, tensors = describe_head(head)
    if spec.bias:
        raise BadInput(f"The head of '{backbone.name}' has a bias.", "Only heads without one are exported.")
    return spec, {name: tensor for name, tensor in tensors.items() if name != "words.weight"}


class _Block(nn.Module):
    """A block as a graph sees it: arrays in, the next state out."""

    def __init__(self, block: nn.Module, backbone: Backbone) -> None:
        super().__init__()
        self.block = block
        self._state, self._encoder = backbone.state, backbone.kind == "encoder"

    def forward(self, hidden: Tensor, bias: Tensor, cos: Tensor | None = None, sin: Tensor | None = None) -> Tensor:
        """h_i of h_{i-1}, (B, T, d)."""
        if self._encoder:
            return self._state(0, self.block(hidden, bias))
        turned = {} if cos is None else {"position_embeddings": (cos, sin)}
        return self._state(0, self.block(hidden, attention_mask=bias, **turned))

    def example(self, backbone: Backbone) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs by name, and which of their sizes are free."""
        rows, length = 2, 5
        given = {"hidden": torch.randn(rows, length, backbone.width), "bias": torch.zeros(rows, 1, length, length)}
        given |= rotary(backbone, rows, length)
        b, t = torch.export.Dim("B", min=1), torch.export.Dim("T", min=1)
        return given, {name: {0: b, 2: t, 3: t} if name == "bias" else {0: b, 1: t} for name in given}


def _write_blocks(backbone: Backbone, folder: Path, chosen: Adapted | None, precision: Precision) -> None:
    import onnx

    twin = copy.deepcopy(backbone.blocks[0])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    weights = dict(twin.named_parameters())
    graph = _graph(_Block(twin, backbone) if chosen is None else DualBlock(twin, chosen), backbone)
    places = _places(graph, weights)
    for index, block in enumerate(backbone.blocks):
        weights = dict(block.named_parameters())
        for initializer, (name, turned) in places:
            weight = weights[name].detach().float()
            array = (weight.T if turned else weight).contiguous().numpy()
            initializer.CopyFrom(onnx.numpy_helper.from_array(array, initializer.name))
        path = folder / f"block-{index}.onnx"
        onnx.save_model(graph, str(path))
        shrink(path, precision)


def _graph(block: _Block | DualBlock, backbone: Backbone) -> Any:
    """The ONNX graph of a block, of any batch and length."""
    given, dynamic = block.example(backbone)
    names = [f"{name}_{i}" if isinstance(each, list) else name for name, each in given.items() for i in range(_n(each))]
    with quiet(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own parts
        program = torch.onnx.export(
            block.eval(), tuple(given.values()), dynamo=True, dynamic_shapes=tuple(dynamic.values()), verbose=False,
            input_names=names, output_names=["next"], opset_version=OPSET,
        )  # fmt: skip
    assert program is not None  # dynamo=True gives one
    return program.model_proto


def _n(given: Tensor | list[Tensor]) -> int:
    return len(given) if isinstance(given, list) else 1


def _places(graph: Any, weights: Mapping[str, Tensor]) -> list[tuple[Any, tuple[str, bool]]]:
    """Which weight each initializer is, and whether transposed; found by its values, which are all different.

    Raises:
        KitError: a weight that stands nowhere as it is: the exporter has computed with it.
    """
    import onnx

    known: dict[bytes, tuple[str, bool]] = {}
    for name, weight in weights.items():
        known[weight.detach().contiguous().numpy().tobytes()] = (name, False)
        if weight.dim() == 2:
            known[weight.detach().T.contiguous().numpy().tobytes()] = (name, True)
    found = []
    for initializer in graph.graph.initializer:
        place = known.get(np.ascontiguousarray(onnx.numpy_helper.to_array(initializer)).tobytes())
        if place is not None:
            found.append((initializer, place))
    missing = sorted(set(weights) - {name for _, (name, _) in found})
    if missing:
        problem = f"The exporter of torch {torch.__version__} has folded the weight '{missing[0]}' into others."
        raise KitError(problem, "Keep to --engine torch, and report it with the versions of torch and onnxscript.")
    return found
