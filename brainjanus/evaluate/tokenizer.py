"""What a brain tokenizer keeps of held-out responses.

Enters: a tokenizer and a dataset. Leaves: records, one per figure, subject and region, each beside what is possible
with the same number of bits: the mean training response (floor, 0 bits), principal components rounded to levels
(baseline), the Gaussian rate-distortion bound, and the ceiling that noise sets.

Responses are means over the repeats of a stimulus, of training and of held-out ones: where these have more repeats
than training stimuli, they are less noisy than what the references were fitted to.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import SPLITS, Dataset, listed
from brainjanus.evaluate.brain import mse, pattern_r, voxel_r
from brainjanus.evaluate.examples import CodebookUsage
from brainjanus.evaluate.rate import PCAQuantizer, PrincipalAxes, gaussian_bound, held_out_bound, principal_axes
from brainjanus.evaluate.record import SUBJECT_MEAN
from brainjanus.evaluate.reference import Reference
from brainjanus.tokenizers.brain import BrainTokenizer

BATCH = 32  # responses at a time
EXCHANGES = 512  # codes that are exchanged to see what this changes
KEPT_BYTES = 2e9  # of principal axes, for the next tokenizer that is scored on the same dataset
# metric -> title, explanation
METRICS: Mapping[str, tuple[str, str]] = {
    "mse": (
        "Mean squared error",
        "between reconstruction and measured average, in squared units of the z-scored response; lower is better.",
    ),
    "pattern_r": ("Pattern r", "of each response with its reconstruction across sites, mean over stimuli."),
    "voxel_r": (
        "Voxel r",
        "of each site with its reconstruction across stimuli, mean over sites. The ceiling is what the response "
        "without noise would reach: who gets above it has kept noise.",
    ),
    "mse_truth": ("Mean squared error, truth", "between reconstruction and noise-free response."),
    "pattern_r_truth": ("Pattern r, truth", "of the noise-free response with the reconstruction."),
    "voxel_r_truth": (
        "Voxel r, truth",
        "of the noise-free response with the reconstruction. The ceiling is the measured average's own: who gets "
        "above it has left noise out and kept signal.",
    ),
    "bits": ("Bits a response", "codes times the binary logarithm of how many there are."),
    "bits_per_site": ("Bits a site", "the same, divided by the sites."),
    "bound_shrunk": (
        "Bound, shrunk covariance",
        "the Gaussian bound of a covariance drawn towards a sphere (Ledoit and Wolf 2004), for few training responses.",
    ),
    "bound_held_out": (
        "Bound, held out",
        "an ideal code along the training responses' axes, with the variances of held-out ones: too high where "
        "training responses are few.",
    ),
    "used": ("Codes used", "share of the codebook that held-out responses use."),
    "perplexity": ("Perplexity", "how many codes, used evenly, would carry as much information."),
    "agreement": ("Codes kept", "share of codes that are the same after decoding and encoding again."),
    "locality": (
        "Locality",
        "one code of a held-out response is exchanged for a random other: the share of the squared change of the "
        "decoded response that lies in the code's own patch. At 1 a code is a place and nothing else; at the floor, "
        "which is the patch's share of the sites, it changes the whole response alike.",
    ),
    "patch_mm": (
        "Distance within a token",
        "mean distance in mm between two sites of one token; the floor is that of tokens cut along the storage order.",
    ),
}


@dataclass(frozen=True)
class TokenizerRecord:
    """One figure and what it is compared with; what does not exist is None.

    subject: or "mean", over subjects. roi: None for all sites. floor: the mean training response, or what METRICS says.
    baseline: principal components rounded to levels, at the same number of bits. bound: the Gaussian bound at this
    number, of the training covariance; in a region, what the code that reaches it leaves there. ceiling: what noise
    allows. n: stimuli.
    """

    subject: str
    roi: str | None
    metric: str
    value: float
    floor: float | None
    baseline: float | None
    bound: float | None
    ceiling: float | None
    n: int


@dataclass(frozen=True, eq=False)
class TokenizerScores:
    """Records, and how often each subject's held-out responses use each code."""

    split: str
    records: Sequence[TokenizerRecord]
    usage: Mapping[str, CodebookUsage]

    def of(self, metric: str, subject: str = SUBJECT_MEAN, roi: str | None = None) -> TokenizerRecord | None:
        """One record, or None where there is none."""
        wanted = (metric, subject, roi)
        return next((r for r in self.records if (r.metric, r.subject, r.roi) == wanted), None)

    def save(self, path: Path | str) -> None:
        """Write the records as a JSON list, one a line, whole or not at all."""
        lines = [json.dumps(asdict(record), allow_nan=False, ensure_ascii=False) for record in self.records]
        with written_beside(path) as beside:
            beside.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


