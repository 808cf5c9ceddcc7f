"""The split is the model: same values, whatever the family, the padding and the precision."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from mobillm_kit.backbone.families import family_of
from mobillm_kit.backbone.pretrained import (
    architecture,
    backbone_kind,
    from_config,
    load_backbone,
    load_tokenizer,
    random_backbone,
)
from mobillm_kit.backbone.split import Backbone
from mobillm_kit.backbone.streaming import stream_backbone
from mobillm_kit.errors import BadInput, UnknownName
from mobillm_kit.methods.task_model import task_model
from tests.builders import save_tiny_model
from tests.families import TINY, tiny_backbone

ALL = sorted(TINY)


def tokens(pad_left: int = 0, pad_right: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts of seven tokens; the second stands between padding."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.full((2, 7 + pad_left + pad_right), 1)
    mask = torch.zeros_like(ids)
    ids[:, pad_left : pad_left + 7] = torch.randint(5, 100, (2, 7), generator=generator)
    mask[:, pad_left : pad_left + 7] = 1
    return ids, mask


@pytest.mark.parametrize("name", ALL)
def test_taps_equal_what_the_model_itself_computes(name):
    backbone = tiny_backbone(name)
    ids, mask = tokens(pad_left=2, pad_right=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    if backbone.family.positions_start_after_padding_id:
        positions = positions + backbone.config.pad_token_id + 1
    extra = {"use_cache": False} if backbone.kind == "decoder" else {}
    own = backbone.base(
        input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True, **extra
    ).hidden_states
    ours = list(backbone.hidden_states(ids, mask))
    real = mask.bool()
    assert len(ours) == len(own) == backbone.n_layers + 1
    for state, reference in zip(ours[:-1], own[:-1], strict=True):
        assert torch.equal(state[real], reference[real])
    last = ours[-1] if backbone.norm is None else backbone.norm(ours[-1])
    last = last if backbone.project_out is None else backbone.project_out(last)
    assert torch.equal(last[real], own[-1][real])


@pytest.mark.parametrize("name", ALL)
def test_each_tap_is_the_next_blocks_input(name):
    backbone = tiny_backbone(name)
    ids, mask = tokens(pad_right=2)
    taps = backbone.taps(ids, mask, layers=range(backbone.n_layers + 1))
    _, handed = backbone.begin(ids, mask)
    for index, inputs in enumerate(handed):
        assert torch.equal(backbone.block(index, taps[index], inputs), taps[index + 1])


@pytest.mark.parametrize("name", ALL)
def test_padding_on_either_side_changes_no_real_token(name):
    backbone = tiny_backbone(name)
    bare = backbone.last_hidden(*tokens())
    left_ids, left_mask = tokens(pad_left=3)
    right_ids, right_mask = tokens(pad_right=3)
    left = backbone.last_hidden(left_ids, left_mask)[:, 3:]
    right = backbone.last_hidden(right_ids, right_mask)[:, :7]
    unmasked = backbone.last_hidden(left_ids, torch.ones_like(left_mask))[:, 3:]
    size = bare.abs().max()
    for state in (left, right):
        assert (state - bare).abs().max() < 1e-6 * size  # float32's rounding
    assert (unmasked - bare).abs().max() > 1e-2 * size  # what padding that counts as text does


@pytest.mark.parametrize("name", ALL)
def test_decoder_logits_equal_the_models_own(name):
    backbone = tiny_backbone(name)
    if backbone.kind == "encoder":
        pytest.skip("encoders here have no language-model head")
    ids, mask = tokens()
    own = backbone.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    head = task_model(backbone, word_ids=range(100)).head
    assert torch.equal(head(backbone.last_hidden(ids, mask)), own)


def test_nothing_asks_for_a_gradient_and_nothing_drops_out():
    backbone = tiny_backbone("opt")
    backbone.train()
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(module.training for module in backbone.modules())


def test_a_layer_that_does_not_exist_is_named():
    backbone = tiny_backbone("gpt2")
    with pytest.raises(BadInput, match="Layer 4 does not exist"):
        backbone.taps(*tokens(), layers=[2, 4])


def test_the_blocks_are_back_after_an_error_in_the_embedding():
    backbone = tiny_backbone("llama")
    before = backbone.last_hidden(*tokens())
    with pytest.raises(IndexError):
        backbone.last_hidden(torch.full((1, 3), 10_000), torch.ones(1, 3, dtype=torch.long))
    assert torch.equal(backbone.last_hidden(*tokens()), before)


def test_the_fingerprint_is_the_weights_not_their_precision():
    one, other = tiny_backbone("llama"), tiny_backbone("llama", seed=1)
    rounded = tiny_backbone("llama")
    rounded.model.to(torch.bfloat16)
    assert one.fingerprint == rounded.fingerprint
    assert one.fingerprint != other.fingerprint


def test_random_backbone_has_other_weights_and_leaves_the_global_generator_alone():
    backbone = tiny_backbone("bert")
    before = torch.get_rng_state()
    fresh, again = random_backbone(backbone, seed=5), random_backbone(backbone, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    assert fresh.fingerprint == again.fingerprint != backbone.fingerprint


def test_a_saved_model_loads_from_its_folder_in_the_dtype_asked_for(tmp_path):
    saved = tiny_backbone("qwen2")
    saved.model.half().save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path)
    assert loaded.dtype == torch.float32
    assert loaded.fingerprint == saved.fingerprint
    assert load_backbone(tmp_path, dtype="bfloat16").dtype == torch.bfloat16


def test_the_shared_encoder_loads(shared):
    backbone = load_backbone(shared / "models" / "minilm-l6-h384")
    assert (backbone.kind, backbone.n_layers, backbone.width) == ("encoder", 6, 384)
    assert backbone.name == "minilm-l6-h384"


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda folder: None, "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "opt"}'), "could not be loaded"),
        (lambda folder: (folder / "config.json").write_text("{broken"), "could not be loaded"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path, prepare, sentence):
    prepare(tmp_path)
    with pytest.raises(BadInput, match=sentence):
        load_backbone(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    tiny_backbone("llama").model.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_unknown_names_are_refused():
    with pytest.raises(BadInput, match="no such folder"):
        load_backbone("./nowhere")
    with pytest.raises(BadInput, match="could not be loaded"):
        load_backbone("nobody/has-this-model")
    for other in ("t5", "mamba", "falcon", "bloom", "albert"):
        with pytest.raises(UnknownName, match=f"Model type '{other}' has no row"):
            family_of(other)
    with pytest.raises(BadInput, match="Unknown dtype"):
        load_backbone("pocket", dtype="int3")


def test_a_model_with_something_between_its_blocks_is_refused():
    """DeBERTa v2 XL has a convolution beside its first block, DeBERTa v3 has none."""
    model_type, settings = TINY["deberta-v3-like"]
    config = AutoConfig.for_model(model_type, **settings, conv_kernel_size=3)
    with pytest.raises(BadInput, match="has conv_kernel_size"):
        Backbone(from_config(config, torch.float32), name="xl")


def test_the_wrapped_model_is_the_one_given():
    backbone = tiny_backbone("gpt-neox")
    assert isinstance(backbone, Backbone)
    assert backbone.n_parameters == sum(p.numel() for p in backbone.model.parameters())


def test_a_model_with_missing_weights_is_refused(tmp_path):
    saved = tiny_backbone("llama")
    saved.model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"1 weights .* 'model.layers.1.mlp.up_proj.weight'"):
        load_backbone(tmp_path)


def test_loading_is_silent(shared, capfd):
    load_backbone(shared / "models" / "minilm-l6-h384")
    assert capfd.readouterr() == ("", "")


FOREIGN = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Tokenizer
"""


