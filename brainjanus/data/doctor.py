"""Is a dataset sound? What can be told from its files alone, without a model of anything.

Enters: a Dataset as it lies on disk. Leaves: one finding for each check and subject, with a light, a sentence with its
figures, what to do, and the figures themselves. `brainjanus/doctor.py` adds whether stimuli fit their responses, and
turns all of it into a page.

    green   looked at, and sound            yellow  look at it: it may be meant
    red     scores will be wrong            grey    cannot be told from these data

Thresholds are set so that sound data stay green: where noise decides, a check asks for effects that are both far beyond
chance and large. Leaks are those of `data/audit.py`.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError

from brainjanus.core.errors import UserError
from brainjanus.core.progress import progress
from brainjanus.core.space import BrainSpace
from brainjanus.data.audit import Leak, ResponseAudit, stimulus_leaks
from brainjanus.data.dataset import SPLITS, Dataset, Trials, checksum, listed, map_tensor
from brainjanus.data.lookalikes import BASE, CERTAIN, Pair, lookalikes, small
from brainjanus.data.write import signal_and_noise

Light = Literal["green", "yellow", "red", "grey"]
LIGHTS: tuple[Light, ...] = ("red", "yellow", "grey", "green")  # the gravest first
SHOWN = 10  # examples in the evidence
CHUNK = 1024  # trials in memory at once
MOST_SITES = 600  # of which responses are kept to look at: those with most signal
UNLIKE_SCALE = 2.5  # times by which a session's standard deviation may differ from the others'
SCALED = 3.0  # times by which responses that are said to be z-scored may be off
DRIFT = 0.05  # share of the variance that sessions explain by their means, from which they drift
STRONG_DRIFT = 0.3
FORGOTTEN = 0.5  # of their correlation within sessions, that repeats may lose across sessions
COPIED = 0.8  # share of repeats that equal another, from which all of them were made from their mean
SHARED = 0.25  # of the stimuli, that have all captions of another, from which they were joined wrongly
FEW_TEST_STIMULI = 10
SHORT_SESSION = 0.6  # of the trials of the median session
PERFECT, NOTHING = 0.999, 0.02  # noise ceilings that no recording has; shares of signal that are none


class Finding(NamedTuple):
    """What one check found. check: its name; kind: what it found, "" if nothing. subject: None for all.

    evidence: figures and examples, as JSON can hold them.
    """

    light: Light
    check: str
    kind: str
    subject: str | None
    sentence: str
    remedy: str = ""
    evidence: dict[str, Any] = {}  # noqa: RUF012 (never changed)


# T trials, V sites
@dataclass(frozen=True, eq=False)
class Survey:
    """What one reading of a subject's responses gave, from which the checks of values, scale and drift decide.

    sample: responses of `sites`, those with most signal. finite: the rows without NaN or infinity. Per session:
    its number, trials, and its sites' mean, variance, smallest and largest value over all trials.
    """

    subject: str
    trials: Trials
    space: BrainSpace
    finite: Int[np.ndarray, "n"]
    bad_sites: Int[np.ndarray, "b"]
    num_bad: int
    sites: Int[np.ndarray, "s"]
    sample: Float[np.ndarray, "t s"]
    sessions: Int[np.ndarray, "g"]
    counts: Int[np.ndarray, "g"]
    mean: Float[np.ndarray, "g v"]
    variance: Float[np.ndarray, "g v"]
    low: Float[np.ndarray, "g v"]
    high: Float[np.ndarray, "g v"]
    row_mean: Float[np.ndarray, "t"] = field(default_factory=lambda: np.zeros(0))
    row_std: Float[np.ndarray, "t"] = field(default_factory=lambda: np.zeros(0))


def damaged_files(path: Path) -> list[Finding]:
    """Files that are missing or have another size than the manifest says, so that the dataset cannot be opened.

    Raises UserError if there is no manifest of a dataset.
    """
    manifest = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
    sizes = {name: facts["bytes"] for name, facts in manifest["files"].items()}
    wrong = [
        name for name, size in sizes.items() if not (path / name).is_file() or (path / name).stat().st_size != size
    ]
    if not wrong:
        return []
    return [
        Finding(
            "red",
            "files",
            "damaged files",
            None,
            f"{len(wrong)} of {len(sizes)} files are missing or have another size than dataset.json says "
            f"({listed(wrong, 4)}); nothing else could be looked at.",
            "Copy the dataset again, or prepare it again.",
            {"files": wrong[:SHOWN], "num_files": len(sizes)},
        )
    ]


def check_files(dataset: Dataset, checksums: bool = False) -> Iterator[Finding]:
    """Whether files are those of the manifest, by size and, if asked for, by checksum; and nothing else lies there."""
    files = dataset.manifest["files"]
    changed = []
    if checksums:
        with progress("checksums", len(files)) as advance:
            for done, (name, facts) in enumerate(files.items(), 1):
                if checksum(dataset.path / name) != facts["sha256"]:
                    changed.append(name)
                advance(done, None)
    size = sum(facts["bytes"] for facts in files.values())
    if changed:
        yield Finding(
            "red",
            "files",
            "changed files",
            None,
            f"{len(changed)} of {len(files)} files have another checksum than dataset.json says "
            f"({listed(changed, 4)}).",
            "They were changed after they were written: copy the dataset again, or prepare it again.",
            {"files": changed[:SHOWN]},
        )
    else:
        how = "sizes and checksums" if checksums else "sizes (--checksums reads them whole)"
        yield Finding(
            "green",
            "files",
            "",
            None,
            f"{len(files)} files, {_bytes(size)}: {how} are those of dataset.json.",
            "",
            {"num_files": len(files), "num_bytes": size},
        )


def check_shapes(dataset: Dataset, subject: str) -> Iterator[Finding]:
    """Whether arrays and tables of a subject fit together. What does not, makes all other checks of it meaningless."""
    problems = []
    try:
        trials, space = dataset.trials(subject), dataset.space(subject)
        responses = map_tensor(dataset.responses_file(subject), "responses")
        zscore = dataset.zscore(subject)
        if responses.shape != (len(trials.split), space.num_sites):
            problems.append(
                f"responses are {list(responses.shape)} for {len(trials.split)} trials and {space.num_sites} sites"
            )
        if responses.dtype not in (np.float32, np.float16):
            problems.append(f"responses are {responses.dtype}, not float32 or float16")
        if zscore.mean.shape != zscore.std.shape or zscore.mean.shape != (len(zscore.session), space.num_sites):
            problems.append(f"z-scoring statistics are {list(zscore.mean.shape)} and {list(zscore.std.shape)}")
        elif not np.isfinite(zscore.mean).all() or not (zscore.std > 0).all():
            problems.append("z-scoring statistics hold NaN, or standard deviations that are not above 0")
        if unknown := set(trials.stimulus_id) - set(dataset.stimulus_ids):
            problems.append(f"trials show {len(unknown)} stimuli that do not exist ({listed(sorted(unknown), 3)})")
        if unknown := set(trials.split) - set(SPLITS):
            problems.append(f"trials are in splits that do not exist ({listed(sorted(unknown), 3)})")
    except (UserError, OSError, ValueError, KeyError, IndexError, TypeError, SafetensorError) as error:
        problems.append(f"files that cannot be read ({error})")
    if problems:
        yield Finding(
            "red",
            "shapes",
            "shapes",
            subject,
            f"{subject}: {'; '.join(problems)}.",
            "Files of two datasets were mixed, or edited: prepare the data again.",
            {"problems": problems},
        )
    else:
        yield Finding(
            "green",
            "shapes",
            "",
            subject,
            f"{subject}: {responses.shape[0]:,} trials x {responses.shape[1]:,} {space.kind}, {responses.dtype}; "
            "trials, space and statistics fit.",
            "",
            {"shape": list(responses.shape), "dtype": str(responses.dtype)},
        )


def check_stimuli(dataset: Dataset) -> Iterator[Finding]:
    """Pictures, features and captions: there for all, finite, none twice, none empty."""
    problems: list[str] = []
    if dataset.image_size is not None:
        pixels, owner = (map_tensor(dataset.pictures_file, name) for name in ("pixels", "stimulus"))
        if pixels.ndim != 4 or pixels.dtype != np.uint8 or pixels.shape[3] != 3 or len(owner) != len(pixels):
            problems.append(f"pictures are {pixels.dtype} {list(pixels.shape)} with {len(owner)} stimuli")
        elif len(owner) and not 0 <= owner.min() <= owner.max() < len(dataset.stimulus_ids):
            problems.append("pictures belong to stimuli that do not exist")
    for name in dataset.feature_names:
        features = map_tensor(dataset.features_file(name), "features")
        if features.ndim != 3 or len(features) != len(dataset.stimulus_ids):
            problems.append(f"features '{name}' are {list(features.shape)} for {len(dataset.stimulus_ids)} stimuli")
            continue
        starts = range(0, len(features), CHUNK)
        bad = [
            start + int(row)
            for start in starts
            for row in np.flatnonzero(~np.isfinite(features[start : start + CHUNK]).all(axis=(1, 2)))
        ]
        if bad:
            problems.append(
                f"features '{name}' hold NaN or infinity for {len(bad)} stimuli, first '{dataset.stimulus_ids[bad[0]]}'"
            )
    if problems:
        yield Finding(
            "red",
            "stimuli",
            "stimulus files",
            None,
            f"{'; '.join(problems)}.".capitalize(),
            "Prepare the pictures and features again.",
            {"problems": problems},
        )
        return
    shown_to = Counter(name for who in dataset.subjects for name in set(dataset.trials(who).stimulus_id))
    shown = set(shown_to)
    counts = {"pictures": 0, "captions": 0}
    lacking: dict[str, list[str]] = {"pictures": [], "captions": []}
    rows = set(map_tensor(dataset.pictures_file, "stimulus").tolist()) if dataset.image_size is not None else set()
    known = dataset.stimulus_ids
    for row, stimulus in enumerate(known):
        for what, has in (("pictures", row in rows), ("captions", bool(dataset.captions(stimulus)))):
            counts[what] += has
            if not has and stimulus in shown:
                lacking[what].append(stimulus)
    told = False
    for what in ("pictures", "captions"):
        if counts[what] and lacking[what]:
            told = True
            yield Finding(
                "yellow",
                "stimuli",
                f"stimuli without {what}",
                None,
                f"{len(lacking[what])} of {len(shown)} stimuli that were shown have no {what}, for example "
                f"{listed(lacking[what], 3)}.",
                f"Give their {what}, or leave their trials out: where {what} are needed, they are passed over.",
                {"num_stimuli": len(lacking[what]), "stimuli": lacking[what][:SHOWN]},
            )
    if not told:
        have = [f"{counts[what]:,} have {what}" for what in counts if counts[what]] or [
            "none has a picture or a caption"
        ]
        shared = sum(count > 1 for count in shown_to.values())
        told_of = f"{len(known):,} stimuli: {' and '.join(have)}" + (
            f"; {shared:,} were shown to more than one subject." if shared else "."
        )
        if not any(counts.values()) and not dataset.feature_names:
            yield Finding(
                "red",
                "stimuli",
                "nothing shown",
                None,
                told_of,
                "Nothing but brains can be predicted from these data: give captions, pictures or features.",
                counts | {"shared": shared},
            )
            return
        yield Finding("green", "stimuli", "", None, told_of, "", counts | {"shared": shared})


def check_captions(dataset: Dataset) -> Iterator[Finding]:
    """Captions that are empty, of nobody, said twice of one stimulus, or said word for word of several."""
    file = dataset.path / "captions.json"
    if "captions.json" not in dataset.manifest["files"]:
        return
    captions: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))
    known = set(dataset.stimulus_ids)
    foreign = sorted(set(captions) - known)
    empty = [
        stimulus for stimulus, group in captions.items() if not group or not all(str(said).strip() for said in group)
    ]
    twice = [stimulus for stimulus, group in captions.items() if 2 * len(set(group)) <= len(group)]
    same: dict[tuple[str, ...], list[str]] = {}
    for stimulus, group in captions.items():
        if len(group) >= 3:  # of one short caption, many stimuli may share it
            same.setdefault(tuple(sorted(group)), []).append(stimulus)
    shared = [stimulus for stimuli in same.values() if len(stimuli) > 1 for stimulus in stimuli]
    if len(shared) < SHARED * len(captions):  # two plain pictures may be described by the same words
        shared = []
    evidence = {"captions": sum(map(len, captions.values())), "stimuli": len(captions)}
    twice = twice if len(twice) > 0.5 * len(captions) else []  # in a few, speakers may agree
    join = "Join captions by stimulus id."
    doubts: tuple[tuple[Light, str, list[str], str, str], ...] = (
        ("red", "empty captions", empty, "have an empty caption", "Take empty captions out."),
        ("yellow", "captions of other stimuli", foreign, "with captions are no stimuli of this dataset", join),
        ("yellow", "captions given twice", twice, "have one caption more than once", "Were two caption files joined?"),
        ("yellow", "captions shared", shared, "have, word for word, all captions of another stimulus", join),
    )
    problems = [
        Finding(
            light,
            "captions",
            kind,
            None,
            f"{len(examples)} ids ({listed(examples, 3)}) {told}.",
            remedy,
            evidence | {"num": len(examples), "examples": examples[:SHOWN]},
        )
        for light, kind, examples, told, remedy in doubts
        if examples
    ]
    yield from problems
    if not problems:
        yield Finding(
            "green",
            "captions",
            "",
            None,
            f"{evidence['captions']:,} captions of {evidence['stimuli']:,} stimuli, none empty, none of other stimuli.",
            "",
            evidence,
        )


def check_leaks(dataset: Dataset, audits: Sequence[Leak], subjects: Sequence[str]) -> Iterator[Finding]:
    """What test trials left in training: see `data/audit.py`. audits: what was found in the responses of `subjects`."""
    names = {
        "stimulus": ("stimuli in two splits", "stimulus in two splits"),
        "picture": ("identical pictures", "identical pictures across splits"),
        "statistics": ("z-scoring", "z-scored with test trials"),
        "unclear statistics": ("z-scoring", "unclear z-scoring"),
        "response": ("copied trials", "trials copied across splits"),
    }
    found = [*stimulus_leaks(dataset), *audits]
    for leak in found:
        check, kind = names[leak.kind]
        if ", got others (" in leak.sentence:  # not those of all trials either
            kind = "statistics of other trials"
        sentence, _, remedy = leak.sentence.partition("). ")
        sentence, remedy = (f"{sentence}).", remedy) if remedy else (leak.sentence, "")
        yield Finding("red" if leak.certain else "yellow", check, kind, leak.subject, sentence, remedy, leak.evidence)
    told = {names[leak.kind][0] for leak in found}
    for check, fine in (
        ("stimuli in two splits", "Each stimulus is in one split, over all subjects."),
        ("identical pictures", "No picture stands, pixel for pixel, in two splits."),
        (
            "z-scoring",
            "The statistics are those of training trials; no set that holds test trials has mean 0 and SD 1.",
        ),
    ):
        looked = {"identical pictures": dataset.image_size is not None, "z-scoring": bool(subjects)}
        if check not in told and looked.get(check, True):
            yield Finding("green", check, "", None, fine)


def check_copies(audit: ResponseAudit) -> Iterator[Finding]:
    """Trials within a split that are copies of another: a run exported twice, or repeats that are their mean."""
    trials, subject = audit.trials, audit.subject
    ids = np.array(trials.stimulus_id, dtype=str)
    total, pairs = 0, []
    for split in SPLITS:
        if not len(rows := trials.rows(split)):
            continue
        copies = audit.copied(split)
        pairs += copies
        same = {row for pair in copies if ids[pair[0]] == ids[pair[1]] for row in pair}
        _, where, counts = np.unique(ids[rows], return_inverse=True, return_counts=True)
        repeated = rows[counts[where] > 1]
        total += len(rows)
        if len(repeated) >= 6 and len(same & set(repeated.tolist())) >= COPIED * len(repeated):
            yield Finding(
                "red",
                "copied trials",
                "repeats are copies",
                subject,
                f"{subject}: {len(same)} of {len(repeated)} repeats in {split} equal another repeat of their "
                f"stimulus, for example trials {copies[0][0]} and {copies[0][1]} of '{ids[copies[0][0]]}'.",
                "They are means that were written once for each repeat: noise ceilings are wrong, and so are scores "
                "of single trials. Export single trials.",
                {"split": split, "num_copies": len(same), "num_repeats": len(repeated), "trials": copies[:SHOWN]},
            )
            pairs = [pair for pair in pairs if pair not in copies]
    if pairs:
        one, other = pairs[0]
        yield Finding(
            "red",
            "copied trials",
            "duplicated trials",
            subject,
            f"{subject}: {len(pairs)} trials equal another of their split, for example trial {other} ('{ids[other]}', "
            f"session {trials.session[other]}) and trial {one} ('{ids[one]}', session {trials.session[one]}).",
            "Was a run exported twice? Leave out the copies and prepare the data again.",
            {"num_trials": len(pairs), "trials": pairs[:SHOWN]},
        )
    elif total:
        yield Finding("green", "copied trials", "", subject, f"{subject}: no trial equals another within its split.")


def check_lookalikes(dataset: Dataset) -> Iterator[Finding]:
    """Pictures of two splits that are one picture, resized, encoded again, cropped or mirrored."""
    if dataset.image_size is None:
        return
    split_of: dict[str, str] = {}
    for subject in dataset.subjects:
        trials = dataset.trials(subject)
        for stimulus, split in zip(trials.stimulus_id, trials.split, strict=True):
            split_of.setdefault(stimulus, split)
    pixels, owner = (map_tensor(dataset.pictures_file, name) for name in ("pixels", "stimulus"))
    names = [dataset.stimulus_ids[row] for row in owner.tolist()]
    rows_of = {split: [row for row, name in enumerate(names) if split_of.get(name) == split] for split in SPLITS}
    reduced: dict[str, UInt8[np.ndarray, "n s s 3"]] = {}
    with progress("pictures", sum(map(len, rows_of.values()))) as advance:
        done = 0
        for split, rows in rows_of.items():
            parts = []
            for row in rows:
                parts.append(small(np.asarray(pixels[row])))
                done += 1
                advance(done, None)
            reduced[split] = np.stack(parts) if parts else np.zeros((0, BASE, BASE, 3), np.uint8)
    found: list[tuple[str, str, Pair]] = []
    certain = 0
    for one, other in combinations(SPLITS, 2):
        for pair in lookalikes(reduced[one], reduced[other]):
            first, second = rows_of[one][pair.first], rows_of[other][pair.second]
            if names[first] == names[second] or np.array_equal(pixels[first], pixels[second]):
                continue  # these are told of as what they are
            found.append((one, other, pair._replace(first=first, second=second)))
            certain += pair.alike >= CERTAIN
    num = sum(map(len, rows_of.values()))
    if not found:
        yield Finding(
            "green",
            "near-duplicates",
            "",
            None,
            f"{num:,} pictures: none is another of another split, resized, encoded again, cropped or mirrored.",
        )
        return
    found.sort(key=lambda one: -one[2].alike)
    told = [[names[pair.first], names[pair.second], round(pair.alike, 3)] for _, _, pair in found]
    mirrored = sum(pair.mirrored for _, _, pair in found)
    one, other, pair = found[0]
    yield Finding(
        "red" if certain else "yellow",
        "near-duplicates",
        "mirrored pictures across splits" if mirrored > len(found) / 2 else "near-duplicates across splits",
        None,
        f"{len(found)} {'pair' if len(found) == 1 else 'pairs'} of pictures of two splits may be one picture, "
        f"resized, encoded again, cropped or mirrored ({mirrored} mirrored): '{names[pair.first]}' in {one} and "
        f"'{names[pair.second]}' in {other} correlate to {pair.alike:.2f} once laid over each other (different "
        "photographs: below .82).",
        "Look at them. If they are one picture, put both into one split: what is tested would have been trained on.",
        {
            "num_pairs": len(found),
            "num_mirrored": mirrored,
            "pairs": told[:SHOWN],
            "pictures": [[pair.first, pair.second] for _, _, pair in found[:SHOWN]],
        },
    )


# ---------------------------------------------------------------------------------------------------- responses


def survey(dataset: Dataset, subject: str) -> Survey:
    """Read a subject's responses once, a part at a time."""
    trials, space = dataset.trials(subject), dataset.space(subject)
    num, sites = len(trials.split), np.arange(space.num_sites)
    if space.num_sites > MOST_SITES:
        signal, noise = space.signal_variance, space.noise_variance
        rng = np.random.default_rng(0)
        worth = (
            rng.random(space.num_sites)
            if signal is None or noise is None
            else signal / np.maximum(signal + noise, 1e-12)
        )
        sites = np.sort(np.argsort(-np.nan_to_num(worth, nan=-1.0), kind="stable")[:MOST_SITES])
    sessions, group = np.unique(trials.session, return_inverse=True)
    shape = (len(sessions), space.num_sites)
    total, squares = np.zeros(shape), np.zeros(shape)
    low, high = np.full(shape, np.inf, np.float32), np.full(shape, -np.inf, np.float32)
    counts = np.zeros(len(sessions), np.int64)
    sample = np.zeros((num, len(sites)), np.float32)
    row_mean, row_std = np.zeros(num), np.zeros(num)
    finite = np.zeros(num, bool)
    bad_sites = np.zeros(space.num_sites, bool)
    num_bad = 0
    zscore = dataset.zscore(subject)
    groups = zscore.session.tolist()
    with progress(f"responses of {subject}", num) as advance:
        for start in range(0, num, CHUNK):
            rows = np.arange(start, min(start + CHUNK, num))
            values = dataset.responses(subject, rows)
            good = np.isfinite(values)
            finite[rows] = good.all(axis=1)
            bad_sites |= ~good.all(axis=0)
            num_bad += int((~good).sum())
            values[~good] = 0
            sample[rows] = values[:, sites]
            for number in np.unique(group[rows]):
                here = group[rows] == number
                inside = values[here & finite[rows]]
                if not len(inside):
                    continue
                counts[number] += len(inside)
                total[number] += inside.sum(axis=0, dtype=np.float64)
                squares[number] += np.square(inside, dtype=np.float64).sum(axis=0)
                low[number], high[number] = (
                    np.minimum(low[number], inside.min(axis=0)),
                    np.maximum(high[number], inside.max(axis=0)),
                )
                row = groups.index(sessions[number]) if sessions[number] in groups else 0
                raw = values[here] * zscore.std[row] + zscore.mean[row]
                row_mean[rows[here]], row_std[rows[here]] = raw.mean(axis=1), raw.std(axis=1)
            advance(int(rows[-1]) + 1, None)
    mean = total / np.maximum(counts, 1)[:, None]
    variance = (squares / np.maximum(counts, 1)[:, None] - mean**2).clip(min=0)
    return Survey(
        subject,
        trials,
        space,
        np.flatnonzero(finite),
        np.flatnonzero(bad_sites),
        num_bad,
        sites,
        sample,
        sessions,
        counts,
        mean,
        variance,
        low,
        high,
        row_mean,
        row_std,
    )


