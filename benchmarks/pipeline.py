"""Two processes, one core each: what overlaps, what the wire costs, who is sooner at the goal.

    steady          OPT-125M's shapes, random weights: see `pace.py`
    reviews, turns  the packaged tasks: every step trained and timed, and looked at on dev as it goes
    minilm-sst2, smollm2-sst2
                    real text: the accuracy after each step is that of `compare.py`'s records, the seconds of a step are
                    medians of steps timed here

The goal is full fine-tuning's last dev accuracy - 2 points.  Stages are timed alone; what they take together, through
a link, is arithmetic (`mobillm_kit/link/overlap.py`), and cells of it are really run: overlapping, half from a cache,
through a link that holds bytes back, and once with a device that is stopped three quarters of the time.  A slower
device stands for a faster server: the seconds of all that runs on the device are multiplied, full fine-tuning's too.

`python benchmarks/pipeline.py [--part NAME] [--quick | --check]`.  Device and server are pinned to one core each; a
shaped link shares the server's.  Records go to benchmarks/results/pipeline.json; ``--check`` holds them against bars.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import msgspec
import torch

from benchmarks import compare, pace
from benchmarks.two_cores import Cores, address_through, on_core, slowed, started_server, two_cores
from mobillm_kit.errors import KitError
from mobillm_kit.files import write_bytes
from mobillm_kit.link.overlap import StepCost, schedule, slowest
from mobillm_kit.link.rates import Link
from mobillm_kit.link.timeline import Timeline
from mobillm_kit.methods.mobillm import MobiLLM
from mobillm_kit.record import Provenance, RunRecord
from mobillm_kit.runs.loop import evaluate
from mobillm_kit.runs.prepare import Prepared, build_method, fit_settings, prepare, training_batches
from mobillm_kit.runs.provenance import clean_command, provenance
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.server.process import ServerProcess
from mobillm_kit.texts.batches import Batches
from recipes.pocket.gate import Bar

RESULTS = Path(__file__).resolve().parent / "results" / "pipeline.json"
PAPER = 2.3
"""MobiLLM's headline: convergence time divided by so much; the goal on real text."""
POINTS_BELOW_FULL = 0.02
BANDWIDTHS = (20.0, 60.0, 200.0, 1000.0)
NAMED = 60.0
"""Mb/s that the bar stands on."""
SLOWER = (4.0, 16.0)
LATENCY_MS = pace.LATENCY_MS
CODEC = "int8"
PREDICTED_WITHIN = 0.15
"""A prediction that is off by more is no prediction."""
EARLY = (5, 10, 15, 20, 25, 30, 35, 40, 50, 60, 80, 100, 125, 150, 200, 250, 300, 400, 500, 600, 800, 1000, 1200)


@dataclass(frozen=True, eq=False)
class Way:
    """One way of training."""

    label: str
    method: str
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def splits(self) -> bool:
        """Whether a server trains."""
        return self.method.startswith("mobillm")

    @property
    def cached(self) -> bool:
        return bool(self.options.get("cache"))


def across(label: str, method: str, cache: bool, **options: object) -> Way:
    return Way(label + (", cache" if cache else ""), method, {"codec": CODEC, "group": 64, "cache": cache, **options})


ALONE = (Way("full", "full"), Way("LoRA", "lora"), Way("linear probe", "probe"))
FULL_WIDTH, LADDER = "mobillm-full-width", "mobillm-ladder"
COPY = "MobiLLM, copy of the top blocks"
ALL_TOKENS = partial(across, "MobiLLM, all tokens", FULL_WIDTH, tokens="all")
ONE_TOKEN = partial(across, "MobiLLM, one token", FULL_WIDTH, tokens="prediction")


@dataclass(frozen=True)
class Question:
    """A task on a backbone, and the ways that are compared on it."""

    ways: tuple[Way, ...]
    named: str
    """The way that the bar stands on, named before any run: the best of many cells says nothing."""
    settings: Mapping[str, object] = field(default_factory=dict)
    record: str = ""
    """The file of `compare.py` that has the curves; without one, every step is trained here."""
    bar: float = 1.0
    timed: int = 160
    """Steps over which a cell is really run, half of them from the cache; on real text, over which stages are timed."""


