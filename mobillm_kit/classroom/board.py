"""The board of a class: one page, two links, what it shows sent to each browser once a second (server-sent events).

    GET /?token=…   the page        GET /events?token=…   the class as JSON, for ever        POST /kick   {"student": …}

It runs on a thread with an event loop of its own; what it shows is handed over as bytes.  A browser costs one
connection and what fits into its send buffer: who reads slowly misses looks, who does not read at all is let go.

Knows: HTTP, links, bytes to show.  Knows nothing of: how they came about, how a batch is trained.
Taught in: notebooks/12_class_lab.ipynb
"""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from mobillm_kit.classroom.links import Role, Tokens
from mobillm_kit.errors import KitError

MOST_BROWSERS = 64
"""Connections at a time."""
MOST_OF_ONE = 12
"""Of one address: nobody fills the board up for the others."""
REQUEST_S = 5.0
"""A request has to be whole after so long."""
STUCK_S = 20.0
"""Who reads nothing for so long is let go."""
LOOK_S = 0.5
"""Between two looks whether there is something new to send."""
AGAIN_S = 3.0
"""What is not new is sent again: a page that hears nothing takes the connection for lost."""
KICK_BYTES = 1000
PAGE = Path(__file__).parent / "page"

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",  # the token stands in the address
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Connection": "close",  # one request a connection: the limits below are then limits of a request
}
_NO_LINK = "This is no link of this class's board. Ask the instructor for the link, and open all of it."
_NO_CONTROL = "This link may only watch. Use the instructor's link to take a student off the list."


class _Connection(H11Protocol):
    """One browser's connection, within bounds."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Too many are cut off before they have said anything."""
        super().connection_made(transport)
        host = self.client and self.client[0]
        same = sum(bool(other.client) and other.client[0] == host for other in self.connections)  # type: ignore
        if len(self.connections) > MOST_BROWSERS or same > MOST_OF_ONE:
            transport.abort()
        self._patience = self.loop.call_later(REQUEST_S, self._asked)

    def _asked(self) -> None:
        if self.cycle is None:
            self.transport.abort()

    def pause_writing(self) -> None:
        """The send buffer is full."""
        super().pause_writing()
        self._patience.cancel()
        self._patience = self.loop.call_later(STUCK_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It is read again."""
        self._patience.cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._patience.cancel()
        super().connection_lost(exc)


class Board:
    """What is shown now, and who may see which of it.

    Args:
        kick: takes a student off the list; gives the name as it stands there, KitError where it does not.
    """

    def __init__(self, tokens: Tokens, kick: Callable[[str], str]) -> None:
        self._tokens = tokens
        self._kick = kick
        self._views: dict[Role, bytes] = {"class": b"{}", "instructor": b"{}"}
        self.ended = False
        """Browsers are let go."""

    def show(self, views: tuple[bytes, bytes]) -> None:
        """The class's view and the instructor's, from now on; from any thread."""
        self._views = {"class": views[0], "instructor": views[1]}

    def app(self) -> Starlette:
        """The routes."""
        routes = [
            Route("/", self._page),
            Route("/events", self._events),
            Route("/kick", self._kicks, methods=["POST"]),
            Route("/board.css", lambda _: _file("board.css")),
            Route("/board.js", lambda _: _file("board.js")),
        ]
        return Starlette(routes=routes, exception_handlers={404: _not_here, 405: _not_here})

    async def _page(self, request: Request) -> Response:
        known = self._tokens.role(request.query_params.get("token", ""))
        return _file("board.html") if known else _said(403, _NO_LINK)

    async def _events(self, request: Request) -> Response:
        role = self._tokens.role(request.query_params.get("token", ""))
        if role is None:
            return _said(403, _NO_LINK)
        return StreamingResponse(self._stream(role), headers=_HEADERS, media_type="text/event-stream")

    async def _stream(self, role: Role) -> AsyncIterator[bytes]:
        """The newest view each time this browser has taken the one before: a slow one misses some."""
        yield b"retry: 2000\n\n"
        shown, at = b"", 0.0
        while not self.ended:
            newest = self._views[role]
            if newest is not shown or time.monotonic() - at > AGAIN_S:
                shown, at = newest, time.monotonic()
                yield b"data: " + newest + b"\n\n"
            await asyncio.sleep(LOOK_S)

    async def _kicks(self, request: Request) -> Response:
        role = self._tokens.role(request.headers.get("authorization", "").removeprefix("Bearer "))
        if role != "instructor":
            return _said(403, _NO_CONTROL if role else _NO_LINK)
        try:
            asked = await asyncio.wait_for(_body(request), REQUEST_S)
            student = msgspec.json.decode(asked, type=dict[str, str])["student"]
        except (TimeoutError, ValueError, KeyError):
            return _said(400, 'A student to take off is asked for: {"student": NAME}.')
        try:
            name = await asyncio.to_thread(self._kick, student)
        except KitError as error:
            return _said(409, str(error))
        return _said(200, f"{name} is let in no longer; a new invitation would bring them back.")


async def _body(request: Request) -> bytes:
    """A short one; a ValueError for what is no student's name any more."""
    came = b""
    async for part in request.stream():
        came += part
        if len(came) > KICK_BYTES:
            raise ValueError("too long")
    return came


def _file(name: str) -> Response:
    return FileResponse(PAGE / name, headers=_HEADERS)


def _said(status: int, sentence: str) -> Response:
    return PlainTextResponse(sentence, status, headers=_HEADERS)


async def _not_here(_: Request, __: Exception) -> Response:
    return _said(404, _NO_LINK)


@contextmanager
def shown(board: Board, listener: socket.socket) -> Iterator[None]:
    """Answer browsers at a socket that listens, for the time of a ``with`` block."""
    settings = uvicorn.Config(
        board.app(),
        http=_Connection,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="error",  # whoever sends nonsense fills no screen
        access_log=False,  # addresses hold tokens
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=8192,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True, name="board")
    thread.start()
    try:
        yield
    finally:
        board.ended = server.should_exit = True
        thread.join(5)
