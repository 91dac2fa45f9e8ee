"""From a reference and predictions to figures: every metric of one target, with what its shuffles and resamples earn.

Enters: a Reference, predictions in its order, and how stimuli are drawn. Leaves: (roi, metric) -> Figure. Metrics that
are cheap are score matrices (see `evaluate.brain`): the mean of the matrix is exactly what shuffled predictions earn on
average. Those that are not (SSIM, corpus scores of captions) are computed for a few shuffles.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from brainjanus.core.errors import UserError
from brainjanus.evaluate.backbones import BACKBONES
from brainjanus.evaluate.backbones import features as embed
from brainjanus.evaluate.baselines import TEXT_FEATURES, linear_encoder
from brainjanus.evaluate.brain import (
    all_pattern_scores,
    ceiling_weights,
    identification_ranks,
    pattern_scores,
    r2_scores,
    resampled,
    voxel_scores,
)
from brainjanus.evaluate.captions import CAPTION_METRICS
from brainjanus.evaluate.extras import Extras, available_networks, caption_scorer, seen_features
from brainjanus.evaluate.image import (
    feature_distance_scores,
    feature_two_way,
    pixcorr_scores,
    retrieval,
    retrieval_scores,
    ssim_pairs,
    two_way_scores,
)
from brainjanus.evaluate.metrics import ADDED, FEATURES, RETRIEVAL, AddedMetric, metric_of
from brainjanus.evaluate.reference import Reference
from brainjanus.evaluate.text import content_f1_scores, cosine_scores, human_content_f1, word_vectors
from brainjanus.evaluate.topography import (
    Agreement,
    Spins,
    caption_groups,
    resampled_agreement,
    selectivity_agreement,
    spatial_autocorrelation,
    spins,
)

NUM_SPINS = 1000
NUM_FEW = 3  # shuffles for the floor of metrics that have no score matrix


class Draws(NamedTuple):
    """Shuffles of predictions and resamples of stimuli, the same for all figures of a seed.

    counts: how often each resample holds each stimulus. few: the shuffles for metrics without a score matrix.
    """

    shuffles: Int[np.ndarray, "p n"]
    counts: Int[np.ndarray, "b n"]
    few: Int[np.ndarray, "k n"]
    seed: int

    @classmethod
    def of(
        cls, ids: Sequence[str], seed: int, permutations: int, resamples: int, among: Sequence[str] | None = None
    ) -> "Draws":
        """among: the stimuli that resamples are drawn from, of which `ids` are a part.

        With the stimuli of all subjects, a resample holds a stimulus equally often for each subject who saw it, as an
        interval of a mean over subjects needs. A resample without any of `ids` holds each once.
        """
        shuffles, few = (  # each from a generator of its own: their numbers do not matter to the others
            np.random.default_rng([seed, number]).permuted(np.tile(np.arange(len(ids)), (times, 1)), axis=1)
            for number, times in enumerate((permutations, NUM_FEW))
        )
        every = sorted(ids if among is None else among)
        column = {stimulus: place for place, stimulus in enumerate(every)}
        drawn = np.random.default_rng(seed).multinomial(len(every), np.full(len(every), 1 / len(every)), size=resamples)
        counts = drawn[:, [column[stimulus] for stimulus in ids]]
        counts[counts.sum(axis=1) == 0] = 1
        return cls(shuffles, counts, few, seed)

    def means(self, samples: Float[np.ndarray, "n"]) -> Float[np.ndarray, "b"]:
        """The mean of one value per stimulus in each resample."""
        return self.counts @ samples / self.counts.sum(axis=1)


class Figure(NamedTuple):
    """One metric: its value, the mean over shuffles (floor), the best that is possible (ceiling), the value in each
    shuffle (null) and in each resample of the stimuli. definition: where it depends on what is installed."""

    value: float
    floor: float | None = None
    ceiling: float | None = None
    null: Float[np.ndarray, "p"] | None = None
    resampled: Float[np.ndarray, "b"] | None = None
    definition: str | None = None
    p: float | None = None  # where it is not that of `null`


Figures = dict[tuple[str | None, str], Figure]


class Measured(NamedTuple):
    """figures: (roi, metric) -> Figure. skipped: metric -> why it was not computed, and what to do.

    order: the score matrix by which it is seen whether predictions stand in the order of their stimuli.
    """

    figures: Figures
    skipped: Mapping[str, str]
    order: Float[np.ndarray, "n n"]


def p_value(value: float, null: Float[np.ndarray, "p"], *, lower: bool) -> float | None:
    """Share of shuffles that do as well, the shuffle that was scored among them; None without shuffles."""
    if not len(null):
        return None
    better = -1 if lower else 1
    reached = better * null >= better * value - 1e-9  # the identity, met by chance, counts
    return float((1 + reached.sum()) / (1 + len(null)))


def from_matrix(
    scores: Float[np.ndarray, "n n"],
    draws: Draws | None,
    ceiling: float | None = None,
    drawn_again: Float[np.ndarray, "b"] | None = None,
    definition: str | None = None,
) -> Figure:
    """drawn_again: the resampled values, where they are not means of the diagonal."""
    diagonal = scores.diagonal()
    value = float(diagonal.mean())
    if draws is None:
        return Figure(value, ceiling=ceiling, definition=definition)
    null = scores[np.arange(len(scores)), draws.shuffles].mean(axis=1)
    again = draws.means(diagonal) if drawn_again is None else drawn_again
    return Figure(value, round(float(scores.mean()), 12), ceiling, null, again, definition)


# ------------------------------------------------------------------------------------------------------- responses


def brain_figures(
    reference: Reference, predicted: Float[np.ndarray, "n v"], draws: Draws | None = None, extras: Extras | None = None
) -> Measured:
    """Metrics of predicted responses, for all sites and each ROI."""
    measured = reference.responses
    assert measured is not None
    rois: list[tuple[str | None, np.ndarray]] = [(None, np.ones(measured.shape[1], bool))]
    if reference.space is not None:
        rois += [(name, mask) for name, mask in reference.space.rois.items() if mask.any()]
    ceiling, noise = reference.ceiling(), reference.noise()
    again = None if draws is None else resampled(measured, predicted, draws.counts, dict(rois), ceiling)
    figures: Figures = {}
    for roi, sites in rois:
        pair = measured[:, sites], predicted[:, sites]
        best = None if ceiling is None else ceiling[sites]
        one = None if again is None else again[roi]
        figures[roi, "voxel_r"] = from_matrix(
            voxel_scores(*pair),
            draws,
            None if best is None else float(best.mean()),
            None if one is None else one.voxel_r,
        )
        weights = None if best is None else ceiling_weights(best)
        if weights is not None:
            normalised = None if one is None else one.normalised_r
            figures[roi, "voxel_r_normalised"] = from_matrix(voxel_scores(*pair, weights), draws, 1.0, normalised)
        explained = None if best is None else float(np.square(best).mean())
        figures[roi, "r2"] = from_matrix(r2_scores(*pair), draws, explained, None if one is None else one.r2)
        patterns = all_pattern_scores(*pair)
        figures[roi, "mse"] = from_matrix(patterns.mse, draws, None if noise is None else float(noise[sites].mean()))
        if sites.sum() > 1:
            ranks = identification_ranks(patterns.r)
            figures[roi, "pattern_r"] = from_matrix(patterns.r, draws)
            figures[roi, "cosine"] = from_matrix(patterns.cosine, draws)
            figures[roi, "identification_top1"] = from_matrix((ranks == 1).astype(np.float64), draws)
            figures[roi, "identification_rank"] = from_matrix(ranks.astype(np.float64), draws)
        if any(added.target == "brain" for added in ADDED.entries.values()):
            figures |= added_figures("brain", *pair, draws, reference.of_sites(sites), roi)
    skipped = {}
    if reference.space is not None:
        figures |= _topography(reference, predicted, draws)
        if (None, "selectivity_r") not in figures:
            skipped["selectivity_r"] = (
                "Selectivity maps are not scored: they need captions with content words that stand in 5 to 50 % of the "
                "scored stimuli and in 8 or more; score more stimuli, or prepare the dataset with captions."
            )
    return Measured(figures, skipped, pattern_scores(measured, predicted))


# (dataset, subject, seed) -> rotations of the cortex: seconds to draw, the same for all predictions
_rotations: dict[tuple[str, str, int], Spins] = {}


def _topography(reference: Reference, predicted: Float[np.ndarray, "n v"], draws: Draws | None) -> Figures:
    """Whether the predicted maps are as smooth as the measured ones, and whether categories lie where they should."""
    space, measured, dataset = reference.space, reference.responses, reference.dataset
    assert space is not None and measured is not None
    figures: Figures = {}
    own, true = (spatial_autocorrelation(space, maps) for maps in (predicted, measured))
    if own is not None and true is not None:
        again = None if draws is None else draws.means(own)
        figures[None, "autocorrelation"] = Figure(float(own.mean()), resampled=again)
        if draws is not None:  # the same for every prediction: it stands beside
            figures[None, "autocorrelation_measured"] = Figure(float(true.mean()), resampled=draws.means(true))
    groups = {} if dataset is None else caption_groups([dataset.captions(stimulus) for stimulus in reference.ids])
    if not groups:
        return figures
    none, rng = Spins(None, ""), np.random.default_rng(0)

    def agreement(values: Float[np.ndarray, "n v"], rotations: Spins) -> Agreement:
        return selectivity_agreement(space, measured, values, groups, rng, rotations=rotations)

    if draws is None:
        figures[None, "selectivity_r"] = Figure(agreement(predicted, none).mean_r or 0.0)
        return figures
    key = reference.fingerprint, reference.subject, draws.seed
    if key not in _rotations:
        _rotations[key] = spins(space, NUM_SPINS, np.random.default_rng(draws.seed))
    found = agreement(predicted, _rotations[key])
    floor = np.mean([agreement(predicted[order], none).mean_r for order in draws.few])
    definition = f"{metric_of('selectivity_r').definition}: {', '.join(groups)}"
    again = resampled_agreement(measured, predicted, groups, draws.counts)
    figures[None, "selectivity_r"] = Figure(
        found.mean_r or 0.0, float(floor), None, None, again, definition, found.joint_p
    )
    return figures


# -------------------------------------------------------------------------------------------------------- pictures


def image_figures(
    reference: Reference,
    decoded: Shaped[np.ndarray, "n h w 3"],
    draws: Draws | None = None,
    extras: Extras | None = None,
) -> Measured:
    """Metrics of decoded pictures: on pixels, in networks, in supplied features, through a linear encoder."""
    assert reference.pictures is not None
    extras = extras or Extras()
    seen = reference.pictures
    similarity = pixcorr_scores(seen, decoded)
    figures: Figures = {
        (None, "two_way"): from_matrix(two_way_scores(similarity), draws),
        (None, "pixcorr"): from_matrix(similarity, draws),
    }
    orders = np.arange(len(decoded))[None]
    own, *shuffled = ssim_pairs(seen, decoded, orders if draws is None else np.concatenate([orders, draws.few]))
    figures[None, "ssim"] = Figure(float(own.mean()))
    if draws is not None:
        figures[None, "ssim"] = Figure(float(own.mean()), float(np.mean(shuffled)), resampled=draws.means(own))
    owner = np.repeat(np.arange(len(seen)), [len(group) for group in seen])
    networks = available_networks(extras.weights)
    for name, network in networks.backbones.items():
        shown, found = seen_features(network, reference), embed(network, decoded)
        compare = feature_two_way if BACKBONES[name].score == "two_way" else feature_distance_scores
        scores = compare(shown, found, owner)
        figures[None, name] = from_matrix(scores, draws, definition=network.definition)
        if name == "clip" and len(owner) == len(seen):  # one picture each: what is retrieved is a picture
            figures |= retrieval_figures(name, (shown, found), draws, network.definition)
    for name, features in extras.features.items():
        shown, found = (np.asarray(f, np.float32).reshape(len(f), -1) for f in (extras.seen_features[name], features))
        digest = hashlib.sha256(shown.tobytes()).hexdigest()[:12]
        told = f"features '{name}' as supplied, {shown.shape[1]} dimensions, of the seen pictures sha256 {digest}"
        definition = f"two-way identification by r; {told}"
        figures[None, f"{FEATURES}{name}"] = from_matrix(feature_two_way(shown, found), draws, definition=definition)
        figures |= retrieval_figures(name, (shown, found), draws, told)
    if reference.dataset is not None and reference.space is not None and reference.responses is not None:
        figures |= _through_an_encoder(reference, decoded, draws)
    figures |= added_figures("image", seen, decoded, draws, reference)
    return Measured(figures, networks.skipped, similarity)


def retrieval_figures(
    name: str, features: tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]], draws: Draws | None, told: str
) -> Figures:
    """Top-1 retrieval in a feature space, named by query -> gallery. features: of the seen and the decoded pictures.

    The value is the mean of some draws of candidates, as the field has it; its interval and its null are those of the
    expectation over all draws, moved to the value.
    """
    figures: Figures = {}
    seed = 0 if draws is None else draws.seed
    seen, decoded = features
    for way, query, gallery in (("decoded->seen", decoded, seen), ("seen->decoded", seen, decoded)):
        found = retrieval(query, gallery, np.random.default_rng(seed))
        exact = from_matrix(retrieval_scores(query, gallery, found.candidates), draws)
        moved = None if exact.null is None else exact.null + (found.value - exact.value)
        p = None if exact.null is None else p_value(exact.value, exact.null, lower=False)
        definition = f"top-1 by cosine among {found.candidates} candidates, mean of {len(found.draws)} draws; {told}"
        figures[None, f"{RETRIEVAL}{name} {way}"] = Figure(
            found.value, found.chance, None, moved, exact.resampled, definition, p
        )
    return figures


def _through_an_encoder(reference: Reference, decoded: Shaped[np.ndarray, "n h w 3"], draws: Draws | None) -> Figures:
    """Brain correlation: measured responses and those that a linear encoder predicts from the decoded pictures."""
    dataset, space, measured = reference.dataset, reference.space, reference.responses
    assert dataset is not None and space is not None and measured is not None and reference.pictures is not None
    from_decoded = linear_encoder(dataset, reference.subject, decoded)
    from_seen = linear_encoder(
        dataset, reference.subject, np.stack([group.mean(axis=0) for group in reference.pictures])
    )
    figures: Figures = {}
    for roi, sites in [(None, np.ones(space.num_sites, bool)), *space.rois.items()]:
        if sites.sum() > 1:
            ceiling = float(pattern_scores(measured[:, sites], from_seen[:, sites]).diagonal().mean())
            scores = pattern_scores(measured[:, sites], from_decoded[:, sites])
            figures[roi, "brain_correlation"] = from_matrix(scores, draws, ceiling)
    return figures


# -------------------------------------------------------------------------------------------------------- captions


def word_figures(reference: Reference, decoded: Sequence[str], draws: Draws | None = None) -> Figures:
    """Metrics for which a caption is a set of words."""
    assert reference.captions is not None
    references, dataset = reference.captions, reference.dataset
    figures: Figures = {
        (None, "content_f1"): from_matrix(content_f1_scores(references, decoded), draws, human_content_f1(references))
    }
    for name in () if dataset is None else set(TEXT_FEATURES) & set(dataset.feature_names):
        assert dataset is not None
        train_ids = dataset.split_ids("train")
        train = dataset.features(name, train_ids).mean(axis=1)
        said = word_vectors(decoded, [dataset.captions(stimulus) for stimulus in train_ids], train)
        true = dataset.features(name, reference.ids).mean(axis=1)
        figures[None, "text_similarity"] = from_matrix(cosine_scores(true, said), draws)
    return figures


def text_figures(
    reference: Reference, decoded: Sequence[str], draws: Draws | None = None, extras: Extras | None = None
) -> Measured:
    """Metrics of decoded captions."""
    assert reference.captions is not None
    figures, order = word_figures(reference, decoded, draws), content_f1_scores(reference.captions, decoded)
    figures |= added_figures("text", reference.captions, list(decoded), draws, reference)
    if not all(reference.captions):
        why = "some stimuli have no caption; give each at least one"
        skipped = {name: f"{metric_of(name).title} is not scored: {why}." for name in CAPTION_METRICS}
        return Measured(figures, skipped, order)
    scorer = caption_scorer(reference, extras or Extras())
    own = scorer.score(decoded)
    human, floors = {}, []
    if draws is not None:
        several = any(len(group) > 1 for group in reference.captions)
        human = {name: one.value for name, one in scorer.human().scores.items()} if several else {}
        floors = [scorer.score([decoded[row] for row in order]).scores for order in draws.few]
    for name, one in own.scores.items():
        floor = float(np.mean([shuffled[name].value for shuffled in floors])) if floors else None
        again = None if draws is None else one.resampled(draws.counts)
        figures[None, name] = Figure(one.value, floor, human.get(name), None, again, own.definition[name])
    return Measured(figures, own.skipped, order)


# --------------------------------------------------------------------------------------------- metrics of users' own


def added_figures(
    target: str,
    true: Any,
    predicted: Any,
    draws: Draws | None,
    reference: Reference,
    roi: str | None = None,
) -> Figures:
    """The metrics that users added for a target; true, predicted: of the stimuli in their order."""
    figures: Figures = {}
    for name, added in ADDED.entries.items():
        if added.target != target:
            continue
        best = None if added.ceiling is None else added.ceiling(reference)
        measure = _by_stimulus if added.per_stimulus else _over_stimuli
        figure = measure(name, added, true, predicted, draws)
        figures[roi, name] = figure._replace(ceiling=None if best is None else float(best))
    return figures


def _by_stimulus(name: str, added: AddedMetric, true: Any, predicted: Any, draws: Draws | None) -> Figure:
    """The score matrix, one diagonal after the other: what is predicted for others, a place further each time."""
    n = len(true)
    scores, row = np.empty((n, n)), np.arange(n)
    for shift in range(n if draws is not None else 1):
        column = (row + shift) % n
        found = np.asarray(added.function(true, rows_of(predicted, column)), np.float64)
        if found.shape != (n,) or not np.isfinite(found).all():
            shape = f"shape {list(found.shape)}" if found.shape != (n,) else "some that are not"
            raise UserError(
                f"metric '{name}': expected one finite score for each of the {n} stimuli, got {shape}. Correct its "
                "function, or add it with per_stimulus=False if it is one number for all."
            )
        scores[row, column] = found
    return from_matrix(scores, draws) if draws is not None else Figure(float(scores.diagonal().mean()))


def _over_stimuli(name: str, added: AddedMetric, true: Any, predicted: Any, draws: Draws | None) -> Figure:
    """A metric that needs all stimuli at once, of each shuffle and each resample by itself."""

    def one(true: Any, predicted: Any) -> float:
        found = np.asarray(added.function(true, predicted), np.float64)
        if found.shape or not np.isfinite(found):
            got = f"shape {list(found.shape)}" if found.shape else f"{found}"
            raise UserError(
                f"metric '{name}': expected one finite number for all stimuli, shuffled and resampled ones too, got "
                f"{got}. Correct its function, or add it with per_stimulus=True if it is a score of each."
            )
        return float(found)

    value = one(true, predicted)
    if draws is None:
        return Figure(value)
    null = np.array([one(true, rows_of(predicted, order)) for order in draws.shuffles])
    again = (np.repeat(np.arange(len(true)), times) for times in draws.counts)
    resampled = np.array([one(rows_of(true, rows), rows_of(predicted, rows)) for rows in again])
    return Figure(value, float(null.mean()) if len(null) else None, null=null, resampled=resampled)


def rows_of(values: Any, rows: Int[np.ndarray, "m"]) -> Any:
    """Some rows of an array, or of a sequence."""
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]


MEASURES: Mapping[str, Callable[..., Measured]] = {"brain": brain_figures, "image": image_figures, "text": text_figures}
