"""A functional localizer in silico: prompts or pictures of one kind and of another enter; contrast maps leave.

What is shown is one of
    sentence        "a face"; it is read in SETTINGS places that training captions speak of ("a face on the beach")
    stimuli:WORD    stimuli of a split whose captions say the word(s): their pictures, or captions without pictures
    picture files, folders of pictures, FILE[:KEY] (an array of pictures, or of the features that the model reads)
Where the model reads text by features, a sentence stands for the stimuli whose captions say its words: held-out ones,
or, where these are fewer than MIN_STIMULI, all.

The contrast of a site is the mean expected response to one kind less that to the other, in z-scored units. Its t
(Welch) and its two-sided p (labels permuted) take exemplars (sentences, pictures) as a random sample: they say whether
the model tells the kinds apart whatever the exemplar, not how sure the recording makes us of it. q: false discovery
rate over sites (Benjamini & Hochberg 1995). Without --against the baseline is a random sample of what training captions
say, or of other pictures. Both kinds stand in the same settings, so that nothing but the kind differs.

What is right is judged by what is known: ROIs (area under the ROC curve of the contrast, inside against outside), the
measured contrast of held-out stimuli whose captions name the kinds (not of training stimuli), and the truth of a
simulated cortex, both by r across sites with a spin test (topography.py).
Source: Kanwisher et al. 1997 (the localizer).
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.stats import false_discovery_control
from sklearn.metrics import roc_auc_score

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import listed
from brainjanus.data.readers.arrays import is_array
from brainjanus.data.readers.pictures import PICTURE_SUFFIXES
from brainjanus.data.scenes import CATEGORIES
from brainjanus.data.simulate import Truth
from brainjanus.evaluate.cortex import draw_maps
from brainjanus.evaluate.text import content_words, words
from brainjanus.evaluate.topography import MIN_STIMULI, Spins, map_agreement, selectivity_maps, spins
from brainjanus.generate import GenerationConfig, generate, require
from brainjanus.insilico.experiment import (
    GREY,
    INK,
    RED,
    RESAMPLES,
    Experiment,
    all_regions,
    as_numbers,
    as_told,
    check_new,
    check_seed,
    encoded,
    opened,
    results_in,
    save_maps,
    save_results,
    stacked,
    trust_of,
    truth_of,
)
from brainjanus.outputs import can_draw
from brainjanus.request import Given, Reader, Request
from brainjanus.run import Run, condition
from brainjanus.tokenizers.janus import JanusTextTokenizer
from brainjanus.tokenizers.vision import can_encode

SETTINGS = 24  # places in which a sentence is read
NUM_BASELINE = 200  # exemplars of a baseline that nobody named
ALWAYS = 0.9  # share of the captions that say one thing from which on another is always said with it
PERMUTATIONS, ROTATIONS = 1000, 1000
LEAST = 3  # exemplars of either kind, for a t
FDR = 0.05
SELECTIVE = 1 / 3  # of (A - B) / (A + B): twice the response, as for face patches (Tsao et al. 2006)
MOST_DRAWN = 4  # subjects
_PLACES = "in on at near under beside behind inside through across along over beneath outside"
PLACE_WORDS = frozenset(_PLACES.split())
Split = Literal["test", "val", "train"]


class Exemplars(NamedTuple):
    """What is shown of one kind. rows: sentences, pictures or features, as `generate` takes them under `modality`.

    said: for each thing that was asked for by words, these words: a caption that has all of one of them names the kind.
    trained: how many rows the model was trained on, with the responses to them.
    """

    modality: Literal["text", "image"]
    rows: list[str] | Shaped[np.ndarray, "n ..."]
    said: list[frozenset[str]]
    trained: int = 0


class Contrast(NamedTuple):
    """One subject's map, one value a site. t, p, q: None with fewer than LEAST exemplars of a kind. q: adjusted p."""

    contrast: Float[np.ndarray, "v"]
    t: Float[np.ndarray, "v"] | None
    p: Float[np.ndarray, "v"] | None
    q: Float[np.ndarray, "v"] | None


class Localized(NamedTuple):
    """contrasts: by subject. results: everything that results.json holds."""

    contrasts: dict[str, Contrast]
    results: dict[str, Any]


