"""Write object2vec as BIDS derivatives, as a lab has its own scans: python object2vec_bids.py OBJECT2VEC OUT

Enters the published MATLAB files and pictures. Leaves betas, mask and ROIs as NIfTI, events, stimuli, captions. Which
voxel of the published mask a column of the betas belongs to is not known: columns fill a made-up box of 2 mm voxels, in
order, so that no place in it means anything. A category was shown as ten pictures, of which BIDS names one: the first.
"""

import json
import sys
from pathlib import Path
from zipfile import ZipFile

import nibabel
import numpy as np
from scipy.io import loadmat

SHAPE = (12, 12, 13)  # the smallest near-cube for 1,870 columns; two voxels stay outside the mask
TEST_FOLD = 1


def main(data: Path, out: Path) -> None:
    stack = loadmat(data / "roistack.mat")["roistack"][0, 0]
    betas, roi_of = stack["betas"], stack["indices"][0]  # [categories, columns], [columns]
    categories = [str(cell[0]) for cell in stack["conds"][:, 0]]
    rois = [str(cell[0]) for cell in stack["rois"][:, 0]]
    fold = loadmat(data / "sets.mat")["sets"][0][TEST_FOLD - 1]
    test = {str(name[0]) for name in fold[:, 0]}

    func = out / "sub-01" / "func"
    func.mkdir(parents=True)
    about = {
        "Name": "object2vec",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "GLM"}],
    }
    (out / "dataset_description.json").write_text(json.dumps(about))
    voxels = np.zeros((np.prod(SHAPE), len(categories)), np.float32)
    voxels[: betas.shape[1]] = betas.T
    save(func / "sub-01_task-objects_betas.nii.gz", voxels)
    inside = np.arange(len(voxels)) < betas.shape[1]
    save(func / "sub-01_task-objects_mask.nii.gz", inside.astype(np.uint8))
    for number, roi in enumerate(rois, start=1):
        members = np.zeros(len(voxels), np.uint8)
        members[: len(roi_of)] = roi_of == number
        save(func / f"sub-01_task-objects_label-{roi}_mask.nii.gz", members)

    rows = [f"n/a\tn/a\t{name}\t{'test' if name in test else 'train'}" for name in categories]
    table = "\n".join(["onset\tduration\tstimulus_id\tsplit", *rows, ""])
    (func / "sub-01_task-objects_events.tsv").write_text(table)
    (out / "captions.json").write_text(json.dumps({name: [name] for name in categories}))
    (out / "stimuli").mkdir()
    with ZipFile(data / "stimuli_224.zip") as archive:
        for name in categories:
            first = min(member for member in archive.namelist() if f"/{name}/" in f"/{member}" and "." in member)
            (out / "stimuli" / f"{name}{Path(first).suffix}").write_bytes(archive.read(first))


def save(path: Path, voxels: np.ndarray) -> None:
    """Rows, one a voxel, as an image of the box."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(voxels.reshape(*SHAPE, *voxels.shape[1:]), affine), path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
