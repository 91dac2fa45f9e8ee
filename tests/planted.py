"""A small recording, and twenty ways to spoil it: what `doctor` has to find, each by its name.

Pictures are random fields of colour with a few shapes, 48 x 48; responses are linear in what they show, seen through
noise; captions name the shapes and colours. Some defects are refused by `write_dataset`: those are made on disk.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Dataset, Stimuli, Subject, Trials
from brainjanus.data.write import write_dataset

SIZE, SITES, SESSIONS, TRAIN, TEST = 48, 60, 4, 120, 24
COLOURS = {"red": (210, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 220), "yellow": (230, 210, 50)}
SHAPES = ("square", "disc", "bar", "cross")
PLACES = ("left", "right", "top", "bottom")


@dataclass
class Study:
    """What `write` makes a dataset of. spoil: what is done to the files afterwards."""

    ids: list[str]
    pixels: np.ndarray
    captions: dict[str, list[str]]
    responses: np.ndarray
    stimulus_id: list[str]
    session: np.ndarray
    run: np.ndarray
    repeat: np.ndarray
    split: list[str]
    zscore: str = "all"
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    spoil: list[Callable[[Path], None]] = field(default_factory=list)

    def write(self, path: Path) -> Dataset:
        trials = Trials(self.stimulus_id, self.session, self.run, self.repeat, self.split)
        rois = {"V1": np.arange(SITES) < 20, "V4": np.arange(SITES) >= 40}
        subject = Subject(BrainSpace("s1", SITES, rois=rois), self.responses.astype(np.float32), trials)
        stimuli = Stimuli(self.ids, self.pixels, captions=self.captions)
        dataset = write_dataset(
            path, name="planted", modality="fMRI (simulated)", subjects=[subject], stimuli=stimuli, zscore=self.zscore
        )  # type: ignore[arg-type]
        for change in self.spoil:
            change(path)
            as_written(path)
        return Dataset.open(path) if self.spoil else dataset


def clean(seed: int) -> Study:
    """A sound recording: 4 sessions of 48 trials; test stimuli three times each, over sessions; three captions each."""
    rng = np.random.default_rng(seed)
    num = TRAIN + TEST
    ids = [f"im{i:03}" for i in range(num)]
    pixels, captions, facts = [], {}, np.zeros((num, 24))
    for row, name in enumerate(ids):
        picture, said, facts[row] = scene(rng)
        pixels.append(picture)
        captions[name] = said
    shown = np.concatenate([np.arange(TRAIN), np.repeat(np.arange(TRAIN, num), 3)])
    shown = rng.permutation(shown)
    trials = len(shown)
    session = np.arange(trials) * SESSIONS // trials + 1
    drive = facts @ rng.standard_normal((facts.shape[1], SITES))
    drive = (drive - drive.mean(axis=0)) / drive.std(axis=0)
    noise = rng.standard_normal((trials, 8)) @ rng.standard_normal((8, SITES)) / 4 + rng.standard_normal(
        (trials, SITES)
    )
    responses = rng.normal(3, 2, SITES) + rng.uniform(0.5, 3, SITES) * (drive[shown] + noise)
    seen: dict[int, int] = {}
    repeat = []
    for stimulus in shown.tolist():
        seen[stimulus] = seen.get(stimulus, -1) + 1
        repeat.append(seen[stimulus])
    return Study(
        ids, np.stack(pixels), captions, responses, [ids[i] for i in shown], session,
        np.arange(trials) // 12 % 4 + 1, np.array(repeat), ["train" if i < TRAIN else "test" for i in shown], rng=rng,
    )  # fmt: skip


def scene(rng: np.random.Generator) -> tuple[np.ndarray, list[str], np.ndarray]:
    """A picture, its captions, and what is in it."""
    coarse = rng.integers(60, 200, (4, 4, 3)).astype(np.uint8)
    field_ = np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float64)
    picture = field_ + 14 * rng.standard_normal((SIZE // 2, SIZE // 2, 1)).repeat(2, 0).repeat(2, 1)
    facts = np.zeros(24)
    facts[8:20] = coarse.reshape(2, 2, 2, 2, 3).mean(axis=(1, 3)).reshape(-1) / 60
    words = []
    y, x = np.mgrid[:SIZE, :SIZE]
    for _ in range(2):
        colour, shape, place = rng.integers(0, 4, 3)
        cx, cy = {0: (12, 24), 1: (36, 24), 2: (24, 12), 3: (24, 36)}[int(place)]
        cx, cy = cx + rng.integers(-4, 5), cy + rng.integers(-4, 5)
        size = rng.integers(6, 10)
        dx, dy = np.abs(x - cx), np.abs(y - cy)
        inside = {
            0: np.maximum(dx, dy) < size,
            1: dx**2 + dy**2 < size**2,
            2: (dx < size) & (dy < 3),
            3: ((dx < 2) & (dy < size)) | ((dy < 2) & (dx < size)),
        }[int(shape)]
        picture[inside] = list(COLOURS.values())[colour]
        facts[colour] += 1.5
        facts[4 + shape] += 1.0
        facts[20 + place] += 0.5
        words.append(f"{list(COLOURS)[colour]} {SHAPES[shape]} {PLACES[place]}")
    said = [f"a {words[0]} and a {words[1]}", f"{words[1]} beside {words[0]}", f"there is a {words[0]}"]
    return picture.clip(0, 255).astype(np.uint8), said, facts


# ---------------------------------------------------------------------------------------------------- on disk


def as_written(path: Path) -> None:
    """The manifest says what lies there, as if the files had been written so."""
    manifest = json.loads((path / "dataset.json").read_text())
    for name, facts in manifest["files"].items():
        facts["bytes"] = (path / name).stat().st_size
    (path / "dataset.json").write_text(json.dumps(manifest))


def with_responses(change: Callable[[np.ndarray, Trials], np.ndarray]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        file = path / "subjects/s1/responses.safetensors"
        responses = load_file(file)["responses"].copy()
        save_file({"responses": np.ascontiguousarray(change(responses, Dataset.open(path).trials("s1")))}, file)

    return spoil


def with_trials(change: Callable[[Trials], Trials]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        change(Dataset.open(path).trials("s1")).save(path / "subjects/s1/trials.tsv")

    return spoil


def with_pixels(change: Callable[[np.ndarray, Trials], None]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        file = path / "images.safetensors"
        arrays = {name: array.copy() for name, array in load_file(file).items()}
        change(arrays["pixels"], Dataset.open(path).trials("s1"))
        save_file(arrays, file)

    return spoil


# ---------------------------------------------------------------------------------------------------- defects


def nan(study: Study) -> None:
    def change(responses: np.ndarray, _: Trials) -> np.ndarray:
        responses[17, 5] = np.nan
        return responses

    study.spoil.append(with_responses(change))


def constant_site(study: Study) -> None:
    def change(responses: np.ndarray, _: Trials) -> np.ndarray:
        responses[:, 11] = 0
        return responses

    study.spoil.append(with_responses(change))


def constant_in_a_session(study: Study) -> None:
    study.responses[study.session == 3, 7] = study.responses[:, 7].mean()


def duplicated_trials(study: Study) -> None:
    """A run was exported twice, under the next run's stimuli."""
    rows = np.flatnonzero(np.array(study.split) == "train")
    study.responses[rows[40:50]] = study.responses[rows[20:30]]


