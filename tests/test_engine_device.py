"""A device without PyTorch trains what the torch device trains, across a real link to a real server process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load, load_file, save

from mobillm_kit.backbone.pretrained import load_backbone, load_tokenizer
from mobillm_kit.cli import main
from mobillm_kit.engines import training
from mobillm_kit.engines.engine import Eager
from mobillm_kit.engines.manifest import Words
from mobillm_kit.engines.tokens import FileTokenizer
from mobillm_kit.errors import BackboneMismatch, BadInput, KitError, ServerRefused
from mobillm_kit.runs.inference import load_side
from mobillm_kit.runs.progress import Progress
from mobillm_kit.runs.run import run
from mobillm_kit.server.process import ServerProcess, serve
from mobillm_kit.texts.encode import TextEncoder
from mobillm_kit.texts.loading import load_task
from mobillm_kit.texts.tasks import Example, get_task
from tests.builders import WITHOUT_TORCH, tiny_spec
from tests.uplink import shape, trained

EXTRA = "needs the extra: pip install 'mobillm-kit[onnx]'"
for name in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(name, reason=EXTRA)

from mobillm_kit.engines.export import export_backbone  # noqa: E402 - after the skip

STEPS = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Tiny models, their exports and a CSV."""
    place = tmp_path_factory.mktemp("device")
    for model in ("opt", "llama", "bert"):
        tiny_spec(place, model=model)
        export_backbone(place / f"model-{model}", place / model)
    return place


@pytest.fixture(scope="module")
def server(place) -> ServerProcess:
    """A real one, for many sessions."""
    with serve(place / "server") as running:
        yield running


def spec_of(place: Path, address: str, side: str, model: str = "opt", **options):
    """The run that ``tests.uplink.trained`` makes, on an exported folder."""
    given = {"server": address, **shape(side), **options}
    spec = tiny_spec(place, f"mobillm-{side}", model, steps=STEPS, eval_every=6, options=given)
    return msgspec.structs.replace(spec, backbone=str(place / model))


def kept(out: Path) -> bytes:
    """The side network's bytes, under the names that the torch device gives them."""
    tensors = load_file(out / "side" / "model.safetensors")
    return save({f"adapter.{name}": tensor for name, tensor in tensors.items()})


# --- equal to the torch device ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["opt", "llama", "bert"])
@pytest.mark.parametrize(
    ("side", "codec", "cache"),
    [("ladder", "int4", True), ("ladder", "fp8", False), ("full-width", "nf4", True), ("full-width", "none", False)],
)
def test_the_same_activations_end_in_the_same_bytes(place, server, tmp_path, model, side, codec, cache):
    """Order, neighbours, codes, plan and head are the torch device's; PyTorch runs the blocks here."""
    options = {"codec": codec, "group": 8, "cache": cache}
    wanted, _ = trained(place, server.address, side=side, model=model, **options)
    runner = Eager(load_backbone(place / f"model-{model}"))
    spec = spec_of(place, server.address, side, model, **options)
    found = training.train(spec, tmp_path, runner=runner)
    assert kept(tmp_path) == wanted
    assert len(found.losses) == STEPS
    assert (found.engine, found.precision) == ("torch", "float32")


@pytest.mark.parametrize(("side", "model"), [("full-width", "opt"), ("ladder", "llama"), ("full-width", "bert")])
def test_a_process_without_pytorch_trains_on_a_server_beside_it(place, server, tmp_path, side, model):
    """Stated tolerance: losses within 10⁻⁴; of the full width, weights within 10⁻⁴ of each tensor's largest."""
    out = tmp_path / "out"
    spec = spec_of(place, server.address, side, model)
    command = ["device", "--engine", "onnx", "--backbone", spec.backbone, "--join", server.address, "--out", str(out)]
    command += ["--task", "custom", "--data", spec.data, "--text", "text", "--label", "label", "--prompt", spec.prompt]
    command += ["--label-words", "|".join(spec.label_words), "--side", side, "--steps", str(STEPS)]
    command += ["--batch-size", "4", "--lr", "0.01", "--codec", "fp32"]
    for name, value in {**shape(side), "layers": None}.items():
        command += ["--option", f"{name}={json.dumps(value)}"]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *command], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Loss of the last step" in done.stdout
    loaded = {name.split(".")[0] for name in done.stdout.split("LOADED")[1].split()}
    assert {"onnxruntime", "numpy", "tokenizers", "zmq", "msgspec", "safetensors"} <= loaded
    assert not {"torch", "transformers", "peft", "onnx", "huggingface_hub"} & loaded

    reference = tmp_path / "reference"
    eager = training.train(
        msgspec.structs.replace(spec, options={**spec.options, "codec": "fp32"}),
        reference,
        runner=Eager(load_backbone(place / f"model-{model}")),
    )
    said = msgspec.json.decode((out / training.RUN).read_bytes(), type=training.DeviceRun)
    assert (said.engine, said.steps, said.fingerprint) == ("onnx", STEPS, eager.fingerprint)
    assert said.losses == pytest.approx(eager.losses, abs=1e-4)
    if side == "full-width":  # AdamW moves a ladder's weights without gradient, keys' biases, wherever noise points
        found, wanted = load(kept(out)), load(kept(reference))
        for name, tensor in wanted.items():
            assert (found[name] - tensor).abs().max() <= 1e-4 * tensor.abs().max() + 1e-7, name
    json_config = json.loads((out / "side" / "config.json").read_text(encoding="utf-8"))
    assert json_config["trained_beside"] == "onnx, float32"


