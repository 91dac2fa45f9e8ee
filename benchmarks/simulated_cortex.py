"""The main job on the simulated cortex: all four directions on held-out stimuli, mean over subjects.

python benchmarks/simulated_cortex.py --out benchmarks/results/simulated_cortex.json [--seed 1] [--quick]
"""

import json
import time

from records import Claim, arguments, write

from brainjanus.demo import demo

LEAST_OF_RIDGE = 0.9


def main() -> None:
    args = arguments(__doc__)
    start = time.monotonic()
    out = args.work / f"simulated_cortex-{'quick-' if args.quick else ''}{args.seed}"
    demo(out, seed=args.seed, quick=args.quick)
    minutes = (time.monotonic() - start) / 60
    records = json.loads((out / "scores.json").read_text())

    def figure(direction: str, metric: str, estimator: str) -> dict:
        key = {"direction": direction, "metric": metric, "estimator": estimator, "subject": "mean", "roi": None}
        return next(r for r in records if all(r[k] == v for k, v in key.items()))

    def of_ridge(direction: str, metric: str, estimator: str) -> Claim:
        r = figure(direction, metric, estimator)
        return Claim(f"{direction} {metric} ({estimator})", r["value"], "", "ridge", r["baseline"], LEAST_OF_RIDGE)

    f1, two_way = figure("brain->text", "content_f1", "greedy"), figure("brain->image", "two_way", "mean")
    claims = [
        Claim("brain->text content_f1 (greedy)", f1["value"], "", bar=0.70),
        Claim("brain->image two_way (mean)", two_way["value"], "", bar=0.85),
        of_ridge("brain->image", "pixcorr", "mean"),
        of_ridge("image->brain", "voxel_r", "mean"),
        of_ridge("text->brain", "voxel_r", "mean"),
        Claim("whole job", minutes, "min", bar=3 if args.quick else 15, at_most=True),
    ]
    write(claims, args.out)


if __name__ == "__main__":
    main()
