import io
import sys

import numpy as np
import pytest
from PIL import Image

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.evaluate import cortex
from brainjanus.evaluate.cortex import draw_maps

RNG = np.random.default_rng(0)
VERTICES = 10242  # of one hemisphere of fsaverage5


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def reddish(picture: np.ndarray) -> np.ndarray:
    return picture[..., 0] > picture[..., 2] + 60


def surface(index: np.ndarray) -> BrainSpace:
    geometry = {"type": "surface", "template": "fsaverage5", "left_vertices": VERTICES}
    rois = {"left half": index < VERTICES}
    return BrainSpace("s1", len(index), "vertices", rois=rois, geometry=geometry, index=index)


@pytest.fixture(scope="module")
def occipital() -> np.ndarray:
    pytest.importorskip("nilearn", reason="needs nilearn (the extra 'cortex')")
    y = np.concatenate([cortex.mesh_of(side).vertices[:, 1] for side in ("left", "right")])
    return np.flatnonzero(y < -60)


def test_rasterising_interpolates_between_vertices():
    """A plane's height, given at the corners of two triangles, is right at every pixel between them."""
    points = np.array([[0.0, 0, 0], [0, 9, 0], [9, 9, 0], [9, 0, 0]])
    height = 2 * points[:, 0] - 3 * points[:, 1] + 1
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    row, column, _, face, weights = cortex._covered(points[faces].astype(np.float32))
    assert {(r, c) for r, c in zip(row.tolist(), column.tolist(), strict=True)} == {
        (r, c) for r in range(10) for c in range(10)
    }
    np.testing.assert_allclose((weights * height[faces[face]]).sum(axis=1), 2 * column - 3 * row + 1, atol=1e-4)


def test_triangles_that_face_away_are_not_drawn():
    points = np.array([[0.0, 0, 0], [0, 9, 0], [9, 9, 0]])
    assert len(cortex._covered(points[None, [0, 2, 1]].astype(np.float32))[0]) == 0


def test_a_map_is_drawn_where_it_was_measured(occipital):
    space = surface(occipital)
    left = np.where(space.rois["left half"], 1.0, np.nan)
    picture = pixels(draw_maps(space, {"left": left}, limits=(-1.0, 1.0), outlines=[]))
    red = reddish(picture[: int(0.8 * len(picture))])  # without the colour bar
    middle = red.shape[1] // 2
    assert red[:, :middle].sum() > 1000
    assert red[:, middle:].sum() == 0


def test_a_surface_is_seen_from_the_sides_that_are_named(occipital):
    space, values = surface(occipital), {"map": np.ones(len(occipital))}
    wide, narrow = (pixels(draw_maps(space, values, sides=sides)) for sides in (cortex.SIDES, ("ventral",)))
    assert 2 * narrow.shape[1] < wide.shape[1] and reddish(narrow).sum() > 0


def test_sites_in_front_bring_the_whole_hemisphere(occipital):
    front = np.flatnonzero(cortex.mesh_of("left").vertices[:, 1] > 40)
    wide = pixels(draw_maps(surface(np.sort(front)), {"map": np.ones(len(front))}, limits=(-1.0, 1.0), outlines=[]))
    assert reddish(wide[: int(0.8 * len(wide))]).sum() > 1000


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        (np.array([-2.0, 2.0, np.nan]), (-2.0, 2.0)),  # both signs: symmetric, so that white is 0
        (np.array([-0.1, *np.linspace(0, 4, 99)]), (0.0, 4.0)),  # a few negative values do not make a second side
        (np.array([np.nan]), (0.0, 1.0)),
        (np.zeros(5), (0.0, 1.0)),
    ],
)
def test_the_colour_scale_covers_all_maps(values, limits):
    norm, _ = cortex._scale(values, None)
    assert (norm.vmin, norm.vmax) == pytest.approx(limits)


def test_holes_are_filled_from_most_of_the_neighbours(occipital):
    values = np.ones(VERTICES, np.float32)
    values[500] = np.nan
    assert cortex._filled("left", values)[500] == 1
    alone = np.full(VERTICES, np.nan, np.float32)
    alone[500] = 1
    assert np.isfinite(cortex._filled("left", alone)).sum() == 1


