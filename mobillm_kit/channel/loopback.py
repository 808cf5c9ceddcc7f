"""One message between two real sockets of this machine, there and back: whether sockets work here at all.

Knows: the loopback interface.  Knows nothing of: messages, keys, training.

Taught in: notebooks/00_start_here.ipynb
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import zmq

from mobillm_kit.errors import KitError


class NoRoundTrip(KitError):
    """Two sockets of this machine do not reach each other."""


def round_trip(payload: bytes, limit_s: float) -> tuple[int, bytes, float]:
    """A DEALER sends ``payload`` to a ROUTER in another thread, as the device will to the server.

    Args:
        payload: what is sent, and should return.
        limit_s: longest wait of either side, in seconds.

    Returns:
        The port, what came back, milliseconds from connecting to the answer.

    Raises:
        NoRoundTrip: nothing came back in time.
    """
    context = zmq.Context()
    try:
        return _round_trip(context, payload, limit_s)
    except zmq.ZMQError as error:
        raise NoRoundTrip(
            f"no round trip over 127.0.0.1: {error}",
            "Allow programs to talk over the loopback interface (firewall, security software).",
        ) from error
    finally:
        context.destroy(linger=0)


def _round_trip(context: zmq.Context[Any], payload: bytes, limit_s: float) -> tuple[int, bytes, float]:
    with context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
        for socket in (router, dealer):
            socket.linger = 0  # closing must not wait for a peer that is gone
            socket.rcvtimeo = socket.sndtimeo = int(limit_s * 1000)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        other = threading.Thread(target=_echo, args=(router,), name="echo", daemon=True)
        other.start()
        try:
            started = time.perf_counter()
            dealer.connect(f"tcp://127.0.0.1:{port}")
            dealer.send(payload)
            return port, dealer.recv(), (time.perf_counter() - started) * 1e3
        finally:
            other.join(2 * limit_s)  # a socket may be closed only when its thread is done with it


def _echo(router: zmq.Socket[Any]) -> None:
    with suppress(zmq.Again):  # the other side reports that nothing came
        router.send_multipart(router.recv_multipart())