class Reconstruction(NamedTuple):
    codes: Int[np.ndarray, "n k"]
    values: Float[np.ndarray, "n v"]


# N stimuli, V sites, K codes
@torch.no_grad()
def reconstruct(tokenizer: BrainTokenizer, responses: Float[np.ndarray, "n v"], subject: str) -> Reconstruction:
    """The codes of responses, and what is decoded from these."""
    device = next(tokenizer.parameters()).device
    codes, values = [], []
    for batch in torch.from_numpy(responses).float().split(BATCH):
        codes.append(tokenizer.encode(batch.to(device), subject))
        values.append(tokenizer.decode(codes[-1], subject).float())
    return Reconstruction(torch.cat(codes).cpu().numpy(), torch.cat(values).cpu().numpy())


def score_tokenizer(
    tokenizer: BrainTokenizer,
    dataset: Dataset,
    split: str = "test",
    truth: Mapping[str, Float[np.ndarray, "_ _"]] | None = None,
) -> TokenizerScores:
    """Score a tokenizer on the mean responses to held-out stimuli, for each subject that it shares with the dataset.

    truth: subject -> noise-free responses, rows as `dataset.averages(subject, split)`, where they are known.
    Raises UserError for training stimuli, for fewer than two stimuli, without a common subject, or for a truth of
    another shape.
    """
    if split not in SPLITS[1:]:
        raise UserError(
            f"split to score a tokenizer on: expected {' or '.join(SPLITS[1:])}, got '{split}'. Tokenizer and "
            "references were fitted to training stimuli: a score on them says little."
        )
    subjects = [subject for subject in dataset.subjects if subject in tokenizer.subjects]
    if not subjects:
        raise UserError(
            f"{dataset.path}: expected one of the tokenizer's subjects ({listed(tokenizer.subjects)}), got "
            f"{listed(dataset.subjects)}. Give the dataset that the tokenizer was trained on."
        )
    records: list[TokenizerRecord] = []
    usage: dict[str, CodebookUsage] = {}
    for subject in subjects:
        found, usage[subject] = _score_subject(tokenizer, dataset, split, subject, (truth or {}).get(subject))
        records += found
    return TokenizerScores(split, [*records, *_means(records, usage)], usage)


