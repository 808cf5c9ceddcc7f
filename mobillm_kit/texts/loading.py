"""A task's texts: from the hub, a folder, the package, or a table of one's own.

Knows: tables, tasks, splits.  Knows nothing of: tokens, tensors, models.
Taught in: notebooks/00_start_here.ipynb
"""

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mobillm_kit.errors import BadInput
from mobillm_kit.files import data_folder
from mobillm_kit.texts import splits
from mobillm_kit.texts.sources import Row, Table, find_splits, hub_tables, read_table
from mobillm_kit.texts.splits import SPLITS, Seen, Splits
from mobillm_kit.texts.tasks import PACKAGED, Example, Task, get_task

MOST_LABELS = 50
"""A column of more different labels is taken for scores or names, unless the labels are given."""


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

    @property
    def label_counts(self) -> str:
        """The labels, with how many texts each has in train, dev and test together."""
        counts = Counter(example.label for example in (*self.train, *self.dev, *self.test))
        return ", ".join(f"{name} {counts[index]}" for index, name in enumerate(self.task.labels))


def load_task(
    name: str,
    *,
    data: str | Path | None = None,
    limit: Mapping[str, int] | None = None,
    seed: int = 0,
    seen: Seen = list,
) -> TaskData:
    """A task with its texts; ``texts/splits.py`` says what is left out of train and counted in ``notes``.

    Args:
        data: a folder in GLUE's layout (``train.tsv``, ``dev.tsv``, optional ``test.tsv``; CSV and JSONL work too);
            None for the texts of a packaged task or the Hugging Face hub (all others).
        limit: most examples per split; a seeded choice, a smaller limit picks a part of what a larger one picks.
        seen: what of the texts is compared, where equal ones are looked for; the tokenizer's ids, in a run.
    """
    task = get_task(name)
    splits.check_limit(limit or {})
    parts, notes = _labelled_splits(task, _tables_of(task, data))
    if name == "sst2":  # 67 349 phrases of about 6 900 sentences; dev and test are sentences
        phrases = parts["train"]
        whole = splits.maximal_texts([example.text for example in phrases])
        parts["train"] = tuple(example for example in phrases if example.text in whole)
        kept = f"{len(parts['train'])} of {len(phrases)} texts kept, those that are no part of a longer one"
        notes.append(f"train: {kept} (SST-2's sentences without their phrases).")
    return _finished(task, parts, notes, limit, seed, seen)


def custom_task(
    file: str | Path,
    *,
    text: str,
    label: str,
    labels: Sequence[str] | None = None,
    prompt: str | None = None,
    label_words: Sequence[str] | None = None,
    pair: str | None = None,
    limit: Mapping[str, int] | None = None,
    seed: int = 0,
    seen: Seen = list,
) -> TaskData:
    """A task out of any table with one or two text columns and a label column.

    Args:
        file: a CSV, TSV, JSONL or JSON file, split 80/10/10 within each label by ``seed``; or a folder with train,
            dev and test files, split as :func:`load_task` does it.
        text, pair, label: the columns of the texts, one or two, and of the labels.
        labels: the labels, in the order of their ids; None for the column's different values, sorted (numbers by
            size), unless they look like scores or names.
        prompt: decoder template; None for the text, then "Label:" on a line of its own.
        label_words: one per label, in the labels' order; None for the labels' names, " no" and " yes" for 0 and 1.
        limit, seen: as in :func:`load_task`.
    """
    splits.check_limit(limit or {})
    path = Path(file)
    files = find_splits(path) if path.is_dir() else {"train": path}
    tables = {split: read_table(found, spreadsheet=True) for split, found in files.items()}
    train = tables["train"]
    task = _custom(train, (text, pair, label), labels, prompt, label_words, path.name)
    parts, notes = _labelled_splits(task, tables) if len(tables) > 1 else _one_file(task, train, seed, seen)
    notes = [*_nearly_equal(task.labels), *notes]
    return _finished(task, parts, notes, limit, seed, seen)


def handwritten(name: str = "reviews") -> tuple[Example, ...]:
    """A packaged task's sentences written by hand, never by the grammar: its honest test; of another task, none."""
    return _examples(get_task(name), read_table(data_folder(name) / "handwritten.tsv"))[0] if name in PACKAGED else ()


