"""What this machine brings along, found out before a run needs it.

Knows: versions, memory, disk, threads, packaged files, loopback sockets.  Knows nothing of: training, the
command line that prints the lines.
Taught in: notebooks/00_start_here.ipynb
"""

import os
import platform
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

from packaging.requirements import Requirement

from mobillm_kit.common import MIB, installed_version, usable_cores
from mobillm_kit.errors import KitError, extra
from mobillm_kit.files import data_folder
from mobillm_kit.texts.tasks import PACKAGED

DISTRIBUTION = "mobillm-kit"
USER_EXTRAS = ("torch", "lab", "hub")
SOCKET_LIMIT_S = 5.0
QUICK_LIMIT_S = 10.0

FREE_MEMORY_MIB = 1024
"""One process with torch and a model class holds about 380 MiB before it trains; the rest is for training."""
FREE_DISK_MIB = 512
"""Room for records, figures and checkpoints of the packaged model."""


@dataclass(frozen=True)
class Check:
    """One finding about the machine."""

    name: str
    ok: bool
    detail: str
    """What was found."""
    remedy: str = ""
    """What would make it right, or better; empty where there is nothing to do."""

    def __str__(self) -> str:
        line = f"[{'ok' if self.ok else 'fail'}] {self.name}: {self.detail}"
        return f"{line}\n       {self.remedy}" if self.remedy else line


def examine() -> list[Check]:
    """Run every check within its time limit; the findings are in the order in which a reader would look for a cause."""
    named = ((probe.__name__.replace("_", " "), probe) for probe in PROBES)
    return [check for name, probe in named for check in within(name, probe, PROBES[probe])]


