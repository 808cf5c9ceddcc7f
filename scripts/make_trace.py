"""Write the packaged bandwidth traces.  They are made up, not recorded.

The logarithm of the rate wanders around that of its median, each second remembering the last:

    x[i] = memory · x[i-1] + sqrt(1 - memory²) · spread · N(0, 1)          rate[i] = median · exp(x[i])

python scripts/make_trace.py [FOLDER]        data/traces if none is given
"""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

from mobillm_kit.common import derived_seed

MEDIANS_MBIT = (20, 60)
SECONDS = 120
SPREAD = 0.35
"""Standard deviation of the rate's logarithm."""
MEMORY = 0.9
"""Correlation of neighbouring seconds."""


def synthetic_trace(mbit_per_s: float, seed: int, seconds: int = SECONDS) -> list[float]:
    """The rate of each second in Mb/s, around a median; same seed, same trace."""
    draws = random.Random(derived_seed(seed, "trace"))
    wander = draws.gauss(0.0, SPREAD)
    rates = []
    for _ in range(seconds):
        rates.append(round(mbit_per_s * math.exp(wander), 3))
        wander = MEMORY * wander + math.sqrt(1 - MEMORY**2) * draws.gauss(0.0, SPREAD)
    return rates


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, median in enumerate(MEDIANS_MBIT):
        lines = [
            f"# Synthetic, not recorded: synthetic_trace({median}, seed={seed}) of scripts/make_trace.py",
            "seconds,mbit_per_s",
            *(f"{second},{rate:g}" for second, rate in enumerate(synthetic_trace(median, seed))),
        ]
        file = folder / f"synthetic-{median}.csv"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "data" / "traces")
