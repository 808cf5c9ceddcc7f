"""Write the task's texts and hold it against its gate, on the packaged backbone or another one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mobillm_kit.errors import KitError
from recipes.turns.gate import bars, figures
from recipes.turns.texts import make_task


def main() -> int:
    """Exit code: 0 where every bar of the gate holds, 1 where one does not, 2 where something could not be done."""
    parser = argparse.ArgumentParser(prog="python -m recipes.turns", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/turns"), help="folder for the texts")
    parser.add_argument("--backbone", default="pocket", help="of the gate: 'pocket' or a folder from recipes.pocket")
    parser.add_argument("--seed", type=int, default=0, help="of the gate's training")
    parser.add_argument("--no-gate", dest="gate", action="store_false", help="write the texts only")
    asked = parser.parse_args()
    try:
        make_task(asked.out)
        verdict = bars(figures(asked.backbone, asked.seed, _say)) if asked.gate else []
    except KitError as error:
        parser.exit(2, f"{error}\n")
    for bar in verdict:
        print(bar)
    return 0 if all(bar.ok for bar in verdict) else 1


def _say(method: str) -> None:
    print(f"gate: {method}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
