"""What is scored, and what a score is.

Enters: predictions of one direction for one subject. Leaves: records, one per figure, as they stand in scores.json:
a JSON list with one record a line, {direction, dataset, subject, roi, estimator, metric, value, floor, baseline,
ceiling, n, seed, p, constant, interval, protocol}.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Shaped

from brainjanus.core.errors import UserError, written_beside
from brainjanus.evaluate.protocol import UNKNOWN, Protocol

Direction = Literal["brain->text", "brain->image", "image->brain", "text->brain"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
SUBJECT_MEAN = "mean"  # stands in `subject` for the mean over subjects
AVERAGED = "responses averaged over repeats"


# N stimuli, V sites, H height, W width
@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model predicts for some stimuli in one subject.

    stimulus_ids: whose responses were decoded, or which stimuli were encoded; unique. estimator: how a value was drawn
    from the model ("sample", "mean", "greedy", ...). repeats: what a decoder was given of the repeats of a stimulus.
    values: [n v] z-scored responses for ->brain, [n h w 3] RGB in [0, 255] for ->image, n captions for ->text.
    Raises UserError if a value is missing, doubled, not finite, or not of the direction's form.
    """

    direction: Direction
    subject: str
    stimulus_ids: Sequence[str]
    estimator: str
    values: Shaped[np.ndarray, "n *_"] | Sequence[str]
    repeats: str = AVERAGED

    def __post_init__(self) -> None:
        where = f"{self.direction} predictions ({self.estimator}) for {self.subject}"
        if len(self.values) != len(self.stimulus_ids) or len(set(self.stimulus_ids)) != len(self.stimulus_ids):
            raise UserError(
                f"{where}: expected one value for each of the {len(set(self.stimulus_ids))} different stimulus ids, "
                f"got {len(self.values)} values for {len(self.stimulus_ids)} ids. Was one list filtered or repeated "
                "without the other? Pass both in the same order, each stimulus once."
            )
        target = self.direction.partition("->")[2]
        expected = {"brain": "an array [stimuli, sites]", "image": "an array [stimuli, height, width, 3]"}
        if target == "text":
            wrong = isinstance(self.values, np.ndarray) or not all(isinstance(value, str) for value in self.values)
        else:
            shape = np.shape(self.values)
            wrong = not isinstance(self.values, np.ndarray) or (
                len(shape) != 2 if target == "brain" else len(shape) != 4 or shape[-1] != 3
            )
        if wrong:
            got = f"shape {list(self.values.shape)}" if isinstance(self.values, np.ndarray) else "a list"
            raise UserError(
                f"{where}: expected {expected.get(target, 'a list of captions')}, got {got}. "
                "Do the values belong to another direction? Pass what `generate` returned for this one."
            )
        if isinstance(self.values, np.ndarray):
            finite = np.isfinite(self.values).reshape(len(self.values), -1).all(axis=1)
            if not finite.all():
                raise UserError(
                    f"{where}: expected finite values, got NaN or infinity for stimulus "
                    f"'{self.stimulus_ids[int(np.argmin(finite))]}'. Has the model diverged? Look at the loss curve."
                )


@dataclass(frozen=True)
class Record:
    """One figure and what it has to be compared with; what does not exist is None.

    roi: None for all sites. interval: 95 % confidence interval of `value`, by bootstrap over stimuli. floor: the
    expected value when predictions are shuffled over stimuli. constant: the value of one prediction for all stimuli
    (the mean training response or picture, one caption). baseline: the linear model's value on the same stimuli.
    ceiling: the best value that noise (or human agreement) allows.
    p: share of shuffles that score at least `value`. null, resampled: the value in each shuffle, and in each
    resample of the stimuli; not saved, but what makes a joint test and interval over subjects possible.
    """

    direction: Direction
    dataset: str
    subject: str
    roi: str | None
    estimator: str
    metric: str
    value: float
    floor: float | None
    baseline: float | None
    ceiling: float | None
    n: int
    seed: int
    p: float | None = None
    constant: float | None = None
    interval: tuple[float, float] | None = None
    protocol: Protocol = UNKNOWN
    null: Float[np.ndarray, "permutations"] | None = field(default=None, repr=False, compare=False)
    resampled: Float[np.ndarray, "resamples"] | None = field(default=None, repr=False, compare=False)


FIGURES = ("value", "floor", "constant", "baseline", "ceiling", "p")
KEYS = tuple(entry.name for entry in fields(Record) if entry.name not in ("null", "resampled"))


def save_scores(records: Iterable[Record], path: Path | str) -> None:
    """Write records as a JSON list, one a line, whole or not at all."""
    rows = [{key: getattr(record, key) for key in KEYS} | {"protocol": asdict(record.protocol)} for record in records]
    lines = [json.dumps(row, allow_nan=False, ensure_ascii=False) for row in rows]
    with written_beside(path) as beside:
        beside.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def load_scores(path: Path | str) -> list[Record]:
    """Read what `save_scores` wrote; a folder stands for its scores.json.

    Raises UserError for a file that is damaged or of another kind.
    """
    path = Path(path)
    path = path / "scores.json" if path.is_dir() else path
    try:
        records = [_record(row) for row in json.loads(path.read_text(encoding="utf-8"))]
        if not records:
            raise ValueError("an empty list")
        return records
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: expected a JSON list of records with the keys {', '.join(KEYS)}, got '{error}'. "
            "Is it another file, or was it cut short? Run `brainjanus evaluate` or `brainjanus score` again."
        ) from error


def _record(row: dict[str, Any]) -> Record:
    if not isinstance(row, dict):
        raise TypeError(f"a {type(row).__name__} among the records")
    facts = dict(row)
    interval, protocol = facts.pop("interval", None), facts.pop("protocol", {})
    unknown = sorted({*facts} - {*KEYS}) + sorted({"direction", "metric", "value", "n"} - {*facts})
    if unknown or facts["direction"] not in DIRECTIONS:
        raise TypeError(f"a record with '{(unknown or [facts['direction']])[0]}' missing or not known")
    numbers = [facts["value"], facts["n"], *(interval or ()), *(facts.get(name) or 0 for name in FIGURES)]
    if not all(isinstance(number, int | float) and np.isfinite(number) for number in numbers):
        raise TypeError(f"a figure of {facts['metric']} that is no finite number")
    if interval is not None and len(interval) != 2:
        raise TypeError(f"an interval of {facts['metric']} that has not two ends")
    for name in FIGURES:
        facts[name] = None if facts.get(name) is None else float(facts[name])
    return Record(**facts, interval=None if interval is None else tuple(interval), protocol=Protocol(**protocol))


def number(value: float | None) -> str:
    return "" if value is None else f"{value:z.3f}"  # z: no -0.000
