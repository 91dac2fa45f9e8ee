import io
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.evaluate import topography
from brainjanus.evaluate.topography import (
    NEIGHBOURS,
    Spins,
    caption_groups,
    distance_curve,
    draw_topography,
    resampled_agreement,
    selectivity_agreement,
    selectivity_maps,
    spatial_autocorrelation,
    spin_p,
    spins,
)

VERTICES = 10242  # of one hemisphere of fsaverage5


def spun(values, sources):
    """A map under each rotation, NaN where nothing was measured."""
    return np.where(sources >= 0, values[sources], np.nan)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def volume(num_sites: int = 60) -> BrainSpace:
    return BrainSpace("s1", num_sites, coordinates_mm=30 * rng().standard_normal((num_sites, 3)))


def smooth(points: np.ndarray, num: int, length_mm: float = 10, seed: int = 0) -> np.ndarray:
    """Independent maps that are smooth over some mm: noise, averaged over the neighbourhood."""
    kernel = np.exp(-cdist(points, points, "sqeuclidean") / (2 * length_mm**2))
    return (kernel @ rng(seed).standard_normal((len(points), num))).T


@pytest.fixture(scope="module")
def sphere() -> list[np.ndarray]:
    pytest.importorskip("nilearn", reason="needs nilearn (the extra 'cortex')")
    return topography._sphere()