@pytest.mark.parametrize("model", ["opt", "bert"])
def test_the_side_network_labels_texts_as_the_torch_devices_own_folder(place, server, tmp_path, model, capsys):
    spec = spec_of(place, server.address, "full-width", model)
    training.train(spec, tmp_path / "out")
    backbone = str(place / f"model-{model}")
    run(msgspec.structs.replace(spec, backbone=backbone, accelerator="cpu"), folder=tmp_path / "torch")
    texts = ["the very film 3 is good", "the quite film 4 is bad", "the awful food"]
    found, wanted = (load_side(tmp_path / name / "side", backbone).predict(texts) for name in ("out", "torch"))
    assert [each.label for each in found] == [each.label for each in wanted]
    assert [each.probability for each in found] == pytest.approx([each.probability for each in wanted], abs=1e-5)
    configs = [json.loads((tmp_path / name / "side" / "config.json").read_bytes()) for name in ("out", "torch")]
    assert configs[0] == {**configs[1], "trained_beside": "onnx, float32"}
    assert main(["predict", str(tmp_path / "out" / "side"), *texts, "--backbone", backbone]) == 0
    assert capsys.readouterr().out.startswith(f"{wanted[0].label}\t")


# --- what breaks ------------------------------------------------------------------------------------------------


def test_a_device_that_was_killed_goes_on_to_the_same_bytes(place, server, tmp_path):
    spec = spec_of(place, server.address, "ladder", codec="int8", group=8, checkpoint_every=2)
    whole = training.train(spec, tmp_path / "whole")

    def killed(event: Progress) -> None:
        if event.step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(spec, tmp_path / "out", killed)
    assert not (tmp_path / "out" / training.RUN).exists()
    again = training.train(spec, tmp_path / "out")
    assert kept(tmp_path / "out") == kept(tmp_path / "whole")
    assert again.losses == whole.losses
    assert again.forwards < whole.forwards  # it goes on from the server's last checkpoint
    assert not (tmp_path / "out" / training.SESSION).exists()


def test_a_server_that_was_killed_and_started_again_ends_in_the_same_bytes(place, server, tmp_path):
    training.train(spec_of(place, server.address, "ladder", checkpoint_every=3), tmp_path / "whole")
    with serve(tmp_path / "server") as other:

        def kill(event: Progress) -> None:
            if event.step == 6:
                other.kill()
                other.restart()

        training.train(spec_of(place, other.address, "ladder", checkpoint_every=3), tmp_path / "out", kill)
    assert kept(tmp_path / "out") == kept(tmp_path / "whole")


def test_a_folder_that_is_done_or_was_begun_otherwise_is_refused(place, server, tmp_path):
    spec = spec_of(place, server.address, "ladder")

    def killed(event: Progress) -> None:
        if event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(spec, tmp_path, killed)
    with pytest.raises(BadInput, match=r"was begun with other settings\. Give the same ones, or name another folder"):
        training.train(msgspec.structs.replace(spec, lr=0.02), tmp_path)
    coarser = Eager(load_backbone(place / "model-opt"))
    coarser.precision = "int8"  # other activations: not the same run
    with pytest.raises(BadInput, match=r"was begun with other settings"):
        training.train(spec, tmp_path, runner=coarser)
    other = spec_of(place, server.address, "ladder", "llama")
    with pytest.raises(BackboneMismatch, match=r"The folder is an export of 'model-llama' \(\w{12}\), not of \w{12}"):
        training.train(other, tmp_path)
    (tmp_path / training.SESSION).write_bytes(b"{")
    with pytest.raises(BadInput, match=r"session\.json: cannot be read .* Remove it to begin again"):
        training.train(spec, tmp_path)
    (tmp_path / training.RUN).write_bytes(b"{}")
    with pytest.raises(BadInput, match=r"holds a run that is done\. Name another folder"):
        training.train(spec, tmp_path)


