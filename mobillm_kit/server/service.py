"""The server's loop: one socket, many sessions.

The loop never trains and never waits for training; so a slow step of one session delays nobody's answer.

Knows: the socket, sessions, who may come in, signals.  Knows nothing of: how a batch is trained, devices' data.
Taught in: notebooks/08_device_and_server.ipynb
"""

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from mobillm_kit.channel.checks import batch_bytes, check_plan, checkpoint_bytes, samples_bytes, training_bytes
from mobillm_kit.channel.ends import Peer, ServerSocket
from mobillm_kit.channel.frames import Limits, digest, from_frames, to_frames
from mobillm_kit.channel.join import JoinString
from mobillm_kit.channel.keys import Door
from mobillm_kit.channel.messages import Bye, Hello, Message, Ping, Plan, Pong, WireError, refusal
from mobillm_kit.channel.timings import TIMINGS
from mobillm_kit.common import MIB
from mobillm_kit.errors import BadInput
from mobillm_kit.server import ServiceSettings
from mobillm_kit.server.cache import ActivationCache
from mobillm_kit.server.disk import disk_of
from mobillm_kit.server.places import Place, Places
from mobillm_kit.server.process import ANY_PORT, ServiceStart
from mobillm_kit.server.session import MakeTrainer, Session, TrainingThread
from mobillm_kit.server.session_trainer import SessionTrainer
from mobillm_kit.side.portable_head import read_tensors

log = logging.getLogger(__name__)


