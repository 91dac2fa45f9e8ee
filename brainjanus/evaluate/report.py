"""The report: one HTML file that a person opens from disk, prints, or sends to a colleague.

Enters: records, examples, maps, the training log, the config. Leaves: one file with everything in it: pictures are
embedded, charts are inline SVG, no script, nothing is loaded from anywhere.
"""

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from html import escape
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from brainjanus.core.errors import written_beside
from brainjanus.data.dataset import Dataset
from brainjanus.evaluate.examples import LINEAR, CaptionExample, CodebookUsage, ImageExample, MapExample
from brainjanus.evaluate.metrics import METRICS, metric_of
from brainjanus.evaluate.page import (
    bar,
    bar_key,
    codebooks,
    embedded,
    facts,
    figcaption,
    glossary,
    image,
    number,
    page,
    training,
)
from brainjanus.evaluate.protocol import UNKNOWN
from brainjanus.evaluate.record import DIRECTIONS, SUBJECT_MEAN, Record
from brainjanus.evaluate.score import MAIN_METRICS, summary
from brainjanus.evaluate.text import content_words, words

QUESTIONS = {
    "brain->text": "Which words describe what was seen? A caption is generated from the recording alone.",
    "brain->image": "What did it look like? A picture is generated from the recording alone.",
    "image->brain": "How does each site respond to a picture that the model has never seen?",
    "text->brain": "How does each site respond to a scene that the model has only read about?",
}
TERMS = {
    "Interval": "in small figures: 95 % of the values when the scored stimuli are drawn again (bootstrap).",
    "Floor": "the same predictions, handed out to random stimuli: what one gets for knowing nothing about a trial.",
    "Constant": "one prediction for all stimuli: the mean training response or picture, or one training caption. What "
    "a score gives to somebody who has not looked at the brain.",
    "Linear baseline": "cross-validated ridge regression on the same training data, scored in the same run.",
    "Ceiling": "the best possible score: for responses given their measurement noise (Allen et al. 2022), for captions "
    "what the first caption of a picture scores against its others.",
    "p": "permutation test: the share of shuffles of predictions over stimuli that score as much as the model.",
    "Encode, then decode": "responses that were predicted from a picture are decoded again. The padding control only "
    "hides the picture in the vector: it is perfect at this, and its voxel r shows what it knows of the brain.",
    "Held out": "no stimulus that is scored here was used to train, to normalise, or to choose anything.",
}
VERSIONS = ("brainjanus", "torch", "numpy")


