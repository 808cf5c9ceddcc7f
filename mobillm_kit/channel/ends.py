"""The two ends of a connection: the server's socket and the device's.

    DEALER (device) ───► ROUTER (server)      one message = several frames; CURVE or, on loopback, plain

Knows: zmq, keys, frames.  Knows nothing of: what the frames mean, sessions, tensors.
Taught in: notebooks/08_device_and_server.ipynb
"""

import errno
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import zmq

from mobillm_kit.channel import threshold
from mobillm_kit.channel.connections import Connections
from mobillm_kit.channel.frames import Limits
from mobillm_kit.channel.join import check_key, is_loopback, split_address
from mobillm_kit.channel.keys import Door, KeyPair
from mobillm_kit.channel.sockets import End, checked, take_message
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.errors import BadInput

_DEVICE_INBOX = 32  # answers are small; a device that does not read for a while loses none
_CUTS = 3  # one connection cut during the handshake may be the network's fault, three in a row are not

_ARRIVALS = zmq.EVENT_ACCEPTED | zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED
_REASONS: dict[int, str] = {
    zmq.EVENT_CONNECTED: "no-answer",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "key-not-allowed",
    zmq.EVENT_CLOSED: "nothing-listens",  # the attempt to reach the port failed
}


@dataclass(frozen=True)
class Peer:
    """One connection of one device."""

    route: bytes
    """ZeroMQ's name of the connection; another one after every reconnect."""
    key: str
    """The device's public CURVE key, z85; proved by the handshake.  Empty where the server runs plain."""
    descriptor: int = -1
    """Of the connection, as the system counts them."""


class ServerSocket(End):
    """The server's end: many devices, one socket.

    Args:
        bind: ``tcp://host:port``; port 0 takes a free one.
        door: the server's key pair, and whether a device's public key (z85) may connect: asked during each handshake,
            from another thread; an exception counts as no.  None runs plain, on a loopback address only.
        limits: bounds of one message; what exceeds them is cut short so that ``frames.from_frames`` refuses it.  libzmq
            itself bounds the single frame only, and takes in a whole message before anybody can look at it.
        high_water: messages kept per device and direction.

    Raises:
        BadInput: the address is no address of this machine, or is open to others without keys and an allow-list.
        AddressInUse: somebody listens there.
    """

    def __init__(self, bind: str, *, door: Door | None = None, limits: Limits, high_water: int = 8) -> None:
        host, _ = split_address(bind)
        if door is None and not is_loopback(host):
            problem = f"{bind} can be reached by others, and the server has no keys and no allow-list."
            raise BadInput(problem, "Give it both, or bind to tcp://127.0.0.1:0.")
        threshold.make_routes_unpredictable()
        super().__init__(zmq.ROUTER, limits, high_water, high_water, events=_ARRIVALS, events_wake=False)
        self._encrypted = door is not None
        self._connections = Connections(limits.total_bytes)
        try:
            self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            self._socket.setsockopt(zmq.IPV6, ":" in host)
            if door is not None:
                self._also_close.append(threshold.Doorkeeper(self._context, door.may_connect).close)
                self._socket.setsockopt(zmq.CURVE_SERVER, 1)
                self._socket.setsockopt_string(zmq.CURVE_SECRETKEY, door.keys.secret)
                self._socket.setsockopt_string(zmq.ZAP_DOMAIN, threshold.DOMAIN)
                self._socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody enters when nobody answers at the door
            threshold.attach(self._socket, bind, listen=True)
            self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        except BaseException:
            self.close()
            raise

    def receive(self, timeout_s: float) -> tuple[Peer, list[memoryview]] | None:
        """Who sent the next message, and its frames; None when none came in time or :meth:`wake` was called."""
        with self._in_use():
            arrived = self._wait(zmq.POLLIN, timeout_s)
            self._hear_events()
            if not arrived:
                return None
            try:
                route = self._socket.recv(zmq.DONTWAIT)
            except zmq.Again:  # its sender left between the two calls
                return None
            key, descriptor, frames = take_message(self._socket, self._limits)
            self._connections.heard(descriptor)
            if self._encrypted and not key:
                return None  # cannot happen while CURVE is on; were it off, nobody's message counts
            return Peer(route, key, descriptor), frames

    def send(self, peer: Peer, frames: Sequence[bytes | bytearray | memoryview]) -> bool:
        """Hand a message to ZeroMQ; never waits.  A large frame is not copied: leave its memory unchanged.

        False, and nothing sent, when the peer is gone or its queue is full; BadInput beyond the limits.
        """
        parts = checked(frames, self._limits)
        with self._in_use():
            try:
                self._socket.send_multipart([peer.route, *parts], zmq.DONTWAIT, copy=False)
            except zmq.ZMQError as error:
                if error.errno in (errno.EAGAIN, errno.EHOSTUNREACH):
                    return False
                raise
            return True

    def know(self, peer: Peer, known: bool) -> None:
        """Say whether a session stands on this connection: strangers get little time and room."""
        self._connections.know(peer.descriptor, known, time.monotonic())

    def cut_off(self) -> None:
        """End the connections that take more time or room than they may; see `mobillm_kit.channel.connections`."""
        with self._in_use():
            self._hear_events()
            self._connections.cut(time.monotonic())

    def _hear_events(self) -> None:
        for event, descriptor in self._events():
            if event == zmq.EVENT_ACCEPTED:
                self._connections.accepted(descriptor, time.monotonic())
            else:
                self._connections.closed(descriptor)


