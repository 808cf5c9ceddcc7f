"""LoRA with checkpointing over blocks that are read from disk: LoRA's own gradients, to the bit, beside two blocks."""

from __future__ import annotations

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from mobillm_kit.backbone.lowbit import KINDS, quantize_backbone, quantize_in_memory
from mobillm_kit.backbone.pretrained import load_backbone
from mobillm_kit.backbone.streaming import stream_backbone
from mobillm_kit.cli import main
from mobillm_kit.methods import METHODS, load_method
from mobillm_kit.methods.task_model import task_model
from mobillm_kit.runs.inference import score_run
from mobillm_kit.runs.run import run
from tests.builders import random_batch, tiny_spec
from tests.families import TINY, tiny_backbone

LR = 1e-2
STEPS = 4


def folder_of(place, name, **changes):
    tiny_backbone(name, **changes).model.save_pretrained(place / name)
    return place / name


def lora(backbone, name="lora-checkpointing", **options):
    model = task_model(backbone, word_ids=(10, 11), seed=0)
    return model, load_method(name)(model, seed=3, rank=4, **options)


def batches(model):
    return [random_batch(kind=model.backbone.kind, seed=seed, length=6 + seed) for seed in range(STEPS)]


def gradients(built) -> dict[str, torch.Tensor]:
    """dL/dA and dL/dB of one batch, with B away from the zeros at which A has no gradient."""
    model, method = built
    for number, (name, tensor) in enumerate(sorted(method.trained().items())):
        if ".lora_B." in name:
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number)))
    batch = batches(model)[0]
    method._loss(batch).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def equal(ours, theirs) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("name", sorted(TINY))
def test_gradients_over_streamed_blocks_are_loras_bit_for_bit(name, tmp_path):
    folder = folder_of(tmp_path, name)
    whole = gradients(lora(load_backbone(folder), "lora"))
    streamed = gradients(lora(stream_backbone(folder)))
    assert equal(streamed, whole)
    assert all(tensor.any() for tensor in whole.values())
    assert all(tensor.device.type == "cpu" for tensor in streamed.values())


@pytest.mark.parametrize("name", ["opt", "llama", "bert"])
def test_losses_and_adapters_of_several_steps_are_loras(name, tmp_path):
    folder = folder_of(tmp_path, name)
    built = [lora(load_backbone(folder), "lora"), lora(stream_backbone(folder))]
    losses = [[method.step(batch, LR).loss for batch in batches(model)] for model, method in built]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == STEPS
    assert equal(built[1][1].trained(), built[0][1].trained())


@pytest.mark.parametrize("name", ["opt", "llama", "bert"])
def test_adapters_beside_bfloat16_blocks_are_float32_and_their_gradients_loras(name, tmp_path):
    """LoRA in memory with the same float32 A and B, which PEFT would have rounded to the weights' type."""
    folder = folder_of(tmp_path, name)
    (model, method), (ours, streamed) = (
        lora(load_backbone(folder, dtype="bfloat16"), "lora"),
        lora(stream_backbone(folder, dtype="bfloat16")),
    )
    given = dict(ours.named_parameters())
    for key, parameter in model.named_parameters():
        if ".lora_" in key:
            assert (parameter.dtype, given[key].dtype) == (torch.bfloat16, torch.float32)
            assert torch.equal(given[key].bfloat16(), parameter)
            parameter.data = given[key].detach().clone()
    theirs = gradients((model, method))
    assert equal(gradients((ours, streamed)), theirs)
    assert all(tensor.any() for tensor in theirs.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["opt", "llama", "bert"])
def test_codes_from_a_folder_and_codes_in_memory_give_the_same_gradients(name, kind, tmp_path):
    folder = folder_of(tmp_path, name)
    coded = quantize_backbone(folder, tmp_path / "coded", kind)
    ours = gradients(lora(stream_backbone(coded)))
    assert equal(ours, gradients(lora(quantize_in_memory(load_backbone(folder), kind))))
    assert not equal(ours, gradients(lora(load_backbone(folder))))


def test_gradients_beside_codes_are_those_of_the_matrices_that_they_stand_for(tmp_path):
    """The decoded matrices as an ordinary model, LoRA in memory."""
    plain, coded = load_backbone(folder_of(tmp_path, "opt")), load_backbone(tmp_path / "opt")
    quantize_in_memory(coded, "nf4")
    for ours, theirs in zip(plain.blocks, coded.blocks, strict=True):
        for path, module in theirs.named_modules():
            if "weight_codes" in module._buffers:
                hook = next(iter(module._forward_pre_hooks.values()))
                hook(module, None)
                ours.get_submodule(path).weight.data = module.weight.data.clone()
    assert equal(gradients(lora(coded)), gradients(lora(plain, "lora")))


