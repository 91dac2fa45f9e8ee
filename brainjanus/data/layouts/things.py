"""What THINGS-EEG2 and THINGS-MEG share: epochs of one file for training and one for test, and folders of pictures.

Enters: arrays [images, repeats, sensors, times], or [concepts, images of one, repeats, sensors, times], and the
pictures' folders, whose sorted order is that of the images.
Leaves: a Study whose repeats are trials, a few images read at a time. Stimuli are named by their picture's file
("things-aardvark_01b"), which is unique in THINGS, so that EEG and MEG of one picture meet.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.captions import caption_sources
from brainjanus.data.dataset import listed
from brainjanus.data.layouts.asked import chosen_subjects, folder_of, named_keys, refuse_unused, shown_in
from brainjanus.data.readers.epochs import Epochs, find_epochs, sensors_and_times
from brainjanus.data.readers.pictures import PICTURE_SUFFIXES, read_pictures
from brainjanus.data.readers.tables import read_table
from brainjanus.data.study import Found, Pictures, Recorded, Session, Study, StudyOptions

SUFFIXES = (".npz", ".h5", ".hdf5")
PICKLES = (".npy", ".pkl")  # as the authors, or peers, publish them
PART_BYTES = 64 << 20  # of responses that are read at once, as float32
MOST_BYTES = 256 << 20  # of the epochs of one image: 80 repeats of 63 x 250 are 10 MB
FOLDERS = {"train": "training_images", "test": "test_images"}
_PLACES = ("", "image_set", "Image_set", "images_set", "images", "stimuli")
_DATA_PLACES = (
    "",
    "preprocessed_data",  # THINGS-EEG2's authors
    "Preprocessed_data",
    "Preprocessed_data_250Hz",
    "preprocessed",
    "preprocessed_npy",  # THINGS-MEG, as peers cut it
    "preprocessed_divided",
    "derivatives/preprocessed_npy",
    "derivatives/preprocessed_divided",
)


class Release(NamedTuple):
    """What differs between the two. stem: of the files' names. keys: of the arrays in them, unless a user says so."""

    layout: str
    name: str
    modality: str
    stem: str  # "preprocessed_eeg"
    keys: Mapping[str, str]  # of data, sensors and times
    test: Sequence[str] = ("test",)  # what the file of test epochs may be called, behind the stem

    def recipe(self, file: Path) -> str:
        """What turns a pickle into arrays; for a user to run, on a file whose authors they trust."""
        return (
            f"import numpy as np; d = np.load({str(file)!r}, allow_pickle=True); d = d if isinstance(d, dict) else "
            f"d.item(); np.savez({str(file.with_suffix('.npz'))!r}, **{{k: np.array(d[k]) for k in "
            f"{tuple(self.keys.values())}}})"
        )


