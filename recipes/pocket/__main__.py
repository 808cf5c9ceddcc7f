"""Build the pocket backbone from nothing: generate its text, train its tokenizer, pretrain, and check it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mobillm_kit.errors import KitError
from recipes.pocket.build import build_pocket


def main() -> int:
    """Exit code: 0 where every bar of the gate holds, 1 where one does not, 2 where the build could not be made."""
    parser = argparse.ArgumentParser(prog="python -m recipes.pocket", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=0, help="of the texts and the initial weights")
    parser.add_argument("--tokens", type=int, help="pretraining tokens, at least 10000; by default the full build's")
    parser.add_argument("--no-gate", dest="gate", action="store_false", help="do not train the methods on it")
    asked = parser.parse_args()
    try:
        report = build_pocket(asked.out, seed=asked.seed, tokens=asked.tokens, gate=asked.gate, listener=_say)
    except KitError as error:
        parser.exit(2, f"{error}\n")
    for bar in report.bars:
        print(bar)
    return 0 if report.passed else 1


def _say(what: str, done: int, total: int) -> None:
    print(f"gate {done + 1}/{total}: {what}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
