"""A run whose frozen backbone is streamed from its files, held in few bits, or both: same bytes, or a clear refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save

from mobillm_kit.backbone.lowbit import KINDS, quantize_backbone
from mobillm_kit.backbone.streaming import StreamedBackbone
from mobillm_kit.cli import main
from mobillm_kit.errors import BadInput
from mobillm_kit.methods import METHODS
from mobillm_kit.runs.folders import lay_out
from mobillm_kit.runs.inference import score_run
from mobillm_kit.runs.loop import fit
from mobillm_kit.runs.prepare import build_method, prepare, training_batches
from mobillm_kit.runs.run import run
from tests.builders import tiny_spec


def trained(place: Path, method: str = "mobillm-ladder", **fields) -> bytes:
    """The side network that came out."""
    spec = tiny_spec(place, method, fields.pop("model", "opt"), steps=6, eval_every=3, **fields)
    prepared = prepare(spec)
    assert isinstance(prepared.backbone, StreamedBackbone) == spec.stream
    built = build_method(prepared)
    fit(built, training_batches(prepared), dev=prepared.dev[:8])
    return save({name: tensor.contiguous() for name, tensor in built.trained().items()})


@pytest.mark.parametrize("model", ["opt", "llama", "bert"])
@pytest.mark.parametrize("method", ["mobillm-full-width", "mobillm-ladder"])
def test_training_beside_a_streamed_backbone_gives_the_same_bytes(tmp_path, model, method):
    options = {"start": "random", "layers": None} if "ladder" in method else {"rank": 4}
    whole = trained(tmp_path / "whole", method, model=model, options=options)
    assert trained(tmp_path / "streamed", method, model=model, options=options, stream=True) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_codes_in_memory_and_codes_from_a_folder_give_the_same_bytes(tmp_path, kind):
    in_memory = trained(tmp_path / "memory", weights=kind)
    tiny_spec(tmp_path / "folder", "probe")
    coded = quantize_backbone(tmp_path / "folder" / "model-opt", tmp_path / "coded", kind)
    streamed = trained(tmp_path / "folder", backbone=str(coded), stream=True)
    assert streamed == in_memory
    assert in_memory != trained(tmp_path / "float")


def test_a_run_in_few_bits_scores_the_same_when_it_is_loaded_again(tmp_path):
    spec = tiny_spec(tmp_path / "task", "mobillm-full-width", steps=4, eval_every=4, weights="nf4")
    folder = tmp_path / "run"
    lay_out(folder, spec)
    record = run(spec, folder=folder)
    assert record.settings["weights"] == "nf4"
    assert score_run(folder) == record.scores


@pytest.mark.parametrize("name", [row.name for row in METHODS.values() if not (row.forward_only or row.streams)])
@pytest.mark.parametrize("fields", [{"stream": True}, {"weights": "nf4"}])
def test_what_trains_through_the_backbone_is_refused(tmp_path, name, fields):
    with pytest.raises(BadInput, match=f"'{name}' trains through the backbone"):
        prepare(tiny_spec(tmp_path, name, **fields))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"weights": "int3"}, "Unknown weight type 'int3'"),
        ({"stream": True, "weights": "nf4"}, "has the weights that its files hold"),
        ({"stream": True, "random_weights": True}, "has the weights that its files hold"),
    ],
)
def test_what_cannot_be_is_said(tmp_path, fields, problem):
    with pytest.raises(BadInput, match=problem):
        prepare(tiny_spec(tmp_path, "probe", **fields))


@pytest.mark.parametrize("fields", [{"stream": True}, {"weights": "nf4"}])
def test_a_side_network_cannot_begin_as_blocks_that_are_not_there(tmp_path, fields):
    options = {"start": "backbone", "reduction": 1, "layers": 2}
    prepared = prepare(tiny_spec(tmp_path, "mobillm-ladder", "bert", options=options, **fields))
    with pytest.raises(BadInput, match="streamed or in few bits"):
        build_method(prepared)


def test_the_command_line_codes_a_folder_and_trains_beside_it(tmp_path):
    spec = tiny_spec(tmp_path, "mobillm-full-width")
    coded = tmp_path / "coded"
    assert main(["quantize", spec.backbone, str(coded), "--kind", "fp4"]) == 0
    arguments = ["train", "mobillm-full-width", "--out", str(tmp_path / "run"), "--backbone", str(coded), "--stream"]
    arguments += ["--task", "custom", "--data", spec.data, "--text", "text", "--label", "label"]
    arguments += ["--prompt", spec.prompt, "--label-words", "|".join(spec.label_words), "--steps", "2"]
    assert main(arguments) == 0
    assert (tmp_path / "run" / "record.json").exists()
