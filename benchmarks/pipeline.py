"""Two processes, one core each: what overlaps, what the wire costs, who is sooner at the goal.

    steady        OPT-125M shapes, random weights: a step's time beside its stages measured alone, each alone in the
                  run because the device waits for every acknowledgement ("one at a time"); and what CURVE costs
    convergence   the pocket backbone's task: seconds until full fine-tuning's dev accuracy - 2 points, at four
                  bandwidths, activation cache and token shortcut on and off, against LoRA and full fine-tuning

`python benchmarks/pipeline.py [--part NAME] [--quick | --check]`.  Device and server are pinned to one core each; a
shaped link shares the server's.  Ratios are of numbers taken in turns within one run.  Records go to
benchmarks/results/pipeline.json, one entry per part; ``--check`` holds them against the bars.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch

from mobillm_kit.errors import KitError
from mobillm_kit.files import write_bytes
from mobillm_kit.link.overlap import StepCost, schedule
from mobillm_kit.link.rates import Link
from mobillm_kit.link.shaping import LinkProcess
from mobillm_kit.link.timeline import Timeline
from mobillm_kit.methods.mobillm import MobiLLM, build
from mobillm_kit.methods.task_model import TaskModel, task_model
from mobillm_kit.record import Provenance
from mobillm_kit.runs.loop import evaluate
from mobillm_kit.runs.prepare import Prepared, build_method, fit_settings, prepare, training_batches
from mobillm_kit.runs.provenance import clean_command, provenance
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.server.process import ServerProcess, serve
from mobillm_kit.texts.batches import Batches, FitSettings
from mobillm_kit.texts.encode import Encoded
from recipes.pocket.gate import Bar

RESULTS = Path(__file__).resolve().parent / "results" / "pipeline.json"
LIMIT = 1.05
PAPER = 2.3
"""MobiLLM's headline: convergence time divided by so much."""
NAMED_WAY = ("MobiLLM, one token, cache", 60.0)
"""Way and Mb/s that the bar stands on, named before any run: the best of many cells says nothing."""
POINTS_BELOW_FULL = 0.02
BANDWIDTHS = (20, 60, 200, 1000)
REALLY_RUN = (20, 200)
LATENCY_MS = 4.0
ALONE = 3
"""Steps that do not overlap, before and after the pace is taken."""
CURVE_CODECS = ("int8", "int4")
PREDICTED_WITHIN = 0.15
"""A prediction that is off by more is no prediction."""


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


class Time(msgspec.Struct, frozen=True, kw_only=True):
    """One way of training at one bandwidth."""

    way: str
    cache: bool
    one_token: bool
    mbit_per_s: float
    to_goal_s: tuple[float | None, ...]
    """Per seed, seconds of training until the goal, evaluation left out; None where it is not reached."""
    all_steps_s: float
    """Seconds of all steps, mean over seeds."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """A run really made through a shaped link beside what arithmetic said."""

    mbit_per_s: float
    cache: bool
    one_token: bool
    steps: int
    predicted_s: float
    measured_s: float


class Convergence(msgspec.Struct, frozen=True, kw_only=True):
    """The part on the pocket backbone."""

    steps: int
    codec: str
    goals: tuple[float, ...]
    """Per seed: full fine-tuning's last dev accuracy - 2 points."""
    times: tuple[Time, ...]
    checks: tuple[Check, ...]
    bytes_per_step: dict[str, int]
    stages_s: dict[str, dict[str, float]]
    """Per way: what a step costs the device, and the server."""
    provenance: Provenance


class Results(msgspec.Struct, frozen=True, kw_only=True):
    steady: Steady | None = None
    convergence: Convergence | None = None


# ---------------------------------------------------------------------- cores


@dataclass(frozen=True)
class Cores:
    device: int
    server: int


