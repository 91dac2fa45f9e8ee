"""Predictions that are kept until all of them are scored, so that an evaluation that was stopped goes on.

    OUT/.predictions/made_by.json            what they are predictions of: the run, the dataset, the seed
                     NAME.npy                values that are numbers: read from there, not held in memory
                     NAME.json               ids, and values that are captions; written last

Of another run, or with another seed, they are thrown away.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from brainjanus.core.errors import written_beside
from brainjanus.evaluate.record import Predictions

FOLDER = ".predictions"


class Kept:
    """Predictions in OUT/.predictions. made_by: what decides them; those of anything else are removed."""

    def __init__(self, out: Path, made_by: Mapping[str, object]) -> None:
        self.folder = out / FOLDER
        self.made_by = dict(made_by)
        if self.folder.exists() and self._told("made_by") != self.made_by:
            self.remove()

    def of(self, name: str, predict: Callable[[], Predictions]) -> Predictions:
        """Those of this name; predicted, and kept, if they are not there yet."""
        if (found := self._read(name)) is not None:
            return found
        made = predict()
        if not self.folder.exists():
            self._tell("made_by", self.made_by)
        facts = made.__dict__ | {"stimulus_ids": list(made.stimulus_ids)}
        if isinstance(made.values, np.ndarray):
            with written_beside(self.folder / f"{name}.npy") as beside:
                np.save(beside, made.values)
            facts["values"] = None
        self._tell(name, facts)
        return self._read(name) or made

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, name: str) -> Predictions | None:
        if not isinstance(facts := self._told(name), dict):
            return None
        try:
            if facts["values"] is None:
                facts["values"] = np.load(self.folder / f"{name}.npy", mmap_mode="c")  # torch wants it writable
            return Predictions(**facts)
        except (EOFError, OSError, KeyError, TypeError, ValueError):  # damaged: predicted again
            return None

    def _tell(self, name: str, facts: object) -> None:
        with written_beside(self.folder / f"{name}.json") as beside:
            beside.write_text(json.dumps(facts))

    def _told(self, name: str) -> object:
        try:
            return json.loads((self.folder / f"{name}.json").read_text())
        except (OSError, ValueError):
            return None
