"""What every scenario is made of: configurations, moments to strike at, and a run with a time limit.

    outcome = attempt(place, address, config, Script(...))       bytes of the side network, or a typed error

A script stands between the device and its socket: it sees every message, may change what passes, and may strike.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as OutOfTime
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pytest

from mobillm_kit.channel.ends import DeviceSocket
from mobillm_kit.channel.frames import Limits, from_frames
from mobillm_kit.channel.messages import Ack, BatchMessage, Fetch, First, Hello, Message, Welcome
from mobillm_kit.engines import training
from mobillm_kit.errors import KitError
from mobillm_kit.methods.mobillm import MobiLLM
from tests.uplink import trained, trained_in_engine

STEPS = 12
CHECKPOINT_EVERY = 3
MIDDLE = 7
"""Sequence number in whose upload a mid-epoch fault strikes: between two checkpoints, after an evaluation."""
TYPED_ERROR_S = 30.0
GOES_ON_S = 10.0
HANGS_S = 300.0
"""No undisturbed run takes a tenth of it; a busy machine may be slow, only a hang takes as long as this."""

SPIN_S = 0.1
TOLERATED = 0.25
MOST_STRETCHED = 4.0

PHASES = ("handshake", "mid-epoch", "result")
LIMITS = Limits(frame_bytes=2**28, total_bytes=2**28)
Frames = Sequence[bytes | memoryview]
Way = AbstractContextManager[tuple[Callable[[], DeviceSocket], str]]
"""To a server: what opens a connection, and the one-time code."""

CONFIGS: dict[str, dict] = {
    "ladder-int8": {"side": "ladder", "codec": "int8", "group": 8},
    "ladder-int8-cache": {"side": "ladder", "codec": "int8", "group": 8, "cache": True},
    "full-width-fp32": {"side": "full-width", "codec": "fp32"},
    "full-width-int8-cache": {"side": "full-width", "codec": "int8", "group": 8, "cache": True},
    "ladder-fp32-device-labels": {"side": "ladder", "codec": "fp32", "labels": "device"},
    "full-width-int8-residual": {"side": "full-width", "codec": "int8", "group": 8, "labels": "residual"},
}

ROTATED = tuple(CONFIGS)
"""What tables of faults go through in turn."""

WITHOUT_TORCH = "ladder-int8-cache-onnx"
"""What their quick rows go through too: the device's engine is ONNX Runtime."""
CONFIGS[WITHOUT_TORCH] = CONFIGS["ladder-int8-cache"] | {"engine": "onnx"}

CONFIGS["copy-fp32"] = {
    "side": "ladder",
    "model": "bert",
    "start": "backbone",
    "layers": 3,
    "reduction": 1,
    "codec": "fp32",
}


@dataclass
class Script:
    """Watches a device's messages; subclasses change what passes."""

    on_connect: Callable[[], object] | None = None
    """Called before the first connection is opened."""
    strikes: dict[str, Callable[[], object]] = field(default_factory=dict)
    """By phase, called once, just before the phase's message leaves."""
    resumes: list[tuple[float, int, int]] = field(default_factory=list)
    """(moment, resume, highest step acknowledged before it + 1) of each welcome."""
    ack_moments: list[tuple[float, int]] = field(default_factory=list)
    struck_at: float | None = None

    def connected(self, connect: Callable[[], DeviceSocket]) -> DeviceSocket:
        if self.on_connect is not None:
            strike, self.on_connect = self.on_connect, None
            self.struck_at = time.monotonic()
            strike()
        return Between(connect(), self)

    def up(self, message: Message, frames: Frames) -> Iterable[Frames]:
        """What really leaves."""
        strike = self.strikes.pop(phase_of(message), None)
        if strike is not None:
            self.struck_at = time.monotonic()
            strike()
        return [frames]

    def down(self, message: Message, frames: Frames) -> Iterable[Frames]:
        """What really arrives."""
        if isinstance(message, Welcome):
            highest = max((sequence for _, sequence in self.ack_moments), default=-1) + 1
            self.resumes.append((time.monotonic(), message.resume, highest))
        if isinstance(message, Ack):
            self.ack_moments.append((time.monotonic(), message.sequence))
        return [frames]

    @property
    def most_repeated(self) -> int:
        """Steps that were trained, acknowledged and had to be trained again, in the worst of the welcomes."""
        return max((highest - resume for _, resume, highest in self.resumes), default=0)

    def goes_on_after(self, moment: float) -> float:
        """Seconds from a moment to the next acknowledgement."""
        return min(at for at, _ in self.ack_moments if at >= moment) - moment


def phase_of(message: Message) -> str:
    """The phase whose moment this message is; empty for all others."""
    if isinstance(message, Hello):
        return "handshake"
    if isinstance(message, First) and message.offset:
        return "first"
    if isinstance(message, BatchMessage) and message.sequence == MIDDLE:
        return "mid-epoch"
    if isinstance(message, Fetch) and message.sequence == STEPS:
        return "result"
    return ""


