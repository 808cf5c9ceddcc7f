"""A task's texts: from the hub, a folder, the package, or a table of one's own.

Knows: tables, tasks, splits.  Knows nothing of: tokens, tensors, models.
Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mobillm_kit.errors import BadInput
from mobillm_kit.files import data_folder
from mobillm_kit.texts.sources import Row, Table, find_splits, hub_tables, read_table
from mobillm_kit.texts.splits import Splits, check_limit, hold_out, in_three, limited, maximal_texts
from mobillm_kit.texts.tasks import REVIEWS, Example, Task, get_task


@dataclass(frozen=True)
class TaskData:
    """A task with its texts."""

    task: Task
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    """For choices: hyperparameters, early stopping, the best checkpoint."""
    test: tuple[Example, ...]
    """Read once, at the end."""
    notes: tuple[str, ...]
    """What was left out or re-split on the way, in sentences."""


def load_task(
    name: str,
    *,
    data: str | Path | None = None,
    limit: Mapping[str, int] | None = None,
    seed: int = 0,
    sentences_only: bool = True,
) -> TaskData:
    """A task with its texts; ``texts/splits.py`` says what is left out of train and counted in ``notes``.

    Args:
        data: a folder in GLUE's layout (``train.tsv``, ``dev.tsv``, optional ``test.tsv``; CSV and JSONL work
            too); None for the packaged texts (``reviews``) or the Hugging Face hub (all others).
        limit: most examples per split, for example ``{"train": 1000, "dev": 500, "test": 1000}`` (MeZO's);
            a seeded choice, so that a smaller limit picks a part of what a larger one picks.
        sentences_only: SST-2's train file holds 67 349 phrases of about 6 900 sentences. True keeps the texts
            that are no part of a longer one, as dev and test are sentences too.
    """
    task = get_task(name)
    check_limit(limit or {})
    splits, notes = _labelled_splits(task, _tables_of(task, data))
    if name == "sst2" and sentences_only:
        phrases = splits["train"]
        whole = maximal_texts([example.text for example in phrases])
        splits["train"] = tuple(example for example in phrases if example.text in whole)
        kept = f"{len(splits['train'])} of {len(phrases)} texts kept"
        notes.append(
            f"train: {kept}, those that are no part of a longer one (SST-2's sentences without their phrases)."
        )
    return _finished(task, splits, notes, limit, seed)


def custom_task(
    file: str | Path,
    *,
    text: str,
    label: str,
    prompt: str | None = None,
    label_words: Sequence[str] | None = None,
    pair: str | None = None,
    name: str = "custom",
    limit: Mapping[str, int] | None = None,
    seed: int = 0,
) -> TaskData:
    """A task out of any table with one or two text columns and a label column.

    Args:
        file: a CSV, TSV or JSONL file, split 80/10/10 by ``seed``; or a folder with train, dev and test
            files, split as :func:`load_task` does it.
        label: the column whose different values are the labels, sorted (numbers by size).
        prompt: decoder template; None for the text, then "Label:" on a line of its own.
        label_words: one per label, in the sorted order; None for the labels' names.
        pair: the second text column, if there is one.
        limit: as in :func:`load_task`.
    """
    check_limit(limit or {})
    path = Path(file)
    files = find_splits(path) if path.is_dir() else {"train": path}
    tables = {split: read_table(found) for split, found in files.items()}
    task = _custom(tables["train"], text, pair, label, prompt, label_words, name, path.name)
    if len(tables) > 1:
        splits, notes = _labelled_splits(task, tables)
    else:
        splits, notes = _one_file(task, tables["train"], seed)
    return _finished(task, splits, notes, limit, seed)


def handwritten() -> tuple[Example, ...]:
    """The packaged sentences written by hand, never by the grammar: the honest test of ``reviews``."""
    return _examples(get_task(REVIEWS), read_table(data_folder(REVIEWS) / "handwritten.tsv"))


def _custom(
    table: Table,
    text: str,
    pair: str | None,
    label: str,
    prompt: str | None,
    label_words: Sequence[str] | None,
    name: str,
    source: str,
) -> Task:
    columns = [text, label] if pair is None else [text, pair, label]
    _check_columns(table, columns, f"The task '{name}' was told to read {_listed(columns)}.")
    labels = _labels_in(table, label)
    prompt = prompt or ("{text}\nLabel:" if pair is None else "{text}\n{pair}\nLabel:")
    gap = "" if prompt[-1].isspace() else " "
    return Task(
        name=name,
        description=f"Own texts from {source}",
        text_column=text,
        pair_column=pair,
        label_column=label,
        labels=labels,
        prompt=prompt,
        label_words=tuple(gap + word for word in labels) if label_words is None else tuple(label_words),
        metric="accuracy",
        source=source,
    )


def _tables_of(task: Task, data: str | Path | None) -> dict[str, Table]:
    if data is None and task.hub:
        repository, config, revision = (*task.hub, "", "")[:3]
        return hub_tables(repository, config or None, revision=revision or None)
    folder = data_folder(task.name) if data is None else Path(data)
    if folder.is_file():
        raise BadInput(
            f"{folder} is a file; the task '{task.name}' reads a folder that holds train.tsv and dev.tsv.",
            "Give the folder, or read a single file of your own with custom_task.",
        )
    return {split: read_table(path, headerless=task.headerless) for split, path in find_splits(folder).items()}


def _labelled_splits(task: Task, tables: Mapping[str, Table]) -> tuple[Splits, list[str]]:
    """Examples by split; a test without labels is noted and left out."""
    splits: Splits = {}
    notes: list[str] = []
    for split, table in tables.items():
        table = _with_meant_columns(task, table)
        if split == "test" and all(row.cells.get(task.label_column, "-1").strip() == "-1" for row in table.rows):
            notes.append(f"test: {table.where} carries no labels and cannot serve as test.")
        else:
            splits[split] = _examples(task, table)
    return splits, notes


def _one_file(task: Task, table: Table, seed: int) -> tuple[Splits, list[str]]:
    examples = _examples(task, table)
    if len(examples) < 3:
        raise BadInput(
            f"{table.where} has {len(examples)} rows, too few for train, dev and test.", "Give at least three."
        )
    splits = in_three(examples, seed)
    sizes = ", ".join(f"{split} {len(part)}" for split, part in splits.items())
    return splits, [f"One file, split 80/10/10 with seed {seed}: {sizes}."]


def _finished(task: Task, splits: Splits, notes: list[str], limit: Mapping[str, int] | None, seed: int) -> TaskData:
    held_out, decided = hold_out(splits, seed, task.name)
    kept, cut = limited(held_out, limit or {}, seed)
    return TaskData(task, kept["train"], kept["dev"], kept["test"], (*notes, *decided, *cut))


def _with_meant_columns(task: Task, table: Table) -> Table:
    renamed = {column: task.other_columns.get(column, column) for column in table.columns}
    if len(set(renamed.values())) < len(renamed) or set(renamed) == set(renamed.values()):
        return table
    rows = tuple(Row(row.line, {renamed[key]: cell for key, cell in row.cells.items()}) for row in table.rows)
    return replace(table, columns=tuple(renamed.values()), rows=rows)


def _examples(task: Task, table: Table) -> tuple[Example, ...]:
    texts = task.text_columns
    wanted = [*texts, task.label_column]
    _check_columns(table, wanted, f"The task '{task.name}' reads {_listed(wanted)}.")
    ids = {name: index for index, name in enumerate(task.labels)}
    examples = []
    for row in table.rows:
        parts = [row.cells[column].strip() for column in texts]
        where = f"{table.where}, line {row.line}"
        if not all(parts):
            raise BadInput(
                f"{where}: the text in column '{texts[parts.index('')]}' is empty.",
                "Give the row a text, or leave the row out.",
            )
        label = _label_id(ids, row.cells[task.label_column].strip(), where)
        examples.append(Example(parts[0], parts[1] if len(parts) == 2 else None, label))
    return tuple(examples)


def _label_id(ids: Mapping[str, int], written: str, where: str) -> int:
    if written in ids:
        return ids[written]
    # Where names are numbers themselves (stars, say), a number that is no name must not pass as an id.
    named = not any(re.fullmatch(r"-?[0-9]+", name) for name in ids)
    if named and re.fullmatch(r"[0-9]{1,9}", written) and int(written) < len(ids):
        return int(written)
    allowed = ", ".join(f"{index} or {name}" if named else name for name, index in ids.items())
    raise BadInput(f"{where}: the label '{written}' does not belong to the task.", f"Allowed: {allowed}.")


def _check_columns(table: Table, wanted: Sequence[str], why: str) -> None:
    missing = [column for column in wanted if column not in table.columns]
    if missing:
        raise BadInput(
            f"{table.where} has no column '{missing[0]}'; its columns are {_listed(table.columns)}.",
            f"{why} The first line must name them.",
        )


def _labels_in(table: Table, column: str) -> tuple[str, ...]:
    for row in table.rows:
        if not row.cells[column].strip():
            where = f"{table.where}, line {row.line}"
            raise BadInput(f"{where}: the label in column '{column}' is empty.", "Give the row a label.")
    names = {row.cells[column].strip() for row in table.rows}
    if len(names) < 2:
        raise BadInput(
            f"{table.where}: the column '{column}' holds one label only ({', '.join(names)}).",
            "A classification task needs at least two.",
        )
    if all(re.fullmatch(r"-?[0-9]{1,9}", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
