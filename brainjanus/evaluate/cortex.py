"""Brain maps as pictures.

Enters: a BrainSpace and one value per site. Leaves: a PNG: the inflated cortex for a surface, projections for a volume,
heads and time courses for sensors (sensors.py), a strip for sites without a place (neurons). Given an order of sites
(`order`): points from three sides for sites of which only coordinates are known, and heat strips in that order for
sites without a place.

The surface is rasterised here, once per view: each pixel knows the three vertices that it lies between, so that a map
is only a lookup. nilearn's and matplotlib's surface plots draw 20,000 polygons for each view of each map, which takes
half a minute for what takes a second here. The mesh is fsaverage5's inflated surface, from nilearn's bundle (Fischl et
al. 1999).
"""

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from brainjanus.core.errors import UserError
from brainjanus.core.png import Png
from brainjanus.core.space import BrainSpace
from brainjanus.evaluate.sensors import draw_sensors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

PIXELS_PER_MM = {"posterior": 2.4, "whole": 1.5}
SUPERSAMPLING = 2
DPI = 160
FADE_MM = (-18.0, 4.0)  # visual cortex lies behind: in front of this, the inflated cortex fades out
INK = "#222222"
MIN_LABELLED_PIXELS = 750
BAR_HEIGHT = 0.75  # inches below the maps, for the colour bar
# hemisphere, name, where the viewer stands (x to the right, y forward, z up), what is up
VIEWS = (
    ("left", "lateral", (-1.0, -1.3, -0.15), (0.0, 0.0, 1.0)),
    ("left", "medial", (1.0, -1.3, -0.15), (0.0, 0.0, 1.0)),
    ("left", "ventral", (0.0, -0.6, -1.0), (0.0, 1.0, 0.0)),
    ("right", "ventral", (0.0, -0.6, -1.0), (0.0, 1.0, 0.0)),
    ("right", "medial", (-1.0, -1.3, -0.15), (0.0, 0.0, 1.0)),
    ("right", "lateral", (1.0, -1.3, -0.15), (0.0, 0.0, 1.0)),
)
SIDES = ("lateral", "medial", "ventral")


class Mesh(NamedTuple):
    """One hemisphere: positions in mm, triangles, and sulcal depth (positive in a sulcus)."""

    vertices: Float[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "f 3"]
    depth: Float[np.ndarray, "n"]


class View(NamedTuple):
    """One hemisphere seen from one side: for each pixel the vertices it lies between, with their weights.

    opacity: 0 where there is no cortex, less than 1 where it fades. shade: the light it sends back, 0 to 1.
    """

    vertices: Int[np.ndarray, "h w 3"]
    weights: Float[np.ndarray, "h w 3"]
    opacity: Float[np.ndarray, "h w"]
    shade: Float[np.ndarray, "h w"]


