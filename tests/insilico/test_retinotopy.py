"""Receptive fields that were planted are found, and nothing is found in noise."""

import json

import numpy as np
import pytest

from brainjanus import cli
from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.insilico import retinotopy as module
from brainjanus.insilico.experiment import opened
from brainjanus.insilico.retinotopy import (
    Fields,
    Retinotopy,
    apertures,
    blobs,
    channels,
    circular_r,
    drawn,
    fit,
    grid_of,
    mapping_stimuli,
    retinotopy,
    scatter,
    summary,
)

FIELD = 24.0


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """A grid of 13 x 13 places and three sizes: quick to search."""
    monkeypatch.setattr(module, "PLACES", 13)
    monkeypatch.setattr(module, "SIZES", module.SIZES[::2])


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Noise in apertures of other noise, as natural pictures are shown; 32 pixels a side."""
    rng = np.random.default_rng(0)
    masks = np.concatenate([apertures(32)[::2], blobs(32, 150, rng)])[..., None]
    textures = rng.integers(0, 256, (20, 32, 32, 3))
    contrast = rng.uniform(0.1, 1, (20, 1, 1, 1))
    textures = (128 + contrast * (textures - 128)).astype(np.uint8)
    inside, around = rng.integers(20, size=(2, len(masks)))
    return np.where(masks, textures[inside], textures[around])


@pytest.fixture(scope="module")
def planted(pictures):
    """Fields of five sites (x, y, size in degrees), and their answers: channels in it, weighed; and noise."""
    true = np.array([[-6, 4, 1.6], [5, 5, 1.6], [0, -8, 2.4], [9, -2, 1.0], [-2, 0, 2.4]])
    energies = channels(pictures)
    x, y = (FIELD * at for at in grid_of(32))
    rng = np.random.default_rng(1)
    answers = []
    for centre_x, centre_y, size in true:
        field = np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / (2 * size**2))
        seen = np.einsum("ncyx,yx->nc", energies, field) ** 0.5
        seen = (seen - seen.mean(axis=0)) / seen.std(axis=0)
        answers.append(seen @ rng.normal(size=seen.shape[1]))
    answers = np.stack([*answers, rng.normal(size=len(pictures)) * 3], axis=1).astype(np.float32)
    return true, energies, answers


def test_planted_fields_are_found_and_noise_has_none(planted):
    true, energies, answers = planted
    odd = np.arange(len(answers)) % 2 == 1
    found = fit(energies, answers, odd, FIELD)
    centres = np.stack([found.x_deg, found.y_deg], axis=1)[:5]
    assert np.abs(centres - true[:, :2]).max() <= 2.2
    assert (found.r2[:5] > 0.8).all() and found.r2[5] < 0.1
    assert found.determined.tolist() == [True] * 5 + [False]
    assert (found.size_deg[[0, 1, 3]] <= 1.7).all() and (found.apart_deg[:5] <= 2.2).all()


def test_held_out_pictures_are_not_fitted(planted):
    """Answers to the held-out half that follow another rule leave the fit of the other half as it is, and no R2."""
    _, energies, answers = planted
    odd = np.arange(len(answers)) % 2 == 1
    changed = answers.copy()
    changed[odd] = np.random.default_rng(3).permutation(changed[odd])
    assert (fit(energies, changed, odd, FIELD).r2 < 0.1).all()


@pytest.mark.parametrize("kind", ["bars", "scenes"])
def test_held_out_passes_are_of_other_pictures(tiny_run, monkeypatch, kind):
    asked = opened(tiny_run)

    def numbered(_dataset, ids):
        return np.arange(len(ids), dtype=np.uint8)[:, None, None, None] * np.ones((16, 16, 3), np.uint8)

    monkeypatch.setattr(type(asked.dataset), "images", numbered)
    pictures, odd = mapping_stimuli(asked, kind, 3, np.random.default_rng(0))
    fitted, held_out = set(np.unique(pictures[~odd])), set(np.unique(pictures[odd]))
    assert len(odd) == 3 * 132 and odd.sum() == 132
    assert not fitted & held_out and min(len(fitted), len(held_out)) > 28  # of 32 each


def test_what_has_no_truth_is_told_as_a_dash():
    area = {"n": 12, "angle_r": None, "eccentricity_r": 0.5}
    everywhere = {"sites": 20, "median_r2": 0.7, "determined": 3}
    facts = {"regions": {"all sites": everywhere}, "truth": {"V1": {"all": area, "determined": None}}}
    assert summary(Retinotopy({}, {"subjects": {"s1": facts}})) == [
        "s1: median R2 0.70, 3 of 20 sites determined",
        "  V1, r with the truth: all 12 sites: angle –, eccentricity 0.50",
    ]


def test_apertures_cover_the_field():
    masks = apertures(48)
    assert masks.shape == (8 * 12 + 24 + 12, 48, 48)
    assert masks.any(axis=0).all()
    assert (masks.mean(axis=(1, 2)) < 0.7).all() and masks.any(axis=(1, 2)).all()
    x, y = grid_of(48)
    assert x[0, 0] < 0 < y[0, 0]  # the first pixel is to the left, and above


def test_blobs_open_two_fifths():
    assert blobs(32, 5, np.random.default_rng(0)).mean(axis=(1, 2)) == pytest.approx(0.4, abs=0.01)


def test_circular_correlation():
    rng = np.random.default_rng(0)
    a = rng.uniform(-np.pi, np.pi, 2000)
    noisy = a + rng.normal(0, 0.5, 2000)
    assert circular_r(a, a + 1) == pytest.approx(1, abs=0.01)
    assert circular_r(a, noisy) == pytest.approx(np.exp(-(0.5**2) / 2), abs=0.05)  # the mean cosine of the noise
    assert abs(circular_r(a, rng.permutation(a))) < 0.1
    b = rng.normal(0, 0.4, 500)
    assert circular_r(b, b + 2, directed=True) == pytest.approx(1)
    assert circular_r(b, -b, directed=True) == pytest.approx(-1)


def fields_of(count: int) -> Fields:
    rng = np.random.default_rng(0)
    x, y, size, r2 = rng.uniform(0, 1, (4, count))
    return Fields(x, y, size, r2, np.zeros(count), r2 > 0.5)


def test_maps_are_drawn_of_sites_with_and_without_a_place():
    for space in (
        BrainSpace("a", 12),
        BrainSpace("a", 12, coordinates_mm=np.random.default_rng(0).normal(size=(12, 3)) * 30),
        BrainSpace.of_sensors("a", ["Fz", "Oz", "Cz"], np.arange(4) * 0.01, np.eye(3) * 80),
    ):
        for png in drawn(space, fields_of(12), FIELD):
            assert png.startswith(b"\x89PNG")
    assert scatter({"a": fields_of(12)}, FIELD).startswith(b"\x89PNG")


def test_the_command_writes_fields_of_every_subject(tiny_run, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["retinotopy", str(tiny_run), "--out", str(out), "--passes", "2", "--stimuli", "bars"]
    assert cli.main([*argv, "--field-deg", "10", "--subjects", "s2"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["field_deg"] == 10 and list(results["subjects"]) == ["s2"]
    assert results["subjects"]["s2"]["truth"] is None
    names = json.loads((out / "s2/fields.json").read_text())
    maps = dict(zip(names, np.load(out / "s2/fields.npy"), strict=True))
    assert maps["x_deg"].shape == (28,) and np.abs(maps["x_deg"]).max() <= 6
    assert capsys.readouterr().out.splitlines()[-1] == str(out)


def test_mistakes_are_told(tiny_run):
    with pytest.raises(UserError, match="--field-deg: expected the width of the pictures"):
        retinotopy(tiny_run)
    with pytest.raises(UserError, match="from 0 to 180, got -3"):
        retinotopy(tiny_run, field_deg=-3.0)
    with pytest.raises(UserError, match="--passes: expected at least 2"):
        retinotopy(tiny_run, field_deg=8.0, passes=1)
    with pytest.raises(UserError, match="expected some of s1, s2"):
        retinotopy(tiny_run, field_deg=8.0, subjects=["s7"])
