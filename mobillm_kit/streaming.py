"""A backbone that is never in memory: each block is read from its file, used, and overwritten by the next but one.

    in memory      2 blocks (one works, one is being read), what stands around the blocks without the embedding,
                   one hidden state per batch of the window
    batch by batch       for batch: for block: h <- block(h)          every block is read once per batch
    block by block       for block: for batch: h <- block(h)          every block is read once per window

    memory(window) = runtime + 2 block + around + working + window · (B T d + mask)       see :class:`StreamingNeed`

The taps are those of the whole model, bit for bit: the same modules run on the same values.  The embedding and the
language-model head stay in their file; only the rows that a batch or a label word asks for are read.

Knows: backbones and files.  Knows nothing of: tasks, methods, the link.

Taught in: notebooks/06_side_network.ipynb
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig

from mobillm_kit.backbone import Backbone, BlockInputs
from mobillm_kit.common import MIB
from mobillm_kit.errors import BadInput, KitError, NotEnoughMemory
from mobillm_kit.lowbit import CODES, CodedMatrix, LowBit, attach, read_low_bit
from mobillm_kit.pretrained import from_pretrained, public_name, resolve, torch_dtype
from mobillm_kit.shards import Shards
from mobillm_kit.skeleton import checkpoint_names, fingerprint, skeleton

LEAN_RUNTIME_BYTES = 345 * MIB
"""Python, torch, transformers with one model family (imported as `benchmarks/lean.py` does), their work buffers."""

ALIGNMENT_BYTES = 64
"""Of every tensor in a buffer, as torch's own allocator aligns: kernels choose by it, and bits may hang on it."""

READ_LIMIT_S = 600.0
"""One block must be read within this time."""


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
        """The most batches that may go through a block before the next is read.

        Raises:
            NotEnoughMemory: not even one fits; says how much is missing.
        """
        need_memory(self.process_bytes(1), memory_bytes, "One batch at a time")
        return 1 + (memory_bytes - self.process_bytes(1)) // self.batch_bytes

    def check_window(self, window: int, memory_bytes: int) -> None:
        """Refuse a window that does not fit.

        Raises:
            BadInput: window below 1.
            NotEnoughMemory: says how much is missing, and which window fits.
        """
        if window < 1:
            raise BadInput(f"A window of {window} batches.", "Give 1 or more.")
        if self.process_bytes(window) > memory_bytes:
            fits = self.largest_window(memory_bytes)
            need_memory(self.process_bytes(window), memory_bytes, f"A window of {window} batches", f"{fits} fit.")


def need_memory(needed_bytes: int, allowed_bytes: int, what: str, remedy: str = "") -> None:
    """Refuse what needs more than is allowed.

    Raises:
        NotEnoughMemory: says how many MiB are missing.
    """
    if needed_bytes > allowed_bytes:
        raise NotEnoughMemory(
            f"{what} needs {needed_bytes / MIB:,.0f} MiB and {allowed_bytes / MIB:,.0f} MiB are allowed; "
            f"{(needed_bytes - allowed_bytes) / MIB:,.0f} MiB are missing.",
            remedy or "Allow more memory, or choose smaller batches, shorter texts, or low-precision weights.",
        )


# ---------------------------------------------------------------------- rows of a matrix that stays in its file


class RowsOnDisk:
    """Stands where a module has its embedding matrix (V, d) and reads the rows that are asked for.

    Args:
        shards: the files.
        name: the matrix's name in them.
        dtype: of the rows.
    """

    requires_grad = False
    device = torch.device("cpu")

    def __init__(self, shards: Shards, name: str, dtype: torch.dtype) -> None:
        self._shards = shards
        self._name = name
        self.dtype = dtype
        self.shape = torch.Size(shards.entries[name].shape)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """(…) indices to (…, d)."""
        return self._shards.read_rows(self._name, rows, self.dtype)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Tensor:
        """``F.embedding(rows, self)``, however a model's own embedding module calls it, and nothing else."""
        if function is not F.embedding:
            raise BadInput(
                f"'{function.__name__}' needs the whole embedding, which a streamed backbone leaves in its file.",
                "Use the whole model: load_backbone.",
            )
        matrix = args[1] if len(args) > 1 else (kwargs or {})["weight"]
        return matrix[args[0] if args else (kwargs or {})["input"]]


