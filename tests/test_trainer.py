"""The checkpointing trainer, met directly: strict order, checkpoints, going back, half steps."""

from __future__ import annotations

import re

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load, save

from mobillm_kit.channel.frames import digest
from mobillm_kit.channel.messages import (
    Ack,
    BatchMessage,
    Durable,
    Error,
    FrameInfo,
    Gradient,
    Logits,
    Need,
    Plan,
    Result,
    WireError,
)
from mobillm_kit.errors import SaveFailed
from mobillm_kit.server.session_trainer import KEPT_CHECKPOINTS, SessionTrainer
from mobillm_kit.side.adapter import SideAdapter
from mobillm_kit.side.description import SideSpec
from tests.faults import flood

ROWS, TOKENS, WIDTH = 2, 3, flood.WIDTH


def plan(**changes) -> Plan:
    return replace(flood.plan(), max_rows=ROWS, max_tokens=TOKENS, n_samples=8, checkpoint_every=2, steps=50, **changes)


def batch(sequence: int, **changes) -> tuple[BatchMessage, list[memoryview]]:
    message, _ = flood.batch(sequence)
    rows = {"samples": [0, 1], "fresh": [0, 1], "lengths": [TOKENS] * ROWS, "positions": [TOKENS - 1] * ROWS}
    values = torch.randn(ROWS * TOKENS, WIDTH, generator=torch.Generator().manual_seed(sequence))
    payload = memoryview(values.numpy().tobytes())
    return replace(message, **rows, **{"targets": [0, 1], **changes}), [payload for _ in message.layers]


@pytest.fixture
def made(tmp_path):
    def make(**changes) -> SessionTrainer:
        return SessionTrainer(plan(**changes), {}, tmp_path, None)

    return make


def train(trainer: SessionTrainer, steps: int) -> list:
    return [message for step in range(steps) for message, _ in trainer.batch(*batch(trainer.sequence))]


def side(trainer: SessionTrainer) -> bytes:
    ((message, (data,)),) = trainer.result()
    assert isinstance(message, Result)
    return data


def test_steps_are_acknowledged_and_every_second_one_is_durable(made):
    said = train(made(), 4)
    assert [type(message) for message in said] == [Ack, Ack, Durable, Ack, Ack, Durable]
    assert [message.sequence for message in said if isinstance(message, Ack)] == [0, 1, 2, 3]


# ---------------------------------------------------------------------- first weights that the device sends

COPY = SideSpec.of(
    kind="ladder", width=WIDTH, layers=list(flood.LAYERS), start="backbone", feed_forward=8, heads=2, pooling="mean"
)
SENT = save({f"adapter.{name}": tensor + 0.25 for name, tensor in SideAdapter(COPY).named_parameters()})


def started(**changes) -> dict:
    return {"side": COPY, "first": FrameInfo(n_bytes=len(SENT), digest=digest(SENT)), **changes}


def give(trainer: SessionTrainer, data: bytes, size: int = 20_000) -> list[bool]:
    return [trainer.first(at, memoryview(data)[at : at + size]) for at in range(0, len(data), size)]


def test_first_weights_come_in_parts_and_are_what_training_begins_with(made):
    trainer = made(**started())
    assert trainer.first_at == 0
    assert not trainer.first(7, memoryview(b"not the next"))
    assert trainer.first_at == 0
    parts = give(trainer, SENT)
    assert len(parts) == 3
    assert all(parts)
    assert trainer.first_at is None
    ours, sent = load(side(trainer)), load(SENT)
    assert ours.keys() == sent.keys()
    assert all(torch.equal(ours[name], sent[name]) for name in sent)
    assert not trainer.first(0, memoryview(SENT))


def test_first_weights_are_taken_once_while_a_checkpoint_lies_there_and_asked_for_again_where_none_does(made):
    give(made(**started()), SENT)
    second = made(**started())
    assert (second.first_at, second.sequence) == (None, 0)
    train(second, 2 * KEPT_CHECKPOINTS + 2)
    expected = side(second)
    assert made(**started()).first_at is None
    second.roll_back(1)  # the checkpoint of step 0 has made room for later ones
    assert (second.first_at, second.sequence) == (0, 0)
    give(second, SENT)
    train(second, 2 * KEPT_CHECKPOINTS + 2)
    assert side(second) == expected