def open_things(release: Release, path: Path, options: StudyOptions) -> Study:
    """Look through the folder of one of the two. Raises UserError for what keeps it from being prepared."""
    refuse_unused(release.layout, options, ("keys", "files"))
    folder_of(release.layout, path)
    keys = dict(release.keys) | named_keys(options, {name: f"key of the {name}" for name in release.keys})
    data_folder, image_folder = path, None
    for entry in options.files:
        name, _, place = entry.partition("=")
        if name not in ("images", "data") or not Path(place).is_dir():
            raise UserError(
                f"--files {entry}: expected images=FOLDER (which holds training_images/ and test_images/) or "
                "data=FOLDER (which holds sub-01/), got another. Correct it."
            )
        data_folder, image_folder = (data_folder, Path(place)) if name == "images" else (Path(place), image_folder)
    folders = {
        folder.name: folder
        for place in reversed(_DATA_PLACES)
        if (data_folder / place).is_dir()
        for folder in sorted((data_folder / place).iterdir())
        if folder.is_dir() and re.fullmatch(r"sub-\d+", folder.name)
    }
    expected = f"sub-01/{release.stem}_training.npz and {release.stem}_test.npz"
    chosen = chosen_subjects(data_folder, folders, options.subjects, expected)
    notices: list[str] = [
        "The files do not say in which session a trial was: parts of them, in the order of the images, count as "
        "sessions, and responses are z-scored over all training trials."
    ]
    shown = {split: _images(path, image_folder, split) for split in FOLDERS}
    split = {image.name: part for part, images in shown.items() for image in images}
    _check_apart(shown)
    subjects, found = [], []
    for subject in chosen:
        recorded, files = _recorded(release, subject, folders[subject], shown, keys, notices)
        subjects.append(recorded)
        found.append(Found(f"epochs of {subject}", files))
    found += [Found(FOLDERS[part], tuple(sorted(image.file for image in images))) for part, images in shown.items()]
    names = shown_in(subjects)
    file_of = {image.name: image.file for images in shown.values() for image in images if image.name in names}
    size = sum(file.stat().st_size for file in file_of.values()) // max(len(file_of), 1)
    captions = caption_sources(options.captions, names)
    return Study(
        release.layout,
        release.name,
        release.modality,
        subjects,
        Pictures(sorted(file_of), partial(_read_pictures, file_of), size),
        captions.captions,
        {name: part for name, part in split.items() if name in names},
        zscore="all",
        found=found,
        notices=notices + captions.notices,
    )


class Image(NamedTuple):
    """One picture, in the place that its epochs have in the array. name: of the stimulus."""

    name: str
    file: Path


def _images(path: Path, given: Path | None, split: str) -> list[Image]:
    """The pictures of a split in the order of the epochs: as images.tsv has it, or by folder and file, sorted."""
    places = [given] if given is not None else [path / place for place in _PLACES]
    folder = next((place / FOLDERS[split] for place in places if (place / FOLDERS[split]).is_dir()), None)
    if folder is None:
        raise UserError(
            f"{path}: expected the pictures in {FOLDERS[split]}/CONCEPT/*.jpg, got no such folder. Their order says "
            "which epochs are whose: unpack them there, or give --files images=FOLDER."
        )
    listing = folder.parent / "images.tsv"
    if listing.is_file():
        table = read_table(listing, ["split", "file"])
        names = [file for part, file in zip(table["split"], table["file"], strict=True) if part == split]
        files = [folder / file for file in names]
        outside = [file for file in names if Path(file).is_absolute() or ".." in Path(file).parts]
        gone = outside or [name for name, file in zip(names, files, strict=True) if not file.is_file()]
        if gone:
            raise UserError(
                f"{listing}: expected files in {folder}, got '{gone[0]}', which is not there. "
                "Write paths as they are below that folder."
            )
    else:
        concepts = sorted(concept for concept in folder.iterdir() if concept.is_dir())
        files = [
            file
            for concept in concepts
            for file in sorted(concept.iterdir())
            if file.suffix.lower() in PICTURE_SUFFIXES and not file.name.startswith(".")
        ]
    if not files:
        raise UserError(f"{folder}: expected pictures in folders of concepts, got none. Unpack them there.")
    return [Image(f"things-{file.stem}", file) for file in files]


def _check_apart(shown: Mapping[str, Sequence[Image]]) -> None:
    """Raises UserError if two pictures, of one split or of both, have one name."""
    first: dict[str, Path] = {}
    for images in shown.values():
        for image in images:
            other = first.setdefault(image.name, image.file)
            if other != image.file:
                raise UserError(
                    f"{image.file}: expected each picture once, got {other} of the same name. In THINGS a name is one "
                    "picture: is it in training and in test?"
                )


