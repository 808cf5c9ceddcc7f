"""Where the packaged data lies, and writing files so that a full disk, a kill or a power cut leaves the old file whole.

A wheel carries the data inside the package (``mobillm_kit/_data/``), a checkout beside the package (``data/``), so a
notebook or a script finds it from any working directory.

Knows: paths and bytes.  Knows nothing of: what the bytes mean.
Taught in: notebooks/00_start_here.ipynb
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mobillm_kit.errors import FolderBusy, KitError, SaveFailed


def write_bytes(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace ``path`` by ``data`` in one step; at no moment does anybody see it whom ``mode`` does not let."""
    write_with(path, lambda target: target.write_bytes(data), mode)


def write_with(path: Path, write: Callable[[Path], object], mode: int = 0o666) -> None:
    """Let ``write`` fill a file beside ``path``, then move it over ``path`` in one step."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch(mode)
        left = partial.stat().st_mode  # what the user's umask leaves of it; some writers choose their own
        write(partial)
        partial.chmod(left)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        problem = f"{path}: could not be written ({error.strerror or error}); what stood there before is untouched."
        raise SaveFailed(problem, "Free some space or choose another folder.") from error
    finally:
        with suppress(OSError):  # already moved, or its folder could not be made
            partial.unlink()


@contextmanager
def only_one(folder: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a folder, made if new, while something is written into it; somebody else's is refused after ``wait_s``."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(folder / ".lock", timeout=wait_s).acquire()
    except Timeout as error:
        remedy = "Wait for it to end, or choose another folder."
        raise FolderBusy(f"{folder}: another run is writing into this folder.", remedy) from error
    with held:
        yield


def data_folder(name: str) -> Path:
    """The folder of ``pocket``, the pretrained backbone, or of a task beside it."""
    package = Path(__file__).resolve().parent
    places = (package / "_data" / name, package.parent / "data" / name)
    for place in places:
        if place.is_dir():
            return place
    problem = f"The packaged data '{name}' is missing: looked in {places[0]} and {places[1]}."
    raise KitError(problem, "Install mobillm-kit again, or work in a complete checkout of the project.")
