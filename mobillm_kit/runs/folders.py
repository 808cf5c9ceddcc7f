"""A run's folder: who may write into it, and what it was made with.

    spec.json, task.json, record.json, checkpoint.safetensors, memory-PARTY.json, side/

Knows: files, specifications and tasks.  Knows nothing of: training, processes.
"""

from pathlib import Path
from typing import Any

import msgspec

from mobillm_kit.errors import BadInput
from mobillm_kit.files import write_bytes
from mobillm_kit.record import load_record
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.texts.sources import digests
from mobillm_kit.texts.tasks import Task

SPEC = "spec.json"
TASK = "task.json"
RECORD = "record.json"
CHECKPOINT = "checkpoint.safetensors"
DIVERGED = "diverged.txt"


def lay_out(place: Path, spec: RunSpec) -> None:
    """Write the specification, or see that it is the one of what was trained there."""
    file = place / SPEC
    if not file.exists() or not any((place / name).exists() for name in (CHECKPOINT, RECORD)):
        write_bytes(file, msgspec.json.format(msgspec.json.encode(spec.kept())))
        return
    there, here = _settings(load_spec(place)), _settings(spec)
    differing = [name for name in sorted({**there, **here}) if there.get(name) != here.get(name)]
    if differing:
        problem = f"{place}: holds a run with other settings ({', '.join(differing)})."
        raise BadInput(problem, "Choose another folder, or delete that one.")


def _settings(spec: RunSpec) -> dict[str, Any]:
    fields = msgspec.structs.asdict(spec.kept())
    return fields | {f"option {name}": value for name, value in fields.pop("options").items()}


def load_spec(place: Path) -> RunSpec:
    """The specification of a run's folder."""
    try:
        return msgspec.json.decode((place / SPEC).read_bytes(), type=RunSpec)
    except OSError as error:
        raise BadInput(f"{place}: holds no run.", "Name a folder that `mobillm train` wrote.") from error
    except msgspec.DecodeError as error:
        raise BadInput(f"{place / SPEC}: damaged ({error}).", "Train again into another folder.") from error


class KeptTask(msgspec.Struct, frozen=True):
    """What a run's folder knows of its texts, so that labelling others needs none of them."""

    task: Task
    """With its labels, prompt and label words."""
    files: dict[str, str]
    """Name and SHA-256 of the files that the texts came from."""


def keep_task(place: Path, spec: RunSpec, task: Task) -> None:
    """Write what the run was trained on."""
    kept = KeptTask(task, digests(Path(spec.data)) if spec.data else {})
    write_bytes(place / TASK, msgspec.json.format(msgspec.json.encode(kept)))


def check_files(place: Path, spec: RunSpec) -> None:
    """Refuse other files than those that the run there was trained on, where it has been."""
    kept = load_task(place)
    if kept is None or spec.data is None:
        return
    now = digests(Path(spec.data))
    for name in {**kept.files, **now}:
        if kept.files.get(name) != now.get(name):
            how = "is missing" if name not in now else "has changed" if name in kept.files else "is new"
            problem = f"{place}: '{name}' {how} since this run was trained."
            raise BadInput(problem, "Put the old file back, or train anew.")


def load_task(place: Path) -> KeptTask | None:
    """The task of a run's folder; None in a folder of before tasks were kept."""
    file = place / TASK
    try:
        return msgspec.json.decode(file.read_bytes(), type=KeptTask) if file.exists() else None
    except msgspec.DecodeError as error:
        raise BadInput(f"{file}: damaged ({error}).", "Train again into another folder.") from error


def is_done(place: Path) -> bool:
    """Whether the run there came to its end."""
    file = place / RECORD
    return file.exists() and load_record(file).status == "done"
