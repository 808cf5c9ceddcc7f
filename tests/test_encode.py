"""Texts to tensors: the prompt survives every cut, padding hides nothing, label words follow the prompt."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mobillm_kit.errors import BadInput
from mobillm_kit.texts.encode import Batch, Encoded, TextEncoder
from mobillm_kit.texts.tasks import TASKS, Example, get_task

LONG = "the long and winding tale of a film " * 40


def byte_bpe(template: str, **special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE as OPT and GPT-2 have it, trained on the prompts of the tasks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<s>", "</s>", "<pad>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [task.fill(LONG, "a film") + word for task in TASKS.values() for word in task.label_words] * 3
    tokenizer.train_from_iterator(texts, trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="module")
def opt_like() -> PreTrainedTokenizerFast:
    return byte_bpe("<s> $A", bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def examples(count: int = 5) -> list[Example]:
    return [Example("a film " * (index + 1), None, index % 2) for index in range(count)]


def test_a_decoder_row_is_the_prompt_with_its_opening_token(opt_like: PreTrainedTokenizerFast) -> None:
    encoder = TextEncoder(opt_like, get_task("sst2"), "decoder", 64)
    (row,) = encoder.encode([Example("a film", None, 1)])
    assert row.ids[0] == opt_like.bos_token_id
    assert opt_like.decode(row.ids[1:]) == "a film It was"
    assert row.label == 1
    assert row.type_ids is None


def test_a_closing_token_is_left_out_before_the_label_word() -> None:
    closing = byte_bpe("<s> $A </s>", bos_token="<s>", eos_token="</s>")
    encoder = TextEncoder(closing, get_task("sst2"), "decoder", 64)
    (row,) = encoder.encode([Example("a film", None, 1)])
    assert closing.decode(row.ids) == "<s>a film It was"
    assert [closing.decode([i]) for i in encoder.label_ids()] == [" terrible", " great"]


def test_label_ids_are_what_really_follows_the_prompt(opt_like: PreTrainedTokenizerFast) -> None:
    for name, task in TASKS.items():
        encoder = TextEncoder(opt_like, task, "decoder", 128)
        example = Example("a film", "a tale" if task.pair_column else None, 0)
        (row,) = encoder.encode([example])
        for label_id, word in zip(encoder.label_ids(), task.label_words, strict=True):
            whole = opt_like(task.fill(example.text, example.pair) + word)["input_ids"]
            assert tuple(whole[: len(row.ids)]) == row.ids, name
            assert whole[len(row.ids)] == label_id, name


def test_label_words_that_share_their_first_token_are_refused(opt_like: PreTrainedTokenizerFast) -> None:
    task = replace(get_task("sst2"), label_words=(" great", " great film"))
    with pytest.raises(BadInput, match=r"' great' and ' great film' both begin with the token 'Ġgreat'"):
        TextEncoder(opt_like, task, "decoder", 64).label_ids()


def test_a_label_word_that_melts_into_the_prompt_is_refused(opt_like: PreTrainedTokenizerFast) -> None:
    task = replace(get_task("sst2"), prompt="{text} It wa", label_words=("s", "x"))
    with pytest.raises(BadInput, match="label word 's' has no token of its own"):
        TextEncoder(opt_like, task, "decoder", 64).label_ids()


@pytest.mark.parametrize("length", [16, 17, 40])
def test_a_long_text_is_cut_and_the_prompt_stays_whole(opt_like: PreTrainedTokenizerFast, length: int) -> None:
    encoder = TextEncoder(opt_like, get_task("sst2"), "decoder", length)
    (row,) = encoder.encode([Example(LONG, None, 0)])
    text = opt_like.decode(row.ids[1:])
    assert text.endswith(" It was")
    assert LONG.startswith(text.removesuffix(" It was"))
    assert length - 2 <= len(row.ids) <= length


def test_of_a_pair_the_longer_text_is_cut_first(opt_like: PreTrainedTokenizerFast) -> None:
    task = get_task("rte")
    encoder = TextEncoder(opt_like, task, "decoder", 60)
    for example in (Example(LONG, "a tale", 0), Example("a tale", LONG, 0)):
        (row,) = encoder.encode([example])
        text = opt_like.decode(row.ids[1:])
        assert "a tale" in text
        assert text.endswith('" is true? Yes or No?\n')
        assert len(row.ids) <= 60


def test_cut_texts_are_counted_and_said_once(
    opt_like: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = TextEncoder(opt_like, get_task("sst2"), "decoder", 24)
    with caplog.at_level(logging.WARNING, logger="mobillm_kit"):
        encoder.encode(examples(2))
        assert not encoder.notes
        encoder.encode([Example(LONG, None, 0), Example("short", None, 1), Example(LONG, None, 1)])
        encoder.encode([Example(LONG, None, 0)])
    assert encoder.notes[0] == "2 of 3 texts did not fit into 24 tokens and were cut at their end."
    assert len(encoder.notes) == 2
    assert [record.message for record in caplog.records] == [encoder.notes[0]]


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_hides_nothing_and_positions_point_at_the_loss(
    opt_like: PreTrainedTokenizerFast, kind: str, side: str
) -> None:
    encoder = TextEncoder(opt_like, get_task("sst2"), kind, 64, side)
    rows = encoder.encode(examples())
    batch = encoder.collate(rows)
    assert batch.rows == len(rows)
    assert int(batch.attention_mask.sum()) == sum(len(row.ids) for row in rows)
    for index, row in enumerate(rows):
        real = batch.attention_mask[index].bool()
        assert tuple(batch.input_ids[index][real].tolist()) == row.ids
        assert (batch.input_ids[index][~real] == opt_like.pad_token_id).all()
        expected = row.ids[-1] if kind == "decoder" else row.ids[0]
        assert batch.input_ids[index, batch.positions[index]] == expected
        assert real[batch.positions[index]]
        assert bool(real[-1 if side == "left" else 0])
    assert batch.labels.tolist() == [row.label for row in rows]
    assert {t.dtype for t in (batch.input_ids, batch.attention_mask, batch.labels, batch.positions)} == {torch.int64}


def test_pad_to_gives_every_batch_the_same_width(opt_like: PreTrainedTokenizerFast) -> None:
    encoder = TextEncoder(opt_like, get_task("sst2"), "decoder", 64)
    rows = encoder.encode(examples())
    assert encoder.collate(rows, pad_to=64).input_ids.shape == (5, 64)
    with pytest.raises(BadInput, match="does not fit into pad_to=3"):
        encoder.collate(rows, pad_to=3)
    with pytest.raises(BadInput, match="no rows"):
        encoder.collate([])


def test_a_batch_moves_whole(opt_like: PreTrainedTokenizerFast) -> None:
    batch = TextEncoder(opt_like, get_task("sst2"), "decoder", 64).collate([Encoded((1, 2), (0, 1), 1)])
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    for name in ("input_ids", "attention_mask", "labels", "positions", "token_type_ids"):
        assert getattr(moved, name).device.type == "meta"


def test_the_padding_token_falls_back_and_is_missed_when_nothing_is_there() -> None:
    task = get_task("sst2")
    ends = byte_bpe("<s> $A", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    assert TextEncoder(ends, task, "decoder", 64).pad_id == ends.eos_token_id
    unknown = byte_bpe("<s> $A", bos_token="<s>", unk_token="<unk>")
    assert TextEncoder(unknown, task, "decoder", 64).pad_id == unknown.unk_token_id
    with pytest.raises(BadInput, match="no padding token, no end-of-text token and no unknown token"):
        TextEncoder(byte_bpe("<s> $A", bos_token="<s>"), task, "decoder", 64)


def test_bad_settings_and_bad_examples_are_named(opt_like: PreTrainedTokenizerFast) -> None:
    sst2, rte = get_task("sst2"), get_task("rte")
    with pytest.raises(BadInput, match="kind 'seq2seq' does not exist"):
        TextEncoder(opt_like, sst2, "seq2seq", 64)
    with pytest.raises(BadInput, match="padding_side 'middle' does not exist"):
        TextEncoder(opt_like, sst2, "decoder", 64, "middle")
    with pytest.raises(BadInput, match="A context of 2 tokens leaves no room for a text"):
        TextEncoder(opt_like, sst2, "decoder", 2)
    encoder = TextEncoder(opt_like, sst2, "decoder", 64)
    with pytest.raises(BadInput, match="Example 2 has an empty text"):
        encoder.encode([Example("a", None, 0), Example(" ", None, 0)])
    with pytest.raises(BadInput, match="Example 1 has two texts, the task 'sst2' reads one"):
        encoder.encode([Example("a", "b", 0)])
    with pytest.raises(BadInput, match="Example 1 has one text, the task 'rte' reads two"):
        TextEncoder(opt_like, rte, "decoder", 64).encode([Example("a", None, 0)])
    with pytest.raises(BadInput, match="An encoder predicts with a classifier"):
        TextEncoder(opt_like, sst2, "encoder", 64).label_ids()
    assert encoder.encode([]) == []


# Real tokenizers


def test_real_llama_label_words_follow_the_prompt(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "llama-stories260K")
    sst2 = TextEncoder(tokenizer, get_task("sst2"), "decoder", 128)
    assert tokenizer.convert_ids_to_tokens(list(sst2.label_ids())) == ["▁t", "▁g"]
    rte = TextEncoder(tokenizer, get_task("rte"), "decoder", 128)
    assert tokenizer.convert_ids_to_tokens(list(rte.label_ids())) == ["Y", "N"]
    (row,) = sst2.encode([Example(LONG, None, 0)])
    assert row.ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(row.ids).endswith(" It was")
    assert 126 <= len(row.ids) <= 128
    with pytest.raises(BadInput, match="' Expression' and ' Entity' both begin"):
        TextEncoder(tokenizer, get_task("trec"), "decoder", 128).label_ids()


def test_real_minilm_rows_equal_its_tokenizer(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "minilm-l6-h384")
    encoder = TextEncoder(tokenizer, get_task("rte"), "encoder", 32)
    pair = [Example("It rains.", "It is wet.", 0), Example(LONG, "It is wet.", 1)]
    short, long = encoder.encode(pair)
    reference = tokenizer("It rains.", "It is wet.")
    assert list(short.ids) == reference["input_ids"]
    assert list(short.type_ids or ()) == reference["token_type_ids"]
    assert len(long.ids) == 32
    assert tokenizer.decode(long.ids).endswith("[SEP] it is wet. [SEP]")
    assert encoder.notes == ["1 of 2 texts did not fit into 32 tokens and were cut at their end."]
    batch = encoder.collate([short, long])
    assert batch.positions.tolist() == [0, 0]
    assert batch.token_type_ids is not None
    assert batch.token_type_ids.shape == batch.input_ids.shape
    with pytest.raises(BadInput, match="A context of 3 tokens leaves no room"):
        TextEncoder(tokenizer, get_task("rte"), "encoder", 3)
