"""Write the pages of the manual, which `--help` prints: `python docs/manual.py`; with --check, only compare them.

Enters: the commands, whose parsers know their options. Leaves: one file of text a command in
brainjanus/manual, laid out as manual pages are: NAME, SYNOPSIS, DESCRIPTION, OPTIONS, EXIT STATUS, EXAMPLES, SEE ALSO.
"""

import dataclasses
import inspect
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import tyro

from brainjanus import arguments
from brainjanus.cli import COMMANDS
from brainjanus.manual import ANY

FOLDER = Path(__file__).parents[1] / "brainjanus" / "manual"
WIDTH = 80
# Commands of two words, and how their parsers are reached.
KINDS = {
    "train tokenizer": ["train", "tokenizer"],
    "prepare --from": ["prepare", "--from"],
    "simulate eeg": ["simulate", "eeg"],
    "simulate meg": ["simulate", "meg"],
}
STATUS = {
    "0": "It is done. The last line that is printed names what was made.",
    "2": "Something that was given is wrong; one sentence says what was expected, what was received and what to do. "
    "Nothing half-written is left.",
    "130": "Stopped by Ctrl-C.",
    "75": "Stopped by SIGTERM, as schedulers send it: run the same command again.",
}


class Parsed(NamedTuple):
    """What a command is. settings: docstring and fields of its config classes, by their prefix."""

    doc: str
    parser: Any
    called: str
    settings: dict[str, tuple[str, list[str]]]


def parsed(words: list[str]) -> Parsed:
    """The parser of a command, without running it."""

    class Found(Exception):
        """Carries the parser past the rest of the command."""

    def keep(command: Callable, run: Callable, argv: list[str], name: str = "") -> None:
        prog = arguments.explained(command, run, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of get_parser, which no other function stands for
            parser = tyro.extras.get_parser(run, prog=prog, config=arguments.STYLE)
        raise Found(Parsed(str(run.__doc__), parser, prog, settings_of(run)))

    with mock.patch.object(arguments, "parse", keep):
        try:
            COMMANDS[words[0]]([*words[1:], "--help"])
        except Found as found:
            return found.args[0]
    raise AssertionError(f"{words} parses nothing")


def settings_of(run: Callable) -> dict[str, tuple[str, list[str]]]:
    """Docstrings and fields of the config classes among the arguments of a command: of those without a prefix "", of
    --a.b.option "a.b"."""
    found: dict[str, tuple[str, list[str]]] = {}

    def add(prefix: str, config: Any) -> None:
        doc, fields = found.get(prefix, ("", []))
        doc = f"{doc}\n\n{inspect.getdoc(type(config))}".strip()
        found[prefix] = doc, [*fields, *(field.name for field in dataclasses.fields(config))]
        for field in dataclasses.fields(config):
            inner = getattr(config, field.name)
            if dataclasses.is_dataclass(inner):
                add(f"{prefix}.{field.name}".strip(".").replace("_", "-"), inner)

    for name, argument in inspect.signature(run).parameters.items():
        if dataclasses.is_dataclass(argument.default):
            marks = [mark for mark in getattr(run.__annotations__[name], "__metadata__", ()) if hasattr(mark, "name")]
            given = [str(mark.name) for mark in marks if mark.name is not None]
            add(given[0] if given else name.replace("_", "-"), argument.default)
    return found


def pages() -> Iterator[tuple[str, str]]:
    """(command, its page), for all of them."""
    every = {name: [name] for name in COMMANDS} | KINDS
    for name, words in every.items():
        also = [other for other in every if other != name and other.split()[0] == name.split()[0]]
        yield name, page(parsed(words), also)


def page(command: Parsed, also: list[str]) -> str:
    description, _, rest = command.doc.partition("\nExamples:\n")
    summary, _, more = description.strip().partition("\n")
    examples = rest.partition("\nArgs:")[0]
    groups = list(grouped(command))
    required = [
        " ".join(filter(None, (option.flag, option.value)))
        for _, _, options in groups
        for option in options
        if option.required
    ]
    name = command.called.removeprefix("brainjanus ")
    own = dict(STATUS) if "goes on where it was stopped" in summary else {k: v for k, v in STATUS.items() if k != "75"}
    lines = [
        "NAME", *wrapped(f"brainjanus {name} - {summary[0].lower()}{summary[1:].rstrip('.')}"), "",
        "SYNOPSIS", *wrapped(" ".join([command.called, *required, "[OPTIONS]"]), hang=11), "",
    ]  # fmt: skip
    if more.strip():
        lines += [
            "DESCRIPTION",
            *(line for part in re.split(r"\n\s*\n", more.strip()) for line in (*wrapped(part), "")),
        ]
    lines += ["EXAMPLES", *(f"       {line.removeprefix('    ')}" for line in examples.rstrip().splitlines()), ""]
    for title, about, options in groups:
        lines += [title, *([*wrapped(about), ""] if about else [])]
        for option in options:
            lines += [f"       {' '.join(filter(None, (option.flag, option.value)))}", *wrapped(option.told, 14), ""]
    lines += ["EXIT STATUS"]
    lines += [line for status, text in own.items() for line in wrapped(f"{status:<7}{text}", hang=7)]
    lines += ["", "SEE ALSO"]
    lines += wrapped(", ".join([f"brainjanus {other} --help" for other in also] + ["the guide, docs/guide/index.md"]))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def wrapped(text: str, indent: int = 7, hang: int = 0) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split(" ")) if hang else " ".join(text.split()), WIDTH, initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hang), break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


