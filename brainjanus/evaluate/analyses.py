"""The paper's analyses of data: how good captions are, and how alike responses to one stimulus are.

Enters: scores of captions from several sources, or a dataset. Leaves: for each analysis its numbers (a NamedTuple with
`figures()` for JSON) and a picture (PNG) of them. Source: BrainJanus (arXiv 2606.30319): fig. 7, density of
caption-image scores; fig. 8, responses to the repeats of one stimulus; figs. 12-14, consistency between repeats.

Differs from the paper: a floor (repeats of different stimuli) stands beside every consistency, and beside the
comparison to the mean of all repeats, which holds the response that is compared, stands that to the mean of the others.
Densities are kernel density estimates with Scott's bandwidth, reflected at the bounds that a score has.
"""

import io
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.integrate import trapezoid
from scipy.stats import gaussian_kde

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import SPLITS, Dataset, listed
from brainjanus.evaluate.brain import unit
from brainjanus.evaluate.text import content_f1_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AGREEMENT = "content-word F1 with the other captions"  # what `caption_agreement` scores, for an axis
FIRST_REFERENCE = "first reference"
Comparison = Literal["pairwise", "to mean", "to mean of others"]
Metric = Literal["mse", "cosine", "r"]
COMPARISONS: tuple[Comparison, ...] = ("pairwise", "to mean", "to mean of others")
METRICS: tuple[Metric, ...] = ("mse", "cosine", "r")
NUM_POINTS = 256  # of a density
Bounds = tuple[float | None, float | None]

WIDTH, DPI = 8.0, 160  # inches, dots per inch: 1280 pixels
INK, PALE = "#222222", "#8a8a8a"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe & Ito: for colour-blind eyes
LINE = 0.16  # inches, of a legend
MAX_NAMED = 12  # repeats in a legend
MAX_LINES = 5  # up to so many repeats have a colour of their own, more are on a scale


# ---------------------------------------------------------------------------------------------------- captions


# S sources, P points of the grid
class CaptionDensity(NamedTuple):
    """How the scores of captions are distributed, for each source of captions.

    overlap: the area that two densities share, 1 for the same. label: what was scored.
    """

    label: str
    sources: tuple[str, ...]
    num_captions: Int[np.ndarray, "s"]
    mean: Float[np.ndarray, "s"]
    std: Float[np.ndarray, "s"]
    grid: Float[np.ndarray, "p"]
    densities: Float[np.ndarray, "s p"]
    overlap: Float[np.ndarray, "s s"]

    def figures(self) -> dict[str, Any]:
        """Everything in the picture, as JSON can hold it."""
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in _fields(self)}


def caption_density(
    scores: Mapping[str, Float[np.ndarray, "_"]], *, label: str = "CLIP-S", bounds: Bounds = (0.0, None)
) -> CaptionDensity:
    """The density of caption-image scores for each source: mean, n, and overlap of every two.

    scores: source -> one score per caption; sources need not have the same number. label: what was scored, with its
    unit. bounds: the least and the largest possible score, None for no bound.
    Raises UserError with fewer than two sources, or for scores that are not finite, out of bounds, or all the same.
    """
    if len(scores) < 2:
        raise UserError(
            f"caption scores: expected at least 2 sources to compare, got {len(scores)} ({listed(scores)}). "
            "Give the scores of another source of captions."
        )
    for source, values in scores.items():
        if len(values) < 2 or not np.isfinite(values).all() or values.min() == values.max():
            distinct = len(np.unique(values[np.isfinite(values)]))
            raise UserError(
                f"caption scores of '{source}': expected at least 2 different finite numbers, got {distinct} different "
                f"ones among {len(values)}. Was the score computed for these captions?"
            )
        low, high = bounds
        if (low is not None and values.min() < low) or (high is not None and values.max() > high):
            raise UserError(
                f"caption scores of '{source}': expected values of {label} within its bounds {low} and {high}, got "
                f"{values.min():.3g} to {values.max():.3g}. Is it another score? Give its own bounds."
            )
    samples = [np.asarray(each, np.float64) for each in scores.values()]
    grid = _grid(samples, bounds)
    densities = np.stack([_density(each, grid, bounds) for each in samples])
    shared = np.minimum(densities[:, None], densities[None])
    return CaptionDensity(
        label,
        tuple(scores),
        np.array([len(each) for each in samples]),
        np.array([each.mean() for each in samples]),
        np.array([each.std(ddof=1) for each in samples]),
        grid,
        densities,
        trapezoid(shared, grid, axis=2),
    )


