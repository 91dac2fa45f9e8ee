"""BIDS derivatives, built in small as labs have them: volumes, surfaces and grayordinates, with their events."""

import json
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis, ScalarAxis
from nibabel.gifti import GiftiDataArray, GiftiImage, GiftiLabel, GiftiLabelTable
from PIL import Image

from brainjanus.core.errors import UserError
from brainjanus.data.layouts import open_study
from brainjanus.data.study import Study, StudyOptions

SHAPE = (4, 5, 3)
AFFINE = np.array([[-2, 0, 0, 4], [0, 2, 0, -5], [0, 0, 2, -3], [0, 0, 0, 1.0]])
STIMULI = [f"images/s{i:02}.png" for i in range(9)]


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return data


def table(path: Path, **columns: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    path.write_text("\n".join("\t".join(map(str, row)) for row in rows) + "\n")


def gifti(path: Path, arrays: list[np.ndarray], labels: dict[int, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    key = None
    if labels is not None:
        key = GiftiLabelTable()
        for value, name in labels.items():
            label = GiftiLabel(value)
            label.label = name
            key.labels.append(label)
    image = GiftiImage(darrays=[GiftiDataArray(a, datatype=str(a.dtype)) for a in arrays], labeltable=key)
    nibabel.save(image, path)


def pictures(folder: Path) -> np.ndarray:
    pixels = np.random.default_rng(5).integers(0, 256, (len(STIMULI), 8, 8, 3), dtype=np.uint8)
    for name, picture in zip(STIMULI, pixels, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / name)
    return pixels


class Volumes:
    """A dataset with raw events and pictures, and derivatives of one subject: two sessions of two runs."""

    def __init__(self, dataset: Path) -> None:
        self.dataset, self.root = dataset, dataset / "derivatives/glm"
        rng = np.random.default_rng(0)
        self.func = self.root / "sub-01/ses-02/func"
        self.root.mkdir(parents=True)
        (self.root / "dataset_description.json").write_text(json.dumps({"Name": "Pets", "BIDSVersion": "1.9.0"}))
        self.betas, self.ids = {}, {}
        for session in ("02", "10"):
            for run in ("1", "2"):
                stem = f"sub-01_ses-{session}_task-see_run-{run}"
                folder = self.root / f"sub-01/ses-{session}/func"
                betas = rng.standard_normal((*SHAPE, 5)).astype(np.float32)
                self.betas[session, run] = save(folder / f"{stem}_space-T1w_betas.nii.gz", betas)
                ids = [STIMULI[i] for i in rng.integers(0, 9, 5)]
                self.ids[session, run] = ids
                shown = [*ids[:2], "n/a", *ids[2:]]
                raw = dataset / f"sub-01/ses-{session}/func/{stem}_events.tsv"
                table(raw, onset=list(range(6)), duration=[1] * 6, trial_type=["x"] * 6, stim_file=shown)
        self.mask = rng.random(SHAPE) < 0.6
        save(self.func / "sub-01_ses-02_task-see_space-T1w_desc-brain_mask.nii.gz", self.mask.astype(np.uint8))
        self.parts = rng.integers(0, 3, SHAPE).astype(np.int16)
        save(self.root / "sub-01/anat/sub-01_space-T1w_desc-visual_dseg.nii.gz", self.parts)
        table(self.root / "desc-visual_dseg.tsv", index=[0, 1, 2], name=["Unknown", "V1", "V2"])
        self.ffa = rng.integers(0, 2, SHAPE).astype(np.uint8)
        save(self.root / "sub-01/anat/sub-01_space-T1w_label-FFA_mask.nii.gz", self.ffa)
        self.pixels = pictures(dataset / "stimuli")

    def open(self, **options: object) -> Study:
        return open_study("bids", self.root, StudyOptions(**options))


@pytest.fixture
def volumes(tmp_path) -> Volumes:
    return Volumes(tmp_path / "pets")


def test_volumes_are_read_as_they_were_planted(volumes):
    study = volumes.open()
    (who,) = study.subjects
    assert study.name == "Pets" and who.space.subject == "sub-01"
    assert [session.number for session in who.sessions] == [2, 10]
    for session, label in zip(who.sessions, ("02", "10"), strict=True):
        expected = np.concatenate([volumes.betas[label, run][volumes.mask].T for run in "12"])
        np.testing.assert_array_equal(session.read(), expected)
        assert list(session.stimulus_id) == volumes.ids[label, "1"] + volumes.ids[label, "2"]
        assert session.run.tolist() == [1] * 5 + [2] * 5
    ijk = np.argwhere(volumes.mask)
    np.testing.assert_allclose(who.space.coordinates_mm, ijk @ AFFINE[:3, :3].T + AFFINE[:3, 3])
    assert set(who.space.rois) == {"V1", "V2", "FFA"}
    np.testing.assert_array_equal(who.space.rois["V2"], volumes.parts[volumes.mask] == 2)
    np.testing.assert_array_equal(who.space.rois["FFA"], volumes.ffa[volumes.mask] > 0)
    assert study.split is None
    assert "Stimuli are named by the column 'stim_file' of the events." in study.notices
    assert "4 rows of the events of sub-01 name no stimulus and are no trials." in study.notices
    assert volumes.open(sessions=1).subjects[0].sessions[0].number == 2


def test_the_dataset_around_derivatives_does_as_well(volumes):
    study = open_study("bids", volumes.dataset, StudyOptions())
    assert len(study.subjects[0].sessions) == 2
    save(volumes.dataset / "derivatives/other/sub-01/func/sub-01_task-see_betas.nii.gz", np.zeros((*SHAPE, 2)))
    with pytest.raises(UserError, match="expected one derivatives folder with betas, got glm, other"):
        open_study("bids", volumes.dataset, StudyOptions())


def test_pictures_are_found_by_the_names_of_stimuli(volumes):
    study = volumes.open()
    ids = list(study.pictures.ids)
    found = next(found for found in study.found if found.what == "pictures")
    assert found.files == tuple(volumes.dataset / "stimuli" / name for name in ids)
    assert study.pictures.num_bytes == sum(file.stat().st_size for file in found.files) // len(ids)
    assert ids == sorted({name for ids in volumes.ids.values() for name in ids})
    for name, picture in study.pictures.read(ids[:4], 8):
        np.testing.assert_array_equal(picture, volumes.pixels[STIMULI.index(name)])
    captions = volumes.dataset / "own.json"
    captions.write_text(json.dumps({"s03": "third", Path(ids[0]).name: "first"}))
    found = volumes.open(captions=(f"own={captions}",)).captions["own"]
    assert found[ids[0]] == ["first"]


@pytest.mark.parametrize("column", ["stimulus", "stimulus_id", "trial_type"])
def test_the_columns_are_preferred_in_their_order(volumes, column):
    order = ["stimulus", "stimulus_id", "trial_type"]
    for (session, run), ids in volumes.ids.items():
        file = volumes.dataset / f"sub-01/ses-{session}/func/sub-01_ses-{session}_task-see_run-{run}_events.tsv"
        stems = [Path(name).stem for name in ids]
        others = {name: ["other"] * 5 for name in order[order.index(column) + 1 :]}
        table(file, onset=[1] * 5, **others, **{column: stems})
    study = volumes.open()
    assert list(study.subjects[0].sessions[0].stimulus_id)[:5] == [Path(name).stem for name in volumes.ids["02", "1"]]
    assert f"Stimuli are named by the column '{column}' of the events." in study.notices
    assert len(study.pictures.ids) == len({name for session in volumes.ids.values() for name in session})


def test_a_split_in_the_events_is_kept(volumes):
    for (session, run), ids in volumes.ids.items():
        file = volumes.dataset / f"sub-01/ses-{session}/func/sub-01_ses-{session}_task-see_run-{run}_events.tsv"
        table(file, stim_file=ids, split=["test" if int(name[-6:-4]) < 3 else "train" for name in ids])
    study = volumes.open()
    assert study.split == {n: "test" if n < STIMULI[3] else "train" for ids in volumes.ids.values() for n in ids}
    twice = volumes.ids["10", "2"]
    table(file, stim_file=twice, split=["val" if study.split[name] == "train" else "test" for name in twice])
    with pytest.raises(UserError, match="expected one split among train, val, test for each stimulus"):
        volumes.open()
    table(file, stim_file=twice)
    with pytest.raises(UserError, match=r"run-2_events\.tsv: expected a column 'split', as .* has, got none"):
        volumes.open()


def test_a_mask_may_be_a_path_or_a_roi(volumes, tmp_path):
    by_label = volumes.open(mask="V2").subjects[0]
    np.testing.assert_array_equal(by_label.space.index, np.flatnonzero(volumes.parts == 2))
    np.testing.assert_array_equal(by_label.sessions[0].read()[:5], volumes.betas["02", "1"][volumes.parts == 2].T)
    assert volumes.open(mask="FFA").subjects[0].space.num_sites == (volumes.ffa > 0).sum()
    save(tmp_path / "sub-01.nii", np.ones(SHAPE, np.uint8))
    assert volumes.open(mask=str(tmp_path / "{subject}.nii")).subjects[0].space.num_sites == 60
    with pytest.raises(UserError, match=r"expected a path or the name of a ROI \(FFA, V1, V2\), got 'V9'"):
        volumes.open(mask="V9")


def test_masks_of_several_sessions_are_intersected(volumes):
    other = np.random.default_rng(9).random(SHAPE) < 0.7
    name = "sub-01_ses-10_task-see_space-T1w_desc-brain_mask.nii.gz"
    save(volumes.root / "sub-01/ses-10/func" / name, other.astype(np.uint8))
    study = volumes.open()
    np.testing.assert_array_equal(study.subjects[0].space.index, np.flatnonzero(volumes.mask & other))
    assert any("are in all of its 2 masks" in notice for notice in study.notices)


def test_rois_on_another_grid_are_left_out_and_said(volumes):
    save(volumes.root / "sub-01/anat/sub-01_space-T1w_label-PPA_mask.nii.gz", np.ones((8, 10, 6), np.uint8))
    study = volumes.open()
    assert "PPA" not in study.subjects[0].space.rois
    assert any("another grid than the betas were left out: sub-01_space-T1w_label-PPA" in n for n in study.notices)


def test_a_session_of_several_runs_in_one_image(tmp_path):
    func = tmp_path / "glm/sub-a/ses-one/func"
    betas = save(
        func / "sub-a_ses-one_task-see_stat-effect_statmap.nii.gz", np.random.default_rng(0).random((*SHAPE, 5))
    )
    for run, ids in (("2", ["x", "y"]), ("10", ["z", "x", "x"])):
        table(func / f"sub-a_ses-one_task-see_run-{run}_events.tsv", stimulus=ids)
    save(func / "sub-a_ses-one_task-see_mask.nii.gz", np.ones(SHAPE, np.uint8))
    study = open_study("bids", tmp_path / "glm", StudyOptions())
    (session,) = study.subjects[0].sessions
    assert list(session.stimulus_id) == ["x", "y", "z", "x", "x"] and session.run.tolist() == [2, 2, 10, 10, 10]
    np.testing.assert_allclose(session.read(), betas.reshape(-1, 5).T, rtol=1e-6)
    assert session.number == 1 and study.pictures is None and study.name == "glm"


def test_a_table_named_as_the_betas_comes_first(volumes):
    (betas,) = volumes.func.glob("*run-1*betas.nii.gz")
    table(betas.with_name(betas.name.replace(".nii.gz", ".tsv")), stim_file=STIMULI[:5])
    assert list(volumes.open().subjects[0].sessions[0].stimulus_id)[:5] == STIMULI[:5]


def test_what_does_not_fit_is_refused(volumes, tmp_path):
    with pytest.raises(UserError, match="expected BIDS derivatives with betas"):
        open_study("bids", tmp_path, StudyOptions())
    with pytest.raises(UserError, match="nothing: expected the folder that holds the files of the layout bids"):
        open_study("bids", tmp_path / "nothing", StudyOptions())
    with pytest.raises(UserError, match=r"expected subjects with betas \(sub-01\), got sub-07"):
        volumes.open(subjects=("07",))
    with pytest.raises(UserError, match="expected files whose name has space-MNI"):
        volumes.open(betas="space-MNI")
    with pytest.raises(UserError, match="expected none for BIDS"):
        volumes.open(keys=("a=b",))
    with pytest.raises(UserError, match="expected one of stimuli=PATH, events=FOLDER for BIDS"):
        volumes.open(files=("mask=x",))
    (events,) = (volumes.dataset / "sub-01/ses-10/func").glob("*run-2_events.tsv")
    text = events.read_text()
    table(events, stim_file=STIMULI[:4])
    with pytest.raises(UserError, match=r"expected a map for each of the 4 trials of its events, got 5\."):
        volumes.open()
    table(events, stim=STIMULI[:5])
    with pytest.raises(
        UserError, match=r"expected one of the columns stim_file, .*, the same in all events, got stim\."
    ):
        volumes.open()
    events.unlink()
    with pytest.raises(UserError, match=r"run-2_space-T1w_betas\.tsv or an events\.tsv of the same"):
        volumes.open()
    elsewhere = tmp_path / "events"
    elsewhere.mkdir()
    (elsewhere / events.name).write_text(text)
    assert len(volumes.open(files=(f"events={elsewhere}",)).subjects[0].sessions) == 2


def test_betas_on_another_grid_or_truncated_are_refused(volumes):
    (betas,) = volumes.func.glob("*run-2*betas.nii.gz")
    whole = betas.read_bytes()
    betas.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"betas\.nii\.gz: expected a (whole )?NIfTI image"):
        volumes.open().subjects[0].sessions[0].read()
    save(betas, np.zeros((*SHAPE, 5), np.float32), np.eye(4))
    with pytest.raises(UserError, match="with another affine"):
        volumes.open()
    for mask in volumes.func.glob("*_mask.nii.gz"):
        save(mask, np.ones((2, 2, 2), np.uint8))
    with pytest.raises(UserError, match=r"on the grid of .* got others"):
        volumes.open()


def test_two_versions_of_the_same_betas_have_to_be_told_apart(volumes):
    for betas in list(volumes.root.rglob("*betas.nii.gz")):
        save(betas.with_name(betas.name.replace("T1w", "MNI")), np.zeros((*SHAPE, 5), np.float32))
    with pytest.raises(UserError, match="Choose with --betas, as space-T1w"):
        volumes.open()
    assert volumes.open(betas="space-T1w").subjects[0].sessions[0].read().any()


def test_pictures_that_are_named_otherwise_are_refused(volumes):
    other = volumes.dataset / "other"
    other.mkdir()
    Image.new("RGB", (4, 4)).save(other / "cat.png")
    with pytest.raises(UserError, match=r"expected pictures named as the stimuli are \(images/s"):
        volumes.open(files=(f"stimuli={other}",))
    for folder in ("a", "b"):
        (other / folder).mkdir()
        for name in STIMULI:
            Image.new("RGB", (4, 4)).save(other / folder / Path(name).name)
    with pytest.raises(UserError, match=r"expected one picture for stimulus 'images/s\d\d\.png', got a/s"):
        volumes.open(files=(f"stimuli={other}",))


# ---- surfaces

LEFT, RIGHT = 12, 12


def surfaces(root: Path, right: int = RIGHT, space: str = "_space-fsaverage5") -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(1)
    func = root / "sub-01/func"
    maps = rng.standard_normal((6, LEFT + right)).astype(np.float32)
    for hemi, part in (("L", maps[:, :LEFT]), ("R", maps[:, LEFT:])):
        gifti(func / f"sub-01_task-see_hemi-{hemi}{space}_betas.func.gii", list(part))
    ids = [f"s{i}" for i in (3, 1, 2, 3, 1, 0)]
    table(func / "sub-01_task-see_events.tsv", stimulus_id=ids)
    return maps, ids


def test_surfaces_are_read_of_both_hemispheres(tmp_path):
    maps, ids = surfaces(tmp_path)
    anat = tmp_path / "sub-01/anat"
    labels = np.random.default_rng(2).integers(0, 3, LEFT + RIGHT).astype(np.int32)
    places = np.random.default_rng(3).standard_normal((LEFT + RIGHT, 3)).astype(np.float32)
    for hemi, part in (("L", slice(LEFT)), ("R", slice(LEFT, None))):
        gifti(anat / f"sub-01_hemi-{hemi}_desc-visual_dseg.label.gii", [labels[part]], {0: "???", 1: "V1", 2: "V2"})
        gifti(anat / f"sub-01_hemi-{hemi}_midthickness.surf.gii", [places[part], np.zeros((1, 3), np.int32)])
    study = open_study("bids", tmp_path, StudyOptions())
    (who,) = study.subjects
    np.testing.assert_array_equal(who.sessions[0].read(), maps)
    assert list(who.sessions[0].stimulus_id) == ids
    assert who.space.kind == "vertices"
    assert who.space.geometry == {"type": "surface", "template": "fsaverage5", "left_vertices": LEFT}
    np.testing.assert_array_equal(who.space.coordinates_mm, places)
    np.testing.assert_array_equal(who.space.rois["V2"], labels == 2)
    back = who.space.to_surface(maps[0])
    np.testing.assert_array_equal(back["right"], maps[0, LEFT:])
    masked = open_study("bids", tmp_path, StudyOptions(mask="V1")).subjects[0]
    np.testing.assert_array_equal(masked.sessions[0].read(), maps[:, labels == 1])
    np.testing.assert_array_equal(masked.space.index, np.flatnonzero(labels == 1))
    with pytest.raises(UserError, match=r"expected the name of a ROI \(V1, V2\), got 'V9'"):
        open_study("bids", tmp_path, StudyOptions(mask="V9"))


def test_a_native_surface_may_have_other_numbers_of_vertices(tmp_path):
    maps, _ = surfaces(tmp_path, right=15, space="")
    study = open_study("bids", tmp_path, StudyOptions())
    space = study.subjects[0].space
    assert space.geometry == {"type": "surface", "template": "native", "left_vertices": 15}
    back = space.to_surface(maps[0])
    np.testing.assert_array_equal(back["left"][:LEFT], maps[0, :LEFT])
    np.testing.assert_array_equal(back["right"], maps[0, LEFT:])
    assert any("have no coordinates" in notice for notice in study.notices)


def test_fsaverage5_is_known_by_its_vertices(tmp_path):
    pytest.importorskip("nilearn", exc_type=ImportError)
    from brainjanus.data.simulate import load_surfaces

    func = tmp_path / "sub-01/func"
    maps = np.random.default_rng(0).standard_normal((2, 20_484)).astype(np.float32)
    gifti(func / "sub-01_hemi-L_space-fsaverage_den-10k_betas.func.gii", [maps[:, :10_242].T.copy()])  # one array
    gifti(func / "sub-01_hemi-R_space-fsaverage_den-10k_betas.func.gii", list(maps[:, 10_242:]))
    table(func / "sub-01_events.tsv", trial_type=["a", "b"])
    (who,) = open_study("bids", tmp_path, StudyOptions()).subjects
    assert who.space.geometry == {"type": "surface", "template": "fsaverage5", "left_vertices": 10_242}
    np.testing.assert_array_equal(who.sessions[0].read(), maps)
    np.testing.assert_allclose(who.space.coordinates_mm[10_242:], load_surfaces()["right"].mid_mm, atol=1e-4)


def test_surfaces_that_do_not_fit_are_refused(tmp_path):
    surfaces(tmp_path)
    left, right = sorted((tmp_path / "sub-01/func").glob("*.func.gii"))
    gifti(right, [np.zeros(RIGHT, np.float32)] * 5)
    with pytest.raises(UserError, match="expected 6 maps, as the left hemisphere has, got 5"):
        open_study("bids", tmp_path, StudyOptions()).subjects[0].sessions[0].read()
    gifti(left, [np.zeros(LEFT, np.float32)] * 5)
    with pytest.raises(UserError, match="expected a map for each of the 6 trials of its events, got 5"):
        open_study("bids", tmp_path, StudyOptions()).subjects[0].sessions[0].read()
    left.write_bytes(left.read_bytes()[:700])
    with pytest.raises(UserError, match=r"func\.gii: expected a GIfTI file"):
        open_study("bids", tmp_path, StudyOptions())
    left.unlink()
    with pytest.raises(UserError, match="Export the other hemisphere too"):
        open_study("bids", tmp_path, StudyOptions())


def test_memory_holds_one_run_beside_the_session(tmp_path, monkeypatch):
    monkeypatch.setattr(
        GiftiImage.from_filename.__func__, "__defaults__", (1 << 20, True)
    )  # nibabel's buffer has 35 MB
    maps = np.random.default_rng(0).standard_normal((6, 2, 20, 10_000)).astype(np.float32)  # run, side, trial, vertex
    for run, sides in enumerate(maps, start=1):
        for hemi, part in zip("LR", sides, strict=True):
            gifti(tmp_path / f"sub-01/func/sub-01_task-see_run-{run}_hemi-{hemi}_betas.func.gii", list(part))
        table(tmp_path / f"sub-01/func/sub-01_task-see_run-{run}_events.tsv", stimulus=list(range(20)))
    session = open_study("bids", tmp_path, StudyOptions()).subjects[0].sessions[0]
    tracemalloc.start()
    responses = session.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.6 * responses.nbytes, f"{peak}"
    np.testing.assert_array_equal(responses, maps.transpose(0, 2, 1, 3).reshape(120, 20_000))


def test_grayordinates_keep_their_vertices(tmp_path):
    rng = np.random.default_rng(4)
    present = rng.random((2, 10)) < 0.7
    axes = [
        BrainModelAxis.from_mask(mask, f"Cortex{side}") for mask, side in zip(present, ("Left", "Right"), strict=True)
    ]
    below = BrainModelAxis.from_mask(np.ones((2, 2, 2), bool), "THALAMUS_LEFT", affine=np.eye(4))
    axis = axes[0] + axes[1] + below
    maps = rng.standard_normal((4, len(axis))).astype(np.float32)
    path = tmp_path / "sub-01/func/sub-01_task-see_space-fsLR_betas.dscalar.nii"
    path.parent.mkdir(parents=True)
    scalars = ScalarAxis([f"trial {i}" for i in range(4)])
    nibabel.save(nibabel.Cifti2Image(maps, header=(scalars, axis)), path)
    table(path.with_name("sub-01_task-see_events.tsv"), stimulus=list("abca"))
    study = open_study("bids", tmp_path, StudyOptions())
    (who,) = study.subjects
    np.testing.assert_array_equal(who.sessions[0].read(), maps[:, : present.sum()])
    np.testing.assert_array_equal(who.space.index, np.flatnonzero(present.ravel()))
    assert who.space.geometry == {"type": "surface", "template": "fsLR", "left_vertices": 10}
    assert any("8 grayordinates below the cortex were left out" in notice for notice in study.notices)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 4 * 4 * 10])  # the file ends in the cortex
    with pytest.raises(UserError, match=r"expected a (whole )?CIFTI file"):
        open_study("bids", tmp_path, StudyOptions()).subjects[0].sessions[0].read()
