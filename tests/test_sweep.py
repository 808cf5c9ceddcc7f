"""One method under a grid of settings: what the words mean, where the runs lie, what the table and the map say."""

from __future__ import annotations

import csv
import io
import re

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

from mobillm_kit import cli
from mobillm_kit.cli import parse
from mobillm_kit.commands.run import Sweep
from mobillm_kit.errors import BadInput, KitError
from mobillm_kit.runs.folders import load_spec
from mobillm_kit.runs.run import run
from mobillm_kit.show import chart
from mobillm_kit.sweeps.grid import Axis, Result, axes, cells, sweep, text_of
from mobillm_kit.sweeps.table import accuracy_map, markdown, table
from mobillm_kit.sweeps.words import spelled
from tests.builders import save_texts, save_tiny_model, tiny_spec
from tests.records import a_record

FIELDS = Sweep.__struct_fields__
GRID = ["lr=1e-3,1e-2", "rank=2,4"]


# ---------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("sweep mezo --lr 1e-6,1e-5 --eps 1e-3,1e-2", "sweep mezo --grid lr=1e-6,1e-5 --grid eps=1e-3,1e-2"),
        ("sweep lora --rank=4,8 --seeds 0,1", "sweep lora --grid rank=4,8 --seeds 0,1"),
        ("sweep lora --batch-size 4,8 --weight-decay 0.1", "sweep lora --grid batch_size=4,8 --grid weight_decay=0.1"),
        ("sweep mezo --lr 1e-4 --no-read-back --eps 1", "sweep mezo --lr 1e-4 --no-read-back --grid eps=1"),
        ("sweep mobillm --codec int8,int4 --steps 9", "sweep mobillm --grid codec=int8,int4 --steps 9"),
        ("sweep --help", "sweep --help"),
        ("compare --seeds 0,1 --eps 1,2", "compare --seeds 0,1 --eps 1,2"),
    ],
)
def test_a_setting_with_its_values_is_an_axis(typed, meant):
    assert spelled(typed.split(), FIELDS) == meant.split()


def test_a_prompt_with_a_comma_stays_a_prompt():
    words = ["sweep", "lora", "--prompt", "{text}, it was", "--label-words", " bad| good"]
    assert spelled(words, FIELDS) == words


def test_axes_have_numbers_where_numbers_are_written():
    found = axes("mezo", ["lr=1e-6,1e-5", "schedule=constant,linear"])
    assert found == [Axis("lr", (1e-6, 1e-5)), Axis("schedule", ("constant", "linear"))]
    assert [text_of(value) for value in (1e-6, 0.001, 8, True, "int8")] == ["1e-6", "0.001", "8", "True", "int8"]


@pytest.mark.parametrize(
    ("method", "grid", "said"),
    [
        ("mezo", [], "without a setting to vary"),
        ("mezo", ["lr"], "no '=' in it"),
        ("mezo", ["epsilon=1,2"], "'epsilon' is neither a setting of training nor an option of 'mezo'"),
        ("mezo", ["rank=4,8"], "'rank' is neither"),
        ("lora", ["rnak=4,8"], "Did you mean 'rank'"),
        ("mezo", ["lr=1e-3,0.001"], "the value 0.001 twice"),
        ("mezo", ["lr=1e-3,"], "an empty value"),
        ("mezo", ["lr=1,2", "lr=3,4"], "--lr is given twice"),
        ("p-rge", ["lr=1,2", "eps=1,2", "q=1,2"], r"3 settings have several values \(lr, eps, q\)"),
        ("zero-shot", ["lr=1,2"], "is a control"),
        ("mezzo", ["lr=1,2"], "Did you mean 'mezo'"),
    ],
)
def test_what_is_no_grid_is_refused(method, grid, said):
    with pytest.raises(BadInput, match=said):
        axes(method, grid)


def test_a_cell_is_the_run_with_its_values(tmp_path):
    grid = cells(
        [tiny_spec(tmp_path, "lora", seed=seed) for seed in (0, 1)], axes("lora", ["lr=1e-3,1e-2", "rank=2,4"])
    )
    assert [cell.name for cell in grid] == [f"lr={lr},rank={rank}" for lr in ("0.001", "0.01") for rank in (2, 4)]
    assert [(spec.lr, spec.options["rank"], spec.seed) for spec in grid[3].specs] == [(0.01, 4, 0), (0.01, 4, 1)]


