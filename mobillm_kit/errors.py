"""Errors that a user can act on.

Every refusal names what was wrong, where, and what would be right.  The command line prints the sentence
and exits; a notebook shows it as an ordinary exception.

Knows: words.  Knows nothing of: tensors, models, files.
"""

from __future__ import annotations


class KitError(Exception):
    """A problem that the user can solve.

    Args:
        problem: what was wrong and where, one sentence.
        remedy: what would be right, one sentence; empty where the problem says it all.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem} {remedy}".strip())


class BadInput(KitError, ValueError):
    """A value, a text or a file that cannot be used as it is."""


class UnknownName(BadInput):
    """A model, task, method or preset that does not exist."""


class BackboneMismatch(KitError):
    """A side network that was trained on another backbone."""


class TrainingDiverged(KitError):
    """The loss is not a number; the last good checkpoint is kept."""


class RecordError(KitError):
    """A record that cannot be read: damaged, or written by another version."""


class SaveFailed(KitError):
    """A file could not be written; what stood there before is untouched."""


class NotEnoughMemory(KitError):
    """The method needs more memory than the machine gave."""


class FolderBusy(KitError):
    """Another run is writing into the same folder."""


class MissingExtra(KitError):
    """An optional dependency is not installed."""