class Agreement(NamedTuple):
    """How well each caption agrees with what others said of the stimulus. num_left_out: stimuli with one caption."""

    stimulus_ids: tuple[str, ...]
    scores: dict[str, Float[np.ndarray, "n"]]
    num_left_out: int


def caption_agreement(
    references: Mapping[str, Sequence[str]], sources: Mapping[str, Mapping[str, str]] | None = None
) -> Agreement:
    """A score of captions without any network: content-word F1 with the stimulus's references but the first.

    references: stimulus id -> captions by people. sources: name -> {stimulus id: caption}. The first reference is a
    source of its own, FIRST_REFERENCE, and is held out for all others too, so that all have the same to agree with.
    It says nothing about the picture: name it AGREEMENT, and prefer a caption-image score where there is one.
    Raises UserError if no stimulus has two references, or a source lacks a stimulus.
    """
    ids = tuple(stimulus for stimulus, captions in references.items() if len(captions) > 1)
    if not ids:
        raise UserError(
            f"captions: expected stimuli with at least 2 references, got {len(references)} stimuli with fewer. "
            "What nobody else described cannot be agreed with: score captions with CLIP-S instead."
        )
    given: dict[str, Mapping[str, str]] = {FIRST_REFERENCE: {stimulus: references[stimulus][0] for stimulus in ids}}
    for source, captions in {**given, **(sources or {})}.items():
        missing = [stimulus for stimulus in ids if stimulus not in captions]
        if missing:
            raise UserError(
                f"captions of '{source}': expected one for each of the {len(ids)} stimuli, got none for "
                f"{len(missing)} of them ({listed(missing, 3)}). Do they belong to other stimuli?"
            )
        given[source] = captions
    scores = {
        source: np.array([content_f1_scores([references[s][1:]], [captions[s]])[0, 0] for s in ids])
        for source, captions in given.items()
    }
    return Agreement(ids, scores, len(references) - len(ids))


def draw_caption_density(found: CaptionDensity) -> bytes:
    """A PNG: one density per source with its mean, and how much every two overlap."""
    num = len(found.sources)
    figure = _figure(3.6 + LINE * num)
    axes, table = figure.subplots(1, 2, width_ratios=(2.6, 1))
    colours = COLOURS if num <= len(COLOURS) else _scale_of_colours(num)
    for number, source in enumerate(found.sources):
        colour = colours[number]
        label = f"{source}: mean {found.mean[number]:.3f}, n = {found.num_captions[number]:,}"
        _draw_density(axes, found.grid, found.densities[number], colour, label)
        axes.axvline(found.mean[number], color=colour, lw=1.1, ls=(0, (4, 2)))
    _finish(axes, found.label, "density")
    _legend(axes)
    table.imshow(found.overlap, cmap="Greys", vmin=0, vmax=2)
    for i in range(num):
        for j in range(num):
            share = f"{found.overlap[i, j]:.2f}".removeprefix("0") if i != j else "1"
            table.text(j, i, share, ha="center", va="center", fontsize=8 if num <= 5 else 6.5, color=INK)
    names = [source if len(source) <= 18 else source[:17] + "…" for source in found.sources]
    table.set_xticks(range(num), names, rotation=35, ha="right", rotation_mode="anchor")
    table.set_yticks(range(num), names)
    table.yaxis.tick_right()
    table.tick_params(length=0, labelsize=8, colors=INK)
    table.spines[:].set_visible(False)
    table.set_title("overlap of densities", fontsize=8, color=INK)
    what = found.label if found.label == AGREEMENT else f"{found.label} of captions and their pictures"
    return _png(figure, f"{what}: {num} sources, n = {found.num_captions.sum():,} captions (dashed: mean)")


# ---------------------------------------------------------------------------------------------------- one stimulus


# R repeats, V sites, P points of the grid, Q pairs of repeats
class RepeatDistribution(NamedTuple):
    """The responses of all sites to each repeat of one stimulus, and how repeats differ.

    repeats: what to call them. pairs: which two are compared; difference: the second less the first, per site.
    r: Pearson's r across sites of the two.
    """

    subject: str
    stimulus_id: str
    split: str
    unit: str
    repeats: tuple[str, ...]
    responses: Float[np.ndarray, "r v"]
    grid: Float[np.ndarray, "p"]
    densities: Float[np.ndarray, "r p"]
    pairs: Int[np.ndarray, "q 2"]
    difference_grid: Float[np.ndarray, "p"]
    difference_densities: Float[np.ndarray, "q p"]
    r: Float[np.ndarray, "q"]

    def figures(self) -> dict[str, Any]:
        """Everything in the picture, as JSON can hold it; of the responses and differences mean and deviation."""
        difference = self.responses[self.pairs[:, 1]] - self.responses[self.pairs[:, 0]]
        kept = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in _fields(self)
            if name != "responses"
        }
        return kept | {
            "num_sites": self.responses.shape[1],
            "mean": self.responses.mean(axis=1).tolist(),
            "std": self.responses.std(axis=1).tolist(),
            "difference_mean": difference.mean(axis=1).tolist(),
            "difference_std": difference.std(axis=1).tolist(),
        }


