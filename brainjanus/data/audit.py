"""Leaks: what a model, or its scores, must not have known.

Enters: a Dataset as it lies on disk, or a score matrix. Leaves: one sentence for each leak, with its evidence.

`write_dataset` refuses most of this in what it is given. The audit looks again, because files are edited and copied,
and because responses are often z-scored before they come here. How it decides:

    statistics  Over the trials whose mean and standard deviation were used, each site has mean 0 and standard deviation
                1 to rounding; if m others are added to n, it deviates by about sqrt(m) / n. The median over sites
                decides, for each run, each session and all trials. Numbers rounded to 16 bits stay within TOLERANCE.
                What z-scoring with training trials afterwards has undone is no leak.
    responses   Two trials of which no site differs, and which chance cannot explain (few neurons count alike).
    order       A permutation of predictions, by rank of score: 0 in expectation, variance by Hoeffding 1951.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.stats import norm, rankdata

from brainjanus.data.dataset import SPLITS, Dataset, Trials, ZScore, listed, map_tensor
from brainjanus.data.write import digest_of

Kind = Literal["stimulus", "picture", "statistics", "unclear statistics", "response"]
TOLERANCE = 2e-3  # how far a z-scored site may be from mean 0 and standard deviation 1: numbers are rounded
EXACT = 1e-5  # ... where few sites could come that close by chance
HALF = 8e-3  # what two float16 numbers may differ by that were one, up to 8 standard deviations
FEW_SITES = 4
APART = 5  # one explanation has to fit so many times better than the other
LEAST_OWN = 3  # trials; two that are z-scored by themselves are always -1 and 1
CHANCE = 1e-3  # the expected number of equal trials by chance, under which they are copies
SHOWN = 10  # examples in the evidence
CHUNK = 1024  # trials in memory at once
LEAST_STIMULI = 10  # with fewer, no order can be told from chance
FALSE_ALARMS = 2e-3  # of `shuffled_ids`, over all the orders that are tried
LEAST_EFFECT = 0.1  # of a mean rank between -.5 and .5, so that a few extreme scores prove nothing


class Leak(NamedTuple):
    """One leak. subject: None for one between subjects. evidence: figures and examples, as JSON can hold them."""

    kind: Kind
    subject: str | None
    sentence: str
    evidence: dict[str, Any]

    @property
    def certain(self) -> bool:
        """False for what cannot be told from the data: to be reported, not refused."""
        return self.kind != "unclear statistics"


class Finding(NamedTuple):
    """An order that predictions fit better than their own. kind: "shift", "halves", "reversed", "order", "permuted"."""

    kind: str
    sentence: str
    evidence: dict[str, Any]


def find_leaks(dataset: Dataset, subjects: Sequence[str] | None = None) -> list[Leak]:
    """Everything in a dataset by which test trials reach training; an empty list if it is sound.

    Stimuli and pictures in two splits, for all subjects; statistics that were computed with test trials, and responses
    copied into another split, for `subjects` (default: all). Reads their responses and all pictures once, a part at a
    time.
    """
    leaks = [*stimulus_leaks(dataset)]
    for subject in dataset.subjects if subjects is None else subjects:
        leaks += ResponseAudit(dataset, subject).leaks
    return leaks


def stimulus_leaks(dataset: Dataset) -> Iterator[Leak]:
    """Stimuli and pictures in two splits, over all subjects."""
    trials = {subject: dataset.trials(subject) for subject in dataset.subjects}
    yield from _shared_stimuli(trials)
    yield from _shared_pictures(dataset, trials)


# ---------------------------------------------------------------------------------------------------- stimuli


def _shared_stimuli(trials: dict[str, Trials]) -> Iterator[Leak]:
    """Stimulus ids in two splits, of one subject or of two."""
    seen: dict[str, dict[str, set[str]]] = {}  # stimulus -> split -> subjects
    for subject, table in trials.items():
        for stimulus, split in zip(table.stimulus_id, table.split, strict=True):
            seen.setdefault(stimulus, {}).setdefault(split, set()).add(subject)
    for one, other in combinations(SPLITS, 2):
        both = {stimulus: splits for stimulus, splits in seen.items() if one in splits and other in splits}
        by_subject: dict[str | None, list[str]] = {}
        for stimulus, splits in sorted(both.items()):
            within = splits[one] & splits[other]
            for who in within or (None,):
                by_subject.setdefault(who, []).append(stimulus)
        for name, stimuli in sorted(by_subject.items(), key=lambda item: item[0] or ""):
            where = f"of {name}" if name else "of different subjects, which share one model"
            yield Leak(
                "stimulus",
                name,
                f"{len(stimuli)} stimuli {where}: expected each stimulus in one split, got them in {one} and in "
                f"{other} ({listed(stimuli, 3)}). Were trials split instead of stimuli? Split by stimulus and prepare "
                "the data again.",
                {"splits": [one, other], "num_stimuli": len(stimuli), "stimuli": stimuli[:SHOWN]},
            )


def _shared_pictures(dataset: Dataset, trials: dict[str, Trials]) -> Iterator[Leak]:
    """Pictures that are the same, pixel for pixel, under two ids in two splits."""
    if dataset.image_size is None:
        return
    splits: dict[str, set[str]] = {}
    for table in trials.values():
        for stimulus, split in zip(table.stimulus_id, table.split, strict=True):
            splits.setdefault(stimulus, set()).add(split)
    shown_by: dict[bytes, set[str]] = {}
    pixels, owner = (map_tensor(dataset.path / "images.safetensors", name) for name in ("pixels", "stimulus"))
    for picture, row in enumerate(owner.tolist()):
        stimulus = dataset.stimulus_ids[row]
        if stimulus in splits:
            shown_by.setdefault(digest_of(np.asarray(pixels[picture])), set()).add(stimulus)
    for one, other in combinations(SPLITS, 2):
        pairs = [
            [first, second]
            for stimuli in shown_by.values()
            for a, b in combinations(sorted(stimuli), 2)
            for first, second in ((a, b), (b, a))
            if one in splits[first] and other in splits[second]
        ]
        if pairs:
            yield Leak(
                "picture",
                None,
                f"{len(pairs)} pairs of stimuli: expected different pictures in {one} and {other}, got the same "
                f"pixels under two ids ('{pairs[0][0]}' in {one}, '{pairs[0][1]}' in {other}). Was one picture filed "
                "twice? Give both one id, as `brainjanus prepare` does, and split again.",
                {"splits": [one, other], "num_pairs": len(pairs), "pairs": pairs[:SHOWN]},
            )


# ---------------------------------------------------------------------------------------------------- statistics


# V sites
class _Moments(NamedTuple):
    """Of some trials, per site: their number, mean, and sum of squared deviations from it."""

    num: int
    mean: Float[np.ndarray, "v"]
    squares: Float[np.ndarray, "v"]


_Cells = dict[tuple[int, int, str], _Moments]  # (session, run, split) -> its moments


class _Both(NamedTuple):
    """As they are stored (z-scored, if they are), and as they came, which what was stored allows to restore."""

    stored: _Cells
    raw: _Cells


def _merged(parts: Iterable[_Moments]) -> _Moments:
    """The moments of several groups of trials together (Chan, Golub & LeVeque 1979)."""
    parts = list(parts)
    num = sum(part.num for part in parts)
    mean = np.sum([part.num * part.mean for part in parts], axis=0) / num
    squares = np.sum([part.squares + part.num * (part.mean - mean) ** 2 for part in parts], axis=0)
    return _Moments(num, mean, squares)


def _cells(dataset: Dataset, subject: str, trials: Trials) -> _Both:
    zscore = dataset.zscore(subject)
    both = _Both({}, {})
    splits = np.array(trials.split)
    for session, run, split in sorted(
        set(zip(trials.session.tolist(), trials.run.tolist(), trials.split, strict=True))
    ):
        rows = np.flatnonzero((trials.session == session) & (trials.run == run) & (splits == split))
        parts = []
        for chunk in _chunks(rows):
            values = dataset.responses(subject, chunk).astype(np.float64)
            mean = values.mean(axis=0)
            parts.append(_Moments(len(chunk), mean, ((values - mean) ** 2).sum(axis=0)))
        found = _merged(parts)
        mean, std = _used(zscore, session)
        both.stored[session, run, split] = found
        both.raw[session, run, split] = _Moments(found.num, found.mean * std + mean, found.squares * std**2)
    return both


def _chunks(rows: Int[np.ndarray, "n"]) -> list[Int[np.ndarray, "m"]]:
    return [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]


def _used(zscore: ZScore, session: int) -> tuple[np.ndarray, np.ndarray]:
    """What the responses of a session were z-scored with, float64."""
    groups = zscore.session.tolist()
    row = groups.index(session) if session in groups else 0
    return zscore.mean[row].astype(np.float64), zscore.std[row].astype(np.float64)


# what each way to z-score undoes: statistics that were used before, on the same trials or on more
_UNDONE = {"none": (), "all": ("all trials",), "session": ("all trials", "session")}


def _statistics(dataset: Dataset, subject: str, cells: _Both) -> Iterator[Leak]:
    how = dataset.manifest.get("zscore", "none")
    if how != "none":
        wrong = _misfitted(dataset, subject, how, cells.stored)
        if wrong is not None:
            yield wrong
            return
    previous = 0
    partitions = []  # from coarse to fine; one that divides no further is the one before
    for name in ("all trials", "session", "run"):
        groups: dict[tuple[int, ...], _Cells] = {}
        for (session, run, split), moments in cells.raw.items():
            group = {"all trials": (), "session": (session,), "run": (session, run)}[name]
            groups.setdefault(group, {})[session, run, split] = moments
        if len(groups) > previous:
            partitions.append((name, groups))
        previous = len(groups)
    unclear = None
    for name, groups in reversed(partitions):  # what holds in each part holds in the whole, and not the other way round
        verdicts = {group: _verdict(members) for group, members in groups.items()}
        own = [group for group, verdict in verdicts.items() if verdict.source == "held out"]
        leaking = [group for group, verdict in verdicts.items() if verdict.source == "all"]
        if own:
            yield _leak(subject, name, verdicts, own, "the held-out trials by themselves")
            return
        if leaking:
            if name not in _UNDONE[how]:
                yield _leak(subject, name, verdicts, leaking, "training and test trials together")
            return
        untold = [group for group, verdict in verdicts.items() if verdict.source == "unclear"]
        if untold and name not in _UNDONE[how]:
            unclear = name, verdicts, untold
    if unclear is not None:
        name, verdicts, untold = unclear
        yield Leak(
            "unclear statistics",
            subject,
            f"responses of {subject}: expected to see whether test trials were used for z-scoring, got mean 0 and "
            f"standard deviation 1 over training trials and over all trials alike ({_place(name, untold)}). It cannot "
            "be told: the test trials are too few, or numbers too coarse; look at how the responses were z-scored.",
            _evidence(name, verdicts, untold),
        )


class _Verdict(NamedTuple):
    """source: which trials the statistics are from: "training", "all", "held out", "unclear", or "unknown".

    deviations: of each set of trials that was tried, how far the median site is from mean 0 and standard deviation 1.
    """

    source: str
    deviations: dict[str, float]


def _verdict(cells: _Cells) -> _Verdict:
    """Which trials of one group were z-scored with."""
    sets = {
        "training": [{"train"}, {"train", "val"}],
        "all": [{"train", "test"}, {"train", "val", "test"}],
        "held out": [{"test"}, {"val", "test"}],
    }
    present = {split for _, _, split in cells}
    deviations: dict[str, float] = {}
    for name, choices in sets.items():
        for splits in choices:
            # a set of which a split is missing is another set, and statistics that nothing else uses prove nothing
            if splits <= present:
                merged = _merged(moments for (_, _, split), moments in cells.items() if split in splits)
                if merged.num >= (LEAST_OWN if name == "held out" else 2):
                    deviations[name] = min(_deviation(merged), deviations.get(name, np.inf))
    num_sites = len(next(iter(cells.values())).mean)
    tolerance = TOLERANCE if num_sites >= FEW_SITES else EXACT
    fits = {name for name, deviation in deviations.items() if deviation <= tolerance}
    if "held out" in fits:
        return _Verdict("held out", deviations)
    if "all" in fits and deviations["all"] * APART < deviations.get("training", np.inf):
        return _Verdict("all", deviations)
    if "training" in fits and deviations["training"] * APART < deviations.get("all", np.inf):
        return _Verdict("training", deviations)
    return _Verdict("unclear" if fits else "unknown", deviations)


def _deviation(moments: _Moments) -> float:
    """How far the median site is from mean 0 and standard deviation 1, whether that was divided by n or by n - 1."""
    num, mean, squares = moments
    varies = squares > 1e-12 * num * mean**2
    if num < 2 or not varies.any():
        return float("inf")
    spread = min(float(np.median(np.abs(np.sqrt(squares[varies] / n) - 1))) for n in (num, num - 1))
    return max(float(np.median(np.abs(mean[varies]))), spread)


def _misfitted(dataset: Dataset, subject: str, how: str, cells: _Cells) -> Leak | None:
    """Stored statistics that are not those of the training trials, which is what the dataset claims."""
    zscore = dataset.zscore(subject)
    found = {}
    for session in zscore.session.tolist():
        members = {cell: moments for cell, moments in cells.items() if how == "all" or cell[0] == session}
        train = [moments for (_, _, split), moments in members.items() if split == "train"]
        if not train:
            continue
        mean, std = _used(zscore, session)
        rounding = 1e-6 * float(np.median(np.abs(mean) / std))  # of float32 numbers with a large offset
        deviation = _deviation(_merged(train))
        if np.isfinite(deviation) and deviation > TOLERANCE + rounding:
            found[session] = _verdict(members)
    if not found:
        return None
    from_test = any(verdict.source in ("all", "held out") for verdict in found.values())
    got = "those of training and test trials together" if from_test else "others"
    name = "session" if how == "session" else "all trials"
    groups = [(session,) if how == "session" else () for session in found]
    return Leak(
        "statistics",
        subject,
        f"responses of {subject}: expected the mean and standard deviation of the training trials in "
        f"zscore.safetensors, got {got} ({_place(name, groups)}). Were trials added, taken out or given another split "
        "afterwards? Prepare the data again from the raw responses.",
        _evidence(name, dict(zip(groups, found.values(), strict=True)), groups),
    )


def _leak(
    subject: str, name: str, verdicts: dict[tuple[int, ...], _Verdict], groups: list[tuple[int, ...]], source: str
) -> Leak:
    return Leak(
        "statistics",
        subject,
        f"responses of {subject}: expected to be z-scored with training trials only, got mean 0 and standard "
        f"deviation 1 over {source} ({_place(name, groups)}). Were they z-scored before they were split? Start again "
        "from the raw responses; `brainjanus prepare` z-scores them.",
        _evidence(name, verdicts, groups),
    )


def _place(name: str, groups: Sequence[tuple[int, ...]]) -> str:
    if name == "all trials":
        return "over all sessions"
    names = ["/".join(map(str, group)) for group in groups]
    return f"{name if len(names) == 1 else name + 's'} {listed(names, 4)}"


def _evidence(
    name: str, verdicts: dict[tuple[int, ...], _Verdict], groups: Sequence[tuple[int, ...]]
) -> dict[str, Any]:
    """The median site's deviation from mean 0 and standard deviation 1, over each set of trials."""
    kinds = {kind for group in groups for kind, value in verdicts[group].deviations.items() if np.isfinite(value)}
    return {
        "within": name,
        "groups": [list(group) for group in groups],
        "num_groups": len(verdicts),
        "deviation": {
            kind: float(np.median([verdicts[group].deviations.get(kind, np.inf) for group in groups]))
            for kind in sorted(kinds)
        },
    }


