"""Who may talk to whom: CURVE keys, the allow-list, one-time codes and the join string.

    join string = mobillm://host:port?key=<server's public key>&code=<one-time code>

A device proves who it is with its own CURVE key pair; the server lets in the public keys on its allow-list.  A
one-time code, read aloud in class, puts a new device on the list once.

Knows: files, key texts, codes.  Knows nothing of: sockets, sessions, tensors.  (zmq is asked for one thing: to make
and match key pairs.)

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_letters, digits
from types import MappingProxyType
from typing import Annotated, Generic, TypeVar
from urllib.parse import quote, unquote, urlsplit

import msgspec
from filelock import FileLock, Timeout

from mobillm_kit.errors import BadInput, FolderBusy, SaveFailed
from mobillm_kit.saving import write_bytes

Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
"""The 85 characters of a key text (ZeroMQ RFC 32)."""
KEY_LENGTH = 40
"""Characters of a key text: 32 bytes, four bytes to five characters."""
CODE_ALPHABET = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
"""No 0 O 1 I L: a code is read aloud."""
CODE_GROUPS = 3
CODE_GROUP = 4
LABEL_LENGTH = 64
HOST_CHARACTERS = frozenset(ascii_letters + digits + ".-_:%")
"""Of a name, an IPv4 or an IPv6 address with its zone."""
LOCK_LIMIT_S = 5.0
"""Longest wait for another process that changes the same file."""

_KEYS = "curve.json"
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


def check_key(text: str, what: str) -> str:
    """Returns: the key text itself.

    Raises:
        BadInput: it is not 40 characters of the z85 alphabet.
    """
    if len(text) != KEY_LENGTH:
        raise BadInput(f"The {what} has {len(text)} characters.", f"A key has {KEY_LENGTH}: copy it whole.")
    strangers = sorted(set(text) - set(Z85))
    if strangers:
        raise BadInput(f"The {what} holds {strangers[0]!r}, which no key can hold.", "Copy the key again.")
    if any(_z85_value(text[i : i + 5]) >> 32 for i in range(0, KEY_LENGTH, 5)):
        raise BadInput(f"The {what} stands for no 32 bytes.", "Copy the key again.")
    return text


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
    path = folder / _KEYS
    with _held(path):
        if not path.exists():
            keys = new_keys()
            _write_secret(path, msgspec.json.encode({"public": keys.public, "secret": keys.secret}))
        return _load_keys(path)


class AllowList:
    """The public keys that may connect; a file that other processes may change at any time.

    Args:
        path: JSON, ``{"key": "label", ...}``; a file that is not there is an empty list.

    Raises:
        BadInput: on any use, where the file is damaged.  Who asks whether a key may enter must take that for no.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _Watched(path, _read_allowed)
        _ = self.keys  # a damaged list is refused when the server starts, not when the first device knocks

    @property
    def keys(self) -> Mapping[str, str]:
        """Public key → label, as the file says now."""
        return MappingProxyType(self._file.value)

    def __contains__(self, public: str) -> bool:
        return public in self._file.value

    def add(self, public: str, label: str = "") -> None:
        """Let a key in; a key that is there gets the new label."""
        check_key(public, "device's public key")
        self._change(lambda allowed: allowed | {public: _printable(label)})

    def remove(self, public: str) -> None:
        """Take a key off the list; connections that stand are the server's to end.

        Raises:
            BadInput: the key is not on the list.
        """
        if public not in self:
            raise BadInput(f"{self._path}: the key {public} is not on the list.", "Look at the list's keys.")
        self._change(lambda allowed: {key: label for key, label in allowed.items() if key != public})

    def _change(self, changed: Callable[[dict[str, str]], dict[str, str]]) -> None:
        with _held(self._path):
            _write_secret(self._path, msgspec.json.format(msgspec.json.encode(changed(_read_allowed(self._path)))))


