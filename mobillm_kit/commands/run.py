"""The commands that run something: `mobillm compare | sweep | train | device | evaluate | predict`.

A command is a description: its fields are the options, those of :class:`mobillm_kit.runs.spec.Settings` among them, the
sentence below a field is its help, and calling it does what it says.

Knows: runs.  Knows nothing of: how words on a command line become a command.
Taught in: notebooks/00_start_here.ipynb
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from rich.console import Console
from tyro.conf import Positional, UseAppendAction, arg

from mobillm_kit.errors import BadInput
from mobillm_kit.methods import method_row
from mobillm_kit.runs.spec import Count, RunSpec, Settings
from mobillm_kit.sweeps.words import spelled as spelled

# torch is imported by the commands that need it, so that --help answers at once

screen = Console()


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What was typed; a call does it and returns the exit status."""

    def __call__(self) -> int:
        return 0


class Running(Settings, Command, frozen=True, kw_only=True):
    """The settings of a run, and how they are given and carried out on a command line."""

    option: UseAppendAction[list[str]] = []
    """Method option, such as rank=8; 'lora.rank=8' for one method only."""
    threads: Count = 1
    """Threads of each process."""
    label_names: Annotated[tuple[str, ...] | None, arg(aliases=("--labels",))] = None
    """custom: the labels, such as 'neg|pos'; what the column holds if not given."""

    def spec(self, method: str, seed: int, uplink: Sequence[str] = ()) -> RunSpec:
        """The run of one method and seed; ``uplink`` are options that --option goes over."""
        given = {name: getattr(self, name) for name in Settings.__struct_fields__}
        options = method_options([*uplink, *self.option], method_row(method).name)
        if "server" in options:
            options["server"] = server_address(str(options["server"]))
        return RunSpec(method=method, seed=seed, options=options, **given)


class Many(Running, frozen=True, kw_only=True):
    """Runs of several settings or seeds, in one folder."""

    name: str | None = None
    """Folder below --runs; made from backbone and task if not given."""
    seeds: str = "0"
    """Comma-separated."""
    jobs: Count | None = None
    """Processes at a time; if not given one here, as seconds compare best so, and on a cluster all that have room."""
    server: str = "spawn"
    """MobiLLM's server: 'spawn' (a process), 'in-process', or what `mobillm device --join` takes."""
    codec: str = "int8"
    """How MobiLLM's activations become bytes: fp32, int8, int4, nf4 …"""
    runs: Path = Path("runs")
    """Folder that holds all comparisons."""
    on: str = "here"
    """Where the processes run: here, 'ray' (the cluster of this machine), 'ray://HOST:10001' or 'ray:local'."""

    def trained(self, train: Callable[..., Any], folder: Path, what: Any, **how: Any) -> Any:
        """What ``train`` makes of the folder, with bars."""
        from mobillm_kit.cluster.place import runner_on
        from mobillm_kit.runs.progress import Bars

        with Bars(screen) as bars:
            doing: Any = (self.threads, _command(), lambda job, progress: bars.of(job.label)(progress))
            how |= dict(zip(("threads", "command", "listener"), doing, strict=True))
            return train(folder, what, jobs=self.jobs or 1, runner=runner_on(self.on, self.jobs, *doing), **how)

    def specs_of(self, method: str) -> list[RunSpec]:
        """One per seed; a control, which draws nothing, has one seed."""
        try:
            seeds = [int(part) for part in self.seeds.split(",")]
        except ValueError:
            raise BadInput(f"--seeds {self.seeds}: not whole numbers.", "Write them as 0,1,2.") from None
        uplink = self._uplink(method)
        return [self.spec(method, seed, uplink) for seed in (seeds if method_row(method).trained else seeds[:1])]

    def _uplink(self, method: str) -> list[str]:
        """Options of a method that has a server; a cache comes with every server in another process."""
        if method_row(method).module != "mobillm":
            return []
        if self.server == "in-process":
            return [f"codec={self.codec}"]
        return [f"codec={self.codec}", f"server={self.server}", "cache=true"]

    def folder(self, further: str = "") -> Path:
        """The folder that is named, or one called by backbone and task, and what is ``further`` to say."""
        usual = (self.backbone, self.task) == ("pocket", "reviews")
        name = "pocket" if usual else f"{Path(self.backbone).name}-{self.task}"
        return self.runs / (self.name or f"{name}{'-random' if self.random_weights else ''}{further}")


