"""A run whose frozen backbone is streamed from its files, held in few bits, or both: same bytes, or a clear refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from transformers import BertConfig

from mobillm_kit.backbone.lowbit import KINDS, quantize_backbone
from mobillm_kit.backbone.meta_model import random_folder
from mobillm_kit.backbone.streaming import StreamedBackbone, stream_backbone
from mobillm_kit.cli import main
from mobillm_kit.errors import BadInput
from mobillm_kit.memory.live_tensors import LiveTensors
from mobillm_kit.methods import METHODS
from mobillm_kit.runs.inference import score_run
from mobillm_kit.runs.loop import fit
from mobillm_kit.runs.prepare import build_method, prepare, training_batches
from mobillm_kit.runs.run import run
from mobillm_kit.server.process import serve
from mobillm_kit.side.description import SideSpec
from mobillm_kit.side.ladders import PrunedLadderSide
from mobillm_kit.side.pruning import start_from
from tests.builders import tiny_spec


def trained(place: Path, method: str = "mobillm-ladder", **fields) -> bytes:
    """The side network that came out."""
    spec = tiny_spec(place, method, fields.pop("model", "opt"), steps=6, eval_every=3, **fields)
    prepared = prepare(spec)
    assert isinstance(prepared.backbone, StreamedBackbone) == spec.stream
    built = build_method(prepared)
    try:
        fit(built, training_batches(prepared), dev=prepared.dev[:8])
        return save({name: tensor.contiguous() for name, tensor in built.trained().items()})
    finally:
        built.close()


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


@pytest.mark.parametrize("reduction", [1, 2])
def test_a_side_network_begins_as_the_same_blocks_whether_they_are_streamed_or_in_memory(tmp_path, reduction):
    options = {"start": "backbone", "reduction": reduction, "layers": 3}
    whole = trained(tmp_path / "whole", model="bert", options=options)
    assert trained(tmp_path / "streamed", model="bert", options=options, stream=True) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_a_side_network_that_begins_as_coded_blocks_begins_as_what_their_codes_say(tmp_path, kind):
    options = {"start": "backbone", "reduction": 1, "layers": 3}
    spec = tiny_spec(tmp_path, "mobillm-ladder", "bert", options=options, weights=kind)
    prepared = prepare(spec)
    side = build_method(prepared).adapter.side
    for block, own in zip(prepared.backbone.blocks[1:], side.blocks, strict=True):
        dense: list = []
        layer = block.intermediate.dense
        layer.register_forward_hook(lambda module, given, out, dense=dense: dense.append(module.weight), prepend=True)
        layer(torch.ones(1, 32))
        assert torch.equal(own.wide.weight, dense[0])
    plain = build_method(prepare(tiny_spec(tmp_path, "mobillm-ladder", "bert", options=options))).adapter.side
    assert not torch.equal(side.blocks[0].wide.weight, plain.blocks[0].wide.weight)
    coded = quantize_backbone(Path(spec.backbone), tmp_path / "coded", kind)
    streamed = trained(tmp_path, model="bert", options=options, backbone=str(coded), stream=True)
    assert streamed == trained(tmp_path, model="bert", options=options, weights=kind)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.mark.parametrize("model", ["bert", "llama"])
@pytest.mark.parametrize("fields", [{"stream": True}, {"weights": "int8"}, {"weights": "nf4"}], ids=str)
def test_across_a_server_a_copy_of_such_blocks_ends_in_the_bytes_of_one_process(tmp_path, server, model, fields):
    options = {"start": "backbone", "reduction": 1, "layers": 3, "codec": "int8", "group": 8}
    here = trained(tmp_path, model=model, options=options, **fields)
    assert trained(tmp_path, model=model, options={**options, "server": server.address}, **fields) == here


@pytest.mark.parametrize("kind", ["", "int8", "nf4"])
def test_blocks_are_read_and_decoded_one_at_a_time(tmp_path, kind):
    """What is alive beside the side network while it begins is as much for twelve blocks as for three."""
    config = BertConfig(
        vocab_size=40, hidden_size=64, num_attention_heads=2, intermediate_size=256, num_hidden_layers=12
    )
    folder = random_folder(config, tmp_path / "model", dtype=torch.float32)
    if kind:
        folder = quantize_backbone(folder, tmp_path / "coded", kind)
    beside = []
    for layers in (list(range(9, 13)), list(range(13))):
        backbone = stream_backbone(folder)
        shape = {"width": 64, "layers": layers, "reduction": 2, "heads": 1, "feed_forward": 128}
        side = PrunedLadderSide(SideSpec.of(kind="ladder", start="backbone", **shape))
        with LiveTensors() as live:
            start_from(side, backbone)
        beside.append(live.peak.total - sum(tensor.nbytes for tensor in side.parameters()))
    block_bytes = sum(tensor.nbytes for tensor in backbone.blocks[0].parameters())
    assert beside[1] < beside[0] + block_bytes / 2
    assert kind or beside[1] < 2.5 * block_bytes  # the two buffers


def test_the_command_line_codes_a_folder_and_trains_beside_it(tmp_path):
    spec = tiny_spec(tmp_path, "mobillm-full-width")
    coded = tmp_path / "coded"
    assert main(["quantize", spec.backbone, str(coded), "--kind", "fp4"]) == 0
    arguments = ["train", "mobillm-full-width", "--out", str(tmp_path / "run"), "--backbone", str(coded), "--stream"]
    arguments += ["--task", "custom", "--data", spec.data, "--text", "text", "--label", "label"]
    arguments += ["--prompt", spec.prompt, "--label-words", "|".join(spec.label_words), "--steps", "2"]
    assert main(arguments) == 0
    assert (tmp_path / "run" / "record.json").exists()
