"""Classification tasks: texts with labels, and the prompt that turns them into next-word prediction.

    "a moving film", label 1   ->   "a moving film It was" + " great"              (MeZO, arXiv 2305.17333)

The loss of every decoder method is the cross-entropy over the label words' logits after the prompt; encoders
read the bare text.  Prompts of SST-2 and RTE are MeZO's for OPT.  MeZO gives MRPC, CoLA and TREC a masked-LM
prompt only; theirs and QNLI's here are derived in the same spirit (see each task's ``source``): CoLA keeps
MeZO's words and drops the mask, MRPC and QNLI ask a yes-or-no question as RTE does, TREC puts the category
after the question.

Splits: a labelled test file is the test.  Where there is none (GLUE keeps its test labels), the official dev
set is the held-out test, and a seeded tenth of train, at most 1000 texts, is dev.  Every such decision stands
in ``TaskData.notes``.

Knows: texts, labels, prompts, splits.  Knows nothing of: tokens, tensors, models.
Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mobillm_kit.errors import BadInput, UnknownName
from mobillm_kit.resources import data_folder
from mobillm_kit.sources import Row, Table, find_splits, hub_tables, read_table
from mobillm_kit.splits import bare, chosen, maximal_texts

METRIC_NAMES = ("accuracy", "f1", "matthews")
"""What ``Task.metric`` may be; computed by ``mobillm_kit.metrics``."""

DEV_SHARE = 10
"""Where dev is cut from train, it gets one text in this many."""
DEV_MOST = 1000
"""... and never more than this many texts."""


@dataclass(frozen=True)
class Example:
    """One text, or a pair of texts, with its label."""

    text: str
    pair: str | None
    label: int
    """Label id: index into ``Task.labels``."""


@dataclass(frozen=True)
class Task:
    """What a classification task is, without its texts. Checked when it is made.

    Raises:
        BadInput: a prompt without ``{text}`` (or ``{pair}`` where there are two texts), label words that do
            not match the labels, or an unknown metric.
    """

    name: str
    description: str
    text_column: str
    pair_column: str | None
    label_column: str
    labels: tuple[str, ...]
    """Human names; the index is the label id."""
    prompt: str
    """Decoder template with ``{text}`` (and ``{pair}``); the label word follows directly."""
    label_words: tuple[str, ...]
    """One per label, with a leading space where the prompt ends without white space."""
    metric: str
    """``accuracy``, ``f1`` or ``matthews``: GLUE's metric of the task."""
    source: str
    """Citation, and where the prompt comes from."""

    def __post_init__(self) -> None:
        for slot, needed in (("{text}", True), ("{pair}", self.pair_column is not None)):
            times = self.prompt.count(slot)
            if times != int(needed):
                raise BadInput(
                    f"Task '{self.name}': {slot} stands {times} times in the prompt {self.prompt!r}.",
                    "It must stand there once." if needed else "The task has one text column: leave it out.",
                )
        if len(self.labels) < 2 or len(self.label_words) != len(self.labels):
            raise BadInput(
                f"Task '{self.name}': {len(self.label_words)} label words for {len(self.labels)} labels "
                f"({', '.join(self.labels)}).",
                "Give at least two labels and one word for each, in the order of the labels.",
            )
        if not all(word.strip() for word in self.label_words) or len(set(self.label_words)) < len(self.labels):
            raise BadInput(
                f"Task '{self.name}': the label words {self.label_words} are not all different words.",
                "Give each label its own word.",
            )
        if self.metric not in METRIC_NAMES:
            raise BadInput(
                f"Task '{self.name}': there is no metric '{self.metric}'.",
                f"Known: {', '.join(METRIC_NAMES)}.",
            )

    def fill(self, text: str, pair: str | None = None) -> str:
        """The prompt with ``text`` (and ``pair``) in place; braces inside the texts stay as they are."""
        values = {"{text}": text, "{pair}": pair or ""}
        return re.sub(r"\{text\}|\{pair\}", lambda slot: values[slot[0]], self.prompt)


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


_GLUE = "GLUE (Wang et al., ICLR 2019, arXiv 1804.07461)"
_MEZO = "MeZO (Malladi et al., NeurIPS 2023, arXiv 2305.17333)"

