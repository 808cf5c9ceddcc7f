"""The command line teaches, refuses in one sentence, and does what its words say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from mobillm_kit.cli import app
from mobillm_kit.methods import METHODS
from mobillm_kit.tasks import TASKS
from tests.builders import save_texts, save_tiny_model

COMMANDS = ["doctor", "compare", "train", "evaluate", "predict", "tasks", "methods"]
WIDE = {"COLUMNS": "240", "TERM": "dumb"}


def shown(*arguments: str) -> str:
    result = CliRunner(env=WIDE).invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def mobillm(*arguments: str, timeout: float = 120, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mobillm_kit.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **WIDE},
        **options,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    save_tiny_model(folder / "model")
    save_texts(folder / "texts.csv")
    return folder


def own_task(place) -> list[str]:
    return [
        *("--backbone", str(place / "model"), "--task", "custom", "--data", str(place / "texts.csv")),
        *("--text", "text", "--label", "label", "--prompt", "{text} it was", "--label-words", " bad| good"),
        *("--batch-size", "4", "--eval-every", "4"),
    ]


def test_help_names_every_command_and_explains_each():
    overview = shown("--help")
    for command in COMMANDS:
        assert command in overview
        assert len(shown(command, "--help")) > 300


def test_help_answers_without_loading_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from mobillm_kit.cli import app\n"
        "CliRunner().invoke(app, ['compare', '--help']); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_methods_and_tasks_are_listed():
    methods, tasks = shown("methods"), shown("tasks")
    assert all(name in methods for name in METHODS)
    assert all(name in tasks for name in TASKS)


def test_doctor_prints_a_line_for_each_check_and_two_sockets_talk():
    output = CliRunner(env=WIDE).invoke(app, ["doctor"]).output
    lines = [line for line in output.splitlines() if line.startswith("[")]
    assert len(lines) >= 8
    assert all(line.startswith(("[ok]", "[fail]")) for line in lines)
    assert any("socket" in line and line.startswith("[ok]") for line in lines)


def test_train_evaluate_predict(place):
    out = str(place / "lora")
    trained = mobillm("train", "lora", "--out", out, "--steps", "30", "--lr", "0.03", *own_task(place))
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr == ""
    score = next(line for line in trained.stdout.splitlines() if line.startswith("test accuracy"))
    assert score in mobillm("evaluate", out).stdout
    labelled = mobillm("predict", out, input="the good film\nthe bad film\n").stdout.splitlines()
    assert [line.split("\t")[0] for line in labelled] == ["yes", "no"]
    assert mobillm("predict", out, "the good film").stdout.splitlines() == labelled[:1]


def test_ctrl_c_keeps_the_run_and_the_same_command_goes_on(place):
    arguments = ["train", "probe", "--out", str(place / "probe"), *own_task(place)]
    command = [sys.executable, "-m", "mobillm_kit.cli", *arguments]
    started = subprocess.Popen(
        [*command, "--steps", "100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (place / "probe/checkpoint.safetensors").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    _, complaint = started.communicate(timeout=30)
    assert started.returncode == 130
    assert "the same command goes on from there" in complaint
    assert '"interrupted"' in (place / "probe/record.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "lorra", "--out", "x"], "Did you mean 'lora'?"),
        (["train", "lora", "--out", "x", "--task", "sst3"], "sst2"),
        (["train", "lora", "--out", "x", "--backbone", "./nowhere"], "no such folder"),
        (["train", "lora", "--out", "x", "--option", "rank"], "no '=' in it"),
        (["compare", "--seeds", "one"], "not whole numbers"),
        (["compare", "--methods", "full,lorra"], "Did you mean 'lora'?"),
        (["predict", "nowhere", "text"], "holds no run"),
        (["evaluate", "nowhere"], "holds no run"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path, arguments, sentence):
    done = mobillm(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_options_reach_the_method_they_are_meant_for():
    from mobillm_kit.cli import _options

    given = ["rank=2", "lora.alpha=4", "mobillm-ladder.tokens=all", "flag=true"]
    assert _options(given, "lora") == {"rank": 2, "alpha": 4, "flag": True}
    assert _options(given, "mobillm-ladder") == {"rank": 2, "tokens": "all", "flag": True}