def _recorded(
    release: Release,
    subject: str,
    folder: Path,
    shown: Mapping[str, Sequence[Image]],
    keys: Mapping[str, str],
    notices: list[str],
) -> tuple[Recorded, tuple[Path, ...]]:
    """One subject and its files; what is to be said is added to `notices`."""
    parts = {}
    for split, endings in (("train", ("training",)), ("test", release.test)):
        file = _file(release, folder, [f"{release.stem}_{ending}" for ending in endings])
        epochs = find_epochs(file, keys["data"], keys["sensors"], keys["times"])
        if epochs.shape[0] != len(shown[split]):
            raise UserError(
                f"{file}: expected epochs of the {len(shown[split])} pictures in {FOLDERS[split]}, got those of "
                f"{epochs.shape[0]} images. Which epochs are whose would be guessed: unpack all pictures, and no "
                "others, or list those that were shown, in order, in images.tsv (split, file)."
            )
        if 4 * int(np.prod(epochs.shape[1:], dtype=np.float64)) > MOST_BYTES:
            raise UserError(
                f"{file}: expected epochs of at most {MOST_BYTES >> 20} MB an image, got {list(epochs.shape)}. Are the "
                "axes in the order [images, repeats, sensors, times]?"
            )
        parts[split] = epochs
    first = sensors_and_times(list(parts.values()))
    num_times = first.shape[3]
    if len(first.times_sec) > num_times:
        notices.append(
            f"{first.file.name} of {subject} has {len(first.times_sec)} times for {num_times} samples: the last ones "
            "were taken to be theirs, as in copies at 250 Hz whose data were cut before the picture and times were not."
        )
    space = BrainSpace.of_sensors(subject, first.sensors, first.times_sec[-num_times:])
    sessions: list[Session] = []
    for split, epochs in parts.items():
        sessions += _sessions(epochs, [image.name for image in shown[split]], first=len(sessions) + 1)
    return Recorded(space, sessions), tuple(epochs.file for epochs in parts.values())


def _file(release: Release, folder: Path, stems: Sequence[str]) -> Path:
    """The file of a split. Raises UserError if there is none, or only one that would have to be unpickled."""

    def there(suffixes: Sequence[str]) -> list[Path]:
        places = [folder / f"{stem}{suffix}" for stem in stems for suffix in suffixes]
        return [place for place in places if place.is_file()]

    if arrays := there(SUFFIXES):
        return arrays[0]
    if pickles := there(PICKLES):
        raise UserError(
            f"{pickles[0]}: expected arrays, got a Python pickle, which could run any program and is never read. If it "
            f"comes from the dataset's authors, convert it yourself, once: {release.recipe(pickles[0])}"
        )
    raise UserError(
        f"{folder}: expected {listed(stems)}{SUFFIXES[0]} (or {', '.join(SUFFIXES[1:])}), got none. Download the files "
        f"of {folder.name}, or leave this subject out with --subjects."
    )


def _sessions(epochs: Epochs, names: Sequence[str], first: int) -> Iterator[Session]:
    """Parts of a file, counted from `first`: repeats of an image follow each other."""
    num_images, num_repeats = epochs.shape[:2]
    step = max(PART_BYTES // (4 * int(np.prod(epochs.shape[1:]))), 1)
    for number, start in enumerate(range(0, num_images, step), start=first):
        end = min(start + step, num_images)
        ids = [name for name in names[start:end] for _ in range(num_repeats)]
        num_bytes = (end - start) * epochs.bytes_per_image
        yield Session(number, ids, partial(_read, epochs, start, end), num_bytes=num_bytes)


def _read(epochs: Epochs, first: int, end: int) -> Float[np.ndarray, "t v"]:
    num_sites = epochs.shape[2] * epochs.shape[3]
    return epochs.read(first, end).reshape(-1, num_sites)


def _read_pictures(
    file_of: Mapping[str, Path], ids: Sequence[str], size: int
) -> Iterator[tuple[str, UInt8[np.ndarray, "h w 3"]]]:
    for name in sorted(ids, key=lambda name: file_of[name]):
        file = file_of[name]
        for _, picture in read_pictures(str(file.parent), [file.name], size):
            yield name, picture
