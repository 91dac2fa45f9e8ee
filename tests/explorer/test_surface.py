"""MZ3 files of the cortex and of maps on it."""

import struct

import numpy as np
import pytest

from brainjanus.evaluate import cortex
from brainjanus.explorer.surface import GAP_MM, mesh_file, scalars_file

pytest.importorskip("nilearn")


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_hemisphere_is_that_of_fsaverage5_moved_aside(side):
    data, mesh = mesh_file(side), cortex.mesh_of(side)
    magic, attributes, faces, vertices, skipped = struct.unpack_from("<HHIII", data)
    assert (magic, attributes, skipped) == (23_117, 3, 0)
    assert len(data) == 16 + 12 * faces + 12 * vertices
    np.testing.assert_array_equal(np.frombuffer(data, "<i4", 3 * faces, 16).reshape(-1, 3), mesh.faces)
    points = np.frombuffer(data, "<f4", 3 * vertices, 16 + 12 * faces).reshape(-1, 3)
    moved = points - mesh.vertices
    np.testing.assert_allclose(moved, np.tile(moved[:1], (vertices, 1)), atol=1e-4)
    assert (moved[0, 1:] == 0).all()
    inner = points[:, 0].max() if side == "left" else points[:, 0].min()
    assert inner == pytest.approx(-GAP_MM if side == "left" else GAP_MM, abs=1e-3)


def test_scalars_keep_what_was_not_measured():
    values = np.array([1.5, np.nan, -2], np.float32)
    data = scalars_file(values)
    assert struct.unpack_from("<HHIII", data) == (23_117, 8, 0, 3, 0)
    np.testing.assert_array_equal(np.frombuffer(data, "<f4", offset=16), values)
