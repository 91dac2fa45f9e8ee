"""Pictures out of a folder, a zip or tar archive, or an array, decoded one at a time.

Enters: the path of one of these. Leaves: names, and square uint8 RGB pictures of one size. A picture that is not square
is cropped to the square in its centre, then resized with Pillow's antialiased bicubic filter. Pictures in an array are
named by their position: "0", "1", ...
"""

import io
import itertools
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from brainjanus.core.errors import UserError
from brainjanus.data.readers.arrays import check_growth, check_not_empty, is_array, open_array, reading

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_MODES = ("RGB", "L", "P", "1", "RGBA", "LA", "CMYK")
_MOST_PIXELS = 1 << 26  # 8,192 x 8,192
_MOST_BYTES = 256 << 20  # of one picture in an archive
_MOST_FACTS = 1 << 20  # of a long name and what else stands before a member


def picture_names(source: str) -> list[str]:
    """The names of all pictures of `source`, sorted: paths inside a folder or archive, positions in an array.

    Raises UserError if there are none, or the archive or array is damaged or of a kind that is not known.
    """
    if is_array(source):
        with open_array(source) as array:
            _layout(source, array)
            return [str(i) for i in range(len(array))]
    path = Path(source)
    if path.is_dir():
        names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    elif _is_tar(path):
        names = [name for name, _ in _tar_members(path, None)]
    else:
        with reading(path, "a folder, a zip or tar archive, or an array, of pictures"), _zip(path) as archive:
            names = archive.namelist()
    names = sorted(name for name in names if _is_picture(name))
    if not names:
        raise UserError(
            f"{path}: expected pictures ({', '.join(PICTURE_SUFFIXES)}), got none. "
            "Is it the right folder or archive? Other formats have to be converted."
        )
    if len(set(names)) < len(names):
        twice = next(a for a, b in itertools.pairwise(names) if a == b)
        raise UserError(f"{path}: expected each name once, got two pictures '{twice}'. Pack the archive again.")
    return names


def read_pictures(source: str, wanted: Collection[str], size: int) -> Iterator[tuple[str, UInt8[np.ndarray, "h w 3"]]]:
    """Decode the pictures `wanted`, resized to `size` x `size`, in the order in which they are stored.

    Raises UserError naming the picture that cannot be decoded, has transparent parts or more than 8 bits a channel.
    """
    for name, picture in _images(source, set(wanted)):
        yield name, fit(picture, size)


def native_pictures(source: str, wanted: Collection[str]) -> Iterator[tuple[str, UInt8[np.ndarray, "h w 3"]]]:
    """Decode the pictures `wanted` at the size they have. Raises UserError as `read_pictures` does."""
    for name, picture in _images(source, set(wanted)):
        yield name, np.asarray(picture)


def fit(picture: Image.Image, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """The square in the centre of an RGB picture, resized to `size` x `size`."""
    width, height = picture.size
    if width == height == size:
        return np.asarray(picture)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square if side == size else square.resize((size, size), Image.Resampling.BICUBIC))


def _images(source: str, wanted: set[str]) -> Iterator[tuple[str, Image.Image]]:
    path = Path(source)
    if is_array(source):
        with open_array(source) as array:
            channels_first = _layout(source, array)
            for name in sorted(wanted, key=int):
                picture = np.asarray(array[int(name)])
                picture = picture.transpose(1, 2, 0) if channels_first else picture
                yield name, _from_array(f"{source}, picture {name}", picture)
    elif path.is_dir():
        for name in sorted(wanted):
            with reading(path / name, "a picture"):
                data = (path / name).read_bytes()
            yield name, decode(f"{path / name}", data)
    elif _is_tar(path):
        for name, data in _tar_members(path, wanted):
            yield name, decode(f"{path}, {name}", data)
    else:
        with _zip(path) as archive:
            for name in sorted(wanted):
                with reading(path, f"a whole zip archive, with {name}"):
                    _check_bytes(path, name, archive.getinfo(name).file_size)
                    data = archive.read(name)
                yield name, decode(f"{path}, {name}", data)


