"""A comparison as a folder to look at: tables, figures, and one page that holds them all.

The page is one file without outside resources. It is light or dark as its reader's system is, so its figures stand
in it as inline SVG whose ground, letters and grid take the page's colours.

Knows: run records, tables, figures, a template.  Knows nothing of: how the records were made.
Taught in: notebooks/09_comparison.ipynb
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobillm_kit.errors import BadInput, extra
from mobillm_kit.files import write_bytes
from mobillm_kit.record import RunRecord, Scalar
from mobillm_kit.show.tables import MEMORY, RESULTS, Columns, Row, cells, csv, grouped, markdown, rows

if TYPE_CHECKING:
    from mobillm_kit.show.chart import Chart

CHOICE = "pareto_counted"
"""The chart that stands above the table."""


@dataclass(frozen=True)
class Picture:
    """A chart and what goes with it on the page."""

    name: str
    """File name without suffix; the page's template has a sentence for each on how to read it."""
    chart: Chart
    label: str = ""
    """The method's, where it is the picture of one."""

    @cached_property
    def svg(self) -> str:
        """The chart's SVG; drawn once for the page and the file."""
        return self.chart.svg()


def write_report(folder: Path, records: Iterable[RunRecord]) -> Path:
    """Write ``table.md``, ``table.csv``, ``figures/*.png``, ``figures/*.svg`` and ``index.html`` into ``folder``.

    The same records give the same bytes. A chart whose data is in no record is left out. What is returned is the page.

    Raises:
        BadInput: no records, or of several tasks or backbones.
        MissingExtra: the libraries that draw charts and fill the page are not installed.
    """
    records = list(records)
    table = rows(records)
    shown = pictures(records)
    links = [file.relative_to(folder).as_posix() for file in sorted(folder.glob("*/record.json"))]
    text = page(records, shown, links)
    write_bytes(folder / "table.md", markdown(table).encode())
    write_bytes(folder / "table.csv", csv(table).encode())
    for picture in shown:
        write_bytes(folder / "figures" / f"{picture.name}.png", picture.chart.png())
        write_bytes(folder / "figures" / f"{picture.name}.svg", picture.svg.encode())
    write_bytes(folder / "index.html", text.encode())
    return folder / "index.html"


def pictures(records: Sequence[RunRecord]) -> list[Picture]:
    """Every chart that the records have data for, in the order of the page; refuses as :func:`write_report` does."""
    from mobillm_kit.show.plots_memory import device_memory
    from mobillm_kit.show.plots_runs import CLOCKS, MEMORIES, convergence, gantt, pareto

    groups = grouped(records)  # refuses what cannot be compared, before charts without data are skipped
    wanted: list[tuple[str, str, Callable[[], Chart]]] = [
        ("device_memory", "", partial(device_memory, records)),
        *((f"pareto_{memory}", "", partial(pareto, records, memory)) for memory in MEMORIES),
        *((f"convergence_{clock}", "", partial(convergence, records, clock)) for clock in CLOCKS),
    ]
    for _, label, (run, *_) in groups:
        if run.timeline:
            name = "timeline_" + re.sub(r"[^\w-]", "-", run.method)  # names files and the page's parts
            wanted.append((name, label, partial(gantt, run.timeline)))
    shown = []
    for name, label, draw in wanted:
        with suppress(BadInput):
            shown.append(Picture(name, draw(), label))
    return shown


