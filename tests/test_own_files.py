"""A user's own file: what it may look like, what is left out and said, and that a trained run needs it no more."""

from __future__ import annotations

import json
import shutil

import pytest

from mobillm_kit.cli import main
from mobillm_kit.errors import BadInput, TrainingDiverged
from mobillm_kit.record import load_record
from mobillm_kit.runs.inference import load_run, score_run
from mobillm_kit.runs.run import run
from mobillm_kit.texts.loading import custom_task, load_task
from mobillm_kit.texts.sources import decoded, read_table
from tests.builders import tiny_spec

ROWS = [(f"text {number}", ("neg", "pos")[number % 2]) for number in range(30)]


def own(tmp_path, content, name="own.csv", **given):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return custom_task(file, text="text", label="label", **given)


def csv(rows, header="text,label"):
    return "\n".join([header, *(f'"{text}",{label}' for text, label in rows), ""])


def all_texts(data):
    return sorted(example.text for example in (*data.train, *data.dev, *data.test))


# A run carries its task


def trained(tmp_path, method="mobillm-full-width", **changes):
    spec, folder = tiny_spec(tmp_path, method, **changes), tmp_path / "run"
    return folder, run(spec, folder=folder)


@pytest.mark.parametrize("method", ["mobillm-full-width", "probe"])
def test_a_trained_run_labels_texts_without_its_file_and_says_what_became_of_it(tmp_path, method):
    folder, record = trained(tmp_path, method)
    found = load_run(folder).predict(["the good film"])
    file = tmp_path / "texts.csv"
    whole = file.read_text()
    file.write_text(whole.replace(",yes", ",ja"))
    assert load_run(folder).predict(["the good film"]) == found
    with pytest.raises(BadInput, match=r"'texts\.csv' has changed since this run was trained"):
        score_run(folder)
    file.unlink()
    assert load_run(folder).predict(["the good film"]) == found
    with pytest.raises(BadInput, match=r"'texts\.csv' is missing since this run was trained"):
        score_run(folder)
    file.write_text(whole)
    assert score_run(folder) == pytest.approx(record.scores, abs=1e-6)


def test_a_run_does_not_go_on_with_another_file(tmp_path):
    folder, _ = trained(tmp_path, "probe")
    with (tmp_path / "texts.csv").open("a") as file:
        file.write("the odd film,perhaps\n" * 3)
    with pytest.raises(BadInput, match=r"'texts\.csv' has changed"):
        run(tiny_spec(tmp_path, "probe"), folder=folder)


@pytest.mark.parametrize("options", [{"codec": "fp16"}, {"rank": 2}])
def test_a_finished_run_is_not_taken_for_one_of_other_options(tmp_path, options):
    folder, record = trained(tmp_path, options={"codec": "fp32"})
    with pytest.raises(BadInput, match="holds a run with other settings"):
        run(tiny_spec(tmp_path, options={"codec": "fp32"} | options), folder=folder)
    assert load_record(folder / "record.json") == record


def test_a_checkpoint_of_other_options_is_refused_in_a_sentence_where_no_specification_stands(tmp_path):
    folder, _ = trained(tmp_path, options={"rank": 4})
    (folder / "spec.json").unlink()  # as runs of before left it
    with pytest.raises(BadInput, match="made with other options"):
        run(tiny_spec(tmp_path, options={"rank": 2}), folder=folder)


def test_a_run_that_kept_nothing_leaves_its_folder_to_the_next_try(tmp_path):
    with pytest.raises(TrainingDiverged):
        trained(tmp_path, "full", lr=1e30, eval_every=1)
    assert trained(tmp_path, "full")[1].status == "done"


def test_a_side_folder_alone_labels_texts_on_its_backbone(tmp_path, capsys):
    folder, _ = trained(tmp_path)
    expected = load_run(folder).predict(["the good film"])[0]
    shutil.move(folder / "side", tmp_path / "shared-side")
    arguments = ["predict", str(tmp_path / "shared-side"), "the good film"]
    assert main([*arguments, "--backbone", str(tmp_path / "model-opt")]) == 0
    assert capsys.readouterr().out.split("\t")[0] == expected.label
    assert main(arguments) == 2
    assert "model-opt" in capsys.readouterr().err


# What is left out, and what is said


