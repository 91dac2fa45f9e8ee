"""Any to any: what several conditions, other brains, parts of a brain and likelihoods give, beside linear models.

On the simulated cortex (the run of benchmarks/simulated_cortex.py, trained here if it is not there) or, with --v4, on
six sessions of macaque V4 (the run of benchmarks/v4.py; spike counts, not fMRI). Held-out stimuli, means over
subjects.
python benchmarks/any_to_any.py --out benchmarks/results/any-to-any.json [--v4] [--seed 1] [--quick]
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from records import Claim, arguments, write

from brainjanus import Dataset, SimulationConfig, recipes, simulate
from brainjanus.core.ridge import Ridge, fit_ridge
from brainjanus.evaluate.baselines import linear_baseline
from brainjanus.generate import GenerationConfig, estimate, generate, score_candidates
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.run import condition, train

SAMPLES = 16
RESAMPLES = 200  # of the stimuli, for the interval of a difference
CANDIDATES = 100  # held-out pictures that a response is identified among
NAN = float("nan")


def r(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Correlation of each site over stimuli; 0 for a constant one."""
    a, b = (np.asarray(x, np.float64) - np.asarray(x, np.float64).mean(axis=0) for x in (one, other))
    return (a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0) + 1e-12)


def top1(table: np.ndarray) -> float:
    """How often the largest entry of a column is on the diagonal."""
    return float((table.argmax(axis=0) == np.arange(table.shape[1])).mean())


class Held:
    """One subject's held-out stimuli: ids, mean responses, and what the model is shown of them."""

    def __init__(self, checkpoint: Checkpoint, dataset: Dataset, subject: str, most: int | None):
        self.checkpoint, self.dataset, self.subject = checkpoint, dataset, subject
        self.target = f"brain:{subject}"
        self.ids, responses, repeats = dataset.averages(subject, "test")
        self.num_repeats = round(float(np.mean(repeats)))
        self.ids, self.measured = self.ids[:most], torch.from_numpy(responses[:most])
        self.train_ids, self.train = dataset.averages(subject, "train")[:2]
        self.image = condition(checkpoint, dataset, "image", self.ids)

    def expected(self, given: dict[str, object], config: GenerationConfig | None = None) -> np.ndarray:
        return generate(self.checkpoint, given, self.target, config).numpy()

    def over_captions(self, *also: str) -> np.ndarray:
        """The response expected to each caption (and what else was seen), averaged over the captions of a stimulus."""
        captions = [self.dataset.captions(stimulus) for stimulus in self.ids]
        owner = np.repeat(np.arange(len(self.ids)), [len(group) for group in captions])
        given: dict[str, object] = {"text": [caption for group in captions for caption in group]}
        if "image" in also:
            given = {"image": self.image[owner], **given}
        rows = self.expected(given)
        return np.stack([rows[owner == number].mean(axis=0) for number in range(len(self.ids))])


def conditions_together(held: Sequence[Held], seed: int) -> list[Claim]:
    """A picture and a caption against the better of the two alone, between the shuffled floor and the ceiling."""
    made: dict[str, list[np.ndarray]] = {"image": [], "text": [], "image+text": []}
    linear: dict[str, list[float]] = {"image": [], "text": []}
    ceiling = []
    for h in held:
        made["image"].append(h.expected({"image": h.image}))
        made["text"].append(h.over_captions())
        made["image+text"].append(h.over_captions("image"))
        for name in linear:
            predicted = linear_baseline(h.dataset, h.subject, f"{name}->brain", h.ids)
            linear[name].append(float(r(predicted, h.measured).mean()))
        known = h.dataset.space(h.subject).noise_ceiling(h.num_repeats)
        ceiling.append(np.nan if known is None else float(known.mean()))

    def mean_r(name: str, rows: list[np.ndarray] | None = None, shuffled: bool = False) -> float:
        values = []
        for number, h in enumerate(held):
            which = np.arange(len(h.ids)) if rows is None else rows[number]
            seen = np.roll(which, 1) if shuffled else which
            values.append(r(made[name][number][which], h.measured[seen]).mean())
        return float(np.mean(values))

    scores = {name: mean_r(name) for name in made}
    better = "image" if scores["image"] > scores["text"] else "text"
    rng = np.random.default_rng(seed)
    gains = []
    for _ in range(RESAMPLES):
        rows = [rng.integers(len(h.ids), size=len(h.ids)) for h in held]
        gains.append(mean_r("image+text", rows) - mean_r(better, rows))
    low, high = np.quantile(gains, (0.025, 0.975))
    return [
        *(
            Claim(f"{n}->brain voxel r", scores[n], "", "ridge (better features)", float(np.mean(linear[n])))
            for n in linear
        ),
        Claim(
            "image+text->brain voxel r", scores["image+text"], "", f"{better} alone, the better", scores[better], 1.0
        ),
        Claim("  what both gain over one, least of 95 % (bootstrap)", float(low), ""),
        Claim("  what both gain over one, most of 95 %", float(high), ""),
        Claim("  floor: responses to other stimuli", mean_r("image+text", shuffled=True), ""),
        Claim("  noise ceiling", float(np.nanmean(ceiling)), ""),
    ]


