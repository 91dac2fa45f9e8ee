import io

import pytest
from PIL import Image

from brainjanus.core.png import Png


def encoded(width: int) -> Png:
    file = io.BytesIO()
    Image.new("RGB", (width, 30), "red").save(file, "png")
    return Png(file.getvalue())


@pytest.mark.parametrize(("width", "shown"), [(400, 400), (1800, 860)])
def test_a_notebook_shows_it_no_wider_than_its_column(width, shown):
    png = encoded(width)
    data, metadata = png._repr_png_()
    assert (data, metadata) == (bytes(png), {"width": shown})
    assert type(data) is bytes and repr(png) == str(png) == f"a PNG of {width} x 30 pixels"


def test_a_saved_picture_is_the_same(tmp_path):
    encoded(7).save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.size == encoded(7).size == (7, 30)