_HUB_TASKS = {
    task.name: task
    for task in (
        Task(
            name="sst2",
            description="Is a sentence of a film review negative or positive?",
            text_column="sentence",
            pair_column=None,
            label_column="label",
            labels=("negative", "positive"),
            prompt="{text} It was",
            label_words=(" terrible", " great"),
            metric="accuracy",
            source=f"Socher et al., EMNLP 2013; {_GLUE}. Prompt: {_MEZO}, for OPT.",
        ),
        Task(
            name="rte",
            description="Does the second sentence follow from the first?",
            text_column="sentence1",
            pair_column="sentence2",
            label_column="label",
            labels=("entailment", "not_entailment"),
            prompt='{text}\nDoes this mean that "{pair}" is true? Yes or No?\n',
            label_words=("Yes", "No"),
            metric="accuracy",
            source=f"Dagan et al. 2005 and later RTE challenges; {_GLUE}. Prompt: {_MEZO}, for OPT.",
        ),
        Task(
            name="mrpc",
            description="Do two sentences of the news say the same?",
            text_column="sentence1",
            pair_column="sentence2",
            label_column="label",
            labels=("not_equivalent", "equivalent"),
            prompt='{text}\nDoes this mean the same as "{pair}"? Yes or No?\n',
            label_words=("No", "Yes"),
            metric="f1",
            source=f"Dolan and Brockett, IWP 2005; {_GLUE}. Prompt: own, after the RTE prompt of {_MEZO}, "
            "with its label words for MRPC (its masked-LM prompt is '{a}[MASK], {b}').",
        ),
        Task(
            name="cola",
            description="Is a sentence grammatical English?",
            text_column="sentence",
            pair_column=None,
            label_column="label",
            labels=("unacceptable", "acceptable"),
            prompt="{text} This is",
            label_words=(" incorrect", " correct"),
            metric="matthews",
            source=f"Warstadt et al., TACL 2019; {_GLUE}. Prompt: the masked-LM prompt "
            f"'{{text}} This is [MASK].' of {_MEZO}, cut before its mask.",
        ),
        Task(
            name="qnli",
            description="Does a sentence of Wikipedia answer the question?",
            text_column="question",
            pair_column="sentence",
            label_column="label",
            labels=("entailment", "not_entailment"),
            prompt='{pair}\nDoes this answer the question "{text}"? Yes or No?\n',
            label_words=("Yes", "No"),
            metric="accuracy",
            source=f"Rajpurkar et al., EMNLP 2016; {_GLUE}. Prompt: own, after the RTE prompt of {_MEZO}.",
        ),
        Task(
            name="trec",
            description="What kind of answer does a question ask for?",
            text_column="text",
            pair_column=None,
            label_column="coarse_label",
            labels=("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"),
            prompt="{text}\nThis asks for:",
            label_words=(" Expression", " Entity", " Description", " Human", " Location", " Number"),
            metric="accuracy",
            source="Li and Roth, COLING 2002. Prompt: own, the masked-LM prompt '[MASK]: {text}' of "
            f"{_MEZO} turned round, with one word per class.",
        ),
    )
}

_HUB_ADDRESS: Mapping[str, tuple[str, str | None, str | None]] = {
    **{name: ("nyu-mll/glue", name, None) for name in _HUB_TASKS if name != "trec"},
    # The main branch holds a loading script, which `datasets` no longer runs.
    "trec": ("CogComp/trec", None, "refs/convert/parquet"),
}

# GLUE's own download names some columns otherwise than the hub does, and its CoLA has no header.
_OTHER_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "mrpc": {"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label"},
    "trec": {"label": "coarse_label", "label-coarse": "coarse_label"},
}
_HEADERLESS: Mapping[str, tuple[str, ...]] = {"cola": ("origin", "label", "mark", "sentence")}

REVIEWS = "reviews"
"""The packaged task."""


class _TaskTable(Mapping[str, Task]):
    """Tasks by name. The packaged one is read from its folder on demand: its prompt belongs to its texts."""

    def __getitem__(self, name: str) -> Task:
        return _reviews_task() if name == REVIEWS else _HUB_TASKS[name]

    def __contains__(self, name: object) -> bool:
        return name == REVIEWS or name in _HUB_TASKS

    def __iter__(self) -> Iterator[str]:
        return iter((*_HUB_TASKS, REVIEWS))

    def __len__(self) -> int:
        return len(_HUB_TASKS) + 1


