"""Pictures of sensors over time: where sensors are drawn, which moments, and what is drawn between them."""

from dataclasses import replace

import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.simulate_sensors import space_of
from brainjanus.evaluate import cortex
from brainjanus.evaluate.cortex import draw_maps
from brainjanus.evaluate.sensors import HEADS, PIXELS, _fields, _rows, draw_sensors, moments, scalp_of


@pytest.fixture(scope="module")
def space() -> BrainSpace:
    """The EEG cap, for 20 times."""
    whole = space_of("eeg", "subj01")
    places = whole.coordinates_mm[::250]
    return BrainSpace.of_sensors("subj01", whole.geometry["names"], np.arange(20) / 100, places)


@pytest.fixture(scope="module")
def field(space) -> np.ndarray:
    """A bump that stands over the back of the head at 120 ms."""
    height = space.to_grid(-space.coordinates_mm[:, 1].astype(np.float64))
    return space.from_grid(height / 95 * np.exp(-((np.arange(20) - 12.0) ** 2) / 4))


def test_sensors_lie_as_on_the_head(space):
    scalp = scalp_of(space)
    at = dict(zip(space.geometry["names"], scalp.flat, strict=True))
    np.testing.assert_allclose(at["Cz"], 0, atol=1e-6)
    np.testing.assert_allclose(at["T8"], [0.8, 0], atol=1e-6)  # 72 of 90 degrees, to the right
    np.testing.assert_allclose(at["Oz"], [0, -0.8], atol=1e-6)
    assert at["Fp1"][0] < 0 < at["Fp1"][1]
    assert (np.linalg.norm(scalp.flat, axis=1) < scalp.radius).all()
    moved = replace(space, coordinates_mm=space.coordinates_mm * 1.1 + np.float32([5, -20, 40]))
    np.testing.assert_allclose(scalp_of(moved).flat, scalp.flat, atol=1e-4)  # the sphere is found


def test_there_is_no_head_without_places_around_one(space):
    assert scalp_of(replace(space, coordinates_mm=None)) is None
    assert scalp_of(replace(space, kind="neurons")) is None
    flat = space.coordinates_mm * np.float32([1, 1, 0])
    assert scalp_of(replace(space, coordinates_mm=flat)) is None
    assert scalp_of(BrainSpace("s", 3, coordinates_mm=np.zeros((3, 3)))) is None


def test_places_are_known_although_a_site_is_left_out(space):
    from brainjanus.data.write import restricted

    some = restricted(space, np.arange(space.num_sites) % 20 != 0)
    np.testing.assert_allclose(scalp_of(some).flat, scalp_of(space).flat, atol=1e-5)


