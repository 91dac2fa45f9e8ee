"""The card of a dataset: what it holds, where it came from, what was done to it, and whose brains these are.

Enters: a Dataset. Leaves: DIR/README.md, beside what the manifest lists: neither the fingerprint nor `verify` knows of
it. Only what the files say is written; a path, a stimulus or a caption never is.

Source: Gebru et al. 2018, "Datasheets for Datasets", in the form of the Hugging Face Hub. Differs: what only people
know (why it was recorded, who consented to what) is asked for under "Notes".
"""

import json
import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from brainjanus.core.card import Card, bullets, plain, table
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import SPLITS, Dataset, Trials, listed

CARD = "README.md"
GUIDE = "docs/guide/responsible.md"  # of BrainJanus
ZSCORED = {
    "session": "per site and session, with training trials only",
    "all": "per site over all sessions, with training trials only",
    "none": "not at all",
}
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
PERSONAL = (
    "These are recordings of brains. If they are people's, they are personal data, under pseudonyms such as subj01 and "
    "without a face, too: the consent that was given and the terms of the source hold for this copy, for every part of "
    "it, and for models that are trained on it. The names of subjects stand in this card: they must not be those of "
    "people."
)
SIMULATED = "The responses were computed by a simulation: there is no person behind them."


class Source(NamedTuple):
    """A published collection: how it is called, how it is cited, and where its terms are read. licence: as the front
    matter has it."""

    name: str
    cite: tuple[str, ...]
    terms: str
    licence: dict[str, str] = {}  # noqa: RUF012 (never changed)


_COCO = (
    "Lin, T.-Y., et al. (2014). Microsoft COCO: Common objects in context. ECCV. arXiv:1405.0312. Its captions are "
    "CC BY 4.0; the pictures belong to their photographers (https://cocodataset.org/#termsofuse)."
)
_THINGS = "Hebart, M. N., et al. (2019). THINGS: A database of 1,854 object concepts and more than 26,000 naturalistic "
_THINGS += "object images. PLoS ONE 14(10), e0223792. doi:10.1371/journal.pone.0223792"
NSD = Source(
    "the Natural Scenes Dataset (NSD)",
    (
        "Allen, E. J., et al. (2022). A massive 7T fMRI dataset to bridge cognitive neuroscience and artificial "
        "intelligence. Nature Neuroscience 25, 116-126. doi:10.1038/s41593-021-00962-x",
        _COCO,
    ),
    "NSD's data sharing agreement allows research and education only, and forbids to distribute the data or components "
    "of it, and to look for protected health information of the subjects (http://naturalscenesdataset.org). This "
    "folder is made of such components: it is not to be passed on.",
    {"license": "other", "license_name": "nsd-terms", "license_link": "http://naturalscenesdataset.org"},
)
SOURCES = {
    "nsd": NSD,
    "things-eeg2": Source(
        "THINGS-EEG2",
        (
            "Gifford, A. T., Dwivedi, K., Roig, G., & Cichy, R. M. (2022). A large and rich EEG dataset for modeling "
            "human visual object recognition. NeuroImage 264, 119754. doi:10.1016/j.neuroimage.2022.119754",
            _THINGS,
        ),
        "The terms of the recordings and of the pictures are read at https://osf.io/3jk45 and https://osf.io/jum2f.",
    ),
    "things-meg": Source(
        "THINGS-MEG",
        (
            "Hebart, M. N., et al. (2023). THINGS-data, a multimodal collection of large-scale datasets for "
            "investigating object representations in human brain and behavior. eLife 12, e82580. "
            "doi:10.7554/eLife.82580",
            _THINGS,
        ),
        "The raw recordings are CC0 (https://openneuro.org/datasets/ds004212); the terms of the pictures are read at "
        "https://osf.io/jum2f.",
    ),
}


class Count(NamedTuple):
    """Of one subject and split: trials, stimuli, and repeats of a stimulus (the fewest and the most)."""

    trials: int
    stimuli: int
    repeats: tuple[int, int]

    @classmethod
    def of(cls, trials: Trials, split: str) -> "Count":
        times = Counter(trials.stimulus_id[row] for row in trials.rows(split).tolist())
        return cls(times.total(), len(times), (min(times.values()), max(times.values())) if times else (0, 0))


