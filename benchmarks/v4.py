"""Real recordings: six sessions of macaque V4 (spike counts, not fMRI), one model for all of them.

Features come from the frozen MobileNetV2 that lies beside the recordings. Split by picture, 20 % held out.
python benchmarks/v4.py --out benchmarks/results/v4.json [--seed 1] [--quick]
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from records import REAL_DATA, Claim, arguments, write

from brainjanus import Dataset, PrepareConfig, Run, RunConfig, prepare
from brainjanus.recipes import neurons

SPEC = Path(__file__).parents[1] / "examples" / "v4_cowley.toml"


def features(work: Path) -> None:
    """MobileNetV2 features of every session's pictures, once."""
    tool = REAL_DATA.parent / "tools" / "mobilenet_features.py"
    for archive in sorted((REAL_DATA / "v4_cowley").glob("images_*.zip")):
        target = work / "v4" / f"{archive.stem.removeprefix('images_')}.npz"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([sys.executable, tool, archive, target], check=True)


def prepared(args: argparse.Namespace) -> tuple[Dataset, RunConfig, Path]:
    """The dataset, the settings of its model, and the folder of its run."""
    work = args.work.resolve()
    features(work)
    os.environ |= {"BRAINJANUS_REAL_DATA": str(REAL_DATA.resolve()), "BRAINJANUS_WORK": str(work)}
    path = work / f"v4-{args.seed}"
    if not path.exists():
        prepare(replace(PrepareConfig.load(SPEC), seed=args.seed), path)
    config = neurons(args.seed, "mobilenet")
    if args.quick:
        config = replace(
            config,
            brain_training=replace(config.brain_training, steps=100),
            image_training=replace(config.image_training, steps=100),
            training=replace(config.training, optim=replace(config.training.optim, steps=100)),
        )
    return Dataset.open(path), config, work / f"v4-{'quick-' if args.quick else ''}{args.seed}-run"


def main() -> None:
    args = arguments(__doc__)
    dataset, config, out = prepared(args)
    Run.train(dataset, out, config).evaluate(dataset, out / "scores", seed=args.seed)
    records = json.loads((out / "scores" / "scores.json").read_text())
    claims = []
    for r in records:
        if r["roi"] is None and r["metric"] in ("voxel_r", "two_way", "pixcorr", "identification_top1"):
            name = f"{r['direction']} {r['metric']} ({r['estimator']}, {r['subject']})"
            mean = r["subject"] == "mean" and r["estimator"] != "sample"
            claims.append(
                Claim(name, r["value"], "", "ridge", r["baseline"], 0.9 if mean and r["metric"] == "voxel_r" else None)
            )
            if mean and r["metric"] == "two_way":
                claims.append(Claim(f"{name} itself", r["value"], "", bar=0.80))
    write(claims, args.out)


if __name__ == "__main__":
    main()