def check_values(one: Survey) -> Iterator[Finding]:
    """NaN and infinity; sites that never vary, over all trials or over those of a session."""
    who, num = one.subject, len(one.trials.split)
    if one.num_bad:
        rows = np.setdiff1d(np.arange(num), one.finite)
        yield Finding(
            "red",
            "finite",
            "NaN or infinity",
            who,
            f"{who}: {one.num_bad:,} values are NaN or infinite, in {len(rows)} trials (first {rows[0]}) and "
            f"{len(one.bad_sites)} sites (first {one.bad_sites[0]}).",
            "Leave out these trials, or these sites, and prepare the data again.",
            {"num_values": one.num_bad, "trials": rows[:SHOWN].tolist(), "sites": one.bad_sites[:SHOWN].tolist()},
        )
    else:
        yield Finding("green", "finite", "", who, f"{who}: all {num * one.space.num_sites:,} responses are finite.")
    flat = (one.high <= one.low) & (one.counts[:, None] >= 3)
    always = np.flatnonzero(one.high.max(axis=0) <= one.low.min(axis=0))
    sometimes = flat.copy()
    sometimes[:, always] = False
    if len(always):
        yield Finding(
            "red",
            "constant sites",
            "constant sites",
            who,
            f"{who}: {len(always)} of {one.space.num_sites} sites never vary (sites "
            f"{listed(map(str, always.tolist()))}).",
            "They lie outside the brain, or their detector was off: leave them out of the mask (`brainjanus prepare "
            "--drop-constant-sites`).",
            {"num_sites": len(always), "sites": always[:SHOWN].tolist()},
        )
    if sometimes.any():
        groups = np.flatnonzero(sometimes.any(axis=1))
        sites = np.flatnonzero(sometimes.any(axis=0))
        yield Finding(
            "yellow",
            "constant sites",
            "constant in a session",
            who,
            f"{who}: {len(sites)} sites do not vary within session "
            f"{listed(map(str, one.sessions[groups].tolist()), 4)}, though they do in others (sites "
            f"{listed(map(str, sites.tolist()))}).",
            "Was the brain cut off in that session, or a channel dead? Leave out these sites, or that session.",
            {"sessions": one.sessions[groups].tolist(), "num_sites": len(sites), "sites": sites[:SHOWN].tolist()},
        )
    if not len(always) and not sometimes.any():
        yield Finding("green", "constant sites", "", who, f"{who}: every site varies, in every session.")


