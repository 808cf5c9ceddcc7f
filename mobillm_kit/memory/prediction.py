"""Predicted memory: one training step on tensors that have a shape and no values.

    predicted peak  = the most that is alive in one training step (mobillm_kit/memory/live_tensors.py)
    process         = predicted peak + what Python, torch and transformers take (RUNTIME_BYTES)

The step is the method's own code.  Its tensors are torch's fake ones: shape, type and device are real, storage is
not, so OPT-6.7B needs no gigabyte and no second of arithmetic, and each operation still takes the path that it takes on
real tensors.  Numbers that code asks for (a loss, a step counter) are answered with 1: memory does not depend on them.

Knows: methods, tensors, storages.  Knows nothing of: processes, machines, what fits where.
Taught in: notebooks/01_where_memory_goes.ipynb
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig

from mobillm_kit.backbone.pretrained import from_config, torch_dtype
from mobillm_kit.backbone.split import Backbone
from mobillm_kit.common import quiet
from mobillm_kit.errors import BadInput
from mobillm_kit.memory.live_tensors import Alive, LiveTensors, NotesSaved
from mobillm_kit.methods import check_options, load_method
from mobillm_kit.methods.mobillm import MobiLLM
from mobillm_kit.methods.task_model import TaskModel, task_model
from mobillm_kit.record import CountedMemory
from mobillm_kit.texts.encode import Batch
from mobillm_kit.training.method import Method

WORK_BYTES = 22 * 2**20
"""What the libraries take in a first step beside tensors: work buffers, and code that is touched for the first time.

Measured, Linux, torch for CPUs (benchmarks/memory_prediction.py): 16 to 32 MiB, by method and processor.
"""

RUNTIME_BYTES = 378 * 2**20 + WORK_BYTES
"""Resident without any model: Python, torch, transformers, PEFT and this package, and :data:`WORK_BYTES`.

Measured as above. Packages that PEFT loads where they are installed come on top (torchao and bitsandbytes: 47 MiB).
"""

_LR = 1e-3
_Ledgers: TypeAlias = Callable[[], tuple[CountedMemory, ...]]


@dataclass(frozen=True)
class MemoryNeed:
    """What one party's part of a training step needs."""

    party: Literal["device", "server"]
    at_peak: Alive
    """What is alive when most is; these add up to the peak."""
    count: Callable[[], CountedMemory] = field(compare=False, repr=False)

    @cached_property
    def counted(self) -> CountedMemory:
        """The ledger, each category at its own highest; counted when asked for, as it takes a step of its own."""
        return self.count()

    @property
    def peak_bytes(self) -> int:
        """Tensors alive at the worst moment of a step."""
        return self.at_peak.total

    @property
    def process_bytes(self) -> int:
        """Predicted resident memory of the whole process at its peak."""
        return self.peak_bytes + RUNTIME_BYTES


def predict(
    config: PreTrainedConfig,
    method: str,
    *,
    batch_size: int,
    length: int,
    dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
    masked: bool = False,
) -> tuple[MemoryNeed, ...]:
    """Memory of one training step, from shapes alone: the device's need, and the server's where there is one.

    Args:
        config: the architecture, as :func:`mobillm_kit.backbone.pretrained.architecture` gives it.
        method: a name from ``mobillm methods``.
        batch_size: B.
        length: T, tokens of the longest text.
        masked: an encoder answers in label words, with its masked-language head.

    Raises:
        BadInput: a batch, a length, a dtype or an option that cannot be; a text longer than the model's context.
        UnknownName: no such method.
    """
    config, options = deepcopy(config), dict(options or {})  # the ledger may be asked for after they have changed
    with quiet():
        check_options(method, options)
        build = load_method(method)
    counted = cache(partial(_count, build, config, options, batch_size, length, dtype, masked))
    with shapes_only():
        model, batch = shape_model(config, dtype=dtype, masked=masked), shape_batch(batch_size, length)
        if length > (context := model.backbone.context):
            raise BadInput(f"{length} tokens are more than this model reads.", f"Its context is {context} tokens.")
        with LiveTensors() as built:
            trained = build(model, seed=0, **options)
        if isinstance(trained, MobiLLM):
            return _device_and_server(trained, model, batch, counted, built)
        weights, kept = _weights(model, trained, built.alive()), built.alive()
        step = partial(trained.step, batch, _LR)
        at_peak = _peak(step, weights=weights, kept=kept, trained=weights, batch=_tensors(batch))
        return (MemoryNeed("device", at_peak, lambda: counted()[0]),)


def _count(
    build: Callable[..., Method],
    config: PreTrainedConfig,
    options: Mapping[str, Any],
    batch_size: int,
    length: int,
    dtype: str,
    masked: bool,
) -> tuple[CountedMemory, ...]:
    with shapes_only():
        method = build(shape_model(config, dtype=dtype, masked=masked), seed=0, **options)
        return method.count_memory(shape_batch(batch_size, length))


