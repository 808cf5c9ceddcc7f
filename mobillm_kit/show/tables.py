"""One row per method, from the records of its seeds.

    mean = sum(x) / n        std = sqrt(sum((x - mean)^2) / (n - 1))

The controls (methods that need no training of a language model, or none at all) stand in every table, after the
methods; what they do not need is left empty instead of being called zero.

Units: 1 MB = 10^6 bytes on the network, 1 MiB = 2^20 bytes of memory.

Knows: run records, the names of methods.  Knows nothing of: how they were made, how figures look.
Taught in: notebooks/09_comparison.ipynb
"""

import csv as csv_module
import io
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from mobillm_kit.common import MIB
from mobillm_kit.errors import BadInput
from mobillm_kit.methods import CONTROLS, LABELS
from mobillm_kit.record import CountedMemory, RunRecord

MB = 10**6
EMPTY = "–"


@dataclass(frozen=True)
class Spread:
    """A quantity over the seeds."""

    mean: float
    std: float | None
    """Sample standard deviation; None for a single seed."""

    def text(self, digits: int = 1, scale: float = 1.0) -> str:
        """``mean ± std``, both times ``scale``."""
        mean = f"{scale * self.mean:,.{digits}f}"
        return mean if self.std is None else f"{mean} ± {scale * self.std:.{digits}f}"


@dataclass(frozen=True)
class Row:
    """One method over its seeds. What a method does not need, or was not measured, is None."""

    method: str
    label: str
    control: bool
    seeds: int
    """Runs that were finished; only they count below."""
    interrupted: int
    """Runs that were not."""
    trainable_parameters: int | None
    test_accuracy: Spread | None
    metric: str
    test_metric: Spread | None
    """The task's own metric where that is not accuracy."""
    handwritten_accuracy: Spread | None
    steps: float | None
    forwards: float | None
    """Samples that passed through the backbone in training."""
    sent_mb: float | None
    read_back: Spread | None
    device_mib: Mapping[str, float]
    """The ledger's categories and their ``total``; empty where nothing is counted."""
    server_mib: Mapping[str, float]
    device_measured_mib: Spread | None
    """Measured peak on top of the loaded model."""
    server_measured_mib: Spread | None
    seconds: Spread | None


def rows(records: Iterable[RunRecord]) -> list[Row]:
    """One row per method, ordered as :func:`grouped`; BadInput without records, or of several tasks or backbones."""
    return [_row(name, label, runs) for name, label, runs in grouped(records)]


def grouped(records: Iterable[RunRecord]) -> list[tuple[str, str, list[RunRecord]]]:
    """Records by method, in the order of tables and figures, the controls last: name, label, runs by seed."""
    records = list(records)
    _check_comparable(records)
    present = dict.fromkeys(record.method for record in records)
    known, unknown = [name for name in LABELS if name in present], [name for name in present if name not in LABELS]
    trained, controls = ([name for name in known if (name in CONTROLS) is control] for control in (False, True))
    by_seed = sorted(records, key=lambda record: record.seed)
    order = [*trained, *unknown, *controls]
    runs = {name: [record for record in by_seed if record.method == name] for name in order}
    return [(name, _label(name, of_name), of_name) for name, of_name in runs.items()]


def _label(name: str, runs: Sequence[RunRecord]) -> str:
    """What a method is called; a side network that begins as the backbone's own blocks says so."""
    copies = [run.settings.get("option.reduction") for run in runs if run.settings.get("option.start") == "backbone"]
    pruned = "" if set(copies) == {1} else "pruned "
    return f"MobiLLM, {pruned}copy of the top blocks (ladder)" if copies else LABELS.get(name, name)


