"""A worker's words and files, in this process: what it says line by line, what it leaves, what it refuses."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mobillm_kit.record import MeasuredMemory, load_record
from mobillm_kit.runs import worker
from mobillm_kit.runs.folders import lay_out
from mobillm_kit.runs.progress import Progress
from tests.builders import tiny_spec


@pytest.fixture
def work(monkeypatch, capfd):
    """Runs a worker's command line here; gives its exit status and what it said."""
    monkeypatch.setattr(worker, "when_parent_ends", lambda end: None)  # the parent is this test, and it stays
    monkeypatch.setenv("MOBILLM_COMMAND", "mobillm compare")

    def _run(*arguments: object) -> tuple[int, list[Progress]]:
        capfd.readouterr()
        status = worker.main([str(argument) for argument in arguments])
        return status, [msgspec.json.decode(line, type=Progress) for line in capfd.readouterr().out.splitlines()]

    return _run


def laid_out(place: Path, method: str) -> Path:
    folder = place / "run"
    lay_out(folder, tiny_spec(place, method))
    return folder


def test_it_trains_says_every_step_and_keeps_what_was_measured_before(tmp_path, work):
    folder = laid_out(tmp_path, "probe")
    known = MeasuredMemory(
        party="device", loaded_rss_bytes=1, peak_rss_bytes=3, average_rss_bytes=2, steps=5, how="by hand"
    )
    (folder / "memory-device.json").write_bytes(msgspec.json.encode(known))
    status, said = work("train", folder)
    record = load_record(folder / "record.json")
    assert status == 0
    assert (record.status, record.measured, record.provenance.command) == ("done", (known,), "mobillm compare")
    training = [progress for progress in said if not progress.what]
    assert [progress.step for progress in training] == list(range(1, record.steps + 1))
    looks = [progress.dev_accuracy for progress in training if progress.dev_accuracy is not None]
    assert looks == [point.dev_accuracy for point in record.curve[1:]]
    assert (said[-1].what, said[-1].step) == ("test", record.task.test)


@pytest.mark.parametrize("party", ["device", "server"])
def test_it_measures_one_party_of_a_split_run(tmp_path, work, party):
    folder = laid_out(tmp_path, "mobillm-full-width")
    assert work("memory", folder, party) == (0, [])
    found = msgspec.json.decode((folder / f"memory-{party}.json").read_bytes(), type=MeasuredMemory)
    assert (found.party, found.steps) == (party, worker.MEMORY_STEPS)
    assert found.peak_rss_bytes >= found.loaded_rss_bytes > 0


def test_what_it_refuses_is_its_last_line_and_status_2(tmp_path, work):
    status, (refusal,) = work("memory", laid_out(tmp_path, "probe"), "server")
    assert (status, refusal.error) == (2, "Method 'probe' has no server.")
    status, (refusal,) = work("train", tmp_path / "nowhere")
    assert status == 2
    assert "holds no run" in refusal.error
    assert refusal.remedy