class Service:
    """Answers devices until it is told to stop; ``door`` says who may, and is None where the socket is plain."""

    def __init__(self, socket: ServerSocket, settings: ServiceSettings, door: Door | None = None) -> None:
        self._socket = socket
        self._settings = settings
        self._door = door
        self._clerk = ThreadPoolExecutor(1, thread_name_prefix="codes")
        self._asked: dict[bytes, tuple[Future[bool], Peer, Hello, list[memoryview]]] = {}
        self._places = Places(socket, settings.max_sessions, settings.per_device)
        self._limits = service_limits(settings)
        self._disk = disk_of(settings)
        self._stop = threading.Event()
        self.turned_out: deque[str] = deque()
        """Keys whose sessions are to end; any thread may append.  Whether they come back is the door's to say."""

    def run(self) -> None:
        """Serve until :meth:`stop`; then every session ends the step it is in."""
        try:
            while not self._stop.is_set():
                full = any(place.unsent for place in self._places.all())
                found = self._socket.receive(TIMINGS.full_s if full else TIMINGS.tick_s)
                if found is not None:
                    self._handle(*found)
                self._tick()
        finally:
            self._end()

    def _tick(self) -> None:
        self._admit()
        self._flush()
        self._places.drop_idle(TIMINGS.idle_s)
        gone = {self.turned_out.popleft() for _ in range(len(self.turned_out))}
        for place in (place for place in self._places.all() if place.owner in gone):
            with self._fence(place.peer):
                self._send(place.peer, refusal("turned-out").said(fatal=True))
                self._places.drop(place, "turned out")
        self._socket.cut_off()

    def stop(self) -> None:
        """Let :meth:`run` end, from any thread."""
        self._stop.set()
        self._socket.wake()

    def _end(self) -> None:
        self._clerk.shutdown(wait=False, cancel_futures=True)
        self._places.end_all()

    def _handle(self, peer: Peer, frames: list[memoryview]) -> None:
        """What one peer sends or meets ends its own session at most, never the loop."""
        with self._fence(peer):
            place = self._places.at(peer)
            try:
                message, payloads = from_frames(frames, sender="device", limits=self._limits)
            except WireError as error:
                self._send(peer, error.said(fatal=False))
                if place is not None:
                    place.thread.damaged()
                return
            if place is not None:
                place.n_bytes += sum(map(len, frames))
            if isinstance(message, Hello):
                self._hello(peer, message, payloads)
            elif place is not None and isinstance(message, Bye):
                self._bye(place)
            elif place is not None:
                place.thread.receive(message, payloads)
            elif peer.route in self._asked and isinstance(message, Ping):
                self._send(peer, Pong(nonce=message.nonce))  # its code is being looked up
            elif not isinstance(message, Bye):
                raise refusal("hello-first")

    @contextmanager
    def _fence(self, peer: Peer) -> Iterator[None]:
        """Whatever goes wrong inside is said to this peer; what is no refusal is logged, and its session dropped."""
        try:
            try:
                yield
            except WireError as error:
                log.info("refused", extra={"peer": peer, "error": error})
                self._send(peer, error.said(fatal=error.code != "hello-first"))
            except Exception as error:
                log.exception("One device's message met an error of this server; the others go on.")
                place = self._places.at(peer)
                if place is not None:
                    self._places.drop(place, "an error of the server")
                # its kind alone: its words may hold the server's paths
                self._send(peer, refusal("own-error", kind=type(error).__name__).said(fatal=True))
        except Exception:
            log.exception("A refusal could not be sent.")

    def _hello(self, peer: Peer, hello: Hello, payloads: list[memoryview]) -> None:
        """Begin at once where the key is known; a code is looked up beside the loop, since its file may be held."""
        if self._door is None or self._door.knows(peer.key):
            self._begin(peer, hello, payloads)
        elif peer.route not in self._asked:
            answer = self._clerk.submit(self._door.use_code, peer.key, hello.code)
            answer.add_done_callback(lambda _: self._socket.wake())
            self._asked[peer.route] = answer, peer, hello, payloads

    def _admit(self) -> None:
        """Those whose codes have been looked up."""
        for route in [route for route, (answer, *_) in self._asked.items() if answer.done()]:
            answer, peer, hello, payloads = self._asked.pop(route)
            with self._fence(peer):
                if not answer.result():
                    raise refusal("unknown-key")
                self._begin(peer, hello, payloads)

    def _begin(self, peer: Peer, hello: Hello, payloads: list[memoryview]) -> None:
        place = self._places.of(peer, hello.session)
        if place is None or place.thread.failed:
            place = self._new_place(peer, hello, payloads)
        place.thread.receive(hello, [], again=self._places.bind(place, peer))

    def _new_place(self, peer: Peer, hello: Hello, payloads: list[memoryview]) -> Place:
        plan = hello.plan
        check_plan(plan)
        credit = self._credit(plan)
        if (plan.head is not None) != bool(payloads):
            raise refusal("head-described")
        try:
            head = read_tensors(payloads[0]) if payloads else {}
        except BadInput as error:
            raise WireError("bad-plan", f"The head's frame: {error.problem}", error.remedy) from error
        self._places.make_room(peer, hello.session)
        session = Session(plan, credit=credit, budget_bytes=self._settings.share_bytes)
        make = partial(self._trainer, plan, head, owner_folder(peer.key), hello.session)
        return self._places.take(peer, hello.session, self._thread(peer.key, session, make))

    def _thread(self, key: str, session: Session, make: MakeTrainer) -> TrainingThread:
        return TrainingThread(session, make, wake=self._socket.wake, threads=self._settings.threads)

    @contextmanager
    def _trainer(self, plan: Plan, head: dict[str, Tensor], owner: str, name: str) -> Iterator[SessionTrainer]:
        """On the session's own thread."""
        settings = self._settings
        memory_bytes, disk_bytes = settings.cache_memory * MIB, settings.cache_disk * MIB
        need = checkpoint_bytes(plan) + (min(disk_bytes, samples_bytes(plan)) if plan.cache else 0)
        with self._disk.session(owner, name, need) as folder:
            cache = None
            if plan.cache:
                cache = ActivationCache(folder / "cache", memory_bytes=memory_bytes, disk_bytes=disk_bytes)
            yield SessionTrainer(plan, head, folder, cache)

    def _credit(self, plan: Plan) -> int:
        """As many batches as fit into a session's share of memory beside its training; ``over-quota`` if none does."""
        training, waiting, share = training_bytes(plan), batch_bytes(plan), self._settings.share_bytes
        if training + waiting > share:
            raise refusal("over-share", training_mib=training / MIB, waiting_mib=waiting / MIB, share_mib=share / MIB)
        return min(self._settings.credit, (share - training) // waiting)

    def _bye(self, place: Place) -> None:
        self._flush()
        self._places.drop(place, "said farewell")
        self._send(place.peer, Bye())

    def _flush(self) -> None:
        for place in self._places.all():
            with self._fence(place.peer):
                place.unsent = place.unsent or deque(to_frames(*reply) for reply in place.thread.replies())
                while place.unsent and self._socket.send(place.peer, place.unsent[0]):
                    place.unsent.popleft()
                if place.silent_s >= TIMINGS.gone_s:
                    place.unsent.clear()

    def _send(self, peer: Peer, message: Message) -> None:
        """What cannot be delivered is left out: the device comes back and is told where training stands."""
        self._socket.send(peer, to_frames(message))


def owner_folder(key: str) -> str:
    """Of the sessions of one key: after a restart too, another key's session is another session."""
    return digest(key.encode()).hex() if key else "plain"


def service_limits(settings: ServiceSettings) -> Limits:
    """What one message may weigh."""
    return Limits(frame_bytes=settings.share_bytes, total_bytes=settings.share_bytes)


def serve_forever(
    settings: ServiceSettings,
    *,
    bind: str = ANY_PORT,
    door: Door | None = None,
    advertise: str | None = None,
    announce: Callable[[ServiceStart, Service], None],
    kind: type[Service] = Service,
) -> None:
    """Listen and serve until a signal ends it.

    Args:
        bind: where to listen; BadInput for anything but loopback without keys, and for an address in use.
        door: who may come in; None serves loopback without encryption.
        advertise: the host that devices reach this machine by; the bound one by default.
        announce: told where the server listens and how to join; and the service itself, which is of that ``kind``.
    """
    os.umask(0o077)  # checkpoints and activations are for whoever runs the server
    settings.folder.mkdir(parents=True, exist_ok=True)
    socket = ServerSocket(bind, door=door, limits=service_limits(settings))
    service = kind(socket, settings, door)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: service.stop())
    join = ""
    if door is not None:
        reachable = socket.address if advertise is None else f"tcp://{advertise}:{socket.address.rsplit(':', 1)[1]}"
        join = str(JoinString(reachable, door.keys.public, door.new_code()))
    announce(ServiceStart(address=socket.address, join=join, pid=os.getpid()), service)
    with socket:
        service.run()
