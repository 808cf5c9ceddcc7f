"""One method under every combination of some settings: each cell of the grid a folder, each seed in it a run.

    runs/NAME/lr=1e-6,eps=0.001/seedS/   spec.json, record.json, checkpoint.safetensors, or diverged.txt
    runs/NAME/                           table.csv, map.png, map.svg

Runs are trained, resumed, stopped and refused as those of a comparison are.  A run whose loss is no number is a result
here: its cell says so, and the others go on.

Knows: specifications, runs.  Knows nothing of: how a method works, where its processes run, how a map looks.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from mobillm_kit.errors import BadInput, KitError, nearest
from mobillm_kit.files import only_one
from mobillm_kit.methods import method_row, options_of
from mobillm_kit.record import RunRecord, Scalar
from mobillm_kit.runs.compare import Job, Listener, Runner, Runs, Workers, records_of
from mobillm_kit.runs.folders import DIVERGED, load_spec
from mobillm_kit.runs.spec import RunSpec, Settings
from mobillm_kit.sweeps.words import SETTINGS


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes."""

    name: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True)
class Cell:
    """One combination of values, with a run for each seed."""

    values: dict[str, Scalar]
    """By axis, in the axes' order."""
    specs: tuple[RunSpec, ...]

    @property
    def name(self) -> str:
        """Its folder's."""
        pairs = (f"{name}={text_of(value)}" for name, value in self.values.items())
        return re.sub(r"[^\w.,=+-]", "-", ",".join(pairs))


@dataclass(frozen=True)
class Result:
    """What came of one run."""

    cell: Cell
    seed: int
    record: RunRecord | None
    """None where the loss was no number."""

    @property
    def dev_accuracy(self) -> float | None:
        """Of the dev split at the end of training, 0..1."""
        return None if self.record is None else self.record.curve[-1].dev_accuracy


def axes(method: str, grid: Sequence[str]) -> list[Axis]:
    """The axes of ``grid``, such as ``lr=1e-6,1e-5``.

    Raises:
        BadInput: no axis, an axis or a value that is named twice, or more than two axes with several values, which
            no map shows; what is neither a setting nor an option of the method; a control.
    """
    if not method_row(method).trained:
        raise BadInput(f"'{method}' is a control: nothing of it can be swept.", "See `mobillm methods`.")
    found = [_axis(method, given) for given in grid]
    if not found:
        problem = "A sweep without a setting to vary."
        raise BadInput(problem, "Name one or two with their values, such as --lr 1e-6,1e-5 --eps 1e-3,1e-2.")
    names = [axis.name for axis in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"--{twice[0]} is given twice.", "Give all values at once, such as 1e-6,1e-5.")
    varied = [axis.name for axis in found if len(axis.values) > 1]
    if len(varied) > 2:
        problem = f"{len(varied)} settings have several values ({', '.join(varied)}); a map has two axes."
        raise BadInput(problem, "Give all but two of them one value, and sweep again for another.")
    return found


def _axis(method: str, given: str) -> Axis:
    name, equals, listed = given.partition("=")
    if not equals:
        raise BadInput(f"--grid {given}: no '=' in it.", "Write it as name=value,value.")
    known = [*SETTINGS, *options_of(method)]
    if name not in known:
        remedy = f"{nearest(name, known)} See `mobillm methods {method}`.".lstrip()
        raise BadInput(f"'{name}' is neither a setting of training nor an option of '{method}'.", remedy)
    values = [_value(text.strip()) for text in listed.split(",")]
    for value in values:
        if value == "" or values.count(value) > 1:
            what = "an empty value" if value == "" else f"the value {value} twice"
            raise BadInput(f"--{name} {listed}: {what}.", "Write each value once, with a comma between two.")
    return Axis(name, tuple(values))


def text_of(value: Scalar) -> str:
    """As one would type it: 1e-6 and not 1e-06."""
    return value if isinstance(value, str) else re.sub(r"e([+-])0+", r"e\1", str(value))


def _value(text: str) -> Scalar:
    try:
        return msgspec.json.decode(text.encode(), type=Scalar)
    except msgspec.DecodeError:
        return text


def cells(specs: Sequence[RunSpec], along: Sequence[Axis]) -> list[Cell]:
    """Every combination of the axes' values, the last axis the fastest, on each of ``specs``, one per seed."""
    found = []
    for values in product(*(axis.values for axis in along)):
        pairs = dict(zip((axis.name for axis in along), values, strict=True))
        found.append(Cell(pairs, tuple(_with(spec, pairs) for spec in specs)))
    return found


def _with(spec: RunSpec, values: dict[str, Scalar]) -> RunSpec:
    plain: dict[str, Any] = msgspec.to_builtins(spec)
    for name, value in values.items():
        (plain if name in Settings.__struct_fields__ else plain["options"])[name] = value
    try:
        return msgspec.convert(plain, RunSpec)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$.")
        raise BadInput(
            f"--{place.rstrip('`')}: {problem[0].lower()}{problem[1:]}.", "See `mobillm sweep --help`."
        ) from None


def sweep(
    folder: Path,
    grid: Sequence[Cell],
    *,
    jobs: int = 1,
    threads: int = 1,
    command: str = "",
    listener: Listener | None = None,
    runner: Runner | None = None,
) -> list[Result]:
    """Run what has no record yet, and write ``table.csv``, ``map.png`` and ``map.svg`` into ``folder``.

    Args:
        folder: made if it is not there.
        grid: :func:`cells`; the results come in their order, seed by seed.
        jobs, threads, command, listener, runner: as :func:`mobillm_kit.runs.compare.compare` has them.

    Raises:
        FolderBusy, BadInput, KitError, KeyboardInterrupt: as there, but for a loss that is no number.
    """
    from mobillm_kit.sweeps.table import write

    runs = {folder / cell.name / f"seed{spec.seed}": (cell, spec) for cell in grid for spec in cell.specs}

    def _here(todo: Sequence[Job], at_a_time: int) -> None:  # workers that were stopped once stay so
        Workers(threads, command, listener).run(todo, at_a_time)

    with only_one(folder):
        records = _records([(place, spec) for place, (_, spec) in runs.items()], runner or _here, jobs)
        results = [Result(cell, spec.seed, records.get(place)) for place, (cell, spec) in runs.items()]
        write(folder, results)
    return results


def _records(runs: Runs, run: Runner, jobs: int) -> dict[Path, RunRecord]:
    """By folder, without those that diverged; the end of one of these stops the others, which then go on."""
    for place, spec in runs:
        mark = place / DIVERGED
        if mark.exists() and load_spec(place) != spec.kept():
            mark.unlink()
    while True:
        whole = [(place, spec) for place, spec in runs if not (place / DIVERGED).exists()]
        try:
            found = records_of(whole, run, jobs, measure=False)
            return dict(zip((place for place, _ in whole), found, strict=True))
        except KitError:
            if not any((place / DIVERGED).exists() for place, _ in whole):
                raise
