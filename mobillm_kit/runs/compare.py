"""Many runs into one folder: each in its own process, what is done already kept, what came out shown.

    runs/NAME/METHOD/seedS/   spec.json, record.json, checkpoint.safetensors, memory-PARTY.json, side/
    runs/NAME/                table.md, table.csv, figures/, index.html

Knows: runs, processes, what is shown.  Knows nothing of: how a method works.
Taught in: notebooks/09_comparison.ipynb
"""

import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from mobillm_kit.common import MMAP_THRESHOLD, fresh_environment
from mobillm_kit.errors import KitError
from mobillm_kit.files import only_one, write_bytes
from mobillm_kit.methods import method_row
from mobillm_kit.record import RunRecord, Scalar, load_record
from mobillm_kit.runs.folders import RECORD, is_done, lay_out
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
    """The worker's; the first one is ``train`` or ``memory``."""
    label: str
    reach: dict[str, Scalar | list[int]] = field(default_factory=dict)
    """How a server is reached: not in the run's files, where a one-time code would stay."""


Listener = Callable[[Job, Progress], object]
Runs = Sequence[tuple[Path, RunSpec]]
Runner = Callable[[Sequence[Job], int], None]
"""Does jobs, so many at a time, as :meth:`Workers.run` does."""


def compare(
    folder: Path,
    specs: Sequence[RunSpec],
    *,
    measure: bool = True,
    jobs: int = 1,
    threads: int = 1,
    command: str = "",
    listener: Listener | None = None,
    runner: Runner | None = None,
) -> list[RunRecord]:
    """Run every specification that has no record yet, and show all of them together.

    Args:
        folder: made if it is not there.
        specs: one per method and seed; the records come in their order.
        measure: also measure memory, in a fresh process per method and party.
        jobs: processes at a time, each of so many ``threads``; more than one makes seconds less comparable.
        command: for the records.
        listener: told of every line of progress.
        runner: does the jobs, in place of processes here, which have these threads, command and listener.

    Raises:
        FolderBusy: another comparison is writing there.
        BadInput: the folder holds a run of the same method and seed with other settings.
        KitError: what a run refused to do; the others' records are kept.
        KeyboardInterrupt: Ctrl-C; every worker has saved and ended.
    """
    with only_one(folder):
        runs = [(folder / spec.method / f"seed{spec.seed}", spec) for spec in specs]
        records = records_of(runs, runner or Workers(threads, command, listener).run, jobs, measure=measure)
        write_report(folder, records)
    return records


def records_of(runs: Runs, run: Runner, jobs: int, *, measure: bool) -> list[RunRecord]:
    """The records of runs; those that have none yet are run before, ``jobs`` at a time."""
    for place, spec in runs:
        lay_out(place, spec)
    todo = [(place, spec) for place, spec in runs if not is_done(place)]
    if measure:
        run(_memory_jobs(todo), jobs)
        _share_memory(runs)
    run(_training_jobs(todo), jobs)
    return [load_record(place / RECORD) for place, _ in runs]


def _memory_jobs(todo: Runs) -> list[Job]:
    """One per method and party: memory does not hang on the seed."""
    jobs: dict[str, Job] = {}
    for place, spec in todo:
        for party in _parties(spec.method):
            if not any(place.parent.glob(f"seed*/memory-{party}.json")):
                label = f"{method_row(spec.method).label}: memory, {party}"
                jobs.setdefault(label, Job(("memory", str(place), party), label))
    return list(jobs.values())


def _parties(method: str) -> tuple[str, ...]:
    if not method_row(method).trained:
        return ()
    return ("device", "server") if method_row(method).module == "mobillm" else ("device",)


def _share_memory(runs: Runs) -> None:
    """What was measured once per method stands in every seed's folder."""
    for place, spec in runs:
        for party in _parties(spec.method):
            target = place / f"memory-{party}.json"
            for source in sorted(place.parent.glob(f"seed*/memory-{party}.json"))[:1]:
                if not target.exists():
                    write_bytes(target, source.read_bytes())


def _training_jobs(todo: Runs) -> list[Job]:
    """One process per trained run; the controls, which train nothing, share one."""
    jobs, controls = [], []
    for place, spec in todo:
        row = method_row(spec.method)
        if row.trained:
            cell = "" if place.parent.name == spec.method else f", {place.parent.name}"  # of a grid
            jobs.append(Job(("train", str(place)), f"{row.label}{cell}, seed {spec.seed}", spec.reach()))
        else:
            controls.append(str(place))
    return [Job(("train", *controls), "Controls"), *jobs] if controls else jobs


class Workers:
    """The processes of a comparison, a few at a time; a thread hears what each of them says."""

    def __init__(self, threads: int, command: str, listener: Listener | None) -> None:
        self._environment = {**fresh_environment(threads=threads), "MOBILLM_COMMAND": command}
        self._tell = listener or (lambda _job, _progress: None)
        self._started: list[subprocess.Popen[bytes]] = []
        self._stopping = threading.Event()

    def run(self, jobs: Sequence[Job], at_a_time: int) -> None:
        """Do them all; on the first refusal, or on Ctrl-C, those that run save and end, and the rest is left."""
        with ThreadPoolExecutor(at_a_time) as pool:
            try:
                for done in as_completed([pool.submit(self._work, job) for job in jobs]):
                    done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise

    def stop(self) -> None:
        """Let those that run end their step and save; it may be called from any thread."""
        self._stopping.set()
        for process in self._started:
            process.send_signal(signal.SIGINT)  # nothing where it has ended
        for process in self._started:
            _await(process)

    def _work(self, job: Job) -> None:
        """One process, from its start to its end; what it refused to do, or how it died, is raised."""
        self._tell(job, Progress())
        environment = {**self._environment, "MOBILLM_REACH": msgspec.json.encode(job.reach).decode()}
        if job.arguments[0] == "train":  # the setting that makes memory measurable costs 10-20 % of the speed
            environment.pop(MMAP_THRESHOLD)
        refusal = Progress()
        with tempfile.TemporaryFile() as complaints, _process(job, environment, complaints) as process:
            self._started.append(process)
            if self._stopping.is_set():
                process.send_signal(signal.SIGINT)
            for line in process.stdout or ():
                said = msgspec.json.decode(line, type=Progress)
                if said.error:
                    refusal = said
                else:
                    self._tell(job, said)
            code = process.wait()
            complaints.seek(0)
            last_words = complaints.read().decode(errors="replace").strip().splitlines() or ["It said nothing more."]
        if refusal.error:
            raise KitError(f"{job.label}: {refusal.error}", refusal.remedy)
        if code:
            raise KitError(f"{job.label}: the process ended with code {code}.", last_words[-1])
        if not self._stopping.is_set():
            self._tell(job, Progress(ended=True))


def _process(job: Job, environment: dict[str, str], complaints: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "mobillm_kit.runs.worker", *job.arguments],
        stdin=subprocess.PIPE,  # held open: its end tells the worker that we are gone
        stdout=subprocess.PIPE,
        stderr=complaints,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches it through us, once
    )


def _await(process: subprocess.Popen[bytes]) -> None:
    """Let it end its step and save; end it where it does not, or where Ctrl-C is pressed again."""
    try:
        process.wait(PATIENCE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
