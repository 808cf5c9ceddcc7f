"""A server as a process, started and watched from here.

    with serve() as server:                       a real process; it ends with the block, or with this process
        train(…, server=server.address)

    mobillm server --folder FOLDER …              the same by hand: where it listens, who may come in

Knows: processes, signals.  Knows nothing of: how a batch is trained, devices' data.
Taught in: notebooks/08_device_and_server.ipynb
"""

import os
import queue
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.common import fresh_environment
from mobillm_kit.errors import ServerGone

ANY_PORT = "tcp://127.0.0.1:0"
"""A free one, of this machine alone."""


class ServiceStart(msgspec.Struct, frozen=True, kw_only=True):
    """The line that a server process writes when it listens."""

    address: str
    join: str
    pid: int


class ServerProcess:
    """A server in a process of its own.

    It ends when this object is forgotten (a cell that ran again) and when this process ends, however that happens: it
    holds the other end of a pipe that nobody writes to.  Arguments as for :func:`serve`; the folder survives.
    """

    def __init__(self, folder: Path, *, keys: Path | None = None, options: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self._options = options if keys is None else ("--keys", str(keys), *options)
        self._launch(ANY_PORT)

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process as a power cut would: no farewell, nothing saved."""
        self._process.kill()
        self._process.wait(TIMINGS.stop_s)

    def restart(self, *, same_port: bool = True) -> None:
        """Start the process again on the same folder, after it has ended."""
        self.close()
        self._launch(self.address if same_port else ANY_PORT)

    def close(self) -> None:
        """End the process; within two seconds."""
        _end(self._process)

    def _launch(self, bind: str) -> None:
        command = [sys.executable, "-m", "mobillm_kit.cli", "server", "--json", "--with-parent"]
        command += ["--folder", str(self.folder), "--bind", bind]
        self._process = subprocess.Popen(
            [*command, *self._options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=fresh_environment(threads=int(os.environ.get("OMP_NUM_THREADS", "1"))),
            start_new_session=True,  # an interrupted cell interrupts the cell, not the server
        )
        weakref.finalize(self, _end, self._process)
        self.pid = self._process.pid
        self.start = self._announcement()
        self.address = self.start.address
        """``tcp://host:port``."""
        self.join = self.start.join or self.start.address
        """What a device needs to know: the join string, or the plain address."""

    def _announcement(self) -> ServiceStart:
        try:
            line = _first_line(self._process, TIMINGS.start_s)
        except BaseException:  # an interrupted cell: nobody else has heard of this process yet
            self.kill()
            self.close()
            raise
        try:
            return msgspec.json.decode(line, type=ServiceStart)
        except msgspec.DecodeError as error:
            late = f"has not said within {TIMINGS.start_s:.0f} seconds where it listens"
            what = late if self.running else "ended before it listened"
            self.close()
            raise ServerGone(f"The server process {what}.", "Its own words are above, on its error output.") from error


@contextmanager
def serve(
    folder: str | Path | None = None, *, keys: str | Path | None = None, options: tuple[str, ...] = ()
) -> Iterator[ServerProcess]:
    """A real server process for the time of a ``with`` block; ServerGone where it does not start.

    Args:
        folder: of checkpoints and cached activations; a temporary one by default.
        keys: folder of keys, for encryption; None for loopback without.
        options: further options of ``mobillm server``, as on the command line.
    """
    with ExitStack() as stack:
        place = Path(folder) if folder is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = ServerProcess(place, keys=None if keys is None else Path(keys), options=options)
        stack.callback(server.close)
        yield server


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
    try:
        process.wait(TIMINGS.stop_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(TIMINGS.stop_s)
    if process.stdout is not None:
        process.stdout.close()


def _first_line(process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
    found: queue.Queue[bytes] = queue.Queue()
    output = process.stdout
    assert output is not None
    threading.Thread(target=lambda: found.put(output.readline()), daemon=True).start()
    with suppress(queue.Empty):
        return found.get(timeout=timeout_s)
    return b""
