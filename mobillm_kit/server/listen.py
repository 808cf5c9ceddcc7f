"""A server as a process: where it listens, who may come in, and when it ends.

    mobillm server --folder FOLDER …

Knows: the service, keys, signals.  Knows nothing of: how a batch is trained, devices' data.
Taught in: notebooks/08_device_and_server.ipynb
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from mobillm_kit.channel.ends import ServerSocket
from mobillm_kit.channel.join import JoinString
from mobillm_kit.channel.keys import Door
from mobillm_kit.common import when_parent_ends
from mobillm_kit.server.service import Service, ServiceSettings, service_limits


class ServiceStart(msgspec.Struct, frozen=True, kw_only=True):
    """The line that a server process writes when it listens."""

    address: str
    join: str
    pid: int


def serve_forever(
    settings: ServiceSettings,
    *,
    bind: str = "tcp://127.0.0.1:0",
    keys: Path | None = None,
    advertise: str | None = None,
    announce: Callable[[ServiceStart], None],
    with_parent: bool = False,
) -> None:
    """Listen and serve until a signal ends it.

    Args:
        settings: what is allowed.
        bind: where to listen; anything but loopback needs keys.
        keys: folder of the server's key, the allow-list and the codes; None serves loopback without encryption.
        advertise: the host that devices reach this machine by; the bound one by default.
        announce: told where the server listens and how to join.
        with_parent: end too when the process that holds our standard input ends.

    Raises:
        BadInput: a bind that is not loopback without keys, or an address in use.
    """
    os.umask(0o077)  # checkpoints and activations are for whoever runs the server
    door = None if keys is None else Door(keys)
    settings.folder.mkdir(parents=True, exist_ok=True)
    socket = ServerSocket(
        bind,
        keys=None if door is None else door.keys,
        admit=None if door is None else door.may_connect,
        limits=service_limits(settings),
    )
    service = Service(socket, settings, door)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: service.stop())
    if with_parent:  # at once: checkpoints are whole at any moment, and an orderly end takes a busy machine seconds
        when_parent_ends(lambda: os._exit(0))
    join = "" if door is None else _join_string(door, socket.address, advertise)
    announce(ServiceStart(address=socket.address, join=join, pid=os.getpid()))
    with socket:
        service.run()


def _join_string(door: Door, address: str, advertise: str | None) -> str:
    port = address.rsplit(":", 1)[1]
    reachable = address if advertise is None else f"tcp://{advertise}:{port}"
    return str(JoinString(reachable, door.keys.public, door.codes.new_code()))
