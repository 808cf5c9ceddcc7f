"""Ways to a server: one started for this run, one at an address, one behind a join string, or through a slow link.

Knows: addresses, keys, links.  Knows nothing of: sessions, training.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from mobillm_kit.channel.ends import DeviceSocket
from mobillm_kit.channel.frames import Limits
from mobillm_kit.channel.join import JoinString
from mobillm_kit.channel.keys import load_or_make_keys
from mobillm_kit.channel.messages import LabelMode
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.device.client import Connection
from mobillm_kit.device.forward import Device
from mobillm_kit.device.uplink import MESSAGE_LIMIT_BYTES, Wire
from mobillm_kit.errors import BadInput
from mobillm_kit.link.shaping import LinkProcess
from mobillm_kit.quant import codec as codec_of
from mobillm_kit.server.process import serve
from mobillm_kit.server.side_trainer import SideTrainer

DEVICE_KEYS = Path("~/.config/mobillm_kit/device")


@dataclass(frozen=True)
class Route:
    """How to come to a server, and what to do when one is done with it."""

    connect: Callable[[], Connection]
    code: str
    close: Callable[[], None]


def route_to(server: str, *, link: str = "", keys: str = "", folder: Path | None = None) -> Route:
    """Connections to a server.

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
        limits = Limits(frame_bytes=MESSAGE_LIMIT_BYTES, total_bytes=MESSAGE_LIMIT_BYTES)
        close = stack.pop_all().close

    def connect() -> DeviceSocket:
        """Another connection to the same server."""
        return DeviceSocket(address, server_key=server_key or None, keys=pair, limits=limits)

    return Route(connect, code, close)


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


def wire(
    device: Device,
    local: SideTrainer,
    server: str,
    codec: str,
    group: int,
    weight_decay: float,
    folder: Path | None,
    *,
    labels: LabelMode = "server",
    cache: bool = False,
    checkpoint_every: int = 25,
    link: str = "",
    keys: str = "",
    patience_s: float = TIMINGS.patience_s,
) -> Wire:
    """MobiLLM's uplink; ``server``, ``link``, ``keys`` as for :func:`route_to`, the others as for :class:`Wire`.

    ``codec`` is a name, ``none`` (float32) or ``adaptive``; a spawned server keeps its checkpoints in ``folder``.

    Raises:
        BadInput: an unknown label mode or codec, or a start that needs a backbone.
    """
    if local.model.adapter.spec.start == "backbone":
        remedy = "Choose start='random' there, or server='in-process'."
        raise BadInput("start='backbone': a server in another process has no backbone to start from.", remedy)
    if labels not in get_args(LabelMode):
        raise BadInput(f"labels is '{labels}'.", "Choose 'server', 'residual' or 'device'.")
    return Wire(
        device,
        local,
        lambda: route_to(server, link=link, keys=keys, folder=None if folder is None else folder / "server"),
        coder=None if codec == "adaptive" else codec_of("fp32" if codec == "none" else codec, group),
        group=group,
        labels=labels,
        cache=cache,
        checkpoint_every=checkpoint_every,
        weight_decay=weight_decay,
        patience_s=patience_s,
    )