@pytest.mark.parametrize("model_type", ["llama", "foreign"])
def test_code_in_a_models_folder_never_runs(tmp_path, model_type, monkeypatch):
    """Neither for a type that transformers knows nor for one that only the folder's code knows; nobody is asked."""
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")
    folder, mark = save_tiny_model(tmp_path / "model", "llama"), tmp_path / "mark"
    (folder / "theirs.py").write_text(FOREIGN.format(mark=str(mark)))
    loaders = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model", "AutoModel": "theirs.Model"}
    change_json(folder / "config.json", model_type=model_type, auto_map=loaders)
    tokenizer = {
        "auto_map": {"AutoTokenizer": ["theirs.Tokenizer", "theirs.Tokenizer"]},
        "tokenizer_class": "Tokenizer",
    }
    change_json(folder / "tokenizer_config.json", **tokenizer)
    (folder / "tokenizer.json").touch(exist_ok=True)
    for load in (load_backbone, backbone_kind, stream_backbone, architecture):
        with pytest.raises(BadInput, match=r"code of its own|no row") if model_type == "foreign" else nullcontext():
            load(folder)
    with pytest.raises(BadInput, match="code of its own"):
        load_tokenizer(folder)
    assert not mark.exists()


def change_json(file, **changes):
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**before, **changes}))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "tokenizer.model", "pytorch_model.bin"])
def test_a_pointer_in_place_of_a_file_is_named(tmp_path, file):
    folder = save_tiny_model(tmp_path, "llama")
    (folder / file).write_text(POINTER)
    for load in (load_backbone, load_tokenizer, stream_backbone):
        with pytest.raises(BadInput, match=f"{file}: is a pointer of Git's large-file store.* `git lfs pull`"):
            load(folder)


@pytest.mark.parametrize(
    ("method", "bits"), [("gptq", 4), ("awq", 4), ("bitsandbytes", 4), ("fp8", 8)], ids=["gptq", "awq", "bnb", "fp8"]
)
def test_weights_that_are_somebodys_codes_are_refused_with_what_to_do(tmp_path, method, bits):
    folder = save_tiny_model(tmp_path, "llama")
    change_json(folder / "config.json", quantization_config={"quant_method": method, "bits": bits})
    for load in (load_backbone, stream_backbone):
        with pytest.raises(BadInput, match=f"its weights are {method} codes .* `--weights nf4`"):
            load(folder)


@pytest.mark.parametrize("name", ["roberta", "distilbert", "modernbert", "deberta-v3-like"])
def test_segments_of_a_table_with_one_row_or_none_change_nothing(name):
    backbone = tiny_backbone(name, type_vocab_size=1) if name == "roberta" else tiny_backbone(name)
    ids, mask = tokens()
    segments = torch.ones_like(ids)
    assert torch.equal(backbone.last_hidden(ids, mask, segments), backbone.last_hidden(ids, mask))