def check_scale(dataset: Dataset, one: Survey) -> Iterator[Finding]:
    """Sessions of another unit, responses that are not z-scored, z-scored before, or z-scored per trial."""
    who = one.subject
    how = dataset.manifest.get("zscore", "none")
    spread, usual, unlike = _spreads(one)
    known = spread > 0
    found = False
    if len(unlike):
        found = True
        worst = int(unlike[np.argmax(np.abs(np.log(np.maximum(spread[unlike] / usual, 1e-9))))])
        yield Finding(
            "red",
            "scale",
            "session of another scale",
            who,
            f"{who}: session {listed(map(str, one.sessions[unlike].tolist()), 4)} has another scale than the others: "
            f"the standard deviation of its median site is {spread[worst]:.3g}, that of the others {usual:.3g}.",
            "Was it left in other units, or not z-scored? Give all sessions the same units, or z-score per session.",
            {
                "sessions": one.sessions[unlike].tolist(),
                "std": dict(zip(map(str, one.sessions.tolist()), spread.tolist(), strict=True)),
            },
        )
    if not found and usual > 0 and (usual > SCALED or usual < 1 / SCALED):
        found = True
        told = "is said to be z-scored" if how != "none" else "was not z-scored by `prepare`"
        yield Finding(
            "red" if how != "none" else "yellow",
            "scale",
            "not z-scored",
            who,
            f"{who}: the median site has a standard deviation of {usual:.3g}, where the dataset {told} (expected: 1).",
            'Prepare the data again with zscore = "session" or "all": models expect responses near 1.',
            {"std": usual},
        )
    zscore = dataset.zscore(who)
    if how != "none":
        off, spread_off = np.abs(zscore.mean).astype(np.float64), np.abs(zscore.std.astype(np.float64) - 1)
        if float(np.median(off)) < 2e-3 and float(np.median(spread_off)) < 2e-3 + 1 / max(float(one.counts.min()), 2):
            found = True
            yield Finding(
                "yellow",
                "scale",
                "z-scored twice",
                who,
                f"{who}: the responses were z-scored before `prepare` z-scored them: what it took away has mean "
                f"{float(np.median(off)):.1g} and standard deviation {float(np.median(zscore.std)):.4f} at the median "
                "site.",
                "Nothing is lost where training trials alone were used before; the way back to raw betas is. "
                'Prepare from raw betas, or with zscore = "none".',
                {"mean": float(np.median(off)), "std": float(np.median(zscore.std))},
            )
    rows = one.finite
    if (
        one.space.num_sites >= 10
        and len(rows) >= 10
        and float(np.quantile(np.abs(one.row_mean[rows]), 0.95)) < 1e-3
        and float(np.quantile(np.abs(one.row_std[rows] - 1), 0.95)) < 1e-2 + 1 / one.space.num_sites
    ):
        found = True
        yield Finding(
            "yellow",
            "scale",
            "z-scored per trial",
            who,
            f"{who}: each trial has mean 0 and standard deviation 1 over its sites, before it was z-scored per site.",
            "Were rows and columns exchanged? How strongly a trial responds as a whole is lost.",
            {},
        )
    if not found:
        told = f"between {spread[known].min():.2f} and {spread[known].max():.2f}" if known.any() else "0"
        yield Finding(
            "green",
            "scale",
            "",
            who,
            f"{who}: the median site's standard deviation is {told} in each session.",
            "",
            {"std": dict(zip(map(str, one.sessions.tolist()), spread.tolist(), strict=True))},
        )


