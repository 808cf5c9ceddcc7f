"""OPT-125M's shapes on two cores: what overlaps, and what the wire and CURVE cost.  A part of `pipeline.py`.

A step's time beside its stages measured alone, each alone in the run because the device waits for every acknowledgement
("one at a time").  Ratios are of numbers taken in turns within one run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from benchmarks.two_cores import Cores, address_through, started_server
from mobillm_kit.link.rates import Link
from mobillm_kit.link.timeline import Timeline
from mobillm_kit.methods.mobillm import MobiLLM, build
from mobillm_kit.methods.task_model import TaskModel, task_model
from mobillm_kit.record import Provenance
from mobillm_kit.runs.prepare import prepare
from mobillm_kit.runs.provenance import provenance
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.server.process import ServerProcess
from mobillm_kit.texts.batches import Batches, FitSettings
from mobillm_kit.texts.encode import Encoded
from recipes.pocket.gate import Bar

LIMIT = 1.05
LATENCY_MS = 4.0
ALONE = 3
"""Steps that do not overlap, before and after the pace is taken."""
CURVE_CODECS = ("int8", "int4")


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """One situation: its stages alone, and what a step takes when they overlap.  Seconds, medians."""

    what: str
    stages_s: dict[str, float]
    step_s: float

    @property
    def slowest(self) -> tuple[str, float]:
        return max(self.stages_s.items(), key=lambda stage: stage[1])

    @property
    def ratio(self) -> float:
        return self.step_s / self.slowest[1]


class Steady(msgspec.Struct, frozen=True, kw_only=True):
    """The part on OPT-125M shapes.  Seconds of a step, medians; pairs were taken in turns."""

    batch: tuple[int, int]
    paces: tuple[Pace, ...]
    forward_s: float
    """The device's bare forward, batch made ready included."""
    loop_s: float
    """A turn of the device's loop while link and server keep up."""
    in_process_s: float
    """Forward, encode, decode, train in one process."""
    one_at_a_time_s: float
    """The same work across the wire, no step before the last one is acknowledged: nothing overlaps on either side."""
    plain_s: dict[str, float]
    """Per codec, one at a time, without encryption."""
    curve_s: dict[str, float]
    """Per codec, the same under CURVE."""
    message_bytes: dict[str, int]
    provenance: Provenance


@dataclass(frozen=True, eq=False)
class Big:
    """A model of OPT-125M's shapes with random weights, and texts of random tokens."""

    model: TaskModel
    feed: Batches


@dataclass(frozen=True)
class Size:
    """How much of the first part is run."""

    config: Mapping[str, int]
    batch: tuple[int, int]
    small_batch: tuple[int, int]
    rounds: int
    blocks: int
    block_steps: int
    slow_steps: int


RECORD = Size({}, (8, 128), (4, 128), rounds=7, blocks=3, block_steps=9, slow_steps=28)
QUICK = Size(
    {"num_hidden_layers": 2, "vocab_size": 4096}, (4, 128), (2, 128), rounds=2, blocks=1, block_steps=6, slow_steps=16
)


def big(size: Size, batch: tuple[int, int]) -> Big:
    from transformers import OPTConfig, OPTForCausalLM

    from mobillm_kit.backbone.split import Backbone

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        raw = OPTForCausalLM(OPTConfig(**size.config))
    model = task_model(Backbone(raw, name="OPT-125M shapes, random weights"), word_ids=(10, 20))
    return Big(model, random_feed(batch))


