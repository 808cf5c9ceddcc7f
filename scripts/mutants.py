"""Mutation tests of the mathematics: each small fault, put in by itself, must make a test fail.

    score = killed / (killed + survived)          bar: 0.9 per module

A fault is one step of one of cosmic-ray's operators: + becomes -, < becomes <=, 2 becomes 3, `if` becomes `if not` …
The mutants of annotations and docstrings are left out: they change nothing.  Every mutant runs in a forked child of
one process that has torch and transformers imported already, so that it costs a second, and no file is changed.

Knows: which tests check which module.  Knows nothing of: what any of them computes.

    python scripts/mutants.py                    all modules; survivors go to build/mutants.json
    python scripts/mutants.py quant side         those whose path holds one of these words
    python scripts/mutants.py --again quant      only what survived the last time
    python scripts/mutants.py --sample 20        twenty of each, drawn at random
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import itertools
import json
import os
import pickle
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "build" / "mutants.json"
BAR = 0.9
PACKAGE = "mobillm_kit"
OWN = (PACKAGE, "tests")

MODULES: dict[str, tuple[str, ...]] = {
    "quant/books.py": ("test_quant_values", "test_quant"),
    "quant/codec.py": ("test_quant_values", "test_quant"),
    "quant/parcels.py": ("test_parcels",),
    "quant/bitwidth.py": ("test_bitwidth",),
    "side/full_width.py": ("test_oracles", "test_side"),
    "side/ladders.py": ("test_side", "test_oracles"),
    "side/heads.py": ("test_heads", "test_portable", "test_oracles", "test_mobillm"),
    "side/pooled_head.py": ("test_heads", "test_oracles"),
    "side/portable_head.py": ("test_portable",),
    "side/pruning.py": ("test_side",),
    "side/adapter.py": ("test_oracles", "test_mobillm", "test_side", "test_device"),
    "side/description.py": ("test_description", "test_side", "test_wire"),
    "server/side_trainer.py": ("test_side_trainer", "test_oracles", "test_mobillm"),
    "device/forward.py": ("test_device", "test_mobillm"),
    "training/adamw.py": ("test_adamw", "test_side_trainer", "test_oracles", "test_first_order"),
    "training/ledger.py": ("test_memory",),
    "methods/backprop.py": ("test_side_trainer", "test_oracles", "test_first_order", "test_streamed_lora"),
    "methods/bitfit.py": ("test_methods", "test_bitfit"),
    "methods/controls.py": ("test_controls",),
    "methods/dual_forward.py": ("test_zeroth_order", "test_prge"),
    "methods/full_checkpointing.py": ("test_methods", "test_first_order"),
    "methods/lora.py": ("test_methods", "test_lora", "test_first_order"),
    "methods/lora_checkpointing.py": ("test_streamed_lora", "test_methods", "test_lst"),
    "methods/lora_fa.py": ("test_methods", "test_lora", "test_first_order"),
    "methods/lora_layers.py": ("test_methods", "test_lora"),
    "methods/lst.py": ("test_methods", "test_lst"),
    "methods/mezo.py": ("test_methods", "test_mezo", "test_zeroth_order"),
    "methods/mezo_lora.py": ("test_methods", "test_mezo", "test_zeroth_order"),
    "methods/mobillm.py": ("test_methods", "test_mobillm", "test_oracles"),
    "methods/prge.py": ("test_methods", "test_zeroth_order", "test_prge"),
    "methods/probe.py": ("test_methods", "test_oracles", "test_first_order"),
    "methods/task_model.py": ("test_methods", "test_oracles", "test_first_order"),
    "methods/zeroth_order.py": ("test_mezo", "test_zeroth_order"),
    "memory/prediction.py": ("test_shapes",),
    "memory/live_tensors.py": ("test_shapes", "test_memory"),
    "memory/budget.py": ("test_fits",),
}
"""Module of the package -> its tests, the quickest first."""

OPERATORS = (
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "Pow_Mul", "Mod_Mul")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("FloorDiv_Mul", "LShift_RShift", "RShift_LShift")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("BitAnd_BitOr", "BitOr_BitAnd", "BitXor_BitAnd")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Eq_NotEq", "NotEq_Eq")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Is_IsNot", "IsNot_Is")),
    *("ReplaceUnaryOperator_USub_UAdd", "ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_Invert"),
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop", "RemoveDecorator"),
    "NumberReplacer",
)


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    name: str
    """Operator and occurrence."""
    line: int
    was: str
    now: str

    source: str
    """The whole module with the fault in it."""


class Mutated(MetaPathFinder, SourceFileLoader):
    """Gives one module another source than its file has."""

    def __init__(self, module: str, path: Path, source: str) -> None:
        super().__init__(module, str(path))
        self.source = source

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Of the one module; the others are found as ever."""
        return spec_from_file_location(fullname, self.path, loader=self) if fullname == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        """Compiled anew: the bytecode on disk is the real source's."""
        return compile(self.source, self.path, "exec", dont_inherit=True)


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module that is another program."""
    from cosmic_ray.ast import get_ast
    from cosmic_ray.mutating import MutationVisitor
    from cosmic_ray.plugins import get_operator

    meaning, tree = _meaning(source), pickle.dumps(get_ast(source))
    for name in OPERATORS:
        operator = get_operator(f"core/{name}")()
        for occurrence in itertools.count():
            visitor = MutationVisitor(occurrence, operator)
            mutated = visitor.walk(pickle.loads(tree)).get_code()
            if not visitor.mutation_applied:
                break
            if _meaning(mutated) not in (meaning, None):
                yield _mutant(f"{name}/{occurrence}", source, mutated)


def _mutant(name: str, source: str, mutated: str) -> Mutant:
    before, after = source.splitlines(), mutated.splitlines()
    line = next(n for n, (was, now) in enumerate(itertools.zip_longest(before, after)) if was != now)
    return Mutant(name, line + 1, before[line].strip(), after[line].strip(), mutated)


def _meaning(source: str) -> str | None:
    """The program without annotations, docstrings and the star between parameters; None where it is none."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.test = ast.Constant(None)
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.arguments):
            node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
            node.defaults = [*node.defaults, *(default for default in node.kw_defaults if default is not None)]
            node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(None)
    return ast.dump(tree)


