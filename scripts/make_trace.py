"""Write the packaged bandwidth traces.  They are made up, not recorded: see `mobillm_kit.link.rates.synthetic_trace`.

python scripts/make_trace.py [FOLDER]        data/traces if none is given
"""

from __future__ import annotations

import sys
from pathlib import Path

from mobillm_kit.link.rates import synthetic_trace

MEDIANS_MBIT = (20, 60)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, median in enumerate(MEDIANS_MBIT):
        trace = synthetic_trace(median, seed=seed)
        lines = [
            f"# Synthetic, not recorded: link.synthetic_trace({median}, seed={seed}), written by scripts/make_trace.py",
            "seconds,mbit_per_s",
            *(f"{second:g},{rate:g}" for second, rate in zip(trace.seconds_at, trace.mbit_per_s, strict=True)),
        ]
        file = folder / f"synthetic-{median}.csv"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "data" / "traces")
