"""A class's server: the plain server with the class's door, its journal, an eye on the list, and its board.

Knows: the folder, the door, the journal, the server, the board.  Knows nothing of: how a batch is trained.
"""

import logging
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack

from mobillm_kit.channel.join import split_address
from mobillm_kit.classroom.database import RosterError
from mobillm_kit.classroom.door import ClassDoor
from mobillm_kit.classroom.folder import ClassFolder, ClassSettings
from mobillm_kit.classroom.journal import QUIET_S, journal
from mobillm_kit.classroom.line import LineService
from mobillm_kit.classroom.links import Tokens, load_or_make_tokens
from mobillm_kit.classroom.roster import Roster
from mobillm_kit.classroom.standing import Recent, Standing
from mobillm_kit.errors import KitError
from mobillm_kit.files import only_one
from mobillm_kit.server.process import ServiceStart
from mobillm_kit.server.service import Service, serve_forever

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks at the list: whoever is removed trains so long at most."""


def serve_class(folder: ClassFolder, say: Callable[[str], None]) -> None:
    """Serve a class until a signal ends it; ``say`` is told where, and the board's links.

    Raises:
        FolderBusy: this class's server runs already.
        RosterError: the list cannot be used at the beginning; later that costs a sentence only.
        BadInput, AddressInUse: as for :func:`mobillm_kit.server.service.serve_forever`.
    """
    settings, roster, recent = folder.settings(), Roster(folder.database), Recent()
    ended = threading.Event()
    with only_one(folder.root), ExitStack() as open_for_now:
        tokens = load_or_make_tokens(folder.tokens)
        roster.all_ended("the server ended")
        door = ClassDoor(folder.keys, roster)
        door.look()
        told = open_for_now.enter_context(journal(folder.journal, roster, door.name_of, recent))

        def begin(start: ServiceStart, service: Service) -> None:
            """The list is kept, and the class shown, from when there is a service to turn out of."""
            assert isinstance(service, LineService)
            standing = Standing(folder.title, roster, told, recent, lambda: service.waiting, door.name_of, service.held)
            show = _board(settings, tokens, roster, open_for_now, say)
            say(f"Listening at {start.address}; log: {folder.journal}")

            def keep() -> None:
                """Turn out whoever was taken off the list; write down, and show, how far the others are."""
                service.turned_out.extend(door.look())
                if found := told.progress():
                    roster.progress(found)
                if show is not None:
                    show(standing.look())

            threading.Thread(target=_keep, args=(keep, ended), daemon=True, name="list").start()

        try:
            serve_forever(
                settings, bind=settings.bind, door=door, advertise=settings.host, announce=begin, kind=LineService
            )
        finally:
            ended.set()


def _board(
    settings: ClassSettings, tokens: Tokens, roster: Roster, open_for_now: ExitStack, say: Callable[[str], None]
) -> Callable[[tuple[bytes, bytes]], None] | None:
    """Open the board, and give what shows something on it; where that cannot be, a sentence, and the class goes on."""
    if not settings.board:
        return None
    try:
        from mobillm_kit.classroom.board import Board, shown

        listener = open_for_now.enter_context(_listen(settings))
    except ModuleNotFoundError as missing:
        need = f"The board needs {missing.name}, which is not installed: pip install 'mobillm-kit[class]'."
        say(f"{need} The class is served without it.")
        return None
    except KitError as error:
        say(f"{error} The class is served without its board.")
        return None
    board = Board(tokens, roster.remove)
    open_for_now.enter_context(shown(board, listener))
    say(f"Board, for all to watch: http://{settings.host}:{settings.board}/?token={tokens.viewer}")
    # by loopback: the link that may take students off the list crosses no network unless its owner lets it
    say(f"Board, for you alone:    http://127.0.0.1:{settings.board}/?token={tokens.instructor}")
    return board.show


def _listen(settings: ClassSettings) -> socket.socket:
    """Where the server listens, at the board's port."""
    host = split_address(settings.bind)[0]
    host = "0.0.0.0" if host == "*" else host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, settings.board), family=family, backlog=64)
    except OSError as error:
        problem = f"The board cannot listen at port {settings.board} of {host} ({error.strerror or error})."
        remedy = "Choose another port: the line `board` in settings.toml."
        raise KitError(problem, remedy) from error


def _keep(keep: Callable[[], None], ended: threading.Event) -> None:
    """Again and again; what goes wrong is said now and then, and ends nothing: who is removed has to go."""
    quiet_s = 0.0
    while not ended.wait(LOOK_S):
        quiet_s -= LOOK_S
        try:
            keep()
        except Exception as error:
            if quiet_s <= 0:
                quiet_s = QUIET_S
                log.warning("%s", error, exc_info=not isinstance(error, RosterError))
