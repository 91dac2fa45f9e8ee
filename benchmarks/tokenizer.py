"""The brain tokenizer: what it keeps at equal bits, on simulated and real recordings, and how fast it is.

Beside it stand the published tokenizer, bare patches without context, principal components rounded to levels, and the
Gaussian rate-distortion bound of the training covariance. Trainings are kept in --work and not repeated.
python benchmarks/tokenizer.py --out benchmarks/results/tokenizer.json [--quick]
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean

import object2vec
import torch
import v4
from records import REAL_DATA, Claim, arguments, write

from brainjanus import Dataset, PrepareConfig, prepare
from brainjanus.ablate import downstream_of
from brainjanus.data.simulate import SimulationConfig, simulate
from brainjanus.data.simulate_sensors import SensorSimulationConfig, simulate_sensors
from brainjanus.data.truth import noise_free
from brainjanus.evaluate.downstream import LinearProbe
from brainjanus.evaluate.tokenizer import TokenizerScores, score_tokenizer
from brainjanus.recipes import TokenizerRunConfig, tokenizer_fitting
from brainjanus.tokenize import train_tokenizer
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig, published
from brainjanus.tokenizers.conv import PaperConfig
from brainjanus.tokenizers.patch import PatchConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig
from brainjanus.train.alignment import AlignmentConfig
from brainjanus.train.codes import ENCODE_BATCH
from brainjanus.train.optim import OptimConfig, autocast_dtype, optimizers_of
from brainjanus.train.tokenizer import ObjectiveConfig, brain_losses

PLAIN = ObjectiveConfig(other_repeats=0.0, noise=0.0, consistency=0.0)  # give back the input, as published
BARE = PatchConfig(depth=0, reach="patch")
NSD_SITES = 15724


def config_of(sites: int, codes: int, optim: OptimConfig, *, dim: int = 3) -> TokenizerRunConfig:
    quantizer = QuantizerConfig(similarity="euclidean", num_codes=codes, dim=dim)
    return TokenizerRunConfig(tokenizer=BrainTokenizerConfig(patch_size=sites, quantizer=quantizer), training=optim)


def variants(base: TokenizerRunConfig, paper: OptimConfig) -> dict[str, TokenizerRunConfig]:
    """The tokenizers that are compared: of the same number of codes for the same sites."""
    tokenizer = base.tokenizer
    levels = tokenizer.patch_size.bit_length()
    published_one = published()
    as_published = replace(
        published_one,
        patch_size=tokenizer.patch_size,
        paper=PaperConfig(multipliers=published_one.paper.multipliers[:levels]),
        quantizer=replace(published_one.quantizer, num_codes=tokenizer.quantizer.num_codes),
    )
    return {
        "patch": base,
        "patch, target is the input": replace(base, objective=replace(base.objective, other_repeats=0.0)),
        "bare patches": replace(base, tokenizer=replace(tokenizer, patch=BARE), objective=PLAIN),
        "paper": replace(base, tokenizer=as_published, training=paper, objective=PLAIN),
    }


def trained(dataset: Dataset, folder: Path, configs: dict[str, TokenizerRunConfig]) -> dict[str, TokenizerScores]:
    truth = noise_free(dataset)
    scores = {}
    for name, config in configs.items():
        saved = train_tokenizer(dataset, folder / name.replace(", ", "-").replace(" ", "-"), config)
        scores[name] = score_tokenizer(saved.tokenizer, dataset, truth=truth)
    return scores


def figure(scores: TokenizerScores, metric: str, field: str = "value") -> float:
    record = scores.of(metric)
    assert record is not None
    return float(getattr(record, field))


def simulated(work: Path, quick: bool) -> list[Claim]:
    """Mean of three repeats, held out, mean over subjects; 64 sites a code, 128 codes."""
    study = work / ("tokenizer-study-quick" if quick else "simulated_cortex-0/study")
    if not (study / "dataset").exists():
        simulate(study, SimulationConfig(num_subjects=1, num_train=200, num_test=40) if quick else SimulationConfig())
    dataset = Dataset.open(study / "dataset")
    optim = OptimConfig(steps=20 if quick else 500, batch_size=16 if quick else 64, learning_rate=2e-3)
    paper = OptimConfig(
        optimizer="adamw", steps=3 if quick else 1000, batch_size=4 if quick else 32, learning_rate=1e-3
    )
    configs = variants(config_of(64, 128, optim), paper)
    if quick:
        configs["paper"] = replace(configs["paper"], tokenizer=small(configs["paper"].tokenizer))
    scores = trained(dataset, work / ("tokenizer-quick" if quick else "tokenizer"), configs)
    patch = scores["patch"]
    claims = []
    for metric in ("mse", "mse_truth"):
        what = f"simulated cortex, {metric}: patch"
        value = figure(patch, metric)
        bars = {"paper": 0.85, "bare patches": 0.60, "patch, target is the input": None}
        for name, bar in bars.items():
            claims.append(Claim(what, value, "", name, figure(scores[name], metric), bar, at_most=True))
        claims.append(Claim(what, value, "", "PCA + scalar", figure(patch, metric, "baseline"), 1.0, at_most=True))
        claims.append(Claim(what, value, "", "mean response", figure(patch, metric, "floor")))
    own = figure(patch, "voxel_r_truth", "ceiling")
    r = figure(patch, "voxel_r_truth")
    claims.append(Claim("simulated cortex, r with truth: patch", r, "", "measured average", own, 1.0))
    for name, score in scores.items():
        what = f"simulated cortex, {name}"
        claims.append(Claim(f"{what}: mse", figure(score, "mse"), "", "bound", figure(score, "mse", "bound")))
        pca = figure(score, "mse", "baseline")
        claims.append(Claim(f"{what}: mse", figure(score, "mse"), "", "PCA + scalar", pca))
        claims.append(Claim(f"{what}: r with truth", figure(score, "voxel_r_truth"), "", "measured average", own))
        for metric in ("bits", "used", "agreement"):
            claims.append(Claim(f"{what}: {metric}", figure(score, metric), ""))
    claims += [
        Claim("simulated cortex, patch: codes kept", figure(patch, "agreement"), "", bar=0.95),
        Claim("simulated cortex, PCA + scalar: r with truth", figure(patch, "voxel_r_truth", "baseline"), ""),
        Claim(
            "distance within a token",
            figure(patch, "patch_mm"),
            "mm",
            "storage order",
            figure(patch, "patch_mm", "floor"),
            0.5,
            at_most=True,
        ),
    ]
    for seed in range(1 if quick else 5):  # at the defaults
        base = tokenizer_fitting(dataset, seed)
        base = replace(base, training=optim) if quick else base
        folder = work / f"tokenizer-default{'-quick' if quick else ''}-{seed}"
        score = trained(dataset, folder, {"patch": base})["patch"]
        for metric, bar in (("used", 0.9), ("agreement", 0.95), ("perplexity", None), ("mse", None)):
            claims.append(Claim(f"defaults, seed {seed}: {metric}", figure(score, metric), "", bar=bar))
    return claims


def alignment(work: Path, quick: bool) -> list[Claim]:
    """Linear decoding and encoding of what the codes keep, with the contrastive loss on, against off; mean subjects."""
    study = work / ("tokenizer-study-quick" if quick else "simulated_cortex-0/study")
    dataset = Dataset.open(study / "dataset")
    probes = {subject: LinearProbe(dataset, subject) for subject in dataset.subjects}
    optim = OptimConfig(steps=20 if quick else 500, batch_size=16 if quick else 64, learning_rate=2e-3)
    base, folder = config_of(64, 128, optim), work / ("tokenizer-quick" if quick else "tokenizer")
    found = {}
    for weight in (0.0, 0.1, 1.0):
        aligned = replace(base.objective, alignment=AlignmentConfig(weight=weight))
        name = f"alignment-{weight}" if weight else "patch"
        tokenizer = train_tokenizer(dataset, folder / name, replace(base, objective=aligned)).tokenizer
        found[weight] = means_of(downstream_of(dataset, probes, tokenizer))
        found[weight]["mse"] = figure(score_tokenizer(tokenizer, dataset), "mse")
    measured = means_of(downstream_of(dataset, probes, None))
    claims = []
    for name, off in found[0.0].items():
        claims += [Claim(f"alignment {weight}, {name}", found[weight][name], "", "off", off) for weight in (0.1, 1.0)]
        if name in measured:
            claims.append(Claim(f"alignment off, {name}", off, "", "measured responses", measured[name]))
    return claims


def means_of(scores: list[dict]) -> dict[str, float]:
    """Each direction's figures, mean over subjects."""
    names = dict.fromkeys(f"{score['direction']} {score['metric']}" for score in scores)
    return {
        name: mean(score["value"] for score in scores if f"{score['direction']} {score['metric']}" == name)
        for name in names
    }


