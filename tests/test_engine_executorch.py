"""P-RGE through ExecuTorch is the library's own run: state inside the engine, same noise, losses and folder.

ExecuTorch is an extra of its own (`make executorch` installs it and runs this file): it brings torchao, which
transformers and peft import where they find it, and lowering takes a minute and more.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.numpy import load_file

pytest.importorskip(
    "executorch", reason="ExecuTorch is not installed: `make executorch` installs it and runs this file"
)
pytestmark = pytest.mark.filterwarnings("default")  # of the exporter's own parts

from mobillm_kit.backbone.pretrained import load_backbone  # noqa: E402 - after the skip
from mobillm_kit.cli import main  # noqa: E402
from mobillm_kit.engines import lowering, manifest, prge  # noqa: E402
from mobillm_kit.engines.dual import DualForward, Settings  # noqa: E402
from mobillm_kit.engines.dual_export import chosen_targets  # noqa: E402
from mobillm_kit.engines.executorch import ExecutorchEngine, ExecutorchStepper  # noqa: E402
from mobillm_kit.engines.export import export_backbone  # noqa: E402
from mobillm_kit.errors import BadInput, KitError  # noqa: E402
from mobillm_kit.methods.prge import PRGE  # noqa: E402
from mobillm_kit.methods.task_model import task_model  # noqa: E402
from mobillm_kit.runs.folders import CHECKPOINT  # noqa: E402
from mobillm_kit.runs.prepare import build_method, prepare, training_batches  # noqa: E402
from tests.builders import random_batch, tiny_spec  # noqa: E402

STEPS = 12
OPTIONS = {"alpha": 8.0, "clip": 1.0}
SIZES = ["--q", "2", "--rank", "4", "--batch-size", "4", "--lengths", "8,16"]
WORDS = (10, 11)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny model, its export and a CSV."""
    place = tmp_path_factory.mktemp("executorch")
    tiny_spec(place)
    given = ["--method", "p-rge", "--engine", "executorch", "--targets", "q_proj,fc1", *SIZES]
    assert main(["export", str(place / "model-opt"), str(place / "opt"), *given]) == 0
    return place


def spec_of(place: Path, folder: str = "opt", **changes):
    given = {"steps": STEPS, "options": OPTIONS, **changes}
    return replace(tiny_spec(place, "p-rge", **given), backbone=str(place / folder))


def train(spec, out, told=id):
    return prge.train(spec, out, told, "executorch")


def altered(place: Path, copy: str, **changes) -> None:
    """A copy of the export whose manifest says something else."""
    shutil.copytree(place / "opt", place / copy)
    file = place / copy / manifest.FILE
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def arrays(batch) -> dict[str, np.ndarray]:
    return {name: getattr(batch, name).numpy() for name in ("input_ids", "attention_mask", "labels", "positions")}


def test_values_of_buffers_survive_lowering_and_methods_share_them(place, tmp_path):
    """Traps: without the pass a buffer begins as zeros; without shared planning each method has its own."""
    backbone = load_backbone(place / "model-opt")
    sizes = manifest.Lowered(q=2, rank=4, batch_size=1, labels=2, lengths=(4,))
    model = lowering.DualModel(backbone, chosen_targets(backbone, "fc1"), sizes)
    model.stacks.copy_(torch.randn(model.stacks.shape, generator=torch.Generator().manual_seed(0)))
    lowering.lower(model, sizes.lengths, tmp_path / "model.pte")
    program = lowering.runtime().load_program(tmp_path / "model.pte")
    methods = {name: program.load_method(name) for name in program.method_names}
    assert torch.equal(methods["read"].execute([])[0], model.stacks)

    inputs = model.example(4)["step"]
    with torch.no_grad():
        wanted = model.step(*inputs)[0]
    assert torch.allclose(methods["step_4"].execute(inputs)[0], wanted, atol=1e-5)
    assert torch.allclose(methods["read"].execute([])[0], model.stacks, atol=1e-6)  # moved by the step
    given = [getattr(model, name).clone() for name in lowering.STATE]
    given[0] = torch.full_like(given[0], 3.0)
    methods["write"].execute(given)
    assert (methods["read"].execute([])[0] == 3).all()


def test_losses_and_logits_are_pytorchs_at_every_length_and_batch(place):
    settings = Settings(q=2, rank=4)
    ours = DualForward(ExecutorchStepper(ExecutorchEngine(place / "opt"), WORDS, settings, 1), settings, 1)
    model = task_model(load_backbone(place / "model-opt"), word_ids=WORDS)
    theirs = PRGE(model, seed=1, targets="q_proj,fc1", q=2, rank=4)
    for step, (rows, length, pad) in enumerate([(4, 7, "left"), (2, 16, "right"), (4, 9, "left"), (1, 1, "right")]):
        batch = random_batch(rows=rows, length=length, seed=step, pad=pad)
        assert ours.step(arrays(batch), 1e-3) == pytest.approx(theirs.step(batch, 1e-3).loss, abs=1e-5)
    many = random_batch(rows=21, length=9)  # more than the 16 that are scored at once
    before = [stack.copy() for stack in ours.stepper.read()]
    assert np.abs(ours.logits(arrays(many)) - theirs.logits(many).numpy()).max() <= 1e-5
    assert all(np.array_equal(a, b) for a, b in zip(before, ours.stepper.read(), strict=True))
    with pytest.raises(BadInput, match=r"A text of 17 tokens; the file is exported for 16 at most"):
        ours.step(arrays(random_batch(length=17)), 1e-3)
    with pytest.raises(BadInput, match=r"A batch of 5 texts; the file is exported for 4\. Take --batch-size 4"):
        ours.step(arrays(random_batch(rows=5)), 1e-3)


