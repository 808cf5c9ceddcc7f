"""The doctor answers in time, never raises, and really tries what it claims."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path

import pytest
import zmq

from mobillm_kit.errors import MissingExtra
from mobillm_kit.runs import doctor
from mobillm_kit.runs.doctor import Check


def test_every_probe_answers_and_every_failure_says_what_to_do():
    checks = doctor.examine()
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    assert {"python", "numpy", "extra torch", "accelerators", "memory", "sockets", "pocket model"} <= set(names)
    for check in checks:
        assert check.detail
        assert check.ok or check.remedy


def test_a_probe_that_hangs_is_a_failed_check_within_its_limit():
    never = threading.Event()
    started = time.perf_counter()
    (check,) = doctor.within("slow", lambda: [Check("slow", never.wait(), "")], limit_s=0.2)
    assert time.perf_counter() - started < 5
    assert not check.ok
    assert "0.2 s" in check.detail
    never.set()


def test_a_probe_that_raises_is_a_failed_check_that_carries_the_reason():
    def broken() -> list[Check]:
        raise OSError("no such library")

    (check,) = doctor.within("broken", broken, limit_s=5)
    assert not check.ok
    assert check.detail == "OSError: no such library"


def test_a_probe_that_raises_our_own_sentence_is_that_sentence():
    def lacking() -> list[Check]:
        raise MissingExtra("This needs torch.", "Install it.")

    assert doctor.within("torch", lacking, limit_s=5) == [Check("torch", False, "This needs torch.", "Install it.")]


def test_a_line_shows_the_state_and_the_remedy():
    assert str(Check("disk", True, "9 MiB free")) == "[ok] disk: 9 MiB free"
    assert str(Check("disk", False, "full", "Make room.")).startswith("[fail] disk: full\n")
    assert "Make room." in str(Check("disk", False, "full", "Make room."))


def test_two_sockets_talk():
    (check,) = doctor.sockets()
    assert check.ok
    assert "64 KiB there and back" in check.detail


def test_a_socket_that_gets_no_answer_is_reported_within_the_limit(monkeypatch):
    real = zmq.Socket.connect
    closed = "tcp://127.0.0.1:1"  # nobody listens there
    monkeypatch.setattr(zmq.Socket, "connect", lambda self, to: real(self, closed if to.startswith("tcp") else to))
    started = time.perf_counter()
    (check,) = doctor.sockets(limit_s=0.3)
    assert time.perf_counter() - started < 5
    assert not check.ok
    assert "firewall" in check.remedy


def test_the_socket_check_leaves_no_thread_behind():
    before = set(threading.enumerate())
    doctor.sockets()
    assert set(threading.enumerate()) <= before


def test_versions_are_those_of_the_installed_packages():
    found = {check.name: check for check in doctor.packages()}
    for name in ("tokenizers", "pyzmq", "msgspec"):
        assert found[name].ok
        assert found[name].detail == metadata.version(name)
    for name in ("torch", "transformers", "peft"):
        assert f"{name} {metadata.version(name)}" in found["extra torch"].detail


def fake_distribution(folder: Path, name: str, version: str, *requires: str) -> None:
    """Install a distribution's metadata, all that the doctor reads, into ``folder``."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", "Provides-Extra: lab"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_missing_and_an_old_package_are_told_apart(tmp_path, monkeypatch):
    fake_distribution(tmp_path, "oldlib", "1.2")
    fake_distribution(tmp_path, "thekit", "0.1", "oldlib>=2", "nolib>=1", 'nolab>=3; extra == "lab"')
    monkeypatch.syspath_prepend(tmp_path)
    found = {check.name: check for check in doctor.packages("thekit")}
    assert not found["oldlib"].ok
    assert found["oldlib"].detail == "1.2, wanted >=2"
    assert found["nolib"].detail == "missing, wanted >=1"
    assert found["extra lab"].detail == "nolab missing, wanted >=3"
    assert found["extra lab"].remedy == 'Run: pip install "thekit[lab]"'


def test_a_package_that_is_not_installed_at_all_is_one_clear_line():
    (check,) = doctor.packages("surely-not-installed")
    assert not check.ok
    assert "surely-not-installed is not installed" in check.detail


def test_the_build_of_torch_is_named():
    import torch

    (check,) = doctor.accelerators()
    assert check.ok
    assert ("CPU build" in check.detail) == (torch.version.cuda is None)


def test_free_memory_is_below_the_machine_s_memory():
    (check,) = doctor.memory()
    free, total = (int(word) for word in check.detail.split() if word.isdigit())
    assert 0 < free <= total


def test_little_memory_is_a_failed_check(monkeypatch):
    monkeypatch.setattr(doctor, "FREE_MEMORY_MIB", 2**30)
    (check,) = doctor.memory()
    assert not check.ok
    assert "MiB" in check.remedy


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_a_failed_check(tmp_path):
    tmp_path.chmod(0o500)
    (check,) = doctor.disk(tmp_path)
    assert not check.ok
    assert "cannot be written" in check.detail


def test_a_full_disk_is_a_failed_check(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "FREE_DISK_MIB", 2**40)
    (check,) = doctor.disk(tmp_path)
    assert not check.ok
    assert str(tmp_path) in check.detail


@pytest.mark.parametrize(("policy", "quiet"), [("passive", True), ("PASSIVE", True), ("active", False)])
def test_spinning_workers_are_advised_against(monkeypatch, policy, quiet):
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    (check,) = doctor.threads()
    assert check.ok
    assert (check.remedy == "") == quiet


def test_widgets_need_the_front_end_too(monkeypatch, tmp_path):
    (check,) = doctor.widgets()
    assert check.ok
    monkeypatch.setattr(doctor, "_labextension_folders", lambda: [tmp_path])
    (check,) = doctor.widgets()
    assert not check.ok
    assert "no widget extension" in check.detail


def test_an_incomplete_data_folder_names_the_missing_file(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(doctor, "data_folder", lambda name: tmp_path)
    model, *tasks = doctor.packaged_data()
    assert model.detail.startswith("model.safetensors, tokenizer.json missing")
    assert [task.name for task in tasks] == ["task reviews", "task turns"]
    assert all(task.detail.startswith("train.tsv, dev.tsv, test.tsv missing") for task in tasks)


def test_importing_the_doctor_imports_neither_torch_nor_zmq():
    probe = "import sys, mobillm_kit.runs.doctor; print({'torch', 'zmq'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