def _score_subject(
    tokenizer: BrainTokenizer,
    dataset: Dataset,
    split: str,
    subject: str,
    truth: Float[np.ndarray, "_ _"] | None,
) -> tuple[list[TokenizerRecord], CodebookUsage]:
    space, averages = dataset.space(subject), dataset.averages(subject, split)
    measured = averages.responses
    if len(measured) < 2:
        raise UserError(
            f"{dataset.path}: expected at least 2 stimuli of {subject} in the {split} split, got {len(measured)}. "
            "A correlation across stimuli needs several: hold out more of them, or score another split."
        )
    if truth is not None and truth.shape != measured.shape:
        raise UserError(
            f"truth of {subject}: expected shape {list(measured.shape)}, a row for each stimulus of the {split} split, "
            f"got {list(truth.shape)}. Was it taken for other stimuli? Order it as `averages` does."
        )
    bits = float(tokenizer.bits(subject))
    codes, values = reconstruct(tokenizer, measured, subject)
    axes = training_axes(dataset, subject)
    linear = PCAQuantizer.fit(axes, bits)
    bound = gaussian_bound(axes, bits)
    regions: dict[str | None, Bool[np.ndarray, "v"]] = {None: np.ones(space.num_sites, bool)}
    regions |= {name: mask for name, mask in space.rois.items() if mask.any()}

    kept = _figures(measured, truth, values, regions)
    floor = _figures(measured, truth, np.tile(axes.mean.astype(np.float32), (len(measured), 1)), regions)
    baseline = _figures(measured, truth, linear.decode(linear.encode(measured)), regions)
    ceiling: dict[tuple[str, str | None], float] = {}
    if truth is not None:  # the figures of the measured average itself
        own = _figures(measured, truth, measured, regions)
        ceiling |= {key: value for key, value in own.items() if key[0].endswith("_truth")}
    noise_ceiling = Reference(
        dataset.name, dataset.fingerprint, subject, split, averages.stimulus_ids, measured, averages.num_repeats, space
    ).ceiling()
    if noise_ceiling is not None:
        ceiling |= {("voxel_r", name): float(noise_ceiling[mask].mean()) for name, mask in regions.items()}
    bounds = {("mse", name): float(bound.sites[mask].mean()) for name, mask in regions.items()}

    usage = CodebookUsage(subject, np.bincount(codes.ravel(), minlength=len(tokenizer.quantizer.codebook)))
    again = reconstruct(tokenizer, values, subject).codes
    facts: dict[str, float] = {
        "bits": bits,
        "bits_per_site": bits / space.num_sites,
        "bound_shrunk": gaussian_bound(axes, bits, shrink=True).mse,
        "bound_held_out": held_out_bound(axes, measured, bits),
        "used": usage.used,
        "perplexity": usage.perplexity,
        "agreement": float((again == codes).mean()),
    }
    n = len(measured)
    records = [
        TokenizerRecord(
            subject, roi, metric, value, floor[metric, roi], baseline[metric, roi], bounds.get((metric, roi)),
            ceiling.get((metric, roi)), n,
        )
        for (metric, roi), value in kept.items()
    ]  # fmt: skip
    records += [TokenizerRecord(subject, None, name, value, None, None, None, None, n) for name, value in facts.items()]
    if (local := locality(tokenizer, codes, values, subject)) is not None:
        chance = 1 / tokenizer.num_patches(subject)
        records.append(TokenizerRecord(subject, None, "locality", local, chance, None, None, None, n))
    if space.coordinates_mm is not None:
        patch = tokenizer.site_patch(subject).cpu().numpy()
        stored = np.sort(patch)  # patches of the same sizes, along the storage order
        near, far = (patch_distance(space, one) for one in (patch, stored))
        records.append(TokenizerRecord(subject, None, "patch_mm", near, far, None, None, None, n))
    return records, usage


