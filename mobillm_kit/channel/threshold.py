"""What happens before a connection stands: who may come in, and why one does not get in.

Knows: zmq's authentication, keys, addresses.  Knows nothing of: messages, sessions.
Taught in: notebooks/08_device_and_server.ipynb
"""

import asyncio
import ctypes
import errno
import logging
import secrets
import socket as plain_socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import zmq
from zmq.auth import Authenticator

from mobillm_kit.channel.join import split_address
from mobillm_kit.channel.sockets import Bell
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.errors import AddressInUse, BadInput, HandshakeFailed

log = logging.getLogger(__name__)

DOMAIN = "mobillm"
_GREETING_BYTES = 64

_SENTENCES = msgspec.toml.decode(Path(__file__).with_suffix(".toml").read_bytes())
"""Problem and remedy, by reason."""


class Doorkeeper:
    """Answers ZeroMQ's question (ZAP, RFC 27) whether a key may enter; in a thread of its own."""

    def __init__(self, context: zmq.Context[Any], admit: Callable[[str], bool]) -> None:
        self._admit = admit
        self._bell = Bell()
        self._authenticator = Authenticator(context, log=log)
        self._authenticator.configure_curve_callback(DOMAIN, self)
        self._authenticator.start()
        self._thread = threading.Thread(target=self._answer, name="mobillm door", daemon=True)
        self._thread.start()

    def callback(self, _domain: str, key: bytes) -> bool:
        """What the authenticator asks; the key comes as z85 already."""
        try:
            return bool(self._admit(key.decode("ascii")))
        except Exception:  # a damaged allow-list lets nobody in, and must not end this thread either
            log.exception("Whether a key may connect could not be decided; it may not.")
            return False

    def close(self) -> None:
        """Answer no more; returns when the thread has ended, or did not in time."""
        self._bell.ring()
        self._thread.join(TIMINGS.socket_leave_s)

    def _answer(self) -> None:
        questions = self._authenticator.zap_socket
        poller = zmq.Poller()
        poller.register(questions, zmq.POLLIN)
        poller.register(self._bell.ear, zmq.POLLIN)
        try:
            # the authenticator's method is a coroutine, though one that never waits
            with suppress(zmq.ContextTerminated), asyncio.Runner() as runner:
                while questions in dict(poller.poll()):
                    runner.run(self._authenticator.handle_zap_message(questions.recv_multipart()))
        finally:
            self._authenticator.stop()
            self._bell.close()


def make_routes_unpredictable() -> None:
    """Seed the C library's generator, from which libzmq takes the first route of a ROUTER.

    libzmq 4.3.5 never seeds it, so that every server hands out the same routes, and it ends the whole process
    ("Assertion failed: ok") when a stranger claims the very route that is next.  Nobody else here uses that generator.
    """
    ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None).srand(ctypes.c_uint(secrets.randbits(32)))


def failure(reason: str, address: str, encrypted: bool) -> HandshakeFailed:
    """What is said of a device that does not get in."""
    said = _SENTENCES[{"no-curve": "no-curve-there" if encrypted else "no-curve-here"}.get(reason, reason)]
    return HandshakeFailed(said["problem"].format(address=address), said["remedy"], reason=reason)


def mechanism_at(address: str) -> str | None:
    """Ask a port for its ZMTP greeting (RFC 23): 64 bytes, of which 12..31 name the security mechanism.

    Returns:
        "NULL", "CURVE", another name, "" when something answers in another language, None when nothing answers.
    """
    ours = b"\xff" + bytes(8) + b"\x7f\x03"  # signature and version; named no mechanism, the server names its own
    theirs = b""
    with suppress(OSError), plain_socket.create_connection(split_address(address), TIMINGS.look_s) as probe:
        probe.settimeout(TIMINGS.look_s)
        probe.sendall(ours)
        deadline = time.monotonic() + TIMINGS.look_s
        while len(theirs) < _GREETING_BYTES and time.monotonic() < deadline:
            received = probe.recv(_GREETING_BYTES - len(theirs))
            if not received:
                break
            theirs += received
    if not theirs:
        return None
    if len(theirs) < 32 or theirs[:1] != b"\xff" or theirs[9:10] != b"\x7f":
        return ""
    return theirs[12:32].rstrip(b"\0").decode("ascii", errors="replace")


def attach(socket: zmq.Socket[Any], address: str, *, listen: bool) -> None:
    """Listen, or begin to connect.

    Raises:
        AddressInUse: somebody listens there.
        BadInput: it is no address, or to listen at, none of this machine.
    """
    try:
        (socket.bind if listen else socket.connect)(address)
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE:
            problem = f"{address}: another program listens there."
            raise AddressInUse(problem, "Stop it, or choose another port (0 takes a free one).") from error
        what = "listen there" if listen else "connect"
        remedy = "Name an address of this machine." if listen else "It has the form tcp://host:port."
        raise BadInput(f"{address}: cannot {what} ({error}).", remedy) from error
