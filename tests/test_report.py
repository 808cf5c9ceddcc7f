"""One page that holds everything, needs nothing, and trusts no name."""

from __future__ import annotations

import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from mobillm_kit.errors import BadInput, MissingExtra
from mobillm_kit.methods import CONTROLS, LABELS
from mobillm_kit.show.report import Picture, findings, page, pictures, write_report
from mobillm_kit.show.tables import csv, markdown, rows
from tests.records import MIB, SKETCHES, a_comparison, a_control, a_record, spans

VOID = {"meta", "br", "img", "input", "hr", "link"}
SVG_SHORT = {"path", "use", "rect", "circle", "line", "stop"}
FEW = [a_record("full"), a_record("mobillm-full-width"), a_control("zero-shot")]


class Reader(HTMLParser):
    """Collects text, ids and references, and refuses tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self._note(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self._note(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def _note(self, tag, attributes):
        for name, value in attributes:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@cache
def whole_page() -> str:
    return page(a_comparison(), shown=all_pictures())


@cache
def all_pictures() -> list[Picture]:
    return pictures(a_comparison())


@cache
def reader() -> Reader:
    return Reader(whole_page())


@cache
def few_pictures() -> list[Picture]:
    return pictures(FEW)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the few, in a folder of its own with the record of one of them."""
    folder = tmp_path_factory.mktemp("report") / "runs" / "pocket"
    (folder / "lora-seed0").mkdir(parents=True)
    (folder / "lora-seed0" / "record.json").write_text("{}")
    path = write_report(folder, FEW)
    assert path == folder / "index.html"
    return path


def test_a_folder_holds_tables_figures_and_the_page(written):
    folder = written.parent
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    figures = {f"figures/{picture.name}.{kind}" for picture in few_pictures() for kind in ("png", "svg")}
    assert found == {"index.html", "table.md", "table.csv", "lora-seed0/record.json"} | figures
    assert (folder / "table.md").read_text() == markdown(rows(FEW))
    assert (folder / "table.csv").read_text() == csv(rows(FEW))
    assert (folder / "figures" / "device_memory.png").read_bytes() == few_pictures()[0].chart.png()
    assert (folder / "figures" / "device_memory.svg").read_text() == few_pictures()[0].svg


def test_the_same_records_give_the_same_page(written):
    assert page(list(FEW), few_pictures(), ["lora-seed0/record.json"]) == written.read_text(encoding="utf-8")


def test_tags_match_and_names_are_unique():
    assert whole_page().startswith("<!DOCTYPE html>")
    assert len(set(reader().ids)) == len(reader().ids) > 100


def test_every_reference_has_a_target():
    wanted = set(re.findall(r"url\(#([^)]+)\)", whole_page()))
    wanted |= {value[1:] for _, name, value in reader().attributes if name.endswith("href") and value[0] == "#"}
    wanted |= {value for _, name, value in reader().attributes if name == "aria-labelledby"}
    assert len(wanted) > 20
    assert wanted <= set(reader().ids)


def test_nothing_is_loaded_from_outside():
    assert not any(tag in ("script", "link", "img", "iframe") for tag, _, _ in reader().attributes)
    assert "<script" not in whole_page()
    for tag, name, value in reader().attributes:
        if "//" in value:
            assert name.startswith("xmlns"), (tag, name, value)
    assert "@import" not in whole_page()
    assert not re.search(r"url\((?!#)", whole_page())


def test_it_is_light_or_dark_as_the_reader_wishes_figures_included():
    assert "prefers-color-scheme: dark" in whole_page()
    drawings = whole_page().split("<svg")[1:]
    assert len(drawings) == 9
    for drawing in drawings:
        assert "var(--ink)" in drawing
        assert "var(--paper)" in drawing
        assert not re.search(r"#(ffffff|1c2126|59616b|dfe3e8)", drawing.split("</svg>")[0])


def test_the_page_knows_every_colour_it_uses():
    used = set(re.findall(r"var\((--\w+)\)", whole_page()))
    light, dark = re.findall(r":root \{(.*?)\}", whole_page(), flags=re.DOTALL)
    assert used <= set(re.findall(r"--\w+(?=:)", light))
    assert used <= set(re.findall(r"--\w+(?=:)", dark))


def test_every_figure_is_described_for_those_who_do_not_see_it():
    shown = all_pictures()
    assert len(shown) == 9
    for picture in shown:
        assert picture.chart.alt in reader().text
    assert whole_page().count('role="img"') == 9


def test_every_method_and_every_control_is_in_the_tables():
    cells = re.findall(r'<th scope="row">(.*?)</th>', whole_page())
    assert cells.count("MobiLLM, ladder") == 2
    for name in (*SKETCHES, *CONTROLS):
        assert LABELS[name] in cells


def test_settings_versions_and_command_are_there():
    text = reader().text
    for piece in ("learning_rate", "0.001", "2.13.0+cpu", "mobillm compare", "AMD EPYC", "VmHWM", "9f2c41d07a"):
        assert piece in text


def test_a_setting_that_differs_between_seeds_shows_all_its_values():
    runs = [a_record("lora", seed, settings={"learning_rate": rate}) for seed, rate in enumerate((0.1, 0.2))]
    assert "0.1, 0.2" in Reader(page(runs, shown=[])).text


