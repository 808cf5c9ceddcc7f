"""The label words' head as plain numbers, so that a server can rebuild it without the backbone; and the way back.

    decoders:  logits_c = softcap( W_c · P(norm(h)) + b_c )        W: the C rows of the label words
    masked:    logits_c = W_c · norm(gelu(P(h))) + b_c             P has a bias

Every family's final norm is one of six forms; which one is found by trying them on random states: the form whose
output is equal to the last bit.

    none             h
    layer            (h - mean) / sqrt(var + eps) · w + b
    rms              h / sqrt(mean(h^2) + eps) · w              normalised in float32, then back, then times w
    rms-wide         h / sqrt(mean(h^2) + eps) · w              all in float32, then back (OLMo 2)
    rms-plus-one     h / sqrt(mean(h^2) + eps) · (1 + w)        all in float32, then back (Gemma)
    layer-wide       (h - mean) / sqrt(var + eps) · w           all in float32, then back (Cohere)

Knows: heads and tensors.  Knows nothing of: backbones, sockets, training.
Taught in: notebooks/08_device_and_server.ipynb
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
import torch
from msgspec import Meta
from safetensors.torch import load
from torch import Tensor, nn

from mobillm_kit.errors import BadInput, ServerRefused, few
from mobillm_kit.side.description import HeadSpec, NormForm
from mobillm_kit.side.heads import LabelWordHead, MaskedWordHead, frozen_linear

NORMS: tuple[NormForm, ...] = ("layer", "rms", "rms-wide", "rms-plus-one", "layer-wide")


class Float32Norm(nn.Module):
    """The forms above that normalise in float32; weight w, (d,)."""

    def __init__(self, weight: Tensor, eps: float, form: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps = eps
        self.form = form

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, d) to (…, d)."""
        wide = hidden.float()
        if self.form == "layer-wide":
            wide = wide - wide.mean(-1, keepdim=True)
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.form == "rms":
            return self.weight * normed.to(hidden.dtype)
        weight = self.weight.float() + (1.0 if self.form == "rms-plus-one" else 0.0)
        return (normed * weight).to(hidden.dtype)


def describe_head(head: LabelWordHead) -> tuple[HeadSpec, dict[str, Tensor]]:
    """A head as numbers and tensors; a final norm of another form is refused."""
    rows = head.server_copy()
    tensors = {name.replace("lm_head", "words"): tensor.contiguous() for name, tensor in rows.state_dict().items()}
    norm, eps = _form_of(rows.norm, tensors)
    projected = "project_out.weight" in tensors
    spec = HeadSpec(
        norm=norm, eps=eps, project_out=projected, bias="words.bias" in tensors, softcap=head.softcap or None,
        width=tensors["project_out.weight" if projected else "words.weight"].shape[1],
        rows=head.n_labels, masked=isinstance(head, MaskedWordHead),
    )  # fmt: skip
    return spec, tensors


def build_head(spec: HeadSpec, tensors: Mapping[str, Tensor]) -> LabelWordHead:
    """The head again; equal to the one described, to the bit."""
    misfit = _misfit(tensors, _shapes(spec, tensors))
    if misfit:
        raise BadInput(f"The head that came is not the one described: {misfit}.")
    words = frozen_linear(tensors["words.weight"], tensors.get("words.bias"))
    matrix = tensors.get("project_out.weight")
    project_out = None if matrix is None else frozen_linear(matrix, tensors.get("project_out.bias"))
    norm = None if spec.norm == "none" else _norm(spec.norm, spec.eps, tensors)
    return (MaskedWordHead if spec.masked else LabelWordHead)(norm, project_out, words, range(spec.rows), spec.softcap)