def localize(
    run: Run | Path | str,
    prompts: Sequence[str],
    against: Sequence[str] = (),
    *,
    out: Path | str | None = None,
    subjects: Sequence[str] = (),
    settings: int = SETTINGS,
    split: Split = "test",
    truth: Path | str | None = None,
    dataset: Path | str | None = None,
    seed: int = 0,
) -> Localized:
    """Contrast maps of `prompts` against `against`, with statistics and whatever they can be held against.

    prompts, against: see the head of this file. against: none is a broad baseline. settings: in how many a sentence is
    read; 0 as it stands. split: of `stimuli:WORD`, and of the measured responses. truth: folder of a simulated study;
    default: that of the dataset, if it has one.
    Raises UserError for unknown subjects or words, kinds that are the same, a `truth` without the subjects, and an
    `out` that exists.
    """
    check_new(out)
    check_seed("localize", seed)
    if settings < 0:
        raise UserError(f"--settings: expected a number of 0 or more, got {settings}. 0 takes sentences as they stand.")
    found = opened(run, dataset, subjects)
    truths = {subject: truth_of(found, subject, truth) for subject in found.subjects}
    shown, other, baseline = kinds(found, prompts, against, settings, split, np.random.default_rng(seed))
    source = Source(found, settings, split)
    sentences = [asked for asked in (*prompts, *against) if source.is_sentence(asked)] if source.by_words else []
    remarks = [remark for asked in sentences if (remark := source.remark(asked))]
    contrasts: dict[str, Contrast] = {}
    told: dict[str, dict[str, Any]] = {}
    panels: list[bytes] = []
    for subject in found.subjects:
        rng = np.random.default_rng([seed, found.dataset.subjects.index(subject)])
        first, second = (expected(found, kind, subject) for kind in (shown, other))
        contrasts[subject] = contrast(first, second, rng)
        facts, maps = judged(
            found, subject, contrasts[subject], (first, second), (shown, other), split, truths[subject], rng
        )
        told[subject] = facts
        if out is not None and len(panels) < MOST_DRAWN and can_draw(found.space(subject)):
            panels.append(draw_maps(found.space(subject), maps, label="contrast (z)"))
    results = {
        "experiment": "localize",
        "run": str(found.path),
        "shown": list(prompts),
        "against": list(against) or baseline,
        "exemplars": {"shown": len(shown.rows), "against": len(other.rows)},
        "trained_on": {"shown": shown.trained, "against": other.trained},
        "trust": trust_of(found, [shown.modality]),
        "examples": examples(shown, other),
        "remarks": remarks,
        "settings": settings,
        "seed": seed,
        "protocol": found.protocol(list(found.dataset.split_ids(split)), split, definition=DEFINITION),
        "subjects": told,
    }
    results = as_numbers(results)
    if out is not None:
        with results_in(out) as folder:
            for subject, one in contrasts.items():
                there = {name: values for name, values in one._asdict().items() if values is not None}
                save_maps(folder, "contrast", found.space(subject), there)
            save_results(folder, results, stacked([*panels, draw_regions(told, title_of(prompts, against))]))
    return Localized(contrasts, results)


DEFINITION = (
    "contrast: difference of mean expected responses (z); t: Welch, over exemplars; p: two-sided, labels permuted; "
    "q: Benjamini-Hochberg over sites; auc: of the contrast, inside a region against all other sites; "
    "r: Pearson across sites, p of a spin test"
)


def title_of(prompts: Sequence[str], against: Sequence[str]) -> str:
    return f"{listed(prompts, 3)} against {listed(against, 3) if against else 'a broad baseline'}"


# --- what is shown --------------------------------------------------------------------------------------------------


def kinds(
    found: Experiment, prompts: Sequence[str], against: Sequence[str], settings: int, split: Split,
    rng: np.random.Generator,
) -> tuple[Exemplars, Exemplars, str]:  # fmt: skip
    """Exemplars of either kind, and in words what the second is. Raises UserError for kinds that cannot be compared."""
    if not prompts:
        raise UserError('localize: expected what is to be localized, got nothing. Name it: "a face".')
    both = sorted({one.strip().lower() for one in prompts} & {one.strip().lower() for one in against})
    if both:
        raise UserError(
            f"--against {both[0]}: expected something else than what is localized, got the same. A thing has no "
            "contrast with itself: leave it out of one of them."
        )
    source = Source(found, settings, split)
    shown = source.exemplars(prompts)
    if against:
        other, told = source.exemplars(against), ", ".join(against)
        if other.modality != shown.modality:
            raise UserError(
                f"--against {against[0]}: expected {MEDIUM[shown.modality]}, as what is localized, got "
                f"{MEDIUM[other.modality]}. Words against pictures would be a contrast of media: give one kind of both."
            )
        check_same_form(shown, other)
    else:
        other, told = source.baseline(shown, rng)
    return shown, other, told


