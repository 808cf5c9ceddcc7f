"""The loop: the same seed gives the same bytes, also across an interruption, and nothing good is lost."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from mobillm_kit.errors import BadInput, TrainingDiverged
from mobillm_kit.methods import METHODS as TABLE
from mobillm_kit.runs.inference import Predictor
from mobillm_kit.runs.loop import evaluate, fit, logits_of
from mobillm_kit.runs.prepare import build_method, prepare, training_batches
from mobillm_kit.runs.run import control_scores
from mobillm_kit.texts.batches import Batches, FitSettings, batch_indices
from tests.builders import tiny_spec

METHODS = [name for name, row in TABLE.items() if row.trained]
MASKED = {"model": "bert", "head": "label-words", "prompt": "{text} it was [MASK]"}


@pytest.fixture(params=["decoder", "masked"])
def spec(request):
    """A run of a method on a decoder, and on an encoder with label words."""

    def of(name):
        if request.param == "decoder":
            return {"method": name}
        options = {"options": {"reduction": 2, "heads": 2}} if name in ("lst", "mobillm-ladder") else {}
        return {"method": name, **MASKED, **options}

    return of


def fitted(place, *, stop_at=None, checkpoint=None, **changes):
    """Train afresh from files, as a new process would; ``stop_at`` presses Ctrl-C in that step."""
    prepared = prepare(tiny_spec(place, **changes))
    method = build_method(prepared)

    def press(event):
        if event.step == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    result = fit(
        method,
        training_batches(prepared),
        dev=prepared.dev,
        checkpoint=checkpoint,
        callbacks=[press],
    )
    return method, result


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_bytes_whatever_the_global_generator(tmp_path, name, spec):
    torch.manual_seed(1)
    first, one = fitted(tmp_path, **spec(name))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second, two = fitted(tmp_path, **spec(name))
    assert torch.equal(before, torch.get_rng_state())
    assert [p.train_loss for p in one.curve] == [p.train_loss for p in two.curve]
    for key, value in first.state().items():
        assert torch.equal(value, second.state()[key]), key


@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path, name, spec):
    whole, undisturbed = fitted(tmp_path, **spec(name))
    file = tmp_path / "checkpoint.safetensors"
    _, first = fitted(tmp_path, **spec(name), stop_at=3, checkpoint=file)
    assert (first.status, first.steps) == ("interrupted", 3)
    resumed, second = fitted(tmp_path, **spec(name), checkpoint=file)
    assert (second.status, second.steps) == ("done", 8)
    assert [p.dev_loss for p in second.curve] == [p.dev_loss for p in undisturbed.curve]
    assert (second.forwards, second.bytes_sent) == (undisturbed.forwards, undisturbed.bytes_sent)
    for key, value in whole.state().items():
        assert torch.equal(value, resumed.state()[key]), key
        assert torch.equal(value, load_file(file)[key]), key


@pytest.mark.parametrize("name", METHODS)
def test_training_changes_what_it_says_and_nothing_else(tmp_path, name, spec):
    prepared = prepare(tiny_spec(tmp_path, **spec(name)))
    backbone = {key: value.clone() for key, value in prepared.backbone.state_dict().items()}
    method = build_method(prepared)
    before = {key: value.clone() for key, value in method.trained().items()}
    fit(
        method,
        training_batches(prepared),
        dev=prepared.dev,
    )
    after = method.trained()
    assert any(not torch.equal(after[key], value) for key, value in before.items())
    if TABLE[name].backbone_frozen:
        kept = {
            key.replace(".base_layer", "").replace(".base.", "."): v
            for key, v in prepared.backbone.state_dict().items()
        }
        assert all(torch.equal(kept[key], value) for key, value in backbone.items())


@pytest.mark.parametrize("name", METHODS)
def test_the_ledger_adds_up(tmp_path, name, spec):
    prepared = prepare(tiny_spec(tmp_path, **spec(name)))
    method = build_method(prepared)
    before = {key: value.clone() for key, value in method.state().items()}
    parties = method.count_memory(prepared.encoder.collate(prepared.train[:4]))
    assert all(torch.equal(value, before[key]) for key, value in method.state().items())
    device = parties[0]
    weights = sum(p.numel() * 4 for p in prepared.backbone.parameters())
    assert device.weights_bytes >= weights
    assert device.total_bytes == sum(getattr(device, f"{c}_bytes") for c in CATEGORIES)
    trains_by_gradient = not name.startswith(("mezo", "p-rge", "mobillm"))
    assert (device.optimizer_bytes > 0) == trains_by_gradient
    assert (device.saved_activations_bytes > 0) == trains_by_gradient


CATEGORIES = ("weights", "gradients", "optimizer", "saved_activations", "messages")


def test_early_stop_says_why(tmp_path):
    _, result = fitted(tmp_path, method="probe", lr=0.0, patience=1, eval_every=2)
    assert result.steps == 4
    assert result.stopped == "no lower dev loss in 1 evaluations"


def test_the_curve_counts(tmp_path):
    _, result = fitted(tmp_path, method="mobillm-ladder")
    assert [p.step for p in result.curve] == [0, 4, 8]
    assert [p.forwards for p in result.curve] == [0, 16, 32]
    assert result.curve[2].bytes_sent == result.bytes_sent > result.curve[1].bytes_sent > 0
    assert result.curve[2].seconds > result.curve[1].seconds > 0
    assert (result.curve[0].seconds, result.curve[0].train_loss) == (0.0, None)


def test_evaluation_by_hand(tmp_path):
    prepared = prepare(tiny_spec(tmp_path, method="probe"))
    method = build_method(prepared)
    loss, predictions = evaluate(method, prepared.dev, prepared.encoder, batch_size=4)
    logits = torch.cat([method.logits(prepared.encoder.collate([row])) for row in prepared.dev])
    labels = torch.tensor([row.label for row in prepared.dev])
    assert torch.equal(predictions, logits.argmax(1))
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)


def test_texts_of_like_length_are_evaluated_together_and_come_back_in_their_order(tmp_path):
    prepared = prepare(tiny_spec(tmp_path, method="probe"))
    shapes = []

    def seen_tokens(batch):
        shapes.append(batch.input_ids.shape)
        tokens = batch.input_ids * batch.attention_mask
        return torch.stack([tokens.sum(1), batch.attention_mask.sum(1)], dim=1).float()

    found = logits_of(seen_tokens, prepared.dev, prepared.encoder, 4, "cpu")
    assert found.tolist() == [[sum(row.ids), len(row.ids)] for row in prepared.dev]
    lengths = sorted(len(row.ids) for row in prepared.dev)
    assert [width for _, width in shapes] == [max(lengths[n : n + 4]) for n in range(0, len(lengths), 4)]
    assert Predictor(prepared.encoder, seen_tokens).predict([]) == []


def test_each_epoch_sees_every_example_once_in_another_order():
    epochs = [[i for s in range(5) for i in batch_indices(10, 2, 5 * e + s, seed=0)] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]


def test_schedules_by_hand():
    def rates(schedule, warmup=0.0):
        settings = FitSettings(steps=4, batch_size=1, lr=1.0, schedule=schedule, warmup=warmup)
        return [Batches([None], None, settings).lr(step) for step in range(4)]

    assert rates("constant") == [1, 1, 1, 1]
    assert rates("linear") == [1, 0.75, 0.5, 0.25]
    assert rates("linear", warmup=0.5) == [0.5, 1.0, 1.0, 0.5]
    assert rates("cosine") == pytest.approx(
        [1, 0.5 + 0.5 * math.cos(math.pi / 4), 0.5, 0.5 - 0.5 * math.cos(math.pi / 4)]
    )


# ---------------------------------------------------------------------- what can go wrong


def test_a_loss_that_is_not_a_number_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    prepared = prepare(tiny_spec(tmp_path, method="full", eval_every=2))
    method = build_method(prepared)
    poisoned = next(iter(method.trained().values()))

    def poison(event):
        if event.step == 5:
            poisoned.fill_(math.nan)

    with pytest.raises(TrainingDiverged, match="full: the loss of step 6 is nan"):
        fit(
            method,
            training_batches(prepared),
            dev=prepared.dev,
            checkpoint=file,
            callbacks=[poison],
        )
    good = load_file(file)
    assert all(torch.isfinite(value).all() for value in good.values())
    _, result = fitted(tmp_path, method="full", eval_every=2, checkpoint=file)
    assert result.steps == 8


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    fitted(tmp_path, method="probe", checkpoint=file)
    with pytest.raises(BadInput, match="made with other settings"):
        fitted(tmp_path, method="probe", lr=0.5, checkpoint=file)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(BadInput, match="not a checkpoint"):
        fitted(tmp_path, method="probe", checkpoint=file)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"schedule": "exponential"}, "Unknown schedule"),
        ({"warmup": 1.5}, "warmup is 1.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, sentence):
    with pytest.raises(BadInput, match=sentence):
        FitSettings(**{"steps": 1, "batch_size": 1, "lr": 0.1, **changes})


def test_fewer_texts_than_a_batch_are_refused(tmp_path):
    with pytest.raises(BadInput, match="fewer than one batch of 64"):
        fitted(tmp_path, method="probe", batch_size=64)


OUT_OF_MEMORY = """
import resource, sys, torch
from dataclasses import replace
from pathlib import Path
from mobillm_kit.texts.batches import Batches
from mobillm_kit.errors import NotEnoughMemory
from mobillm_kit.runs.loop import fit
from mobillm_kit.runs.prepare import build_method, fit_settings, prepare, training_batches
from tests.builders import tiny_spec
prepared = prepare(tiny_spec(Path(sys.argv[1]), method="full", batch_size=4))
method = build_method(prepared)
prepared.train[:] = prepared.train * 400
settings = replace(fit_settings(prepared), batch_size=len(prepared.train))
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 60 * 2**20, used + 60 * 2**20))
try:
    fit(method, Batches(prepared.train, prepared.encoder, settings), dev=prepared.dev)
except NotEnoughMemory as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on the address space is set")
def test_too_little_memory_names_the_method_and_the_counted_need(tmp_path):
    """A real limit on a real process."""
    tiny_spec(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert "full: a batch of " in done.stdout, done.stderr[-2000:]
    assert "MiB" in done.stdout


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_never_scored(bad, tmp_path):
    """argmax calls an all-nan row label 0, and a majority of label 0 would look like learning."""
    prepared = prepare(tiny_spec(tmp_path, method="zero-shot"))
    with torch.no_grad():
        prepared.backbone.lm_head.weight.fill_(bad)
    with pytest.raises(TrainingDiverged, match=r"not finite numbers for .* bfloat16"):
        control_scores(prepared)
    with pytest.raises(TrainingDiverged, match="not finite numbers"):
        Predictor(prepared.encoder, prepared.model.logits).predict(["a good film"])
    with pytest.raises(TrainingDiverged, match="not finite numbers"):
        evaluate(prepared.model, prepared.dev, prepared.encoder)
