"""Results side by side, if they may stand side by side.

Enters: the records of several systems. Leaves: one table of them; a difference between their protocols is named and
refused, because figures of other stimuli, z-scoring, repeats or definitions do not compare. Published figures, with
what is known of their protocols, ship with the package (published.json) and are marked as quoted: not scored here.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from brainjanus.core.errors import UserError
from brainjanus.evaluate.metrics import metric_of
from brainjanus.evaluate.protocol import COMPARED, UNDECLARED, Protocol, differences
from brainjanus.evaluate.record import DIRECTIONS, SUBJECT_MEAN, Direction, Record

ALLOWED = (*COMPARED, "estimator", "n")
RESULT = tuple[Direction, str, str, str | None]  # direction, metric, subject, roi


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
    Subjects are compared one by one; means over subjects only if they are means of the same ones.
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
    found: dict[RESULT, dict[str, list[Record]]] = {}
    for name, records in systems.items():
        for record in records:
            if rois or record.roi is None:
                key = record.direction, record.metric, record.subject, record.roi
                found.setdefault(key, {}).setdefault(name, []).append(record)
    shared = {key: by_system for key, by_system in found.items() if len(by_system) == len(systems)}
    if not shared:
        raise UserError(f"compare: expected results that have a figure in common, got none: {_what(systems)}.")
    notes: dict[str, None] = {}
    for key, by_system in shared.items():
        for note in _check(key, by_system, frozenset(allow)):
            notes[note] = None
    blocks = _blocks({key: found[key] for key in found if _place(key) in {_place(k) for k in shared}}, list(systems))
    if published is not None:
        blocks, quoted = _with_published(blocks, published, frozenset(allow))
        notes |= dict.fromkeys(quoted)
    return Comparison(blocks, list(notes))


def load_published() -> list[Published]:
    """The published figures that ship with the package."""
    text = files("brainjanus.evaluate").joinpath("published.json").read_text(encoding="utf-8")
    return [Published(**entry) for entry in json.loads(text)["entries"]]


def _place(key: RESULT) -> tuple[Direction, str, str | None]:
    return key[0], key[2], key[3]


def _what(systems: Mapping[str, Sequence[Record]]) -> str:
    parts = []
    for name, records in systems.items():
        directions = sorted({record.direction for record in records})
        subjects = sorted({record.subject for record in records} - {SUBJECT_MEAN})
        parts.append(f"{name} has {', '.join(directions)} for {', '.join(subjects) or 'no subject'}")
    return "; ".join(parts)


def _check(key: RESULT, by_system: Mapping[str, Sequence[Record]], allow: frozenset[str]) -> list[str]:
    """Notes on what was allowed to differ. Raises UserError for what was not."""
    direction, metric, subject, roi = key
    (first_name, first), *others = by_system.items()
    notes = []
    for name, records in others:
        unlike = dict(differences(first[0].protocol, records[0].protocol))
        if first[0].n != records[0].n:
            unlike = {"n": (str(first[0].n), str(records[0].n))} | unlike
        estimators = {r.estimator for r in first}, {r.estimator for r in records}
        if UNDECLARED not in estimators[0] | estimators[1] and not estimators[0] & estimators[1]:
            unlike["estimator"] = tuple(", ".join(sorted(names)) for names in estimators)  # type: ignore[assignment]
        refused = {field: pair for field, pair in unlike.items() if field not in allow}
        where = f"{direction} {metric} for {subject}{f' in {roi}' if roi else ''}"
        if refused:
            told = "; ".join(
                f"{field} is '{a}' in {first_name} and '{b}' in {name}" for field, (a, b) in refused.items()
            )
            raise UserError(
                f"{where}: expected results of one protocol, got different ones: {told}. "
                f"Such figures do not compare: score both in the same way, or show them all the same with "
                f"{' '.join(f'--allow {field}' for field in refused)}."
            )
        notes += [
            f"{direction}: {field} differs: '{a}' in {first_name}, '{b}' in {name}" for field, (a, b) in unlike.items()
        ]
    return notes


def _blocks(found: Mapping[RESULT, Mapping[str, Sequence[Record]]], order: Sequence[str]) -> list[Block]:
    places: dict[tuple[Direction, str, str | None], dict[tuple[str, str], dict[str, Record]]] = {}
    for key, by_system in found.items():
        for name, records in by_system.items():
            for record in records:
                rows = places.setdefault(_place(key), {})
                rows.setdefault((name, record.estimator), {})[record.metric] = record
    blocks = []
    for (direction, subject, roi), rows in places.items():
        metrics = list(dict.fromkeys(metric for values in rows.values() for metric in values))
        listed = [
            Row(name, estimator, False, values)
            for (name, estimator), values in sorted(rows.items(), key=lambda item: order.index(item[0][0]))
        ]
        blocks.append(Block(direction, subject, roi, metrics, listed))
    rank = {direction: place for place, direction in enumerate(DIRECTIONS)}
    return sorted(blocks, key=lambda b: (rank[b.direction], b.subject != SUBJECT_MEAN, b.subject, b.roi or ""))


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
            if not same_place or not shared or (block.subject not in (entry.subject, UNDECLARED)):
                continue
            ours = next(iter(block.rows[0].values.values()))
            unlike = differences(ours.protocol, Protocol(**dict[str, Any](entry.protocol)))
            if entry.n not in (None, ours.n):
                unlike["n"] = str(ours.n), str(entry.n)
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
                            "better": "lower" if metric_of(metric).lower else "higher",
                            "protocol": None if row.quoted else r.protocol.id,
                            "source": row.note or None,
                        }
                    )
    return rows
