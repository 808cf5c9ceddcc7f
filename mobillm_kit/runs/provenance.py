"""Where a number comes from: versions, machine, commit, command.

Records are committed and shared, so nothing here names a host, a user or an absolute path.

Knows: package metadata, the machine, git.  Knows nothing of: training, models.
Taught in: notebooks/09_comparison.ipynb
"""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

import mobillm_kit
from mobillm_kit.common import installed_version, usable_cores
from mobillm_kit.record import Provenance, Scalar

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
GIT_LIMIT_S = 5.0

_SERVER = re.compile(r"(mobillm|tcp)://")
_CHECKOUT = Path(__file__).resolve().parents[2]


def provenance(command: str) -> Provenance:
    """Everything at once; ``started`` is now, the command as a reader would type it (:func:`clean_command`)."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return Provenance(versions=versions(), hardware=hardware(), command=command, commit=commit(), started=started)


def versions() -> dict[str, str]:
    """Python's version, this package's, and those of the installed packages that decide a result."""
    return {
        "python": platform.python_version(),
        "mobillm_kit": mobillm_kit.__version__,
        **{name: found for name in PACKAGES if (found := installed_version(name))},
    }


def hardware() -> dict[str, Scalar]:
    """The machine: ``cpu``, ``cores`` usable, ``ram_mib``, ``gpu`` or None, ``platform``, torch's ``threads``."""
    import torch

    mps = "Apple MPS" if torch.backends.mps.is_available() else None
    return {
        "cpu": _cpu(),
        "cores": usable_cores(),
        "ram_mib": psutil.virtual_memory().total // 2**20,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else mps,
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
    }


def commit(folder: Path = _CHECKOUT) -> str:
    """Commit of the checkout whose top is ``folder``, with ``-dirty`` where files differ from it.

    Empty where ``folder`` is not a checkout's top, has no commit yet, or git does not answer.
    """
    # an installed package may lie inside somebody else's checkout: only its own counts
    if not (folder / ".git").exists():
        return ""
    # without optional locks a look does not disturb a git that works in the same checkout
    git = ["git", "--no-optional-locks", "-C", str(folder)]
    head, changes = _answer([*git, "rev-parse", "HEAD"]), _answer([*git, "status", "--porcelain"])
    return f"{head}-dirty" if head and changes else head or ""


def clean_command(argv: Sequence[str]) -> str:
    """The command line as a reader would type it, without absolute paths.

    The program's folder is dropped. A path inside the working directory, or inside a folder beside it, is written
    relative to it (``../shared/models``); of any other only the name is left. ``-m`` programs appear as
    ``python -m package``.  A server's address or join string is left out.
    """
    if not argv:
        return ""
    return shlex.join([*_program(argv[0]), *(_clean_argument(argument) for argument in argv[1:])])


def _program(path: str) -> list[str]:
    name = Path(path).name
    if name == "__main__.py":
        return ["python", "-m", Path(path).parent.name]
    if name.endswith(".py"):
        return ["python", _clean_argument(path)]
    return [name.removesuffix(".exe")]


def _clean_argument(argument: str) -> str:
    option, equals, value = argument.partition("=")
    if equals and option.startswith("-"):
        return f"{option}={_clean_argument(value)}"
    server = _SERVER.search(argument)
    return f"{argument[: server.start()]}SERVER" if server else _clean_path(argument)


def _clean_path(value: str) -> str:
    if not os.path.isabs(os.path.expanduser(value)):
        return value
    path = Path(os.path.normpath(os.path.expanduser(value)))
    here = Path.cwd()
    if path.is_relative_to(here):
        return path.relative_to(here).as_posix()
    # directly under the root everything would be "beside"
    if here.parent != Path(here.anchor) and path.is_relative_to(here.parent):
        return (Path("..") / path.relative_to(here.parent)).as_posix()
    return path.name


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    if sys.platform == "darwin":
        names.append(_answer(["sysctl", "-n", "machdep.cpu.brand_string"]) or "")
    return next(filter(None, names), "") or platform.processor() or platform.machine()


def _answer(command: list[str]) -> str | None:
    """What ``command`` prints; None where it is missing, fails or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GIT_LIMIT_S, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