def checked_result(data: bytes, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The side network that came back, safe to put into place."""
    try:
        return tensors_like(data, expected)
    except BadInput as error:
        remedy = "Keep the last checkpoint and look at the server."
        raise ServerRefused(f"The side network that came back is not ours: {error.problem}", remedy) from error


def tensors_like(data: bytes, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A peer's side network, refused where its names, shapes or types are not the expected ones."""
    tensors = read_tensors(data)
    misfit = _misfit(tensors, {name: tuple(tensor.shape) for name, tensor in expected.items()})
    for name, tensor in {} if misfit else tensors.items():
        if tensor.dtype != expected[name].dtype:
            misfit = f"'{name}' came as {tensor.dtype}; it must be {expected[name].dtype}"
    if misfit:
        raise BadInput(f"{misfit}.", "Send what the plan describes.")
    return tensors


class _Described(msgspec.Struct, forbid_unknown_fields=True):
    dtype: Literal["F64", "F32", "F16", "BF16"]
    shape: Annotated[list[Annotated[int, Meta(ge=0, le=2**31)]], Meta(max_length=4)]
    data_offsets: tuple[int, int]


def read_tensors(data: bytes | memoryview) -> dict[str, Tensor]:
    """Tensors from a peer's safetensors; every number of the header is checked before the library sees it."""
    raw = bytes(data)
    size = 8 + int.from_bytes(raw[:8], "little")
    try:
        header = msgspec.json.decode(raw[8:size], type=dict[str, msgspec.Raw])
        header.pop("__metadata__", None)
        described = [msgspec.json.decode(about, type=_Described) for about in header.values()]
    except ValueError as error:
        raise BadInput(f"What came is not safetensors ({error}).", "Send what safetensors writes.") from error
    expected = 0
    for about in sorted(described, key=lambda about: about.data_offsets):
        n_bytes = _BYTES[about.dtype] * math.prod(about.shape)
        if about.data_offsets != (expected, expected + n_bytes):
            raise BadInput(f"A tensor of shape {about.shape} does not fill its bytes.", "Write it with safetensors.")
        expected += n_bytes
    if len(raw) != size + expected:
        raise BadInput(f"{len(raw)} bytes came, the tensors take {size + expected}.", "Send them whole.")
    return load(raw)


_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def _misfit(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Why tensors are not those of these names and shapes, in finite numbers; empty where they are."""
    odd = sorted(set(tensors) ^ set(shapes))[:3]
    if odd:
        return f"it has other tensors ({', '.join(odd)}); they must be {few(sorted(shapes))}"
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            return f"'{name}' has shape {tuple(tensors[name].shape)}; it must have {shape}"
        if not tensors[name].is_floating_point() or not torch.isfinite(tensors[name]).all():
            return f"'{name}' holds values that are not finite numbers"
    return ""


def _shapes(spec: HeadSpec, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    words = tensors.get("words.weight")
    projected = spec.project_out or spec.masked
    inner = words.shape[1] if projected and words is not None and words.ndim == 2 else spec.width
    normed = (inner if spec.masked else spec.width,)
    described: dict[str, tuple[tuple[int, ...], bool]] = {
        "words.weight": ((spec.rows, inner), True),
        "words.bias": ((spec.rows,), spec.bias),
        "project_out.weight": ((inner, spec.width), projected),
        "project_out.bias": ((inner,), spec.masked),
        "norm.weight": (normed, spec.norm != "none"),
        "norm.bias": (normed, spec.norm == "layer"),
    }
    return {name: shape for name, (shape, there) in described.items() if there}


def _form_of(norm: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[NormForm, float]:
    if isinstance(norm, nn.Identity):
        return "none", 0.0
    eps = float(getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", None) or 0.0)
    weight = tensors.get("norm.weight")
    if weight is not None:
        probe = torch.randn(8, weight.shape[0], generator=torch.Generator().manual_seed(0)).to(weight)
        with torch.no_grad():
            expected = norm(probe)
            for form in NORMS:
                possible = ("norm.bias" in tensors) == (form == "layer")
                if possible and torch.equal(_norm(form, eps, tensors)(probe), expected):
                    return form, eps
    problem = f"The final norm {type(norm).__name__} has none of the known forms ({', '.join(NORMS)})."
    raise BadInput(problem, "Train in one process, or add the norm's form to side/portable_head.py.")


def _norm(form: str, eps: float, tensors: Mapping[str, Tensor]) -> nn.Module:
    weight = tensors["norm.weight"]
    if form != "layer":
        return Float32Norm(weight, eps, form)
    norm = nn.LayerNorm(weight.shape[0], eps=eps, device="meta").to_empty(device=weight.device).to(weight.dtype)
    norm.load_state_dict({"weight": weight, "bias": tensors["norm.bias"]})
    return norm.requires_grad_(False)
