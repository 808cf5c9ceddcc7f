"""P-RGE in ONNX Runtime is the library's own run: same noise, losses and folder, without PyTorch in the process."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from benchmarks import engines
from mobillm_kit.backbone.pretrained import load_backbone
from mobillm_kit.cli import main
from mobillm_kit.engines import manifest, prge, training
from mobillm_kit.engines.dual import DualForward, Settings
from mobillm_kit.engines.dual_onnx import OnnxStepper
from mobillm_kit.engines.onnx import OnnxEngine
from mobillm_kit.errors import BadInput, KitError, MissingExtra, TrainingDiverged
from mobillm_kit.methods.prge import PRGE
from mobillm_kit.methods.task_model import task_model
from mobillm_kit.runs.folders import CHECKPOINT
from mobillm_kit.runs.inference import load_run, score_run
from mobillm_kit.runs.prepare import build_method, prepare, training_batches
from mobillm_kit.runs.progress import Progress
from mobillm_kit.runs.run import run
from mobillm_kit.runs.spec import RunSpec
from mobillm_kit.texts.tasks import Example
from tests.builders import WITHOUT_TORCH, random_batch, save_tiny_model, tiny_spec

EXTRA = "needs the extra: pip install 'mobillm-kit[onnx]'"
for name in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(name, reason=EXTRA)

from mobillm_kit.engines import dual_export, export  # noqa: E402 - after the skip
from mobillm_kit.engines.export import export_backbone  # noqa: E402

STEPS = 12
OPTIONS = {"q": 2, "rank": 4, "alpha": 8.0, "clip": 1.0}
WORDS = (10, 11)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Tiny models, their exports for P-RGE and a CSV."""
    place = tmp_path_factory.mktemp("prge")
    for model, targets in (("opt", []), ("llama", ["--targets", "q_proj,v_proj"])):
        tiny_spec(place, model=model)
        given = [str(place / f"model-{model}"), str(place / model), "--method", "p-rge", *targets]
        assert main(["export", *given]) == 0
    return place


def altered(place: Path, copy: Path, **changes) -> RunSpec:
    """A run on a copy of an export whose manifest says something else."""
    shutil.copytree(place / "opt", copy)
    written = json.loads((copy / manifest.FILE).read_text(encoding="utf-8"))
    (copy / manifest.FILE).write_text(json.dumps({**written, **changes}), encoding="utf-8")
    return replace(spec_of(place), backbone=str(copy))


def spec_of(place: Path, model: str = "opt", **changes) -> RunSpec:
    """A run on an export; its targets are the export's."""
    given = {"steps": STEPS, "options": OPTIONS, **changes}
    return replace(tiny_spec(place, "p-rge", model, **given), backbone=str(place / model))


def torchs(place: Path, out: Path, model: str = "opt", **changes) -> RunSpec:
    """The same run for PyTorch, whose backbone is the model itself."""
    targets = json.loads((out / "spec.json").read_text(encoding="utf-8"))["options"]["targets"]
    spec = replace(spec_of(place, model, **changes), backbone=str(place / f"model-{model}"), accelerator="cpu")
    return replace(spec, options={**spec.options, "targets": targets})


def engine_of(place: Path, model: str = "opt", **options) -> DualForward:
    settings = Settings(**options)
    return DualForward(OnnxStepper(OnnxEngine(place / model), WORDS, settings, 1), settings, 1)


def arrays(batch) -> dict[str, np.ndarray]:
    names = ("input_ids", "attention_mask", "labels", "positions")
    return {name: getattr(batch, name).numpy() for name in names}


