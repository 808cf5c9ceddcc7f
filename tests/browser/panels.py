"""Panels as a browser has them: controls that a mouse or a key moves, and what changes then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

ANSWER_S = 300.0
"""A panel that predicts every alternative on billions of weights took 45 s on a quiet machine."""
STATE = """panel => [...panel.querySelectorAll('.widget-html-content')].map(e => e.innerText).join('|')
    + [...panel.querySelectorAll('img')].map(e => e.src).join('|')"""


def panels(page: Any) -> list[Any]:
    """Each that has a control; a row of controls is no panel of its own."""
    found = page.locator(".widget-vbox:has(.widget-html)")
    return [found.nth(n) for n in range(found.count()) if controls(found.nth(n))]


def controls(panel: Any) -> list[tuple[str, Any]]:
    """Kind and element of what can be moved."""
    kinds = {"slider": ".noUi-target:not([disabled])", "choice": "select:not([disabled])"}
    return [
        (kind, found.nth(n))
        for kind, where in kinds.items()
        for found in [panel.locator(where)]
        for n in range(found.count())
    ]


def moves(panel: Any, page: Any) -> Iterator[tuple[str, float]]:
    """Moves each slider by key and mouse, each choice from its list; says what was moved, and the answer's seconds."""
    for number, (kind, control) in enumerate(controls(panel)):
        if kind == "choice":
            yield f"choice {number}", _answer(panel, lambda control=control: _another_choice(control))
            continue
        handle = control.locator(".noUi-handle")
        yield f"slider {number} by key", _answer(panel, lambda handle=handle: _one_step(handle, page))
        yield f"slider {number} by mouse", _answer(panel, lambda control=control: _to_the_other_half(control, page))


def _another_choice(control: Any) -> None:
    """Not by an arrow key: JupyterLab's command mode takes it for its own."""
    now, last = control.evaluate("choice => [choice.selectedIndex, choice.length - 1]")
    control.select_option(index=now - 1 if now == last else now + 1)


def _one_step(handle: Any, page: Any) -> None:
    handle.focus()
    at_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
    page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")


def _to_the_other_half(control: Any, page: Any) -> None:
    handle, box = control.locator(".noUi-handle"), control.locator(".noUi-base").bounding_box()
    low, high, now = (float(handle.get_attribute(f"aria-value{of}") or 0) for of in ("min", "max", "now"))
    share = 0.02 if now > (low + high) / 2 else 0.98
    page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)


def _answer(panel: Any, move: Any) -> float:
    before, started = panel.evaluate(STATE), time.monotonic()
    move()
    while time.monotonic() - started < ANSWER_S:
        now = panel.evaluate(STATE)
        if now != before and "Working" not in now:
            return time.monotonic() - started
        time.sleep(0.02)
    raise AssertionError(f"Nothing has changed in {ANSWER_S:g} s: {before[:300]}")
