"""A real Chromium, the servers whose pages it opens, and where its pictures go."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "runs" / "browser"
START_S = 240.0
"""A server, a kernel and torch may start slowly on a busy machine."""
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NAMELESS = "aria-input-field-name"
LAB_SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # every cell is on the page
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make browser installs it")
    program = next((path for name in CHROMIUMS if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"needs a Chromium ({', '.join(CHROMIUMS)}), which this machine has not")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address in a window of its own, which stays until the module's tests have ended."""
    contexts = []

    def _open(address: str, *, width: int = 1280, height: int = 900, scheme: str = "light", zoom: float = 1.0) -> Any:
        size = {"width": round(width / zoom), "height": round(height / zoom)}
        contexts.append(chromium.new_context(viewport=size, color_scheme=scheme, device_scale_factor=zoom))
        page = contexts[-1].new_page()
        page.goto(address, timeout=1e3 * START_S)
        return page

    yield _open
    for context in contexts:
        context.close()


@contextmanager
def served(arguments: list[str], port: int, folder: Path, **environment: str) -> Iterator[str]:
    """A server process, from its first answer to the end of the block; what it said is shown where it does not come."""
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=folder, stdout=out, stderr=out, env=os.environ | environment
        )
        try:
            yield _answering(f"http://127.0.0.1:{port}/", process, log)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _answering(address: str, process: subprocess.Popen, log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=START_S).close()
            return address
        except OSError:
            time.sleep(0.3)
    raise AssertionError(log.read_text()[-2000:])


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab on copies of the notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    for file in (ROOT / "notebooks").glob("*.*"):  # pictures too
        shutil.copy(file, folder)
    for name, values in LAB_SETTINGS.items():
        file = folder / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    port = free_port()
    arguments = ["jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token="]
    own = {f"JUPYTERLAB_{what.upper()}_DIR": str(folder / what) for what in ("settings", "workspaces")}
    with served(arguments, port, folder, **own) as address:  # the user's own stay as they are
        yield address


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mobillm app`."""
    port = free_port()
    arguments = ["mobillm_kit.cli", "app", "--no-browser", f"--port={port}"]
    with served(arguments, port, tmp_path_factory.mktemp("app")) as address:
        yield address


def picture(page: Any, name: str) -> None:
    """Kept for eyes, out of git."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


def note_time(what: str, seconds: float) -> None:
    """One line of the table of panels' times."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with (PICTURES / "times.csv").open("a", newline="") as file:
        csv.writer(file).writerow([what, f"{seconds:.2f}"])


def violations(page: Any, scope: str = "body") -> list[str]:
    """What axe-core finds wrong below ``scope`` for readers with a screen reader or weak eyes (WCAG 2 A and AA).

    A slider of ipywidgets 8 gives its handle no name of its own, only a label beside it; that is left out here.
    """
    from axe_core_python.sync_playwright import Axe

    found = Axe().run(page, scope, {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})
    nodes = [(each["id"], node["html"]) for each in found["violations"] for node in each["nodes"]]
    return [f"{name}: {html[:160]}" for name, html in nodes if not (name == NAMELESS and "noUi-handle" in html)]
