"""The outer shell: one list of dependencies, a light import, rules of the house that a machine can see."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import mobillm_kit
from mobillm_kit.cli import parse
from mobillm_kit.texts.tasks import PACKAGED

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "mobillm_kit").rglob("*.py"))
CELLS = [
    "".join(cell["source"])
    for folder in ("notebooks", "mobillm_kit/show")
    for path in sorted((ROOT / folder).glob("*.ipynb"))
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    if cell["cell_type"] == "code"
]
HEAVY = {"torch", "transformers", "peft", "zmq", "numpy", "pandas", "matplotlib", "ipywidgets", "datasets"}


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def conda() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def install_torch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_torch", ROOT / "scripts" / "install_torch.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["install_torch"] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement).group().lower()


# environment.yml and pyproject.toml


def test_environment_is_thin_and_asks_for_the_python_that_pyproject_asks_for(project, conda):
    assert conda["channels"] == ["conda-forge"]
    named = [entry for entry in conda["dependencies"] if isinstance(entry, str)]
    assert named == [f"python{project['requires-python']}", "pip"]


def test_environment_installs_the_package_with_extras_that_exist(project, conda):
    (pip,) = (entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    (line,) = (entry for entry in pip if not entry.startswith("--"))
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", line).group(1).split(",")
    assert set(extras) == {"lab", "test"}
    assert set(extras) <= set(project["optional-dependencies"])


def test_make_and_environment_install_the_same_extras(conda):
    (pip,) = (entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"install -e '(\.\[[\w,]+\])'", makefile).group(1) == pip[-1].removeprefix("-e ")


ONE_VERSION = {"ray[client]==2.60.*", "executorch==1.5.*", "torchao==0.18.*"}
"""All processes of a Ray cluster are of one version; another one refuses to connect.  ExecuTorch has one torch."""


def test_every_requirement_has_a_lower_bound_and_no_upper_one(project):
    requirements = chain(project["dependencies"], *project["optional-dependencies"].values())
    for requirement in set(requirements) - ONE_VERSION:
        assert re.fullmatch(r"[\w.-]+>=[\d.]+|mobillm-kit\[[\w,]+\]", requirement), requirement


def test_every_library_that_the_package_imports_is_declared(project):
    imported = {
        "zmq": "pyzmq",
        "huggingface_hub": "huggingface-hub",
        "sklearn": "scikit-learn",
        "adjustText": "adjusttext",
    }
    imported |= {"IPython": "ipykernel", "memory_profiler": "memory-profiler", "jupyter_core": "jupyterlab"}
    user_lists = [
        project["dependencies"],
        *(
            project["optional-dependencies"][x]
            for x in ("torch", "device", "lab", "hub", "gguf", "onnx", "class", "cluster", "executorch")
        ),
    ]
    declared = {name_of(requirement) for requirement in chain(*user_lists)}
    for path in MODULES:
        for module in imports_of(path):
            top = module.split(".")[0]
            if top not in sys.stdlib_module_names and top != "mobillm_kit":
                assert imported.get(top, top) in declared, f"{path.name} imports {top}"


def test_a_device_with_an_exported_backbone_is_installed_without_pytorch(project):
    extras = project["optional-dependencies"]
    wanted = {name_of(requirement) for requirement in (*project["dependencies"], *extras["device"])}
    assert not wanted & {"torch", "transformers", "peft", "mobillm-kit"}
    for name in ("lab", "hub", "gguf", "onnx"):  # who trains gets PyTorch without asking for it
        assert any(re.match(r"mobillm-kit\[.*torch", line) for line in extras[name]), name


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def test_version_has_one_source(project):
    assert project["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", mobillm_kit.__version__)
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(cff["version"]) == mobillm_kit.__version__


def test_the_first_screen_of_the_readme_has_two_commands_and_make_knows_them():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = re.search(r"```\w*\n(.*?)```", readme, re.DOTALL)
    commands = [line.split("#")[0].strip() for line in first.group(1).strip().splitlines()]
    assert commands == ["make compare", "make test"]
    assert readme[: first.end()].count("\n") < 30
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands:
        assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE)


def test_make_compare_runs_every_packaged_task_into_a_folder_that_readme_and_help_name():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^compare:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE).group(1)
    asked = [parse(line.split()) for line in re.findall(r"\$\(BIN\)/mobillm (compare.*)", recipe)]
    assert tuple(command.task for command in asked) == PACKAGED
    folders = [f"{command.folder()}/" for command in asked]
    assert len(set(folders)) == len(asked)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for text in (readme.split("make test")[0], makefile.split('"make compare')[1].split("\n")[0]):
        assert re.findall(r"runs/[\w-]+/", text) == folders


# import mobillm_kit


def test_importing_the_package_imports_nothing_heavy():
    probe = "import sys, mobillm_kit; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "mobillm_kit" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("name", sorted(set(mobillm_kit.__all__) - {"__version__"}))
def test_a_public_name_is_the_object_in_its_own_module(name):
    home = importlib.import_module(mobillm_kit._HOME[name])
    assert getattr(mobillm_kit, name) is getattr(home, name)
    assert name in dir(mobillm_kit)


def test_no_public_name_is_also_a_module():
    """Such a name would mean the object or the module, depending on who was imported first."""
    modules = {path.stem for path in (ROOT / "mobillm_kit").iterdir()}
    assert not modules & (set(mobillm_kit.__all__) - {"__version__"})


def test_the_list_of_names_and_the_map_of_names_agree():
    assert set(mobillm_kit.__all__) == {*mobillm_kit._HOME, "__version__"}


def test_the_public_names_are_those_that_the_notebooks_use():
    used = set(re.findall(r"\bkit\.(\w+)", "\n".join(CELLS)))
    assert used == set(mobillm_kit.__all__) - {"__version__"}


def test_the_notebooks_import_the_package_as_kit_and_nothing_else_of_it():
    imports = re.findall(r"^.*\bimport\b.*$|^.*mobillm_kit\..*$", "\n".join(CELLS), re.MULTILINE)
    assert {line.strip(' "') for line in imports if "mobillm_kit" in line} == {"import mobillm_kit as kit"}


def test_a_misspelt_name_is_an_attribute_error_that_names_the_closest():
    with pytest.raises(AttributeError, match=r"no public name 'load_bakbone'.*Did you mean 'load_backbone'"):
        _ = mobillm_kit.load_bakbone


def test_an_old_python_is_told_which_one_is_needed():
    code = "import sys; sys.version_info = (3, 10, 12, 'final', 0); import mobillm_kit"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert "ImportError: mobillm-kit needs Python 3.11 or newer; this kernel runs" in ended.stderr


def test_a_name_like_no_other_lists_what_there_is():
    with pytest.raises(AttributeError, match=r"Public names: .*FullWidthSide"):
        _ = mobillm_kit.zzz


# rules of the house


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_opens_with_what_it_knows(path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, "no docstring"
    assert re.search(r"\bKnows: \w", docstring)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unsafe_and_nothing_unfinished_is_in_the_package(path):
    text = path.read_text(encoding="utf-8")
    unsafe = r"\bpickle\b|torch\.load\(|(?<![.\w])eval\(|(?<![.\w])exec\("
    unfinished = r"\b(TODO|FIXME)\b|raise NotImplementedError"
    assert not re.findall(f"{unsafe}|{unfinished}", text)


# scripts/install_torch.py


def test_on_linux_the_cpu_index_is_taken_when_it_answers(install_torch):
    for build in ("auto", "cpu"):
        arguments, why = install_torch.index_args(build, "Linux", lambda: True)
        assert arguments == ["--extra-index-url", install_torch.CPU_INDEX]
        assert "CPU build" in why


def test_without_the_cpu_index_pip_decides_and_the_line_says_so(install_torch):
    arguments, why = install_torch.index_args("cpu", "Linux", lambda: False)
    assert arguments == []
    assert "does not answer" in why


@pytest.mark.parametrize(("build", "system"), [("cuda", "Linux"), ("default", "Linux"), ("cpu", "Darwin")])
def test_the_cpu_index_is_not_even_asked_where_it_does_not_matter(install_torch, build, system):
    def never() -> bool:
        raise AssertionError("asked")

    assert install_torch.index_args(build, system, never)[0] == []


def test_an_index_answers_or_does_not(install_torch):
    class Index(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if self.path == "/torch/" else 404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Keep the test's output clean."""

    with HTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert install_torch.answers(f"{url}/torch/")
        assert not install_torch.answers(f"{url}/nothing/")
        server.shutdown()


def test_a_silent_index_costs_the_time_limit_and_no_more(install_torch):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/"
        assert not install_torch.answers(url, seconds=0.2)


@pytest.mark.parametrize(
    ("cuda", "build", "fits"),
    [
        ("", "cpu", True),
        ("", "cuda", False),
        ("13.0", "cpu", False),
        ("13.0", "cuda", True),
        ("13.0", "auto", True),
    ],
)
def test_a_build_fits_what_was_asked_for(install_torch, cuda, build, fits):
    assert install_torch.Installed("2.13.0", cuda).fits(build) is fits


def test_the_installed_torch_is_recognised(install_torch):
    import torch

    assert install_torch.installed() == install_torch.Installed(torch.__version__, torch.version.cuda or "")


def test_the_fallback_is_the_bound_that_the_project_declares(install_torch, project):
    bound = install_torch.bound_in_pyproject(ROOT / "pyproject.toml")
    assert bound in project["optional-dependencies"]["torch"]
    assert name_of(bound) == "torch"
