"""Where numbers come from is said exactly, and says nothing about whose machine it was."""

from __future__ import annotations

import getpass
import json
import platform
import re
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest
import torch

import mobillm_kit
from mobillm_kit.runs.provenance import clean_command, commit, hardware, provenance, versions

ROOT = Path(__file__).resolve().parent.parent


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory with a folder beside it."""
    (tmp_path / "home" / "main" / "data").mkdir(parents=True)
    (tmp_path / "home" / "shared" / "models").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "home" / "main")
    return tmp_path / "home" / "main"


def test_versions_are_those_that_are_installed():
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["mobillm_kit"] == mobillm_kit.__version__
    for name in ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy"):
        assert found[name] == version(name)


def test_versions_are_read_without_importing_anything_heavy():
    code = "import sys; from mobillm_kit.runs.provenance import versions; versions(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "False\n", done.stderr


def test_the_machine_is_described_by_what_matters():
    found = hardware()
    assert found["cpu"]
    assert found["cores"] >= 1
    assert 256 < found["ram_mib"] < 2**24
    assert found["threads"] == torch.get_num_threads()
    assert (found["gpu"] is None) == (not torch.cuda.is_available() and not torch.backends.mps.is_available())


def test_neither_host_nor_user_nor_absolute_path_is_written():
    text = msgspec.json.encode(provenance("mobillm compare")).decode()
    assert socket.gethostname() not in text
    assert str(ROOT) not in text
    assert not re.search(r'"/\w', text)
    user = getpass.getuser()
    assert not re.search(rf"\b{re.escape(user)}\b", text)


def test_provenance_is_complete_and_survives_json():
    found = provenance("mobillm train --method lora")
    assert found.command == "mobillm train --method lora"
    assert json.loads(msgspec.json.encode(found))["versions"] == versions()
    age = datetime.now(UTC) - datetime.fromisoformat(found.started)
    assert timedelta(0) <= age + timedelta(seconds=1) < timedelta(minutes=1)


def test_a_commit_is_named_and_a_change_is_admitted(tmp_path):
    git(tmp_path, "init", "-q")
    assert commit(tmp_path) == ""
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == f"{head}-dirty"
    git(tmp_path, "checkout", "-q", "a")
    (tmp_path / "new").write_text("untracked")
    assert commit(tmp_path) == f"{head}-dirty"


def test_a_folder_inside_somebody_elses_checkout_has_no_commit(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "site-packages").mkdir()
    assert commit(tmp_path / "site-packages") == ""


def test_no_git_means_no_commit(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path) == ""


def test_a_git_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("mobillm_kit.runs.provenance.GIT_LIMIT_S", 0.2)
    started = datetime.now(UTC)
    assert commit(tmp_path) == ""
    assert datetime.now(UTC) - started < timedelta(seconds=10)


def test_the_programs_folder_is_dropped(here):
    assert clean_command([f"{here}/.venv/bin/mobillm", "compare", "--seeds", "3"]) == "mobillm compare --seeds 3"


def test_paths_inside_and_beside_the_working_directory_are_relative(here):
    shared = here.parent / "shared" / "models"
    command = clean_command(["mobillm", "compare", "--data", f"{here}/data", f"--backbone={shared}"])
    assert command == "mobillm compare --data data --backbone=../shared/models"


def test_of_a_path_elsewhere_only_the_name_is_left(here):
    assert clean_command(["mobillm", "train", "--out", "/mnt/of/somebody/run7"]) == "mobillm train --out run7"
    assert clean_command(["mobillm", "train", "--out", "~/secret/run7"]) == "mobillm train --out run7"


def test_relative_paths_names_and_numbers_stay_as_they_are(here):
    argv = ["mobillm", "train", "--data", "../shared/sst2", "facebook/opt-125m", "--lr=1e-3", "-v"]
    assert clean_command(argv) == " ".join(argv)


def test_arguments_with_spaces_are_quoted(here):
    assert clean_command(["mobillm", "predict", "a good film"]) == "mobillm predict 'a good film'"


def test_modules_and_scripts_are_called_through_python(here):
    assert clean_command([f"{here}/mobillm_kit/__main__.py", "doctor"]) == "python -m mobillm_kit doctor"
    assert clean_command([f"{here}/benchmarks/compare.py", "--check"]) == "python benchmarks/compare.py --check"


def test_nothing_is_nothing():
    assert clean_command([]) == ""