def write_report(
    path: Path | str,
    *,
    dataset: Dataset | None,
    records: Sequence[Record],
    examples: Sequence[ImageExample | CaptionExample] = (),
    maps: Sequence[MapExample] = (),
    skipped: Mapping[str, str] | None = None,
    warnings: Sequence[str] = (),
    losses: Iterable[Mapping[str, Any]] = (),
    codebooks: Sequence[CodebookUsage] = (),
    config: Mapping[str, Any] | None = None,
    title: str = "BrainJanus",
) -> None:
    """Write the report, whole or not at all. dataset: None for scores against a file of references.

    records: of `score`, with or without the means over subjects. skipped: metric -> why it is not there. losses: the
    lines of a training log,
    {"stage", "step", "loss", "loss/...": ...}. config: anything JSON can hold; shown as it is.
    """
    records = [*(record for record in records if record.subject != SUBJECT_MEAN), *_means(records)]
    pictures = [example for example in examples if isinstance(example, ImageExample)]
    captions = [example for example in examples if isinstance(example, CaptionExample)]
    sections = (
        ("run", "What was run", _run(dataset, records) + _warnings(warnings)),
        ("directions", "Four directions", _directions(records)),
        ("pictures", "Seen and decoded pictures", _pictures(pictures)),
        ("captions", "Given and decoded captions", _captions(captions)),
        ("maps", "Measured and predicted responses", _maps(maps)),
        ("regions", "Region by region", _regions(records)),
        ("training", "Training", _training(losses) + _codebooks(codebooks)),
        ("details", "All other scores", _details(records) + _skipped(skipped or {})),
        ("protocol", "What exactly was compared", _protocols(records)),
        ("glossary", "What the words mean", _glossary(records)),
        ("config", "To run it again", _config(config or {}, records)),
    )
    badge = "scored against references" if dataset is None else dataset.modality
    with written_beside(path) as beside:
        beside.write_text(page(title, badge, sections), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- sections


def _means(records: Sequence[Record]) -> list[Record]:
    given = [record for record in records if record.subject == SUBJECT_MEAN]
    return given or summary(records)


def _run(dataset: Dataset | None, records: Sequence[Record]) -> str:
    if dataset is None:
        r = records[0]
        return facts({"References": escape(r.dataset), "Stimuli": f"{r.n:,}", "Written": date.today().isoformat()})
    if "simulated" in dataset.modality:
        kind = "These responses were computed by a simulation with known ground truth; no brain was measured."
    elif "fmri" not in dataset.modality.lower():
        kind = "These recordings are not fMRI: scores do not compare with fMRI studies."
    else:
        kind = ""
    counts = {split: len(dataset.split_ids(split)) for split in ("train", "val", "test")}
    subjects = []
    for subject in dataset.subjects:
        space = dataset.space(subject)
        regions = f", {len(space.rois)} regions" if space.rois else ""
        trials = len(dataset.trials(subject).split)
        subjects.append(f"{escape(subject)}: {space.num_sites:,} {space.kind}{regions}, {trials:,} trials")
    stimuli = ", ".join(f"{count:,} {split}" for split, count in counts.items() if count)
    seeds = sorted({record.seed for record in records})
    known = {
        "Dataset": f"{escape(dataset.name)} <small>{escape(dataset.fingerprint[:12])}</small>",
        "Recording": f"<strong>{escape(dataset.modality)}</strong>",
        "Stimuli": f"{stimuli}; no stimulus is in two of these",
        "Subjects": "<br>".join(subjects),
        "Seed": ", ".join(map(str, seeds)) or "none",
        "Written": date.today().isoformat(),
    }
    names = {"brain": "brain responses", "image": "pictures", "text": "text"}
    scored = {modality for record in records for modality in record.direction.split("->")}
    trained = "One model was trained to go from one to another of" if len(scored) > 2 else "Predictions between"
    lead = (
        f"<p>{trained}: {', '.join(names[m] for m in names if m in scored)}. "
        "This page says how well that works on stimuli of the test set, and what it is worth beside chance, a constant,"
        " a linear model, and the best that noise allows.</p>"
    )
    return lead + (f'<p class="note">{kind}</p>' if kind else "") + facts(known)


def _directions(records: Sequence[Record]) -> str:
    parts, everyone = [], _everyone(records)
    for direction in DIRECTIONS:
        rows = [r for r in records if r.direction == direction and r.roi is None]
        main = [r for metric in MAIN_METRICS[direction] for r in rows if r.metric == metric]
        main += [r for r in rows if r.metric == "text_similarity"]
        if main:
            source, target = direction.split("->")
            head = f"<h3>{source} → {target}</h3><p>{QUESTIONS[direction]}</p>"
            means = [r for r in main if r.subject == SUBJECT_MEAN]
            each = ""
            if len({r.subject for r in main}) > 2:
                each = f"<details><summary>subject by subject</summary>{_table(main, everyone)}</details>"
            parts.append(f'<div class="keep">{head}{_table(means, everyone)}</div>{each}')
    return _KEY + "".join(parts) if parts else ""


def _details(records: Sequence[Record]) -> str:
    main = {(direction, metric) for direction, metrics in MAIN_METRICS.items() for metric in metrics}
    rest = [
        r
        for r in records
        if r.roi is None and (r.direction, r.metric) not in main and r.subject == SUBJECT_MEAN
        if r.metric != "text_similarity"
    ]
    order = list(DIRECTIONS)
    rest.sort(key=lambda r: (order.index(r.direction), list(METRICS).index(r.metric) if r.metric in METRICS else 99))
    parts = []
    for direction, group in groupby(rest, key=lambda r: r.direction):
        parts.append(f"<h3>{direction.replace('->', ' → ')}</h3>{_table(list(group), _everyone(records))}")
    if not parts:
        return ""
    return "<p>Means over subjects; every figure, per subject and region, is in scores.json.</p>" + "".join(parts)


def _warnings(warnings: Sequence[str]) -> str:
    return "".join(f'<p class="note"><b>Take care.</b> {escape(warning)}</p>' for warning in warnings)


def _everyone(records: Sequence[Record]) -> str:
    """What a mean over subjects is called: a mean over one subject is that subject."""
    subjects = {record.subject for record in records} - {SUBJECT_MEAN}
    return next(iter(subjects)) if len(subjects) == 1 else "all subjects"


def _skipped(skipped: Mapping[str, str]) -> str:
    if not skipped:
        return ""
    named = {metric_of(name).title: why for name, why in skipped.items()}
    return f"<h3>Not scored here, and why</h3>{glossary(named)}"


def _protocols(records: Sequence[Record]) -> str:
    """What each metric was computed from, once for all subjects and estimators that share it."""
    rows: dict[tuple, list[Record]] = {}
    for r in records:
        if r.subject != SUBJECT_MEAN and r.roi is None and r.protocol != UNKNOWN:
            rows.setdefault((r.direction, r.metric, r.protocol.definition), []).append(r)
    if not rows:
        return ""
    first = next(iter(rows.values()))[0].protocol
    known = {
        "Dataset": f"{escape(next(iter(rows.values()))[0].dataset)} <small>{escape(first.fingerprint[:12])}</small>",
        "Stimuli": f"{escape(first.split)} split, <small>{escape(first.stimuli)}</small>",
        "Responses": escape(first.responses),
        "Software": escape(", ".join(f"{name} {number}" for name, number in first.software.items())),
    }
    lines = []
    for (direction, metric, definition), group in rows.items():
        ids = sorted({r.protocol.id for r in group})
        repeats = ", ".join(sorted({r.protocol.repeats for r in group}))
        cells = (direction.replace("->", " → "), metric_of(metric).title, definition, repeats, ", ".join(ids))
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("direction", "metric", "definition", "repeats", "protocol"))
    return (
        "<p>Results are comparable where these agree; <code>brainjanus compare</code> checks it. Each record of "
        f"scores.json carries its protocol.</p>{facts(known)}<details><summary>Definitions</summary>"
        f'<table class="protocols"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></details>'
    )