# ---------------------------------------------------------------------------------------------------- responses


class ResponseAudit:
    """One subject's responses, read twice, a part at a time: what leaked, and which trials are equal to rounding.

    leaks: statistics that were computed with test trials, and trials that were copied into another split.
    """

    def __init__(self, dataset: Dataset, subject: str) -> None:
        self.dataset, self.subject, self.trials = dataset, subject, dataset.trials(subject)
        self.zscore = dataset.zscore(subject)
        cells = _cells(dataset, subject, self.trials)
        overall = _merged(cells.raw.values())
        self.mean = overall.mean
        scale = np.sqrt(overall.squares / overall.num)
        self.scale = np.where(scale > 0, scale, 1.0)
        slack = EXACT * (1 + np.abs(overall.mean) / self.scale)  # of float32 numbers with a large offset
        if map_tensor(dataset.responses_file(subject), "responses").dtype == np.float16:
            slack = slack + HALF
        self.slack = slack
        self.rng = np.random.default_rng(0)
        directions = self.rng.standard_normal((len(self.scale), 4))
        self.keys = np.zeros((len(self.trials.split), 4))
        for chunk in _chunks(np.arange(len(self.keys))):
            values = self.restored(chunk)
            self.keys[chunk] = values @ directions
            raw = values * self.scale + overall.mean
            # a trial without any response, filled with one number, is like all others of its kind
            self.keys[chunk[np.ptp(raw, axis=1) <= np.median(slack * self.scale)]] = np.nan
        self.known = np.flatnonzero(np.isfinite(self.keys).all(axis=1))
        self.leaks = [*_statistics(dataset, subject, cells), *self._across_splits()]

    def _across_splits(self) -> Iterator[Leak]:
        """Trials of a later split that equal one of an earlier split."""
        ids = self.trials.stimulus_id
        for one, other in combinations(SPLITS, 2):
            pairs = self._copies(self.trials.rows(one), self.trials.rows(other))
            if pairs:
                row, copy = pairs[0]
                yield Leak(
                    "response",
                    self.subject,
                    f"{len(pairs)} trials of {self.subject}: expected responses of their own in {other}, got those of "
                    f"trials in {one} (trial {copy}, '{ids[copy]}', equals trial {row}, '{ids[row]}'). Was a run "
                    "exported twice? Leave out the copies and prepare the data again.",
                    {"splits": [one, other], "num_trials": len(pairs), "trials": pairs[:SHOWN]},
                )

    def copied(self, split: str) -> list[list[int]]:
        """Trials of one split that are equal and cannot be by chance: [row, a later row that repeats it]."""
        return self._copies(self.trials.rows(split), None)

    def restored(self, rows: np.ndarray) -> Float[np.ndarray, "n v"]:
        """The trials as they came, in units of all trials: sessions are alike, whatever they were z-scored with."""
        values = self.dataset.responses(self.subject, rows).astype(np.float64)
        for session in np.unique(self.trials.session[rows]):
            mean, std = _used(self.zscore, int(session))
            here = self.trials.session[rows] == session
            values[here] = (values[here] * std + mean - self.mean) / self.scale
        return values

    def _copies(self, first: np.ndarray, second: np.ndarray | None) -> list[list[int]]:
        """[row of first, row of second that equals it]; second: None for later rows of the first."""
        if len(self.scale) < 2:  # one number proves nothing
            return []
        within = second is None
        first = first[np.isin(first, self.known)]
        second = first if second is None else second[np.isin(second, self.known)]
        if not len(first) or not len(second):
            return []
        reach = 20 * float(np.linalg.norm(self.slack))
        distance, nearest = cKDTree(self.keys[first]).query(
            self.keys[second], k=2 if within else 1, distance_upper_bound=reach
        )
        if within:  # the nearest of all is the trial itself, or one of the same place
            itself = nearest[:, 0] == np.arange(len(second))
            distance, nearest = (np.where(itself, found[:, 1], found[:, 0]) for found in (distance, nearest))
        candidates = [
            (int(first[n]), int(row)) for d, n, row in zip(distance, nearest, second, strict=True) if d < reach
        ]
        if not candidates:
            return []
        sites = self.rng.permutation(len(self.scale))[:256]
        sample = self.rng.permutation(first)[:1000]
        usual = self.restored(sample)[:, sites]
        pairs = []
        for row, copy in sorted({(min(pair), max(pair)) for pair in candidates}) if within else candidates:
            original, repeated = self.restored(np.array([row, copy]))
            if not (np.abs(original - repeated) <= self.slack).all():
                continue
            alike = np.abs(usual[(sample != row) & (sample != copy)] - repeated[sites]) <= self.slack[sites]
            log_chance = np.log((alike.sum(axis=0) + 1) / (len(alike) + 1)).sum()
            if np.log(len(first) * len(second)) + log_chance < np.log(CHANCE):
                pairs.append([row, copy])
        return pairs


