"""The commands around runs: `mobillm doctor | methods | tasks | memory | app | server | quantize | export`.

Knows: every room.  Knows nothing that a function below it does not know better.
Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional, UseAppendAction, arg

from mobillm_kit.classroom.desk import Class as Class
from mobillm_kit.commands.run import Command, method_options, say, screen
from mobillm_kit.common import MIB, when_parent_ends
from mobillm_kit.engines.desk import Export as Export
from mobillm_kit.errors import MissingExtra
from mobillm_kit.methods import LABELS, METHODS, method_row, options_of
from mobillm_kit.server import ServiceSettings

if TYPE_CHECKING:  # torch is imported by the commands that need it, so that --help answers at once
    from mobillm_kit.memory.prediction import MemoryNeed


class Doctor(Command, frozen=True, kw_only=True):
    """Check this machine: versions, memory, widgets, the packaged model, and whether two sockets can talk."""

    def __call__(self) -> int:
        """Print a line per check; 1 where one failed."""
        from mobillm_kit.runs.doctor import examine

        checks = examine()
        for check in checks:
            say(check)
        return 0 if all(check.ok for check in checks) else 1


class Methods(Command, frozen=True, kw_only=True):
    """List the fine-tuning methods, and the controls beside them; with a name, the options of that one."""

    name: Positional[str] = ""
    """Of a method, for its options."""

    def __call__(self) -> int:
        if self.name:
            options = Table("--option", "usually", title=f"{LABELS[method_row(self.name).name]}: options")
            for option, usual in options_of(self.name).items():
                options.add_row(option, escape(str(usual)))
            screen.print(options)
            return 0
        table = Table("method", "what it trains", "backbone", "source", title="Methods")
        for row in METHODS.values():
            kept = "unchanged" if row.backbone_frozen else "trained"
            table.add_row(row.name, escape(row.summary), kept if row.trained else "control", escape(row.source))
        screen.print(table)
        return 0


class Tasks(Command, frozen=True, kw_only=True):
    """List the tasks, their prompts and label words."""

    def __call__(self) -> int:
        from mobillm_kit.texts.tasks import TASKS

        table = Table("task", "question", "prompt", "label words", "metric", title="Tasks")
        for task in TASKS.values():
            words = ", ".join(word.strip() for word in task.label_words)
            table.add_row(task.name, escape(task.description), escape(task.prompt), words, task.metric)
        screen.print(table)
        return 0


class Memory(Command, frozen=True, kw_only=True):
    """Predict the memory of one training step from shapes alone; with --device-ram: does it fit, why, and what would.

    Nothing is downloaded, loaded or trained.
    """

    model: str = "opt-1.3b"
    """A built-in architecture such as opt-1.3b, a model folder, a config.json, a name on the hub."""
    method: str = "lora"
    """A name from `mobillm methods`."""
    batch: int = 16
    """Texts in a batch."""
    length: int = 256
    """Tokens of the longest text."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""
    device_ram: str | None = None
    """Memory of the device, such as 4GiB."""
    option: UseAppendAction[list[str]] = []  # noqa: RUF012 - msgspec gives each command a list of its own
    """Method option, such as rank=8."""

    def __call__(self) -> int:
        from mobillm_kit.backbone.pretrained import architecture
        from mobillm_kit.memory.budget import Step, alternatives, parse_bytes, reason

        ram_bytes = None if self.device_ram is None else parse_bytes(self.device_ram)
        options = method_options(self.option, method_row(self.method).name)
        step = Step(architecture(self.model), self.method, self.batch, self.length, self.dtype, options)
        title = f"{self.model}, {LABELS[step.method]}, batch {self.batch} × {self.length} tokens, {self.dtype}"
        needs = step.needs()
        for need in needs:
            screen.print(_need_table(need, title))
        screen.print("Predicted from shapes; nothing was loaded or run.", highlight=False)
        if ram_bytes is None:
            return 0
        screen.print(f"\n[bold]{self.device_ram}[/]  {escape(reason(needs[0], ram_bytes))}", highlight=False)
        heads = ("way (predicted)", "device, MiB", "fits", "server, MiB", "its price")
        shown = Table(*heads, title=f"In {self.device_ram}")
        with screen.status("predicting the alternatives"):
            for way in alternatives(step, ram_bytes):
                fits = "yes" if way.fits(ram_bytes) else "no"
                sizes = (_mib(way.device_bytes, "0"), fits, _mib(way.server_bytes, "0") or "–")
                shown.add_row(escape(way.label), *sizes, escape(way.price))
        screen.print(shown)
        return 0


