"""Results side by side, if they may stand side by side.

Enters: the records of several systems. Leaves: one table of them; a difference between their protocols is named and
refused, because figures of other stimuli, z-scoring, repeats or definitions do not compare. Published figures, with
what is known of their protocols, ship with the package (published.json) and are marked as quoted: not scored here.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from itertools import combinations, product
from typing import Any, NamedTuple

from brainjanus.core.errors import UserError
from brainjanus.evaluate.encode_decode import CONTROL
from brainjanus.evaluate.metrics import metric_of
from brainjanus.evaluate.protocol import COMPARED, UNDECLARED, Protocol, differences
from brainjanus.evaluate.record import DIRECTIONS, SUBJECT_MEAN, Direction, Record

ALLOWED = (*COMPARED, "estimator", "n", "dataset")
TOLD = ("repeats", "responses")  # what only the maker of predictions knows: that it was not declared is told
Place = tuple[Direction, str, str, str | None]  # direction, dataset ("" where each system has one), subject, roi


class Row(NamedTuple):
    """One system in one block. values: metric -> its record, or a quoted figure without floor and interval."""

    system: str
    estimator: str
    quoted: bool
    values: Mapping[str, Record]
    note: str = ""


class Block(NamedTuple):
    """What may be compared: one direction, subject and ROI; columns are metrics."""

    direction: Direction
    subject: str
    roi: str | None
    metrics: Sequence[str]
    rows: Sequence[Row]


class Published(NamedTuple):
    """Published figures: who, where, on what. values: metric -> figure, in our units.

    protocol: what is known of the fields of a Protocol, in its words; stated: what else is known, for people.
    """

    system: str
    source: str
    collection: str
    direction: Direction
    subject: str
    n: int | None
    protocol: Mapping[str, str]
    stated: str
    values: Mapping[str, float]


class Comparison(NamedTuple):
    blocks: list[Block]
    notes: list[str]


def compare(
    systems: Mapping[str, Sequence[Record]],
    *,
    rois: bool = False,
    allow: Collection[str] = (),
    published: str | None = None,
) -> Comparison:
    """Results of several systems, in blocks that may be compared.

    systems: name -> records. rois: also region by region. allow: fields in which protocols may differ all the same;
    the difference then stands in the notes. published: a collection ("NSD") whose quoted figures stand beside them.
    Subjects are compared one by one; means over subjects only if they are means of the same ones. A collection's
    figures are quoted where the references are the same, or the dataset's name has the collection's.
    Raises UserError if protocols differ, if nothing is shared, or for an unknown field or collection.
    """
    wrong = sorted(set(allow) - set(ALLOWED))
    if wrong:
        raise UserError(
            f"--allow: expected some of {', '.join(ALLOWED)}, got '{wrong[0]}'. Name the field that the refusal named."
        )
    if len(systems) < 2 and published is None:
        raise UserError(
            f"compare: expected at least two results, got {len(systems)}. Give several folders with a scores.json, or "
            "one and --published."
        )
    several = any(len({record.dataset for record in records}) > 1 for records in systems.values())
    places: dict[Place, dict[str, list[Record]]] = {}
    for name, records in with_subjects(systems).items():
        for record in records:
            if rois or record.roi is None:
                place = record.direction, record.dataset if several else "", record.subject, record.roi
                places.setdefault(place, {}).setdefault(name, []).append(record)
    shared = {place: found for place, found in places.items() if len(found) > 1 or len(systems) == 1}
    if not shared:
        raise UserError(f"compare: expected results that have a figure in common, got none: {_what(systems)}.")
    notes = dict.fromkeys(note for place, found in shared.items() for note in _check(place, found, frozenset(allow)))
    rank = {direction: number for number, direction in enumerate(DIRECTIONS)}
    ordered = sorted(shared, key=lambda p: (rank[p[0]], p[1], p[2] != SUBJECT_MEAN, p[2], p[3] or ""))
    blocks = [_block(place, shared[place]) for place in ordered]
    if published is not None:
        blocks, quoted = _with_published(blocks, published, frozenset(allow))
        notes |= dict.fromkeys(quoted)
    return Comparison(blocks, list(notes))


def with_subjects(systems: Mapping[str, Sequence[Record]]) -> dict[str, Sequence[Record]]:
    """The same, a subject that was not declared being taken for the only one that the others have."""
    known = {r.subject for records in systems.values() for r in records} - {UNDECLARED, SUBJECT_MEAN}
    if len(known) != 1:
        return dict(systems)
    (subject,) = known
    return {
        name: [replace(r, subject=subject) if r.subject == UNDECLARED else r for r in records]
        for name, records in systems.items()
    }


def load_published() -> list[Published]:
    """The published figures that ship with the package."""
    text = files("brainjanus.evaluate").joinpath("published.json").read_text(encoding="utf-8")
    return [Published(**entry) for entry in json.loads(text)["entries"]]


def _what(systems: Mapping[str, Sequence[Record]]) -> str:
    parts = []
    for name, records in systems.items():
        directions = sorted({record.direction for record in records})
        subjects = sorted({record.subject for record in records} - {SUBJECT_MEAN})
        parts.append(f"{name} has {', '.join(directions)} for {', '.join(subjects) or 'no subject'}")
    return "; ".join(parts)


def _check(place: Place, found: Mapping[str, Sequence[Record]], allow: frozenset[str]) -> list[str]:
    """Notes on what was allowed to differ, or not declared. Raises UserError for what must not differ.

    Every two figures of one metric that will stand side by side are looked at.
    """
    direction, _, subject, roi = place
    notes = []
    for (first, mine), (second, theirs) in combinations(found.items(), 2):
        unlike: dict[str, tuple[str, str]] = {}
        silent: dict[str, None] = {}
        for one, other in product(mine, theirs):
            if one.metric != other.metric:
                continue
            unlike |= differences(one.protocol, other.protocol)
            if one.n != other.n:
                unlike["n"] = str(one.n), str(other.n)
            for name in COMPARED:
                values = getattr(one.protocol, name), getattr(other.protocol, name)
                if name in TOLD and UNDECLARED in values and values[0] != values[1]:
                    silent[f"{name} of {(first, second)[values.index(UNDECLARED)]}"] = None
        estimators = [{r.estimator for r in records} - {CONTROL} for records in (mine, theirs)]
        for name, known in zip((first, second), estimators, strict=True):
            if UNDECLARED in known:
                silent[f"estimator of {name}"] = None
        if all(known and UNDECLARED not in known for known in estimators) and not estimators[0] & estimators[1]:
            unlike["estimator"] = ", ".join(sorted(estimators[0])), ", ".join(sorted(estimators[1]))
        refused = {key: pair for key, pair in unlike.items() if key not in allow}
        where = f"{direction} for {subject}{f' in {roi}' if roi else ''}"
        if refused:
            told = "; ".join(f"{key} is '{a}' in {first} and '{b}' in {second}" for key, (a, b) in refused.items())
            raise UserError(
                f"{where}: expected results of one protocol, got different ones: {told}. Such figures do not compare: "
                f"score both in the same way, or show them all the same with --allow {' '.join(refused)}."
            )
        notes += [f"{direction}: {key} differs: '{a}' in {first}, '{b}' in {second}" for key, (a, b) in unlike.items()]
        notes += [f"{direction}: not declared: {', '.join(silent)}"] if silent else []
    return notes


def _block(place: Place, found: Mapping[str, Sequence[Record]]) -> Block:
    direction, _, subject, roi = place
    rows: dict[tuple[str, str], dict[str, Record]] = {}
    for name, records in found.items():
        for record in records:
            rows.setdefault((name, record.estimator), {})[record.metric] = record
    metrics = list(dict.fromkeys(metric for values in rows.values() for metric in values))
    listed = [Row(name, estimator, False, values) for (name, estimator), values in rows.items()]
    return Block(direction, subject, roi, metrics, listed)


def _with_published(blocks: Sequence[Block], collection: str, allow: frozenset[str]) -> tuple[list[Block], list[str]]:
    """The blocks with the quoted rows that share their protocol, as far as it is known; and why others are left out."""
    entries = [entry for entry in load_published() if entry.collection == collection]
    if not entries:
        known = sorted({entry.collection for entry in load_published()})
        raise UserError(f"--published: expected one of {', '.join(known)}, got '{collection}'. Correct the name.")
    extended, notes = [], [f"quoted: figures of papers and repositories on {collection}, not scored here"]
    for block in blocks:
        quoted = []
        for entry in entries:
            shared = {metric: value for metric, value in entry.values.items() if metric in block.metrics}
            same_place = entry.direction == block.direction and block.roi is None
            if not same_place or block.subject not in (entry.subject, UNDECLARED):
                continue
            if not shared:
                notes.append(f"{entry.system} ({block.direction}) is left out: no figure in common")
                continue
            unlike: dict[str, tuple[str, str]] = {}
            for ours in (
                values[metric] for row in block.rows for values in [row.values] for metric in shared if metric in values
            ):
                unlike |= differences(ours.protocol, Protocol(**dict[str, Any](entry.protocol)))
                if entry.n not in (None, ours.n):
                    unlike["n"] = str(ours.n), str(entry.n)
                same = ours.protocol.references == entry.protocol.get("references")
                if not same and not re.search(rf"(?<![^\W_]){collection}(?![^\W_])", ours.dataset, re.IGNORECASE):
                    unlike["dataset"] = ours.dataset, collection
            refused = {name: pair for name, pair in unlike.items() if name not in allow}
            if refused:
                told = "; ".join(f"{name} '{a}' here, '{b}' there" for name, (a, b) in refused.items())
                notes.append(f"{entry.system} ({block.direction}, {block.subject}) is left out: {told}")
                continue
            quoted.append(Row(entry.system, "quoted", True, _quoted(entry, shared), f"{entry.source}; {entry.stated}"))
        extended.append(block._replace(rows=[*block.rows, *quoted]))
    return extended, notes


def _quoted(entry: Published, values: Mapping[str, float]) -> dict[str, Record]:
    facts: dict[str, Any] = {"floor": None, "baseline": None, "ceiling": None, "n": entry.n or 0, "seed": 0}
    return {
        metric: Record(entry.direction, entry.collection, entry.subject, None, "quoted", metric, value, **facts)
        for metric, value in values.items()
    }


def table_of(comparison: Comparison) -> list[dict[str, Any]]:
    """One flat row per figure, for TSV and JSON."""
    rows = []
    for block in comparison.blocks:
        for row in block.rows:
            for metric in block.metrics:
                if metric in row.values:
                    r = row.values[metric]
                    low, high = r.interval or (None, None)
                    rows.append(
                        {
                            "direction": block.direction,
                            "subject": block.subject,
                            "roi": block.roi,
                            "system": row.system,
                            "estimator": row.estimator,
                            "quoted": row.quoted,
                            "metric": metric,
                            "value": r.value,
                            "low": low,
                            "high": high,
                            "floor": r.floor,
                            "constant": r.constant,
                            "baseline": r.baseline,
                            "ceiling": r.ceiling,
                            "n": r.n,
                            "better": {True: "lower", False: "higher", None: "neither"}[metric_of(metric).lower],
                            "protocol": None if row.quoted else r.protocol.id,
                            "source": row.note or None,
                        }
                    )
    return rows
