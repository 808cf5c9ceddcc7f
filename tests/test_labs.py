"""The modules beside the labs: points by hand, prices, naive designs that fail, others that pass, an ear on a line."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests import tcp_peers

ROOT = Path(__file__).resolve().parents[1]
GOOD = {"method": "mobillm-full-width", "blocks": "nf4", "batch": 8, "layers": 4, "codec": "int4", "tokens": "one"}


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "labs" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, found)  # dataclasses look their own module up
    spec.loader.exec_module(found)
    return found


scoring, phone, wiretap = map(module, ("scoring", "phone", "wiretap"))
Goal = scoring.Goal


def test_a_goal_that_is_met_gives_all_points_and_a_missed_one_half_at_most():
    assert Goal("m", 600, 600, "MiB", 20).earned == 20
    assert Goal("m", 601, 600, "MiB", 20).earned == 9
    assert Goal("m", 1200, 600, "MiB", 20).earned == 5
    assert Goal("a", 70, 70, "%", 15, at_least=True).earned == 15
    assert Goal("a", 35, 70, "%", 15, at_least=True).earned == 3
    assert Goal("a", None, 70, "%", 15, at_least=True).earned == 0


def test_a_goal_says_by_how_much_it_is_missed():
    assert Goal("m", 632, 600, "MiB", 20).verdict == "missed by 32 MiB"
    assert Goal("a", 57.5, 70, "%", 15, at_least=True).verdict == "missed by 12.5 percentage points"


def test_a_rough_figure_that_is_met_is_not_shown_and_one_that_is_missed_is():
    assert "81" not in str(scoring.accuracy_goal("a", 81.3, 70, 15))
    assert "61.3 of 70 %" in str(scoring.accuracy_goal("a", 61.3, 70, 15))


def test_the_total_adds_tasks_and_goals_and_names_the_tasks_that_are_missing():
    card = scoring.Card("mine", [Goal("m", 1, 2, "s", 70)])
    assert "SCORE 100 of 100" in scoring.total(card, {1, 2, 3}, 3)
    said = scoring.total(card, {2}, 3)
    assert "SCORE 80 of 100" in said
    assert "not passed: 1, 3" in said


def test_what_a_text_sends_by_hand():
    assert phone.text_bytes(GOOD) == 4 * 1 * 2048 * 4.5 / 8
    assert phone.text_bytes({**GOOD, "method": "probe"}) == 0
    assert phone.sent_bytes({**GOOD, "cache": True}) == 1000 * phone.text_bytes(GOOD) == phone.sent_bytes(GOOD) / 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"method": "ladder"}, "method"),
        ({"codec": "int5"}, "codec"),
        ({"layers": 5}, "layers"),
        ({"batch": 0}, "batch"),
        ({"tokens": "two"}, "tokens"),
        ({"method": "full"}, "streamed"),
        ({"method": "lora-checkpointing"}, "floating point"),
    ],
)
def test_a_design_that_cannot_be_is_told_so(change, named):
    assert named in phone.problem({**GOOD, **change})
    with pytest.raises(ValueError, match=re.escape(named)):
        phone.memory_bytes({**GOOD, **change})


def priced(design: dict) -> tuple[bool, bool, bool]:
    memory, seconds, sent = phone.memory_bytes(design), phone.epoch_seconds(design)[1], phone.sent_bytes(design)
    return memory <= 600 * 2**20, seconds <= 1200, sent <= 100e6


def test_several_designs_pass_what_is_priced_and_naive_ones_do_not():
    for change in ({}, {"codec": "int8"}, {"layers": 2}, {"tokens": 8, "cache": True}):
        assert priced({**GOOD, **change}) == (True, True, True)
    assert priced({**GOOD, "blocks": "bfloat16", "codec": "fp32", "tokens": "all"}) == (False, False, False)
    assert priced({**GOOD, "blocks": "bfloat16", "batch": 1}) == (True, False, True)
    assert not priced({**GOOD, "method": "full", "blocks": "whole"})[0]


def test_messages_are_read_from_a_stream_and_what_was_cut_off_is_left_out():
    stream = (
        bytes(64) + b"\x04\x05READY" + b"\x01\x02ab" + b"\x02" + (300).to_bytes(8, "big") + b"c" * 300 + b"\x00\x09cut"
    )
    assert list(wiretap.messages(stream)) == [[b"ab", b"c" * 300]]


def through_a_tap(address: tuple[str, int]) -> tuple[bytes, bytes]:
    """What came back, and what the tap heard."""
    with wiretap.Tap("tcp://{}:{}".format(*address)) as tap:
        host, port = tap.address.removeprefix("tcp://").split(":")
        with tcp_peers.connect((host, int(port))) as device, contextlib.suppress(ConnectionResetError):
            device.sendall(b"hello")
            device.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: device.recv(100), b"")), bytes(tap.records[0])
    return b"", b""


def test_a_tap_passes_bytes_on_both_ways_and_keeps_the_devices():
    with tcp_peers.source(b"heard you") as server:
        assert through_a_tap(server.address) == (b"heard you", b"hello")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed under /proc on Linux alone")
@pytest.mark.parametrize("answers", [True, False])
def test_a_tap_leaves_nothing_open_whether_or_not_there_is_a_server(answers):
    before = tcp_peers.open_descriptors()
    with tcp_peers.echo() as server:
        if answers:
            assert through_a_tap(server.address) == (b"hello", b"hello")
    if not answers:
        assert through_a_tap(server.address) == (b"", b"")
    tcp_peers.wait_until(lambda: tcp_peers.open_descriptors() <= before)


def test_labs_import_the_package_as_kit_and_only_modules_that_stand_beside_them():
    beside = {path.stem for path in (ROOT / "labs").glob("*.py")}
    used = set()
    for path in (ROOT / "labs").glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        lines = re.findall(
            r"^import .*|^.*mobillm_kit.*", "\n".join("".join(cell["source"]) for cell in cells), re.MULTILINE
        )
        used |= {line.removeprefix("import ") for line in lines} & beside
        assert {line for line in lines if "mobillm_kit" in line} <= {
            "import mobillm_kit as kit",
            "import sys, msgspec, torch, mobillm_kit as kit",
        }
    assert used == beside
