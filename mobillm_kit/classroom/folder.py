"""A class's folder: where its things lie, and its settings.

    NAME/settings.toml   where the server listens, what it allows          NAME/keys/   the server's own key
    NAME/class.sqlite    students, codes, sessions                         NAME/log.jsonl, log.jsonl.1, …
    NAME/sessions/       checkpoints and cached activations                NAME/board.toml   the board's links

Knows: paths, settings.  Knows nothing of: who is in the class.
"""

import socket
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from mobillm_kit.channel.join import JoinString, is_loopback, split_address
from mobillm_kit.channel.keys import load_or_make_keys
from mobillm_kit.errors import BadInput, SaveFailed
from mobillm_kit.files import write_bytes
from mobillm_kit.server import Count, ServiceSettings

_TEMPLATE = """\
# One server for a class.  A change counts from the next `mobillm class serve` on; each line may be left out.

# Where the server listens; 0.0.0.0 is every address of this machine.
bind = "{bind}"
# Host name or address by which students' devices reach this machine.
advertise = "{advertise}"

# TCP port of the board, a page that shows the class; 0 for none.
board = {board}

# Sessions that are trained at a time, all students together.
max_sessions = {max_sessions}
# Of them, so many of one student; half of them at most.
per_device = {per_device}
# Minutes that a device waits in line where all of them are taken; then it is told so, and ends.
line_minutes = {line_minutes}
# Training steps per second of one student, all sessions together; more are held back.  0 is no limit.
steps_per_second = {steps_per_second}
# MiB of memory for training and for batches that wait, all sessions together.
budget = {budget}
# MiB of cached activations in memory, and on disk, each session.
cache_memory = {cache_memory}
cache_disk = {cache_disk}
# MiB of all checkpoints and cached activations; beyond it the longest unused go.
disk = {disk}
# What nobody trained on for so many days is removed.
keep_days = {keep_days}
"""


class ClassSettings(ServiceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``settings.toml`` says: where a class's server listens, and what a server allows."""

    bind: str = "tcp://0.0.0.0:7000"
    """Where to listen."""
    advertise: str = "127.0.0.1"
    """Host name or address by which devices reach this machine."""
    board: Annotated[int, Meta(ge=0, le=65535)] = 8080
    """TCP port of the page that shows the class; 0 for none."""
    max_sessions: Count = 32
    """Devices at a time."""
    line_minutes: Annotated[float, Meta(gt=0, le=1440)] = 15.0
    """A device's wait in line where all places are taken."""
    steps_per_second: Annotated[float, Meta(ge=0, le=10_000)] = 0.0
    """Training steps of one student, all sessions together; 0 is no limit."""
    cache_memory: Annotated[int, Meta(ge=0)] = 64
    """MiB of cached activations in memory, per device: 32 of them have to fit."""
    cache_disk: Annotated[int, Meta(ge=0)] = 1024
    """MiB of cached activations on disk, per device."""

    @property
    def host(self) -> str:
        """What devices reach, in brackets where it is an IPv6 address."""
        return f"[{self.advertise}]" if ":" in self.advertise else self.advertise

    @property
    def reachable(self) -> str:
        """``tcp://host:port``, as students' devices reach it."""
        return f"tcp://{self.host}:{split_address(self.bind)[1]}"

    def check(self) -> "ClassSettings":
        """These settings; BadInput where no device could join by them."""
        host, port = split_address(self.bind)
        if not port:
            raise BadInput("bind names port 0, another one at each start.", "Invitations need one that stays: 7000.")
        if self.board == port:
            raise BadInput(f"board and bind both name port {port}.", "Give the board another one, such as 8080.")
        if 0 < self.steps_per_second < 0.1:
            problem = f"steps_per_second is {self.steps_per_second:g}: devices would take such a server for stuck."
            raise BadInput(problem, "Give 0.1 or more, or 0 for no limit.")
        JoinString(self.reachable, server_key=40 * "0")  # is a place that one can go to
        if is_loopback(host) and not is_loopback(self.advertise):
            problem = f"bind is {host}, this machine alone, and advertise is {self.advertise}."
            raise BadInput(problem, "Bind to 0.0.0.0 for a class in a network, or advertise 127.0.0.1.")
        return self


class ClassFolder:
    """The folder of a class that :func:`begin` made; BadInput for any other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.title = root.resolve().name
        self.database = root / "class.sqlite"
        self.journal = root / "log.jsonl"
        self.keys = root / "keys"
        self.tokens = root / "board.toml"
        if not self.database.is_file():
            what = "there is no such folder" if not root.exists() else "no class was begun here"
            raise BadInput(f"{root}: {what}.", f"Begin one: mobillm class init {root}")

    def settings(self) -> ClassSettings:
        """What ``settings.toml`` says; BadInput names what cannot be used."""
        file = self.root / "settings.toml"
        try:
            said = {**msgspec.toml.decode(file.read_bytes()), "folder": self.root}
            return msgspec.convert(said, ClassSettings).check()
        except (OSError, ValueError) as error:  # BadInput is a ValueError too
            words = getattr(error, "strerror", None) or str(error)
            raise BadInput(f"{file}: {words}", "Mend that line, or remove it to have the usual value.") from error

    def join(self, code: str) -> str:
        """The join string of a student's device."""
        return str(JoinString(self.settings().reachable, load_or_make_keys(self.keys).public, code))


def begin(root: Path, settings: ClassSettings) -> None:
    """Make the folder, its settings and the server's key; BadInput where something stands there."""
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise BadInput(f"{root} is there already.", "Choose another name, or go on with it: mobillm class invite.")
    settings.check()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SaveFailed(f"{root}: could not be made ({error.strerror}).", "Choose another place.") from error
    values = {name: getattr(settings, name) for name in ClassSettings.__struct_fields__}
    write_bytes(root / "settings.toml", _TEMPLATE.format(**values).encode(), 0o600)
    load_or_make_keys(root / "keys")


def own_address(bind: str) -> str:
    """The address by which who listens at ``bind`` is reached: of all of them, what the routes say; nothing is sent."""
    host, _ = split_address(bind)
    if host not in ("0.0.0.0", "::", "*"):
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # set aside for documentation (RFC 5737): a datagram socket only looks up
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
