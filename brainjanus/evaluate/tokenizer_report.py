"""The report on a brain tokenizer: one page of what it keeps, where, and what its codes look like.

Enters: a tokenizer, the spaces of its subjects, a dataset, the tokenizer's scores. Leaves: report.html, with everything
in it. Maps are of one subject, drawn on the surface, in the volume, on the scalp, as points, or as strips in the order
of the tokens, whichever the subject's space allows.

What a code looks like is read off data: of all training responses that have code c at a patch, the mean of what is
decoded there, less the mean of all. So it holds for the responses that occur, with the work that codes share.
"""

import io
import json
from collections.abc import Iterable, Mapping
from datetime import date
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from brainjanus.core.errors import written_beside
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Dataset
from brainjanus.evaluate.brain import mse, pattern_r, voxel_r
from brainjanus.evaluate.cortex import draw_maps
from brainjanus.evaluate.examples import even_ranks
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
from brainjanus.evaluate.record import SUBJECT_MEAN
from brainjanus.evaluate.tokenizer import METRICS, TokenizerRecord, TokenizerScores, reconstruct
from brainjanus.tokenizers.brain import BrainTokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_ATLAS = 2000  # training responses from which the codes are drawn
DRAWN_CODES = 6
EXAMPLES = 3
MAX_COLUMNS = 1600  # of the heat map of all codes; more sites are averaged
DRAWN_TOKENS, DRAWN_AXES = 3, 2  # whose axes, and how many of each
GOLDEN = 0.618034  # steps around the colour circle that keep neighbouring patches apart
HEADLINE = ("mse", "pattern_r", "voxel_r", "mse_truth", "pattern_r_truth", "voxel_r_truth")
FACTS = (
    "bits",
    "bits_per_site",
    "used",
    "perplexity",
    "agreement",
    "locality",
    "patch_mm",
    "bound_shrunk",
    "bound_held_out",
)