def _table(records: Sequence[Record], everyone: str) -> str:
    """One row per record; each metric and estimator starts with its mean over subjects, `everyone`."""
    body = []
    grouped: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        grouped.setdefault((record.metric, record.estimator), []).append(record)
    for (metric, estimator), group in grouped.items():
        group.sort(key=lambda r: (r.subject != SUBJECT_MEAN, r.subject))
        known = metric_of(metric)
        for r in group:
            mean = r is group[0]
            name = f"{escape(known.title)} <small>{escape(estimator)}</small>" if mean else ""
            ratio = f"{r.value / r.baseline:.2f}" if r.baseline and r.baseline > 0 else "–"
            between = "" if r.interval is None else f"<small>{' to '.join(map(number, r.interval))}</small>"
            cells = (
                name,
                escape(everyone if r.subject == SUBJECT_MEAN else r.subject),
                _bar(r) if not known.lower else "<small>lower is better</small>" if mean else "",
                f"<b>{number(r.value)}</b>{between}",
                *(number(value) for value in (r.floor, r.constant, r.baseline)),
                ratio,
                number(r.ceiling),
                str(r.n),
                "–" if r.p is None else f"{r.p:.3f}".replace("0.000", "&lt;.001"),
            )
            body.append(f'<tr class="{"mean" if mean else "one"}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    head = "".join(
        f"<th>{name}</th>"
        for name in ("score", "subject", "", "value", "floor", "constant", "linear", "÷ linear", "ceiling", "n", "p")
    )
    return f'<table class="scores"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def _pictures(examples: Sequence[ImageExample]) -> str:
    if not examples:
        return ""
    names = list(examples[0].decoded)
    labels = {name: f"decoded: {name}" for name in names} | {LINEAR: "linear baseline"}
    columns = []
    for example in examples:
        cells = [image(example.seen, f"seen picture, {example.stimulus_id}")]
        cells += [image(example.decoded[name], f"{labels[name]}, {example.stimulus_id}") for name in names]
        columns.append("".join(f"<div>{cell}</div>" for cell in cells) + f"<small>{escape(example.note)}</small>")
    side = "".join(f"<div>{escape(label)}</div>" for label in ("seen", *(labels[name] for name in names)))
    text = (
        "<p>Upper row: what was shown. Below: what was decoded from the response to it. The examples stand at even "
        "ranks of the score, the best at the left, the worst at the right.</p>"
    )
    grid = "".join(f'<div class="column">{column}</div>' for column in columns)
    return f'{text}<div class="pictures"><div class="column side">{side}</div>{grid}</div>'