class Server(ServiceSettings, Command, frozen=True, kw_only=True):
    """Train side networks for devices that send their activations here, until Ctrl-C."""

    bind: str = "tcp://127.0.0.1:0"
    """Where to listen; port 0 takes a free one."""
    keys: Path | None = None
    """Folder of keys: encrypts, and lets only known devices in. Made if new."""
    advertise: str | None = None
    """Host name or address that devices reach this machine by, for the join string."""
    prune: bool = False
    """Only remove what is too old or beyond --disk, beside a server that runs or not, and say what is left."""
    as_json: Annotated[bool, arg(name="json")] = False
    """For programs: say the address as one line of JSON."""
    with_parent: bool = False
    """For programs: end when standard input closes."""

    def __call__(self) -> int:
        if self.with_parent:  # before torch is imported, which takes seconds: an interrupted cell leaves no server
            when_parent_ends(lambda: os._exit(0))  # at once: checkpoints are whole at any moment
        from mobillm_kit.channel.keys import Door
        from mobillm_kit.server.disk import disk_of
        from mobillm_kit.server.process import ServiceStart
        from mobillm_kit.server.service import serve_forever

        def announce(start: ServiceStart, _: object) -> None:
            """Where it listens, for people or for programs."""
            if self.as_json:
                print(msgspec.json.encode(start).decode(), flush=True)
                return
            say(f"Listening at {start.address}")
            say(f"On the device: mobillm device --join '{start.join or start.address}'")

        if self.prune:
            removed, used_bytes = disk_of(self).make_room()
            say(f"Removed {removed} sessions from {self.folder}; the others hold {used_bytes / MIB:.1f} MiB.")
            return 0
        door = None if self.keys is None else Door(self.keys)
        serve_forever(self, bind=self.bind, door=door, advertise=self.advertise, announce=announce)
        return 0


class App(Command, frozen=True, kw_only=True):
    """Open the course's panels as one page in a browser, without a notebook, until Ctrl-C."""

    port: int = 8866
    """Of the page, on this machine alone."""
    browser: bool = True
    """Open it at once."""

    def __call__(self) -> int:
        if find_spec("voila") is None:
            raise MissingExtra("The app needs voila, which is not installed.", "Run: pip install 'mobillm-kit[app]'.")
        page = Path(__file__).parents[1] / "show" / "app.ipynb"
        given = [f"--port={self.port}", "--Voila.ip=127.0.0.1", *([] if self.browser else ["--no-browser"])]
        say(f"http://127.0.0.1:{self.port}/ has the panels when three small trainings are done; Ctrl-C ends it.")
        return subprocess.run([sys.executable, "-m", "voila", str(page), *given], check=False).returncode


class Quantize(Command, frozen=True, kw_only=True):
    """Write a model's twin with its blocks' matrices in few bits, to train on with --stream.

    Block by block: the whole model is never in memory.
    """

    model: Positional[Path]
    """Folder of a model, with safetensors."""
    out: Positional[Path]
    """Folder to write; it must not be there yet."""
    kind: str = "nf4"
    """int8, nf4 or fp4."""

    def __call__(self) -> int:
        from mobillm_kit.backbone.lowbit import quantize_backbone

        with screen.status(f"coding {escape(str(self.model))} as {escape(self.kind)}"):
            written = quantize_backbone(self.model, self.out, self.kind)
        say(f"Kept in {written}")
        return 0


def _need_table(need: MemoryNeed, title: str) -> Table:
    from mobillm_kit.memory.budget import table

    shown = Table("MiB", "at its highest", "at the peak", title=f"{escape(title)}: {need.party}")
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, highest, at_peak in table(need):
        total = name in ("tensors", "whole process")
        shown.add_row(name, _mib(highest), _mib(at_peak), style="bold" if total else "", end_section=total)
    return shown


def _mib(n_bytes: int | None, decimals: str = "1") -> str:
    return "" if n_bytes is None else f"{n_bytes / MIB:,.{decimals}f}"
