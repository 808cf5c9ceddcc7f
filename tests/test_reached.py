"""How a server is reached is no part of what is trained, and none of a run's files says it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from mobillm_kit.channel.join import JoinString
from mobillm_kit.cli import main
from mobillm_kit.commands.run import server_address
from mobillm_kit.errors import BadInput
from mobillm_kit.record import load_record
from mobillm_kit.runs.compare import compare
from mobillm_kit.runs.folders import lay_out, load_spec
from mobillm_kit.runs.provenance import clean_command
from mobillm_kit.runs.worker import train
from mobillm_kit.server.process import serve
from tests.builders import tiny_spec

CODE = "2345-6789-ABCD"
JOIN = f"mobillm://10.0.0.7:5555?key={'0' * 40}&code={CODE}"


@pytest.fixture
def guarded(tmp_path):
    """A server with keys, in a process of its own."""
    with serve(tmp_path / "server", keys=tmp_path / "server-keys") as server:
        yield server


def asked(place: Path, name: str, join: str) -> list[str]:
    """The words of a device that has texts and a backbone of its own."""
    spec = tiny_spec(place)
    own = ["--backbone", spec.backbone, "--task", "custom", "--data", spec.data, "--text", "text", "--label", "label"]
    shape = [
        "--prompt",
        spec.prompt,
        "--label-words",
        " bad| good",
        "--side",
        "full-width",
        "--codec",
        "fp16",
        "--option",
        "rank=4",
    ]
    steps = ["--steps", "8", "--batch-size", "4", "--eval-every", "4"]
    keys = ["--keys", str(place / f"keys-{name}"), "--out", str(place / name)]
    return ["device", "--join", join, *own, *shape, *steps, *keys]


def names_nothing_of(folder: Path, *words: str) -> bool:
    return not any(word.encode() in file.read_bytes() for file in folder.rglob("*") if file.is_file() for word in words)


def test_a_fresh_join_string_goes_on_in_the_same_folder(tmp_path, guarded, monkeypatch, capsys):
    used = guarded.join
    monkeypatch.setattr(sys, "argv", ["mobillm", *asked(tmp_path, "a", used)])
    assert main(asked(tmp_path, "a", used)) == 0
    assert main(asked(tmp_path, "b", used)) == 2
    assert "fresh one-time code" in capsys.readouterr().err
    guarded.restart(same_port=False)
    assert JoinString.parse(guarded.join).address != JoinString.parse(used).address
    fresh = tmp_path / "join.txt"
    fresh.write_text(guarded.join + "\n")
    assert main(asked(tmp_path, "b", str(fresh))) == 0
    first, second = load_record(tmp_path / "a/record.json"), load_record(tmp_path / "b/record.json")
    assert first.scores == second.scores
    assert first.settings == second.settings
    assert first.settings["option.server"] == "elsewhere"
    for join in (used, guarded.join):
        parts = JoinString.parse(join)
        for folder in (tmp_path / "a", tmp_path / "b"):
            assert names_nothing_of(folder, parts.code, parts.server_key, parts.address.removeprefix("tcp://"))


def test_a_worker_hears_where_the_server_is_and_no_file_keeps_it(tmp_path, guarded):
    options = {"server": guarded.join, "keys": str(tmp_path / "device-keys"), "cache": True, "codec": "fp16", "rank": 4}
    spec = tiny_spec(tmp_path, options=options)
    (record,) = compare(tmp_path / "runs", [spec], measure=False)
    assert record.status == "done"
    assert names_nothing_of(tmp_path / "runs", JoinString.parse(guarded.join).code, "device-keys")
    assert load_spec(tmp_path / "runs/mobillm-full-width/seed0").options["server"] == "elsewhere"


def test_a_run_from_its_folder_alone_asks_for_its_server(tmp_path, monkeypatch):
    monkeypatch.delenv("MOBILLM_REACH", raising=False)
    lay_out(tmp_path / "run", tiny_spec(tmp_path, options={"server": JOIN}))
    with pytest.raises(BadInput, match="No file keeps where the server was"):
        train(tmp_path / "run")


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ({"server": JOIN}, {"server": "tcp://127.0.0.1:7"}, True),
        ({"server": JOIN, "keys": "a"}, {"server": JOIN, "keys": "b", "patience_s": 9}, True),
        ({"server": JOIN}, {"server": "spawn"}, False),
        ({"server": "spawn"}, {}, False),
        ({"server": JOIN, "codec": "int8"}, {"server": JOIN, "codec": "int4"}, False),
    ],
)
def test_runs_are_compared_by_what_is_trained(tmp_path, before, after, same):
    lay_out(tmp_path, tiny_spec(tmp_path, options=before))
    (tmp_path / "checkpoint.safetensors").touch()
    if same:
        lay_out(tmp_path, tiny_spec(tmp_path, options=after))
        return
    changed = "codec" if "codec" in before else "server"
    with pytest.raises(BadInput, match=rf"other settings \(option {changed}\)"):
        lay_out(tmp_path, tiny_spec(tmp_path, options=after))


def test_a_join_string_comes_from_a_file_or_from_standard_input(tmp_path, monkeypatch):
    file = tmp_path / "join.txt"
    file.write_text(f"{JOIN}\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{JOIN}\nmore".encode())))
    server_address.cache_clear()
    assert server_address(str(file)) == server_address("-") == server_address("-") == server_address(JOIN) == JOIN
    assert [server_address(word) for word in ("spawn", "in-process")] == ["spawn", "in-process"]


@pytest.mark.parametrize("words", [["--join", JOIN], [f"--join={JOIN}"], ["--option", f"server={JOIN}"]])
def test_a_records_command_names_no_server(words):
    command = clean_command(["mobillm", "device", *words, "--out", "x"])
    assert "SERVER" in command
    assert not {CODE, "10.0.0.7", "0" * 40} & {part for part in (CODE, "10.0.0.7", "0" * 40) if part in command}
