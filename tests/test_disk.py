"""What a server keeps on disk stays within its total and its days, and nothing in training is touched."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

import pytest

from mobillm_kit.channel.messages import WireError
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.cli import main
from mobillm_kit.errors import KitError
from mobillm_kit.runs.progress import Progress
from mobillm_kit.runs.run import run
from mobillm_kit.server.disk import DAY_S, Disk
from mobillm_kit.server.process import serve
from mobillm_kit.side.adapter import SideAdapter
from tests.builders import tiny_spec

KIB = 1024


def session(name: str) -> str:
    """A session's name: 32 hexadecimal digits."""
    return name.encode().hex().zfill(32)


def kept(root: Path, name: str, n_bytes: int, days: float, owner: str = "plain") -> Path:
    """A session that was trained last so many days ago."""
    folder = root / "sessions" / owner / session(name)
    (folder / "cache").mkdir(parents=True)
    (folder / "checkpoint-00000004.safetensors").write_bytes(bytes(n_bytes // 2))
    (folder / "cache/3.parcel").write_bytes(bytes(n_bytes - n_bytes // 2))
    moment = time.time() - days * DAY_S
    os.utime(folder, (moment, moment))
    return folder


def disk(root: Path, total_bytes: int = 2**40, days: float = 30) -> Disk:
    return Disk(root, total_bytes=total_bytes, keep_s=days * DAY_S)


def test_what_is_too_old_goes_and_the_rest_stays(tmp_path):
    old, young = kept(tmp_path, "a", KIB, 31), kept(tmp_path, "b", KIB, 29, owner="another")
    assert disk(tmp_path).make_room() == (1, KIB)
    assert (old.exists(), young.exists()) == (False, True)


def test_beyond_the_total_the_longest_unused_goes_first(tmp_path):
    folders = [kept(tmp_path, str(day), KIB, day) for day in (3, 1, 2)]
    assert disk(tmp_path, 3 * KIB).make_room() == (0, 3 * KIB)
    assert disk(tmp_path, 3 * KIB - 1).make_room() == (1, 2 * KIB)
    assert [folder.exists() for folder in folders] == [False, True, True]


def test_a_session_makes_room_for_what_it_may_come_to_need(tmp_path):
    old = kept(tmp_path, "old", 4 * KIB, 1)
    ours = disk(tmp_path, 10 * KIB)
    with ours.session("plain", session("one"), 6 * KIB):
        assert old.exists()
        with ours.session("plain", session("two"), 4 * KIB):
            assert not old.exists()
            with (
                pytest.raises(WireError, match=r"may come to need 0 MiB of the server's disk"),
                ours.session("plain", session("three"), 1),
            ):
                pass
    with ours.session(
        "plain", session("three"), 10 * KIB
    ):  # those that ended count with what they hold, which is nothing
        pass


def test_one_that_is_in_training_stays_whatever_its_age(tmp_path):
    held = kept(tmp_path, "held", KIB, 40)
    with disk(tmp_path).session("plain", session("held"), KIB):
        os.utime(held, (0, 0))
        assert disk(tmp_path, total_bytes=0, days=0).make_room() == (0, KIB)
    assert held.exists()
    assert time.time() - held.stat().st_mtime < 60  # it was used until now
    assert disk(tmp_path, total_bytes=0).make_room() == (1, 0)


def test_a_session_is_trained_once_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("mobillm_kit.server.disk.TIMINGS", TIMINGS.__class__(end_s=0.1))
    with (
        disk(tmp_path).session("plain", session("one"), KIB),
        pytest.raises(WireError, match="has not ended yet") as refused,
        disk(tmp_path).session("plain", session("one"), KIB),
    ):
        pass
    assert refused.value.code == "server-trouble"
    assert str(tmp_path) not in refused.value.problem


def test_a_file_that_is_no_session_is_left_alone(tmp_path):
    (tmp_path / "sessions/plain").mkdir(parents=True)
    stray = tmp_path / "sessions/notes.txt"
    stray.write_text("mine")
    beside = tmp_path / "sessions/plain" / session("README")
    beside.write_text("mine")
    folder = tmp_path / "sessions/plain/photos"
    folder.mkdir()
    for path in (stray, beside, folder):
        os.utime(path, (0, 0))
    assert disk(tmp_path, total_bytes=0, days=0).make_room() == (0, 0)
    assert (stray.read_text(), beside.read_text(), folder.is_dir()) == ("mine", "mine", True)


def test_prune_beside_a_server_that_trains_changes_no_bytes(tmp_path, capsys):
    """A server and a device that train; everything that is not in training goes, and the run does not notice."""
    done = run(tiny_spec(tmp_path, options={"rank": 4}), folder=tmp_path / "here")
    old = kept(tmp_path / "server", "old", KIB, 3)
    pruned: list[int] = []

    def prune(progress: Progress) -> None:
        if progress.step >= 3 and not pruned:
            pruned.append(progress.step)
            assert main(["server", "--folder", str(tmp_path / "server"), "--prune", "--keep-days", "0"]) == 0

    with serve(tmp_path / "server") as server:
        options = {"server": server.address, "rank": 4}
        again = run(tiny_spec(tmp_path, options=options), folder=tmp_path / "there", callbacks=[prune])
        assert not old.exists()
        assert "Removed 1 sessions" in capsys.readouterr().out
        (held,) = (tmp_path / "server/sessions/plain").iterdir()
        if sys.platform != "win32":
            modes = {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (held, *held.rglob("*"))}
            assert modes == {0}
    assert again.curve[-1].dev_loss == done.curve[-1].dev_loss
    sides = [SideAdapter.from_pretrained(tmp_path / name / "side").state_dict() for name in ("here", "there")]
    assert all((sides[0][name] == sides[1][name]).all() for name in sides[0])
    assert main(["server", "--folder", str(tmp_path / "server"), "--prune", "--keep-days", "0"]) == 0
    assert "Removed 1 sessions" in capsys.readouterr().out
    assert list((tmp_path / "server/sessions/plain").iterdir()) == []


def no_step(progress: Progress) -> None:
    assert progress.what or progress.step < 8, "it trains"


def test_a_server_without_disk_for_a_session_says_so_at_hello(tmp_path):
    with serve(tmp_path / "server", options=("--disk", "1")) as server:
        options = {"server": server.address, "rank": 4, "cache": True}
        with pytest.raises(KitError, match=r"come to need \d+ MiB of the server's disk; it gives them 1 MiB"):
            run(tiny_spec(tmp_path, steps=200000, eval_every=4, options=options), callbacks=[no_step])