def _device_and_server(
    method: MobiLLM, model: TaskModel, batch: Batch, counted: _Ledgers, built: LiveTensors
) -> tuple[MemoryNeed, ...]:
    """Two processes: the device runs forward and uploads, the server has the upload and no backbone."""
    with LiveTensors() as device:
        device.add([*model.backbone.parameters(), *model.backbone.buffers()], "weights")
        device.add(_tensors(batch), "transient")
        sent = method.device.upload(batch)
    server = method.server
    messages = [*sent.activations, sent.mask, sent.positions, sent.labels]
    weights = [*server.model.parameters(), *server.model.buffers(), *server.stepped.values()]
    elsewhere = {tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())}
    kept = [storage for storage in built.alive() if storage not in elsewhere]
    trained = list(server.stepped.values())
    at_peak = _peak(lambda: server.train(sent, _LR), weights=weights, kept=kept, trained=trained, messages=messages)
    alive = device.peak
    taps = min(sent.n_bytes, alive.transient)  # all there at the end of the forward: that much is message
    alive = replace(alive, messages=taps, transient=alive.transient - taps)
    return MemoryNeed("device", alive, lambda: counted()[0]), MemoryNeed("server", at_peak, lambda: counted()[1])


def _peak(
    step: Callable[[], object],
    *,
    weights: Iterable[Tensor],
    kept: Iterable[UntypedStorage],
    trained: Iterable[Tensor],
    messages: Iterable[Tensor] = (),
    batch: Iterable[Tensor] = (),
) -> Alive:
    """Most bytes alive in one step. Of what building the method has ``kept``, all but weights is optimizer state."""
    with ExitStack() as stack:
        live = stack.enter_context(LiveTensors())
        live.add(weights, "weights")
        live.add(messages, "messages")
        live.add(kept, "optimizer")
        live.add(batch, "transient")
        stack.enter_context(NotesSaved(live))
        for parameter in trained:
            if parameter.requires_grad and parameter.is_leaf:
                hook = parameter.register_post_accumulate_grad_hook(lambda p: live.mark(p.grad, "gradients"))
                stack.callback(hook.remove)
        step()
    return live.peak


def _weights(model: TaskModel, method: Method, kept: Iterable[UntypedStorage]) -> list[Tensor]:
    """Of the model with what the method has put into it, and of what it trains beside the model (the probe)."""
    inside = [*model.parameters(), *model.buffers()]
    known, kept = {tensor.untyped_storage() for tensor in inside}, set(kept)
    # what a method computes only to show it (P-RGE's master weights) is not kept
    beside = [tensor for tensor in method.trained().values() if tensor.untyped_storage() in kept - known]
    return inside + beside


def _tensors(batch: Batch) -> list[Tensor]:
    return [tensor for tensor in vars(batch).values() if tensor is not None]


@contextmanager
def shapes_only() -> Iterator[None]:
    """While it holds, new tensors have a shape and a device and no values; real tensors may not be mixed in."""
    mode = FakeTensorMode()
    # torch's memo holds a weak reference to every parameter, and Module.to refuses to swap what has one
    mode.fake_tensor_converter.set_tensor_memo = lambda t, v: None  # type: ignore[method-assign]
    with mode, _Copies():
        yield


class _Copies(TorchFunctionMode):
    """copy.deepcopy of a tensor without values: torch's own would copy the fake mode with it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.__deepcopy__ or not isinstance(args[0], FakeTensor):
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            copied = tensor.detach().clone().requires_grad_(tensor.requires_grad)
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied
        return memo[id(tensor)]


def shape_model(config: PreTrainedConfig, *, dtype: str = "float32", masked: bool = False) -> TaskModel:
    """A task model of that architecture with two labels; call it under :func:`shapes_only`, or it takes real memory."""
    with quiet():
        model = from_config(config, torch_dtype(dtype), masked)
    backbone = Backbone(model, name=config.model_type)
    backbone.fingerprint = "shapes only"  # there are no bytes to take one over
    return task_model(backbone, word_ids=range(2))


def shape_batch(rows: int, length: int) -> Batch:
    """(B, T) texts, the first of them a token shorter, so that the mask is one that a model cannot leave out."""
    for name, value in (("batch size", rows), ("length", length)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadInput(f"The {name} is {value}; it must be a whole number from 1 up.")
    ids = torch.zeros(rows, length, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[0, length - 1 :] = 0 if length > 1 else 1
    labels = torch.zeros(rows, dtype=torch.int64)
    return Batch(ids, mask, labels, torch.zeros_like(labels))
