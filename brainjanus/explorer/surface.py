"""The inflated cortex and maps on it, as the page draws them: MZ3 files, the simplest form that NiiVue reads.

Source: MZ3 (Rorden, surfice): magic, attributes, counts, then faces, vertices, scalars, little-endian.
"""

import struct

import numpy as np
from jaxtyping import Float

from brainjanus.evaluate.cortex import Mesh, mesh_of

MAGIC, FACES, VERTICES, SCALARS = 23_117, 1, 2, 8
SIDES = ("left", "right")
GAP_MM = 4.0  # from the middle: inflated hemispheres would overlap


def mesh_file(side: str) -> bytes:
    """One inflated hemisphere of fsaverage5, in mm, beside the other. Raises UserError without nilearn."""
    mesh: Mesh = mesh_of(side)
    x = mesh.vertices[:, 0]
    apart = np.array([-x.max() - GAP_MM if side == "left" else GAP_MM - x.min(), 0, 0], dtype=np.float32)
    head = struct.pack("<HHIII", MAGIC, FACES | VERTICES, len(mesh.faces), len(mesh.vertices), 0)
    return head + mesh.faces.astype("<i4").tobytes() + (mesh.vertices + apart).astype("<f4").tobytes()


def scalars_file(values: Float[np.ndarray, "n"]) -> bytes:
    """One number for each vertex."""
    return struct.pack("<HHIII", MAGIC, SCALARS, 0, len(values), 0) + np.asarray(values, "<f4").tobytes()