@pytest.mark.parametrize(
    ("changes", "options", "match"),
    [
        (
            {"dtype": "bfloat16"},
            {},
            r"^--dtype is not there with an engine\. Leave --dtype out, or",
        ),
        ({"stream": True}, {}, "^--stream is not there"),
        ({"random_weights": True}, {}, "^--random-weights is not there"),
        ({"patience": 3}, {}, "^--patience is not there"),
        ({}, {"labels": "device"}, "^labels=device needs the head's logits"),
        ({}, {"start": "backbone"}, "^A side network that starts from the backbone's blocks needs their weights"),
        ({}, {"tokens": "prediction"}, r"^tokens='prediction' is not possible here\. Choose 'auto' or 'all'\.$"),
        ({}, {"rnak": 4}, "^A device with an engine has no option 'rnak'. Did you mean 'rank'"),
        ({}, {"layers": [1, 2]}, "^The last tapped layer is 2, the backbone's last is 3"),
        ({}, {"pooling": "mean"}, "^Label words are read at one token; there is no pooling"),
        ({}, {"codec": "int3"}, "^There is no codec 'int3'"),
        ({}, {"server": "nowhere"}, "^'nowhere' is no server"),
        ({"backbone": "pocket"}, {}, r"^pocket: no exported backbone \(it has no manifest\.json\)"),
    ],
)
def test_what_an_engine_cannot_do_is_one_sentence(place, tmp_path, changes, options, match):
    spec = spec_of(place, "tcp://127.0.0.1:9", "ladder", **options)
    with pytest.raises(KitError, match=match):
        training.train(msgspec.structs.replace(spec, **changes), tmp_path)
    assert not (tmp_path / "side").exists()


def test_a_side_network_that_is_not_ours_is_refused(place):
    side = training.prepare(spec_of(place, "spawn", "full-width")).plan.side
    whole = torch.ones(side.values())
    for tensors, match in (
        ({"adapter.a": torch.ones(3)}, "weights are missing"),
        ({"a": whole}, "other tensors"),
        ({"adapter.a": whole.double()}, "'adapter.a' is not of finite float32"),
        ({"adapter.a": whole * torch.inf}, "'adapter.a' is not of finite float32"),
    ):
        with pytest.raises(ServerRefused, match=f"not ours: .*{match}"):
            training._checked(save(tensors), side)
    with pytest.raises(ServerRefused, match="not ours: no safetensors"):
        training._checked(b"nothing", side)


# --- tokens -----------------------------------------------------------------------------------------------------


def encoders(tokenizer, place: Path, task, kind: str, length: int) -> list[TextEncoder]:
    """The same encoder on transformers' tokenizer and on its file."""
    tokenizer.backend_tokenizer.save(str(place / "tokenizer.json"))
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    segments = "token_type_ids" in tokenizer.model_input_names
    words = Words(pad_token_id=ids[0], eos_token_id=ids[1], unk_token_id=ids[2], segments=segments)
    both = (tokenizer, FileTokenizer(place / "tokenizer.json", words))
    return [TextEncoder(each, task, kind, length) for each in both]


@pytest.mark.parametrize("length", [128, 20])
def test_the_packaged_texts_have_the_same_tokens_cut_or_not(tmp_path, length):
    data = load_task("reviews")
    theirs, ours = encoders(load_tokenizer("pocket"), tmp_path, data.task, "decoder", length)
    texts = data.train[:200]
    assert ours.encode(texts) == theirs.encode(texts)
    assert bool(ours.notes) == (length == 20)
    assert ours.label_ids() == theirs.label_ids()
    assert len(ours.tokenizer) == len(theirs.tokenizer)


@pytest.mark.parametrize(
    ("name", "task", "kind"), [("minilm-l6-h384", "rte", "encoder"), ("smollm2-135m", "sst2", "decoder")]
)
def test_real_tokenizers_have_the_same_tokens(shared, tmp_path, name, task, kind):
    if not (shared / "models" / name).is_dir():
        pytest.skip(f"needs ../shared/models/{name}, which this machine has not")
    theirs, ours = encoders(load_tokenizer(shared / "models" / name), tmp_path, get_task(task), kind, 24)
    paired = get_task(task).pair_column is not None
    said = ("A moving, funny film — naïve, perhaps.", "no.", "It was " + "very " * 40 + "long")
    texts = [Example(text, "so it is said, " * 9 if paired else None, 0) for text in said]
    assert ours.encode(texts) == theirs.encode(texts)
