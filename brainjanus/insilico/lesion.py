"""What a region contributes to what can be decoded: a run enters; a matrix of regions by attributes leaves.

An attribute is a set of words (the nouns of a category, a colour, a place). What a brain says of it is the likelihood
of these words where captions of held-out stimuli have them, given the response and the words before, in bits a mention.
What a region contributes is what is lost of that without the region: a difference of log-likelihoods, more sensitive
than whether a decoded caption has the word, and not capped by what was said anyway.

Without the region means one of:
    mean    it answers as it does on average: its information is gone, and nothing takes its place (the default)
    hidden  it was not measured: the model fills it in from the rest, so that only what no other region knows is lost
and the other way round, with `only`: nothing but the region answers, and what is gained over the mean response counts.

Any lesion loses something, and a larger one more. The control of every region is therefore lesions of as many sites in
one piece, at random places outside of it; what counts is the excess over them (paired by stimulus).
Differs from a lesion in a patient: nothing adapts, and the decoder was trained on whole brains.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import spearmanr

from brainjanus.core.errors import UserError
from brainjanus.core.fused import nats
from brainjanus.core.space import BrainSpace
from brainjanus.data.scenes import CATEGORIES, COLOURS, PLACES, SETTINGS
from brainjanus.evaluate.cortex import draw_maps
from brainjanus.evaluate.text import content_words, words
from brainjanus.evaluate.topography import caption_groups
from brainjanus.generate import GenerationConfig, asked_of, condition_block, generate
from brainjanus.insilico.experiment import (
    INK,
    Experiment,
    all_regions,
    as_numbers,
    as_told,
    check_new,
    check_own,
    check_seed,
    encoded,
    holm,
    interval,
    opened,
    region,
    results_in,
    save_maps,
    save_results,
    sign_p,
    stacked,
    trust_of,
    truth_of,
)
from brainjanus.outputs import can_draw
from brainjanus.run import Run

Kind = Literal["mean", "hidden"]
LEAST = 5  # stimuli that have to mention an attribute
MOST_WORDS = 24  # attributes that are taken from captions, if none are given
ROWS = 256
PICTURE = "picture"

Attributes = Mapping[str, Mapping[str, frozenset[str]]]  # family -> attribute -> its words


class Lesions(NamedTuple):
    """R regions, A attributes. loss, control, excess: bits a mention. p: of the excess, by Holm over the matrix.

    maps: subject -> family -> the mean excess of each site's region. results: as written.
    """

    regions: list[str]
    attributes: list[str]
    families: list[str]
    loss: Float[np.ndarray, "r a"]
    control: Float[np.ndarray, "r a"]
    excess: Float[np.ndarray, "r a"]
    p: Float[np.ndarray, "r a"]
    maps: dict[str, dict[str, Float[np.ndarray, "v"]]]
    results: dict[str, Any]


# N stimuli, R regions, A attributes, V sites
def lesion(
    run: Run | Path | str,
    rois: Sequence[str] = (),
    *,
    out: Path | str | None = None,
    dataset: Path | str | None = None,
    subjects: Sequence[str] = (),
    kind: Kind = "mean",
    only: bool = False,
    attributes: Sequence[str] = (),
    pictures: bool = False,
    captions: int = 2,
    controls: int = 4,
    seed: int = 0,
) -> Lesions:
    """What each region contributes to each attribute, against lesions of its size elsewhere; written into `out`.

    rois: regions as `experiment` names them; default: all, one by one. kind, only: see the head of this file.
    attributes: words, or NAME=WORD,WORD; default: the categories, colours, settings and places of a simulated study,
    else the content words that captions share. pictures: the codes of the picture as one attribute more.
    captions: of each stimulus, at most. controls: lesions elsewhere for each region and subject.
    Raises UserError for an unknown region, an attribute that no stimulus mentions, data without captions and pictures,
    or a subject that was added to a trained model: it has no likelihoods.
    """
    check_new(out)
    check_seed("lesion", seed)
    asked = opened(run, dataset, subjects)
    check_own(asked, "lesion")
    if kind not in ("mean", "hidden") or captions < 1 or controls < 1:
        raise UserError(
            f"lesion: expected the kind mean or hidden, and at least one caption and one control, got {kind}, "
            f"{captions} and {controls}. Correct these options."
        )
    ids = asked.stimuli("test")
    spaces = {subject: asked.space(subject) for subject in asked.subjects}
    masks = {subject: regions_of(space, rois) for subject, space in spaces.items()}
    names = list(dict.fromkeys(name for own in masks.values() for name in own))
    tokenizers = asked.checkpoint.tokenizers
    texts = {one: asked.dataset.captions(one)[:captions] for one in ids} if tokenizers.text is not None else {}
    if not any(texts.values()):
        if tokenizers.image is None or attributes:
            raise UserError(
                f"{asked.dataset.path}: expected captions of test stimuli, and a model that was trained on them, got "
                "none. Lesions are measured in what can be decoded: train on a dataset with captions or pictures."
            )
        texts, pictures = {}, True
    groups = attributes_of(asked, texts, attributes) if texts else {}
    families = [family for family, group in groups.items() for _ in group]
    columns = [name for group in groups.values() for name in group]
    if pictures:
        families, columns = [*families, PICTURE], [*columns, PICTURE]
    losses, against = (np.full((len(asked.subjects), len(ids), len(names), len(columns)), np.nan) for _ in range(2))
    for row, subject in enumerate(asked.subjects):
        meter = Meter(asked, subject, texts, groups, pictures)
        seen = [ids.index(one) for one in meter.ids]
        lesions = Lesioner(asked, subject, kind, only)
        for name, sites in masks[subject].items():
            rng = np.random.default_rng([seed, row, names.index(name)])
            elsewhere = [control_sites(spaces[subject], sites, rng) for _ in range(controls)]
            losses[row, seen, names.index(name)] = lesions.loss(meter, sites)
            against[row, seen, names.index(name)] = np.mean([lesions.loss(meter, one) for one in elsewhere], axis=0)
    with np.errstate(invalid="ignore"):
        loss, control = (_mean(values, axis=0) for values in (losses, against))  # over subjects: stimuli are the unit
    excess = loss - control
    rng = np.random.default_rng(seed)
    low, high = interval(excess, rng)
    p = sign_p(excess, rng)
    adjusted = holm(p)
    means = [_mean(values, axis=0) for values in (loss, control, excess)]
    found = Lesions(names, columns, families, means[0], means[1], means[2], adjusted, {}, {})
    for subject, own in masks.items():
        found.maps[subject] = {
            family: painted(own, {name: found.excess[names.index(name), of].mean() for name in own})
            for family, of in ((one, [f == one for f in families]) for one in dict.fromkeys(families))
        }
    n, shown = np.isfinite(excess).sum(axis=0), Lesioner(asked, asked.subjects[0], kind, only)
    cells = [
        {
            "region": name, "family": families[a], "attribute": columns[a], "loss": found.loss[r, a],
            "floor": found.control[r, a], "excess": found.excess[r, a], "interval": [low[r, a], high[r, a]],
            "p": p[r, a], "p_holm": adjusted[r, a], "n": n[r, a],
        }
        for r, name in enumerate(names)
        for a in range(len(columns))
    ]  # fmt: skip
    results = {
        "kind": kind,
        "only": only,
        "unit": "bits a mention" + (f"; of '{PICTURE}', bits a picture" if pictures else ""),
        "floor": f"mean over {controls} lesions of as many sites in one piece elsewhere, per region and subject",
        "p": "sign flips of the excess over stimuli, one-sided; p_holm: over the whole matrix",
        "regions": {name: {s: int(own[name].sum()) for s, own in masks.items() if name in own} for name in names},
        "attributes": {family: {name: sorted(group) for name, group in of.items()} for family, of in groups.items()},
        "cells": cells,
        "truth": against_truth(asked, found, masks),
        "examples": examples(asked, found, masks, groups, shown) if texts else [],
        "trust": trust_of(asked),
        "seed": seed,
        "protocol": asked.protocol(ids, "test", captions=captions),
    }
    found = found._replace(results=as_numbers(results))
    if out is not None:
        figure = draw(asked, found)
        with results_in(out) as folder:
            for subject, maps in found.maps.items():
                save_maps(folder, "excess", spaces[subject], maps)
            save_results(folder, found.results, figure)
    return found


def regions_of(space: BrainSpace, rois: Sequence[str]) -> dict[str, Bool[np.ndarray, "v"]]:
    """Regions of one subject by name: those that are named, or all. Raises UserError for one that is all of it."""
    if not rois:
        return all_regions(space)
    found = {name: region(space, name) for name in dict.fromkeys(rois)}
    whole = [name for name, sites in found.items() if sites.all()]
    if whole:
        raise UserError(
            f"region '{whole[0]}': expected some sites of {space.subject} and not all of them, got all. There is no "
            "rest to decode from, and no control: name a smaller region."
        )
    return found


def attributes_of(
    asked: Experiment, texts: Mapping[str, Sequence[str]], given: Sequence[str]
) -> dict[str, dict[str, frozenset[str]]]:
    """family -> attribute -> words: those that were given, those of a simulated study, or those of the captions."""
    said = [frozenset(words(" ".join(group))) for group in texts.values()]
    if given:
        parts = [one.partition("=") for one in given]
        own = {name.strip(): frozenset(words(several if equals else name)) for name, equals, several in parts}
        rare = [name for name, group in own.items() if sum(bool(group & one) for one in said) < LEAST]
        if rare:
            raise UserError(
                f"--attributes '{rare[0]}': expected words in captions of at least {LEAST} test stimuli, got "
                f"{sum(bool(own[rare[0]] & one) for one in said)}. Name others, or several as one: NAME=WORD,WORD."
            )
        return {"words": own}
    if asked.dataset.manifest["provenance"].get("simulation"):
        vocabulary: dict[str, dict[str, tuple[str, ...]]] = {
            "category": {name: nouns for name, (nouns, _) in CATEGORIES.items()},
            "colour": {name: (name,) for name in COLOURS},
            "setting": {name: phrases for name, (phrases, _) in SETTINGS.items()},
            "place": PLACES,
        }
        scenes = {
            family: {
                name: group
                for name, phrases in of.items()
                if sum(bool((group := content_words(" ".join(phrases))) & one) for one in said) >= LEAST
            }
            for family, of in vocabulary.items()
        }
        if all(scenes.values()):
            return scenes
    found = caption_groups([list(group) for group in texts.values()], most=MOST_WORDS)
    if not found:
        raise UserError(
            f"{asked.dataset.path}: expected content words that several test stimuli share, got none. Name words: "
            "--attributes."
        )
    return {"words": {word: frozenset([word]) for word in found}}


# --- measuring ------------------------------------------------------------------------------------------------------


class Meter:
    """How well the captions (and pictures) of one subject's test stimuli can be read from responses, by attribute."""

    def __init__(
        self,
        asked: Experiment,
        subject: str,
        texts: Mapping[str, Sequence[str]],
        groups: Attributes,
        pictures: bool,
    ):
        self.checkpoint, self.subject, self.pictures = asked.checkpoint, subject, pictures
        averages = asked.dataset.averages(subject, "test")
        self.ids, self.responses = averages.stimulus_ids, torch.from_numpy(averages.responses)
        pairs = [(row, text) for row, one in enumerate(self.ids) for text in texts.get(one, ())]
        self.rows, self.captions = [row for row, _ in pairs], [text for _, text in pairs]
        self.shown = asked.dataset.images(self.ids) if pictures else None
        named_words = [group for of in groups.values() for group in of.values()]
        self.pieces = [pieces_of(asked.checkpoint.tokenizers.text, text, named_words) for text in self.captions]
        self.num_attributes = len(named_words)

    def bits(self, name: str, responses: Float[torch.Tensor, "n v"]) -> Float[np.ndarray, "n a"]:
        """log2 p of each attribute's words, mean over mentions; NaN where a stimulus has none."""
        total, mentions = np.zeros((2, len(self.ids), self.num_attributes))
        if self.captions:
            log_p = log_p_of(self.checkpoint, {name: responses[self.rows]}, "text", self.captions)
            for row, of_caption, pieces in zip(self.rows, log_p, self.pieces, strict=True):
                for attribute, places in pieces.items():
                    total[row, attribute] += of_caption[places].sum()
                    mentions[row, attribute] += 1
        found = np.divide(total, mentions, out=np.full_like(total, np.nan), where=mentions > 0)
        if self.pictures:
            log_p = log_p_of(self.checkpoint, {name: responses}, "image", self.shown)
            found = np.column_stack([found, log_p.sum(axis=1)])
        return found / np.log(2)