def small(config: BrainTokenizerConfig) -> BrainTokenizerConfig:
    return replace(config, paper=replace(config.paper, base_channels=4, latent_channels=8))


def recordings(work: Path, quick: bool) -> list[Claim]:
    """V4: 2 neurons a code of 32. object2vec (three of its folds): 64 voxels a code of 64. Held-out voxel r."""
    os.environ |= {"BRAINJANUS_REAL_DATA": str(REAL_DATA.resolve()), "BRAINJANUS_WORK": str(work)}
    v4.features(work)
    if not (work / "v4-0").exists():
        prepare(PrepareConfig.load(v4.SPEC), work / "v4-0")
    sets = {"V4": Dataset.open(work / "v4-0")}
    sets |= {f"object2vec, fold {fold}": object2vec.fold_of(work, fold) for fold in range(1, 2 if quick else 4)}
    claims = []
    for name, dataset in sets.items():
        base = tokenizer_fitting(dataset)
        steps = 3 if quick else 2000 if name == "V4" else 60
        paper = OptimConfig(optimizer="adamw", steps=steps, batch_size=4 if quick else 32, learning_rate=1e-3)
        if quick:
            base = replace(base, training=replace(base.training, steps=5))
        folder = work / f"tokenizer-{'quick-' if quick else ''}{dataset.path.name}"
        scores = trained(dataset, folder, variants(base, paper))
        value = figure(scores["patch"], "voxel_r")
        for other in ("paper", "bare patches"):
            claims.append(Claim(f"{name}, r: patch", value, "", other, figure(scores[other], "voxel_r"), 1.0))
        pca = figure(scores["patch"], "voxel_r", "baseline")
        claims.append(Claim(f"{name}, r: patch", value, "", "PCA + scalar", pca, 1.0))
        for other, score in scores.items():
            pca = figure(score, "mse", "baseline")
            claims.append(Claim(f"{name}, mse: {other}", figure(score, "mse"), "", "PCA + scalar", pca))
    return claims


