"""What fits into a memory, and what would: laws, and the command that prints them."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, PreTrainedConfig

from mobillm_kit.backbone.pretrained import architecture
from mobillm_kit.cli import main
from mobillm_kit.commands import run as cli_run
from mobillm_kit.errors import BadInput
from mobillm_kit.memory import budget
from mobillm_kit.memory.budget import (
    Step,
    Way,
    alternatives,
    backbone_bytes,
    largest_batch,
    parse_bytes,
    reason,
    streamed,
    table,
)
from mobillm_kit.memory.prediction import RUNTIME_BYTES, predict
from tests.families import TINY

MIB, GIB = 2**20, 2**30


def small(blocks: int = 1) -> PreTrainedConfig:
    """One OPT block: a prediction takes a fraction of a second."""
    model_type, settings = TINY["opt"]
    wide = {"hidden_size": 256, "ffn_dim": 1024, "word_embed_proj_dim": 256, "num_hidden_layers": blocks}
    return AutoConfig.for_model(model_type, **{**settings, **wide})


def step(method: str = "lora", batch: int = 16, blocks: int = 1, **changes) -> Step:
    return Step(small(blocks), method, batch, 64, **changes)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("4GiB", 4 * GIB), ("4 gib", 4 * GIB), ("4GB", 4 * 10**9), ("512MiB", 512 * MIB), ("1.5GiB", 3 * GIB // 2)],
)
def test_amounts_of_memory_are_read(text, n_bytes):
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["4GB?", "-4GiB", "lots", "", "4", "GiB", "4 4GiB", "4XB", "nanGiB", "1e3GiB"])
def test_nonsense_is_refused_with_an_example(text):
    with pytest.raises(BadInput, match=r"is not an amount of memory\. Write a number and a unit, such as 4GiB"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["0GiB", "4B", "100MiB"])
def test_less_than_python_takes_is_refused(text):
    named = rf"is less than Python and torch take before any model \({RUNTIME_BYTES // MIB} MiB\)"
    with pytest.raises(BadInput, match=named):
        parse_bytes(text)
    assert parse_bytes(f"{RUNTIME_BYTES}B") == RUNTIME_BYTES


def test_the_largest_batch_fits_and_one_text_more_does_not():
    this = step()
    one, whole = (this.needs(batch_size=n)[0].process_bytes for n in (1, 16))
    ram = (one + whole) // 2
    size, needs = largest_batch(this, ram)
    assert 1 < size < 16
    assert needs[0].process_bytes <= ram < this.needs(batch_size=size + 1)[0].process_bytes


def test_a_batch_that_fits_is_the_largest_and_a_text_that_does_not_leaves_none():
    this = step()
    assert largest_batch(this, 100 * GIB)[0] == 16
    assert largest_batch(this, RUNTIME_BYTES) is None


def test_it_is_the_device_that_a_batch_has_to_fit_into():
    this = step("mobillm-ladder", batch=8)
    device, server = this.needs(batch_size=2)
    assert server.process_bytes < device.process_bytes  # it would take more texts than the device can
    size, needs = largest_batch(this, device.process_bytes)
    assert (size, needs[0].process_bytes, len(needs)) == (2, device.process_bytes, 2)


def test_the_reason_names_what_takes_the_room():
    lora, full = step().needs()[0], step("full", batch=1).needs()[0]
    assert reason(lora, 100 * GIB).startswith("It fits: ")
    assert "saved activations" in reason(lora, RUNTIME_BYTES + lora.at_peak.weights + MIB)
    assert "AdamW's two moments" in reason(full, RUNTIME_BYTES + full.at_peak.weights + MIB)
    assert "The weights alone take" in reason(lora, RUNTIME_BYTES + MIB)


def test_the_rows_of_the_table_add_up():
    for need in step("mobillm-ladder").needs():
        rows = {name: at_peak for name, _, at_peak in table(need)}
        parts = ("weights", "gradients", "optimizer", "saved activations", "messages", "transient")
        assert sum(rows[part] for part in parts) == rows["tensors"]
        assert rows["whole process"] == rows["tensors"] + RUNTIME_BYTES


def test_backbone_bytes_by_hand():
    whole, block, matrix = backbone_bytes(architecture("opt-1.3b"), "bfloat16")
    d, ffn = 2048, 8192
    assert matrix == 2 * d * ffn
    assert block == 2 * (4 * d * d + 4 * d + 2 * d * ffn + ffn + d + 4 * d)
    assert whole == 2 * 1_315_758_080


def test_streaming_needs_less_than_the_weights_and_is_offered_in_three_forms():
    this = step(batch=8, blocks=3, dtype="bfloat16")
    ways = list(streamed(this))
    assert [way.label.split(",")[0] for way in ways] == ["MobiLLM", "MobiLLM", "LoRA + checkpointing"]
    plain = this.needs(method="mobillm-full-width")[0].process_bytes
    assert ways[1].device_bytes < ways[0].device_bytes < plain
    assert ways[0].server_bytes == this.needs(method="mobillm-full-width")[1].process_bytes
    assert ways[2].server_bytes is None
    d, ffn, rows = 256, 1024, this.config.vocab_size + this.config.max_position_embeddings + 2
    block, matrix = 4 * d * d + 4 * d + 2 * d * ffn + ffn + d + 4 * d, d * ffn
    upload = this.needs(method="mobillm-full-width", options={"layers": 1})[0].at_peak
    assert ways[0].device_bytes == 2 * (2 * block) + upload.messages + upload.transient + RUNTIME_BYTES
    coded = 2 * block // 2 + 4 * (2 * block) // 64 + 2 * matrix  # halves of bytes, scales, a matrix that is decoded
    assert ways[0].device_bytes - ways[1].device_bytes == 2 * (2 * block) - coded
    exact = this.needs(method="lora-checkpointing")[0]
    assert ways[2].device_bytes == exact.process_bytes - 2 * (rows * d + 3 * block + 2 * d) + 2 * (2 * block)


def test_what_exactly_fills_the_memory_fits():
    this = step()
    one, two, whole = (this.needs(batch_size=n)[0] for n in (1, 2, 16))
    assert largest_batch(this, whole.process_bytes)[0] == 16
    assert largest_batch(this, two.process_bytes)[0] == 2
    assert largest_batch(this, one.process_bytes)[0] == 1
    assert largest_batch(this, one.process_bytes - 1) is None
    assert reason(one, one.process_bytes) == "It fits: 0 MiB are left."
    assert reason(one, one.process_bytes - 1).startswith("It does not fit: 0 MiB too much")
    assert Way("", 7, None, "").fits(7)
    assert not Way("", 8, None, "").fits(7)


def test_the_reason_counts_in_mib():
    lora = step().needs()[0]
    weights = lora.at_peak.weights
    over = (lora.process_bytes - RUNTIME_BYTES - weights) / MIB
    assert reason(lora, lora.process_bytes + 3 * MIB) == "It fits: 3 MiB are left."
    only_the_weights = reason(lora, RUNTIME_BYTES + weights)
    assert only_the_weights.startswith(f"It does not fit: {over:,.0f} MiB too much. Beside the weights most goes to")
    assert f"The weights alone take {weights / MIB:,.0f} MiB; " in reason(lora, RUNTIME_BYTES + weights - 1)


def test_a_smaller_batch_is_offered_first_at_its_price_in_steps():
    this = step()
    two = this.needs(batch_size=2)[0].process_bytes
    first = next(alternatives(this, two))
    assert (first.label, first.device_bytes, first.price) == ("LoRA, batch 2", two, "8 × the steps for the same texts")
    uneven = next(alternatives(step(batch=7), two))
    assert (uneven.label, uneven.price) == ("LoRA, batch 2", "4 × the steps for the same texts")
    assert next(alternatives(this, RUNTIME_BYTES)).label == "MobiLLM, full width"  # not one text fits


def test_a_bfloat16_twin_is_offered_to_float32_alone():
    twin = "MobiLLM, full width, bfloat16"
    ways = {way.label: way for way in alternatives(step(batch=2), 100 * GIB)}
    assert twin not in [way.label for way in alternatives(step(batch=2, dtype="bfloat16"), 100 * GIB)]
    plain = ways["MobiLLM, full width"]
    assert ways[twin].device_bytes < plain.device_bytes
    assert ways[twin].server_bytes < plain.server_bytes
    device, server = step(batch=2).needs(method="mobillm-full-width")
    assert (plain.device_bytes, plain.server_bytes) == (device.process_bytes, server.process_bytes)
    assert ways["LoRA + checkpointing"].server_bytes is None


def test_what_was_predicted_is_not_predicted_again_and_what_differs_is(monkeypatch):
    asked = []

    def noted(*given, **named):
        asked.append(named)
        return predict(*given, **named)

    monkeypatch.setattr(budget, "predict", noted)
    one = Step(small(), "probe", 3, 5).needs()
    assert Step(small(), "probe", 3, 5).needs() == one
    assert len(asked) == 1
    assert Step(small(2), "probe", 3, 5).needs() != one
    assert Step(small(), "probe", 3, 6).needs() != one
    assert len(asked) == 3


def test_the_options_of_a_method_are_not_given_to_another():
    this = step(batch=2, options={"rank": 64})
    assert this.needs()[0].process_bytes > step(batch=2).needs()[0].process_bytes
    assert this.needs(method="full") == step("full", 2).needs()


def test_alternatives_never_offer_the_method_itself_and_say_what_each_costs():
    ways = list(alternatives(step(batch=2), 100 * GIB))
    labels = [way.label for way in ways]
    assert not any(label == "LoRA" or label.startswith("LoRA, batch") for label in labels)  # its own batch fits
    assert {"MobiLLM, full width", "MeZO", "LoRA + checkpointing", "Full fine-tuning"} <= set(labels)
    assert all(way.price for way in ways)


# ---------------------------------------------------------------------- the command


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setattr(cli_run.screen, "width", 160)  # a console reads COLUMNS once, when it is made


@pytest.fixture
def memory(capsys):
    def call(*arguments: str) -> tuple[int, str]:
        status = main(["memory", *arguments])
        return status, "".join(capsys.readouterr())

    return call


def test_the_command_prints_the_table_of_both_parties(memory):
    status, output = memory("--model", "opt-125m", "--method", "mobillm-full-width", "--batch", "2", "--length", "16")
    assert status == 0
    assert "device" in output
    assert "server" in output
    assert "477.8" in output  # 125 239 296 float32 weights
    assert "Predicted from shapes" in output


def test_the_command_says_whether_it_fits_why_and_what_would(memory, tmp_path):
    small().save_pretrained(tmp_path)
    model = str(tmp_path / "config.json")
    status, output = memory("--model", model, "--batch", "16", "--length", "64", "--device-ram", "410MiB")
    assert status == 0
    assert "It does not fit" in output
    assert "saved activations" in output
    assert "LoRA, batch " in output
    assert "MobiLLM, NF4 blocks streamed" in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--device-ram", "4GB?"], "'4GB?' is not an amount of memory"),
        (["--model", "opt-1.3"], "Did you mean 'opt-1.3b'"),
        (["--method", "loora"], "Did you mean 'lora'"),
        (["--length", "99999"], "more than this model reads"),
        (["--batch", "0"], "The batch size is 0"),
        (["--dtype", "int3"], "Unknown dtype 'int3'"),
        (["--model", "llama-2-7b", "--method", "bitfit"], "has no biases to train"),
    ],
)
def test_bad_input_gets_a_sentence(memory, arguments, sentence):
    status, output = memory(*arguments)
    assert status == 2
    assert sentence in output
