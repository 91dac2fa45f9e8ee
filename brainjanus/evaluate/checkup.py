"""The page of `brainjanus doctor`: traffic lights, the evidence for each, and what to do.

Enters: findings, and the dataset if it could be opened. Leaves: one HTML file, as `page.py` makes them.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import date
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from brainjanus.core.errors import written_beside
from brainjanus.data.dataset import Dataset, map_tensor
from brainjanus.data.doctor import LIGHTS, Finding, Light
from brainjanus.evaluate.page import facts, figcaption, glossary, image, page

MEANING: Mapping[Light, str] = {
    "red": "scores will be wrong",
    "yellow": "look at it: it may be meant",
    "grey": "cannot be told from these data",
    "green": "looked at, and sound",
}
SYMBOL: Mapping[Light, str] = {
    "red": "✕",
    "yellow": "!",
    "grey": "–",
    "green": "✓",
}  # a light is no matter of colour alone
TERMS = {
    "Standard deviations above chance": "how far a score lies above those of randomly shuffled ids, in units of their "
    "standard deviation: 4 happens once in 30,000 shuffles.",
    "Held-out trials": "features of a trial's stimulus are predicted by a map that was fitted to other trials.",
    "Laid over each other": "two pictures as 32 x 32 pixels, one of them cropped as fits best, without slow changes of "
    "brightness. Edges of different photographs fall into different places.",
    "Noise ceiling": "the largest correlation that any prediction can reach with one trial (Allen et al. 2022).",
}
PAIRS_SHOWN = 6


def write_checkup(
    path: Path, dataset: Dataset | None, findings: Sequence[Finding], name: str, fingerprint: str
) -> None:
    """Write the page, whole or not at all. dataset: None if it could not be opened."""
    grave = [one for one in findings if one.light in ("red", "yellow")]
    fine = [one for one in findings if one.light not in ("red", "yellow")]
    sections = (
        ("lights", "At a glance", _glance(dataset, findings, name, fingerprint)),
        ("found", "What to look at", "".join(_finding(dataset, one) for one in grave)),
        ("fine", "What was looked at besides", "".join(_finding(dataset, one) for one in fine)),
        ("glossary", "What the words mean", glossary(TERMS)),
    )
    with written_beside(path) as beside:
        badge = "dataset" if dataset is None else dataset.modality
        beside.write_text(page(f"Doctor: {name}", badge, sections, STYLE), encoding="utf-8")


def _glance(dataset: Dataset | None, findings: Sequence[Finding], name: str, fingerprint: str) -> str:
    counts = {light: sum(one.light == light for one in findings) for light in LIGHTS}
    worst = next((light for light in LIGHTS if counts[light] and light != "grey"), "grey")
    lead = {
        "red": "Something is wrong with these data: scores of models that are trained on them will be wrong, too.",
        "yellow": "Nothing is plainly wrong; some of it is worth a look before a model is trained.",
        "green": "Nothing was found that would spoil a model or its scores.",
        "grey": "Nothing could be told.",
    }[worst]
    lights = "".join(
        f"<span>{_light(light)} <b>{counts[light]}</b> {MEANING[light]}</span>" for light in LIGHTS if counts[light]
    )
    known = {"Dataset": f"{escape(name)} <small>{escape(fingerprint[:12])}</small>"}
    if dataset is not None:
        known["Recording"] = f"<strong>{escape(dataset.modality)}</strong>"
        known["Subjects"] = escape(", ".join(dataset.subjects))
    known["Looked at"] = date.today().isoformat()
    checks: dict[str, list[Finding]] = {}
    for one in findings:
        checks.setdefault(one.check, []).append(one)
    rows = "".join(
        f"<tr><td>{escape(check)}</td><td>"
        + " ".join(f"<span>{_light(one.light)}<small>{escape(one.subject or '')}</small></span>" for one in group)
        + f"</td><td>{escape('; '.join(dict.fromkeys(one.kind for one in group if one.kind)))}</td></tr>"
        for check, group in checks.items()
    )
    table = f'<div class="wide"><table class="checks">{rows}</table></div>'
    return f'<p>{lead}</p><p class="lights">{lights}</p>{facts(known)}{table}'


def _light(light: Light) -> str:
    return f'<i class="light {light}" role="img" aria-label="{light}">{SYMBOL[light]}</i>'


def _finding(dataset: Dataset | None, one: Finding) -> str:
    title = one.kind if one.kind.startswith(one.check) else f"{one.check}: {one.kind}" if one.kind else one.check
    todo = f'<p class="todo"><b>What to do.</b> {_text(one.remedy)}</p>' if one.remedy else ""
    return (
        f'<article class="finding {one.light} keep"><h3>{_light(one.light)} {escape(title)}</h3>'
        f"<p>{_text(one.sentence)}</p>{todo}{_figure(dataset, one)}</article>"
    )


def _text(sentence: str) -> str:
    """As HTML, with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(sentence))