def repeat_distribution(dataset: Dataset, subject: str, stimulus_id: str | None = None) -> RepeatDistribution:
    """How the responses of all sites are distributed in each repeat of one stimulus.

    stimulus_id: default: the one with most repeats, the first by id among equals. Responses are as the dataset has
    them (z-scored, if it is).
    Raises UserError for a stimulus that the subject did not see, or saw once, and for responses that do not vary over
    sites.
    """
    trials = dataset.trials(subject)
    rows_of = _rows_of(trials.stimulus_id, np.arange(len(trials.split)))
    if stimulus_id is None:
        stimulus_id = min(rows_of, key=lambda name: (-len(rows_of[name]), name))
        if len(rows_of[stimulus_id]) < 2:
            raise UserError(
                f"{dataset.path}: expected a stimulus that {subject} saw at least twice, got none among "
                f"{len(rows_of)}. Were responses averaged over repeats? Prepare the single trials."
            )
    if stimulus_id not in rows_of:
        raise UserError(
            f"{dataset.path}: expected one of the {len(rows_of)} stimuli that {subject} saw "
            f"({listed(sorted(rows_of), 3)}), got '{stimulus_id}'. Did another subject see it?"
        )
    rows = np.array(sorted(rows_of[stimulus_id], key=lambda row: (int(trials.repeat[row]), row)))
    if len(rows) < 2:
        raise UserError(
            f"stimulus '{stimulus_id}': expected at least 2 repeats in {subject}, got 1. "
            "Leave the stimulus out, and the one with most repeats is taken."
        )
    responses = dataset.responses(subject, rows).astype(np.float64)
    if responses.shape[1] < 2 or (np.ptp(responses, axis=1) == 0).any():
        raise UserError(
            f"stimulus '{stimulus_id}': expected responses that vary over at least 2 sites of {subject}, got "
            f"{responses.shape[1]} sites, or one number for all. Choose another stimulus or subject."
        )
    pairs = np.array(list(combinations(range(len(rows)), 2)))
    differences = responses[pairs[:, 1]] - responses[pairs[:, 0]]
    grid, difference_grid = _grid(responses, (None, None)), _grid(differences, (None, None))
    units = unit(responses, axis=1)
    many = len(set(trials.session[rows].tolist())) > 1
    names = [f"repeat {number + 1}" for number in range(len(rows))]
    return RepeatDistribution(
        subject,
        stimulus_id,
        trials.split[rows[0]],
        _unit(dataset),
        tuple(
            f"{name} (session {trials.session[row]})" if many else name for name, row in zip(names, rows, strict=True)
        ),
        responses,
        grid,
        np.stack([_density(values, grid, (None, None)) for values in responses]),
        pairs,
        difference_grid,
        np.stack([_density(values, difference_grid, (None, None)) for values in differences]),
        (units[pairs[:, 0]] * units[pairs[:, 1]]).sum(axis=1),
    )


