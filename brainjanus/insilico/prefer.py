"""Which stimuli a region answers to most: a run and a region enter; ranked pictures, prompts and generated ones leave.

A region's answer to a stimulus is the mean over its sites of the z-scored response, on request less the mean over all
other ROIs, and the mean over subjects. Stimuli of the test split are ranked by what the model predicts, with what was
measured beside it. Pictures are generated from a synthetic brain: the pattern that goes along, in training, with an
answer that is so many standard deviations above its mean (the regression of every site on the answer). They are then
ranked by the model's own prediction, as in Bashivan, Kar & DiCarlo 2019 (synthesis) and Ratan Murty et al. 2021
(screening); that prediction is the model's, and no measurement. What the mean brain gives is the control.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import hypergeom, mannwhitneyu

from brainjanus.core.errors import UserError
from brainjanus.data.scenes import CATEGORIES
from brainjanus.evaluate.cortex import draw_maps
from brainjanus.evaluate.text import content_words
from brainjanus.evaluate.topography import caption_groups
from brainjanus.generate import GenerationConfig, estimate, generate
from brainjanus.insilico.experiment import (
    GREY,
    INK,
    RED,
    Experiment,
    as_numbers,
    check_new,
    check_seed,
    encoded,
    holm,
    interval,
    named,
    opened,
    region,
    results_in,
    save_maps,
    save_results,
    stacked,
    trust_of,
    truth_of,
)
from brainjanus.model.checkpoint import JANUS
from brainjanus.outputs import can_draw
from brainjanus.run import Run, condition
from brainjanus.tokenizers.vision import can_encode

MOST_PROMPTS = 1000  # captions of a dataset that are ranked
SHOWN_WORDS = 5
LEARNT = {"test": ", never trained on", "val": ", of the validation split", "train": ", trained on"}
TEMPERATURE = 0.7  # of generated pictures: at 1 they scatter so much that those of a raised region are like any others


class Answer(NamedTuple):
    """A stimulus or prompt and what the region answers (z). measured: None where it was never shown."""

    name: str
    caption: str
    predicted: float
    measured: float | None = None


class Preferred(NamedTuple):
    """stimuli, prompts: from the most preferred to the least. pictures: generated ones [m, h, w, 3], best first.

    generated: what the model predicts of each picture ("image") and of generated sentences ("text"). maps: subject ->
    name -> one value a site. results: as written.
    """

    region: str
    stimuli: list[Answer]
    prompts: list[Answer]
    pictures: Float[np.ndarray, "m h w 3"]
    generated: dict[str, list[Answer]]
    maps: dict[str, dict[str, Float[np.ndarray, "v"]]]
    results: dict[str, Any]


class Probe(NamedTuple):
    """How a region's answer is read from a response: weights of each subject's sites."""

    weights: dict[str, Float[np.ndarray, "v"]]

    def read(self, responses: Mapping[str, Float[np.ndarray, "n _"]]) -> Float[np.ndarray, "n"]:
        """The mean over subjects; NaN rows, of stimuli that a subject did not see, are left out."""
        each = np.stack([responses[subject] @ weights for subject, weights in self.weights.items()])
        known = np.isfinite(each)
        return np.where(known, each, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)


# N stimuli, V sites, M pictures
def prefer(
    run: Run | Path | str,
    roi: str | Sequence[int],
    *,
    out: Path | str | None = None,
    dataset: Path | str | None = None,
    subjects: Sequence[str] = (),
    less_others: bool = False,
    split: str = "test",
    prompts: Sequence[str] = (),
    top: int = 8,
    samples: int = 48,
    level: float = 3.0,
    seed: int = 0,
) -> Preferred:
    """What a region answers to most, among stimuli, prompts and generated pictures; written into `out`, if given.

    roi: a region as `experiment` names it, or numbers of sites. less_others: what is more than the mean of the other
    ROIs. prompts: sentences; default: the captions of the split. top: how many count as preferred. samples: pictures
    that are generated; 0: none. level: standard deviations that the answer is raised by for them.
    Raises UserError for an unknown region or subject, or more to be preferred than there are stimuli.
    """
    check_new(out)
    check_seed("prefer", seed)
    asked, name = opened(run, dataset, subjects), named(roi)
    if top < 1 or samples < 0 or not np.isfinite(level):
        raise UserError(
            f"prefer: expected --top of at least 1, --samples of at least 0 and a finite --level, got {top}, {samples} "
            f"and {level}. Correct these options."
        )
    probe = probe_of(asked, name, less_others=less_others)
    ids = asked.stimuli(split)
    if 2 * top > len(ids):
        raise UserError(
            f"--top: expected at most half of the {len(ids)} stimuli of the split '{split}', got {top}. Give a smaller "
            "--top, or another --split."
        )
    rng = np.random.default_rng(seed)
    captions = [asked.dataset.captions(one) for one in ids]
    source = "image" if asked.checkpoint.tokenizers.image is not None else "text"
    predicted = probe.read(answered(asked, {source: condition(asked.checkpoint, asked.dataset, source, ids)}))
    measured = probe.read(measurement(asked, ids, split))
    order = np.argsort(-predicted, kind="stable")
    stimuli = [answer_of(ids[i], captions[i], predicted[i], measured[i]) for i in order]
    said = prompted(asked, probe, prompts, ids)
    maps = {s: {"region": np.sign(w).astype(np.float32)} for s, w in probe.weights.items()}
    made, pictures, drawn = synthesis(asked, probe, maps, samples, level, seed)
    results: dict[str, Any] = {
        "region": name,
        "sites": {s: int((w > 0).sum()) for s, w in probe.weights.items()},
        "answer": "mean z over the region's sites" + (", less the mean over all other ROIs" if less_others else ""),
        "predicted_from": source,
        "prediction": agreement(measured, predicted, rng) | {"trained_on": split == "train"},
        "top": top,
        "words": preferred_words(captions, order, np.argsort(-measured, kind="stable"), top),
        "truth": against_truth(asked, probe, ids, captions, predicted, order, top),
        "stimuli": [one._asdict() for one in stimuli],
        "prompts": [one._asdict() for one in said],
        "generated": {"facts": made} | {kind: [one._asdict() for one in part] for kind, part in drawn.items()},
        "trust": trust_of(asked, [source, *(["text"] if said else []), *(kind for kind in drawn if drawn[kind])]),
        "seed": seed,
        "protocol": asked.protocol(ids, split),
    }
    found = Preferred(name, stimuli, said, pictures, drawn, maps, as_numbers(results))
    if out is not None:
        figure = draw(asked, found, top)
        with results_in(out) as folder:
            for subject, own in maps.items():
                save_maps(folder, "maps", asked.space(subject), own)
            save_results(folder, found.results, figure)
            save_pictures(folder, found)
    return found


def probe_of(asked: Experiment, name: str, *, less_others: bool = False) -> Probe:
    weights = {}
    for subject in asked.subjects:
        space = asked.space(subject)
        sites = region(space, name)
        weights[subject] = sites / sites.sum()
        if less_others:
            others = np.logical_or.reduce([np.zeros(space.num_sites, bool), *map(np.asarray, space.rois.values())])
            others &= ~sites
            if not others.any():
                raise UserError(
                    f"--less-others: expected other ROIs of {subject} than '{name}', got none. Leave it out."
                )
            weights[subject] = weights[subject] - others / others.sum()
    return Probe(weights)


def answered(asked: Experiment, conditions: Mapping[str, object]) -> dict[str, Float[np.ndarray, "n v"]]:
    """The expected responses of every subject."""
    targets = {s: generate(asked.checkpoint, conditions, f"brain:{s}") for s in asked.subjects}
    return {s: np.asarray(rows) for s, rows in targets.items()}


def measurement(asked: Experiment, ids: Sequence[str], split: str) -> dict[str, Float[np.ndarray, "n v"]]:
    """The mean response of every subject to each stimulus; NaN where it did not see it."""
    found = {}
    for subject in asked.subjects:
        averages = asked.dataset.averages(subject, split)
        row_of = {one: row for row, one in enumerate(averages.stimulus_ids)}
        rows = np.full((len(ids), averages.responses.shape[1]), np.nan, np.float32)
        seen = [i for i, one in enumerate(ids) if one in row_of]
        rows[seen] = averages.responses[[row_of[ids[i]] for i in seen]]
        found[subject] = rows
    return found


def answer_of(name: str, captions: Sequence[str], predicted: float, measured: float | None = None) -> Answer:
    return Answer(
        name, captions[0] if captions else "", float(predicted), None if measured is None else float(measured)
    )


def prompted(asked: Experiment, probe: Probe, prompts: Sequence[str], ids: Sequence[str]) -> list[Answer]:
    """Prompts, or else the captions of the stimuli, from the most preferred to the least; none without words."""
    tokenizers, config = asked.checkpoint.tokenizers, asked.checkpoint.model.config
    if tokenizers.text is None:
        if prompts:
            raise UserError("--prompts: expected a model that was trained on captions, got one without. Leave it out.")
        return []
    shown: object
    if prompts or config.text_input == "codes":
        own = [caption for one in ids for caption in asked.dataset.captions(one)]
        names = list(dict.fromkeys(prompts or own))[:MOST_PROMPTS]
        shown = names
    else:  # a model that reads features of its captions has those of stimuli
        kept = [one for one in ids if asked.dataset.captions(one)]
        names = [asked.dataset.captions(one)[0] for one in kept]
        shown = condition(asked.checkpoint, asked.dataset, "text", kept)
    if not names:
        return []
    values = probe.read(answered(asked, {"text": shown}))
    return [Answer(names[i], names[i], float(values[i])) for i in np.argsort(-values, kind="stable")]


# --- how good it is -------------------------------------------------------------------------------------------------


def agreement(
    measured: Float[np.ndarray, "n"], predicted: Float[np.ndarray, "n"], rng: np.random.Generator
) -> dict[str, Any]:
    """r between what was measured and what is predicted, across stimuli, against shuffled predictions."""
    r = _r(measured, predicted)
    null = np.array([_r(measured, rng.permutation(predicted)) for _ in range(1000)])
    product = _z(measured) * _z(predicted)
    low, high = interval(product, rng)
    return {
        "r": r,
        "interval": [float(low), float(high)],
        "floor": float(null.mean()),
        "p": float((1 + (null >= r).sum()) / (1 + len(null))),
        "n": len(measured),
    }


def preferred_words(
    captions: Sequence[Sequence[str]], by_model: np.ndarray, by_measurement: np.ndarray, top: int
) -> list[dict[str, Any]]:
    """Content words that the preferred stimuli share: how many of the first `top` have each, against all (Holm).

    measured: the same share among the stimuli that measurement prefers.
    """
    groups = caption_groups(captions, most=None)
    if not groups:
        return []
    hits = {word: int(mask[by_model[:top]].sum()) for word, mask in groups.items()}
    p = [float(hypergeom.sf(hits[w] - 1, len(mask), int(mask.sum()), top)) for w, mask in groups.items()]
    rows = [
        {
            "word": word, "precision": hits[word] / top, "measured": float(mask[by_measurement[:top]].mean()),
            "base_rate": float(mask.mean()), "p": one, "p_holm": float(adjusted),
        }
        for (word, mask), one, adjusted in zip(groups.items(), p, holm(p), strict=True)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (row["p"], row["word"]))


def against_truth(
    asked: Experiment,
    probe: Probe,
    ids: Sequence[str],
    captions: Sequence[Sequence[str]],
    predicted: Float[np.ndarray, "n"],
    order: np.ndarray,
    top: int,
) -> dict[str, Any] | None:
    """Of a simulated cortex: r with the noise-free answer, and whether what is preferred holds the category that the
    region was made to prefer; None without a truth."""
    known = {subject: truth_of(asked, subject) for subject in asked.subjects}
    truths = {subject: truth for subject, truth in known.items() if truth is not None}
    if len(truths) < len(known):
        return None
    rows = {s: [t.stimulus_ids.index(one) if one in t.stimulus_ids else -1 for one in ids] for s, t in truths.items()}
    free = {s: np.where(np.array(rows[s])[:, None] < 0, np.nan, t.responses[rows[s]]) for s, t in truths.items()}
    found: dict[str, Any] = {"r_noise_free": _r(probe.read(free), predicted)}
    tuning = np.concatenate([t.category[probe.weights[s] > 0] for s, t in truths.items()])
    tuning = tuning[np.isfinite(tuning).all(axis=1)]
    if len(tuning):
        category = list(CATEGORIES)[int(tuning.mean(axis=0).argmax())]
        nouns = frozenset(CATEGORIES[category][0])
        has = np.array([bool(nouns & frozenset[str]().union(*map(content_words, texts))) for texts in captions])
        hits = int(has[order[:top]].sum())
        found |= {
            "prefers": category,
            "precision": hits / top,
            "base_rate": float(has.mean()),
            "p": float(hypergeom.sf(hits - 1, len(has), int(has.sum()), top)),
        }
    return found


def _r(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"]) -> float:
    return float((_z(a) * _z(b)).mean())


def _z(a: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    centred = a - a.mean()
    return centred / max(float(centred.std()), 1e-12)


# --- generated ------------------------------------------------------------------------------------------------------


def synthetic(
    responses: Float[np.ndarray, "n v"], weights: Float[np.ndarray, "v"], level: float
) -> Float[np.ndarray, "v"]:
    """The response to be expected where the answer is `level` standard deviations above its mean."""
    answer = _z(responses @ weights)
    mean = responses.mean(axis=0, dtype=np.float64)
    return (mean + level * (answer @ (responses - mean)) / len(responses)).astype(np.float32)


def synthesis(
    asked: Experiment, probe: Probe, maps: dict[str, dict[str, np.ndarray]], samples: int, level: float, seed: int
) -> tuple[dict[str, Any], Float[np.ndarray, "m h w 3"], dict[str, list[Answer]]]:
    """What synthetic brains give: facts, pictures, and what is predicted of each picture and sentence, best first.

    The brains are added to `maps`. There is none of a kind that the model lacks.
    """
    checkpoint = asked.checkpoint
    brains = {}
    for subject in asked.subjects if samples else ():
        training = asked.dataset.averages(subject, "train").responses
        brains[subject] = np.stack([synthetic(training, probe.weights[subject], amount) for amount in (level, 0.0)])
        maps[subject][f"synthetic brain, {level:g} sd"] = brains[subject][0]
    facts: dict[str, Any] = {"level": level}
    answers: dict[str, list[Answer]] = {"text": [], "image": []}
    pictures = np.zeros((0, 1, 1, 3))
    each = -(-samples // len(asked.subjects))
    text, config = checkpoint.tokenizers.text, checkpoint.model.config
    if brains and text is not None and config.text_input == "codes":
        drawn = [
            estimate(checkpoint, {f"brain:{s}": b}, "text", drawing(each, seed)).samples for s, b in brains.items()
        ]
        pools = [[caption for of in drawn if of is not None for caption in of[kind]] for kind in (0, 1)]
        pools = [[one for one in dict.fromkeys(pool) if is_sentence(text, one)] for pool in pools]
        if all(pools):
            values = [probe.read(answered(asked, {"text": pool})) for pool in pools]
            order = np.argsort(-values[0], kind="stable")
            answers["text"] = [Answer(pools[0][i], pools[0][i], float(values[0][i])) for i in order]
            facts["text"] = against_control(*values)
    if brains and checkpoint.tokenizers.image is not None:
        drawn = [
            estimate(checkpoint, {f"brain:{s}": b}, "image", drawing(each, seed, TEMPERATURE)).samples
            for s, b in brains.items()
        ]
        raised, mean = (torch.cat([of[kind] for of in drawn if isinstance(of, torch.Tensor)]) for kind in (0, 1))
        names, pictures = [f"{subject}-{number:02d}" for subject in brains for number in range(each)], raised.numpy()
        answers["image"] = [Answer(name, "", float("nan")) for name in names]
        encoder = config.image_input
        if encoder == "codes" or can_encode(encoder) or (encoder == JANUS and checkpoint.tokenizers.vision is not None):
            values = [probe.read(answered(asked, {"image": pool})) for pool in (raised, mean)]
            order = np.argsort(-values[0], kind="stable")
            pictures = pictures[order]
            answers["image"] = [Answer(names[i], "", float(values[0][i])) for i in order]
            facts["image"] = against_control(*values)
        else:
            facts["note"] = f"Pictures are not ranked: the model reads them through the stored features '{encoder}'."
    return facts, pictures, answers


def drawing(samples: int, seed: int, temperature: float = 1.0) -> GenerationConfig:
    return GenerationConfig("sample", samples, temperature=temperature, seed=seed)


def is_sentence(text: Any, caption: str) -> bool:
    """Whether the model can read what it said: it may have gone on until it was cut short."""
    return bool(caption.strip()) and len(text.pieces([caption])[0]) < text.max_length


def against_control(raised: Float[np.ndarray, "m"], mean: Float[np.ndarray, "l"]) -> dict[str, Any]:
    """What the model predicts of what it generated, against what the mean brain gave (Mann-Whitney, one-sided)."""
    return {
        "n": len(raised),
        "predicted": {"best": raised.max(), "median": np.median(raised)},
        "floor": {"best": mean.max(), "median": np.median(mean)},
        "p": float(mannwhitneyu(raised, mean, alternative="greater").pvalue),
    }


# --- what is shown --------------------------------------------------------------------------------------------------


def save_pictures(folder: Path, found: Preferred) -> None:
    from PIL import Image

    if not len(found.pictures):
        return
    place = folder / "generated"
    place.mkdir()
    pixels = (found.pictures.clip(0, 1) * 255).round().astype(np.uint8)
    for rank, (answer, picture) in enumerate(zip(found.generated["image"], pixels, strict=True)):
        Image.fromarray(picture).save(place / f"{rank:02d}-{answer.name}.png")


def draw(asked: Experiment, found: Preferred, top: int) -> bytes:
    """The preferred and the least preferred stimuli, generated pictures, predicted against measured, and the region."""
    from matplotlib.figure import Figure

    shown = min(top, 8)
    pictured = asked.dataset.image_size is not None
    rows: list[tuple[str, list[Answer], np.ndarray | None]] = []
    for title, part in (("most preferred", found.stimuli[:shown]), ("least preferred", found.stimuli[::-1][:shown])):
        pictures = asked.dataset.images([one.name for one in part]) if pictured else None
        rows.append((title + LEARNT[found.results["protocol"]["split"]], part, pictures))
    if len(found.pictures):
        rows.append(
            (
                "generated from a synthetic brain (predicted)",
                found.generated["image"][:shown],
                found.pictures[:shown].clip(0, 1),
            )
        )
    high = 1.55
    figure = Figure((shown * 1.25 + 0.4, len(rows) * high + 3.1), dpi=140)
    wide, tall = figure.get_size_inches()
    figure.text(0.2 / wide, 1 - 0.2 / tall, f"What {found.region} answers to", fontsize=12, weight="bold", color=INK)
    for number, (title, part, pictures) in enumerate(rows):
        top_edge = 0.45 + number * high
        figure.text(0.2 / wide, 1 - top_edge / tall, title, fontsize=9, color=INK, va="center")
        for column, one in enumerate(part):
            box = (0.2 + column * 1.25, top_edge + 0.12, 1.15, 1.0)
            axes = figure.add_axes((box[0] / wide, 1 - (box[1] + box[3]) / tall, box[2] / wide, box[3] / tall))
            axes.set_axis_off()
            if pictures is None or column >= len(pictures):
                axes.text(0.5, 0.5, _wrapped(one.caption or one.name), ha="center", va="center", fontsize=7, color=INK)
                axes.set(xlim=(0, 1), ylim=(0, 1))
            else:
                axes.imshow(pictures[column])
            told = f"{one.predicted:+.2f}" if np.isfinite(one.predicted) else ""
            told += "" if one.measured is None else f" / {one.measured:+.2f}"
            middle = (box[0] + box[2] / 2) / wide
            figure.text(middle, 1 - (top_edge + 1.2) / tall, told, fontsize=7, ha="center", color=GREY)
    axes = figure.add_axes((0.65 / wide, 0.55 / tall, 2.3 / wide, 1.9 / tall))
    points = np.array([[one.predicted, one.measured] for one in found.stimuli], dtype=float)
    axes.scatter(points[:, 0], points[:, 1], s=6, color=GREY, lw=0)
    axes.scatter(points[:top, 0], points[:top, 1], s=9, color=RED, lw=0)
    axes.set_xlabel("predicted (z)", fontsize=8, color=INK)
    axes.set_ylabel("measured (z)", fontsize=8, color=INK)
    prediction = found.results["prediction"]
    of = " (trained on these)" if prediction["trained_on"] else ""
    axes.set_title(f"r = {prediction['r']:.2f}{of}", fontsize=8, color=INK)
    axes.tick_params(labelsize=7, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    lines = [f"{len(found.stimuli)} stimuli; below each: predicted / measured answer (z)"]
    if words := found.results["words"]:
        lines += ["", f"words of the first {top} (share, base rate; * p < .05, Holm)"]
        lines += [
            f"   {one['word']}  {one['precision']:.0%}, {one['base_rate']:.0%}{' *' if one['p_holm'] < 0.05 else ''}"
            for one in words[:SHOWN_WORDS]
        ]
    if found.prompts:
        lines += ["", "sentences it should answer to most", *(f"   {one.name[:60]}" for one in found.prompts[:3])]
    if found.generated["text"]:
        lines += ["", "sentences decoded from the synthetic brain"]
        lines += [f"   {one.name[:60]}" for one in found.generated["text"][:2]]
    figure.text(3.4 / wide, 2.75 / tall, "\n".join(lines), fontsize=7.5, va="top", color=INK, linespacing=1.35)
    parts = [encoded(figure)]
    subject = asked.subjects[0]
    space = asked.space(subject)
    if can_draw(space):
        own = found.maps[subject]
        outlines = [name for name in found.region.split("+") if name in space.rois]
        maps = {f"{title} ({found.region} of {subject})": own[title] for title in own if outlines or title == "region"}
        if len(own) > 1 and outlines:  # an outline shows where the region is
            maps.pop(f"region ({found.region} of {subject})")
        parts.append(draw_maps(space, maps, label="z", outlines=outlines))
    return stacked(parts)


def _wrapped(text: str, width: int = 16) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width)[:6])