# ---------------------------------------------------------------------- blocks that come and go


def _activate_in_place(model: nn.Module) -> bool:
    """Let ReLU write over what it reads, the widest state of a block; whether the model has one.

    Nobody else reads that state, and nothing here is trained.
    """
    found = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    for module in found:
        module.inplace = True
    return bool(found)


@dataclass(frozen=True, eq=False)
class _Place:
    """Where one tensor of a block lies in the buffer, and who uses it."""

    name: str
    """In the files."""
    shape: torch.Size
    dtype: torch.dtype
    offset: int
    put: Callable[[Tensor], None]
    """Hands the tensor to its module."""

    @property
    def end(self) -> int:
        return self.offset + self.shape.numel() * self.dtype.itemsize

    def view(self, memory: Tensor) -> Tensor:
        return memory[self.offset : self.end].view(self.dtype).view(self.shape)


def _put_parameter(owner: nn.Module, attribute: str, tensor: Tensor) -> None:
    owner._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)


def _put_buffer(owner: nn.Module, attribute: str, tensor: Tensor) -> None:
    owner._buffers[attribute] = tensor


def _put_codes(matrix: CodedMatrix, tensor: Tensor) -> None:
    matrix.codes = tensor


class _Blocks:
    """Blocks in two buffers: one works while the other is filled.

    Args:
        places: of each block's tensors.
        shards: the files.
        ahead: read the next block while one works; False keeps one buffer.
    """

    def __init__(self, places: Sequence[Sequence[_Place]], shards: Shards, *, ahead: bool) -> None:
        self._places = places
        self._shards = shards
        self._ahead = ahead
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="block-reader") if ahead else None
        self._reading: tuple[int, Future[None]] | None = None
        self._memory: list[Tensor] = []
        self._turn = 0
        self._bound: int | None = None

    @property
    def buffer_bytes(self) -> int:
        """Of one buffer: the largest block."""
        return max(place.end for places in self._places for place in places)

    @property
    def memory(self) -> list[Tensor]:
        """The buffers, as far as they are made."""
        return self._memory

    def bind(self, index: int) -> None:
        """Fill block ``index`` with its weights; the one before loses them."""
        if index == self._bound:
            return
        self._unbind()
        self._settle(index)
        for place in self._places[index]:
            place.put(place.view(self._memory[self._turn]))
        self._bound = index
        if self._reader:
            following = (index + 1) % len(self._places)
            self._reading = following, self._reader.submit(self._read, following, 1 - self._turn)

    def release(self) -> None:
        """Let go of every weight; they are read again when they are needed."""
        self._unbind()
        if self._reading:
            self._wait(self._reading[1])
            self._reading = None
        self._memory.clear()

    def _settle(self, index: int) -> None:
        """Have block ``index`` in the buffer whose turn it is."""
        if not self._memory:
            self._memory += [torch.empty(self.buffer_bytes, dtype=torch.uint8) for _ in range(1 + self._ahead)]
        reading, self._reading = self._reading, None
        if reading:
            self._wait(reading[1])
            self._turn = 1 - self._turn
        if not reading or reading[0] != index:
            self._read(index, self._turn)

    def _read(self, index: int, turn: int) -> None:
        for place in self._places[index]:
            self._shards.read_into(place.name, place.view(self._memory[turn]))

    def _wait(self, reading: Future[None]) -> None:
        try:
            reading.result(READ_LIMIT_S)
        except FutureTimeoutError:
            raise KitError(
                f"{self._shards.folder}: a block was not read within {READ_LIMIT_S:g} s.",
                "Copy the model to a faster disk.",
            ) from None

    def _unbind(self) -> None:
        if self._bound is None:
            return
        for place in self._places[self._bound]:
            place.put(torch.empty(place.shape, dtype=place.dtype, device="meta"))
        self._bound = None


