"""How long a device waits for what: when a silence is a loss, and when losses are the end.

    transfer   = slower · (slack · bytes up / bytes per s  +  bytes down / slowest link)
    lost       : nothing heard for silence_s + transfer
    ask again  : nothing trained for max(stall_s, slack · longest step) · 2^stalls + transfer

Knows: moments that it is told, bytes.  Knows nothing of: clocks, sockets, messages.

Taught in: notebooks/08_device_and_server.ipynb
"""

from __future__ import annotations

from mobillm_kit.channel.timings import Timings
from mobillm_kit.errors import ServerGone


class Patience:
    """The moments of one session; every method is told the present one (seconds of any steady clock)."""

    def __init__(self, now: float, patience_s: float, timings: Timings) -> None:
        self._timings = timings
        self._patience_s = patience_s
        self._heard = self._heard_here = self._pinged = self._asked = self._progress = now
        self._stalls = 0
        self._longest_step_s = self._bytes_per_s = 0.0
        self._slower = 1.0
        self._lost_in_a_row = 0
        self._first_lost = now

    def connected(self, now: float) -> None:
        """A new connection; what was heard before it says nothing about it."""
        self._heard_here = self._pinged = now
        self._stalls = 0

    def asked(self, now: float) -> None:
        """A hello leaves."""
        self._asked = now

    def heard(self, now: float) -> None:
        """Anything came."""
        self._heard_here = self._heard = now

    def resumed(self, now: float) -> None:
        """The server said where training stands: the wait for a step begins anew."""
        self._progress = now

    def progressed(self, now: float) -> None:
        """Something was trained, kept or given back."""
        self._progress = now
        self._stalls = self._lost_in_a_row = 0
        self._slower = 1.0

    def trained(self, now: float, n_bytes: int, seconds: float) -> None:
        """A step was acknowledged whose ``n_bytes`` took ``seconds`` on the link."""
        self._longest_step_s = max(self._longest_step_s, now - self._progress)
        self._bytes_per_s = n_bytes / max(seconds, 1e-3)

    def transfer_s(self, up_bytes: int, down_bytes: int) -> float:
        """How long what is on its way may fill the link, so that nothing else can be heard."""
        slowest = self._timings.slowest_link_bytes_per_s
        up_s = self._timings.slack * up_bytes / self._bytes_per_s if self._bytes_per_s else up_bytes / slowest
        return self._slower * (up_s + down_bytes / slowest)

    def is_silent(self, now: float, transfer_s: float) -> bool:
        """Whether the connection counts as lost; the time of a transfer costs no patience."""
        if now - self._heard_here <= self._timings.silence_s + transfer_s:
            return False
        self._heard = max(self._heard, now - self._timings.silence_s)
        self._slower *= self._timings.slack if transfer_s else 1.0
        return True

    def pings(self, now: float) -> bool:
        """Whether to ping now; one at a time: behind a large batch they would only pile up."""
        unanswered = self._pinged > self._heard_here
        due = not unanswered and now - max(self._pinged, self._heard_here) > self._timings.ping_s
        if due:
            self._pinged = now
        return due

    def asks_again(self, now: float, waiting: bool, transfer_s: float) -> bool:
        """Whether to ask where training stands, because an awaited answer does not come.

        Raises:
            ServerGone: none has come for very long.
        """
        if not waiting:
            self._progress = now
            return False
        if now - self._progress > self._timings.stuck_s:
            raise stuck(self._timings)
        usual_s = max(self._timings.stall_s, self._timings.slack * self._longest_step_s) * 2**self._stalls
        due = now - max(self._progress, self._asked) > usual_s + transfer_s
        self._stalls += due
        return due

    def handshake_s(self, now: float) -> float:
        """How long a handshake may take."""
        left_s = self._heard + self._patience_s - now
        return min(self._timings.handshake_s, max(self._timings.shortest_handshake_s, left_s))

    def lost(self, now: float) -> None:
        """A connection was lost.

        Raises:
            ServerGone: too many in a row, or the server is silent for too long.
        """
        if not self._lost_in_a_row:
            self._first_lost = now
        self._lost_in_a_row += 1
        fruitless_s = now - self._first_lost
        if self._lost_in_a_row >= self._timings.lost_in_a_row and fruitless_s > self._patience_s:
            raise ServerGone(
                f"The connection was lost {self._lost_in_a_row} times in {fruitless_s:.0f} seconds, and no batch "
                "came through in between.",
                "Look at the network; a smaller batch or fewer bits may pass.  Run again; training goes on.",
            )
        if now - self._heard > self._patience_s:
            raise ServerGone(
                f"The server has not answered for {self._patience_s:.0f} seconds.",
                "Start it again with the same folder and run again; training goes on where the server's last "
                "checkpoint and this run's stand.",
            )


def stuck(timings: Timings) -> ServerGone:
    """What is said of a server that answers and trains nothing."""
    return ServerGone(
        f"The server answers, but has trained nothing for {timings.stuck_s:.0f} seconds.",
        "Look at its output, then run again; training goes on from its last checkpoint.",
    )
