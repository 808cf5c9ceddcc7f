"""Every table of README's results is computed again from the committed records: no figure can drift."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import compare, pipeline
from mobillm_kit.methods import LABELS
from mobillm_kit.show.tables import rows

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")
COPY = "MobiLLM, copy of the top blocks (ladder)"
ROW = {label.lower(): name for name, label in LABELS.items()} | {COPY.lower(): "mobillm-ladder"}
POCKET, TURNS = "`benchmarks/results/pocket-*.jsonl`; print", "`benchmarks/results/turns-*.jsonl`"
REAL = ("minilm-sst2", "minilm-rte", "llama-sst2")


def table_after(words: str) -> dict[str, list[str]]:
    """The first table after these words: the first cell of each row to the others."""
    assert README.count(words) == 1
    lines = README.split(words)[1].splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("|"))
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip(" *") for cell in line.strip("|").split("|")])
    return {first: rest for first, *rest in found if not set(first) <= set("-:")}


def percent(values: Sequence[float]) -> str:
    """As `benchmarks/compare.py --tables` writes it: the mean ± the standard deviation over seeds."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def scores(benchmark: str, method: str, name: str = "test_accuracy") -> list[float]:
    records = compare.read(RESULTS / f"{benchmark}.jsonl")
    return [r.scores[name] for r in records if r.method == method and not compare.is_random(r)]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (POCKET, ("pocket-0", "pocket-1", "pocket-2")),
        (TURNS, ("turns-0", "turns-1", "turns-2")),
        ("earns its\nplace", REAL),
    ],
)
def test_accuracies(words, names):
    compared = 0
    for row, cells in table_after(words).items():
        method = ROW.get(row.lower())
        for name, cell in zip(names, cells, strict=False):
            if method is None or cell == "–":
                continue
            assert cell == percent(scores(name, method)), (row, name)
            compared += 1
    assert compared >= 19


def test_what_is_trained_where_on_real_text_and_what_is_sent():
    shown = table_after("earns its\nplace")
    full, wide, ladder = (
        shown["parameters trained on the device: full / LoRA"],
        shown["trained on the server / MB sent: full width"],
        shown["the same: copy of the top blocks; of the Llama, ladder"],
    )
    for place, benchmark in enumerate(REAL):
        records = [r for r in compare.read(RESULTS / f"{benchmark}.jsonl") if not compare.is_random(r)]
        table = {row.method: row for row in rows(records)}
        trained = {name: f"{row.trainable_parameters:,}" for name, row in table.items() if not row.control}
        assert full[place] == f"{trained['full']} / {trained['lora']}"
        for name, cells in (("mobillm-full-width", wide), ("mobillm-ladder", ladder)):
            assert cells[place] == f"{trained[name]} / {table[name].sent_mb:,.0f}", (benchmark, name)
            assert table[name].server_mib
        assert (table["mobillm-ladder"].label == COPY) == (shown[COPY][place] != "–")


@pytest.mark.parametrize(("words", "task"), [(POCKET, "pocket"), (TURNS, "turns")])
def test_hand_written_sentences_trained_parameters_bytes_and_memory(words, task):
    for row, (*_, handwritten, parameters, sent, counted) in table_after(words).items():
        if row == "method":
            continue
        method = ROW[row.lower()]
        records = [
            record
            for seed in range(3)
            for record in compare.read(RESULTS / f"{task}-{seed}.jsonl")
            if record.method == method and not compare.is_random(record)
        ]
        assert handwritten == percent([statistics.mean(r.scores["handwritten_accuracy"] for r in records)]), row
        if not parameters:
            continue
        assert {f"{record.trainable_parameters:,}" for record in records} == {parameters}, row
        assert sent in ("–", f"{statistics.mean(r.bytes_sent for r in records) / 1e6:.1f}"), row
        shown = re.findall(r"[\d.]+", counted)
        parties = zip(*(record.counted for record in records), strict=True)
        assert shown == [f"{statistics.mean(p.total_bytes for p in party) / 2**20:.1f}" for party in parties], row


def test_seconds_to_the_goal():
    part = pipeline.read(pipeline.RESULTS).convergence
    expected = {}
    for line in pipeline.table(part).split("\n\n")[0].splitlines()[2:]:
        first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        expected[first] = cells
    shown = table_after("(`benchmarks/pipeline.py --check`)")
    names = {"full fine-tuning on the device": "full, on the device", "LoRA on the device": "lora, on the device"}
    assert len(shown) == 4
    for row, cells in shown.items():
        assert cells == expected[names.get(row, row)], row


def test_memory_of_the_streamed_device():
    shown = [
        int(cells[0].replace(",", "")) for cells in list(table_after("`benchmarks/memory.py --check`").values())[1:]
    ]
    lines = (RESULTS / "memory.jsonl").read_text(encoding="utf-8").splitlines()
    peaks = {round(json.loads(line)["peak_bytes"] / 2**20) for line in lines}
    assert len(shown) >= 6
    assert set(shown) <= peaks
