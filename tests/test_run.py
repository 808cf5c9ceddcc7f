"""A run from its specification to its record, and back from its folder to a model that labels texts."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import msgspec
import pytest
import torch

from mobillm_kit.backbone.pretrained import load_backbone, load_tokenizer
from mobillm_kit.errors import BackboneMismatch, BadInput, UnknownName
from mobillm_kit.methods import CONTROLS, METHODS, load_method
from mobillm_kit.record import load_record
from mobillm_kit.runs.inference import load_run, load_side, score_run
from mobillm_kit.runs.prepare import build_method, choose_device, prepare
from mobillm_kit.runs.presets import PRESETS
from mobillm_kit.runs.run import run
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.side.adapter import SideAdapter
from tests.builders import save_tiny_model, tiny_spec

TEXTS = ["the good film", "the bad film"]
TRAINED = [name for name, row in METHODS.items() if row.trained]


def trained_run(place, method, **changes):
    folder = place / method
    spec = tiny_spec(place, method, **changes)
    record = run(spec, folder=folder)
    folder.joinpath("spec.json").write_bytes(msgspec.json.encode(spec))
    return folder, record


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("model", ["opt", "bert"])
def test_every_method_runs_on_decoders_and_encoders_and_comes_back_from_its_folder(tmp_path, name, model):
    folder, record = trained_run(tmp_path, name, model=model)
    assert load_record(folder / "record.json") == record
    assert record.status == "done"
    assert record.trainable_parameters > 0
    assert score_run(folder) == pytest.approx(record.scores, abs=1e-6)
    found = load_run(folder).predict(TEXTS)
    assert all(prediction.label in ("no", "yes") and 0.5 <= prediction.probability <= 1 for prediction in found)


@pytest.mark.parametrize("side", ["mobillm-full-width", "mobillm-ladder"])
@pytest.mark.parametrize("model", ["opt", "bert"])
def test_a_shared_side_network_labels_texts_as_its_run_does(tmp_path, side, model):
    folder, _ = trained_run(tmp_path, side, model=model)
    backbone = tmp_path / f"model-{model}"
    ours, theirs = load_run(folder).predict(TEXTS), load_side(folder / "side", backbone).predict(TEXTS)
    assert [p.label for p in ours] == [p.label for p in theirs]
    assert [p.probability for p in ours] == pytest.approx([p.probability for p in theirs], abs=1e-6)
    card = (folder / "side" / "README.md").read_text()
    assert SideAdapter.from_pretrained(folder / "side").fingerprint in card
    assert "Raw text is not sent" in card
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    snippet = snippet.replace("this folder", str(folder / "side"))
    exec(snippet.replace("the backbone's folder or name", str(backbone)), {})


def test_a_mobillm_run_says_what_can_be_read_of_what_it_sends(tmp_path):
    """In its record and on the card, unless it is told not to; other methods send nothing."""
    folder, record = trained_run(tmp_path, "mobillm-ladder")
    read = record.read_back
    assert 0 <= read.low <= read.share <= read.high <= 1
    card = (folder / "side" / "README.md").read_text()
    assert f"| {100 * read.share:.0f} % ({100 * read.low:.0f} to {100 * read.high:.0f}, chance" in card
    assert "stronger attacks read more" in card
    assert run(tiny_spec(tmp_path, "probe")).read_back is None
    silent = run(
        msgspec.structs.replace(tiny_spec(tmp_path, "mobillm-ladder"), read_back=False), folder=tmp_path / "no"
    )
    assert silent.read_back is None
    assert "read back" not in (tmp_path / "no" / "side" / "README.md").read_text()
    assert [silent.scores, silent.curve[-1].dev_loss] == [record.scores, record.curve[-1].dev_loss]


def test_a_side_network_on_another_backbone_is_refused(tmp_path):
    folder, _ = trained_run(tmp_path, "mobillm-ladder")
    with pytest.raises(BackboneMismatch, match="was trained on 'model-opt'"):
        load_side(folder / "side", save_tiny_model(tmp_path / "other", "llama"))


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_leave_scores_and_nothing_else(tmp_path, name):
    record = run(tiny_spec(tmp_path, name))
    assert (record.steps, record.bytes_sent, record.curve, record.counted) == (0, 0, (), ())
    assert {"dev_accuracy", "test_accuracy"} <= set(record.scores)
    if name == "bag-of-words":
        assert record.scores["test_accuracy"] == 1.0  # the label is a word of the text


def test_a_control_that_needs_label_words_is_refused_for_encoders(tmp_path):
    with pytest.raises(BadInput, match="is an encoder and has none"):
        run(tiny_spec(tmp_path, "zero-shot", model="bert"))


def test_the_record_says_everything_that_decided_the_run(tmp_path):
    _, record = trained_run(tmp_path, "lora", options={"rank": 2})
    wanted = {"method": "lora", "seed": 0, "lr": 1e-2, "steps": 8, "option.rank": 2, "task": "custom"}
    assert wanted.items() <= record.settings.items()
    assert record.backbone.name == "model-opt"
    assert len(record.backbone.fingerprint) == 64
    assert {"python", "torch", "transformers", "peft"} <= set(record.provenance.versions)


def test_random_weights_are_another_backbone(tmp_path):
    plain, random = (prepare(tiny_spec(tmp_path, seed=1, random_weights=flag)).backbone for flag in (False, True))
    assert plain.fingerprint != random.fingerprint
    assert "random weights" in random.name


def test_padding_side_changes_no_score(tmp_path):
    scores = [run(tiny_spec(tmp_path, "zero-shot", padding_side=side)).scores for side in ("left", "right")]
    assert scores[0] == scores[1]


def test_a_replay_log_stands_beside_a_mezo_run(tmp_path):
    folder, _ = trained_run(tmp_path, "mezo")
    assert (folder / "replay.safetensors").stat().st_size < 1000


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"method": "sgd"}, UnknownName, "There is no method 'sgd'"),
        ({"method": "lorra"}, UnknownName, "Did you mean 'lora'"),
        ({"task": "sst3"}, UnknownName, "sst2"),
        ({"backbone": "./no/such/folder"}, BadInput, "no such folder"),
        ({"accelerator": "tpu"}, BadInput, "Unknown accelerator 'tpu'"),
        ({"options": {"rnak": 2}}, BadInput, "no option 'rnak'. Did you mean 'rank'"),
        ({"data": None}, BadInput, "needs a file and its columns"),
        ({"preset": "huge"}, UnknownName, "no preset for"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path, changes, error, sentence):
    spec = tiny_spec(tmp_path, changes.pop("method", "lora"), **changes)
    with pytest.raises(error, match=sentence):
        run(spec)


def test_a_text_that_is_too_long_is_cut_and_said_once(tmp_path):
    spec = tiny_spec(tmp_path, "probe", max_length=7)
    record = run(spec)
    assert any("did not fit into 7 tokens" in note for note in record.task.notes)


def test_an_interrupted_training_leaves_no_side_network_that_looks_finished(tmp_path):
    """Ctrl-C in the first step: the record says so and no scores are claimed."""
    spec = tiny_spec(tmp_path, "mobillm-ladder", steps=50)
    record = run(
        spec, folder=tmp_path / "run", callbacks=[lambda event: event.step == 2 and os.kill(os.getpid(), signal.SIGINT)]
    )
    assert (record.status, record.steps, record.scores) == ("interrupted", 2, {})
    assert not (tmp_path / "run/side").exists()
    assert run(spec, folder=tmp_path / "run").status == "done"


def test_every_trained_method_has_a_preset_everywhere():
    for presets in PRESETS.values():
        assert set(presets) == set(TRAINED)


def test_controls_are_not_built():
    with pytest.raises(UnknownName, match="is a control"):
        load_method("zero-shot")


def test_accelerators(tmp_path):
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") in ("cpu", "cuda", "mps")
    prepared = prepare(tiny_spec(tmp_path))
    assert build_method(prepared).name == "mobillm-full-width"


def test_a_specification_with_a_word_too_many_is_refused():
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode(b'{"method": "lora", "stpes": 3}', type=RunSpec)


# ---------------------------------------------------------------------- token ids outside the model's tables


def add_beyond_the_embedding(spec, token: str, **special: str) -> int:
    """Fill the tokenizer up to the embedding's rows and add one more; the number of rows."""
    tokenizer, rows = load_tokenizer(spec.backbone), load_backbone(spec.backbone).n_tokens
    tokenizer.add_tokens([f"<filler{i}>" for i in range(rows - len(tokenizer))])
    tokenizer.add_tokens([token])
    tokenizer.add_special_tokens(special)
    assert tokenizer.convert_tokens_to_ids(token) == rows
    tokenizer.save_pretrained(spec.backbone)
    return rows


def test_a_padding_token_that_the_embedding_has_no_row_of_is_passed_over(tmp_path):
    """As many add one without a resize; no text attends to padding, so the end-of-text token does as well."""
    spec = tiny_spec(tmp_path)
    usual = prepare(spec)
    add_beyond_the_embedding(spec, "<padding>", pad_token="<padding>")
    prepared = prepare(spec)
    assert prepared.encoder.pad_id == prepared.encoder.tokenizer.eos_token_id != usual.encoder.pad_id
    logits = [each.model.logits(each.encoder.collate(each.dev[:4], pad_to=40)) for each in (prepared, usual)]
    torch.testing.assert_close(*logits)


def test_a_token_that_the_embedding_has_no_row_of_is_named_with_both_sizes(tmp_path):
    spec = tiny_spec(tmp_path)
    rows = add_beyond_the_embedding(spec, "<marker>")
    file = Path(spec.data)
    file.write_text(file.read_text().replace("the ", "<marker> "))
    with pytest.raises(
        BadInput, match=f"{rows + 1} tokens, the model's embedding {rows} rows: '<marker>' is token {rows}"
    ):
        prepare(spec)
