"""What users add from files of their own: a file enters, names that settings may use leave.

A kind of thing that can be added (a layout, a metric, an encoder, a quantizer, a vision encoder, a backbone) is one
`Added`: names beside those that are built in. A name may carry settings, "lowrank:rank=4,bias=true", so that a config
holds them and a saved model is built again as it was.
"""

import hashlib
import importlib.util
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Generic, TypeVar

from brainjanus.core.errors import UserError

T = TypeVar("T")
NAME = re.compile(r"[a-z][a-z0-9_-]*")
LOAD = "load its file with --extend FILE, or import it first"
_loaded: dict[Path, str] = {}  # file -> the module that was made of it


class Added(Generic[T]):
    """What users added of one kind, by name; what is added under a name again replaces it.

    kind: as sentences call it. built_in: names that are taken.
    """

    def __init__(self, kind: str, built_in: Collection[str] = ()):
        self.kind, self.built_in = kind, tuple(built_in)
        self.entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> None:
        """Raises UserError for a name that is built in, or that a setting could not hold."""
        if name in self.built_in or not NAME.fullmatch(name):
            raise UserError(
                f"{self.kind} '{name}': expected a name of its own, of small letters, digits, - and _, got "
                f"{'one that is built in' if name in self.built_in else 'another'}. Call it otherwise."
            )
        self.entries[name] = entry

    def adding(self, name: str) -> Callable[[T], T]:
        """A decorator that adds what it decorates, and leaves it as it is."""

        def add(entry: T) -> T:
            self.add(name, entry)
            return entry

        return add

    def __contains__(self, name: str) -> bool:
        """Whether something was added under this name, settings behind it or not."""
        return name.partition(":")[0] in self.entries

    def names(self) -> str:
        """All names, for sentences."""
        return ", ".join([*self.built_in, *self.entries])

    def problem(self, name: str) -> str | None:
        """Why a config cannot name this; None: it can."""
        if name in self.built_in or name in self:
            return None
        return f"{self.kind} must be one of {self.names()}, got '{name}' (if it is an extension's, {LOAD})"

    def make(self, name: str, *arguments: Any) -> Any:
        """Call what was added under a name, with these arguments and the settings behind the name.

        Raises UserError for settings that it does not take.
        """
        self.check(name, *arguments)
        return self.entries[name.partition(":")[0]](*arguments, **settings_in(name))  # type: ignore[operator]

    def check(self, name: str, *arguments: Any) -> None:
        """Raises UserError for settings behind a name that what was added there does not take with these arguments."""
        entry: Any = self.entries[name.partition(":")[0]]
        try:
            inspect.signature(entry).bind(*arguments, **settings_in(name))
        except TypeError as error:
            raise UserError(
                f"{self.kind} '{name}': expected settings that it takes, {getattr(entry, '__name__', entry)}"
                f"{inspect.signature(entry)}, got others ({error}). Correct the name."
            ) from error


def settings_in(name: str) -> dict[str, Any]:
    """What stands behind the colon of a name: KEY=VALUE,..., with numbers, true, false and words as values."""
    settings = {}
    for part in filter(None, name.partition(":")[2].split(",")):
        key, _, text = part.partition("=")
        try:
            settings[key] = json.loads(text)
        except ValueError:
            settings[key] = text
    return settings


def load_extension(file: Path | str) -> None:
    """Run a Python file, once in a process, so that what it adds is known.

    Its own folder is searched for what it imports, as if it were run by itself. What it raises is raised.
    Raises UserError if it is no Python file, or imports what is not there.
    """
    path = Path(file).expanduser().resolve()
    if path in _loaded:
        return
    if path.suffix != ".py" or not path.is_file() or not os.access(path, os.R_OK):
        there = "none there" if not path.exists() else "something else" if not path.is_file() else "a locked one"
        raise UserError(f"--extend {file}: expected a Python file, got {there}. Correct the path, or its permissions.")
    name = f"brainjanus_extension_{len(_loaded)}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if (told := mistake(error)) is not None:
            raise UserError(f"--extend {file}: {told}") from error
        raise
    _loaded[path] = name


def loaded_extensions() -> dict[str, str]:
    """The files that were loaded, and what is in them (SHA-256)."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in _loaded if path.is_file()}


def mistake(error: BaseException) -> str | None:
    """What is wrong with a file that raised this, where it takes one sentence; None: its traceback says it best."""
    if isinstance(error, SyntaxError):
        line = f" in line {error.lineno} of {Path(error.filename).name}" if error.filename and error.lineno else ""
        text = f" ({error.text.strip()[:60]})" if error.text else ""
        return f"expected Python, got '{error.msg}'{line}{text}. Correct it."
    if isinstance(error, ModuleNotFoundError) and (error.name or "brainjanus").partition(".")[0] != "brainjanus":
        return (
            f"expected all that it imports to be installed, got no '{error.name}'. Install it, or put its file beside "
            "this one."
        )
    return None


def extensions_in(argv: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without --extend FILE, wherever it stands, and the files. Raises UserError if a file is missing."""
    rest, files = [], []
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if option != "--extend":
            rest.append(word)
            continue
        file = value if equals else next(words, "")
        if not file or file.startswith("-"):
            raise UserError(f"--extend: expected a Python file behind it, got '{file}'. Name the file.")
        files.append(file)
    return rest, files