def test_a_volume_is_projected_with_left_on_the_left():
    shape = (6, 7, 8)
    index = np.arange(6 * 7 * 8)
    affine = np.diag([-2.0, 2, 2, 1]).tolist()  # stored right to left
    space = BrainSpace("s1", len(index), "voxels", geometry={"type": "volume", "shape": shape, "affine": affine})
    x = np.unravel_index(index, shape)[0]
    picture = pixels(draw_maps(space, {"left": np.where(x >= 3, 1.0, 0.0)}, limits=(-1.0, 1.0)))
    red = np.flatnonzero(reddish(picture[80 : int(0.6 * len(picture))]).any(axis=0))
    coronal = red[(red > picture.shape[1] * 0.36) & (red < picture.shape[1] * 0.62)]
    assert len(coronal) > 0
    assert coronal.mean() < picture.shape[1] * 0.49


@pytest.mark.parametrize("values", [RNG.standard_normal(30), np.zeros(30), np.full(30, np.nan), np.abs(RNG.random(30))])
def test_sites_without_a_place_become_a_strip(values):
    png = draw_maps(BrainSpace("s1", 30, "neurons"), {"measured": values, "predicted": values})
    assert pixels(png).std() > 1


def test_the_wrong_number_of_sites_is_refused():
    with pytest.raises(
        UserError, match=r"map 'a': expected one value for each of the 30 sites of s1, got shape \[29\]"
    ):
        draw_maps(BrainSpace("s1", 30, "neurons"), {"a": np.zeros(29)})


def test_missing_nilearn_is_said_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    cortex.mesh_of.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'brainjanus\[cortex\]'"):
        draw_maps(surface(np.arange(5)), {"a": np.zeros(5)})


def test_groups_are_not_mixed_where_they_meet(occipital):
    """Between red (0) and cyan (.5) lies green (.25), which no site has."""
    groups = np.where(np.arange(len(occipital)) % 2 == 0, 0.0, 0.5)
    red, green, blue = (
        pixels(draw_maps(surface(occipital), {"a": groups}, outlines=[], categorical=True)).reshape(-1, 3).T
    )
    mixed = (green > red + 60) & (green > blue + 60)
    assert mixed.sum() < 20 < ((green > red + 60) & (blue > red + 60)).sum()


def test_colours_of_the_callers_are_used(occipital):
    from matplotlib.colors import ListedColormap

    groups = np.where(np.arange(len(occipital)) % 2 == 0, 0.25, 0.75)
    blue_and_red = ListedColormap(["#0000FF", "#FF0000"])
    red, green, blue = (
        pixels(draw_maps(surface(occipital), {"a": groups}, outlines=[], categorical=True, colours=blue_and_red))
        .reshape(-1, 3)
        .T
    )
    assert ((blue > red + 60) & (blue > green + 60)).any() and ((red > blue + 60) & (red > green + 60)).any()
    assert not (green > red + 60).any()


def test_strips_follow_the_given_order():
    """The strip's columns are the sites in order; without an order there is a bar for each site."""
    space = BrainSpace("s", 4, "neurons")
    values = {"a": np.array([1.0, -1.0, 1.0, -1.0])}

    def changes(order):
        picture = pixels(draw_maps(space, values, limits=(-1.0, 1.0), order=np.array(order)))
        row = picture[int(0.49 * cortex.DPI)]  # through the strip
        red = row[:, 0] - row[:, 2]
        return int((np.diff(np.sign(red[np.abs(red) > 60])) != 0).sum())

    assert (changes([0, 1, 2, 3]), changes([0, 2, 1, 3])) == (3, 1)
    assert draw_maps(space, values) != draw_maps(space, values, order=np.arange(4))


def test_points_lie_where_the_sites_lie():
    """One red site in front, above and to the right; blue ones behind, below and to the left."""
    corners = np.array([[1.0, 1, 1], [-1, -1, -1], [-1, -1, -0.9]]) * 40
    space = BrainSpace("s", 3, coordinates_mm=corners)
    picture = pixels(draw_maps(space, {"a": np.array([1.0, -1.0, -1.0])}, limits=(-1.0, 1.0), order=np.arange(3)))
    picture = picture[: -int(0.75 * cortex.DPI)]  # less the colour bar
    rows, columns = np.nonzero(reddish(picture))
    thirds = columns * 3 // picture.shape[1]
    assert sorted(set(thirds)) == [0, 1, 2]
    within = [columns[thirds == view].mean() * 3 / picture.shape[1] - view for view in range(3)]
    assert within[0] < 0.5 < min(within[1:])  # from the left the front is to the left; else right is right
    assert rows.mean() < picture.shape[0] / 2