def _captions(examples: Sequence[CaptionExample]) -> str:
    if not examples:
        return ""
    cards = []
    for example in examples:
        known = frozenset().union(*map(content_words, example.references))
        picture = "" if example.picture is None else image(example.picture, f"seen picture, {example.stimulus_id}")
        linear = ""
        if example.baseline is not None:
            linear = f'<p class="label">linear baseline</p><p>{_marked(example.baseline, known)}</p>'
        references = "".join(f"<li>{escape(reference)}</li>" for reference in example.references)
        cards.append(
            f'<div class="card">{picture}<div><p class="label">decoded from the brain</p>'
            f'<p class="said">{_marked(example.decoded, known)}</p>{linear}'
            f'<p class="label">captions of the picture</p><ul>{references}</ul>'
            f"<small>{escape(example.note)}</small></div></div>"
        )
    text = (
        "<p>Words that also stand in a caption of the same picture are <mark>marked</mark>. The examples stand at even "
        " ranks of the score, the best first.</p>"
    )
    return f'{text}<div class="cards">{"".join(cards)}</div>'


def _marked(caption: str, known: frozenset[str]) -> str:
    def shown(word: str) -> str:
        return f"<mark>{escape(word)}</mark>" if known.intersection(words(word)) else escape(word)

    return " ".join(shown(word) for word in caption.split()) or "<i>nothing</i>"


def _maps(maps: Sequence[MapExample]) -> str:
    return "".join(
        f"<figure>{figcaption(example.title, example.note)}"
        f'<img class="map" alt="{escape(example.title)}" src="{embedded(example.png)}"></figure>'
        for example in maps
    )


def _regions(records: Sequence[Record]) -> str:
    chosen = [r for r in records if r.metric == "voxel_r" and r.roi and r.subject == SUBJECT_MEAN]
    if not chosen:
        return ""
    charts: dict[tuple[str, str], dict[str, Record]] = {}
    for record in chosen:
        charts.setdefault((record.direction, record.estimator), {})[str(record.roi)] = record
    order = sorted({str(r.roi) for r in chosen}, key=list(dict.fromkeys(str(r.roi) for r in records if r.roi)).index)
    columns = []
    for (direction, estimator), by_roi in charts.items():
        rows = "".join(
            f"<tr><td>{escape(roi)}</td><td>{_bar(by_roi[roi])}</td><td><b>{by_roi[roi].value:.2f}</b></td></tr>"
            for roi in order
            if roi in by_roi
        )
        title = f"{direction.replace('->', ' → ')} <small>{escape(estimator)}</small>"
        columns.append(f'<div class="keep"><h3>{title}</h3><table class="regions">{rows}</table></div>')
    text = "<p>Voxel r in each region, mean over subjects, with the linear baseline and the noise ceiling.</p>"
    return f'{text}{_KEY}<div class="columns">{"".join(columns)}</div>'


def _codebooks(books: Sequence[CodebookUsage]) -> str:
    if not books:
        return ""
    text = "<h3>Codebooks</h3><p>How often each code is used on held-out data, the most frequent first.</p>"
    return text + codebooks(books)


def _training(losses: Iterable[Mapping[str, Any]]) -> str:
    charts = training(losses)
    text = "<p>Training loss by step, for each part that was trained.</p>"
    return text + charts if charts else ""


def _glossary(records: Sequence[Record]) -> str:
    present = {record.metric for record in records}
    order = [*METRICS, *sorted(present - METRICS.keys())]
    return glossary({metric_of(name).title: metric_of(name).explanation for name in order if name in present} | TERMS)


def _config(config: Mapping[str, Any], records: Sequence[Record]) -> str:
    versions = {"python": platform.python_version()}
    for package in VERSIONS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that was not installed
            versions[package] = "not installed"
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    seeds = ", ".join(str(seed) for seed in sorted({record.seed for record in records}))
    text = f"<pre>{escape(json.dumps(config, indent=1, default=str))}</pre>" if config else ""
    return f"<p>Seed {seeds or 'none'}; {escape(listed)}.</p>{text}"


# ------------------------------------------------------------------------------------------------ small parts


def _bar(record: Record) -> str:
    """From 0, or from below it if the score is, to 1 at least."""
    return bar(
        record.value,
        f"value {record.value:.3f}, floor {number(record.floor)}, linear {number(record.baseline)}",
        floor=record.floor,
        linear=record.baseline,
        ceiling=record.ceiling,
        low=min(0.0, record.value, record.floor or 0.0),
        top=max(1.0, record.value, record.ceiling or 0.0),
    )


_KEY = bar_key("model", "floor (shuffled)", "linear baseline", "ceiling")
