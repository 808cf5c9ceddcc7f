"""The built-in architectures are the published ones: transformers builds each, and the parameters count right."""

from __future__ import annotations

import json

import pytest
import torch

from mobillm_kit.backbone.pretrained import BUILT_IN, architecture, from_config
from mobillm_kit.errors import BadInput, UnknownName
from tests.builders import save_tiny_model

PUBLISHED = {
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "roberta-base": 124_055_040,
    "roberta-large": 354_310_144,
    "tinyllama-1.1b": 1_100_048_384,
    "llama-2-7b": 6_738_415_616,
    "qwen2-0.5b": 494_032_768,
}
"""Parameters of the published checkpoints; RoBERTa's without pooler (d² + d) and language-model head."""


def test_every_built_in_architecture_has_its_published_figure_here():
    assert set(PUBLISHED) == set(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_transformers_builds_it_with_the_published_number_of_parameters(name):
    config = architecture(name)
    with torch.device("meta"):
        model = from_config(config, torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("written", ["opt-1.3b", "OPT-1.3B", "facebook/opt-1.3b"])
def test_case_and_organisation_do_not_matter(written):
    assert architecture(written).hidden_size == 2048


def test_a_folder_a_file_and_the_packaged_model_are_architectures_too(tmp_path):
    folder = save_tiny_model(tmp_path / "tiny", "llama")
    assert architecture(folder).model_type == architecture(folder / "config.json").model_type == "llama"
    assert architecture("pocket").hidden_size == 128


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not a configuration"),
        ("[]", "names no model_type"),
        (json.dumps({"hidden_size": 8}), "names no model_type"),
        (json.dumps({"model_type": "t5"}), "Model type 't5' has no row"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, sentence):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(BadInput, match=sentence):
        architecture(file)


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"holds no config\.json"):
        architecture(tmp_path)


def test_an_unknown_name_gets_the_closest_one():
    with pytest.raises(UnknownName, match=r"Did you mean 'opt-1\.3b'"):
        architecture("opt-1.3")
    with pytest.raises(UnknownName, match=r"Built in: llama-2-7b, opt-1\.3b"):
        architecture("elephant")


def test_a_hub_that_does_not_answer_is_named():
    with pytest.raises(BadInput, match="nobody/nothing: neither a folder, nor built in, nor given by the Hugging Face"):
        architecture("nobody/nothing")
