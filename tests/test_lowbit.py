"""Weights in few bits: a folder of codes, streamed, computes what codes in memory compute, and close to the model."""

from __future__ import annotations

import json

import pytest
import torch

from mobillm_kit.backbone.lowbit import FILE, KINDS, CodedMatrix, quantize_backbone, quantize_in_memory
from mobillm_kit.backbone.pretrained import load_backbone
from mobillm_kit.backbone.streaming import Tokens, stream_backbone
from mobillm_kit.errors import BadInput, KitError
from mobillm_kit.methods.mobillm import build
from mobillm_kit.methods.task_model import task_model
from mobillm_kit.training.ledger import storage_bytes
from tests.builders import random_batch, save_tiny_model
from tests.families import TINY, tiny_backbone

BITS = {"int8": 8, "nf4": 4, "fp4": 4}
WORST = {"int8": 0.02, "nf4": 0.15, "fp4": 0.2}
"""Relative error of a normal matrix, rounded up."""


def tokens(kind="decoder"):
    batch = random_batch(kind=kind)
    return Tokens(batch.input_ids, batch.attention_mask)


def error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_is_close_to_itself_and_not_equal(kind):
    dense = torch.randn(40, 192, generator=torch.Generator().manual_seed(0))
    matrix = CodedMatrix(kind, (40, 192), dtype=torch.float32)
    codes = matrix.encode(dense)
    assert codes.numel() == matrix.n_bytes == 40 * 192 * BITS[kind] // 8 + 40 * 3 * 4  # a scale per 64 values
    assert 0 < error(matrix.dense(codes), dense) < WORST[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_decoded_a_few_at_a_time_are_those_of_the_codec(kind, monkeypatch):
    monkeypatch.setattr("mobillm_kit.backbone.lowbit.DECODED_AT_A_TIME", 3 * 192)
    dense = torch.randn(40, 192, generator=torch.Generator().manual_seed(1))
    matrix = CodedMatrix(kind, (40, 192), dtype=torch.bfloat16)
    codes = matrix.encode(dense)
    at_once = matrix._coder.decode(codes, (40, 192)).to(torch.bfloat16)
    assert torch.equal(matrix.dense(codes), at_once)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(TINY))
