"""Who may talk to whom: CURVE keys, the allow-list and one-time codes.

A device proves who it is with its own CURVE key pair; the server lets in the public keys on its allow-list.  A
one-time code, read aloud in class, puts a new device on the list once.

Knows: files, key texts, codes.  Knows nothing of: sockets, sessions, tensors.  (zmq is asked for one thing: to make
and match key pairs.)
Taught in: notebooks/08_device_and_server.ipynb
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import msgspec
from filelock import FileLock, Timeout

from mobillm_kit.channel.join import CODE_ALPHABET, CODE_GROUP, CODE_GROUPS, check_code, check_key, plain_code
from mobillm_kit.errors import BadInput, FolderBusy, SaveFailed
from mobillm_kit.files import write_bytes

LABEL_LENGTH = 64
LOCK_LIMIT_S = 5.0
"""Longest wait for another process that changes the same file."""

_KEYS = "curve.json"
_SECRET = 0o600
T = TypeVar("T")


@dataclass(frozen=True)
class KeyPair:
    """One party's CURVE key pair, as z85 text."""

    public: str
    """40 characters; may be shown to everybody."""
    secret: str = field(repr=False)
    """40 characters; stays on this machine."""

    def __post_init__(self) -> None:
        check_key(self.public, "public key")
        check_key(self.secret, "secret key")


def new_keys() -> KeyPair:
    """A fresh key pair."""
    import zmq

    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode("ascii"), secret.decode("ascii"))


def load_or_make_keys(folder: Path) -> KeyPair:
    """The key pair that lives in ``folder``; made and kept (mode 0600) the first time.

    Raises:
        BadInput: the file is damaged, or its two keys do not belong together.
        SaveFailed: the folder cannot be written.
        FolderBusy: another process holds the folder for more than a few seconds.
    """
    import zmq

    path = folder / _KEYS
    remedy = f"Restore it, or delete {path.name}: new keys are made then, and have to be allowed anew."
    with _held(path):
        if not path.exists():
            write_bytes(path, msgspec.json.encode(vars(new_keys())), _SECRET)
        try:
            keys = KeyPair(**_decoded(path, dict[str, str]))
        except (TypeError, BadInput) as error:
            raise BadInput(f"{path}: the key file is damaged.", remedy) from error
    if zmq.curve_public(keys.secret.encode("ascii")).decode("ascii") != keys.public:
        raise BadInput(f"{path}: the two keys do not belong together.", remedy)
    return keys


