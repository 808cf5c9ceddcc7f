"""The command line teaches, refuses in one sentence, and does what its words say."""

from __future__ import annotations

import inspect
import os
import re
import signal
import subprocess
import sys
import time
from io import BytesIO, TextIOWrapper

import pytest

from mobillm_kit.cli import COMMANDS, main, parse
from mobillm_kit.commands import tools
from mobillm_kit.commands.run import method_options
from mobillm_kit.errors import BadInput
from mobillm_kit.methods import METHODS
from mobillm_kit.runs.spec import RunSpec, Settings
from mobillm_kit.texts.tasks import TASKS
from tests.builders import save_texts, save_tiny_model

WIDE = {"COLUMNS": "240", "TERM": "dumb"}


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


def helped(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--help"])
    assert not end.value.code
    return capsys.readouterr().out


def test_help_names_every_command_and_explains_each(capsys):
    overview = helped(capsys)
    for command in COMMANDS:
        name = command.__name__.lower()
        assert name in overview
        assert command.__doc__.split()[0] in helped(capsys, name)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_option_has_a_sentence(capsys, command):
    """tyro finds it below the field; one that lacks it would read ``--lr FLOAT (default: …)``."""
    text = " ".join(helped(capsys, command.__name__.lower()).replace("│", " ").split())
    for name in command.__struct_fields__:
        assert f"{name}: " in inspect.getsource(next(k for k in command.__mro__ if name in k.__annotations__))
    assert not re.search(r"--[\w-]+ (?:STR|INT|FLOAT|PATH|A\|B) \(", text)
    assert not re.search(r"--no-[\w-]+ \(", text)


def test_a_run_is_described_once(capsys):
    """Every field of a specification is an option of each command that runs something, under its own name."""
    for name in ("compare", "train", "device"):
        text = helped(capsys, name)
        assert all(f"--{field.replace('_', '-')}" in text for field in Settings.__struct_fields__)


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["--version"]])
def test_help_answers_without_loading_torch(arguments):
    code = (
        "import sys; from mobillm_kit.cli import main\n"
        f"try: main({arguments})\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'zmq' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert said.splitlines()[-1] == "False False"


def test_a_shell_is_told_how_to_complete(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--tyro-print-completion", "bash"])
    assert not end.value.code
    script = capsys.readouterr().out
    assert "mobillm" in script
    assert "--label-words" in script


def test_methods_and_tasks_are_listed(capsys):
    methods, tasks = ((main([what]), capsys.readouterr().out)[1] for what in ("methods", "tasks"))
    assert all(name in methods for name in METHODS)
    assert all(name in tasks for name in TASKS)


def test_doctor_prints_a_line_for_each_check_and_two_sockets_talk():
    lines = [line for line in mobillm("doctor").stdout.splitlines() if line.startswith("[")]
    assert len(lines) >= 8
    assert all(line.startswith(("[ok]", "[fail]")) for line in lines)
    assert any("socket" in line and line.startswith("[ok]") for line in lines)


def test_train_evaluate_predict(place, monkeypatch, capsys):
    """Training in a process of its own; what comes after it needs none to find the folder."""
    out = str(place / "lora")
    trained = mobillm("train", "lora", "--out", out, "--steps", "30", "--lr", "0.03", *own_task(place))
    assert trained.returncode == 0, trained.stderr
    assert trained.stderr == ""
    score = next(line for line in trained.stdout.splitlines() if line.startswith("test accuracy"))

    def said(*arguments: str) -> str:
        assert main([*arguments]) == 0
        return capsys.readouterr().out

    assert score in said("evaluate", out)
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"the good film\nthe bad film\n")))
    labelled = said("predict", out).splitlines()
    assert [line.split("\t")[0] for line in labelled] == ["yes", "no"]
    assert said("predict", out, "the good film").splitlines() == labelled[:1]


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
        (["train", "lora", "--out", "x", "--stpes", "3"], "Did you mean --steps?"),
        (["train", "lora", "--out", "x", "--steps", "few"], "--steps"),
        (["train", "lora", "--out", "x", "--pooling", "last"], "--pooling"),
        (["train", "lora"], "--out"),
        (["server", "--credit", "0"], "--credit"),
        (["training"], "Unrecognized"),
        (["train", "lora", "--seed", str(2**70), "--out", "x"], "Give a whole number from 0 to"),
        (
            ["train", "lora", "--option", "ranks=8", "--steps", "1", "--out", "x"],
            "The method 'lora' has no option 'ranks'. Did you mean 'rank'? See `mobillm methods lora`.",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.strip().splitlines()) == 1


