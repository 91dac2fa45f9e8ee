"""Simulated EEG and MEG: the forward models, the sources, the noise, and that truth and data agree."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.special import eval_legendre

from brainjanus.core.errors import UserError
from brainjanus.data import simulate_sensors as sim
from brainjanus.data.dataset import Dataset
from brainjanus.data.simulate_sensors import SensorSimulationConfig, SensorTruth, simulate_sensors
from brainjanus.data.truth import load_truth

TINY = SensorSimulationConfig(num_subjects=2, num_train=60, num_test=20, trials_per_session=120)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, Dataset]:
    out = tmp_path_factory.mktemp("eeg")
    return out, simulate_sensors(out, TINY)


# --- sensors --------------------------------------------------------------------------------------------------------


def test_dimensions_are_those_of_the_published_data():
    eeg, meg = sim.space_of("eeg", "a"), sim.space_of("meg", "a")
    assert eeg.num_sites == 63 * 250 and len(set(sim.EEG_CHANNELS)) == 63 and "Fz" not in sim.EEG_CHANNELS
    assert meg.num_sites == 271 * 201
    for space, rate in ((eeg, 250), (meg, 200)):
        times = np.array(space.geometry["times_sec"])
        assert times[0] == 0 and np.allclose(np.diff(times), 1 / rate)


def test_electrodes_lie_where_the_ten_ten_system_puts_them():
    at = {name: sim.ten_ten_mm(name) / sim.HEAD_MM for name in (*sim.EEG_CHANNELS, "Fz", "Fpz")}
    np.testing.assert_allclose(np.linalg.norm(list(at.values()), axis=1), 1)
    np.testing.assert_allclose(at["Cz"], [0, 0, 1], atol=1e-9)
    np.testing.assert_allclose(at["T7"], [-np.sin(0.4 * np.pi), 0, np.cos(0.4 * np.pi)], atol=1e-9)
    assert at["Oz"][1] < -0.9 and at["Fpz"][1] > 0.9
    for left, right in (("F3", "F4"), ("PO7", "PO8"), ("Fp1", "Fp2"), ("TP9", "TP10"), ("O1", "O2"), ("C5", "C6")):
        np.testing.assert_allclose(at[left] * [-1, 1, 1], at[right], atol=1e-9)
        assert at[left][0] < 0

    # tenths of the circle: neighbours on the midline and on the ring are 18 degrees apart
    def degrees(a: str, b: str) -> float:
        return float(np.degrees(np.arccos(at[a] @ at[b])))

    assert degrees("Cz", "CPz") == pytest.approx(18) == degrees("POz", "Oz")
    for a, b in pairwise(("Fpz", "Fp1", "AF7", "F7", "FT7", "T7", "TP7", "P7", "PO7", "O1", "Oz")):
        assert degrees(a, b) == pytest.approx(17.1, abs=0.05), (a, b)
    for row in (("F7", "F5", "F3", "F1", "Fz"), ("P8", "P6", "P4", "P2", "Pz")):
        steps = [np.arccos(at[a] @ at[b]) for a, b in pairwise(row)]
        np.testing.assert_allclose(steps, steps[0])
    with pytest.raises(UserError, match="electrode 'X3': expected a name of the 10-10 system"):
        sim.ten_ten_mm("X3")


def test_the_helmet_is_covered_evenly_and_named_by_place():
    names, places = sim.helmet()
    assert len(set(names)) == 271 and names == sorted(names)
    apart = np.linalg.norm(places[:, None] - places, axis=2) + 1e9 * np.eye(271)
    assert apart.min(axis=1).max() < 1.6 * apart.min(axis=1).min()
    for name, (x, y, _) in zip(names, places, strict=True):
        assert (x < 0) == (name[1] == "L") or name[1] == "Z"
        assert y > 0 or name[2] != "F"
        assert y < 0 or name[2] != "O"
    assert {name[2] for name in names} == set("FCTPO")


def test_rois_are_groups_of_sensors_and_windows_of_time():
    for modality in ("eeg", "meg"):
        space = sim.space_of(modality, "a")
        grids = {name: space.to_grid(mask.astype(np.float32)) for name, mask in space.rois.items()}
        regions = np.stack([grids[name] for name in sim.REGIONS[modality]])
        np.testing.assert_array_equal(regions.sum(axis=0), 1)  # each sensor in one
        times = np.array(space.geometry["times_sec"])
        window = times[grids["N170"][0] > 0]
        assert window.min() >= 0.14 and window.max() < 0.2 and (grids["N170"] == grids["N170"][:1]).all()
    space = sim.space_of("eeg", "a")
    inside = space.to_grid(space.rois["occipital"].astype(np.float32))[:, 0] > 0
    assert set(np.array(sim.EEG_CHANNELS)[inside]) == {"PO7", "PO3", "POz", "PO4", "PO8", "O1", "Oz", "O2"}


# --- forward models -------------------------------------------------------------------------------------------------


def test_potential_is_the_series_of_a_homogeneous_sphere():
    """Frank 1952 / Zhang 1995, summed to 200 terms: for a dipole on the z axis, radial and tangential part."""
    electrodes = np.stack([sim.ten_ten_mm(name) for name in ("Cz", "T8", "Oz", "F3", "TP9")])
    height = 40.0
    moment = np.array([0.7, 0.0, -1.2])
    found = sim.potential(electrodes, np.array([[0.0, 0, height]]), moment[None])[0]
    cos = electrodes[:, 2] / sim.HEAD_MM
    sin, along_x = np.sqrt(1 - cos**2), electrodes[:, 0] / np.maximum(np.hypot(*electrodes[:, :2].T), 1e-12)
    expected = np.zeros(5)
    for n in range(1, 200):
        slope = n * (eval_legendre(n - 1, cos) - cos * eval_legendre(n, cos)) / np.maximum(sin, 1e-12)  # P_n^1
        slope[sin < 1e-9] = 0
        terms = n * moment[2] * eval_legendre(n, cos) + moment[0] * along_x * slope
        expected += (2 * n + 1) / n * (height / sim.HEAD_MM) ** (n - 1) * terms / sim.HEAD_MM**2
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


def test_field_is_that_of_biot_and_savart_and_silent_for_radial_sources():
    rng = np.random.default_rng(0)
    _, coils = sim.helmet()
    place, moment = rng.normal(size=(3, 3)) * 30, rng.normal(size=(3, 3))
    found = sim.radial_field(coils, place, moment)
    apart = coils[None] - place[:, None]
    field = np.cross(moment[:, None], apart) / np.linalg.norm(apart, axis=2)[..., None] ** 3
    outwards = coils / np.linalg.norm(coils, axis=1, keepdims=True)
    np.testing.assert_allclose(found, (field * outwards).sum(axis=2), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(sim.radial_field(coils, place, place), 0, atol=1e-12)


def test_topographies_are_smooth_dipoles_against_the_average():
    for modality in ("eeg", "meg"):
        _, sensors = sim.sensors_of(modality)
        place, moment = np.array([[45.0, -50, 30]]), np.array([[0.6, 0.8, 0.2]])
        field = sim.topographies(modality, sensors, place, moment)[0]
        assert 0.2 < np.abs(field).max() < 5 and field.min() < 0 < field.max()
        nearest = np.argsort(np.linalg.norm(sensors[:, None] - sensors, axis=2), axis=1)[:, 1]
        assert np.corrcoef(field, field[nearest])[0, 1] > 0.75
    eeg = sim.topographies("eeg", sim.sensors_of("eeg")[1], place, moment)
    assert eeg.mean() == pytest.approx(0, abs=1e-12)


# --- noise ----------------------------------------------------------------------------------------------------------


def test_noise_has_the_stated_variance_and_is_correlated_over_sensors_and_time():
    _, sensors = sim.sensors_of("eeg")
    times = sim.times_of("eeg")
    rng = np.random.default_rng(0)
    noise = sim.draw_noise("eeg", sensors, rng)
    assert noise.variance().mean() == pytest.approx(1)
    sample = sim.sample_noise(noise, 400, times, rng)
    np.testing.assert_allclose((sample**2).mean(axis=(0, 2)), noise.variance(), rtol=0.15)
    np.testing.assert_allclose((sample**2).mean(axis=(0, 1)), 1, atol=0.2)  # at any time
    power = (np.abs(np.fft.rfft(sample * np.hanning(250))) ** 2).mean(axis=(0, 1))
    hz = np.fft.rfftfreq(250, 0.004)
    fit = np.polyfit(np.log(hz[15:60]), np.log(power[15:60]), 1)[0]
    assert -1.3 < fit < -0.6  # power as 1 / f, above alpha and with some white noise
    background = np.interp(10, [5, 16], power[[5, 16]])
    assert power[hz == 10] > 2 * background
    r = np.corrcoef(sample.transpose(1, 0, 2).reshape(63, -1))
    apart = np.linalg.norm(sensors[:, None] - sensors, axis=2)
    assert r[(apart > 0) & (apart < 35)].mean() > 0.4 + np.abs(r[apart > 130]).mean() * 0.5
    later = np.corrcoef(sample[:, :, 100].ravel(), sample[:, :, 102].ravel())[0, 1]
    assert later > 0.4


# --- data and truth -------------------------------------------------------------------------------------------------


def test_it_is_a_dataset_of_sensors(study):
    out, dataset = study
    assert dataset.subjects == ("subj01", "subj02") and dataset.modality == "EEG (simulated)"
    space = dataset.space("subj02")
    assert space.kind == "sensors" and space.geometry["names"] == sim.EEG_CHANNELS
    assert not np.array_equal(space.order, np.arange(space.num_sites))
    trials = dataset.trials("subj01")
    ids, counts = np.unique(trials.stimulus_id, return_counts=True)
    assert len(ids) == 80 and (counts == 3).all() and set(trials.session) == {0, 1}
    own = [set(dataset.averages(subject, "train").stimulus_ids) for subject in dataset.subjects]
    test = [dataset.averages(subject, "test").stimulus_ids for subject in dataset.subjects]
    assert not own[0] & own[1] and test[0] == test[1] and len(test[0]) == 20
    assert all(len(dataset.captions(name)) == 5 for name in ids)
    assert not any("truth" in str(file) for file in (out / "dataset").rglob("*"))


def test_truth_and_data_agree_in_unit_ceiling_and_noise(study):
    out, dataset = study
    for subject in dataset.subjects:
        truth, measured = load_truth(SensorTruth, out, subject), dataset.averages(subject, "train")
        row = {stimulus: i for i, stimulus in enumerate(truth.stimulus_ids)}
        ideal = truth.responses[[row[stimulus] for stimulus in measured.stimulus_ids]]
        assert (ideal * measured.responses).sum() / (ideal**2).sum() == pytest.approx(1, abs=0.05)
        left = (measured.responses - ideal).var(axis=0)
        assert (3 * left / truth.noise_variance).mean() == pytest.approx(1, abs=0.05)
        np.testing.assert_allclose(truth.signal_variance + truth.noise_variance, 1)
        np.testing.assert_allclose(truth.noise_ceiling**2, truth.signal_variance)
        assert np.percentile(truth.signal_variance, 95) == pytest.approx(TINY.reliability, abs=0.01)
        assert np.corrcoef(dataset.space(subject).noise_ceiling(1), truth.noise_ceiling)[0, 1] > 0.6  # from 180 trials
        np.testing.assert_allclose(ideal.var(axis=0), truth.signal_variance, atol=1e-4)


def test_responses_are_the_sum_of_the_sources(study):
    truth = load_truth(SensorTruth, study[0], "subj01")
    maps = (truth.topography[:, :, None] * truth.time_course[:, None]).reshape(len(truth.topography), -1)
    signal = truth.amplitude @ maps
    scale = signal.std(axis=0)
    np.testing.assert_allclose(truth.responses / truth.responses.std(axis=0), signal / scale, atol=1e-2)


def test_waves_come_where_and_when_they_should(study):
    """P1 behind, early, and on the side that does not see it; P3 later and further up."""
    out, dataset = study
    truth = load_truth(SensorTruth, out, "subj01")
    power = dataset.space("subj01").to_grid(truth.signal_variance)
    times = sim.times_of("eeg")
    back = np.isin(sim.EEG_CHANNELS, ["O1", "Oz", "O2", "PO7", "PO8", "PO3", "PO4", "POz"])
    assert power[:, times < 0.03].max() < 0.01 < power[:, (times > 0.08) & (times < 0.13)].max()
    early, late = (power[:, (times > a) & (times < b)].mean(axis=1) for a, b in ((0.09, 0.12), (0.3, 0.45)))
    assert early[back].mean() / early[~back].mean() > late[back].mean() / late[~back].mean()
    peak = np.abs(truth.time_course).argmax(axis=1)
    np.testing.assert_allclose(times[peak], truth.latency_sec, atol=0.012)


def test_sources_see_the_other_half_and_answer_to_their_category():
    rng = np.random.default_rng(0)
    scenes = [sim.compose(rng) for _ in range(120)]
    pixels = np.stack([sim.render(scene, rng) for scene in scenes])
    features = sim.features_of(scenes, pixels, 100)
    for values in features.values():
        assert values[:100].mean() == pytest.approx(0, abs=1e-9) and values[:100].std() in (0, pytest.approx(1))
    faces = np.array([any(item.category == "face" for item in scene.items) for scene in scenes])
    assert features["face"][faces].min() > features["face"][~faces].min()
    bright = np.full((2, 64, 64, 3), 127, np.uint8)
    bright[0, :32, :32, 0] = np.tile([0, 255], 16)  # something in the upper left of the first
    seen = sim.features_of(scenes[:2], bright, 2)
    assert seen["contrast left up"][0] > 0.9 and seen["contrast right down"][0] < seen["contrast left up"][0] + 1e-9
    names = list(features)
    sources = sim.draw_sources(names, sim.times_of("eeg"), rng)
    contrast = {side: [name.startswith(f"contrast {side}") for name in names] for side in ("left", "right")}
    weight = np.abs(sources.weights)
    p1 = sources.latency_sec < 0.13
    right = sources.place_mm[:, 0] > 0
    assert weight[p1 & right][:, contrast["left"]].mean() > 5 * weight[p1 & right][:, contrast["right"]].mean()
    n170 = (sources.latency_sec > 0.14) & (sources.latency_sec < 0.2)
    best = [names[i].split()[0] for i in np.abs(sources.weights[n170].mean(axis=0)).argsort()[-4:]]
    assert "face" in best


def test_the_seed_decides_everything(tmp_path):
    small = replace(TINY, num_subjects=1, num_train=8, num_test=2, repeats=1, trials_per_session=10)
    one, again = (simulate_sensors(tmp_path / name, small).fingerprint for name in ("one", "again"))
    other = simulate_sensors(tmp_path / "other", replace(small, seed=1)).fingerprint
    assert one == again != other
    meg = simulate_sensors(tmp_path / "meg", replace(small, modality="meg"))
    assert (
        meg.space("subj01").num_sites == 271 * 201
        and load_truth(SensorTruth, tmp_path / "meg", "subj01").responses.shape[0] == 10
    )


def test_says_what_is_wrong(tmp_path, study):
    with pytest.raises(
        UserError, match="expected modality eeg or meg and a reliability between 0 and 1, got 'eeg' and 1"
    ):
        SensorSimulationConfig(reliability=1.0)
    with pytest.raises(UserError, match=r"expected a design that can be run, got num_test = 1 \(at least 2\)"):
        SensorSimulationConfig(num_test=1)
    with pytest.raises(UserError, match="expected the truth of subj09, got no such file"):
        load_truth(SensorTruth, study[0], "subj09")
    with pytest.raises(UserError, match="already holds a dataset"):
        simulate_sensors(study[0], TINY)