class Compare(Many, frozen=True, kw_only=True):
    """Train several methods on the same task and show them side by side.

    Every method and seed runs in its own process.  What is done already is kept, so the same command goes on where
    Ctrl-C stopped it.  The folder gets a table, figures and index.html.
    """

    methods: str | None = None
    """Comma-separated; by default full, lora, mezo, p-rge, probe, both MobiLLM nets and the controls."""
    memory: bool = True
    """Also measure memory, in a fresh process per method."""

    def __call__(self) -> int:
        from mobillm_kit.backbone.pretrained import backbone_kind
        from mobillm_kit.runs.compare import compare
        from mobillm_kit.show.tables import markdown, rows

        specs = self.specs(backbone_kind(self.backbone, revision=self.revision))
        records = self.trained(compare, self.folder(), specs, measure=self.memory)
        say(markdown(rows(records)))
        say(f"\nFigures and table: {self.folder() / 'index.html'}")
        return 0

    def specs(self, kind: str) -> list[RunSpec]:
        """Those of every method."""
        from mobillm_kit.runs.compare import DECODER_METHODS, ENCODER_METHODS

        usual = DECODER_METHODS if kind == "decoder" or self.head == "label-words" else ENCODER_METHODS
        names = usual if self.methods is None else [name.strip() for name in self.methods.split(",")]
        return [spec for name in names for spec in self.specs_of(name)]


class Sweep(Many, frozen=True, kw_only=True):
    """Train one method with every combination of some settings, and show dev accuracy as a table and a map.

    `mobillm sweep mezo --lr 1e-6,1e-5 --eps 1e-3,1e-2`: a setting, or an option of the method, with its values.  Test
    texts are for the one run that is chosen.
    """

    method: Positional[str]
    """A name from `mobillm methods`."""
    grid: UseAppendAction[list[str]] = []
    """The long spelling of --lr 1e-6,1e-5: --grid lr=1e-6,1e-5."""

    def __call__(self) -> int:
        from mobillm_kit.sweeps.grid import axes, cells, sweep
        from mobillm_kit.sweeps.table import markdown

        wanted = axes(method_row(self.method).name, self.grid)
        folder = self.folder(f"-{self.method}-{'-'.join(axis.name for axis in wanted)}")
        found = self.trained(sweep, folder, cells(self.specs_of(self.method), wanted))
        say(f"{markdown(found)}\nMap and table: {folder / 'map.png'}")
        return 0


class Single(Running, frozen=True, kw_only=True):
    """One run in this process."""

    out: Path
    """Folder for record, checkpoint and, for MobiLLM, the trained side network."""
    engine: Literal["torch", "onnx", "executorch"] = "torch"
    """onnx (PyTorch is not needed) or executorch (p-rge alone): --backbone is a folder of `mobillm export`."""
    seed: int = 0
    """Of initial weights, the order of texts and whatever else the method draws."""

    def train(self, spec: RunSpec) -> int:
        """With a bar; what runs without PyTorch is scored elsewhere, by `mobillm evaluate` or `predict`."""
        from mobillm_kit.files import only_one
        from mobillm_kit.runs.progress import Bars

        with only_one(self.out), Bars(screen) as bars:
            told = bars.of(method_row(spec.method).label)
            said = self._trained(spec, told) if self.engine == "torch" else self._without_torch(spec, told)
        for line in said:
            say(line)
        return 0

    def _trained(self, spec: RunSpec, told: Callable[[Any], object]) -> list[str]:
        import torch

        from mobillm_kit.runs.run import run

        torch.set_num_threads(self.threads)
        record = run(spec, folder=self.out, command=_command(), callbacks=[told])
        if record.status == "interrupted":
            raise KeyboardInterrupt
        return [*_scores(record.scores), f"Kept in {self.out}"]

    def _without_torch(self, spec: RunSpec, told: Callable[[Any], object]) -> list[str]:
        from mobillm_kit.engines.runs import train

        return [train(spec, self.out, told, self.engine)]


class Train(Single, frozen=True, kw_only=True):
    """Train one method; goes on where it was interrupted."""

    method: Positional[str]
    """A name from `mobillm methods`."""

    def __call__(self) -> int:
        return self.train(self.spec(self.method, self.seed))


