"""Panels that watch learning: a run that can be seen and stopped, a map that was trained, gates, a sentence."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

import mobillm_kit as kit
from mobillm_kit.errors import KitError, TrainingDiverged
from mobillm_kit.runs.progress import Progress
from mobillm_kit.show.panels_learning import MAP, mezo_runs
from mobillm_kit.side.adapter import gate_shares, shares_of_gates
from scripts import panel_map

SPEC = kit.RunSpec(
    method="mobillm", accelerator="cpu", steps=6, eval_every=3, limit_train=64, limit_dev=16, limit_test=16,
    read_back=False,
)  # fmt: skip


def test_a_watched_run_is_the_run_itself():
    panel = kit.MonitorPanel(lambda told: kit.run(SPEC, callbacks=[told]))
    assert (panel.text.value, panel.png) == ("Not started.", b"")
    assert panel.stop.disabled
    with pytest.raises(KitError, match="No run was started"):
        panel.wait()
    panel.start.click()
    watched, alone = panel.wait(120), kit.run(SPEC)
    assert [point.dev_loss for point in watched.curve] == [point.dev_loss for point in alone.curve]
    assert panel.text.value == "Done."
    assert sorted(panel._losses) == [1, 2, 3, 4, 5, 6]
    assert sorted(panel._accuracies) == [3, 6]
    assert panel.png.startswith(b"\x89PNG")
    assert (panel.start.disabled, panel.stop.disabled) == (False, True)


def test_stop_ends_a_run_after_its_step():
    def train(told):
        for step in range(1, 1000):
            panel.stop.click()  # a hand that is quicker than the second step
            if told(Progress(step=step, steps=1000, loss=0.5)):
                return step
        return None

    panel = kit.MonitorPanel(train)
    panel.begin()
    assert panel.wait(60) == 1
    assert panel.text.value == "Stopped at step 1."


def test_a_callback_that_returns_true_interrupts_the_training_loop():
    seen = []

    def told(said: Progress) -> bool:
        if said.loss is not None:
            seen.append(said.step)
        return len(seen) == 2

    record = kit.run(SPEC, callbacks=[told, lambda said: seen.count(0)])
    assert (record.status, record.steps, seen) == ("interrupted", 2, [1, 2])


def test_start_while_a_run_is_under_way_starts_no_second_one():
    may_end, begun = threading.Event(), []

    def train(told):
        begun.append(told)
        may_end.wait(60)

    panel = kit.MonitorPanel(train)
    panel.begin()
    panel.begin()
    with pytest.raises(KitError, match="has not ended in 0"):
        panel.wait(0.01)
    may_end.set()
    panel.wait(60)
    assert len(begun) == 1


def test_what_a_run_fails_with_is_shown_and_raised():
    def train(told):
        raise TrainingDiverged("the loss of step 3 is nan.", "Lower the learning rate.")

    panel = kit.MonitorPanel(train)
    panel.begin()
    with pytest.raises(TrainingDiverged, match="step 3"):
        panel.wait(60)
    assert panel.text.value == "It has failed. the loss of step 3 is nan. Lower the learning rate."
    assert not panel.start.disabled


def test_the_map_is_what_training_gives():
    found = mezo_runs()
    assert found.made_with.command == "python scripts/panel_map.py"
    assert (found.rates, found.epsilons, found.steps) == (panel_map.RATES, panel_map.EPSILONS, panel_map.LOOKS)
    again = panel_map.run(3e-4, 1e-3, found.steps[:2])
    stored = found.losses[found.epsilons.index(1e-3)][found.rates.index(3e-4)]
    assert again == pytest.approx(stored[:2], abs=0.02)
    assert abs(stored[1] - stored[0]) > 0.05  # it moves by more than what is allowed to differ
    assert MAP.suffix == ".json"


def test_the_map_frames_and_tells_the_chosen_run():
    panel, found = kit.MezoMapPanel(), mezo_runs()
    before = panel.png
    panel.rate.value, panel.eps.value = found.rates[0], found.epsilons[0]
    assert panel.png != before
    assert (
        panel.text.value
        == "Dev loss at step "
        + ", ".join(f"{step}: {loss:.2f}" for step, loss in zip(found.steps, found.losses[0][0], strict=True))
        + "."
    )


def test_gates_by_hand():
    asked = []

    def accuracy(gates):
        asked.append(tuple(gates))
        return gates[-1]

    panel = kit.GatePanel((0.25, 0.5, 0.75), accuracy)
    assert panel.text.value == "75% of the texts are right, with the trained gates 75%."
    panel.gates[2].value = 0.1
    assert panel.text.value == "10% of the texts are right, with the trained gates 75%."
    assert asked.count((0.25, 0.5, 0.1)) == 1
    shares = [f"{100 * share:.0f} %" for share in shares_of_gates((0.25, 0.5, 0.1))]
    assert f"yours {', '.join(shares)}" in panel._alt


def test_shares_of_gates_are_those_of_a_side_network():
    side = SimpleNamespace(gates=torch.tensor([0.3, -0.2, 0.0]), token_wise=True)
    assert gate_shares(side) == pytest.approx(shares_of_gates(side.gates.sigmoid().tolist()))
    assert sum(gate_shares(side)) == pytest.approx(1)


def test_a_sentence_of_ones_own():
    def answer(texts):
        return [SimpleNamespace(label="positive" if "kind" in text else "negative", probability=0.9) for text in texts]

    panel = kit.SentencePanel("they were <kind>", {"LoRA": answer}, lambda text: (len(text) * 100, text[:4]))
    assert panel.text.value == ("LoRA: positive (90%)<br>sent: 1,600 bytes for 16 bytes of text<br>read back: they")
    panel.sentence.value = "no"
    assert "LoRA: negative" in panel.text.value
    panel.sentence.value = "  "
    assert panel.text.value == "Write a sentence, then press Enter."