@pytest.fixture(scope="module")
def occipital(sphere) -> BrainSpace:
    """The back of both hemispheres, with gaps."""
    vertices = np.concatenate(sphere)
    behind = np.flatnonzero(vertices[:, 1] < -70)
    index = np.sort(rng().choice(behind, len(behind) * 9 // 10, replace=False))
    geometry = {"type": "surface", "template": "fsaverage5", "left_vertices": VERTICES}
    points = vertices[index] * 0.7 + np.where(index < VERTICES, -50, 50)[:, None] * [1, 0, 0]
    return BrainSpace("s1", len(index), "vertices", coordinates_mm=points, geometry=geometry, index=index)


@pytest.fixture(scope="module")
def rotations(occipital) -> Spins:
    return spins(occipital, 99, rng())


# --- Moran's I ------------------------------------------------------------------------------------------------------


def moran(space: BrainSpace, values: np.ndarray) -> float:
    """By its formula, with loops."""
    points, z, total, product = space.coordinates_mm, values - values.mean(), 0.0, 0.0
    near = np.zeros((len(z), len(z)))
    for i in range(len(z)):
        same = [j for j in range(len(z)) if j != i and (points[j, 0] >= 0) == (points[i, 0] >= 0)]
        for j in sorted(same, key=lambda j: np.linalg.norm(points[i] - points[j]))[:NEIGHBOURS]:
            near[i, j] = 1
    for i in range(len(z)):
        for j in range(len(z)):
            weight = (near[i, j] + near[j, i]) / 2
            total += weight
            product += weight * z[i] * z[j]
    return len(z) / total * product / (z**2).sum()


def test_morans_i_by_its_formula():
    space = volume()
    maps = np.concatenate([rng(1).standard_normal((2, 60)), smooth(space.coordinates_mm, 2, 20), [np.arange(60.0)]])
    expected = [moran(space, values) for values in maps]
    np.testing.assert_allclose(spatial_autocorrelation(space, maps), expected)


def test_morans_i_tells_smooth_from_rough(occipital):
    maps = np.concatenate([smooth(occipital.coordinates_mm, 1), rng(1).standard_normal((1, occipital.num_sites))])
    found = spatial_autocorrelation(occipital, maps)
    assert found[0] > 0.8 and abs(found[1]) < 0.05
    np.testing.assert_allclose(spatial_autocorrelation(occipital, 5 - 2 * maps), found)  # of any unit


def test_a_constant_map_has_no_autocorrelation():
    assert spatial_autocorrelation(volume(), np.full((1, 60), 0.1)).tolist() == [0]


def test_sites_at_one_place_are_not_their_own_neighbours():
    space = BrainSpace("s1", 30, coordinates_mm=np.ones((30, 3)))
    assert (topography._neighbours(space).diagonal() == 0).all()
    assert topography._neighbours(space).sum() == 30 * NEIGHBOURS


def test_hemispheres_are_not_neighbours():
    points = np.array([[-0.1, 0, 0], [-5.0, 0, 0], [0.1, 0, 0], [5.0, 0, 0]])
    weights = topography._neighbours(BrainSpace("s1", 4, coordinates_mm=points)).toarray()
    np.testing.assert_array_equal(weights > 0, np.kron(np.eye(2), 1 - np.eye(2)) > 0)


def test_sensors_are_neighbours_in_time_and_across_the_midline():
    """Two sensors 6 mm apart on either side of the midline; 1 ms counts 3 mm: nearer than a sensor."""
    places = np.array([[-3.0, 0, 0], [3.0, 0, 0]])
    space = BrainSpace.of_sensors("s1", ["a", "b"], np.arange(40) / 1000, places)
    weights = topography._neighbours(space).toarray()
    assert weights[20, [19, 21]].min() == weights[20, 60] == 1 and weights[20, 0] == weights[20, 79] == 0
    curve = distance_curve(
        space, np.random.default_rng(0).standard_normal((30, 80)).cumsum(axis=1), (2.9, 3.1, 60.0, 61.0)
    )
    assert curve.r[0] > curve.r[2] and np.isfinite(curve.r[[0, 2]]).all()
    assert len(topography._hemispheres(space)) == 1
    assert draw_topography(space, np.eye(30, 80), np.eye(30, 80), {}).startswith(b"\x89PNG")


def test_without_coordinates_or_neighbours_there_is_none():
    assert spatial_autocorrelation(BrainSpace("s1", 5, "neurons"), np.zeros((1, 5))) is None
    assert distance_curve(BrainSpace("s1", 5, "neurons"), np.zeros((3, 5))) is None
    alone = BrainSpace("s1", 2, coordinates_mm=np.array([[-1.0, 0, 0], [1, 0, 0]]))
    assert spatial_autocorrelation(alone, np.array([[1.0, 2]])) is None


# --- distance curve -------------------------------------------------------------------------------------------------


def test_the_distance_curve_by_a_loop_over_pairs():
    space, responses = volume(), rng(1).standard_normal((20, 60))
    responses[:, 7] = 3  # constant: left out
    pairs: dict[int, list[float]] = {}
    for i in range(60):
        for j in range(i):
            a, b = space.coordinates_mm[[i, j]]
            if 7 not in (i, j) and (a[0] >= 0) == (b[0] >= 0):
                r = np.corrcoef(responses[:, i], responses[:, j])[0, 1]
                pairs.setdefault(int(np.linalg.norm(a - b) // 10), []).append(r)
    curve = distance_curve(space, responses, [10.0 * k for k in range(7)])
    np.testing.assert_allclose(curve.r, [np.mean(pairs[k]) for k in range(6)])
    np.testing.assert_allclose(curve.distance_mm, [5, 15, 25, 35, 45, 55])


def test_the_curve_falls_and_is_nan_where_no_pair_is(occipital, monkeypatch):
    responses = smooth(occipital.coordinates_mm, 40, 6)
    curve = distance_curve(occipital, responses, [0.0, 5.0, 15.0, 30.0, 500.0, 600.0])
    assert curve.r[0] > 0.7 > curve.r[1] > curve.r[2] and np.isnan(curve.r[-1])
    monkeypatch.setattr(topography, "MAX_CURVE_SITES", 300)
    np.testing.assert_allclose(distance_curve(occipital, responses, [0.0, 5.0, 15.0, 30.0]).r, curve.r[:3], atol=0.1)


# --- rotations ------------------------------------------------------------------------------------------------------


def test_a_rotation_takes_each_site_from_where_it_was_before(occipital, sphere, monkeypatch):
    """A turn about the vertical axis: the left hemisphere's the one way round, the right one's the other."""
    turn = Rotation.from_euler("z", 12, degrees=True)
    monkeypatch.setattr(Rotation, "random", lambda num, **_: Rotation.concatenate([turn] * num))
    sources = spins(occipital, 1, rng()).sources[0]
    points, left = np.concatenate(sphere)[occipital.index], occipital.index < VERTICES
    for of_side, matrix in ((left, turn.as_matrix()), (~left, turn.inv().as_matrix())):
        sites = np.flatnonzero(of_side & (sources >= 0))
        assert of_side[sources[sites]].all()  # nothing crosses to the other hemisphere
        distance = np.linalg.norm(points[sources[sites]] - points[sites] @ matrix.T, axis=1)
        assert distance.max() < 3  # the vertices of fsaverage5 lie 3 to 4 apart


def test_what_is_not_measured_is_not_landed_on(occipital, rotations):
    assert rotations.sources.shape == (99, occipital.num_sites)
    share = (rotations.sources >= 0).mean(axis=1)
    assert share.min() >= 0.5 and share.max() < 1
    assert "99 rotations" in rotations.note and "p errs on the large side" in rotations.note
    assert (rotations.sources != np.arange(occipital.num_sites)).mean() > 0.9


def test_unmeasured_places_are_nan():
    values = np.array([5.0, 6, 7])
    np.testing.assert_array_equal(spun(values, np.array([[2, -1, 0]])), [[7, np.nan, 5]])


def test_the_seed_decides_the_rotations(occipital):
    one, again, other = (spins(occipital, 2, rng(seed)).sources for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    null = spun(np.arange(occipital.num_sites) * 1.0, spins(occipital, 2, rng(0)).sources)
    np.testing.assert_array_equal(null, np.where(one >= 0, one, np.nan))


def test_the_null_correlation_is_numpys(occipital, rotations):
    fixed, moved = smooth(occipital.coordinates_mm, 2)
    found = topography._null_r(fixed, moved, rotations.sources)
    for r, values in zip(found[:5], spun(moved, rotations.sources), strict=False):
        known = np.isfinite(values)
        assert r == pytest.approx(np.corrcoef(fixed[known], values[known])[0, 1])
    assert not topography._null_r(fixed, np.full_like(moved, 0.5), rotations.sources).any()


def test_independent_smooth_maps_are_not_significant(occipital, rotations):
    """What a permutation of sites gets wrong: independent smooth maps correlate by chance."""
    maps = smooth(occipital.coordinates_mm, 120, 8).reshape(60, 2, -1)
    p = [spin_p(np.corrcoef(*pair)[0, 1], topography._null_r(*pair, rotations.sources)) for pair in maps]
    assert np.mean(np.array(p) < 0.05) <= 0.05


def test_maps_that_agree_are_significant(occipital, rotations):
    true, other = smooth(occipital.coordinates_mm, 2, 8)
    guess = true + 0.5 * other
    r = np.corrcoef(true, guess)[0, 1]
    assert spin_p(r, topography._null_r(true, guess, rotations.sources)) == 0.01


def test_p_counts_ties_and_both_signs():
    assert spin_p(0.5, np.array([0.1, -0.5, 0.6, 0.2])) == 2 / 5
    assert spin_p(-0.9, np.array([0.1, 0.2, 0.3, 0.4])) == 1  # maps that are opposed do not agree


def test_spaces_without_a_sphere_say_so():
    for space, why in (
        (BrainSpace("s1", 9, "neurons"), "neurons without a known sphere"),
        (volume(), "only fsaverage5"),
    ):
        found = spins(space, 5, rng())
        assert found.sources is None and why in found.note
        assert spins(space, 5, rng()).sources is None
    shape = BrainSpace("s1", 8, geometry={"type": "volume", "shape": [2, 2, 2], "affine": np.eye(4).tolist()})
    assert "a volume" in spins(shape, 5, rng()).note


def test_too_few_sites_to_rotate_say_so(occipital, monkeypatch):
    monkeypatch.setattr(topography, "MAX_DRAWS", 2)
    scattered = rng().choice(2 * VERTICES, 40, replace=False)
    space = BrainSpace("s1", 40, "vertices", geometry=occipital.geometry, index=scattered)
    found = spins(space, 5, rng())
    assert found.sources is None and "cover too little of the cortex" in found.note


def test_missing_nilearn_is_said_with_its_remedy(occipital, monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'brainjanus\[cortex\]'"):
        spins(occipital, 2, rng())


# --- selectivity ----------------------------------------------------------------------------------------------------


def test_categories_are_frequent_content_words():
    captions = [["a dog on the grass", "one dog"] for _ in range(10)] + [["the red car"] for _ in range(30)]
    captions += [["a cat"] for _ in range(7)] + [["people of the street"] for _ in range(12)]
    groups = caption_groups(captions)
    # "car" is in more than half, "cat" in too few; "dog" stands for "grass" and "one" too, which name the same stimuli
    assert list(groups) == ["people", "dog"]
    np.testing.assert_array_equal(groups["dog"], np.arange(len(captions)) < 10)


def test_categories_are_neither_rare_nor_in_most_captions():
    captions = [[" ".join(["every"] + ["half"] * (i % 2 == 0) + ["few"] * (i < 8))] for i in range(200)]
    assert list(caption_groups(captions)) == ["half"]  # "few" is in 4 %
    assert caption_groups([]) == {} == caption_groups([["a b"], []])


def test_no_more_than_eight_categories_the_most_frequent_first():
    captions = [[" ".join(f"word{k}" for k in range(12) if i < 30 + k)] for i in range(100)]
    assert list(caption_groups(captions)) == [f"word{k}" for k in range(11, 3, -1)]


def test_selectivity_is_a_difference_of_means():
    responses, mask = rng().standard_normal((10, 4)), np.arange(10) < 3
    found = selectivity_maps(responses, {"a": mask, "b": ~mask})
    np.testing.assert_allclose(found["a"], responses[:3].mean(axis=0) - responses[3:].mean(axis=0))
    np.testing.assert_allclose(found["b"], -found["a"])


@pytest.mark.parametrize("mask", [np.ones(10, bool), np.zeros(10, bool)])
def test_a_category_of_all_or_none_is_refused(mask):
    with pytest.raises(UserError, match="category 'a': expected some of the 10 stimuli and not all of them"):
        selectivity_maps(rng().standard_normal((10, 4)), {"a": mask})


def test_nan_is_refused_with_its_place():
    broken = np.zeros((10, 60))
    broken[2, 3] = np.nan
    for function in (spatial_autocorrelation, distance_curve):
        with pytest.raises(UserError, match=r"got nan in \w+ 2, site 3"):
            function(volume(), broken)


@pytest.fixture(scope="module")
def recording(occipital) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Two categories with smooth maps of their own, and predictions that know the first only."""
    num = 60
    masks = {"face": np.arange(num) % 3 == 0, "place": np.arange(num) % 4 == 1}
    face, place, wrong = smooth(occipital.coordinates_mm, 3, 8)
    noise = rng(2).standard_normal((num, occipital.num_sites))
    measured = np.outer(masks["face"], face) + np.outer(masks["place"], place) + noise
    predicted = np.outer(masks["face"], face) + np.outer(masks["place"], wrong)
    return measured, predicted, masks


def test_agreement_knows_which_map_is_right(occipital, recording, rotations):
    measured, predicted, masks = recording
    found = selectivity_agreement(occipital, measured, predicted, masks, rng(), rotations=rotations)
    true, guess = selectivity_maps(measured, masks), selectivity_maps(predicted, masks)
    assert found.r["face"] == pytest.approx(np.corrcoef(true["face"], guess["face"])[0, 1])
    assert found.r["face"] > 0.9 and found.p["face"] == 0.01
    assert found.p["place"] > 0.05
    assert found.mean_r == pytest.approx(np.mean(list(found.r.values())))
    null = [topography._null_r(true[name], guess[name], rotations.sources) for name in masks]
    assert found.joint_p == spin_p(found.mean_r, np.mean(null, axis=0))
    again = selectivity_agreement(occipital, measured, predicted, masks, rng(), num=99)
    assert again == found  # the rotations it makes itself are those of the same generator


def test_agreement_without_a_sphere_or_categories():
    responses = rng().standard_normal((10, 60))
    found = selectivity_agreement(volume(), responses, responses, {"a": np.arange(10) < 4}, rng())
    assert found.r["a"] == pytest.approx(1) and found.p is None and found.joint_p is None
    nothing = selectivity_agreement(volume(), responses, responses, {}, rng())
    assert nothing.mean_r is None and "No categories" in nothing.note


def test_a_constant_prediction_agrees_with_nothing():
    responses = rng().standard_normal((10, 60))
    found = selectivity_agreement(volume(), responses, np.zeros((10, 60)), {"a": np.arange(10) < 4}, rng())
    assert found.r == {"a": 0}


# --- figure ---------------------------------------------------------------------------------------------------------


def test_the_figure_shows_maps_beside_each_other_and_the_curve(occipital, recording):
    measured, predicted, masks = recording
    whole, maps = (
        np.asarray(Image.open(io.BytesIO(draw_topography(space, measured, predicted, groups))))
        for space, groups in ((occipital, masks), (occipital, {"face": masks["face"]}))
    )
    assert whole.shape[1] == maps.shape[1] and whole.shape[0] > maps.shape[0] + 200  # two rows more
    for row in np.array_split(whole[: int(0.7 * len(whole))], 4):
        assert (np.ptp(row.astype(int), axis=2) > 60).sum() > 1000  # coloured


def test_neurons_are_drawn_without_a_curve_and_nothing_is_refused():
    responses, groups = rng().standard_normal((10, 20)), {"a": np.arange(10) < 4}
    neurons = BrainSpace("s1", 20, "neurons")
    assert Image.open(io.BytesIO(draw_topography(neurons, responses, responses, groups))).width > 500
    with pytest.raises(UserError, match="expected coordinates or categories, got neither"):
        draw_topography(neurons, responses, responses, {})


def test_the_resampled_agreement_is_that_of_the_resampled_stimuli():
    responses, other = rng(1).standard_normal((2, 12, 30))
    groups = {"a": np.arange(12) < 5, "b": np.arange(12) % 3 == 0}
    counts = rng(2).multinomial(12, np.full(12, 1 / 12), size=6)
    counts[0] = groups["a"]  # holds nothing beside a
    found = resampled_agreement(responses, other, groups, counts)
    for row, drawn in enumerate(counts):
        each = []
        for mask in groups.values():
            chosen = np.repeat(mask, drawn)
            if chosen.all() or not chosen.any():
                each.append(0.0)
                continue
            maps = [selectivity_maps(np.repeat(v, drawn, axis=0), {"x": chosen})["x"] for v in (responses, other)]
            each.append(np.corrcoef(*maps)[0, 1])
        assert found[row] == pytest.approx(np.mean(each), abs=1e-5)