class Option(NamedTuple):
    """flag: --out, or nothing; value: what stands behind it; told: what it means, and its default."""

    flag: str
    value: str
    told: str
    required: bool


def grouped(command: Parsed) -> Iterator[tuple[str, str, list[Option]]]:
    """(title, what they share, options), in the order of the parser: what is needed comes first."""
    for group in command.parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if not actions:
            continue
        title = {"positional arguments": "ARGUMENTS", "options": "OPTIONS"}.get(str(group.title))
        title = title or str(group.title).removesuffix(" options").upper() + " OPTIONS"
        names = [(action.option_strings or [action.dest])[0].lstrip("-") for action in actions]
        fields = [name.rpartition(".")[2].replace("-", "_") for name in names]
        prefix = names[0].rpartition(".")[0]
        if prefix and prefix not in command.settings:  # one setting of many names
            yield title, "", [many(command, prefix, actions)]
            continue
        doc, known = command.settings.get(prefix, ("", []))
        shared, told = split(doc, known)
        about = inspect.cleandoc(group.description or "")
        if not about or about == doc:
            about = shared if prefix else ""
        told |= {f"no_{field}": f"Not so: {what}" for field, what in told.items()}
        yield title, about, [option(action, told.get(field, "")) for action, field in zip(actions, fields, strict=True)]


def many(command: Parsed, prefix: str, actions: list[Any]) -> Option:
    """One entry for all names of a setting that has a value for each."""
    outer, _, last = prefix.rpartition(".")
    field = last.replace("-", "_")
    told = split(*command.settings[outer])[1][field]
    now = [re.search(r"\(default: (.*)\)", str(action.help)) for action in actions]
    names = [action.option_strings[0].removeprefix(f"--{prefix}.") for action in actions]
    default = ", ".join(f"{name} {found.group(1)}" for name, found in zip(names, now, strict=True) if found)
    return Option(f"--{prefix}.{ANY}", str(actions[0].metavar), f"{told} Default: {default}.", False)


def split(text: str, fields: list[str]) -> tuple[str, dict[str, str]]:
    """A docstring into what it says of all and of each field: it writes "field: what", or "one, other: what"."""
    name = "|".join(map(re.escape, sorted(fields, key=len, reverse=True)))
    parts = re.split(rf"(?:(?<=^)|(?<=[.\n] ))((?:{name})(?:,? (?:and )?(?:{name}))*): ", " ".join(text.split()))
    told = {}
    for names, what in zip(parts[1::2], parts[2::2], strict=True):
        for field in re.findall(rf"\b(?:{name})\b", names):
            told[field] = what.strip()
    return parts[0].strip(), told


def option(action: Any, otherwise: str) -> Option:
    told = str(action.help or "").replace("%%", "%")
    default = re.search(r"\((required|repeatable|default: .*)\)\s*$", told, flags=re.DOTALL)
    told = (told[: default.start()] if default else told).strip()
    flag = action.option_strings[0] if action.option_strings else ""
    value = str(action.metavar or "") if action.nargs != 0 else ""
    value = value.replace("{None}|", "")
    value = re.sub(r"\[(.+?) \[\1 \.\.\.\]\]", r"\1 ...", value)
    needed = bool(action.required)
    if not flag and told.partition("\n")[0].strip() == action.dest:
        told = told.partition("\n")[2].strip()
    told = told or otherwise
    preset = " ".join(default.group(1).removeprefix("default: ").split()) if default else ""
    if needed and flag:
        told = f"{told} Required.".strip()
    elif preset not in ("", "None", "False", "required", "repeatable") and "Default:" not in told:
        told = f"{told} Default: {preset}.".strip()
    return Option(flag, value, told, needed)


def main() -> str | None:
    """Returns what does not fit, if it was asked for."""
    made = {FOLDER / f"{name.replace(' ', '_')}.txt": text for name, text in pages()}
    old = {path: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.txt")}
    differ = sorted(path.stem for path in made.keys() | old.keys() if made.get(path) != old.get(path))
    if "--check" in sys.argv[1:]:
        return f"differ from the commands: {', '.join(differ)}. Run: python docs/manual.py" if differ else None
    for path in old.keys() - made.keys():
        path.unlink()
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main())