def test_a_value_that_a_setting_cannot_have_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"--batch_size: expected `int` >= 1"):
        cells([tiny_spec(tmp_path, "probe")], axes("probe", ["batch_size=0,4"]))
    with pytest.raises(BadInput, match="--lr: expected"):
        cells([tiny_spec(tmp_path, "probe")], axes("probe", ["lr=high,low"]))


# ---------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    place = tmp_path_factory.mktemp("swept")
    grid = cells([tiny_spec(place, "full")], axes("full", ["lr=1e30,1e-3"]))
    return place / "run", grid, sweep(place / "run", grid)


def test_every_cell_has_a_record_or_says_that_it_diverged(swept):
    folder, grid, results = swept
    assert [(result.cell, result.seed) for result in results] == [(cell, 0) for cell in grid]
    assert [result.record is not None for result in results] == [False, True]
    assert (folder / "lr=0.001/seed0/record.json").exists()
    assert "lower the learning rate" in (folder / "lr=1e+30/seed0/diverged.txt").read_text().lower()


def test_the_table_holds_dev_and_never_test(swept):
    folder, _, results = swept
    lines = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text())))
    outcomes = [(line["lr"], line["seed"], line["outcome"]) for line in lines]
    assert outcomes == [("1e+30", "0", "diverged"), ("0.001", "0", "done")]
    assert lines[0]["dev_accuracy"] == ""
    assert float(lines[1]["dev_accuracy"]) == results[1].record.curve[-1].dev_accuracy
    assert not any("test" in name for name in lines[0])
    assert (folder / "map.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "map.svg").read_text()


def test_the_same_sweep_again_starts_nothing(swept):
    folder, grid, results = swept
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    heard = []
    assert sweep(folder, grid, listener=lambda job, said: heard.append(job)) == results
    assert heard == []
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}


def test_what_diverged_is_tried_again_with_other_settings(swept):
    folder, grid, _ = swept
    place = folder / grid[0].name / "seed0"
    other = cells([tiny_spec(folder.parent, "full", steps=2)], axes("full", ["lr=1e30"]))
    heard = []
    sweep(folder, other, listener=lambda job, said: heard.append(job.label))
    assert {*heard} == {"Full fine-tuning, lr=1e+30, seed 0"}
    assert (place / "diverged.txt").exists()
    assert load_spec(place).steps == 2


def test_what_is_refused_for_another_reason_ends_the_sweep(tmp_path):
    def refusing(todo, at_a_time):
        raise KitError(f"{todo[0].label}: no.")

    grid = cells([tiny_spec(tmp_path, "lora")], axes("lora", ["rank=2"]))
    with pytest.raises(KitError, match="LoRA, rank=2, seed 0: no"):
        sweep(tmp_path / "run", grid, runner=refusing)


def test_a_cell_ends_in_the_weights_of_the_same_run_alone(swept, tmp_path):
    folder, grid, _ = swept
    run(grid[1].specs[0], folder=tmp_path)
    places = (folder / "lr=0.001/seed0", tmp_path)
    ours, alone = (load_file(place / "checkpoint.safetensors") for place in places)
    assert all(torch.equal(ours[name], alone[name]) for name in ours | alone)


def test_the_command_line_sweeps_what_it_is_told(tmp_path, capsys):
    save_tiny_model(tmp_path / "model")
    save_texts(tmp_path / "texts.csv")
    words = [
        *("sweep", "probe", "--weight-decay", "0.1", "--backbone", str(tmp_path / "model"), "--task", "custom"),
        *("--data", str(tmp_path / "texts.csv"), "--text", "text", "--label", "label", "--prompt", "{text} it was"),
        *("--label-words", " bad| good", "--steps", "2", "--batch-size", "4", "--runs", str(tmp_path), "--name", "run"),
    ]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert re.search(r"\| 0.1 \| \d+\.\d \|", said)
    assert (tmp_path / "run/weight_decay=0.1/seed0/record.json").exists()