@torch.no_grad()
def locality(
    tokenizer: BrainTokenizer, codes: Int[np.ndarray, "n k"], values: Float[np.ndarray, "n v"], subject: str
) -> float | None:
    """The share of the squared change of decoded responses that lies in a code's patch, if that code is exchanged.

    values: what these codes are decoded to. EXCHANGES of them, evenly over the places, each for a random other code of
    the same stage. None if nothing changes at all.
    """
    rng = np.random.default_rng(0)
    config = tokenizer.quantizer.config
    if config.num_codes < 2:
        return None
    device = next(tokenizer.parameters()).device
    patch = tokenizer.site_patch(subject).cpu().numpy()
    rows = rng.integers(len(codes), size=EXCHANGES)
    places = np.arange(EXCHANGES) * codes.shape[1] // EXCHANGES
    changed = codes[rows]
    stage, code = np.divmod(changed[np.arange(EXCHANGES), places], config.num_codes)
    other = (code + rng.integers(1, config.num_codes, size=EXCHANGES)) % config.num_codes
    changed[np.arange(EXCHANGES), places] = stage * config.num_codes + other
    own = whole = 0.0
    for start in range(0, EXCHANGES, BATCH):
        some = slice(start, start + BATCH)
        decoded = tokenizer.decode(torch.from_numpy(changed[some]).to(device), subject).float().cpu().numpy()
        squares = np.square(decoded - values[rows[some]], dtype=np.float64)
        whole += float(squares.sum())
        own += float(squares[patch == places[some, None] // config.stages].sum())
    return own / whole if whole > 0 else None


_kept_axes: dict[tuple[str, str], PrincipalAxes] = {}


def training_axes(dataset: Dataset, subject: str) -> PrincipalAxes:
    """The principal axes of a subject's training responses, computed once for all tokenizers that are scored.

    The latest are kept, up to KEPT_BYTES.
    """
    key = dataset.fingerprint, subject
    axes = _kept_axes.pop(key, None) or principal_axes(dataset.averages(subject, "train").responses)
    _kept_axes[key] = axes
    while sum(one.centred.nbytes + one.vectors.nbytes for one in _kept_axes.values()) > KEPT_BYTES:
        del _kept_axes[next(iter(_kept_axes))]
    return axes


def patch_distance(space: BrainSpace, patch: Int[np.ndarray, "v"]) -> float:
    """The mean distance in mm between two different sites of one patch; 0 where every patch is a single site.

    Of sensors x times, a millisecond counts as many mm as in the cortical order of the space.
    """
    points_mm = space.points_mm
    assert points_mm is not None
    total, pairs = 0.0, 0
    for number in np.unique(patch):
        points = points_mm[patch == number].astype(np.float64)
        total += float(np.linalg.norm(points[:, None] - points, axis=-1).sum())
        pairs += len(points) * (len(points) - 1)
    return total / max(pairs, 1)


def _figures(
    measured: Float[np.ndarray, "n v"],
    truth: Float[np.ndarray, "n v"] | None,
    values: Float[np.ndarray, "n v"],
    regions: Mapping[str | None, Bool[np.ndarray, "v"]],
) -> dict[tuple[str, str | None], float]:
    """(metric, region) -> figure of some reconstructed responses."""
    found: dict[tuple[str, str | None], float] = {}
    for ending, target in (("", measured), ("_truth", truth)):
        if target is None:
            continue
        of_site = voxel_r(target, values)
        for name, mask in regions.items():
            pair = (target, values) if name is None else (target[:, mask], values[:, mask])
            found[f"mse{ending}", name] = float(mse(*pair).mean())
            found[f"pattern_r{ending}", name] = float(pattern_r(*pair).mean())
            found[f"voxel_r{ending}", name] = float(of_site[mask].mean())
    return found


def _means(records: Sequence[TokenizerRecord], usage: Mapping[str, CodebookUsage]) -> list[TokenizerRecord]:
    """The mean over subjects of each figure; codes are counted over all subjects together, as they share a codebook."""
    grouped: dict[tuple[str, str | None], list[TokenizerRecord]] = {}
    for record in records:
        grouped.setdefault((record.metric, record.roi), []).append(record)
    together = CodebookUsage(SUBJECT_MEAN, np.sum([one.counts for one in usage.values()], axis=0))

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if len(known) == len(values) else None

    pooled = {"used": together.used, "perplexity": together.perplexity}
    return [
        TokenizerRecord(
            SUBJECT_MEAN,
            roi,
            metric,
            pooled.get(metric, float(np.mean([r.value for r in group]))),
            floor=mean([r.floor for r in group]),
            baseline=mean([r.baseline for r in group]),
            bound=mean([r.bound for r in group]),
            ceiling=mean([r.ceiling for r in group]),
            n=sum(r.n for r in group),
        )
        for (metric, roi), group in grouped.items()
    ]
