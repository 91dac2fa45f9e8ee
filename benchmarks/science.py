"""One model of a dataset against a specialist for each direction, on held-out stimuli, in one run.

Specialists: ridge with a penalty for each target from the features that the model reads, a subject at a time; banded
ridge over all feature spaces where there are several; ridge to features and the nearest training response for what is
decoded. The model's linear draft stands beside it alone, so that what the transformer adds is seen. Three parts: six
sessions of macaque V4, the simulated cortex, nine folds of object2vec.
python benchmarks/science.py --out benchmarks/results/science.json [--v4] [--simulated] [--object2vec] [--quick]
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import object2vec
import torch
import v4
from himalaya.kernel_ridge import MultipleKernelRidgeCV
from jaxtyping import Float
from records import Claim, arguments, write

from brainjanus import Dataset, Run
from brainjanus.core.ridge import fit_ridge
from brainjanus.demo import demo
from brainjanus.evaluate.baselines import TEXT_FEATURES, BagOfWords, linear_baseline
from brainjanus.evaluate.brain import voxel_r
from brainjanus.evaluate.image import two_way_scores
from brainjanus.generate import GenerationConfig
from brainjanus.model.draft import KINDS
from brainjanus.run import condition, predict
from brainjanus.tokenizers.vision import ENCODERS, vision_encoder
from brainjanus.train.codes import features_of

MEAN = GenerationConfig(estimate="mean")
SEEN_AS = "wavelet"  # features by which decoded pictures are compared with those that were seen
PARTS = ("v4", "simulated", "object2vec")


# N stimuli, V sites, F features
def alike(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Correlation of each row of one with each of the other."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (a, b))
    return a @ b.T


def top(similar: Float[np.ndarray, "n m"], right: Sequence[int], k: int = 1) -> float:
    """Share of rows whose right column is among the k most similar."""
    own = similar[np.arange(len(similar)), right]
    return float(np.mean((similar > own[:, None]).sum(axis=1) < k))


def two_versus_two(similar: Float[np.ndarray, "n n"]) -> float:
    """How often two are matched better as they belong than exchanged (Mitchell et al. 2008)."""
    own = np.diag(similar)
    right = own[:, None] + own[None] > similar + similar.T
    return float(right[np.triu_indices(len(similar), 1)].mean())


def draft_alone(run: Run) -> Run:
    """The same run, in which nothing of what the model adds to its drafts is believed."""
    other = Run.open(run.path)
    assert other.checkpoint.drafts is not None
    for subject in other.checkpoint.tokenizers.brain.subjects:
        for kind in KINDS:
            other.checkpoint.drafts.trust(subject).of(kind).fill_(0)
    return other


def expected(run: Run, dataset: Dataset, subject: str, given: str) -> Float[np.ndarray, "n v"]:
    """The responses that are expected to all test stimuli; with captions, the mean over those of a stimulus."""
    if given != "image+text":
        found = predict(run.checkpoint, dataset, f"{given}->brain", subject, MEAN).values  # type: ignore[arg-type]
        return np.asarray(found)
    ids = dataset.averages(subject, "test").stimulus_ids
    pictures = condition(run.checkpoint, dataset, "image", ids)
    groups = [dataset.captions(stimulus) for stimulus in ids]
    rows = np.repeat(np.arange(len(ids)), [len(group) for group in groups])
    shown = {"image": torch.as_tensor(pictures)[rows], "text": [caption for group in groups for caption in group]}
    made = np.asarray(run.generate(shown, f"brain:{subject}", MEAN))
    return np.stack([made[rows == row].mean(axis=0) for row in range(len(ids))])


def spaces_of(dataset: Dataset, given: str, ids: Sequence[str], train: Sequence[str]) -> list[Float[np.ndarray, "n f"]]:
    """Each feature space of the stimuli: of pictures the built-in and the stored ones, of captions content words."""
    found = []
    if "image" in given:
        stored = [name for name in dataset.feature_names if name not in TEXT_FEATURES]
        found += [flat(dataset, name, ids) for name in sorted({*ENCODERS, *stored})]
    if "text" in given:
        bag = BagOfWords([dataset.captions(stimulus) for stimulus in train])
        found.append(bag.encode([dataset.captions(stimulus) for stimulus in ids]))
    return found


def banded(dataset: Dataset, subject: str, given: str, seed: int) -> Float[np.ndarray, "n v"] | None:
    """What banded ridge over all feature spaces expects of the test stimuli; None where there is one space alone.

    Source: Dupre la Tour et al. 2022 (himalaya), random search over the weights of spaces, 5-fold cross-validation.
    """
    train, test = dataset.averages(subject, "train"), dataset.averages(subject, "test")
    pairs = zip(
        *(spaces_of(dataset, given, one.stimulus_ids, train.stimulus_ids) for one in (train, test)), strict=True
    )
    kernels = []
    for x, y in pairs:
        mean = x.mean(axis=0)
        own, other = (x - mean) @ (x - mean).T, (y - mean) @ (x - mean).T
        scale = np.trace(own) / len(own)
        kernels.append((own / scale, other / scale))
    if len(kernels) < 2:
        return None
    search = {"n_iter": 10, "alphas": np.logspace(-2, 4, 13), "n_targets_batch": 500, "progress_bar": False}
    model = MultipleKernelRidgeCV(
        kernels="precomputed", solver="random_search", solver_params=search, cv=5, random_state=seed
    )
    offset = train.responses.mean(axis=0)
    model.fit(np.stack([own for own, _ in kernels]), train.responses - offset)
    return np.asarray(model.predict(np.stack([other for _, other in kernels]))) + offset


def encoding(
    name: str, run: Run, dataset: Dataset, given: str, bar: float, top_bar: float | None = None
) -> list[Claim]:
    """Voxel r and identification of what is expected, of ridge, of banded ridge where there are several feature spaces,
    and of the draft alone; mean over subjects."""
    alone = draft_alone(run)
    figures: dict[str, list[float]] = {}
    for subject in dataset.subjects:
        averages = dataset.averages(subject, "test")
        made = {"model": expected(run, dataset, subject, given), "draft": expected(alone, dataset, subject, given)}
        if given != "image+text":
            direction = f"{given}->brain"
            made["ridge"] = linear_baseline(dataset, subject, direction, averages.stimulus_ids)  # type: ignore[arg-type,assignment]
        several = banded(dataset, subject, given, run.checkpoint.provenance.get("seed", 0))
        if several is not None:
            made["banded ridge"] = several
        for which, values in made.items():
            figures.setdefault(f"{which} r", []).append(voxel_r(averages.responses, values).mean())
            found = top(alike(averages.responses, values), range(len(values)))
            figures.setdefault(f"{which} top-1", []).append(found)
    mean = {which: float(np.mean(values)) for which, values in figures.items()}
    claims = []
    for metric, least in (("r", bar), ("top-1", top_bar)):
        title = f"{name}, {given}->brain {metric}"
        for specialist in (one for one in ("ridge", "banded ridge") if f"{one} {metric}" in mean):
            value = mean[f"{specialist} {metric}"]
            claims.append(Claim(title, mean[f"model {metric}"], "", specialist, value, least))
            claims.append(Claim(f"{title}, linear draft alone", mean[f"draft {metric}"], "", specialist, value))
    return claims


def identified(name: str, run: Run, dataset: Dataset, feature: str) -> list[Claim]:
    """Which test picture was seen, from the response, in two ways.

    By expected responses (Kay et al. 2008): the picture to which the model expects the response most like the measured
    one; ridge from features does the same. By decoding: the picture whose features SEEN_AS are most like those of the
    decoded one; ridge decodes these features. Beside them ridge from the response to `feature`, and the features of the
    nearest training response.
    """
    scores: dict[str, list[float]] = {}
    for subject in dataset.subjects:
        train, test = dataset.averages(subject, "train"), dataset.averages(subject, "test")
        near = alike(test.responses, train.responses).argmax(axis=1)
        linear = linear_baseline(dataset, subject, "image->brain", test.stimulus_ids)
        pictures = predict(run.checkpoint, dataset, "brain->image", subject, MEAN).values
        tables = {
            "expected responses": alike(test.responses, expected(run, dataset, subject, "image")),
            "ridge's expected responses": alike(test.responses, np.asarray(linear)),
        }
        for kind in (feature, SEEN_AS):
            x, y = (flat(dataset, kind, one.stimulus_ids) for one in (train, test))
            centre, spread = x.mean(axis=0), x.std(axis=0) + 1e-6
            x, y = (x - centre) / spread, (y - centre) / spread
            tables[f"ridge to {kind}"] = alike(fit_ridge(train.responses, x).predict(test.responses), y)
            tables[f"nearest response's {kind}"] = alike(x[near], y)
            if kind == SEEN_AS:
                pixels = torch.as_tensor(np.asarray(pictures)).permute(0, 3, 1, 2).float()
                seen = vision_encoder(SEEN_AS)(pixels).flatten(1).numpy()
                tables["decoded pictures"] = alike((seen - centre) / spread, y)
        for which, table in tables.items():
            scores.setdefault(f"{which} top-1", []).append(top(table, range(len(table))))
            scores.setdefault(f"{which} two-way", []).append(two_way_scores(table.T).diagonal().mean())
    mean = {which: float(np.mean(values)) for which, values in scores.items()}
    claims = []
    for metric in ("top-1", "two-way"):
        for which, against, bar in (
            ("expected responses", f"ridge to {feature}", 1.0),
            ("expected responses", "ridge's expected responses", None),
            ("decoded pictures", f"ridge to {SEEN_AS}", 1.0),
            (f"nearest response's {feature}", f"ridge to {feature}", None),
        ):
            title = f"{name}, brain->image identification {metric} by {which}"
            claims.append(Claim(title, mean[f"{which} {metric}"], "", against, mean[f"{against} {metric}"], bar))
    return claims


def flat(dataset: Dataset, feature: str, ids: Sequence[str]) -> Float[np.ndarray, "n f"]:
    return features_of(dataset, feature, list(ids)).numpy().astype(np.float32).reshape(len(ids), -1)


def decoding(name: str, records: Sequence[dict], metrics: Sequence[tuple[str, str, str]]) -> list[Claim]:
    """What `evaluate` scored, mean over subjects, against ridge."""
    claims = []
    for r in records:
        key = (r["direction"], r["metric"], r["estimator"])
        if key in metrics and r["subject"] == "mean" and r["roi"] is None:
            title = f"{name}, {r['direction']} {r['metric']} ({r['estimator']})"
            claims.append(Claim(title, r["value"], "", "ridge", r["baseline"], 1.0))
    return claims


def of_v4(args: argparse.Namespace) -> list[Claim]:
    dataset, config, out = v4.prepared(args)
    run = Run.train(dataset, out, config)
    return encoding("V4", run, dataset, "image", 1.1, 1.2) + identified("V4", run, dataset, "mobilenet")


def simulated(args: argparse.Namespace) -> Path:
    """The folder of the demo, which is run where it is not there yet."""
    out = args.work / f"simulated_cortex-{'quick-' if args.quick else ''}{args.seed}"
    if not (out / "report.html").exists():
        demo(out, seed=args.seed, quick=args.quick)
    return out


def of_simulated(args: argparse.Namespace) -> list[Claim]:
    out = simulated(args)
    run, dataset, name = Run.open(out / "run"), Dataset.open(out / "study" / "dataset"), "simulated"
    claims = encoding(name, run, dataset, "image", 1.0) + encoding(name, run, dataset, "text", 1.0)
    records = json.loads((out / "scores.json").read_text())
    chosen = [("brain->text", "content_f1", "greedy"), ("brain->image", "pixcorr", "mean")]
    claims += decoding(name, records, [*chosen, ("brain->image", "two_way", "mean")])
    both = encoding(name, run, dataset, "image+text", 1.0)
    ceiling = next(
        r["ceiling"] for r in records if r["metric"] == "voxel_r" and r["subject"] == "mean" and r["ceiling"]
    )
    made = next(claim.value for claim in both if claim.name.endswith(" r"))
    return [*claims, *both, Claim(f"{name}, image+text->brain r of ceiling", made, "", "noise ceiling", ceiling, 0.9)]


def of_object2vec(args: argparse.Namespace) -> list[Claim]:
    """Words are looked for among those of the fold (two against two), and among all 81 (top 5), by the responses that
    are expected to them; ridge decodes their features."""
    sums: dict[str, list[float]] = {}
    for fold in range(1, (2 if args.quick else object2vec.NUM_FOLDS) + 1):
        dataset, run = object2vec.trained(args, fold)
        alone, (subject,) = draft_alone(run), dataset.subjects
        test, train = dataset.averages(subject, "test"), dataset.averages(subject, "train")
        words = [*test.stimulus_ids, *train.stimulus_ids]
        for given in ("image", "text"):
            ridge = linear_baseline(dataset, subject, f"{given}->brain", test.stimulus_ids)  # type: ignore[arg-type]
            for which, made in (
                ("model", expected(run, dataset, subject, given)),
                ("draft", expected(alone, dataset, subject, given)),
                ("ridge", ridge),
            ):
                sums.setdefault(f"{given} {which}", []).append(voxel_r(test.responses, np.asarray(made)).mean())
        said = torch.from_numpy(dataset.features("word2vec", words).astype(np.float32))
        for which, model in (("model", run), ("draft", alone)):
            answers = np.asarray(model.generate({"text": said}, f"brain:{subject}", MEAN))
            compared(sums, f"words {which}", alike(test.responses, answers))
        x, y = (flat(dataset, "word2vec", one.stimulus_ids) for one in (train, test))
        decoded = fit_ridge(train.responses, x).predict(test.responses)
        compared(sums, "words ridge", alike(decoded, np.concatenate([y, x])))
    mean = {which: float(np.mean(values)) for which, values in sums.items()}
    claims = []
    for figure, title in (
        ("image {}", "image->brain r"),
        ("text {}", "text->brain r"),
        ("words {} two-versus-two", "brain->text two-versus-two"),
        ("words {} top-5", "brain->text top-5 of 81"),
    ):
        ridge = mean[figure.format("ridge")]
        claims.append(Claim(f"object2vec, {title}", mean[figure.format("model")], "", "ridge", ridge, 1.0))
        claims.append(Claim(f"object2vec, {title}, draft alone", mean[figure.format("draft")], "", "ridge", ridge))
    return claims


def compared(sums: dict[str, list[float]], which: str, table: Float[np.ndarray, "n m"]) -> None:
    """The first columns are the words of the test stimuli."""
    sums.setdefault(f"{which} two-versus-two", []).append(two_versus_two(table[:, : len(table)]))
    sums.setdefault(f"{which} top-5", []).append(top(table, range(len(table)), 5))


def main() -> None:
    args = arguments(
        __doc__, flags={part: f"the part of {part} alone, or with others that are named" for part in PARTS}
    )
    parts: dict[str, Callable[[argparse.Namespace], list[Claim]]] = {
        "v4": of_v4,
        "simulated": of_simulated,
        "object2vec": of_object2vec,
    }
    named = [part for part in PARTS if getattr(args, part)] or PARTS
    claims: list[Claim] = []
    for part in named:
        claims += parts[part](args)
    write(claims, Path(args.out))


if __name__ == "__main__":
    main()