class StreamedBackbone(Backbone):
    """A backbone whose blocks are read from their files, one ahead of the one that works.

    Everything that only runs forward works with it as with a :class:`Backbone`; nothing of it can be trained.

    Args:
        model: without values, as :func:`mobillm_kit.skeleton.skeleton` gives it.
        shards: the model's files.
        dtype: in which it works.
        name, revision: as for :class:`Backbone`.
        read_ahead: read the next block while one works; False halves the weights in memory and waits for the disk.
        low_bit: what the files' codes are, where the blocks' matrices are codes.

    Raises:
        BadInput: the files are not this model's; names the first weight.
    """

    def __init__(
        self,
        model: nn.Module,
        shards: Shards,
        *,
        dtype: torch.dtype,
        name: str = "",
        revision: str = "",
        read_ahead: bool = True,
        low_bit: LowBit | None = None,
    ) -> None:
        self._low_bit = low_bit
        self._names = checkpoint_names(model, shards, low_bit.shapes if low_bit else {})
        self._count = sum(parameter.numel() for parameter in model.parameters())
        super().__init__(model, name=name, revision=revision)
        self._shards = shards
        self._dtype = dtype
        self._reads_ahead = read_ahead
        self._around = self._load_around()
        self._in_place = _activate_in_place(model)
        self._streamed = _Blocks([self._places(block) for block in self.blocks], shards, ahead=read_ahead)

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def n_parameters(self) -> int:
        return self._count

    @cached_property
    def fingerprint(self) -> str:
        """As :attr:`Backbone.fingerprint`, read piece by piece: the same for the same weights."""
        if self._low_bit:
            return self._low_bit.fingerprint
        return fingerprint(self._shards, self._names)

    def resident(self) -> list[Tensor]:
        """The weights that this process holds at the moment."""
        return [*self._around, *self._streamed.memory]

    def block(self, index: int, hidden: Tensor, inputs: BlockInputs) -> Tensor:
        """h_i from h_{i-1}: (B, T, d) to (B, T, d); reads the block where it is not there yet."""
        self._streamed.bind(index)
        return super().block(index, hidden, inputs)

    def block_major(self, window: Sequence[Tokens], layers: Sequence[int]) -> Iterator[Tap]:
        """Take a window of batches through block 1, then block 2, …: every block is read once per window.

        Args:
            window: the batches; their hidden states are in memory together.
            layers: which are wanted, 0 .. L.

        Yields:
            The taps as they appear, layer by layer and within a layer batch by batch.

        Raises:
            BadInput: a layer that does not exist.
        """
        wanted = self._wanted(layers)
        begun = [self.begin(*tokens) for tokens in window]
        states = [state for state, _ in begun]
        handed = [inputs for _, inputs in begun]
        del begun
        for layer in range(max(wanted, default=0) + 1):
            for number in range(len(states)):
                if layer:
                    states[number] = self.block(layer - 1, states[number], handed[number][layer - 1])
                if layer in wanted:
                    yield Tap(layer, number, states[number])

    def need(self, batch_size: int, length: int) -> StreamingNeed:
        """Memory of a forward pass of batches (B, T), from shapes alone."""
        tokens, size = batch_size * length, self._dtype.itemsize
        matrices = [tensor.shape for tensor in self.blocks[0].parameters() if tensor.dim() > 1]
        widest = max(max(shape) for shape in matrices)
        decoded = max(shape.numel() for shape in matrices) * size if self._low_bit else 0
        mask = batch_size * length * length
        return StreamingNeed(
            runtime_bytes=LEAN_RUNTIME_BYTES,
            weights_bytes=(1 + self._reads_ahead) * self._streamed.buffer_bytes
            + sum(tensor.nbytes for tensor in self._around),
            working_bytes=tokens * size * (3 * self.width + (1 if self._in_place else 2) * widest)
            + mask * size
            + decoded,
            batch_bytes=tokens * size * self.width + mask,
        )

    def release(self) -> None:
        """Let go of the buffers and close the files; both come back when they are needed."""
        self._streamed.release()
        self._shards.close()

    # ------------------------------------------------------------------ inside

    def _wanted(self, layers: Sequence[int]) -> set[int]:
        missing = sorted(layer for layer in layers if not 0 <= layer <= self.n_layers)
        if missing:
            raise BadInput(f"Layer {missing[0]} does not exist: '{self.name}' has layers 0 to {self.n_layers}.")
        return set(layers)

    def _load_around(self) -> list[Tensor]:
        """Read what stands around the blocks; embeddings and the language-model head stay in their files."""
        inside = {id(module) for module in self.blocks.modules()}
        loaded: dict[int, nn.Parameter] = {}
        for path, module in self.model.named_modules():
            if id(module) in inside:
                continue
            for attribute in module._buffers:
                name = self._names.get(f"{path}.{attribute}" if path else attribute)
                if name is not None:  # stored, not computed
                    module._buffers[attribute] = self._shards.read(name, module._buffers[attribute].dtype)
            for attribute, parameter in list(module._parameters.items()):
                if parameter is None:
                    continue
                name = self._names[f"{path}.{attribute}" if path else attribute]
                if attribute == "weight" and (isinstance(module, nn.Embedding) or module is self.lm_head):
                    del module._parameters[attribute]
                    setattr(module, attribute, RowsOnDisk(self._shards, name, self._dtype))
                    continue
                if id(parameter) not in loaded:
                    loaded[id(parameter)] = nn.Parameter(self._shards.read(name, parameter.dtype), requires_grad=False)
                module._parameters[attribute] = loaded[id(parameter)]
        return [*loaded.values(), *(buffer for buffer in self.model.buffers() if not buffer.is_meta)]

    def _places(self, block: nn.Module) -> list[_Place]:
        """Every tensor of a block, one behind the other in a buffer."""
        prefix = next(path for path, module in self.model.named_modules() if module is block)
        places: list[_Place] = []
        offset = 0
        for key, tensor in block.state_dict(keep_vars=True).items():
            path, _, attribute = key.rpartition(".")
            place = self._place(self._names[f"{prefix}.{key}"], block.get_submodule(path), attribute, tensor, offset)
            places.append(place)
            offset = -(-place.end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return places

    def _place(self, name: str, owner: nn.Module, attribute: str, tensor: Tensor, offset: int) -> _Place:
        if self._low_bit and name in self._low_bit.shapes:
            matrix = CodedMatrix(self._low_bit.kind, tuple(tensor.shape), group=self._low_bit.group, dtype=self._dtype)
            attach(owner, attribute, matrix)
            self._check_codes(name, matrix)
            return _Place(name + CODES, torch.Size([matrix.n_bytes]), torch.uint8, offset, partial(_put_codes, matrix))
        put = _put_buffer if attribute in owner._buffers else _put_parameter
        return _Place(name, tensor.shape, tensor.dtype, offset, partial(put, owner, attribute))

    def _check_codes(self, name: str, matrix: CodedMatrix) -> None:
        entry = self._shards.entries.get(name + CODES)
        if entry is None or entry.n_bytes != matrix.n_bytes:
            raise BadInput(
                f"{self._shards.folder}: '{name}{CODES}' has {entry.n_bytes if entry else 0} bytes, "
                f"{self._low_bit.kind} codes of {tuple(matrix.shape)} have {matrix.n_bytes}.",
                "Write the folder again with quantize_backbone.",
            )


def stream_backbone(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    memory_bytes: int | None = None,
    read_ahead: bool = True,
) -> StreamedBackbone:
    """Open a backbone whose blocks are read when they are needed.

    Args:
        name: ``"pocket"``, or a folder with safetensors.
        revision: for the record.
        dtype: in which it works, whatever the files hold.
        memory_bytes: what the whole process may take; a model whose blocks do not fit is refused before anything is
            read.  None asks nothing.
        read_ahead: as for :class:`StreamedBackbone`.

    Raises:
        BadInput: no such folder, or files that are damaged, missing or another model's.
        NotEnoughMemory: not even one token's forward pass fits into ``memory_bytes``.
    """
    source = resolve(name)
    if not Path(source).is_dir():
        raise BadInput(
            f"{name}: only a folder can be streamed.", "Download the model first: huggingface-cli download NAME."
        )
    shards = Shards(source)
    config = from_pretrained(AutoConfig, source)
    backbone = StreamedBackbone(
        skeleton(config, torch_dtype(dtype)),
        shards,
        dtype=torch_dtype(dtype),
        name=public_name(name),
        revision=revision or "",
        read_ahead=read_ahead,
        low_bit=read_low_bit(source),
    )
    if memory_bytes is not None:
        need_memory(backbone.need(1, 1).process_bytes(), memory_bytes, f"'{backbone.name}', two blocks at a time,")
    return backbone