MEDIUM = {"text": "words", "image": "pictures"}


def check_same_form(shown: Exemplars, other: Exemplars) -> None:
    forms = [np.shape(kind.rows)[1:] if isinstance(kind.rows, np.ndarray) else () for kind in (shown, other)]
    if forms[0] != forms[1]:
        raise UserError(
            f"--against: expected rows of the form {list(forms[0])}, as what is localized, got {list(forms[1])}. Give "
            "pictures against pictures, and features against features."
        )


def examples(shown: Exemplars, other: Exemplars) -> dict[str, list[str]]:
    """A few of the sentences that were read."""
    named = {"shown": shown.rows, "against": other.rows}
    return {name: rows[:5] for name, rows in named.items() if isinstance(rows, list)}


class Source:
    """Where exemplars come from: the words of the training captions, stimuli of a split, files."""

    def __init__(self, found: Experiment, settings: int, split: Split) -> None:
        self.found, self.settings, self.split = found, settings, split
        data = found.dataset
        self.learnt = frozenset(data.split_ids("train"))
        self.captions = [caption for stimulus in data.split_ids("train") for caption in data.captions(stimulus)]
        self.by_words = found.checkpoint.tokenizers.text is not None and (
            found.checkpoint.model.config.text_input == "codes"
        )

    def exemplars(self, asked: Sequence[str]) -> Exemplars:
        """All that is asked for, one after the other. Raises UserError for words beside pictures."""
        parts = [self.of_one(one) for one in asked]
        if len({part.modality for part in parts}) > 1:
            raise UserError(
                f"localize: expected words, or pictures, got both ({', '.join(asked)}). Localize with one, then the "
                "other."
            )
        for part in parts[1:]:
            check_same_form(parts[0], part)
        rows, said = joined([part.rows for part in parts]), [words for part in parts for words in part.said]
        return Exemplars(parts[0].modality, rows, said, sum(part.trained for part in parts))

    def of_one(self, asked: str) -> Exemplars:
        if asked.startswith("stimuli:"):
            return self.stimuli(asked.removeprefix("stimuli:"), asked)
        if self.is_sentence(asked):
            return self.sentence(asked)
        require(self.found.checkpoint, "image")
        return Exemplars("image", self.read(asked), [])

    def is_sentence(self, asked: str) -> bool:
        files = os.path.isdir(asked) or Path(asked).suffix.lower() in PICTURE_SUFFIXES or is_array(asked)
        return not (files or asked.startswith("stimuli:"))

    def sentence(self, asked: str) -> Exemplars:
        said = content_words(asked)
        if not said:
            raise UserError(
                f"localize '{asked}': expected a word with content, got none. Say what is to be localized, "
                "as in 'a face'."
            )
        require(self.found.checkpoint, "text")
        if not self.by_words:
            return self.looked_up(asked, said)
        known = frozenset[str]().union(*map(content_words, self.captions))
        knows_language = isinstance(self.found.checkpoint.tokenizers.text, JanusTextTokenizer)
        if known and not said & known and not knows_language:
            raise UserError(
                f"localize '{asked}': expected words that training captions have, got none of them "
                f"({suggestion(said, known)}). The model knows no others: choose other words, or give pictures."
            )
        phrases = [f"{asked.strip()} {where}" for where in self.places(said)] if self.settings else []
        return Exemplars("text", phrases or [asked], [said])

    def places(self, said: frozenset[str]) -> list[str]:
        """The places that training captions end with most often, but for those that name the thing itself."""
        ends = Counter(end for caption in self.captions if (end := last_place(caption)))
        return [end for end, _ in ends.most_common() if not said & content_words(end)][: self.settings]

    def remark(self, asked: str) -> str | None:
        """What captions nearly always say where they say this: the model can have learnt the one for the other."""
        said = content_words(asked)
        every = [content_words(caption) for caption in self.captions]
        there = [caption for caption in every if said and said <= caption]
        among, anywhere = (Counter(word for caption in some for word in caption) for some in (there, every))
        with_it = sorted(
            word
            for word, count in among.items()
            if word not in said and count >= ALWAYS * len(there) and anywhere[word] < len(every) / 2
        )
        if not with_it:
            return None
        shortest = min((one for one in self.captions if said | {*with_it} <= content_words(one)), key=len, default="")
        return (
            f"captions that say '{asked}' nearly always say {', '.join(map(repr, with_it))}, too, so the model may "
            f"have learnt that alone. Say it as captions do: '{shortest}'."
        )

    def named(self, said: Sequence[frozenset[str]], ids: Sequence[str]) -> Bool[np.ndarray, "n"]:
        """Which stimuli have a caption with all words of one thing."""
        data = self.found.dataset
        each = [[content_words(caption) for caption in data.captions(stimulus)] for stimulus in ids]
        return np.array([any(one <= caption for one in said for caption in captions) for captions in each], dtype=bool)

    def looked_up(self, asked: str, said: frozenset[str]) -> Exemplars:
        """Features of the stimuli whose captions say it."""
        data = self.found.dataset
        ids = [stimulus for stimulus in data.stimulus_ids if data.captions(stimulus)]
        which = self.named([said], ids)
        if not which.any():
            known = frozenset[str]().union(*(content_words(c) for s in ids for c in data.captions(s)))
            raise UserError(
                f"localize '{asked}': expected words of the dataset's captions, got none ({suggestion(said, known)}). "
                f"This model reads text by the features '{self.found.checkpoint.model.config.text_input}', which only "
                "these have: choose among them, or give pictures."
            )
        chosen = self.held_out([stimulus for stimulus, kept in zip(ids, which, strict=True) if kept])
        return Exemplars("text", self.rows("text", chosen), [said], self.trained(chosen))

    def held_out(self, ids: Sequence[str]) -> list[str]:
        """Those that the model was not trained on, if there are enough of them; else all."""
        others = [stimulus for stimulus in ids if stimulus not in self.learnt]
        return others if len(others) >= MIN_STIMULI else list(ids)

    def trained(self, ids: Sequence[str]) -> int:
        return sum(stimulus in self.learnt for stimulus in ids)

    def stimuli(self, phrase: str, asked: str) -> Exemplars:
        ids, said = list(self.found.dataset.split_ids(self.split)), content_words(phrase)
        which = self.named([said], ids) if said else np.zeros(len(ids), dtype=bool)
        if not which.any():
            raise UserError(
                f"localize {asked}: expected {self.split} stimuli whose captions say '{phrase}', got none of "
                f"{len(ids)}. Choose another word, or another --split."
            )
        chosen = [stimulus for stimulus, kept in zip(ids, which, strict=True) if kept]
        return Exemplars(self.seen, self.rows(self.seen, chosen), [said], self.trained(chosen))

    @property
    def seen(self) -> Literal["text", "image"]:
        """How stimuli are shown: as pictures, if there are any."""
        has = self.found.checkpoint.tokenizers.image is not None and self.found.dataset.image_size is not None
        return "image" if has else "text"

    def rows(self, modality: Literal["text", "image"], ids: Sequence[str]) -> Any:
        """What the model is shown of stimuli: pictures as such where it can see new ones, too."""
        encoder = self.found.checkpoint.model.config.image_input
        if modality == "image" and self.found.dataset.image_size is not None and can_encode(encoder):
            return self.found.dataset.images(ids)
        found = condition(self.found.checkpoint, self.found.dataset, modality, ids)
        return found if isinstance(found, list) else np.asarray(found)

    def read(self, asked: str) -> Shaped[np.ndarray, "n ..."]:
        """Pictures of a file or a folder, or rows of an array."""
        path, files = Path(asked), [asked]
        if path.is_dir():
            files = [str(file) for file in sorted(path.iterdir()) if file.suffix.lower() in PICTURE_SUFFIXES]
            if not files:
                raise UserError(
                    f"{asked}: expected a folder of pictures ({', '.join(sorted(PICTURE_SUFFIXES))}), got one without. "
                    "Is it the right folder, and do the pictures lie in a folder below it?"
                )
        subject = self.found.subjects[0]
        reader = Reader(Request(self.found.path, (f"brain:{subject}",), image=tuple(files)), self.found.checkpoint)
        given: list[Given] = [reader.image(file) for file in files]
        return np.concatenate([np.asarray(one.values) for one in given])

    def baseline(self, shown: Exemplars, rng: np.random.Generator) -> tuple[Exemplars, str]:
        """A broad sample of other things, and what it is in words."""
        if shown.modality == "text" and self.by_words and self.captions:
            others = sorted({c for c in self.captions if not any(one <= content_words(c) for one in shown.said)})
            if not others:
                raise UserError("localize: expected training captions of other things, got none. Give --against.")
            picks = rng.choice(len(others), min(NUM_BASELINE, len(others)), replace=False)
            rows = [others[pick] for pick in sorted(picks)]
            return Exemplars("text", rows, [], len(rows)), f"{len(rows)} random training captions that do not name it"
        if self.found.dataset.image_size is None and shown.modality == "image":
            raise UserError("localize: expected --against, got none, and the dataset has no pictures to be a baseline.")
        data = self.found.dataset
        split = self.split if shown.modality == "image" else None
        ids = list(data.split_ids(split)) if split else [s for s in data.stimulus_ids if data.captions(s)]
        kept = ~self.named(shown.said, ids)
        ids = [stimulus for stimulus, other in zip(ids, kept, strict=True) if other]
        ids = ids if split else self.held_out(ids)
        if not ids:
            raise UserError(
                "localize: expected stimuli that do not show it, to be its baseline, got none. Give --against."
            )
        picks = np.sort(rng.choice(len(ids), min(NUM_BASELINE, len(ids)), replace=False))
        chosen = [ids[pick] for pick in picks]
        other = Exemplars(shown.modality, self.rows(shown.modality, chosen), [], self.trained(chosen))
        check_same_form(shown, other)
        return other, f"{len(picks)} {f'random {split} stimuli' if split else 'other stimuli'} that do not show it"