def two_cores() -> Cores:
    """The first two this process may use.

    Raises:
        KitError: there is only one, or the system cannot pin.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise KitError("This system cannot pin a process to a core.", "Run this benchmark on Linux.")
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise KitError("This benchmark needs two cores.", "Device and server are pinned to one each.")
    return Cores(usable[0], usable[1])


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started inside inherits the core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def started_server(stack: ExitStack, cores: Cores, keys: Path | None = None) -> ServerProcess:
    with on_core(cores.server):
        return stack.enter_context(serve(keys=keys))


def address_through(stack: ExitStack, cores: Cores, server: ServerProcess, link: Link) -> str:
    host, port = server.address.removeprefix("tcp://").rsplit(":", 1)
    with on_core(cores.server):
        return stack.enter_context(LinkProcess((host, int(port)), link)).endpoint


# ---------------------------------------------------------------------- OPT-125M shapes


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
        say({name: f"{seconds:.3f} s" for name, seconds in times.items()})
        wire = methods["plain int8"]
        stages = stages_alone(wire, range(1, 1 + size.rounds))
        forward_s, loop_s = forward_and_loop(methods["in-process"], wire, whole.feed, size)
        paces = [Pace(what="the device is slowest", stages_s=stages, step_s=loop_s)]
        for what, pace in (
            ("the server is slowest", server_slowest),
            ("the link is slowest", link_slowest),
        ):
            paces.append(pace(what, whole.model, plain, cores, size))
            say({what: f"{paces[-1].ratio:.3f} x {paces[-1].slowest}"})
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


# ---------------------------------------------------------------------- the pocket task


@dataclass(frozen=True)
class Plan:
    """How much of the second part is run."""

    seeds: tuple[int, ...]
    steps: int | None
    limit_dev: int | None
    evaluated: tuple[int, ...]
    check_steps: int


EARLY = (5, 10, 15, 20, 25, 30, 35, 40, 50, 60, 80, 100, 125, 150, 200, 250, 300)
FULL_PLAN = Plan((0, 1, 2), None, None, EARLY, 40)
QUICK_PLAN = Plan((0,), 30, 100, (5, 10, 20, 30), 12)
CODEC = "int8"


@dataclass(frozen=True)
class Trained:
    """One run, step by step."""

    costs: tuple[StepCost, ...]
    """Alone; without a server only the device's part."""
    accuracy: dict[int, float]
    """Dev accuracy after so many steps."""


def spec_of(method: str, seed: int, plan: Plan, **options: object) -> RunSpec:
    return RunSpec(
        method=method, seed=seed, accelerator="cpu", limit_dev=plan.limit_dev, limit_test=8, options=dict(options)
    )


def walked(method: MobiLLM, prepared: Prepared, plan: Plan) -> Trained:
    """Train one step at a time, timing each side; evaluate after the planned steps."""
    settings = fit_settings(prepared)
    feed = Batches(prepared.train, prepared.encoder, settings)
    costs: list[StepCost] = []
    accuracy: dict[int, float] = {}
    for step in range(plan.steps or settings.steps):
        costs.append(walked_step(method, feed, step))
        if step + 1 in plan.evaluated:
            _, predictions = evaluate(method, prepared.dev, prepared.encoder)
            truth = torch.tensor([example.label for example in prepared.dev])
            accuracy[step + 1] = (predictions == truth).float().mean().item()
    return Trained(tuple(costs), accuracy)


def walked_step(method: MobiLLM, feed: Batches, step: int) -> StepCost:
    started = time.perf_counter()
    result = method.step(feed.step(step), feed.lr(step))
    device_s = time.perf_counter() - started
    if result.loss is not None:
        return StepCost(device_s, result.bytes_sent, 0.0)
    _, late_bytes = method.settle()
    here = {span.stage: span.seconds for span in method.timeline.spans() if span.step == step}
    return StepCost(device_s, result.bytes_sent + late_bytes, here["decode"] + here["train"])