def test_moments_are_those_with_most_power_apart_and_in_order():
    grid = np.zeros((5, 200))
    for time, height in ((30, 1.0), (100, -3.0), (101, -2.9), (180, 2.0)):
        grid[:, time] = height
    assert set(moments(grid, 3)) == {30, 100, 180}
    found = moments(np.random.default_rng(0).normal(size=(5, 200)))
    assert len(found) == HEADS and (np.diff(found) >= 200 // (3 * HEADS)).all()
    assert len(moments(np.ones((5, 1)))) == 1


def test_between_sensors_the_field_is_smooth_and_meets_them(space, field):
    scalp = scalp_of(space)
    values = space.to_grid(field)[:, 12:13]
    picture = _fields(scalp, values, discrete=False)[0]
    pixel = ((scalp.flat / scalp.radius + 1) / 2 * (PIXELS - 1)).round().astype(int)
    np.testing.assert_allclose(picture[pixel[:, 1], pixel[:, 0]], values[:, 0], atol=0.08)
    numbers = np.arange(63.0)[:, None]
    assert set(np.unique(_fields(scalp, numbers, discrete=True))) == set(range(63))
    lost = values.copy()
    lost[4:] = np.nan
    assert np.isfinite(_fields(scalp, lost, discrete=False)).all()
    lost[3] = np.nan
    assert np.isnan(_fields(scalp, lost, discrete=False)).all()


def test_a_figure_has_heads_a_graph_and_a_picture_for_each_map(space, field):
    figure = draw_sensors(space, {"seen": field, "again": field * 0.5}, label="z")
    heads = [axes for axes in figure.axes if axes.get_title().endswith(" ms")]
    assert len(heads) == 2 * HEADS
    assert "120 ms" in [axes.get_title() for axes in heads]
    assert [text.get_text() for text in figure.texts] == ["seen", "again"]
    top = np.percentile(np.abs(np.concatenate([field, field * 0.5])), 99.5)
    for axes in figure.axes:
        for image in axes.images:
            assert image.get_clim() == pytest.approx((-top, top))  # one scale
    graphs = [axes for axes in figure.axes if len(axes.lines) > 63]
    np.testing.assert_allclose(graphs[0].lines[7].get_ydata(), space.to_grid(field)[7])
    pictures = [axes for axes in figure.axes if axes.images and axes not in heads]
    rows = _rows(space, scalp_of(space))
    np.testing.assert_allclose(pictures[0].images[0].get_array(), space.to_grid(field)[rows])
    assert space.geometry["names"][rows[0]] == "Fp1" and pictures[0].get_yticklabels()[0].get_text() == "Fp1"
    figure.canvas.draw()


def test_names_are_drawn_as_they_are(space):
    patch = np.empty(space.num_sites)
    patch[space.order] = np.arange(space.num_sites) // 32
    figure = draw_sensors(space, patch, title="patches", limits=(0.0, 40.0), colours="tab20", discrete=True)
    assert not [axes for axes in figure.axes if len(axes.lines) > 63]
    heads = [axes for axes in figure.axes if axes.get_title().endswith(" ms")]
    assert set(np.unique(heads[0].images[0].get_array())) <= set(np.unique(patch))
    assert [axes.get_title() for axes in heads] == ["0 ms", "40 ms", "80 ms", "110 ms", "150 ms", "190 ms"]


def test_maps_of_sensors_are_drawn_as_such(space, field, monkeypatch):
    asked = []

    def drawn(*given, **options):
        asked.append(draw_sensors(*given, **options))
        return asked[-1]

    monkeypatch.setattr(cortex, "draw_sensors", drawn)
    assert draw_maps(space, {"a": field}).startswith(b"\x89PNG")
    draw_maps(space, {"a": np.arange(space.num_sites) % 7 / 7}, categorical=True)
    draw_maps(space, {"a": np.abs(field)}, limits=(0.0, 1.0), label="place", discrete=True)
    graphs = [[axes for axes in figure.axes if len(axes.lines) > 63] for figure in asked]
    assert [len(found) for found in graphs] == [1, 0, 0]
    assert [figure.axes[-1].get_ylabel() for figure in asked] == ["response (z)", "", "place"]  # of the colour bar
    assert asked[2].axes[0].images[0].get_clim() == (0, 1)


def test_only_what_has_a_sign_has_a_field_power(space, field):
    for limits, wanted in (((-1.0, 1.0), True), ((0.0, 1.0), False)):
        graph = next(axes for axes in draw_sensors(space, field, limits=limits).axes if len(axes.lines) > 62)
        assert (graph.get_legend() is not None) is wanted


def test_a_map_with_gaps_is_drawn(space, field):
    draw_sensors(space, np.where(np.arange(space.num_sites) % 20 == 3, np.nan, field)).canvas.draw()


@pytest.mark.parametrize("values", [np.zeros(63 * 20), np.full(63 * 20, 2.0)])
def test_constant_maps_and_neurons_are_drawn(space, values):
    draw_sensors(space, values).canvas.draw()
    figure = draw_sensors(replace(space, kind="neurons"), values)
    assert not [axes for axes in figure.axes if axes.get_title().endswith(" ms")]
    figure.canvas.draw()


def test_says_what_is_wrong(space):
    with pytest.raises(UserError, match=r"map 'x': expected one value for each of the 1260 sites of subj01, got shape"):
        draw_sensors(space, {"x": np.zeros(7)})
    with pytest.raises(UserError, match="expected sensors x times, got a space of voxels"):
        draw_sensors(BrainSpace("s", 4), np.zeros(4))
