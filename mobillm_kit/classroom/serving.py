"""A class's server: the plain server with the class's door, its journal, and an eye on the list.

Knows: the folder, the door, the journal, the server.  Knows nothing of: how a batch is trained.
"""

import logging
import threading
from collections.abc import Callable

from mobillm_kit.classroom.database import RosterError
from mobillm_kit.classroom.door import ClassDoor
from mobillm_kit.classroom.folder import ClassFolder
from mobillm_kit.classroom.journal import QUIET_S, journal
from mobillm_kit.classroom.line import LineService
from mobillm_kit.classroom.roster import Roster
from mobillm_kit.files import only_one
from mobillm_kit.server.process import ServiceStart
from mobillm_kit.server.service import Service, serve_forever

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks at the list: whoever is removed trains so long at most."""


def serve_class(folder: ClassFolder, announce: Callable[[ServiceStart], None]) -> None:
    """Serve a class until a signal ends it; ``announce`` is told where.

    Raises:
        FolderBusy: this class's server runs already.
        RosterError: the list cannot be used at the beginning; later that costs a sentence only.
        BadInput, AddressInUse: as for :func:`mobillm_kit.server.service.serve_forever`.
    """
    settings, roster = folder.settings(), Roster(folder.database)
    ended = threading.Event()
    with only_one(folder.root):
        roster.all_ended("the server ended")
        door = ClassDoor(folder.keys, roster)
        door.look()

        with journal(folder.journal, roster, door.name_of) as told:

            def begin(start: ServiceStart, service: Service) -> None:
                """The list is kept from when there is a service to turn out of."""
                announce(start)

                def keep() -> None:
                    """Turn out whoever was taken off the list; write down how far the others are."""
                    service.turned_out.extend(door.look())
                    if found := told.progress():
                        roster.progress(found)

                threading.Thread(target=_keep, args=(keep, ended), daemon=True, name="list").start()

            try:
                serve_forever(
                    settings, bind=settings.bind, door=door, advertise=settings.host, announce=begin, kind=LineService
                )
            finally:
                ended.set()


def _keep(keep: Callable[[], None], ended: threading.Event) -> None:
    """Again and again; what goes wrong with the list is said now and then."""
    quiet_s = 0.0
    while not ended.wait(LOOK_S):
        quiet_s -= LOOK_S
        try:
            keep()
        except RosterError as error:
            if quiet_s <= 0:
                quiet_s = QUIET_S
                log.warning("%s", error)
