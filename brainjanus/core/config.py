"""Config: frozen dataclasses to and from plain dictionaries and files; an unknown key is an error.

All problems of a file are listed at once, each with the keys that exist.
"""

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from brainjanus.core.errors import UserError

T = TypeVar("T")
MOST_PROBLEMS = 8  # that are listed at once


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain values that JSON can hold."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def load_config(kind: type[T], path: Path | str) -> T:
    """Read a config from a .json or .toml file. Raises UserError if it cannot be read or does not fit `kind`."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"config {path}: expected a readable .json or .toml file, got '{error}'. Correct the path or the file."
        ) from error
    return from_dict(kind, values, where=str(path))


def read_json(path: Path) -> dict:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON, got '{error}'. Copy the run again, or delete it.") from error
    if not isinstance(facts, dict):
        raise UserError(f"{path}: expected settings by name, got {type(facts).__name__}. Is this the right file?")
    return facts


def from_dict(kind: type[T], values: Any, *, where: str = "config", default: T | None = None) -> T:
    """Build a config from plain values; keys that are left out keep their defaults, or are those of `default`.

    Raises UserError that lists every unknown key and every value of a wrong type.
    """
    problems: list[str] = []
    config = _build(kind, values, "", problems, default)
    if problems:
        more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
        listed = "; ".join(problems[:MOST_PROBLEMS]) + more
        raise UserError(f"{where}: {listed}. Correct these and try again.")
    return config


def changed(config: T, settings: Mapping[str, Any], *, where: str = "settings") -> T:
    """The same config with single values replaced, by the names that the command line has ("training.optim.steps").

    Raises UserError that lists every unknown name and every value of a wrong type.
    """
    values: dict[str, Any] = {}
    for name, value in settings.items():
        *path, last = name.split(".")
        table = values
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    return from_dict(type(config), values, where=where, default=config)


def _build(kind: Any, value: Any, key: str, problems: list[str], default: Any = None) -> Any:
    """default: what the keys that are left out are taken from, where the parent has a default of its own for `kind`."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            problems.append(f"{key or 'the top'}: expected a table of settings, got {shown(value)}")
            return None
        types_of = typing.get_type_hints(kind)
        names = [field.name for field in dataclasses.fields(kind)]
        for unknown in sorted(set(value) - set(names)):
            problems.append(f"unknown key '{_joined(key, unknown)}' (there are {', '.join(names)})")
        before = len(problems)
        defaults = {
            f.name: _default_of(f) if default is None else getattr(default, f.name) for f in dataclasses.fields(kind)
        }
        built = {n: _build(types_of[n], value[n], _joined(key, n), problems, defaults[n]) for n in names if n in value}
        if len(problems) > before:
            return None
        try:
            return kind(**built) if default is None else dataclasses.replace(default, **built)
        except (UserError, TypeError) as error:
            problems.append(str(error).rstrip("."))
            return None
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        options = [a for a in arguments if a is not type(None)]
        return None if value is None and len(options) < len(arguments) else _build(options[0], value, key, problems)
    if origin is tuple and isinstance(value, list | tuple):
        inner = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(inner) == len(value):
            return tuple(_build(t, v, key, problems) for t, v in zip(inner, value, strict=True))
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return {name: _build(arguments[1], v, _joined(key, name), problems) for name, v in value.items()}
    elif origin is typing.Literal and value in arguments:
        return value
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif kind is Any or (isinstance(kind, type) and type(value) is kind):
        return value
    problems.append(f"{key}: expected {_name_of(kind)}, got {shown(value)}")
    return None


def shown(value: Any) -> str:
    """A value in an error message; long ones are cut."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _default_of(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _joined(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _name_of(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