def between_brains(held: Sequence[Held], paired: dict[tuple[str, str], Ridge]) -> list[Claim]:
    """From each subject to each other, beside ridge on half of the held-out stimuli, judged on the other half.

    paired: ridge that was fitted to as many pairs as there are training stimuli, where such were made.
    """
    model, few, drafts, strict, reference = [], [], [], [], []
    for a in held:
        for b in (b for b in held if b is not a):
            shared = [stimulus for stimulus in a.ids if stimulus in b.ids]
            if len(shared) < 30 or (a.subject, b.subject) not in a.checkpoint.drafts.pairs:
                continue
            x = a.measured[[a.ids.index(stimulus) for stimulus in shared]]
            y = b.measured[[b.ids.index(stimulus) for stimulus in shared]].numpy()
            predicted = b.expected({a.target: x})
            draft = a.checkpoint.drafts.carried(x, a.subject, b.subject).numpy()
            first = np.arange(len(shared)) % 2 == 0
            for fit, judge in ((first, ~first), (~first, first)):
                ridge = fit_ridge(x[fit].numpy(), y[fit]).predict(x[judge].numpy())
                few.append(r(ridge, y[judge]).mean())
                model.append(r(predicted[judge], y[judge]).mean())
            drafts.append(r(draft, y).mean())
            if (a.subject, b.subject) in paired:
                strict.append(r(predicted, y).mean())
                reference.append(r(paired[a.subject, b.subject].predict(x.numpy()), y).mean())
    if not model:
        print("brain->brain: no two subjects saw 30 held-out stimuli both", file=sys.stderr)
        return []
    known = "ridge on as many true pairs as training stimuli"
    few_known = "ridge on half of the test stimuli"
    bar = None if strict else 0.95
    claims = [Claim("brain->brain voxel r, half of the test stimuli", np.mean(model), "", few_known, np.mean(few), bar)]
    if strict:
        claims.append(Claim("brain->brain voxel r", np.mean(strict), "", known, np.mean(reference), 0.95))
    return [*claims, Claim("  its linear draft alone", np.mean(drafts), "")]


def ridge_on_true_pairs(work: Path, seed: int, num_train: int, num_test: int) -> dict[tuple[str, str], Ridge]:
    """The same cortices in a study in which all subjects see the same training pictures: ridge from brain to brain."""
    path = work / f"all-shared-{seed}-{num_train}"
    config = SimulationConfig(num_train=num_train, num_test=num_test, num_shared=num_train, seed=seed)
    dataset = Dataset.open(path / "dataset") if (path / "dataset").exists() else simulate(path, config)
    means = {subject: dataset.averages(subject, "train").responses for subject in dataset.subjects}
    return {(a, b): fit_ridge(means[a], means[b]) for a in means for b in means if a != b}


