"""What the commands of the command line share: how arguments are read, and the names of folders."""

import argparse
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import tyro
from tyro.conf import Positional, arg

RunFolder = Positional[Annotated[Path, arg(metavar="RUN")]]
DatasetFolder = Positional[Annotated[Path, arg(metavar="DATASET")]]
T = TypeVar("T")


def parse(command: Callable[[list[str]], T], run: Callable[..., T], argv: list[str], name: str = "") -> T:
    """Call `run` with the arguments in argv; the docstring of `command` is the help text, its Args included."""
    run.__doc__ = inspect.cleandoc(str(command.__doc__))
    description = run.__doc__.partition("\nArgs:")[0]
    prog = f"brainjanus {name or command.__name__}"
    return tyro.cli(run, prog=prog, description=description, args=argv, config=(tyro.conf.FlagCreatePairsOff,))


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
