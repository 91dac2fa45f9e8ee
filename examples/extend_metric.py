"""Two metrics of predicted responses: brainjanus evaluate RUN --extend extend_metric.py"""

import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

import brainjanus as bj
from brainjanus.evaluate.brain import pattern_r, voxel_r
from brainjanus.evaluate.record import Record, save_scores
from brainjanus.evaluate.reference import Reference


@bj.add_metric(
    "pattern_rho", "brain", "Pattern rho",
    "for each stimulus, Spearman's rho across sites of predicted and measured pattern; mean over stimuli.",
    definition="Spearman's rho across sites, mean over stimuli", bounds=(-1.0, 1.0),
)  # fmt: skip
def pattern_rho(measured: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """One score a stimulus [n], of responses [n, v]."""
    return pattern_r(rankdata(measured, axis=1), rankdata(predicted, axis=1))


def median_ceiling(reference: Reference) -> float | None:
    ceiling = reference.ceiling()  # of each site; None where nothing was repeated
    return None if ceiling is None else float(np.median(ceiling))


@bj.add_metric(
    "median_voxel_r", "brain", "Median voxel r",
    "for each site, Pearson's r across stimuli of predicted and measured response; median over sites.",
    definition="Pearson's r across stimuli, median over sites", bounds=(-1.0, 1.0),
    per_stimulus=False, ceiling=median_ceiling,
)  # fmt: skip
def median_voxel_r(measured: np.ndarray, predicted: np.ndarray) -> float:
    """One number for all stimuli: no stimulus has a share of its own in a median over sites."""
    return float(np.median(voxel_r(measured, predicted)))


def main(dataset: bj.Dataset, out: Path) -> list[Record]:
    """Score a prediction that needs no training: the response to the most alike picture of the training split."""
    who = dataset.subjects[0]
    seen, new = dataset.averages(who, "train"), dataset.averages(who, "test")
    old, shown = (dataset.images(some.stimulus_ids).astype(float) for some in (seen, new))
    nearest = [int(np.square(old - picture).mean(axis=(1, 2, 3)).argmin()) for picture in shown]
    predicted = bj.Predictions("image->brain", who, new.stimulus_ids, "nearest picture", seen.responses[nearest])
    records = bj.score(dataset, predicted, bj.ScoreOptions(permutations=200, resamples=200)).records
    save_scores(records, out / "scores.json")
    for r in records:
        if r.roi is None and r.metric in ("pattern_r", "pattern_rho", "voxel_r", "median_voxel_r"):
            print(r.metric, {name: getattr(r, name) for name in ("value", "floor", "baseline", "ceiling", "p")})
    return records


if __name__ == "__main__":
    out = Path(tempfile.mkdtemp())
    main(bj.simulate(out / "simulated", bj.SimulationConfig(1, 200, num_test=40)), out)
