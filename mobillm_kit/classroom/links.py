"""The two links of a class's board: one for everybody who may watch, one for the instructor.

    BOARD/?token=…    the tokens stand in NAME/board.toml, for their owner's eyes alone

Knows: a file, random tokens.  Knows nothing of: browsers, what a link shows.
"""

import hmac
import secrets
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from mobillm_kit.errors import BadInput
from mobillm_kit.files import write_bytes

Role = Literal["class", "instructor"]
Token = Annotated[str, Meta(min_length=20, max_length=100, pattern="^[A-Za-z0-9_-]*$")]


class Tokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who has one may see the board as that one does."""

    viewer: Token
    instructor: Token

    def __post_init__(self) -> None:
        if self.viewer == self.instructor:  # else everybody who watches could turn students out
            raise ValueError("viewer and instructor have one token")

    def role(self, given: str) -> Role | None:
        """Whose token this is; how long the answer takes says nothing about how near a guess was."""
        shown = given.encode()
        watches = hmac.compare_digest(shown, self.viewer.encode())
        teaches = hmac.compare_digest(shown, self.instructor.encode())
        return "instructor" if teaches else "class" if watches else None


def load_or_make_tokens(file: Path) -> Tokens:
    """The tokens of a class, made when they are first asked for; BadInput where the file holds none."""
    if not file.exists():
        made = (f'{name} = "{secrets.token_urlsafe(18)}"\n' for name in Tokens.__struct_fields__)
        write_bytes(file, "".join(made).encode(), 0o600)
    try:
        return msgspec.toml.decode(file.read_bytes(), type=Tokens)
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"{file}: {words}", "Remove the file: the next start makes new links.") from error
