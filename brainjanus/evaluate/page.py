"""What the project's HTML pages are made of: one file that a person opens from disk, prints, or sends to a colleague.

Enters: headings and their contents, figures, pictures, the training log. Leaves: HTML with everything in it: pictures
are embedded, charts are inline SVG, no script, nothing is loaded from anywhere.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from brainjanus.evaluate.examples import CodebookUsage

NUM_POINTS = 300  # of a loss curve; more cannot be seen
SMOOTHED = 50  # a curve is averaged over a fiftieth of it to either side
TOTAL = "total"  # the curve of the whole loss, drawn first
NATS = "nats/"  # what a log calls the likelihood of a direction
TRAINED, HELD_OUT = "training", "held out (dashed)"


def page(title: str, badge: str, sections: Iterable[tuple[str, str, str]], style: str = "") -> str:
    """A whole page. sections: (id, heading, HTML); those without contents are left out. style: CSS of this page alone.

    title, badge, headings: text, not HTML.
    """
    shown = [(name, escape(heading), body) for name, heading, body in sections if body]
    return Template(PAGE).substitute(
        title=escape(title),
        style=STYLE + style,
        modality=escape(badge),
        contents="".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in shown),
        body="".join(f'<section id="{name}"><h2>{heading}</h2>{body}</section>' for name, heading, body in shown),
    )


def facts(rows: Mapping[str, str]) -> str:
    """What is known, a line each: name -> HTML."""
    return '<dl class="facts">' + "".join(f"<dt>{name}</dt><dd>{fact}</dd>" for name, fact in rows.items()) + "</dl>"


def glossary(words: Mapping[str, str]) -> str:
    """Words and what they mean: text, not HTML."""
    lines = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in words.items())
    return f'<dl class="glossary">{lines}</dl>'


def bar(
    value: float,
    label: str,
    *,
    floor: float | None,
    linear: float | None,
    ceiling: float | None,
    low: float = 0.0,
    top: float = 1.0,
) -> str:
    """A value as a bar from 0, between `low` and `top`; ticks for what it is compared with. label: read aloud."""
    wide, high = 200, 14

    def x(at: float) -> float:
        return round(float((np.clip(at, low, top) - low) / max(top - low, 1e-12) * wide), 1)

    parts = [f'<rect class="track" x="0" y="3" width="{wide}" height="8"/>']
    start, end = sorted((x(0.0), x(value)))
    parts.append(f'<rect class="value" x="{start}" y="3" width="{max(end - start, 0.5)}" height="8"/>')
    for name, at in (("floor", floor), ("linear", linear), ("ceiling", ceiling)):
        if at is not None:
            parts.append(f'<line class="{name}" x1="{x(at)}" x2="{x(at)}" y1="0" y2="{high}"/>')
    return f'<svg class="bar" viewBox="-2 0 {wide + 4} {high}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def bar_key(value: str, floor: str, linear: str, ceiling: str) -> str:
    """What a bar and its ticks stand for."""
    named = {"value": value, "floor": floor, "linear": linear, "ceiling": ceiling}
    parts = "\n".join(f'<span><i class="k-{kind}"></i>{name}</span>' for kind, name in named.items())
    return f'<p class="key">{parts}</p>'


class Curve(NamedTuple):
    """(step, value) of training, and of held-out stimuli."""

    trained: list[tuple[float, float]]
    held_out: list[tuple[float, float]]


def training(losses: Iterable[Mapping[str, Any]]) -> str:
    """Curves by stage: the loss and its parts, and a small chart of the nats of each direction; held-out ones dashed.

    losses: lines of a training log, {"stage", "step", "loss", "loss/...", "nats/...": ...}; with "split": "val", those
    of held-out stimuli.
    """
    stages: dict[str, dict[str, Curve]] = {}
    for line in losses:
        for key, value in line.items():
            if key.startswith(("loss", NATS)) and isinstance(value, int | float) and np.isfinite(value):
                curve = stages.setdefault(str(line.get("stage", "")), {}).setdefault(key, Curve([], []))
                half = curve.held_out if line.get("split") == "val" else curve.trained
                half.append((float(line["step"]), float(value)))
    charts, directions = [], []
    for stage, curves in stages.items():
        parts = {key.removeprefix("loss/"): curve for key, curve in curves.items() if key.startswith("loss")}
        if parts:
            named = {TOTAL if name == "loss" else name: curve for name, curve in parts.items()}
            charts.append(f'<figure class="keep">{figcaption(stage)}{_curves(named)}</figure>')
        each = {key.removeprefix(NATS): curve for key, curve in curves.items() if key.startswith(NATS)}
        small = "".join(
            f'<figure class="keep">{figcaption(name)}{_curves({TRAINED: curve}, 200, 110, from_zero=False)}</figure>'
            for name, curve in sorted(each.items())
        )
        if small:
            note = "nats per code of each direction, the axis of each its own"
            directions.append(f'<figure>{figcaption(stage, note)}<div class="small">{small}</div></figure>')
    return (f'<div class="columns">{"".join(charts)}</div>' if charts else "") + "".join(directions)


def codebooks(books: Sequence[CodebookUsage]) -> str:
    """How often each code is used, the most frequent first."""
    figures = []
    for book in books:
        note = f"{book.used:.0%} of {len(book.counts):,} codes used, worth {book.perplexity:.0f} used evenly"
        figures.append(f'<figure class="keep">{figcaption(book.name, note)}{_usage(book.counts)}</figure>')
    return f'<div class="columns">{"".join(figures)}</div>'


def figcaption(title: str, note: str = "") -> str:
    title = escape(title.replace("->", " → "))
    return f'<figcaption><b>{title}</b> <span class="soft">{escape(note)}</span></figcaption>'


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}".replace("-0.000", "0.000")


def _curves(curves: Mapping[str, Curve], wide: int = 420, high: int = 200, *, from_zero: bool = True) -> str:
    """A line for each loss, a dashed one for it on held-out stimuli; what they come to is the legend.

    Lines of training are running means. The y axis is logarithmic if the losses span more than a factor of 20, and
    otherwise begins at 0 or at the lowest.
    """
    left, bottom = 44, 22
    curves = {name: Curve(smooth(curve.trained), curve.held_out) for name, curve in curves.items()}
    points = [point for curve in curves.values() for half in curve for point in half]
    values = np.array([value for _, value in points])
    logarithmic = bool(values.min() > 0 and np.percentile(values, 98) > 20 * values.min())
    last_step = max(step for step, _ in points) or 1
    top = float(np.percentile(values, 99.5 if logarithmic else 100 if from_zero else 97))
    low = float(values.min() if logarithmic or not from_zero else min(0.0, values.min()))
    if top <= low:
        top = low + 1

    def y(value: float) -> float:
        value = min(max(value, low), top)
        share = np.log(value / low) / np.log(top / low) if logarithmic else (value - low) / (top - low)
        return round(float(8 + (1 - share) * (high - bottom - 8)), 1)

    parts = []
    ticks = 4 if high > 150 else 3
    for tick in np.geomspace(low, top, ticks) if logarithmic else np.linspace(low, top, ticks):
        parts.append(f'<line class="grid" x1="{left}" x2="{wide}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(tick) + 3}" text-anchor="end">{tick:.3g}</text>')
    for step in (0, last_step / 2, last_step) if wide > 300 else (0, last_step):
        anchor = "start" if step == 0 else "end" if step == last_step else "middle"
        x = left + step / last_step * (wide - left)
        parts.append(f'<text x="{x:.0f}" y="{high - 8}" text-anchor="{anchor}">{step:,.0f}</text>')
    legend = []
    for number, (name, curve) in enumerate(sorted(curves.items(), key=lambda item: item[0] != TOTAL)):
        colour, told = f"c{number % 6}", []
        for half, dashes, label in ((curve.trained, "", name), (curve.held_out, " held", HELD_OUT)):
            kept = half[:: max(1, len(half) // NUM_POINTS)]
            place = [f"{left + step / last_step * (wide - left):.1f},{y(value)}" for step, value in kept]
            if len(kept) == 1:
                parts.append(f'<circle class="{colour}" cx="{place[0].split(",")[0]}" cy="{y(kept[0][1])}" r="2"/>')
            if kept:
                parts.append(f'<polyline class="{colour}{dashes}" points="{" ".join(place)}"/>')
                told.append(f"{escape(label.replace('->', ' → '))} {half[-1][1]:.3g}")
        legend.append(f'<span class="{colour}">{" · ".join(told)}</span>')
    size = f'viewBox="0 0 {wide + 8} {high}"'
    svg = f'<svg class="chart" {size} role="img" aria-label="loss by step">{"".join(parts)}</svg>'
    return f'{svg}<p class="legend">{" ".join(legend)}</p>'


def smooth(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means over a window around each point, which is shorter at the ends; of few points, the points themselves."""
    if not curve:
        return []
    steps, values = zip(*curve, strict=True)
    reach = len(curve) // SMOOTHED
    total = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(curve))
    around = np.minimum(np.minimum(places, places[::-1]), reach)
    means = (total[places + around + 1] - total[places - around]) / (2 * around + 1)
    return list(zip(steps, means.tolist(), strict=True))


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


