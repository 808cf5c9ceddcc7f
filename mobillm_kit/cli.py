"""From words to one of the commands of ``commands/``, and from what went wrong to one sentence.

tyro reads the commands' fields, their types and the sentences below them; there is no second list of options.
`mobillm --tyro-print-completion bash` (or zsh, tcsh) prints the completion of a shell.

Knows: words.  Knows nothing of: what any command does.
Taught in: notebooks/00_start_here.ipynb
"""

import io
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from functools import reduce
from itertools import dropwhile, pairwise, takewhile
from operator import or_
from typing import Any

import msgspec
import tyro
from rich.console import Console
from rich.markup import escape
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from mobillm_kit import __version__
from mobillm_kit.commands import run as cli_run
from mobillm_kit.commands import tools as cli_tools
from mobillm_kit.errors import BadInput, KitError, extra
from mobillm_kit.texts.sources import check_characters

ABOUT = (
    "Fine-tune a language model from a device that runs forward passes only, and compare that with the alternatives.\n"
    "\nStart with `mobillm doctor`, then `mobillm compare`."
)

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it; 2 is for what the user can put right."""

COMMANDS = (
    *(cli_tools.Doctor, cli_run.Compare, cli_run.Sweep, cli_run.Train, cli_run.Evaluate, cli_run.Predict),
    *(cli_tools.Memory, cli_tools.Methods, cli_tools.Tasks, cli_tools.App, cli_tools.Server, cli_run.Device),
    *(cli_tools.Quantize, cli_tools.Export),
)

WORDS = ConstructorRegistry()
"""How a tuple of words is written as one argument: ' bad| good'."""


@WORDS.primitive_rule
def _words(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[str, ...]] | None:
    if kind.type != tuple[str, ...]:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="A|B",
        instance_from_str=lambda given: tuple(given[0].split("|")),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: ["|".join(value)],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit status is 2 after one sentence about what the user can put right."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    complaints = Console(stderr=True)
    try:
        for number, argument in enumerate(given, 1):
            check_characters(argument, f"Argument {number}")
        if given == ["--version"]:
            print(f"mobillm_kit {__version__}")
            return 0
        with extra("torch", "This command needs {}", brings=("torch", "transformers", "peft", "huggingface_hub")):
            return parse(given or ["--help"])()
    except KitError as error:
        complaints.print(f"[bold red]error[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return 2
    except KeyboardInterrupt:
        complaints.print("Stopped; what was done is kept, and the same command goes on from there.")
        return INTERRUPTED


def parse(arguments: Sequence[str]) -> Callable[[], int]:
    """The command that is asked for, its values checked against their fields."""
    said = io.StringIO()
    kinds: Any = reduce(or_, (*COMMANDS, cli_tools.Class))
    try:
        with redirect_stderr(said):
            command: Callable[[], int] = tyro.cli(
                kinds,
                prog="mobillm",
                description=ABOUT,
                args=cli_run.spelled(arguments, cli_run.Sweep.__struct_fields__),
                registry=WORDS,
                config=(tyro.conf.DisallowNone,),
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise BadInput(_sentence(said.getvalue())) from None
    _check(command)
    return command


def _sentence(box: str) -> str:
    """The first paragraph of tyro's complaint, and the option that it takes for the nearest."""
    lines = [line.strip(" │|") for line in box.splitlines()[1:]]  # the first one is its title
    said = dropwhile(_is_rule, lines)
    problem = " ".join(takewhile(lambda line: not _is_rule(line), said)).rstrip(".").removeprefix("Error ")
    close = next((after for line, after in pairwise(lines) if line == "Perhaps you meant:"), "")
    return f"{problem}. Did you mean {close.split()[0]}?" if close else f"{problem}."


def _is_rule(line: str) -> bool:
    return not line.strip("─-+╰╯")


def _check(command: Callable[[], int]) -> None:
    """tyro reads types; bounds are msgspec's."""
    plain = msgspec.to_builtins(command, enc_hook=str)
    try:
        msgspec.convert(plain, type(command), dec_hook=lambda kind, value: kind(value))
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$.")
        raise BadInput(f"--{place.rstrip('`').replace('_', '-')}: {problem[0].lower()}{problem[1:]}.") from None


if __name__ == "__main__":
    sys.exit(main())
