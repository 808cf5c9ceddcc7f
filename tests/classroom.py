"""A class for tests: its folder and invitations, its server and its devices as processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mobillm_kit.cli import main

WAIT_S = 90.0
"""Longest wait for what should happen at once: a busy machine imports torch for many seconds."""
FEW = ["--steps", "6", "--batch-size", "4", "--eval-every", "6", "--limit-train", "32", "--limit-dev", "8"]
FEW += ["--limit-test", "8", "--no-read-back"]


def begin(folder: Path, *names: str, board: bool = False) -> dict[str, str]:
    """A class with these students on a free port of this machine, with a board or none; the join string of each."""
    at = ["--bind", f"tcp://127.0.0.1:{free_port()}", "--advertise", "127.0.0.1"]
    assert main(["class", "init", str(folder), *at, "--board", str(free_port() if board else 0)]) == 0
    return invite(folder, *names)


def free_port() -> int:
    """One that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def invite(folder: Path, *names: str) -> dict[str, str]:
    """More students of it, or some of them again."""
    listed, sheet = folder / "names.txt", folder / f"sheet-{time.monotonic_ns()}.txt"
    listed.write_text("\n".join(names), encoding="utf-8")
    assert main(["class", "invite", str(folder), "--students", str(listed), "--out", str(sheet)]) == 0
    joins = re.findall(r"--join '(.+?)'", sheet.read_text(encoding="utf-8"))
    return dict(zip(names, joins, strict=True))


@contextmanager
def views(link: str) -> Iterator[Iterator[dict]]:
    """What a board's link shows, look by look, each within :data:`WAIT_S`."""

    def looks() -> Iterator[dict]:
        for line in stream:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])

    with urllib.request.urlopen(link.replace("/?", "/events?"), timeout=WAIT_S) as stream:
        yield looks()


def shown(link: str, wanted: Callable[[dict], bool]) -> dict:
    """The first look at a board that is as wanted."""
    deadline = time.monotonic() + WAIT_S
    with views(link) as looks:
        for look in looks:
            if wanted(look):
                return look
            assert time.monotonic() < deadline, look
    raise AssertionError("the board ended")


class Serving:
    """`mobillm class serve` for the time of a ``with`` block, and the lines that it says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []

    def __enter__(self) -> Serving:
        command = [sys.executable, "-m", "mobillm_kit.cli", "class", "serve", str(self.folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.until("Listening at")
        return self

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def until(self, said: str, times: int = 1) -> None:
        """Wait until the server has said something so often."""
        deadline = time.monotonic() + WAIT_S
        while sum(said in line for line in self.lines) < times:
            assert time.monotonic() < deadline, (said, self.lines)
            assert self.process.poll() is None, self.lines
            time.sleep(0.05)

    def links(self) -> list[str]:
        """Of the board: the class's, the instructor's."""
        return [line.split()[-1] for line in self.lines if line.startswith("Board, for")]

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        self._listener.join(5)
        self.process.stdout.close()


def device(place: Path, join: str, who: str, *more: str, steps: int = 6) -> subprocess.Popen[str]:
    """`mobillm device` with keys of its own, which trains the packaged pocket model for a few steps."""
    few = [*FEW[:1], str(steps), *FEW[2:]]
    command = [sys.executable, "-m", "mobillm_kit.cli", "device", "--join", join, "--keys", str(place / f"keys-{who}")]
    command += ["--out", str(place / f"out-{who}-{time.monotonic_ns()}"), *few, *more]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "400"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet)


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    """How a device ended, and what it said."""
    try:
        said = process.communicate(timeout=WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        said = process.communicate()
        raise AssertionError(said) from None
    return process.returncode, "".join(said)


def trained_bytes(process: subprocess.Popen[str]) -> bytes:
    """The side network of a device that ended well."""
    status, said = outcome(process)
    assert status == 0, said
    return Path(said.rsplit("Kept in ", 1)[1].strip(), "side", "model.safetensors").read_bytes()
