"""Invitations: names from a file, and a sheet with one command for each student.

Knows: text, HTML.  Knows nothing of: the database, who has joined.
"""

import html
from collections.abc import Sequence
from pathlib import Path

from mobillm_kit.classroom.roster import check_name, fold
from mobillm_kit.errors import BadInput, SaveFailed
from mobillm_kit.files import write_bytes
from mobillm_kit.texts.sources import decoded

MOST = 1000
"""Students of one invitation."""

_PAGE = """\
<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
 body {{ font: 11pt/1.4 sans-serif; margin: 1.5cm auto; max-width: 19cm; }}
 section {{ border: 1px dashed #767676; padding: .3cm .5cm; margin: 0 0 .4cm; break-inside: avoid; }}
 h2 {{ font-size: 13pt; margin: 0 0 .1cm; }}
 p {{ margin: .1cm 0; }}
 pre {{ font-size: 9pt; white-space: pre-wrap; overflow-wrap: anywhere; margin: .1cm 0; }}
</style>
<h1>{title}</h1>
{cards}
</html>
"""

_HINT = (
    "Works once, for your own device; afterwards the same device comes in with the same command. Your own options go "
    "behind it (mobillm device --help). Raw text is not sent; activations are, and most of the text can be read back."
)


def names_in(path: Path) -> list[str]:
    """The names in a text file, one a line; empty lines are passed over.

    BadInput names the line of a name that cannot be shown, or that stands there already.
    """
    try:
        text = decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise BadInput(
            f"{path}: could not be read ({error.strerror}).", "Name a text file, one name a line."
        ) from error
    found: dict[str, int] = {}
    names = []
    for number, line in enumerate(text.split("\n"), 1):
        name = line.strip(" \t\r")
        if not name:
            continue
        where = f"{path}, line {number}"
        first = found.setdefault(fold(check_name(name, where)), number)
        if first != number:
            problem = f"{where}: the name '{name}' stands on line {first} already."
            raise BadInput(problem, f"Tell the two apart, such as '{name} B'.")
        names.append(name)
    return counted(names, f"{path}: no name stands there.")


def counted(names: list[str], none: str) -> list[str]:
    """The names themselves; BadInput for none of them, and for too many."""
    if not names:
        raise BadInput(none, "Write one name a line, or ask for numbers: --count 30.")
    if len(names) > MOST:
        raise BadInput(f"{len(names)} students at once.", f"Invite at most {MOST}.")
    return names


def command(join: str) -> str:
    """What a student types."""
    return f"mobillm device --join '{join}' --out runs/class"


def as_text(title: str, joins: Sequence[tuple[str, str]]) -> str:
    """A sheet of names and join strings as plain text."""
    cards = "\n".join(f"{name}\n    {command(join)}\n" for name, join in joins)
    return f"{title}\n\n{_HINT}\n\n{cards}"


def as_html(title: str, joins: Sequence[tuple[str, str]]) -> str:
    """The same as a page to print and cut: one card a student."""
    cards = "\n".join(
        f"<section><h2>{html.escape(name)}</h2><pre>{html.escape(command(join))}</pre><p>{_HINT}</p></section>"
        for name, join in joins
    )
    return _PAGE.format(title=html.escape(title), cards=cards)


def write_sheet(path: Path, title: str, joins: Sequence[tuple[str, str]]) -> None:
    """Keep a sheet, for its owner's eyes alone: text where the name ends in .txt, else a page."""
    sheet = as_text(title, joins) if path.suffix == ".txt" else as_html(title, joins)
    write_bytes(path, sheet.encode(), 0o600)


def free_sheet(folder: Path, wanted: Path | None) -> Path:
    """Where the next sheet goes; one that is there is never overwritten, since its codes cannot be made again."""
    if wanted is not None:
        if wanted.exists():
            raise SaveFailed(f"{wanted} is there already, and its codes stand nowhere else.", "Choose another name.")
        return wanted
    numbers = (path for number in range(1, 10**6) if not (path := folder / f"invitations-{number}.html").exists())
    return next(numbers)
