"""A page of the guide enters; its stories leave: blocks in their order, with what they presume.

    <!-- presumes data/mine runs/mine cat.png -->

opens a story: what follows, up to the next such comment or the end of the page, happens in a new folder in which these
are. A page without one is a single story that presumes nothing.
"""

import re
from pathlib import Path
from typing import NamedTuple

_PARTS = re.compile(
    r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$"  # a fenced block
    r"|^(?P<indented> {4}.*)$"
    r"|^<!-- presumes(?P<presumed>.*?)-->$"
    r"|^#+ (?P<title>[^\n]*)$",
    flags=re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """kind: what stands behind the opening fence. before: what the page says up to it."""

    kind: str
    text: str
    line: int
    before: str


class Story(NamedTuple):
    page: str
    title: str
    presumes: tuple[str, ...]
    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        return f"{self.page}: {self.title}"


def stories(page: str, markdown: str) -> list[Story]:
    """The stories of a page that have blocks. Raises ValueError for a block that is indented instead of fenced."""
    found: list[Story] = []
    title, presumes, blocks = "", (), []

    def close() -> None:
        if blocks:
            found.append(Story(page, story_title, presumes, tuple(blocks)))

    story_title = None
    for part in _PARTS.finditer(markdown):
        line = markdown[: part.start()].count("\n") + 1
        if part["title"]:
            title = part["title"]
        elif part["presumed"] is not None:
            close()
            story_title, presumes, blocks = None, tuple(part["presumed"].split()), []
        elif part["indented"]:
            raise ValueError(
                f"{page}, line {line}: expected a block between ``` with its kind, got one that is indented"
            )
        else:
            story_title = story_title or title
            blocks.append(Block(part["kind"].strip(), part["text"], line, markdown[: part.start()]))
    close()
    return found


def guide(root: Path) -> list[Story]:
    """All stories of the guide of the project in `root`."""
    pages = sorted((root / "docs/guide").glob("*.md"))
    return [story for page in pages for story in stories(page.name, page.read_text(encoding="utf-8"))]