def within(name: str, probe: Callable[[], list[Check]], limit_s: float) -> list[Check]:
    """Run ``probe``, which may hang or raise, in a thread of its own; then it is a failed check of this name."""
    found: list[Check] = []

    def _work() -> None:
        try:
            found.extend(probe())
        except KitError as error:
            found.append(Check(name, False, error.problem, error.remedy))
        except Exception as error:  # a broken library may raise anything, and the doctor has to go on
            detail = f"{type(error).__name__}: {error}"
            found.append(Check(name, False, detail, "Report this line with your system's name."))

    thread = threading.Thread(target=_work, name=f"doctor {name}", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        return [Check(name, False, f"no answer within {limit_s:g} s", "Close busy programs and try again.")]
    return found


def python() -> list[Check]:
    """The interpreter and its platform."""
    return [Check("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")]


def packages(distribution: str = DISTRIBUTION) -> list[Check]:
    """What the package's own metadata wants against what is installed: one check per core package, one per extra."""
    try:
        wanted = [Requirement(line) for line in metadata.requires(distribution) or ()]
    except metadata.PackageNotFoundError:
        return [Check("packages", False, f"{distribution} is not installed", "Run: make setup   or: pip install -e .")]
    core = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    checks = [_package(requirement) for requirement in core]
    for name in USER_EXTRAS:
        further = [r for r in wanted if r not in core and r.marker is not None and r.marker.evaluate({"extra": name})]
        checks.append(_extra(name, further, distribution))
    return checks


def _package(wanted: Requirement) -> Check:
    version = installed_version(wanted.name)
    if version is not None and wanted.specifier.contains(version, prereleases=True):
        return Check(wanted.name, True, version)
    detail = f"{version or 'missing'}, wanted {wanted.specifier}"
    return Check(wanted.name, False, detail, f"Run: pip install --upgrade {wanted.name}")


def _extra(name: str, wanted: list[Requirement], distribution: str) -> Check:
    checks = [_package(requirement) for requirement in wanted]
    lacking = [check for check in checks if not check.ok]
    detail = ", ".join(f"{check.name} {check.detail}" for check in lacking or checks)
    remedy = f'Run: pip install "{distribution}[{name}]"' if lacking else ""
    return Check(f"extra {name}", not lacking, detail, remedy)


def accelerators() -> list[Check]:
    """Torch's build and the accelerators that it can use."""
    with extra("torch", "All but a device with an exported backbone needs {}"):
        import torch

    build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old driver warns here; "no GPU" says it
        n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = ["cpu"] + [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(n_gpus)]
    if torch.backends.mps.is_available():
        found.append("mps")
    idle = torch.version.cuda and not n_gpus
    remedy = "This build could use a GPU and sees none; the CPU is used." if idle else ""
    return [Check("accelerators", True, f"{build}: {', '.join(found)}", remedy)]


def memory() -> list[Check]:
    """Memory that a new process could take without swapping."""
    import psutil

    found = psutil.virtual_memory()
    free_mib, total_mib = found.available // MIB, found.total // MIB
    ok = free_mib >= FREE_MEMORY_MIB
    remedy = "" if ok else f"Close other programs: a training process wants {FREE_MEMORY_MIB} MiB free."
    return [Check("memory", ok, f"{free_mib} of {total_mib} MiB free", remedy)]


def disk(folder: Path | None = None) -> list[Check]:
    """Free space and the right to write where runs are stored; by default in the current folder."""
    folder = folder or Path.cwd()
    free_mib = shutil.disk_usage(folder).free // MIB
    writable = os.access(folder, os.W_OK)
    detail = f"{free_mib} MiB free in {folder}" + ("" if writable else ", which cannot be written to")
    ok = writable and free_mib >= FREE_DISK_MIB
    remedy = "" if ok else f"Choose a folder that you may write to, with {FREE_DISK_MIB} MiB free."
    return [Check("disk", ok, detail, remedy)]


def threads() -> list[Check]:
    """Cores of the machine, cores given to this process, and how idle OpenMP workers wait."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    detail = f"{usable_cores()} of {os.cpu_count()} cores usable" + (f", OMP_NUM_THREADS={limit}" if limit else "")
    passive = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    remedy = "Set OMP_WAIT_POLICY=passive before Python starts: spinning workers slow a busy machine down."
    return [Check("threads", True, detail, "" if passive else remedy)]


def widgets() -> list[Check]:
    """ipywidgets in the kernel and its extension in JupyterLab's front end; sliders need both."""
    remedy = f'Run: pip install "{DISTRIBUTION}[lab]", then restart JupyterLab.'
    version = installed_version("ipywidgets")
    if version is None:
        return [Check("widgets", False, "ipywidgets is missing", remedy)]
    extension = Path("@jupyter-widgets", "jupyterlab-manager", "package.json")
    if not any((folder / extension).is_file() for folder in _labextension_folders()):
        return [Check("widgets", False, f"ipywidgets {version}, but JupyterLab has no widget extension", remedy)]
    return [Check("widgets", True, f"ipywidgets {version} and JupyterLab's widget extension")]


def _labextension_folders() -> list[Path]:
    try:
        from jupyter_core.paths import jupyter_path
    except ImportError:
        return [Path(sys.prefix) / "share" / "jupyter" / "labextensions"]
    return [Path(folder) for folder in jupyter_path("labextensions")]


def packaged_data() -> list[Check]:
    """The pocket model and the tasks that come with the package."""
    model = _folder("pocket model", "pocket", ("config.json", "model.safetensors", "tokenizer.json"))
    return [model, *(_folder(f"task {name}", name, ("train.tsv", "dev.tsv", "test.tsv")) for name in PACKAGED)]


def _folder(name: str, data: str, wanted: tuple[str, ...]) -> Check:
    folder = data_folder(data)
    missing = [file for file in wanted if not (folder / file).is_file()]
    if missing:
        remedy = f"Install {DISTRIBUTION} again, or take a complete checkout."
        return Check(name, False, f"{', '.join(missing)} missing in {folder}", remedy)
    size_kib = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 1024
    return Check(name, True, f"{folder} ({size_kib} KiB)")


def sockets(limit_s: float = SOCKET_LIMIT_S) -> list[Check]:
    """Two real sockets, one message there and back over the loopback interface on a random port."""
    from mobillm_kit.channel.ends import DeviceSocket, ServerSocket
    from mobillm_kit.channel.frames import Limits

    payload = bytes(range(256)) * 256
    try:
        with ServerSocket("tcp://127.0.0.1:0", limits=Limits()) as server:
            started = time.perf_counter()
            with DeviceSocket(server.address, limits=Limits()) as device:
                device.wait_connected(limit_s)
                device.send([payload], limit_s)
                arrived = server.receive(limit_s)
                returned = device.receive(limit_s) if arrived and server.send(*arrived) else None
                elapsed_ms = (time.perf_counter() - started) * 1e3
    except KitError as error:
        return [Check("sockets", False, f"no round trip over 127.0.0.1: {error.problem}", _BLOCKED)]
    if returned != [payload]:
        return [Check("sockets", False, "the message came back changed, or not in time", _BLOCKED)]
    route, size_kib = server.address.removeprefix("tcp://"), len(payload) // 1024
    detail = f"{size_kib} KiB there and back over {route} in {elapsed_ms:.1f} ms, pyzmq {metadata.version('pyzmq')}"
    return [Check("sockets", True, detail)]


_BLOCKED = "Allow programs to talk over the loopback interface (firewall, security software), or reinstall pyzmq."
Probe: TypeAlias = Callable[[], list[Check]]
_IN_ORDER: tuple[Probe, ...] = python, packages, accelerators, memory, disk, threads, widgets, packaged_data
PROBES: dict[Probe, float] = dict.fromkeys(_IN_ORDER, QUICK_LIMIT_S) | {accelerators: 60.0, sockets: 3 * SOCKET_LIMIT_S}
"""In the order of :func:`examine`, with time limits: torch is imported, sockets wait for each other."""
