"""The device's end of a connection: one server, and why it cannot be reached.

    DEALER (device) ───► ROUTER (server)      one message = several frames; CURVE or, on loopback, plain

One thread uses a socket; ``wake`` and ``close`` may come from any other.

Knows: zmq, keys, frames.  Knows nothing of: what the frames mean, sessions, tensors.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import socket as plain_socket
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import zmq

from mobillm_kit.channel.join import check_key, split_address
from mobillm_kit.channel.keys import KeyPair
from mobillm_kit.channel.sockets import Core, checked, take_message
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.errors import BadInput, HandshakeFailed

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from mobillm_kit.channel import Limits

_DEVICE_INBOX = 32  # answers are small, but libzmq hears no heartbeat while the inbox is full
_CUTS = 3  # one connection cut during the handshake may be the network's fault, three in a row are not
_GREETING_BYTES = 64

_WATCHED = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_DELAYED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)

_SENTENCES = {
    "nothing-listens": (
        "Nothing listens at {address}.",
        "Start the server, or ask for its present join string; a firewall may also stand between.",
    ),
    "no-answer": (
        "Something listens at {address}, but it does not answer as a MobiLLM server does.",
        "Check host and port; if they are right the server hangs or the network loses what is sent.",
    ),
    "key-not-allowed": (
        "The server at {address} does not know this device's key.",
        "Ask whoever runs the server to put the key on its allow-list, or for a fresh one-time code.",
    ),
    "wrong-server-key": (
        "The server at {address} does not hold the key in the join string: it broke off the key exchange.",
        "Ask for its present join string; if that one fails too, somebody else answers at this address.",
    ),
    "not-mobillm": ("What listens at {address} is no MobiLLM server.", "Check host and port."),
    "no-curve-there": (
        "The server at {address} speaks without encryption (no CURVE), and this device has a key for it.",
        "Start the server with keys, or join without one if it runs on this very machine.",
    ),
    "no-curve-here": (
        "The server at {address} speaks CURVE only, and this device came without keys.",
        "Use the whole join string: it holds the server's key.",
    ),
}


class DeviceSocket:
    """The device's end: one server.

    ZeroMQ connects, and after a loss connects again, by itself.  What was under way is lost then, and the server sees
    a new :class:`Peer`: whoever sees :attr:`connections` grow has to say hello again.

    Args:
        address: ``tcp://host:port``.
        server_key: the server's public CURVE key, z85; None speaks plain.
        keys: this device's key pair; needed with ``server_key``.
        limits: bounds of one message, as on the server.
        high_water: messages that may wait to leave: credit + 1.

    Raises:
        BadInput: the address or a key is malformed, or one key came without the other.
    """

    def __init__(
        self,
        address: str,
        *,
        server_key: str | None = None,
        keys: KeyPair | None = None,
        limits: Limits,
        high_water: int = 5,
    ) -> None:
        host, _ = split_address(address)
        if (server_key is None) != (keys is None):
            raise BadInput("One key came without the other.", "CURVE needs the server's key and this device's pair.")
        self.address = address
        self._encrypted = server_key is not None
        self.connected = False
        """Whether the handshake was done and the connection stands; brought up to date by every wait."""
        self.connections = 0
        """How often the handshake was done since the beginning."""
        self._reason = "nothing-listens"
        self._cuts = 0
        self._last_event, self._last_event_at = 0, 0.0
        self._core = Core(zmq.DEALER, limits, high_water, _DEVICE_INBOX)
        weakref.finalize(self, self._core.close, 0.0)
        try:
            socket = self._core.socket
            socket.setsockopt(zmq.IPV6, ":" in host)
            socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a server that is not there
            socket.setsockopt(zmq.RECONNECT_IVL, 100)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
            socket.setsockopt(zmq.CONNECT_TIMEOUT, 3000)
            if server_key is not None and keys is not None:
                socket.setsockopt_string(zmq.CURVE_SERVERKEY, check_key(server_key, "server key"))
                socket.setsockopt_string(zmq.CURVE_PUBLICKEY, keys.public)
                socket.setsockopt_string(zmq.CURVE_SECRETKEY, keys.secret)
            self._core.watch(_WATCHED)
            _connect(socket, address)
        except BaseException:
            self.close()
            raise

    def wait_connected(self, timeout_s: float = TIMINGS.handshake_s) -> None:
        """Wait until the handshake is done.

        Raises:
            HandshakeFailed: naming the cause.  A refusal is reported as soon as it is known; silence, and a port where
                nothing listens, when the time is up, because the server may be about to start.  The socket goes on
                trying: one may wait again.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with self._core.in_use():
                self._hear_events()
                if self.connected:
                    return
                self._core.wait_for_event(deadline - time.monotonic())
            if self._cuts >= _CUTS:
                self._reason, self._cuts = self._look_closer(), 0
            failure = HandshakeFailed(*_sentence(self._reason, self.address, self._encrypted), reason=self._reason)
            if not failure.may_pass or time.monotonic() >= deadline:
                self._reason = "nothing-listens"  # so that the next wait judges anew
                raise failure

    def send(self, frames: Sequence[Buffer], timeout_s: float) -> bool:
        """Hand a message to ZeroMQ as soon as there is a connection with room.  Large frames are not copied: leave
        their memory unchanged.

        Returns:
            False when there was none in time; nothing was sent then.

        Raises:
            BadInput: a frame is larger, or the message longer, than the limits.
        """
        parts = checked(frames, self._core.limits)
        deadline = time.monotonic() + timeout_s
        with self._core.in_use():
            while True:
                self._hear_events()
                with suppress(zmq.Again):
                    self._core.socket.send_multipart(parts, zmq.DONTWAIT, copy=False)
                    return True
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self._core.wait_for_room(left_s)

    def receive(self, timeout_s: float) -> list[memoryview] | None:
        """The next message.

        Returns:
            its frames; None when none came in time, :meth:`wake` was called, or there is no connection, or a new one.
        """
        with self._core.in_use():
            # while libzmq may have given up, nothing else would end the wait
            arrived = self._core.wait_for_message(timeout_s if self.connected else min(timeout_s, TIMINGS.given_up_s))
            self._hear_events()
            with suppress(zmq.Again):  # its sender left between the two calls
                return take_message(self._core.socket, self._core.limits)[1] if arrived else None
            return None

    def wake(self) -> None:
        """Let :meth:`receive` return now, or at once when it is next called; from any thread."""
        self._core.wake()

    def close(self, flush_s: float = 0.0) -> None:
        """Close for good, within two seconds; from any thread, as often as one likes.

        Args:
            flush_s: time that messages already handed over get to leave, at most half a second.
        """
        self._core.close(flush_s)
        self.connected = False

    def __enter__(self) -> DeviceSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hear_events(self) -> None:
        for event, value in self._core.events():
            self._last_event, self._last_event_at = event, time.monotonic()
            if event == zmq.EVENT_CONNECTED:
                self._reason = "no-answer"
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.connected = True
                self.connections += 1
                self._cuts = 0
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._reason = "key-not-allowed"
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
                    self._reason = "no-curve"
            elif event == zmq.EVENT_DISCONNECTED:
                self._cuts += not self.connected
                self.connected = False
            elif event == zmq.EVENT_CLOSED:  # the attempt to reach the port failed
                self._reason = "nothing-listens"
        self._connect_anew_if_given_up()

    def _connect_anew_if_given_up(self) -> None:
        """libzmq connects again after a loss, but not after bytes that break its protocol, nor after a refusal."""
        given_up = self._last_event == zmq.EVENT_DISCONNECTED
        if given_up and time.monotonic() - self._last_event_at > TIMINGS.given_up_s:
            self._last_event = 0
            with suppress(zmq.ZMQError):  # it has forgotten the address already
                self._core.socket.disconnect(self.address)
            _connect(self._core.socket, self.address)

    def _look_closer(self) -> str:
        """Why the other side breaks off the handshake; ZeroMQ itself does not say."""
        mechanism = _mechanism_at(self.address)
        if mechanism is None:
            return "no-answer"
        if mechanism not in ("NULL", "CURVE"):
            return "not-mobillm"
        if (mechanism == "CURVE") != self._encrypted:
            return "no-curve"
        # a server that has taken this key before holds it still: then it is the network that cuts
        return "wrong-server-key" if self._encrypted and not self.connections else "no-answer"


def _sentence(reason: str, address: str, encrypted: bool) -> tuple[str, str]:
    """Returns: problem and remedy."""
    if reason == "no-curve":
        reason = "no-curve-there" if encrypted else "no-curve-here"
    problem, remedy = _SENTENCES[reason]
    return problem.format(address=address), remedy


def _mechanism_at(address: str) -> str | None:
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


def _connect(socket: zmq.Socket[Any], address: str) -> None:
    try:
        socket.connect(address)
    except zmq.ZMQError as error:
        raise BadInput(f"{address}: cannot connect ({error}).", "It has the form tcp://host:port.") from error
