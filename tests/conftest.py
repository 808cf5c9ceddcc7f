"""What every test stands on: quiet threads, no network, and where the real models and texts lie.

The environment is set before any test module imports torch: OpenMP reads it once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; the processes we start inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Same bytes on every machine, and no quarrel between parallel workers."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real models and real texts (``models/``, ``data/``); the test is skipped without it."""
    folder = ROOT.parent / "shared"
    if not (folder / "models").is_dir() or not (folder / "data").is_dir():
        pytest.skip("needs real models and texts in ../shared (models/, data/), which this machine has not")
    return folder