class Lesioner:
    """Responses of one subject without a region, or with nothing else."""

    def __init__(self, asked: Experiment, subject: str, kind: Kind, only: bool):
        self.subject, self.kind, self.only = subject, kind, only
        training = asked.dataset.averages(subject, "train").responses
        self.mean = torch.from_numpy(training.mean(axis=0, dtype=np.float64).astype(np.float32))
        self.intact: np.ndarray | None = None

    def without(
        self, responses: Float[torch.Tensor, "n v"], sites: Bool[np.ndarray, "v"]
    ) -> tuple[str, Float[torch.Tensor, "n v"]]:
        """The name and the rows of the condition."""
        gone = torch.from_numpy(sites != self.only)
        if self.kind == "hidden":
            return f"part:{self.subject}", responses.masked_fill(gone, torch.nan)
        return f"brain:{self.subject}", torch.where(gone, self.mean, responses)

    def loss(self, meter: Meter, sites: Bool[np.ndarray, "v"]) -> Float[np.ndarray, "n a"]:
        """Bits that are lost without the sites; with `only`, that are gained by them over the mean response."""
        if self.intact is None:
            whole = self.mean.expand_as(meter.responses) if self.only else meter.responses
            self.intact = meter.bits(f"brain:{self.subject}", whole)
        lesioned = meter.bits(*self.without(meter.responses, sites))
        return lesioned - self.intact if self.only else self.intact - lesioned


