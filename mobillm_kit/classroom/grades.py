"""Grades as `nbgrader export` writes them, a line a student and assignment, joined to a class's students by name.

    student_id, or first_name and last_name in either order; neither case nor blanks make a difference

Knows: CSV, names.  Knows nothing of: how points come about, the database.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from mobillm_kit.classroom.roster import fold
from mobillm_kit.errors import BadInput, few
from mobillm_kit.texts.sources import decoded

NEEDED = ("assignment", "student_id", "last_name", "first_name", "score", "max_score")
_EXPORT = "Give the file that `nbgrader export --to=grades.csv` wrote."

Grades = dict[str, dict[str, tuple[float, float]]]
"""By assignment and student: points, and the most that there are."""


def read_grades(file: Path, students: Sequence[str]) -> tuple[Grades, list[str]]:
    """The grades of these students, and the ids of others that the file has.

    BadInput names the line of what cannot be read, fits two students, or stands there twice.
    """
    found: Grades = {}
    others: dict[str, None] = {}
    for where, row in _rows(file):
        student, of_assignment = _student(row, students, where), found.setdefault(row["assignment"], {})
        if student in of_assignment:
            problem = f"{where}: {student} has a grade of '{row['assignment']}' further up already."
            raise BadInput(problem, "Take one of the two out: two ids of nbgrader are one student here.")
        points = _points(row, "score", where), _points(row, "max_score", where)
        if student:
            of_assignment[student] = points
        else:
            others[row["student_id"]] = None
    if not any(found.values()):
        problem = f"{file}: none of its {len(others)} students is in this class: {few(others)}."
        raise BadInput(problem, "nbgrader's student ids, or first and last names, are to be the names of the class.")
    return found, list(others)


def _student(row: dict[str, str], students: Sequence[str], where: str) -> str:
    """Whose line it is; empty for nobody's of this class."""
    first, last = row["first_name"], row["last_name"]
    names = {fold(name) for name in (row["student_id"], f"{first} {last}", f"{last} {first}")}
    named = [student for student in students if fold(student) in names]
    if len(named) > 1:
        problem = f"{where}: the id is one student's of this class and the name another's: {few(named)}."
        raise BadInput(problem, "Mend the id or the name in nbgrader, and export again.")
    return "".join(named)


def _rows(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each line stands, in words, and its values by heading."""
    try:
        reader = csv.DictReader(decoded(file.read_bytes(), str(file)).splitlines(), strict=True)
        if missing := [name for name in NEEDED if name not in (reader.fieldnames or [])]:
            raise BadInput(f"{file}: its first line names no {few(missing)}.", _EXPORT)
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if None in row or None in row.values() or not row["assignment"]:
                remedy = "nbgrader writes a comma in a name as it is: put such a value in quotes."
                raise BadInput(f"{where}: a value is missing, or there is one too many.", remedy)
            yield where, row
    except (OSError, csv.Error) as error:
        raise BadInput(f"{file}: could not be read ({getattr(error, 'strerror', error)}).", _EXPORT) from error


def _points(row: dict[str, str], column: str, where: str) -> float:
    with suppress(ValueError):
        if 0 <= (points := float(row[column])) < math.inf:
            return points
    raise BadInput(f"{where}: {column} is '{row[column][:40]}'.", "It has to be a number, 0 or more.")