# --- equal to PyTorch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["opt", "llama"])
def test_losses_adapter_and_scores_are_those_of_the_run_in_pytorch(place, tmp_path, model):
    found = prge.train(spec_of(place, model), tmp_path)
    prepared = prepare(torchs(place, tmp_path, model))
    method, batches = build_method(prepared), training_batches(prepared)
    losses = [method.step(batches.step(step), batches.lr(step)).loss for step in range(STEPS)]
    assert found.losses == pytest.approx(losses, abs=1e-5)
    assert max(losses) - min(losses) > 1e-4  # they are no constant

    state, kept = method.state(), load_file(tmp_path / CHECKPOINT)
    assert {name: (tensor.numpy().dtype, tuple(tensor.shape)) for name, tensor in state.items()} == {
        name: (array.dtype, array.shape) for name, array in kept.items()
    }
    wanted = method.trained()
    method.load_state({name: torch.from_numpy(array) for name, array in kept.items()})
    for name, tensor in method.trained().items():
        assert (tensor - wanted[name]).abs().max() <= 1e-4 * wanted[name].abs().max(), name

    again = run(torchs(place, tmp_path, model), folder=tmp_path / "torch")
    assert [look.dev_accuracy for look in found.looks] == [point.dev_accuracy for point in again.curve]
    for look, point in zip(found.looks, again.curve, strict=True):
        assert (look.step, look.dev_loss) == (point.step, pytest.approx(point.dev_loss, abs=1e-5))
        assert look.train_loss == (None if point.train_loss is None else pytest.approx(point.train_loss, abs=1e-5))
    assert found.forwards == again.forwards


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize(("q", "rank", "rows", "length"), [(1, 1, 1, 1), (3, 5, 2, 7), (2, 4, 5, 64), (1, 16, 4, 9)])
def test_one_export_serves_every_q_rank_batch_and_length(place, q, rank, rows, length, pad):
    options = {"q": q, "rank": rank, "alpha": 3.0}
    ours = engine_of(place, **options)
    backbone = load_backbone(place / "model-opt")
    theirs = PRGE(task_model(backbone, word_ids=WORDS), seed=1, targets="all", **options)
    for step in range(3):
        batch = random_batch(rows=rows, length=length, seed=step, pad=pad)
        assert ours.step(arrays(batch), 1e-3) == pytest.approx(theirs.step(batch, 1e-3).loss, abs=1e-5)
    logits = theirs.logits(batch).numpy()
    assert np.abs(ours.logits(arrays(batch)) - logits).max() <= 1e-4 * np.abs(logits).max()


@pytest.mark.parametrize(("inner", "outer"), [(True, False), (False, True), (False, False)])
def test_one_after_the_other_is_what_all_at_once_is(place, inner, outer):
    whole, cut = engine_of(place, q=3), engine_of(place, q=3, inner=inner, outer=outer)
    for step in range(3):
        batch = arrays(random_batch(seed=step))
        assert cut.step(batch, 1e-3) == pytest.approx(whole.step(batch, 1e-3), abs=1e-5)


def test_the_model_with_b_a_added_to_its_weights_predicts_the_same(place, tmp_path):
    """Merged by hand into the Hugging Face model, from the folder's tensors and nothing else."""
    for model in ("opt", "llama"):
        out = tmp_path / model
        prge.train(spec_of(place, model, lr=0.3), out)
        method = build_method(prepare(torchs(place, out, model)))
        method.load_state({name: torch.from_numpy(each) for name, each in load_file(out / CHECKPOINT).items()})
        merged = load_backbone(place / f"model-{model}")
        for name, layer in method._layers.items():
            weight = merged.blocks.get_submodule(name).weight
            weight += layer.scale * method.trained()[f"{name}.b"] @ layer.a
        texts = ["the very film 3 is good", "the quite film 4 is bad", "the awful food", "not really good"]
        predictor = load_run(out, place / f"model-{model}")
        plain = task_model(merged, word_ids=predictor.encoder.label_ids())
        with torch.no_grad():
            wanted = plain.logits(_encoded(predictor, texts)).softmax(dim=-1)
            before = task_model(load_backbone(place / f"model-{model}"), word_ids=plain.head.word_ids.tolist())
            assert (before.logits(_encoded(predictor, texts)).softmax(dim=-1) - wanted).abs().max() > 1e-3
        found = predictor.predict(texts)
        names = [predictor.encoder.task.labels[label] for label in wanted.argmax(dim=-1)]
        assert [each.label for each in found] == names
        assert [each.probability for each in found] == pytest.approx(wanted.max(dim=-1).values.tolist(), abs=1e-5)


def _encoded(predictor, texts: list[str]):
    return predictor.encoder.collate(predictor.encoder.encode([Example(text, None, 0) for text in texts]))


def test_the_committed_record_holds_its_bars():
    found = msgspec.json.decode(engines.RECORD.read_bytes(), type=engines.Found)
    assert [str(bar) for bar in engines.bars(found) if not bar.ok] == []


# --- without PyTorch --------------------------------------------------------------------------------------------