def test_without_announced_first_weights_none_are_taken(made):
    trainer = made()
    assert trainer.first_at is None
    assert not trainer.first(0, memoryview(b"x"))


SPOILT = SENT[:-1] + bytes([SENT[-1] ^ 1])
OTHER = save({f"adapter.{name}": tensor.double() for name, tensor in SideAdapter(COPY).named_parameters()})
FEWER = save({"adapter.side.gates": torch.zeros(1)})


@pytest.mark.parametrize(
    ("sent", "announced", "code", "sentence"),
    [
        (SPOILT, SENT, "bad-digest", "The first weights are not those whose digest the plan gives"),
        (SENT + b"more", SENT, "bad-digest", "The first weights are not those whose digest the plan gives"),
        (b"x" * 90, b"x" * 90, "bad-plan", "The first weights: What came is not safetensors"),
        (OTHER, OTHER, "bad-plan", "came as torch.float64; it must be torch.float32"),
        (FEWER, FEWER, "bad-plan", "The first weights: it has other tensors"),
    ],
    ids=["spoilt", "too-long", "no-tensors", "another-type", "others"],
)
def test_first_weights_that_are_not_the_announced_ones_are_a_sentence(made, sent, announced, code, sentence):
    trainer = made(**started(first=FrameInfo(n_bytes=len(announced), digest=digest(announced))))
    with pytest.raises(WireError, match=re.escape(sentence)) as found:
        give(trainer, sent, size=len(sent))
    assert found.value.code == code


def test_a_copy_of_layers_that_do_not_follow_each_other_is_no_plan(made):
    for changes in ({"layers": [0, 2]}, {"layers": [1]}):
        with pytest.raises(WireError) as found:
            made(**started(side=replace(COPY, **changes)))
        assert found.value.code == "bad-plan"


def test_a_batch_out_of_turn_changes_nothing(made):
    trainer = made()
    train(trainer, 1)
    before = side(trainer)
    assert trainer.batch(*batch(0)) == []
    assert trainer.batch(*batch(2)) == []
    assert side(trainer) == before


def test_a_second_life_goes_on_from_the_newest_checkpoint_to_the_same_bytes(made):
    first = made()
    train(first, 5)
    second = made()
    assert second.sequence == 4
    assert second.losses == first.losses[:4]
    train(second, 1)
    assert side(second) == side(first)


def test_a_damaged_checkpoint_is_passed_over(made, tmp_path):
    train(made(), 5)
    newest = max(tmp_path.glob("checkpoint-*"))
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    assert made().sequence == 2


