"""Png: a picture as the bytes of its file, which a notebook shows as a picture.

Enters: encoded bytes. Leaves: the same bytes, to be written to a file, put on a page, or looked at.
"""

import struct
from pathlib import Path

NOTEBOOK_WIDTH = 860  # CSS pixels of a notebook's column


class Png(bytes):
    """Bytes of a PNG file; a notebook shows them, in full resolution, no wider than its column."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        width, height = struct.unpack(">II", self[16:24])
        return width, height

    def save(self, path: Path | str) -> None:
        """Write the file."""
        Path(path).write_bytes(self)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return bytes(self), {"width": min(self.size[0], NOTEBOOK_WIDTH)}

    def __repr__(self) -> str:
        return f"a PNG of {self.size[0]} x {self.size[1]} pixels"

    __str__ = __repr__
