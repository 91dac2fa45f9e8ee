"""The diagrams of the guide show what recipes say, are drawn alike each time, and are there, all small enough."""

import importlib.util
import re
import sys

import numpy as np
import pytest

from brainjanus import recipes


@pytest.fixture(scope="module")
def figures(project_root):
    spec = importlib.util.spec_from_file_location("figures", project_root / "docs/figures.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["figures"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_diagrams_are_the_same_each_time_and_have_a_white_ground(figures, tmp_path):
    drawn = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        figures.main(["--out", str(tmp_path / name)])
        drawn.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert drawn[0] == drawn[1] and drawn[0].keys() == figures.DIAGRAMS.keys()
    assert all(b"fill: #ffffff" in content for content in drawn[0].values())


def test_every_figure_is_on_a_page_and_small(figures, project_root):
    pages = "".join(path.read_text(encoding="utf-8") for path in (project_root / "docs/guide").glob("*.md"))
    shown = set(re.findall(r"images/((?:inside|first-hour)-[^)]+)", pages))
    assert shown == {*figures.DIAGRAMS, *figures.OF_A_RUN}
    assert all((project_root / "docs/images" / name).stat().st_size < figures.LARGEST for name in shown)


def test_sizes_are_those_of_the_recipe(figures):
    sizes = figures.sizes(recipes.laptop())
    assert (sizes.codes, sizes.read, sizes.features, sizes.picture, sizes.guess) == (50, 17, 16, 64, 8)


def test_neighbouring_patches_differ(figures):
    x, y = np.meshgrid(np.arange(12), np.arange(12))
    points, patch = np.stack([x.ravel(), y.ravel(), 0 * x.ravel()], axis=1), (y // 3 * 4 + x // 3).ravel()
    group = figures.groups_of(patch, points)
    grid = group[patch].reshape(12, 12)
    assert (grid[:, 2:-1:3] != grid[:, 3::3]).all() and (grid[2:-1:3] != grid[3::3]).all()
    assert group.max() < 4