@pytest.mark.parametrize("name", ["checkpoint-.safetensors", "checkpoint-x.safetensors", "checkpoint-1.safetensors"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_stray_thing_with_a_checkpoints_name_is_passed_over(made, tmp_path, name, kind):
    trainer = made()
    for sequence in range(2):
        trainer.batch(*batch(sequence))
    for stray in (tmp_path / name, tmp_path / "checkpoint-00000009.safetensors"):
        stray.mkdir() if kind == "folder" else stray.write_bytes(b"x")
    trainer.roll_back(2)
    assert trainer.sequence == 2
    assert made().sequence == 2


def test_a_checkpoint_of_another_plan_is_passed_over(made):
    train(made(), 4)
    assert made(weight_decay=0.5).sequence == 0


def test_going_back_leaves_later_checkpoints_behind_and_trains_the_same_again(made):
    trainer = made()
    train(trainer, 6)
    expected = side(trainer)
    trainer.roll_back(3)
    assert trainer.sequence == 2
    train(trainer, 4)
    assert side(trainer) == expected
    trainer.roll_back(0)
    assert trainer.sequence == 0
    assert made().sequence == 0


def test_only_the_newest_checkpoints_are_kept(made, tmp_path):
    train(made(), 2 * KEPT_CHECKPOINTS + 4)
    assert len(list(tmp_path.glob("checkpoint-*"))) == KEPT_CHECKPOINTS


def test_a_full_disk_is_said_and_training_goes_on_unless_the_device_asked(made, monkeypatch):
    trainer = made()

    def full() -> None:
        raise SaveFailed("The disk is full.", "Free some space.")

    monkeypatch.setattr(trainer, "_save", full)
    said = train(trainer, 2)
    assert isinstance(said[-1], Error)
    assert not said[-1].fatal
    assert trainer.sequence == 2
    with pytest.raises(WireError, match="disk is full"):
        trainer.checkpoint()


def test_with_labels_on_the_device_a_step_waits_for_its_gradient(made):
    trainer = made(labels="device")
    start = side(trainer)
    ((asked, (logits,)),) = trainer.batch(*batch(0, targets=[]))
    assert isinstance(asked, Logits)
    assert trainer.waiting
    assert len(logits) == 4 * asked.rows * asked.columns
    gradient = memoryview(torch.ones(asked.rows, asked.columns).numpy().tobytes())
    assert trainer.gradient(Gradient(sequence=1), [gradient]) == []
    ((ack, _),) = trainer.gradient(Gradient(sequence=0), [gradient])
    assert isinstance(ack, Ack)
    assert not trainer.waiting
    assert side(trainer) != start


def test_a_step_that_is_forgotten_in_its_middle_is_made_again(made):
    trainer = made(labels="device")
    trainer.batch(*batch(0, targets=[]))
    trainer.forget_waiting()
    assert trainer.gradient(Gradient(sequence=0), [memoryview(b"")]) == []
    ((asked, _),) = trainer.batch(*batch(0, targets=[]))
    assert isinstance(asked, Logits)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_refused(made, value):
    trainer = made(labels="device")
    ((asked, _),) = trainer.batch(*batch(0, targets=[]))
    gradient = torch.full((asked.rows, asked.columns), value).numpy().tobytes()
    with pytest.raises(WireError, match="finite"):
        trainer.gradient(Gradient(sequence=0), [memoryview(gradient)])


def test_the_result_says_after_how_many_steps_and_is_finite(made):
    trainer = made()
    train(trainer, 1)
    ((message, _),) = trainer.result()
    assert message.sequence == 1
    assert all(torch.isfinite(tensor).all() for tensor in load(side(trainer)).values())


def test_samples_that_the_cache_does_not_hold_are_asked_for(tmp_path):
    from mobillm_kit.server.cache import ActivationCache

    cache = ActivationCache(tmp_path / "cache", memory_bytes=2**20, disk_bytes=2**20)
    trainer = SessionTrainer(plan(cache=True), {}, tmp_path, cache)
    nothing = {"fresh": [], "lengths": [], "positions": []}
    message = replace(batch(0)[0], **nothing)
    assert trainer.batch(message, []) == [(Need(sequence=0), [])]
    with pytest.raises(WireError, match="were asked for, and did not come"):
        trainer.batch(message, [])
    trainer.forget_waiting()  # another hello: it may not have heard what was asked
    assert trainer.batch(message, []) == [(Need(sequence=0), [])]
    ((ack, _),) = trainer.batch(*batch(0))
    assert ack.cached
    ((ack, _), _durable) = trainer.batch(replace(message, sequence=1), [])
    assert isinstance(ack, Ack)


def test_a_sample_twice_in_one_batch_needs_to_come_once(tmp_path):
    from mobillm_kit.server.cache import ActivationCache

    cache = ActivationCache(tmp_path / "cache", memory_bytes=2**20, disk_bytes=2**20)
    twice, apart = (
        SessionTrainer(plan(cache=True), {}, tmp_path, cache),
        SessionTrainer(plan(), {}, tmp_path / "x", None),
    )
    message, payloads = batch(0)
    one = [payload[: len(payload) // ROWS] for payload in payloads]
    header = {"samples": [0, 0], "fresh": [0], "lengths": [TOKENS], "positions": [TOKENS - 1]}
    twice.batch(replace(message, **header), one)
    apart.batch(message, [memoryview(bytes(part) * ROWS) for part in one])
    assert twice.losses == apart.losses
    assert side(twice) == side(apart)