def draw_repeat_distribution(found: RepeatDistribution) -> bytes:
    """A PNG: histogram and density of the responses to each repeat; densities of the differences between repeats."""
    num, num_sites = found.responses.shape
    colours = COLOURS[:num] if num <= MAX_LINES else _scale_of_colours(num)
    step = -(-num // MAX_NAMED)  # of more repeats than fit, some are named
    columns = 2 if num > MAX_LINES and "session" not in found.repeats[0] else 1
    figure = _figure(3.8 + LINE * -(-num // step // columns))
    axes, differences = figure.subplots(1, 2)
    bins = np.histogram_bin_edges(found.responses.ravel(), bins=min(40, max(8, num_sites // 8)))
    for number, (name, colour) in enumerate(zip(found.repeats, colours, strict=True)):
        values = found.responses[number]
        label = f"{name}: {values.mean():.2f} ± {values.std():.2f}" if number % step == 0 else None
        if num <= MAX_LINES:
            axes.hist(values, bins=bins, density=True, color=colour, alpha=0.13)
        axes.plot(found.grid, found.densities[number], color=colour, lw=1.4, label=label)
    axes.set_ylim(bottom=0)
    _finish(axes, found.unit, "density over sites")
    _legend(axes, columns=columns, title="mean ± standard deviation over sites")
    own = len(found.pairs) <= 3
    for number, (first, second) in enumerate(found.pairs):
        density, r = found.difference_densities[number], found.r[number]
        colour = COLOURS[-1 - number] if own else PALE
        label = f"repeat {second + 1} - repeat {first + 1}: r = {r:.2f}" if own else None
        differences.plot(found.difference_grid, density, color=colour, lw=1.4 if own else 0.6, label=label)
    if not own:
        mean = found.difference_densities.mean(axis=0)
        label = f"mean of {len(found.pairs)} pairs of repeats: r = {found.r.mean():.2f}"
        differences.plot(found.difference_grid, mean, color=INK, lw=1.8, label=label)
    differences.axvline(0, color=PALE, lw=0.8, ls=":")
    differences.set_ylim(bottom=0)
    _finish(differences, f"difference of {found.unit}", "")
    _legend(differences, title="r: correlation of the two over sites")
    return _png(
        figure,
        f"{num} repeats of '{found.stimulus_id}' ({found.split}), {found.subject}, n = {num_sites:,} sites",
    )


# ---------------------------------------------------------------------------------------------------- all stimuli


# N stimuli
class Consistency(NamedTuple):
    """How alike the responses to repeats of one stimulus are, across sites; one number for each stimulus.

    values: (comparison, metric) -> mean over the stimulus's pairs. floor: the same with repeats of another stimulus;
    NaN with a single stimulus. num_single: stimuli that were shown once and are left out. num_pairs: of repeats.
    """

    subject: str
    split: str
    unit: str
    stimulus_ids: tuple[str, ...]
    num_repeats: Int[np.ndarray, "n"]
    num_single: int
    num_pairs: int
    num_sites: int
    seed: int
    values: dict[tuple[str, str], Float[np.ndarray, "n"]]
    floor: dict[tuple[str, str], Float[np.ndarray, "n"]]

    def figures(self) -> dict[str, Any]:
        """Means, deviations and floors, and the value of each stimulus, as JSON can hold them."""
        summary: dict[str, Any] = {}
        for (comparison, metric), values in self.values.items():
            floor = self.floor[comparison, metric]
            known = np.isfinite(floor).all() and len(floor) > 0
            summary.setdefault(comparison, {})[metric] = {
                "mean": float(values.mean()) if len(values) else None,
                "std": float(values.std()) if len(values) else None,
                "floor": float(floor.mean()) if known else None,
                "stimuli": [float(f"{value:.6g}") for value in values],
            }
        return {
            "subject": self.subject,
            "split": self.split,
            "unit": self.unit,
            "num_stimuli": len(self.stimulus_ids),
            "num_single": self.num_single,
            "num_pairs": self.num_pairs,
            "num_sites": self.num_sites,
            "seed": self.seed,
            "stimulus_ids": list(self.stimulus_ids),
            "num_repeats": self.num_repeats.tolist(),
            "consistency": summary,
        }


def voxel_consistency(dataset: Dataset, subject: str, split: str, *, seed: int = 0) -> Consistency:
    """MSE, cosine and Pearson's r across sites between the responses to repeats of the same stimulus.

    pairwise: every two repeats. to mean: each repeat and the mean of all, itself included (as published). to mean of
    others: each repeat and the mean of the rest. Floor: the same number of comparisons, with the repeats of another
    stimulus of the split, drawn with `seed`. Responses are as the dataset has them; an r or cosine of a constant
    response is 0. A split in which nothing was repeated yields no stimuli, and is no error.
    Raises UserError for an unknown subject or split.
    """
    if split not in SPLITS:
        raise UserError(
            f"split: expected one of {', '.join(SPLITS)}, got '{split}'. Give the split whose repeats are compared."
        )
    trials = dataset.trials(subject)
    rows_of = _rows_of(trials.stimulus_id, trials.rows(split))
    repeated = {name: rows for name, rows in sorted(rows_of.items()) if len(rows) > 1}
    ids, rows = tuple(repeated), [np.array(rows) for rows in repeated.values()]
    order = np.random.default_rng(seed).permutation(len(ids))
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)  # a cycle: nobody is their own partner
    values = np.zeros((len(ids), len(COMPARISONS), len(METRICS)))
    floor = np.full_like(values, np.nan)
    for number in range(len(ids)):
        mine = dataset.responses(subject, rows[number]).astype(np.float64)
        values[number] = _compared(mine, mine)
        if len(ids) > 1:
            theirs = dataset.responses(subject, rows[other[number]]).astype(np.float64)
            floor[number] = _compared(mine, theirs)
    counts = np.array([len(each) for each in rows], np.int64)
    keys = [(c, m, comparison, metric) for c, comparison in enumerate(COMPARISONS) for m, metric in enumerate(METRICS)]
    return Consistency(
        subject,
        split,
        _unit(dataset),
        ids,
        counts,
        len(rows_of) - len(ids),
        int((counts * (counts - 1) // 2).sum()),
        dataset.space(subject).num_sites,
        seed,
        {(comparison, metric): values[:, c, m] for c, m, comparison, metric in keys},
        {(comparison, metric): floor[:, c, m] for c, m, comparison, metric in keys},
    )


def _compared(mine: Float[np.ndarray, "r v"], theirs: Float[np.ndarray, "q v"]) -> Float[np.ndarray, "c m"]:
    """Each comparison by each metric, mean over pairs. A floor has another's repeats in `theirs`, used in rotation."""
    num, num_theirs = len(mine), len(theirs)
    first, second = np.triu_indices(num, k=1)
    same = np.arange(num) % num_theirs
    rest = (theirs.sum(axis=0) - theirs[same]) / (num_theirs - 1)
    pairs = (
        (mine[first], theirs[second % num_theirs]),
        (mine, np.broadcast_to(theirs.mean(axis=0), mine.shape)),
        (mine, rest),
    )
    return np.array([_alike(one, two).mean(axis=0) for one, two in pairs])


def _alike(one: Float[np.ndarray, "q v"], two: Float[np.ndarray, "q v"]) -> Float[np.ndarray, "q 3"]:
    """MSE, cosine and Pearson's r of each row with its row; the latter are 0 where they are not defined."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    dot = (one * two).sum(axis=1)
    cosine = np.divide(dot, lengths, out=np.zeros(len(one)), where=lengths > 0)
    return np.stack([((one - two) ** 2).mean(axis=1), cosine, (unit(one, 1) * unit(two, 1)).sum(axis=1)], axis=1)


def draw_voxel_consistency(found: Sequence[Consistency]) -> bytes:
    """A PNG: a row for each split (or subject), a column for each metric, a density for each comparison and its floor.

    Raises UserError if nothing was repeated in any of them.
    """
    if not any(len(each.stimulus_ids) for each in found):
        raise UserError(
            f"consistency of {listed([f'{each.subject} {each.split}' for each in found], 4)}: expected a stimulus that "
            "was shown at least twice, got none. Were responses averaged over repeats? Prepare the single trials."
        )
    figure = _figure(0.4 + 3.3 * len(found))
    rows = figure.subplots(len(found), len(METRICS), squeeze=False, sharex="col")
    names: dict[str, tuple[str, Bounds]] = {
        "mse": ("MSE of {}", (0.0, None)),
        "cosine": ("cosine of {}", (-1.0, 1.0)),
        "r": ("Pearson's r of {}", (-1.0, 1.0)),
    }
    for each, row in zip(found, rows, strict=True):
        num = len(each.stimulus_ids)
        for axes, metric in zip(row, METRICS, strict=True):
            label, bounds = names[metric]
            unit_of = each.unit.replace("(z)", "(z²)") if metric == "mse" else each.unit
            if num:
                _draw_consistency(axes, each, metric, bounds)
            else:
                axes.text(0.5, 0.5, "no stimulus was\nshown twice", ha="center", va="center", fontsize=9, color=PALE,
                          transform=axes.transAxes)  # fmt: skip
            axes.set_yticks([])
            _finish(axes, label.format(unit_of), "density over stimuli" if metric == METRICS[0] else "")
            if num:
                _legend(axes, below=True, title="mean (floor)")
        left_out = f", {each.num_single:,} shown once left out" if each.num_single else ""
        title = f"{each.subject}, {each.split}: n = {num:,} stimuli, {each.num_pairs:,} pairs of repeats"
        row[0].set_title(f"{title}, {each.num_sites:,} sites{left_out}", fontsize=8.5, color=INK, loc="left", pad=6)
    return _png(
        figure, "Repeats of one stimulus compared across sites (dashed: mean; dotted: floor, different stimuli)"
    )


def _draw_consistency(axes: "Axes", found: Consistency, metric: str, bounds: Bounds) -> None:
    values = [found.values[comparison, metric] for comparison in COMPARISONS]
    floors = [found.floor[comparison, metric] for comparison in COMPARISONS]
    known = [each for each in (*values, *floors) if np.isfinite(each).all()]
    grid = _grid(known, bounds)
    for comparison, colour, value, floor in zip(COMPARISONS, COLOURS[:3], values, floors, strict=True):
        has_floor = bool(np.isfinite(floor).all())
        label = f"{comparison} {value.mean():.3f}" + (f" ({floor.mean():.3f})" if has_floor else "")
        _draw_density(axes, grid, _density(value, grid, bounds), colour, label)
        axes.axvline(value.mean(), color=colour, lw=1.1, ls=(0, (4, 2)))
        if has_floor:
            axes.plot(grid, _density(floor, grid, bounds), color=colour, lw=1.2, ls=(0, (1, 1.3)))


# ---------------------------------------------------------------------------------------------------- shared


def _fields(found: CaptionDensity | RepeatDistribution) -> list[tuple[str, Any]]:
    return [(name, list(value) if isinstance(value, tuple) else value) for name, value in found._asdict().items()]


def _rows_of(stimulus_id: Sequence[str], rows: Int[np.ndarray, "n"]) -> dict[str, list[int]]:
    """The trials of each stimulus, in order."""
    found: dict[str, list[int]] = {}
    for row in rows.tolist():
        found.setdefault(stimulus_id[row], []).append(row)
    return found


def _unit(dataset: Dataset) -> str:
    return "response" if dataset.manifest.get("zscore", "none") == "none" else "response (z)"


def _grid(values: Sequence[np.ndarray] | np.ndarray, bounds: Bounds) -> Float[np.ndarray, "p"]:
    """Points from the least to the largest value and three bandwidths (Scott 1992) further, within bounds."""
    low, high = min(float(each.min()) for each in values), max(float(each.max()) for each in values)
    margin = max(3 * float(each.std()) * len(each) ** -0.2 for each in values) or 0.5
    low, high = low - margin, high + margin
    low = low if bounds[0] is None else max(low, bounds[0])
    high = high if bounds[1] is None else min(high, bounds[1])
    return np.linspace(low, high, NUM_POINTS)


def _density(values: Float[np.ndarray, "n"], grid: Float[np.ndarray, "p"], bounds: Bounds) -> Float[np.ndarray, "p"]:
    """The kernel density of values at the grid, nothing of it beyond the bounds; zeros if all are the same."""
    if len(values) < 2 or np.ptp(values) <= 1e-9 * np.abs(values).max():
        return np.zeros_like(grid)
    kernel = gaussian_kde(values)
    density = kernel(grid)
    for bound in bounds:
        if bound is not None:
            density = density + kernel(2 * bound - grid)
    return density


def _figure(height_inches: float) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # legends beside the axes count, and the picture keeps its width; pads are in inches
    return Figure((WIDTH, height_inches), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.06))


def _scale_of_colours(num: int) -> list[Any]:
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 0.92, num)))


def _draw_density(axes: "Axes", grid: np.ndarray, density: np.ndarray, colour: Any, label: str) -> None:
    axes.fill_between(grid, density, color=colour, alpha=0.13, lw=0)
    axes.plot(grid, density, color=colour, lw=1.6, label=label)


def _finish(axes: "Axes", across: str, up: str) -> None:
    axes.set_xlabel(across, fontsize=8.5, color=INK)
    axes.set_ylabel(up, fontsize=8.5, color=INK)
    axes.tick_params(labelsize=7.5, colors=INK, length=2.5, labelbottom=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.set_ylim(bottom=0)
    axes.margins(x=0)


def _legend(axes: "Axes", *, below: bool = False, columns: int = 1, title: str | None = None) -> None:
    """A legend that hides no line: above or below the axes."""
    where: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.02)}
    if below:
        where = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.27)}
    legend = axes.legend(
        fontsize=7.5, title=title, title_fontsize=7.5, frameon=False, ncols=columns, labelcolor=INK, handlelength=1.4,
        borderaxespad=0, alignment="left", **where,
    )  # fmt: skip
    legend.get_title().set_color(PALE)


def _png(figure: "Figure", title: str) -> bytes:
    figure.suptitle(title, fontsize=10.5, color=INK, weight="bold", x=0.015, ha="left")
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white")
    return file.getvalue()
