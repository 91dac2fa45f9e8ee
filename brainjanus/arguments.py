"""What the commands of the command line share: how arguments are read, and the names of folders."""

import argparse
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from tyro.conf import Positional, arg

from brainjanus.core.errors import UserError
from brainjanus.manual import meant

RunFolder = Positional[Annotated[Path, arg(metavar="RUN")]]
DatasetFolder = Positional[Annotated[Path, arg(metavar="DATASET")]]
T = TypeVar("T")
STYLE = (tyro.conf.FlagCreatePairsOff,)


def explained(command: Callable[[list[str]], T], run: Callable[..., T], name: str = "") -> str:
    """Give `run` the docstring of `command`, which explains its arguments; returns how it is called."""
    run.__doc__ = inspect.cleandoc(str(command.__doc__))
    return f"brainjanus {name or command.__name__}"


def parse(command: Callable[[list[str]], T], run: Callable[..., T], argv: list[str], name: str = "") -> T:
    """Call `run` with the arguments in argv. Raises UserError for what is missing, unknown or of another kind."""
    prog = explained(command, run, name)
    description = str(run.__doc__).partition("\nArgs:")[0]
    with in_one_sentence(prog):
        return tyro.cli(run, prog=prog, description=description, args=argv, config=STYLE)


@contextmanager
def in_one_sentence(prog: str) -> Iterator[None]:
    """What tyro has to say against the arguments is a UserError.

    tyro's hook for that is not promised to stay: without it, tyro says the same in more lines, with the same status.
    """
    try:
        from tyro._errors import on_parse_error
    except ImportError:
        yield
        return

    def refuse(event: Any) -> None:
        kind, where = type(event).__name__, prog.removeprefix("brainjanus ")
        look = f"`{prog.partition(' LAYOUT')[0]} --help` explains it."
        if kind == "MissingArgs":
            missing = " and ".join(called(one.arg) for one in event.missing_arguments)
            raise UserError(f"{where}: expected {missing}, got none. {look}")
        if kind == "UnrecognizedArgs":
            raise UserError(f"{where}: expected no further arguments, got '{event.tokens[0]}'. Quote it? {look}")
        if kind == "InvalidChoice":
            known = ", ".join(event.choices)
            raise UserError(
                f"{where} {called(event.argument)}: expected one of {known}, got '{event.value}'. "
                f"{meant(event.value, event.choices)}"
            )
        if kind == "BadValue":
            raise UserError(f"{where}: expected a value behind {called(event.argument)}, got none. {look}")
        if kind == "InstantiationFailure":
            option = called(event.argument) if event.argument is not None else "arguments"
            reason = " ".join(str(event.message).split()).rstrip(".")
            raise UserError(f"{where} {option}: expected another value: {reason}. {look}")

    with on_parse_error(refuse):
        yield


def called(argument: Any) -> str:
    """An argument as one writes it: --out PATH."""
    value = str(argument.lowered.metavar or "").replace("{None}|", "")
    return value if argument.is_positional() else f"{argument.lowered.name_or_flags[0]} {value}".strip()


def gathered(argv: Sequence[str], options: Sequence[str]) -> list[str]:
    """The arguments with all values of an option that is given several times behind its first place."""
    current: list[str] = []
    parts, first = [current], {option: [option] for option in options}
    for word in argv:
        name, equals, value = word.partition("=")
        if name in first:
            current = first[name]
            if not any(part is current for part in parts):
                parts.append(current)
            current += [value] if equals else []
        elif word.startswith("--"):
            parts.append(current := [word])
        else:
            current.append(word)
    return [word for part in parts for word in part]


def early(argv: list[str], option: str) -> str | None:
    """The value of an option that has to be read first, because it sets the defaults of the others."""
    parser = argparse.ArgumentParser(prog="brainjanus", add_help=False, allow_abbrev=False)
    parser.add_argument(option, dest="found")
    return parser.parse_known_args(argv)[0].found