def image(picture: UInt8[np.ndarray, "h w 3"], name: str) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG", optimize=True)
    return f'<img class="picture" alt="{escape(name)}" title="{escape(name)}" src="{embedded(file.getvalue())}">'


def embedded(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>$style</style></head>
<body><header><p class="badge">$modality</p><h1>$title</h1><nav>$contents</nav></header><main>$body</main></body></html>
"""

STYLE = """
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
.held { stroke-dasharray: 5 3; }
.small { display: flex; flex-wrap: wrap; gap: 0 1.2rem; }
.small figure { flex: 0 0 228px; margin: .3rem 0; } .small .legend { margin: 0; font-size: .72rem; }
.area { fill: var(--accent); opacity: .75; } svg.chart line.linear { stroke-width: 1; stroke-dasharray: 4 3; }
.legend { font-size: .8rem; } .legend span { margin-right: .9rem; white-space: nowrap; }
.c0 { color: var(--ink); } .c1 { color: #3b82c4; } .c2 { color: #d1690e; } .c3 { color: #14804a; }
.c4 { color: #a8489c; } .c5 { color: #a08a1c; }
pre { background: var(--panel); border-radius: 8px; padding: 1rem; font-size: .78rem; line-height: 1.4;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
@media (max-width: 640px) { .cards { grid-template-columns: 1fr; } table.scores { display: block; overflow-x: auto; }
  dl.glossary { grid-template-columns: 1fr; } figure { overflow-x: auto; } img.map { max-width: none; width: 680px; } }
@media print { body { max-width: none; padding: 0; font-size: 11px; } nav { display: none; } .keep, figure, .card,
  .pictures { break-inside: avoid; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