# V sites, N vertices of a hemisphere, H W pixels
def draw_maps(
    space: BrainSpace,
    maps: Mapping[str, Float[np.ndarray, "v"]],
    *,
    label: str = "response (z)",
    limits: tuple[float, float] | None = None,
    outlines: Sequence[str] | None = None,
    order: Int[np.ndarray, "v"] | None = None,
    categorical: bool = False,
    discrete: bool = False,
    sides: Sequence[str] = SIDES,
    colours: "Colormap | None" = None,
) -> Png:
    """A PNG with one row per map (title -> one value per site), all on one colour scale.

    label: what the colours mean, with its unit. limits: of the colours; default: the 99th percentile, symmetric around
    0 if a tenth of the values is negative. outlines: names of the ROIs to outline on a surface (default: all).
    NaN is not drawn. On a surface, a vertex that was not measured is drawn with the mean of its neighbours if most of
    them were. order: of the sites, for spaces without surface and volume. categorical: values are names of groups from
    0 to 1, not amounts: nothing is interpolated, a volume is drawn as points, and there is no colour bar.
    discrete: of amounts that mean nothing between two sensors, nothing is drawn there. sides: from which a surface is
    seen. colours: in place of those that the values ask for.
    Raises UserError if a map has another number of sites, or nilearn is missing for a surface.
    """
    for title, values in maps.items():
        if values.shape != (space.num_sites,):
            raise UserError(
                f"map '{title}': expected one value for each of the {space.num_sites} sites of {space.subject}, got "
                f"shape {list(values.shape)}. Does it belong to another subject?"
            )
    norm, usual = _scale(np.concatenate(list(maps.values())), limits, categorical)
    colours = usual if colours is None else colours
    kind = space.geometry.get("type")
    if kind == "sensors":
        assert norm.vmin is not None and norm.vmax is not None
        figure = draw_sensors(
            space,
            maps,
            label="" if categorical else label,
            limits=(norm.vmin, norm.vmax),
            colours=colours,
            discrete=categorical or discrete,
        )
        return _encoded(figure)
    if kind == "surface":
        names = list(space.rois if outlines is None else outlines)
        figure = _draw_surface(space, maps, norm, colours, names, categorical, sides)
    elif kind == "volume" and not categorical:
        figure = _draw_volume(space, maps, norm, colours)
    elif order is not None and space.coordinates_mm is not None:
        figure = _draw_points(space.coordinates_mm, maps, norm, colours)
    elif order is not None:
        figure = _draw_heat_strips(space, maps, norm, colours, order)
    else:
        figure = _draw_strips(space, maps, norm, colours)
    return _finished(figure, norm, colours, None if categorical else label)


def _scale(
    values: np.ndarray, limits: tuple[float, float] | None, categorical: bool = False
) -> "tuple[Normalize, Colormap]":
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, Normalize

    if categorical:
        return Normalize(0, 1), colormaps["hsv"]
    finite = values[np.isfinite(values)]
    if limits is None:
        top = float(np.percentile(np.abs(finite), 99)) if len(finite) else 1.0
        top = float(f"{top:.2g}") or 1.0
        limits = (-top, top) if len(finite) and (finite < 0).mean() > 0.1 else (0.0, top)
    diverging = limits[0] < 0 < limits[1]
    # the darkest colours are left out: they would pass for the shadow of a sulcus
    colours = colormaps["RdBu_r"] if diverging else ListedColormap(colormaps["inferno"](np.linspace(0.2, 1, 256)))
    return Normalize(*limits), colours


def _finished(figure: "Figure", norm: "Normalize", colours: "Colormap", label: str | None) -> Png:
    """Add the colour bar, if it has a label, and encode."""
    from matplotlib.cm import ScalarMappable

    if label is not None:
        inches = figure.get_size_inches()
        bar = figure.add_axes((0.5 - 1.2 / inches[0], 0.36 / inches[1], 2.4 / inches[0], 0.11 / inches[1]))
        figure.colorbar(ScalarMappable(norm, colours), cax=bar, orientation="horizontal", extend="both")
        bar.tick_params(labelsize=7, length=2, pad=1.5, colors=INK)
        bar.locator_params(nbins=5)
        bar.set_xlabel(label, fontsize=8, labelpad=1, color=INK)
    return _encoded(figure, tight=label is None)


def _encoded(figure: "Figure", tight: bool = False) -> Png:
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white", bbox_inches="tight" if tight else None)
    return Png(file.getvalue())


