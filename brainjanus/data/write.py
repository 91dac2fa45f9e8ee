"""Arrays become a Dataset: everything is checked, z-scored with training trials only, and written at once.

Enters: subjects (raw betas, trials with their split, space) and stimuli. Leaves: the folder that `dataset.py`
describes, complete or not at all. Signal and noise variance follow Allen et al. 2022 (NSD, "noise ceiling").

Differs from Allen et al.: any number of repeats per stimulus will do, and stimuli that were shown once count in the
total variance but not in the noise variance.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from safetensors.numpy import save_file

from brainjanus.core.card import add_card, kept_from
from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import (
    FORMAT,
    SPLITS,
    VERSION,
    Dataset,
    Stimuli,
    Subject,
    Trials,
    ZScore,
    checksum,
    listed,
)
from brainjanus.data.datasheet import CARD, dataset_card

How = Literal["session", "all", "none"]
ResponsesDtype = Literal["float32", "float16"]
ALL_SESSIONS = -1


class Variances(NamedTuple):
    """Of one trial, per site, in squared units of the responses."""

    signal: Float[np.ndarray, "v"]
    noise: Float[np.ndarray, "v"]


def write_dataset(
    path: Path | str,
    *,
    name: str,
    modality: str,
    subjects: Iterable[Subject],
    stimuli: Stimuli,
    zscore: How = "session",
    provenance: Mapping[str, Any] | None = None,
    drop_constant_sites: bool = False,
    responses_dtype: ResponsesDtype = "float32",
    overwrite: bool = False,
) -> Dataset:
    """Check, z-score and write a dataset; `path` is complete afterwards, or as it was before.

    subjects: a list, or an iterator, of which one subject is in memory at a time.
    zscore: per site with the training trials of each session, of all sessions, or not at all.
    drop_constant_sites: leave out sites whose training responses never vary (counted in the provenance), which are
    refused otherwise. responses_dtype: as which z-scored responses are stored; float16 takes half of the room and is
    off by at most 0.05 %. overwrite: replace the dataset that is at `path`; what the user wrote into its card stays.
    Returns the dataset, opened. Raises UserError for whatever would make it unsound, leakage between splits included.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    check_stimuli(stimuli)
    known, splits, notes = set(stimuli.ids), _Splits(), kept_from(path / CARD)
    dropped: dict[str, int] = {}
    with written_beside(path) as folder:
        folder.mkdir()
        for subject in subjects:
            subject_name = subject.space.subject
            check_name("subject", subject_name)
            if (folder / "subjects" / subject_name).exists():
                raise UserError(
                    f"subject '{subject_name}': expected a name of its own, got one that is taken. Rename the subject."
                )
            check_subject(subject, known)
            splits.add(subject_name, subject.trials)
            dropped |= _write_subject(
                folder / "subjects" / subject_name, subject, zscore, drop_constant_sites, responses_dtype
            )
        if not splits.subjects:
            raise UserError(f"{path}: expected at least one subject, got none. Give the responses of a subject.")
        if stimuli.pixels is not None:
            splits.check_pictures(stimuli)
        _write_stimuli(folder, stimuli)
        files = {
            file.relative_to(folder).as_posix(): {"sha256": checksum(file), "bytes": file.stat().st_size}
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        manifest = manifest_of(
            files,
            name=name,
            modality=modality,
            subjects=splits.subjects,
            num_stimuli=len(stimuli.ids),
            image_size=None if stimuli.pixels is None else stimuli.pixels.shape[1],
            caption_sources=list(_captions(stimuli)),
            zscore=zscore,
            provenance=dict(provenance or {}) | ({"dropped_sites": dropped} if dropped else {}),
        )
        (folder / "dataset.json").write_text(manifest, encoding="utf-8")
        add_card(folder / CARD, lambda: dataset_card(Dataset.open(folder)), notes)
    return Dataset.open(path)


def manifest_of(files: Mapping[str, Mapping[str, Any]], **facts: Any) -> str:
    """What dataset.json says: the facts, what files there are (sha256, bytes), and the fingerprint, which follows from
    the files alone."""
    files = dict(sorted(files.items(), key=lambda entry: Path(entry[0])))
    content = json.dumps({file: told["sha256"] for file, told in files.items()})
    fingerprint = hashlib.sha256(content.encode()).hexdigest()
    manifest = {"format": FORMAT, "version": VERSION, **facts, "files": files, "fingerprint": fingerprint}
    return json.dumps(manifest, indent=1)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise UserError if something is at `path` that must not be replaced. Only a dataset ever is."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / "dataset.json").is_file():
        raise UserError(
            f"{path}: expected a new or empty folder, got one that holds something else than a dataset. "
            "It is left as it is, whatever the options: choose another --out."
        )
    if not overwrite:
        raise UserError(
            f"{path}: expected a new folder, got one that already holds a dataset. "
            "Give --overwrite to replace it, or choose another --out."
        )


class Moments(NamedTuple):
    """Of some rows, per site, in float64: enough to z-score with, and to be put together with those of other rows.

    squares: the sum of squared deviations from the mean.
    """

    num_rows: int
    mean: Float[np.ndarray, "v"]
    squares: Float[np.ndarray, "v"]

    @classmethod
    def of(cls, responses: Shaped[np.ndarray, "t v"], rows: Iterable[int]) -> "Moments":
        """Row after row, in two rounds: what is added to stays in the processor's cache."""
        mean, squares, off = np.zeros((3, responses.shape[1]))
        rows = list(rows)
        for row in rows:
            mean += responses[row]
        mean /= max(1, len(rows))
        for row in rows:
            np.subtract(responses[row], mean, out=off)
            off *= off
            squares += off
        return cls(len(rows), mean, squares)

    def and_of(self, other: "Moments") -> "Moments":
        """Of the rows of both. Source: Chan, Golub & LeVeque 1983."""
        if not self.num_rows or not other.num_rows:
            return other if other.num_rows else self
        num_rows, apart = self.num_rows + other.num_rows, other.mean - self.mean
        share = other.num_rows / num_rows
        return Moments(
            num_rows, self.mean + share * apart, self.squares + other.squares + (self.num_rows * share) * apart * apart
        )


class Seen(NamedTuple):
    """The training trials of one session: their moments and extremes, per site (inf and -inf if there are none)."""

    moments: Moments
    low: Float[np.ndarray, "v"]
    high: Float[np.ndarray, "v"]

    @classmethod
    def of(cls, responses: Float[np.ndarray, "t v"], rows: Iterable[int]) -> "Seen":
        rows, num_sites = list(rows), responses.shape[1]
        low, high = np.full(num_sites, np.inf, np.float32), np.full(num_sites, -np.inf, np.float32)
        for row in rows:
            np.minimum(low, responses[row], out=low)
            np.maximum(high, responses[row], out=high)
        return cls(Moments.of(responses, rows), low, high)


def statistics_of(seen: Mapping[int, Seen], how: How) -> tuple[ZScore, Bool[np.ndarray, "v"]]:
    """What to z-score with, from the training trials of each session, by its number; and which sites vary over those of
    every group. Sites that do not have a standard deviation of 1.

    Raises UserError for a session with fewer than two training trials.
    """
    groups = {session: [seen[session]] for session in sorted(seen)}
    if how != "session":
        groups = {ALL_SESSIONS: [seen[session] for session in sorted(seen)]}
    num_sites = len(next(iter(seen.values())).low)
    mean, std = np.zeros((len(groups), num_sites), np.float32), np.ones((len(groups), num_sites), np.float32)
    varies = np.ones(num_sites, bool)
    for g, (group, parts) in enumerate(groups.items()):
        moments = reduce(Moments.and_of, (part.moments for part in parts))
        if moments.num_rows < 2:
            raise UserError(
                f"session {group}: expected at least 2 training trials to z-score with, got {moments.num_rows}. "
                'Z-score over all sessions (zscore = "all"), or put more stimuli into training.'
            )
        here = np.max([part.high for part in parts], axis=0) > np.min([part.low for part in parts], axis=0)
        varies &= here
        if how != "none":
            mean[g] = moments.mean
            std[g] = np.where(here, np.sqrt(moments.squares / moments.num_rows), 1)
    return ZScore(np.array(list(groups), np.int64), mean, std), varies


def zscored(
    responses: Float[np.ndarray, "t v"], session: Int[np.ndarray, "t"], train: Int[np.ndarray, "n"], how: How
) -> tuple[Float[np.ndarray, "t v"], ZScore, Bool[np.ndarray, "v"]]:
    """Z-score per site with the training rows only, of each session or of all.

    Returns the responses (float32), and what `statistics_of` returns and raises.
    """
    scored = responses.astype(np.float32)
    numbers = np.unique(session).tolist()
    seen = {number: Seen.of(scored, train[session[train] == number].tolist()) for number in numbers}
    statistics, varies = statistics_of(seen, how)
    for g, group in enumerate(statistics.session if how != "none" else ()):
        rows = session == group if how == "session" else np.ones(len(session), bool)
        scored[rows] = (scored[rows] - statistics.mean[g]) / statistics.std[g]
    return scored, statistics, varies


@runtime_checkable
class ByRow(Protocol):
    """Responses [trials, sites] in memory or in a file, of which some rows are asked for."""

    def __getitem__(self, rows: Int[np.ndarray, "n"], /) -> Shaped[np.ndarray, "n v"]: ...


def signal_and_noise(
    responses: ByRow, stimulus_id: Sequence[str], rows: Int[np.ndarray, "n"] | None = None
) -> Variances | None:
    """Signal and noise variance of one trial from repeats; None when nothing was repeated.

    stimulus_id: of each response. rows: of these alone. One stimulus is in memory at a time.
    Noise variance is the mean over repeated stimuli of the unbiased variance over their repeats; signal variance is
    the unbiased variance over all trials less that, clipped at 0. Source: Allen et al. 2022.
    """
    rows = np.arange(len(stimulus_id)) if rows is None else rows
    _, where, counts = np.unique(np.array(list(stimulus_id))[rows], return_inverse=True, return_counts=True)
    num_repeated = int((counts > 1).sum())
    if not num_repeated:
        return None
    off = np.empty((counts.max(), responses[rows[:1]].shape[1]))
    start = responses[rows[0:1]][0].astype(np.float64)  # near the mean, so that squares do not cancel
    noise, total, squares = np.zeros((3, len(start)))
    for mine in np.split(rows[np.argsort(where, kind="stable")], np.cumsum(counts)[:-1]):
        each = off[: len(mine)]
        each[:] = responses[mine]
        mean = each.mean(axis=0)
        each -= mean
        each *= each
        within = each.sum(axis=0)
        squares += within
        if len(mine) > 1:
            within /= len(mine) - 1
            noise += within
        mean -= start
        total += len(mine) * mean
        mean *= mean
        squares += len(mine) * mean
    noise /= num_repeated
    signal = (squares - total * total / len(rows)) / (len(rows) - 1) - noise
    return Variances(signal.clip(min=0).astype(np.float32), noise.astype(np.float32))


def variances_of(responses: ByRow, trials: Trials) -> Variances | None:
    """From the repeats of the training trials, or else of the test trials."""
    found = (signal_and_noise(responses, trials.stimulus_id, trials.rows(split)) for split in ("train", "test"))
    return next((variances for variances in found if variances is not None), None)


def restricted(space: BrainSpace, keep: Bool[np.ndarray, "v"]) -> BrainSpace:
    """The same space with only some of its sites."""

    def part(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else array[keep]

    order, index = space.order, space.index
    assert order is not None
    assert index is not None
    renumbered = np.cumsum(keep) - 1
    return replace(
        space,
        num_sites=int(keep.sum()),
        coordinates_mm=part(space.coordinates_mm),
        rois={name: mask[keep] for name, mask in space.rois.items()},
        order=renumbered[order[keep[order]]],
        index=index[keep],
        signal_variance=part(space.signal_variance),
        noise_variance=part(space.noise_variance),
    )


MOST_SIDE = 8_192  # pixels of a stored picture


def check_name(what: str, name: str) -> None:
    """Raises UserError unless a name can name a file and a part of the model."""
    if not re.fullmatch(r"\w[\w-]*", name):
        raise UserError(
            f"{what} '{name}': expected a name of letters, digits, '-' and '_' that does not begin with '-', got other "
            "characters. It names a file and a part of the model: rename it."
        )


def check_stimuli(stimuli: Stimuli) -> None:
    """Raises UserError unless ids are unique and pictures, captions and features belong to them."""
    ids = list(stimuli.ids)
    known = set(ids)
    if len(known) < len(ids):
        twice = next(name for i, name in enumerate(ids) if name in ids[:i])
        raise UserError(
            f"stimulus '{twice}': expected each stimulus id once, got it twice. "
            "Give stimuli names of their own, for example with the session as a prefix."
        )
    for name in ids:
        if not name or re.search(r"[\t\r\n]", name):
            raise UserError(
                f"stimulus {name!r}: expected a name without tabs or line ends, got this one. "
                "Ids are written to TSV files: rename it."
            )
    if stimuli.pixels is not None:
        pixels = stimuli.pixels
        rows = np.arange(len(ids)) if stimuli.picture_of is None else stimuli.picture_of
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] != pixels.shape[2] or pixels.shape[3] != 3:
            raise UserError(
                f"pictures: expected square uint8 RGB [pictures, H, H, 3], got {pixels.dtype} {list(pixels.shape)}. "
                "Crop and convert them first; `prepare` does so."
            )
        if len(rows) != len(pixels) or (len(rows) and not 0 <= rows.min() <= rows.max() < len(ids)):
            raise UserError(
                f"pictures: expected {len(pixels)} pictures with a stimulus among {len(ids)} each, got {len(rows)} "
                "stimulus rows. Give `picture_of`, the row of its stimulus for each picture."
            )
    check_name("source of captions", stimuli.caption_source)
    check_captions(stimuli.captions or {}, known)
    for source, others in stimuli.further_captions.items():
        check_name("source of captions", source)
        if source == stimuli.caption_source or not stimuli.captions:
            raise UserError(
                f"source of captions '{source}': expected further captions to have another name than those that stand "
                f"first, and some to stand first, got '{stimuli.caption_source}' with {len(stimuli.captions or {})}. "
                "Rename the source, or let it stand first."
            )
        check_captions(others, known)
    for name, features in stimuli.features.items():
        check_name("features", name)
        if features.ndim != 3 or len(features) != len(ids) or features.dtype.kind != "f":
            raise UserError(
                f"features '{name}': expected floats [{len(ids)} stimuli, tokens, channels], got {features.dtype} "
                f"{list(features.shape)}. Give one row for each stimulus, in the order of the ids."
            )
        finite = np.isfinite(features).all(axis=(1, 2))
        if not finite.all():
            raise UserError(
                f"features '{name}': expected finite numbers, got NaN or infinity for stimulus "
                f"'{ids[int(np.argmin(finite))]}'. Compute them again, in float32 if they overflowed."
            )


def check_captions(captions: Mapping[str, Sequence[str]], known: Collection[str]) -> None:
    """Raises UserError unless each stimulus with captions exists, and none of them is empty."""
    for name, texts in captions.items():
        if name not in known or not texts or not all(isinstance(c, str) and c.strip() for c in texts):
            raise UserError(
                f"captions of '{name}': expected at least one caption, none empty, of a stimulus that exists, got "
                f"{list(texts)!r}. Correct the captions file, or leave this stimulus out of it."
            )


def check_subject(subject: Subject, known: set[str]) -> None:
    """Raises UserError unless responses, trials, space and stimuli fit together."""
    who, responses, trials = subject.space.subject, subject.responses, subject.trials
    if responses.ndim != 2 or responses.dtype.kind not in "fiu":
        raise UserError(
            f"responses of {who}: expected numbers [trials, sites], got {responses.dtype} {list(responses.shape)}. "
            "Export them as one float array."
        )
    if responses.shape[1] != subject.space.num_sites:
        raise UserError(
            f"responses of {who}: expected {subject.space.num_sites} sites (voxels), as its space has, got "
            f"{responses.shape[1]}. Were they exported with another mask, or is the array transposed?"
        )
    lengths = {field: len(column) for field, column in trials._asdict().items() if column is not None}
    if set(lengths.values()) != {len(responses)}:
        raise UserError(
            f"trials of {who}: expected one row for each of the {len(responses)} responses, got "
            f"{lengths['stimulus_id']}. Does the table miss a run, or have runs that were not recorded?"
        )
    check_finite(who, responses)
    check_trials(who, trials, known)


def check_finite(who: str, responses: Shaped[np.ndarray, "t v"], first: int = 0) -> None:
    """Raises UserError for NaN, infinity, and what float32 cannot hold. first: the number of the first trial."""
    largest = np.finfo(np.float32).max  # they are kept as float32
    finite = (responses.max(axis=1, initial=0) <= largest) & (responses.min(axis=1, initial=0) >= -largest)
    if not finite.all():
        trial = int(np.argmin(finite))
        site = int(np.argmin(np.abs(responses[trial]) <= largest))
        raise UserError(
            f"responses of {who}: expected finite numbers, got {responses[trial, site]} at trial {first + trial}, site "
            f"{site} ({int((~finite).sum())} trials are affected; counted from 0; the largest float32 is "
            f"{largest:.1e}). Leave out these trials, or these sites."
        )


def check_trials(who: str, trials: Trials, known: Collection[str]) -> None:
    """Raises UserError for a stimulus or split that does not exist, or without trials to train on or to test."""
    for row, (stimulus, split) in enumerate(zip(trials.stimulus_id, trials.split, strict=True)):
        if stimulus not in known:
            raise UserError(
                f"trials of {who}: expected a stimulus among the {len(known)} that exist ({listed(sorted(known), 3)}), "
                f"got '{stimulus}' at trial {row}. Is it spelled as its picture's file is, or is a picture missing?"
            )
        if split not in SPLITS:
            raise UserError(
                f"trials of {who}: expected a split among {', '.join(SPLITS)}, got '{split}' at trial {row}. "
                "Correct the table, or leave the column out to have stimuli split at random."
            )
    for split in ("train", "test"):
        if split not in trials.split:
            raise UserError(
                f"trials of {who}: expected trials in train and in test, got none in {split}. "
                "Change the split column, the test fraction or the test fold."
            )


class _Splits:
    """Which split each stimulus is in, over all subjects: by id, and by what its pictures show."""

    def __init__(self) -> None:
        self.subjects: list[str] = []
        self.of: dict[str, tuple[str, str]] = {}

    def add(self, subject: str, trials: Trials) -> None:
        self.subjects.append(subject)
        for stimulus, split in zip(trials.stimulus_id, trials.split, strict=True):
            before, who = self.of.setdefault(stimulus, (split, subject))
            if before != split:
                raise UserError(
                    f"stimulus '{stimulus}': expected one split, over all subjects, got {before} ({who}) and {split} "
                    f"({subject}). What was tested would have been trained on: split by stimulus."
                )

    def check_pictures(self, stimuli: Stimuli) -> None:
        assert stimuli.pixels is not None
        first: dict[bytes, str] = {}
        for stimulus, digest in picture_digests(stimuli):
            other = first.setdefault(digest, stimulus)
            if stimulus in self.of and other not in self.of:
                first[digest] = stimulus
            elif stimulus in self.of and self.of[stimulus][0] != self.of[other][0]:
                raise UserError(
                    f"stimuli '{other}' and '{stimulus}': expected identical pictures in one split, got "
                    f"{self.of[other][0]} and {self.of[stimulus][0]}. What was tested would have been trained on: give "
                    "them one id, as `prepare` does, or one split."
                )


def picture_digests(stimuli: Stimuli) -> Iterator[tuple[str, bytes]]:
    """For each picture its stimulus id and a digest of its pixels."""
    assert stimuli.pixels is not None
    rows = range(len(stimuli.pixels)) if stimuli.picture_of is None else stimuli.picture_of.tolist()
    for row, picture in zip(rows, stimuli.pixels, strict=True):
        yield stimuli.ids[row], digest_of(picture)


def digest_of(picture: UInt8[np.ndarray, "h w c"]) -> bytes:
    """What two pictures share only if they have the same size and pixels."""
    return hashlib.blake2b(picture.tobytes(), digest_size=16, salt=str(picture.shape[:2]).encode()).digest()


def _write_subject(
    folder: Path, subject: Subject, how: How, drop_constant_sites: bool, dtype: ResponsesDtype
) -> dict[str, int]:
    """Write one subject's files; return how many sites were dropped, by name, if any were."""
    folder.mkdir(parents=True)
    trials, space, who = subject.trials, subject.space, subject.space.subject
    train = trials.rows("train")
    try:
        responses, statistics, varies = zscored(np.asarray(subject.responses), trials.session, train, how)
    except UserError as error:
        raise UserError(f"{who}, {error}") from error
    check_constant(who, varies, how, drop_constant_sites)
    if not varies.all():
        responses, space = np.ascontiguousarray(responses[:, varies]), restricted(space, varies)
        statistics = ZScore(statistics.session, statistics.mean[:, varies], statistics.std[:, varies])
    space = with_variances(space, variances_of(responses, trials))
    check_range(who, float(max(responses.max(initial=0), -responses.min(initial=0))), dtype)
    _save_tensors(folder / "responses.safetensors", {"responses": responses.astype(dtype)})
    _save_tensors(folder / "zscore.safetensors", statistics._asdict())
    trials.save(folder / "trials.tsv")
    space.save(folder)
    return {} if varies.all() else {who: int((~varies).sum())}


def check_constant(who: str, varies: Bool[np.ndarray, "v"], how: How, drop: bool) -> None:
    """Raises UserError if sites are constant and are not to be dropped, or if all of them are."""
    if varies.all() or (drop and varies.any()):
        return
    constant = np.flatnonzero(~varies)
    raise UserError(
        f"responses of {who}: expected sites that vary over the training trials"
        f"{' of each session' if how == 'session' else ''}, got {len(constant)} constant ones of {len(varies)} "
        f"(sites {listed(map(str, constant))}). Are they outside the brain? Mend the mask, or give "
        "--drop-constant-sites."
    )


def check_range(who: str, extreme: float, dtype: ResponsesDtype) -> None:
    """Raises UserError if the largest of the z-scored responses is more than what they are stored as can hold."""
    largest = float(np.finfo(dtype).max)
    if extreme > largest:
        raise UserError(
            f"responses of {who}: expected z-scored numbers of at most {largest:.6g}, as {dtype} holds, got "
            f"{extreme:.6g}. Look for outliers, or store them as float32."
        )


def with_variances(space: BrainSpace, found: Variances | None) -> BrainSpace:
    return space if found is None else replace(space, signal_variance=found.signal, noise_variance=found.noise)


def _captions(stimuli: Stimuli) -> dict[str, Mapping[str, Sequence[str]]]:
    """By source, the default first."""
    return {stimuli.caption_source: stimuli.captions, **stimuli.further_captions} if stimuli.captions else {}


def _write_stimuli(folder: Path, stimuli: Stimuli) -> None:
    num_pictures = np.zeros(len(stimuli.ids), np.int64)
    if stimuli.pixels is not None:
        rows = np.arange(len(stimuli.ids)) if stimuli.picture_of is None else stimuli.picture_of
        num_pictures = np.bincount(rows, minlength=len(stimuli.ids))
        _save_tensors(folder / "images.safetensors", {"pixels": stimuli.pixels, "stimulus": rows.astype(np.int64)})
    write_words(folder, stimuli.ids, num_pictures.tolist(), _captions(stimuli))
    for name, features in stimuli.features.items():
        kept = features if features.dtype == np.float16 else features.astype(np.float32)
        _save_tensors(folder / f"features/{name}.safetensors", {"features": kept})


def write_words(
    folder: Path,
    ids: Sequence[str],
    num_pictures: Sequence[int],
    captions: Mapping[str, Mapping[str, Sequence[str]]],
) -> None:
    """Write stimuli.tsv and the captions of each source; those of the first are counted in the table."""
    first = next(iter(captions.values()), {})
    lines = ["stimulus_id\tnum_pictures\tnum_captions"]
    lines += [f"{name}\t{n}\t{len(first.get(name, ()))}" for name, n in zip(ids, num_pictures, strict=True)]
    (folder / "stimuli.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for source, texts in captions.items():
        file = folder / ("captions.json" if texts is first else f"captions/{source}.json")
        file.parent.mkdir(exist_ok=True)
        said = {name: list(mine) for name, mine in texts.items()}
        file.write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")


def _save_tensors(path: Path, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
    """`save_file` of contiguous arrays: it writes others in the order they have in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
