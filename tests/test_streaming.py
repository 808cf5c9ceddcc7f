"""A backbone that is read block by block is the backbone: same bits, less memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from mobillm_kit.backbone.pretrained import load_backbone
from mobillm_kit.backbone.streaming import StreamingNeed, Tokens, stream_backbone
from mobillm_kit.common import MIB
from mobillm_kit.device.forward import Device
from mobillm_kit.errors import BadInput, NotEnoughMemory
from mobillm_kit.methods.task_model import task_model
from tests.builders import random_batch
from tests.families import TINY, tiny_backbone

ALL = sorted(TINY)


def saved(folder, name, *, shards=False, dtype=torch.float32):
    tiny_backbone(name).model.to(dtype).save_pretrained(folder, max_shard_size="20KB" if shards else "1GB")
    assert len(list(folder.glob("*.safetensors"))) > 1 if shards else (folder / "model.safetensors").is_file()
    return folder


def tokens(kind="decoder", seed=0, rows=3, length=8):
    batch = random_batch(kind=kind, seed=seed, rows=rows, length=length)
    return Tokens(batch.input_ids, batch.attention_mask)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_streamed_taps_are_the_whole_models_bit_for_bit(name, shards, dtype, tmp_path):
    saved(tmp_path, name, shards=shards)
    whole, streamed = load_backbone(tmp_path, dtype=dtype), stream_backbone(tmp_path, dtype=dtype)
    given = tokens(whole.kind)
    for _ in range(2):
        pairs = zip(streamed.hidden_states(*given), whole.hidden_states(*given), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert streamed.dtype == whole.dtype


@pytest.mark.parametrize("name", ALL)
def test_block_major_gives_the_same_taps_layer_by_layer(name, tmp_path):
    saved(tmp_path, name)
    whole, streamed = load_backbone(tmp_path), stream_backbone(tmp_path)
    window = [tokens(whole.kind, seed, rows=2 + seed, length=6 + seed) for seed in range(3)]
    layers = range(whole.n_layers + 1)
    seen = []
    for tap in streamed.block_major(window, layers):
        seen.append((tap.layer, tap.batch))
        assert torch.equal(tap.activations, whole.taps(*window[tap.batch], layers=[tap.layer])[0])
    assert seen == [(layer, batch) for layer in layers for batch in range(3)]


@pytest.mark.parametrize("name", ["opt", "gpt2", "bert"])
def test_a_checkpoint_without_its_head_streams_too(name, tmp_path):
    """Base models are saved without the prefix that the model with a head has."""
    whole = tiny_backbone(name)
    whole.model.base_model.save_pretrained(tmp_path)
    given = tokens(whole.kind)
    streamed = stream_backbone(tmp_path)
    for ours, theirs in zip(streamed.hidden_states(*given), whole.hidden_states(*given), strict=True):
        assert torch.equal(ours, theirs)


def test_old_names_of_layer_norms_are_understood(tmp_path):
    whole = tiny_backbone("bert")
    whole.model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in weights.items()
    }
    assert old.keys() != weights.keys()
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    given = tokens("encoder")
    assert torch.equal(stream_backbone(tmp_path).last_hidden(*given), whole.last_hidden(*given))


@pytest.mark.parametrize("name", ["opt-350m-like", "llama", "gemma2", "gpt-neox", "roberta"])
def test_it_is_the_same_backbone_to_everyone_who_asks(name, tmp_path):
    saved(tmp_path, name, shards=True)
    whole, streamed = load_backbone(tmp_path), stream_backbone(tmp_path)
    for question in ("fingerprint", "kind", "width", "n_layers", "context", "n_parameters", "dtype", "device", "name"):
        assert getattr(streamed, question) == getattr(whole, question)


@pytest.mark.parametrize("name", ["opt-350m-like", "llama", "gemma2", "gpt-neox", "gpt2"])
def test_logits_at_the_label_words_are_the_whole_models(name, tmp_path):
    saved(tmp_path, name)
    batch = random_batch(kind="decoder")
    whole = task_model(load_backbone(tmp_path), word_ids=(10, 11))
    streamed = task_model(stream_backbone(tmp_path), word_ids=(10, 11))
    assert torch.equal(streamed.logits(batch), whole.logits(batch))
    pooled = torch.ones(2, whole.backbone.width)
    assert torch.equal(streamed.head.server_copy()(pooled), whole.head.server_copy()(pooled))


@pytest.mark.parametrize("one_token", [False, True])
def test_a_device_uploads_the_same_bytes(one_token, tmp_path):
    saved(tmp_path, "opt")
    batch = random_batch()
    uploads = [
        Device(backbone, [1, 3], one_token=one_token).upload(batch)
        for backbone in (load_backbone(tmp_path), stream_backbone(tmp_path))
    ]
    assert all(torch.equal(a, b) for a, b in zip(uploads[0].activations, uploads[1].activations, strict=True))


# ---------------------------------------------------------------------- what is in memory


def test_two_blocks_are_in_memory_and_neither_embedding_nor_head(tmp_path):
    saved(tmp_path, "llama")
    whole, streamed = load_backbone(tmp_path), stream_backbone(tmp_path)
    streamed.last_hidden(*tokens())
    block_bytes = sum(parameter.nbytes for parameter in whole.blocks[0].parameters())
    held = sum(tensor.nbytes for tensor in streamed.resident())
    assert 2 * block_bytes < held < 2 * block_bytes + 2048  # norm, rotary angles, padding to 64 bytes
    streamed.release()
    assert sum(tensor.nbytes for tensor in streamed.resident()) < 2048


def test_block_major_reads_each_block_once_per_window_and_batch_major_once_per_batch(tmp_path):
    saved(tmp_path, "opt")
    streamed = stream_backbone(tmp_path)
    read = []
    fetch = streamed._streamed._read
    streamed._streamed._read = lambda index, turn: (read.append(index), fetch(index, turn))
    window = [tokens(seed=seed) for seed in range(4)]
    list(streamed.block_major(window, [3]))
    streamed._streamed._awaited()
    assert read == [0, 1, 2, 0]  # the last one read ahead
    streamed.release()
    read.clear()
    for given in window:
        streamed.last_hidden(*given)
    streamed.release()
    assert read == [0, 1, 2] * 4 + [0]


def test_only_the_asked_layers_run(tmp_path):
    saved(tmp_path, "opt")
    streamed = stream_backbone(tmp_path)
    list(streamed.block_major([tokens()], [1]))
    assert streamed._streamed._held == 0


def test_an_abandoned_forward_pass_leaves_the_next_one_right(tmp_path):
    saved(tmp_path, "opt")
    streamed, whole = stream_backbone(tmp_path), load_backbone(tmp_path)
    states = streamed.hidden_states(*tokens())
    next(states), next(states)
    del states
    assert torch.equal(streamed.last_hidden(*tokens()), whole.last_hidden(*tokens()))
    streamed.release()
    assert torch.equal(streamed.last_hidden(*tokens()), whole.last_hidden(*tokens()))


NEED = StreamingNeed(runtime_bytes=300 * MIB, weights_bytes=200 * MIB, working_bytes=50 * MIB, batch_bytes=10 * MIB)


def test_the_window_by_hand():
    assert NEED.process_bytes(3) == 580 * MIB
    assert NEED.largest_window(560 * MIB) == 1
    assert NEED.largest_window(639 * MIB) == 8


def test_a_window_that_cannot_fit_is_refused_with_what_is_missing():
    with pytest.raises(NotEnoughMemory, match="needs 560 MiB and 559 MiB are allowed; 1 MiB are missing"):
        NEED.largest_window(559 * MIB)


def test_a_model_larger_than_the_allowed_memory_is_refused_with_what_it_needs(tmp_path):
    saved(tmp_path, "opt")
    need = stream_backbone(tmp_path).need(1, 1)
    with pytest.raises(NotEnoughMemory, match=r"needs \d+ MiB and 100 MiB are allowed"):
        need.largest_window(100 * MIB)
    assert need.largest_window(2000 * MIB) > 1


# ---------------------------------------------------------------------- what is refused


def test_a_shard_with_another_shape_is_another_models(tmp_path):
    saved(tmp_path, "opt")
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.decoder.layers.1.fc1.weight"] = torch.zeros(64, 31)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"'model.decoder.layers.1.fc1.weight' has the shape \(64, 31\).*another model"):
        stream_backbone(tmp_path)


def test_a_missing_weight_is_named(tmp_path):
    saved(tmp_path, "opt")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.decoder.layers.2.fc2.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"1 weights .* 'model\.decoder\.layers\.2\.fc2\.bias'"):
        stream_backbone(tmp_path)


def test_weights_that_are_integers_are_the_wrong_type(tmp_path):
    saved(tmp_path, "opt")
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.decoder.layers.0.fc1.weight"
    weights[name] = weights[name].to(torch.int8)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"is stored as torch.int8, a weight must be a floating-point number"):
        stream_backbone(tmp_path)


def test_names_that_cannot_be_streamed_are_refused(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        stream_backbone(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="only a folder can be streamed"):
        stream_backbone("somebody/some-model")
    saved(tmp_path, "opt")
    with pytest.raises(BadInput, match="Unknown dtype"):
        stream_backbone(tmp_path, dtype="int3")


def test_a_layer_that_does_not_exist_is_named(tmp_path):
    saved(tmp_path, "opt")
    with pytest.raises(BadInput, match="Layer 4 does not exist"):
        list(stream_backbone(tmp_path).block_major([tokens()], [1, 4]))


def test_the_whole_embedding_is_not_to_be_had(tmp_path):
    saved(tmp_path, "opt")
    streamed = stream_backbone(tmp_path)
    with pytest.raises(BadInput, match="'linear' needs the whole embedding"):
        streamed.lm_head(torch.zeros(1, 32))


def test_opening_a_model_leaves_the_global_generator_alone(tmp_path):
    saved(tmp_path, "llama")
    before = torch.get_rng_state()
    stream_backbone(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


# ---------------------------------------------------------------------- the process


FORBIDDEN = "peft", "pandas", "matplotlib", "sklearn", "zmq", "scipy", "accelerate", "torchao", "seaborn", "datasets"

PROCESS = """
import sys
from benchmarks.lean import without
with without():
    from mobillm_kit.backbone.streaming import stream_backbone
    backbone = stream_backbone(sys.argv[1])
import torch
from mobillm_kit.device.forward import Device
from mobillm_kit.texts.encode import Batch
ids = torch.full((2, 5), 12)
ones = torch.ones_like(ids)
upload = Device(backbone, [1, 3], one_token=False).upload(Batch(ids, ones, ids[:, 0], ids[:, 0] - 8))
assert upload.activations[1].isfinite().all()
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_a_device_process_imports_only_what_it_needs(tmp_path):
    saved(tmp_path, "opt")
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
    )
    assert not set(FORBIDDEN) & set(done.stdout.split())
