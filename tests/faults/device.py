"""A real device process: `mobillm train` on the tiny run, to be killed, stopped and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from mobillm_kit.common import fresh_environment
from tests.builders import save_texts, save_tiny_model
from tests.faults.scenes import CHECKPOINT_EVERY, STEPS

ROOT = Path(__file__).resolve().parents[2]


class DeviceProcess:
    """`mobillm train mobillm-ladder` in a folder; the same folder goes on where it stands."""

    def __init__(self, place: Path, folder: Path, address: str, *, session_options: tuple[str, ...] = ()) -> None:
        model, texts = place / "model-opt", place / "texts.csv"
        if not model.exists():
            save_tiny_model(model)
        if not texts.exists():
            save_texts(texts)
        self.folder = folder
        options = ("reduction=2", 'codec="int8"', "group=8", f"checkpoint_every={CHECKPOINT_EVERY}")
        command = [sys.executable, "-m", "mobillm_kit.cli", "train", "mobillm-ladder", "--out", str(folder)]
        command += ["--backbone", str(model), "--task", "custom", "--data", str(texts), "--text", "text"]
        command += ["--label", "label", "--prompt", "{text} it was", "--label-words", " bad| good"]
        command += ["--steps", str(STEPS), "--batch-size", "4", "--eval-every", "6", "--lr", "0.01"]
        for option in (f"server={json.dumps(address)}", *options, *session_options):
            command += ["--option", option]
        self._process = subprocess.Popen(
            command,
            env=fresh_environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()

    def signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def interrupt(self) -> None:
        self.signal(signal.SIGINT)

    def ended(self, timeout_s: float) -> tuple[int, str]:
        """Exit status and what it said; a process that does not end is killed."""
        try:
            said, _ = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            said, _ = self._process.communicate()
            raise AssertionError(f"the device did not end:\n{said.decode()}") from None
        return self._process.returncode, said.decode()

    def side(self) -> bytes:
        """The trained side network."""
        (file,) = (self.folder / "side").glob("*.safetensors")
        return file.read_bytes()
