"""Many runs into one folder: each in its own process, what is done already kept, what came out shown.

    runs/NAME/METHOD/seedS/   spec.json, record.json, checkpoint.safetensors, memory-PARTY.json, side/
    runs/NAME/                table.md, table.csv, figures/, index.html

Knows: runs, processes, what is shown.  Knows nothing of: how a method works.

Taught in: notebooks/09_comparison.ipynb
"""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mobillm_kit.common import fresh_environment
from mobillm_kit.errors import KitError, RecordError
from mobillm_kit.files import write_bytes
from mobillm_kit.methods import method_row
from mobillm_kit.record import RunRecord, load_record
from mobillm_kit.runs.folders import RECORD, is_done, lay_out, only_one
from mobillm_kit.runs.progress import Progress
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.show.report import write_report

PATIENCE_S = 30.0
"""How long a worker may take to end the step it is in and save, before it is ended."""

_EVERYWHERE = ("bag-of-words", "full", "lora", "mezo", "p-rge", "probe", "mobillm-full-width", "mobillm-ladder")
DECODER_METHODS = ("zero-shot", "threshold", *_EVERYWHERE)
ENCODER_METHODS = ("majority", *_EVERYWHERE)


@dataclass(frozen=True)
class Job:
    """One worker process: some runs, or one memory measurement."""

    arguments: tuple[str, ...]
    label: str
    training: bool


Listener = Callable[[Job, Progress], None]


def compare(
    folder: Path,
    specs: Sequence[RunSpec],
    *,
    measure: bool = True,
    jobs: int = 1,
    threads: int = 1,
    command: str = "",
    listener: Listener | None = None,
) -> list[RunRecord]:
    """Run every specification that has no record yet, and show all of them together.

    Args:
        folder: made if it is not there.
        specs: one per method and seed; the records come in their order.
        measure: also measure memory, in a fresh process per method and party.
        jobs: processes at a time; more than one is faster and makes seconds less comparable.
        threads: of each process.
        command: for the records.
        listener: told of every line of progress.

    Raises:
        FolderBusy: another comparison is writing there.
        BadInput: the folder holds a run of the same method and seed with other settings.
        KitError: what a run refused to do; the others' records are kept.
        KeyboardInterrupt: Ctrl-C; every worker has saved and ended.
    """
    with only_one(folder):
        runs = [(folder / spec.method / f"seed{spec.seed}", spec) for spec in specs]
        for place, spec in runs:
            lay_out(place, spec)
        todo = [(place, spec) for place, spec in runs if not is_done(place)]
        if measure:
            _run_jobs(_memory_jobs(todo), jobs, threads, command, listener)
            _share_memory(runs)
        _run_jobs(_training_jobs(todo), jobs, threads, command, listener)
        records = [load_record(place / RECORD) for place, _ in runs]
        write_report(folder, records)
    return records


def load_folder(folder: Path) -> list[RunRecord]:
    """Every record below a comparison's folder; having none is an error."""
    files = sorted(folder.glob("*/seed*/record.json"))
    if not files:
        raise RecordError(f"{folder}: holds no records.", "Name the folder that `mobillm compare` wrote.")
    return [load_record(file) for file in files]


def _memory_jobs(todo: Sequence[tuple[Path, RunSpec]]) -> list[Job]:
    """One per method and party: memory does not hang on the seed."""
    first: dict[str, Path] = {}
    for place, spec in todo:
        if method_row(spec.method).trained:
            first.setdefault(spec.method, place)
    return [
        Job(("memory", str(place), party), f"{method_row(name).label}: memory, {party}", training=False)
        for name, place in first.items()
        for party in _parties(name)
        if not any(place.parent.glob(f"seed*/memory-{party}.json"))
    ]


def _parties(method: str) -> tuple[str, ...]:
    return ("device", "server") if method_row(method).module == "mobillm" else ("device",)


def _share_memory(runs: Sequence[tuple[Path, RunSpec]]) -> None:
    """What was measured once per method stands in every seed's folder."""
    for place, spec in runs:
        for party in _parties(spec.method):
            target = place / f"memory-{party}.json"
            for source in sorted(place.parent.glob(f"seed*/memory-{party}.json"))[:1]:
                if not target.exists():
                    write_bytes(target, source.read_bytes())


def _training_jobs(todo: Sequence[tuple[Path, RunSpec]]) -> list[Job]:
    """One process per trained run; the controls, which train nothing, share one."""
    jobs, controls = [], []
    for place, spec in todo:
        row = method_row(spec.method)
        if row.trained:
            jobs.append(Job(("train", str(place)), f"{row.label}, seed {spec.seed}", training=True))
        else:
            controls.append(str(place))
    return [Job(("train", *controls), "Controls", training=True), *jobs] if controls else jobs


class Worker:
    """A worker process, and what it has said so far."""

    def __init__(self, job: Job, threads: int, command: str) -> None:
        self.job = job
        environment = fresh_environment(threads=threads)
        if job.training:  # the setting that makes memory measurable costs 10-20 % of the speed
            environment.pop("MALLOC_MMAP_THRESHOLD_")
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mobillm_kit.runs.worker", *job.arguments],
            stdin=subprocess.PIPE,  # held open: its end tells the worker that we are gone
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env={**environment, "MOBILLM_COMMAND": command},
            start_new_session=True,  # Ctrl-C reaches it through stop(), once
        )
        self._said: queue.SimpleQueue[Progress] = queue.SimpleQueue()
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()
        self._refusal = Progress()

    def _listen(self) -> None:
        assert self._process.stdout is not None  # it is a pipe
        for line in self._process.stdout:
            self._said.put(msgspec.json.decode(line, type=Progress))

    def lines(self) -> Iterator[Progress]:
        """What it has said since it was last asked."""
        while not self._said.empty():
            progress = self._said.get()
            if progress.error:
                self._refusal = progress
            else:
                yield progress

    @property
    def running(self) -> bool:
        """Whether it may still say something."""
        return self._process.poll() is None or self._listening.is_alive()

    def check(self) -> None:
        """Raise what it refused to do, or how it died."""
        if self._refusal.error:
            raise KitError(f"{self.job.label}: {self._refusal.error}", self._refusal.remedy)
        if self._process.returncode:
            code = self._process.returncode
            raise KitError(f"{self.job.label}: the process ended with code {code}.", self._last_words())

    def stop(self) -> None:
        """Let it end its step and save; end it where it does not."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._listening.join(PATIENCE_S)
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            if stream is not None:
                stream.close()

    def _last_words(self) -> str:
        self._complaints.seek(0)
        text = self._complaints.read().decode(errors="replace").strip()
        return text.splitlines()[-1] if text else "It said nothing more."


def _run_jobs(todo: Sequence[Job], at_a_time: int, threads: int, command: str, listener: Listener | None) -> None:
    tell = listener or (lambda _job, _progress: None)
    waiting = deque(todo)
    running: list[Worker] = []
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                running.append(Worker(waiting.popleft(), threads, command))
                tell(running[-1].job, Progress())
            for worker in list(running):
                ended = not worker.running  # asked first, so that no last line is lost
                for progress in worker.lines():
                    tell(worker.job, progress)
                if ended:
                    worker.check()
                    worker.stop()
                    running.remove(worker)
                    tell(worker.job, Progress(ended=True))
            time.sleep(0.05)
    finally:
        for worker in running:
            worker.stop()
