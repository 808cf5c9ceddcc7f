"""The side networks that a class's server has trained, as files of their own; and what handed-in runs say of them.

    sessions/…/checkpoint-00000200.safetensors ─► networks/Ada-92e1105c.safetensors, equal to what its device keeps

Knows: checkpoints, records.  Knows nothing of: training, the database.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mobillm_kit.classroom.roster import Run
from mobillm_kit.errors import BadInput, RecordError, first_line
from mobillm_kit.files import write_bytes
from mobillm_kit.record import load_record
from mobillm_kit.server.session_trainer import read_checkpoint

Networks = dict[str, tuple[str, int, str]]
"""By session: the file's name, the step of the newest whole checkpoint, the file's SHA-256."""


def write_networks(root: Path, runs: Sequence[Run], out: Path) -> Networks:
    """Copy the side network of each run whose session is still kept, for their owner's eyes alone."""
    found: Networks = {}
    for run in runs:
        data = next(filter(None, map(_newest, (root / "sessions").glob(f"*/{run.session}"))), None)
        if data is not None:
            who = "".join(letter if letter.isalnum() else "_" for letter in run.student)[:40]
            file = out / f"{who}-{run.session[:8]}.safetensors"
            write_bytes(file, data[1], 0o600)
            out.chmod(0o700)  # the files' names name people
            found[run.session] = f"{out.name}/{file.name}", data[0], hashlib.sha256(data[1]).hexdigest()
    return found


def _newest(session: Path) -> tuple[int, bytes] | None:
    """Step and side network of the newest checkpoint that is whole; the average of its weights where one was kept."""
    for path in sorted(session.glob("checkpoint-*.safetensors"), reverse=True):
        state = read_checkpoint(path) or {}
        kind = "average/" if any(name.startswith("average/") for name in state) else "weight/"
        own = {name.removeprefix(kind): value for name, value in state.items() if name.startswith(kind)}
        if own:
            named = {name.removeprefix("adapter."): value for name, value in own.items()}
            return int(path.stem.removeprefix("checkpoint-")), save(named)
    return None


def handed_in(folder: Path) -> tuple[dict[str, float], list[str]]:
    """Test accuracy by session, of the runs' folders somewhere below this one; and a sentence on each damaged one."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: there is no such folder.", "Name the one with the runs that students handed in.")
    found: dict[str, float] = {}
    said = []
    for path in sorted(folder.rglob("record.json")):
        try:
            scores = load_record(path).scores
            with safe_open(str(path.with_name("checkpoint.safetensors")), framework="pt") as file:
                session = bytes(file.get_tensor("session").tolist()).hex()
        except (RecordError, OSError, SafetensorError) as error:
            said.append(f"{path.parent} was left out: {first_line(error)}")
        else:
            found |= {session: scores["test_accuracy"]} if "test_accuracy" in scores else {}
    return found, said
