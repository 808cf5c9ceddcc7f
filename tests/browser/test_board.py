"""The board of a class in a browser: a class that trains, a student taken off, a server that begins anew."""

from __future__ import annotations

import re
import signal
import time
from contextlib import ExitStack

import pytest

from tests.browser.conftest import picture, violations
from tests.classroom import Serving, begin, device

pytestmark = pytest.mark.browser

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright: make browser installs it").expect
SLOW_MS = 90e3
ODD = "<b>Cleo<b>"


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Two that train, one in line, one who is not here; a device that shows a code that was used."""
    folder = tmp_path_factory.mktemp("board")
    bio = folder / "bio"
    joins = begin(bio, "Ada", "Ben", ODD, "Dan", board=True)
    settings = bio / "settings.toml"
    settings.write_text(settings.read_text().replace("max_sessions = 32", "max_sessions = 2"))
    with ExitStack() as servers:
        server = servers.enter_context(Serving(bio))
        devices = []
        for number, name in enumerate(["Ada", "Ben", ODD]):
            devices.append(device(folder, joins[name], str(number), "--seed", str(number), steps=100_000))
            server.until("joined" if number < 2 else "waits", times=min(number + 1, 2) if number < 2 else 1)
        devices.append(device(folder, joins["Ada"], "thief"))
        server.until("was refused")

        def again() -> None:
            server.process.kill()
            server.process.wait(20)
            time.sleep(4)
            running.append(servers.enter_context(Serving(bio)))

        running = [server]
        try:
            yield server.links(), again, running
        finally:
            for process in devices:
                process.kill()
                process.communicate()


def row(page, name: str):
    return page.locator("tbody tr").filter(has=page.get_by_role("rowheader", name=name, exact=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1920, 420])
def test_it_shows_the_class_and_can_be_read(scene, open_page, scheme, width):
    page = open_page(scene[0][0], width=width, scheme=scheme)
    expect(row(page, "Ada").locator(".state")).to_have_text("▶ trains", timeout=SLOW_MS)
    expect(row(page, "Ada").locator("polyline")).to_have_count(1, timeout=SLOW_MS)
    expect(row(page, ODD)).to_contain_text("number 1 in line")
    expect(row(page, "Dan")).to_contain_text("not here yet")
    expect(page.get_by_role("button")).to_have_count(0)
    expect(page.get_by_text("nobody knows")).to_have_count(0)
    assert violations(page) == []
    assert page.evaluate("document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth") <= 0
    picture(page, f"board-{scheme}-{width}")


def test_it_goes_on_without_a_reload_says_what_is_lost_and_is_back_after_a_restart(scene, open_page):
    page = open_page(scene[0][0], width=1920)
    step = row(page, "Ben").locator("td").nth(1)
    before = int(re.match(r"(\d+) of", step.inner_text(timeout=SLOW_MS))[1])
    page.wait_for_function(
        "n => parseInt([...document.querySelectorAll('tbody tr')][1].cells[2].textContent) > n",
        arg=before,
        timeout=SLOW_MS,
    )
    page.evaluate("window.here = true")
    scene[1]()
    expect(page.locator("#connection")).to_have_text("live", timeout=SLOW_MS)
    expect(row(page, "Ben").locator(".state")).to_have_text("▶ trains", timeout=SLOW_MS)
    assert page.evaluate("window.here")


def test_lost_is_said_where_nothing_answers_though_no_connection_was_closed(scene, open_page):
    page = open_page(scene[0][0], width=1920)
    expect(page.locator("#connection")).to_have_text("live", timeout=SLOW_MS)
    scene[2][-1].process.send_signal(signal.SIGSTOP)
    try:
        expect(page.locator("#connection")).to_contain_text("connection lost since", timeout=SLOW_MS)
        picture(page, "board-lost")
    finally:
        scene[2][-1].process.send_signal(signal.SIGCONT)
    expect(page.locator("#connection")).to_have_text("live", timeout=SLOW_MS)


def test_the_instructor_takes_a_student_off_after_a_question(scene, open_page):
    page = open_page(scene[0][1], width=1920)
    expect(page.get_by_text("Refused devices that nobody knows: 1")).to_be_visible(timeout=SLOW_MS)
    assert violations(page) == []
    picture(page, "board-instructor")
    button = page.get_by_role("button", name="Take Ben off the list")
    page.once("dialog", lambda dialog: dialog.dismiss())
    button.click()
    time.sleep(2)
    expect(row(page, "Ben").locator(".state")).to_have_text("▶ trains")
    asked = []
    page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept()))
    button.click()
    expect(page.get_by_text("Ben is let in no longer")).to_be_visible(timeout=SLOW_MS)
    assert asked[0].startswith("Take Ben off the list?")
    expect(row(page, "Ben").locator(".state")).to_have_text("removed", timeout=SLOW_MS)
    expect(row(page, ODD).locator(".state")).to_have_text("▶ trains", timeout=SLOW_MS)
    expect(button).to_have_count(0)
