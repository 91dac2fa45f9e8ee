"""What experiments share: a run enters, opened with its dataset; regions have names; one folder of results leaves.

    OUT/figure.png              what there is to see
        results.json            every figure, with its floor, p, n, seed and protocol
        SUBJECT/NAME.npy        maps [maps, sites]; also NAME.nii.gz where the subject is a volume, or
                                NAME_hemi-L.func.gii and -R where it is a surface; NAME.json: what each map is

A region is a ROI, several ROIs joined by +, sites by number (sites:0-9,12), or, of sensors, a sensor's name or a window
of time (100-200ms).
"""

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.typing import ArrayLike

from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import SPLITS, Dataset, listed
from brainjanus.data.simulate import Truth
from brainjanus.data.truth import load_truth
from brainjanus.evaluate.protocol import hash_of_ids, software
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.outputs import save_gifti, save_nifti
from brainjanus.run import Run, check_same_data, dataset_of, subjects_of

BLOCKS = 8  # parts that a brain without ROIs is cut into
RESAMPLES, PERMUTATIONS = 2000, 50_000
INK, GREY, RED = "#222222", "#777777", "#c0392b"


class Experiment(NamedTuple):
    """A trained run with the dataset it was trained on. subjects: whose brains are asked."""

    path: Path
    checkpoint: Checkpoint
    dataset: Dataset
    subjects: tuple[str, ...]

    def space(self, subject: str) -> BrainSpace:
        return self.dataset.space(subject)

    def stimuli(self, split: str) -> list[str]:
        """The stimuli of a split that one of the subjects saw, sorted. Raises UserError if there are none."""
        if split not in SPLITS:
            raise UserError(f"--split: expected one of {', '.join(SPLITS)}, got '{split}'. Choose one of these.")
        seen = sorted({one for subject in self.subjects for one in self.dataset.trials(subject).stimuli(split)})
        if not seen:
            raise UserError(
                f"{self.dataset.path}: expected stimuli of the split '{split}', got none. Choose another --split."
            )
        return seen

    def protocol(self, ids: Sequence[str], split: str, **more: object) -> dict[str, Any]:
        """What a figure depends on."""
        return {
            "fingerprint": self.dataset.fingerprint,
            "subjects": ", ".join(self.subjects),
            "split": split,
            "stimuli": hash_of_ids(ids),
            "repeats": "responses averaged over repeats",
            "software": software(),
            **more,
        }


