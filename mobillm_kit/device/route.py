"""Ways to a server: one started for this run, one at an address, one behind a join string, or through a slow link.

Knows: addresses, keys, links.  Knows nothing of: sessions, training.
Taught in: notebooks/08_device_and_server.ipynb
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from mobillm_kit.channel.ends import DeviceSocket
from mobillm_kit.channel.join import JoinString
from mobillm_kit.channel.keys import load_or_make_keys
from mobillm_kit.device.client import LIMITS
from mobillm_kit.errors import BadInput
from mobillm_kit.link.shaping import LinkProcess
from mobillm_kit.server.process import serve

DEVICE_KEYS = Path("~/.config/mobillm_kit/device")


@contextmanager
def route_to(
    server: str, *, link: str = "", keys: str = "", folder: Path | None = None
) -> Iterator[tuple[Callable[[], DeviceSocket], str]]:
    """A way to a server for the time of a ``with`` block: what opens another connection, and the one-time code.

    Args:
        server: ``spawn`` starts a process for this run; otherwise ``tcp://host:port`` on this machine, or a join
            string.
        link: a shaped link to put between, as ``wifi-60`` or ``20mbit,10ms``; empty for none.
        keys: folder of this device's keys; the user's configuration folder by default.
        folder: of a spawned server's checkpoints; a temporary one by default.

    Raises:
        BadInput: not an address, a join string or ``spawn``; or a link that is not one.
    """
    with ExitStack() as stack:
        address, server_key, code = _address(server, stack, folder)
        pair = load_or_make_keys(Path(keys) if keys else DEVICE_KEYS.expanduser()) if server_key else None
        if link:
            host, port = address.removeprefix("tcp://").rsplit(":", 1)
            address = stack.enter_context(LinkProcess((host, int(port)), link)).endpoint
        yield partial(DeviceSocket, address, server_key=server_key or None, keys=pair, limits=LIMITS), code


def _address(server: str, stack: ExitStack, folder: Path | None) -> tuple[str, str, str]:
    if server == "spawn":
        process = stack.enter_context(serve(folder, options=("--max-sessions", "1")))  # ours alone
        return process.address, "", ""
    if server.startswith("mobillm://"):
        join = JoinString.parse(server)
        return join.address, join.server_key, join.code
    if server.startswith("tcp://"):
        return JoinString(server).address, "", ""
    problem = "No file keeps where the server was." if server == "elsewhere" else f"'{server}' is no server."
    raise BadInput(problem, "Give 'spawn', tcp://127.0.0.1:PORT, or a join string mobillm://…")
