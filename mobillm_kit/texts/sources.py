"""Tables of texts: from a file, a folder of splits, or the Hugging Face hub.

Every cell stays a string and every row remembers its line, so that whoever reads a meaning into them can say
where something is wrong.

    .tsv     tab separated, header, UTF-8, *no* quote handling: GLUE's files hold raw quotation marks
    .csv     comma separated with quotes (RFC 4180), header, UTF-8
    .jsonl   one JSON object per line, UTF-8

Knows: files, lines, columns, the hub.  Knows nothing of: tasks, labels, prompts, models.
Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobillm_kit.errors import BadInput, MissingExtra

if TYPE_CHECKING:
    import datasets

SPLIT_FILES: Mapping[str, tuple[str, ...]] = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}
"""Names (without suffix) under which a folder or the hub may hold each split."""

HUB_WAIT_S = 20.0
"""Longest wait for the hub's first answer, seconds."""


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    line: int
    """Line in the file, counted from 1 with the header; row number on the hub."""
    cells: Mapping[str, str]
    """Column name to text, as written."""


@dataclass(frozen=True)
class Table:
    """Rows under named columns."""

    where: str
    """File or hub address, for messages."""
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def read_table(path: Path, *, headerless: Sequence[str] = ()) -> Table:
    """Read one ``.tsv``, ``.csv`` or ``.jsonl`` file.

    ``headerless`` names the columns of a TSV that comes without a header (GLUE's CoLA); used where the first line has
    as many cells as this and none of these names among them.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise BadInput(
            f"{path} has the suffix '{path.suffix}', which is not a table that can be read.",
            f"Give one of {', '.join(_READERS)}.",
        )
    text = _text_of(path)
    if not text.strip():
        raise BadInput(f"{path} is empty.", "It needs a header and at least one row (JSONL: one object).")
    columns, rows = reader(path, text, tuple(headerless))
    if not rows:
        raise BadInput(f"{path} has a header but no rows.", "Give at least one row below the header.")
    return Table(str(path), columns, tuple(rows))


def find_splits(folder: Path) -> dict[str, Path]:
    """The split files of a folder: ``train``, ``dev`` (or ``validation``), ``test``, in any known format."""
    if not folder.is_dir():
        raise BadInput(f"There is no folder {folder}.", "Give a folder that holds train.tsv and dev.tsv (or test.tsv).")
    found: dict[str, Path] = {}
    for split, names in SPLIT_FILES.items():
        files = [folder / (name + suffix) for name in names for suffix in _READERS]
        files = [file for file in files if file.is_file()]
        if len(files) > 1:
            raise BadInput(
                f"{folder} holds {files[0].name} and {files[1].name}, two files for the {split} split.",
                "Keep one of them.",
            )
        if files:
            found[split] = files[0]
    if "train" not in found:
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise BadInput(
            f"{folder} has no train file; it holds {there}.",
            f"Add train{', train'.join(_READERS)} (one of them).",
        )
    return found


def hub_tables(
    repository: str, config: str | None = None, *, revision: str | None = None, wait_s: float = HUB_WAIT_S
) -> dict[str, Table]:
    """The splits of a data set on the Hugging Face hub; from the local cache, where there is no network."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra(
            "Loading from the Hugging Face hub needs the library 'datasets', which is not installed.",
            "Run: pip install 'mobillm-kit[hub]', or give a local folder with data=... (--data).",
        ) from error
    address = f"{repository}/{config}" if config else repository
    refusal = _hub_refusal(repository, wait_s)
    try:
        with _offline(datasets) if refusal else contextlib.nullcontext():
            splits = datasets.load_dataset(repository, config, revision=revision)
    except Exception as error:  # the hub's libraries raise some twenty types for "not now"
        reason = refusal or f"{type(error).__name__}: {error}"
        raise BadInput(
            f"The Hugging Face hub did not give '{address}' and no copy is in the local cache ({reason}).",
            "Check the network, or give a local folder in GLUE's layout with data=... (--data).",
        ) from error
    return split_tables(splits, address)


