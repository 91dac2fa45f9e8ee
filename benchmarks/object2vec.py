"""Real fMRI: object2vec's nine published folds, all four directions against their shuffled floor.

81 categories, one subject; a stimulus is a category of ten pictures and its word. Each fold is trained on the other
eight, without its categories, and p is that of all held-out categories together (each shuffle within its fold).
python benchmarks/object2vec.py --out benchmarks/results/object2vec.json [--seed 1] [--quick]
"""

import argparse
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from records import REAL_DATA, Claim, arguments, write

from brainjanus import Dataset, PrepareConfig, Run, prepare
from brainjanus.evaluate.score import summary
from brainjanus.recipes import few_trials

EXAMPLES = Path(__file__).parents[1] / "examples"
NUM_FOLDS = 9
FIGURES = {  # direction -> what is claimed above its floor; a held-out word is never generated, so its neighbours count
    "image->brain": "voxel_r",
    "text->brain": "voxel_r",
    "brain->image": "two_way",
    "brain->text": "text_similarity",
}


def tables(work: Path) -> None:
    """The tables that `prepare` reads, and MobileNetV2 features of the pictures, once."""
    if not (work / "object2vec" / "trials.tsv").exists():
        script = runpy.run_path(str(EXAMPLES / "object2vec_tables.py"))
        script["main"](REAL_DATA / "object2vec", work / "object2vec")
    if not (work / "object2vec" / "mobilenet.npz").exists():
        tool = REAL_DATA.parent / "tools" / "mobilenet_features.py"
        archive = REAL_DATA / "object2vec" / "stimuli_224.zip"
        subprocess.run([sys.executable, tool, archive, work / "object2vec" / "mobilenet.npz"], check=True)


def fold_of(work: Path, fold: int) -> Dataset:
    """One of the published folds, prepared once."""
    path = work / f"object2vec-fold{fold}"
    if path.exists():
        return Dataset.open(path)
    tables(work)
    os.environ |= {"BRAINJANUS_REAL_DATA": str(REAL_DATA.resolve()), "BRAINJANUS_WORK": str(work)}
    spec = PrepareConfig.load(EXAMPLES / "object2vec.toml")
    seen = f"mobilenet={work / 'object2vec' / 'mobilenet.npz'}"
    return prepare(replace(spec, test_fold=fold, features=(*spec.features, seen)), path)


def trained(args: argparse.Namespace, fold: int) -> tuple[Dataset, Run]:
    """A fold, and the model that is trained on the others, once."""
    dataset = fold_of(args.work.resolve(), fold)
    config = few_trials(args.seed, "mobilenet", "word2vec")
    if args.quick:
        config = replace(config, training=replace(config.training, optim=replace(config.training.optim, steps=60)))
    out = args.work.resolve() / f"object2vec-{'quick-' if args.quick else ''}{args.seed}-fold{fold}"
    return dataset, Run.train(dataset, out, config)


def main() -> None:
    args = arguments(__doc__)
    records = []
    for fold in range(1, (2 if args.quick else NUM_FOLDS) + 1):
        dataset, run = trained(args, fold)
        records += run.evaluate(dataset, run.path / "scores", seed=args.seed)
    folds = summary((r for r in records if r.subject != "mean" and r.roi is None), dataset="object2vec, nine folds")
    claims = []
    for direction, metric in FIGURES.items():
        for r in folds:
            if (r.direction, r.metric) == (direction, metric) and r.estimator != "sample":
                name = f"{direction} {metric}"
                claims.append(Claim(name, r.value, "", "ridge", r.baseline))
                claims.append(Claim(f"{name}, floor", r.floor, ""))
                claims.append(Claim(f"{name}, p", r.p, "", bar=0.01, at_most=True))
    write(claims, args.out)


if __name__ == "__main__":
    main()