# ---------------------------------------------------------------------------------------------------- order


# N stimuli
class _Order(NamedTuple):
    """A pairing that is tried: prediction `columns[r]` is held against stimulus `rows[r]`."""

    kind: str
    meaning: str
    rows: Int[np.ndarray, "m"]
    columns: Int[np.ndarray, "m"]
    shift: int | None = None


def shuffled_ids(scores: Float[np.ndarray, "n n"], stimulus_ids: Sequence[str]) -> Finding | None:
    """Whether predictions fit their stimuli in another order than the one that their ids say.

    scores: entry [i, j] is what prediction j earns against stimulus i; higher is better. stimulus_ids: of rows and
    columns. Tried: shifts by any number of places, with and without wrapping round, reversed order, ids sorted as text
    taken for ids sorted as numbers or for the given order (each way round), and any permutation that is so clear that
    stimuli and predictions choose each other.
    Returns None where the diagonal is more than half as good as the best order, where nothing stands out, or with fewer
    than LEAST_STIMULI stimuli. False alarms: under FALSE_ALARMS on noise, up to 1 % where both stimuli and predictions
    change slowly along the rows. NaN counts as the median score.
    """
    num = len(stimulus_ids)
    assert scores.shape == (num, num)
    known = np.isfinite(scores)
    if num < LEAST_STIMULI or not known.any():
        return None
    ranks = rankdata(np.where(known, scores, np.median(scores[known]))).reshape(num, num) / num**2 - 0.5
    ranks = _centred(ranks)
    variance = float((ranks**2).mean())
    if variance < 1e-12:
        return None
    diagonal = float(np.trace(ranks)) / num

    orders = list(_orders(stimulus_ids))
    effects = np.array([ranks[order.rows, order.columns].mean() for order in orders])
    lengths = np.array([len(order.rows) for order in orders])
    z = effects / np.sqrt(variance * num / (num - 1) / lengths)
    z[effects < max(LEAST_EFFECT, 2 * diagonal)] = -np.inf
    best = int(np.argmax(z))
    # predictions and stimuli that change slowly fit, or misfit, in every order a little: shifts differ more than
    # permutations do, and the best order has to stand out from all shifts but its neighbours
    rounds = np.array([order.shift is not None and len(order.rows) == num for order in orders])
    places = np.array([order.shift or 0 for order in orders])
    apart = np.abs(places - places[best]) % num
    others = effects[rounds & ((np.minimum(apart, num - apart) > 2) | (orders[best].shift is None))]
    spread = 1.4826 * float(np.median(np.abs(others - np.median(others)))) if num >= 2 * LEAST_STIMULI else 0.0
    largest = float(np.abs(others).max()) if num >= 2 * LEAST_STIMULI else 0.0
    normal = norm.isf(FALSE_ALARMS / 2 / len(orders))
    # Cornish & Fisher 1938: where few scores are high (top-1), sums of few of them are skewed, too
    skewness = float((ranks**3).mean()) / variance**1.5 / np.sqrt(lengths[best])
    needed = normal + max(skewness, 0.0) * (normal**2 - 1) / 6
    stands_out = effects[best] > max(1.5 * largest, needed * spread * np.sqrt(num / lengths[best]))
    if z[best] > needed and stands_out:
        order = orders[best]
        return _finding(
            scores,
            order.kind,
            order.meaning,
            order.rows,
            order.columns,
            {"z": float(z[best]), "num_orders": len(orders)} | ({} if order.shift is None else {"shift": order.shift}),
        )
    return _permuted(scores, np.where(known, scores, np.median(scores[known])), stimulus_ids)