def test_what_the_tokenizer_sees_alike_is_the_same_text(tmp_path):
    smileys = [(f"{word} today {face}", label) for word in "abcdefgh" for face, label in ((":)", "pos"), (":(", "neg"))]
    assert len(all_texts(own(tmp_path, csv(smileys)))) == 16
    shouted = [*ROWS, ("TEXT 1", "neg")]
    lower = own(tmp_path, csv(shouted), seen=lambda texts: [text.lower() for text in texts])
    assert len(all_texts(lower)) == 29
    assert "2 rows left out because their text carries two labels (1 texts)." in lower.notes
    assert len(all_texts(own(tmp_path, csv(shouted)))) == 31


def test_the_screen_and_the_record_hear_of_labels_and_of_rows_left_out(tmp_path):
    said = []
    spec = tiny_spec(tmp_path, "majority")
    with (tmp_path / "texts.csv").open("a") as file:
        file.write(" ,no\n")
    record = run(spec, callbacks=[lambda progress: said.append(progress.note)])
    assert said[0] == "Labels: no 30, yes 30."
    left_out = "texts.csv: 1 of 61 rows left out because a text of theirs is empty (the first one in line 62)."
    assert left_out in said
    assert left_out in record.task.notes


@pytest.mark.parametrize(
    ("label", "sentence"),
    [(lambda n: f"id{n}", "30 labels for 30 texts"), (lambda n: f"{n / 7:.3f}", "as scores or names would.*--labels")],
)
def test_a_column_of_names_or_scores_is_refused_unless_labels_are_given(tmp_path, label, sentence):
    table = csv([(text, label(number)) for number, (text, _) in enumerate(ROWS)])
    with pytest.raises(BadInput, match=sentence):
        own(tmp_path, table)
    own(tmp_path, csv(ROWS), labels=["pos", "neg"])
    with pytest.raises(BadInput, match=r"line 2: the label 'neg' .*Allowed: 0 or pos, 1 or other"):
        own(tmp_path, csv(ROWS), labels=["pos", "other"])


def test_more_than_fifty_labels_are_refused(tmp_path):
    table = csv([(f"text {number}", f"l{number % 51}") for number in range(204)])
    with pytest.raises(BadInput, match="51 labels for 204 texts"):
        own(tmp_path, table)
    assert len(own(tmp_path, table, labels=[f"l{number}" for number in range(51)]).task.labels) == 51


def test_nearly_equal_labels_are_named_and_blanks_mean_nothing(tmp_path):
    labels = ["neg", "Neg", "neg ", "1", "1.0", "pos"]
    data = own(tmp_path, csv([(f"t {number}", labels[number % 6]) for number in range(60)]))
    assert data.task.labels == ("1", "1.0", "Neg", "neg", "pos")
    assert {note for note in data.notes if note.startswith("labels:")} == {
        "labels: '1' and '1.0' are two; write them alike if they mean the same.",
        "labels: 'Neg' and 'neg' are two; write them alike if they mean the same.",
    }


def test_the_cut_keeps_shares_of_labels_and_doubles_on_one_side(tmp_path):
    rare = [(f"t {number}", "a") for number in range(200)] + [(f"b {number}", "b") for number in range(3)]
    data = own(tmp_path, csv([*rare, *rare, ("only", "c")]))
    for part in (data.train, data.dev, data.test):
        assert {0, 1} <= {example.label for example in part}
    splits = [{example.text for example in part} for part in (data.train, data.dev, data.test)]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 204
    assert "test: no text of 'c'." in data.notes


def test_dev_rows_that_are_test_rows_are_counted(tmp_path):
    for split, rows in (("train", ROWS), ("dev", [("x", "neg"), ("y", "pos")]), ("test", [("x", "neg"), ("z", "pos")])):
        (tmp_path / f"{split}.csv").write_text(csv(rows))
    notes = custom_task(tmp_path, text="text", label="label").notes
    assert "dev: 1 of 2 rows also occur in test, so test is not held out from choices on dev." in notes


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("01", (" no", " yes")),
        (("Yes", "No"), (" no", " yes")),
        (("false", "true"), (" no", " yes")),
        ("23", (" 2", " 3")),
    ],
)
def test_labels_that_mean_no_and_yes_get_these_words(tmp_path, labels, words):
    assert own(tmp_path, csv([(text, labels[n % 2]) for n, (text, _) in enumerate(ROWS)])).task.label_words == words


@pytest.mark.parametrize("labels", [("😀", "😡"), ("[POS]", "[NEG]")])
def test_labels_that_are_no_words_to_a_backbone_name_the_option(tmp_path, capsys, monkeypatch, labels):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.csv").write_text(csv([(text, labels[n % 2]) for n, (text, _) in enumerate(ROWS)]))
    own_file = ["--task", "custom", "--data", "own.csv", "--text", "text", "--label", "label"]
    assert main(["train", "probe", "--out", "run", *own_file]) == 2
    said = capsys.readouterr()
    assert "--label-words ' bad| good'" in said.err
    assert f"{labels[0]} 15" in said.out