def test_a_sweep_of_nothing_is_one_sentence(capsys):
    assert cli.main(["sweep", "mezo"]) == 2
    assert "without a setting to vary" in capsys.readouterr().err
    assert cli.main(["sweep", "mezo", "--on", "moon", "--lr", "1,2"]) == 2
    assert "--on moon: no such place" in " ".join(capsys.readouterr().err.split())


def test_a_sweep_has_a_folder_of_its_own():
    command = parse(["sweep", "mezo", "--lr", "1e-6,1e-5", "--eps", "1e-3,1e-2"])
    assert command.folder("-mezo-lr-eps").name == "pocket-mezo-lr-eps"


# ---------------------------------------------------------------------- map


REACHED = {
    "lr=0.001,rank=2": (0.5, 0.6),
    "lr=0.001,rank=4": (0.7, 0.9),
    "lr=0.01,rank=2": (0.75, None),
    "lr=0.01,rank=4": (None, None),
}


def made(place, grid=GRID, reached=REACHED) -> list[Result]:
    """Results of LoRA with these dev accuracies, by cell and seed; None has diverged."""
    end = a_record("lora").curve[-1]
    results = []
    for cell in cells([tiny_spec(place, "lora")], axes("lora", grid)):
        for seed, accuracy in enumerate(reached[cell.name]):
            curve = () if accuracy is None else (replace(end, dev_accuracy=accuracy),)
            results.append(Result(cell, seed, a_record("lora", seed, curve=curve) if curve else None))
    return results


def test_the_map_shows_every_mean_and_every_seed(tmp_path):
    drawn = accuracy_map(made(tmp_path))
    (axes_,) = drawn.axes
    cells_ = {(text.get_position(), text.get_text()) for text in axes_.texts if "%" not in text.get_text()}
    assert ((0, 0), "55.0\n50.0 · 60.0") in cells_
    assert ((0, 1), "80.0\n70.0 · 90.0") in cells_
    assert ((1, 0), "75.0\n75.0 · diverged") in cells_
    assert ((1, 1), "diverged\ndiverged · diverged") in cells_
    assert (axes_.get_xlabel(), axes_.get_ylabel()) == ("learning rate η", "rank r")
    assert [label.get_text() for label in axes_.get_xticklabels()] == ["0.001", "0.01"]
    assert "highest 80.0 at lr 0.001, rank 4" in drawn.alt


def test_one_setting_is_a_row_and_what_is_fixed_stands_below_the_title(tmp_path):
    reached = {"alpha=32,lr=0.001": (0.5,), "alpha=32,lr=0.01": (0.6,)}
    drawn = accuracy_map(made(tmp_path, ["alpha=32", "lr=1e-3,1e-2"], reached))
    (axes_,) = drawn.axes
    assert axes_.get_xlabel() == "learning rate η"
    assert any("one seed; alpha 32" in text.get_text() for text in axes_.texts)
    assert axes_.images[0].get_array().shape == (1, 2)


def test_a_map_of_runs_that_all_diverged_is_drawn(tmp_path):
    drawn = accuracy_map(made(tmp_path, ["lr=1e-3,1e-2"], {"lr=0.001": (None,), "lr=0.01": (None,)}))
    assert drawn.axes[0].images[0].get_array().mask.all()


def test_the_same_results_draw_the_same_bytes(tmp_path):
    assert accuracy_map(made(tmp_path)).svg() == accuracy_map(made(tmp_path)).svg()


def test_light_cells_have_dark_letters_and_dark_ones_light(tmp_path):
    (axes_,) = accuracy_map(made(tmp_path)).axes
    ink = {text.get_text().split("\n")[0]: text.get_color() for text in axes_.texts}
    assert (ink["55.0"], ink["80.0"], ink["diverged"]) == (chart.ON_DARK, chart.ON_LIGHT, chart.ON_LIGHT)


def test_words_and_table_say_the_same(tmp_path):
    results = made(tmp_path)
    assert "| 0.001 | 4 | 80.0 | 70.0 | 90.0 |" in markdown(results)
    assert "| 0.01 | 4 | diverged | diverged | diverged |" in markdown(results)
    lines = table(results).splitlines()
    assert lines[0] == "lr,rank,seed,dev_accuracy,dev_loss,steps,outcome"
    assert lines[1].startswith("0.001,2,0,0.5,")
    assert lines[-1] == "0.01,4,1,,,,diverged"
