"""The command line: `mobillm doctor | compare | train | evaluate | predict | tasks | methods | memory | server | …`.

Thin: it reads arguments, calls one function, and shows what came back.

Knows: every room.  Knows nothing that a function below it does not know better.

Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mobillm_kit import __version__
from mobillm_kit.errors import BadInput, KitError
from mobillm_kit.methods import LABELS, METHODS, method_row

if TYPE_CHECKING:  # torch is imported by the commands that need it, so that --help answers at once
    from mobillm_kit.run import RunSpec
    from mobillm_kit.shapes import Need

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Fine-tune a language model from a device that runs forward passes only, and compare that with the "
    "alternatives.\n\nStart with [bold]mobillm doctor[/], then [bold]mobillm compare[/].",
)
screen = Console()
complaints = Console(stderr=True)

# ---------------------------------------------------------------------- options that several commands share

Backbone = Annotated[str, typer.Option(help="'pocket' (packaged), a model folder, or a name on the Hugging Face hub.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16, whatever the files hold.")]
Weights = Annotated[str, typer.Option(help="The frozen backbone's matrices in few bits: int8, nf4 or fp4.")]
Stream = Annotated[bool, typer.Option("--stream", help="Read the backbone block by block from its files.")]
Accelerator = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
TaskName = Annotated[str, typer.Option("--task", help="A name from `mobillm tasks`, or 'custom' for a file of yours.")]
Data = Annotated[
    str | None,
    typer.Option(help="Folder in GLUE's layout (train.tsv, dev.tsv …), or your CSV, TSV or JSONL file."),
]
Text = Annotated[str | None, typer.Option(help="custom: column of the text.")]
Pair = Annotated[str | None, typer.Option(help="custom: column of the second text.")]
Label = Annotated[str | None, typer.Option(help="custom: column of the label.")]
Prompt = Annotated[str | None, typer.Option(help="custom: prompt for decoders, such as '{text} It was'.")]
LabelWords = Annotated[
    str | None, typer.Option(help="custom: the word after the prompt for each label, such as ' bad| good'.")
]
PresetName = Annotated[
    str | None, typer.Option("--preset", help="pocket, encoder or decoder; by the backbone if not given.")
]
Steps = Annotated[int | None, typer.Option(min=1, help="Training steps; the preset's where not given.")]
BatchSize = Annotated[int | None, typer.Option(min=1)]
Lr = Annotated[float | None, typer.Option(help="Learning rate.")]
Schedule = Annotated[str | None, typer.Option(help="constant, linear or cosine.")]
EvalEvery = Annotated[int | None, typer.Option(min=1, help="Steps between two looks at the dev split.")]
Patience = Annotated[int | None, typer.Option(min=1, help="Stop after so many looks without a lower dev loss.")]
LimitTrain = Annotated[int | None, typer.Option(min=1, help="Use so many training texts only.")]
LimitDev = Annotated[int | None, typer.Option(min=1)]
LimitTest = Annotated[int | None, typer.Option(min=1)]
MaxLength = Annotated[int | None, typer.Option(min=8, help="Longest text in tokens.")]
Pooling = Annotated[str, typer.Option(help="Encoders: 'mean' over tokens, or the 'first' token.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="Method option, such as rank=8; 'lora.rank=8' for one method only."),
]
Threads = Annotated[int, typer.Option(min=1, help="Threads of each process.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder that holds all comparisons.")]


# ---------------------------------------------------------------------- looking around


@app.command()
def doctor() -> None:
    """Check this machine: versions, memory, widgets, the packaged model, and whether two sockets can talk."""
    from mobillm_kit.doctor import examine

    checks = examine()
    for check in checks:
        screen.print(str(check), markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


@app.command()
def methods() -> None:
    """List the fine-tuning methods, and the controls that every comparison shows beside them."""
    table = Table("method", "what it trains", "backbone", "source", title="Methods")
    for row in METHODS.values():
        kept = "unchanged" if row.backbone_frozen else "trained"
        table.add_row(row.name, escape(row.summary), kept if row.trained else "control", escape(row.source))
    screen.print(table)


@app.command()
def tasks() -> None:
    """List the tasks, their prompts and label words."""
    from mobillm_kit.tasks import TASKS

    table = Table("task", "question", "prompt", "label words", "metric", title="Tasks")
    for task in TASKS.values():
        words = ", ".join(word.strip() for word in task.label_words)
        table.add_row(task.name, escape(task.description), escape(task.prompt), words, task.metric)
    screen.print(table)


@app.command()
def memory(
    model: Annotated[
        str,
        typer.Option(
            help="A built-in architecture such as opt-1.3b, a model folder, a config.json, a name on the hub."
        ),
    ] = "opt-1.3b",
    method: Annotated[str, typer.Option(help="A name from `mobillm methods`.")] = "lora",
    batch: Annotated[int, typer.Option(help="Texts in a batch.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens of the longest text.")] = 256,
    dtype: Dtype = "float32",
    device_ram: Annotated[str | None, typer.Option(help="Memory of the device, such as 4GiB.")] = None,
    option: Options = None,
) -> None:
    """Predict the memory of one training step from shapes alone; with --device-ram: does it fit, why, and what would.

    Nothing is downloaded, loaded or trained.
    """
    from mobillm_kit.architectures import architecture
    from mobillm_kit.fits import Step, alternatives, parse_bytes, reason

    ram_bytes = None if device_ram is None else parse_bytes(device_ram)
    options = _options(option or [], method_row(method).name)
    step = Step(architecture(model), method, batch, length, dtype, options)
    needs = step.needs()
    for need in needs:
        screen.print(_need_table(need, f"{model}, {LABELS[method]}, batch {batch} × {length} tokens, {dtype}"))
    screen.print("Predicted from shapes; nothing was loaded or run.", highlight=False)
    if ram_bytes is None:
        return
    screen.print(f"\n[bold]{device_ram}[/]  {escape(reason(needs[0], ram_bytes))}", highlight=False)
    shown = Table("way (predicted)", "device, MiB", "fits", "server, MiB", "its price", title=f"In {device_ram}")
    with screen.status("predicting the alternatives"):
        for way in alternatives(step, ram_bytes):
            beside = "–" if way.server_bytes is None else f"{way.server_bytes / 2**20:,.0f}"
            fits = "yes" if way.fits(ram_bytes) else "no"
            shown.add_row(escape(way.label), f"{way.device_bytes / 2**20:,.0f}", fits, beside, escape(way.price))
    screen.print(shown)


# ---------------------------------------------------------------------- running


@app.command()
def compare(
    name: Annotated[
        str | None, typer.Option(help="Folder below --runs; made from backbone and task if not given.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated; by default full, lora, mezo, p-rge, probe, both MobiLLM nets and the controls."
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0",
    backbone: Backbone = "pocket",
    revision: Revision = None,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="The same architecture without its pretraining: a control."),
    ] = False,
    dtype: Dtype = "float32",
    weights: Weights = "",
    stream: Stream = False,
    accelerator: Accelerator = "auto",
    task: TaskName = "reviews",
    data: Data = None,
    text: Text = None,
    pair: Pair = None,
    label: Label = None,
    prompt: Prompt = None,
    label_words: LabelWords = None,
    preset: PresetName = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    schedule: Schedule = None,
    eval_every: EvalEvery = None,
    patience: Patience = None,
    limit_train: LimitTrain = None,
    limit_dev: LimitDev = None,
    limit_test: LimitTest = None,
    max_length: MaxLength = None,
    pooling: Pooling = "mean",
    option: Options = None,
    memory: Annotated[bool, typer.Option(help="Also measure memory, in a fresh process per method.")] = True,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time; seconds compare best with one.")] = 1,
    server: Annotated[
        str,
        typer.Option(help="MobiLLM's server: 'spawn' (a process), 'in-process', an address or a join string."),
    ] = "spawn",
    codec: Annotated[
        str, typer.Option(help="How MobiLLM's activations become bytes: fp32, int8, int4, nf4 …")
    ] = "int8",
    threads: Threads = 1,
    runs: Runs = Path("runs"),
) -> None:
    """Train several methods on the same task and show them side by side.

    Every method and seed runs in its own process.  What is done already is kept, so the same command goes on where
    Ctrl-C stopped it.  The folder gets a table, figures and index.html.
    """
    from mobillm_kit import compare as comparison
    from mobillm_kit.backbone import backbone_kind
    from mobillm_kit.progress import ProgressBars
    from mobillm_kit.tables import markdown, rows

    given = _given(locals())
    kind = backbone_kind(backbone, revision=revision)
    names = _names(methods, kind)
    chosen = _seeds(seeds)
    settings = preset or ("pocket" if backbone == "pocket" else kind)
    specs = [
        _spec(method=method, seed=seed, option=[*_uplink(method, settings, server, codec), *(option or [])], **given)
        for method in names
        for seed in (chosen if method_row(method).trained else chosen[:1])
    ]
    folder = runs / (name or _folder_name(backbone, task, random_weights))
    with _interruptible(), ProgressBars(screen) as bars:
        records = comparison.compare(
            folder,
            specs,
            measure=memory,
            jobs=jobs,
            threads=threads,
            command=_command(),
            listener=bars.listen,
        )
    screen.print(markdown(rows(records, LABELS)), markup=False, highlight=False, soft_wrap=True)
    screen.print(f"\nFigures and table: {folder / 'index.html'}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def train(
    method: Annotated[str, typer.Argument(help="A name from `mobillm methods`.")],
    out: Annotated[Path, typer.Option(help="Folder for record, checkpoint and, for MobiLLM, the side network.")],
    seed: Annotated[int, typer.Option()] = 0,
    backbone: Backbone = "pocket",
    revision: Revision = None,
    random_weights: Annotated[bool, typer.Option("--random-weights")] = False,
    dtype: Dtype = "float32",
    weights: Weights = "",
    stream: Stream = False,
    accelerator: Accelerator = "auto",
    task: TaskName = "reviews",
    data: Data = None,
    text: Text = None,
    pair: Pair = None,
    label: Label = None,
    prompt: Prompt = None,
    label_words: LabelWords = None,
    preset: PresetName = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    schedule: Schedule = None,
    eval_every: EvalEvery = None,
    patience: Patience = None,
    limit_train: LimitTrain = None,
    limit_dev: LimitDev = None,
    limit_test: LimitTest = None,
    max_length: MaxLength = None,
    pooling: Pooling = "mean",
    option: Options = None,
    threads: Threads = 1,
) -> None:
    """Train one method; goes on where it was interrupted."""
    _train(method, out, threads, seed=seed, option=option, **_given(locals()))


def _train(method: str, out: Path, threads: int, **given: Any) -> None:
    import torch

    from mobillm_kit.folders import lay_out, only_one
    from mobillm_kit.progress import OneBar
    from mobillm_kit.run import run

    torch.set_num_threads(threads)
    spec = _spec(method=method, **given)
    with only_one(out), OneBar(screen, method_row(method).label) as bar:
        lay_out(out, spec)
        record = run(spec, folder=out, command=_command(), callbacks=[bar.on_step], on_test=bar.on_test)
    if record.status == "interrupted":
        _say_stopped()
    _print_scores(record.scores)
    screen.print(f"Kept in {out}", markup=False, highlight=False)


@app.command()
def evaluate(
    run_folder: Annotated[Path, typer.Argument(help="Folder that `mobillm train` or `compare` wrote a run into.")],
    threads: Threads = 1,
) -> None:
    """Score a trained run on its held-out texts again."""
    import torch

    from mobillm_kit.predictor import score_run
    from mobillm_kit.progress import OneBar

    torch.set_num_threads(threads)
    with OneBar(screen, run_folder.name) as bar:
        scores = score_run(run_folder, bar.on_test)
    _print_scores(scores)


@app.command()
def predict(
    run_folder: Annotated[Path, typer.Argument(help="Folder that `mobillm train` or `compare` wrote a run into.")],
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; read from standard input, a line each, if none.")
    ] = None,
    pair: Annotated[str | None, typer.Option(help="The second text, for tasks with two.")] = None,
    threads: Threads = 1,
) -> None:
    """Label texts with a trained run."""
    import torch

    from mobillm_kit.predictor import load_run

    torch.set_num_threads(threads)
    lines = texts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not lines:
        raise BadInput("No text to label.", "Give texts as arguments or on standard input.")
    for text, found in zip(lines, load_run(run_folder).predict(lines, pair=pair), strict=True):
        typer.echo(f"{found.label}\t{found.probability:.3f}\t{text}")


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="Folder of a model, with safetensors.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not be there yet.")],
    kind: Annotated[str, typer.Option(help="int8, nf4 or fp4.")] = "nf4",
) -> None:
    """Write a model's twin with its blocks' matrices in few bits, to train on with --stream.

    Block by block: the whole model is never in memory.
    """
    from mobillm_kit.lowbit import quantize_backbone

    with screen.status(f"coding {escape(str(model))} as {escape(kind)}"):
        written = quantize_backbone(model, out, kind)
    screen.print(f"Kept in {written}", markup=False, highlight=False)


# ---------------------------------------------------------------------- device and server


@app.command()
def server(
    folder: Annotated[Path, typer.Option(help="Checkpoints and cached activations.")] = Path("runs/server"),
    bind: Annotated[str, typer.Option(help="Where to listen; port 0 takes a free one.")] = "tcp://127.0.0.1:0",
    keys: Annotated[
        Path | None, typer.Option(help="Folder of keys: encrypts, and lets only known devices in. Made if new.")
    ] = None,
    advertise: Annotated[
        str | None, typer.Option(help="Host name or address that devices reach this machine by, for the join string.")
    ] = None,
    credit: Annotated[int, typer.Option(min=1, help="Batches of a device that may wait.")] = 4,
    budget: Annotated[int, typer.Option(min=1, help="MiB of batches that may wait, all devices together.")] = 4096,
    max_sessions: Annotated[int, typer.Option(min=1, help="Devices at a time.")] = 8,
    cache_memory: Annotated[int, typer.Option(min=0, help="MiB of cached activations in memory, per device.")] = 1024,
    cache_disk: Annotated[int, typer.Option(min=0, help="MiB of cached activations on disk, per device.")] = 8192,
    threads: Threads = 1,
    as_json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True)] = False,
) -> None:
    """Train side networks for devices that send their activations here, until Ctrl-C."""
    from mobillm_kit.common import MIB
    from mobillm_kit.service import ServiceSettings, ServiceStart, serve_forever

    def announce(start: ServiceStart) -> None:
        if as_json:
            sys.stdout.write(msgspec.json.encode(start).decode() + "\n")
            sys.stdout.flush()
            return
        screen.print(f"Listening at {start.address}", highlight=False, markup=False)
        join = start.join or start.address
        screen.print(f"On the device: mobillm device --join '{join}'", highlight=False, markup=False, soft_wrap=True)

    settings = ServiceSettings(
        folder=folder,
        credit=credit,
        budget_bytes=budget * MIB,
        max_sessions=max_sessions,
        cache_memory_bytes=cache_memory * MIB,
        cache_disk_bytes=cache_disk * MIB,
        threads=threads,
    )
    serve_forever(settings, bind=bind, keys=keys, advertise=advertise, announce=announce, with_parent=with_parent)


@app.command()
def device(
    join: Annotated[str, typer.Option(help="The join string that the server shows, or its plain address.")],
    out: Annotated[Path, typer.Option(help="Folder for record, checkpoint and the trained side network.")],
    side: Annotated[str, typer.Option(help="full-width or ladder.")] = "ladder",
    codec: Annotated[str, typer.Option(help="fp32, fp16, int8, int4, nf4 …, or 'adaptive'.")] = "int8",
    labels: Annotated[str, typer.Option(help="Where labels go: server, residual or device.")] = "server",
    cache: Annotated[bool, typer.Option(help="Each sample is forwarded and sent once.")] = True,
    link: Annotated[str, typer.Option(help="Pretend a link, such as 'wifi-60' or '20mbit,10ms'.")] = "",
    keys: Annotated[str, typer.Option(help="Folder of this device's keys.")] = "",
    seed: Annotated[int, typer.Option()] = 0,
    backbone: Backbone = "pocket",
    accelerator: Accelerator = "auto",
    task: TaskName = "reviews",
    data: Data = None,
    text: Text = None,
    pair: Pair = None,
    label: Label = None,
    prompt: Prompt = None,
    label_words: LabelWords = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    eval_every: EvalEvery = None,
    max_length: MaxLength = None,
    option: Options = None,
    threads: Threads = 1,
) -> None:
    """Train a side network on a server, from this machine's texts; raw text is not sent, activations are."""
    uplink = {"server": join, "codec": codec, "labels": labels, "cache": cache, "link": link, "keys": keys}
    chosen = [f"{name}={msgspec.json.encode(value).decode()}" for name, value in uplink.items() if value != ""]
    given = {name: value for name, value in locals().items() if name in _SPEC_FIELDS}
    _train(f"mobillm-{side}", out, threads, seed=seed, option=[*chosen, *(option or [])], **given)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Say the version and end.")] = False,
) -> None:
    if version:
        screen.print(f"mobillm_kit {__version__}", highlight=False)
        raise typer.Exit


