"""The server's end of a connection: many devices, one socket, and the door that asks who may come in.

    DEALER (device) ───► ROUTER (server)      one message = several frames; CURVE or, on loopback, plain

One thread uses a socket; ``wake`` and ``close`` may come from any other.

Knows: zmq, keys, frames.  Knows nothing of: what the frames mean, sessions, tensors.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import secrets
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zmq
from zmq.auth import Authenticator

from mobillm_kit.channel.join import is_loopback, split_address
from mobillm_kit.channel.keys import KeyPair
from mobillm_kit.channel.sockets import Bell, Core, checked, take_message
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.errors import AddressInUse, BadInput

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from mobillm_kit.channel import Limits

log = logging.getLogger(__name__)

_DOMAIN = "mobillm"


@dataclass(frozen=True)
class Peer:
    """One connection of one device."""

    route: bytes
    """ZeroMQ's name of the connection; another one after every reconnect."""
    key: str
    """The device's public CURVE key, z85; proved by the handshake.  Empty where the server runs plain."""


class ServerSocket:
    """The server's end: many devices, one socket.

    Args:
        bind: ``tcp://host:port``; port 0 takes a free one.
        keys: the server's key pair; None runs plain, on a loopback address only.
        admit: whether a device's public key (z85) may connect; asked during each handshake, from another thread; an
            exception counts as no.
        limits: bounds of one message; what exceeds them is cut short so that ``wire.from_frames`` refuses it.  libzmq
            itself bounds the single frame only, and takes in a whole message before anybody can look at it.
        high_water: messages kept per device and direction.

    Raises:
        BadInput: the address is no address of this machine, or is open to others without keys and an allow-list.
        AddressInUse: somebody listens there.
    """

    def __init__(
        self,
        bind: str,
        *,
        keys: KeyPair | None = None,
        admit: Callable[[str], bool] | None = None,
        limits: Limits,
        high_water: int = 8,
    ) -> None:
        host, _ = split_address(bind)
        _check_protected(bind, host, keys, admit)
        _make_routes_unpredictable()
        self._core = Core(zmq.ROUTER, limits, high_water, high_water)
        weakref.finalize(self, self._core.close, 0.0)  # forgotten sockets: a rerun cell, the end of the program
        self._encrypted = keys is not None
        try:
            self._core.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            self._core.socket.setsockopt(zmq.IPV6, ":" in host)
            if keys is not None and admit is not None:
                self._core.also_close.append(_Door(self._core.context, admit).close)
                self._protect(keys)
            _bind(self._core.socket, bind)
            self.address: str = self._core.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        except BaseException:
            self.close()
            raise

    def receive(self, timeout_s: float) -> tuple[Peer, list[memoryview]] | None:
        """The next message, from whomever.

        Returns:
            who sent it and its frames; None when none came in time or :meth:`wake` was called.
        """
        with self._core.in_use():
            if not self._core.wait_for_message(timeout_s):
                return None
            try:
                route = self._core.socket.recv(zmq.DONTWAIT)
            except zmq.Again:  # its sender left between the two calls
                return None
            key, frames = take_message(self._core.socket, self._core.limits)
            if self._encrypted and not key:
                return None  # cannot happen while CURVE is on; were it off, nobody's message counts
            return Peer(route, key), frames

    def send(self, peer: Peer, frames: Sequence[Buffer]) -> bool:
        """Hand a message to ZeroMQ; never waits.  A large frame is not copied: leave its memory unchanged.

        Returns:
            False when the peer is gone or its queue is full; nothing was sent then.

        Raises:
            BadInput: a frame is larger, or the message longer, than the limits.
        """
        parts = checked(frames, self._core.limits)
        with self._core.in_use():
            try:
                self._core.socket.send_multipart([peer.route, *parts], zmq.DONTWAIT, copy=False)
            except zmq.ZMQError as error:
                if error.errno in (errno.EAGAIN, errno.EHOSTUNREACH):
                    return False
                raise
            return True

    def wake(self) -> None:
        """Let :meth:`receive` return now, or at once when it is next called; from any thread."""
        self._core.wake()

    def close(self, flush_s: float = 0.0) -> None:
        """Close for good, within two seconds; from any thread, as often as one likes.

        Args:
            flush_s: time that messages already handed over get to leave, at most half a second.
        """
        self._core.close(flush_s)

    def __enter__(self) -> ServerSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _protect(self, keys: KeyPair) -> None:
        socket = self._core.socket
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt_string(zmq.CURVE_SECRETKEY, keys.secret)
        socket.setsockopt_string(zmq.ZAP_DOMAIN, _DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody enters when nobody answers at the door


class _Door:
    """Answers ZeroMQ's question (ZAP, RFC 27) whether a key may enter; in a thread of its own."""

    def __init__(self, context: zmq.Context[Any], admit: Callable[[str], bool]) -> None:
        self._admit = admit
        self._bell = Bell()
        self._authenticator = Authenticator(context, log=log)
        self._authenticator.configure_curve_callback(_DOMAIN, self)
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


def _make_routes_unpredictable() -> None:
    """Seed the C library's generator, from which libzmq takes the first route of a ROUTER.

    libzmq 4.3.5 never seeds it, so that every server hands out the same routes, and it ends the whole process
    ("Assertion failed: ok") when a stranger claims the very route that is next.  Nobody else here uses that generator.
    """
    library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
    library.srand(ctypes.c_uint(secrets.randbits(32)))


def _check_protected(bind: str, host: str, keys: KeyPair | None, admit: Callable[[str], bool] | None) -> None:
    """Raises: BadInput: others can reach the address, and there are no keys or no allow-list."""
    if (keys is None) != (admit is None):
        raise BadInput("Keys and allow-list came one without the other.", "Give both, or on loopback neither.")
    if keys is None and not is_loopback(host):
        raise BadInput(
            f"{bind} can be reached by others, and the server has no keys and no allow-list.",
            "Give it both, or bind to tcp://127.0.0.1:0.",
        )


def _bind(socket: zmq.Socket[Any], address: str) -> None:
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"{address}: another program listens there.", "Stop it, or choose another port (0 takes a free one)."
            ) from error
        raise BadInput(f"{address}: cannot listen there ({error}).", "Name an address of this machine.") from error
