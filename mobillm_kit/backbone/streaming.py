"""A backbone that is never in memory: each block is read from its file, used, and overwritten by the next but one.

    in memory      2 blocks (one works, one is being read), what stands around the blocks without the embedding,
                   one hidden state per batch of the window
    batch by batch       for batch: for block: h <- block(h)          every block is read once per batch
    block by block       for block: for batch: h <- block(h)          every block is read once per window

    memory(window) = runtime + 2 block + around + working + window · (B T d + mask)       see :class:`StreamingNeed`

The taps are those of the whole model, bit for bit: the same modules run on the same values.  The embedding and the
language-model head stay in their file; only the rows that a batch or a label word asks for are read.  Gradients reach
what a method puts beside the weights, where each block is a checkpoint: it is read again in the backward pass.

Knows: backbones and files.  Knows nothing of: tasks, methods, the link.
Taught in: notebooks/06_side_network.ipynb
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mobillm_kit.backbone.buffers import BufferedBlocks, Place, RowsOnDisk
from mobillm_kit.backbone.gguf_file import GgufTensors
from mobillm_kit.backbone.lowbit import CODES, CODES_KEY, WRITE_AGAIN, CodedMatrix, LowBit, attach_codes, read_low_bit
from mobillm_kit.backbone.meta_model import checkpoint_names, fingerprint, meta_model
from mobillm_kit.backbone.pretrained import is_gguf, load_config, public_name, resolve, torch_dtype
from mobillm_kit.backbone.shards import Shards
from mobillm_kit.backbone.split import Backbone, BlockInputs
from mobillm_kit.common import MIB
from mobillm_kit.errors import BadInput, NotEnoughMemory

LEAN_RUNTIME_BYTES = 345 * MIB
"""Python, torch, transformers with one model family (imported as `benchmarks/lean.py` does), their work buffers."""

ALIGNMENT_BYTES = 64
"""Of every tensor in a buffer, as torch's own allocator aligns: kernels choose by it, and bits may hang on it."""


class Tokens(NamedTuple):
    """What of a batch the backbone reads."""

    input_ids: Tensor
    """(B, T) int64."""
    attention_mask: Tensor
    """(B, T), 1 at real tokens."""
    token_type_ids: Tensor | None = None


class Tap(NamedTuple):
    """One layer's activations of one batch, as they appear."""

    layer: int
    """1 .. L; 0 is the embedding."""
    batch: int
    """Index within the window."""
    activations: Tensor
    """(B, T, d); freed when the receiver lets go of it."""


@dataclass(frozen=True)
class StreamingNeed:
    """Memory of a streamed forward pass, from shapes alone, in bytes."""

    runtime_bytes: int
    weights_bytes: int
    """Two blocks, and what stands around the blocks."""
    working_bytes: int
    """Inside a block, at its widest."""
    batch_bytes: int
    """Of each batch in the window: its hidden state and mask."""

    def process_bytes(self, window: int = 1) -> int:
        """Of the whole process, with ``window`` batches under way."""
        return self.runtime_bytes + self.weights_bytes + self.working_bytes + window * self.batch_bytes

    def largest_window(self, memory_bytes: int) -> int:
        """The most batches that may go through a block before the next is read; refused where not one may."""
        needed = self.process_bytes(1)
        if needed > memory_bytes:
            raise NotEnoughMemory(
                f"One batch at a time needs {needed / MIB:,.0f} MiB and {memory_bytes / MIB:,.0f} MiB are allowed; "
                f"{(needed - memory_bytes) / MIB:,.0f} MiB are missing.",
                "Allow more memory, or choose smaller batches, shorter texts, or low-precision weights.",
            )
        return 1 + (memory_bytes - needed) // self.batch_bytes


