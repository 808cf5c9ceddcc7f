"""One run, or one memory measurement, in a process of its own.

    python -m mobillm_kit.runs.worker train  FOLDER …      reads FOLDER/spec.json, writes FOLDER/record.json
    python -m mobillm_kit.runs.worker memory FOLDER PARTY  writes FOLDER/memory-PARTY.json

It says how far it is as JSON lines on its standard output, and stops after the step it is in when its parent is gone
or asks for it (Ctrl-C).

Knows: runs and processes.  Knows nothing of: which runs there are, what is shown of them.
"""

import gc
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load, save_file

from mobillm_kit.common import when_parent_ends
from mobillm_kit.errors import KitError, TrainingDiverged
from mobillm_kit.files import write_bytes
from mobillm_kit.memory.measure import measured
from mobillm_kit.methods import load_method
from mobillm_kit.methods.mobillm import MobiLLM
from mobillm_kit.quant.parcels import Upload
from mobillm_kit.record import MeasuredMemory
from mobillm_kit.runs.folders import DIVERGED, load_spec
from mobillm_kit.runs.loop import fit_memory_error
from mobillm_kit.runs.prepare import Prepared, build_method, fit_settings, prepare, training_batches
from mobillm_kit.runs.progress import Progress
from mobillm_kit.runs.run import run
from mobillm_kit.texts.batches import StepBatch
from mobillm_kit.training.method import Method

STDOUT = 1

MEMORY_STEPS = 5
"""Training steps of a memory measurement: memory repeats from the second step on."""


def main(arguments: list[str]) -> int:
    """Do what the command line says; 0 when done, 2 where the user has to put something right."""
    what, *rest = arguments
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if not sys.stdin.isatty():
        when_parent_ends(lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        if what == "train":
            for folder in rest:
                train(Path(folder))
        else:
            measure_memory(Path(rest[0]), rest[1])
    except KitError as error:
        _say(Progress(error=error.problem, remedy=error.remedy))
        return 2
    return 0


def train(folder: Path) -> None:
    """One run: from ``spec.json`` to ``record.json``."""
    spec = load_spec(folder)
    reach = msgspec.json.decode(os.environ.get("MOBILLM_REACH", "{}"))
    spec = msgspec.structs.replace(spec, options={**spec.options, **reach})
    found = sorted(folder.glob("memory-*.json"))
    before = [msgspec.json.decode(path.read_bytes(), type=MeasuredMemory) for path in found]
    try:
        run(spec, folder=folder, command=os.environ.get("MOBILLM_COMMAND", ""), callbacks=[_say], measured=before)
    except TrainingDiverged as error:
        write_bytes(folder / DIVERGED, str(error).encode())
        raise


def measure_memory(folder: Path, party: str) -> None:
    """Train a few steps of one party in this fresh process and write what they took."""
    spec = load_spec(folder)
    load_method(spec.method)  # its imports belong to what is loaded before, not to training
    prepared = prepare(spec)
    order = training_batches(prepared)
    batches = [order.step(step) for step in range(min(MEMORY_STEPS, order.settings.steps))]
    if party == "server":
        result = _measure_server(prepared, batches)
    else:
        result = measured(lambda: _device_steps(prepared, batches), party="device", steps=len(batches))
    write_bytes(folder / f"memory-{party}.json", msgspec.json.format(msgspec.json.encode(result)))


def _device_steps(prepared: Prepared, batches: list[StepBatch]) -> None:
    """What the device does in training: for MobiLLM forward and upload, for every other method all of it."""
    method: Method = build_method(prepared)
    lr = fit_settings(prepared).lr
    for batch in batches:
        with fit_memory_error(method, batch):
            if isinstance(method, MobiLLM):
                method.uplink.carried(method.device.upload(batch))
            else:
                method.step(batch, lr)


def _measure_server(prepared: Prepared, batches: list[StepBatch]) -> MeasuredMemory:
    """The server's steps on uploads read from disk one at a time, after the backbone has been dropped."""
    lr = fit_settings(prepared).lr
    method = build_method(prepared)
    if not isinstance(method, MobiLLM):
        raise KitError(f"Method '{method.name}' has no server.")
    with tempfile.TemporaryDirectory() as place:
        files = [
            _write_upload(method.uplink.carried(method.device.upload(batch))[0], Path(place) / f"{number}.pt")
            for number, batch in enumerate(batches)
        ]
        server = method.server
        prepared.model.backbone.to("meta")  # the server never has it
        del method
        gc.collect()
        return measured(
            lambda: [server.train(_read_upload(file), lr) for file in files], party="server", steps=len(files)
        )


def _write_upload(upload: Upload, path: Path) -> Path:
    tensors = (upload.mask, upload.positions, upload.labels, *upload.activations)
    save_file({str(number): tensor.contiguous() for number, tensor in enumerate(tensors)}, path)
    return path


def _read_upload(path: Path) -> Upload:
    tensors = load(path.read_bytes())
    mask, positions, labels, *activations = (tensors[str(number)] for number in range(len(tensors)))
    return Upload(tuple(activations), mask, positions, labels)


def _say(progress: Progress) -> None:
    with suppress(BrokenPipeError):  # nobody listens any more; the run still ends its step and saves
        os.write(STDOUT, msgspec.json.encode(progress) + b"\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
