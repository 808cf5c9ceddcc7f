"""Tables of texts: from a file, a folder of splits, or the Hugging Face hub.

Every cell stays as written and every row remembers its line; what is wrong is said where a cell is used
(:meth:`Table.text`), as a table may hold anything in columns that nobody reads.

    .tsv     tab separated, header, quotation marks are text (GLUE's files), except in a spreadsheet's export
    .csv     comma or semicolon separated with quotes (RFC 4180), header
    .jsonl   one JSON object per line; .json also as one array;  all in UTF-8, or UTF-16 with its mark

Knows: files, lines, columns, the hub.  Knows nothing of: tasks, labels, prompts, models.
Taught in: notebooks/00_start_here.ipynb
"""

import codecs
import contextlib
import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillm_kit.errors import BadInput, extra

SPLIT_FILES: Mapping[str, tuple[str, ...]] = {"train": ("train",), "dev": ("dev", "validation"), "test": ("test",)}
"""Names (without suffix) under which a folder or the hub may hold each split."""

HUB_WAIT_S = 20.0
"""Longest wait for the hub's first answer, seconds."""


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    line: int
    """Line in the file, counted from 1 with the header; row number on the hub."""
    cells: Mapping[str, Any]
    """Column name to what is written there; a cell that the row lacks is not among them."""


@dataclass(frozen=True)
class Table:
    """Rows under named columns."""

    where: str
    """File or hub address, for messages."""
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def text(self, row: Row, column: str) -> str:
        """What a cell holds, stripped; empty for nothing at all."""
        where = f"{self.where}, line {row.line}"
        if column not in row.cells:
            raise BadInput(
                f"{where}: the row lacks '{column}'.",
                "Give every row the columns that are used; a line break in a text splits it (in CSV, quote the text).",
            )
        value = row.cells[column]
        if isinstance(value, list | dict) or (isinstance(value, float) and not math.isfinite(value)):
            problem = f"{where}: '{column}' holds {str(value)[:40]}, which is neither text nor number."
            raise BadInput(problem, "Give the row a text, or leave the row out.")
        written = "" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
        check_characters(written, where)
        return written.strip()


def read_table(path: Path, *, headerless: Sequence[str] = (), spreadsheet: bool = False) -> Table:
    """Read one file of a format that the module's head names.

    Args:
        headerless: columns of a TSV that comes without a header (GLUE's CoLA); used where the first line has as
            many cells as this and none of these names among them.
        spreadsheet: take a TSV in which every cell with a quotation mark is quoted as a whole for an export.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        problem = f"{path} has the suffix '{path.suffix}', which is not a table that can be read."
        raise BadInput(problem, f"Give one of {', '.join(_READERS)}.")
    if not path.is_file():
        raise BadInput(f"There is no file {path}.", "Check the path.")
    text = decoded(path.read_bytes(), str(path))
    if not text.strip():
        raise BadInput(f"{path} is empty.", "It needs a header and at least one row (JSONL: one object).")
    if reader is _read_tsv and spreadsheet and _QUOTED.fullmatch(f"{text}\n"):
        reader = _read_csv
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
        files = [file for name in names for suffix in _READERS if (file := folder / (name + suffix)).is_file()]
        if len(files) > 1:
            problem = f"{folder} holds {files[0].name} and {files[1].name}, two files for the {split} split."
            raise BadInput(problem, "Keep one of them.")
        if files:
            found[split] = files[0]
    if "train" not in found:
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        problem = f"{folder} has no train file; it holds {there}."
        raise BadInput(problem, f"Add train{', train'.join(_READERS)} (one of them).")
    return found


def digests(place: Path) -> dict[str, str]:
    """Name and SHA-256 of a table, or of each split's table in a folder; empty where there is none."""
    files = find_splits(place).values() if place.is_dir() else [place]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


def hub_tables(repository: str, config: str | None = None, *, revision: str | None = None) -> dict[str, Table]:
    """The splits of a data set on the Hugging Face hub; from the local cache, where there is no network."""
    need = "Loading from the Hugging Face hub needs the library '{}'"
    with extra("hub", need, otherwise=", or give a local folder with data=... (--data)."):
        import datasets
    address = f"{repository}/{config}" if config else repository
    with _hub_or_cache(datasets, repository) as refusal:
        try:
            splits = datasets.load_dataset(repository, config, revision=revision)
        except Exception as error:  # the hub's libraries raise some twenty types for "not now"
            reason = refusal or f"{type(error).__name__}: {error}"
            problem = f"The Hugging Face hub did not give '{address}' and no copy is in the local cache ({reason})."
            remedy = "Check the network, or give a local folder in GLUE's layout with data=... (--data)."
            raise BadInput(problem, remedy) from error
    return split_tables(splits, address)


