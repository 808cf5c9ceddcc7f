"""A model in one GGUF file: its values, whole and streamed, its tokenizer, and files that are damaged or another's."""

from __future__ import annotations

import random
import sys

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM

from mobillm_kit.backbone.gguf_file import GgufTensors
from mobillm_kit.backbone.lowbit import quantize_backbone
from mobillm_kit.backbone.meta_model import meta_model
from mobillm_kit.backbone.pretrained import architecture, load_backbone, load_config, load_tokenizer, resolve
from mobillm_kit.backbone.streaming import Tokens, stream_backbone
from mobillm_kit.errors import BadInput, KitError
from mobillm_kit.runs.run import run
from mobillm_kit.runs.spec import RunSpec
from tests.gguf_models import CONFIGS, TOKENS, tensors, tiny_model, write_gguf

KINDS = [GGMLQuantizationType[kind] for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")]


@pytest.fixture
def file(tmp_path):
    return write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), kind=GGMLQuantizationType.Q4_1)


def batch():
    ids = torch.randint(0, len(TOKENS), (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return Tokens(ids, mask)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_written_as_llama_cpp_writes_it_comes_back_whole(family, tmp_path):
    model = tiny_model(family)
    backbone = load_backbone(write_gguf(tmp_path / "tiny.gguf", model))
    theirs, ours = model.state_dict(), backbone.model.state_dict()
    assert theirs.keys() == ours.keys()
    if family == "gemma2":  # its norms were stored as 1 + w
        assert all(torch.allclose(theirs[name], ours[name], atol=1e-6) for name in theirs)
    else:
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
        assert torch.equal(model(batch().input_ids).logits, backbone.model(batch().input_ids).logits)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_codes_mean_what_the_reference_says(kind, tmp_path):
    model = tiny_model("llama")
    file = write_gguf(tmp_path / "tiny.gguf", model, kind=kind)
    ours = load_backbone(file).model.state_dict()
    for name in ("model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"):  # not turned back
        values = model.state_dict()[name].numpy()
        assert np.array_equal(ours[name].numpy(), gguf.dequantize(gguf.quantize(values, kind), kind))
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    assert all(torch.equal(ours[name], values) for name, values in reference.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_streamed_taps_are_those_of_the_whole_model(family, dtype, tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", tiny_model(family), kind=GGMLQuantizationType.Q8_0)
    whole, streamed = load_backbone(file, dtype=dtype), stream_backbone(file, dtype=dtype)
    with torch.inference_mode():
        assert same(whole.hidden_states(*batch()), streamed.hidden_states(*batch()))
        last = [tap.activations for tap in streamed.block_major([batch()], [whole.n_layers])]
        assert same(last, [whole.last_hidden(*batch())])
    assert streamed.fingerprint == whole.fingerprint
    assert streamed.n_parameters == whole.n_parameters


def test_parts_and_rows_of_a_table_are_decoded_alone(file):
    tensors = GgufTensors(file, meta_model(load_config(str(file)), torch.float32))
    name = "model.embed_tokens.weight"
    whole = tensors.read(name)
    read = []
    fill = tensors._fill
    tensors._fill = lambda entry, start, target: (read.append(target.numel()), fill(entry, start, target))
    rows = torch.tensor([[5, 2], [5, 90]])
    assert torch.equal(tensors.read_rows(name, rows), whole[rows])
    assert sum(read) == 3 * 40  # Q4_1: 20 bytes for 32 values, three rows of 64
    for start, values in ((0, 10), (70, 100), (whole.numel() - 5, 50)):
        assert torch.equal(tensors.read_part(name, start, values), whole.view(-1)[start : start + values])
    query = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(tensors.read_part(query, 100, 7), tensors.read(query).view(-1)[100:107])
    with pytest.raises(IndexError, match="has rows 0 to"):
        tensors.read_rows(name, torch.tensor([len(TOKENS)]))


def test_tied_embeddings_are_tied_and_others_are_not(tmp_path):
    tied = load_backbone(write_gguf(tmp_path / "tied.gguf", tiny_model("starcoder2"))).model
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    free = load_backbone(write_gguf(tmp_path / "free.gguf", tiny_model("llama"))).model
    assert free.lm_head.weight is not free.model.embed_tokens.weight


def test_the_tokenizer_is_in_the_file(file):
    tokenizer = load_tokenizer(file)
    assert tokenizer(" good")["input_ids"] == [TOKENS.index("Ġgood")]
    assert len(tokenizer(" bad dog")["input_ids"]) == 1 + len("Ġd") + len("og")


def test_a_folder_that_holds_one_is_it(file):
    assert resolve(file.parent) == str(file)
    whole = load_backbone(file.parent)
    assert whole.name == file.parent.name
    assert load_backbone(file).name == "tiny.gguf"
    assert architecture(file.parent).hidden_size == architecture(str(file)).hidden_size == whole.width


def test_a_configuration_beside_it_goes_first(file):
    tiny_model("llama").save_pretrained(file.parent)
    assert resolve(file.parent) == str(file.parent)


def test_a_run_from_a_gguf_file_streams_what_it_learns_whole(file, tmp_path):
    texts = tmp_path / "texts.csv"
    lines = [f"{'so good' if i % 2 else 'so bad'} {i},{'yes' if i % 2 else 'no'}" for i in range(40)]
    texts.write_text("text,label\n" + "\n".join(lines), encoding="utf-8")
    spec = {
        "method": "mobillm-full-width",
        "backbone": str(file),
        "task": "custom",
        "data": str(texts),
        "text": "text",
        "label": "label",
        "prompt": "{text} it was",
        "label_words": (" bad", " good"),
        "steps": 4,
        "batch_size": 4,
        "eval_every": 4,
    }
    whole, streamed = run(RunSpec(**spec)), run(RunSpec(**spec, stream=True))
    assert whole.scores == streamed.scores
    assert whole.curve[-1].train_loss == streamed.curve[-1].train_loss
    assert whole.backbone.name == "tiny.gguf"


# ---------------------------------------------------------------------- what is refused


def test_a_file_that_is_not_there(tmp_path):
    for opened in (load_backbone, stream_backbone, load_tokenizer, architecture):
        with pytest.raises(BadInput, match=r"none\.gguf: no such file"):
            opened(tmp_path / "none.gguf")


def test_several_in_a_folder_are_named(file):
    (file.parent / "other.gguf").write_bytes(file.read_bytes())
    with pytest.raises(BadInput, match=r"holds 2 GGUF files.*Name one of them, such as .*other\.gguf"):
        load_backbone(file.parent)


def test_without_the_package_the_extra_is_named(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(BadInput, match=r"not installed\. +Install it with: pip install 'mobillm-kit\[gguf\]'"):
        load_backbone(file)


@pytest.mark.parametrize("opened", [load_backbone, stream_backbone, load_tokenizer], ids=lambda opened: opened.__name__)
@pytest.mark.parametrize("length", [0, 3, 20, 100, 1000, 3000], ids=str)
def test_a_header_that_was_cut_off(file, opened, length):
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(BadInput, match=r"tiny\.gguf: is no whole GGUF file"):
        opened(file)


@pytest.mark.parametrize("opened", [load_backbone, stream_backbone], ids=lambda opened: opened.__name__)
@pytest.mark.parametrize("missing", [1, 5000])
def test_weights_that_were_cut_off(file, opened, missing):
    file.write_bytes(file.read_bytes()[:-missing])
    with pytest.raises(BadInput, match=r"tiny\.gguf: is no whole GGUF file"):
        opened(file)


def test_a_file_that_shrinks_while_it_is_streamed(file):
    streamed = stream_backbone(file)
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    with pytest.raises(BadInput, match=r"tiny\.gguf: could not be read \(it ends too early\)"):
        list(streamed.hidden_states(*batch()))


def test_something_else_under_that_name(tmp_path):
    other = tmp_path / "other.gguf"
    other.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 98362432\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"other\.gguf: is a pointer of Git's large-file store"):
        load_backbone(other)
    other.write_bytes(b"PK\3\4" + bytes(5000))
    with pytest.raises(BadInput, match=r"other\.gguf: is no whole GGUF file"):
        load_backbone(other)


def test_damaged_headers_end_in_a_sentence_or_in_a_model(file):
    whole, draw = file.read_bytes(), random.Random(0)
    header = whole.index(b"output_norm.weight") + 40
    refused = 0
    for _ in range(60):
        bad = bytearray(whole)
        for _ in range(draw.choice((1, 8))):
            bad[draw.randrange(header)] = draw.randrange(256)
        file.write_bytes(bad)
        try:
            stream_backbone(file)
        except KitError:  # any other error fails the test
            refused += 1
    assert 0 < refused < 60


def test_another_architecture_is_named(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), architecture="rwkv7")
    for opened in (load_backbone, stream_backbone, architecture):
        with pytest.raises(BadInput, match="rwkv7"):
            opened(file)


def test_a_family_without_a_row_is_named(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), architecture="nemotron")
    with pytest.raises(KitError, match=r"nemotron.*Supported: .*llama"):
        load_backbone(file)


def test_a_type_that_nobody_knows_is_named(file):
    kinds = file.read_bytes()
    at = kinds.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4 + 2 * 8
    for kind, found in (
        (99, r"99\) is not a valid GGMLQuantizationType\)\. .*types that the gguf package here knows"),
        (25, "'blk.0.ffn_up.weight' is stored as I16"),
    ):
        file.write_bytes(kinds[:at] + kind.to_bytes(4, "little") + kinds[at + 4 :])
        with pytest.raises(BadInput, match=found):
            stream_backbone(file)


def test_a_tensor_that_the_model_would_not_read_is_refused(tmp_path):
    factors = {"rope_freqs.weight": np.ones(8, np.float32)}
    file = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), extra=factors)
    with pytest.raises(BadInput, match=r"holds 'rope_freqs.weight'.*the model would be another one"):
        load_backbone(file)