class _Code(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    salt: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    expires: float


class _File(Generic[T]):
    """What a small JSON file says, which other processes may change at any time; read anew at each question.

    A file that is not there is an empty one.

    Raises:
        BadInput: at the beginning and on any use, where the file is damaged.  Who asks whether somebody may enter must
            take that for no.
    """

    kind: type[T]

    def __init__(self, path: Path) -> None:
        self._path = path
        self.read()  # a damaged list is refused when the server starts, not when the first device knocks

    @contextmanager
    def changing(self) -> Iterator[T]:
        """What the file says, to be changed in place by one process at a time; it is written where it was changed."""
        with _held(self._path):
            value = self.read()
            before = msgspec.json.encode(value)
            yield value
            after = msgspec.json.encode(value)
            if after != before:
                write_bytes(self._path, msgspec.json.format(after), _SECRET)

    def read(self) -> T:
        """What the file says now."""
        value = _decoded(self._path, self.kind) if self._path.exists() else self.kind()
        for key in value if isinstance(value, dict) else ():
            try:
                check_key(key, f"key {key!r}")
            except BadInput as error:
                raise BadInput(f"{self._path}: {error.problem}", error.remedy) from None
        return value


class AllowList(_File[dict[str, str]]):
    """The public keys that may connect: JSON, ``{"key": "label", ...}``."""

    kind = dict[str, str]

    def __contains__(self, public: str) -> bool:
        return public in self.read()

    def add(self, public: str, label: str = "") -> None:
        """Let a key in; a key that is there gets the new label."""
        check_key(public, "device's public key")
        if len(label) > LABEL_LENGTH or not label.isprintable():
            raise BadInput(f"The label {label[:80]!r} cannot be used.", f"Up to {LABEL_LENGTH} printable characters.")
        with self.changing() as allowed:
            allowed[public] = label


class OneTimeCodes(_File[list[_Code]]):
    """Codes that put one new device on the allow-list, each once, each for a while; only salted digests are kept."""

    kind = list[_Code]

    @property
    def waiting(self) -> bool:
        """Whether some code is still unused and in time: only then need unknown keys be let in to show one."""
        return bool(_in_time(self.read()))

    def new_code(self, lifetime_s: float = 600.0) -> str:
        """Three groups of four characters, 59 bits; BadInput for a lifetime not between a second and a week."""
        if not 1 <= lifetime_s <= 7 * 24 * 3600:
            raise BadInput(f"A code cannot live {lifetime_s} seconds.", "Choose between 1 second and a week.")
        text = check_code("".join(secrets.choice(CODE_ALPHABET) for _ in range(CODE_GROUPS * CODE_GROUP)))
        salt = secrets.token_hex(16)
        code = _Code(salt=salt, digest=_digest(salt, text), expires=time.time() + lifetime_s)
        with self.changing() as codes:
            codes[:] = [*_in_time(codes), code]
        return text

    def use(self, text: str) -> bool:
        """Spend a code: True once for one that is known and in time, False ever after and for every other text."""
        shown = plain_code(text)
        with self.changing() as codes:
            fresh = _in_time(codes)
            # every code is compared, in constant time: the answer's time says nothing about how near a guess was
            matches = [hmac.compare_digest(code.digest, _digest(code.salt, shown)) for code in fresh]
            if any(matches):
                codes[:] = [code for code, same in zip(fresh, matches, strict=True) if not same]
            return any(matches)


class Door:
    """Who may come in: keys, known devices, one-time codes; kept in ``folder``, made where they are not there."""

    def __init__(self, folder: Path) -> None:
        self.keys = load_or_make_keys(folder)
        self.known = AllowList(folder / "known.json")
        self.codes = OneTimeCodes(folder / "codes.json")

    def may_connect(self, key: str) -> bool:
        """Before a hello: known, or somebody is expected."""
        return key in self.known or self.codes.waiting

    def knows(self, key: str) -> bool:
        """At the hello: known.  Asked by the server's loop, so it does not wait."""
        return key in self.known

    def use_code(self, key: str, code: str) -> bool:
        """At an unknown key's hello: whether its code was good; it is spent then, the key known.  It may wait."""
        if not code or not self.codes.use(code):
            return False
        self.known.add(key, "joined")
        return True

    def new_code(self) -> str:
        """What the join string brings a new device in with."""
        return self.codes.new_code()


def _in_time(codes: list[_Code]) -> list[_Code]:
    return [code for code in codes if code.expires > time.time()]


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """One process at a time changes a file; errors as for :func:`load_or_make_keys`."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_LIMIT_S)
        yield
    except Timeout as error:
        problem = f"{path}: another process has been changing it for {LOCK_LIMIT_S:g} s."
        raise FolderBusy(problem, "Try again.") from error
    except OSError as error:
        problem = f"{path}: could not be written ({error.strerror or error})."
        raise SaveFailed(problem, "Choose another folder.") from error
    finally:
        lock.release()


def _decoded(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except ValueError as error:  # msgspec's own errors and broken UTF-8
        raise BadInput(f"{path}: the file is damaged ({error}).", "Restore it, or delete it and begin anew.") from error
    except OSError as error:
        raise BadInput(f"{path}: could not be read ({error.strerror}).", "Look at who owns it.") from error


def _digest(salt: str, code: str) -> str:
    return hashlib.blake2b(plain_code(code).encode(), salt=bytes.fromhex(salt), digest_size=32).hexdigest()