def dataset_card(dataset: Dataset, exported: str = "") -> Card:
    """What is known of a dataset. exported: the layout of a peer that it was written in."""
    spaces = {who: dataset.space(who) for who in dataset.subjects}
    counts = {who: {split: Count.of(dataset.trials(who), split) for split in SPLITS} for who in dataset.subjects}
    num_trials = sum(count.trials for of_subject in counts.values() for count in of_subject.values())
    source = source_of(dataset)
    facts = {
        **(source.licence if source else {}),
        "pretty_name": dataset.name,
        "tags": ["brainjanus", "neuroscience", "brain-recordings", *tags_of(dataset.modality)],
        "size_categories": [next((name for most, name in SIZES if num_trials < most), "n>10M")],
    }
    sections = (
        ("What it holds", _holds(dataset, num_trials, exported)),
        ("Where it came from", _origin(dataset, source)),
        ("Subjects", _subjects(dataset, spaces, counts)),
        ("Stimuli and splits", _stimuli(dataset, counts)),
        ("What was done to the responses", _processing(dataset)),
        ("Checks", _checks(dataset)),
        ("Limits", bullets(_limits(dataset, spaces, counts))),
        ("Privacy", _privacy(dataset)),
        ("Licence", _licence(dataset, source)),
        ("How to cite", bullets(source.cite) if source else ""),
    )
    return Card(plain(dataset.name), facts, sections)


def source_of(dataset: Dataset) -> Source | None:
    """Which published collection this is, by its stimuli or its layout; None: of one's own, or not known."""
    layout = provenance_of(dataset).get("layout")
    ids = dataset.stimulus_ids
    if ids and all(re.fullmatch(r"nsd-\d{5}", name) for name in ids):
        return NSD
    return None if layout == "nsd" else SOURCES.get(str(layout))


def provenance_of(dataset: Dataset) -> dict[str, Any]:
    found = dataset.manifest.get("provenance")
    return found if isinstance(found, dict) else {}


def is_simulated(dataset: Dataset) -> bool:
    return "simulation" in provenance_of(dataset) or "simulated" in dataset.modality.lower()


def tags_of(modality: str) -> list[str]:
    """What the Hub can be searched for."""
    words = re.findall(r"[a-z0-9]+", modality.lower())
    known = ("fmri", "eeg", "meg", "simulated", "spike", "neurons")
    return [word for word in dict.fromkeys(words) if word in known]


# ---------------------------------------------------------------------------------------------------- sections


def _holds(dataset: Dataset, num_trials: int, exported: str) -> str:
    captions = ", ".join(dataset.caption_sources) if dataset.caption_sources else "none"
    rows = {
        "recording": dataset.modality,
        "subjects": f"{len(dataset.subjects)}",
        "trials": f"{num_trials:,}",
        "stimuli": f"{len(dataset.stimulus_ids):,}",
        "pictures": f"{dataset.image_size} x {dataset.image_size} pixels" if dataset.image_size else "none",
        "captions": captions,
        "stored features": listed(dataset.feature_names),
        "fingerprint": dataset.fingerprint,
    }
    read = (
        "It is read by BrainJanus: `brainjanus.Dataset.open(FOLDER)` from Python, `brainjanus train FOLDER --out RUN`."
    )
    if exported:
        read = (
            f"This folder holds it in the layout {exported}, as `brainjanus export` writes it: perhaps not all "
            f"subjects, and nothing that the layout has no place for. `brainjanus prepare --from {exported} FOLDER` "
            "reads it back."
        )
    return f"{table(('', ''), list(rows.items()))}\n\n{read}"


def _origin(dataset: Dataset, source: Source | None) -> str:
    provenance = provenance_of(dataset)
    if "simulation" in provenance:
        settings = provenance["simulation"]
        seed = f" (seed {settings['seed']})" if isinstance(settings, dict) and "seed" in settings else ""
        return f"Made by `brainjanus simulate`{seed}. Its settings stand in `dataset.json`."
    lines = []
    if source is not None:
        lines.append(f"By its stimuli and files, this is {source.name}.")
    if layout := provenance.get("layout"):
        lines.append(f"It was read from files in the layout {plain(layout)}.")
    elif "config" in provenance:
        lines.append("It was prepared from arrays or images, tables of trials, and pictures or captions.")
    else:
        lines.append("How it was made is not recorded.")
    if num := len(provenance.get("notices") or ()):
        lines.append(f"What `prepare` left out or found doubtful stands in `dataset.json` (notices: {num}).")
    return " ".join(lines)