class DeviceSocket(End):
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
        super().__init__(zmq.DEALER, limits, high_water, _DEVICE_INBOX, events=zmq.EVENT_ALL, events_wake=True)
        try:
            socket = self._socket
            socket.setsockopt(zmq.IPV6, ":" in host)
            socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a server that is not there
            socket.setsockopt(zmq.RECONNECT_IVL, 100)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
            socket.setsockopt(zmq.CONNECT_TIMEOUT, 3000)
            if server_key is not None and keys is not None:
                socket.setsockopt_string(zmq.CURVE_SERVERKEY, check_key(server_key, "server key"))
                socket.setsockopt_string(zmq.CURVE_PUBLICKEY, keys.public)
                socket.setsockopt_string(zmq.CURVE_SECRETKEY, keys.secret)
            threshold.attach(socket, address, listen=False)
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
            with self._in_use():
                self._hear_events()
                if self.connected:
                    return
                self._wait(0, deadline - time.monotonic())
            if self._cuts >= _CUTS:
                self._reason, self._cuts = self._look_closer(), 0
            failure = threshold.failure(self._reason, self.address, self._encrypted)
            if not failure.may_pass or time.monotonic() >= deadline:
                self._reason = "nothing-listens"  # so that the next wait judges anew
                raise failure

    def send(self, frames: Sequence[bytes | bytearray | memoryview], timeout_s: float) -> bool:
        """Hand a message to ZeroMQ as soon as there is a connection with room; leave large frames' memory unchanged.

        False, and nothing sent, when there was none in time; BadInput beyond the limits.
        """
        parts = checked(frames, self._limits)
        deadline = time.monotonic() + timeout_s
        with self._in_use():
            while True:
                self._hear_events()
                with suppress(zmq.Again):
                    self._socket.send_multipart(parts, zmq.DONTWAIT, copy=False)
                    return True
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self._wait(zmq.POLLOUT, left_s)

    def receive(self, timeout_s: float) -> list[memoryview] | None:
        """The next message's frames; None when none came in time, at a :meth:`wake`, without or on a new connection."""
        with self._in_use():
            # while libzmq may have given up, nothing else would end the wait
            arrived = self._wait(zmq.POLLIN, timeout_s if self.connected else min(timeout_s, TIMINGS.given_up_s))
            self._hear_events()
            with suppress(zmq.Again):  # its sender left between the two calls
                return take_message(self._socket, self._limits)[-1] if arrived else None
            return None

    def close(self, flush_s: float = 0.0) -> None:
        """Close for good, within two seconds; from any thread, as often as one likes."""
        super().close(flush_s)
        self.connected = False

    def _hear_events(self) -> None:
        for event, value in self._events():
            self._last_event, self._last_event_at = event, time.monotonic()
            self._reason = _REASONS.get(event, self._reason)
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.connected = True
                self.connections += 1
                self._cuts = 0
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
                    self._reason = "no-curve"
            elif event == zmq.EVENT_DISCONNECTED:
                self._cuts += not self.connected
                self.connected = False
        self._connect_anew_if_given_up()

    def _connect_anew_if_given_up(self) -> None:
        """libzmq connects again after a loss, but not after bytes that break its protocol, nor after a refusal."""
        if self._last_event == zmq.EVENT_DISCONNECTED and time.monotonic() - self._last_event_at > TIMINGS.given_up_s:
            self._last_event = 0
            with suppress(zmq.ZMQError):  # it has forgotten the address already
                self._socket.disconnect(self.address)
            threshold.attach(self._socket, self.address, listen=False)

    def _look_closer(self) -> str:
        """Why the other side breaks off the handshake; ZeroMQ itself does not say."""
        mechanism = threshold.mechanism_at(self.address)
        if mechanism is None:
            return "no-answer"
        if mechanism not in ("NULL", "CURVE"):
            return "not-mobillm"
        if (mechanism == "CURVE") != self._encrypted:
            return "no-curve"
        # a server that has taken this key before holds it still: then it is the network that cuts
        return "wrong-server-key" if self._encrypted and not self.connections else "no-answer"