def _centred(scores: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Without what a stimulus, or a prediction, earns in every pairing."""
    return scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0, keepdims=True) + scores.mean()


def _orders(ids: Sequence[str]) -> Iterator[_Order]:
    num = len(ids)
    every = np.arange(num)
    halves = {num // 2, num - num // 2}
    for shift in range(1, num):
        places = shift if shift <= num // 2 else shift - num
        step = f"{abs(places)} {'place' if abs(places) == 1 else 'places'} {'later' if places > 0 else 'earlier'}"
        if shift in halves:
            yield _Order("halves", "of the other half: the two halves are swapped", (every + shift) % num, every, shift)
        else:
            yield _Order("shift", f"{step}, going on at the other end", (every + shift) % num, every, places)
        columns = every[(every + places >= 0) & (every + places < num)]
        yield _Order("shift", step, columns + places, columns, places)
    yield _Order("reversed", "at the same place counted from the end: the order is reversed", every[::-1].copy(), every)

    def natural(row: int) -> list[tuple[bool, int, str]]:
        parts = re.split(r"(\d+)", ids[row])
        return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]

    sortings = {
        "as they are given": every,
        "sorted as text ('10' before '2')": np.array(sorted(range(num), key=lambda row: ids[row])),
        "sorted as numbers ('2' before '10')": np.array(sorted(range(num), key=natural)),
    }
    for made, labelled in [(a, b) for a in sortings for b in sortings if a != b]:
        if not np.array_equal(sortings[made], sortings[labelled]):
            meaning = f"that the ids name when {made}, while they were handed out {labelled}"
            yield _Order("order", meaning, sortings[made], sortings[labelled])


def _permuted(scores: np.ndarray, filled: np.ndarray, ids: Sequence[str]) -> Finding | None:
    """A permutation without a name: the best assignment, where nearly all stimuli and predictions choose each other.

    Among random scores half of them do, with a standard deviation of .35 / sqrt(n), and fewer where scores are related.
    The assignment has to be better, too, than each of those of matrices whose rows were shuffled.
    """
    num = len(ids)
    centred = _centred(filled)
    rows, columns = linear_sum_assignment(centred, maximize=True)
    value = float(centred[rows, columns].mean())
    own = centred == centred.max(axis=1, keepdims=True)
    own &= centred == centred.max(axis=0, keepdims=True)
    own[:, own.sum(axis=0) > 1] = False
    own[own.sum(axis=1) > 1] = False
    mutual = float(own[rows, columns].mean())
    if mutual < max(0.8, 0.5 + 1.27 / np.sqrt(num)) or float(np.trace(centred)) / num > value / 2:
        return None
    rng = np.random.default_rng(0)
    for _ in range(20):
        shuffled = _centred(rng.permuted(centred, axis=1))
        if shuffled[linear_sum_assignment(shuffled, maximize=True)].mean() >= value:
            return None
    return _finding(
        scores, "permuted", "of another id, each of its own: the order is mixed up", rows, columns,
        {"mutual": mutual, "predictions": [[ids[j], ids[i]] for i, j in zip(rows, columns, strict=True)][:SHOWN]},
    )  # fmt: skip


def _finding(
    scores: np.ndarray, kind: str, meaning: str, rows: np.ndarray, columns: np.ndarray, evidence: dict[str, Any]
) -> Finding:
    found, own, floor = (float(np.nanmean(part)) for part in (scores[rows, columns], np.diag(scores), scores))
    return Finding(
        kind,
        f"{len(scores)} predictions: expected to fit the stimuli of their ids best, got a score of {own:.3g} there "
        f"(floor {floor:.3g}) and of {found:.3g} where predictions fit the stimulus {meaning}. Were ids given by "
        "position, in another order than the predictions have? Key the predictions by stimulus id.",
        {"score": found, "own": own, "floor": floor} | evidence,
    )