def test_streamed_codes_and_codes_in_memory_give_the_same_bits(name, kind, tmp_path):
    tiny_backbone(name).model.save_pretrained(tmp_path / "plain")
    quantize_backbone(tmp_path / "plain", tmp_path / "coded", kind)
    in_memory = quantize_in_memory(load_backbone(tmp_path / "plain"), kind)
    streamed = stream_backbone(tmp_path / "coded")
    plain = load_backbone(tmp_path / "plain")
    given = tokens(plain.kind)
    for ours, theirs in zip(streamed.hidden_states(*given), in_memory.hidden_states(*given), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(ours, plain.last_hidden(*given))
    assert streamed.fingerprint == in_memory.fingerprint != plain.fingerprint


def test_only_the_matrices_of_the_blocks_are_coded(tmp_path):
    tiny_backbone("llama").model.save_pretrained(tmp_path / "plain")
    quantize_backbone(tmp_path / "plain", tmp_path / "coded", "nf4")
    plain, coded = load_backbone(tmp_path / "plain"), stream_backbone(tmp_path / "coded")
    ids, mask, _ = tokens()
    assert torch.equal(coded.begin(ids, mask)[0], plain.begin(ids, mask)[0])
    assert all(torch.equal(a, b) for a, b in zip(coded.norm.parameters(), plain.norm.parameters(), strict=True))


def test_codes_in_memory_take_fewer_bytes_and_the_dense_matrices_are_gone():
    backbone = tiny_backbone("opt")
    matrices = [p for block in backbone.blocks for p in block.parameters() if p.dim() == 2]
    whole_bytes = storage_bytes(backbone.resident())
    quantize_in_memory(backbone, "nf4")
    backbone.last_hidden(*tokens())
    left = [p for block in backbone.blocks for p in block.parameters() if p.dim() == 2]
    assert len(left) == len(matrices)
    assert all(parameter.is_meta for parameter in left)
    coded_bytes = sum(matrix.numel() * 4 // 8 + matrix.numel() // 32 * 4 for matrix in matrices)  # rows of 32 and 64
    dense_bytes = sum(matrix.nbytes for matrix in matrices)
    assert whole_bytes - dense_bytes < storage_bytes(backbone.resident()) <= whole_bytes - dense_bytes + coded_bytes


def test_two_blocks_of_codes_are_in_memory(tmp_path):
    tiny_backbone("llama").model.save_pretrained(tmp_path / "plain")
    quantize_backbone(tmp_path / "plain", tmp_path / "coded", "nf4")
    held = []
    for folder in ("plain", "coded"):
        streamed = stream_backbone(tmp_path / folder)
        streamed.last_hidden(*tokens())
        held.append(sum(tensor.nbytes for tensor in streamed.resident()))
    assert held[1] < held[0] / 4


def test_mobillm_trains_on_codes_as_on_any_backbone():
    backbone = quantize_in_memory(tiny_backbone("opt"), "nf4")
    method = build(task_model(backbone, word_ids=(10, 11)), seed=0, rank=4, codec="int4", group=32)
    batch = random_batch()
    losses = [method.step(batch, 1e-2).loss for _ in range(20)]
    assert losses[-1] < losses[0]


# ---------------------------------------------------------------------- what is refused


def test_what_cannot_be_coded_is_refused(tmp_path):
    plain = save_tiny_model(tmp_path / "plain")
    with pytest.raises(BadInput, match="Unknown weight type 'int3'"):
        quantize_backbone(plain, tmp_path / "coded", "int3")
    with pytest.raises(BadInput, match="is not empty"):
        quantize_backbone(plain, plain, "nf4")
    coded = quantize_backbone(plain, tmp_path / "coded", "nf4")
    with pytest.raises(BadInput, match="coded already"):
        quantize_backbone(coded, tmp_path / "twice", "nf4")
    with pytest.raises(BadInput, match="no such folder"):
        quantize_backbone(tmp_path / "nowhere", tmp_path / "new", "nf4")


def test_the_tokenizer_comes_along(tmp_path):
    plain = save_tiny_model(tmp_path / "plain")
    coded = quantize_backbone(plain, tmp_path / "coded", "nf4")
    assert (coded / "tokenizer.json").read_bytes() == (plain / "tokenizer.json").read_bytes()


def test_codes_are_not_loaded_as_an_ordinary_model(tmp_path):
    coded = quantize_backbone(save_tiny_model(tmp_path / "plain"), tmp_path / "coded", "nf4")
    with pytest.raises(BadInput, match=r"holds nf4 weights.*stream_backbone"):
        load_backbone(coded)


def test_a_damaged_description_of_the_codes_is_refused(tmp_path):
    coded = quantize_backbone(save_tiny_model(tmp_path / "plain"), tmp_path / "coded", "nf4")
    about = json.loads((coded / FILE).read_text())
    (coded / FILE).write_text("{}")
    with pytest.raises(BadInput, match="cannot be read"):
        stream_backbone(coded)
    (coded / FILE).write_text(json.dumps({**about, "kind": "int3"}))
    with pytest.raises(BadInput, match="Unknown weight type"):
        stream_backbone(coded)
    name = next(iter(about["shapes"]))
    (coded / FILE).write_text(json.dumps({**about, "shapes": {**about["shapes"], name: [8, 8]}}))
    with pytest.raises(BadInput, match="another model"):
        stream_backbone(coded)


def test_codes_of_another_length_are_another_models(tmp_path):
    coded = quantize_backbone(save_tiny_model(tmp_path / "plain"), tmp_path / "coded", "nf4")
    about = json.loads((coded / FILE).read_text())
    (coded / FILE).write_text(json.dumps({**about, "kind": "int8"}))
    with pytest.raises(BadInput, match=r"'.*\.codes' has \d+ bytes, int8 codes of .* have \d+"):
        stream_backbone(coded)


def test_a_disk_without_room_gets_nothing(tmp_path, monkeypatch):
    plain = save_tiny_model(tmp_path / "plain")
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 1000})())
    with pytest.raises(KitError, match="are missing"):
        quantize_backbone(plain, tmp_path / "coded", "nf4")
    assert not (tmp_path / "coded").exists()