def inpainting(held: Sequence[Held], seed: int) -> list[Claim]:
    """Each region (or a random half of the sites) from all others, beside ridge from the same sites."""
    model, ridge, drafts = [], [], []
    for h in held:
        rois = list(h.dataset.space(h.subject).rois.values())
        if not rois:
            rng = np.random.default_rng(seed)
            rois = [rng.permutation(h.measured.shape[1]) % 2 == half for half in (0, 1)]
        for hidden in (mask for mask in rois if 0 < mask.sum() < len(mask)):
            part = h.measured.masked_fill(torch.from_numpy(hidden), NAN)
            made = h.expected({f"part:{h.subject}": part})[:, hidden]
            truth = h.measured[:, hidden].numpy()
            model.append(r(made, truth).mean())
            drafts.append(r(h.checkpoint.drafts.complete(part, h.subject)[:, hidden].numpy(), truth).mean())
            linear = fit_ridge(h.train[:, ~hidden], h.train[:, hidden]).predict(h.measured[:, ~hidden].numpy())
            ridge.append(r(linear, truth).mean())
    return [
        Claim("part->rest voxel r", np.mean(model), "", "ridge from the same sites", np.mean(ridge), 1.0),
        Claim("  its linear draft alone", np.mean(drafts), ""),
    ]


def estimates(held: Sequence[Held], seed: int, samples: int) -> tuple[list[Claim], np.ndarray, np.ndarray]:
    """The expected response against one sample and means over samples; and how samples scatter.

    Returns the claims, and for each site the standard deviation of samples (with the noise of trials) and of repeats.
    """
    claims, drawn, took = [], {}, {}
    for name, config in {
        "one pass": GenerationConfig(),
        "one sample": GenerationConfig(estimate="sample", seed=seed),
        "mean of 8 samples": GenerationConfig(num_samples=8, seed=seed),
        f"mean of {2 * samples} samples": GenerationConfig(num_samples=2 * samples, seed=seed),
    }.items():
        start = time.perf_counter()
        drawn[name] = np.mean([r(h.expected({"image": h.image}, config), h.measured).mean() for h in held])
        took[name] = (time.perf_counter() - start) / sum(len(h.ids) for h in held) * 1000
    one = drawn["one sample"]
    claims.append(Claim("image->brain, mean in one pass, voxel r", drawn["one pass"], "", "one sample", one, 1.3))
    for name in list(drawn)[2:]:
        claims.append(Claim(f"image->brain, {name}, voxel r", drawn[name], "", "one pass", drawn["one pass"]))
        claims.append(Claim(f"  time a response, {name}", took[name], "ms", "one pass", took["one pass"]))
    spread, real = np.zeros(0), np.zeros(0)
    # between the interpolated quantiles of S draws of a distribution, a further draw lies less often than 90 % of times
    covered = 1 - 2 * (1 + 0.05 * (samples - 1)) / (samples + 1)
    for noise in (False, True):
        sampled, repeats, inside = [], [], []
        for h in held:
            config = GenerationConfig(estimate="sample", num_samples=samples, seed=seed, trial_noise=noise)
            made = estimate(h.checkpoint, {"image": h.image}, h.target, config).samples
            ids = np.array(h.dataset.trials(h.subject).stimulus_id)
            groups = [h.dataset.responses(h.subject, np.flatnonzero(ids == stimulus)) for stimulus in h.ids]
            many = [group for group in groups if len(group) > 1]
            if not many:
                continue
            sampled.append(made.var(dim=1).mean(dim=0).sqrt().numpy())
            repeats.append(np.sqrt(np.mean([group.var(axis=0, ddof=1) for group in many], axis=0)))
            low, high = made.quantile(0.05, dim=1), made.quantile(0.95, dim=1)
            first = torch.from_numpy(np.stack([group[0] for group in groups]))
            inside.append(float(((first >= low) & (first <= high)).float().mean()))
        if not sampled:
            return claims, spread, real
        spread, real = np.concatenate(sampled), np.concatenate(repeats)
        name = "samples with the noise of trials" if noise else "samples"
        known = "that of repeats", float(np.sqrt((real**2).mean()))
        claims += [
            Claim(f"standard deviation of {name}", float(np.sqrt((spread**2).mean())), "", *known),
            Claim("  over sites, correlation of the two", float(np.corrcoef(spread, real)[0, 1]), ""),
            Claim(
                "  single trials in the central 90 % of them", float(np.mean(inside)), "share", "if calibrated", covered
            ),
        ]
    return claims, spread, real