# Tables


def test_what_is_not_used_may_be_anything(tmp_path):
    plain = all_texts(own(tmp_path, csv(ROWS)))
    index = ",text,label,\n" + "".join(f"{n},{text},{label},\n" for n, (text, label) in enumerate(ROWS))
    assert all_texts(own(tmp_path, index)) == plain
    short = "text,label,remark\n" + "".join(f"{text},{label}\n" for text, label in ROWS)
    assert all_texts(own(tmp_path, short)) == plain
    records = [{"text": text, "label": label, "x": [float("nan")]} for text, label in ROWS]
    del records[3]["x"]
    lines = "\n".join(map(json.dumps, records))
    assert all_texts(own(tmp_path, lines, "own.jsonl")) == plain
    assert all_texts(own(tmp_path, json.dumps(records, indent=1), "own.json")) == plain
    assert own(tmp_path, csv([("long " * 30_000, "neg"), *ROWS])).label_counts == "neg 16, pos 15"


@pytest.mark.parametrize("value", ["NaN", '["a", "b"]', '{"a": 1}', "Infinity"])
@pytest.mark.parametrize("name", ["own.json", "own.jsonl"])
def test_json_that_is_no_text_is_refused_with_its_line(tmp_path, name, value):
    lines = ['{"text": "a", "label": 1}', f'{{"text": {value}, "label": 0}}']
    content = "[" + ",\n".join(lines) + "]" if name == "own.json" else "\n".join(lines)
    with pytest.raises(BadInput, match=rf"{name}, line 2: 'text' holds .* neither text nor number"):
        own(tmp_path, content, name)


def test_spreadsheets_exports_are_read_as_they_were_meant(tmp_path):
    said = [('He said "no", so', "neg"), ("two\tcells", "pos")]
    quoted = "text\tlabel\r\n" + '"He said ""no"", so"\tneg\r\n"two\tcells"\tpos\r\n' * 5
    for content in (quoted, quoted.encode("utf-16")):
        table = read_table_of(tmp_path, content)
        assert [(row.cells["text"], row.cells["label"]) for row in table.rows[:2]] == said
    raw = 'text\tlabel\n"He" said\tneg\n'
    assert read_table_of(tmp_path, raw).rows[0].cells["text"] == '"He" said'
    semicolons = "text;label\n" + "".join(f"{text}, really;{label}\n" for text, label in ROWS)
    assert own(tmp_path, semicolons).label_counts == "neg 15, pos 15"


def read_table_of(tmp_path, content):
    file = tmp_path / "own.tsv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(file, spreadsheet=True)


# Characters


def test_half_a_character_and_other_codings_are_told_with_their_line(tmp_path):
    with pytest.raises(BadInput, match=r"own\.jsonl, line 2: the text .* holds half a character"):
        own(tmp_path, '{"text": "a", "label": 1}\n{"text": "so \\ud83d", "label": 0}', "own.jsonl")
    with pytest.raises(BadInput, match=r"standard input, line 2: the byte 0xe9 is not UTF-8"):
        decoded("a\ncafé".encode("latin-1"), "standard input")


def test_an_argument_that_is_no_text_is_named(capsys):
    assert main(["predict", "run", "caf\udce9"]) == 2
    assert "Argument 3: the text" in capsys.readouterr().err


def test_the_shared_cases_end_in_a_task_or_in_a_sentence(shared):
    """Small inputs that failed once; their own kinds stand above."""
    places = [place for place in sorted((shared / "cases").glob("*")) if place.name != "README.md"]
    if not places:
        pytest.skip("needs the small inputs in ../shared/cases, which this machine has not")
    refused = []
    for place in places:
        files = [place] if place.is_file() or not list(place.glob("own.*")) else list(place.glob("own.*"))
        try:
            assert custom_task(files[0], text="text", label="label").test
        except BadInput:
            refused.append(place.name)
    assert refused == ["nantext", "nested.jsonl", "regression", "surrogate", "uniquelabels"]


def test_the_splits_of_benchmarks_are_the_tokenizers_too(shared):
    from mobillm_kit.backbone.pretrained import load_tokenizer

    tokenizer = load_tokenizer("pocket")
    ids = load_task("rte", data=shared / "data/rte", seen=lambda texts: list(map(tuple, tokenizer(texts)["input_ids"])))
    assert ids == load_task("rte", data=shared / "data/rte")
