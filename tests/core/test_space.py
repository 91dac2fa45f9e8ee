"""BrainSpace: the cortical order, noise ceilings, and the ways back."""

import json

import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace, cortical_order, hilbert_index

GRID = np.stack(np.meshgrid(*[np.arange(8.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


@pytest.mark.parametrize("dims", [2, 3])
def test_hilbert_curve_visits_every_cell_and_steps_to_a_neighbour(dims):
    points = np.stack(np.meshgrid(*[np.arange(8.0)] * dims, indexing="ij"), axis=-1).reshape(-1, dims)
    index = hilbert_index(points, bits=3)
    assert sorted(index) == list(range(8**dims))
    steps = np.abs(np.diff(points[np.argsort(index)], axis=0)).sum(axis=1)
    assert (steps == 1).all()


def test_cortical_order_steps_to_a_neighbour_at_any_scale():
    order = cortical_order(GRID * 0.3 + 5)
    assert (np.abs(np.diff(GRID[order], axis=0)).sum(axis=1) == 1).all()


def test_cortical_order_takes_the_left_hemisphere_first():
    points = np.random.default_rng(0).normal(size=(300, 3)) * 40
    order = cortical_order(points)
    assert sorted(order) == list(range(300))
    left = points[order][:, 0] < 0
    assert left[: left.sum()].all()


def test_sites_at_one_place_are_in_order_of_storage():
    assert cortical_order(np.ones((5, 3))).tolist() == [0, 1, 2, 3, 4]


def test_without_coordinates_the_given_order_stands():
    space = BrainSpace("s", 4)
    assert space.order.tolist() == space.index.tolist() == [0, 1, 2, 3]
    assert BrainSpace("s", 4, order=np.array([2, 0, 3, 1])).order.tolist() == [2, 0, 3, 1]


def test_noise_ceiling_is_that_of_allen():
    space = BrainSpace("s", 3, signal_variance=np.array([0.3, 0.0, 0.0]), noise_variance=np.array([0.7, 1.0, 0.0]))
    np.testing.assert_allclose(space.noise_ceiling(1), [np.sqrt(0.3), 0, 0])
    np.testing.assert_allclose(space.noise_ceiling(3), [np.sqrt(0.3 / (0.3 + 0.7 / 3)), 0, 0])
    assert BrainSpace("s", 3).noise_ceiling(1) is None


def test_noise_ceiling_bounds_a_perfect_prediction_of_noisy_means():
    rng = np.random.default_rng(0)
    signal = rng.normal(scale=0.8, size=20_000)
    measured = signal + rng.normal(scale=1.2, size=(4, 20_000)).mean(axis=0)
    space = BrainSpace("s", 1, signal_variance=np.array([0.64]), noise_variance=np.array([1.44]))
    assert np.corrcoef(signal, measured)[0, 1] == pytest.approx(space.noise_ceiling(4)[0], abs=0.01)


def test_values_go_back_to_their_voxels():
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    geometry = {"type": "volume", "shape": [2, 3, 4], "affine": affine.tolist()}
    image = BrainSpace("s", 3, geometry=geometry, index=np.array([23, 0, 5])).to_nifti(np.array([1.0, 2.0, 3.0]))
    volume = image.get_fdata()
    assert (volume[1, 2, 3], volume[0, 0, 0], volume[0, 1, 1]) == (1, 2, 3)
    assert np.isnan(volume).sum() == 21
    np.testing.assert_array_equal(image.affine, affine)


def test_values_go_back_to_their_vertices():
    geometry = {"type": "surface", "template": "fsaverage5", "left_vertices": 4}
    space = BrainSpace("s", 3, kind="vertices", geometry=geometry, index=np.array([3, 4, 7]))
    surface = space.to_surface(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(surface["left"], [np.nan, np.nan, np.nan, 1])
    np.testing.assert_array_equal(surface["right"], [2, np.nan, np.nan, 3])


@pytest.mark.parametrize("full", [True, False])
def test_what_is_saved_is_loaded(tmp_path, full):
    rng = np.random.default_rng(0)
    space = BrainSpace(
        "s", 5, kind="vertices", coordinates_mm=rng.normal(size=(5, 3)), rois={"V1": np.arange(5) < 2},
        signal_variance=rng.random(5), noise_variance=rng.random(5), index=np.arange(5) + 7,
        geometry={"type": "surface", "template": "fsaverage5", "left_vertices": 10},
    ) if full else BrainSpace("s", 5)  # fmt: skip
    space.save(tmp_path)
    loaded = BrainSpace.load(tmp_path)
    for name in ("subject", "num_sites", "kind", "geometry"):
        assert getattr(loaded, name) == getattr(space, name)
    for name in ("order", "index", "coordinates_mm", "signal_variance", "noise_variance"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(space, name))
    assert {n: m.tolist() for n, m in loaded.rois.items()} == {n: m.tolist() for n, m in space.rois.items()}


def test_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="got NaN or infinity at site 2"):
        BrainSpace("s", 4, coordinates_mm=np.array([[0.0] * 3] * 2 + [[0, np.nan, 0]] + [[0.0] * 3]))
    for wrong in (
        {"rois": {"V1": np.ones(3, bool)}},
        {"coordinates_mm": np.zeros((3, 3))},
        {"order": np.arange(3)},
        {"index": np.arange(3)},
        {"signal_variance": np.ones(3)},
        {"noise_variance": np.ones(3)},
    ):
        with pytest.raises(UserError, match="of s: expected one row for each of its 4 sites, got 3"):
            BrainSpace("s", 4, **wrong)
    for order in ([0, 1, 2, 2], [0, 1, 2, 4], [1, 2, 3, 4], [-1, 0, 1, 2]):
        with pytest.raises(UserError, match="order of s: expected each site from 0 to 3 once"):
            BrainSpace("s", 4, order=np.array(order))
    with pytest.raises(UserError, match="expected a volume to write a NIfTI image, got a space of neurons"):
        BrainSpace("s", 4, kind="neurons").to_nifti(np.zeros(4))
    with pytest.raises(UserError, match=r"expected a surface, got a space of voxels \(none\)"):
        BrainSpace("s", 4).to_surface(np.zeros(4))


@pytest.mark.parametrize("file", ["space.json", "space.safetensors"])
def test_says_that_a_file_is_missing_or_damaged(tmp_path, file):
    BrainSpace("s", 4).save(tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:9])
    with pytest.raises(UserError, match="The folder is damaged"):
        BrainSpace.load(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match=r"expected space.json and space.safetensors"):
        BrainSpace.load(tmp_path)


def test_is_saved_as_plain_text_and_tensors(tmp_path):
    BrainSpace("s", 4).save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["space.json", "space.safetensors"]
    assert json.loads((tmp_path / "space.json").read_text())["num_sites"] == 4


# --- sensors x times ------------------------------------------------------------------------------------------------

ROOF = np.stack(np.meshgrid(np.arange(5.0), np.arange(4.0), [0.0], indexing="ij"), axis=-1).reshape(-1, 3) * 30
TIMES = np.arange(40) / 250  # 4 ms apart: 12 mm at 3 mm a millisecond


def sensors(positions: np.ndarray | None = ROOF, **options: object) -> BrainSpace:
    names = [f"E{i}" for i in range(20)]
    return BrainSpace.of_sensors("s", names, TIMES, positions, **options)


def test_sites_run_through_the_times_of_one_sensor_after_the_other():
    space = sensors()
    values = np.arange(2.0 * 800).reshape(2, 800)
    grid = space.to_grid(values)
    assert grid.shape == (2, 20, 40)
    assert grid[1, 3, 7] == values[1, 3 * 40 + 7]
    np.testing.assert_array_equal(space.coordinates_mm[3 * 40 + 7], ROOF[3])
    np.testing.assert_array_equal(space.from_grid(grid), values)
    np.testing.assert_allclose(space.points_mm[3 * 40 + 7], [*ROOF[3], 7 * 4 * 3.0])
    assert BrainSpace("s", 2).points_mm is None
    np.testing.assert_array_equal(BrainSpace("s", 2, coordinates_mm=ROOF[:2]).points_mm, ROOF[:2])


@pytest.mark.parametrize("size", [16, 33])
def test_patches_are_compact_over_sensors_and_over_time(size):
    space = sensors()

    def spread(order: np.ndarray, columns: slice) -> float:
        cut = [space.points_mm[order[i : i + size], columns] for i in range(0, 800 - size + 1, size)]
        return float(np.mean([np.linalg.norm(patch[:, None] - patch, axis=2).mean() for patch in cut]))

    stored, over_time_first = np.arange(800), np.arange(800).reshape(20, 40).T.ravel()
    assert sorted(space.order) == list(range(800))
    everything, time, place = slice(None), slice(3, 4), slice(0, 3)
    assert spread(space.order, everything) < 0.85 * spread(stored, everything)
    assert spread(space.order, everything) < 0.85 * spread(over_time_first, everything)
    assert spread(space.order, time) < 0.6 * spread(stored, time)  # shorter than a stretch of one sensor
    assert spread(space.order, place) < 0.6 * spread(over_time_first, place)  # narrower than the head


def test_the_more_a_millisecond_counts_the_shorter_is_a_patch():
    def shape(space: BrainSpace) -> tuple[int, int]:
        first = space.order[:16]
        return len(set(first // 40)), len(set(first % 40))

    assert shape(sensors(mm_per_ms=0.01))[1] > shape(sensors())[1] > shape(sensors(mm_per_ms=1000.0))[1] == 1
    assert shape(sensors(mm_per_ms=0.01))[0] == 1


def test_sensors_without_places_stay_in_the_order_of_storage():
    space = sensors(None, kind="neurons")
    assert space.kind == "neurons" and space.coordinates_mm is None
    assert space.order.tolist() == list(range(800))


def test_a_sensor_space_is_saved_and_loaded_also_with_sites_left_out(tmp_path):
    from brainjanus.data.write import restricted

    keep = np.ones(800, bool)
    keep[[5, 41]] = False
    for name, space in (("all", sensors(mm_per_ms=2.0)), ("some", restricted(sensors(), keep))):
        space.save(tmp_path / name)
        loaded = BrainSpace.load(tmp_path / name)
        assert loaded.geometry == space.geometry
        for field in ("order", "index", "points_mm"):
            np.testing.assert_array_equal(getattr(loaded, field), getattr(space, field))
    values = np.random.default_rng(0).normal(size=798)
    grid = loaded.to_grid(values)
    assert np.isnan(grid).sum() == 2 and np.isnan(grid[[0, 1], [5, 1]]).all()
    np.testing.assert_array_equal(loaded.from_grid(grid), values)


def test_says_what_is_wrong_with_sensors():
    with pytest.raises(UserError, match="expected names that differ and times that grow, got 2 sensors with 1 names"):
        BrainSpace.of_sensors("s", ["a", "a"], TIMES)
    with pytest.raises(UserError, match="times that grow"):
        BrainSpace.of_sensors("s", ["a", "b"], TIMES[::-1])
    with pytest.raises(UserError, match="sites among 20 sensors x 40 times, got 801 sites up to number 800"):
        BrainSpace("s", 801, "sensors", geometry=dict(sensors().geometry))
    with pytest.raises(UserError, match="coordinates_mm of s: expected one row for each of its 800 sites, got 760"):
        sensors(ROOF[:-1])
    with pytest.raises(UserError, match=r"expected \[.., 20 sensors, 40 times\], got \[40, 20\]. .* axes swapped"):
        sensors().from_grid(np.zeros((40, 20)))
    with pytest.raises(UserError, match=r"expected sensors x times, got a space of voxels \(none\)"):
        BrainSpace("s", 4).to_grid(np.zeros(4))