class Between:
    """A connection with a script in between."""

    def __init__(self, inner: DeviceSocket, script: Script) -> None:
        self._inner = inner
        self._script = script
        self._arrived: list[Frames] = []

    @property
    def connected(self) -> bool:
        return self._inner.connected

    @property
    def connections(self) -> int:
        return self._inner.connections

    def wait_connected(self, timeout_s: float = 4.5) -> None:
        self._inner.wait_connected(timeout_s)

    def send(self, frames: Frames, timeout_s: float) -> bool:
        message, _ = from_frames(frames, sender="device", limits=LIMITS)
        return all(self._inner.send(each, timeout_s) for each in self._script.up(message, frames))

    def receive(self, timeout_s: float) -> Frames | None:
        if not self._arrived:
            frames = self._inner.receive(timeout_s)
            if frames is None:
                return None
            message, _ = from_frames(frames, sender="server", limits=LIMITS)
            self._arrived = list(self._script.down(message, frames))
        return self._arrived.pop(0) if self._arrived else None

    def wake(self) -> None:
        self._inner.wake()

    def close(self, flush_s: float = 0.0) -> None:
        self._inner.close(flush_s)


@contextmanager
def scripted(way: Way, script: Script) -> Iterator[tuple[Callable[[], Between], str]]:
    """The same way to a server, with a script in between."""
    with way as (connect, code):
        yield lambda: script.connected(connect), code


def between(script: Script) -> Callable[[MobiLLM], None]:
    """Put a script between a method and its server."""

    def install(method: MobiLLM) -> None:
        reach = method.uplink._reach
        method.uplink._reach = lambda: scripted(reach(), script)

    return install


def in_engine(place: Path, address: str, script: Script, **chosen) -> bytes:
    """The same from a device whose backbone an engine runs; the script stands between it and its server too."""
    route = training.route_to
    with patch.object(training, "route_to", lambda *server, **how: scripted(route(*server, **how), script)):
        return trained_in_engine(place, address, **chosen)


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    side: bytes | None
    error: BaseException | None
    ended: float

    def after(self, moment: float | None) -> float:
        assert moment is not None, "the fault has not struck"
        return self.ended - moment


def attempt(
    place: Path,
    address: str,
    config: str,
    script: Script | None = None,
    *,
    limit_s: float = HANGS_S,
    **options,
) -> Outcome:
    """Train with a server, in a thread, so that a hang ends the test and not the suite."""
    chosen = {"steps": STEPS, "checkpoint_every": CHECKPOINT_EVERY, **CONFIGS[config], **options}
    if chosen.pop("engine", ""):
        pytest.importorskip("onnxscript", reason="needs the extra: pip install 'mobillm-kit[onnx]'")
        return within(limit_s, lambda: in_engine(place, address, script or Script(), **chosen))
    if script is not None:
        chosen["before"] = between(script)
    return within(limit_s, lambda: trained(place, address, **chosen)[0])


def busy() -> float:
    """How many times slower than alone this machine runs us at the moment; 1 where nobody else wants its cores.

    The issue's limits are a quiet machine's.  Those of work (not of waiting) are stretched by this factor elsewhere.
    """
    began, used = time.perf_counter(), time.thread_time()
    while time.thread_time() - used < SPIN_S:
        pass
    slower = (time.perf_counter() - began) / (time.thread_time() - used)
    return min(max(1.0, slower - TOLERATED), MOST_STRETCHED)


def within(limit_s: float, run: Callable[[], bytes]) -> Outcome:
    """The outcome of a run that may raise.

    Raises:
        AssertionError: it hangs.
    """
    future: Future[bytes] = Future()

    def work() -> None:
        try:
            future.set_result(run())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name="scenario").start()
    try:
        error = future.exception(limit_s)
    except OutOfTime:
        raise AssertionError(f"the run hangs: not ended after {limit_s:.0f} s") from None
    return Outcome(None if error is not None else future.result(), error, time.monotonic())


def refused(outcome: Outcome) -> KitError:
    """The typed error that a run ended in."""
    if outcome.error is not None and not isinstance(outcome.error, KitError):
        raise outcome.error
    assert isinstance(outcome.error, KitError), "the run ended well, and should not have"
    assert outcome.error.remedy
    return outcome.error


def identical(outcome: Outcome, oracle: bytes) -> None:
    """The run ended in the oracle's bytes."""
    if outcome.error is not None:
        raise outcome.error
    assert outcome.side == oracle


def later(seconds: float, action: Callable[[], object]) -> threading.Timer:
    """Do something in a while, in a thread of its own."""
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()
    return timer


def table(faults: Iterable[str], quick: set[tuple[str, str]], phases: Sequence[str] = PHASES) -> list:
    """Rows (fault, phase, configuration) for ``parametrize``; the quick ones run in ``make test`` too."""
    rows = [(fault, phase) for fault in faults for phase in phases]
    in_turn = [
        pytest.param(
            fault,
            phase,
            ROTATED[number % len(ROTATED)],
            id=f"{fault}-{phase}",
            marks=() if (fault, phase) in quick else pytest.mark.faults,
        )
        for number, (fault, phase) in enumerate(rows)
    ]
    return in_turn + [pytest.param(*row, WITHOUT_TORCH, id="-".join((*row, "onnx"))) for row in rows if row in quick]