@torch.no_grad()
def log_p_of(
    checkpoint: Any, conditions: Mapping[str, torch.Tensor], target: str, rows: Any
) -> Float[np.ndarray, "n l"]:
    """log p of each code of a caption or picture, given the codes before it."""
    goal = condition_block(checkpoint, target, rows, as_codes=True)
    request = asked_of(checkpoint, conditions, target, goal)
    found = []
    for start in range(0, goal.batch, ROWS):
        part = request.rows(slice(start, start + ROWS))
        logits = checkpoint.model(part.conditions, part.target).float()
        assert part.target.codes is not None
        found.append(-nats(logits, part.target.codes).cpu().double().numpy())
    return np.concatenate(found)


def pieces_of(text: Any, caption: str, groups: Sequence[frozenset[str]]) -> dict[int, list[int]]:
    """Which codes of a caption spell words of which group."""
    codes = text.pieces([caption])[0]
    until = [0] + [len(said) for said in decoded(text, [codes[: i + 1] for i in range(len(codes))])]
    whole, position, found = decoded(text, [codes])[0].lower(), 0, dict[int, list[int]]()
    for word in words(whole):
        start = whole.index(word, position)
        position = start + len(word)
        own = [i for i in range(len(codes)) if until[i] < position and until[i + 1] > start]
        for number, group in enumerate(groups):
            if word in group:
                found.setdefault(number, []).extend(own)
    return found


