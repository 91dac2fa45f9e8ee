"""A layout of a lab's own: brainjanus prepare --from our-lab FOLDER --out data/lab --extend extend_reader.py"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import brainjanus as bj
from brainjanus.core.space import BrainSpace
from brainjanus.data.layouts.asked import chosen_subjects, refuse_unused, shown_in
from brainjanus.data.layouts.pictured import pictures_by_name
from brainjanus.data.study import Found, Recorded, Session, Study


@bj.add_layout("our-lab")
def open_study(folder: Path, options: bj.StudyOptions) -> Study:
    """The folder has sub-01/ses-01.npz (betas [trials, sites], image, mm [sites, 3]), pictures/ and held_out.txt."""
    refuse_unused("our-lab", options, ())
    found, notices, subjects = [], [], []
    for who in chosen_subjects(folder, [f.name for f in folder.glob("sub-*")], options.subjects, "folders sub-*"):
        files = sorted((folder / who).glob("ses-*.npz"))
        found.append(Found(f"sessions of {who}", tuple(files)))
        mm = np.load(files[0])["mm"]
        sessions = [session(file, number) for number, file in enumerate(files)]
        subjects.append(Recorded(BrainSpace(who, len(mm), coordinates_mm=mm), sessions))
    held_out = set((folder / "held_out.txt").read_text().split())
    split = {name: "test" if name in held_out else "train" for name in sorted(shown_in(subjects))}
    pictures = pictures_by_name(folder / "pictures", list(split), "as `image` says", found, notices)
    return Study("our-lab", folder.name, "fMRI", subjects, pictures, split=split, found=found, notices=notices)


def session(file: Path, number: int) -> Session:
    """What each trial showed. Betas are read later, a session at a time."""
    images, size = np.load(file)["image"].tolist(), file.stat().st_size
    return Session(number, images, lambda: np.load(file)["betas"], num_bytes=size)


def main(dataset: bj.Dataset, out: Path) -> bj.Dataset:
    """Write a dataset's first subject as this lab would have it, and read it again."""
    who, lab = dataset.subjects[0], out / "lab"
    trials, betas, mm = dataset.trials(who), dataset.responses(who), dataset.space(who).coordinates_mm
    for folder in ("sub-01", "pictures"):
        (lab / folder).mkdir(parents=True)
    for name, pixels in zip(dataset.stimulus_ids, dataset.images(dataset.stimulus_ids), strict=True):
        Image.fromarray(pixels).save(lab / "pictures" / f"{name}.png")
    (lab / "held_out.txt").write_text("\n".join(dataset.split_ids("test")))
    for number in np.unique(trials.session):
        rows, file = trials.session == number, lab / "sub-01" / f"ses-{number:02}.npz"
        np.savez(file, betas=betas[rows], image=np.array(trials.stimulus_id)[rows], mm=mm)
    made = bj.stream_study(open_study(lab, bj.StudyOptions()), out / "data", bj.StreamOptions(zscore="none"))
    difference = np.abs(made.responses("sub-01") - betas).max()
    print(f"{len(made.trials('sub-01').split)} trials read; largest difference from what was written: {difference}")
    return made


if __name__ == "__main__":
    out = Path(tempfile.mkdtemp())
    main(bj.simulate(out / "simulated", bj.SimulationConfig(1, 60, num_test=20)), out)
