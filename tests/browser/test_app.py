"""`mobillm app` in a browser: the panels without a notebook."""

from __future__ import annotations

import re

import pytest

from tests.browser.conftest import note_time, picture, violations
from tests.browser.panels import moves, panels

pytestmark = pytest.mark.browser

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright: make browser installs it").expect
READY_MS = 400e3
SENTENCE = "the soup was cold and the waiter was rude."
READ = re.compile(r"read back:.*was cold and the waiter")


@pytest.fixture(scope="module")
def page(app, open_page):
    opened = open_page(app, height=4200)  # all of it: the page scrolls inside a part of its own
    opened.get_by_text("read back:").wait_for(timeout=READY_MS)  # the last panel's last line
    return opened


def test_every_control_answers_to_mouse_and_key(page):
    picture(page, "app-light")
    found = panels(page)
    assert len(found) >= 6
    for number, panel in enumerate(found):
        for what, seconds in moves(panel, page):
            note_time(f"app panel {number} {what}", seconds)


def test_a_run_can_be_watched_and_stopped(page):
    page.get_by_role("button", name="Start").click()
    step = page.get_by_text(re.compile(r"^step [1-9]\d* of 60"))
    step.wait_for(timeout=120e3)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text(re.compile(r"^(Stopped at step|Done)"))).to_be_visible(timeout=60e3)
    picture(page, "app-stopped")


def test_a_sentence_of_ones_own_is_answered_and_read_back(page):
    field = page.get_by_label("text")
    field.fill(SENTENCE)
    field.press("Enter")
    expect(page.get_by_text(READ)).to_be_visible(timeout=60e3)


def test_nothing_keeps_a_screen_reader_out(page):
    assert violations(page) == []


def test_it_can_be_read_at_twice_the_size(app, open_page):
    page = open_page(app, zoom=2.0)
    page.get_by_text("read back:").wait_for(timeout=READY_MS)
    picture(page, "app-200-percent")
    assert page.evaluate("document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth") <= 1
