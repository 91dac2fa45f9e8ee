"""Layouts: how the field's datasets lie on disk, one file each."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import get_args

from brainjanus.core.errors import UserError
from brainjanus.data.study import Layout, Study, StudyOptions

FILES = {name: name.replace("-", "_") for name in get_args(Layout)}


def open_study(layout: str, path: Path, options: StudyOptions) -> Study:
    """Look through a folder. Raises UserError for an unknown layout, and for what keeps a study from being prepared."""
    if layout not in FILES:
        raise UserError(f"--from: expected one of {', '.join(FILES)}, got '{layout}'. Name one of these.")
    if not path.exists():
        raise UserError(
            f"{path}: expected the folder that holds the files of the layout {layout}, got none there. Correct it."
        )
    module = import_module(f"brainjanus.data.layouts.{FILES[layout]}")
    opened: Callable[[Path, StudyOptions], Study] = module.open_study
    return replace(opened(path, options), asked=options)
