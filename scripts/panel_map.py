"""Train MeZO with each learning rate and ε of the map that notebook 04 and `mobillm app` show.

    python scripts/panel_map.py        writes mobillm_kit/show/panel_map.json in about five minutes

`tests/test_panels_learning.py` trains one of the runs again.
"""

from __future__ import annotations

import msgspec
import torch
from rich.progress import track

import mobillm_kit as kit
from mobillm_kit.runs.loop import evaluate
from mobillm_kit.runs.provenance import provenance
from mobillm_kit.show.panels_learning import MAP, MezoRuns

RATES = [1e-5, 1e-4, 3e-4, 5e-4, 1e-3]
EPSILONS = [1e-1, 1e-2, 1e-3, 1e-4, 1e-8]
LOOKS = [0, 20, 40, 60]
BATCH, DEV = 16, 100


def run(lr: float, eps: float, looks: list[int]) -> list[float]:
    """Dev loss, nats, at each step of ``looks``; texts in the order of seed 0, a constant learning rate."""
    spec = kit.RunSpec(method="mezo", accelerator="cpu", limit_dev=DEV, options={"eps": eps})
    prepared = kit.prepare(spec)
    method, losses = kit.build_method(prepared), []
    for step in range(looks[-1] + 1):
        if step in looks:
            losses.append(round(evaluate(method, prepared.dev, prepared.encoder)[0], 4))
        rows = kit.batch_indices(len(prepared.train), BATCH, step, seed=0)
        method.step(prepared.encoder.collate([prepared.train[row] for row in rows]), lr)
    return losses


def main() -> None:
    """Write the file."""
    torch.set_num_threads(1)
    cells = [(eps, rate) for eps in EPSILONS for rate in RATES]
    found = iter([run(rate, eps, LOOKS) for eps, rate in track(cells, "runs")])
    made_with = provenance("python scripts/panel_map.py")
    runs = MezoRuns(RATES, EPSILONS, LOOKS, [[next(found) for _ in RATES] for _ in EPSILONS], made_with)
    MAP.write_bytes(msgspec.json.format(msgspec.json.encode(runs), indent=1) + b"\n")


if __name__ == "__main__":
    main()
