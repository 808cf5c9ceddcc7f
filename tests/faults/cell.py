"""A cell that is interrupted in its middle and run again, as a process of its own.

    python -m tests.faults.cell PLACE ADDRESS_THAT_HANGS ADDRESS

Prints one line of JSON: what the interrupt left behind, and the side network of the second run.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from pathlib import Path

import psutil

from tests.faults.scenes import CHECKPOINT_EVERY, CONFIGS, STEPS
from tests.uplink import trained


def main(place: str, hanging: str, working: str) -> None:
    config = {**CONFIGS["ladder-int8"], "steps": STEPS, "checkpoint_every": CHECKPOINT_EVERY}
    held = []
    interrupted = 0.0

    def hold(method) -> None:
        close = method.close

        def timed_close() -> None:
            began = time.monotonic()
            close()
            held.append(time.monotonic() - began)

        method.close = timed_close

    try:
        trained(Path(place), hanging, before=hold, **config)
    except KeyboardInterrupt:
        interrupted = held[-1]
    left = {
        "close_s": interrupted,
        "threads": [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()],
        "connections": len(psutil.Process().net_connections(kind="tcp")),
        "processes": len(psutil.Process().children()),
    }
    side, _ = trained(Path(place), working, **config)
    sys.stdout.write(json.dumps({**left, "side": hashlib.sha256(side).hexdigest()}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