def random_feed(batch: tuple[int, int]) -> Batches:
    rows, tokens = batch
    pocket = prepare(RunSpec(method="zero-shot", accelerator="cpu", limit_train=8, limit_dev=8, limit_test=8))
    ids = torch.randint(10, 4000, (16 * rows, tokens), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [Encoded(tuple(row), None, number % 2) for number, row in enumerate(ids)]
    settings = FitSettings(steps=10_000, batch_size=rows, lr=1e-3, schedule="constant")
    return Batches(texts, pocket.encoder, settings)


def method_of(big_model: Big, codec: str, server: str = "in-process", **options: object) -> MobiLLM:
    """All tokens of all layers, one session."""
    given = {"seed": 0, "tokens": "all", "codec": codec, "group": 64, "server": server}
    method = build(big_model.model, **given, **options)
    method.uplink.timeline = Timeline(keep_steps=10_000)
    return method


def one_step(method: MobiLLM, feed: Batches, step: int) -> float:
    """Seconds of one step until it is trained, wherever it is."""
    batch = feed.step(step)
    started = time.perf_counter()
    method.step(batch, feed.lr(step))
    method.settle()
    return time.perf_counter() - started


def in_turns(methods: Mapping[str, MobiLLM], feed: Batches, rounds: int) -> dict[str, float]:
    """Median seconds of a step of each; one of each in turn, the first round left out."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for step in range(rounds + 1):
        for name, method in methods.items():
            seconds[name].append(one_step(method, feed, step))
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


def stages_alone(method: MobiLLM, steps: Collection[int]) -> dict[str, float]:
    """Median seconds of each stage in steps that did not overlap."""
    found: dict[str, list[float]] = {}
    for span in method.timeline.spans():
        if span.step in steps and span.stage != "queue":
            found.setdefault(span.stage, []).append(span.seconds)
    return {stage: statistics.median(seconds) for stage, seconds in found.items()}


def loop(method: MobiLLM, feed: Batches, first: int, steps: int) -> list[float]:
    """Moments at which the device's loop was done with each step."""
    moments = [time.perf_counter()]
    for step in range(first, first + steps):
        method.step(feed.step(step), feed.lr(step))
        moments.append(time.perf_counter())
    return moments


def steady_step(moments: Sequence[float], warm: int) -> float:
    """Mean seconds of a step after ``warm`` of them."""
    return (moments[-1] - moments[warm]) / (len(moments) - 1 - warm)


def steady(size: Size, cores: Cores, command: str) -> Steady:
    with ExitStack() as stack:
        keys = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plain, secret = started_server(stack, cores), started_server(stack, cores, keys / "server")
        whole = big(size, size.batch)
        methods: dict[str, MobiLLM] = {"in-process": method_of(whole, "int8")}
        for codec in CURVE_CODECS:
            methods[f"plain {codec}"] = method_of(whole, codec, plain.address)
            methods[f"curve {codec}"] = joined(method_of, whole, codec, secret.join, str(keys / "device"))
        stack.callback(lambda: [method.close() for method in methods.values()])
        times = in_turns(methods, whole.feed, size.rounds)
        print(*[f"{name}: {seconds:.3f} s" for name, seconds in times.items()], sep="\n", flush=True)
        wire = methods["plain int8"]
        stages = stages_alone(wire, range(1, 1 + size.rounds))
        forward_s, loop_s = forward_and_loop(methods["in-process"], wire, whole.feed, size)
        paces = [Pace(what="the device is slowest", stages_s=stages, step_s=loop_s)]
        for what, pace in (
            ("the server is slowest", server_slowest),
            ("the link is slowest", link_slowest),
        ):
            paces.append(pace(what, whole.model, plain, cores, size))
            print(f"{what}: {paces[-1].ratio:.3f} x {paces[-1].slowest}", flush=True)
        return Steady(
            batch=size.batch,
            paces=tuple(paces),
            forward_s=forward_s,
            loop_s=loop_s,
            in_process_s=times["in-process"],
            one_at_a_time_s=times["plain int8"],
            plain_s={codec: times[f"plain {codec}"] for codec in CURVE_CODECS},
            curve_s={codec: times[f"curve {codec}"] for codec in CURVE_CODECS},
            message_bytes={codec: bytes_of_a_step(methods[f"plain {codec}"]) for codec in CURVE_CODECS},
            provenance=provenance(command),
        )


def joined(make: Callable[..., MobiLLM], whole: Big, codec: str, join: str, keys: str) -> MobiLLM:
    return make(whole, codec, join, keys=keys)


def bytes_of_a_step(method: MobiLLM) -> int:
    """Everything the session has sent, pings and plan included, divided by its steps."""
    return method.uplink.remote.bytes_sent // method.uplink._sequence


def forward_and_loop(local: MobiLLM, wire: MobiLLM, feed: Batches, size: Size) -> tuple[float, float]:
    """The bare forward and the device's loop, in blocks by turns."""
    forwards: list[float] = []
    turns: list[float] = []
    step = size.rounds + 1
    for _ in range(size.blocks):
        for number in range(size.block_steps - 1):
            started = time.perf_counter()
            local.device.upload(feed.step(number))
            forwards.append(time.perf_counter() - started)
        turns.append(steady_step(loop(wire, feed, step, size.block_steps), warm=1))
        wire.settle()
        step += size.block_steps
    return statistics.median(forwards), statistics.median(turns)


def server_slowest(what: str, model: TaskModel, server: ServerProcess, cores: Cores, size: Size) -> Pace:
    """A ladder as wide as the backbone trains longer than the backbone's forward takes."""
    return throttled(what, Big(model, random_feed(size.small_batch)), server.address, size, side="ladder", reduction=1)


def link_slowest(what: str, model: TaskModel, server: ServerProcess, cores: Cores, size: Size) -> Pace:
    """A link that takes 1.6 times as long as the forward."""
    small = Big(model, random_feed(size.small_batch))
    local = method_of(small, "int8")
    batch = small.feed.step(0)
    forward_s = min(timed(lambda: local.device.upload(batch)) for _ in range(2))
    n_bytes = local.uplink.carried(local.device.upload(batch))[1]
    with ExitStack() as stack:
        link = Link(8 * n_bytes / (1.6 * forward_s) / 1e6, latency_ms=LATENCY_MS)
        return throttled(what, small, address_through(stack, cores, server, link), size)


def throttled(what: str, small: Big, address: str, size: Size, **options: object) -> Pace:
    """Stages alone in a few steps before and after, and the pace between.

    The credit hides a slow link or server at first (for eight steps, where it takes 1.6 times as long as the
    forward), so the pace is that of the second half.  Checkpoints are no stage: none is due here (one of the wide
    ladder's, 1 GB with AdamW's state, takes about 3 s).
    """
    method = method_of(small, "int8", address, checkpoint_every=10 * size.slow_steps, **options)
    before, after = range(1 + ALONE), range(1 + ALONE + size.slow_steps, 1 + 2 * ALONE + size.slow_steps)
    try:
        for step in before:
            one_step(method, small.feed, step)
        moments = loop(method, small.feed, len(before), size.slow_steps)
        method.settle()
        for step in after:
            one_step(method, small.feed, step)
        return Pace(
            what=what,
            stages_s=stages_alone(method, {*before, *after} - {0}),
            step_s=steady_step(moments, size.slow_steps // 2),
        )
    finally:
        method.close()


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def steady_bars(part: Steady) -> list[Bar]:
    paces = [
        Bar(f"step / slowest stage ({pace.slowest[0]}): {pace.what}", pace.ratio, high=LIMIT) for pace in part.paces
    ]
    curve = [
        Bar(f"one step under CURVE / plain, {codec}", part.curve_s[codec] / part.plain_s[codec], high=LIMIT)
        for codec in part.plain_s
    ]
    return [
        *paces,
        Bar("device's loop / bare forward", part.loop_s / part.forward_s, high=LIMIT),
        Bar("over the wire / in-process", part.loop_s / part.in_process_s, high=LIMIT),
        Bar("no bar: the same one step at a time, nothing overlaps", part.one_at_a_time_s / part.in_process_s),
        *curve,
    ]
