"""What a class did, as tables for a spreadsheet and a page to read: who joined, grades; runs, steps, bytes, networks.

Knows: the roster's lines and runs, and what was found beside them.  Knows nothing of: the database, how that was found.
"""

import csv
import html
import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from mobillm_kit.classroom.grades import Grades
from mobillm_kit.classroom.networks import Networks
from mobillm_kit.classroom.roster import Line, Run
from mobillm_kit.common import MIB
from mobillm_kit.files import write_bytes

_PAGE = """\
<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark"><title>{title}</title>
<style>
 body {{ font: 11pt/1.4 sans-serif; margin: 1.5cm auto; max-width: 24cm; padding: 0 .5cm; }}
 table {{ border-collapse: collapse; width: 100%; margin: 0 0 1cm; }}
 th, td {{ text-align: left; padding: .1cm .3cm; border-bottom: 1px solid #767676; }}
 .n {{ text-align: right; font-variant-numeric: tabular-nums; }}
</style>
<h1>{title}</h1>
<p>As the server saw it on {at}. Test accuracy is what a device measured and a record that was handed in says; the
server cannot check it. SHA-256 is of the side network's file, cut short.</p>
<h2>Students</h2>
{students}
<h2>Runs</h2>
{runs}
</html>
"""


Rows = list[Sequence[object]]
"""Of a table, its headings first."""


def write_report(folder: Path, title: str, students: Rows, runs: Rows) -> None:
    """``students.csv``, ``runs.csv`` and ``index.html``, for their owner's eyes alone: they name people."""
    for name, rows in (("students", students), ("runs", runs)):
        write_bytes(folder / f"{name}.csv", _csv(rows).encode("utf-8-sig"), 0o600)  # spreadsheets ask for the mark
    write_bytes(folder / "index.html", as_html(title, students, runs).encode(), 0o600)


def student_rows(lines: Sequence[Line], grades: Grades) -> Rows:
    """A row per student, with points and the most that there are of each assignment."""
    events = ("joined", "left", "refused")
    graded = (f"{assignment}{of}" for assignment in grades for of in ("", " of"))
    rows: Rows = [("student", "state", "runs", "steps", "bytes", *events, *graded)]
    for line in lines:
        counts = (line.counts.get(event, 0) for event in events)
        points = (value for of in grades.values() for value in of.get(line.name, ("", "")))
        rows.append((line.name, line.state, line.sessions, line.steps, line.n_bytes, *counts, *points))
    return rows


def run_rows(lines: Sequence[Line], runs: Sequence[Run], networks: Networks, accuracy: Mapping[str, float]) -> Rows:
    """A row per run, with accuracy and side network where they are known; students without one have a row too."""
    heads = ("student", "state", "session", "began", "ended", "why", "steps", "bytes")
    rows: Rows = [(*heads, "test accuracy", "side network", "its step", "SHA-256")]
    for line in lines:
        own = [run for run in runs if run.student == line.name]
        for run in own:
            told = (run.session, _time(run.began), _time(run.ended), run.why, run.steps, run.n_bytes)
            found = (accuracy.get(run.session, ""), *networks.get(run.session, ("", "", "")))
            rows.append((line.name, line.state, *told, *found))
        if not own:
            rows.append((line.name, line.state, "", "", "", "", 0, 0, "", "", "", ""))
    return rows


def as_html(title: str, students: Rows, runs: Rows) -> str:
    """One page that loads nothing."""
    return _PAGE.format(
        title=html.escape(title),
        at=_time(datetime.now().timestamp()),
        students=_table(students, 2),
        runs=_table([(row[0], *row[2:9], *row[10:]) for row in runs if row[2]], 5),
    )


def _csv(rows: Rows) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\r\n").writerows([_plain(value) for value in row] for row in rows)
    return file.getvalue()


def _table(rows: Rows, words: int) -> str:
    """``words`` columns of words, then numbers."""
    heads = [str(head) for head in rows[0]]
    shown = [[_shown(head, value) for head, value in zip(heads, row, strict=True)] for row in rows[1:]]
    top = _row('th scope="col"', ["MiB" if head == "bytes" else head for head in heads], words)
    return f"<table>{top}\n" + "\n".join(_row("td", values, words) for values in shown) + "\n</table>"


def _row(tag: str, values: Sequence[str], words: int) -> str:
    marks = ["" if column < words else ' class="n"' for column in range(len(values))]
    cells = (f"<{tag}{mark}>{html.escape(value)}</{tag[:2]}>" for mark, value in zip(marks, values, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def _shown(head: str, value: object) -> str:
    """A value as the page has it: bytes as MiB, digests cut short."""
    if head == "bytes" and isinstance(value, int):
        return f"{value / MIB:.1f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)[: {"session": 8, "SHA-256": 16}.get(head)]


def _time(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds).isoformat(" ", "seconds")


def _plain(value: object) -> object:
    """A name that a spreadsheet does not take for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@") else value
