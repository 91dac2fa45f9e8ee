"""The report: one HTML file that a person opens from disk, prints, or sends to a colleague.

Enters: records, examples, maps, the training log, the config. Leaves: one file with everything in it: pictures are
embedded, charts are inline SVG, no script, nothing is loaded from anywhere.
"""

import base64
import io
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from html import escape
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from brainjanus.core.errors import written_beside
from brainjanus.data.dataset import Dataset
from brainjanus.evaluate.examples import LINEAR, CaptionExample, CodebookUsage, ImageExample, MapExample
from brainjanus.evaluate.metrics import METRICS, metric_of
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
NUM_POINTS = 300  # of a loss curve; more cannot be seen
TOTAL = "total"  # the curve of the whole loss, drawn first
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
        ("training", "Training", _losses(losses) + _codebooks(codebooks)),
        ("details", "All other scores", _details(records) + _skipped(skipped or {})),
        ("protocol", "What exactly was compared", _protocols(records)),
        ("glossary", "What the words mean", _glossary(records)),
        ("config", "To run it again", _config(config or {}, records)),
    )
    shown = [(name, heading, body) for name, heading, body in sections if body]
    page = Template(_PAGE).substitute(
        title=escape(title),
        style=_STYLE,
        modality=escape("scored against references" if dataset is None else dataset.modality),
        contents="".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in shown),
        body="".join(
            f'<section id="{name}"><h2>{escape(heading)}</h2>{body}</section>' for name, heading, body in shown
        ),
    )
    with written_beside(path) as beside:
        beside.write_text(page, encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- sections


def _means(records: Sequence[Record]) -> list[Record]:
    given = [record for record in records if record.subject == SUBJECT_MEAN]
    return given or summary(records)


def _run(dataset: Dataset | None, records: Sequence[Record]) -> str:
    if dataset is None:
        r = records[0]
        facts = {"References": escape(r.dataset), "Stimuli": f"{r.n:,}", "Written": date.today().isoformat()}
        return '<dl class="facts">' + "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in facts.items()) + "</dl>"
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
    facts = {
        "Dataset": f"{escape(dataset.name)} <small>{escape(dataset.fingerprint[:12])}</small>",
        "Recording": f"<strong>{escape(dataset.modality)}</strong>",
        "Stimuli": f"{stimuli}; no stimulus is in two of these",
        "Subjects": "<br>".join(subjects),
        "Seed": ", ".join(map(str, seeds)) or "none",
        "Written": date.today().isoformat(),
    }
    rows = "".join(f"<dt>{name}</dt><dd>{fact}</dd>" for name, fact in facts.items())
    names = {"brain": "brain responses", "image": "pictures", "text": "text"}
    scored = {modality for record in records for modality in record.direction.split("->")}
    trained = "One model was trained to go from one to another of" if len(scored) > 2 else "Predictions between"
    lead = (
        f"<p>{trained}: {', '.join(names[m] for m in names if m in scored)}. "
        "This page says how well that works on stimuli of the test set, and what it is worth beside chance, a constant,"
        " a linear model, and the best that noise allows.</p>"
    )
    return lead + (f'<p class="note">{kind}</p>' if kind else "") + f'<dl class="facts">{rows}</dl>'


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
    return _BAR_LEGEND + "".join(parts) if parts else ""


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
    items = "".join(f"<dt>{escape(metric_of(name).title)}</dt><dd>{escape(why)}</dd>" for name, why in skipped.items())
    return f'<h3>Not scored here, and why</h3><dl class="glossary">{items}</dl>'


def _protocols(records: Sequence[Record]) -> str:
    """What each metric was computed from, once for all subjects and estimators that share it."""
    rows: dict[tuple, list[Record]] = {}
    for r in records:
        if r.subject != SUBJECT_MEAN and r.roi is None and r.protocol != UNKNOWN:
            rows.setdefault((r.direction, r.metric, r.protocol.definition), []).append(r)
    if not rows:
        return ""
    first = next(iter(rows.values()))[0].protocol
    facts = {
        "Dataset": f"{escape(next(iter(rows.values()))[0].dataset)} <small>{escape(first.fingerprint[:12])}</small>",
        "Stimuli": f"{escape(first.split)} split, <small>{escape(first.stimuli)}</small>",
        "Responses": escape(first.responses),
        "Software": escape(", ".join(f"{name} {number}" for name, number in first.software.items())),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{fact}</dd>" for name, fact in facts.items())
    lines = []
    for (direction, metric, definition), group in rows.items():
        ids = sorted({r.protocol.id for r in group})
        repeats = ", ".join(sorted({r.protocol.repeats for r in group}))
        cells = (direction.replace("->", " → "), metric_of(metric).title, definition, repeats, ", ".join(ids))
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("direction", "metric", "definition", "repeats", "protocol"))
    return (
        "<p>Results are comparable where these agree; <code>brainjanus compare</code> checks it. Each record of "
        f'scores.json carries its protocol.</p><dl class="facts">{listed}</dl><details><summary>Definitions</summary>'
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
            between = "" if r.interval is None else f"<small>{' to '.join(map(_number, r.interval))}</small>"
            cells = (
                name,
                escape(everyone if r.subject == SUBJECT_MEAN else r.subject),
                _bar(r) if not known.lower else "<small>lower is better</small>" if mean else "",
                f"<b>{_number(r.value)}</b>{between}",
                *(_number(value) for value in (r.floor, r.constant, r.baseline)),
                ratio,
                _number(r.ceiling),
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
        cells = [_image(example.seen, f"seen picture, {example.stimulus_id}")]
        cells += [_image(example.decoded[name], f"{labels[name]}, {example.stimulus_id}") for name in names]
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
        picture = "" if example.picture is None else _image(example.picture, f"seen picture, {example.stimulus_id}")
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
        f"<figure>{_figcaption(example.title, example.note)}"
        f'<img class="map" alt="{escape(example.title)}" src="{_embedded(example.png)}"></figure>'
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
    return f'{text}{_BAR_LEGEND}<div class="columns">{"".join(columns)}</div>'


def _losses(losses: Iterable[Mapping[str, Any]]) -> str:
    stages: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in losses:
        for key, value in line.items():
            name = key.removeprefix("loss/") if key != "loss" else TOTAL
            if key.startswith("loss") and isinstance(value, int | float) and np.isfinite(value):
                stages.setdefault(str(line.get("stage", "")), {}).setdefault(name, []).append(
                    (float(line["step"]), float(value))
                )
    if not stages:
        return ""
    charts = [
        f'<figure class="keep">{_figcaption(stage)}{_curves(curves)}</figure>' for stage, curves in stages.items()
    ]
    text = "<p>Training loss by step, for each part that was trained.</p>"
    return f'{text}<div class="columns">{"".join(charts)}</div>'


def _codebooks(codebooks: Sequence[CodebookUsage]) -> str:
    if not codebooks:
        return ""
    figures = []
    for book in codebooks:
        note = f"{book.used:.0%} of {len(book.counts):,} codes used, worth {book.perplexity:.0f} used evenly"
        figures.append(f'<figure class="keep">{_figcaption(book.name, note)}{_usage(book.counts)}</figure>')
    text = "<h3>Codebooks</h3><p>How often each code is used on held-out data, the most frequent first.</p>"
    return f'{text}<div class="columns">{"".join(figures)}</div>'


def _glossary(records: Sequence[Record]) -> str:
    present = {record.metric for record in records}
    order = [*METRICS, *sorted(present - METRICS.keys())]
    metrics = {metric_of(name).title: metric_of(name).explanation for name in order if name in present}
    return (
        '<dl class="glossary">'
        + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in (metrics | TERMS).items())
        + "</dl>"
    )


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


def _figcaption(title: str, note: str = "") -> str:
    title = escape(title.replace("->", " → "))
    return f'<figcaption><b>{title}</b> <span class="soft">{escape(note)}</span></figcaption>'


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}".replace("-0.000", "0.000")


def _bar(record: Record) -> str:
    """The value as a bar; ticks for floor, linear baseline and ceiling."""
    wide, high = 200, 14
    low = min(0.0, record.value, record.floor or 0.0)
    top = max(1.0, record.value, record.ceiling or 0.0)

    def x(value: float) -> float:
        return round((np.clip(value, low, top) - low) / (top - low) * wide, 1)

    parts = [f'<rect class="track" x="0" y="3" width="{wide}" height="8"/>']
    start, end = sorted((x(0.0), x(record.value)))
    parts.append(f'<rect class="value" x="{start}" y="3" width="{max(end - start, 0.5)}" height="8"/>')
    for name, value in (("floor", record.floor), ("linear", record.baseline), ("ceiling", record.ceiling)):
        if value is not None:
            parts.append(f'<line class="{name}" x1="{x(value)}" x2="{x(value)}" y1="0" y2="{high}"/>')
    label = f"value {record.value:.3f}, floor {_number(record.floor)}, linear {_number(record.baseline)}"
    return f'<svg class="bar" viewBox="-2 0 {wide + 4} {high}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """A line for each loss; the y axis is logarithmic if the losses span more than a factor of 20."""
    wide, high, left, bottom = 420, 200, 44, 22
    values = np.array([value for curve in curves.values() for _, value in curve])
    logarithmic = bool(values.min() > 0 and np.percentile(values, 98) > 20 * values.min())
    last_step = max(step for curve in curves.values() for step, _ in curve) or 1
    low, high_value = (
        (values.min(), np.percentile(values, 99.5)) if logarithmic else (min(0.0, values.min()), values.max())
    )
    if high_value <= low:
        high_value = low + 1

    def y(value: float) -> float:
        value = min(max(value, low), high_value)
        share = np.log(value / low) / np.log(high_value / low) if logarithmic else (value - low) / (high_value - low)
        return round(float(8 + (1 - share) * (high - bottom - 8)), 1)

    parts = []
    for tick in np.geomspace(low, high_value, 4) if logarithmic else np.linspace(low, high_value, 4):
        parts.append(f'<line class="grid" x1="{left}" x2="{wide}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(tick) + 3}" text-anchor="end">{tick:.3g}</text>')
    for step in (0, last_step / 2, last_step):
        anchor = "start" if step == 0 else "end" if step == last_step else "middle"
        x = left + step / last_step * (wide - left)
        parts.append(f'<text x="{x:.0f}" y="{high - 8}" text-anchor="{anchor}">{step:,.0f}</text>')
    legend = []
    for number, (name, curve) in enumerate(sorted(curves.items(), key=lambda item: item[0] != TOTAL)):
        kept = curve[:: max(1, len(curve) // NUM_POINTS)]
        points = " ".join(f"{left + step / last_step * (wide - left):.1f},{y(value)}" for step, value in kept)
        parts.append(f'<polyline class="c{number % 6}" points="{points}"/>')
        if len(kept) == 1:
            parts.append(f'<circle class="c{number % 6}" cx="{points.split(",")[0]}" cy="{y(kept[0][1])}" r="2"/>')
        legend.append(f'<span class="c{number % 6}">{escape(name.replace("->", " → "))} {curve[-1][1]:.3g}</span>')
    size = f'viewBox="0 0 {wide + 8} {high}"'
    svg = f'<svg class="chart" {size} role="img" aria-label="loss by step">{"".join(parts)}</svg>'
    return f'{svg}<p class="legend">{" ".join(legend)}</p>'


def _usage(counts: Int[np.ndarray, "codes"]) -> str:
    """Sorted shares as an area."""
    wide, high = 420, 70
    shares = np.sort(counts / max(counts.sum(), 1))[::-1]
    top = max(float(shares[0]), 1e-12)
    kept = np.unique(np.linspace(0, len(shares) - 1, min(len(shares), NUM_POINTS)).round().astype(int))
    points = [f"{(row + 0.5) / len(shares) * wide:.1f},{high - shares[row] / top * (high - 4):.1f}" for row in kept]
    even = high - 1 / len(shares) / top * (high - 4)
    area = f'<polygon class="area" points="0,{high} {" ".join(points)} {wide},{high}"/>'
    line = f'<line class="linear" x1="0" x2="{wide}" y1="{even:.1f}" y2="{even:.1f}"/>'
    return f'<svg class="chart" viewBox="0 0 {wide} {high}" role="img" aria-label="codebook usage">{area}{line}</svg>'


def _image(picture: UInt8[np.ndarray, "h w 3"], name: str) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG", optimize=True)
    return f'<img class="picture" alt="{escape(name)}" title="{escape(name)}" src="{_embedded(file.getvalue())}">'


def _embedded(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


_BAR_LEGEND = """<p class="key"><span><i class="k-value"></i>model</span>
<span><i class="k-floor"></i>floor (shuffled)</span>
<span><i class="k-linear"></i>linear baseline</span>
<span><i class="k-ceiling"></i>ceiling</span></p>"""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>$style</style></head>
<body><header><p class="badge">$modality</p><h1>$title</h1><nav>$contents</nav></header><main>$body</main></body></html>
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2530; --soft: #667080; --line: #dfe3e8; --back: #ffffff; --panel: #f6f7f9;
  --accent: #2f6fb3; --floor: #98a1ad; --linear: #d1690e; --ceiling: #14804a; --mark: #cfe8d8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #98a3b3; --line: #323a46; --back: #14181e;
  --panel: #1c222b; --accent: #6ba7e6; --floor: #7b8594; --linear: #f09a4a; --ceiling: #52c489; --mark: #1f5138; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 2rem 1.5rem 5rem; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: .3rem 0 .6rem; letter-spacing: -.02em; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .1rem; }
p { margin: .2rem 0 .7rem; max-width: 46rem; }
small, .soft { color: var(--soft); font-weight: 400; font-size: .82em; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .86rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.badge { display: inline-block; margin: 0; padding: .12rem .6rem; border: 1px solid var(--linear); border-radius: 1rem;
  color: var(--linear); font-size: .82rem; font-weight: 600; }
.note { border-left: 3px solid var(--linear); padding-left: .8rem; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.4rem; margin: 1rem 0; }
dl.facts dt { color: var(--soft); } dd { margin: 0; }
dl.glossary { display: grid; grid-template-columns: 12rem 1fr; gap: .4rem 1.4rem; } dl.glossary dt { font-weight: 600; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
table.scores { width: 100%; table-layout: fixed; margin-bottom: .8rem; font-size: .9rem; }
th { text-align: right; font-weight: 500; color: var(--soft); font-size: .78rem; padding: .2rem .5rem;
  border-bottom: 1px solid var(--line); }
td { padding: .16rem .5rem; text-align: right; white-space: nowrap; }
td small, th small { display: block; } table.scores td:first-child { white-space: normal; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; padding-left: 0; }
th:nth-child(1) { width: 13rem; } th:nth-child(2) { width: 6rem; } th:nth-child(3) { width: 210px; }
th:nth-child(4) { width: 7.2rem; }
tr.mean td { padding-top: .5rem; } tr.mean td:first-child { font-weight: 600; }
tr.one td { color: var(--soft); font-size: .84rem; } tr.one b { font-weight: 400; }
table.protocols td { white-space: normal; text-align: left; font-size: .82rem; vertical-align: top; }
.protocols th:nth-child(n) { text-align: left; width: auto; }
table.regions td { text-align: left; font-size: .88rem; padding: .08rem .6rem .08rem 0; }
summary { color: var(--accent); cursor: pointer; font-size: .86rem; margin-bottom: .4rem; }
svg.bar { width: 190px; height: 14px; display: block; overflow: visible; } tr.one svg.bar { opacity: .6; }
.track { fill: var(--line); } .value { fill: var(--accent); }
line.floor { stroke: var(--floor); stroke-width: 2; stroke-dasharray: 2.5 1.5; }
line.linear { stroke: var(--linear); stroke-width: 2.5; } line.ceiling { stroke: var(--ceiling); stroke-width: 2.5; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; font-size: .82rem; color: var(--soft); }
.key i { display: inline-block; vertical-align: -2px; width: 3px; height: 13px; margin-right: .4rem; }
.key .k-value { background: var(--accent); width: 18px; height: 8px; vertical-align: 0; }
.k-floor { background: repeating-linear-gradient(var(--floor) 0 3px, transparent 3px 5px); }
.k-linear { background: var(--linear); } .k-ceiling { background: var(--ceiling); }
.pictures { display: flex; gap: .5rem; overflow-x: auto; }
.column { flex: 1 1 0; min-width: 84px; max-width: 128px; } .column > div { aspect-ratio: 1; margin-bottom: .4rem; }
.column.side { flex: 0 0 5.2rem; min-width: 0; } .column.side > div { aspect-ratio: auto; }
.side { display: grid; grid-auto-rows: 1fr; font-size: .82rem; color: var(--soft); padding-bottom: 1.4rem; }
.side > div { display: flex; align-items: center; justify-content: flex-end; text-align: right; }
img.picture { display: block; width: 100%; aspect-ratio: 1; border-radius: 4px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(30rem, 1fr)); gap: .9rem; }
.card { display: grid; grid-template-columns: 112px 1fr; gap: 1rem; padding: .9rem; background: var(--panel);
  border-radius: 8px; break-inside: avoid; align-items: start; }
.card > div:only-child { grid-column: 1 / -1; } .card p, .card ul { margin: 0 0 .45rem; }
.card ul { padding-left: 1.1rem; font-size: .86rem; color: var(--soft); } .card .said { font-size: 1.06rem; }
.label { color: var(--soft); font-size: .74rem; letter-spacing: .02em; margin-bottom: 0 !important; }
mark { background: var(--mark); color: inherit; border-radius: 3px; padding: 0 .15em; }
figure { margin: 1rem 0; } figcaption { margin-bottom: .3rem; }
img.map { max-width: 100%; background: #fff; border-radius: 8px; border: 1px solid var(--line); padding: .4rem; }
.columns { display: flex; flex-wrap: wrap; gap: .4rem 2.6rem; } .columns > * { flex: 0 1 440px; min-width: 300px; }
svg.chart { width: 100%; height: auto; display: block; overflow: visible; }
svg.chart text { font-size: 10px; fill: var(--soft); } .grid { stroke: var(--line); }
polyline { fill: none; stroke-width: 1.6; stroke: currentColor; stroke-linejoin: round; } circle { fill: currentColor; }
.area { fill: var(--accent); opacity: .75; } svg.chart line.linear { stroke-width: 1; stroke-dasharray: 4 3; }
.legend { font-size: .8rem; } .legend span { margin-right: .9rem; white-space: nowrap; }
.c0 { color: var(--ink); } .c1 { color: #3b82c4; } .c2 { color: #d1690e; } .c3 { color: #14804a; }
.c4 { color: #a8489c; } .c5 { color: #a08a1c; }
pre { background: var(--panel); border-radius: 8px; padding: 1rem; font-size: .78rem; line-height: 1.4;
  white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 640px) { .cards { grid-template-columns: 1fr; } table.scores { display: block; overflow-x: auto; } }
@media print { body { max-width: none; padding: 0; font-size: 11px; } nav { display: none; } .keep, figure, .card,
  .pictures { break-inside: avoid; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
