"""Errors that a user can act on.

The command line prints the sentence and exits; a notebook shows it as an ordinary exception.

Knows: words.  Knows nothing of: tensors, models, files.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

SHOWN = 4
"""Numbers of a list that a sentence quotes."""


def few(values: Collection[object]) -> str:
    """The first few of a list that a user or a peer gave: sentences have a longest length."""
    return f"[{', '.join(map(str, list(values)[:SHOWN]))}{', …' if len(values) > SHOWN else ''}]"


def first_line(error: BaseException) -> str:
    """The first line of an error's words, cut short; its kind where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Asks whether the known name that comes nearest was meant; ``otherwise`` where none comes near."""
    close = get_close_matches(name, known, n=1)
    return f"Did you mean '{close[0]}'?" if close else otherwise


class KitError(Exception):
    """A problem that the user can solve: what was wrong and where, and what would be right, one sentence each."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem} {remedy}".strip())


class BadInput(KitError, ValueError):
    """A value, a text or a file that cannot be used as it is."""


class CodecError(BadInput):
    """Bytes that are no payload of the codec and shape that they were sent as."""


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


@contextmanager
def extra(name: str, need: str, *, brings: Collection[str] = (), otherwise: str = ".") -> Iterator[None]:
    """Around imports of what an extra ``brings``: ``need`` begins the sentence about the one that is missing."""
    try:
        yield
    except ModuleNotFoundError as missing:
        if brings and missing.name not in brings:
            raise
        problem = f"{need.format(missing.name)}, which is not installed."
        raise MissingExtra(problem, f"Install the extra: pip install 'mobillm-kit[{name}]'{otherwise}") from missing


class AddressInUse(KitError):
    """Another program listens at the address that the server wants."""


class HandshakeFailed(KitError):
    """Device and server could not agree to talk.

    Args:
        reason: a word for the program: "nothing-listens", "no-answer", "key-not-allowed", "wrong-server-key",
            "no-curve" or "not-mobillm".
    """

    def __init__(self, problem: str, remedy: str = "", *, reason: str) -> None:
        self.reason = reason
        super().__init__(problem, remedy)

    @property
    def may_pass(self) -> bool:
        """Whether waiting may help: the server may still be starting, or the network be down for a while."""
        return self.reason in ("nothing-listens", "no-answer")


class SocketClosed(KitError):
    """The socket was closed, here, by this program."""


class ServerGone(KitError):
    """The server has not answered for too long; what was trained is on its side, up to its last checkpoint."""


class ServerRefused(KitError):
    """The server said no, or sent back what cannot be used; ``code`` is one of the protocol's."""

    def __init__(self, problem: str, remedy: str = "", code: str = "") -> None:
        self.code = code
        super().__init__(problem, remedy)
