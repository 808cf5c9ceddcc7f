"""The texts that people copy and type: key texts, one-time codes, addresses, and the join string made of them.

    join string = mobillm://host:port?key=<server's public key>&code=<one-time code>

Knows: text.  Knows nothing of: files, sockets, who may come in.
Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import reduce
from string import ascii_letters, digits
from urllib.parse import quote, unquote, urlsplit

from mobillm_kit.errors import BadInput

Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
"""The 85 characters of a key text (ZeroMQ RFC 32)."""
KEY_LENGTH = 40
"""Characters of a key text: 32 bytes, four bytes to five characters."""
CODE_ALPHABET = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
"""No 0 O 1 I L: a code is read aloud."""
CODE_GROUPS = 3
CODE_GROUP = 4
HOST_CHARACTERS = frozenset(ascii_letters + digits + ".-_:%")
"""Of a name, an IPv4 or an IPv6 address with its zone."""


def check_key(text: str, what: str) -> str:
    """The key text itself; BadInput where it is not 40 characters of the z85 alphabet."""
    if len(text) != KEY_LENGTH:
        raise BadInput(f"The {what} has {len(text)} characters.", f"A key has {KEY_LENGTH}: copy it whole.")
    strangers = sorted(set(text) - set(Z85))
    if strangers:
        raise BadInput(f"The {what} holds {strangers[0]!r}, which no key can hold.", "Copy the key again.")
    fives = (text[i : i + 5] for i in range(0, KEY_LENGTH, 5))
    if any(reduce(lambda value, character: value * 85 + Z85.index(character), five, 0) >> 32 for five in fives):
        raise BadInput(f"The {what} stands for no 32 bytes.", "Copy the key again.")
    return text


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
            problem = f"The join string for {host} holds no server key."
            raise BadInput(problem, "Without a key only this machine's own loopback address (127.0.0.1) can be joined.")
        if self.code:
            check_code(self.code)

    def __str__(self) -> str:
        # a z85 key may hold & ? # % + and /, each of which means something in a URL
        parts = {"key": self.server_key, "code": self.code}
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parts.items() if value)
        return "mobillm" + self.address.removeprefix("tcp") + (f"?{query}" if query else "")

    @staticmethod
    def parse(text: str) -> JoinString:
        """Read a join string; BadInput names what is wrong: scheme, host, port, key, code, or an unknown part."""
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
    """The code as it was made, whatever case and dashes it was typed with; BadInput for another length or character."""
    plain = plain_code(text)
    strangers = sorted(set(plain) - set(CODE_ALPHABET))
    if strangers or len(plain) != CODE_GROUPS * CODE_GROUP:
        wrong = f"holds {strangers[0]!r}" if strangers else f"has {len(plain)} characters"
        problem = f"The one-time code {wrong}."
        remedy = f"A code is {CODE_GROUPS} groups of {CODE_GROUP} letters and digits, without 0, O, 1, I and L."
        raise BadInput(problem, remedy)
    return "-".join(plain[i : i + CODE_GROUP] for i in range(0, len(plain), CODE_GROUP))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def split_address(text: str, scheme: str = "tcp") -> tuple[str, int]:
    """Host (an IPv6 one without its brackets) and port of ``scheme://host:port``; BadInput for anything else."""
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


def plain_code(code: str) -> str:
    """A code as people type it: any case, with or without dashes and blanks."""
    return "".join(character for character in code.upper() if character not in "- \t\n\r")