class StreamedBackbone(Backbone):
    """A backbone whose blocks are read from their files; it runs forward as any other, its weights stay as they are.

    ``model`` has no values (``backbone/meta_model.py``); ``low_bit`` says what the files' codes are, if there are.
    """

    def __init__(
        self, model: nn.Module, shards: Shards, *, name: str = "", revision: str = "", low_bit: LowBit | None = None
    ) -> None:
        self._low_bit = low_bit
        self._names = checkpoint_names(model, shards, low_bit.shapes if low_bit else {})
        self._count = sum(parameter.numel() for parameter in model.parameters())
        super().__init__(model, name=name, revision=revision)
        self._shards = shards
        self._around = self._load_around()
        relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]
        for relu in relus:
            relu.inplace = True  # over what it reads, the widest state of a block, which nobody else reads
        self._in_place = bool(relus)
        places = [self._places(block) for block in self.blocks]
        self._owners = [
            {place.key: block.get_submodule(place.key.rpartition(".")[0]) for place in those}
            for block, those in zip(self.blocks, places, strict=True)
        ]
        self._streamed = BufferedBlocks(places, shards)

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    @property
    def n_parameters(self) -> int:
        """Of the whole model."""
        return self._count

    @cached_property
    def fingerprint(self) -> str:
        """As :attr:`Backbone.fingerprint`, read piece by piece: the same for the same weights."""
        return self._low_bit.fingerprint if self._low_bit else fingerprint(self._shards, self._names)

    def resident(self) -> list[Tensor]:
        """The weights that this process holds at the moment."""
        return [*super().resident(), *self._streamed.memory]

    def dense(self, index: int, held: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """As :meth:`Backbone.dense`, good until another block is asked for."""
        return super().dense(index, self._streamed.tensors(index))

    def block(self, index: int, hidden: Tensor, inputs: BlockInputs) -> Tensor:
        """h_i from h_{i-1}: (B, T, d) to (B, T, d); reads the block where it is not there yet."""
        block, owners = self.blocks[index], self._owners[index]
        now = {module: f"{path}." if path else "" for path, module in block.named_modules()}  # LoRA wraps some of them
        read = self._streamed.tensors(index).items()
        tensors = {now[owners[key]] + key.rpartition(".")[2]: tensor for key, tensor in read}
        return self.state(index, functional_call(block, tensors, (hidden, *inputs.args), inputs.kwargs))

    def block_major(self, window: Sequence[Tokens], layers: Sequence[int]) -> Iterator[Tap]:
        """Take a window of batches through block 1, then block 2, …: every block is read once per window.

        The batches' hidden states are in memory together; taps come layer by layer, within a layer batch by batch.
        """
        self.check_layers(layers)
        begun = [self.begin(*tokens) for tokens in window]
        states, handed = [state for state, _ in begun], [inputs for _, inputs in begun]
        del begun
        for layer in range(max(layers, default=0) + 1):
            for number in range(len(states)):
                if layer:
                    states[number] = self.block(layer - 1, states[number], handed[number][layer - 1])
                if layer in layers:
                    yield Tap(layer, number, states[number])

    def need(self, batch_size: int, length: int) -> StreamingNeed:
        """Memory of a forward pass of batches (B, T), from shapes alone."""
        tokens, size = batch_size * length, self.dtype.itemsize
        matrices = [tensor.shape for tensor in self.blocks[0].parameters() if tensor.dim() > 1]
        widest = max(max(shape) for shape in matrices)
        decoded = max(shape.numel() for shape in matrices) * size if self._low_bit else 0
        inside = 3 * self.width + (1 if self._in_place else 2) * widest
        mask = tokens * length
        return StreamingNeed(
            runtime_bytes=LEAN_RUNTIME_BYTES,
            weights_bytes=self._streamed.memory_bytes + sum(tensor.nbytes for tensor in self._around),
            working_bytes=(tokens * inside + mask) * size + decoded,
            batch_bytes=tokens * size * self.width + mask,
        )

    def release(self) -> None:
        """Let go of the buffers and close the files; both come back when they are needed."""
        self._streamed.release()
        self._shards.close()

    def _load_around(self) -> list[Tensor]:
        """Read what stands around the blocks; embeddings and the language-model head stay in their files."""
        inside = {id(module) for module in self.blocks.modules()}
        loaded: dict[int, nn.Parameter] = {}
        for key, tensor in self.model.state_dict(keep_vars=True).items():
            path, _, attribute = key.rpartition(".")
            owner = self.model.get_submodule(path)
            if id(owner) in inside:
                continue
            by_rows = owner is self.lm_head or (isinstance(owner, nn.Embedding) and path not in self.family.whole)
            if attribute in owner._buffers:
                owner._buffers[attribute] = self._shards.read(self._names[key], tensor.dtype)
            elif by_rows and attribute == "weight":
                del owner._parameters[attribute]
                setattr(owner, attribute, RowsOnDisk(self._shards, self._names[key], self.dtype))
            else:
                if id(tensor) not in loaded:  # tied
                    read = self._shards.read(self._names[key], tensor.dtype)
                    loaded[id(tensor)] = nn.Parameter(read, requires_grad=False)
                owner._parameters[attribute] = loaded[id(tensor)]
        return [*loaded.values(), *(buffer for buffer in self.model.buffers() if not buffer.is_meta)]

    def _places(self, block: nn.Module) -> list[Place]:
        """Every tensor of a block, one behind the other in a buffer."""
        prefix = next(path for path, module in self.model.named_modules() if module is block)
        places: list[Place] = []
        offset = 0
        for key, tensor in block.state_dict(keep_vars=True).items():
            name, shape, dtype = self._names[f"{prefix}.{key}"], tensor.shape, tensor.dtype
            if self._low_bit and name in self._low_bit.shapes:
                kind, there = self._low_bit.kind, self._shards.entries.get(name + CODES)
                matrix = CodedMatrix(kind, tuple(shape), group=self._low_bit.group, dtype=self.dtype)
                if there is None or there.n_bytes != matrix.n_bytes:
                    has = f"'{name}{CODES}' has {there.n_bytes if there else 0} bytes"
                    problem = f"{self._shards.folder}: {has}, {kind} codes of {matrix.shape} have {matrix.n_bytes}."
                    raise BadInput(problem, WRITE_AGAIN)
                shape, dtype = torch.Size([matrix.n_bytes]), torch.uint8
                attach_codes(block, key, matrix, torch.empty(shape, dtype=dtype, device="meta"))
                name, key = name + CODES, key + CODES_KEY
            places.append(Place(name, key, shape, dtype, offset))
            offset = -(-places[-1].end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return places


def stream_backbone(
    name: str | Path, *, revision: str | None = None, dtype: str = "float32", masked: bool = False
) -> StreamedBackbone:
    """Open a backbone whose blocks are read when they are needed.

    Args:
        name: ``"pocket"``, a folder with safetensors, or a GGUF file; ``revision`` is for the record.
        masked: as :func:`mobillm_kit.backbone.pretrained.load_backbone` has it.
    """
    source = resolve(name)
    if not Path(source).exists():
        problem = f"{name}: only a folder can be streamed."
        raise BadInput(problem, "Download the model first: huggingface-cli download NAME.")
    model = meta_model(load_config(source), torch_dtype(dtype), masked)
    files = GgufTensors(source, model) if is_gguf(source) else Shards(source)
    known = {"name": public_name(name), "revision": revision or ""}
    return StreamedBackbone(model, files, **known, low_bit=read_low_bit(source))