def stimulus_in_both(study: Study) -> None:
    def change(trials: Trials) -> Trials:
        split = list(trials.split)
        split[trials.rows("test")[0]] = "train"
        return trials._replace(split=split)

    study.spoil.append(with_trials(change))


def identical_picture(study: Study) -> None:
    study.spoil.append(with_pixels(lambda pixels, _: pixels.__setitem__(TRAIN + 2, pixels[5])))


def near_duplicate(study: Study) -> None:
    """Cropped by 8 % and made larger again."""
    picture = Image.fromarray(study.pixels[9]).crop((1, 2, 45, 46)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    study.pixels[TRAIN + 4] = np.asarray(picture)


def flipped(study: Study) -> None:
    study.pixels[TRAIN + 7] = study.pixels[33, :, ::-1]


def zscored_with_test(study: Study) -> None:
    """Per session, with all of its trials, before `prepare` z-scored all sessions together."""
    for session in np.unique(study.session):
        here = study.session == session
        values = study.responses[here]
        study.responses[here] = (values - values.mean(axis=0)) / values.std(axis=0)


def double_zscored(study: Study) -> None:
    """With training trials only, as they ought to be, and then again."""
    train = np.array(study.split) == "train"
    study.responses = (study.responses - study.responses[train].mean(axis=0)) / study.responses[train].std(axis=0)


def one_session_unscaled(study: Study) -> None:
    """NSD stores betas times 300: one session was not divided."""
    study.responses[study.session == 2] *= 30


def shifted(study: Study) -> None:
    _renamed(study, np.roll(np.arange(len(study.stimulus_id)), 1))


def permuted(study: Study) -> None:
    _renamed(study, study.rng.permutation(len(study.stimulus_id)))


def reversed_(study: Study) -> None:
    _renamed(study, np.arange(len(study.stimulus_id))[::-1])


def one_session_shifted(study: Study) -> None:
    order = np.arange(len(study.stimulus_id))
    here = np.flatnonzero(study.session == 3)
    order[here] = np.roll(here, 2)
    _renamed(study, order)


def part_of_a_session_shifted(study: Study) -> None:
    """From the middle of session 2 on, a row of the table is missing; the last one of the session came twice."""
    order = np.arange(len(study.stimulus_id))
    here = np.flatnonzero(study.session == 2)
    late = here[len(here) // 3 :]
    order[late] = np.roll(late, -1)
    _renamed(study, order)


def _renamed(study: Study, order: np.ndarray) -> None:
    study.stimulus_id = [study.stimulus_id[row] for row in order]
    study.split = [study.split[row] for row in order]
    study.repeat = study.repeat[order]


def session_drift(study: Study) -> None:
    pattern = study.rng.standard_normal(SITES) * study.responses.std(axis=0)
    study.responses += 0.5 * (study.session[:, None] - 2.5) * pattern


def captions_permuted(study: Study) -> None:
    order = study.rng.permutation(len(study.ids))
    study.captions = {name: study.captions[study.ids[row]] for name, row in zip(study.ids, order, strict=True)}


def captions_shifted(study: Study) -> None:
    order = np.roll(np.arange(len(study.ids)), 1)
    study.captions = {name: study.captions[study.ids[row]] for name, row in zip(study.ids, order, strict=True)}


def missing_session(study: Study) -> None:
    study.session = np.where(study.session >= 3, study.session + 1, study.session)


def repeats_are_copies(study: Study) -> None:
    ids = np.array(study.stimulus_id)
    for name in study.ids:
        rows = np.flatnonzero(ids == name)
        study.responses[rows] = study.responses[rows].mean(axis=0)


# what is planted -> (check that has to tell, what it has to call it, what its evidence has to say)
DEFECTS: dict[str, tuple[Callable[[Study], None], str, str, dict[str, Any]]] = {
    "nan": (nan, "finite", "NaN or infinity", {"num_values": 1, "trials": [17], "sites": [5]}),
    "constant site": (constant_site, "constant sites", "constant sites", {"sites": [11]}),
    "constant in a session": (constant_in_a_session, "constant sites", "constant in a session", {"sessions": [3]}),
    "duplicated trials": (duplicated_trials, "copied trials", "duplicated trials", {"num_trials": 10}),
    "stimulus in both splits": (
        stimulus_in_both,
        "stimuli in two splits",
        "stimulus in two splits",
        {"num_stimuli": 1},
    ),
    "identical picture": (
        identical_picture,
        "identical pictures",
        "identical pictures across splits",
        {"num_pairs": 1},
    ),
    "near-duplicate": (near_duplicate, "near-duplicates", "near-duplicates across splits", {"num_pairs": 1}),
    "flipped copy": (flipped, "near-duplicates", "mirrored pictures across splits", {"num_mirrored": 1}),
    "z-scored with test": (zscored_with_test, "z-scoring", "z-scored with test trials", {"within": "session"}),
    "double z-scored": (double_zscored, "scale", "z-scored twice", {}),
    "one session unscaled": (one_session_unscaled, "scale", "session of another scale", {"sessions": [2]}),
    "ids shifted by one": (shifted, "stimulus order", "ids shifted", {"shift": 1, "within": ""}),
    "ids permuted": (permuted, "stimulus order", "ids permuted", {}),
    "ids reversed": (reversed_, "stimulus order", "ids reversed", {}),
    "one session shifted": (one_session_shifted, "stimulus order", "session shifted", {"session": 3, "shift": 2}),
    "session drift": (session_drift, "session drift", "session drift", {}),
    "captions permuted": (captions_permuted, "caption links", "captions permuted", {}),
    "captions shifted": (captions_shifted, "caption links", "captions shifted", {"shift": 1}),
    "missing session": (missing_session, "design", "missing session", {"missing": [3]}),
    "repeats that are copies": (repeats_are_copies, "copied trials", "repeats are copies", {}),
}
# what follows from a defect and is told besides: true, and no false alarm
BESIDES: dict[str, set[str]] = {
    "nan": set(),
    "duplicated trials": {"ids shifted", "ids permuted"},
    "stimulus in both splits": {"statistics of other trials"},
    "ids permuted": {"ceilings of 0"},
    "ids shifted by one": {"ceilings of 0"},
    "ids reversed": {"ceilings of 0"},
    "repeats that are copies": {"ceilings of 1"},
    "z-scored with test": {"z-scored twice"},
}