def across(spec: RunSpec, plan: Plan, address: str, walk: bool = True) -> Trained | float:
    """The same run one step at a time, or, not walked, the seconds of its first steps when they overlap."""
    prepared = prepare(msgspec.structs.replace(spec, options={**spec.options, "server": address}))
    method = build_method(prepared)
    method.uplink.timeline = Timeline(keep_steps=10_000)
    try:
        connect(method, prepared)
        if walk:
            return walked(method, prepared, plan)
        feed = training_batches(prepared)
        started = time.perf_counter()
        for step in range(plan.check_steps):
            method.step(feed.step(step), feed.lr(step))
        method.settle()
        return time.perf_counter() - started
    finally:
        method.close()


def connect(method: MobiLLM, prepared: Prepared) -> None:
    """Until the server has welcomed this session: once per run, no part of a step."""
    method.uplink.begin(training_batches(prepared))
    method.uplink.remote.send(0)


def options_of(cache: bool, one_token: bool) -> dict[str, object]:
    return {"codec": CODEC, "group": 64, "cache": cache, "tokens": "prediction" if one_token else "all"}


def label_of(cache: bool, one_token: bool) -> str:
    return f"MobiLLM, {'one token' if one_token else 'all tokens'}{', cache' if cache else ''}"


def convergence(plan: Plan, cores: Cores, command: str) -> Convergence:
    alone = {name: [alone_run(name, seed, plan) for seed in plan.seeds] for name in ("full", "lora")}
    goals = tuple(max(run.accuracy.items())[1] - POINTS_BELOW_FULL for run in alone["full"])
    far = Link(1.0)  # these ways send nothing
    times = [time_of(name, False, False, 0.0, runs, goals, far) for name, runs in alone.items()]
    for time_ in times:
        say({time_.way: f"{time_.to_goal_s} s to {goals}, all steps {time_.all_steps_s:.1f} s"})
    ways = [(cache, one_token) for one_token in (False, True) for cache in (False, True)]
    runs: dict[tuple[bool, bool], list[Trained]] = {}
    with ExitStack() as stack:
        server = started_server(stack, cores)
        for way in ways:
            specs = [spec_of("mobillm-full-width", seed, plan, **options_of(*way)) for seed in plan.seeds]
            runs[way] = [across(spec, plan, server.address) for spec in specs]
        checks = [
            checked(stack, cores, server, plan, mbit, way, runs[way][0])
            for mbit in REALLY_RUN
            for way in ways
            if not way[0]
        ]
    for mbit in BANDWIDTHS:
        link = Link(float(mbit), latency_ms=LATENCY_MS)
        times += [time_of(label_of(*way), *way, float(mbit), runs[way], goals, link) for way in ways]
    return Convergence(
        steps=len(runs[ways[0]][0].costs),
        codec=CODEC,
        goals=goals,
        times=tuple(times),
        checks=tuple(checks),
        bytes_per_step={label_of(*way): round(mean_of(runs[way], "n_bytes")) for way in ways},
        stages_s=stage_table(alone, {label_of(*way): runs[way] for way in ways}),
        provenance=provenance(command),
    )


def alone_run(name: str, seed: int, plan: Plan) -> Trained:
    prepared = prepare(spec_of(name, seed, plan))
    return walked(build_method(prepared), prepared, plan)


def stage_table(*groups: Mapping[str, Sequence[Trained]]) -> dict[str, dict[str, float]]:
    return {
        name: {stage: mean_of(runs, f"{stage}_s") for stage in ("device", "server")}
        for group in groups
        for name, runs in group.items()
    }


def mean_of(runs: Sequence[Trained], name: str) -> float:
    return statistics.mean(getattr(cost, name) for run in runs for cost in run.costs)


def time_of(
    way: str, cache: bool, one_token: bool, mbit: float, runs: Sequence[Trained], goals: Sequence[float], link: Link
) -> Time:
    return Time(
        way=way,
        cache=cache,
        one_token=one_token,
        mbit_per_s=mbit,
        to_goal_s=tuple(to_goal(run, goal, link) for run, goal in zip(runs, goals, strict=True)),
        all_steps_s=statistics.mean(schedule(run.costs, link)[-1].acked_s for run in runs),
    )


