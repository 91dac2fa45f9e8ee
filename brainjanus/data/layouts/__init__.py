"""Layouts: how the field's datasets lie on disk, one file each; and those that users add."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import get_args

from brainjanus.core.errors import UserError
from brainjanus.core.extensions import LOAD, Added
from brainjanus.data.study import Layout, Study, StudyOptions

FILES = {name: name.replace("-", "_") for name in get_args(Layout)}
OpenStudy = Callable[[Path, StudyOptions], Study]
LAYOUTS = Added[OpenStudy]("layout", FILES)


def add_layout(name: str) -> Callable[[OpenStudy], OpenStudy]:
    """A decorator that makes a function (path, options) -> Study the layout of this name, for `prepare --from` too."""
    return LAYOUTS.adding(name)


def open_study(layout: str, path: Path, options: StudyOptions) -> Study:
    """Look through a folder. Raises UserError for an unknown layout, and for what keeps a study from being prepared."""
    if layout not in FILES and layout not in LAYOUTS.entries:
        raise UserError(
            f"--from: expected one of {LAYOUTS.names()}, got '{layout}'. Name one of these; if it is an extension's, "
            f"{LOAD}."
        )
    if not path.exists():
        raise UserError(
            f"{path}: expected the folder that holds the files of the layout {layout}, got none there. Correct it."
        )
    if layout in FILES:
        opened: OpenStudy = import_module(f"brainjanus.data.layouts.{FILES[layout]}").open_study
    else:
        opened = LAYOUTS.entries[layout]
    return replace(opened(path, options), asked=options)