class Device(Single, frozen=True, kw_only=True):
    """Train a side network on a server, from this machine's texts; raw text is not sent, activations are."""

    join: str
    """The join string that the server shows, or its plain address; a file that holds it, or - for standard input, keeps
    its one-time code out of the list of processes."""
    side: str = "ladder"
    """full-width or ladder."""
    codec: str = "int8"
    """fp32, fp16, int8, int4, nf4 …, or 'adaptive'."""
    labels: str = "server"
    """Where labels go: server, residual or device."""
    cache: bool = True
    """Each sample is forwarded and sent once."""
    link: str = ""
    """Pretend a link, such as 'wifi-60' or '20mbit,10ms'."""
    keys: str = ""
    """Folder of this device's keys."""
    label_names: tuple[str, ...] | None = None
    """custom: the labels, such as 'neg|pos'; what the column holds if not given."""

    def __call__(self) -> int:
        names = ("codec", "labels", "cache", "link", "keys")
        uplink = {"server": self.join, **{name: getattr(self, name) for name in names}}
        chosen = [f"{name}={msgspec.json.encode(value).decode()}" for name, value in uplink.items() if value != ""]
        return self.train(self.spec(f"mobillm-{self.side}", self.seed, chosen))


class Evaluate(Command, frozen=True, kw_only=True):
    """Score a trained run on its held-out texts again."""

    run_folder: Positional[Path]
    """Folder that `mobillm train` or `compare` wrote a run into."""
    backbone: str | None = None
    """'pocket', a model folder, or a name on the hub; the one that the folder names if not given."""
    threads: Count = 1
    """Threads of this process."""

    def __call__(self) -> int:
        import torch

        from mobillm_kit.runs.inference import score_run
        from mobillm_kit.runs.progress import Bars

        torch.set_num_threads(self.threads)
        with Bars(screen) as bars:
            scores = score_run(self.run_folder, [bars.of(self.run_folder.name)], self.backbone)
        for line in _scores(scores):
            say(line)
        return 0


class Predict(Command, frozen=True, kw_only=True):
    """Label texts with a trained run; its training texts are not needed."""

    run_folder: Positional[Path]
    """Folder that `mobillm train` or `compare` wrote a run into, or a side network's."""
    texts: Positional[list[str]] = []
    """Texts; read from standard input, a line each, if none."""
    pair: str | None = None
    """The second text, for tasks with two."""
    backbone: str | None = None
    """'pocket', a model folder, or a name on the hub; the one that the folder names if not given."""
    threads: Count = 1
    """Threads of this process."""

    def __call__(self) -> int:
        import torch

        from mobillm_kit.runs.inference import load_run
        from mobillm_kit.texts.sources import decoded

        torch.set_num_threads(self.threads)
        given = "" if self.texts else decoded(sys.stdin.buffer.read(), "standard input")
        lines = self.texts or [line.rstrip("\r") for line in given.split("\n") if line.strip()]
        if not lines:
            raise BadInput("No text to label.", "Give texts as arguments or on standard input.")
        predictor = load_run(self.run_folder, self.backbone)
        for text, found in zip(lines, predictor.predict(lines, pair=self.pair), strict=True):
            print(f"{found.label}\t{found.probability:.3f}\t{text}")
        return 0


def method_options(assignments: Sequence[str], method: str) -> dict[str, Any]:
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
            options[bare] = msgspec.json.decode(value.encode())
        except msgspec.DecodeError:
            options[bare] = value
    return options


@cache
def server_address(given: str) -> str:
    """A server as it was named: an address or join string, a file that holds it, or ``-`` for standard input."""
    from mobillm_kit.texts.sources import decoded

    if given == "-":
        return decoded(sys.stdin.buffer.readline(), "standard input").strip()
    file = Path(given)
    return given if "://" in given or not file.is_file() else decoded(file.read_bytes(), given).strip()


def say(line: object) -> None:
    """Print a line as it is, however wide."""
    screen.print(str(line), markup=False, highlight=False, soft_wrap=True)


def _scores(scores: dict[str, float]) -> list[str]:
    return [f"{name.replace('_', ' ')}: {value:.4f}" for name, value in scores.items()]


def _command() -> str:
    from mobillm_kit.runs.provenance import clean_command

    return clean_command(sys.argv)