def _custom(
    train: Table,
    columns: tuple[str, str | None, str],
    labels: Sequence[str] | None,
    prompt: str | None,
    label_words: Sequence[str] | None,
    source: str,
) -> Task:
    """The task of a table; ``columns`` are those of the text, of its pair and of the label."""
    text, pair, label = columns
    texts = [text] if pair is None else [text, pair]
    rows, _ = _used(train, texts, label, f"The task 'custom' was told to read {_listed([*texts, label])}.")
    names = tuple(labels or _labels_in(train.where, label, Counter(row.cells[label] for row in rows)))
    prompt = prompt or ("{text}\nLabel:" if pair is None else "{text}\n{pair}\nLabel:")
    gap = "" if prompt[-1].isspace() else " "
    return Task(
        name="custom",
        description=f"Own texts from {source}",
        text_column=text,
        pair_column=pair,
        label_column=label,
        labels=names,
        prompt=prompt,
        label_words=tuple(gap + word for word in _usual_words(names)) if label_words is None else tuple(label_words),
        metric="accuracy",
        source=source,
    )


def _tables_of(task: Task, data: str | Path | None) -> dict[str, Table]:
    if data is None and task.hub:
        repository, config, revision = (*task.hub, "", "")[:3]
        return hub_tables(repository, config or None, revision=revision or None)
    folder = data_folder(task.name) if data is None else Path(data)
    if folder.is_file():
        problem = f"{folder} is a file; the task '{task.name}' reads a folder that holds train.tsv and dev.tsv."
        raise BadInput(problem, "Give the folder, or read a single file of your own with custom_task.")
    return {split: read_table(path, headerless=task.headerless) for split, path in find_splits(folder).items()}


def _labelled_splits(task: Task, tables: Mapping[str, Table]) -> tuple[Splits, list[str]]:
    """Examples by split; a test without labels is noted and left out."""
    parts: Splits = {}
    notes: list[str] = []
    for split, table in tables.items():
        table = _with_meant_columns(task, table)
        if split == "test" and all(str(row.cells.get(task.label_column, -1)).strip() == "-1" for row in table.rows):
            notes.append(f"test: {Path(table.where).name} carries no labels and cannot serve as test.")
        else:
            parts[split], left_out = _examples(task, table)
            notes += left_out
    return parts, notes


def _one_file(task: Task, table: Table, seed: int, seen: Seen) -> tuple[Splits, list[str]]:
    examples, notes = _examples(task, table)
    keys = splits.alike(examples, seen)
    clean, contradictions = splits.without_contradictions(examples, keys)
    parts = splits.in_three(clean, keys, seed)
    if not parts["test"]:
        problem = f"{table.where} has {len(clean)} rows, too few for train, dev and test."
        raise BadInput(" ".join([problem, *notes, *contradictions]), "Give at least three different texts of a label.")
    sizes = ", ".join(f"{split} {len(part)}" for split, part in parts.items())
    cut = f"One file, split 80/10/10 within each label with seed {seed}: {sizes}."
    return parts, [*notes, *contradictions, cut]


def _finished(
    task: Task, parts: Splits, notes: list[str], limit: Mapping[str, int] | None, seed: int, seen: Seen
) -> TaskData:
    held_out, decided = splits.hold_out(parts, seed, task.name, seen)
    kept, cut = splits.limited(held_out, limit or {}, seed)
    for split in SPLITS:
        there = {example.label for example in kept[split]}
        missing = [name for index, name in enumerate(task.labels) if index not in there]
        cut += [f"{split}: no text of {_listed(missing)}."] if missing else []
    return TaskData(task, kept["train"], kept["dev"], kept["test"], (*notes, *decided, *cut))


def _with_meant_columns(task: Task, table: Table) -> Table:
    renamed = {column: task.other_columns.get(column, column) for column in table.columns}
    if len(set(renamed.values())) < len(renamed) or set(renamed) == set(renamed.values()):
        return table
    rows = tuple(Row(row.line, {renamed[key]: cell for key, cell in row.cells.items()}) for row in table.rows)
    return replace(table, columns=tuple(renamed.values()), rows=rows)


