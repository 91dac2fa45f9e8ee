"""THINGS-EEG2 (Gifford et al. 2022): 10 subjects; 17 channels x 100 times as released, 63 x 250 as peers have it.

    PATH/sub-01/preprocessed_eeg_training.npz     preprocessed_eeg_data [16540, 4, 17, 100], ch_names [17], times [100]
                preprocessed_eeg_test.npz         preprocessed_eeg_data [200, 80, 17, 100], likewise
         training_images/CONCEPT/*.jpg            16,540 pictures; their sorted order is that of the epochs
         test_images/CONCEPT/*.jpg                200 pictures of other concepts
         images.tsv                               or their order, in a table (split, file)

The authors' script keeps the channels over occipital and parietal cortex, from 200 ms before the picture to 800 ms
after it, at 100 Hz, and saves a dictionary (np.save, hence a pickle). Peers changed it: Preprocessed_data_250Hz has 63
channels and 250 times from the picture on, pickled; its data were cut by 50 times, its `times` were not, of which the
last 250 count here. Either is refused with a recipe that writes the npz files above; HDF5 with the same three arrays
will do too. Repeats were shuffled over sessions. sub-XX may lie in preprocessed_data/ or Preprocessed_data_250Hz/.
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