def identification(held: Sequence[Held]) -> list[Claim]:
    """Which of CANDIDATES held-out pictures was seen: by likelihood, and by correlation with the expected responses."""
    found: dict[str, list[float]] = {"codes in turn": [], "each code by itself": [], "correlation": []}
    for h in held:
        image, measured = h.image[:CANDIDATES], h.measured[:CANDIDATES]
        for name, one_pass in (("codes in turn", False), ("each code by itself", True)):
            table = score_candidates(h.checkpoint, {"image": image}, h.target, measured, one_pass=one_pass)
            found[name].append(top1(table.numpy()))
        predicted = h.expected({"image": image})
        centre = h.train.mean(axis=0)
        a, b = ((x - centre) / np.linalg.norm(x - centre, axis=1, keepdims=True) for x in (predicted, measured.numpy()))
        found["correlation"].append(top1(a @ b.T))
    chance = float(np.mean([1 / min(len(h.ids), CANDIDATES) for h in held]))
    by_correlation = float(np.mean(found["correlation"]))
    claims = [Claim("identification top-1, by correlation", by_correlation, "", "chance", chance)]
    for name in ("codes in turn", "each code by itself"):
        claims.append(
            Claim(
                f"identification top-1, by likelihood, {name}",
                float(np.mean(found[name])),
                "",
                "by correlation",
                by_correlation,
            )
        )
    return claims


def draw(spread: np.ndarray, truth: np.ndarray, path: Path, title: str) -> None:
    """Spread of samples against the spread over repeats, one point a site."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4.2, 4))
    axes.scatter(truth, spread, s=3, alpha=0.3, linewidths=0)
    most = float(max(truth.max(), spread.max())) * 1.05
    axes.plot([0, most], [0, most], "k--", linewidth=1, label="equal")
    axes.set(xlim=(0, most), ylim=(0, most), xlabel="over repeats (SD, z)", ylabel="over samples (SD, z)", title=title)
    axes.legend(loc="upper left", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def plain(claim: Claim) -> Claim:
    """With Python's numbers, which JSON can hold, in place of NumPy's."""
    known = claim.reference_value
    return replace(claim, value=float(claim.value), reference_value=None if known is None else float(known))


def main() -> None:
    args = arguments(__doc__, flags={"v4": "macaque V4 in place of the simulated cortex"})
    most, paired = (60 if args.quick else None), {}
    if args.v4:
        from v4 import prepared

        dataset, config, run = prepared(args)
    else:
        quick = "quick-" if args.quick else ""
        home = args.work / f"simulated_cortex-{quick}{args.seed}"
        size = (
            SimulationConfig(num_train=500, num_test=100, seed=args.seed)
            if args.quick
            else SimulationConfig(seed=args.seed)
        )
        study = home / "study"
        dataset = Dataset.open(study / "dataset") if (study / "dataset").exists() else simulate(study, size)
        config, run = (recipes.quick if args.quick else recipes.laptop)(args.seed), home / "run"
        paired = ridge_on_true_pairs(args.work, args.seed, size.num_train, size.num_test)
    checkpoint = train(dataset, run, config)
    held = [Held(checkpoint, dataset, subject, most) for subject in dataset.subjects]
    claims = []
    if checkpoint.tokenizers.text is not None:
        claims += conditions_together(held, args.seed)
    claims += between_brains(held, paired) + inpainting(held, args.seed)
    more, spread, truth = estimates(held, args.seed, 4 if args.quick else SAMPLES)
    claims += more + identification(held)
    if len(spread):
        draw(spread, truth, args.out.with_suffix(".png"), "V4, neurons" if args.v4 else "simulated cortex, sites")
    write([plain(claim) for claim in claims], args.out)


if __name__ == "__main__":
    main()