def page(records: Sequence[RunRecord], shown: Sequence[Picture], links: Sequence[str] = ()) -> str:
    """The page as HTML, titled by backbone and task, with the charts ``shown`` and links to records beside it."""
    table, first = rows(records), records[0]
    choice = next((picture for picture in shown if picture.name == CHOICE), None)
    return _template().render(
        title=f"{Path(first.backbone.name).name} on {first.task.name}",
        task=first.task,
        backbone=first.backbone,
        findings=findings(table, first.task.test),
        results=_cells(table, RESULTS),
        memory=_cells([row for row in table if not row.control], MEMORY),
        choice=choice and (choice, _inline(choice)),
        pictures=[(picture, _inline(picture)) for picture in shown if picture is not choice],
        links=links,
        seeds=len({record.seed for record in records}),
        settings=[(label, _values([run.settings for run in runs], ", ")) for _, label, runs in grouped(records)],
        how=list(dict.fromkeys(memory.how for record in records for memory in record.measured)),
        provenance=_provenance(records),
        sends=any(record.bytes_sent for record in records),
        interrupted=sum(row.interrupted for row in table),
    )


def findings(table: Sequence[Row], n_test: int) -> list[str]:
    """What the table says of ``n_test`` texts, in a few sentences; only those that its rows allow."""
    scored = sorted((row for row in table if row.test_accuracy), key=_percent, reverse=True)
    controls = [row for row in scored if row.control]
    trained = [row for row in scored if row.device_mib.get("total")]
    sentences = []
    if controls:
        reached = f"{_percent(controls[0]):.1f} % ({controls[0].label})"
        sentences.append(f"Without training a language model, the best control reaches {reached}.")
    if not trained:
        return sentences
    best, share = trained[0], _percent(trained[0]) / 100
    noise = 200 * (2 * share * (1 - share) / n_test) ** 0.5  # two standard errors of a difference
    ties = [row for row in trained if _percent(best) - _percent(row) <= noise]
    cheapest = min(ties, key=lambda row: (row.sent_mb or 0, row.device_mib["total"]))
    sentences.append(f"The highest accuracy is {_percent(best):.1f} % ({best.label}).")
    if len(ties) > 1:
        others = ", ".join(row.label for row in ties if row is not best)
        sentences.append(f"On {n_test} texts {noise:.1f} points are noise; as good within them: {others}.")
    server = f"sends {cheapest.sent_mb:,.1f} MB to a server" if cheapest.sent_mb else "needs no server"
    counted = f"{cheapest.device_mib['total']:,.1f} MiB counted on the device"
    sentences.append(f"The cheapest of these is {cheapest.label}: {counted}, and it {server}.")
    return sentences


def _percent(row: Row) -> float:
    """Mean test accuracy."""
    return 100 * row.test_accuracy.mean if row.test_accuracy else 0.0


def _inline(picture: Picture) -> str:
    """The chart's SVG for the middle of a page: names that are its own, and the page's colours."""
    from mobillm_kit.show import chart

    text = picture.svg[picture.svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{picture.name}-", text)
    for name in ("paper", "ink", "muted", "grid"):
        text = text.replace(getattr(chart, name.upper()), f"var(--{name})")
    # the description stands beside it, for readers without pictures
    return text.replace("<svg ", f'<svg role="img" aria-labelledby="{picture.name}-alt" ', 1)


def _cells(table: Sequence[Row], columns: Columns) -> dict[str, Any]:
    heads, body = cells(table, columns)
    return {"heads": heads, "rows": list(zip(table, body, strict=True))}


def _provenance(records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    sources = [record.provenance for record in records]
    started = min(source.started for source in sources)
    about = [{"command": source.command, "commit": source.commit, "started": started} for source in sources]
    groups = (about, [source.versions for source in sources], [source.hardware for source in sources])
    return [pair for group in groups for pair in _values(group, "; ")]


def _values(tables: Sequence[Mapping[str, Scalar]], between: str) -> list[tuple[str, str]]:
    """Each name that occurs in the tables, and every value of it; a name without one is left out."""
    names = dict.fromkeys(name for table in tables for name in table)
    found = ((name, between.join(dict.fromkeys(_shown(table.get(name)) for table in tables))) for name in names)
    return [(name, values) for name, values in found if values]


def _shown(value: Scalar) -> str:
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def _template() -> Any:
    with extra("lab", "The page needs jinja2"):
        import jinja2
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mobillm_kit.show", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template("report.html.j2")