def _spreads(one: Survey) -> tuple[Float[np.ndarray, "g"], float, Int[np.ndarray, "u"]]:
    """Each session's standard deviation at the median site, the usual one, and which sessions are of another scale."""
    spread = np.array([_typical(np.sqrt(variance)) for variance in one.variance])
    usual = _typical(spread)
    if usual == 0 or len(spread) < 2:
        return spread, usual, np.zeros(0, np.int64)
    ratio = spread / usual
    return spread, usual, np.flatnonzero((ratio > UNLIKE_SCALE) | ((ratio < 1 / UNLIKE_SCALE) & (one.counts >= 10)))


def in_one_scale(one: Survey) -> Survey:
    """With its sample centred and scaled within each session if sessions differ in scale, else as it is."""
    spread, _, unlike = _spreads(one)
    if not len(unlike):
        return one
    group = np.searchsorted(one.sessions, one.trials.session)
    centred = one.sample - one.mean[:, one.sites][group]
    return replace(one, sample=(centred / np.maximum(spread, 1e-12)[group][:, None]).astype(np.float32))


def _untold(one: Survey, check: str) -> Finding | None:
    """Where sessions differ in scale, whatever is compared across them is about that: it has to be mended first."""
    if not len(_spreads(one)[2]):
        return None
    sentence = f"{one.subject}: sessions differ in scale, which hides everything else that could be compared."
    return Finding("grey", check, "", one.subject, sentence, "See the check of scale, and run doctor again after it.")