def _used(table: Table, texts: Sequence[str], label: str, why: str) -> tuple[list[Row], list[str]]:
    """The rows with the cells that a task reads, as text; those without a text are left out, counted in a sentence."""
    for column in (*texts, label):
        if column not in table.columns:
            problem = f"{table.where} has no column '{column}'; its columns are {_listed(table.columns)}."
            raise BadInput(problem, f"{why} The first line must name them.")
        if table.columns.count(column) > 1:
            problem = f"{table.where}: the header names the column '{column}' twice."
            raise BadInput(problem, "Give each column that is used its own name.")
    rows, empty = [], []
    for row in table.rows:
        cells = {column: table.text(row, column) for column in (*texts, label)}
        if not cells[label]:
            problem = f"{table.where}, line {row.line}: the label in column '{label}' is empty."
            raise BadInput(problem, "Give the row one, or leave it out.")
        if all(cells.values()):
            rows.append(Row(row.line, cells))
        else:
            empty.append(row.line)
    if not rows:
        raise BadInput(f"{table.where}, line {empty[0]}: the text is empty, as in all rows.", why)
    said = f"{len(empty)} of {len(table.rows)} rows left out because a text of theirs is empty"
    return rows, [f"{Path(table.where).name}: {said} (the first one in line {empty[0]})."] if empty else []


def _examples(task: Task, table: Table) -> tuple[tuple[Example, ...], list[str]]:
    """The examples of a table, and a sentence on what was left out."""
    why = f"The task '{task.name}' reads {_listed([*task.text_columns, task.label_column])}."
    rows, left_out = _used(table, task.text_columns, task.label_column, why)
    ids = {name: index for index, name in enumerate(task.labels)}
    examples = []
    for row in rows:
        text, pair = (*(row.cells[column] for column in task.text_columns), None)[:2]
        label = _label_id(ids, row.cells[task.label_column], f"{table.where}, line {row.line}")
        examples.append(Example(text, pair, label))
    return tuple(examples), left_out


def _label_id(ids: Mapping[str, int], written: str, where: str) -> int:
    if written in ids:
        return ids[written]
    # Where names are numbers themselves (stars, say), a number that is no name must not pass as an id.
    named = not any(re.fullmatch(r"-?[0-9]+", name) for name in ids)
    if named and re.fullmatch(r"[0-9]{1,9}", written) and int(written) < len(ids):
        return int(written)
    allowed = ", ".join(f"{index} or {name}" if named else name for name, index in ids.items())
    raise BadInput(f"{where}: the label '{written}' does not belong to the task.", f"Allowed: {allowed}.")


def _labels_in(where: str, column: str, counts: Mapping[str, int]) -> list[str]:
    """The labels of a column, from how many texts each of its values has."""
    name_them = "Is it the right column? If so, name its labels with --labels 'a|b' (mobillm device: --label-names)."
    if len(counts) < 2:
        problem = f"{where}: the column '{column}' holds one label only ({', '.join(counts)})."
        raise BadInput(problem, "A classification task needs at least two.")
    names = sorted(counts)
    if len(names) > MOST_LABELS or statistics.median(counts.values()) <= 1:
        problem = f"{where}: the column '{column}' holds {len(names)} labels for {sum(counts.values())} texts"
        raise BadInput(f"{problem} ({_listed(names[:4])} …), as scores or names would.", name_them)
    if all(re.fullmatch(r"-?[0-9]{1,9}", name) for name in names):
        names.sort(key=lambda name: (int(name), name))
    return names


def _nearly_equal(names: Sequence[str]) -> list[str]:
    """A sentence for each label that differs from an earlier one in case, blanks or a number's form alone."""
    known: dict[str, str] = {}
    said = []
    for name in names:
        form = f"{float(name)}" if re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?", name) else splits.bare(name)
        if form in known:
            said.append(f"labels: '{known[form]}' and '{name}' are two; write them alike if they mean the same.")
        known.setdefault(form, name)
    return said


_USUAL_WORDS = dict.fromkeys(("no", "0", "0.0", "false"), "no") | dict.fromkeys(("yes", "1", "1.0", "true"), "yes")


def _usual_words(names: Sequence[str]) -> Sequence[str]:
    """The labels' names; no and yes for two labels that say that otherwise."""
    words = [_USUAL_WORDS.get(name.casefold(), "") for name in names]
    return words if sorted(words) == ["no", "yes"] else names


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
