"""The commands that put questions to a trained model: in-silico experiments, and new subjects."""

from collections.abc import Callable
from pathlib import Path

COMMANDS: dict[str, Callable[[list[str]], Path | str]] = {}