# N stimuli, V sites, C codebook entries
def write_tokenizer_report(
    out: Path | str,
    tokenizer: BrainTokenizer,
    spaces: Mapping[str, BrainSpace],
    dataset: Dataset,
    scores: TokenizerScores,
    *,
    truth: Mapping[str, Float[np.ndarray, "_ _"]] | None = None,
    subject: str | None = None,
    losses: Iterable[Mapping[str, Any]] = (),
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write `out/report.html`, whole or not at all, and return its path.

    spaces: subject -> the space that the tokenizer was trained with. scores, truth: of and for `score_tokenizer`.
    subject: whose maps are drawn (default: the first that was scored). losses: lines of the training log.
    config: anything JSON can hold; shown as it is.
    """
    subject = subject or next(iter(scores.usage))
    known = None if truth is None else truth.get(subject)
    sections = (
        ("kept", "What is kept", _lead(dataset, scores, subject) + _headline(scores)),
        ("regions", "Region by region", _regions(scores)),
        ("places", "Where a token lies", _places(tokenizer, spaces[subject], scores)),
        ("axes", "What a token reads and changes", _axes(tokenizer, spaces[subject], scores)),
        ("maps", "Where it is kept", _quality(tokenizer, spaces[subject], dataset, scores, known)),
        (
            "examples",
            "Responses and what is left of them",
            _examples(tokenizer, spaces[subject], dataset, scores, known),
        ),
        ("codes", "What the codes look like", _codes(tokenizer, spaces[subject], dataset, scores)),
        ("training", "Training", training(losses)),
        ("glossary", "What the words mean", _glossary(scores)),
        ("config", "To run it again", _config(config)),
    )
    path = Path(out) / "report.html"
    with written_beside(path) as beside:
        beside.write_text(
            page(f"Brain tokenizer on {dataset.name}", dataset.modality, sections, _OWN_STYLE), encoding="utf-8"
        )
    return path


def code_atlas(
    tokenizer: BrainTokenizer, responses: Float[np.ndarray, "n v"], subject: str
) -> Float[np.ndarray, "c v"]:
    """What each code stands for at each site: the mean decoded response where it was used, less the mean of all.

    NaN where no response has the code at the site's patch. Codes of several stages lie behind each other.
    """
    codes, decoded = reconstruct(tokenizer, responses, subject)
    patch = tokenizer.site_patch(subject).cpu().numpy()
    centred = decoded - decoded.mean(axis=0)
    stages = codes.shape[1] // (int(patch.max()) + 1)
    atlas = np.full((len(tokenizer.quantizer.codebook), len(patch)), np.nan, np.float32)
    for place in range(codes.shape[1]):
        sites = np.flatnonzero(patch == place // stages)
        used, where = np.unique(codes[:, place], return_inverse=True)
        one_hot = np.zeros((len(used), len(codes)), np.float32)
        one_hot[where, np.arange(len(codes))] = 1
        atlas[np.ix_(used, sites)] = one_hot @ centred[:, sites] / one_hot.sum(axis=1, keepdims=True)
    return atlas


def draw_sites(
    space: BrainSpace,
    maps: Mapping[str, Float[np.ndarray, "v"]],
    order: Int[np.ndarray, "v"],
    *,
    label: str,
    limits: tuple[float, float],
    categorical: bool = False,
    discrete: bool = False,
) -> str:
    """Maps in whichever form the space allows, as an element of the page. Everything as in `draw_maps`."""
    outlines: list[str] | None = [] if categorical else None
    png = draw_maps(
        space,
        maps,
        label=label,
        limits=limits,
        order=order,
        outlines=outlines,
        categorical=categorical,
        discrete=discrete,
    )
    return f'<img class="map" alt="{escape(", ".join(maps))}" src="{embedded(png)}">'


# ---------------------------------------------------------------------------------------------------- sections


def _lead(dataset: Dataset, scores: TokenizerScores, subject: str) -> str:
    bits, kept, own, least = (scores.of(name) for name in ("bits", "mse", "voxel_r_truth", "bound_held_out"))
    assert bits is not None and kept is not None and kept.floor is not None and least is not None
    text = (
        f"A response becomes codes of {bits.value:,.0f} bits and is drawn again from these. The mean squared error is "
        f"<b>{number(kept.value)}</b>, {kept.value / kept.floor:.0%} of that of the mean response "
        f"({number(kept.floor)}); principal components of as many bits leave {number(kept.baseline)}. The least that "
        f"any code of Gaussian responses leaves is between {number(kept.bound)} and {number(least.value)}, as the "
        "covariance of training or of held-out responses has it."
    )
    if own is not None and own.ceiling is not None:
        text += (
            f" With the noise-free response the reconstruction correlates at <b>{number(own.value)}</b>, the measured "
            f"average itself at {number(own.ceiling)}."
        )
    subjects = ", ".join(f"{escape(name)}" for name in scores.usage)
    known = {
        "Dataset": f"{escape(dataset.name)} <small>{escape(dataset.fingerprint[:12])}</small>",
        "Scored on": f"mean responses to held-out stimuli ({escape(scores.split)} split): {kept.n:,} of "
        f"{subjects}; maps are of {escape(subject)}",
        "Written": date.today().isoformat(),
    }
    note = ""
    if "simulated" in dataset.modality:
        note = '<p class="note">These responses were computed by a simulation; no brain was measured.</p>'
    return f"<p>{text}</p>{note}{facts(known)}"


def _headline(scores: TokenizerScores) -> str:
    """All figures over all sites, a row a subject, the mean first."""
    subjects = [SUBJECT_MEAN, *scores.usage] if len(scores.usage) > 1 else list(scores.usage)
    rows = []
    for metric in HEADLINE:
        found = [record for name in subjects if (record := scores.of(metric, name)) is not None]
        for record in found:
            first = record is found[0]
            cells = (
                escape(METRICS[metric][0]) if first else "",
                "all subjects" if record.subject == SUBJECT_MEAN else escape(record.subject),
                f"<b>{number(record.value)}</b>",
                *(number(value) for value in (record.floor, record.baseline, record.bound, record.ceiling)),
            )
            rows.append(
                f'<tr class="{"mean" if first else "one"}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
            )
    head = "".join(f"<th>{name}</th>" for name in ("", "", "tokenizer", "mean response", "PCA", "bound", "ceiling"))
    table = f'<table class="kept"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    lines = []
    for metric in FACTS:
        found = [record for name in subjects if (record := scores.of(metric, name)) is not None]
        if found:
            row = "".join(f"<td>{_fact(record)}</td>" for record in found)
            lines.append(f"<tr><td>{escape(METRICS[metric][0])}</td>{row}</tr>")
    names = "".join(f"<th>{'all subjects' if name == SUBJECT_MEAN else escape(name)}</th>" for name in subjects)
    head, body = f"<thead><tr><th></th>{names}</tr></thead>", f"<tbody>{''.join(lines)}</tbody>"
    return f'<div class="wide">{table}</div><div class="wide"><table class="kept facts-of">{head}{body}</table></div>'


def _fact(record: TokenizerRecord) -> str:
    if record.metric in ("used", "agreement"):
        return f"{record.value:.1%}"
    if record.metric == "locality" and record.floor is not None:
        return f"{record.value:.1%} <small>chance {record.floor:.1%}</small>"
    if record.metric == "patch_mm" and record.floor is not None:
        return f"{record.value:.1f} <small>storage order {record.floor:.1f}</small>"
    return f"{record.value:,.0f}" if record.metric in ("bits", "perplexity") else number(record.value)


def _regions(scores: TokenizerScores) -> str:
    columns = []
    for metric in ("mse", "voxel_r_truth" if scores.of("voxel_r_truth") else "voxel_r"):
        found = [r for r in scores.records if r.metric == metric and r.subject == SUBJECT_MEAN]
        if len(found) < 2:
            continue
        top = max(value for r in found for value in (r.value, r.floor, r.baseline, r.ceiling) if value is not None)
        rows = "".join(
            f"<tr><td>{escape(r.roi or 'all sites')}</td><td>{_bar(r, top)}</td><td><b>{r.value:.3f}</b></td></tr>"
            for r in found
        )
        title, note = METRICS[metric]
        columns.append(
            f'<div class="keep"><h3>{escape(title)}</h3><p><small>{escape(note)}</small></p>'
            f'<table class="regions">{rows}</table></div>'
        )
    return f'{_KEY}<div class="columns">{"".join(columns)}</div>' if columns else ""


def _bar(record: TokenizerRecord, top: float) -> str:
    """From 0 to `top`; ticks for mean response, PCA, and the bound or the noise ceiling."""
    best = record.bound if record.bound is not None else record.ceiling
    label = f"value {number(record.value)}, mean response {number(record.floor)}, PCA {number(record.baseline)}"
    return bar(record.value, label, floor=record.floor, linear=record.baseline, ceiling=best, top=top)


def _places(tokenizer: BrainTokenizer, space: BrainSpace, scores: TokenizerScores) -> str:
    patch = tokenizer.site_patch(space.subject).cpu().numpy()
    order = sequence(tokenizer, space)
    stored = np.sort(patch)
    colours = {
        "tokens, in the order that is used": patch * GOLDEN % 1.0,
        "tokens of the same size, in storage order": stored * GOLDEN % 1.0,
    }
    place = np.empty(space.num_sites)
    place[order] = np.arange(space.num_sites) / max(space.num_sites - 1, 1)
    lines = {"order that is used": place, "storage order": np.arange(space.num_sites) / max(space.num_sites - 1, 1)}
    found = scores.of("patch_mm", space.subject)
    near = ""
    if found is not None and found.floor is not None:
        near = (
            f" Two sites of a token lie {found.value:.1f} mm apart on average; along the storage order they would lie "
            f"{found.floor:.1f} mm apart."
        )
    sizes = np.bincount(patch)
    what = f"{space.num_sites:,} {space.kind}"
    if space.geometry.get("type") == "sensors":
        what = f"{len(space.geometry['names'])} {space.kind} at {len(space.geometry['times_sec'])} times"
    text = (
        f"<p>{escape(space.subject)} has {what}, in {len(sizes):,} patches of up to "
        f"{int(sizes.max())}; a token stands for a patch.{near}</p>"
    )
    whole = (0.0, 1.0)
    tokens = draw_sites(space, colours, order, label="token", limits=whole, categorical=True)
    along = draw_sites(
        space, lines, order, label="place in the sequence, from first to last", limits=whole, discrete=True
    )
    return (
        f"{text}<figure>{figcaption('Each colour is a token')}{tokens}</figure>"
        f"<figure>{figcaption('The sequence')}{along}</figure>"
    )


def _axes(tokenizer: BrainTokenizer, space: BrainSpace, scores: TokenizerScores) -> str:
    """The axes of a few tokens, and how far a code reaches beyond its patch."""
    text = ""
    patch = tokenizer.site_patch(space.subject).cpu().numpy()
    if (local := scores.of("locality", space.subject)) is not None and local.floor is not None:
        text = (
            f"<p>If one code of a held-out response is exchanged for a random other, <b>{local.value:.0%}</b> of the "
            f"squared change of the decoded response lies in the code's own patch, which holds {local.floor:.1%} of "
            "the sites. The more, the better one can point to what a code stands for; what lies outside is what tokens "
            "tell together.</p>"
        )
    found = tokenizer.token_axes(space.subject)
    axes = np.zeros((0, 0, 0)) if found is None else found.cpu().numpy()
    there = np.square(axes).sum(axis=2) > 0
    if not there.any():  # the published encoder has no axes
        return text
    own = np.square(axes * (patch == np.arange(len(axes))[:, None])[:, None]).sum(axis=2)
    text += (
        "<p>Before training a token reads the response along a few axes, which all tokens together share out: here are "
        f"the first ones of {min(len(axes), DRAWN_TOKENS)} of {len(axes):,} tokens. On average "
        f"{own[there].mean():.0%} of an axis lies in its token's own patch.</p>"
    )
    order = sequence(tokenizer, space)
    outside = 0.0 if space.geometry.get("type") == "sensors" else np.nan  # a field on the head has no gaps
    figures = []
    for token in ((np.arange(DRAWN_TOKENS) + 0.5) / DRAWN_TOKENS * len(axes)).astype(int):
        shown = [number for number in range(axes.shape[1]) if there[token, number]][:DRAWN_AXES]
        maps = {f"axis {number + 1}": axes[token, number] for number in shown}
        if not maps:
            continue
        top = float(f"{np.percentile(np.abs(np.stack(list(maps.values()))), 99.5):.2g}") or 1.0
        maps["its patch"] = np.where(patch == token, top, outside)
        drawn = draw_sites(space, maps, order, label="weight of a site", limits=(-top, top))
        shares = ", ".join(f"{own[token, number]:.0%} of axis {number + 1}" for number in shown)
        figures.append(f"<figure>{figcaption(f'Token {token}', f'{shares} in its patch')}{drawn}</figure>")
    return text + "".join(figures)


def _quality(
    tokenizer: BrainTokenizer,
    space: BrainSpace,
    dataset: Dataset,
    scores: TokenizerScores,
    truth: Float[np.ndarray, "_ _"] | None,
) -> str:
    measured = dataset.averages(space.subject, scores.split).responses
    values = reconstruct(tokenizer, measured, space.subject).values
    order = sequence(tokenizer, space)
    correlations = {"reconstruction and measured average": voxel_r(measured, values)}
    if truth is not None:
        correlations["reconstruction and noise-free response"] = voxel_r(truth, values)
        correlations["measured average and noise-free response"] = voxel_r(truth, measured)
    error = np.square(measured.astype(np.float64) - values).mean(axis=0)
    r = draw_sites(space, correlations, order, label="r across stimuli", limits=(0.0, 1.0))
    errors = {"mean squared error": error, "variance of the measured average": measured.var(axis=0)}
    top = float(f"{max(np.percentile(both, 99) for both in errors.values()):.2g}") or 1.0
    lost = draw_sites(space, errors, order, label="squared units of the z-scored response", limits=(0.0, top))
    return (
        f"<figure>{figcaption('Voxel r of each site')}{r}</figure><figure>{figcaption('What is lost')}{lost}</figure>"
    )


def _examples(
    tokenizer: BrainTokenizer,
    space: BrainSpace,
    dataset: Dataset,
    scores: TokenizerScores,
    truth: Float[np.ndarray, "_ _"] | None,
) -> str:
    averages = dataset.averages(space.subject, scores.split)
    measured = averages.responses
    values = reconstruct(tokenizer, measured, space.subject).values
    r, order = pattern_r(measured, values), sequence(tokenizer, space)
    errors = mse(measured, values)
    cards = []
    for row in even_ranks(r, EXAMPLES + 2)[1:-1]:
        stimulus = averages.stimulus_ids[row]
        maps = {f"measured, mean of {averages.num_repeats[row]}": measured[row], "reconstruction": values[row]}
        if truth is not None:
            maps["noise-free response"] = truth[row]
        top = float(f"{np.percentile(np.abs(measured[row]), 99):.2g}") or 1.0
        drawn = draw_sites(space, maps, order, label="response (z)", limits=(-top, top))
        picture = ""
        if dataset.image_size is not None:
            picture = f'<div class="seen">{image(dataset.pictures(stimulus)[0], f"seen picture, {stimulus}")}</div>'
        note = f"r across sites {r[row]:.2f}, mean squared error {errors[row]:.2f}"
        cards.append(f"<figure>{figcaption(f'Stimulus {stimulus}', note)}{picture}{drawn}</figure>")
    text = (
        "<p>Held-out stimuli at even ranks between the best and the worst reconstruction: what was measured, and what "
        "is drawn again from the codes.</p>"
    )
    return text + "".join(cards)


def _codes(tokenizer: BrainTokenizer, space: BrainSpace, dataset: Dataset, scores: TokenizerScores) -> str:
    usage = scores.usage[space.subject]
    responses = dataset.averages(space.subject, "train").responses
    chosen = np.linspace(0, len(responses) - 1, min(len(responses), MAX_ATLAS)).round().astype(int)
    atlas = code_atlas(tokenizer, responses[chosen], space.subject)
    order = sequence(tokenizer, space)
    ranked = np.argsort(-usage.counts, kind="stable")
    ranked = ranked[np.isfinite(atlas[ranked]).any(axis=1)]
    books = (
        "<h3>Codebook</h3><p>How often held-out responses use each code, the most frequent first.</p>"
        f"{codebooks(list(scores.usage.values()))}"
    )
    if not len(ranked):
        return books
    maps = {f"code {code}, used {usage.counts[code]:,} times": atlas[code] for code in ranked[:DRAWN_CODES]}
    finite = np.abs(atlas[np.isfinite(atlas)])
    top = float(f"{np.percentile(finite, 98):.2g}") or 1.0
    drawn = draw_sites(space, maps, order, label="decoded response less the mean (z)", limits=(-top, top))
    text = (
        "<p>What is decoded at a patch when its code is this one, less what is decoded there on average; the mean of "
        f"{len(chosen):,} training responses. A patch is left grey where no response has the code there. Codes are "
        "shared by all patches; what one means is a matter of the patch that it stands at.</p>"
    )
    note = "one row a code, the most used at the top; sites in the order of the tokens"
    heat = embedded(_heat_map(atlas[ranked][:, order], top))
    return (
        f"{books}<h3>Where the codes stand</h3>{text}"
        f"<figure>{figcaption('The codes that are used most')}{drawn}</figure>"
        f'<figure>{figcaption("All codes", note)}<img class="map" alt="all codes" src="{heat}"></figure>'
    )


def _heat_map(atlas: Float[np.ndarray, "c v"], top: float) -> bytes:
    from matplotlib.figure import Figure

    num_sites = atlas.shape[1]
    if num_sites > MAX_COLUMNS:  # more cannot be seen
        bins = np.arange(num_sites) * MAX_COLUMNS // num_sites
        starts = np.flatnonzero(np.diff(bins, prepend=-1))
        known = np.add.reduceat(np.isfinite(atlas).astype(np.float32), starts, axis=1)
        total = np.add.reduceat(np.nan_to_num(atlas), starts, axis=1)
        atlas = np.divide(total, known, out=np.full_like(total, np.nan), where=known > 0)
    figure = Figure((9.5, float(np.clip(len(atlas) * 0.02 + 1.0, 2.0, 6.0))), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("#bbbbbb")
    image = axes.imshow(
        atlas,
        aspect="auto",
        cmap="RdBu_r",
        vmin=-top,
        vmax=top,
        interpolation="none",
        extent=(0, num_sites, len(atlas), 0),
    )
    axes.set_xlabel("site, in the order of the tokens", fontsize=8)
    axes.set_ylabel("code, by use", fontsize=8)
    axes.tick_params(labelsize=7, length=2)
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=30)
    bar.ax.tick_params(labelsize=7, length=2)
    bar.set_label("decoded less the mean (z)", fontsize=8)
    return _png(figure)


def _png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white")
    return file.getvalue()


def _glossary(scores: TokenizerScores) -> str:
    present = {record.metric for record in scores.records}
    words = {title: text for name, (title, text) in METRICS.items() if name in present}
    return glossary(words | dict(TERMS))


def _config(config: Mapping[str, Any] | None) -> str:
    return f"<pre>{escape(json.dumps(config, indent=1, default=str))}</pre>" if config else ""


def sequence(tokenizer: BrainTokenizer, space: BrainSpace) -> Int[np.ndarray, "v"]:
    """The sites in the order of the tokens: the cortical order, or the storage order if tokens were cut along that."""
    patch, order = tokenizer.site_patch(space.subject).cpu().numpy(), np.asarray(space.order)
    return order if (np.diff(patch[order]) >= 0).all() else np.argsort(patch, kind="stable")


TERMS: Mapping[str, str] = {
    "Mean response": "the mean training response in place of every response: what 0 bits keep.",
    "PCA": "principal components of the training responses, each rounded to a number of levels of its own, at the same "
    "number of bits: the best that is linear.",
    "Bound": "what no code of Gaussian responses with the covariance of the training responses can go below at this "
    "number of bits (reverse water-filling). Of few training responses it is too low: the shrunk and the held-out "
    "bound say by how much. In a region: what the code that reaches it over all sites leaves there. Responses that are "
    "no Gaussian may be coded better.",
    "Ceiling": "what noise in the measured averages allows; of figures with the truth: what these averages have "
    "themselves.",
}

_KEY = bar_key("tokenizer", "mean response", "PCA at the same bits", "Gaussian bound, or ceiling of r")

_OWN_STYLE = """
table.kept { margin: .8rem 0 1.2rem; font-size: .9rem; }
table.kept td, table.kept th { padding: .16rem .9rem .16rem 0; } table.kept td small { display: inline; }
table.kept th:nth-child(n) { width: auto; }
@media (max-width: 640px) { table.kept td, table.kept th { padding-right: .5rem; font-size: .78rem; }
  table.kept td:first-child { white-space: normal; min-width: 5.5rem; } }
table.facts-of td:nth-child(2), table.facts-of th:nth-child(2) { text-align: right; }
.seen { width: 112px; margin: .3rem 0 .5rem; }
"""
