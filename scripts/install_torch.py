"""Install torch into the running interpreter, the CPU build unless another one is asked for.

On Linux a plain ``pip install torch`` brings CUDA libraries along, gigabytes that a CPU never uses.
PyTorch's own CPU index avoids that; where it does not answer (a mirror, a wheel folder, a closed network),
pip's own configuration decides, and the last line printed says which build really came.

Knows: pip, the platform, pyproject.toml.  Knows nothing of: the package that is installed afterwards.
Needs nothing outside the standard library: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_SECONDS = 5.0
PIP = [sys.executable, "-m", "pip", "--quiet", "--quiet", "--disable-pip-version-check"]  # errors only
BUILDS = ("auto", "cpu", "cuda", "default")


@dataclass(frozen=True)
class Installed:
    """The torch that the interpreter imports."""

    version: str
    cuda: str
    """CUDA release that it was built for; empty for a CPU build."""

    @property
    def words(self) -> str:
        return f"torch {self.version} ({f'CUDA {self.cuda}' if self.cuda else 'CPU build'})"

    def fits(self, build: str) -> bool:
        return {"cpu": not self.cuda, "cuda": bool(self.cuda)}.get(build, True)


def installed() -> Installed | None:
    """Import torch in a fresh process: a damaged install counts as none."""
    probe = "import torch; print(torch.__version__, torch.version.cuda or '')"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None
    version, _, cuda = done.stdout.strip().partition(" ")
    return Installed(version, cuda)


def answers(url: str, seconds: float = PROBE_SECONDS) -> bool:
    """Whether ``url`` can be read within ``seconds``."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
            return True
    except (OSError, ValueError):  # URLError and time-outs are OSErrors
        return False


def index_args(build: str, system: str, index_answers: Callable[[], bool]) -> tuple[list[str], str]:
    """Arguments that make pip choose ``build``, and one line that says so.

    Only Linux needs any: elsewhere the default wheel is the CPU (on a Mac the CPU and MPS) build.  The
    index is asked only where the answer matters.
    """
    if build in ("default", "cuda"):
        return [], "as pip itself chooses"
    if system != "Linux":
        return [], f"the default build, which on {system} is the CPU build"
    if index_answers():
        return ["--extra-index-url", CPU_INDEX], "the CPU build, from PyTorch's CPU index"
    return [], "as pip itself chooses (PyTorch's CPU index does not answer, so it may be the CUDA build)"


def bound_in_pyproject(path: Path) -> str:
    """The requirement on torch that the project declares, for example ``torch>=2.6``."""
    extras = tomllib.loads(path.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return next(line for line in extras["torch"] if line.startswith("torch"))


def pip_install(requirement: str, arguments: Sequence[str]) -> bool:
    return subprocess.run([*PIP, "install", *arguments, requirement], check=False).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", default="torch==2.13.0", help="requirement to try first")
    parser.add_argument("--build", choices=BUILDS, default="auto", help="auto keeps a torch that is there")
    parser.add_argument("pip_args", nargs="*", help="further arguments for pip, after --")
    args = parser.parse_args()

    before = installed()
    if before is not None and before.fits(args.build):
        print(f"{before.words} is there")
        return 0

    if args.pip_args:
        arguments, why = args.pip_args, f"with {' '.join(args.pip_args)}"
    else:
        arguments, why = index_args(args.build, platform.system(), lambda: answers(f"{CPU_INDEX}/torch/"))
    if before is not None:
        print(f"{before.words} makes room", flush=True)
        subprocess.run([*PIP, "uninstall", "--yes", "torch"], check=True)
    print(f"Installing {args.torch}, {why}", flush=True)
    if not pip_install(args.torch, arguments):
        bound = bound_in_pyproject(Path(__file__).resolve().parents[1] / "pyproject.toml")
        print(f"{args.torch} could not be installed here; trying {bound}", flush=True)
        if not pip_install(bound, arguments):
            print("No torch could be installed; pip's message above says why.", file=sys.stderr)
            return 1

    after = installed()
    if after is None:
        print("torch was installed but cannot be imported: make clean, then again.", file=sys.stderr)
        return 1
    print(f"{after.words} is installed")
    if not after.fits(args.build):
        print(
            f"TORCH_BUILD={args.build} was asked for, and pip's index has no such build. Name one that has "
            "it in TORCH_ARGS='--index-url ...'; https://pytorch.org/get-started/locally lists them.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
