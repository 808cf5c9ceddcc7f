"""Every duration that device, server and socket wait by, each with its reason; nothing else decides about time.

Knows: seconds.  Knows nothing of: clocks, sockets, messages.
Taught in: notebooks/08_device_and_server.ipynb
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Timings:
    """Seconds unless the name says otherwise."""

    # ---- the device's uplink: silence, loss, the end
    patience_s: float = 20.0
    """Silence after which the server counts as gone."""
    stuck_s: float = 900.0
    """A server that answers pings and trains nothing for so long counts as gone too."""
    silence_s: float = 5.0
    """Silence after which the connection is closed and opened again; more where a large message is on its way."""
    stall_s: float = 5.0
    """Time without an answer to a batch, while the server answers pings, after which the device asks where training
    stands: a message was lost, or steps take long.  More where steps are known to take longer, and each time anew."""
    slowest_link_bytes_per_s: float = 125_000.0
    """1 Mb/s: what a link can do of which nothing is known yet."""
    slack: float = 4.0
    """How many times longer than seen so far something may take before it counts as lost."""
    lost_in_a_row: int = 5
    """Connections lost, with no step trained in between, after which patience counts although the server answers."""
    ping_s: float = 1.0
    """Quiet after which the device pings: four pings fit into the silence that closes a connection."""
    retry_s: float = 0.3
    """Between a lost connection and the next one: a server that starts again is found soon, and not besieged."""
    send_s: float = 2.0
    """A queue with no room for so long belongs to a connection that is gone."""
    handshake_s: float = 4.5
    """Wait for a handshake; below the socket's own limit, so that the sentence comes from here."""
    shortest_handshake_s: float = 0.2
    """What a handshake gets even where patience is nearly over."""
    leave_s: float = 0.7
    """What the talking thread gets to leave by itself; twice that and the socket's own end stay below 2 s."""

    # ---- both ends' sockets
    tick_s: float = 0.05
    """Longest wait for a message: pings and losses, idle sessions and strangers that send too much, are noticed so late
    at most."""
    handshake_limit_s: float = 5.0
    """A peer that does not finish the handshake is cut off."""
    slice_s: float = 0.1
    """Waits that no bell can end look up so often."""
    given_up_s: float = 0.5
    """After a loss libzmq says at once that it will connect again, or never does."""
    look_s: float = 0.5
    """What a port gets to say what it speaks, after three broken handshakes."""
    flush_s: float = 0.5
    """Most that messages already handed over get to leave when a socket closes."""
    socket_leave_s: float = 0.4
    """What a thread gets to leave a socket that closes, and ZeroMQ to end after the flush."""

    # ---- the server
    stranger_s: float = 10.0
    """What a connection gets to begin a session; devices say hello at once."""
    full_s: float = 0.01
    """Wait before a message is tried again for which a device's queue had no room."""
    gone_s: float = 10.0
    """What a device takes no longer, and says nothing for so long, is left out: if it returns, it is told all again."""
    silent_s: float = 60.0
    """Devices ping every second: one that said nothing for so long makes room for another where there is none."""
    idle_s: float = 900.0
    """A session that says nothing for so long is put to sleep; its checkpoints stay."""
    left_s: float = 5.0
    """A session whose device has not pinged for so long makes room for another of the same device."""
    end_s: float = 5.0
    """Wait for sessions to end the step they are in."""

    # ---- a server's process
    start_s: float = 90.0
    """A server that has not said where it listens by then has failed.  A cold disk alone may take half of it."""
    stop_s: float = 1.5
    """A process that has not ended by then is killed; closing stays below 2 s."""


TIMINGS = Timings()
"""What every party goes by."""
