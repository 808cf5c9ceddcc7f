"""What a class did, as a table for a spreadsheet and a page to read: who joined, runs, steps, bytes.

Knows: the roster's lines and runs.  Knows nothing of: the database, accuracy, which is measured on the devices.
"""

import csv
import html
import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from mobillm_kit.classroom.roster import Line, Run
from mobillm_kit.common import MIB
from mobillm_kit.files import write_bytes

COLUMNS = ("student", "state", "session", "began", "ended", "why", "steps", "bytes")

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
<p>As the server saw it on {at}. Accuracy is measured on the devices, and the server does not know it.</p>
<h2>Students</h2>
{students}
<h2>Runs</h2>
{runs}
</html>
"""


def write_report(folder: Path, title: str, lines: Sequence[Line], runs: Sequence[Run]) -> None:
    """``runs.csv`` and ``index.html``, for their owner's eyes alone: they name people."""
    write_bytes(folder / "runs.csv", as_csv(lines, runs).encode("utf-8-sig"), 0o600)  # spreadsheets ask for the mark
    write_bytes(folder / "index.html", as_html(title, lines, runs).encode(), 0o600)


def as_csv(lines: Sequence[Line], runs: Sequence[Run]) -> str:
    """A row per run; students without one have a row too."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for line in lines:
        own = [run for run in runs if run.student == line.name]
        for run in own:
            told = (run.session, _time(run.began), _time(run.ended), run.why, run.steps, run.n_bytes)
            writer.writerow((_plain(line.name), line.state, *told))
        if not own:
            writer.writerow((_plain(line.name), line.state, "", "", "", "", 0, 0))
    return file.getvalue()


def as_html(title: str, lines: Sequence[Line], runs: Sequence[Run]) -> str:
    """One page that loads nothing."""
    counts = ("joined", "left", "refused")
    students, ran = [], []
    for line in lines:
        told = (line.counts.get(event, 0) for event in counts)
        students.append((line.name, line.state, line.sessions, line.steps, f"{line.n_bytes / MIB:.1f}", *told))
    for run in runs:
        when = (run.student, run.session[:8], _time(run.began), _time(run.ended), run.why)
        ran.append((*when, run.steps, f"{run.n_bytes / MIB:.1f}"))
    return _PAGE.format(
        title=html.escape(title),
        at=_time(datetime.now().timestamp()),
        students=_table(("student", "state", "runs", "steps", "MiB", *counts), students, 2),
        runs=_table(("student", "session", "began", "ended", "why", "steps", "MiB"), ran, 5),
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]], words: int) -> str:
    """``words`` columns of words, then numbers."""
    marks = ["" if column < words else ' class="n"' for column in range(len(heads))]
    top = "".join(f'<th scope="col"{mark}>{head}</th>' for mark, head in zip(marks, heads, strict=True))
    cells = (
        "".join(f"<td{mark}>{html.escape(str(value))}</td>" for mark, value in zip(marks, row, strict=True))
        for row in rows
    )
    return f"<table><tr>{top}</tr>\n" + "\n".join(f"<tr>{row}</tr>" for row in cells) + "\n</table>"


def _time(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds).isoformat(" ", "seconds")


def _plain(name: str) -> str:
    """A name that a spreadsheet does not take for a formula."""
    return f"'{name}" if name[0] in "=+-@" else name
