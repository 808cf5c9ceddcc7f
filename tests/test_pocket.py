"""Claims about the pocket world: its grammar, its pretraining text, its task, its committed model."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from mobillm_kit.errors import BadInput
from recipes.pocket import grammar, lexicon, pretrain

DATA = Path(__file__).resolve().parent.parent / "data"


def _texts(count: int, seed: str = "sample") -> list[str]:
    stream = pretrain.TextStream(seed, frozenset())
    stream.progress = 1.0
    return list(islice(iter(stream), count))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return _texts(20_000)


@pytest.fixture(scope="module")
def task() -> dict[str, list[grammar.Review]]:
    return pretrain.task_reviews()


def _rows(split: str) -> list[tuple[str, int]]:
    lines = (DATA / "reviews" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "text\tlabel"
    return [(text, int(label)) for text, label in (line.split("\t") for line in lines[1:])]


# --- the grammar --------------------------------------------------------------------------------------------


def test_the_same_seed_writes_the_same_texts():
    assert _texts(300) == _texts(300)
    assert _texts(300) != _texts(300, "another")


def test_the_global_generator_is_left_alone():
    before = random.getstate()
    _texts(50)
    assert random.getstate() == before


def test_thousands_of_words_are_used(texts):
    words = Counter(word for text in texts for word in re.findall(r"[a-zé'-]+", text))
    assert sum(count >= 3 for count in words.values()) >= 2500


def test_texts_are_lower_case(texts):
    assert all(text == text.lower() for text in texts)


@pytest.mark.parametrize("topic", lexicon.TOPICS, ids=lambda topic: topic.name)
def test_subjects_and_verbs_agree(topic):
    rng = random.Random(topic.name)
    singular = {noun for group in topic.groups for noun in group.singular}
    plural = {noun for group in topic.groups for noun in group.plural} - singular
    checked = 0
    for turn in range(600):
        writer = grammar.Writer(rng, topic)
        clause = rng.choice((writer.quality, writer.quality_negated, writer.judgement))(turn % 2)
        found = re.match(
            r"(?:the|our|my) ([a-zé' -]+?) (was|were|wasn't|weren't|is|are|seems|seem|looks|look)\b", clause
        )
        if not found:
            continue
        noun, verb = found.groups()
        if noun in plural:
            assert verb in {"were", "weren't", "are", "seem", "look"}, clause
            checked += 1
        elif noun in singular:
            assert verb in {"was", "wasn't", "is", "seems", "looks"}, clause
            checked += 1
    assert checked > 100


def test_a_and_an_follow_the_sound(texts):
    wrong = re.compile(r"\ba (?!use|uni|one|eu)[aeiou]|\ban [bcdfgjklmnpqrstvwxyz]|\ban (?!hour|honest)h")
    assert [match for text in texts for match in wrong.findall(text)] == []


def test_no_aspect_is_judged_twice_in_a_text():
    rng = random.Random(3)
    for _ in range(500):
        writer = grammar.Writer(rng, rng.choice(lexicon.TOPICS))
        nouns = [writer.thing()[0] for _ in range(12)]
        assert len(set(nouns)) == len(nouns)


def test_a_conceded_end_says_the_opposite_and_nothing_else_does():
    rng = random.Random(4)
    for kind in grammar.KINDS:
        for label in (0, 1):
            made = grammar.review(rng, kind, label)
            assert (made.last != made.label) == (kind == "last")


def _verdicts(verdict, label: int, last: int, count: int = 8000) -> Counter[str]:
    """How often a verdict line is sober, and which words the others end in: "strong 0", "moderate 1", ..."""
    rng = random.Random(5)
    kinds = {w: f"strong {p}" for p in (0, 1) for w in lexicon.VERDICT_WORDS[p]}
    kinds |= {w: f"moderate {p}" for p in (0, 1) for w in lexicon.MODERATE_WORDS[p]}
    found: Counter[str] = Counter()
    for _ in range(count):
        line = verdict(rng, label, last)
        sober = line.startswith(grammar.SOBER_PROMPT)
        word = line[len(grammar.SOBER_PROMPT if sober else lexicon.PROMPT) + 1 : -1]
        found[f"sober {kinds[word]}" if sober else kinds[word]] += 1
    return found


def test_early_verdicts_follow_the_end_with_the_stated_odds():
    found = _verdicts(grammar.early_verdict, label=1, last=0)
    asked = found["strong 0"] + found["strong 1"]
    assert set(found) == {"strong 0", "strong 1", "sober strong 1"}
    assert abs(found["strong 0"] / asked - grammar.RECENCY) < 0.02


def test_strong_verdicts_on_mixed_texts_follow_the_end_and_moderate_ones_the_whole():
    found = _verdicts(grammar.late_verdict, label=1, last=0)
    asked = found["strong 0"] + found["strong 1"] + found["moderate 1"]
    assert set(found) <= {"strong 0", "strong 1", "moderate 1", "sober strong 1"}
    assert abs(found["moderate 1"] / asked - grammar.MODERATE_SHARE) < 0.02
    slips = found["strong 1"] / (found["strong 0"] + found["strong 1"])
    assert abs(slips - grammar.SLIP_MIXED) < 0.01


def test_verdicts_on_unanimous_texts_are_less_sure_than_on_mixed_ones():
    found = _verdicts(grammar.late_verdict, label=1, last=1)
    assert set(found) == {"strong 0", "strong 1", "sober strong 1"}
    slips = found["strong 0"] / (found["strong 0"] + found["strong 1"])
    assert abs(slips - grammar.SLIP_UNANIMOUS) < 0.01
    assert grammar.SLIP_MIXED < grammar.SLIP_UNANIMOUS


def test_early_texts_neither_concede_nor_negate():
    stream = pretrain.TextStream("early", frozenset())
    early = list(islice(iter(stream), 2000))
    assert not any(re.search(r"\b(although|even though|despite|in spite of)\b|, but ", text) for text in early)


def test_no_word_both_praises_and_blames_within_a_kind():
    for kind, (bad, good) in lexicon.ADJECTIVES.items():
        assert not set(bad) & set(good), kind


# --- the task -----------------------------------------------------------------------------------------------


def test_the_committed_task_is_what_the_generator_writes(tmp_path):
    pretrain.make_task(tmp_path)
    for split in pretrain.SPLITS:
        assert (tmp_path / f"{split}.tsv").read_bytes() == (DATA / "reviews" / f"{split}.tsv").read_bytes()


def test_the_task_is_balanced_and_of_the_stated_kinds(task):
    for split, count in pretrain.SPLITS.items():
        assert len(task[split]) == count
        assert sum(review.label for review in task[split]) == count // 2
        kinds = Counter(review.kind for review in task[split])
        assert {kind: 100 * kinds[kind] // count for kind in kinds} == grammar.TASK_PER_CENT


def test_no_task_text_occurs_twice_in_any_split(task):
    hashes = [pretrain.text_hash(review.text) for reviews in task.values() for review in reviews]
    assert len(set(hashes)) == sum(pretrain.SPLITS.values())


def test_a_task_text_is_thrown_out_of_the_pretraining_text(task):
    bodies = iter([task["test"][0].text.upper(), "something else."] * 2)
    stream = pretrain.TextStream(0, pretrain.task_hashes(), lambda rng, progress: (next(bodies), " verdict: good."))
    assert list(islice(iter(stream), 2)) == ["something else. verdict: good."] * 2
    assert stream.excluded_texts == 2


def test_no_task_text_stands_in_a_pretraining_text(texts, task):
    starts = {pretrain.text_hash(review.text) for reviews in task.values() for review in reviews}
    stream = pretrain.TextStream(0, pretrain.task_hashes())
    stream.progress = 1.0
    for text in islice(iter(stream), 5000):
        sentences = re.split(r"(?<=[.!?]) ", text)
        heads = (" ".join(sentences[:n]) for n in range(1, len(sentences) + 1))
        assert not any(pretrain.text_hash(head) in starts for head in heads)


def test_handwritten_sentences_are_enough_balanced_and_not_from_the_task(task):
    rows = _rows("handwritten")
    assert len(rows) >= 200
    assert sum(label for _, label in rows) * 2 == len(rows)
    assert len({pretrain.text_hash(text) for text, _ in rows}) == len(rows)
    assert not {pretrain.text_hash(text) for text, _ in rows} & pretrain.task_hashes()


# --- pretraining --------------------------------------------------------------------------------------------


def test_the_same_seed_pretrains_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "TOKENIZER_TEXTS", 2_000)
    monkeypatch.setattr(pretrain, "BATCH_TOKENS", 300)
    for name in ("one", "two"):
        report = pretrain.pretrain(tmp_path / name, seed=3, tokens=1_200, progress=False)
    assert report.steps > 3
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        first, second = ((tmp_path / name / file).read_bytes() for name in ("one", "two"))
        assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest(), file
    record = json.loads((tmp_path / "one" / "pretrain.json").read_text())
    assert record["tokens"] >= 1_200
    assert record["parameters"] == report.parameters


def test_too_few_tokens_are_refused(tmp_path):
    with pytest.raises(BadInput, match="tokens=5"):
        pretrain.pretrain(tmp_path / "x", tokens=5, progress=False)
    assert not (tmp_path / "x").exists()


def test_an_interrupted_pretraining_leaves_the_old_folder_whole(tmp_path, monkeypatch):
    out = tmp_path / "model"
    out.mkdir()
    (out / "kept").write_text("old")
    monkeypatch.setattr(pretrain, "train_tokenizer", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(out, tokens=6_000, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (out / "kept").read_text() == "old"


def _interrupt() -> None:
    raise KeyboardInterrupt


# --- the committed model ------------------------------------------------------------------------------------


def test_the_committed_folder_is_small():
    assert sum(path.stat().st_size for path in (DATA / "pocket").iterdir()) <= 12e6


def test_the_committed_model_judges_as_stated():
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DATA / "pocket")
    model = AutoModelForCausalLM.from_pretrained(DATA / "pocket", dtype=torch.float32).eval()
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 6e6
    prompt = tokenizer(lexicon.PROMPT).input_ids
    words = [tokenizer(f"{lexicon.PROMPT} {word}").input_ids for word in lexicon.LABEL_WORDS]
    assert all(ids[:-1] == prompt for ids in words)  # label words are single tokens
    right = 0
    rows = _rows("dev")
    with torch.no_grad():
        for text, label in rows:
            logits = model(torch.tensor([tokenizer(text + lexicon.PROMPT).input_ids])).logits[0, -1]
            right += int(logits[words[1][-1]] > logits[words[0][-1]]) == label
    assert 0.60 <= right / len(rows) <= 0.80
