import io

import numpy as np
import pytest
from PIL import Image

from brainjanus.core.png import Png


def encoded(width: int) -> Png:
    file = io.BytesIO()
    Image.new("RGB", (width, 30), "red").save(file, "png")
    return Png(file.getvalue())


@pytest.mark.parametrize(("width", "shown"), [(400, 400), (1720, 860)])
def test_a_notebook_shows_it_no_wider_than_its_column(width, shown):
    png = encoded(width)
    with Image.open(io.BytesIO(png._repr_png_())) as picture:
        assert picture.size == (shown, 30 * shown // width)
        assert picture.convert("RGB").getcolors() == [(shown * picture.height, (255, 0, 0))]
    assert repr(png) == str(png) == f"a PNG of {width} x 30 pixels"


def test_a_notebook_keeps_a_small_one():
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "png")
    assert len(Png(file.getvalue())._repr_png_()) < 0.4 * len(file.getvalue())


def test_rare_colours_are_kept():
    pixels = np.random.default_rng(0).integers(60, 180, (200, 200, 3)).astype(np.uint8)
    pixels[:4, :4] = 150, 40, 160
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    with Image.open(io.BytesIO(Png(file.getvalue())._repr_png_())) as picture:
        shown = np.asarray(picture.convert("RGB")).astype(int)
    assert abs(shown[:4, :4] - (150, 40, 160)).max() < 8


def test_a_saved_picture_is_the_same(tmp_path):
    encoded(7).save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.size == encoded(7).size == (7, 30)
