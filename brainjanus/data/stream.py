"""A Study becomes a Dataset, one session and a few pictures at a time; what was stopped goes on where it stopped.

Enters: a Study, of which nothing large has been read. Leaves: the folder that `dataset.py` describes, byte for byte
what `write_dataset` makes of the same arrays, complete or not at all.

Until it is complete, it grows in a folder beside it, which one process has at a time:

    .NAME.streaming/journal.json          what it is made from; if any of that changes, it starts over
                    pictures/             images.safetensors, of all pictures; a record (npz) for every few of them
                    subjects/S/           responses.safetensors, of all sites in float32; a record for each session
                    dataset/              what it will be

A record is written whole, after the rows that it is about, with their checksums: what has one is done, if the rows are
still as they were. Pictures come first, because those that are the same, pixel for pixel, are one stimulus; then the
responses of each session are z-scored with its own training trials and written where they belong, with what is needed
to find constant sites and, for z-scoring over all sessions, their statistics. What can be known only at the end (all
sessions' statistics, which sites are left out) or is no float32 takes a second round, from file to file. Variances are
computed from the rows in the file, one stimulus after the other.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from safetensors.numpy import save_file

from brainjanus.core.ahead import ahead
from brainjanus.core.card import add_card, kept_from
from brainjanus.core.errors import UserError, make_parent, reported
from brainjanus.core.progress import progress
from brainjanus.data.dataset import SPLITS, Dataset, Trials, ZScore, listed
from brainjanus.data.datasheet import CARD, dataset_card
from brainjanus.data.plan import TEST_FRACTION, StreamOptions, check_study, sizes_of
from brainjanus.data.split import split_by_stimulus
from brainjanus.data.stored import (
    Finished,
    Segment,
    Stored,
    Tensors,
    bytes_of,
    lay_out,
    opened,
    record,
    recorded,
    verified,
)
from brainjanus.data.study import Recorded, Session, Study
from brainjanus.data.write import (
    How,
    Moments,
    ResponsesDtype,
    Seen,
    check_captions,
    check_constant,
    check_finite,
    check_range,
    check_trials,
    manifest_of,
    refuse_existing,
    restricted,
    statistics_of,
    variances_of,
    with_variances,
    write_words,
)

PICTURES_A_RECORD = 256
CHUNK_BYTES = 32 << 20
MOST_READ_BYTES = 256 << 20  # of a session that is read beside another
NOTHING_SHOWN = (
    "There is neither a picture nor a caption: nothing can be decoded from these data, and only brains predicted. "
    "Add captions (--captions NAME=FILE.json) or pictures."
)
_JOURNAL = 2  # its version; and of the numbers in records


def stream_study(
    study: Study,
    out: Path | str,
    options: StreamOptions | None = None,
    *,
    overwrite: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Dataset:
    """Write the dataset of a study; `out` is complete afterwards, or as it was before. Stopped in whatever way, the
    same call goes on from there.

    What is left out or merged is said on stderr and kept in the manifest's provenance, beside `provenance`.
    Returns the dataset, opened. Raises UserError for whatever would make it unsound, and while another is at it.
    """
    options, out = options or StreamOptions(), Path(out)
    folder = _workplace(out)
    check_study(study, options)
    with reported(out):
        refuse_existing(out, overwrite)
        make_parent(out)
        with _alone(folder, out):
            if (folder / "replaced").exists() and not out.exists():  # stopped between the two renames
                os.replace(folder / "replaced", out)
                refuse_existing(out, overwrite)
            notes = kept_from(out / CARD)
            try:
                _begin(folder, study, options)
                _check_room(folder, study, options)
                _stream(study, folder, options, dict(provenance or {}))
                add_card(folder / "dataset" / CARD, lambda: dataset_card(Dataset.open(folder / "dataset")), notes)
                _put(folder, out)
            except KeyboardInterrupt as interrupt:
                raise type(interrupt)(f"what was finished is kept in {folder}") from interrupt
            except (UserError, OSError):
                if any(folder.rglob("*.npz")):
                    print(f"Note: what was finished is kept in {folder}, for when it is run again.", file=sys.stderr)
                else:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
    return Dataset.open(out)


def _stream(study: Study, folder: Path, options: StreamOptions, provenance: dict[str, Any]) -> None:
    names = sorted({name for who in study.subjects for session in who.sessions for name in session.stimulus_id})
    as_named = _Shown(names, {name: name for name in names})
    _splits(study, as_named, options)  # these two would refuse it later: before anything is read
    _captions(study, as_named, options)
    how: How = options.zscore or study.zscore
    dataset = folder / "dataset"
    dataset.mkdir(exist_ok=True)
    moves: list[Finished] = []
    dropped: dict[str, int] = {}
    with _Verifying() as verifying:
        shown = as_named
        if study.pictures is not None:
            shown, pictures = _pictures(study, names, options.image_size, folder, verifying)
            moves.append(pictures)
        splits = _splits(study, shown, options)
        captions, left_out = _captions(study, shown, options)
        bare = [NOTHING_SHOWN] if study.pictures is None and not captions else []
        notices = [*study.notices, *bare, *shown.notices, *_in_two_splits(study, shown), *left_out]
        for notice in notices:
            print(f"Note: {notice}", file=sys.stderr)
        for who in study.subjects:
            moves.append(_subject(who, shown, splits, how, options, folder, verifying))
            if missing := who.space.num_sites - moves[-1].num_sites:
                dropped[who.space.subject] = missing
        write_words(dataset, shown.ids, shown.num_pictures, captions)
        sums = verifying.finish(moves)
    _check_inputs(study, folder)
    files = {
        move.name: {"sha256": sha, "bytes": move.path.stat().st_size} for move, sha in zip(moves, sums, strict=True)
    }
    for file in dataset.rglob("*"):
        name = file.relative_to(dataset).as_posix()
        if file.is_file() and name not in ("dataset.json", CARD) and name not in files:
            with open(file, "rb") as content:
                files[name] = {
                    "sha256": hashlib.file_digest(content, "sha256").hexdigest(), "bytes": file.stat().st_size
                }  # fmt: skip
    merged = {name: kept for name, kept in shown.kept_as.items() if name != kept}
    provenance = {
        "layout": study.layout, **provenance, "options": asdict(options), "notices": notices, "merged": merged
    } | ({"dropped_sites": dropped} if dropped else {})  # fmt: skip
    manifest = manifest_of(
        files,
        name=options.name or study.name,
        modality=study.modality,
        subjects=[who.space.subject for who in study.subjects],
        num_stimuli=len(shown.ids),
        image_size=None if study.pictures is None else options.image_size,
        caption_sources=list(captions),
        zscore=how,
        provenance=provenance,
    )
    for move in moves:
        os.replace(move.path, dataset / move.name)
    (dataset / "dataset.json").write_text(manifest, encoding="utf-8")


class _Telling:
    """Of the segments of a file that is being written, in their order, whatever order they come in."""

    def __init__(self) -> None:
        self.coming: SimpleQueue[Segment | None] = SimpleQueue()
        self.waiting: dict[int, Segment] = {}
        self.next = 0

    def of(self, number: int, segment: Segment) -> None:
        """number: of the segment, from 0 on."""
        self.waiting[number] = segment
        while self.next in self.waiting:
            self.coming.put(self.waiting.pop(self.next))
            self.next += 1

    def end(self) -> None:
        self.coming.put(None)


class _Verifying:
    """Reads what was written once more, in threads of its own, while what follows is made."""

    def __enter__(self) -> "_Verifying":
        self.pool = ThreadPoolExecutor(2, thread_name_prefix="verifying")
        self.sums: dict[Path, Future[str]] = {}
        self.telling: list[_Telling] = []
        self.done = 0
        self.stopped = False
        return self

    def add(self, file: Finished) -> Finished:
        self.sums[file.path] = self.pool.submit(verified, file, self._advance)
        return file

    def add_growing(self, path: Path, name: str, tensor: str, num_sites: int = 0) -> tuple[Finished, _Telling]:
        """A file that is yet being written: what it tells of is verified."""
        telling = _Telling()
        self.telling.append(telling)
        return self.add(Finished(path, name, tensor, iter(telling.coming.get, None), num_sites)), telling

    def _advance(self, num_bytes: int) -> None:
        self.done += num_bytes
        if self.stopped:
            raise CancelledError

    def finish(self, files: Sequence[Finished]) -> list[str]:
        """SHA-256 of each file. Raises UserError if one does not hold what was written."""
        sums = [self.sums[file.path] for file in files]
        total = max(1, sum(file.path.stat().st_size for file in files) // 10**6)
        with progress("verifying (MB)", total, min(total, self.done // 10**6)) as advance:
            while wait(sums, 0.5).not_done:
                advance(min(total - 1, self.done // 10**6), None)
            advance(total, None)
        return [made.result() for made in sums]

    def __exit__(self, *raised: object) -> None:
        self.stopped = True
        for telling in self.telling:
            telling.end()
        self.pool.shutdown(cancel_futures=True)


# --- the study


def _trials(who: Recorded, kept_as: Mapping[str, str], splits: Mapping[str, str]) -> Trials:
    ids, session, run, repeat = [], [], [], []
    times: Counter[str] = Counter()
    for part in who.sessions:
        runs = np.ones(len(part.stimulus_id), np.int64) if part.run is None else part.run
        for name, number in zip(part.stimulus_id, runs.tolist(), strict=True):
            times[kept_as[name]] += 1
            ids.append(kept_as[name])
            session.append(part.number)
            run.append(number)
            repeat.append(times[kept_as[name]])
    session_, run_, repeat_ = (np.array(column, np.int64) for column in (session, run, repeat))
    return Trials(ids, session_, run_, repeat_, [splits[name] for name in ids])


class _Fractions(NamedTuple):
    test_fraction: float
    val_fraction: float
    seed: int


def _splits(study: Study, shown: "_Shown", options: StreamOptions) -> Mapping[str, str]:
    """The split of each stimulus that is kept; of those of one picture the stricter. Raises UserError where the layout
    has none."""
    seen_by: dict[str, set[str]] = {}
    for who in study.subjects:
        for name in {name for session in who.sessions for name in session.stimulus_id}:
            seen_by.setdefault(shown.kept_as[name], set()).add(who.space.subject)
    alone = [[name] for name in shown.ids]
    if study.split is None:
        test = TEST_FRACTION if options.test_fraction is None else options.test_fraction
        return split_by_stimulus(seen_by, alone, _Fractions(test, options.val_fraction, options.seed))
    split: dict[str, str] = {}
    for name, kept in shown.kept_as.items():
        mine = study.split.get(name)
        if mine not in SPLITS:
            raise UserError(
                f"stimulus '{name}': expected a split among {', '.join(SPLITS)} from {study.layout}, got {mine!r}. "
                "Do its files belong together?"
            )
        split[kept] = max(split.get(kept, mine), mine, key=SPLITS.index)  # what is tested is trained on nowhere
    if options.val_fraction:
        if "val" in split.values():
            raise UserError(
                f"val_fraction: expected none, because {study.layout} says itself what is in val, got "
                f"{options.val_fraction}. Leave the option out."
            )
        train = [[name] for name in shown.ids if split[name] == "train"]
        split |= split_by_stimulus(seen_by, train, _Fractions(0.0, options.val_fraction, options.seed))
    return split


def _in_two_splits(study: Study, shown: "_Shown") -> list[str]:
    """What there is to say of pictures that the layout has in two splits."""
    of = study.split or {}
    apart = {name: kept for name, kept in shown.kept_as.items() if of.get(name) != of.get(kept)}
    if not apart:
        return []
    name, kept = next(iter(apart.items()))
    return [
        f"{len(apart)} stimuli show the same picture as one of another split, for example '{name}' ({of[name]}) and "
        f"'{kept}' ({of[kept]}): both are held out."
    ]


def _captions(
    study: Study, shown: "_Shown", options: StreamOptions
) -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    """By source, the default first, the captions of the stimuli that are kept; and what there is to say of them."""
    first = options.caption_source
    captions: dict[str, dict[str, list[str]]] = {}
    notices = []
    for source in sorted(study.captions, key=lambda name: name != first):
        given, mine = study.captions[source], captions.setdefault(source, {})
        for name, kept in shown.kept_as.items():
            if name in given:
                known = mine.setdefault(kept, [])
                known.extend(text for text in dict.fromkeys(given[name]) if text not in known)
        mine = captions[source] = dict(sorted(mine.items()))
        check_captions(mine, mine.keys())
        if not mine:
            raise UserError(
                f"captions '{source}': expected names of stimuli ({listed(shown.ids, 3)}), got none that exists "
                f"({listed(given, 3)}). Name them as the layout names its stimuli."
            )
        if len(mine) < len(shown.ids):
            notices.append(f"{len(shown.ids) - len(mine)} stimuli have no captions from {source}.")
    return captions, notices


# --- pictures


class _Shown(NamedTuple):
    """The stimuli of all trials, those that show the same picture as one; and which of them have one."""

    ids: Sequence[str]
    kept_as: Mapping[str, str]
    pictured: frozenset[str] = frozenset()
    notices: Sequence[str] = ()

    @property
    def num_pictures(self) -> list[int]:
        return [int(name in self.pictured) for name in self.ids]


def _of_pictures(num_pictures: int, size: int) -> Tensors:
    return {"pixels": ("uint8", (num_pictures, size, size, 3)), "stimulus": ("int64", (num_pictures,))}


def _pictures(
    study: Study, names: Sequence[str], size: int, folder: Path, verifying: _Verifying
) -> tuple[_Shown, Finished]:
    """Decode the pictures of the stimuli `names` (sorted), those that have not been decoded yet.

    They are verified on the way, as far as they come in order. Where some turn out to be the same, those that are kept
    go to a file of their own.
    """
    assert study.pictures is not None
    there = set(study.pictures.ids)
    wanted = [name for name in names if name in there]
    if not wanted:
        raise UserError(
            f"pictures: expected some of the stimuli that were shown ({listed(names, 3)}), got none of them "
            f"({listed(study.pictures.ids, 3)}). Do its files belong together?"
        )
    row_of = {name: row for row, name in enumerate(wanted)}
    home = folder / "pictures"
    file = opened(home / "images.safetensors", "pixels", _of_pictures(len(wanted), size))
    Stored(file.path, "stimulus").write(0, np.array([place for place, name in enumerate(names) if name in there]))
    crcs: dict[int, int] = {}
    records = sorted(home.glob("*.npz"))
    for path in records:
        done = recorded(path) or {"rows": np.zeros(0, np.int64), "crcs": np.zeros(0, np.int64)}
        for row, crc in zip(done["rows"].tolist(), done["crcs"].tolist(), strict=True):
            if zlib.crc32(bytes_of(file.read(row, 1))) == crc:
                crcs[row] = crc
    missing = [name for name in wanted if row_of[name] not in crcs]
    number = 1 + (int(records[-1].stem) if records else -1)
    fresh: list[int] = []
    whole, telling = verifying.add_growing(file.path, "images.safetensors", "pixels")
    for row, crc in crcs.items():
        telling.of(row, Segment(row, 1, crc))
    coming = iter(study.pictures.read(missing, size)) if missing else iter(())
    with progress("decoding pictures", len(wanted), len(crcs)) as advance:
        for left, item in enumerate(ahead(lambda _: next(coming, None), 0, len(missing), 16), start=1 - len(missing)):
            if item is None:
                lacking = [name for name in missing if row_of[name] not in crcs]
                raise UserError(
                    f"pictures: expected {len(wanted)}, got none of {len(lacking)} of them ({listed(lacking, 3)}). "
                    "Is a file missing or damaged?"
                )
            name, picture = item
            row = row_of[name]
            assert row not in crcs, f"{study.layout} gave picture {name} twice"
            assert picture.dtype == np.uint8 and picture.shape == (size, size, 3), picture.shape
            crcs[row] = file.write(row, picture[None])
            fresh.append(row)
            telling.of(row, Segment(row, 1, crcs[row]))
            if len(fresh) == PICTURES_A_RECORD or not left:
                record(home / f"{number:05}.npz", rows=np.array(fresh), crcs=np.array([crcs[r] for r in fresh]))
                number, fresh = number + 1, []
            advance(len(crcs), None)
    telling.end()
    kept_as = _merged(names, row_of, crcs, file)
    ids = [name for name in names if kept_as[name] == name]
    notices = []
    if len(ids) < len(names):
        example = next((name, kept) for name, kept in kept_as.items() if name != kept)
        notices.append(
            f"{len(names) - len(ids)} stimuli show the same picture as another and were merged with it, for example "
            f"'{example[0]}' with '{example[1]}'."
        )
    if len(wanted) < len(names):
        lacking = [name for name in names if name not in there]
        notices.append(f"{len(lacking)} stimuli have no picture ({listed(lacking, 3)}).")
    rows = {name: row_of[name] for name in ids if name in row_of}
    if len(rows) < len(wanted):
        whole = verifying.add(_without_copies(file, ids, rows, crcs, folder / "images.safetensors"))
    return _Shown(ids, kept_as, frozenset(rows), notices), whole


def _merged(names: Sequence[str], row_of: Mapping[str, int], crcs: Mapping[int, int], file: Stored) -> dict[str, str]:
    """For each stimulus the first one that shows the same picture, pixel for pixel."""
    alike: dict[int, list[str]] = {}
    kept_as = {}
    for name in names:
        first = name
        if name in row_of:
            row, others = row_of[name], alike.setdefault(crcs[row_of[name]], [])
            same = (other for other in others if np.array_equal(file.read(row_of[other], 1), file.read(row, 1)))
            first = next(same, name)
            if first == name:
                others.append(name)
        kept_as[name] = first
    return kept_as


def _without_copies(
    file: Stored, ids: Sequence[str], rows: Mapping[str, int], crcs: Mapping[int, int], path: Path
) -> Finished:
    """The pictures of the stimuli that are kept, in their order."""
    lay_out(path, _of_pictures(len(rows), file.shape[1]))
    kept = Stored(path, "pixels")
    for place, row in enumerate(rows.values()):
        kept.write(place, file.read(row, 1))
    Stored(path, "stimulus").write(0, np.array([place for place, name in enumerate(ids) if name in rows]))
    segments = [Segment(place, 1, crcs[row]) for place, row in enumerate(rows.values())]
    return Finished(path, "images.safetensors", "pixels", segments)


# --- responses


class _Done(NamedTuple):
    """One session in the file: of its training trials, and the extremes and the checksum of all rows as written."""

    seen: Seen
    low: Float[np.ndarray, "v"]
    high: Float[np.ndarray, "v"]
    crc: int


class _Scored:
    """Responses in a file of all sites, as they will be: z-scored over all sessions where that is wanted, without the
    sites that are left out."""

    def __init__(self, file: Stored, statistics: ZScore | None, kept: Bool[np.ndarray, "v"]) -> None:
        self.file, self.statistics, self.kept = file, statistics, kept

    def __getitem__(self, rows: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n kept"]:
        return self.of(self.file[rows])

    def of(self, rows: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "n kept"]:
        if self.statistics is not None:
            rows = _zscored(rows, self.statistics)
        return rows if self.kept.all() else rows[:, self.kept]


def _zscored(responses: Float[np.ndarray, "t v"], statistics: ZScore) -> Float[np.ndarray, "t v"]:
    """With the statistics of one group."""
    scored: np.ndarray = responses - statistics.mean[0]
    scored /= statistics.std[0]
    return scored


def _subject(
    who: Recorded,
    shown: _Shown,
    splits: Mapping[str, str],
    how: How,
    options: StreamOptions,
    folder: Path,
    verifying: "_Verifying",
) -> Finished:
    """Stream one subject, and write its smaller files where they belong."""
    subject = who.space.subject
    trials = _trials(who, shown.kept_as, splits)
    check_trials(subject, trials, set(shown.ids))
    home, shape = folder / "subjects" / subject, (len(trials.stimulus_id), who.space.num_sites)
    file = opened(home / "responses.safetensors", "responses", {"responses": ("float32", shape)})
    whole, telling = None, _Telling()
    if how != "all" and options.responses_dtype == "float32":  # as they are written now, unless sites are left out
        name = f"subjects/{subject}/responses.safetensors"
        whole, telling = verifying.add_growing(file.path, name, "responses", who.space.num_sites)
    done = _sessions(who, trials, how, options.drop_constant_sites, file, home, telling)
    statistics, varies = _named(subject, {s.number: d.seen for s, d in zip(who.sessions, done, strict=True)}, how)
    check_constant(subject, varies, how, options.drop_constant_sites)
    scored = _Scored(file, statistics if how == "all" else None, varies)
    extremes = np.stack([np.min([d.low for d in done], axis=0), np.max([d.high for d in done], axis=0)])
    check_range(subject, float(np.abs(scored.of(extremes)).max(initial=0)), options.responses_dtype)
    if whole is not None and varies.all():
        finished = whole
    else:
        finished = verifying.add(_second_round(subject, scored, options.responses_dtype, home))
    variances = variances_of(scored, trials)
    space = who.space if varies.all() else restricted(who.space, varies)
    target = folder / "dataset" / "subjects" / subject
    with_variances(space, variances).save(target)
    kept = {"mean": statistics.mean[:, varies], "session": statistics.session, "std": statistics.std[:, varies]}
    save_file({key: np.ascontiguousarray(array) for key, array in kept.items()}, target / "zscore.safetensors")
    trials.save(target / "trials.tsv")
    return finished


def _second_round(subject: str, scored: _Scored, dtype: ResponsesDtype, home: Path) -> Finished:
    """Write responses as they will be from those that are in the file."""
    path, shape = home / "final.safetensors", (scored.file.shape[0], int(scored.kept.sum()))
    lay_out(path, {"responses": (dtype, shape)})
    final, segments = Stored(path, "responses"), []
    at_once = max(1, CHUNK_BYTES // scored.file.row_bytes)
    with progress(f"writing {subject}", shape[0]) as advance:
        for first in range(0, shape[0], at_once):
            num_rows = min(at_once, shape[0] - first)
            crc = final.write(first, scored.of(scored.file.read(first, num_rows)).astype(dtype))
            segments.append(Segment(first, num_rows, crc))
            advance(first + num_rows, None)
    return Finished(path, f"subjects/{subject}/responses.safetensors", "responses", segments, shape[1])


def _starts(who: Recorded) -> list[int]:
    """The first row of each session, and where the last one ends."""
    starts: list[int] = np.cumsum([0, *(len(session.stimulus_id) for session in who.sessions)]).tolist()
    return starts


def _sessions(
    who: Recorded, trials: Trials, how: How, drop: bool, file: Stored, home: Path, telling: _Telling
) -> list[_Done]:
    """Read, check, z-score and write the sessions that have not been yet; those that are there are told of."""
    subject, sessions = who.space.subject, who.sessions
    starts = _starts(who)
    train = np.array(trials.split) == "train"
    done: dict[int, _Done] = {}
    for k in range(len(sessions)):
        kept = recorded(home / f"{k:05}.npz")
        if kept is not None:
            crc = zlib.crc32(bytes_of(file.read(starts[k], starts[k + 1] - starts[k])))
            if crc == int(kept["crc"]):
                moments = Moments(int(kept["count"]), kept["mean"], kept["squares"])
                seen = Seen(moments, kept["low"], kept["high"])
                done[k] = _Done(seen, kept["floor"], kept["ceiling"], crc)
                telling.of(k, Segment(starts[k], starts[k + 1] - starts[k], crc))
    missing = [k for k in range(len(sessions)) if k not in done]
    largest = max(np.diff(starts)) * file.row_bytes
    at_once = who.num_readers if largest <= MOST_READ_BYTES else 1
    with progress(f"responses of {subject}", len(sessions), len(done)) as advance:
        read = ahead(lambda n: _read(sessions[missing[n]]), 0, len(missing), at_once, at_once)
        for k, responses in zip(missing, read, strict=True):
            session, rows = sessions[k], slice(starts[k], starts[k + 1])
            if responses.shape != (rows.stop - rows.start, who.space.num_sites):
                raise UserError(
                    f"responses of {subject}, session {session.number}: expected "
                    f"{[rows.stop - rows.start, who.space.num_sites]} (trials, sites), got {list(responses.shape)}. "
                    "Was it exported with another mask, or is a run missing?"
                )
            check_finite(subject, responses, rows.start)
            seen = Seen.of(responses, np.flatnonzero(train[rows]).tolist())
            if how == "session":
                statistics, varies = _named(subject, {session.number: seen}, how)
                check_constant(f"{subject}, session {session.number}", varies, how, drop)  # not after all of them
                responses = _zscored(responses, statistics)
            low, high = responses.min(axis=0, initial=np.inf), responses.max(axis=0, initial=-np.inf)
            crc, moments = file.write(rows.start, responses), seen.moments
            record(
                home / f"{k:05}.npz", count=moments.num_rows, mean=moments.mean, squares=moments.squares, low=seen.low,
                high=seen.high, floor=low, ceiling=high, crc=crc,
            )  # fmt: skip
            done[k] = _Done(seen, low, high, crc)
            telling.of(k, Segment(rows.start, rows.stop - rows.start, crc))
            advance(len(done), None)
            del responses  # or it is there beside the next two
    telling.end()
    return [done[k] for k in range(len(sessions))]


def _read(session: Session) -> Float[np.ndarray, "t v"]:
    return np.asarray(session.read(), np.float32)


def _named(subject: str, seen: Mapping[int, Seen], how: How) -> tuple[ZScore, Bool[np.ndarray, "v"]]:
    try:
        return statistics_of(seen, how)
    except UserError as error:
        raise UserError(f"{subject}, {error}") from error


# --- the folder beside the target


def _workplace(out: Path) -> Path:
    return out.absolute().parent / f".{out.absolute().name}.streaming"


@contextmanager
def _alone(folder: Path, out: Path) -> Iterator[None]:
    """Keep the folder to this process. Raises UserError if another is at it."""
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = not (folder / "lock").exists()  # by one that was done just now
        except BlockingIOError:
            taken = True
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            taken = False
        if taken:
            raise UserError(
                f"{out}: expected a dataset that nobody is preparing, got one that another process is at. Was the "
                "command given twice? Wait for it, stop it, or choose another --out."
            )
        yield


def _begin(folder: Path, study: Study, options: StreamOptions) -> None:
    """Keep what was finished, if it was made from the same; otherwise say so and start over."""
    now: dict[str, Any] = {
        "version": _JOURNAL,
        "options": {key: getattr(options, key) for key in ("image_size", "test_fraction", "val_fraction", "seed")}
        | {"zscore": options.zscore or study.zscore},
        "study": _digest(study),
        "inputs": _inputs(study),
    }
    journal = folder / "journal.json"
    try:
        before = json.loads(journal.read_text(encoding="utf-8"))
        changed = [key for key in now if before.get(key) != now[key]]
    except (OSError, ValueError, AttributeError):
        before, changed = None, list(now)
    if not changed:
        homes = [(folder / "dataset" / "images.safetensors", folder / "pictures")]
        for who in study.subjects:
            part = Path("subjects") / who.space.subject
            homes.append((folder / "dataset" / part / "responses.safetensors", folder / part))
        for file, home in homes:  # stopped between the last renames
            if file.exists() and home.exists() and not (home / file.name).exists():
                os.replace(file, home / file.name)
        shutil.rmtree(folder / "dataset", ignore_errors=True)  # what is small is made again
        return
    if before is not None:
        what = listed(changed)
        if "inputs" in changed and isinstance(before.get("inputs"), dict):
            both = before["inputs"].keys() | now["inputs"].keys()
            what = listed(sorted(f for f in both if before["inputs"].get(f) != now["inputs"].get(f)), 3)
        print(f"Note: {what} changed since it was stopped: it starts over.", file=sys.stderr)
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != "lock":
            entry.unlink()
    beside = folder / "journal.json.part"
    beside.write_text(json.dumps(now, indent=1), encoding="utf-8")
    os.replace(beside, journal)


def _inputs(study: Study) -> dict[str, list[int]]:
    """Size and time of change of all files."""
    found = {}
    for path in sorted({path for found in study.found for path in found.files}):
        state = path.stat()
        found[str(path.absolute())] = [state.st_size, state.st_mtime_ns]
    return found


def _check_inputs(study: Study, folder: Path) -> None:
    before, now = json.loads((folder / "journal.json").read_text(encoding="utf-8"))["inputs"], _inputs(study)
    if changed := sorted(file for file in before if before[file] != now.get(file)):
        raise UserError(
            f"{changed[0]}: expected a file that stays as it is while it is read, got one that changed. Is it still "
            "being copied? Wait for that, then run the same command again: it starts over."
        )


def _digest(study: Study) -> str:
    """Of what rows follow from, besides options and files: who saw what, in which split it is, what is read."""
    told = {key: getattr(study.asked, key) for key in ("mask", "betas", "keys", "files")}  # which rows these give
    digest = hashlib.sha256(json.dumps([study.layout, study.pictures is None, told]).encode())
    ids: set[str] = set()
    for who in study.subjects:
        digest.update(json.dumps([who.space.subject, who.space.num_sites, len(who.sessions)]).encode())
        digest.update(np.ascontiguousarray(who.space.index).tobytes())
        for session in who.sessions:
            digest.update(json.dumps([session.number, list(session.stimulus_id)]).encode())
            ids.update(session.stimulus_id)
    split = None if study.split is None else {name: study.split.get(name) for name in sorted(ids)}
    there = None if study.pictures is None else sorted(ids & set(study.pictures.ids))
    digest.update(json.dumps([split, there]).encode())
    return digest.hexdigest()


def _put(folder: Path, out: Path) -> None:
    """Rename what is complete to where it belongs; a dataset that it replaces is deleted then."""
    for file in (folder / "dataset").rglob("*"):
        if file.is_file():
            with open(file, "rb") as written:
                os.fsync(written.fileno())  # a power cut after the rename must not find it half on the disk
    replaced = folder / "replaced"
    if out.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(out, replaced)
    try:
        os.replace(folder / "dataset", out)
    except OSError:
        if replaced.exists():
            os.replace(replaced, out)
        raise
    shutil.rmtree(folder)


def _check_room(folder: Path, study: Study, options: StreamOptions) -> None:
    """Raises UserError if the disk has too little room for what is yet to be written."""
    files, scratch = sizes_of(study, options)
    there = sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
    needed, free = sum(files.values()) + scratch - there, shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder.parent}: expected {needed / 1e9:.2f} GB of room, got {free / 1e9:.2f} GB. Free some space, "
            "choose another --out, or store responses as float16 or pictures smaller."
        )