def _figure(dataset: Dataset | None, one: Finding) -> str:
    evidence = one.evidence
    figures = []
    if evidence.get("by_shift"):
        figures.append(
            f"<figure>{figcaption('Fit by shift of ids', 'standard deviations above chance, by places; dashed: 4')}"
            f"{_by_shift(evidence['by_shift'])}</figure>"
        )
    if (
        isinstance(evidence.get("sessions"), list)
        and evidence["sessions"]
        and isinstance(evidence["sessions"][0], dict)
    ):
        bars = {f"session {fit['part']}": (fit["own"], fit["best"]) for fit in evidence["sessions"]}
        note = "standard deviations above chance; bar: as ids are given, tick: best shift"
        figures.append(f"<figure>{figcaption('Fit of each session', note)}{_bars(bars)}</figure>")
    if evidence.get("patterns"):
        note = "correlation of their mean patterns, less the mean of all sessions; blue: alike, orange: opposite"
        names = [str(name) for name in evidence["sessions"]]
        figures.append(
            f"<figure>{figcaption('Sessions', note)}{_matrix(np.array(evidence['patterns']), names)}</figure>"
        )
    if evidence.get("ceilings") and len(evidence["ceilings"]) > 1:
        values = {name: (value, None) for name, value in list(evidence["ceilings"].items())[:24]}
        figures.append(_drawn("Noise ceiling of one trial", "median of each region", _bars(values, top=1.0)))
    if isinstance(evidence.get("std"), dict) and len(evidence["std"]) > 1:
        values = {f"session {name}": (value, None) for name, value in list(evidence["std"].items())[:40]}
        figures.append(f"<figure>{figcaption('Standard deviation', 'of the median site')}{_bars(values)}</figure>")
    if isinstance(evidence.get("trials"), dict) and len(evidence["trials"]) > 1 and one.kind:
        values = {f"session {name}": (float(value), None) for name, value in list(evidence["trials"].items())[:60]}
        figures.append(f"<figure>{figcaption('Trials')}{_bars(values)}</figure>")
    if dataset is not None and dataset.image_size is not None and evidence.get("pictures") and "pairs" in evidence:
        pixels = map_tensor(dataset.pictures_file, "pixels")
        shown = "".join(
            f'<figure class="pair">{image(np.asarray(pixels[a]), first)}{image(np.asarray(pixels[b]), second)}'
            f"<figcaption>{escape(first)} · {escape(second)} · {alike:.2f}</figcaption></figure>"
            for (a, b), (first, second, alike) in list(zip(evidence["pictures"], evidence["pairs"], strict=True))[
                :PAIRS_SHOWN
            ]
        )
        figures.append(f'<div class="pairs">{shown}</div>')
    if not figures:
        return ""
    inside = f'<div class="columns">{"".join(figures)}</div>'
    return inside if one.light in ("red", "yellow") else f"<details><summary>the figures</summary>{inside}</details>"


def _by_shift(points: Sequence[Sequence[float | int]]) -> str:
    """A bar for each shift."""
    wide, high, bottom, left = 420, 150, 20, 34
    values = np.array([value for _, value in points])
    top, low = max(float(values.max()), 5.0), min(float(values.min()), 0.0)

    def y(value: float | int) -> float:
        return round(6 + (top - value) / (top - low) * (high - bottom - 6), 1)

    step = (wide - left) / len(points)
    parts = []
    for tick in (0.0, top):
        parts.append(f'<line class="grid" x1="{left}" x2="{wide}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text x="{left - 5}" y="{y(tick) + 3}" text-anchor="end">{tick:.0f}</text>')
    for row, (places, value) in enumerate(points):
        x = left + row * step + 0.15 * step
        upper, lower = sorted((y(0.0), y(value)))
        kind = "given" if places == 0 else "other"
        parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{upper}" width="{0.7 * step:.1f}" '
            f'height="{max(lower - upper, 0.5):.1f}"/>'
        )
        if places % 4 == 0:
            parts.append(
                f'<text x="{x + 0.35 * step:.1f}" y="{high - 6}" text-anchor="middle">{places:+.0f}</text>'.replace(
                    "+0<", "0<"
                )
            )
    parts.append(f'<line class="linear" x1="{left}" x2="{wide}" y1="{y(4.0)}" y2="{y(4.0)}"/>')
    return _svg(wide + 8, high, "fit by shift", parts)


