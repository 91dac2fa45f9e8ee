"""Is a dataset sound, and are predictions for it? Findings leave, a page with traffic lights, and a table.

Enters: a dataset's folder, and predictions of any software if there are some. What its files alone tell is looked at by
`data/doctor.py`; here is whether stimuli belong to their responses, captions to their pictures, and predictions to the
stimuli of their ids.

    order        kernel ridge from responses to features of the pictures (built-in wavelets, stored features; else
                 the captions' words) has to fit held-out trials as ids are given; if not, shifts, reversals and
                 swapped halves are tried, of all trials, within sessions and splits, and of each session by itself
    captions     the same from pictures, and from responses, to the captions' words
    predictions  ids, units, and the order that they fit best, as `data/audit.py` finds it
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from brainjanus.core.errors import UserError, written_beside
from brainjanus.data.audit import Leak, ResponseAudit, shuffled_ids
from brainjanus.data.dataset import Dataset, listed, map_tensor
from brainjanus.data.doctor import (
    LIGHTS,
    SHOWN,
    Finding,
    Survey,
    check_captions,
    check_ceilings,
    check_copies,
    check_design,
    check_drift,
    check_files,
    check_leaks,
    check_lookalikes,
    check_scale,
    check_shapes,
    check_stimuli,
    check_values,
    damaged_files,
    in_one_scale,
    survey,
)
from brainjanus.data.order import LEAST_ROWS, Fit, best_order, cut, hat_matrix, kernel, parts_fit, rows_to_look_at
from brainjanus.data.readers.nifti import is_nifti
from brainjanus.data.readers.predictions import (
    read_caption_predictions,
    read_picture_predictions,
    read_response_predictions,
)
from brainjanus.evaluate.baselines import TEXT_FEATURES, BagOfWords
from brainjanus.evaluate.brain import pattern_scores
from brainjanus.evaluate.checkup import as_json, write_checkup
from brainjanus.evaluate.image import pixcorr_scores
from brainjanus.evaluate.text import content_f1_scores
from brainjanus.info import describe
from brainjanus.tokenizers.vision import ENCODERS
from brainjanus.train.codes import features_of

MOST_ROWS = 1200  # trials, or stimuli, whose order is looked at; its cost grows with their square
ROWS_OF_SESSION = 180  # ... of each session, in three stretches, if there are more
STRETCHES, LEAST_OF_STRETCH = 3, 20  # of a session; a row that was left out moves those that follow it
MOST_FEATURES = 4096  # numbers of a stimulus; of more, tokens are averaged
MOST_SHIFT = 150  # places, where only stretches of the rows are looked at
POWERFUL = 100  # rows from which it is an alarm that nothing fits
SESSION_FITS, SESSION_FOUND = 4.5, 5.5  # standard deviations above chance, of one session
SESSION_LOST = 1.5  # ... and at most, of one that does not fit at all
LEAST_SAID = 3  # stimuli whose captions have to hold a word
FAR_OFF = 3.0  # z-scored predictions with a larger mean or standard deviation are in other units
SILENT = 1e-3  # standard deviation over stimuli of predictions that are the same for all
WRITTEN = "responses.safetensors"  # by `brainjanus generate`, in a folder
ALERT = 1  # exit status where something is red


@dataclass(frozen=True, eq=False)
class Checkup:
    """All findings about one dataset, the gravest first."""

    dataset: str
    path: Path
    fingerprint: str
    findings: list[Finding]
    opened: Dataset | None = None

    @property
    def status(self) -> int:
        """0, or ALERT if something is red."""
        return ALERT if any(finding.light == "red" for finding in self.findings) else 0

    def facts(self) -> dict[str, Any]:
        """As JSON can hold it."""
        counts = {light: sum(one.light == light for one in self.findings) for light in LIGHTS}
        return {
            "dataset": self.dataset,
            "path": str(self.path),
            "fingerprint": self.fingerprint,
            "lights": counts,
            "findings": [as_json(finding._asdict()) for finding in self.findings],
        }


def diagnose(
    dataset: Dataset | Path | str,
    predictions: Path | str | None = None,
    *,
    subject: str | None = None,
    ids: Path | None = None,
    split: str = "test",
    checksums: bool = False,
) -> list[Finding]:
    """Everything that can be told about a dataset, and about predictions for it; the gravest first.

    predictions: captions, pictures or responses, as `brainjanus score` reads them; ids: of an array's rows; subject:
    whose responses were predicted (default: the one with as many sites); split: that was predicted. checksums: read
    every file. Raises UserError if it is no dataset, or if predictions cannot be read.
    """
    return checkup(dataset, predictions, subject=subject, ids=ids, split=split, checksums=checksums).findings


def doctor(
    dataset: Path | str,
    out: Path | str | None = None,
    predictions: Path | str | None = None,
    *,
    subject: str | None = None,
    ids: Path | None = None,
    split: str = "test",
    checksums: bool = False,
) -> Checkup:
    """`diagnose`, and OUT/doctor.html and OUT/doctor.json. out: default: a folder beside the dataset."""
    out = out_of(Path(dataset)) if out is None else Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: expected a folder for doctor.html and doctor.json, got a file. Choose another --out.")
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if Path(dataset).exists() and not os.access(place, os.W_OK):  # before minutes are spent
        raise UserError(f"{out}: expected a place that can be written to, got {place}, which cannot. Give --out.")
    found = checkup(dataset, predictions, subject=subject, ids=ids, split=split, checksums=checksums)
    with written_beside(out / "doctor.json") as beside:
        beside.write_text(told(found) + "\n", encoding="utf-8")
    write_checkup(out / "doctor.html", found.opened, found.findings, found.dataset, found.fingerprint)
    return found


def told(found: Checkup) -> str:
    """All findings as JSON."""
    return json.dumps(found.facts(), indent=1, ensure_ascii=False)


def out_of(dataset: Path) -> Path:
    """Where the page of a dataset goes if nobody says: beside its folder, which holds only itself and its card."""
    dataset = dataset.resolve()
    return dataset.parent / f"{dataset.name}-doctor"


def checkup(
    dataset: Dataset | Path | str,
    predictions: Path | str | None = None,
    *,
    subject: str | None = None,
    ids: Path | None = None,
    split: str = "test",
    checksums: bool = False,
) -> Checkup:
    """`diagnose`, with what was looked at."""
    if not isinstance(dataset, Dataset):
        path = Path(dataset)
        if path.exists() and not (path / "dataset.json").is_file():
            raise UserError(
                f"{path}: expected a dataset folder, got {describe(path).sentence} Is the path right? `brainjanus "
                "prepare` makes such a folder."
            )
        try:
            dataset = Dataset.open(path)
        except UserError as error:
            try:
                damaged = damaged_files(path)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                raise error from None
            if not damaged:
                raise
            manifest = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
            return Checkup(str(manifest.get("name")), path, str(manifest.get("fingerprint")), damaged)
    findings = [*check_files(dataset, checksums)]
    shapes = [finding for who in dataset.subjects for finding in check_shapes(dataset, who)]
    findings += shapes
    sound = [finding.subject for finding in shapes if finding.light == "green" and finding.subject]
    try:
        stimuli = [*check_stimuli(dataset)]
    except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        stimuli = [
            Finding(
                "red", "stimuli", "stimulus files", None, f"Stimuli cannot be read ({error}).", "Prepare them again."
            )
        ]
    findings += stimuli
    if len(sound) == len(dataset.subjects) and not any(one.kind == "stimulus files" for one in stimuli):
        findings += _looked_at(dataset, sound)
        if predictions is not None:
            findings += check_predictions(dataset, predictions, subject=subject, ids=ids, split=split)
    findings.sort(key=lambda finding: LIGHTS.index(finding.light))
    return Checkup(dataset.name, dataset.path, dataset.fingerprint, findings, dataset)


def _looked_at(dataset: Dataset, subjects: Sequence[str]) -> Iterator[Finding]:
    """All checks of a dataset whose files fit together."""
    features = Features(dataset)
    finite: list[str] = []
    leaks: list[Leak] = []
    for who in subjects:
        one = survey(dataset, who)
        yield from check_values(one)
        yield from check_scale(dataset, one)
        yield from check_drift(one)
        yield from check_ceilings(dataset, one)
        yield from check_design(dataset, who)
        yield from check_order(dataset, one, features)
        if not one.num_bad:
            finite.append(who)
            audit = ResponseAudit(dataset, who)
            leaks += audit.leaks
            yield from check_copies(audit)
    yield from check_leaks(dataset, leaks, finite)
    yield from check_lookalikes(dataset)
    yield from check_captions(dataset)
    yield from check_caption_links(dataset, finite, features)


# ---------------------------------------------------------------------------------------------------- order


class Features:
    """Features of stimuli, each made once: order and captions are looked at by the same ones."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._known: dict[str, dict[str, np.ndarray]] = {}

    def of(self, name: str, ids: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """One row for each stimulus; tokens of large features are averaged."""
        known = self._known.setdefault(name, {})
        if missing := [stimulus for stimulus in ids if stimulus not in known]:
            found = features_of(self.dataset, name, missing)
            rows = (found.mean(dim=1) if found[0].numel() > MOST_FEATURES else found.flatten(1)).numpy()
            known.update(zip(missing, rows, strict=True))
        return np.stack([known[stimulus] for stimulus in ids])


def check_order(dataset: Dataset, one: Survey, features: Features) -> Iterator[Finding]:
    """Whether each trial shows the stimulus that its row names."""
    one = in_one_scale(one)
    who, trials = one.subject, one.trials
    names, known = described(dataset, sorted({trials.stimulus_id[row] for row in one.finite}))
    usable = one.finite[[trials.stimulus_id[row] in known for row in one.finite]]
    if not known or len(usable) < LEAST_ROWS:
        told = f"only {len(usable)} trials" if known else "no picture, feature or caption"
        yield Finding(
            "grey", "stimulus order", "", who, f"{who}: {told} to tell by whether stimuli are those of their ids."
        )
        return
    looked = usable[rows_to_look_at(len(usable), MOST_ROWS)]
    stretches = len(looked) < len(usable)
    session = trials.session[looked]
    hat = hat_matrix(kernel(one.sample[looked]), cut(len(looked), None if stretches else session))
    targets = _targets(features, [trials.stimulus_id[row] for row in looked], names)
    groups = {"session": session, "split": np.array(trials.split, dtype=str)[looked]}
    fit = best_order(hat, targets, groups, MOST_SHIFT if stretches else None)
    if fit is None:
        yield Finding("grey", "stimulus order", "", who, f"{who}: neither responses nor stimuli vary.")
        return
    evidence = {**_evidence(fit), "features": names}
    basis = f"ridge from responses to {' and '.join(names)} over {fit.num_rows} trials"
    if fit.kind == "own":
        unfit = list(_unfit_sessions(one, features, usable, names, None if stretches else (looked, hat, targets)))
        yield from unfit
        if not unfit:
            yield Finding(
                "green",
                "stimulus order",
                "",
                who,
                f"{who}: stimuli fit the trials of their ids: {basis} correlates to {fit.own_r:.3f} with held-out "
                f"trials, {fit.own:.1f} standard deviations above shuffled ids; no other order fits as well.",
                "",
                evidence,
            )
    elif fit.kind == "none":
        yield Finding(
            "red" if fit.num_rows >= POWERFUL else "yellow",
            "stimulus order",
            "ids permuted",
            who,
            f"{who}: stimuli fit the trials of their ids no better than shuffled ones ({basis} correlates to "
            f"{fit.own_r:.3f}, {fit.own:.1f} standard deviations above chance), and no shift, reversal or swap of "
            "halves does.",
            "Either ids are permuted (were they sorted, or given by position?) or the responses hold no signal: see "
            "the noise ceilings. Join responses and stimuli by the onset of each trial.",
            evidence,
        )
    else:
        kind = {"shift": "ids shifted", "halves": "halves swapped", "reversed": "ids reversed"}[fit.kind]
        yield Finding(
            "red",
            "stimulus order",
            kind,
            who,
            f"{who}: trials fit the stimulus that the table of trials names {fit.meaning}: {basis} correlates to "
            f"{fit.best_r:.3f} with held-out trials in that order ({fit.best:.1f} standard deviations above chance), "
            f"and to {fit.own_r:.3f} ({fit.own:.1f}) as ids are given.",
            "Move the stimulus ids by that much against the responses, and find out which row was left out or came "
            "first.",
            evidence,
        )


def _unfit_sessions(
    one: Survey,
    features: Features,
    usable: Int[np.ndarray, "n"],
    names: Sequence[str],
    known: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
) -> Iterator[Finding]:
    """Sessions whose ids are moved though those of the others are right."""
    who, trials = one.subject, one.trials
    if len(np.unique(trials.session[usable])) < 2:
        return
    if known is None:
        parts = [np.flatnonzero(trials.session[usable] == session) for session in np.unique(trials.session[usable])]
        few = max(12, min(ROWS_OF_SESSION, 2 * MOST_ROWS // len(parts)))
        rows = usable[np.concatenate([part[_spread(len(part), few)] for part in parts])]
        hat = hat_matrix(kernel(one.sample[rows]), cut(len(rows), trials.session[rows]))
        targets = _targets(features, [trials.stimulus_id[row] for row in rows], names)
    else:
        rows, hat, targets = known
    session = trials.session[rows]
    fits = parts_fit(hat, targets, session)
    if len(fits) < 2:
        return
    stretch = np.empty(len(rows), np.int64)
    for number in np.unique(session).tolist():
        here = np.flatnonzero(session == number)
        stretch[here] = np.arange(len(here)) * min(STRETCHES, max(1, len(here) // LEAST_OF_STRETCH)) // len(here)
    places = {int(s): n for n, s in enumerate(np.unique(session).tolist())}
    labels = np.array([places[int(s)] for s in session]) * STRETCHES + stretch
    of_stretches = parts_fit(hat, targets, labels)
    evidence = {"sessions": [fit._asdict() for fit in fits]}
    moved, lost = [], []
    for fit in fits:
        usual = float(np.median([other.own for other in fits if other is not fit]))
        if usual < SESSION_FITS:
            continue
        if fit.best > SESSION_FOUND and fit.own < fit.best / 2 and (fit.shift or fit.reversed):
            moved.append(fit)
        elif fit.own < SESSION_LOST and usual > 4 * SESSION_LOST:
            lost.append(fit)
    named = {fit.part for fit in (*moved, *lost)}
    numbers = np.unique(session).tolist()
    for fit in of_stretches:
        number, part = numbers[fit.part // STRETCHES], fit.part % STRETCHES
        usual = float(np.median([other.own for other in of_stretches if other is not fit]))
        if number in named or not (usual >= SESSION_FITS and fit.best > SESSION_FOUND and fit.own < fit.best / 2):
            continue
        if fit.shift and not fit.reversed:
            named.add(number)
            first = int(np.flatnonzero(labels == fit.part)[0])
            yield Finding(
                "red",
                "stimulus order",
                "part of a session shifted",
                who,
                f"{who}: in session {number}, trials around row {int(rows[first])} of the table fit the "
                f"stimulus that it names {_way(fit.shift)} ({fit.best:.1f} standard deviations above chance; "
                f"{fit.own:.1f} as ids are given), where other trials fit as they are.",
                "Was a trial left out of the responses or of the table before these? Compare the onsets.",
                evidence | {"session": number, "shift": fit.shift, "stretch": part},
            )
    for fit in moved:
        way = _way(fit.shift)
        way = "at the same place counted from its end" if fit.reversed else way
        yield Finding(
            "red",
            "stimulus order",
            "session reversed" if fit.reversed else "session shifted",
            who,
            f"{who}: in session {fit.part}, trials fit the stimulus that its table names {way} ({fit.best:.1f} "
            f"standard deviations above chance; {fit.own:.1f} as ids are given), where other sessions fit as they are.",
            "Was a trial of that session left out of the responses or of the table? Move its ids by that much.",
            evidence | {"session": fit.part, "shift": fit.shift},
        )
    for fit in lost:
        yield Finding(
            "red" if fit.num_rows >= POWERFUL else "yellow",
            "stimulus order",
            "session permuted",
            who,
            f"{who}: in session {fit.part}, stimuli fit trials no better than chance ({fit.own:.1f} standard "
            "deviations), in whatever shift, where other sessions do.",
            "Are ids of that session those of another one, or are its responses bad?",
            evidence | {"session": fit.part},
        )


def _way(shift: int) -> str:
    return f"{abs(shift)} {'place' if abs(shift) == 1 else 'places'} {'later' if shift > 0 else 'earlier'}"


def _spread(num: int, few: int) -> Int[np.ndarray, "n"]:
    """At most `few` of so many rows: equal stretches from their beginning, their middle and their end."""
    if num <= few:
        return np.arange(num)
    long = few // STRETCHES
    starts = [part * (num - long) // (STRETCHES - 1) for part in range(STRETCHES)]
    return np.concatenate([np.arange(start, start + long) for start in starts])


def described(dataset: Dataset, stimuli: Sequence[str]) -> tuple[list[str], set[str]]:
    """By which features stimuli are told apart, and which of these stimuli have them.

    Wavelets of their pictures, and stored features that were not made from words; the words of captions without both.
    """
    names = [name for name in dataset.feature_names if name not in TEXT_FEATURES]
    if dataset.image_size is not None:
        with_picture = set(map_tensor(dataset.pictures_file, "stimulus").tolist())
        kept = {
            stimulus
            for stimulus, row in zip(stimuli, dataset.rows_of(stimuli), strict=True)
            if int(row) in with_picture
        }
        if len(kept) > len(stimuli) // 2:
            return [*dict.fromkeys([*names, *ENCODERS])], kept
    if names:
        return names, set(stimuli)
    said = {stimulus for stimulus in stimuli if dataset.captions(stimulus)}
    return (["words"], said) if said else ([], set())


def _targets(features: Features, shown: Sequence[str], names: Sequence[str]) -> Float[np.ndarray, "n n"]:
    """The kernel of the features of what each row shows; each kind of features counts alike."""
    ids = sorted(set(shown))
    rows = _places(ids, shown)
    total = np.zeros((len(shown), len(shown)), np.float32)
    for name in names:
        part = kernel((word_table(features.dataset, ids) if name == "words" else features.of(name, ids))[rows])
        total += part / max(float(np.trace(part)) / len(part), 1e-12)
    return total


def _places(ids: Sequence[str], shown: Sequence[str]) -> list[int]:
    place = {name: row for row, name in enumerate(ids)}
    return [place[name] for name in shown]


def word_table(dataset: Dataset, ids: Sequence[str]) -> Float[np.ndarray, "n w"]:
    """Which words the captions of each stimulus hold, of the words that some of them share."""
    captions = [dataset.captions(stimulus) for stimulus in ids]
    table = BagOfWords(captions).encode(captions)
    return table[:, (table > 0).sum(axis=0) >= LEAST_SAID]


def _evidence(fit: Fit) -> dict[str, Any]:
    return {
        "order": fit.kind,
        "shift": fit.shift,
        "within": fit.within,
        "z": fit.own,
        "best_z": fit.best,
        "r": fit.own_r,
        "best_r": fit.best_r,
        "num_rows": fit.num_rows,
        "by_shift": fit.by_shift,
    }


# ---------------------------------------------------------------------------------------------------- captions


def check_caption_links(dataset: Dataset, subjects: Sequence[str], features: Features) -> Iterator[Finding]:
    """Whether captions are those of their stimuli, by the pictures and by the responses."""
    every = [stimulus for stimulus in dataset.stimulus_ids if dataset.captions(stimulus)]
    if not every:
        return
    fits: dict[str, Fit] = {}
    names, known = described(dataset, every)
    if names and names != ["words"]:
        ids = [stimulus for stimulus in every if stimulus in known]
        fit = _words_fit(features, [ids[row] for row in rows_to_look_at(len(ids), MOST_ROWS)], names)
        if fit is not None:
            fits["pictures"] = fit
    for who in subjects:
        trials = dataset.trials(who)
        seen = set(trials.stimulus_id)
        ids = [stimulus for stimulus in every if stimulus in seen]
        ids = [ids[row] for row in rows_to_look_at(len(ids), MOST_ROWS)]
        fit = _words_fit(features, ids, None, who) if len(ids) >= LEAST_ROWS else None
        if fit is not None:
            fits[f"responses of {who}"] = fit
    if not fits:
        yield Finding("grey", "caption links", "", None, "Too few captions share words to tell whether they fit.")
        return
    moved = {source: fit for source, fit in fits.items() if fit.kind not in ("own", "none")}
    own = {source: fit for source, fit in fits.items() if fit.kind == "own"}
    source, fit = max((moved or own or fits).items(), key=lambda item: item[1].best)
    evidence = {**_evidence(fit), "from": source, "sources": {name: round(one.own, 2) for name, one in fits.items()}}
    basis = f"ridge from {source} to words over {fit.num_rows} stimuli"
    if moved:
        kind = {"shift": "captions shifted", "halves": "captions shifted", "reversed": "captions reversed"}[fit.kind]
        yield Finding(
            "red",
            "caption links",
            kind,
            None,
            "Captions are those of the stimulus that stands, in the sorted list of stimuli, "
            f"{_opposite(fit).meaning}: {basis} correlates to {fit.best_r:.3f} in that order ({fit.best:.1f} standard "
            f"deviations above chance), and to {fit.own_r:.3f} ({fit.own:.1f}) as they are given.",
            "Join captions by stimulus id, not by their place in a list.",
            evidence,
        )
    elif own:
        yield Finding(
            "green",
            "caption links",
            "",
            None,
            f"Captions fit their stimuli: {basis} correlates to {fit.own_r:.3f} with held-out ones, {fit.own:.1f} "
            "standard deviations above shuffled captions.",
            "",
            evidence,
        )
    else:
        yield Finding(
            "red" if fit.num_rows >= POWERFUL else "yellow",
            "caption links",
            "captions permuted",
            None,
            f"Captions fit their stimuli no better than shuffled ones: {basis} correlates to {fit.own_r:.3f} "
            f"({fit.own:.1f} standard deviations above chance).",
            "Were they joined by a wrong id? Look at some pictures with their captions.",
            evidence,
        )


def _opposite(fit: Fit) -> Fit:
    """Seen from the caption, not from the stimulus."""
    return fit._replace(shift=-fit.shift)


def _words_fit(features: Features, ids: Sequence[str], names: Sequence[str] | None, who: str = "") -> Fit | None:
    dataset = features.dataset
    if len(ids) < LEAST_ROWS:
        return None
    words = word_table(dataset, ids)
    if words.shape[1] < 2:
        return None
    if names is not None:
        sources = _targets(features, ids, names)
    else:
        trials, wanted = dataset.trials(who), set(ids)
        rows = np.array([row for row, stimulus in enumerate(trials.stimulus_id) if stimulus in wanted])
        rows = rows[: 3 * MOST_ROWS]
        place = {stimulus: row for row, stimulus in enumerate(ids)}
        where = np.array([place[trials.stimulus_id[row]] for row in rows])
        counts = np.bincount(where, minlength=len(ids))
        if (counts == 0).any():
            ids = [stimulus for stimulus, count in zip(ids, counts, strict=True) if count]
            return _words_fit(features, ids, None, who) if len(ids) < len(counts) else None
        sums = np.zeros((len(ids), dataset.space(who).num_sites), np.float32)
        np.add.at(sums, where, dataset.responses(who, rows))
        sources = kernel(sums / counts[:, None])
    return best_order(hat_matrix(sources, cut(len(ids))), kernel(words))


# ---------------------------------------------------------------------------------------------------- predictions


def check_predictions(
    dataset: Dataset, source: Path | str, *, subject: str | None = None, ids: Path | None = None, split: str = "test"
) -> Iterator[Finding]:
    """Ids, units and order of predictions; captions, pictures or responses, by what the file holds."""
    path = Path(source)
    where = path.name
    wanted = set(dataset.split_ids(split))
    if not wanted:
        raise UserError(f"--split: expected a split with stimuli, got '{split}'. Give train, val or test.")
    kind = kind_of(path)
    values: Any
    if kind == "captions":
        captions = read_caption_predictions(path)
        names, values = list(captions), list(captions.values())
    elif kind == "pictures":
        names, values = read_picture_predictions(str(source), ids)
    else:
        who = subject or next(iter(dataset.subjects))
        source = path / WRITTEN if path.is_dir() else source
        names, values = read_response_predictions(str(source), ids, dataset.space(who))
        fitting = [name for name in dataset.subjects if dataset.space(name).num_sites == values.shape[1]]
        if subject is None and len(fitting) > 1:
            raise UserError(
                f"{source}: expected to know whose responses were predicted, got {values.shape[1]} sites, as "
                f"{listed(fitting)} have. Give --subject."
            )
        if not fitting or (subject is not None and subject not in fitting):
            sites = ", ".join(f"{name} {dataset.space(name).num_sites}" for name in dataset.subjects)
            raise UserError(
                f"{source}: expected responses of as many sites as {subject or 'a subject'} has ({sites}), got "
                f"{values.shape[1]}. Were they predicted with another mask?"
            )
        subject = fitting[0] if subject is None else subject
        wanted = set(dataset.trials(subject).stimuli(split))
    yield from _check_ids(dataset, where, names, wanted, split)
    shared = [row for row, name in enumerate(names) if name in wanted]
    if not shared:
        return
    stimuli = [names[row] for row in shared]
    if kind == "captions":
        scores = content_f1_scores([dataset.captions(name) for name in stimuli], [values[row] for row in shared])
        most = max(values.count(caption) for caption in set(values))
        if most > len(values) / 2 and len(values) >= 10:
            yield Finding(
                "yellow",
                "predictions: values",
                "one caption for all",
                None,
                f"{where}: {most} of {len(values)} captions are the same one.",
                "Did the decoder read the responses?",
                {"num_same": most},
            )
    elif kind == "pictures":
        side = min(picture.shape[0] for picture in values)
        from PIL import Image

        small = np.stack([np.asarray(Image.fromarray(values[row]).resize((side, side))) for row in shared])
        scores = pixcorr_scores([dataset.pictures(name) for name in stimuli], small)
    else:
        assert subject is not None
        measured = dataset.averages(subject, split, among=stimuli)
        place = {name: row for row, name in enumerate(stimuli)}
        predicted = np.asarray(values)[[shared[place[name]] for name in measured.stimulus_ids]]
        stimuli_in_order = measured.stimulus_ids
        unit = [*_check_units(dataset, where, subject, predicted)]
        yield from unit
        if any(one.kind == "raw betas" for one in unit):
            units = dataset.units(subject)
            predicted = ((predicted - units.mean) / units.std).astype(np.float32)
        order = np.argsort([place[name] for name in stimuli_in_order])  # as they stand in the file
        stimuli = [stimuli_in_order[row] for row in order]
        scores = pattern_scores(
            measured.responses[order] - measured.responses.mean(axis=0), predicted[order] - predicted.mean(axis=0)
        )
    yield from _check_prediction_order(where, scores, stimuli, subject if kind == "responses" else None)


def kind_of(path: Path) -> str:
    """What a file of predictions holds: "captions", "pictures" or "responses"."""
    if not path.exists() and not path.parent.exists():
        raise UserError(f"{path}: expected a file or folder of predictions, got nothing there. Check the path.")
    if path.suffix.lower() in (".json", ".tsv", ".csv"):
        return "captions"
    if (path / WRITTEN).is_file():  # by `brainjanus generate`
        return "responses"
    if path.is_dir() or path.suffix.lower() in (".zip", ".tar"):
        return "pictures"
    if is_nifti(str(path)):
        return "responses"
    from brainjanus.data.readers.arrays import read_array
    from brainjanus.data.readers.predictions import only_array

    try:
        return "pictures" if np.ndim(read_array(only_array(str(path)))) == 4 else "responses"
    except UserError:
        return "responses"


def _check_ids(dataset: Dataset, where: str, names: Sequence[str], wanted: set[str], split: str) -> Iterator[Finding]:
    known = set(dataset.stimulus_ids)
    foreign = [name for name in names if name not in known]
    elsewhere = [name for name in names if name in known and name not in wanted]
    missing = sorted(wanted - set(names))
    twice = len(names) - len(set(names))
    evidence = {
        "num": len(names),
        "num_foreign": len(foreign),
        "foreign": foreign[:SHOWN],
        "num_missing": len(missing),
        "missing": missing[:SHOWN],
        "num_elsewhere": len(elsewhere),
        "num_twice": twice,
    }
    check = "predictions: ids"
    if foreign:
        yield Finding(
            "red",
            check,
            "foreign ids",
            None,
            f"{where}: {len(foreign)} of {len(names)} ids are no stimuli of {dataset.name} ({listed(foreign, 3)}; its "
            f"own are like {listed(dataset.stimulus_ids, 2)}).",
            "Are rows counted instead of named? Key predictions by the dataset's stimulus ids.",
            evidence,
        )
    if elsewhere:
        yield Finding(
            "yellow",
            check,
            "ids of another split",
            None,
            f"{where}: {len(elsewhere)} ids are not in {split} ({listed(elsewhere, 3)}).",
            "Score them apart: what was trained on says nothing.",
            evidence,
        )
    if twice:
        yield Finding(
            "red",
            check,
            "ids given twice",
            None,
            f"{where}: {twice} ids stand there twice.",
            "Give each once.",
            evidence,
        )
    if missing and not foreign:
        yield Finding(
            "yellow",
            check,
            "missing ids",
            None,
            f"{where}: {len(missing)} of {len(wanted)} {split} stimuli are not predicted ({listed(missing, 3)}).",
            "Scores of a part do not compare with those of all: predict them, too.",
            evidence,
        )
    if not (foreign or elsewhere or twice or missing):
        yield Finding(
            "green", check, "", None, f"{where}: one prediction for each of {len(names)} {split} stimuli.", "", evidence
        )


def _check_units(dataset: Dataset, where: str, who: str, predicted: Float[np.ndarray, "n v"]) -> Iterator[Finding]:
    """Whether predicted responses are z-scored as the dataset is."""

    def size(values: np.ndarray) -> tuple[float, float]:
        return float(np.median(np.abs(values.mean(axis=0)))), float(np.median(values.std(axis=0)))

    mean, std = size(predicted)
    evidence = {"mean": mean, "std": std}
    check = "predictions: units"
    if std < SILENT:
        yield Finding(
            "red",
            check,
            "constant predictions",
            who,
            f"{where}: predictions of the median site have a standard deviation of {std:.1e} over stimuli.",
            "They are the same for all stimuli: did the model see them?",
            evidence,
        )
    elif mean > FAR_OFF or std > FAR_OFF:
        units = dataset.units(who)
        after = size((predicted - units.mean) / units.std)
        raw = after[0] < FAR_OFF and after[1] < FAR_OFF
        yield Finding(
            "red",
            check,
            "raw betas" if raw else "another scale",
            who,
            f"{where}: predictions of the median site have mean {mean:.3g} and standard deviation {std:.3g}, where "
            "z-scored responses have about 0 and at most 1"
            + (
                f"; z-scored as the dataset was, {after[0]:.2g} and {after[1]:.2g}: they are raw betas." if raw else "."
            ),
            "Score them with `brainjanus score --units raw`."
            if raw
            else "In which units are they? z-score them as the dataset is.",
            evidence,
        )
    else:
        yield Finding(
            "green",
            check,
            "",
            who,
            f"{where}: predictions have mean {mean:.2f} and standard deviation {std:.2f}.",
            "",
            evidence,
        )


def _check_prediction_order(
    where: str, scores: Float[np.ndarray, "n n"], stimuli: Sequence[str], who: str | None
) -> Iterator[Finding]:
    check = "predictions: order"
    if len(stimuli) < 10:
        yield Finding(
            "grey", check, "", who, f"{where}: too few stimuli ({len(stimuli)}) to tell an order from chance."
        )
        return
    found = shuffled_ids(scores, stimuli)
    own, floor = float(np.nanmean(np.diag(scores))), float(np.nanmean(scores))
    rng = np.random.default_rng(0)
    num = len(scores)
    chance = [float(np.nanmean(scores[np.arange(num), rng.permutation(num)])) for _ in range(200)]
    z = (own - floor) / max(float(np.std(chance)), 1e-12)
    if found is not None:
        kinds = {"shift": "predictions shifted", "halves": "halves swapped", "reversed": "predictions reversed"}
        sentence, _, remedy = found.sentence.partition(". ")
        yield Finding(
            "red",
            check,
            kinds.get(found.kind, "predictions permuted"),
            who,
            f"{where}: {sentence}.",
            remedy,
            found.evidence,
        )
    elif z < 3:
        yield Finding(
            "yellow",
            check,
            "predictions do not fit",
            who,
            f"{where}: predictions score {own:.3f} for the stimuli of their ids, and {floor:.3f} for any others "
            f"({z:.1f} standard deviations).",
            "Either they hold nothing, or their ids are permuted beyond recognition.",
            {"own": own, "floor": floor, "z": z},
        )
    else:
        yield Finding(
            "green",
            check,
            "",
            who,
            f"{where}: predictions score {own:.3f} for the stimuli of their ids, and {floor:.3f} for others ({z:.1f} "
            "standard deviations); no other order fits better.",
            "",
            {"own": own, "floor": floor, "z": z},
        )
