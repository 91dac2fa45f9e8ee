"""What a notebook shows: scores and findings as tables, pictures side by side.

Enters: records, what `doctor` found, columns of one's own; pictures. Leaves: a Table, or a Png, that a notebook shows
where it is the last thing of a cell. Maps on the cortex are drawn by evaluate/cortex.py.
"""

import html
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from brainjanus.core.errors import UserError
from brainjanus.core.png import Png
from brainjanus.data.doctor import Finding
from brainjanus.evaluate.record import Record, number
from brainjanus.evaluate.score import MAIN_ESTIMATORS, main_records

LIGHT_COLOURS = {"red": "#c0392b", "yellow": "#b7950b", "green": "#1e8449", "grey": "#808080"}
TILE_INCHES, DPI = 1.0, 110


class Table(NamedTuple):
    """Cells of text below the names of their columns: HTML in a notebook, aligned text where it is printed."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def _repr_html_(self) -> str:
        right = [bool(self.rows) and all(_is_number(row[i]) for row in self.rows) for i in range(len(self.columns))]
        sides = ["right" if numbers else "left" for numbers in right]

        def line(tag: str, cells: Sequence[str]) -> str:
            tags = (
                f'<{tag} style="text-align: {side}; white-space: {"normal" if len(cell) > 40 else "nowrap"}'
                f'{f"; color: {LIGHT_COLOURS[cell]}" if cell in LIGHT_COLOURS else ""}">{html.escape(cell)}</{tag}>'
                for cell, side in zip(cells, sides, strict=True)
            )
            return f"<tr>{''.join(tags)}</tr>"

        body = "\n".join(line("td", row) for row in self.rows)
        return f"<table>\n<thead>{line('th', self.columns)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"

    def __repr__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        return "\n".join(
            "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )


def table(results: Sequence[object] | Mapping[str, Sequence[object]]) -> Table:
    """Scores, what `diagnose` found, or columns by name, as a table.

    Of scores the main metrics are shown, of the mean over subjects if there is one, for all sites, each beside its
    shuffled floor, constant prediction, linear baseline and ceiling.
    Raises UserError for anything else, and for columns of different lengths.
    """
    if isinstance(results, Mapping):
        lengths = {name: len(column) for name, column in results.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"table: expected columns of the same length, got {lengths}. Fill the shorter ones up.")
        return Table(tuple(results), [tuple(map(_cell, row)) for row in zip(*results.values(), strict=True)])
    records = [one for one in results if isinstance(one, Record)]
    findings = [one for one in results if isinstance(one, Finding)]
    if not results or len(results) not in (len(records), len(findings)):
        kinds = ", ".join(sorted({type(one).__name__ for one in results})) or "nothing"
        raise UserError(
            f"table: expected the records of `evaluate` or `score`, the findings of `diagnose`, or columns by name, "
            f"got {kinds}. Pass the list as it was returned, or a dictionary of columns."
        )
    return _scores(main_records(records)) if records else _findings(findings)


def _scores(records: Sequence[Record]) -> Table:
    records = [record for record in records if record.estimator in MAIN_ESTIMATORS] or list(records)
    columns = ("direction", "metric", "floor", "constant", "linear", "value", "95 %", "ceiling")
    rows = []
    for r in records:
        between = "" if r.interval is None else f"{r.interval[0]:.3f} to {r.interval[1]:.3f}"
        beside = (r.floor, r.constant, r.baseline, r.value)
        rows.append((r.direction, r.metric, *map(number, beside), between, number(r.ceiling)))
    return Table(columns, rows)


def _findings(findings: Sequence[Finding]) -> Table:
    told = [f"{one.sentence} {one.remedy}" if one.light in ("red", "yellow") else one.sentence for one in findings]
    return Table(("", "check", "found"), [(f.light, f.check, text) for f, text in zip(findings, told, strict=True)])


def _cell(value: object) -> str:
    return number(float(value)) if isinstance(value, float | np.floating) else str(value)


def _is_number(cell: str) -> bool:
    return not cell.strip("0123456789.-to ")


# N pictures, H height, W width
def draw_pictures(rows: Mapping[str, object], titles: Sequence[str] = ()) -> Png:
    """Pictures side by side: one row for each entry, under its name at the left; picture i of all rows in column i.

    rows: name -> pictures [n, h, w, 3], uint8 or floats in [0, 1], as a dataset has them and `generate` returns them.
    titles: above the columns.
    Raises UserError for what are no pictures, and for rows or titles of different lengths.
    """
    from matplotlib.figure import Figure

    pictures = {name: _pixels(name, values) for name, values in rows.items()}
    if not pictures:
        raise UserError("draw_pictures: expected rows of pictures by name, got no row. Pass at least one.")
    counts = {name: len(values) for name, values in pictures.items()} | ({"titles": len(titles)} if titles else {})
    if len(set(counts.values())) != 1:
        raise UserError(f"draw_pictures: expected as many pictures in each row, got {counts}. Take the same stimuli.")
    across, down = len(next(iter(pictures.values()))), len(pictures)
    above = 0.15 * max((title.count("\n") + 1 for title in _wrapped(titles)), default=0) + 0.05
    beside = 0.1 + 0.075 * max(map(len, pictures))
    wide, high = beside + across * TILE_INCHES * 1.06, above + down * TILE_INCHES * 1.06
    figure = Figure((wide, high), dpi=DPI)
    for row, (name, values) in enumerate(pictures.items()):
        top = above + row * TILE_INCHES * 1.06
        figure.text(0.05 / wide, 1 - (top + TILE_INCHES / 2) / high, name, fontsize=8, va="center")
        for column, picture in enumerate(values):
            left = beside + column * TILE_INCHES * 1.06
            place = (left / wide, 1 - (top + TILE_INCHES) / high, TILE_INCHES / wide, TILE_INCHES / high)
            axes = figure.add_axes(place)
            axes.imshow(picture, interpolation="nearest")
            axes.set_axis_off()
            if row == 0 and titles:
                middle = (left + TILE_INCHES / 2) / wide
                figure.text(middle, 1 - 0.5 * above / high, _wrapped(titles)[column], fontsize=6.5, ha="center",
                            va="center")  # fmt: skip
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white")
    return Png(file.getvalue())


def _wrapped(titles: Sequence[str]) -> list[str]:
    return [textwrap.fill(title, 20) for title in titles]


def _pixels(name: str, values: object) -> UInt8[np.ndarray, "n h w 3"]:
    array = np.asarray(values)
    if array.ndim != 4 or array.shape[-1] != 3 or not len(array) or array.dtype.kind not in "uf":
        raise UserError(
            f"draw_pictures: expected pictures [n, height, width, 3] in '{name}', uint8 or floats from 0 to 1, got "
            f"{array.dtype} {list(array.shape)}. Pass what `dataset.images` or `generate` returned."
        )
    return array if array.dtype == np.uint8 else (array.clip(0, 1) * 255).round().astype(np.uint8)
