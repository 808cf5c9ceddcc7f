"""How far one has to walk to read one MobiLLM step: the files whose functions run in it, on both sides."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType

import pytest

import mobillm_kit
from mobillm_kit.channel.ends import ServerSocket
from mobillm_kit.runs.prepare import build_method, prepare, training_batches
from mobillm_kit.server import ServiceSettings
from mobillm_kit.server.service import Service, service_limits
from tests.builders import tiny_spec

HOUSE = Path(mobillm_kit.__file__).parent


class Walk:
    """The package's files of which a function was entered, in any thread begun meanwhile."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.on = False

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if self.on and event == "call" and frame.f_code.co_filename.startswith(str(HOUSE)):
            self.files.add(frame.f_code.co_filename)

    @property
    def lines(self) -> int:
        return sum(len(Path(file).read_text(encoding="utf-8").splitlines()) for file in self.files)

    def __str__(self) -> str:
        names = sorted(str(Path(file).relative_to(HOUSE)) for file in self.files)
        return f"{len(names)} files, {self.lines} lines: {', '.join(names)}"


@contextmanager
def traced() -> Iterator[Walk]:
    walk = Walk()
    gc.collect()  # what earlier tests left is taken down now, not in the middle of the walk
    threading.setprofile(walk)
    sys.setprofile(walk)
    try:
        yield walk
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def steps(place: Path, walk: Walk, server: str, codec: str, *, rows: bool = False) -> None:
    """Two steps, the second one traced: what is done once per run is no part of a step.

    With ``rows`` the walk begins where the loop asks for the batch, not where the method gets it.
    """
    prepared = prepare(
        tiny_spec(place, options={"rank": 4, "codec": codec, "group": 0 if codec == "fp32" else 32, "server": server})
    )
    method, batches = build_method(prepared), training_batches(prepared)
    for step in range(2):
        walk.on = rows and step == 1
        batch, lr = batches.step(step), batches.lr(step)
        walk.on = step == 1
        method.step(batch, lr)
        method.settle()
        walk.on = False
    method.close()


@pytest.mark.parametrize(("codec", "most_files", "most_lines"), [("none", 11, 1600), ("int8", 12, 1900)])
def test_the_walk_of_a_step_in_one_process(tmp_path, codec, most_files, most_lines):
    with traced() as walk:
        steps(tmp_path, walk, "in-process", codec, rows=True)
    assert len(walk.files) <= most_files, str(walk)
    assert walk.lines <= most_lines, str(walk)


def test_the_walk_of_a_step_over_the_wire(tmp_path):
    """Device and server in one process, so that both are traced; activations travel as float32."""
    settings = ServiceSettings(folder=tmp_path / "server")
    with traced() as walk, closing(ServerSocket("tcp://127.0.0.1:0", limits=service_limits(settings))) as socket:
        service = Service(socket, settings)
        thread = threading.Thread(target=service.run, daemon=True)
        thread.start()
        try:
            steps(tmp_path, walk, socket.address, "fp32")
        finally:
            service.stop()
            thread.join(10)
    assert len(walk.files) <= 23, str(walk)
    assert walk.lines <= 4950, str(walk)