def to_goal(run: Trained, goal: float, link: Link) -> float | None:
    """Seconds until the first evaluation at or above the goal; the device waits before each evaluation."""
    reached = [step for step, accuracy in sorted(run.accuracy.items()) if accuracy >= goal]
    if not reached:
        return None
    stops = [step - 1 for step in run.accuracy]
    return seconds_to(run.costs, reached[0], link, stops)


def seconds_to(costs: Sequence[StepCost], steps: int, link: Link, stops: Sequence[int] = ()) -> float:
    """Arithmetic where there is a link; a run without one is the sum of its steps."""
    if not any(cost.n_bytes for cost in costs):
        return sum(cost.device_s for cost in costs[:steps])
    return schedule(costs[:steps], link, stops=stops)[-1].acked_s


def checked(
    stack: ExitStack, cores: Cores, server: ServerProcess, plan: Plan, mbit: int, way: tuple[bool, bool], run: Trained
) -> Check:
    """The first steps once more, overlapping, through a link that really holds bytes back."""
    link = Link(float(mbit), latency_ms=LATENCY_MS)
    spec = spec_of("mobillm-full-width", plan.seeds[0], plan, **options_of(*way))
    with ExitStack() as inner:
        address = address_through(inner, cores, server, link)
        measured_s = across(spec, plan, address, walk=False)
    found = Check(
        mbit_per_s=float(mbit),
        cache=way[0],
        one_token=way[1],
        steps=plan.check_steps,
        predicted_s=schedule(run.costs[: plan.check_steps], link)[-1].acked_s,
        measured_s=measured_s,
    )
    say({f"{mbit} Mb/s, {label_of(*way)}": f"{found.measured_s:.2f} s, predicted {found.predicted_s:.2f} s"})
    return found


# ---------------------------------------------------------------------- bars and tables


def bars(results: Results) -> list[Bar]:
    """Every bar of the issue with its figure; a part that is not recorded has none."""
    found: list[Bar] = [
        Bar("parts recorded", sum(part is not None for part in (results.steady, results.convergence)), 2)
    ]
    if results.steady is not None:
        found += steady_bars(results.steady)
    if results.convergence is not None:
        found += convergence_bars(results.convergence)
    return found


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


def convergence_bars(part: Convergence) -> list[Bar]:
    rows = 2 + len(BANDWIDTHS) * 4
    named = dict(per_seed(part))[NAMED_WAY]
    off = max(abs(check.measured_s / check.predicted_s - 1) for check in part.checks)
    return [
        Bar("rows of the table", len(part.times), rows),
        Bar("bandwidths really run", len({check.mbit_per_s for check in part.checks}), 2),
        Bar("largest distance of measured from predicted", off, high=PREDICTED_WITHIN),
        Bar(f"full's time / that of {NAMED_WAY[0]} at {NAMED_WAY[1]:g} Mb/s, worst seed", min(named), 1.0),
        Bar(f"no bar: the same, median of {len(named)} seeds (the paper: {PAPER})", statistics.median(named)),
    ]


def per_seed(part: Convergence) -> list[tuple[tuple[str, float], list[float]]]:
    """Way and bandwidth, and how many times sooner than full fine-tuning each seed is; 0 where it is not reached."""
    full = next(time_.to_goal_s for time_ in part.times if time_.way == "full")
    return [
        (
            (time_.way, time_.mbit_per_s),
            [(theirs or 0.0) / own if own else 0.0 for theirs, own in zip(full, time_.to_goal_s, strict=True)],
        )
        for time_ in part.times
        if time_.mbit_per_s
    ]


