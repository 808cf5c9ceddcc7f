"""A sweep as a table and a map: dev accuracy of every cell, its mean and each seed's.

Test accuracy is in neither: who chooses a setting by it has no test left.

Knows: results of a sweep, the look of a chart.  Knows nothing of: how they were made.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from mobillm_kit.files import write_bytes
from mobillm_kit.methods import LABELS
from mobillm_kit.record import Scalar
from mobillm_kit.show import chart
from mobillm_kit.show.chart import Chart, styled
from mobillm_kit.show.plots_learning import coloured_cells
from mobillm_kit.sweeps.grid import Axis, Result, text_of

NAMES: Mapping[str, str] = {
    "lr": "learning rate η",
    "eps": "ε, scale of the perturbation",
    "steps": "training steps",
    "batch_size": "texts in a batch",
    "warmup": "share of steps in which the learning rate rises",
    "eval_every": "steps between two looks at dev",
    "patience": "looks without a lower dev loss",
    "max_length": "longest text, tokens",
    "limit_train": "training texts",
    "rank": "rank r",
    "alpha": "alpha, scale of the low-rank update",
    "q": "q, directions a step",
    "reduction": "width divided by",
    "layers": "layers of the backbone that are read",
    "group": "values with one scale",
    "weights": "format of the backbone's weights",
    "codec": "format of the activations sent",
}
"""What stands at an axis; the setting's own name where it has none here."""


def write(folder: Path, results: Sequence[Result]) -> None:
    """Write ``table.csv``, ``map.png`` and ``map.svg``; the same results give the same bytes."""
    write_bytes(folder / "table.csv", table(results).encode())
    drawn = accuracy_map(results)
    write_bytes(folder / "map.png", drawn.png())
    write_bytes(folder / "map.svg", drawn.svg().encode())


def table(results: Sequence[Result]) -> str:
    """A line per cell and seed as comma-separated values; accuracy 0..1 and loss in nats, empty where it diverged."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow([*results[0].cell.values, "seed", "dev_accuracy", "dev_loss", "steps", "outcome"])
    for result in results:
        record = result.record
        found = ("", "", "", "diverged")
        if record is not None:
            end = record.curve[-1]
            found = (str(end.dev_accuracy), str(end.dev_loss), str(record.steps), record.stopped or record.status)
        lines.writerow([*map(text_of, result.cell.values.values()), result.seed, *found])
    return out.getvalue()


def markdown(results: Sequence[Result]) -> str:
    """A line per cell: its values, the mean dev accuracy in percent, and each seed's."""
    groups = _by_cell(results)
    seeds = [f"seed {result.seed}" for result in next(iter(groups.values()))]
    heads = [*results[0].cell.values, "Dev accuracy, %", *(seeds if len(seeds) > 1 else [])]
    lines = [heads, ["--:"] * len(heads)]
    for values, group in groups.items():
        each = [_percent([result]) for result in group]
        lines.append([*map(text_of, values), _percent(group), *(each if len(seeds) > 1 else [])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


@styled
def accuracy_map(results: Sequence[Result]) -> Chart:
    """Dev accuracy, %, over the one or two settings that vary: colour and number the mean, below it each seed's.

    A mean is taken of seeds that came to their end; where none did, the cell has no colour.
    """
    across, down, grid = _plane(results)
    means = [[_mean(group) for group in row] for row in grid]
    known = [mean for row in means for mean in row if not math.isnan(mean)]
    best = max((group for row in grid for group in row), key=lambda group: (not math.isnan(_mean(group)), _mean(group)))
    title = f"Dev accuracy of {LABELS[results[0].cell.specs[0].method]}, %"
    width, height = max(7.2, 1.6 + 1.25 * len(across.values)), 1.9 + 0.6 * len(grid)
    figure, axes = chart.canvas(width, height, title, _subtitle(results), _alt(best), left=0.14)
    low, high = (min(known), max(known)) if known else (0.0, 100.0)
    texts = [[_words(group) for group in row] for row in grid]
    xs, ys = ([text_of(value) for value in axis.values] for axis in (across, down))
    coloured_cells(axes, means, texts, xs, ys, cmap="cividis", vmin=low, vmax=max(high, low + 1))
    axes.set(xlabel=NAMES.get(across.name, across.name), ylabel=NAMES.get(down.name, down.name))
    return figure


def _plane(results: Sequence[Result]) -> tuple[Axis, Axis, list[list[list[Result]]]]:
    """The axes across and down, and the results of each cell, row by row; one value down where one setting varies."""
    first = results[0].cell.values
    along = [Axis(name, tuple(dict.fromkeys(result.cell.values[name] for result in results))) for name in first]
    along.sort(key=lambda axis: len(axis.values) == 1)  # those that vary come first, in their order
    across, down = along[0], along[1] if len(along) > 1 else Axis("", ("",))

    def _at(x: Scalar, y: Scalar) -> list[Result]:
        wanted = {across.name: x, down.name: y}
        return [r for r in results if all(wanted.get(name, value) == value for name, value in r.cell.values.items())]

    return across, down, [[_at(x, y) for x in across.values] for y in down.values]


def _by_cell(results: Sequence[Result]) -> dict[tuple[Scalar, ...], list[Result]]:
    groups: dict[tuple[Scalar, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(result.cell.values.values()), []).append(result)
    return groups


def _mean(group: Sequence[Result]) -> float:
    """Percent, over the seeds that came to their end; not a number where none did."""
    known = [result.dev_accuracy for result in group if result.dev_accuracy is not None]
    return 100 * fmean(known) if known else math.nan


def _percent(group: Sequence[Result]) -> str:
    mean = _mean(group)
    return "diverged" if math.isnan(mean) else f"{mean:.1f}"


def _words(group: Sequence[Result]) -> str:
    each = [_percent([result]) for result in group]
    return f"{_percent(group)}\n{' · '.join(each)}" if len(each) > 1 else each[0]


def _subtitle(results: Sequence[Result]) -> str:
    record = next((result.record for result in results if result.record), None)
    seeds = len({result.seed for result in results})
    many = f"mean of {seeds} seeds, below it each of them" if seeds > 1 else "one seed"
    fixed = {name: {result.cell.values[name] for result in results} for name in results[0].cell.values}
    same = "".join(f"; {name} {text_of(one)}" for name, (one, *more) in fixed.items() if not more)
    of = f"{Path(record.backbone.name).name} on {record.task.name}, {record.task.dev} dev texts; " if record else ""
    return f"{of}{many}{same}"


def _alt(best: Sequence[Result]) -> str:
    values = best[0].cell.values
    at = ", ".join(f"{name} {text_of(value)}" for name, value in values.items())
    return f"Map of dev accuracy by {' and '.join(values)}: highest {_percent(best)} at {at}."