def decoded(text: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    return [text.decode(torch.tensor([row]))[0] for row in rows]


def control_sites(space: BrainSpace, sites: Bool[np.ndarray, "v"], rng: np.random.Generator) -> Bool[np.ndarray, "v"]:
    """As many sites as a region has, in one piece of the cortical order, outside of it if there is room."""
    assert space.order is not None
    size = int(sites.sum())
    free = space.order[~sites[space.order]]
    if len(free) < size:
        free = space.order
    start = int(rng.integers(len(free)))
    return np.isin(np.arange(space.num_sites), np.roll(free, -start)[:size])


def painted(masks: Mapping[str, Bool[np.ndarray, "v"]], values: Mapping[str, float]) -> Float[np.ndarray, "v"]:
    """Each site with the mean of the regions that hold it; NaN outside."""
    each = np.stack([np.where(sites, values[name], np.nan) for name, sites in masks.items()])
    return _mean(each, axis=0).astype(np.float32)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0).sum(axis=axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


# --- beside it ------------------------------------------------------------------------------------------------------


def against_truth(
    asked: Experiment, found: Lesions, masks: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Any] | None:
    """Of a simulated cortex: is lost what a region was made to know? Rank correlation, over regions and categories, of
    the excess with how strongly the region's sites prefer the category; shuffled over categories. None without a truth,
    or where no region makes a difference."""
    columns = [a for a, family in enumerate(found.families) if family == "category"]
    if not columns:
        return None
    wanted = [list(CATEGORIES).index(found.attributes[a]) for a in columns]
    tuning: dict[str, list[np.ndarray]] = {}
    for subject, own in masks.items():
        known = truth_of(asked, subject)
        if known is None:
            return None
        truth = known.category
        for name, sites in own.items():
            if np.isfinite(truth[sites]).all():
                tuning.setdefault(name, []).append(truth[sites][:, wanted].mean(axis=0))
    if not tuning:
        return None
    true = np.stack([np.mean(rows, axis=0) for rows in tuning.values()])
    true = true - true.mean(axis=1, keepdims=True)
    ours = found.excess[[found.regions.index(name) for name in tuning]][:, columns]
    ours = ours - ours.mean(axis=1, keepdims=True)
    if not ours.any():
        return None
    r = float(spearmanr(true.ravel(), ours.ravel()).statistic)
    rng = np.random.default_rng(0)
    null = [spearmanr(rng.permuted(true, axis=1).ravel(), ours.ravel()).statistic for _ in range(1000)]
    tops = {
        name: [found.attributes[columns[int(t.argmax())]], found.attributes[columns[int(o.argmax())]]]
        for name, t, o in zip(tuning, true, ours, strict=True)
    }
    return {
        "definition": "Spearman's r of excess and tuning over regions x categories, each less its region's mean",
        "r": r,
        "floor": float(np.mean(null)),
        "p": float((1 + (np.array(null) >= r).sum()) / (1 + len(null))),
        "n": true.size,
        "preferred_and_lost": tops,
    }


def examples(
    asked: Experiment,
    found: Lesions,
    masks: Mapping[str, Mapping[str, np.ndarray]],
    groups: Attributes,
    lesioner: "Lesioner",
) -> list[dict[str, Any]]:
    """For each region of the first subject the caption of one stimulus, decoded from the whole brain and without it."""
    subject = lesioner.subject
    averages = asked.dataset.averages(subject, "test")
    captions = [asked.dataset.captions(one) for one in averages.stimulus_ids]
    greedy = GenerationConfig(temperature=0.0)
    told = []
    for name, sites in masks[subject].items():
        best = found.attributes[int(np.nanargmax(found.excess[found.regions.index(name)]))]
        group = next((of[best] for of in groups.values() if best in of), frozenset([best]))
        row = next((i for i, texts in enumerate(captions) if texts and group & content_words(texts[0])), 0)
        response = torch.from_numpy(averages.responses[[row]])
        condition_name, lesioned = lesioner.without(response, sites)
        whole = generate(asked.checkpoint, {f"brain:{subject}": response}, "text", greedy)
        without = generate(asked.checkpoint, {condition_name: lesioned}, "text", greedy)
        told.append(
            {
                "region": name, "attribute": best, "stimulus": averages.stimulus_ids[row], "caption": captions[row][0],
                "whole brain": whole[0], "only the region" if lesioner.only else "without the region": without[0],
            }
        )  # fmt: skip
    return told


def summary(found: Lesions) -> list[str]:
    """A line for each of the surest cells."""
    cells = sorted(found.results["cells"], key=lambda cell: (cell["p_holm"], -(cell["excess"] or 0)))
    told = "told" if found.results["only"] else "lost"
    return [
        f"{cell['region']:<12} {cell['attribute']:<12} {told} {as_told(cell['loss'], '+.3f')} bits a mention, "
        f"elsewhere {as_told(cell['floor'], '+.3f')} (p {cell['p_holm']:.3g})"
        for cell in cells[:10]
    ]


def draw(asked: Experiment, found: Lesions) -> bytes:
    """The matrix of regions by attributes, and the regions on the cortex, a map for each family."""
    from matplotlib.figure import Figure

    families = list(dict.fromkeys(found.families))
    rows, columns = found.excess.shape
    wide, tall = 1.2 + 0.3 * columns + 0.35 * len(families) + 0.4, 0.8 + 0.27 * rows + 0.85
    figure = Figure((max(wide, 6.5), tall), dpi=140)
    wide = figure.get_size_inches()[0]
    what = "told by the region alone" if found.results["only"] else "lost without the region"
    title = f"Bits a mention {what}, beyond lesions of its size elsewhere"
    figure.text(0.15 / wide, 1 - 0.18 / tall, title, fontsize=10, weight="bold", color=INK, va="center")
    left = 1.2
    for number, family in enumerate(families):
        which = [a for a, one in enumerate(found.families) if one == family]
        values = found.excess[:, which]
        top = float(np.nanmax(np.abs(values))) or 1.0
        box = (left / wide, 0.85 / tall, 0.3 * len(which) / wide, 0.27 * rows / tall)
        axes = figure.add_axes(box)
        axes.imshow(values, cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto", interpolation="none")
        for r, a in zip(*np.nonzero(found.p[:, which] < 0.05), strict=True):
            colour = "white" if abs(values[r, a]) > 0.7 * top else INK
            axes.text(a, r + 0.08, "*", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(which)), [found.attributes[a] for a in which], rotation=90, fontsize=7)
        axes.set_yticks(range(rows), found.regions if number == 0 else [""] * rows, fontsize=7)
        axes.tick_params(length=0)
        axes.set_title(f"{family}\n(±{top:.2g})", fontsize=8, color=INK)
        left += 0.3 * len(which) + 0.35
    parts = [encoded(figure)]
    subject = asked.subjects[0]
    space = asked.space(subject)
    if can_draw(space):
        maps, told = {}, "told" if found.results["only"] else "lost"
        for family, values in found.maps[subject].items():
            top = float(np.nanmax(np.abs(values))) or 1.0
            maps[f"{family}: {told}, mean over its attributes ({subject}; 1 is {top:.2g} bits)"] = values / top
        parts.append(draw_maps(space, maps, label="share of the most", limits=(-1.0, 1.0)))
    return stacked(parts)