QUESTIONS = {
    "reviews": Question(
        (*ALONE, ALL_TOKENS(False), ALL_TOKENS(True), ONE_TOKEN(False), ONE_TOKEN(True)), "MobiLLM, one token, cache"
    ),
    "turns": Question(
        (*ALONE, ONE_TOKEN(True), across("MobiLLM, ladder", LADDER, False), across("MobiLLM, ladder", LADDER, True)),
        "MobiLLM, ladder, cache",
        {"task": "turns", "preset": "turns"},
    ),
    "minilm-sst2": Question(
        (*ALONE, across("MobiLLM, full width", FULL_WIDTH, True), across(COPY, LADDER, True)),
        f"{COPY}, cache",
        record="minilm-sst2",
        bar=PAPER,
        timed=40,
    ),
    "smollm2-sst2": Question(
        (*ALONE, across("MobiLLM, full width", FULL_WIDTH, True), across("MobiLLM, ladder", LADDER, True)),
        "MobiLLM, full width, cache",
        record="smollm2-sst2",
        bar=PAPER,
        timed=40,
    ),
}


class Time(msgspec.Struct, frozen=True, kw_only=True):
    """One way of training, at one bandwidth, on a device so many times slower than the server."""

    way: str
    mbit_per_s: float
    """0 where nothing is sent."""
    slower: float
    to_goal_s: tuple[float | None, ...]
    """Per seed, seconds of training until the goal, evaluation left out; None where it is not reached."""
    all_steps_s: float
    """Seconds of all steps, mean over seeds."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Steps really made through a shaped link beside what arithmetic said."""

    way: str
    mbit_per_s: float
    slower: float
    steps: int
    predicted_s: float
    measured_s: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What was found to a question."""

    codec: str
    goals: tuple[float, ...]
    """Per seed: full fine-tuning's last dev accuracy - 2 points."""
    steps_to_goal: dict[str, tuple[int | None, ...]]
    times: tuple[Time, ...]
    checks: tuple[Check, ...]
    bytes_per_step: dict[str, int]
    """Mean over all steps."""
    start_bytes: dict[str, int]
    """Sent once, before the first step: a copy's first weights."""
    stages_s: dict[str, dict[str, float]]
    """Per way: what a step costs the device, and the server, mean over all steps."""
    provenance: Provenance


class Results(msgspec.Struct, frozen=True, kw_only=True):
    steady: pace.Steady | None = None
    answers: dict[str, Answer] = {}


# ---------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Plan:
    """How much is run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int | None = None
    limit_dev: int | None = None
    evaluated: tuple[int, ...] = EARLY
    timed: int = 160
    """At most so many steps of a cell are really run."""


QUICK = Plan((0,), 30, 100, (5, 10, 20, 30), 12)


@dataclass(frozen=True)
class Trained:
    """One run, step by step."""

    costs: tuple[StepCost, ...]
    """Alone; without a server only the device's part."""
    accuracy: dict[int, float]
    """Dev accuracy after so many steps."""
    start_bytes: int = 0


def spec_of(question: Question, way: Way, seed: int, plan: Plan) -> RunSpec:
    """As `compare.py` has it on real text, or as the preset of a packaged task; with the way's own options."""
    if question.record:
        specs = compare.benchmarks(["pocket"])[question.record].specs
        found = next(spec for spec in specs if (spec.method, spec.seed) == (way.method, 0))
        shape = {name: value for name, value in found.options.items() if name not in ("server", "codec", "cache")}
        options = {**shape, **way.options}
        return msgspec.structs.replace(found, seed=seed, limit_dev=8, limit_test=8, accelerator="cpu", options=options)
    return RunSpec(
        method=way.method,
        seed=seed,
        accelerator="cpu",
        limit_dev=plan.limit_dev,
        limit_test=8,
        options=dict(way.options),
        **question.settings,
    )


