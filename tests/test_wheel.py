"""The wheel stands alone: built through the sdist, installed without the checkout, it finds its own data."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import mobillm_kit

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ("pocket", "reviews", "turns")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """An interpreter with the wheel in it, and of everything else only the dependencies.

    The dependencies are lent by the environment of this test through a path file.  An editable install of the
    checkout does not come along: path files inside a lent folder are not read.
    """
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    # installed first: pip must not see, and not touch, the copy that the lent folder may hold
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=home,
    )
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    site = run(python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip()
    Path(site, "lent.pth").write_text("\n".join(sorted(lent)), encoding="utf-8")
    return python


def ask(python: Path, code: str) -> str:
    """Run ``code`` where neither the checkout, the working directory nor PYTHONPATH can help."""
    return run(python, "-I", "-c", code, cwd=python.parent).strip()


def files_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", PACKAGED)
def test_the_wheel_carries_every_packaged_file_byte_for_byte(wheel, name):
    prefix = f"mobillm_kit/_data/{name}/"
    with zipfile.ZipFile(wheel) as archive:
        inside = {n.removeprefix(prefix): archive.read(n) for n in archive.namelist() if n.startswith(prefix)}
    assert inside == files_below(ROOT / "data" / name)


def test_the_wheel_carries_the_model_and_the_task(wheel):
    with zipfile.ZipFile(wheel) as archive:
        size_bytes = {info.filename: info.file_size for info in archive.infolist()}
    assert 1e6 < size_bytes["mobillm_kit/_data/pocket/model.safetensors"] <= 12e6
    for task, split in itertools.product(PACKAGED[1:], ("train", "dev", "test")):
        assert size_bytes[f"mobillm_kit/_data/{task}/{split}.tsv"] > 10_000


def test_the_wheel_carries_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    info = f"mobillm_kit-{mobillm_kit.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"mobillm_kit", info}
    assert f"{info}/licenses/LICENSE" in names
    assert "mobillm_kit/py.typed" in names
    assert not [name for name in names if name.endswith(".pyc")]
    assert [name for name in names if name.endswith(".ipynb")] == ["mobillm_kit/show/app.ipynb"]  # of `mobillm app`


def test_the_sdist_carries_what_the_tests_need(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert {"mobillm_kit", "data", "tests", "notebooks", "Makefile", "pyproject.toml", "LICENSE"} <= tops
    assert not tops & {".venv", "runs", ".git"}


def test_the_installed_package_is_the_wheel_s_and_not_the_checkout_s(python):
    where = Path(ask(python, "import mobillm_kit; print(mobillm_kit.__file__)"))
    assert where.is_relative_to(python.parents[1])
    assert not where.is_relative_to(ROOT)


@pytest.mark.parametrize("name", PACKAGED)
def test_the_installed_wheel_finds_its_data_inside_itself(python, name):
    code = f"from mobillm_kit.files import data_folder; print(data_folder({name!r}))"
    folder = Path(ask(python, code))
    assert folder.is_relative_to(python.parents[1])
    assert files_below(folder) == files_below(ROOT / "data" / name)


def test_the_installed_wheel_s_model_reads_a_text(python):
    code = """
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from mobillm_kit.files import data_folder
folder = data_folder("pocket")
model = AutoModelForCausalLM.from_pretrained(folder)
ids = AutoTokenizer.from_pretrained(folder)("the soup was great", return_tensors="pt").input_ids
with torch.no_grad():
    logits = model(ids).logits
print(json.dumps([ids.shape[1], *logits.shape, bool(logits.isfinite().all()), float(logits.std()) > 0.1]))
"""
    n_tokens, batch, length, vocabulary, finite, spread = json.loads(ask(python, code).splitlines()[-1])
    assert n_tokens >= 4
    assert (batch, length) == (1, n_tokens)
    assert vocabulary > 1000
    assert finite
    assert spread


def test_the_command_comes_with_the_wheel(python):
    command = python.parent / ("mobillm.exe" if os.name == "nt" else "mobillm")
    shown = run(command, "--help", cwd=python.parent, PYTHONPATH="", NO_COLOR="1", COLUMNS="100")
    for name in ("doctor", "compare", "train", "evaluate", "predict", "tasks", "methods"):
        assert name in shown