def passes(module: str, source: str, tests: tuple[str, ...], limit_s: int, told: Path | None = None) -> bool:
    """Whether the module's tests pass with this source, in a child, within the limit of processor time."""
    gc.freeze()  # what is there already is not looked through again in every child
    child = os.fork()
    if child == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s))  # a busy machine kills no mutant
        os._exit(_child(module, source, tests, told))
    ends = time.monotonic() + 5 * limit_s  # one that waits uses no processor
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _child(module: str, source: str, tests: tuple[str, ...], told: Path | None) -> int:
    import pytest

    nowhere = os.open(os.devnull if told is None else told.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    name = f"{PACKAGE}/{module}".removesuffix(".py").replace("/", ".")
    sys.meta_path.insert(0, Mutated(name, ROOT / PACKAGE / module, source))
    files = [str(ROOT / "tests" / f"{test}.py") for test in tests]
    quick = ["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", *(["--tb=no"] if told is None else [])]
    quiet = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # the parent has imported plugins already
    code = pytest.main([*quick, *quiet, *files])
    if told is not None:
        told.write_text(json.dumps([name for name in sys.modules if not name.startswith(OWN)]))
    return int(code)


@cache
def warm(tests: tuple[str, ...]) -> int:
    """Run tests with no fault, and import here what they import beside our own; a limit in seconds for one mutant.

    Raises:
        SystemExit: they fail.
    """
    told = RESULTS.with_name("modules.json")
    before_s = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    if not passes("none", "", tests, 3600, told):
        raise SystemExit(f"{', '.join(tests)} fail with no fault:\n{told.with_suffix('.txt').read_text()[-3000:]}")
    for name in json.loads(told.read_text()):
        with suppress(Exception):  # a name that only exists inside pytest, or on another system
            importlib.import_module(name)
    used_s = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before_s
    return 5 + int(4 * used_s)


def run(module: str, tests: tuple[str, ...], chosen: Callable[[list[Mutant]], list[Mutant]]) -> dict[str, Any]:
    """Mutants of a module against its tests."""
    limit_s = warm(tests)
    found = chosen(list(mutants((ROOT / PACKAGE / module).read_text(encoding="utf-8"))))
    survivors = []
    for mutant in found:
        if passes(module, mutant.source, tests, limit_s):
            survivors.append({key: value for key, value in asdict(mutant).items() if key != "source"})
            print(f"  {module}:{mutant.line}  {mutant.was}\n{'':>8}->  {mutant.now}", flush=True)
    print(f"{module}: {len(found) - len(survivors)} of {len(found)} killed", flush=True)
    return {"mutants": len(found), "survivors": survivors}


def _chooser(last: dict[str, Any] | None, sample: int | None) -> Callable[[list[Mutant]], list[Mutant]]:
    """Those that survived the last time, or so many drawn at random, or all."""
    if last is not None:
        names = {mutant["name"] for mutant in last["survivors"]}
        return lambda found: [mutant for mutant in found if mutant.name in names]
    if sample is not None:
        return lambda found: random.Random(0).sample(found, min(sample, len(found)))
    return list


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="parts of paths; all modules by default")
    parser.add_argument("--again", action="store_true", help="only what survived the last time")
    parser.add_argument("--sample", type=int, help="so many mutants of each module, drawn at random")
    given = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for module, tests in MODULES.items():
        if given.words and not any(word in module for word in given.words):
            continue
        last = kept.get(module) if given.again else None
        result = run(module, tests, _chooser(last, given.sample))
        kept[module] = result if last is None else {**last, "survivors": result["survivors"]}
        RESULTS.write_text(json.dumps(kept, indent=1))
    below = []
    for module, result in kept.items():
        score = 1 - len(result["survivors"]) / max(1, result["mutants"])
        print(f"{score:7.1%}  of {result['mutants']:4}  {module}")
        below += [module] if score < BAR else []
    sys.exit(f"Below {BAR:.0%}: {', '.join(below)}" if below else 0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