def opened(run: Run | Path | str, dataset: Path | str | None = None, subjects: Sequence[str] = ()) -> Experiment:
    """A run to be asked. dataset: where it is now, if it was moved. subjects: default: all that both know.

    Raises UserError if the dataset is another than that of training, or the run or the dataset lacks a subject.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    found = Dataset.open(dataset_of(run.path, "--dataset DATASET") if dataset is None else dataset)
    check_same_data(run.checkpoint, found, run.path)
    known = subjects_of(run.checkpoint, found)
    shared = tuple(subject for subject in found.subjects if subject in known)
    unknown = [subject for subject in subjects if subject not in shared]
    if unknown:
        raise UserError(f"--subjects: expected some of {', '.join(shared)}, got '{unknown[0]}'. Name some of these.")
    return Experiment(run.path, run.checkpoint, found, tuple(dict.fromkeys(subjects)) or shared)


def own_subjects(checkpoint: Checkpoint) -> list[str]:
    """The subjects that a model was trained on: those that were added later speak through them."""
    added = () if checkpoint.relays is None else checkpoint.relays.subjects
    return [subject for subject in checkpoint.tokenizers.brain.subjects if subject not in added]


def check_own(asked: Experiment, command: str) -> None:
    """Raises UserError for a subject that the model has expected responses of, but no codes and no likelihoods."""
    own = own_subjects(asked.checkpoint)
    added = [subject for subject in asked.subjects if subject not in own]
    if added:
        raise UserError(
            f"{command}: expected subjects that the model was trained on ({', '.join(own)}), got '{added[0]}', which "
            "`brainjanus adapt` added: others speak for it, and the model has no likelihoods and no codes of its own "
            "for it. Ask about the others, with the dataset of training (--dataset)."
        )


def check_seed(command: str, seed: int) -> None:
    if seed < 0:
        raise UserError(f"{command} --seed: expected a number of 0 or more, got {seed}. Give another.")


def truth_of(asked: Experiment, subject: str, folder: Path | str | None = None) -> Truth | None:
    """What a simulated study knows of a subject's cortex. folder: default: that of the dataset; None without one.

    Raises UserError for a folder that was named and has no truth of this subject.
    """
    place = asked.dataset.path.parent if folder is None else Path(folder)
    space = asked.space(subject)
    has = "simulation" in asked.dataset.manifest.get("provenance", {}) and space.geometry.get("type") != "sensors"
    if folder is None and not (has and (place / "truth" / f"{subject}.safetensors").is_file()):
        return None
    if not has:
        raise UserError(
            f"--truth {folder}: expected a run on a simulated cortex, which alone has a truth, got one on "
            f"{asked.dataset.path}. Leave --truth out."
        )
    truth = load_truth(Truth, place, subject)
    if len(truth.x_deg) != space.num_sites:
        raise UserError(
            f"--truth {place}: expected the {space.num_sites} sites of {subject}, got {len(truth.x_deg)}. Does it "
            "belong to another study? Give the folder that this dataset was simulated into."
        )
    return truth


def trust_of(asked: Experiment, kinds: Sequence[str] = ()) -> dict[str, Any]:
    """How much of the expected responses is the model, and how much the linear draft.

    kinds: from what they are expected, "image", "text", "image+text"; none: there are no expected responses.
    """
    if not kinds:
        return {"definition": "no expected responses: likelihoods and codes are the model's alone"}
    drafts, relays = asked.checkpoint.drafts, asked.checkpoint.relays
    told: dict[str, Any] = {
        "definition": "expected response = trust x the model's + (1 - trust) x the linear draft's; an adapted subject "
        "has a linear map of those of its speakers"
    }
    for subject in asked.subjects:
        added = relays is not None and subject in relays.subjects
        speakers = list(relays.relay(subject).known) if relays is not None and added else [subject]
        each = {
            speaker: {
                kind: float(drafts.trust(speaker).of(kind))
                if drafts is not None and set(kind.split("+")) & set(drafts.reads)
                else 1.0
                for kind in dict.fromkeys(kinds)
            }
            for speaker in speakers
        }
        told[subject] = {"speakers": each} if added else each[subject]
    return told


# --- regions --------------------------------------------------------------------------------------------------------


def region(space: BrainSpace, name: str) -> Bool[np.ndarray, "v"]:
    """The sites of a region of one subject. Raises UserError if it is unknown, or has no site."""
    parts = [_part(space, part.strip()) for part in name.split("+")]
    sites = np.logical_or.reduce(parts)
    if not sites.any():
        raise UserError(f"region '{name}': expected at least one site of {space.subject}, got none. Choose another.")
    return sites


def _part(space: BrainSpace, name: str) -> Bool[np.ndarray, "v"]:
    if name in space.rois:
        return np.asarray(space.rois[name], dtype=bool)
    if name.startswith("sites:"):
        return _numbered(space, name)
    sensors = space.geometry.get("type") == "sensors"
    if sensors:
        assert space.index is not None
        names, times = list(space.geometry["names"]), np.array(space.geometry["times_sec"]) * 1000
        window = re.fullmatch(r"(-?[\d.]+)-(-?[\d.]+)ms", name)
        if name in names:
            return space.index // len(times) == names.index(name)
        if window:
            at = times[space.index % len(times)]
            return (at >= float(window[1])) & (at < float(window[2]))
    other = f", sensors ({listed(space.geometry['names'])}) or a window such as 100-200ms" if sensors else ""
    raise UserError(
        f"region '{name}': expected one of {space.subject}: {listed(space.rois, most=40)}{other}, or sites:0-9,12 "
        f"of its {space.num_sites} sites, got an unknown one. Name one of these, or several joined by +."
    )


def _numbered(space: BrainSpace, name: str) -> Bool[np.ndarray, "v"]:
    sites = np.zeros(space.num_sites, dtype=bool)
    for part in name.removeprefix("sites:").split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if not first <= last < space.num_sites:
            raise UserError(
                f"region '{name}': expected numbers of sites from 0 to {space.num_sites - 1} of {space.subject}, as in "
                f"sites:0-9,12, got '{part}'. Correct it."
            )
        sites[first : last + 1] = True
    return sites


def named(region_or_sites: str | Sequence[int]) -> str:
    """The name of a region that may be given as numbers of sites."""
    if isinstance(region_or_sites, str):
        return region_or_sites
    return "sites:" + ",".join(str(int(site)) for site in region_or_sites)


def all_regions(space: BrainSpace) -> dict[str, Bool[np.ndarray, "v"]]:
    """The ROIs that hold some sites but not all; without any, windows of time of sensors, or stretches of cortex."""
    rois = {name: np.asarray(sites, dtype=bool) for name, sites in space.rois.items()}
    rois = {name: sites for name, sites in rois.items() if sites.any() and not sites.all()}
    if rois:
        return rois
    if space.geometry.get("type") == "sensors" and len(space.geometry["times_sec"]) > 1:
        assert space.index is not None
        times = np.array(space.geometry["times_sec"]) * 1000
        at = space.index % len(times)
        windows = [part for part in np.array_split(np.arange(len(times)), BLOCKS) if len(part)]
        return {f"{times[part[0]]:.0f} to {times[part[-1]]:.0f} ms": np.isin(at, part) for part in windows}
    assert space.order is not None
    parts = [part for part in np.array_split(space.order, BLOCKS) if len(part)]
    return {f"part {number}": np.isin(np.arange(space.num_sites), part) for number, part in enumerate(parts, start=1)}


# --- statistics -----------------------------------------------------------------------------------------------------


# N stimuli
def interval(
    values: Float[np.ndarray, "n *_"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "*_"], Float[np.ndarray, "*_"]]:
    """95 % confidence interval of the mean over the first axis, by bootstrap; NaN is left out."""
    known = np.isfinite(values)
    picks = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=RESAMPLES).astype(float)
    total = np.tensordot(picks, np.where(known, values, 0), axes=1)
    count = np.tensordot(picks, known.astype(float), axes=1)
    means = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    low, high = np.nanpercentile(means, (2.5, 97.5), axis=0)
    return np.asarray(low), np.asarray(high)


def sign_p(values: Float[np.ndarray, "n *_"], rng: np.random.Generator) -> Float[np.ndarray, "*_"]:
    """p of a mean above 0 by flipping the signs of the stimuli at random, each for itself; NaN is left out."""
    known = np.where(np.isfinite(values), values, 0).astype(float)
    reached = np.zeros(values.shape[1:])
    for size in (1000,) * (PERMUTATIONS // 1000):
        signs = rng.choice((-1.0, 1.0), size=(size, len(values)))
        reached += (np.tensordot(signs, known, axes=1) >= known.sum(axis=0) - 1e-9).sum(axis=0)
    return (1 + reached) / (1 + PERMUTATIONS)


def holm(p: ArrayLike) -> np.ndarray:
    """p-values of several tests, adjusted so that one false alarm among all of them is as rare as they say."""
    p = np.asarray(p, dtype=float)
    flat = p.ravel()
    order = np.argsort(flat)
    stepped = np.maximum.accumulate(flat[order] * (len(flat) - np.arange(len(flat))))
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted.reshape(p.shape)


# --- what is written ------------------------------------------------------------------------------------------------


@contextmanager
def results_in(out: Path | str) -> Iterator[Path]:
    """A new folder for results, there as a whole or not at all. Raises UserError if it exists."""
    check_new(out)
    with written_beside(out) as beside:
        beside.mkdir()
        yield beside


def check_new(out: Path | str | None) -> None:
    if out is not None and Path(out).exists():
        raise UserError(f"{out}: expected a new folder for the results, got one that exists. Choose another --out.")


def lines_of(file: Path) -> list[str]:
    """The sentences of a text file, one a line. Raises UserError if it cannot be read, or has none."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: expected a text with one sentence a line, got '{error}'. Give another.") from error
    if not any(lines):
        raise UserError(f"{file}: expected one sentence a line, got an empty file. Give another.")
    return [line for line in lines if line]


