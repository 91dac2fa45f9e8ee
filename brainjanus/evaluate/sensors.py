"""Responses of sensors over time as pictures.

Enters: a BrainSpace of sensors x times, and one value per site. Leaves: a matplotlib figure, for each map: the head
from above at the moments that stand out, all sensors over time, and sensors x times in colours. Without places of
sensors, or for recorded neurons, there are no heads.

A head is laid flat as in EEG software: an azimuthal equidistant projection of the sphere that fits the sensors best,
vertex in the middle, nose up; in between, a thin-plate spline (Perrin et al. 1989 use its like on the sphere).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

INK, GREY = "#222222", "#777777"
HEADS = 6  # moments shown
PIXELS = 72  # of a head, along each side
DPI = 160


class Scalp(NamedTuple):
    """Sensors laid flat: x to the right, y to the nose, 1 is 90 degrees down from the vertex. radius: of the disc."""

    flat: Float[np.ndarray, "s 2"]
    radius: float


# V sites, S sensors, T times
def scalp_of(space: BrainSpace) -> Scalp | None:
    """Where the sensors lie on the head; None without places around a head."""
    if space.coordinates_mm is None or space.kind != "sensors" or space.geometry.get("type") != "sensors":
        return None
    grid = [space.to_grid(np.asarray(axis, np.float64)) for axis in space.coordinates_mm.T]
    at = np.stack([np.nan_to_num(axis).max(axis=1) + np.nan_to_num(axis).min(axis=1) for axis in grid], axis=1)
    if len(at) < 5 or np.linalg.matrix_rank(at - at.mean(axis=0), tol=1.0) < 3:
        return None  # on a line or in a plane: no head
    # |at|^2 = 2 at . centre + (radius^2 - |centre|^2), solved for the centre
    solution = np.linalg.lstsq(np.column_stack([2 * at, np.ones(len(at))]), (at**2).sum(axis=1), rcond=None)[0]
    outwards = at - solution[:3]
    down = np.arccos(np.clip(outwards[:, 2] / np.linalg.norm(outwards, axis=1), -1, 1)) / (np.pi / 2)
    around = np.arctan2(outwards[:, 1], outwards[:, 0])
    flat = down[:, None] * np.stack([np.cos(around), np.sin(around)], axis=1)
    return Scalp(flat, max(1.0, float(down.max())) * 1.05)


def moments(grid: Float[np.ndarray, "s t"], count: int = HEADS) -> Int[np.ndarray, "m"]:
    """Times at which the sensors say most, in order: peaks of the global field power, far from each other."""
    power = np.nan_to_num(grid**2).sum(axis=0)
    smooth = np.convolve(np.pad(power, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    apart = max(1, grid.shape[1] // (3 * count))
    chosen: list[int] = []
    for time in np.argsort(-smooth, kind="stable"):
        if len(chosen) < count and all(abs(int(time) - other) >= apart for other in chosen):
            chosen.append(int(time))
    return np.array(sorted(chosen))


def draw_sensors(
    space: BrainSpace,
    values: "Float[np.ndarray, 'v'] | Mapping[str, Float[np.ndarray, 'v']]",
    *,
    title: str = "",
    label: str = "response (z)",
    limits: tuple[float, float] | None = None,
    colours: "str | Colormap" = "RdBu_r",
    discrete: bool = False,
) -> "Figure":
    """A figure of one map, or of several (title -> values) on one scale and at the same moments, those of the first.

    label: what the colours mean, with its unit; without one there is no colour bar. limits: of the colours; default:
    the 99.5th percentile of magnitudes, symmetric around 0. NaN is not drawn. discrete: values are names, such as
    numbers of patches, or mean nothing between two sensors: nothing is drawn between them, moments are evenly spaced,
    and there is no graph over time.
    Raises UserError for a space without sensors x times, or a map of another number of sites.
    """
    from matplotlib.figure import Figure

    maps = values if isinstance(values, Mapping) else {title: values}
    for name, one in maps.items():
        if one.shape != (space.num_sites,):
            raise UserError(
                f"map '{name}': expected one value for each of the {space.num_sites} sites of {space.subject}, got "
                f"shape {list(one.shape)}. Does it belong to another subject?"
            )
    grids = {name: space.to_grid(np.asarray(one, np.float64)) for name, one in maps.items()}
    if limits is None:
        top = max(float(np.nanpercentile(np.abs(np.concatenate(list(maps.values()))), 99.5)), 1e-9)
        limits = (-top, top)
    scalp = scalp_of(space)
    times = np.array(space.geometry["times_sec"]) * 1000
    shown = np.zeros(0, np.int64)
    if scalp is not None:
        even = np.linspace(0, len(times) - 1, min(HEADS, len(times))).round().astype(np.int64)
        shown = even if discrete else moments(next(iter(grids.values())))
    rows = _rows(space, scalp)

    wide, title_height, heads_height, graphs_height, margin = 8.6, 0.3, 1.35 if scalp else 0.0, 2.0, 0.62
    block = title_height + heads_height + graphs_height + 0.55
    figure = Figure((wide, block * len(grids) + 0.1), dpi=DPI)
    high = figure.get_size_inches()[1]

    def axes_at(left: float, top: float, width: float, height: float) -> "Axes":
        return figure.add_axes((left / wide, 1 - (top + height) / high, width / wide, height / high))

    for number, (name, grid) in enumerate(grids.items()):
        top = 0.05 + number * block
        figure.text(
            0.12 / wide, 1 - (top + title_height / 2) / high, name, fontsize=9, weight="bold", color=INK, va="center"
        )
        top += title_height
        if scalp is not None:
            step = (wide - margin - 0.7) / len(shown)
            for place, (time, field) in enumerate(zip(shown, _fields(scalp, grid[:, shown], discrete), strict=True)):
                axes = axes_at(margin + place * step, top, step, heads_height - 0.06)
                _head(axes, scalp, field, f"{times[time]:.0f} ms", limits, colours, lines=not discrete)
            top += heads_height
        left, width = margin, wide - margin - 0.8
        if not discrete:
            width = (wide - 2 * margin - 0.8) / 2
            _over_time(axes_at(left, top, width, graphs_height), grid, times, times[shown], scalp, label, limits[0] < 0)
            left += width + margin
        picture = axes_at(left, top, width, graphs_height)
        image = _sensors_by_time(picture, space, grid[rows], times, rows, limits, colours)
        if label:
            bar = axes_at(wide - 0.72, top + 0.3, 0.1, graphs_height - 0.6)
            figure.colorbar(image, cax=bar)
            bar.tick_params(labelsize=6, length=2, colors=INK)
            bar.set_ylabel(label, fontsize=6, color=INK, labelpad=2)
    return figure


def _rows(space: BrainSpace, scalp: Scalp | None) -> Int[np.ndarray, "s"]:
    """The order in which sensors are drawn: left, middle, right, each from the front to the back; or as stored."""
    if scalp is None:
        return np.arange(len(space.geometry["names"]))
    side = np.sign(scalp.flat[:, 0]) * (np.abs(scalp.flat[:, 0]) > 0.08 * scalp.radius)
    return np.lexsort((-scalp.flat[:, 1], side))


def _fields(scalp: Scalp, values: Float[np.ndarray, "s m"], discrete: bool) -> Float[np.ndarray, "m h w"]:
    """The values between the sensors, at PIXELS x PIXELS places, for each moment; NaN where too few are known."""
    from scipy.interpolate import NearestNDInterpolator, RBFInterpolator

    at = np.linspace(-scalp.radius, scalp.radius, PIXELS)
    points = np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2)
    known = np.isfinite(values).all(axis=1)
    if known.sum() < 4:
        return np.full((values.shape[1], PIXELS, PIXELS), np.nan)
    if discrete:
        fields = NearestNDInterpolator(scalp.flat[known], values[known])(points)
    else:
        fields = RBFInterpolator(scalp.flat[known], values[known], smoothing=1e-3)(points)
    return fields.T.reshape(-1, PIXELS, PIXELS)


def _head(
    axes: "Axes",
    scalp: Scalp,
    field: Float[np.ndarray, "h w"],
    title: str,
    limits: tuple[float, float],
    colours: "str | Colormap",
    lines: bool,
) -> None:
    """One moment on the head, seen from above."""
    from matplotlib.patches import Circle

    reach = scalp.radius
    at = np.linspace(-reach, reach, PIXELS)
    edge = Circle((0, 0), reach, transform=axes.transData)
    axes.imshow(
        field, extent=(-reach, reach, -reach, reach), origin="lower", interpolation="bilinear" if lines else "none",
        cmap=colours, vmin=limits[0], vmax=limits[1],
    ).set_clip_path(edge)  # fmt: skip
    if lines and limits[0] < np.nanmax(field, initial=limits[0]):
        levels = np.linspace(*limits, 9)
        axes.contour(at, at, field, levels=levels, colors=INK, linewidths=0.3, alpha=0.5).set_clip_path(edge)
    axes.plot(*scalp.flat.T, ".", ms=1.1, color=INK, alpha=0.7)
    axes.add_patch(Circle((0, 0), reach, fill=False, color=INK, lw=0.8))
    axes.plot([-0.1 * reach, 0, 0.1 * reach], [0.995 * reach, 1.13 * reach, 0.995 * reach], color=INK, lw=0.8)
    for side in (-1, 1):
        ear = np.array([[1, 0.14], [1.06, 0.1], [1.06, -0.1], [1, -0.14]]) * reach * (side, 1)
        axes.plot(*ear.T, color=INK, lw=0.8)
    axes.set(xlim=(-1.15 * reach, 1.15 * reach), ylim=(-1.1 * reach, 1.2 * reach), aspect="equal")
    axes.set_axis_off()
    axes.set_title(title, fontsize=7, color=GREY, pad=1)


def _over_time(
    axes: "Axes",
    grid: Float[np.ndarray, "s t"],
    times: Float[np.ndarray, "t"],
    marked: Float[np.ndarray, "m"],
    scalp: Scalp | None,
    label: str,
    signed: bool,
) -> None:
    """All sensors in one graph, coloured from the front (light) to the back; of what has a sign, with the global field
    power."""
    from matplotlib import colormaps

    places = np.linspace(0, 1, len(grid)) if scalp is None else (1 - scalp.flat[:, 1] / scalp.radius) / 2
    for line, place in zip(grid, places, strict=True):
        axes.plot(times, line, lw=0.4, alpha=0.7, color=colormaps["viridis_r"](0.1 + 0.9 * place))
    if signed:
        known = np.ma.masked_invalid(grid)
        power = np.ma.sqrt(((known - known.mean(axis=0)) ** 2).mean(axis=0))
        axes.plot(times, power, color="#b2182b", lw=1.2, label="global field power")
        axes.legend(fontsize=6, frameon=False, loc="upper right")
    for time in marked:
        axes.axvline(time, color=GREY, lw=0.4, ls=":")
    axes.axhline(0, color=INK, lw=0.4)
    axes.set_xlim(times[0], times[-1])
    axes.set_xlabel("ms", fontsize=7, labelpad=1, color=INK)
    axes.set_ylabel(label, fontsize=7, labelpad=1, color=INK)
    axes.tick_params(labelsize=6, length=2, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)


def _sensors_by_time(
    axes: "Axes",
    space: BrainSpace,
    grid: Float[np.ndarray, "s t"],
    times: Float[np.ndarray, "t"],
    rows: Int[np.ndarray, "s"],
    limits: tuple[float, float],
    colours: "str | Colormap",
) -> "AxesImage":
    half = (times[1] - times[0]) / 2 if len(times) > 1 else 0.5
    image = axes.imshow(
        grid, extent=(times[0] - half, times[-1] + half, len(grid) - 0.5, -0.5), aspect="auto",
        interpolation="none", cmap=colours, vmin=limits[0], vmax=limits[1],
    )  # fmt: skip
    shown = np.linspace(0, len(grid) - 1, min(len(grid), 12)).round().astype(int)
    axes.set_yticks(shown, [space.geometry["names"][rows[i]] for i in shown])
    axes.tick_params(labelsize=5.5, length=2, colors=INK)
    axes.set_xlabel("ms", fontsize=7, labelpad=1, color=INK)
    return image
