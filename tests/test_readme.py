"""The first page: short, and every figure on it is one of the page of results, which the records hold."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest

from benchmarks import pipeline
from scripts import make_overview
from tests.test_results_page import PAGE, POCKET, TURNS, table_after

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
WORDS = " ".join(README.split())
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
CELLS = ((pipeline.NAMED, 1.0), (0.0, 1.0))
"""At the named bandwidth, or on the device alone; the device as fast as the server."""
ROW = re.compile(r"^\| `(\d\d_\w+)` \| .+ \| (\d+) \|$", re.MULTILINE)


def test_readme_is_short_and_no_line_is_long():
    lines = README.splitlines()
    assert len(lines) <= 120
    assert max(len(line) for line in lines if not line.lstrip().startswith("<img")) <= 120


def test_the_memory_result_is_the_tables():
    shown = {row: cells[0] for row, cells in table_after("`benchmarks/memory.py --check`").items()}
    device, peft = shown["OPT-1.3B, MobiLLM's device, streamed, bfloat16"], shown["OPT-1.3B, LoRA bfloat16 (PEFT)"]
    streamed = shown["the same with streamed blocks: LoRA's gradients, no server"]
    assert f"takes {device} MiB where LoRA by PEFT takes {peft}. LoRA over streamed blocks, with no server" in WORDS
    assert f"at all, takes {streamed}." in WORDS


def test_the_result_on_real_text_is_the_tables():
    shown = {row: cells[0] for row, cells in table_after("earns its\nplace").items()}
    copy = "MobiLLM, copy of the top blocks"
    device = shown[f"the same: {copy}; of the Llama, ladder"].split(" / ")[0]
    full = shown["device / server memory counted, MiB: full"]
    sentence = (
        f"full fine-tuning {shown['full fine-tuning']} %, MobiLLM with a copy of the top blocks "
        f"{shown[copy + ' (ladder)']} with {device} MiB on the device in place of {full}, linear probe "
        f"{shown['linear probe']}, bag of words {shown['bag of words']}."
    )
    assert sentence in WORDS


def test_the_results_on_the_packaged_tasks_are_the_tables():
    reviews, turns = table_after(POCKET), table_after(TURNS)
    probe, wide, ladder = "linear probe", "MobiLLM, full width", "MobiLLM, ladder"
    accuracy, parameters = reviews[probe][0], reviews[probe][reviews["method"].index("trained parameters")]
    for sentence in (
        f"a linear probe of {parameters} parameters is as good ({accuracy} %) as MobiLLM's full width "
        f"({reviews[wide][0]})",
        f"the probe has {turns[probe][0]}, the full width {turns[wide][0]}, the ladder {turns[ladder][0]} and LoRA "
        f"{turns['LoRA'][0]}",
    ):
        assert sentence in WORDS
    gap = [float(turns["LoRA"][seed].split()[0]) - float(turns[wide][seed].split()[0]) for seed in (0, 1)]
    assert gap[1] > gap[0]  # "they fall further apart"


def test_the_result_on_time_is_the_tables():
    sooner = pipeline.sooner(pipeline.read(pipeline.RESULTS).answers["reviews"])
    shown = {way: statistics.median(gains) for (way, mbit, slower), gains in sooner.items() if (mbit, slower) in CELLS}
    one, every = (f"÷ {shown[f'MobiLLM, {tokens}, cache']:.1f}" for tokens in ("one token", "all tokens"))
    assert f"{one} with one token a text, {every} with all tokens" in WORDS
    assert (
        f"÷ {shown['linear probe']:.1f} with a linear probe on the device; the paper reports ÷ {pipeline.PAPER}"
        in WORDS
    )
    each = sooner["MobiLLM, one token, cache", pipeline.NAMED, 1.0]
    assert f"Seeds differ from ÷ {min(each):.1f} to ÷ {max(each):.1f}" in WORDS


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (r"without training recovers (\d+) %", r"without training recovers (\d+) % of a text's own tokens"),
        (r"with a search (\d+) %", r"with a search from left to right (\d+) %"),
        (r"naming its words is right for (\d+) %", r"naming a text's words from it is right for (\d+) %"),
        (r"naming the commonest words for (\d+) %", r"naming the commonest words for (\d+) %"),
    ],
)
def test_what_can_be_read_is_what_the_results_say(here, there):
    assert re.search(here, WORDS).group(1) == re.search(there, " ".join(PAGE.split())).group(1)


@pytest.mark.parametrize("page", ["README.md", "docs/course.md"])
def test_every_notebook_has_its_row_in_order(page):
    found = ROW.findall((ROOT / page).read_text(encoding="utf-8"))
    assert [name for name, _ in found] == NOTEBOOKS
    assert found == ROW.findall(README)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_a_pages_links_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)#]+)[^)]*\)|(?:src|srcset)=\"([^\"]+)\"", text)
    local = [link or source for link, source in found if not (link or source).startswith("http")]
    assert len(local) > 8 or page.name not in ("README.md", "index.md")
    for link in local:
        assert (page.parent / link).exists(), link


def test_the_drawing_is_what_its_script_makes_from_the_records():
    for path, drawn in make_overview.files().items():
        assert path.read_text(encoding="utf-8") == drawn, path.name
    assert f'alt="{make_overview.words()}"' in README
    table = {cells[0] for cells in table_after("`benchmarks/memory.py --check`").values()}
    assert {f"{make_overview.peaks_mib()[role]:,}" for _, role, _ in make_overview.BARS} <= table