def sensors(work: Path, quick: bool) -> list[Claim]:
    """Simulated EEG (63 x 250) and MEG (271 x 201), one subject, at the settings that fit such data."""
    claims = []
    for modality in ("eeg", "meg"):
        study = work / f"tokenizer-{modality}{'-quick' if quick else ''}"
        if not (study / "dataset").exists():
            sizes = {"num_train": 40, "num_test": 10} if quick else {}
            simulate_sensors(study, SensorSimulationConfig(modality, num_subjects=1, **sizes))
        dataset = Dataset.open(study / "dataset")
        config = tokenizer_fitting(dataset)
        config = replace(config, training=replace(config.training, steps=5 if quick else 150))
        saved = train_tokenizer(dataset, study / "tokenizer", config)
        scores = score_tokenizer(saved.tokenizer, dataset, truth=noise_free(dataset))
        for metric, reference in (("mse", "baseline"), ("mse_truth", "baseline"), ("mse_truth", "floor")):
            value, other = figure(scores, metric), figure(scores, metric, reference)
            claims.append(
                Claim(f"{modality}, {metric}", value, "", {"baseline": "PCA + scalar"}.get(reference, "mean"), other)
            )
        r, own = figure(scores, "voxel_r_truth"), figure(scores, "voxel_r_truth", "ceiling")
        claims.append(Claim(f"{modality}, r with truth", r, "", "measured average", own))
        claims.append(
            Claim(
                f"{modality}, distance within a token",
                figure(scores, "patch_mm"),
                "mm",
                "storage order",
                figure(scores, "patch_mm", "floor"),
                0.5,
                at_most=True,
            )
        )
        claims += [Claim(f"{modality}, {name}", figure(scores, name), "") for name in ("bits", "used", "agreement")]
    return claims