def test_a_graph_over_overwritten_blocks_fails_and_gives_no_wrong_gradients(tmp_path):
    """Without checkpoints the weights that autograd has saved are another block's by then."""
    model, _ = lora(stream_backbone(folder_of(tmp_path, "opt")))
    loss = model.logits(batches(model)[0]).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---------------------------------------------------------------------- what is read, and what is in memory


def test_a_step_reads_each_block_twice_and_asks_for_it_before_it_is_needed(tmp_path):
    """Forward from the second block on, since the first lies there from the step before; back to the first."""
    backbone = stream_backbone(folder_of(tmp_path, "opt", num_hidden_layers=5))
    model, method = lora(backbone)
    batch = batches(model)[0]
    method.step(batch, LR)
    read, fetch = [], backbone._streamed._read
    backbone._streamed._read = lambda index, turn: (read.append(index), fetch(index, turn))
    method.step(batch, LR)
    method.step(batch, LR)
    backbone._streamed._awaited()
    # 0 at the far end is what a forward pass would need next; 1 is there already when the second step begins
    assert read == [2, 3, 4, 0, 3, 2, 1, 0, 1] * 2


def test_two_blocks_and_the_adapters_are_in_memory_and_the_ledger_says_so(tmp_path):
    backbone = stream_backbone(folder_of(tmp_path, "llama", num_hidden_layers=8))
    model, method = lora(backbone)
    batch = batches(model)[0]
    (counted,) = method.count_memory(batch)
    adapters = sum(tensor.nbytes for tensor in method.trained().values())
    words_bytes = 2 * 8  # the head's two label ids
    assert counted.weights_bytes == sum(tensor.nbytes for tensor in backbone.resident()) + words_bytes
    around = sum(tensor.nbytes for tensor in backbone._around)
    assert counted.weights_bytes == backbone._streamed.memory_bytes + adapters + around + words_bytes
    assert (counted.gradients_bytes, counted.optimizer_bytes) == (adapters, 2 * adapters)
    (whole,) = lora(load_backbone(tmp_path / "llama"))[1].count_memory(batch)
    assert counted.saved_activations_bytes == whole.saved_activations_bytes  # no weight among them
    assert counted.weights_bytes < 0.5 * whole.weights_bytes
    assert equal(method.trained(), lora(load_backbone(tmp_path / "llama"))[1].trained())  # counting trains nothing


@pytest.mark.parametrize("name", ["probe", "mobillm-full-width"])
def test_the_ledgers_of_other_methods_count_the_buffers_and_not_the_model(name, tmp_path):
    """Before the first step too, when there is no buffer yet."""
    backbone = stream_backbone(folder_of(tmp_path, "opt", num_hidden_layers=8))
    method = load_method(name)(task_model(backbone, word_ids=(10, 11)), seed=0)
    counted = method.count_memory(random_batch())[0].weights_bytes
    held = sum(tensor.nbytes for tensor in backbone.resident())
    assert held > backbone._streamed.memory_bytes > 0
    classifier = sum(tensor.nbytes for tensor in method.trained().values()) + 2 * 8 if name == "probe" else 0
    assert counted == held + classifier


# ---------------------------------------------------------------------- from the command line to a loaded run


def test_which_methods_stream():
    assert [row.name for row in METHODS.values() if row.streams] == ["lora-checkpointing"]


@pytest.mark.parametrize("fields", [{"stream": True}, {"weights": "nf4"}, {"stream": True, "dtype": "bfloat16"}])
def test_a_run_scores_the_same_when_it_is_loaded_again(tmp_path, fields):
    spec = tiny_spec(tmp_path / "task", "lora-checkpointing", steps=4, eval_every=4, lr=LR, **fields)
    folder = tmp_path / "run"
    record = run(spec, folder=folder)
    assert score_run(folder) == record.scores


def test_a_streamed_run_ends_in_the_bytes_of_one_in_memory(tmp_path):
    spec = tiny_spec(tmp_path / "task", "lora-checkpointing", steps=4, eval_every=4, lr=LR)
    records = []
    for name, stream in (("whole", False), ("streamed", True)):
        records.append(run(msgspec.structs.replace(spec, stream=stream), folder=tmp_path / name))
    whole, streamed = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "streamed"))
    assert any(".lora_" in name for name in whole)
    assert equal(streamed, whole)
    assert records[0].scores == records[1].scores


def test_the_command_line_trains_over_streamed_blocks(tmp_path):
    spec = tiny_spec(tmp_path, "lora-checkpointing")
    arguments = ["train", "lora-checkpointing", "--out", str(tmp_path / "run"), "--backbone", spec.backbone, "--stream"]
    arguments += ["--task", "custom", "--data", spec.data, "--text", "text", "--label", "label"]
    arguments += ["--prompt", spec.prompt, "--label-words", "|".join(spec.label_words), "--steps", "2"]
    assert main(arguments) == 0
    assert (tmp_path / "run" / "record.json").exists()