def finished(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """Those that were not interrupted."""
    return [run for run in runs if run.status == "done"]


def ledger(runs: Sequence[RunRecord], party: str) -> CountedMemory | None:
    """The counted memory of one party: of the seed that needed most, None where there is no such party."""
    counted = [memory for run in runs for memory in run.counted if memory.party == party]
    return max(counted, key=lambda memory: memory.total_bytes, default=None)


def measured_mib(runs: Sequence[RunRecord], party: str) -> list[float]:
    """Measured peak of one party on top of the loaded model, one value per measured run.

    A process that held both parties of a split run says nothing about either.
    """
    alone = {"device": ("device", "both"), "server": ("server",)}[party]
    return [
        memory.training_bytes / MIB
        for run in runs
        for memory in run.measured
        if memory.party in (alone if len(run.counted) < 2 else (party,))
    ]


def markdown(table: Sequence[Row]) -> str:
    """Two Markdown tables: what was reached at what cost, and the memory behind it."""
    return "\n".join([_markdown(table, RESULTS), _markdown(table, MEMORY)])


def csv(table: Sequence[Row]) -> str:
    """The same rows as comma-separated values: full precision, units in the heads, empty where nothing is."""
    flat = [_flat(row) for row in table]
    out = io.StringIO()
    csv_module.writer(out, lineterminator="\n").writerows([*flat[:1], *(row.values() for row in flat)])
    return out.getvalue()


Columns = Mapping[str, Callable[[Row], str | None]]
"""Heads, and what stands below them; None where the row has nothing to say."""


def cells(table: Sequence[Row], columns: Columns) -> tuple[list[str], list[list[str]]]:
    """Heads and cells; a column that is empty in every row is left out."""
    filled = {head: text for head, text in columns.items() if any(text(row) is not None for row in table)}
    return list(filled), [[text(row) or EMPTY for text in filled.values()] for row in table]


def _number(value: float | None, digits: int = 0) -> str | None:
    if value is None:
        return None
    least = 10.0**-digits
    # 0.0 says that there is nothing
    return f"< {least:g}" if 0 < value < least / 2 else f"{value:,.{digits}f}"


def _spread(value: Spread | None, scale: float = 1.0) -> str | None:
    return None if value is None else value.text(scale=scale)


def _ledger(party: str, category: str) -> Callable[[Row], str | None]:
    return lambda row: _number(getattr(row, f"{party}_mib").get(category), 1)


def _name(row: Row) -> str:
    return f"{row.label} ({row.interrupted} interrupted)" if row.interrupted else row.label


RESULTS: Columns = {
    "Method": _name,
    "Test accuracy, %": lambda row: _spread(row.test_accuracy, scale=100),
    "Task's metric, × 100": lambda row: (text := _spread(row.test_metric, scale=100)) and f"{row.metric} {text}",
    "Handwritten, %": lambda row: _spread(row.handwritten_accuracy, scale=100),
    "Seeds": lambda row: str(row.seeds),
    "Trainable parameters": lambda row: _number(row.trainable_parameters),
    "Trained on": lambda row: None if row.control or not row.seeds else "server" if row.server_mib else "device",
    "Samples forwarded": lambda row: _number(row.forwards),
    "Sent, MB": lambda row: _number(row.sent_mb, 1),
    "Tokens read back, %": lambda row: _spread(row.read_back, scale=100),
    "Seconds": lambda row: _spread(row.seconds),
}
"""What was reached, and what it took."""

MEMORY: Columns = {
    "Memory, MiB": _name,
    "Weights": _ledger("device", "weights"),
    "Gradients": _ledger("device", "gradients"),
    "Optimizer": _ledger("device", "optimizer"),
    "Saved activations": _ledger("device", "saved"),
    "Messages": _ledger("device", "messages"),
    "Device, counted": _ledger("device", "total"),
    "Device, measured growth": lambda row: _spread(row.device_measured_mib),
    "Server, counted": _ledger("server", "total"),
    "Server, measured growth": lambda row: _spread(row.server_measured_mib),
}
"""The memory of each party; the five categories are the device's, the growth is that over the loaded model."""


def _row(name: str, label: str, runs: list[RunRecord]) -> Row:
    done = finished(runs)
    control = name in CONTROLS
    metric = runs[0].task.metric

    def _needed(value: Callable[[RunRecord], float]) -> float | None:
        return None if control or not done else statistics.fmean(value(run) for run in done)

    def _scored(score: str) -> Spread | None:
        return _over([run.scores[score] for run in done if score in run.scores])

    return Row(
        method=name,
        label=label,
        control=control,
        seeds=len(done),
        interrupted=len(runs) - len(done),
        trainable_parameters=None if control else runs[0].trainable_parameters,
        test_accuracy=_scored("test_accuracy"),
        metric=metric,
        test_metric=None if metric == "accuracy" else _scored(f"test_{metric}"),
        handwritten_accuracy=_scored("handwritten_accuracy"),
        steps=_needed(lambda run: run.steps),
        forwards=_needed(lambda run: run.forwards),
        sent_mb=_needed(lambda run: run.bytes_sent / MB),
        read_back=_over([run.read_back.share for run in done if run.read_back]),
        device_mib=_mib_of(ledger(done, "device")),
        server_mib=_mib_of(ledger(done, "server")),
        device_measured_mib=_over(measured_mib(done, "device")),
        server_measured_mib=_over(measured_mib(done, "server")),
        seconds=None if control else _over([run.seconds for run in done]),
    )


def _mib_of(memory: CountedMemory | None) -> dict[str, float]:
    if memory is None:
        return {}
    return {name: n_bytes / MIB for name, n_bytes in {**memory.by_category, "total": memory.total_bytes}.items()}


def _over(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std)


def _check_comparable(records: Sequence[RunRecord]) -> None:
    if not records:
        raise BadInput("There are no records to compare.", "Run `mobillm compare` first.")
    for what, found in (
        ("tasks", {record.task.name for record in records}),
        ("backbones", {record.backbone.name for record in records}),
    ):
        if len(found) > 1:
            problem = f"The records are of several {what}: {', '.join(sorted(found))}."
            raise BadInput(problem, "A comparison needs one task and one backbone.")


def _markdown(table: Sequence[Row], columns: Columns) -> str:
    heads, body = cells(table, columns)
    lines = [heads, [":--"] + ["--:"] * (len(heads) - 1), *body]
    escaped = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + "\n"


def _flat(row: Row) -> dict[str, object]:
    flat: dict[str, object] = {}
    for field in fields(row):
        value = getattr(row, field.name)
        if field.type == Spread | None:
            flat[f"{field.name}_mean"] = value and value.mean
            flat[f"{field.name}_std"] = value and value.std
        elif field.name in _COUNTED:
            flat |= {field.name.replace("_", f"_{name}_"): value.get(name) for name in _COUNTED[field.name]}
        else:
            flat[field.name] = value
    return flat


_COUNTED = {"device_mib": ("weights", "gradients", "optimizer", "saved", "messages", "total"), "server_mib": ("total",)}
"""What of the parties' ledgers stands in the comma-separated values."""