def main() -> None:
    """Run the command line; what a user can put right ends in one sentence and code 2."""
    try:
        app()
    except KitError as error:
        complaints.print(f"[bold red]error[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)


# ---------------------------------------------------------------------- from arguments to specifications

_SPEC_FIELDS = (
    "backbone", "revision", "random_weights", "dtype", "weights", "stream", "accelerator", "task", "data", "text",
    "pair", "label", "prompt", "label_words", "preset", "steps", "batch_size", "lr", "schedule", "eval_every",
    "patience", "limit_train", "limit_dev", "limit_test", "max_length", "pooling",
)  # fmt: skip


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a command that are fields of a specification."""
    return {field: arguments[field] for field in _SPEC_FIELDS}


def _spec(*, method: str, seed: int, option: list[str] | None, **given: Any) -> RunSpec:
    from mobillm_kit.run import RunSpec

    method_row(method)
    words = given.pop("label_words")
    return RunSpec(
        method=method,
        seed=seed,
        label_words=None if words is None else tuple(words.split("|")),
        options=_options(option or [], method),
        **given,
    )


def _options(assignments: list[str], method: str) -> dict[str, Any]:
    """``rank=8`` for every method, ``lora.rank=8`` for one; numbers, true and false are read as such."""
    options: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise BadInput(f"--option {assignment}: no '=' in it.", "Write it as name=value.")
        owner, dot, bare = name.rpartition(".")
        if dot and method_row(owner).name != method:
            continue
        try:
            options[bare if dot else name] = msgspec.json.decode(value.encode())
        except msgspec.DecodeError:
            options[bare if dot else name] = value
    return options


def _need_table(need: Need, title: str) -> Table:
    from mobillm_kit.fits import table

    shown = Table("MiB", "at its highest", "at the peak", title=f"{escape(title)}: {need.party}")
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, highest, at_peak in table(need):
        total = name in ("tensors", "whole process")
        first = "" if highest is None else f"{highest / 2**20:,.1f}"
        shown.add_row(name, first, f"{at_peak / 2**20:,.1f}", style="bold" if total else "", end_section=total)
    return shown


def _uplink(method: str, backbone_class: str, server: str, codec: str) -> list[str]:
    """Options of a method that has a server; a cache comes with every server in another process.

    A side network that begins as the backbone's own blocks is trained in this process: another one has no backbone.
    """
    from mobillm_kit.presets import preset

    if METHODS[method].module != "mobillm":
        return []
    needs_backbone = preset(backbone_class, method).options.get("start") == "backbone"
    if server == "in-process" or (server == "spawn" and needs_backbone):
        return [f"codec={codec}"]
    return [f"codec={codec}", f"server={server}", "cache=true"]


def _names(methods: str | None, kind: str) -> tuple[str, ...]:
    from mobillm_kit.compare import DECODER_METHODS, ENCODER_METHODS

    if methods is None:
        return DECODER_METHODS if kind == "decoder" else ENCODER_METHODS
    return tuple(method_row(name.strip()).name for name in methods.split(","))


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(f"--seeds {text}: not whole numbers.", "Write them as 0,1,2.") from None


def _folder_name(backbone: str, task: str, random_weights: bool) -> str:
    name = "pocket" if (backbone, task) == ("pocket", "reviews") else f"{Path(backbone).name}-{task}"
    return f"{name}-random" if random_weights else name


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends in a sentence and code 130."""
    try:
        yield
    except KeyboardInterrupt:
        _say_stopped()


def _say_stopped() -> NoReturn:
    complaints.print("Stopped; what was done is kept, and the same command goes on from there.")
    raise typer.Exit(130)


def _command() -> str:
    from mobillm_kit.provenance import clean_command

    return clean_command(sys.argv)


def _print_scores(scores: dict[str, float]) -> None:
    for name, value in scores.items():
        screen.print(f"{name.replace('_', ' ')}: {value:.4f}", highlight=False)


if __name__ == "__main__":
    main()
