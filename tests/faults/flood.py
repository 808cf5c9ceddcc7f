"""A device that offers large batches as fast as it may, and says how its memory grows while nobody takes them.

    python -m tests.faults.flood ADDRESS

Reads a line to begin, prints {"steady": bytes, "peak": bytes, "window": bytes} when the server is silent for a while.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from mobillm_kit.channel.messages import BatchMessage, Hello, Plan
from mobillm_kit.device.client import ServerClient, route_to
from mobillm_kit.errors import KitError
from mobillm_kit.link.timeline import Timeline
from mobillm_kit.memory.measure import current_rss_bytes, give_back_free_memory, peak_rss_bytes, reset_peak
from mobillm_kit.side.description import SideSpec

ROWS, TOKENS, WIDTH, LAYERS = 4, 1024, 128, (0, 1)
CREDIT = 4
BATCH_BYTES = ROWS * TOKENS * WIDTH * len(LAYERS) * 4
WARM_STEPS = 8
OFFERING_S = 8.0


def plan() -> Plan:
    side = SideSpec(
        kind="full-width",
        width=WIDTH,
        layers=list(LAYERS),
        n_labels=2,
        rank=2,
        reduction=2,
        heads=2,
        causal=False,
        pooling="mean",
        seed=0,
        start="random",
        feed_forward=0,
        norm_eps=1e-12,
    )
    return Plan(
        fingerprint="flood",
        side=side,
        first=None,
        head=None,
        labels="server",
        weight_decay=0.0,
        steps=10_000,
        checkpoint_every=10_000,
        max_rows=ROWS,
        max_tokens=TOKENS,
        n_samples=ROWS,
        cache=False,
    )


def batch(sequence: int) -> tuple[BatchMessage, list[bytes]]:
    message = BatchMessage(
        sequence=sequence,
        lr=1e-3,
        samples=list(range(ROWS)),
        fresh=list(range(ROWS)),
        lengths=[TOKENS] * ROWS,
        positions=[TOKENS - 1] * ROWS,
        targets=[0, 1, 0, 1],
        codec="fp32",
        group=0,
        layers=list(LAYERS),
        frames=[],
    )
    return message, [bytes(BATCH_BYTES // len(LAYERS)) for _ in LAYERS]


def made(sequence: int, held: Callable[[int], bool]) -> tuple[BatchMessage, list[bytes]]:
    return batch(sequence)


def main(address: str) -> None:
    hello = Hello(session="f" * 32, name="flood", code="", position=0, plan=plan(), frames=[])
    connect, _ = ExitStack().enter_context(route_to(address))
    remote = ServerClient(connect, hello, [], Timeline(), made, patience_s=60.0)
    remote.drain(WARM_STEPS)
    give_back_free_memory()
    steady = current_rss_bytes()
    reset_peak()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    threading.Thread(target=offer_all, args=(remote,), daemon=True).start()
    time.sleep(OFFERING_S)
    window = CREDIT * BATCH_BYTES
    sys.stdout.write(json.dumps({"steady": steady, "peak": peak_rss_bytes(), "window": window}) + "\n")
    sys.stdout.flush()
    remote.close()


def offer_all(remote: ServerClient) -> None:
    try:
        remote.send(plan().steps)
    except KitError:
        return  # closed by the other thread


if __name__ == "__main__":
    main(*sys.argv[1:])