def median_to_goal(time_: Time) -> float | None:
    reached = [seconds for seconds in time_.to_goal_s if seconds is not None]
    return statistics.median(reached) if len(reached) == len(time_.to_goal_s) else None


def table(part: Convergence) -> str:
    """Seconds to the goal by way and bandwidth, as Markdown."""
    ways = list(dict.fromkeys(time_.way for time_ in part.times if time_.mbit_per_s))
    sooner = dict(per_seed(part))
    lines = [f"| s to full − 2 points, median of seeds | {' | '.join(f'{mbit} Mb/s' for mbit in BANDWIDTHS)} |"]
    lines.append("|---" * (len(BANDWIDTHS) + 1) + "|")
    for time_ in part.times:
        if not time_.mbit_per_s:
            lines.append(f"| {time_.way}, on the device |" + f" {in_words(median_to_goal(time_))} |" * len(BANDWIDTHS))
    for way in ways:
        cells = []
        for mbit in BANDWIDTHS:
            here = next(t for t in part.times if t.way == way and t.mbit_per_s == mbit)
            each = ", ".join(f"{gain:.1f}" for gain in sooner[way, float(mbit)])
            cells.append(f"{in_words(median_to_goal(here))} (÷ {each})")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    lines.append("")
    lines.append(f"| s for all {part.steps} steps | {' | '.join(f'{mbit} Mb/s' for mbit in BANDWIDTHS)} |")
    lines.append("|---" * (len(BANDWIDTHS) + 1) + "|")
    for time_ in part.times:
        if not time_.mbit_per_s:
            lines.append(f"| {time_.way}, on the device |" + f" {time_.all_steps_s:.1f} |" * len(BANDWIDTHS))
    for way in ways:
        cells = [next(t for t in part.times if t.way == way and t.mbit_per_s == mbit) for mbit in BANDWIDTHS]
        lines.append(f"| {way} | {' | '.join(f'{cell.all_steps_s:.1f}' for cell in cells)} |")
    return "\n".join(lines)


def in_words(seconds: float | None) -> str:
    return "not reached" if seconds is None else f"{seconds:.2f}"


def read(file: Path) -> Results:
    return msgspec.json.decode(file.read_bytes(), type=Results) if file.exists() else Results()


def check(results: Results) -> bool:
    """Print every bar with its figure, and the table; True where all hold."""
    found = bars(results)
    print(*found, sep="\n")
    if results.convergence is not None:
        print(f"\n{table(results.convergence)}")
    return all(bar.ok for bar in found)


def say(words: Mapping[str, str]) -> None:
    print(*[f"{name}: {text}" for name, text in words.items()], sep="\n", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("steady", "convergence"), help="only this one; both by default")
    parser.add_argument("--seeds", type=int, default=len(FULL_PLAN.seeds), help="of the second part")
    parser.add_argument("--quick", action="store_true", help="less than a minute, smaller shapes, nothing recorded")
    parser.add_argument("--check", action="store_true", help="hold the committed record against the bars")
    given = parser.parse_args()
    if given.check:
        return 0 if check(read(RESULTS)) else 1
    torch.set_num_threads(1)
    cores, command = two_cores(), clean_command(sys.argv)
    results = Results() if given.quick else read(RESULTS)
    with on_core(cores.device):
        if given.part in (None, "steady"):
            part = steady(QUICK if given.quick else RECORD, cores, command)
            results = msgspec.structs.replace(results, steady=part)
            keep(results, given.quick)
        if given.part in (None, "convergence"):
            plan = QUICK_PLAN if given.quick else replace(FULL_PLAN, seeds=tuple(range(given.seeds)))
            part = convergence(plan, cores, command)
            results = msgspec.structs.replace(results, convergence=part)
            keep(results, given.quick)
    check(results)
    return 0


def keep(results: Results, quick: bool) -> None:
    if not quick:
        write_bytes(RESULTS, msgspec.json.format(msgspec.json.encode(results), indent=1))


if __name__ == "__main__":
    sys.exit(main())
