"""Many runs in one folder: each in a process of its own, resumed, refused, interrupted, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mobillm_kit.errors import BadInput, FolderBusy, KitError
from mobillm_kit.files import only_one
from mobillm_kit.runs.compare import compare
from mobillm_kit.runs.folders import lay_out
from tests.builders import save_texts, save_tiny_model, tiny_spec

METHODS = ("bag-of-words", "probe", "mobillm-full-width")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    place = tmp_path_factory.mktemp("compared")
    specs = [tiny_spec(place, method) for method in METHODS]
    return place / "run", specs, compare(place / "run", specs, jobs=2)


def test_every_run_leaves_a_whole_record(compared):
    _, _, records = compared
    assert [record.method for record in records] == list(METHODS)
    assert all(record.status == "done" for record in records)
    assert all("test_accuracy" in record.scores for record in records)
    assert [len(record.curve) for record in records] == [0, 3, 3]


def test_device_and_server_are_counted_and_measured_apart(compared):
    probe, mobillm = compared[2][1:]
    assert [party.party for party in probe.measured] == ["device"]
    assert sorted(party.party for party in mobillm.measured) == ["device", "server"]
    assert [party.party for party in mobillm.counted] == ["device", "server"]
    assert all(party.peak_rss_bytes >= party.loaded_rss_bytes > 2**26 for party in mobillm.measured)
    assert all("MALLOC_MMAP_THRESHOLD_=131072" in party.how for party in mobillm.measured)


def test_the_folder_shows_it_all(compared):
    folder, _, _ = compared
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"index.html", "table.md", "table.csv"} <= names
    assert any(name.startswith("figures/") and name.endswith(".png") for name in names)
    assert {"mobillm-full-width/seed0/side/model.safetensors", "probe/seed0/checkpoint.safetensors"} <= names
    table = (folder / "table.md").read_text()
    assert "MobiLLM, full width" in table
    assert "Bag of words" in table


def test_what_is_done_is_kept(compared):
    folder, specs, records = compared
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("record.json")}
    heard = []
    assert compare(folder, specs, listener=lambda job, said: heard.append(job)) == records
    assert heard == []  # no process was started
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("record.json")}


def test_other_settings_in_the_same_folder_are_refused(compared):
    folder = compared[0]
    changed = [tiny_spec(folder.parent, "probe", lr=0.5)]
    with pytest.raises(BadInput, match=r"holds a run with other settings \(lr\)"):
        compare(folder, changed)


def test_two_at_a_time_in_one_folder_are_refused(tmp_path):
    hold = (
        "import sys, time; from pathlib import Path; from mobillm_kit.files import only_one\n"
        "with only_one(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(FolderBusy, match="another run is writing"), only_one(tmp_path):
            pass
    finally:
        other.kill()
        other.communicate()
    with only_one(tmp_path):
        pass  # a killed holder holds nothing


def test_what_a_worker_refuses_is_said_with_the_methods_name(tmp_path):
    spec = tiny_spec(tmp_path, "full", lr=1e30, eval_every=1)
    with pytest.raises(KitError, match=r"Full fine-tuning, seed 0: .*lower the learning rate"):
        compare(tmp_path / "run", [spec], measure=False)
    assert not (tmp_path / "run/full/seed0/checkpoint.safetensors").exists()  # weights that are no numbers


# ---------------------------------------------------------------------- Ctrl-C and worse


def command_line(place: Path, steps: int) -> list[str]:
    save_tiny_model(place / "model")
    save_texts(place / "texts.csv")
    return [
        *(sys.executable, "-m", "mobillm_kit.cli", "compare", "--name", "run", "--runs", str(place)),
        *("--methods", "probe", "--backbone", str(place / "model"), "--task", "custom", "--no-memory"),
        *("--data", str(place / "texts.csv"), "--text", "text", "--label", "label", "--prompt", "{text} it was"),
        *("--label-words", " bad| good", "--steps", str(steps), "--eval-every", "10", "--batch-size", "4"),
    ]


def wait_for(condition, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def workers_of(place: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "mobillm_kit.runs.worker" in (process.info["cmdline"] or [])
        and str(place) in " ".join(process.info["cmdline"])
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_comparison_leaves_no_process_and_a_run_that_goes_on(tmp_path, number):
    folder = tmp_path / "run/probe/seed0"
    started = subprocess.Popen(command_line(tmp_path, steps=1_000_000), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert wait_for((folder / "checkpoint.safetensors").exists)
    os.kill(started.pid, number)
    _, complaint = started.communicate(timeout=60)
    assert wait_for(lambda: not workers_of(tmp_path), 20)
    assert wait_for((folder / "record.json").exists, 5)
    assert '"interrupted"' in (folder / "record.json").read_text()
    if number == signal.SIGINT:
        assert started.returncode == 130
        assert b"the same command goes on" in complaint


def test_a_saved_specification_is_compared_before_it_is_replaced(tmp_path):
    place = tmp_path / "place"
    lay_out(place, tiny_spec(tmp_path, "probe", seed=2))  # nothing is trained yet
    lay_out(place, tiny_spec(tmp_path, "probe"))
    (place / "checkpoint.safetensors").touch()
    lay_out(place, tiny_spec(tmp_path, "probe"))
    with pytest.raises(BadInput, match="other settings"):
        lay_out(place, tiny_spec(tmp_path, "probe", seed=1))


def test_random_weights_of_several_seeds_stand_in_one_table(tmp_path):
    specs = [tiny_spec(tmp_path, "probe", random_weights=True, seed=seed) for seed in (0, 1)]
    records = compare(tmp_path / "run", specs, measure=False, jobs=2)
    assert records[0].backbone.fingerprint != records[1].backbone.fingerprint
    assert "| Linear probe |" in (tmp_path / "run/table.md").read_text()
