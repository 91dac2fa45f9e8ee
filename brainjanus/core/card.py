"""A card: a Markdown file in a folder that says what the folder holds, to people and to the Hugging Face Hub.

Enters: facts for the front matter (YAML), sections of text, and what the user wrote. Leaves: the file, whole or as it
was. A card is written anew when its facts change. Two places in it are the user's, and are kept:

    # yours, kept when ...  the end of the front matter; a key that stands there is left out above
    <!-- yours -->          what stands between these marks, under "Notes"
    <!-- /yours -->

A file without these places is no card any more: it is the user's, and stays as it is.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from brainjanus.core.errors import UserError, written_beside

OWN_FACTS = "# yours, kept when the card is written anew; for example license: cc-by-4.0"
OWN_TEXT = ("<!-- yours -->", "<!-- /yours -->")
INVITATION = "Write here what the files do not know. What stands between the two marks is kept."


class Yours(NamedTuple):
    """What a user wrote into a card: the end of its front matter, and its notes."""

    facts: str = ""
    text: str = INVITATION


class Card(NamedTuple):
    """facts: the front matter, names to what JSON can hold. sections: heading and Markdown; one without is left out."""

    title: str
    facts: Mapping[str, Any]
    sections: Sequence[tuple[str, str]]

    def text(self, yours: Yours = Yours()) -> str:  # noqa: B008 (a tuple)
        """The whole file."""
        own = set(re.findall(r"^([\w-]+):", yours.facts, flags=re.MULTILINE))
        lines = yaml_lines({name: fact for name, fact in self.facts.items() if name not in own})
        front = "\n".join(["---", *lines, OWN_FACTS, *([yours.facts] if yours.facts else []), "---"])
        notes = ("Notes", f"{OWN_TEXT[0]}\n{yours.text}\n{OWN_TEXT[1]}")
        body = [f"## {heading}\n\n{text}" for heading, text in (*self.sections, notes) if text]
        return "\n\n".join([front, f"# {self.title}", *body]) + "\n"


def save_card(path: Path, card: Card) -> None:
    """Write a card, and keep what the user wrote into the one that is there. Raises UserError for a file that is no
    card."""
    yours = yours_in(path) if path.exists() else Yours()
    if yours is None:
        raise UserError(
            f"{path}: expected a card with the line '{OWN_FACTS[:7]}...' and the marks {' and '.join(OWN_TEXT)}, got a "
            "file without. It is taken for yours and left as it is: rename it to have a card written."
        )
    with written_beside(path) as beside:
        beside.write_text(card.text(yours), encoding="utf-8")


def leave_card(path: Path, make: Callable[[], Card]) -> None:
    """`save_card` where something else was asked for: whatever goes wrong costs a sentence on standard error."""
    with forgiven(path):
        save_card(path, make())


def add_card(path: Path, make: Callable[[], Card], kept: Yours | None) -> None:
    """The same in a folder that is being made and that nobody sees yet. kept: what the user wrote into the card of the
    folder that it replaces."""
    with forgiven(path):
        path.write_text(make().text(kept or Yours()), encoding="utf-8")


@contextmanager
def forgiven(path: Path) -> Iterator[None]:
    """What a card is about is worth more than the card: its errors are told, and end there."""
    try:
        yield
    except Exception as error:
        said = str(error) if isinstance(error, UserError) else f"{path} was not written ({error!r})."
        print(f"Note: no new card. {said}", file=sys.stderr)


def yours_in(path: Path) -> Yours | None:
    """What the user wrote into a card; None if the file is no card, or is no card any more."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    facts = re.match(rf"---\n.*?^{re.escape(OWN_FACTS)}\n(.*?)^---$", text, flags=re.MULTILINE | re.DOTALL)
    notes = re.search(rf"^{OWN_TEXT[0]}\n(.*)^{OWN_TEXT[1]}$", text, flags=re.MULTILINE | re.DOTALL)
    return Yours(facts[1].rstrip("\n"), notes[1].rstrip("\n")) if facts and notes else None


def kept_from(path: Path) -> Yours | None:
    """What is kept of a file whose folder is replaced: what the user wrote into a card, or all of another file."""
    if (found := yours_in(path)) is not None:
        return found
    try:
        return Yours(text=path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return None


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; its cells are text, not Markdown. "" if there are no rows."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(plain(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) if rows else ""


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def plain(text: object) -> str:
    """Text that means nothing to Markdown and HTML, in one line: a name that somebody gave."""
    shown = one_line(str(text)).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|`*\[\]])", r"\\\1", shown)


def one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def yaml_lines(value: Any) -> list[str]:
    """YAML of what JSON can hold: blocks, whose leaves are JSON, which YAML is a superset of. Keys are plain words."""
    if isinstance(value, Mapping) and value:
        lines = []
        for key, entry in value.items():
            first, *rest = yaml_lines(entry)
            nested = isinstance(entry, Mapping | list | tuple) and len(entry)
            lines += [f"{key}:", *(f"  {line}" for line in (first, *rest))] if nested else [f"{key}: {first}"]
        return lines
    if isinstance(value, list | tuple) and value:
        lines = []
        for entry in value:
            first, *rest = yaml_lines(entry)
            lines += [f"- {first}", *(f"  {line}" for line in rest)]
        return lines
    return [json.dumps(one_line(value) if isinstance(value, str) else value, ensure_ascii=False, allow_nan=False)]
