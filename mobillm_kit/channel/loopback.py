"""One message between a device's socket and a server's of this machine, there and back: whether sockets work here.

Knows: the loopback interface.  Knows nothing of: messages, keys, training.
Taught in: notebooks/00_start_here.ipynb
"""

import time
from typing import NoReturn

from mobillm_kit.channel.ends import DeviceSocket, ServerSocket
from mobillm_kit.channel.frames import Limits
from mobillm_kit.errors import KitError


def round_trip(payload: bytes, limit_s: float) -> tuple[int, bytes, float]:
    """Send ``payload`` to a server and back.

    Args:
        payload: what is sent, and should return.
        limit_s: longest wait of either side, in seconds.

    Returns:
        The port, what came back, milliseconds from connecting to the answer.

    Raises:
        KitError: nothing came back in time.
    """
    try:
        with ServerSocket("tcp://127.0.0.1:0", limits=Limits()) as server:
            started = time.perf_counter()
            with DeviceSocket(server.address, limits=Limits()) as device:
                device.wait_connected(limit_s)
                device.send([payload], limit_s)
                server.send(*(server.receive(limit_s) or _silent()))
                (back,) = device.receive(limit_s) or _silent()
                return int(server.address.rpartition(":")[2]), bytes(back), (time.perf_counter() - started) * 1e3
    except KitError as error:
        raise KitError(
            f"no round trip over 127.0.0.1: {error.problem}",
            "Allow programs to talk over the loopback interface (firewall, security software).",
        ) from error


def _silent() -> NoReturn:
    raise KitError("Nothing came in time.")