def command(place: Path, out: Path, *more: str) -> list[str]:
    spec = spec_of(place)
    given = ["train", "p-rge", "--engine", "onnx", "--backbone", spec.backbone, "--out", str(out), "--task", "custom"]
    given += ["--data", spec.data, "--text", "text", "--label", "label", "--prompt", spec.prompt, "--label-words"]
    given += ["|".join(spec.label_words), "--steps", str(STEPS), "--batch-size", "4", "--lr", "0.01"]
    given += ["--eval-every", "4", *(f"--option={name}={value}" for name, value in OPTIONS.items()), *more]
    return given


def test_a_process_without_pytorch_trains_from_the_command_line(place, tmp_path):
    out = tmp_path / "out"
    line = [sys.executable, "-c", WITHOUT_TORCH, *command(place, out)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Accuracy on the dev split: " in done.stdout
    loaded = {name.split(".")[0] for name in done.stdout.split("LOADED")[1].split()}
    assert {"onnxruntime", "numpy", "tokenizers", "msgspec", "safetensors"} <= loaded
    assert not {"torch", "transformers", "peft", "onnx", "zmq", "huggingface_hub"} & loaded
    here = prge.train(spec_of(place), tmp_path / "here")
    assert (out / CHECKPOINT).read_bytes() == (tmp_path / "here" / CHECKPOINT).read_bytes()
    said = msgspec.json.decode((out / prge.RUN).read_bytes(), type=prge.EngineRun)
    assert (said.losses, said.looks, said.fingerprint) == (here.losses, here.looks, here.fingerprint)


def test_no_graph_holds_the_embedding_which_is_read_row_by_row(place):
    """Trap: an embedding as a node is read into memory whole."""
    import onnx

    for file in sorted((place / "opt").glob("block-*.onnx")):
        graph = onnx.load(file).graph
        assert 100 not in {each.dims[0] for each in graph.initializer if len(each.dims) == 2}  # the vocabulary's
    assert isinstance(OnnxEngine(place / "opt").tables["tokens"], np.memmap)


def test_what_is_not_given_comes_from_the_preset(place, tmp_path):
    prge.train(spec_of(place, steps=2, options={}), tmp_path)
    kept = load_file(tmp_path / CHECKPOINT)
    assert kept["up/0.fc1"].shape == (4, 64, 16)  # q of the method, rank of the decoders' preset


# --- what breaks ------------------------------------------------------------------------------------------------


def killed_at(step: int):
    def told(event: Progress) -> None:
        if event.step == step:
            raise KeyboardInterrupt

    return told


def test_a_run_that_was_stopped_goes_on_to_the_bytes_of_an_undisturbed_one(place, tmp_path):
    whole = prge.train(spec_of(place), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        prge.train(spec_of(place), tmp_path / "out", killed_at(7))
    assert not (tmp_path / "out" / prge.RUN).exists()
    seen: list[int] = []
    again = prge.train(spec_of(place), tmp_path / "out", lambda event: seen.append(event.step))
    assert min(step for step in seen if step) == 5  # from the checkpoint of step 4
    assert (tmp_path / "out" / CHECKPOINT).read_bytes() == (tmp_path / "whole" / CHECKPOINT).read_bytes()
    assert (again.losses, again.looks) == (whole.losses, whole.looks)


@pytest.mark.faults
def test_a_process_that_was_killed_goes_on_to_the_bytes_of_an_undisturbed_one(place, tmp_path):
    out = tmp_path / "out"
    line = [sys.executable, "-m", "mobillm_kit.cli", *command(place, out, "--steps", "400")]
    for _ in range(3):
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = (out / CHECKPOINT).stat().st_mtime_ns if (out / CHECKPOINT).exists() else 0
        limit = time.monotonic() + 60
        while not (out / CHECKPOINT).exists() or (out / CHECKPOINT).stat().st_mtime_ns == before:
            assert time.monotonic() < limit
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    subprocess.run(line, check=True, capture_output=True, timeout=240)
    prge.train(spec_of(place, steps=400), tmp_path / "whole")
    assert (out / CHECKPOINT).read_bytes() == (tmp_path / "whole" / CHECKPOINT).read_bytes()


def test_a_folder_of_pytorch_or_of_other_settings_is_refused(place, tmp_path):
    mine = tmp_path / "mine"
    prge.train(spec_of(place), mine)
    with pytest.raises(BadInput, match=r"holds a run with other settings \(lr\)\. Choose another folder"):
        prge.train(spec_of(place, lr=1e-3), mine)
    spec = torchs(place, mine)
    theirs = tmp_path / "theirs"
    run(spec, folder=theirs, callbacks=[lambda event: event.step == 5])
    with pytest.raises(BadInput, match=r"theirs: holds a run of PyTorch\. Name another folder"):
        prge.train(spec_of(place), theirs)
    (mine / CHECKPOINT).write_bytes((theirs / CHECKPOINT).read_bytes())
    with pytest.raises(BadInput, match=r"checkpoint\.safetensors: made elsewhere or otherwise \(p-rge FitSettings"):
        prge.train(spec_of(place), mine)


def test_pytorch_does_not_go_on_from_the_engines_checkpoint(place, tmp_path):
    prge.train(spec_of(place), tmp_path)
    spec = torchs(place, tmp_path)
    (tmp_path / "spec.json").write_bytes(msgspec.json.encode(spec))
    with pytest.raises(BadInput, match=r"made with other settings \(P-RGE in ONNX Runtime on \w{12}: .*rank=4"):
        run(spec, folder=tmp_path)


def test_a_checkpoint_of_another_backbone_of_the_same_name_is_refused(place, tmp_path):
    prge.train(spec_of(place), tmp_path / "out")
    other = altered(place, tmp_path / "other", fingerprint=64 * "5")
    with pytest.raises(BadInput, match=r"made elsewhere or otherwise \(.*this run is 'P-RGE .* on 555555555555: "):
        prge.train(other, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_checkpoint_that_cannot_be_read(place, tmp_path, content):
    prge.train(spec_of(place), tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(BadInput, match=r"checkpoint\.safetensors: not a checkpoint \(.*\)\. Delete it to start again"):
        prge.train(spec_of(place), tmp_path)


def test_a_checkpoint_that_lacks_a_tensor(place, tmp_path):
    prge.train(spec_of(place), tmp_path)
    with safe_open(str(tmp_path / CHECKPOINT), framework="np") as opened:
        header = opened.metadata()
    kept = load_file(tmp_path / CHECKPOINT)
    del kept["up/0.fc1"]
    save_file(kept, tmp_path / CHECKPOINT, header)
    with pytest.raises(BadInput, match=r"its tensors are not this run's \('up/0\.fc1'\)"):
        prge.train(spec_of(place), tmp_path)


def test_an_export_for_something_else_is_refused(place, tmp_path):
    spec = altered(place, tmp_path / "device", adapted=None)
    said = (
        r"an export of 'model-opt' for a device of MobiLLM, not for the method 'p-rge'\. .* export --method p-rge MODEL"
    )
    with pytest.raises(BadInput, match=said):
        prge.train(spec, tmp_path / "out")
    mobillm = replace(tiny_spec(place, "mobillm-ladder"), backbone=str(place / "opt"))
    with pytest.raises(BadInput, match=r"for the method 'p-rge', not for a device of MobiLLM"):
        training.train(mobillm, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_altered_file_or_another_version_is_refused(place, tmp_path):
    copy = shutil.copytree(place / "opt", tmp_path / "opt")
    spec = replace(spec_of(place), backbone=str(copy))
    block = copy / "block-1.onnx"
    whole = block.read_bytes()
    block.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    with pytest.raises(BadInput, match=r"block-1\.onnx: its bytes are not those that were written"):
        prge.train(spec, tmp_path / "out")
    block.write_bytes(whole)
    with pytest.raises(BadInput, match=r"manifest\.json: cannot be read"):
        prge.train(altered(place, tmp_path / "next", version=2), tmp_path / "out")


def test_a_batch_beyond_the_models_positions(place):
    with pytest.raises(BadInput, match=r"A batch of 65 tokens; 'model-opt' has positions for 64"):
        engine_of(place).step(arrays(random_batch(length=65)), 1e-3)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(place, tmp_path):
    with pytest.raises(TrainingDiverged, match=r"p-rge: the loss of step \d+ is nan\. Lower the learning rate"):
        prge.train(spec_of(place, lr=1e38, options={"q": 2, "rank": 4}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options": {"targets": "q_proj"}}, r"exported for the projections k_proj,v_proj,.* this run asks for q_proj"),
        ({"options": {"rnak": 4}}, r"P-RGE in an engine has no option 'rnak'\. Did you mean 'rank'"),
        ({"options": {"rank": 0}}, r"rank is 0; it must be a whole number from 1 up"),
        ({"options": {"q": 2.5}}, r"q is 2\.5; it must be a whole number from 1 up"),
        ({"options": {"clip": -1.0}}, r"clip is -1\.0; it must be a number above 0"),
        ({"options": {"eps": 0}}, r"eps is 0; it must be a number above 0"),
        ({"patience": 3}, r"--patience is not there with an engine\. Leave --patience out, or take --engine torch"),
        ({"stream": True}, r"--stream is not there with an engine"),
    ],
)
def test_what_the_engine_cannot_do_has_a_sentence(place, tmp_path, changes, said):
    with pytest.raises(BadInput, match=said):
        prge.train(spec_of(place, **changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_exports_own_targets_may_be_named(place, tmp_path):
    names = {"opt": "all", "llama": "v_proj, q_proj"}
    for model, targets in names.items():
        prge.train(spec_of(place, model, steps=1, options={**OPTIONS, "targets": targets}), tmp_path / model)
    with pytest.raises(BadInput, match=r"exported for the projections q_proj,v_proj, this run asks for all"):
        prge.train(spec_of(place, "llama", options={"targets": "all"}), tmp_path / "other")


def test_methods_that_need_a_backward_pass_are_refused(place, tmp_path, capsys):
    line = ["train", "lora", "--engine", "onnx", "--backbone", str(place / "opt"), "--out", str(tmp_path / "out")]
    assert main(line) == 2
    assert "An engine trains no 'lora'" in capsys.readouterr().err


def test_without_the_library_the_sentence_names_the_extra(place, tmp_path, monkeypatch):
    monkeypatch.setattr("mobillm_kit.engines.manifest.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"needs onnxruntime, which is not .* pip install 'mobillm-kit\[onnx\]'"):
        prge.train(spec_of(place), tmp_path)


# --- exporting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left")])
def test_an_interrupted_export_leaves_no_half_folder(place, tmp_path, monkeypatch, error):
    def broken(*_):
        raise error

    monkeypatch.setattr(export, "_write_blocks", broken)
    with pytest.raises((KeyboardInterrupt, KitError)):
        export_backbone(place / "model-opt", tmp_path / "out", targets="all")
    assert not list(tmp_path.iterdir())


def test_a_step_that_differs_from_pytorchs_is_not_kept(place, monkeypatch):
    """Here one projection's B begins elsewhere."""
    drawn = OnnxStepper.__init__

    def swapped(self, *given):
        drawn(self, *given)
        self.stacks[0][:] = 0.1

    monkeypatch.setattr(OnnxStepper, "__init__", swapped)
    with pytest.raises(KitError, match=r"Step 0 of P-RGE on '.*' comes out .* away from PyTorch in ONNX Runtime"):
        dual_export.check_step(load_backbone(place / "model-opt"), OnnxEngine(place / "opt"))


def test_projections_and_models_that_cannot_be_are_refused_before_anything_is_written(place, tmp_path, capsys):
    with pytest.raises(BadInput, match=r"'model-opt' has no layer named 'query'\. There are: fc1, fc2"):
        export_backbone(place / "model-opt", tmp_path / "out", targets="query")
    encoder = save_tiny_model(tmp_path / "bert", "bert")
    with pytest.raises(BadInput, match=r"'bert' is an encoder; P-RGE in an engine trains decoders only"):
        export_backbone(encoder, tmp_path / "out", targets="all")
    assert main(["export", str(place / "model-opt"), str(tmp_path / "out"), "--targets", "all"]) == 2
    assert "--targets is P-RGE's" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"bert"}


def test_the_manifest_says_what_is_adapted(place):
    opt, llama = (manifest.read(place / model).adapted for model in ("opt", "llama"))
    targets = {"self_attn.q_proj": (32, 32), "self_attn.v_proj": (16, 32)}
    assert (llama.method, llama.targets, llama.every) == ("p-rge", targets, False)
    names = ["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"]
    assert (list(opt.targets), opt.every) == (names, True)


def test_a_folder_of_the_engine_is_scored_as_pytorchs_own(place, tmp_path, capsys):
    prge.train(spec_of(place), tmp_path / "out")
    run(torchs(place, tmp_path / "out"), folder=tmp_path / "torch")
    found = score_run(tmp_path / "out", backbone=place / "model-opt")
    assert found == pytest.approx(score_run(tmp_path / "torch"), abs=1e-5)
    assert main(["evaluate", str(tmp_path / "out"), "--backbone", str(place / "model-opt")]) == 0
    assert f"test accuracy: {found['test_accuracy']:.4f}" in capsys.readouterr().out
    line = ["predict", str(tmp_path / "out"), "the film is good", "--backbone", str(place / "model-opt")]
    assert main(line) == 0
