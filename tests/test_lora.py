"""LoRA and LoRA-FA: what PEFT puts into a backbone, and that nothing else of the backbone notices."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

from mobillm_kit.common import derived_seed
from mobillm_kit.errors import BadInput
from mobillm_kit.methods import lora, lora_fa, mezo_lora, prge
from tests.builders import random_batch, tiny_task_model
from tests.families import TINY

LR = 3e-3
STEPS = 20
ENCODERS = ("bert", "roberta")


def kind_of(name: str) -> str:
    return "encoder" if name in ENCODERS else "decoder"


def trained_lora(name: str, steps: int = 3):
    model = tiny_task_model(name)
    method = lora.build(model, seed=0, rank=4)
    for step in range(steps):
        method.step(random_batch(kind=kind_of(name), seed=step), 1e-2)
    return model, method


def plain_encoder_loop(name: str, seed: int, trains) -> list[float]:
    """PEFT, Hugging Face's own forward, a mean over real tokens, a linear classifier and AdamW."""
    model = tiny_task_model(name)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["query", "value"])
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(seed, "lora"))
        hf = get_peft_model(model.backbone.model, config).eval()
    for key, parameter in hf.named_parameters():
        parameter.requires_grad_(trains(key))
    classifier = model.head.classifier
    weights = [parameter for parameter in hf.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW([*weights, *classifier.parameters()], lr=LR, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        batch = random_batch(kind="encoder", seed=step)
        state = hf(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        mask = batch.attention_mask.unsqueeze(-1)
        loss = F.cross_entropy(classifier((state * mask).sum(1) / mask.sum(1)), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # the reference's own
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(("method", "part"), [(lora, "lora_"), (lora_fa, "lora_B")])
def test_an_encoders_curve_equals_a_plain_peft_loop(name, method, part):
    built = method.build(tiny_task_model(name), seed=4, rank=4, alpha=8)
    ours = [built.step(random_batch(kind="encoder", seed=step), LR).loss for step in range(STEPS)]
    assert ours == pytest.approx(plain_encoder_loop(name, 4, lambda key: part in key), abs=1e-6)
    assert ours[-1] != ours[0]


@pytest.mark.parametrize("name", TINY)
def test_the_split_of_the_backbone_survives_the_layers(name):
    """With trained LoRA inside, the last tap is what Hugging Face's own forward gives, and not what it was before."""
    model, _ = trained_lora(name)
    batch = random_batch(kind=kind_of(name))
    backbone = model.backbone
    with torch.no_grad():
        tap = backbone.taps(batch.input_ids, batch.attention_mask, layers=[backbone.n_layers])[0]
        before = tiny_task_model(name).hidden(batch)
        kwargs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if backbone.kind == "decoder":
            kwargs |= {"position_ids": (batch.attention_mask.cumsum(1) - 1).clamp(min=0), "use_cache": False}
        whole = backbone.base(**kwargs).last_hidden_state
        normed = backbone.norm(tap) if backbone.norm is not None else tap
        normed = backbone.project_out(normed) if backbone.project_out is not None else normed
    real = batch.attention_mask.bool()
    torch.testing.assert_close(normed[real], whole[real], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(tap[real], before[real], atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_every_block_gets_a_and_b_for_each_of_its_familys_targets(name):
    model = tiny_task_model(name)
    layers = lora.build(model, seed=0).trained()
    pairs = [key for key in layers if ".lora_" in key]
    assert len(pairs) == 2 * model.backbone.n_layers * len(model.backbone.family.attention_targets)


@pytest.mark.parametrize("method", [lora, lora_fa, mezo_lora])
def test_the_first_a_depends_on_the_seed_alone(method):
    def first_a(seed: int) -> torch.Tensor:
        model = tiny_task_model()
        method.build(model, seed=seed)
        return next(value for key, value in model.named_parameters() if ".lora_A." in key).detach()

    torch.manual_seed(1)
    one = first_a(7)
    torch.manual_seed(2)
    torch.rand(5)
    assert torch.equal(one, first_a(7))
    assert not torch.equal(one, first_a(8))


def test_drawing_a_leaves_every_accelerators_generator_alone(monkeypatch):
    """`torch.manual_seed` seeds them all for good, and forking the CPU's generator takes only the CPU's back."""
    model, seeded = tiny_task_model(), []
    for device in (torch.cuda, torch.xpu):
        monkeypatch.setattr(device, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch.mps, "manual_seed", seeded.append)
    lora.build(model, seed=0)
    assert seeded == []


def test_targets_may_be_a_list_or_written_with_commas():
    written = lora.build(tiny_task_model(), seed=0, targets="q_proj, fc1").trained()
    assert written.keys() == lora.build(tiny_task_model(), seed=0, targets=["q_proj", "fc1"]).trained().keys()
    assert {key.split(".lora_")[0].rsplit(".", 1)[-1] for key in written} == {"q_proj", "fc1"}


@pytest.mark.parametrize("method", [lora, lora_fa, mezo_lora, prge])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rank": 2.5}, r"rank is 2\.5; it must be a whole number"),
        ({"rank": True}, "rank is True"),
        ({"rank": "eight"}, "rank is eight"),
        ({"alpha": "x"}, "alpha is x; it must be a number above 0"),
        ({"alpha": 0}, "alpha is 0"),
        ({"targets": "q_proj,nothing"}, "no layer named 'nothing'. There are: fc1, fc2, k_proj"),
    ],
)
def test_settings_that_no_low_rank_layer_can_have_are_refused(method, options, sentence):
    with pytest.raises(BadInput, match=sentence):
        method.build(tiny_task_model(), seed=0, **options)