def split_tables(splits: datasets.DatasetDict, address: str) -> dict[str, Table]:
    """Tables of strings out of a ``datasets.DatasetDict``, by split name as in :data:`SPLIT_FILES`."""
    tables = {}
    for split, names in SPLIT_FILES.items():
        for name in names:
            if name in splits:
                texts = [{column: _cell(value) for column, value in row.items()} for row in splits[name]]
                rows = tuple(Row(number, cells) for number, cells in enumerate(texts, 1))
                tables[split] = Table(f"{address}:{name}", tuple(splits[name].column_names), rows)
    return tables


def _hub_refusal(repository: str, wait_s: float) -> str:
    """Why the hub does not answer, in words; empty where it does."""
    from huggingface_hub import HfApi

    try:
        # Connecting and reading each get half of the wait.
        HfApi().dataset_info(repository, timeout=wait_s / 2)
    except Exception as error:  # offline mode, DNS, proxy, time-out, HTTP status: all mean the same here
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


@contextlib.contextmanager
def _offline(datasets_module: Any) -> Iterator[None]:
    """Let ``datasets`` look into its cache at once instead of waiting for a hub that did not answer."""
    before = datasets_module.config.HF_HUB_OFFLINE
    datasets_module.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets_module.config.HF_HUB_OFFLINE = before


def _text_of(path: Path) -> str:
    if not path.is_file():
        raise BadInput(f"There is no file {path}.", "Check the path.")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"{path}, line {line}: the byte 0x{data[error.start]:02x} is not UTF-8."
        raise BadInput(problem, "Save the file as UTF-8.") from error


_Rows = tuple[tuple[str, ...], list[Row]]


def _read_tsv(path: Path, text: str, headerless: tuple[str, ...]) -> _Rows:
    # Only \n ends a line here: str.splitlines would also cut at the rarer separators inside a text.
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    first = [cell.strip() for cell in lines[0][1].split("\t")]
    if headerless and len(first) == len(headerless) and not set(first) & set(headerless):
        columns, body = headerless, lines
    else:
        columns, body = _header(path, first), lines[1:]
    return columns, [_row(path, number, line.split("\t"), columns) for number, line in body]


def _read_csv(path: Path, text: str, headerless: tuple[str, ...]) -> _Rows:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    columns: tuple[str, ...] = ()
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if columns:
                    rows.append(_row(path, line, cells, columns))
                else:
                    columns = _header(path, [cell.strip() for cell in cells])
            line = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(f"{path}, line {line}: {error}.", "Check the quotation marks of this row.") from error
    return columns, rows


def _read_jsonl(path: Path, text: str, headerless: tuple[str, ...]) -> _Rows:
    records = [
        (number, _json_object(path, number, line)) for number, line in enumerate(text.split("\n"), 1) if line.strip()
    ]
    columns = tuple(records[0][1])
    for number, record in records:
        missing = [column for column in columns if column not in record]
        if missing:
            raise BadInput(
                f"{path}, line {number}: the object lacks '{missing[0]}', which line {records[0][0]} has.",
                "Give every object the same keys.",
            )
    return columns, [Row(number, record) for number, record in records]


def _json_object(path: Path, number: int, line: str) -> dict[str, str]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}, line {number}: not JSON ({error.msg}).", "Give one object per line.") from error
    if not isinstance(record, dict):
        raise BadInput(
            f"{path}, line {number}: a JSON {type(record).__name__}, not an object.",
            'Give one object per line, such as {"text": "...", "label": 0}.',
        )
    return {key: _cell(value) for key, value in record.items()}


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _header(path: Path, columns: Sequence[str]) -> tuple[str, ...]:
    twice = [column for column in columns if columns.count(column) > 1]
    if twice:
        raise BadInput(f"{path}: the header names the column '{twice[0]}' twice.", "Give each column its own name.")
    return tuple(columns)


def _row(path: Path, line: int, cells: Sequence[str], columns: tuple[str, ...]) -> Row:
    if len(cells) != len(columns):
        raise BadInput(
            f"{path}, line {line}: {len(cells)} columns where the header has {len(columns)} ({', '.join(columns)}).",
            "Give every row one cell per column; a separator in a text splits it (in CSV, quote the text).",
        )
    return Row(line, dict(zip(columns, cells, strict=True)))


_READERS: Mapping[str, Callable[[Path, str, tuple[str, ...]], _Rows]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}
