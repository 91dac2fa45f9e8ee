"""EEG, MEG and neurons over time: [trials, sensors, times] become a Dataset, or one sentence says why not."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset
from brainjanus.data.prepare import PrepareConfig, prepare

TRIALS, SENSORS, TIMES = 20, 7, 11
PLACES = np.random.default_rng(1).normal(size=(SENSORS, 3))
PLACES *= 90 / np.linalg.norm(PLACES, axis=1, keepdims=True)
EPOCHS = np.random.default_rng(0).normal(size=(TRIALS, SENSORS, TIMES)).astype(np.float32)


class Files:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        np.save(folder / "epochs.npy", EPOCHS)
        ids = [f"s{i:02}" for i in range(TRIALS)]
        self.text("trials.tsv", "stimulus_id\n" + "\n".join(ids))
        self.text("captions.json", json.dumps({name: [f"thing {name}"] for name in ids}))
        self.sensors()

    def text(self, name: str, content: str) -> str:
        (self.folder / name).write_text(content)
        return str(self.folder / name)

    def sensors(self, places: np.ndarray = PLACES, columns: str = "name x y z") -> str:
        rows = ["\t".join([f"O{i}", *map(str, place)]) for i, place in enumerate(places)]
        return self.text("sensors.tsv", "\n".join(["\t".join(columns.split()), *rows]))

    def prepare(self, **options: object) -> Dataset:
        given = {
            "responses": (f"{self.folder}/epochs.npy",),
            "trials": f"{self.folder}/trials.tsv",
            "captions": f"{self.folder}/captions.json",
            "kind": "sensors",
            "sampling_hz": 100.0,
            "start_sec": -0.02,
            "sensors": f"{self.folder}/sensors.tsv",
        }
        return prepare(PrepareConfig(**given | options), self.folder / "out")

    def refuses(self, message: str, **options: object) -> None:
        with pytest.raises(UserError, match=message):
            self.prepare(**options)
        assert not (self.folder / "out").exists()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def raw(dataset: Dataset) -> np.ndarray:
    _, mean, std = dataset.zscore("subj01")
    return dataset.space("subj01").to_grid(dataset.responses("subj01") * std[0] + mean[0])


def test_epochs_become_sensors_x_times(files):
    dataset = files.prepare(mm_per_ms=2.0)
    space = dataset.space("subj01")
    np.testing.assert_allclose(raw(dataset), EPOCHS, atol=1e-5)
    assert space.kind == "sensors" and space.geometry["names"] == [f"O{i}" for i in range(SENSORS)]
    assert space.geometry["mm_per_ms"] == 2.0
    np.testing.assert_allclose(space.geometry["times_sec"], np.arange(TIMES) / 100 - 0.02)
    np.testing.assert_allclose(space.coordinates_mm[3 * TIMES : 4 * TIMES], np.tile(PLACES[3], (TIMES, 1)), rtol=1e-5)
    assert not np.array_equal(space.order, np.arange(SENSORS * TIMES))


def test_trials_may_stand_last_and_in_several_files_of_any_form(files):
    last = np.moveaxis(EPOCHS, 0, -1)  # [sensors, times, trials], as EEGLAB has it
    savemat(files.folder / "a.mat", {"epochs": last[..., :12]})
    with h5py.File(files.folder / "b.h5", "w") as file:
        file["epochs"] = last[..., 12:]
    parts = (f"{files.folder}/a.mat:epochs", f"{files.folder}/b.h5:epochs")
    np.testing.assert_allclose(raw(files.prepare(responses=parts)), EPOCHS, atol=1e-5)


def test_sensors_need_neither_a_table_nor_places(files):
    space = files.prepare(sensors="", kind="neurons").space("subj01")
    assert space.kind == "neurons" and space.geometry["names"][:2] == ["neuron000", "neuron001"]
    assert space.coordinates_mm is None and space.order.tolist() == list(range(SENSORS * TIMES))
    names = files.text("names.tsv", "name\n" + "\n".join(f"E{i}" for i in range(SENSORS)))
    (files.folder / "out").rename(files.folder / "before")
    assert files.prepare(sensors=names).space("subj01").geometry["names"][6] == "E6"


def test_a_spec_says_the_same(files):
    spec = files.text(
        "spec.toml",
        'responses = "epochs.npy"\ntrials = "trials.tsv"\ncaptions = "captions.json"\nkind = "sensors"\n'
        'sampling_hz = 100\nstart_sec = -0.02\nsensors = "sensors.tsv"\nmodality = "EEG"',
    )
    dataset = prepare(PrepareConfig.load(spec), files.folder / "spec")
    assert dataset.modality == "EEG"
    assert dataset.space("subj01").geometry == files.prepare().space("subj01").geometry


def test_rois_are_sensors_windows_or_sites(files):
    rois = {
        "back": {"sensors": ["O1", "O5"]},
        "early": {"window_sec": [0, 0.03]},
        "both": {"sensors": ["O1"], "window_sec": [-1, 0]},
        "sites": [0, 12],
    }
    space = files.prepare(rois=(files.text("rois.json", json.dumps(rois)),)).space("subj01")
    grid = {name: space.to_grid(mask.astype(np.float32)) for name, mask in space.rois.items()}
    assert np.flatnonzero(grid["back"].all(axis=1)).tolist() == [1, 5] and grid["back"].sum() == 2 * TIMES
    assert np.flatnonzero(grid["early"].all(axis=0)).tolist() == [2, 3, 4] and grid["early"].sum() == 3 * SENSORS
    assert np.argwhere(grid["both"]).tolist() == [[1, 0], [1, 1]]
    assert np.argwhere(grid["sites"]).tolist() == [[0, 0], [1, 1]]


def test_refuses_what_does_not_fit(files):
    np.save(files.folder / "swapped.npy", EPOCHS.transpose(0, 2, 1))
    np.save(files.folder / "flat.npy", EPOCHS.reshape(TRIALS, -1))
    np.save(files.folder / "fewer.npy", EPOCHS[:, 1:])
    wide = files.text("eleven.tsv", "name\n" + "\n".join(f"E{i}" for i in range(TIMES)))
    files.refuses(
        "expected the 11 sensors of .*, got 7 sensors x 11 times. Sensors and times are swapped", sensors=wide
    )
    files.refuses(
        "expected the 7 sensors of .*, got 6 sensors x 11 times. Does the table list channels that were left out",
        responses=(f"{files.folder}/fewer.npy",),
    )
    files.refuses(
        r"expected numbers \[trials, sensors, times\] or .*, got .*flat.npy \[20, 77\].*Leave sampling_hz out",
        responses=(f"{files.folder}/flat.npy",),
    )
    plain = {"sampling_hz": None, "start_sec": 0.0, "sensors": ""}
    files.refuses(r"got .*epochs.npy \[20, 7, 11\].*For \[trials, sensors, times\] give sampling_hz", **plain)
    files.refuses(
        "expected one axis of 20 trials, .*where neither fits",
        responses=(f"{files.folder}/epochs.npy", f"{files.folder}/epochs.npy"),
    )
    np.save(files.folder / "cut.npy", EPOCHS[:10, :, 1:])
    files.refuses(
        "expected the same sites in all files",
        responses=(f"{files.folder}/cut.npy", f"{files.folder}/epochs.npy"),
        orientation="trials-first",
    )


def test_refuses_options_that_do_not_fit(files):
    files.refuses('sampling_hz with voxels; set kind = "sensors" or "neurons"', kind="voxels")
    files.refuses("subj01: sampling_hz -5.0; subj01: mm_per_ms 0.0", sampling_hz=-5.0, mm_per_ms=0.0)
    files.refuses("start_sec nan", start_sec=float("nan"))
    files.refuses("places are given in `sensors`", coordinates="x.tsv")
    files.refuses("subj01: start_sec without sampling_hz; subj01: sensors without", sampling_hz=None)


def test_refuses_sensors_and_rois_that_make_no_sense(files):
    files.sensors(PLACES / 1000)
    files.refuses("expected places of sensors around a head in mm, got some that reach 0.0[0-9]+ .*in m or cm")
    files.sensors(np.where(np.arange(SENSORS)[:, None] == 2, np.nan, PLACES))
    files.refuses("got some that reach nan .*missing for one sensor")
    files.sensors(columns="name x y height")
    files.refuses("expected a header line with the columns x, y, z")
    twice = files.text("twice.tsv", "name\nA\nA")
    files.refuses("expected each sensor once, got 'A' twice", sensors=twice)
    files.sensors()
    for wrong, message in (
        ({"sensors": ["O9"]}, r'expected "sensors" among O0, O1, O2.* and "window_sec", got'),
        ({"sensor": ["O1"]}, 'expected "sensors" among'),
        ({}, 'expected "sensors" among'),
        ({"window_sec": [0]}, r'expected "window_sec" \[start, stop\], got \[0\]'),
        ({"window_sec": [100, 200]}, r"ROI x: expected a window that meets -0.02 to 0.08 s, got \[100, 200\]"),
    ):
        files.refuses(message, rois=(files.text("rois.json", json.dumps({"x": wrong})),))
    np.save(files.folder / "flat.npy", EPOCHS.reshape(TRIALS, -1))
    files.refuses(
        "expected a list of sites",
        rois=(files.text("rois.json", '{"x": {"sensors": ["O1"]}}'),),
        responses=(f"{files.folder}/flat.npy",),
        sampling_hz=None,
        start_sec=0.0,
        sensors="",
    )
