"""A link that really holds bytes back: a TCP forwarder in user space, on any system, without root.

    a burst leaves at   start = max(arrival, line free, now - 20 ms)
    line free           = start + 8 n / rate, and later by the burst's retransmissions
    it is delivered at    line free + latency + jitter, never before the burst that went ahead of it

- The line is booked 20 ms ahead and may be booked 20 ms late: a thread that oversleeps would lose 10 to 30 % otherwise.
- All connections share one line each way, as they share the radio of a phone.
- Losses are retransmissions, see `mobillm_kit.link.rates`; while one lasts, the line stands still for all connections.
- Setting a connection up is not delayed.  Each direction holds back at most 40 ms of data (never under 16 KiB) plus
  what is on its way, beside two kernel buffers of 256 KiB; a sender that is faster is slowed down by its own TCP.

    python -m mobillm_kit.link.shaping --target 127.0.0.1:5555 --link 20mbit,10ms

is the same as a process (`LinkProcess` starts one): a JSON line with its address on standard output, then one more for
every line on standard input, each a new link or the word ``bytes``; it ends when standard input closes.  Beside a
thread that computes, take the process: on two busy cores the thread reached 47 to 92 % of the rate.

Knows: TCP and links.  Knows nothing of: messages, models.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Self, TextIO, cast

from mobillm_kit.errors import BadInput, KitError
from mobillm_kit.link.forms import parse_link
from mobillm_kit.link.forwarder import (
    BUFFER_BYTES,
    READ_BYTES,
    Address,
    Forwarder,
    Pipe,
    Relay,
    now,
    resolved,
)
from mobillm_kit.link.loop_thread import CLOSE_LIMIT_S
from mobillm_kit.link.rates import SEGMENT_BYTES, AnyLink, Delays

RUN_AHEAD_S = 0.02
WAKE_AHEAD_S = 0.015
"""The thread looks at the line again when so much of it is still booked."""
BURST_S = 0.0025
"""Time on the line of one burst, where that is a segment or more: what arrives together."""
QUEUE_S = 0.04
SMALLEST_QUEUE_BYTES = 1 << 14
LARGEST_QUEUE_BYTES = 1 << 22
LARGEST_FLIGHT_BYTES = 1 << 25
"""Above this much on its way (1 Gb/s times 0.27 s) the link is slower than it says."""

ANSWER_LIMIT_S = 10.0
COUNT = "bytes"
"""What a process is asked for the bytes so far."""
REFUSED = 2
"""How a process ends that was given no target, link or port to start with."""


class _Line:
    """One direction of the link: when the next burst may leave."""

    def __init__(self, link: AnyLink) -> None:
        self.link = link
        self.began_s = now()
        self.free_s = self.began_s
        self.turn = asyncio.Lock()
        """First come, first served: one connection does not shut another out."""
        self.replaced = asyncio.Event()

    def rate(self) -> float:
        """Bytes per second now; a trace counts from the moment it was set."""
        return self.link.mbit_at(now() - self.began_s) * 1e6 / 8

    def book(self, arrived_s: float, n_bytes: int) -> float:
        """The moment at which a burst has left."""
        start_s = max(arrived_s, self.free_s, now() - RUN_AHEAD_S)
        self.free_s = self.began_s + self.link.finish_s(n_bytes, start_s - self.began_s)
        return self.free_s

    async def nearly_free(self) -> None:
        """Until no more than the run ahead is booked, or the line is another."""
        while not self.replaced.is_set() and self.free_s >= now() + RUN_AHEAD_S:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.replaced.wait(), self.free_s - WAKE_AHEAD_S - now())


class ShapedLink(Forwarder):
    """A forwarder whose bytes take as long as they would over ``link``.

    Args:
        target: host and port of the server.
        link: a `Link`, a `Trace` (it starts now), or what `parse_link` reads.
        seed: of jitter and losses; connection and direction have sequences of their own.
        up_only: hold back what goes to the target only; answers pass at once.
        port: to listen on; 0 takes a free one.

    Raises:
        BadInput: a target, link or port that is none.
    """

    def __init__(
        self, target: Address, link: AnyLink | str, *, seed: int = 0, up_only: bool = False, port: int = 0
    ) -> None:
        self._link = parse_link(link)
        self._seed = seed
        self._lines = {"up": _Line(self._link), "down": None if up_only else _Line(self._link)}
        self._delays: dict[Pipe, Delays] = {}
        super().__init__(target, port=port)

    @property
    def link(self) -> AnyLink:
        """What holds now."""
        return self._link

    def set(self, link: AnyLink | str) -> None:
        """Change the link while it runs; a trace starts anew.  What had not left yet leaves now.

        Raises:
            BadInput: no link.
            KitError: this one is closed.
        """
        found = parse_link(link)
        self._in_loop(lambda: self._change(found))

    def _change(self, link: AnyLink) -> None:
        # What is still on the line was booked at the old rate, which may have been an outage of minutes: it is 20 ms of
        # data and a burst at most, and leaves now.
        latest_s = now() + (self._link.latency_ms + self._link.jitter_ms) / 1e3
        for direction, line in self._lines.items():
            if line is not None:
                self._lines[direction] = _Line(link)
                line.replaced.set()
                for pipe in self._pipes(direction):
                    pipe.hasten(latest_s)
        self._link = link

    async def _admit(self, pipe: Pipe, data: memoryview) -> None:
        arrived_s = now()
        while len(data):
            pipe.waiting_bytes = len(data)
            # a receiver that takes nothing stops the line, or what is on its way would pile up
            while pipe.blocked or pipe.flying_bytes >= LARGEST_FLIGHT_BYTES:
                await pipe.wait()
            line = self._lines[pipe.direction]
            if line is None:
                pipe.fly(0.0, data)
                break
            async with line.turn:
                await line.nearly_free()
                if not line.replaced.is_set():
                    burst = data[: _burst_bytes(line.rate())]
                    data = data[len(burst) :]
                    self._book(line, pipe, arrived_s, burst)
        pipe.waiting_bytes = 0

    def _book(self, line: _Line, pipe: Pipe, arrived_s: float, burst: memoryview) -> None:
        left_s = line.book(arrived_s, len(burst))
        if pipe not in self._delays:
            self._delays[pipe] = Delays(self._seed, pipe.direction, pipe.number)
        jitter_s, stop_s = self._delays[pipe].burst(line.link, len(burst))
        line.free_s += stop_s
        pipe.fly(left_s + stop_s + line.link.latency_ms / 1e3 + jitter_s, burst)

    def _room(self, pipe: Pipe) -> int:
        line = self._lines[pipe.direction]
        if line is None:
            return super()._room(pipe)
        return min(max(int(line.rate() * QUEUE_S), SMALLEST_QUEUE_BYTES), LARGEST_QUEUE_BYTES)

    def _piece(self, pipe: Pipe) -> memoryview:
        # Each call to the system gives the interpreter's lock away, which a busy thread returns 5 ms later: what is due
        # goes in one call.
        moment_s = now()
        due: list[memoryview] = []
        while pipe.flying and pipe.flying[0][0] <= moment_s and sum(map(len, due)) < BUFFER_BYTES:
            due.append(pipe.flying.popleft()[1])
        whole = due[0] if len(due) == 1 else memoryview(b"".join(due))
        pipe.flying.appendleft((moment_s, whole))
        return whole

    def _end_due_s(self, pipe: Pipe) -> float:
        line = self._lines[pipe.direction]
        return (pipe.ended_s or 0.0) + (line.link.latency_ms / 1e3 if line else 0.0)

    def _end(self, connection: Relay) -> None:
        for pipe in connection.pipes:
            self._delays.pop(pipe, None)
        super()._end(connection)


def _burst_bytes(rate: float) -> int:
    """Whole segments that take about `BURST_S`."""
    return min(max(int(rate * BURST_S) // SEGMENT_BYTES, 1) * SEGMENT_BYTES, READ_BYTES)


# ------------------------------------------------------------------------------------------------- as a process


class LinkProcess:
    """A `ShapedLink` in a process of its own, for when this one computes: a busy interpreter lets its threads wait.

    Arguments are those of `ShapedLink`.  It ends with `close`, and by itself when this process is gone.

    Raises:
        BadInput: a target, link or port that is none.
        KitError: no answer within ten seconds; the process is ended then.
    """

    def __init__(
        self, target: Address, link: AnyLink | str, *, seed: int = 0, up_only: bool = False, port: int = 0
    ) -> None:
        host, number = resolved(target)
        self._link = parse_link(link)
        words = ["--target", f"{host}:{number}", "--seed", str(seed), "--port", str(port)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mobillm_kit.link.shaping", *words, *(["--up-only"] if up_only else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # who interrupts a notebook's cell interrupts its process group, and no link
        )
        ends = self._process.stdin, self._process.stdout, self._process.stderr
        self._stdin, self._stdout, self._stderr = (cast("TextIO", end) for end in ends)
        self._asking = threading.Lock()
        try:
            said = self._ask(self._link.json())
        except BaseException:
            self.close()
            raise
        self.address: Address = (str(said["host"]), int(said["port"]))
        """Where to connect to instead of the target."""
        self.endpoint = str(said["endpoint"])
        """The address as ZeroMQ writes it."""

    @property
    def link(self) -> AnyLink:
        """What holds now."""
        return self._link

    @property
    def bytes_up(self) -> int:
        """Bytes that the target's side has been given."""
        return int(self._ask(COUNT)["bytes_up"])

    @property
    def bytes_down(self) -> int:
        """Bytes that the clients' side has been given."""
        return int(self._ask(COUNT)["bytes_down"])

    @property
    def closed(self) -> bool:
        """The process has ended, and with it the link."""
        return self._process.poll() is not None

    def set(self, link: AnyLink | str) -> None:
        """Change the link while it runs; see `ShapedLink.set`."""
        found = parse_link(link)
        self._ask(found.json())
        self._link = found

    def close(self) -> None:
        """End the process, at the latest after two seconds by force."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(CLOSE_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(CLOSE_LIMIT_S)
        self._stdout.close()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, command: str) -> dict[str, str | int]:
        with self._asking:
            overdue = threading.Timer(ANSWER_LIMIT_S, self._process.kill)  # its end is an answer, too
            overdue.start()
            try:
                self._stdin.write(command + "\n")
                self._stdin.flush()
                answer = self._stdout.readline()
            except (OSError, ValueError):
                answer = ""
            finally:
                overdue.cancel()
                overdue.join()
        if not answer:
            raise self._why_it_ended()
        return json.loads(answer)

    def _why_it_ended(self) -> KitError:
        if self._stdin.closed:
            return KitError("This link is closed.", "Make a new one.")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_LIMIT_S)
        said = self._stderr.read().strip() if self.closed else ""
        if self._process.returncode == REFUSED:
            return BadInput(said)
        return KitError(f"The link's process has ended: {said or 'it was killed'}.", "Start it anew.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a link until standard input ends; 0, or 2 where target, link or port is none."""
    parser = argparse.ArgumentParser(prog="python -m mobillm_kit.link.shaping", description="A slow link to a server.")
    parser.add_argument("--target", required=True, help="host:port of the server")
    parser.add_argument(
        "--link", help="such as 20mbit,10ms or wifi-60 or trace=FILE.csv,10ms; else the first input line"
    )
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    parser.add_argument("--seed", type=int, default=0, help="of jitter and losses")
    parser.add_argument("--up-only", action="store_true", help="hold back only what goes to the server")
    given = parser.parse_args(arguments)
    try:
        link = sys.stdin.readline() if given.link is None else given.link
        shaped = ShapedLink(_address(given.target), link, seed=given.seed, up_only=given.up_only, port=given.port)
    except BadInput as error:
        print(error, file=sys.stderr)
        return REFUSED
    with shaped:
        host, port = shaped.address
        _say(host=host, port=port, endpoint=shaped.endpoint)
        with contextlib.suppress(KeyboardInterrupt):
            for line in sys.stdin:
                _obey(shaped, line.strip())
    return 0


def _obey(shaped: ShapedLink, command: str) -> None:
    if command == COUNT:
        _say(bytes_up=shaped.bytes_up, bytes_down=shaped.bytes_down)
        return
    try:
        shaped.set(command)
    except KitError as error:
        _say(error=str(error))
    else:
        _say(link=str(shaped.link))


def _say(**words: str | int) -> None:
    print(json.dumps(words), flush=True)


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise BadInput(f"{text!r} is no address.", "Write host:port, such as 127.0.0.1:5555.")
    return host, int(port)


if __name__ == "__main__":
    sys.exit(main())