class _Code(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    salt: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    expires: float


class OneTimeCodes:
    """Codes that put one new device on the allow-list, each once, each for a while.

    Only a salted digest of a code is kept.

    Args:
        path: JSON; a file that is not there holds no codes.

    Raises:
        BadInput: on any use, where the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _Watched(path, _read_codes)
        _ = self.waiting

    @property
    def waiting(self) -> bool:
        """Whether some code is still unused and in time: only then need unknown keys be let in to show one."""
        now = time.time()
        return any(code.expires > now for code in self._file.value)

    def new_code(self, lifetime_s: float = 600.0) -> str:
        """Three groups of four characters, 59 bits.

        Raises:
            BadInput: the lifetime is not between a second and a week.
        """
        if not 1 <= lifetime_s <= 7 * 24 * 3600:
            raise BadInput(f"A code cannot live {lifetime_s} seconds.", "Choose between 1 second and a week.")
        groups = ("".join(secrets.choice(CODE_ALPHABET) for _ in range(CODE_GROUP)) for _ in range(CODE_GROUPS))
        text = "-".join(groups)
        salt = secrets.token_hex(16)
        code = _Code(salt=salt, digest=_digest(salt, text), expires=time.time() + lifetime_s)
        with _held(self._path):
            self._write([*self._fresh(), code])
        return text

    def use(self, text: str) -> bool:
        """Spend a code.

        Returns:
            True once for a code that is known and in time; False ever after, and for every other text.
        """
        shown = _plain(text)
        with _held(self._path):
            fresh = self._fresh()
            # every code is compared, in constant time: the answer's time says nothing about how near a guess was
            matches = [hmac.compare_digest(code.digest, _digest(code.salt, shown)) for code in fresh]
            left = [code for code, same in zip(fresh, matches, strict=True) if not same]
            if len(left) == len(fresh):
                return False
            self._write(left)
            return True

    def _fresh(self) -> list[_Code]:
        now = time.time()
        return [code for code in _read_codes(self._path) if code.expires > now]

    def _write(self, codes: list[_Code]) -> None:
        _write_secret(self._path, msgspec.json.format(msgspec.json.encode(codes)))


@dataclass(frozen=True)
class JoinString:
    """All that a device needs to know about a server, in one line of text."""

    address: str
    """``tcp://host:port``."""
    server_key: str = ""
    """The server's public CURVE key; empty only where the server runs plain on this machine's loopback."""
    code: str = ""
    """A one-time code; empty where the device's key is on the allow-list already."""

    def __post_init__(self) -> None:
        host, _ = _destination(self.address, "tcp")
        if self.server_key:
            check_key(self.server_key, "server key in the join string")
        elif not is_loopback(host):
            raise BadInput(
                f"The join string for {host} holds no server key.",
                "Without a key only this machine's own loopback address (127.0.0.1) can be joined.",
            )
        if self.code:
            check_code(self.code)

    def __str__(self) -> str:
        # a z85 key may hold & ? # % + and /, each of which means something in a URL
        parts = {"key": self.server_key, "code": self.code}
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parts.items() if value)
        return "mobillm" + self.address.removeprefix("tcp") + (f"?{query}" if query else "")

    @staticmethod
    def parse(text: str) -> JoinString:
        """Read a join string.

        Raises:
            BadInput: naming the part that is wrong: scheme, host, port, key, code, or a part nobody knows.
        """
        text = text.strip().strip("\"'`")
        host, port = _destination(text.partition("?")[0], "mobillm")
        values: dict[str, str] = {}
        query = text.partition("?")[2]
        for part in query.split("&") if query else []:
            name, equals, value = part.partition("=")
            if name not in ("key", "code") or not equals:
                raise BadInput(f"The join string holds {part!r}.", "After the ? stand key=... and code=... only.")
            if name in values:
                raise BadInput(f"The join string holds two parts {name}=.", "Copy it again, whole.")
            values[name] = unquote(value, errors="replace")
        bracketed = f"[{host}]" if ":" in host else host
        return JoinString(f"tcp://{bracketed}:{port}", values.get("key", ""), values.get("code", ""))


def check_code(text: str) -> str:
    """Returns: the code as it was made, whatever case and dashes it was typed with.

    Raises:
        BadInput: it has another length, or a character that no code has.
    """
    plain = _plain(text)
    strangers = sorted(set(plain) - set(CODE_ALPHABET))
    if strangers or len(plain) != CODE_GROUPS * CODE_GROUP:
        problem = f"holds {strangers[0]!r}" if strangers else f"has {len(plain)} characters"
        raise BadInput(
            f"The one-time code {problem}.",
            f"A code is {CODE_GROUPS} groups of {CODE_GROUP} letters and digits, without 0, O, 1, I and L.",
        )
    return "-".join(plain[i : i + CODE_GROUP] for i in range(0, len(plain), CODE_GROUP))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def split_address(text: str, scheme: str = "tcp") -> tuple[str, int]:
    """Host (an IPv6 one without its brackets) and port of ``scheme://host:port``.

    Raises:
        BadInput: it is nothing of the kind.
    """
    wanted = f"It has the form {scheme}://host:port, the port from 1 to 65535."
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadInput(f"The address {text!r} is not understood ({error}).", wanted) from None
    if parts.scheme != scheme:
        raise BadInput(f"The address {text!r} does not begin with {scheme}://.", wanted)
    if parts.path or parts.query or parts.fragment or parts.username is not None:
        raise BadInput(f"The address {text!r} holds more than a host and a port.", wanted)
    if not host or (host != "*" and set(host) - HOST_CHARACTERS):
        raise BadInput(f"The address {text!r} names no host.", wanted)
    if port is None:
        raise BadInput(f"The address {text!r} has no port.", wanted)
    return host, port


