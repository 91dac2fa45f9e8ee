"""THINGS-EEG2 (Gifford et al. 2022): 10 subjects, 63 channels x 250 times, as its authors preprocessed it.

    PATH/sub-01/preprocessed_eeg_training.npz     preprocessed_eeg_data [16540, 4, 63, 250], ch_names [63], times [250]
                preprocessed_eeg_test.npz         preprocessed_eeg_data [200, 80, 63, 250], likewise
         training_images/CONCEPT/*.jpg            16,540 pictures; their sorted order is that of the epochs
         test_images/CONCEPT/*.jpg                200 pictures of other concepts
         images.tsv                               or their order, in a table (split, file)

The authors publish .npy files that are pickled dictionaries. These are refused with a recipe of three lines that
writes the npz files above; HDF5 with the same three arrays will do too. sub-XX may lie in Preprocessed_data_250Hz/.
"""

from pathlib import Path

from brainjanus.data.layouts.things import Release, open_things
from brainjanus.data.study import Study, StudyOptions

RELEASE = Release(
    layout="things-eeg2",
    name="things-eeg2",
    modality="EEG",
    stem="preprocessed_eeg",
    keys={"data": "preprocessed_eeg_data", "sensors": "ch_names", "times": "times"},
)


def open_study(path: Path, options: StudyOptions) -> Study:
    """Look through THINGS-EEG2. Raises UserError for what keeps it from being prepared."""
    return open_things(RELEASE, path, options)