def test_a_missing_tensor_is_named(tmp_path, monkeypatch):
    model = tiny_model("llama")
    weights = tensors(model)
    del weights["blk.2.ffn_gate.weight"]
    monkeypatch.setattr("tests.gguf_models.tensors", lambda _: weights)
    with pytest.raises(BadInput, match=r"1 weights of the model .* 'model.layers.2.mlp.gate_proj.weight'"):
        load_backbone(write_gguf(tmp_path / "tiny.gguf", model))


def test_codes_are_not_coded_again(file, tmp_path):
    for source in (file, file.parent):
        with pytest.raises(BadInput, match=r"tiny\.gguf: holds codes already"):
            quantize_backbone(source, tmp_path / "twin", "nf4")


# ---------------------------------------------------------------------- the real one


@pytest.fixture
def smollm2(shared):
    return shared / "models" / "smollm2-135m"


def test_smollm2_is_what_the_reference_decodes_and_streams_as_it_is(smollm2):
    (file,) = smollm2.glob("*.gguf")
    whole, streamed = load_backbone(smollm2), stream_backbone(file)
    theirs = {stored.name: gguf.dequantize(stored.data, stored.tensor_type) for stored in gguf.GGUFReader(file).tensors}
    ours = tensors(whole.model)
    assert theirs.keys() == ours.keys()
    assert all(np.array_equal(values, ours[name]) for name, values in theirs.items())
    tokenizer = load_tokenizer(file)
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    tokens = Tokens(ids, torch.ones_like(ids))
    with torch.inference_mode():
        assert same(whole.hidden_states(*tokens), streamed.hidden_states(*tokens))
        assert tokenizer.decode(whole.model(ids).logits[0, -1].argmax()) == " Paris"
    assert streamed.fingerprint == whole.fingerprint