def _destination(text: str, scheme: str) -> tuple[str, int]:
    """Host and port that one can connect to."""
    host, port = split_address(text, scheme)
    if host in ("0.0.0.0", "::", "*"):
        raise BadInput(f"{host} is every address of a server and no place to go to.", "Name the server's own address.")
    if not port:
        raise BadInput(f"The address {text!r} has port 0.", "Name the port that the server took.")
    return host, port


class _Watched(Generic[T]):
    """What a file says, read again when the file changed; safe to ask from several threads."""

    def __init__(self, path: Path, read: Callable[[Path], T]) -> None:
        self._path, self._read = path, read
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self._value: T | None = None

    @property
    def value(self) -> T:
        with self._lock:
            seen = _signature(self._path)
            if self._value is None or seen != self._seen:
                self._value = self._read(self._path)
                self._seen = seen
            return self._value


def _signature(path: Path) -> tuple[int, ...]:
    """Differs after every change: files are replaced, so even within one clock tick the inode is another."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """One process at a time changes a file.

    Raises:
        FolderBusy: another one holds it for more than ``LOCK_LIMIT_S``.
        SaveFailed: the folder cannot be made or written.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_LIMIT_S)
    except Timeout as error:
        problem = f"{path}: another process has been changing it for {LOCK_LIMIT_S:g} s."
        raise FolderBusy(problem, "Try again.") from error
    except OSError as error:
        raise _not_written(path, error) from error
    try:
        yield
    finally:
        lock.release()


def _write_secret(path: Path, data: bytes) -> None:
    """Replace a file by one that only its owner may read; at no moment may anybody else.

    Raises:
        SaveFailed: as for :func:`mobillm_kit.saving.write_bytes`.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as hidden:  # mode 0700
            new = Path(hidden) / path.name
            write_bytes(new, data)
            new.chmod(0o600)
            new.replace(path)
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> SaveFailed:
    return SaveFailed(f"{path}: could not be written ({error.strerror or error}).", "Choose another folder.")


def _load_keys(path: Path) -> KeyPair:
    remedy = f"Restore it, or delete {path.name}: new keys are made then, and have to be allowed anew."
    try:
        keys = KeyPair(**_decoded(path, dict[str, str]))
    except (TypeError, BadInput) as error:
        raise BadInput(f"{path}: the key file is damaged.", remedy) from error
    if _public_of(keys.secret) != keys.public:
        raise BadInput(f"{path}: the two keys do not belong together.", remedy)
    return keys


def _public_of(secret: str) -> str:
    import zmq

    return zmq.curve_public(secret.encode("ascii")).decode("ascii")


def _read_allowed(path: Path) -> dict[str, str]:
    allowed = _decoded(path, dict[str, str]) if path.exists() else {}
    for key in allowed:
        try:
            check_key(key, f"key {key!r}")
        except BadInput as error:
            raise BadInput(f"{path}: {error.problem}", error.remedy) from None
    return allowed


def _read_codes(path: Path) -> list[_Code]:
    return _decoded(path, list[_Code]) if path.exists() else []


def _decoded(path: Path, kind: type[T]) -> T:
    """A small JSON file of our own.

    Raises:
        BadInput: damaged or not readable.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except ValueError as error:  # msgspec's own errors and broken UTF-8
        raise BadInput(f"{path}: the file is damaged ({error}).", "Restore it, or delete it and begin anew.") from error
    except OSError as error:
        raise BadInput(f"{path}: could not be read ({error.strerror}).", "Look at who owns it.") from error


def _digest(salt: str, code: str) -> str:
    return hashlib.blake2b(_plain(code).encode(), salt=bytes.fromhex(salt), digest_size=32).hexdigest()


def _plain(code: str) -> str:
    """A code as people type it: any case, with or without dashes and blanks."""
    return "".join(character for character in code.upper() if character not in "- \t\n\r")


def _printable(label: str) -> str:
    """Raises: BadInput: the label is longer than 64 characters or holds one that cannot be printed."""
    if len(label) > LABEL_LENGTH or not label.isprintable():
        raise BadInput(f"The label {label[:80]!r} cannot be used.", f"Up to {LABEL_LENGTH} printable characters.")
    return label


def _z85_value(five: str) -> int:
    value = 0
    for character in five:
        value = value * 85 + Z85.index(character)
    return value
