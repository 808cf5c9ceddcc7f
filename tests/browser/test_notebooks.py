"""Each notebook in JupyterLab, from top to bottom, and every control in it moved."""

from __future__ import annotations

import time

import pytest

from tests.browser.conftest import ROOT, note_time, picture
from tests.browser.panels import moves, panels

pytestmark = pytest.mark.browser

NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
RUN_S = 900.0


def run_all(page) -> None:
    page.locator(".jp-Notebook").wait_for(timeout=120e3)
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=120e3)
    waiting, deadline = page.locator(".jp-InputPrompt", has_text="[*]"), time.monotonic() + RUN_S
    asked = page.locator(".jp-Dialog-button.jp-mod-accept")
    while not waiting.count() and time.monotonic() < deadline:  # before the kernel is there, the command does nothing
        if asked.count():
            asked.last.click()  # which kernel, where JupyterLab waited too long for it
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        time.sleep(3)
    while waiting.count() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert waiting.count() == 0, f"cells still wait after {RUN_S:g} s"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_from_top_to_bottom_and_every_control_answers(name, lab, open_page):
    page = open_page(f"{lab}lab/workspaces/{name.removesuffix('.ipynb')}/tree/{name}")  # no tab of another one
    run_all(page)
    picture(page, name.removesuffix(".ipynb"))
    for kind in ("error", "stderr"):
        found = page.locator(f'[data-mime-type="application/vnd.jupyter.{kind}"]')
        assert found.count() == 0, found.first.inner_text()
    for number, panel in enumerate(panels(page)):
        for what, seconds in moves(panel, page):
            note_time(f"{name} panel {number} {what}", seconds)