def check_drift(one: Survey) -> Iterator[Finding]:
    """Sessions whose mean pattern moves, and repeats that are alike within sessions and not across them."""
    who = one.subject
    if (untold := _untold(one, "session drift")) is not None:
        yield untold
        return
    enough = one.counts >= 8
    if enough.sum() < 2:
        yield Finding("grey", "session drift", "", who, f"{who}: one session, so that none can drift from another.")
        return
    counts, mean, variance = one.counts[enough], one.mean[enough], one.variance[enough]
    num, groups = int(counts.sum()), len(counts)
    overall = (counts[:, None] * mean).sum(axis=0) / num
    between = (counts[:, None] * (mean - overall) ** 2).sum(axis=0)
    within = (counts[:, None] * variance).sum(axis=0)
    error = within / max(num - groups, 1)
    total = between + within
    share = np.divide(between - (groups - 1) * error, total + error, out=np.zeros_like(total), where=total > 0)
    drift = float(np.mean(share))  # omega squared: what sessions explain beyond sampling
    deviation = (mean - overall) / np.sqrt(np.maximum(error, 1e-12))
    patterns = np.corrcoef(deviation[:, one.sites]) if len(one.sites) > 2 else np.eye(groups)
    evidence = {
        "explained": drift,
        "sessions": one.sessions[enough].tolist(),
        "patterns": np.nan_to_num(patterns).round(3).tolist() if groups <= 60 else [],
    }
    repeats = repeat_agreement(one)
    told = ""
    if repeats is not None:
        evidence |= repeats
        told = f" Repeats correlate to {repeats['within']:.3f} within a session and {repeats['across']:.3f} across."
    if drift > DRIFT:
        yield Finding(
            "red" if drift > STRONG_DRIFT else "yellow",
            "session drift",
            "session drift",
            who,
            f"{who}: the mean pattern moves from session to session: it explains {drift:.0%} of the variance "
            "(chance: 0)." + told,
            'Z-score per session (zscore = "session"), which takes the mean of each session away.',
            evidence,
        )
    elif repeats is not None and repeats["z"] > 4 and repeats["across"] < FORGOTTEN * repeats["within"]:
        yield Finding(
            "yellow",
            "session drift",
            "repeats drift",
            who,
            f"{who}: repeats of a stimulus correlate to {repeats['within']:.3f} within a session, and to "
            f"{repeats['across']:.3f} across sessions.",
            "Was the brain aligned across sessions, and are all sessions' ids right? See the check of order.",
            evidence,
        )
    else:
        yield Finding(
            "green",
            "session drift",
            "",
            who,
            f"{who}: sessions explain {max(drift, 0):.1%} of the variance by their means.{told}",
            "",
            evidence,
        )


