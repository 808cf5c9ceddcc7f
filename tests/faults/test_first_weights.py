"""The first weights of a copy of the backbone's blocks travel once; whatever happens to them, no byte changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import pytest

from mobillm_kit.channel.frames import Limits, from_frames
from mobillm_kit.channel.messages import First
from mobillm_kit.device import client
from mobillm_kit.errors import ServerRefused
from tests.faults.scenes import CONFIGS, GOES_ON_S, STEPS, Script, attempt, busy, identical, refused
from tests.faults.test_messages import Tampered
from tests.faults.test_network import cut_upload, reset
from tests.faults.test_servers import PATIENT_S, Restart, killed
from tests.uplink import trained

CONFIG = "copy-fp32"
PART_BYTES = 16 * 2**10


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    """The tiny model's first weights take several messages, as a real one's do."""
    monkeypatch.setattr(client, "PART_BYTES", PART_BYTES)


@dataclass
class Noted(Script):
    """Notes where the parts that leave begin."""

    offsets: list[int] = field(default_factory=list)

    def up(self, message, frames):
        if isinstance(message, First):
            self.offsets.append(message.offset)
        return super().up(message, frames)


def test_two_processes_end_in_the_bytes_of_one(place, steady):
    script = Noted()
    apart = attempt(place, steady.address, CONFIG, script)
    together, _ = trained(place, "in-process", steps=STEPS, **CONFIGS[CONFIG])
    identical(apart, together)
    assert script.offsets == list(range(0, PART_BYTES * len(script.offsets), PART_BYTES))
    assert len(script.offsets) > 3


@pytest.mark.parametrize("phase", ["first", "mid-epoch"])
@pytest.mark.parametrize("fault", ["killed", "reset", pytest.param("cut_upload", marks=pytest.mark.faults)])
def test_a_cut_or_a_killed_server_changes_no_byte(place, mortal, proxied, oracle, fault, phase):
    undisturbed = oracle(CONFIG)
    proxy = proxied(mortal)
    strike = (
        Restart(mortal, killed)
        if fault == "killed"
        else partial({"reset": reset, "cut_upload": cut_upload}[fault], proxy)
    )
    script = Noted(strikes={phase: strike})
    identical(attempt(place, proxy.endpoint, CONFIG, script, patience_s=PATIENT_S), undisturbed)
    assert script.struck_at is not None
    if isinstance(strike, Restart):
        assert strike.goes_on_within(script) < GOES_ON_S * busy()
    whole = len(set(script.offsets))
    if phase == "mid-epoch":
        assert len(script.offsets) == whole  # once, although the server was killed or left
    elif fault != "killed":
        assert len(script.offsets) <= whole + 2  # it goes on where it stood


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["lost", "duplicated", "reordered", "cut"])
def test_a_part_that_goes_astray_changes_no_byte(place, steady, oracle, fault):
    undisturbed = oracle(CONFIG)
    script = Tampered(fault=fault, kind=(First, None))
    identical(attempt(place, steady.address, CONFIG, script), undisturbed)
    assert script.struck


@dataclass
class Other(Script):
    """First weights of another backbone than the plan says, digested as what they are."""

    def up(self, message, frames):
        if isinstance(message, First) and not message.offset:
            _, (payload,) = from_frames(frames, sender="device", limits=Limits())
            return [client.to_frames(message, [bytes(len(payload))])]
        return super().up(message, frames)


def test_other_first_weights_than_the_plan_announces_are_refused(place, steady):
    error = refused(attempt(place, steady.address, CONFIG, Other()))
    assert isinstance(error, ServerRefused)
    assert "The first weights are not those whose digest the plan gives" in error.problem