def split_tables(splits: Mapping[str, Any], address: str) -> dict[str, Table]:
    """Tables out of a ``datasets.DatasetDict``, by split name as in :data:`SPLIT_FILES`."""
    tables = {}
    for split, names in SPLIT_FILES.items():
        for name in names:
            if name in splits:
                rows = tuple(Row(number, cells) for number, cells in enumerate(splits[name], 1))
                tables[split] = Table(f"{address}:{name}", tuple(splits[name].column_names), rows)
    return tables


@contextlib.contextmanager
def _hub_or_cache(datasets_module: Any, repository: str) -> Iterator[str]:
    """Why the hub does not answer, empty where it does; ``datasets`` then looks into its cache instead of waiting."""
    from huggingface_hub import HfApi

    refusal, before = "", datasets_module.config.HF_HUB_OFFLINE
    try:
        HfApi().dataset_info(repository, timeout=HUB_WAIT_S / 2)  # connecting and reading each get half of the wait
    except Exception as error:  # offline mode, DNS, proxy, time-out, HTTP status: all mean the same here
        refusal = f"{type(error).__name__}: {error}".splitlines()[0]
        datasets_module.config.HF_HUB_OFFLINE = True
    try:
        yield refusal
    finally:
        datasets_module.config.HF_HUB_OFFLINE = before


def decoded(data: bytes, where: str) -> str:
    """A file's bytes, or those of standard input, as text."""
    coding = "UTF-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "UTF-8-sig"
    try:
        return data.decode(coding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"{where}, line {line}: the byte 0x{data[error.start]:02x} is not {coding.removesuffix('-sig')}."
        raise BadInput(problem, "Save it as UTF-8.") from error


def check_characters(text: str, where: str) -> None:
    """Refuse half a character (a lone surrogate), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"{where}: the text '{text[:40]!a}' holds half a character, {text[error.start]!a}."
        raise BadInput(problem, "Remove it, or save the text as UTF-8 again.") from None


_Rows = tuple[tuple[str, ...], list[Row]]

_QUOTED = re.compile(r'(?:(?:"(?:[^"]|"")*+"|[^"\t\r\n]*+)(?:\t|\r?\n))*+')
"""A table in which every cell that holds a quotation mark is quoted as a whole: a spreadsheet's export."""


def _read_tsv(path: Path, text: str, headerless: tuple[str, ...]) -> _Rows:
    # Only \n ends a line here: str.splitlines would also cut at the rarer separators inside a text.
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    first = tuple(cell.strip() for cell in lines[0][1].split("\t"))
    named = not headerless or len(first) != len(headerless) or bool(set(first) & set(headerless))
    columns = first if named else headerless
    return columns, [_row(path, number, line.split("\t"), columns) for number, line in lines[named:]]


def _read_csv(path: Path, text: str, headerless: tuple[str, ...]) -> _Rows:
    header = text.lstrip().partition("\n")[0]
    csv.field_size_limit(2**31 - 1)  # the usual limit refuses a long text
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    rows: list[Row] = []
    columns: tuple[str, ...] = ()
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if columns:
                    rows.append(_row(path, line, cells, columns))
                else:
                    columns = tuple(cell.strip() for cell in cells)
            line = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(f"{path}, line {line}: {error}.", "Check the quotation marks of this row.") from error
    return columns, rows


def _row(path: Path, line: int, cells: Sequence[str], columns: tuple[str, ...]) -> Row:
    if any(cell.strip() for cell in cells[len(columns) :]):
        raise BadInput(
            f"{path}, line {line}: {len(cells)} columns where the header has {len(columns)} ({', '.join(columns)}).",
            "A separator in a text splits it (in CSV, quote the text).",
        )
    return Row(line, dict(zip(columns, cells, strict=False)))


def _read_json(path: Path, text: str, headerless: tuple[str, ...]) -> _Rows:
    if text.lstrip().startswith("["):
        values = _elements(path, text)
    else:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        values = [(number, _parsed(path, number, line)) for number, line in lines]
    for number, value in values:
        if not isinstance(value, dict):
            raise BadInput(f"{path}, line {number}: a JSON {type(value).__name__}, not an object.", _JSON_FORM)
    columns = tuple(dict.fromkeys(key for _, record in values for key in record))
    return columns, [Row(number, record) for number, record in values]


def _elements(path: Path, text: str) -> list[tuple[int, Any]]:
    """The elements of an array, each with the line it begins on."""
    found: list[tuple[int, Any]] = []
    line, seen, end = 1, 0, text.index("[") + 1
    for value in _parsed(path, 1, text):
        while text[end] in ", \t\r\n":
            end += 1
        line, seen = line + text.count("\n", seen, end), end
        found.append((line, value))
        end = json.JSONDecoder().raw_decode(text, end)[1]
    return found


def _parsed(path: Path, line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}, line {line + error.lineno - 1}: not JSON ({error.msg}).", _JSON_FORM) from error


_JSON_FORM = 'Give one object per line, such as {"text": "...", "label": 0}, or one array of such objects.'

_READERS = {".tsv": _read_tsv, ".csv": _read_csv, ".jsonl": _read_json, ".json": _read_json}
