"""Png: a picture as the bytes of its file, which a notebook shows as a picture.

Enters: encoded bytes. Leaves: the same bytes, to be written to a file, put on a page, or looked at.
"""

import io
import struct
from pathlib import Path

COLUMN = 860  # CSS pixels of a notebook's column
COLOURS = 256  # of a palette that keeps rare ones: a fish is not as grey as the street that it lies on


class Png(bytes):
    """Bytes of a PNG file. A notebook shows and keeps a small one, no wider than its column and of 256 colours."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        width, height = struct.unpack(">II", self[16:24])
        return width, height

    def save(self, path: Path | str) -> None:
        """Write the file, in full resolution."""
        Path(path).write_bytes(self)

    def _repr_png_(self) -> bytes:
        from PIL import Image

        width, height = self.size
        file = io.BytesIO()
        with Image.open(io.BytesIO(self)) as picture:
            shown = picture.convert("RGB")
            if width > COLUMN:
                shown = shown.resize((COLUMN, round(height * COLUMN / width)), Image.Resampling.LANCZOS)
            few = shown.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
            few.save(file, "png", optimize=True)
        return file.getvalue()

    def __repr__(self) -> str:
        return f"a PNG of {self.size[0]} x {self.size[1]} pixels"

    __str__ = __repr__
