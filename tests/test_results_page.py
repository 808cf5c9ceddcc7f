"""Every table of the page of results is computed again from the committed records: no figure can drift."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import msgspec
import pytest

from benchmarks import compare, leak, notebooks, pipeline
from mobillm_kit.methods import LABELS, method_row
from mobillm_kit.show.tables import rows

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
COPY = "MobiLLM, copy of the top blocks (ladder)"
RANDOM = "MobiLLM, ladder, begun at random (`smollm2-sst2-random.jsonl`)"
ROW = {label.lower(): name for name, label in LABELS.items()} | {COPY.lower(): "mobillm-ladder"}
DECODER = "A real decoder from the file"
POCKET, TURNS = "`benchmarks/results/pocket-*.jsonl`; print", "`benchmarks/results/turns-*.jsonl`"
REAL = ("minilm-sst2", "minilm-rte", "llama-sst2")


def table_after(words: str) -> dict[str, list[str]]:
    """The first table after these words: the first cell of each row to the others."""
    assert PAGE.count(words) == 1
    lines = PAGE.split(words)[1].splitlines()
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
    ("words", "names", "figures"),
    [
        (POCKET, ("pocket-0", "pocket-1", "pocket-2"), 30),
        (TURNS, ("turns-0", "turns-1", "turns-2"), 26),
        ("earns its\nplace", REAL, 19),
        (DECODER, ("smollm2-sst2",), 9),
    ],
)
def test_accuracies(words, names, figures):
    compared = 0
    for row, cells in table_after(words).items():
        method = ROW.get(row.lower())
        for name, cell in zip(names, cells, strict=False):
            if method is None or cell == "–":
                continue
            assert cell == percent(scores(name, method)), (row, name)
            compared += 1
    assert compared >= figures


def test_what_the_copy_on_the_decoder_takes_and_sends():
    table = {row.method: row for row in rows(compare.read(RESULTS / "smollm2-sst2.jsonl"))}
    copied, lora = table["mobillm-ladder"], table["lora"]
    assert (
        f"device holds {copied.device_mib['total']:.0f} MiB in place of LoRA's {lora.device_mib['total']:,.0f}" in PAGE
    )
    assert (
        f"trains {copied.trainable_parameters / 1e6:.1f} million parameters in {copied.server_mib['total']:,.0f} MiB"
        in PAGE
    )
    first_mb = 4 * copied.trainable_parameters / 1e6
    assert f"{copied.sent_mb:.0f} MB were\nsent, {first_mb:.0f} of them first weights" in PAGE


def test_the_decoder_in_the_readme():
    names = ("full", "mobillm-ladder", "lora", "probe")
    full, copied, lora, probe = (percent(scores("smollm2-sst2", name)) for name in names)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"full fine-tuning {full}, copy of the top blocks {copied}, LoRA {lora}, linear probe {probe} (" in readme


def test_the_decoders_seeds_and_the_ladder_that_began_at_random():
    table = table_after(DECODER)
    assert table.pop(RANDOM) == [percent(scores("smollm2-sst2-random", "mobillm-ladder")), "0"]
    records = compare.read(RESULTS / "smollm2-sst2.jsonl")
    seeds = {r.method: [str(s.seed) for s in records if s.method == r.method] for r in records}
    shown = {ROW[row.lower()]: cells[1] for row, cells in table.items() if row.lower() in ROW}
    assert shown == {
        method: ", ".join(sorted(found)) if method_row(method).trained else "–" for method, found in seeds.items()
    }


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


def test_how_many_times_fewer_bytes_the_full_width_sends_of_a_text():
    read = {task: compare.read(RESULTS / f"{task}-0.jsonl") for task in ("pocket", "turns")}

    def sent(task: str, method: str) -> float:
        runs = [r for r in read[task] if r.method == method and not compare.is_random(r)]
        return sum(r.bytes_sent for r in runs) / sum(r.forwards for r in runs)

    for words, task in (
        (r"all, (\d+) times as many bytes", "turns"),
        (r"on `reviews` (\d+) times", "pocket"),
    ):
        factor = sent(task, "mobillm-ladder") / sent(task, "mobillm-full-width")
        assert re.search(words, PAGE).group(1) == f"{factor:.0f}"


def test_seconds_to_the_goal():
    answers = pipeline.read(pipeline.RESULTS).answers
    assert "reviews" in answers
    for name, answer in answers.items():
        assert pipeline.table(answer) in PAGE, name


def test_steps_to_the_goal():
    steps = pipeline.read(pipeline.RESULTS).answers["reviews"].steps_to_goal
    (own,) = set(steps["MobiLLM, one token, cache"])
    words = " ".join(PAGE.split())
    assert f"It needs {own} steps to the goal, full fine-tuning {'{}, {} and {}'.format(*steps['full'])}," in words


def test_the_table_of_notebook_09_is_the_one_here():
    notebook = json.loads((ROOT / "notebooks" / "09_comparison.ipynb").read_text(encoding="utf-8"))
    (text,) = (found for cell in notebook["cells"] if "| MiniLM-L6 × SST-2 |" in (found := "".join(cell["source"])))
    shown = {
        what.split(" on ")[0].rstrip(",").lower(): figure
        for what, figure in re.findall(r"^\| (.+) \| ([\d.]+) \|$", text, re.M)
    }
    page = {
        row.lower().removesuffix(" (ladder)"): cells[0].split()[0]
        for row, cells in table_after("earns its\nplace").items()
    }
    assert len(shown) == 5
    assert shown == {row: page[row] for row in shown}


def test_memory_of_the_streamed_device():
    shown = [
        int(cells[0].replace(",", "")) for cells in list(table_after("`benchmarks/memory.py --check`").values())[1:]
    ]
    lines = (RESULTS / "memory.jsonl").read_text(encoding="utf-8").splitlines()
    peaks = {round(json.loads(line)["peak_bytes"] / 2**20) for line in lines}
    assert len(shown) >= 6
    assert set(shown) <= peaks
    gguf = next(record for record in map(json.loads, lines) if record["case"]["model"] == "smollm2-135m")
    assert f"takes {gguf['peak_bytes'] / 2**20:.0f} MiB in a lean device process" in " ".join(PAGE.split())


def test_ratios_of_memory(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # they import one another as scripts do
    papers, memory = import_module("papers"), import_module("memory")
    found = msgspec.json.decode(papers.RESULTS.read_bytes(), type=papers.Papers)
    made = papers.ratios(found, {result.case: result for result in memory.read(memory.RESULTS)})
    times = {(ratio.of.split(",")[0], ratio.against): ratio.times for ratio in made}
    small, large = "opt-350m", "opt-1.3b"
    words = " ".join(PAGE.split())
    full, lora, bitfit = ((times[small, rival], times[large, rival]) for rival in ("full", "lora", "bitfit"))
    assert "full fine-tuning is ÷ {:.1f} on OPT-350M and ÷ {:.1f} on OPT-1.3B in equal precision".format(*full) in words
    assert "÷ {:.2f} and ÷ {:.2f} against LoRA, ÷ {:.2f} and ÷ {:.2f} against BitFit".format(*lora, *bitfit) in words
    assert f"÷ {times[large, 'LoRA float32, PEFT']:.1f} against PEFT's LoRA in float32" in words
    assert f"÷ {times[large, 'LoRA bfloat16, PEFT']:.1f} in equal precision (bfloat16)" in words
    assert f"÷ {times[large, 'LoRA bfloat16, this kit']:.1f} against this kit's own LoRA" in words


@pytest.mark.parametrize("name", ["minilm-sst2", "minilm-rte"])
def test_bars_on_real_text_call_the_copy_what_the_tables_call_it(name):
    found = compare.bars_of(compare.benchmarks([""] * 3)[name])
    assert [str(bar).split(",")[1] for bar in found[1:3]] == [COPY.partition(",")[2]] * 2


def test_what_can_be_read_back():
    record = leak.read()
    reviews, real = record.attacks["reviews"], record.attacks["minilm"]
    every = tuple(range(1, reviews.layers + 1))
    last = [leak.find(reviews, attack, "fp32", (reviews.layers,)) for attack in ("nearest", "inverter", "search")]
    first = leak.find(reviews, "search", "sign", (1,))
    minilm, one = leak.find(real, "nearest", "fp32", (1,)), leak.find(reviews, "words", "fp32", every, "one")
    nearest, inverter, search, sign, read, named = (round(100 * each.share) for each in (*last, first, minilm, one))
    chance, to = round(100 * one.chance), f"8 texts: {100 * last[-1].low:.0f} to {100 * last[-1].high:.0f})"
    text = " ".join(PAGE.split("## What the server can read")[1].split())
    smol = record.attacks["smollm2"]
    places = [(part, layer) for part in (real, smol) for layer in (part.layers // 2, part.layers)]
    upper = [f"{100 * leak.find(part, 'inverter', 'fp32', (layer,)).share:.0f}" for part, layer in places]
    table = f"{100 * leak.find(smol, 'nearest', 'fp32', (1,)).share:.0f}"
    for sentence in (
        "(inverter: MiniLM {} and {} %, SmolLM2 {} and {} %, of few texts)".format(*upper),
        f"of SST-2's sentences, at SmolLM2's {table} %.",
        f"an attack without training recovers {nearest} % of a text's own tokens",
        f"an inverter trained on other texts {inverter} %, and with a search from left to right {search} % ({to}",
        f"from one bit per value at the first layer the search still reads {sign} %",
        f"At MiniLM's first layer the attack without training reads {read} % of SST-2's sentences",
        f"naming a text's words from it is right for {named} %, naming the commonest words for {chance} %",
    ):
        assert sentence in text


def test_the_figure_of_notebook_11_is_the_record():
    notebook = json.loads((ROOT / "notebooks" / "11_what_the_server_sees.ipynb").read_text(encoding="utf-8"))
    (cell,) = ("".join(cell["source"]) for cell in notebook["cells"] if cell["id"] == "11-costs")
    shown: dict[str, object] = {}
    exec(cell.split("kit.")[0], shown)
    for name, defence in {"noise × signal": "noise", "fewer bits": "bits", "tokens sent": "tokens"}.items():
        of_record = [each for each in leak.read().costs.costs if each.defence in ("none", defence)]
        expected = [(c.setting, round(c.read.share, 3), round(c.accuracy, 3)) for c in of_record]
        assert shown["costs"][name] == expected


def test_the_leak_meters_bars_refuse_a_weak_control_and_a_missing_part():
    record = leak.read()
    part = record.attacks["reviews"]
    assert all(held for *_, held in leak.bars(record))
    weak = [msgspec.structs.replace(cell, read=part.other_text[0]) for cell in part.cells if cell.layers == (0,)]
    blind = msgspec.structs.replace(part, cells=tuple(weak))
    flawed = msgspec.structs.replace(part, other_text=(part.labels, part.labels))
    for changed, first in ((blind, "layer 0"), (flawed, "other texts")):
        (fallen,) = [what for what, *_, held in leak.bars(leak.Leak({"reviews": changed})) if not held]
        assert first in fallen
    assert not leak.complete(leak.Leak({"reviews": part}))


@pytest.mark.parametrize("page", ["README.md", "docs/course.md"])
def test_the_seconds_of_each_notebook_are_the_measured_ones(page):
    """Processor seconds, rounded up to the next ten."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    stated = {line.split("`")[1]: int(line.split("|")[-2]) for line in lines if re.match(r"\| `\d\d_", line)}
    costs = [cost for name, cost in notebooks.read().items() if name.startswith("notebooks/")]
    assert stated == {Path(cost.name).stem: 10 * math.ceil(cost.processor_seconds / 10) for cost in costs}