def repeat_agreement(one: Survey) -> dict[str, float] | None:
    """Mean correlation between trials of one stimulus, within a session and across; z: of the difference."""
    rows = one.finite
    values = one.sample[rows].astype(np.float64)
    values -= values.mean(axis=0)
    values -= values.mean(axis=1, keepdims=True)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    ids, session = np.array(one.trials.stimulus_id, dtype=str)[rows], one.trials.session[rows]
    _, where = np.unique(ids, return_inverse=True)
    order = np.argsort(where, kind="stable")
    found: dict[bool, list[float]] = {True: [], False: []}
    for group in np.split(order, np.flatnonzero(np.diff(where[order])) + 1):
        for a, b in combinations(group[:4].tolist(), 2):
            found[bool(session[a] == session[b])].append(float(values[a] @ values[b]))
    if min(len(found[True]), len(found[False])) < 8:
        return None
    inside, across = np.array(found[True]), np.array(found[False])
    error = np.sqrt(inside.var(ddof=1) / len(inside) + across.var(ddof=1) / len(across))
    difference = float(inside.mean() - across.mean())
    return {"within": float(inside.mean()), "across": float(across.mean()), "z": difference / max(float(error), 1e-12)}


def check_ceilings(dataset: Dataset, one: Survey) -> Iterator[Finding]:
    """Noise ceilings: those that are stored against the trials, and those that no recording has."""
    who, space, trials = one.subject, one.space, one.trials
    if (untold := _untold(one, "noise ceilings")) is not None:
        yield untold
        return
    _, counts = np.unique(np.array(trials.stimulus_id, dtype=str), return_counts=True)
    ceiling = space.noise_ceiling(1)
    if counts.max() < 2 or ceiling is None:
        told = "no stimulus was shown twice" if counts.max() < 2 else "no noise ceiling is stored"
        yield Finding("grey", "noise ceilings", "", who, f"{who}: {told}, so that there is no noise ceiling.")
        return
    regions = {"all sites": np.ones(space.num_sites, bool), **space.rois}
    medians = {name: float(np.median(ceiling[mask])) for name, mask in regions.items() if mask.any()}
    share = None
    for split in ("train", "test"):
        rows = np.intersect1d(trials.rows(split), one.finite)
        if share is None and len(rows):
            ids = [trials.stimulus_id[row] for row in rows]
            found = signal_and_noise(one.sample[rows].astype(np.float64), ids)
            if found is not None:
                total = one.sample[rows].var(axis=0, ddof=1, dtype=np.float64)
                share = 1 - np.divide(found.noise, total, out=np.ones_like(total), where=total > 0)
                repeated = len(ids) - len(set(ids))
    evidence: dict[str, Any] = {
        "ceilings": medians,
        "num_sites": {n: int(m.sum()) for n, m in regions.items() if m.any()},
    }
    if share is None:
        yield Finding(
            "grey", "noise ceilings", "", who, f"{who}: no stimulus was shown twice in one split.", "", evidence
        )
        return
    signal = float(np.mean(share))
    chance = 3 / np.sqrt(max(repeated, 1)) / np.sqrt(min(len(one.sites), 10))  # sites are related
    evidence |= {"signal": signal}
    perfect = [name for name, value in medians.items() if value > PERFECT]
    if perfect:
        yield Finding(
            "red",
            "noise ceilings",
            "ceilings of 1",
            who,
            f"{who}: the noise ceiling is 1 in {listed(perfect, 4)}: repeats do not differ at all.",
            "Repeats are copies, or means: export single trials.",
            evidence,
        )
    elif signal < NOTHING and signal < chance:
        yield Finding(
            "yellow",
            "noise ceilings",
            "ceilings of 0",
            who,
            f"{who}: responses to repeats of a stimulus are no more alike than to others: {signal:.1%} of the "
            f"variance is shared (chance: up to {chance:.1%}).",
            "Nothing can be decoded from such responses. Are stimulus ids right? See the check of order.",
            evidence,
        )
    else:
        yield Finding(
            "green",
            "noise ceilings",
            "",
            who,
            f"{who}: median noise ceiling of a single trial {medians['all sites']:.2f}"
            + (f", from {min(medians.values()):.2f} to {max(medians.values()):.2f} over regions" if space.rois else "")
            + f"; repeats share {signal:.1%} of the variance.",
            "",
            evidence,
        )


