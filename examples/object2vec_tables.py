"""Tables that `prepare` reads, from the MATLAB files of object2vec: python object2vec_tables.py OBJECT2VEC OUT"""

import json
import sys
from pathlib import Path

import numpy as np
from scipy.io import loadmat


def main(data: Path, out: Path) -> None:
    stack = loadmat(data / "roistack.mat")["roistack"][0, 0]
    categories = [str(cell[0]) for cell in stack["conds"][:, 0]]
    rois = [str(cell[0]) for cell in stack["rois"][:, 0]]
    folds = [[str(name[0]) for name in fold[:, 0]] for fold in loadmat(data / "sets.mat")["sets"][0]]
    fold_of = {name: number for number, fold in enumerate(folds, start=1) for name in fold}

    out.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{name}\t{fold_of[name]}\n" for name in categories)
    (out / "trials.tsv").write_text("stimulus_id\tfold\n" + rows)
    (out / "captions.json").write_text(json.dumps({name: [name] for name in categories}))
    members = {roi: np.flatnonzero(stack["indices"][0] == number).tolist() for number, roi in enumerate(rois, start=1)}
    (out / "rois.json").write_text(json.dumps(members))
    np.savez(out / "word2vec.npz", names=np.array(categories), features=loadmat(data / "word2vec.mat")["word2vec"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