def decode(what: str, data: bytes, *, formats: list[str] | None = None, upright: bool = False) -> Image.Image:
    """An RGB picture from the bytes of a file; `what` names it in the sentence if it cannot be decoded.

    formats: of Pillow, that are tried; None: all. upright: turned as its EXIF says that it was taken.
    """
    try:
        file = Image.open(io.BytesIO(data), formats=formats)
        if file.width * file.height > _MOST_PIXELS:
            raise Image.DecompressionBombError(f"{file.width} x {file.height} pixels, at most {_MOST_PIXELS} are read")
        file.load()
    except (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError) as error:
        problem = "of no known format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(
            f"{what}: expected a picture, got {len(data)} bytes that cannot be decoded ('{problem}'). "
            "The file is truncated or no picture: replace it, or take its trials out of the table."
        ) from error
    picture: Image.Image = ImageOps.exif_transpose(file) if upright else file
    if picture.mode not in _MODES:
        raise UserError(
            f"{what}: expected 8 bits a channel, got a picture of mode '{picture.mode}'. "
            "Which grey stands for white is not known: convert it to 8 bits."
        )
    if picture.mode in ("RGBA", "LA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        if np.asarray(picture)[..., 3].min() < 255:
            raise UserError(
                f"{what}: expected an opaque picture, got one with transparent parts. "
                "Flatten it onto the background that the subject saw."
            )
    return picture.convert("RGB")


def _from_array(what: str, picture: Shaped[np.ndarray, "h w 3"]) -> Image.Image:
    if picture.dtype.kind == "f":
        if not np.isfinite(picture).all():
            raise UserError(
                f"{what}: expected floats from 0 to 1, got NaN or infinity. Did the software that made it overflow? "
                "Make it again, or leave it out."
            )
        if picture.min() < 0 or picture.max() > 1:
            raise UserError(
                f"{what}: expected floats from 0 to 1, got values from {picture.min():.8g} to {picture.max():.8g}. "
                "Undo the normalisation that was applied, or save the pictures as uint8."
            )
        picture = (picture * 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(picture))


def _layout(source: str, array: Any) -> bool:
    """Whether channels come before rows. Raises UserError for an array that is not one of RGB pictures."""
    shape, dtype = tuple(array.shape), np.dtype(array.dtype)
    if not (dtype == np.uint8 or dtype.kind == "f"):
        raise UserError(
            f"{source}: expected pictures as uint8, or as floats from 0 to 1, got {dtype}. Convert them to uint8."
        )
    if len(shape) == 4 and max(shape[1] * shape[2], shape[2] * shape[3]) > _MOST_PIXELS:
        raise UserError(
            f"{source}: expected pictures of at most {_MOST_PIXELS} pixels, got {list(shape)}. "
            "Is it an array of something else, or damaged? Make the pictures smaller."
        )
    last, first = len(shape) == 4 and shape[3] == 3, len(shape) == 4 and shape[1] == 3
    if last == first or 0 in shape:
        raise UserError(
            f"{source}: expected RGB pictures [pictures, height, width, 3] or [pictures, 3, height, width], got "
            f"{list(shape)}. Repeat a grey channel three times; give pictures that are 3 pixels high another size."
        )
    return first


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in PICTURE_SUFFIXES and not hidden


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith(TAR_SUFFIXES)


def _zip(path: Path) -> zipfile.ZipFile:
    check_not_empty(path)
    with reading(path, "a folder, a zip or tar archive, or an array, of pictures"):
        return zipfile.ZipFile(path)


def _check_bytes(path: Path, name: str, size: int) -> None:
    if size > _MOST_BYTES:
        raise UserError(
            f"{path}: expected pictures of at most {_MOST_BYTES} bytes, got {size} for {name}. It was made to fill the "
            "memory, or the archive is damaged: take it out."
        )


class _Member(tarfile.TarInfo):
    """tarfile reads all of what stands before a member into memory; in a compressed archive that may be anything."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if not self.isfile() and self.size > _MOST_FACTS:
            raise tarfile.ReadError(f"{self.size} bytes before a member")
        found: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return found


def _tar_members(path: Path, wanted: set[str] | None) -> Iterator[tuple[str, bytes]]:
    """The wanted members with their bytes, in one pass; with None, all members' names, without bytes."""
    check_not_empty(path)
    with reading(path, "a whole tar archive"), tarfile.open(path, tarinfo=_Member) as archive:
        for member in archive:
            name = PurePosixPath(member.name).as_posix()
            check_growth(path, name, member.size, path.stat().st_size)
            if _is_picture(name):
                _check_bytes(path, name, member.size)
            if member.isfile() and wanted is None:
                yield name, b""
            elif member.isfile() and wanted is not None and name in wanted:
                content = archive.extractfile(member)
                assert content is not None
                yield name, content.read()
        # tarfile takes an archive that was cut between two members, or in a header, for a whole one
        assert archive.fileobj is not None
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end of archive")
