"""A shaped link as a process of its own: an interpreter that computes lets its threads wait, and a link with them.

    python -m mobillm_kit.link.shaping --target 127.0.0.1:5555 --link 20mbit,10ms

writes a JSON line with its address to standard output, then one more for every line on standard input, each a new link;
it ends when standard input closes.  `LinkProcess` starts one.  (On two busy cores a thread reached 47 to 92 % of the
rate, a process 85 % and more.)

Knows: links, processes.  Knows nothing of: sockets, messages, models.
Taught in: notebooks/08_device_and_server.ipynb
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Sequence

from mobillm_kit.errors import BadInput, KitError
from mobillm_kit.link.forwarder import Address, ShapedLink, resolved
from mobillm_kit.link.rates import Link, parse_link

ANSWER_LIMIT_S = 10.0
CLOSE_LIMIT_S = 2.0
REFUSED = 2
"""How a process ends that was given no target, link or port to start with."""


class LinkProcess(contextlib.AbstractContextManager["LinkProcess"]):
    """A `ShapedLink` in a process of its own.

    It ends with `close`, and by itself when this process is gone.

    Raises:
        BadInput: a target or link that is none.
        KitError: no answer within ten seconds; the process is ended then.
    """

    def __init__(self, target: Address, link: Link | str) -> None:
        host, number = resolved(target)
        self.link = parse_link(link)
        """What holds now; `set` changes it."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mobillm_kit.link.shaping", "--target", f"{host}:{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # who interrupts a notebook's cell interrupts its process group, and no link
        )
        self._asking = threading.Lock()
        try:
            said = self._ask(str(self.link))
        except BaseException:
            self.close()
            raise
        self.address: Address = (str(said["host"]), int(said["port"]))
        """Where to connect to instead of the target."""
        self.endpoint = str(said["endpoint"])
        """The address as ZeroMQ writes it."""

    def set(self, link: Link | str) -> None:
        """Change the link while it runs; see `ShapedLink.set`."""
        found = parse_link(link)
        self._ask(str(found))
        self.link = found

    def close(self) -> str:
        """End the process, at the latest after two seconds by force; what it wrote to its error output."""
        try:
            return self._process.communicate(timeout=CLOSE_LIMIT_S)[1]
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.communicate()[1]

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, command: str) -> dict[str, str | int]:
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answers is not None
        if asked.closed:
            raise KitError("This link is closed.", "Make a new one.")
        overdue = threading.Timer(ANSWER_LIMIT_S, self._process.kill)  # its end is an answer, too
        with self._asking, contextlib.suppress(OSError, ValueError):
            overdue.start()
            try:
                asked.write(command + "\n")
                asked.flush()
                if answer := answers.readline():
                    return json.loads(answer)
            finally:
                overdue.cancel()
                overdue.join()
        complaint = self.close().strip()
        raise KitError(f"The link's process has ended: {complaint or 'it was killed'}.", "Start it anew.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a link until standard input ends; 0, or 2 where target, link or port is none."""
    parser = argparse.ArgumentParser(prog="python -m mobillm_kit.link.shaping", description="A slow link to a server.")
    parser.add_argument("--target", required=True, help="host:port of the server")
    parser.add_argument("--link", help="20mbit,10ms or wifi-60; else the first input line")
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
    loop = asyncio.SelectorEventLoop()  # the same on every system
    loop.call_soon(shaped.open)
    threading.Thread(target=loop.run_forever, daemon=True).start()  # this one waits for lines, and for nothing else
    host, port = shaped.address
    _say(host=host, port=port, endpoint=shaped.endpoint)
    with contextlib.suppress(KeyboardInterrupt):
        for line in sys.stdin:
            asyncio.run_coroutine_threadsafe(_obey(shaped, line.strip()), loop).result()
    return 0


async def _obey(shaped: ShapedLink, command: str) -> None:
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
