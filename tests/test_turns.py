"""Claims about the second packaged task: its texts, and that no shortcut answers it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks import compare
from mobillm_kit.files import data_folder
from mobillm_kit.methods.controls import bag_of_words
from mobillm_kit.record import packaged_records
from mobillm_kit.runs.prepare import prepare
from mobillm_kit.runs.presets import preset
from mobillm_kit.runs.run import run
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.texts.loading import TaskData, handwritten, load_task
from recipes.pocket.pretrain import task_hashes, text_hash
from recipes.turns.gate import bars
from recipes.turns.texts import QUESTIONS, SPLITS, make_task

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


@pytest.fixture(scope="module")
def data() -> TaskData:
    return load_task("turns")


def test_the_committed_task_is_what_the_generator_writes(tmp_path: Path) -> None:
    make_task(tmp_path)
    for split in SPLITS:
        assert (tmp_path / f"{split}.tsv").read_bytes() == (data_folder("turns") / f"{split}.tsv").read_bytes()


def test_the_splits_are_balanced_by_question_and_label(data: TaskData) -> None:
    assert data.notes == ()
    for split, count in SPLITS.items():
        made = Counter((example.pair, example.label) for example in getattr(data, split))
        assert {question for question, _ in made} == set(QUESTIONS)
        assert sum(made.values()) == count
        assert max(made.values()) - min(made.values()) <= 2


def test_no_text_occurs_twice_or_in_the_other_task(data: TaskData) -> None:
    texts = [example.text for example in (*data.train, *data.dev, *data.test, *handwritten("turns"))]
    hashes = {text_hash(text) for text in texts}
    assert len(hashes) == len(texts) == sum(SPLITS.values()) + len(handwritten("turns"))
    assert not hashes & task_hashes()


def test_the_handwritten_sentences_are_enough_and_balanced() -> None:
    own = handwritten("turns")
    assert len(own) >= 100
    assert sum(example.label for example in own) * 2 == len(own)
    assert {example.pair for example in own} == set(QUESTIONS)


def test_a_task_that_is_not_packaged_has_no_handwritten_sentences() -> None:
    assert handwritten("sst2") == ()


def test_neither_words_nor_the_prompt_alone_answer(data: TaskData) -> None:
    pytest.importorskip("sklearn")
    right = [example.label for example in data.dev]
    said = bag_of_words(data.train, data.dev).tolist()
    assert sum(a == b for a, b in zip(said, right, strict=True)) / len(right) <= 0.6
    assert run(RunSpec(method="zero-shot", task="turns", accelerator="cpu")).scores["dev_accuracy"] <= 0.6


def test_every_text_fits_the_backbone_whole() -> None:
    ready = prepare(RunSpec(method="probe", task="turns", accelerator="cpu"))
    longest = max(len(row.ids) for row in (*ready.train, *ready.dev, *ready.test, *ready.handwritten))
    assert longest < ready.encoder.max_length


def test_a_method_that_solves_the_probe_s_task_fails_the_gate() -> None:
    good = {"bag-of-words": 0.5, "zero-shot": 0.5, "full": 0.95, "lora": 0.94, "probe": 0.7,
            "mobillm-full-width": 0.77, "mobillm-ladder": 0.92}  # fmt: skip
    assert all(bar.ok for bar in bars(good))
    for method, bad in (("bag-of-words", 0.61), ("full", 0.91), ("lora", 0.92), ("probe", 0.81),
                        ("mobillm-full-width", 0.72), ("mobillm-ladder", 0.90)):  # fmt: skip
        assert not all(bar.ok for bar in bars({**good, method: bad})), method


def test_the_ladder_and_lora_take_longer_on_this_task_and_nobody_else() -> None:
    for method in ("mobillm-ladder", "lora", "lora-fa", "lora-checkpointing"):
        own, usual = (preset(RunSpec(method=method, task=task), "decoder", method) for task in ("turns", "reviews"))
        assert own.settings["steps"] > usual.settings["steps"], method
    for method in ("full", "full-checkpointing", "probe", "mezo", "p-rge"):
        spec = RunSpec(method=method, task="turns")
        assert preset(spec, "decoder", method) == preset(RunSpec(method=method), "decoder", method)


def test_every_bar_of_the_issue_holds_on_the_test_split() -> None:
    held = compare.bars_of(compare.benchmarks(["pocket"])["turns-0"])
    assert len(held) >= 10
    assert all(bar.ok for bar in held), [str(bar) for bar in held if not bar.ok]


def test_the_packaged_records_are_the_benchmark_s_of_the_packaged_backbone() -> None:
    assert (data_folder("turns") / "records.jsonl").read_bytes() == (RESULTS / "turns-0.jsonl").read_bytes()
    records = packaged_records("turns")
    assert {(record.task.name, record.backbone.name, record.status) for record in records} == {
        ("turns", "pocket", "done")
    }
    made = Counter(record.method for record in records)
    assert all(made[name] == 3 for name in ("full", "lora", "probe", "mobillm-full-width", "mobillm-ladder"))


def test_the_full_width_sends_one_token_of_a_text_and_the_ladder_every_one() -> None:
    """A token is four layers of 128 float32 numbers and a byte of mask; a text has position and label, 4 bytes each."""
    layers, width = 4, 128
    for record in packaged_records("turns"):
        a_text = record.bytes_sent / record.forwards if record.forwards else 0
        if record.method == "mobillm-full-width":
            assert a_text == layers * width * 4 + 1 + 4 + 4
        elif record.method == "mobillm-ladder":
            tokens = (a_text - 4 - 4) / (layers * width * 4 + 1)
            assert 25 < tokens < 40  # padded to the longest of 16
        else:
            assert a_text == 0
