"""Raw betas become the responses that a model speaks in, and what is no response is refused."""

import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.core.units import Units
from brainjanus.data.prepare import PrepareConfig, SubjectFiles, prepare

UNITS = Units(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0]))
SPACE = BrainSpace("a", 3)


def test_raw_is_z_scored_site_by_site():
    values = UNITS.zscored(np.array([[1, 4, 3], [2, 2, 7]]), SPACE, "x")
    np.testing.assert_array_equal(values, [[0, 1, 0], [1, 0, 1]])
    assert values.dtype == np.float32


def test_large_offsets_keep_their_small_differences():
    units = Units(np.full(3, 1e7), np.full(3, 1e-2))
    raw = np.array([[1e7, 1e7 + 0.01, 1e7 - 0.02]])
    np.testing.assert_allclose(units.zscored(raw, SPACE, "x"), [[0, 1, -2]], atol=1e-5)


def test_what_is_saved_is_loaded(tmp_path):
    UNITS._replace(dropped=2).save(tmp_path)
    loaded = Units.load(tmp_path)
    np.testing.assert_array_equal(loaded.mean, UNITS.mean)
    np.testing.assert_array_equal(loaded.std, UNITS.std)
    assert loaded.dropped == 2


@pytest.mark.parametrize("several", [False, True])
def test_raw_files_become_the_responses_that_prepare_made_of_them(tmp_path, several):
    rng = np.random.default_rng(0)
    raw = rng.integers(-9000, 9000, (20, 6)).astype(np.int16)
    raw[:, 2] = 5
    np.save(tmp_path / "raw.npy", raw)
    np.savez(tmp_path / "pictures.npz", pictures=rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    files = {"responses": (str(tmp_path / "raw.npy"),), "trials": "in-order", "scale": 300.0}
    who = {"subjects": (SubjectFiles(subject="a", **files),)} if several else files | {"subject": "a"}
    pictures = (f"{tmp_path}/pictures.npz:pictures",)
    config = PrepareConfig(pictures=pictures, image_size=8, zscore="all", drop_constant_sites=True, **who)
    dataset = prepare(config, tmp_path / "ds")
    units, space = dataset.units("a"), dataset.space("a")
    assert units.dropped == 1
    np.testing.assert_allclose(units.std, dataset.zscore("a").std[0] * 300, rtol=1e-6)
    np.testing.assert_allclose(units.zscored(raw, space, "x"), dataset.responses("a"), atol=1e-5)
    kept = np.delete(raw, 2, axis=1)
    np.testing.assert_allclose(units.zscored(kept, space, "x"), dataset.responses("a"), atol=1e-5)
    with pytest.raises(UserError, match="1 constant sites were dropped when"):
        units.zscored(raw[:, :4], space, "x")


def test_what_prepare_did_not_make_has_no_scale(study):
    np.testing.assert_allclose(study.units("s1").mean, study.zscore("s1").mean[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (np.zeros((2, 4)), r"x.npy: expected numbers \[rows, 3 sites of a\], at least one row, got float64 \[2, 4\]"),
        (np.zeros(3), r"got float64 \[3\]"),
        (np.zeros((0, 3)), r"at least one row, got float64 \[0, 3\]"),
        (np.zeros((2, 3), bool), r"got bool \[2, 3\]"),
        (np.array([[0, 0, 0], [0, np.inf, 0]]), r"x.npy: expected finite responses, got inf in row 1, site 1 \(1 in"),
    ],
)
def test_what_is_no_response_is_refused(raw, sentence):
    with pytest.raises(UserError, match=sentence):
        UNITS.zscored(raw, SPACE, "x.npy")


def test_sites_that_are_not_needed_may_be_missing():
    values = UNITS.zscored(np.array([[1.0, np.nan, 3.0]]), SPACE, "x", np.array([True, False, True]))
    np.testing.assert_array_equal(values, [[0, np.nan, 0]])


def test_damaged_statistics_are_refused(tmp_path):
    (tmp_path / "units.safetensors").write_bytes(b"1234")
    with pytest.raises(UserError, match=r"units.safetensors: expected the statistics of raw responses, got"):
        Units.load(tmp_path)