def test_what_travels_is_said_where_something_travels():
    sentence = "raw text is not sent. Activations are, and activations can be inverted"
    assert sentence in reader().text
    assert sentence not in Reader(page([a_record("full")], shown=[])).text
    assert "private" not in reader().text.lower()


def test_names_cannot_smuggle_anything_into_the_page():
    evil = "<script>alert(1)</script>\"'&--><b>"
    record = a_record(
        settings={evil: evil},
        backbone=msgspec.structs.replace(a_record().backbone, name=evil),
        task=msgspec.structs.replace(a_record().task, notes=(evil,)),
        provenance=msgspec.structs.replace(a_record().provenance, command=evil, versions={evil: evil}),
    )
    text = page([named := msgspec.structs.replace(record, method=evil)], pictures([named]))
    assert "<script" not in text
    assert "<b>" not in text
    assert Reader(text).text.count("<script>alert(1)</script>") >= 6


def test_findings_by_hand():
    runs = [
        a_record("full", scores={"test_accuracy": 0.98}),
        a_record("mobillm-full-width", scores={"test_accuracy": 0.95}),
        a_record("mezo", scores={"test_accuracy": 0.84}),
        a_control("threshold"),
        a_control("majority"),
    ]
    assert findings(rows(runs), 1000) == [
        "Without training a language model, the best control reaches 73.1 % (One threshold).",
        "The highest accuracy is 98.0 % (Full fine-tuning).",
        "The cheapest of these is Full fine-tuning: 131.8 MiB counted on the device, and it needs no server.",
    ]
    device = runs[1].counted[0]
    assert findings(rows(runs), 100)[2:] == [  # 2 sqrt(2 · 0.98 · 0.02 / 100) = 0.0396
        "On 100 texts 4.0 points are noise; as good within them: MobiLLM, full width.",
        "The cheapest of these is Full fine-tuning: 131.8 MiB counted on the device, and it needs no server.",
    ]
    probe = a_record("probe", scores={"test_accuracy": 0.95})
    assert findings(rows([*runs, probe]), 100)[-1].startswith("The cheapest of these is Linear probe: ")
    assert findings(rows([runs[1]]), 100)[-1] == (
        f"The cheapest of these is MobiLLM, full width: {device.total_bytes / MIB:.1f} MiB counted on the device, "
        "and it sends 1,680.0 MB to a server."
    )


def test_what_the_rows_do_not_allow_is_not_found():
    assert findings(rows([a_record("full", scores={})]), 100) == []
    assert findings(rows([a_control("majority")]), 100) == [
        "Without training a language model, the best control reaches 50.3 % (Majority class)."
    ]


def test_figures_without_data_are_left_out():
    names = [picture.name for picture in pictures([a_record("full", measured=())])]
    assert names == [
        "device_memory",
        "pareto_counted",
        "convergence_step",
        "convergence_forwards",
        "convergence_seconds",
    ]
    assert pictures([a_control("majority")]) == []
    assert LABELS["majority"] in page([a_control("majority")], [])


def test_a_run_across_two_processes_shows_who_worked_when():
    (shown,) = (
        picture for picture in pictures([a_record("mobillm-full-width")]) if picture.name.startswith("timeline")
    )
    assert "device busy 100%, link busy 50%, server busy 75%" in shown.chart.alt
    too_short = a_record("mobillm-full-width", timeline=tuple(spans(5)))
    assert not any(picture.name.startswith("timeline") for picture in pictures([too_short]))


def test_an_interrupted_run_is_admitted():
    half = a_record("lora", status="interrupted", scores={})
    text = Reader(page([*FEW, half], shown=[])).text
    assert "1 interrupted run is named and not averaged" in text


def test_a_local_backbone_is_titled_by_its_name_alone():
    runs = [
        msgspec.structs.replace(run, backbone=msgspec.structs.replace(run.backbone, name="../shared/models/minilm"))
        for run in FEW
    ]
    assert "<h1>minilm on reviews</h1>" in page(runs, shown=[])


def test_records_of_two_tasks_are_refused_and_nothing_is_written(tmp_path):
    other = msgspec.structs.replace(a_record().task, name="other")
    with pytest.raises(BadInput, match="several tasks"):
        write_report(tmp_path / "out", [*FEW, a_record("lora", task=other)])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtra, match=r"jinja2.*mobillm-kit\[lab\]"):
        page(FEW, shown=[])


def test_the_template_lies_in_the_package():
    import mobillm_kit

    assert (Path(mobillm_kit.__file__).parent / "show" / "report.html.j2").is_file()


def test_the_choice_stands_before_the_table_and_the_rest_is_folded():
    text = page(FEW, few_pictures())
    order = [text.index(part) for part in ("What we found", "What should I choose", "<h2>Results", "<details>")]
    assert order == sorted(order)
    assert text.count('id="pareto_counted-alt"') == 1
    assert text[text.index("<h2>Results") : text.index("<details>")].count("<figure") == 0


def test_each_record_beside_the_page_has_a_link(written):
    text = written.read_text(encoding="utf-8")
    assert '<a href="lora-seed0/record.json">lora-seed0</a>' in text
    assert '<a href="table.csv">' in text


def test_a_deviation_is_spoken_of_where_there_are_several_seeds():
    assert "standard deviation" not in page(FEW, [])
    assert "standard deviation" in page([*FEW, a_record("full", seed=1)], [])
