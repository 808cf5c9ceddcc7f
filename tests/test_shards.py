"""Tensors are read from their files in parts, and a folder that is not whole says so before training."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mobillm_kit.backbone.meta_model import need_disk
from mobillm_kit.backbone.shards import INDEX, SINGLE, Shards
from mobillm_kit.errors import BadInput, KitError
from tests.families import tiny_backbone


@pytest.fixture
def folder(tmp_path):
    """A real model in several shards."""
    tiny_backbone("llama").model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    return tmp_path


def everything(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_every_tensor_is_what_safetensors_reads(folder):
    tensors = everything(folder)
    shards = Shards(folder)
    assert shards.entries.keys() == tensors.keys()
    assert all(torch.equal(shards.read(name), tensor) for name, tensor in tensors.items())
    assert all(shards.entries[name].n_bytes == tensor.nbytes for name, tensor in tensors.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_tensor_is_converted_as_torch_converts_it(folder, dtype, monkeypatch):
    monkeypatch.setattr("mobillm_kit.backbone.shards._CONVERT_BYTES", 100)  # many pieces
    name, tensor = next(iter(everything(folder).items()))
    assert torch.equal(Shards(folder).read(name, dtype), tensor.to(dtype))


def test_rows_are_those_of_the_matrix_and_the_rest_is_not_read(folder):
    name = "model.embed_tokens.weight"
    rows = torch.tensor([[3, 99, 3], [0, 7, 99]])
    shards = Shards(folder)
    read = []
    fill = shards._fill
    shards._fill = lambda entry, start, target: (read.append(target.numel()), fill(entry, start, target))
    assert torch.equal(shards.read_rows(name, rows), everything(folder)[name][rows])
    assert sum(read) == 4 * 32  # four different rows of width 32
    with pytest.raises(IndexError, match="has rows 0 to 99, asked for 5 to 100"):
        shards.read_rows(name, torch.tensor([5, 100]))


def test_a_part_is_a_slice_of_the_flat_tensor(folder):
    name, tensor = next(iter(everything(folder).items()))
    assert torch.equal(Shards(folder).read_part(name, 5, 11), tensor.flatten()[5:16])


def test_closing_leaves_it_usable(folder):
    shards = Shards(folder)
    name = next(iter(shards.entries))
    first = shards.read(name)
    shards.close()
    assert torch.equal(shards.read(name), first)


# ---------------------------------------------------------------------- what is refused


def a_shard(folder):
    return sorted(folder.glob("*.safetensors"))[1]


def test_a_missing_shard_is_named(folder):
    a_shard(folder).unlink()
    with pytest.raises(BadInput, match=rf"1 of \d+ shards are missing, the first is {a_shard_name(2)}"):
        Shards(folder)


def a_shard_name(number):
    return rf"model-{number:05d}-of-\d+\.safetensors"


@pytest.mark.parametrize("keep", [-1, 200, 5, 0])
def test_a_shard_that_was_cut_off_is_named(folder, keep):
    file = a_shard(folder)
    data = file.read_bytes()
    file.write_bytes(data[:keep])
    with pytest.raises(BadInput, match=a_shard_name(2)):
        Shards(folder)


def test_another_models_shard_is_named(folder):
    save_file({"other.weight": torch.zeros(3)}, a_shard(folder))
    with pytest.raises(BadInput, match=r"does not hold 'model\..*another model"):
        Shards(folder)


def test_a_header_that_is_no_json_is_refused(folder):
    file = a_shard(folder)
    data = bytearray(file.read_bytes())
    data[8] = 0xFF
    file.write_bytes(bytes(data))
    with pytest.raises(BadInput, match=rf"{a_shard_name(2)}: is no safetensors file.*header"):
        Shards(folder)


def test_a_type_that_is_not_known_is_named(tmp_path):
    save_file({"x": torch.zeros(4, dtype=torch.float8_e4m3fn)}, tmp_path / SINGLE)
    with pytest.raises(BadInput, match="'x' is stored as F8_E4M3"):
        Shards(tmp_path)


def test_a_header_that_contradicts_itself_is_refused(tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    (tmp_path / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(BadInput, match=r"cut off or written over .*invalid shape"):
        Shards(tmp_path)


def test_folders_without_readable_weights_are_refused(tmp_path, folder):
    with pytest.raises(BadInput, match="no such folder"):
        Shards(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no safetensors"):
        Shards(tmp_path / "empty")
    (folder / INDEX).write_text("{}")
    with pytest.raises(BadInput, match="is no index"):
        Shards(folder)
    (folder / INDEX).unlink()
    with pytest.raises(BadInput, match=r"but no model\.safetensors\.index\.json"):
        Shards(folder)


def test_a_file_that_shrinks_while_it_is_used_is_named(folder):
    shards = Shards(folder)
    name, entry = max(shards.entries.items(), key=lambda item: item[1].begin)
    entry.file.write_bytes(b"")
    with pytest.raises(BadInput, match="could not be read"):
        shards.read(name)


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(KitError, match=r"MiB are to be written .* MiB are missing"):
        need_disk(tmp_path / "not" / "there", 10**18)
