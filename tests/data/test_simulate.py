"""The simulated cortex: its maps, its selectivities, its noise, and that its truth is kept apart."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.data import simulate as sim
from brainjanus.data.dataset import Dataset
from brainjanus.data.scenes import CATEGORIES, SETTINGS, Item, Scene
from brainjanus.data.simulate import AREAS, EARLY, Cortex, SimulationConfig, Truth, simulate
from brainjanus.data.truth import load_truth

TINY = SimulationConfig(num_subjects=2, num_train=90, num_test=30, num_sites=(300, 320), trials_per_session=120)

# Published group peaks (right hemisphere, MNI or Talairach mm), independent of the table they are compared with
PUBLISHED = {
    "OFA": (38, -80, -7),  # Rossion et al. 2003
    "FFA": (40, -55, -10),  # Kanwisher et al. 1997
    "EBA": (51, -71, 1),  # Downing et al. 2001
    "OPA": (34, -77, 21),  # Dilks et al. 2013
    "PPA": (20, -39, -5),  # Epstein & Kanwisher 1998
    "VWFA": (-43, -54, -12),  # Cohen et al. 2002
}


@pytest.fixture(scope="module")
def surfaces() -> dict[str, sim.Surface]:
    return sim.load_surfaces()


@pytest.fixture(scope="module")
def cortex(surfaces) -> Cortex:
    """Every site that a subject has."""
    return sim.lay_out(replace(TINY, num_sites=(5000, 5000)), 0, surfaces)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, Dataset]:
    out = tmp_path_factory.mktemp("study")
    return out, simulate(out, TINY)


# --- the cortex -----------------------------------------------------------------------------------------------------


def test_subjects_have_their_own_sites(surfaces):
    config = SimulationConfig()
    subjects = [sim.lay_out(config, i, surfaces) for i in range(3)]
    for one in subjects:
        assert 1500 <= len(one.area) <= 2500
        assert set(one.area) == set(AREAS)
        assert len(set(one.vertex)) == len(one.vertex)
    assert set(subjects[0].vertex) != set(subjects[1].vertex)
    shared, at0, at1 = np.intersect1d(subjects[0].vertex, subjects[1].vertex, return_indices=True)
    moved = np.abs(subjects[0].x_deg[at0] - subjects[1].x_deg[at1])
    assert len(shared) > 800 and np.median(moved) > 0.05  # the same vertex, another warp


def test_sites_lie_in_their_hemisphere_and_see_the_other_side(cortex):
    left = cortex.vertex < sim.LEFT_VERTICES
    assert (cortex.coordinates_mm[left, 0] < 2).all() and (cortex.coordinates_mm[~left, 0] > -2).all()
    assert (cortex.x_deg[left] >= 0).all() and (cortex.x_deg[~left] <= 0).all()


def test_receptive_fields_grow_with_eccentricity_and_area(cortex):
    eccentricity = np.hypot(cortex.x_deg, cortex.y_deg)
    near, slopes = [], []
    for name in EARLY:
        of_area = cortex.area == name
        slopes.append(np.polyfit(eccentricity[of_area], cortex.size_deg[of_area], 1)[0])
        near.append(cortex.size_deg[of_area & (abs(eccentricity - 4) < 1.5)].mean())
    assert slopes[0] > 0.05
    assert near == sorted(near) and slopes == sorted(slopes)


def test_dorsal_cortex_sees_below_and_ventral_above(cortex):
    """On the banks of the calcarine: the cuneus holds the lower field, the lingual gyrus the upper."""
    height = cortex.coordinates_mm[:, 2]
    for name in ("V1", "V2", "V3"):
        of_area = (cortex.area == name) & (np.hypot(cortex.x_deg, cortex.y_deg) > 2)
        assert np.corrcoef(height[of_area], cortex.y_deg[of_area])[0, 1] < -0.5
    assert (cortex.y_deg[cortex.area == "hV4"] > 0).any() and (cortex.y_deg[cortex.area == "hV4"] < 0).any()


def test_magnification_is_logarithmic_along_the_horizontal_meridian():
    at = np.array([0.5, 2.0, 8.0])
    plane = np.stack([np.log1p(at / sim.FOVEA_A_DEG), np.zeros(3)], axis=1)
    area, eccentricity, angle = sim.retinotopy(plane)
    assert set(area) == {"V1"}
    np.testing.assert_allclose(eccentricity, at)
    np.testing.assert_allclose(angle, 0, atol=1e-12)


def test_maps_are_continuous_and_mirror_at_their_borders():
    """Across the areas, dorsal to ventral, far from the fovea: the horizontal meridian in V1, vertical ones at its
    borders, the horizontal one again between V2 and V3, and vertical ones outside; the direction turns at each.
    """
    across = np.linspace(-2.2, 2.2, 4001)
    area, _, angle = sim.retinotopy(np.stack([np.full_like(across, 3.0), across], axis=1))
    ordered = [name for name, before in zip(area, ["", *area[:-1]], strict=True) if name != before]
    assert ordered == ["hV4", "V3", "V2", "V1", "V2", "V3", ""] or ordered[-6:] == ["V3", "V2", "V1", "V2", "V3", ""]
    inside = np.isin(area, ["V1", "V2", "V3"])
    assert np.abs(np.diff(angle[inside])).max() < 0.02
    border = np.flatnonzero(area[1:] != area[:-1])
    at = {(str(area[i]), str(area[i + 1])): angle[i] / (np.pi / 2) for i in border}
    assert at["V3", "V2"] == pytest.approx(0, abs=0.02) and at["V2", "V3"] == pytest.approx(0, abs=0.02)
    assert at["V2", "V1"] == pytest.approx(1, abs=0.02) and at["V1", "V2"] == pytest.approx(-1, abs=0.02)
    direction = {name: np.sign(np.diff(angle[(area == name) & (across < 0)])).mean() for name in ("V1", "V2", "V3")}
    assert direction["V1"] < -0.99 and direction["V2"] > 0.99 and direction["V3"] < -0.99


def test_neighbours_on_the_cortex_see_neighbouring_places(cortex):
    from scipy.spatial import cKDTree

    for name in ("V1", "V2", "V3"):
        of_area = np.flatnonzero(cortex.area == name)
        nearest = of_area[cKDTree(cortex.points_mm[of_area]).query(cortex.points_mm[of_area], k=2)[1][:, 1]]
        step = np.hypot(cortex.x_deg[of_area] - cortex.x_deg[nearest], cortex.y_deg[of_area] - cortex.y_deg[nearest])
        apart = np.hypot(cortex.x_deg[of_area], cortex.y_deg[of_area]) + 1
        assert np.median(step / apart) < 0.35


def test_areas_lie_where_they_were_published(cortex):
    for name, peak in PUBLISHED.items():
        side = (cortex.vertex >= sim.LEFT_VERTICES) == (peak[0] > 0)
        centre = cortex.coordinates_mm[(cortex.area == name) & side].mean(axis=0)
        assert np.linalg.norm(centre - peak) < 13, name  # Talairach and MNI differ by up to 8 mm down there
    for name, patch in sim.PATCHES.items():
        for sign in (-1, 1):
            here = (cortex.area == name) & ((cortex.vertex >= sim.LEFT_VERTICES) == (sign > 0))
            if name == "VWFA" and sign > 0:
                assert not here.any()
                continue
            centre = np.array([sign * patch.centre_mm[0], *patch.centre_mm[1:]])
            assert np.linalg.norm(cortex.coordinates_mm[here].mean(axis=0) - centre) < 9, (name, sign)
    v1 = np.abs(cortex.coordinates_mm[cortex.area == "V1"]).mean(axis=0)
    assert np.linalg.norm(v1[:2] - (10, 89)) < 6  # on the calcarine, behind its junction with the POS


# --- responses ------------------------------------------------------------------------------------------------------


def grating(angle: float, cycles: int) -> np.ndarray:
    """Light varies along `angle`."""
    y, x = np.mgrid[:64, :64] / 64
    wave = 127.5 + 100 * np.cos(2 * np.pi * cycles * (x * np.cos(angle) + y * np.sin(angle)))
    return np.repeat(wave[None, :, :, None], 3, axis=3).astype(np.uint8)


def test_gabor_channels_prefer_their_own_grating():
    for f, cycles in enumerate(sim.CYCLES):
        for a in range(sim.ORIENTATIONS):
            energy = sim.energy_maps(grating(a * np.pi / sim.ORIENTATIONS, cycles)).mean(dim=2)[0, :-6]
            assert int(energy.argmax()) == f * sim.ORIENTATIONS + a


def test_energy_does_not_depend_on_phase():
    wave = grating(0.0, 8)
    channel = sim.ORIENTATIONS
    first, moved = (sim.energy_maps(np.roll(wave, shift, axis=2))[0, channel].reshape(32, 32) for shift in (0, 2))
    np.testing.assert_allclose(first[10:22, 10:22], moved[10:22, 10:22], rtol=0.05)


def test_early_sites_see_their_receptive_field_only(cortex):
    early = Cortex(*(column[np.isin(cortex.area, ["V1", "V2"])] for column in cortex))
    sites = sim.tune_early(early, np.random.default_rng(0))
    dot = np.full((1, 64, 64, 3), 127, np.uint8)
    dot[0, 20:24, 44:48] = 255  # 5.25 degrees right, 3.75 up
    maps = sim.energy_maps(dot)
    response = sim.early_responses(maps, maps.mean(dim=(0, 2)) + 1e-9, early, sites)[0]
    distance = np.hypot(early.x_deg - 5.25, early.y_deg - 3.75)
    assert response[distance < 1].min() > response[distance > 8].max()


def test_category_sites_prefer_what_they_are_known_for(study):
    out, dataset = study
    best = {
        "FFA": "face",
        "OFA": "face",
        "EBA": "person",
        "VWFA": "sign",
        "PPA": "house",
        "OPA": "house",
        "RSC": "house",
    }
    for subject in dataset.subjects:
        truth, rois = load_truth(Truth, out, subject), dataset.space(subject).rois
        for roi, category in best.items():
            mean = truth.category[rois[roi]].mean(axis=0)
            assert list(CATEGORIES)[int(mean.argmax())] == category, (subject, roi)
        assert np.isnan(truth.category[rois["V1"]]).all() and np.isnan(truth.frequency_cpd[rois["FFA"]]).all()
        assert truth.setting[rois["PPA"]].mean() > 0.5 and truth.setting[rois["FFA"]].max() == 0


def test_category_responses_are_graded_sized_contralateral_and_compressive(cortex):
    ffa = Cortex(*(column[(cortex.area == "FFA") & (cortex.x_deg > 0.5)] for column in cortex))
    sites = sim.tune_patches(ffa, np.random.default_rng(0))

    def response(*items: Item) -> float:
        return float(sim.patch_responses([Scene("room", items)], ffa, sites).mean())

    def at(category: str, x: float, extent: float = 0.3) -> Item:
        return Item(category, "black", "big", "left", x, 0.5, extent)

    assert response(at("face", 0.7)) > response(at("dog", 0.7)) > response(at("cup", 0.7))
    assert response(at("face", 0.7)) > response(at("face", 0.2))
    assert response(at("face", 0.7, 0.5)) > response(at("face", 0.7))
    both = response(at("face", 0.7), at("person", 0.6))
    assert response(at("face", 0.7)) < both < response(at("face", 0.7)) + response(at("person", 0.6))


# --- trials and noise -----------------------------------------------------------------------------------------------


def test_every_stimulus_comes_as_often_as_planned(study):
    _, dataset = study
    for subject in dataset.subjects:
        trials = dataset.trials(subject)
        ids, counts = np.unique(trials.stimulus_id, return_counts=True)
        assert len(ids) == 120 and (counts == 3).all()
        assert sorted(set(trials.repeat)) == [0, 1, 2] and (np.diff(trials.session) >= 0).all()
        assert np.bincount(trials.session).tolist() == [120, 120, 120] and set(trials.run) == set(range(12))
        sessions = {s: set(trials.session[np.array(trials.stimulus_id) == s]) for s in ids}
        assert sum(len(seen) > 1 for seen in sessions.values()) > 60


def test_training_stimuli_are_the_subjects_own_and_test_stimuli_shared(study):
    _, dataset = study
    own = [set(dataset.averages(subject, "train").stimulus_ids) for subject in dataset.subjects]
    test = [set(dataset.averages(subject, "test").stimulus_ids) for subject in dataset.subjects]
    assert test[0] == test[1] and len(test[0]) == 30
    assert not own[0] & own[1] and not (own[0] | own[1]) & test[0]


def test_noise_is_unit_variance_and_smooth_along_the_cortex(cortex):
    trials = sim.schedule(replace(TINY, num_train=400), 0, [f"a{i}" for i in range(400)], ["b"])
    sample = sim.noise(cortex, trials, np.random.default_rng(0))
    assert sample.std(axis=0).mean() == pytest.approx(1, abs=0.05)
    r = np.corrcoef(sample[:, ::5].T)
    points = cortex.points_mm[::5]
    distance = np.linalg.norm(points[:, None] - points, axis=2)
    near, far = r[(distance > 0) & (distance < 4)].mean(), r[distance > 40].mean()
    assert near > far + 0.15 and 0.03 < far < 0.15


def test_ceilings_are_spread_as_in_nsd(surfaces):
    shares = []
    for subject in range(3):
        one = sim.lay_out(SimulationConfig(), subject, surfaces)
        shares.append(sim.reliable_share(one, np.random.default_rng(subject)))
    ceiling = np.sqrt(np.concatenate(shares))
    assert 0.35 < np.median(ceiling) < 0.45
    assert np.percentile(ceiling, 99) > 0.7 and ceiling.max() < 0.9


def test_estimated_ceilings_agree_with_the_truth(study):
    out, dataset = study
    for subject in dataset.subjects:
        truth, space = load_truth(Truth, out, subject), dataset.space(subject)
        np.testing.assert_allclose(truth.noise_ceiling**2, truth.signal_variance)
        estimated = space.noise_ceiling(1)
        assert np.corrcoef(estimated, truth.noise_ceiling)[0, 1] > 0.8
        assert np.mean(estimated**2) == pytest.approx(np.mean(truth.signal_variance), abs=0.02)


def test_truth_predicts_up_to_the_ceiling(study):
    out, dataset = study
    for subject in dataset.subjects:
        truth, measured = load_truth(Truth, out, subject), dataset.averages(subject, "train")
        row = {stimulus: i for i, stimulus in enumerate(truth.stimulus_ids)}
        ideal = truth.responses[[row[stimulus] for stimulus in measured.stimulus_ids]]
        r = [np.corrcoef(a, b)[0, 1] for a, b in zip(ideal.T, measured.responses.T, strict=True)]
        ceiling = np.sqrt(truth.signal_variance / (truth.signal_variance + truth.noise_variance / 3))
        assert np.mean(r) == pytest.approx(ceiling.mean(), abs=0.03)
        slope = (ideal * measured.responses).sum() / (ideal**2).sum()  # the same unit
        assert slope == pytest.approx(1, abs=0.08)


# --- the whole ------------------------------------------------------------------------------------------------------


def test_the_seed_decides_everything(tmp_path):
    small = replace(TINY, num_subjects=1, num_train=12, num_test=4, num_sites=(60, 60), trials_per_session=24)
    one, again = (simulate(tmp_path / name, small).fingerprint for name in ("one", "again"))
    other = simulate(tmp_path / "other", replace(small, seed=1)).fingerprint
    assert one == again != other


def test_truth_is_no_part_of_the_dataset(study):
    out, dataset = study
    assert sorted(path.name for path in out.iterdir()) == ["dataset", "truth"]
    assert not [path for path in dataset.path.rglob("*") if "truth" in path.name]
    assert "truth" not in json.dumps(dataset.manifest)
    assert dataset.manifest["provenance"]["simulation"]["num_train"] == TINY.num_train


def test_spaces_can_be_drawn(study):
    _, dataset = study
    space = dataset.space("subj01")
    maps = space.to_surface(space.rois["V1"].astype(np.float32))
    assert maps["left"].shape == maps["right"].shape == (10242,)
    assert np.nansum(maps["left"]) + np.nansum(maps["right"]) == space.rois["V1"].sum()
    assert np.sum(list(space.rois.values()), axis=0).tolist() == [1] * space.num_sites


def test_every_stimulus_has_a_picture_and_five_captions(study):
    _, dataset = study
    assert dataset.images(list(dataset.stimulus_ids[:3])).shape == (3, 64, 64, 3)
    for stimulus in dataset.stimulus_ids:
        said = dataset.captions(stimulus)
        assert len(said) == 5
    words = {
        word for stimulus in dataset.stimulus_ids for caption in dataset.captions(stimulus) for word in caption.split()
    }
    assert {"beach", "snow", "left", *CATEGORIES} <= words and len(SETTINGS) == 8


def test_an_existing_dataset_is_not_replaced_unasked(study):
    out, _ = study
    with pytest.raises(UserError, match="already holds a dataset"):
        simulate(out, TINY)


def test_truth_of_an_unknown_subject_is_refused(study):
    with pytest.raises(UserError, match="expected the truth of subj09"):
        load_truth(Truth, study[0], "subj09")


def test_an_impossible_design_names_all_its_problems():
    with pytest.raises(UserError, match=r"num_train = 0 .*, repeats = 0 .*, num_sites = \(9, 3\)"):
        SimulationConfig(num_train=0, repeats=0, num_sites=(9, 3))


def test_without_nilearn_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    with pytest.raises(UserError, match=r"brainjanus\[cortex\]"):
        sim.load_surfaces()
