"""Which stimuli are held out: as the trials say, one fold, or drawn at random by stimulus.

Enters: tables of trials, the names under which their stimuli are kept, groups of stimuli that share pictures. Leaves:
the split of each trial. No stimulus, and no picture, is in two splits.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from brainjanus.core.errors import UserError
from brainjanus.data.catalogue import Shown
from brainjanus.data.dataset import listed
from brainjanus.data.readers.tables import TrialTable
from brainjanus.data.spec import PrepareConfig


@runtime_checkable
class Fractions(Protocol):
    """How much of the stimuli is held out, and the seed that decides which."""

    @property
    def test_fraction(self) -> float: ...
    @property
    def val_fraction(self) -> float: ...
    @property
    def seed(self) -> int: ...


def split_trials(tables: Mapping[str, TrialTable], shown: Shown, config: PrepareConfig) -> Mapping[str, list[str]]:
    """The split of each trial of each subject: from the tables, from a fold, or at random by stimulus."""
    given = {name for name, table in tables.items() if "split" in table.columns}
    folded = {name for name, table in tables.items() if "fold" in table.columns}
    if config.test_fold is not None:
        if given or folded != tables.keys():
            raise UserError(
                f"test_fold {config.test_fold}: expected a fold column and no split column in the trials of every "
                f"subject, got fold for {listed(folded)} and split for {listed(given)}. Give one or the other."
            )
        folds = sorted({fold for table in tables.values() for fold in table.columns["fold"].tolist()})
        if config.test_fold not in folds:
            raise UserError(
                f"test_fold: expected one of the folds {listed(map(str, folds), 20)}, got {config.test_fold}. "
                "Folds are named by the numbers in the trials."
            )
        return {
            name: ["test" if fold == config.test_fold else "train" for fold in table.columns["fold"]]
            for name, table in tables.items()
        }
    if given:
        if given != tables.keys():
            raise UserError(
                f"split: expected a split column in the trials of every subject or of none, got it for {listed(given)} "
                f"and not for {listed(sorted(tables.keys() - given))}. Add it, or take it out to split at random."
            )
        return {name: table.columns["split"] for name, table in tables.items()}
    if folded:
        raise UserError(
            f"trials of {listed(folded)}: expected to be told which fold is held out, got a fold column alone. "
            "Give --test-fold, or take the column out to split at random."
        )
    split = split_by_stimulus(_seen_by(tables, shown), shown.groups, config)
    return {name: [split[shown.kept_as[s]] for s in table.stimulus_id] for name, table in tables.items()}


def _seen_by(tables: Mapping[str, TrialTable], shown: Shown) -> dict[str, set[str]]:
    """Who saw each stimulus."""
    seen: dict[str, set[str]] = {}
    for who, table in tables.items():
        for name in table.stimulus_id:
            seen.setdefault(shown.kept_as[name], set()).add(who)
    return seen


def split_by_stimulus(
    seen_by: Mapping[str, set[str]], groups: Sequence[Sequence[str]], config: Fractions
) -> dict[str, str]:
    """Draw a split for each stimulus, the same for a whole group, with the given fractions for each set of subjects."""
    rng = np.random.default_rng(config.seed)
    strata: dict[tuple[str, ...], list[Sequence[str]]] = {}
    for group in groups:
        strata.setdefault(tuple(sorted(set().union(*(seen_by[name] for name in group)))), []).append(group)
    split: dict[str, str] = {}
    for _, members in sorted(strata.items()):
        num_test = round(config.test_fraction * len(members))
        num_val = round(config.val_fraction * len(members))
        for rank, position in enumerate(rng.permutation(len(members))):
            part = "test" if rank < num_test else "val" if rank < num_test + num_val else "train"
            split.update(dict.fromkeys(members[position], part))
    return split