TASKS: Mapping[str, Task] = _TaskTable()
"""All tasks that are known by name."""


def get_task(name: str) -> Task:
    """The task called ``name``.

    Raises:
        UnknownName: there is none; the message lists the known names and the closest one.
    """
    if name in TASKS:
        return TASKS[name]
    close = difflib.get_close_matches(name.lower(), TASKS, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    raise UnknownName(
        f"There is no task '{name}'.{hint}",
        f"Known: {', '.join(TASKS)}; for a file of your own use custom_task (--data FILE).",
    )


def load_task(
    name: str,
    *,
    data: str | Path | None = None,
    limit: Mapping[str, int] | None = None,
    seed: int = 0,
    sentences_only: bool = True,
) -> TaskData:
    """A task with its texts.

    Args:
        name: one of :data:`TASKS`.
        data: a folder in GLUE's layout (``train.tsv``, ``dev.tsv``, optional ``test.tsv``; CSV and JSONL work
            too); None for the packaged texts (``reviews``) or the Hugging Face hub (all others).
        limit: most examples per split, for example ``{"train": 1000, "dev": 500, "test": 1000}`` (MeZO's);
            a seeded choice, so that a smaller limit picks a part of what a larger one picks.
        seed: for the choices among texts; nothing else depends on it.
        sentences_only: SST-2's train file holds 67 349 phrases of about 6 900 sentences. True keeps the texts
            that are no part of a longer one, as dev and test are sentences too.

    Returns:
        The task's data. Texts of train that also occur in dev or test, or that carry two labels, are left out
        and counted in ``notes``; texts are compared without case, white space and punctuation.

    Raises:
        UnknownName: no such task.
        MissingExtra: the hub is asked and ``datasets`` is not installed.
        BadInput: the data is missing or malformed; the message names file and line.
    """
    task = get_task(name)
    _check_limit(limit)
    tables = _tables_of(task, data)
    splits, notes = _labelled_splits(task, tables)
    if name == "sst2" and sentences_only:
        phrases = splits["train"]
        whole = maximal_texts([example.text for example in phrases])
        splits["train"] = tuple(example for example in phrases if example.text in whole)
        notes.append(
            f"train: {len(splits['train'])} of {len(phrases)} texts kept, those that are no part of a longer "
            "one (SST-2's sentences without their phrases)."
        )
    return _finish(task, splits, notes, limit, seed)


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
        text: name of the text column.
        label: name of the label column; its different values are the labels, sorted (numbers by size).
        prompt: decoder template; None for the text, then "Label:" on a line of its own.
        label_words: one per label, in the sorted order; None for the labels' names.
        pair: name of the second text column, if there is one.
        name: the task's name in records.
        limit: as in :func:`load_task`.
        seed: for the split and the choices.

    Raises:
        BadInput: the file is missing or malformed, a column does not exist, there is only one label, or
            prompt and label words do not fit.
    """
    path = Path(file)
    _check_limit(limit)
    files = find_splits(path) if path.is_dir() else {"train": path}
    tables = {split: read_table(found) for split, found in files.items()}
    columns = [text, label] if pair is None else [text, pair, label]
    _check_columns(tables["train"], columns, f"The task '{name}' was told to read {_listed(columns)}.")
    labels = _labels_in(tables["train"], label)
    prompt = prompt or ("{text}\nLabel:" if pair is None else "{text}\n{pair}\nLabel:")
    gap = "" if prompt[-1].isspace() else " "
    task = Task(
        name=name,
        description=f"Own texts from {path.name}",
        text_column=text,
        pair_column=pair,
        label_column=label,
        labels=labels,
        prompt=prompt,
        label_words=tuple(label_words) if label_words is not None else tuple(gap + word for word in labels),
        metric="accuracy",
        source=path.name,
    )
    if len(tables) > 1:
        splits, notes = _labelled_splits(task, tables)
    else:
        splits, notes = _split_in_three(task, tables["train"], seed)
    return _finish(task, splits, notes, limit, seed)


def handwritten() -> tuple[Example, ...]:
    """The packaged sentences written by hand, never by the grammar: the honest test of ``reviews``."""
    return _examples(get_task(REVIEWS), read_table(data_folder(REVIEWS) / "handwritten.tsv"))


def _reviews_task() -> Task:
    path = data_folder(REVIEWS) / "task.json"
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
        prompt, label_words = str(words["prompt"]), tuple(str(word) for word in words["label_words"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path} cannot be used ({type(error).__name__}: {error}).",
            'It must be an object such as {"prompt": "{text} it was", "label_words": [" bad", " good"]}.',
        ) from error
    return Task(
        name=REVIEWS,
        description="Is a short review or message negative or positive? (packaged, works offline)",
        text_column="text",
        pair_column=None,
        label_column="label",
        labels=("negative", "positive"),
        prompt=prompt,
        label_words=label_words,
        metric="accuracy",
        source="Generated by this project's grammar (recipes/pocket); prompt chosen on dev.",
    )


def _tables_of(task: Task, data: str | Path | None) -> dict[str, Table]:
    if data is None and task.name != REVIEWS:
        repository, config, revision = _HUB_ADDRESS[task.name]
        return hub_tables(repository, config, revision=revision)
    folder = data_folder(REVIEWS) if data is None else Path(data)
    if folder.is_file():
        raise BadInput(
            f"{folder} is a file; the task '{task.name}' reads a folder that holds train.tsv and dev.tsv.",
            "Give the folder, or read a single file of your own with custom_task.",
        )
    headerless = _HEADERLESS.get(task.name, ())
    return {split: read_table(path, headerless=headerless) for split, path in find_splits(folder).items()}


def _labelled_splits(task: Task, tables: Mapping[str, Table]) -> tuple[dict[str, tuple[Example, ...]], list[str]]:
    """Examples by split; a test without labels is noted and left out."""
    splits: dict[str, tuple[Example, ...]] = {}
    notes: list[str] = []
    for split, table in tables.items():
        table = _hub_names(task, table)
        if split == "test" and _is_unlabelled(task, table):
            notes.append(f"test: {table.where} carries no labels and cannot serve as test.")
        else:
            splits[split] = _examples(task, table)
    return splits, notes


def _hub_names(task: Task, table: Table) -> Table:
    names = _OTHER_COLUMNS.get(task.name, {})
    renamed = {column: names.get(column, column) for column in table.columns}
    if len(set(renamed.values())) < len(renamed) or set(renamed) == set(renamed.values()):
        return table
    rows = tuple(Row(row.line, {renamed[key]: cell for key, cell in row.cells.items()}) for row in table.rows)
    return replace(table, columns=tuple(renamed.values()), rows=rows)


def _is_unlabelled(task: Task, table: Table) -> bool:
    if task.label_column not in table.columns:
        return True
    return all(row.cells[task.label_column].strip() == "-1" for row in table.rows)


def _examples(task: Task, table: Table) -> tuple[Example, ...]:
    texts = [column for column in (task.text_column, task.pair_column) if column is not None]
    wanted = [*texts, task.label_column]
    _check_columns(table, wanted, f"The task '{task.name}' reads {_listed(wanted)}.")
    ids = {name: index for index, name in enumerate(task.labels)}
    examples = []
    for row in table.rows:
        parts = [row.cells[column].strip() for column in texts]
        if not all(parts):
            raise BadInput(
                f"{table.where}, line {row.line}: the text in column '{texts[parts.index('')]}' is empty.",
                "Give the row a text, or leave the row out.",
            )
        label = _label_id(ids, row.cells[task.label_column].strip(), f"{table.where}, line {row.line}")
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
            raise BadInput(
                f"{table.where}, line {row.line}: the label in column '{column}' is empty.",
                "Give the row a label.",
            )
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


_Key = tuple[str, str]


def _finish(
    task: Task,
    splits: Mapping[str, tuple[Example, ...]],
    notes: Sequence[str],
    limit: Mapping[str, int] | None,
    seed: int,
) -> TaskData:
    """Held-out splits as the module's head says, train without leaks and contradictions, limits."""
    train, two_labels = _without_contradictions(splits["train"])
    dev, test = splits.get("dev"), splits.get("test")
    notes = list(notes)
    if test is None:
        test, dev = dev, None
        notes.append("test: the official dev set is the held-out test, as there is no labelled test.")
    if test is None:
        raise BadInput(
            f"The task '{task.name}' has neither a dev file nor a test file with labels.",
            "Add one of them beside the train file.",
        )
    train, leaked = _without_leaks(train, (*test, *(dev or ())))
    if dev is None:
        train, dev = _cut_dev(train, seed)
        notes.append(f"dev: {len(dev)} texts cut from train with seed {seed}.")
        train, again = _without_leaks(train, dev)
        leaked += again
    notes += _counts(two_labels, leaked)
    if not train:
        raise BadInput(
            f"The task '{task.name}' has no train text left: all occur in dev or test, or carry two labels.",
            "Give a train file with texts of its own.",
        )
    parts = {"train": train, "dev": dev, "test": test}
    kept = _limited(parts, limit or {}, seed, notes)
    return TaskData(task, kept["train"], kept["dev"], kept["test"], tuple(notes))


def _limited(
    parts: Mapping[str, tuple[Example, ...]], limit: Mapping[str, int], seed: int, notes: list[str]
) -> dict[str, tuple[Example, ...]]:
    """At most ``limit[split]`` examples of each split; ``notes`` grows by a sentence for each split cut."""
    found = {}
    for split, examples in parts.items():
        most = limit.get(split, len(examples))
        found[split] = tuple(examples[index] for index in chosen(len(examples), most, f"{seed} {split}"))
        if most < len(examples):
            notes.append(f"{split}: {most} of {len(examples)} texts chosen with seed {seed}.")
    return found


def _counts(two_labels: int, leaked: int) -> list[str]:
    notes = []
    if two_labels:
        notes.append(f"train: {two_labels} different texts left out because they carry two labels.")
    if leaked:
        notes.append(f"train: {leaked} rows left out because their text also occurs in dev or test.")
    return notes


def _split_in_three(task: Task, table: Table, seed: int) -> tuple[dict[str, tuple[Example, ...]], list[str]]:
    examples = _examples(task, table)
    tenth = max(1, len(examples) // 10)
    if len(examples) < 3:
        raise BadInput(
            f"{table.where} has {len(examples)} rows, too few for train, dev and test.",
            "Give at least three.",
        )
    test = set(chosen(len(examples), tenth, f"{seed} split"))
    dev = set(chosen(len(examples), 2 * tenth, f"{seed} split")) - test
    train = set(range(len(examples))) - test - dev
    splits = {
        split: tuple(examples[index] for index in sorted(part))
        for split, part in (("train", train), ("dev", dev), ("test", test))
    }
    sizes = ", ".join(f"{split} {len(splits[split])}" for split in ("train", "dev", "test"))
    return splits, [f"One file, split 80/10/10 with seed {seed}: {sizes}."]


def _cut_dev(train: tuple[Example, ...], seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Train without its seeded tenth, and that tenth."""
    size = min(DEV_MOST, max(1, len(train) // DEV_SHARE))
    taken = set(chosen(len(train), size, f"{seed} dev from train"))
    rest = tuple(example for index, example in enumerate(train) if index not in taken)
    return rest, tuple(example for index, example in enumerate(train) if index in taken)


def _check_limit(limit: Mapping[str, int] | None) -> None:
    for split, most in (limit or {}).items():
        if split not in ("train", "dev", "test") or not isinstance(most, int) or most < 1:
            raise BadInput(
                f"The limit {split!r}: {most!r} cannot be used.",
                "Limits are whole numbers from 1, for train, dev and test.",
            )


def _without_contradictions(train: tuple[Example, ...]) -> tuple[tuple[Example, ...], int]:
    """Train without the texts that carry two labels, and how many different texts those were."""
    labels: dict[_Key, set[int]] = {}
    for example in train:
        labels.setdefault(_key(example), set()).add(example.label)
    both = {key for key, found in labels.items() if len(found) > 1}
    return tuple(example for example in train if _key(example) not in both), len(both)


def _without_leaks(train: tuple[Example, ...], held_out: Iterable[Example]) -> tuple[tuple[Example, ...], int]:
    """Train without the rows whose text is held out, and how many rows those were."""
    forbidden = {_key(example) for example in held_out}
    kept = tuple(example for example in train if _key(example) not in forbidden)
    return kept, len(train) - len(kept)


def _key(example: Example) -> _Key:
    return bare(example.text), bare(example.pair or "")