def new_subject(work: Path, quick: bool) -> list[Claim]:
    """V4: a tokenizer of all sessions but one; the last is added by what belongs to it alone."""
    os.environ |= {"BRAINJANUS_REAL_DATA": str(REAL_DATA.resolve()), "BRAINJANUS_WORK": str(work)}
    spec = PrepareConfig.load(v4.SPEC)
    parts = {"v4-all-but-one": spec.subjects[:-1], "v4-last": spec.subjects[-1:]}
    for name, subjects in parts.items():
        if not (work / name).exists():
            prepare(replace(spec, subjects=subjects), work / name)
    first, last = (Dataset.open(work / name) for name in parts)
    config, folder = tokenizer_fitting(first), work / f"tokenizer-{'quick-' if quick else ''}new-subject"
    if quick:
        config = replace(config, training=replace(config.training, steps=5))
    train_tokenizer(first, folder / "start", config)
    added = train_tokenizer(last, folder / "added", config, start=folder / "start")
    alone = train_tokenizer(last, folder / "alone", config)
    r = [figure(score_tokenizer(saved.tokenizer, last), "voxel_r") for saved in (added, alone)]
    return [Claim("V4, a session added by its maps alone, r", r[0], "", "a tokenizer of its own", r[1], 0.95)]


def speed(quick: bool) -> list[Claim]:
    """NSD's size, 64 sites a code: training steps of 8 responses, encoding, against each other and the machine."""
    sites = 1600 if quick else NSD_SITES
    machine = {dtype: matmul_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    precision = autocast_dtype("auto", torch.device("cpu"))
    claims, seconds = [], {}
    for name, config in {"patch": config_of(64, 128, OptimConfig()).tokenizer, "paper": published()}.items():
        tokenizer = BrainTokenizer(config, {"subj01": torch.arange(sites)})
        tokenizer.solve("subj01", torch.randn(300, sites), torch.zeros(0, sites))
        flops = tokenizer.flops("subj01")
        seconds[name] = best_of(training_step(tokenizer, torch.randn(8, sites)), 1 if name == "paper" else 5)
        claims.append(Claim(f"{name}: forward", flops / 1e9, "GFLOP a response"))
        done = 3 * flops * 8 / seconds[name] / 1e9  # backward is twice forward; a second encoding is not counted
        claims.append(Claim(f"{name}: training step", done, "GFLOP/s", str(precision), machine[precision]))
        if name == "patch":
            tokenizer.eval().requires_grad_(False)
            encode = partial(tokenizer.encode, torch.randn(ENCODE_BATCH, sites), "subj01")
            rate = ENCODE_BATCH / best_of(encode, 9)
            claims.append(Claim("patch: encoding", rate, "responses/s", bar=300))
            claims.append(
                Claim("patch: encoding", rate * flops / 2e9, "GFLOP/s", "torch.float32", machine[torch.float32])
            )
    return [
        Claim("training steps a second: patch", 1 / seconds["patch"], "/s", "paper", 1 / seconds["paper"], 20),
        *claims,
    ]


def training_step(tokenizer: BrainTokenizer, x: torch.Tensor) -> Callable[[], None]:
    """One step as train/tokenizer.py takes it, on the same responses each time; `paper` as published."""
    optimizers = optimizers_of(tokenizer, OptimConfig())
    objective = PLAIN if tokenizer.config.encoder == "paper" else ObjectiveConfig()
    precision, generator = autocast_dtype("auto", torch.device("cpu")), torch.Generator()

    def step() -> None:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss = brain_losses(tokenizer, "subj01", x, x, objective, generator)["loss"]
        tokenizer.zero_grad(set_to_none=True)
        assert torch.isfinite(loss)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def matmul_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of a 2048-square matrix product on this machine."""
    a, b = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
    return 2 * 2048**3 / best_of(lambda: a @ b, 5) / 1e9


def best_of(run: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of some runs, after one that does not count."""
    run()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    args = arguments(__doc__)
    work = args.work.resolve()
    claims = speed(args.quick) + simulated(work, args.quick) + alignment(work, args.quick)
    claims += sensors(work, args.quick)
    if REAL_DATA.exists():
        claims += recordings(work, args.quick) + new_subject(work, args.quick)
    write(claims, args.out)


if __name__ == "__main__":
    main()