@contextmanager
def built(spec: RunSpec, address: str) -> Iterator[tuple[MobiLLM, Prepared]]:
    """The method, welcomed by its server where it has one: once per run, no part of a step."""
    options = {**spec.options, **({"server": address} if address else {})}
    prepared = prepare(msgspec.structs.replace(spec, options=options))
    method = build_method(prepared)
    try:
        if address:
            method.uplink.timeline = Timeline(keep_steps=10_000)
            method.uplink.begin(training_batches(prepared))
            method.uplink.remote.send(0)
        yield method, prepared
    finally:
        if address:
            method.close()


def walked(spec: RunSpec, address: str, steps: int | None, evaluated: Sequence[int] = ()) -> Trained:
    """Train one step at a time, timing each side; evaluate after the given steps."""
    with built(spec, address) as (method, prepared):
        start_bytes = method.uplink.remote.bytes_sent if address else 0
        settings = fit_settings(prepared)
        feed = Batches(prepared.train, prepared.encoder, settings)
        costs: list[StepCost] = []
        accuracy: dict[int, float] = {}
        for step in range(steps or settings.steps):
            costs.append(walked_step(method, feed, step))
            if step + 1 in evaluated:
                _, predictions = evaluate(method, prepared.dev, prepared.encoder)
                truth = torch.tensor([example.label for example in prepared.dev])
                accuracy[step + 1] = (predictions == truth).float().mean().item()
        return Trained(tuple(costs), accuracy, start_bytes)


def walked_step(method: MobiLLM, feed: Batches, step: int) -> StepCost:
    started = perf_counter()
    result = method.step(feed.step(step), feed.lr(step))
    device_s = perf_counter() - started
    if result.loss is not None:
        return StepCost(device_s, result.bytes_sent, 0.0)
    _, late_bytes = method.settle()
    here = {span.stage: span.seconds for span in method.timeline.spans() if span.step == step}
    return StepCost(device_s, result.bytes_sent + late_bytes, here["decode"] + here["train"])


def overlapping(spec: RunSpec, address: str, steps: int) -> float:
    """Seconds of these steps when they overlap."""
    with built(spec, address) as (method, prepared):
        feed = training_batches(prepared)
        started = perf_counter()
        for step in range(steps):
            method.step(feed.step(step), feed.lr(step))
        method.settle()
        return perf_counter() - started