def check_design(dataset: Dataset, subject: str) -> Iterator[Finding]:
    """Sessions that are missing or short, splits out of balance, and how often stimuli were repeated."""
    trials = dataset.trials(subject)
    sessions, counts = np.unique(trials.session, return_counts=True)
    evidence: dict[str, Any] = {"trials": dict(zip(map(str, sessions.tolist()), counts.tolist(), strict=True))}
    found = False
    gaps = (
        sorted(set(range(int(sessions[0]), int(sessions[-1]) + 1)) - set(sessions.tolist()))
        if sessions[-1] - sessions[0] < 1000
        else []
    )
    if gaps and len(gaps) <= max(1, len(sessions) // 2):
        found = True
        yield Finding(
            "yellow",
            "design",
            "missing session",
            subject,
            f"{subject}: session {listed(map(str, gaps), 6)} is missing between {sessions[0]} and {sessions[-1]}.",
            "Was a file passed over? If responses of it are missing and its trials are not, all later ids are shifted.",
            evidence | {"missing": gaps},
        )
    usual = float(np.median(counts))
    short = [int(name) for name, count in zip(sessions[:-1], counts[:-1], strict=True) if count < SHORT_SESSION * usual]
    if short:
        found = True
        yield Finding(
            "yellow",
            "design",
            "short session",
            subject,
            f"{subject}: session {listed(map(str, short), 6)} has fewer than {SHORT_SESSION:.0%} of the {usual:.0f} "
            "trials of the median session.",
            "Was a run passed over? If so, ids of later runs may be shifted.",
            evidence | {"short": short},
        )
    num = {split: len(trials.stimuli(split)) for split in SPLITS}
    evidence |= {"stimuli": num}
    share = num["test"] / max(sum(num.values()), 1)
    if num["test"] < FEW_TEST_STIMULI or share > 0.6:
        found = True
        yield Finding(
            "yellow",
            "design",
            "unbalanced splits",
            subject,
            f"{subject}: {num['test']} test stimuli beside {num['train']} for training"
            + (": scores of so few say little." if num["test"] < FEW_TEST_STIMULI else ": most are held out."),
            "Use cross-validation over folds, or split anew, if this was not meant.",
            evidence,
        )
    _, shown = np.unique(np.array(trials.stimulus_id, dtype=str), return_counts=True)
    if not found:
        yield Finding(
            "green",
            "design",
            "",
            subject,
            f"{subject}: {len(sessions)} {'session' if len(sessions) == 1 else 'sessions'} of {usual:.0f} trials "
            "(median); "
            + ", ".join(f"{count} {split} stimuli" for split, count in num.items() if count)
            + f"; each shown {_times(int(shown.min()), int(shown.max()))}.",
            "",
            evidence | {"repeats": [int(shown.min()), int(shown.max())]},
        )


def _times(least: int, most: int) -> str:
    if least < most:
        return f"{least} to {most} times"
    return "once" if most == 1 else f"{most} times"


def _typical(values: np.ndarray) -> float:
    values = values[values > 0]
    return float(np.median(values)) if len(values) else 0.0


def _bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