def test_a_methods_options_are_listed_with_their_usual_values(capsys):
    assert main(["methods", "mobillm-ladder"]) == 0
    shown = capsys.readouterr().out
    for option, usual in (("side", "ladder"), ("reduction", "4"), ("codec", "none"), ("link", "")):
        assert re.search(rf"{option} +│ {usual}", shown), option
    assert main(["methods", "lorra"]) == 2
    assert "Did you mean 'lora'?" in capsys.readouterr().err


def test_options_reach_the_method_they_are_meant_for():
    given = ["rank=2", "lora.alpha=4", "mobillm-ladder.tokens=all", "flag=true"]
    assert method_options(given, "lora") == {"rank": 2, "alpha": 4, "flag": True}
    assert method_options(given, "mobillm-ladder") == {"rank": 2, "tokens": "all", "flag": True}


def test_words_become_a_specification():
    given = ["--label-words", " bad| good", "--lr", "0.1", "--limit-test", "7", "--stream", "--option", "rank=2"]
    train = parse(["train", "lora", "--out", "x", "--option", "alpha=4", *given])
    spec = train.spec(train.method, train.seed)
    assert (spec.label_words, spec.lr, spec.limit_test, spec.stream) == ((" bad", " good"), 0.1, 7, True)
    assert spec.options == {"rank": 2, "alpha": 4}
    given = {"label_words": (" bad", " good"), "lr": 0.1, "limit_test": 7, "stream": True}
    assert spec == RunSpec(method="lora", options=spec.options, **given)


@pytest.mark.parametrize("field", ["steps", "batch-size", "limit-train", "eval-every", "patience", "threads"])
def test_a_count_below_one_is_refused_by_name(field):
    with pytest.raises(BadInput, match=f"^--{field}: expected `int` >= 1"):
        parse(["train", "lora", "--out", "x", f"--{field}", "0"])


def test_a_comparison_gives_each_seed_to_each_method_and_one_to_a_control():
    methods = "majority,probe, mobillm-ladder"
    specs = parse(["compare", "--methods", methods, "--seeds", "0,1", "--server", "in-process"]).specs("decoder")
    seeds = [("majority", 0), ("probe", 0), ("probe", 1), ("mobillm-ladder", 0), ("mobillm-ladder", 1)]
    assert [(spec.method, spec.seed) for spec in specs] == seeds
    assert specs[-1].options == {"codec": "int8"}


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_comparison_has_a_server_process_for_every_side_network_unless_it_is_told_otherwise(kind):
    """On encoders a ladder begins as the backbone's own blocks; that too is trained across a server."""
    methods = ["mobillm-full-width", "mobillm-ladder"]
    specs = parse(["compare", "--methods", ",".join(methods)]).specs(kind)
    assert [(spec.method, spec.options["server"]) for spec in specs] == [(method, "spawn") for method in methods]


def test_ctrl_c_ends_with_the_status_of_shells(capsys, monkeypatch):
    monkeypatch.setattr(
        "mobillm_kit.commands.tools.Methods.__call__", lambda self: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert main(["methods"]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err


def test_the_app_without_voila_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(tools, "find_spec", lambda name: None)
    assert main(["app"]) == 2
    assert "pip install 'mobillm-kit[app]'" in capsys.readouterr().err


WITHOUT_PYTORCH = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers", "peft", "huggingface_hub"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Missing())
from mobillm_kit.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["methods"], 0),
        (["device", "--help"], 0),
        (["memory"], 2),
        (["train", "lora", "--out", "out"], 2),
        (["predict", "nowhere", "a text"], 2),
        (["server"], 2),
        (["export", "pocket", "out"], 2),
    ],
)
def test_an_environment_without_pytorch_says_which_extra_a_command_needs(words, status, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYTORCH, *words], capture_output=True, text=True, timeout=100, cwd=tmp_path
    )
    assert done.returncode == status, done.stderr
    wanted = (
        "error This command needs torch, which is not installed. Install the extra: pip install 'mobillm-kit[torch]'."
    )
    assert done.stderr.strip() == (wanted if status else "")


def test_mobillm_alone_means_its_usual_side_network(capsys):
    assert RunSpec(method="mobillm").method == "mobillm-full-width"
    assert method_options(["mobillm.rank=4", "lora.rank=2"], "mobillm-full-width") == {"rank": 4}
    for words in (
        ["methods", "mobillm"],
        ["memory", "--model", "pocket", "--method", "mobillm", "--length", "64", "--device-ram", "2GiB"],
    ):
        assert main(words) == 0
        assert "MobiLLM, full width" in capsys.readouterr().out
