"""Scores of predicted brain activity at the size of NSD: 1,000 stimuli x 16,000 sites (--quick: 200 x 2,000).

Seconds and peak memory of all figures (voxel r, R2, pattern r, MSE, cosine, identification), of their score matrices,
and of 1,000 bootstrap samples of stimuli. Ratios are taken in one run: to the naive way, and to the time that the
machine's own matrix product takes for the same number of operations.
python benchmarks/evaluation.py --out benchmarks/results/evaluation.json [--quick]
"""

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from himalaya.scoring import correlation_score, r2_score
from records import Claim, arguments, write
from scipy.stats import pearsonr

from brainjanus.evaluate import brain

GIB = 2**30
REPEATS = 3


def seconds(function: Callable[[], Any], repeats: int = REPEATS) -> float:
    """The least of several runs."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return min(taken)


def peak_gib(function: Callable[[], Any]) -> float:
    """The most memory that arrays made in a call held at one time; what goes in is not counted."""
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / GIB


def seconds_per_flop(dtype: type) -> float:
    """Of the machine's own product of 2,048 x 2,048 matrices."""
    a = np.random.default_rng(0).standard_normal((2048, 2048)).astype(dtype)
    return seconds(lambda: a @ a, 10) / (2 * 2048**3)


def main() -> None:
    args = arguments(__doc__)
    num, sites, samples = (200, 2000, 100) if args.quick else (1000, 16000, 1000)
    rng = np.random.default_rng(args.seed)
    measured = rng.standard_normal((num, sites), dtype=np.float32)
    predicted = 0.3 * measured + rng.standard_normal((num, sites), dtype=np.float32)
    ceiling = rng.uniform(0.05, 0.9, sites)
    groups = {None: np.ones(sites, bool)} | {f"roi{k}": np.arange(sites) % 12 == k for k in range(12)}
    resamples = rng.integers(0, num, (samples, num))
    counts = np.stack([np.bincount(drawn, minlength=num) for drawn in resamples])

    def figures() -> None:
        for function in (brain.voxel_r, brain.r2, brain.pattern_r, brain.mse, brain.cosine):
            function(measured, predicted)

    def matrices() -> None:
        weights = brain.ceiling_weights(ceiling)
        brain.voxel_scores(measured, predicted)
        brain.voxel_scores(measured, predicted, weights)
        brain.r2_scores(measured, predicted)
        brain.identification_ranks(brain.all_pattern_scores(measured, predicted).r)

    def bootstrap() -> None:
        brain.resampled(measured, predicted, counts, groups, ceiling)

    def pearson_of_each_site() -> None:
        for site in range(sites // 10):
            pearsonr(measured[:, site], predicted[:, site])

    def naive_bootstrap() -> None:
        for drawn in resamples[:10]:
            correlation_score(measured[drawn], predicted[drawn])
            r2_score(measured[drawn], predicted[drawn])

    def of(name: str, value: float, reference: str, by: float, bar: float | None = None) -> Claim:
        return Claim(name, value, "s", reference, by, bar, at_most=True)

    size = f"{num} stimuli x {sites} sites"
    before = seconds_per_flop(np.float64), seconds_per_flop(np.float32)
    of_figures, of_matrices, of_bootstrap = (seconds(function) for function in (figures, matrices, bootstrap))
    of_r = seconds(lambda: brain.voxel_r(measured, predicted))
    of_pattern = seconds(lambda: brain.pattern_scores(measured, predicted))
    after = seconds_per_flop(np.float64), seconds_per_flop(np.float32)
    double, single = (min(pair) for pair in zip(before, after, strict=True))  # the machine may be busy at either time
    product = 2.0 * num * num * sites
    claims = [
        Claim(f"everything, {size}", of_figures + of_matrices + of_bootstrap, "s", bar=10, at_most=True),
        of("voxel r", of_r, "scipy.stats.pearsonr", 10 * seconds(pearson_of_each_site, 1), 0.2),
        of("voxel r ", of_r, "himalaya correlation_score", seconds(lambda: correlation_score(measured, predicted)), 2),
        of("pattern r matrix", of_pattern, "numpy.corrcoef", seconds(lambda: np.corrcoef(measured, predicted)), 1),
        of("four score matrices", of_matrices, "the products alone", 4 * product * double, 4),
        of(
            f"{samples} resamples of r and R2", of_bootstrap, "himalaya on each resample",
            seconds(naive_bootstrap, 1) * samples / 10, 0.1,
        ),
        of(
            f"{samples} resamples of r and R2 ", of_bootstrap, "the products alone",
            5 * 2.0 * samples * num * sites * single, 4,
        ),
    ]  # fmt: skip
    arrays_gib = (measured.nbytes + predicted.nbytes) / GIB
    for name, function in (("figures", figures), ("score matrices", matrices), ("bootstrap", bootstrap)):
        peak = peak_gib(function)
        claims.append(Claim(f"memory: {name}", peak, "GiB", "the two arrays", arrays_gib, 2, at_most=True))
    naive = peak_gib(lambda: np.corrcoef(measured, predicted))
    claims.append(Claim("memory: numpy.corrcoef", naive, "GiB", "the two arrays", arrays_gib))
    write(claims, args.out)


if __name__ == "__main__":
    main()