def last_place(caption: str) -> str | None:
    """The last phrase of place of a caption, such as 'on the beach'; None if there is none behind something else."""
    said = words(caption)
    at = [place for place, word in enumerate(said) if word in PLACE_WORDS and 0 < place < len(said) - 1]
    return " ".join(said[at[-1] :]) if at else None


def suggestion(said: frozenset[str], known: frozenset[str]) -> str:
    near = sorted({match for word in said for match in get_close_matches(word, known, n=2)})
    return f"did you mean {listed(near)}?" if near else f"there are {listed(sorted(known), 8)}"


def joined(parts: Sequence[Any]) -> Any:
    return [row for part in parts for row in part] if isinstance(parts[0], list) else np.concatenate(list(parts))


# --- statistics -----------------------------------------------------------------------------------------------------


def expected(found: Experiment, kind: Exemplars, subject: str) -> Float[np.ndarray, "n v"]:
    """The expected response of one subject to each exemplar."""
    values = generate(found.checkpoint, {kind.modality: kind.rows}, f"brain:{subject}", GenerationConfig())
    return np.asarray(values, dtype=np.float64)


# A exemplars of one kind, B of the other, V sites
def contrast(first: Float[np.ndarray, "a v"], second: Float[np.ndarray, "b v"], rng: np.random.Generator) -> Contrast:
    """The difference of means, its t (Welch), p (labels permuted, two-sided) and q (Benjamini & Hochberg 1995)."""
    difference = first.mean(axis=0) - second.mean(axis=0)
    if min(len(first), len(second)) < LEAST:
        return Contrast(difference, None, None, None)
    pooled = np.concatenate([first, second])
    pooled = pooled - pooled.mean(axis=0)
    labels = np.arange(len(pooled)) < len(first)
    t = welch(pooled, labels[None])[0]
    reached = np.zeros(pooled.shape[1])
    for _ in range(PERMUTATIONS // 100):
        permuted = rng.permuted(np.repeat(labels[None], 100, axis=0), axis=1)
        reached += (np.abs(welch(pooled, permuted)) >= np.abs(t) - 1e-9).sum(axis=0)
    p = (1 + reached) / (1 + PERMUTATIONS)
    return Contrast(difference, t, p, false_discovery_control(p))  # Benjamini & Hochberg 1995


def welch(values: Float[np.ndarray, "n v"], labels: Bool[np.ndarray, "k n"]) -> Float[np.ndarray, "k v"]:
    """Welch's t of the rows with a label against those without, for each labelling; 0 where nothing varies."""
    means, errors = [], []
    for side in (labels.astype(float), (~labels).astype(float)):
        count = side.sum(axis=1, keepdims=True)
        mean = side @ values / count
        means.append(mean)
        errors.append((side @ values**2 / count - mean**2).clip(min=0) / (count - 1))
    error = np.sqrt(errors[0] + errors[1])
    return np.divide(means[0] - means[1], error, out=np.zeros_like(error), where=error > 1e-10)


def ranking(
    found: Contrast,
    first: Float[np.ndarray, "a v"],
    second: Float[np.ndarray, "b v"],
    regions: Mapping[str, Bool[np.ndarray, "v"]],
    rng: np.random.Generator,
) -> dict[str, dict[str, Any]]:
    """Regions by their mean contrast, highest first, with a 95 % interval (bootstrap over exemplars of each kind)."""
    means = [np.stack([kind[:, sites].mean(axis=1) for sites in regions.values()], axis=1) for kind in (first, second)]
    resampled = [rng.multinomial(len(m), np.full(len(m), 1 / len(m)), RESAMPLES) @ m / len(m) for m in means]
    low, high = np.percentile(resampled[0] - resampled[1], (2.5, 97.5), axis=0)
    told: dict[str, dict[str, Any]] = {}
    for place, (name, sites) in enumerate(regions.items()):
        told[name] = {
            "contrast": found.contrast[sites].mean(),
            "interval": [low[place], high[place]] if found.t is not None else None,
            "auc": None if sites.all() else roc_auc_score(sites, found.contrast),
            "significant": None if found.q is None else ((found.q < FDR) & (found.contrast > 0))[sites].mean(),
            "sites": int(sites.sum()),
        }
    return dict(sorted(told.items(), key=lambda one: -one[1]["contrast"]))


# --- what it is held against ----------------------------------------------------------------------------------------


def judged(
    found: Experiment,
    subject: str,
    made: Contrast,
    responses: tuple[np.ndarray, np.ndarray],
    kinds_shown: tuple[Exemplars, Exemplars],
    split: Split,
    truth: Truth | None,
    rng: np.random.Generator,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Figures of one subject, and the maps that are drawn."""
    space = found.space(subject)
    regions = ranking(made, *responses, all_regions(space), rng)
    facts: dict[str, Any] = {
        "significant_sites": None if made.q is None else int((made.q < FDR).sum()),
        "sites": space.num_sites,
        "regions": regions,
        "top_region": next(iter(regions), None),
        "measured": None,
        "truth": None,
    }
    maps = {f"{subject}: predicted": made.contrast}
    said = (kinds_shown[0].said, kinds_shown[1].said)
    measured, why = measured_contrast(found, subject, said, split)
    true = None if truth is None else true_contrast(truth, said)
    turned = spins(space, ROTATIONS, rng) if measured is not None or true is not None else None
    if measured is None:
        facts["measured_note"] = why
    else:
        facts["measured"] = agreement(made, measured.values, turned) | {"stimuli": measured.num, "split": split}
        maps[f"{subject}: measured, r across sites {facts['measured']['r']:.2f}"] = measured.values
    if true is not None:
        selective = true.ratio > SELECTIVE
        some = selective.any() and not selective.all()
        facts["truth"] = agreement(made, true.values, turned) | {
            "auc": roc_auc_score(selective, made.contrast) if some else None,
            "selective_sites": int(selective.sum()),
            "definition": "selectivity for the category; selective: (A - B) / (A + B) above 1/3, B the mean of others",
        }
    return facts, maps


def agreement(made: Contrast, other: Float[np.ndarray, "v"], turned: Spins | None) -> dict[str, Any]:
    assert turned is not None
    r, p = map_agreement(other, made.contrast, turned)
    return {"r": r, "p": p, "note": turned.note}


class Measured(NamedTuple):
    values: Float[np.ndarray, "v"]
    num: tuple[int, int]  # stimuli of either kind


def measured_contrast(
    found: Experiment, subject: str, said: tuple[list[frozenset[str]], list[frozenset[str]]], split: Split
) -> tuple[Measured | None, str]:
    """The same contrast of measured responses to stimuli whose captions name the kinds; or why there is none."""
    if not said[0]:
        return None, "No measured contrast: files have no words that captions could be searched for."
    if split == "train":
        return None, "No measured contrast: the model was trained on the responses to these stimuli. Use --split test."
    averages = found.dataset.averages(subject, split)
    source = Source(found, 0, split)
    first = source.named(said[0], averages.stimulus_ids)
    second = source.named(said[1], averages.stimulus_ids) & ~first if said[1] else ~first
    num = (int(first.sum()), int(second.sum()))
    if min(num) < MIN_STIMULI:
        return None, f"No measured contrast: captions name the kinds in {num[0]} and {num[1]} {split} stimuli only."
    either = first | second
    maps = selectivity_maps(averages.responses[either], {"kind": first[either]})
    return Measured(maps["kind"], num), ""


class Selectivity(NamedTuple):
    values: Float[np.ndarray, "v"]
    ratio: Float[np.ndarray, "v"]  # (A - B) / (A + B)


def true_contrast(known: Truth, said: tuple[list[frozenset[str]], list[frozenset[str]]]) -> Selectivity | None:
    """How much more a simulated site is selective for the categories named first; sites without categories have 0."""
    columns = [
        [i for i, (nouns, _) in enumerate(CATEGORIES.values()) if any(set(nouns) & one for one in kind)]
        for kind in said
    ]
    if not columns[0]:
        return None
    others = columns[1] or [i for i in range(len(CATEGORIES)) if i not in columns[0]]
    first, second = (np.nan_to_num(known.category[:, which]).mean(axis=1) for which in (columns[0], others))
    total = first + second
    return Selectivity(first - second, np.divide(first - second, total, out=np.zeros_like(total), where=total > 0))


# --- figure ---------------------------------------------------------------------------------------------------------


def draw_regions(told: Mapping[str, Mapping[str, Any]], title: str) -> bytes:
    """The mean contrast of every region, with its interval, one panel a subject."""
    from matplotlib.figure import Figure

    most = max(len(facts["regions"]) for facts in told.values())
    figure = Figure((min(2.6 * len(told) + 0.6, 14), 0.9 + 0.19 * most), dpi=160, layout="constrained")
    figure.suptitle(title, fontsize=9, color=INK, weight="bold")
    for axes, (subject, facts) in zip(figure.subplots(1, len(told), squeeze=False)[0], told.items(), strict=True):
        regions = facts["regions"]
        at = np.arange(len(regions))
        values = np.array([one["contrast"] for one in regions.values()])
        axes.barh(at, values, color=[RED if value > 0 else GREY for value in values], height=0.7, alpha=0.75)
        for place, one in zip(at, regions.values(), strict=True):
            if one["interval"] is not None:
                axes.plot(one["interval"], [place, place], color=INK, lw=0.8)
        axes.axvline(0, color=INK, lw=0.5)
        axes.set_yticks(at, list(regions), fontsize=7)
        axes.invert_yaxis()
        axes.tick_params(labelsize=7, length=2, colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(subject, fontsize=8, color=INK)
        axes.set_xlabel("mean contrast (z)", fontsize=7, color=INK)
    return encoded(figure)


def summary(found: Localized) -> list[str]:
    """A line for each subject: its first regions, and what the map was held against; and remarks."""
    lines = []
    for subject, facts in found.results["subjects"].items():
        first = ", ".join(f"{name} {one['contrast']:+.2f}" for name, one in list(facts["regions"].items())[:3])
        told = [f"{subject}: {first}"]
        for name in ("measured", "truth"):
            if facts[name] is not None:
                p = "" if facts[name]["p"] is None else f" (p {facts[name]['p']:.3g})"
                told.append(
                    f"r with the {'measured contrast' if name == 'measured' else name} {as_told(facts[name]['r'])}{p}"
                )
        lines.append("; ".join(told))
    return lines + [f"Note: {remark}" for remark in found.results["remarks"]]