def _figure(width_inches: float, height_inches: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure((width_inches, height_inches), dpi=DPI)


def _axes(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    """Axes at a place given in inches from the upper left."""
    whole_width, whole_height = figure.get_size_inches()
    box = (left / whole_width, 1 - (top + height) / whole_height, width / whole_width, height / whole_height)
    axes = figure.add_axes(box)
    axes.set_axis_off()
    return axes


def _text(figure: "Figure", left: float, top: float, text: str, **style: Any) -> None:
    """Text at a place given in inches from the upper left."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, text, **{"ha": "center", "va": "center", **style})


# ---------------------------------------------------------------------------------------------------- surface


def _draw_surface(
    space: BrainSpace,
    maps: Mapping[str, Float[np.ndarray, "v"]],
    norm: "Normalize",
    colours: "Colormap",
    outlines: Sequence[str],
    categorical: bool,
    sides: Sequence[str],
) -> "Figure":
    left_side, right_side = (mesh_of(hemisphere).vertices for hemisphere in ("left", "right"))
    measured = np.concatenate([left_side, right_side])[space.index]
    part = "posterior" if (measured[:, 1] < FADE_MM[0]).all() else "whole"
    seen = [view for view in VIEWS if view[1] in sides]
    views = [_view(*view, part) for view in seen]
    inches = [np.array(view.opacity.shape) / SUPERSAMPLING / DPI for view in views]
    gap, margin, header, title_height = 0.06, 0.12, 0.28, 0.26
    tallest = max(high for high, _ in inches)
    width = sum(wide for _, wide in inches) + gap * (len(views) - 1) + 2 * margin
    figure = _figure(width, header + len(maps) * (tallest + title_height) + BAR_HEIGHT)
    regions = [_regions(space, outlines, hemisphere, view) for (hemisphere, *_), view in zip(seen, views, strict=True)]
    for number, (title, values) in enumerate(maps.items()):
        top = header + number * (tallest + title_height)
        _text(figure, margin, top + title_height / 2, title, ha="left", fontsize=9, color=INK, weight="bold")
        hemispheres, left = space.to_surface(values), margin
        for (hemisphere, name, *_), view, region, (high, wide) in zip(seen, views, regions, inches, strict=True):
            axes = _axes(figure, left, top + title_height + (tallest - high) / 2, wide, high)
            filled = _filled(hemisphere, hemispheres[hemisphere], categorical)
            picture = _coloured(hemisphere, view, filled, region, norm, colours, categorical)
            axes.imshow(picture, interpolation="none", aspect="auto")
            if number == 0:
                _name_regions(axes, region, outlines)
                _text(figure, left + wide / 2, header / 2, f"{hemisphere} {name}", fontsize=7, color="#777777")
            left += wide + gap
    return figure


def _coloured(
    hemisphere: str,
    view: View,
    values: Float[np.ndarray, "n"],
    regions: Int[np.ndarray, "h w"],
    norm: "Normalize",
    colours: "Colormap",
    categorical: bool,
) -> Float[np.ndarray, "k l 4"]:
    """The picture of one hemisphere: sulci in grey, values in colour, ROI borders in black, antialiased."""
    known = np.isfinite(values)
    share = _between(view, known)
    total = _between(view, np.where(known, values, 0))
    depth = _between(view, mesh_of(hemisphere).depth)
    grey = 0.62 + 0.2 / (1 + np.exp(depth * 1.5))
    picture = np.repeat(grey[..., None], 4, axis=2)
    drawn = share > 0.5
    shown = total[drawn] / share[drawn]
    if categorical:  # of the nearest vertex that has one
        nearest = np.where(known[view.vertices], view.weights, -1).argmax(axis=-1)[..., None]
        shown = values[np.take_along_axis(view.vertices, nearest, axis=-1)[..., 0]][drawn]
    picture[drawn] = colours(norm(shown))
    picture[..., :3] *= (0.62 + 0.38 * view.shade)[..., None]
    picture[_borders(regions)] = (0.05, 0.05, 0.05, 1)
    picture[..., 3] = view.opacity
    picture[..., :3] *= view.opacity[..., None]
    step = SUPERSAMPLING
    high, wide = (np.array(view.opacity.shape) // step) * step
    picture = picture[:high, :wide].reshape(high // step, step, wide // step, step, 4).mean(axis=(1, 3))
    picture[..., :3] /= picture[..., 3:].clip(min=1e-6)
    return picture.clip(0, 1)


def _regions(space: BrainSpace, names: Sequence[str], hemisphere: str, view: View) -> Int[np.ndarray, "h w"]:
    """For each pixel the number of the ROI it lies in; 0: none."""
    regions = np.zeros(view.opacity.shape, np.int64)
    for number, name in enumerate(names, start=1):
        values = np.where(space.rois[name], 1.0, 0.0).astype(np.float32)
        inside = np.nan_to_num(_filled(hemisphere, space.to_surface(values)[hemisphere]))
        share = _between(view, inside)
        regions[(share > 0.5) & (view.opacity > 0)] = number
    return regions


def _between(view: View, values: Shaped[np.ndarray, "n"]) -> Float[np.ndarray, "h w"]:
    """One value per vertex, interpolated at every pixel."""
    return np.einsum("hwc,hwc->hw", view.weights, values[view.vertices].astype(np.float32))


def _name_regions(axes: "Axes", regions: Int[np.ndarray, "h w"], names: Sequence[str]) -> None:
    """Write the name of each ROI where it is seen well."""
    from matplotlib.patheffects import withStroke

    for number, name in enumerate(names, start=1):
        rows, columns = np.nonzero(regions == number)
        if len(rows) < MIN_LABELLED_PIXELS * SUPERSAMPLING**2:
            continue
        middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)  # never outside a bent region
        axes.text(
            columns[middle] / SUPERSAMPLING,
            rows[middle] / SUPERSAMPLING,
            name,
            ha="center",
            va="center",
            fontsize=5.5,
            color=INK,
            path_effects=[withStroke(linewidth=1.5, foreground="white", alpha=0.85)],
        )


def _borders(regions: Int[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    border = np.zeros(regions.shape, dtype=bool)
    reach = 1
    border[reach:] |= regions[reach:] != regions[:-reach]
    border[:, reach:] |= regions[:, reach:] != regions[:, :-reach]
    thick = border.copy()
    thick[:-1] |= border[1:]
    thick[:, :-1] |= border[:, 1:]
    return thick


def _filled(hemisphere: str, values: Float[np.ndarray, "n"], categorical: bool = False) -> Float[np.ndarray, "n"]:
    """Vertices without a value get the mean of their neighbours if at least half of them have one; names get one's."""
    faces = mesh_of(hemisphere).faces
    source = np.concatenate([faces[:, 0], faces[:, 1], faces[:, 2]])
    target = np.concatenate([faces[:, 1], faces[:, 2], faces[:, 0]])  # each inner edge once in either direction
    known = np.isfinite(values)
    count = np.bincount(target, known[source], minlength=len(values))
    degree = np.bincount(target, minlength=len(values))
    mean = np.bincount(target, np.where(known, values, 0)[source], minlength=len(values)) / count.clip(min=1)
    if categorical:
        mean[target[known[source]]] = values[source[known[source]]]
    return np.where(known, values, np.where(2 * count >= degree, mean, np.nan)).astype(np.float32)


@lru_cache(maxsize=2)
def mesh_of(hemisphere: str) -> Mesh:
    try:
        from nilearn.datasets import load_fsaverage, load_fsaverage_data
    except ImportError as error:
        raise UserError(
            "maps on the inflated cortex: expected nilearn, which brings the fsaverage5 surface, got none. "
            "Install it with: pip install 'brainjanus[cortex]'"
        ) from error
    mesh = load_fsaverage("fsaverage5")["inflated"].parts[hemisphere]
    sulci = load_fsaverage_data(mesh="fsaverage5", mesh_type="inflated", data_type="sulcal").data.parts[hemisphere]
    return Mesh(
        np.asarray(mesh.coordinates, np.float32), np.asarray(mesh.faces, np.int64), np.asarray(sulci, np.float32)
    )


@lru_cache(maxsize=len(VIEWS))
def _view(hemisphere: str, name: str, viewer: tuple[float, ...], up: tuple[float, ...], part: str) -> View:
    """Rasterise a hemisphere, or its posterior part: orthographic, nearest triangle first."""
    mesh = mesh_of(hemisphere)
    towards = np.array(viewer) / np.linalg.norm(viewer)
    right = np.cross(up, towards)
    right /= np.linalg.norm(right)
    camera = np.stack([right, np.cross(towards, right), towards])  # to the right, upwards, towards the viewer
    points = (mesh.vertices @ camera.T.astype(np.float32)) * PIXELS_PER_MM[part] * SUPERSAMPLING
    points[:, 1] *= -1  # rows count downwards
    opacity = np.interp(mesh.vertices[:, 1], FADE_MM, (1, 0)) if part == "posterior" else np.ones(len(mesh.vertices))
    faces = mesh.faces[opacity[mesh.faces].any(axis=1)]
    points[:, :2] -= points[faces, :2].min(axis=(0, 1)) - SUPERSAMPLING
    wide, high = np.ceil(points[faces, :2].max(axis=(0, 1)) + SUPERSAMPLING).astype(int)

    row, column, nearness, face, weights = _covered(points[faces])
    order = np.argsort(nearness)  # the nearest triangle is written last
    row, column, face, weights = row[order], column[order], face[order], weights[order]

    normals = np.zeros_like(mesh.vertices)
    edges = mesh.vertices[mesh.faces]
    for corner in range(3):
        np.add.at(normals, mesh.faces[:, corner], np.cross(edges[:, 1] - edges[:, 0], edges[:, 2] - edges[:, 0]))
    lit = np.clip(normals @ towards / np.linalg.norm(normals, axis=1), 0, 1)

    view = View(
        np.zeros((high, wide, 3), np.int64),
        np.zeros((high, wide, 3), np.float32),
        np.zeros((high, wide), np.float32),
        np.zeros((high, wide), np.float32),
    )
    view.vertices[row, column] = faces[face]
    view.weights[row, column] = weights
    view.opacity[:] = _between(view, (opacity**2 * (3 - 2 * opacity)))
    view.shade[:] = _between(view, lit)
    return view


def _covered(corners: Float[np.ndarray, "f 3 3"]) -> tuple[np.ndarray, ...]:
    """Row, column, nearness, triangle and barycentric weights for every pixel in every triangle that faces the viewer.

    corners: x (column), y (row), nearness. Triangles of like size are tried together on the pixels of their box.
    """
    area = _cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    origin = np.floor(corners[:, :, :2].min(axis=1)).astype(np.int64)
    extent = np.ceil((corners[:, :, :2].max(axis=1) - origin).max(axis=1)).astype(np.int64) + 1
    found = []
    for size in 2 ** np.arange(1, int(extent.max()).bit_length() + 1):
        chosen = np.flatnonzero((extent <= size) & (extent > size // 2) & (area < 0))  # rows count downwards
        across, down = np.divmod(np.arange(size * size), size)
        box = corners[chosen, :, :2] - origin[chosen, None]
        opposite = []  # of each corner: the area opposite to it, linear in the pixel's place
        for first, second in ((1, 2), (2, 0), (0, 1)):
            a, b = box[:, first, None], box[:, second, None]
            edge = (b - a) / area[chosen, None, None]
            opposite.append(edge[..., 0] * (down - a[..., 1]) - edge[..., 1] * (across - a[..., 0]))
        triangle, pixel = np.nonzero(np.minimum(np.minimum(*opposite[:2]), opposite[2]) >= -1e-5)
        face = chosen[triangle]
        weights = np.stack([weight[triangle, pixel] for weight in opposite], axis=-1)
        column, row = (origin[face] + np.stack([across[pixel], down[pixel]], axis=-1)).T
        found.append((row, column, (weights * corners[face, :, 2]).sum(axis=1), face, weights))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


# ---------------------------------------------------------------------------------------------------- volume


def _draw_volume(
    space: BrainSpace, maps: Mapping[str, Float[np.ndarray, "v"]], norm: "Normalize", colours: "Colormap"
) -> "Figure":
    """Projections along each axis: at every place the value farthest from 0 on the line of sight."""
    import nibabel

    inside = nibabel.as_closest_canonical(space.to_nifti(np.ones(space.num_sites, np.float32)))
    box = tuple(slice(low - 1, high + 2) for low, high in _extent(np.isfinite(inside.get_fdata())))
    size_mm = np.array(inside.header.get_zooms()[:3]) * [axis.stop - axis.start for axis in box]
    inches_per_mm = 2.0 / size_mm.max()
    # name, line of sight, the axes that run to the right and upwards, what stands at either side
    planes = (("sagittal", 0, 1, 2, "PA"), ("coronal", 1, 0, 2, "LR"), ("axial", 2, 0, 1, "LR"))
    tallest = max(size_mm[up] for _, _, _, up, _ in planes) * inches_per_mm
    widths = [size_mm[right] * inches_per_mm for _, _, right, _, _ in planes]
    gap, margin, header, title_height = 0.35, 0.3, 0.28, 0.26
    width = sum(widths) + 2 * gap + 2 * margin
    figure = _figure(max(width, 3.2), header + len(maps) * (tallest + title_height) + BAR_HEIGHT)
    for number, (title, values) in enumerate(maps.items()):
        top, left = header + number * (tallest + title_height), margin
        _text(figure, margin, top + title_height / 2, title, ha="left", fontsize=9, color=INK, weight="bold")
        volume = nibabel.as_closest_canonical(space.to_nifti(values.astype(np.float32))).get_fdata()[box]
        for (name, sight, _, up, sides), wide in zip(planes, widths, strict=True):
            high = size_mm[up] * inches_per_mm
            axes = _axes(figure, left, top + title_height + (tallest - high) / 2, wide, high)
            silhouette = np.isfinite(inside.get_fdata()[box]).any(axis=sight).T
            grey = np.where(silhouette[..., None], [0.75, 0.75, 0.75, 1.0], 0.0)
            strongest = np.abs(np.nan_to_num(volume)).argmax(axis=sight)
            shown = np.take_along_axis(volume, np.expand_dims(strongest, sight), sight).squeeze(sight).T
            for layer in (grey, colours(norm(np.ma.masked_invalid(shown)))):
                axes.imshow(layer, origin="lower", interpolation="none", aspect="auto")
            middle = top + title_height + tallest / 2
            for side, place in zip(sides, (left - 0.1, left + wide + 0.1), strict=True):
                _text(figure, place, middle, side, fontsize=7, color="#777777")
            if number == 0:
                _text(figure, left + wide / 2, header / 2, f"{name} projection", fontsize=7, color="#777777")
            left += wide + gap
    return figure


def _extent(mask: Bool[np.ndarray, "x y z"]) -> list[tuple[int, int]]:
    """The first and last index along each axis at which the mask holds anything."""
    places = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return [(max(int(found[0]), 1), int(found[-1])) for found in places]


# ------------------------------------------------------------------------------------------- without a place


def _draw_strips(
    space: BrainSpace, maps: Mapping[str, Float[np.ndarray, "v"]], norm: "Normalize", colours: "Colormap"
) -> "Figure":
    """One bar per site, in the order of the first map, highest first."""
    height, title_height, left, wide = 0.75, 0.26, 0.55, 5.6
    figure = _figure(left + wide + 0.2, 0.1 + len(maps) * (height + title_height) + 0.25 + BAR_HEIGHT)
    order = np.argsort(-np.nan_to_num(next(iter(maps.values())), nan=-np.inf), kind="stable")
    for number, (title, values) in enumerate(maps.items()):
        top = 0.1 + number * (height + title_height)
        _text(figure, left, top + title_height / 2, title, ha="left", fontsize=9, color=INK, weight="bold")
        axes = _axes(figure, left, top + title_height, wide, height)
        axes.set_axis_on()
        axes.bar(
            np.arange(len(values)), values[order], width=0.9, color=colours(norm(values[order])), edgecolor=INK, lw=0.2
        )
        axes.axhline(0, color=INK, lw=0.5)
        axes.set(xlim=(-0.7, len(values) - 0.3), ylim=(min(norm.vmin or 0.0, 0), norm.vmax), xticks=[])
        axes.tick_params(labelsize=6, length=2, colors=INK)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    first = next(iter(maps))
    bottom = 0.1 + len(maps) * (height + title_height) + 0.12
    note = f"{space.num_sites} {space.kind}, ordered by '{first}'"
    _text(figure, left + wide / 2, bottom, note, fontsize=7, color="#777777")
    return figure


def _draw_points(
    coordinates_mm: Float[np.ndarray, "v 3"],
    maps: Mapping[str, Float[np.ndarray, "v"]],
    norm: "Normalize",
    colours: "Colormap",
) -> "Figure":
    """Every site as a point, from the left, from behind and from above; the nearest is drawn last."""
    side, title_height, margin, gap, header = 2.3, 0.26, 0.2, 0.3, 0.28
    # name, the axes that run to the right and upwards, the line of sight and whether its large values are near
    planes = (("from the left", 1, 2, 0, -1), ("from behind", 0, 2, 1, -1), ("from above", 0, 1, 2, 1))
    figure = _figure(2 * margin + 3 * side + 2 * gap, header + len(maps) * (side + title_height) + BAR_HEIGHT)
    middle = (coordinates_mm.max(axis=0) + coordinates_mm.min(axis=0)) / 2
    reach = max(float(np.ptp(coordinates_mm, axis=0).max()), 1e-6) / 2 * 1.06
    size = float(np.clip((side * 72) ** 2 / len(coordinates_mm) ** (2 / 3) / 4, 1.0, 60.0))  # as if they filled a cube
    for number, (title, values) in enumerate(maps.items()):
        top, left = header + number * (side + title_height), margin
        _text(figure, margin, top + title_height / 2, title, ha="left", fontsize=9, color=INK, weight="bold")
        known = np.isfinite(values)
        for name, right, up, sight, near in planes:
            axes = _axes(figure, left, top + title_height, side, side)
            drawn = np.argsort(near * coordinates_mm[:, sight], kind="stable")
            drawn = drawn[known[drawn]]
            x, y = coordinates_mm[drawn, right] - middle[right], coordinates_mm[drawn, up] - middle[up]
            if name == "from the left":
                x = -x  # the front of the brain is to the left
            axes.scatter(x, y, s=size, c=colours(norm(values[drawn])), linewidths=0)
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
            if number == 0:
                _text(figure, left + side / 2, header / 2, name, fontsize=7, color="#777777")
            left += side + gap
    return figure


def _draw_heat_strips(
    space: BrainSpace,
    maps: Mapping[str, Float[np.ndarray, "v"]],
    norm: "Normalize",
    colours: "Colormap",
    order: Int[np.ndarray, "v"],
) -> "Figure":
    """One strip per map, one column per site, in the given order."""
    height, title_height, left, wide = 0.3, 0.24, 0.2, 6.4
    figure = _figure(left + wide + 0.2, 0.1 + len(maps) * (height + title_height) + 0.25 + BAR_HEIGHT)
    for number, (title, values) in enumerate(maps.items()):
        top = 0.1 + number * (height + title_height)
        _text(figure, left, top + title_height / 2, title, ha="left", fontsize=9, color=INK, weight="bold")
        axes = _axes(figure, left, top + title_height, wide, height)
        strip = colours(norm(np.ma.masked_invalid(values[order])))[None]
        axes.imshow(strip, aspect="auto", interpolation="none")
    bottom = 0.1 + len(maps) * (height + title_height) + 0.12
    note = f"{space.num_sites} {space.kind}, in the order of the tokens"
    _text(figure, left + wide / 2, bottom, note, fontsize=7, color="#777777")
    return figure
