"""Predictions that are kept until all of them are scored, so that an evaluation that was stopped goes on.

    OUT/.predictions/made_by.json            what decides them: the run, the dataset, the seed, the software
                     NAME.npy                values that are numbers; many are read from there, not held in memory
                     NAME.json               ids, and values that are captions; written last

Where anything else decides, they are removed. One evaluation writes into OUT at a time.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from brainjanus.core.errors import reported, written_beside
from brainjanus.core.processes import only_one
from brainjanus.evaluate.record import Predictions

FOLDER, MADE_BY = ".predictions", "made_by.json"
LARGE_BYTES = 2**26  # of values; smaller ones are read, so that files do not stay open by the hundred


class Kept:
    """Predictions in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, name: str, predict: Callable[[], Predictions]) -> Predictions:
        """Those of this name; predicted, and kept, if they are not there yet."""
        if (found := self._read(name)) is not None:
            return found
        made = predict()
        facts = made.__dict__ | {"stimulus_ids": list(made.stimulus_ids)}
        if isinstance(made.values, np.ndarray):
            with written_beside(self.folder / f"{name}.npy") as beside:
                np.save(beside, made.values)
            facts["values"] = None
        with written_beside(self.folder / f"{name}.json") as beside:
            beside.write_text(json.dumps(facts))
        return self._read(name) or made

    def _read(self, name: str) -> Predictions | None:
        if not isinstance(facts := _told(self.folder / f"{name}.json"), dict):
            return None
        try:
            if facts["values"] is None:
                file = self.folder / f"{name}.npy"
                large = file.stat().st_size > LARGE_BYTES
                facts["values"] = np.load(file, mmap_mode="c" if large else None)  # torch wants it writable
            return Predictions(**facts)
        except (EOFError, OSError, KeyError, TypeError, ValueError):  # damaged: predicted again
            return None


@contextmanager
def kept(out: Path, made_by: Mapping[str, object]) -> Iterator[Kept]:
    """Predictions in OUT/.predictions; removed when all went well, and those that something else decided before.

    made_by: what decides them. Raises UserError if another evaluation is at it, or `out` cannot be written to.
    """
    folder = out / FOLDER
    marker = folder / MADE_BY
    if not marker.exists():
        with written_beside(marker) as beside:
            beside.write_text(json.dumps(made_by))
    with only_one(marker):
        if (before := _told(marker)) != made_by:
            _remove(folder, made_by, before)
        yield Kept(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path, made_by: Mapping[str, object], before: object) -> None:
    others = [name for name, value in made_by.items() if not isinstance(before, dict) or before.get(name) != value]
    with reported(folder):
        if files := [path for path in folder.iterdir() if path.name != MADE_BY]:
            print(
                f"{folder.parent}: what an evaluation that was stopped had predicted there is removed, as this one has "
                f"another {', '.join(others)}.",
                file=sys.stderr,
            )
        for path in files:
            path.unlink() if path.is_file() else shutil.rmtree(path)
        (folder / MADE_BY).write_text(json.dumps(made_by))  # in place: it is the lock


def _told(file: Path) -> object:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None