def _subjects(dataset: Dataset, spaces: dict[str, BrainSpace], counts: dict[str, dict[str, Count]]) -> str:
    rows = []
    for who, space in spaces.items():
        ceiling = space.noise_ceiling(1)
        rows.append(
            (
                who,
                f"{space.num_sites:,} {space.kind}",
                *(f"{counts[who][split].trials:,}" for split in SPLITS),
                len(set(dataset.trials(who).session.tolist())),
                "in mm" if space.points_mm is not None else "none",
                listed(space.rois),
                "unknown" if ceiling is None else f"{np.median(ceiling):.2f}",
            )
        )
    columns = (
        "subject",
        "sites",
        *(f"{split} trials" for split in SPLITS),
        "sessions",
        "coordinates",
        "regions",
        "ceiling",
    )
    note = (
        "Ceiling: the largest correlation with a single trial that noise allows (Allen et al. 2022), median of sites."
    )
    return f"{table(columns, rows)}\n\n{note}"


def _stimuli(dataset: Dataset, counts: dict[str, dict[str, Count]]) -> str:
    rows = []
    for split in SPLITS:
        least = [count[split].repeats[0] for count in counts.values() if count[split].trials]
        most = [count[split].repeats[1] for count in counts.values()]
        if least:
            times = f"{min(least)}" if min(least) == max(most) else f"{min(least)} to {max(most)}"
            rows.append((split, f"{len(dataset.split_ids(split)):,}", times))
    note = "Splits are by stimulus, over all subjects: no stimulus, and no picture pixel by pixel, is in two of them."
    merged = provenance_of(dataset).get("merged")
    same = f" {len(merged):,} stimuli showed the same picture as another and are one with it." if merged else ""
    return f"{table(('split', 'stimuli', 'times shown to a subject'), rows)}\n\n{note}{same}"


def _processing(dataset: Dataset) -> str:
    how = ZSCORED.get(str(dataset.manifest.get("zscore")), "in a way that is not recorded")
    dropped = provenance_of(dataset).get("dropped_sites") or {}
    left_out = f" {sum(dropped.values()):,} sites whose training responses never vary were left out." if dropped else ""
    told = f"Responses are z-scored {how}.{left_out}"
    if is_simulated(dataset):
        return told
    return f"{told} What came before (motion, denoising, the GLM, which sites were chosen) belongs under Notes."


def _checks(dataset: Dataset) -> str:
    """What `brainjanus doctor` found, if its report lies where it is written by default."""
    here = dataset.path.resolve()
    report = here.parent / f"{here.name}-doctor" / "doctor.json"
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
        if found["fingerprint"] != dataset.fingerprint:
            raise ValueError("of another dataset")
        lights = ", ".join(f"{count} {light}" for light, count in found["lights"].items() if count)
        grave = [f"{one['light']}: {plain(one['kind'] or one['check'])}" for one in found["findings"]
                 if one["light"] in ("red", "yellow")]  # fmt: skip
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return "`brainjanus doctor` has not looked at it, or its report is not beside it."
    told = f"`brainjanus doctor` found: {lights}."
    return f"{told}\n\n{bullets(list(dict.fromkeys(grave)))}" if grave else told


def _limits(dataset: Dataset, spaces: dict[str, BrainSpace], counts: dict[str, dict[str, Count]]) -> list[str]:
    lines = []
    if is_simulated(dataset):
        lines.append("Simulated responses say nothing about a brain; they serve to test methods whose truth is known.")
    elif "fmri" not in dataset.modality.lower():
        lines.append("These recordings are not fMRI: figures on them do not compare with fMRI studies.")
    few = "subject" if len(dataset.subjects) == 1 else "subjects"
    lines.append(f"{len(dataset.subjects)} {few}: nothing here speaks for people in general.")
    if nowhere := [who for who, space in spaces.items() if space.points_mm is None]:
        lines.append(
            f"Where sites lie is not known ({listed(map(plain, nowhere))}): no map on the cortex can be drawn."
        )
    if unknown := [who for who, space in spaces.items() if space.noise_variance is None]:
        lines.append(f"Nothing was shown twice to {listed(map(plain, unknown))}: there is no noise ceiling.")
    fewest = min(of_subject["test"].stimuli for of_subject in counts.values())
    if fewest < 100:
        lines.append(f"As few as {fewest} test stimuli of a subject: intervals of scores are wide.")
    if dataset.image_size is None:
        lines.append("There are no pictures.")
    if not dataset.caption_sources:
        lines.append("There are no captions.")
    return lines


def _privacy(dataset: Dataset) -> str:
    if is_simulated(dataset):
        return SIMULATED
    return f"{PERSONAL} BrainJanus's guide says more ({GUIDE})."


def _licence(dataset: Dataset, source: Source | None) -> str:
    if source is not None:
        return source.terms
    if "simulation" in provenance_of(dataset):
        return "None is set: what you simulate is yours. Put `license: ...` at the end of the front matter."
    return (
        "None is set, because the files do not say what the source allows. Put `license: ...` at the end of the front "
        "matter, and where the terms are read under Notes."
    )