def twice_over(spec: RunSpec, steps: int) -> RunSpec:
    """So few texts that the second half of the steps finds all of them in the cache."""
    return msgspec.structs.replace(spec, limit_train=steps // 2 * (spec.batch_size or 16))


def from_record(record: RunRecord, timed: Trained, cached: bool) -> Trained:
    """A record's curve with the stages timed here: medians of the first pass and, from a cache, of later ones."""
    half = len(timed.costs) // 2
    fresh, again = median_cost(timed.costs[1:half]), median_cost(timed.costs[half:])
    passes = record.task.train // int(record.settings["batch_size"])
    costs = [again if cached and step >= passes else fresh for step in range(record.steps)]
    accuracy = {point.step: point.dev_accuracy for point in record.curve if point.step}
    return Trained(tuple(costs), accuracy, timed.start_bytes)


def median_cost(costs: Sequence[StepCost]) -> StepCost:
    return StepCost(
        statistics.median(cost.device_s for cost in costs),
        round(statistics.median(cost.n_bytes for cost in costs)),
        statistics.median(cost.server_s for cost in costs),
    )


# ---------------------------------------------------------------------- a question and its answer


def answered(question: Question, plan: Plan, cores: Cores, command: str) -> Answer:
    with ExitStack() as stack:
        server = started_server(stack, cores)
        trained = {way: runs_of(question, way, plan, server.address) for way in question.ways}
        checks = really_run(question, plan, cores, server)
    full = trained[question.ways[0]]
    goals = tuple(max(run.accuracy.items())[1] - POINTS_BELOW_FULL for run in full)
    cells = [(mbit, 1.0) for mbit in BANDWIDTHS] + [(NAMED, slower) for slower in SLOWER]
    times = [
        time_of(way, mbit, slower, runs, goals)
        for way, runs in trained.items()
        for mbit, slower in (cells if way.splits else [(0.0, slower) for slower in (1.0, *SLOWER)])
    ]
    return Answer(
        codec=CODEC,
        goals=goals,
        steps_to_goal={
            way.label: tuple(steps_to(run, goal) for run, goal in pairs(runs, goals)) for way, runs in trained.items()
        },
        times=tuple(times),
        checks=tuple(checks),
        bytes_per_step={way.label: round(mean_of(runs, "n_bytes")) for way, runs in trained.items() if way.splits},
        start_bytes={way.label: runs[0].start_bytes for way, runs in trained.items() if way.splits},
        stages_s={
            way.label: {side: mean_of(runs, f"{side}_s") for side in ("device", "server")}
            for way, runs in trained.items()
        },
        provenance=provenance(command),
    )


def runs_of(question: Question, way: Way, plan: Plan, address: str) -> list[Trained]:
    """One per seed that there is."""
    address = address if way.splits else ""
    if not question.record:
        specs = [spec_of(question, way, seed, plan) for seed in plan.seeds]
        found = [walked(spec, address, plan.steps, plan.evaluated) for spec in specs]
    else:
        file = compare.RESULTS / f"{question.record}.jsonl"
        records = [record for record in compare.read(file) if record.method == way.method]
        if not records:
            problem = f"{file.name} has no record of '{way.method}', whose curve this part reads."
            raise KitError(problem, f"Run `python benchmarks/compare.py {question.record}` first.")
        steps = min(question.timed, plan.timed)
        timed = walked(twice_over(spec_of(question, way, 0, plan), steps), address, steps)
        found = [from_record(record, timed, way.cached) for record in records]
    cost = mean_cost(found)
    print(f"{way.label}: {cost.device_s:.3f} s, {cost.n_bytes:,} bytes, {cost.server_s:.3f} s a step", flush=True)
    return found


def really_run(question: Question, plan: Plan, cores: Cores, server: ServerProcess) -> list[Check]:
    """The named way, half of it from the cache, at each bandwidth, and on a slowed device."""
    way = next(way for way in question.ways if way.label == question.named)
    steps = min(question.timed, plan.timed)
    spec = twice_over(spec_of(question, way, 0, plan), steps)
    alone = walked(spec, server.address, steps)
    cells = [(mbit, 1.0) for mbit in BANDWIDTHS] + [(NAMED, SLOWER[0])]
    return [checked(spec, way, mbit, slower, alone, cores, server) for mbit, slower in cells]


def checked(
    spec: RunSpec, way: Way, mbit: float, slower: float, alone: Trained, cores: Cores, server: ServerProcess
) -> Check:
    """The same steps once more, overlapping, through a link that really holds bytes back."""
    link, steps = Link(mbit, latency_ms=LATENCY_MS), len(alone.costs)
    with ExitStack() as stack:
        address = address_through(stack, cores, server, link)
        stack.enter_context(slowed(cores, slower) if slower > 1 else nullcontext())
        measured_s = overlapping(spec, address, steps)
    found = Check(
        way=way.label,
        mbit_per_s=mbit,
        slower=slower,
        steps=steps,
        predicted_s=schedule(on_slower(alone.costs, slower), link)[-1].acked_s,
        measured_s=measured_s,
    )
    print(
        f"{mbit:g} Mb/s, device {slower:g} x slower: {found.measured_s:.2f} s, predicted {found.predicted_s:.2f} s",
        flush=True,
    )
    return found


def on_slower(costs: Sequence[StepCost], times: float) -> list[StepCost]:
    return [replace(cost, device_s=times * cost.device_s) for cost in costs]


def mean_of(runs: Sequence[Trained], name: str) -> float:
    return statistics.mean(getattr(cost, name) for run in runs for cost in run.costs)


def mean_cost(runs: Sequence[Trained]) -> StepCost:
    return StepCost(mean_of(runs, "device_s"), round(mean_of(runs, "n_bytes")), mean_of(runs, "server_s"))


def pairs(runs: Sequence[Trained], goals: Sequence[float]) -> list[tuple[Trained, float]]:
    """Each run with its seed's goal; where full fine-tuning has one seed, that one's."""
    return list(zip(runs, goals if len(goals) == len(runs) else goals[:1] * len(runs), strict=True))


def time_of(way: Way, mbit: float, slower: float, runs: Sequence[Trained], goals: Sequence[float]) -> Time:
    link = Link(mbit or 1.0, latency_ms=LATENCY_MS)
    return Time(
        way=way.label,
        mbit_per_s=mbit,
        slower=slower,
        to_goal_s=tuple(to_goal(run, goal, link, slower) for run, goal in pairs(runs, goals)),
        all_steps_s=statistics.mean(seconds_to(run, len(run.costs), link, slower) for run in runs),
    )


def steps_to(run: Trained, goal: float) -> int | None:
    """Steps before the first evaluation at or above the goal."""
    return min((step for step, accuracy in run.accuracy.items() if accuracy >= goal), default=None)


def to_goal(run: Trained, goal: float, link: Link, slower: float) -> float | None:
    steps = steps_to(run, goal)
    return None if steps is None else seconds_to(run, steps, link, slower, [step - 1 for step in run.accuracy])


def seconds_to(run: Trained, steps: int, link: Link, slower: float, stops: Sequence[int] = ()) -> float:
    """Arithmetic where there is a link, the device waiting before each evaluation; else the sum of the steps."""
    costs = on_slower(run.costs[:steps], slower)
    if not any(cost.n_bytes for cost in costs):
        return sum(cost.device_s for cost in costs)
    return link.seconds(run.start_bytes) + schedule(costs, link, stops=stops)[-1].acked_s


# ---------------------------------------------------------------------- bars and tables


def bars(results: Results) -> list[Bar]:
    """Every bar of the issue with its figure; a part that is not recorded has none."""
    recorded = (results.steady is not None) + len(results.answers)
    found = [Bar("parts recorded", recorded, 1 + len(QUESTIONS))]
    if results.steady is not None:
        found += pace.steady_bars(results.steady)
    for name, answer in results.answers.items():
        found += [replace(bar, what=f"{name}: {bar.what}") for bar in answer_bars(QUESTIONS[name], answer)]
    return found


def answer_bars(question: Question, answer: Answer) -> list[Bar]:
    alone = sum(not way.splits for way in question.ways)
    cells = 3 * alone + (len(question.ways) - alone) * (len(BANDWIDTHS) + len(SLOWER))
    off = {check.slower > 1: 0.0 for check in answer.checks}
    for check in answer.checks:
        found = abs(check.measured_s / check.predicted_s - 1)
        off[check.slower > 1] = max(off[check.slower > 1], found)
    gains = sooner(answer)[question.named, NAMED, 1.0]
    stages, n_bytes = answer.stages_s[question.named], answer.bytes_per_step[question.named]
    cost = StepCost(stages["device"], n_bytes, stages["server"])
    limit = slowest(cost, Link(NAMED, latency_ms=LATENCY_MS))[0]
    return [
        Bar("cells of the table", len(answer.times), cells),
        Bar("bandwidths really run, half from the cache", len({check.mbit_per_s for check in answer.checks}), 4),
        Bar("largest distance of measured from predicted", off[False], high=PREDICTED_WITHIN),
        Bar("the same, device slowed", off[True], high=PREDICTED_WITHIN),
        Bar(
            f"full's time / that of {question.named} at {NAMED:g} Mb/s, median of {len(gains)} ({limit} sets the pace)",
            statistics.median(gains),
            question.bar,
        ),
    ]


Cell = tuple[str, float, float]


def sooner(answer: Answer) -> dict[Cell, list[float]]:
    """Way, bandwidth, slowness; how many times sooner than full fine-tuning each seed is, 0 where it never is."""
    full = {time_.slower: time_.to_goal_s for time_ in answer.times if time_.way == "full"}
    found: dict[Cell, list[float]] = {}
    for time_ in answer.times:
        theirs = full[time_.slower]
        theirs = theirs if len(theirs) == len(time_.to_goal_s) else theirs[:1] * len(time_.to_goal_s)
        gains = [(full_s or 0.0) / own if own else 0.0 for full_s, own in zip(theirs, time_.to_goal_s, strict=True)]
        found[time_.way, time_.mbit_per_s, time_.slower] = gains
    return found


def table(answer: Answer) -> str:
    """Seconds to the goal by way and bandwidth, the median over seeds, and each seed's gain; as Markdown."""
    heads = [f"{mbit:g} Mb/s" for mbit in BANDWIDTHS] + [f"{NAMED:g} Mb/s, device {slow:g} ×" for slow in SLOWER]
    lines = [f"| s to full − 2 points | {' | '.join(heads)} |", "|---" + "|--:" * len(heads) + "|"]
    cells = {(time_.way, time_.mbit_per_s, time_.slower): time_ for time_ in answer.times}
    gains = sooner(answer)
    for way in dict.fromkeys(time_.way for time_ in answer.times):
        here = (way, 0.0, 1.0) in cells
        columns = [(0.0 if here else mbit, 1.0) for mbit in BANDWIDTHS]
        columns += [(0.0 if here else NAMED, slow) for slow in SLOWER]
        shown = [in_words(cells[(way, *column)], gains[(way, *column)]) for column in columns]
        lines.append(f"| {way}{', on the device' if here else ''} | {' | '.join(shown)} |")
    return "\n".join(lines)


def in_words(time_: Time, gains: Sequence[float]) -> str:
    reached = [seconds for seconds in time_.to_goal_s if seconds is not None]
    if not reached:
        return "not reached"
    if len(reached) < len(time_.to_goal_s):
        return f"{len(reached)} of {len(time_.to_goal_s)} seeds"
    seconds = statistics.median(reached)
    shown = f"{seconds:.2f}" if seconds < 10 else f"{seconds:.0f}"
    return shown if time_.way == "full" else f"{shown} (÷ {', '.join(f'{gain:.1f}' for gain in gains)})"


def read(file: Path) -> Results:
    return msgspec.json.decode(file.read_bytes(), type=Results) if file.exists() else Results()


def check(results: Results) -> bool:
    """Print every bar with its figure, and the tables; True where all hold."""
    found = bars(results)
    print(*found, sep="\n")
    for name, answer in results.answers.items():
        print(f"\n{name}\n{table(answer)}")
    return all(bar.ok for bar in found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("steady", *QUESTIONS), action="append", help="only this one; all by default")
    parser.add_argument("--quick", action="store_true", help="a minute: smaller shapes and one task, nothing recorded")
    parser.add_argument("--check", action="store_true", help="hold the committed record against the bars")
    given = parser.parse_args()
    if given.check:
        return 0 if check(read(RESULTS)) else 1
    torch.set_num_threads(1)
    cores, command = two_cores(), clean_command(sys.argv)
    results = Results() if given.quick else read(RESULTS)
    with on_core(cores.device):
        for part in given.part or (("steady", "reviews") if given.quick else ("steady", *QUESTIONS)):
            print(f"\n{part}", flush=True)
            if part == "steady":
                size = pace.QUICK if given.quick else pace.RECORD
                results = msgspec.structs.replace(results, steady=pace.steady(size, cores, command))
            else:
                answer = answered(QUESTIONS[part], QUICK if given.quick else Plan(), cores, command)
                results = msgspec.structs.replace(results, answers={**results.answers, part: answer})
            if not given.quick:
                write_bytes(RESULTS, msgspec.json.format(msgspec.json.encode(results), indent=1))
    check(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