def _bars(values: Mapping[str, tuple[float, float | None]], top: float | None = None) -> str:
    """A bar for each name, with a tick if there is a second number."""
    wide, left, row_high = 420, 110, 17
    numbers = [number for pair in values.values() for number in pair if number is not None and np.isfinite(number)]
    top = max([*numbers, 1e-9]) if top is None else top
    parts = []
    for row, (name, (value, other)) in enumerate(values.items()):
        y = row * row_high + 3
        parts.append(f'<text x="{left - 6}" y="{y + 9}" text-anchor="end">{escape(name[:18])}</text>')
        length = float(np.clip(np.nan_to_num(value) / top, 0, 1)) * (wide - left - 40)
        parts.append(f'<rect class="value" x="{left}" y="{y}" width="{max(length, 0.5):.1f}" height="11"/>')
        if other is not None:
            x = left + float(np.clip(other / top, 0, 1)) * (wide - left - 40)
            parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 2}" y2="{y + 13}"/>')
        parts.append(f'<text x="{wide}" y="{y + 9}" text-anchor="end">{value:.3g}</text>')
    high = len(values) * row_high + 6
    return _svg(wide + 4, high, "bars", parts)


def _matrix(values: np.ndarray, names: Sequence[str]) -> str:
    """Correlations as colour."""
    side, left = 240, 30
    cell = (side - left) / len(names)
    parts = []
    for row, name in enumerate(names):
        if len(names) <= 12 or row % (len(names) // 8) == 0:
            at = left + (row + 0.5) * cell
            parts.append(f'<text x="{left - 4}" y="{at + 3:.1f}" text-anchor="end">{escape(name[:5])}</text>')
            parts.append(f'<text x="{at:.1f}" y="{left - 6}" text-anchor="middle">{escape(name[:5])}</text>')
        for column in range(len(names)):
            value = float(values[row, column])
            kind = "alike" if value >= 0 else "unlike"
            parts.append(
                f'<rect class="{kind}" x="{left + column * cell:.1f}" y="{left + row * cell:.1f}" width="{cell:.2f}" '
                f'height="{cell:.2f}" opacity="{min(abs(value), 1):.2f}">'
                f"<title>{escape(name)}, {escape(names[column])}: {value:.2f}</title></rect>"
            )
    return _svg(side, side, "sessions by sessions", parts, "chart matrix")


def _svg(wide: int, high: int, label: str, parts: Sequence[str], kind: str = "chart") -> str:
    return f'<svg class="{kind}" viewBox="0 0 {wide} {high}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _drawn(title: str, note: str, drawing: str) -> str:
    return f"<figure>{figcaption(title, note)}{drawing}</figure>"


def as_json(value: Any) -> Any:
    """Figures as JSON can hold them: numpy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {str(name): as_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    if isinstance(value, np.ndarray):
        return as_json(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


STYLE = """
.light { display: inline-flex; width: 1.25em; height: 1.25em; border-radius: 50%; align-items: center; flex: none;
  justify-content: center; font-style: normal; font-weight: 700; font-size: .8em; color: #fff; vertical-align: .06em; }
.light.red { background: #c2303a; } .light.yellow { background: #d9a406; color: #241c00; }
.light.green { background: #14804a; } .light.grey { background: #8a94a1; }
.lights { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; max-width: none; }
table.checks td { text-align: left; padding: .2rem 1.2rem .2rem 0; white-space: normal; vertical-align: top; }
table.checks td small { display: inline; margin: 0 .5rem 0 .25rem; }
table.checks td:first-child, table.checks span { white-space: nowrap; }
.finding { border-left: 4px solid var(--line); padding: .1rem 0 .1rem 1rem; margin: 1.2rem 0; }
.finding.red { border-color: #c2303a; } .finding.yellow { border-color: #d9a406; }
.finding.green { border-color: #14804a; } .finding h3 { margin-top: .2rem; } .finding p { overflow-wrap: anywhere; }
.given { fill: var(--ink); } .other { fill: var(--accent); } .tick { stroke: var(--linear); stroke-width: 2.5; }
.alike { fill: #2f6fb3; } .unlike { fill: #d1690e; } svg.matrix { max-width: 300px; }
.pairs { display: flex; flex-wrap: wrap; gap: .8rem; }
.pair { display: grid; grid-template-columns: 96px 96px; gap: 4px; }
.pair figcaption { grid-column: 1 / -1; font-size: .76rem; color: var(--soft); overflow-wrap: anywhere; }
@media (max-width: 640px) { dl.facts { grid-template-columns: 1fr; gap: 0; } dl.facts dd { margin-bottom: .4rem; }
  .columns > * { min-width: 0; flex-basis: 100%; } svg.chart text { font-size: 12px; }
  table.checks td { padding-right: .6rem; } }
"""
