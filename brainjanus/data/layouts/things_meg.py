"""THINGS-MEG (Hebart et al. 2023): 4 subjects, 271 sensors x 201 times (0 to 1 s at 200 Hz), by image.

    PATH/sub-01/preprocessed_meg_training.npz     meg_data [1654, 12, 1, 271, 201], ch_names [271], times [201]
                preprocessed_meg_zs_test.npz      meg_data [200, 1, 12, 271, 201], likewise (or .._meg_test.npz)
         training_images/CONCEPT/*.jpg            pictures; their sorted order is that of the epochs
         test_images/CONCEPT/*.jpg                200 pictures of concepts that are not trained on
         images.tsv                               or their order, in a table (split, file)

Axes are concepts, images of one, repeats, sensors and times; the first two may be one ([19848, 1, 271, 201]).

The authors publish epochs as FIF (derivatives/preprocessed/preprocessed_P1-epo.fif); the code of ATM (Li et al. 2024)
and those who follow it make of these pickles (.pkl) of the arrays above. Neither is read: FIF needs MNE and THINGS' own
table of images, pickles could run any program. Both are refused with a recipe that writes the npz files above; HDF5
with the same three arrays will do too.
"""

from pathlib import Path

from brainjanus.core.errors import UserError
from brainjanus.data.layouts.things import Release, open_things
from brainjanus.data.study import Study, StudyOptions

RELEASE = Release(
    layout="things-meg",
    name="things-meg",
    modality="MEG",
    stem="preprocessed_meg",
    keys={"data": "meg_data", "sensors": "ch_names", "times": "times"},
    test=("test", "zs_test"),
)


def open_study(path: Path, options: StudyOptions) -> Study:
    """Look through THINGS-MEG. Raises UserError for what keeps it from being prepared."""
    there = path.is_dir() and any(path.rglob("preprocessed_meg_*test.*"))
    fif = sorted(path.rglob("*-epo.fif")) if path.is_dir() and not there else []
    if fif:
        raise UserError(
            f"{fif[0]}: expected epochs as arrays, got FIF, which needs MNE. Convert it once: pip install mne; e = "
            "mne.read_epochs(FILE).crop(0, 1.0); sort by e.events[:, 2], which is the image's number, from 1, in "
            "THINGS' image_paths.csv (999999: catch trials, leave them out); numbers that come 12 times are test, and "
            "their concepts are left out of training; np.savez('sub-01/preprocessed_meg_test.npz', meg_data=[images, "
            "repeats, 271, 201], ch_names=e.ch_names, times=e.times), and likewise for training."
        )
    return open_things(RELEASE, path, options)