def save_results(folder: Path, results: Mapping[str, Any], figure: bytes) -> None:
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    (folder / "figure.png").write_bytes(figure)


def save_maps(folder: Path, name: str, space: BrainSpace, maps: Mapping[str, Float[np.ndarray, "v"]]) -> None:
    """Maps of one subject in the forms that its space has."""
    place, kind = folder / space.subject, space.geometry.get("type")
    place.mkdir(exist_ok=True)
    values = np.stack(list(maps.values())).astype(np.float32)
    np.save(place / f"{name}.npy", values)
    (place / f"{name}.json").write_text(json.dumps(list(maps), indent=1, ensure_ascii=False), encoding="utf-8")
    if kind == "volume":
        save_nifti(place / f"{name}.nii.gz", values, space)
    if kind == "surface":
        save_gifti(place, name, values, space, list(maps))


def as_numbers(values: Any) -> Any:
    """What JSON can hold: plain numbers, and null for what is not known."""
    if isinstance(values, Mapping):
        return {key: as_numbers(value) for key, value in values.items()}
    if isinstance(values, np.ndarray | list | tuple):
        return [as_numbers(value) for value in values]
    if isinstance(values, float | np.floating):
        return float(f"{values:.6g}") if np.isfinite(values) else None
    return int(values) if isinstance(values, np.integer) else values


def as_told(value: float | None, form: str = ".2f") -> str:
    """A figure as it is told; a dash for one that is not known."""
    return "–" if value is None or not np.isfinite(value) else format(value, form)


def stacked(pngs: Sequence[bytes]) -> bytes:
    """Pictures below each other, as one."""
    from PIL import Image

    parts = [opened_png(png) for png in pngs]
    width = max(part.shape[1] for part in parts)
    gaps = [width - part.shape[1] for part in parts]
    rows = [
        np.pad(part, ((0, 0), (gap // 2, gap - gap // 2), (0, 0)), constant_values=255)
        for part, gap in zip(parts, gaps, strict=True)
    ]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(file, format="png", optimize=True)
    return file.getvalue()


def opened_png(png: bytes) -> UInt8[np.ndarray, "h w 3"]:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def encoded(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white")
    return file.getvalue()
