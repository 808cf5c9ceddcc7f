"""The server's loop: one socket, many sessions.

The loop never trains and never waits for training; so a slow step of one session delays nobody's answer.

Knows: the socket, sessions, who may come in.  Knows nothing of: how a batch is trained, devices' data.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mobillm_kit.channel import Bye, Error, Hello, Limits, Message, WireError, check_plan, from_frames, to_frames
from mobillm_kit.channel.ends import Peer, ServerSocket
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.common import FLOAT_BYTES, MIB
from mobillm_kit.server.cache import ActivationCache
from mobillm_kit.server.session import Session, TrainingThread
from mobillm_kit.server.session_trainer import SessionTrainer, load_head


@dataclass(frozen=True)
class ServiceSettings:
    """What a server allows."""

    folder: Path
    """Checkpoints and cached activations, one folder per session."""
    credit: int = 4
    budget_bytes: int = 4096 * MIB
    """Payload bytes that may wait, all sessions together."""
    max_sessions: int = 8
    cache_memory_bytes: int = 1024 * MIB
    cache_disk_bytes: int = 8192 * MIB
    """Quotas of each session's activation cache."""
    idle_s: float = 900.0
    """A session that says nothing for so long is put to sleep; its checkpoints stay."""
    threads: int = 1


class Service:
    """Answers devices until it is told to stop.

    Args:
        socket: bound.
        settings: what is allowed.
        admit: asked with key and one-time code at each hello; None where the socket is plain (loopback).
    """

    def __init__(
        self, socket: ServerSocket, settings: ServiceSettings, admit: Callable[[str, str], bool] | None = None
    ) -> None:
        self._socket = socket
        self._settings = settings
        self._admit = admit
        self._sessions: dict[str, TrainingThread] = {}
        self._owners: dict[str, str] = {}
        self._peers: dict[str, Peer] = {}
        self._by_route: dict[bytes, str] = {}
        self._ended: dict[str, TrainingThread] = {}
        self._unsent: dict[str, deque[Sequence[bytes | bytearray | memoryview]]] = {}
        self._limits = service_limits(settings)
        self._stop = threading.Event()

    def run(self) -> None:
        """Serve until :meth:`stop`; then every session ends the step it is in."""
        try:
            while not self._stop.is_set():
                found = self._socket.receive(TIMINGS.full_s if self._unsent else TIMINGS.server_tick_s)
                if found is not None:
                    self._handle(*found)
                self._flush()
                self._put_idle_to_sleep()
        finally:
            self._end_all()

    def stop(self) -> None:
        """Let :meth:`run` end, from any thread."""
        self._stop.set()
        self._socket.wake()

    def _end_all(self) -> None:
        for session in self._sessions.values():
            session.close()
        deadline = time.monotonic() + TIMINGS.end_s
        for session in self._sessions.values():
            session.wait_closed(max(0.0, deadline - time.monotonic()))

    def _handle(self, peer: Peer, frames: list[memoryview]) -> None:
        try:
            message, payloads = from_frames(frames, sender="device", limits=self._limits)
        except WireError as error:
            self._refuse(peer, error, fatal=False)
            self._damaged(peer)
            return
        try:
            if isinstance(message, Hello):
                self._hello(peer, message, payloads)
            elif isinstance(message, Bye):
                self._bye(peer)
            else:
                self._session_of(peer).receive(message, payloads)
        except WireError as error:
            self._refuse(peer, error, fatal=error.code not in ("hello-first",))

    def _hello(self, peer: Peer, hello: Hello, payloads: list[memoryview]) -> None:
        if self._admit is not None and not self._admit(peer.key, hello.code):
            raise WireError(
                "bad-code",
                "This key is not known and the one-time code is wrong, used up or too old.",
                "Ask for a new join string.",
            )
        owner = self._owners.get(hello.session)
        if owner is not None and owner != peer.key:
            raise WireError("not-your-session", "This session belongs to another key.", "Begin a session of your own.")
        session = self._sessions.get(hello.session)
        if session is None or session.failed:
            session = self._new_session(hello, payloads)
            self._sessions[hello.session], self._owners[hello.session] = session, peer.key
        again = self._by_route.get(peer.route) == hello.session
        self._bind(hello.session, peer)
        session.receive(hello, [], again=again)

    def _new_session(self, hello: Hello, payloads: list[memoryview]) -> TrainingThread:
        check_plan(hello.plan)
        if hello.session in self._sessions:
            self._drop(hello.session)
        self._make_room()
        if len(self._sessions) >= self._settings.max_sessions:
            raise WireError(
                "too-many-sessions",
                f"This server trains {self._settings.max_sessions} sessions at a time.",
                "Wait until one has ended, or start the server with a higher --max-sessions.",
            )
        plan, folder = hello.plan, self._settings.folder / "sessions" / hello.session
        head = load_head(payloads[0]) if payloads else {}
        if (plan.head is not None) != bool(payloads):
            raise WireError("bad-plan", "A head is described and not sent, or sent and not described.", "")
        settings = self._settings
        before = self._ended.pop(hello.session, None)

        def trainer() -> SessionTrainer:
            """On the session's own thread."""
            if before is not None:
                before.wait_closed()  # it may be writing into the same folder
            cache = None
            if plan.cache:
                cache = ActivationCache(
                    folder / "cache",
                    memory_bytes=settings.cache_memory_bytes,
                    disk_bytes=settings.cache_disk_bytes,
                )
            return SessionTrainer(plan, head, folder, cache)

        budget_bytes = settings.budget_bytes // settings.max_sessions
        session = Session(plan, credit=self._credit(hello), budget_bytes=budget_bytes)
        return TrainingThread(session, trainer, wake=self._socket.wake, threads=settings.threads)

    def _credit(self, hello: Hello) -> int:
        """As many batches as fit into the session's share of memory.

        Raises:
            WireError: ``over-quota``; not even one of the largest batches fits.
        """
        plan = hello.plan
        most = plan.max_rows * plan.max_tokens * plan.side.width * len(plan.side.layers) * FLOAT_BYTES
        share = self._settings.budget_bytes // self._settings.max_sessions
        if most > share:
            raise WireError(
                "over-quota",
                f"One batch of this plan may take {most / MIB:.0f} MiB decoded, a session's share is "
                f"{share / MIB:.0f} MiB.",
                "Send smaller batches or fewer layers, or start the server with a larger --budget.",
            )
        return max(1, min(self._settings.credit, share // most))

    def _bind(self, session: str, peer: Peer) -> None:
        old = self._peers.get(session)
        if old is not None:
            self._by_route.pop(old.route, None)
        self._unsent.pop(session, None)
        self._peers[session] = peer
        self._by_route[peer.route] = session

    def _bye(self, peer: Peer) -> None:
        name = self._by_route.pop(peer.route, None)
        if name is None:
            return
        self._flush()
        self._drop(name)
        self._send(peer, Bye(), [])

    def _make_room(self) -> None:
        """Where all places are taken, free one whose session has failed, or whose device is silent for the longest."""
        if len(self._sessions) < self._settings.max_sessions:
            return
        name = min(self._sessions, key=lambda name: (not self._sessions[name].failed, self._sessions[name].last_heard))
        session = self._sessions[name]
        if session.failed or time.monotonic() - session.last_heard > TIMINGS.silent_s:
            self._drop(name)

    def _drop(self, name: str) -> None:
        session = self._sessions.pop(name)
        session.close()
        self._unsent.pop(name, None)
        self._ended = {other: ended for other, ended in self._ended.items() if not ended.closed}
        self._ended[name] = session
        peer = self._peers.pop(name, None)
        if peer is not None:
            self._by_route.pop(peer.route, None)

    def _session_of(self, peer: Peer) -> TrainingThread:
        name = self._by_route.get(peer.route)
        if name is None or name not in self._sessions:
            raise WireError("hello-first", "No session was begun on this connection.", "Say hello first.")
        return self._sessions[name]

    def _damaged(self, peer: Peer) -> None:
        name = self._by_route.get(peer.route)
        if name in self._sessions:
            self._sessions[name].damaged()

    def _flush(self) -> None:
        for name, session in self._sessions.items():
            waiting = self._unsent.pop(name, None) or deque(to_frames(*reply) for reply in session.replies())
            while waiting and self._socket.send(self._peers[name], waiting[0]):
                waiting.popleft()
            if waiting and time.monotonic() - session.last_heard < TIMINGS.gone_s:
                self._unsent[name] = waiting

    def _send(self, peer: Peer, message: Message, payloads: list[bytes]) -> None:
        """What cannot be delivered is left out: the device comes back and is told where training stands."""
        self._socket.send(peer, to_frames(message, payloads))

    def _refuse(self, peer: Peer, error: WireError, *, fatal: bool) -> None:
        said = Error(code=error.code, sentence=error.problem, remedy=error.remedy, sequence=None, fatal=fatal)
        self._send(peer, said, [])

    def _put_idle_to_sleep(self) -> None:
        now = time.monotonic()
        for name in [n for n, s in self._sessions.items() if now - s.last_heard > self._settings.idle_s]:
            self._drop(name)


def service_limits(settings: ServiceSettings) -> Limits:
    """What one message may weigh."""
    share = settings.budget_bytes // settings.max_sessions
    return Limits(frame_bytes=share, total_bytes=share)