def test_the_run_is_pytorchs_and_goes_on_after_a_kill_to_the_same_bytes(place, tmp_path):
    whole = train(spec_of(place), tmp_path / "whole")
    options = {**OPTIONS, "q": 2, "rank": 4, "targets": "q_proj,fc1"}
    prepared = prepare(replace(spec_of(place, "model-opt", options=options), accelerator="cpu"))
    method, batches = build_method(prepared), training_batches(prepared)
    losses = [method.step(batches.step(step), batches.lr(step)).loss for step in range(STEPS)]
    assert whole.losses == pytest.approx(losses, abs=1e-5)
    wanted = method.trained()
    kept = load_file(tmp_path / "whole" / CHECKPOINT)
    method.load_state({name: torch.from_numpy(each) for name, each in kept.items()})
    for name, own in wanted.items():
        assert (method.trained()[name] - own).abs().max() <= 1e-4 * own.abs().max(), name

    def killed(event) -> None:
        if event.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(spec_of(place), tmp_path / "out", killed)
    seen: list[int] = []
    again = train(spec_of(place), tmp_path / "out", lambda event: seen.append(event.step))
    assert min(step for step in seen if step) == 5  # from the checkpoint of step 4
    assert (tmp_path / "out" / CHECKPOINT).read_bytes() == (tmp_path / "whole" / CHECKPOINT).read_bytes()
    assert (again.losses, again.looks) == (whole.losses, whole.looks)

    checkpoint = tmp_path / "whole" / CHECKPOINT
    altered(place, "other", fingerprint=64 * "5")
    with pytest.raises(BadInput, match=r"made elsewhere or otherwise \(P-RGE in ExecuTorch on .* 555555555555"):
        train(spec_of(place, "other"), tmp_path / "out")
    assert checkpoint.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options": {"rank": 8}}, r"exported for rank 4, this run has 8\. Export the backbone again with --rank 8"),
        ({"options": {"q": 3}}, r"exported for q 2, this run has 3"),
        ({"options": {"inner": False}}, r"All copies run in one forward pass"),
        ({"prompt": "{text} it was " + 12 * "very "}, r"A text of \d+ tokens; the file is exported for 16 at most"),
    ],
)
def test_what_the_file_was_not_made_for_has_a_sentence(place, tmp_path, changes, said):
    with pytest.raises(BadInput, match=said):
        train(spec_of(place, **changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_engine_or_an_altered_file_is_refused(place, tmp_path):
    with pytest.raises(BadInput, match=r"an export of 'model-opt' for --engine executorch, not for onnx"):
        prge.train(spec_of(place), tmp_path / "out")
    altered(place, "cut")
    file = place / "cut" / "model.pte"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(BadInput, match=r"model\.pte: its bytes are not those that were written"):
        train(spec_of(place, "cut"), tmp_path / "out")
    altered(place, "version", version=2)
    with pytest.raises(BadInput, match=r"manifest\.json: cannot be read"):
        train(spec_of(place, "version"), tmp_path / "out")


def test_an_operator_that_the_engine_lacks_is_named_and_leaves_no_half_folder(place, tmp_path, monkeypatch):
    """Trap: it is lowered in silence."""
    own = lowering._bias
    monkeypatch.setattr(lowering, "_bias", lambda mask: own(mask.sort(dim=1).values))
    sizes = {"q": 1, "rank": 4, "batch_size": 1, "lengths": [4]}
    with pytest.raises(KitError, match=r"ExecuTorch's runtime has no operator 'aten::sort\.values', which 'step_4'"):
        export_backbone(place / "model-opt", tmp_path / "out", targets="fc1", engine="executorch", sizes=sizes)
    assert not list(tmp_path.iterdir())


def test_sizes_that_cannot_be_are_refused_before_anything_is_written(place, tmp_path):
    for sizes, said in [({"lengths": [65]}, "has positions for 64"), ({"labels": 1}, "Sizes of an export"),
                        ({"lengths": []}, "Sizes of an export")]:  # fmt: skip
        with pytest.raises(BadInput, match=said):
            export_backbone(place / "model-opt", tmp_path / "x", targets="fc1", engine="executorch", sizes=sizes)
    with pytest.raises(BadInput, match=r"ExecuTorch is there for P-RGE alone"):
        export_backbone(place / "model-opt", tmp_path / "x", engine="executorch")
    assert not list(tmp_path.iterdir())
