"""What preparing a study would take: what was found and is missing, how much room, how long.

Enters: a Study, and the options of its preparation. Leaves: a Plan; nothing large is read, and nothing is left behind.
"""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from brainjanus.core.errors import UserError, reported
from brainjanus.core.progress import duration
from brainjanus.data.dataset import FIRST_SOURCE, listed
from brainjanus.data.study import Found, Study
from brainjanus.data.write import MOST_SIDE, How, ResponsesDtype, check_name

SAMPLE_BYTES = 64 << 20  # of the disk, to measure its rate
SAMPLE_PICTURES = 16
TEST_FRACTION = 0.2


@dataclass(frozen=True)
class StreamOptions:
    """How a study is prepared, whatever its layout."""

    name: str = ""
    """The dataset's name. Default: that of the study."""
    image_size: int = 64
    """Height and width of the stored pictures: the square in the centre, resized with an antialiased bicubic filter."""
    zscore: How | None = None
    """Z-score each site with the training trials of each session, of all sessions, or not at all. Default: as the
    layout has it."""
    test_fraction: float | None = None
    """Where the layout has no split: the part of the stimuli that is held out (0.2)."""
    val_fraction: float = 0.0
    """Where the layout has no stimuli in "val": the part of the stimuli (of its training stimuli) that is put there."""
    seed: int = 0
    """Seed of the split."""
    drop_constant_sites: bool = False
    """Leave out sites whose training responses never vary, which are refused otherwise."""
    responses_dtype: ResponsesDtype = "float32"
    """As which z-scored responses are stored; float16 takes half of the room."""
    caption_source: str = ""
    """The source whose captions are the default. Default: the layout's first."""

    def __post_init__(self) -> None:
        problems = []
        if not 1 <= self.image_size <= MOST_SIDE:
            problems.append(f"image_size {self.image_size}")
        test = TEST_FRACTION if self.test_fraction is None else self.test_fraction
        if not (0 < test < 1 and 0 <= self.val_fraction < 1 - test):
            problems.append(f"test_fraction {test} and val_fraction {self.val_fraction} leave no training")
        if problems:
            raise UserError(
                f"the options of `prepare`: expected options that fit together, got {'; '.join(problems)}. "
                "Correct all of them."
            )


class Plan(NamedTuple):
    """What would be prepared. files: bytes of each file of the dataset (those of text: about). scratch: bytes that are
    needed beside them for a while. read: bytes of the inputs that are read. free: bytes of the disk. seconds: about how
    long it takes, judged by a session and a few pictures that were read just now, and by the rate of the disk; None:
    nothing was read."""

    found: Sequence[Found]
    files: Mapping[str, int]
    scratch: int
    read: int
    free: int
    seconds: float | None
    notices: Sequence[str]

    @property
    def text(self) -> str:
        """For a terminal."""
        lines = []
        for found in self.found:
            size = sum(path.stat().st_size for path in found.files if path.is_file())
            if found.files:
                lines.append(f"found    {found.what}: {len(found.files)} files, {_bytes(size)}")
            if found.missing:
                needed = "needed" if found.required and not found.files else "it goes without"
                lines.append(f"missing  {found.what}: {listed(found.missing, 4)} ({len(found.missing)}; {needed})")
        lines += [f"note     {notice}" for notice in self.notices]
        lines += [f"writes   {name}: {_bytes(size)}" for name, size in self.files.items()]
        total = sum(self.files.values())
        beside = f", and {_bytes(self.scratch)} beside it for a while" if self.scratch else ""
        short = "" if total + self.scratch <= self.free else " TOO LITTLE"
        lines.append(f"in all   {_bytes(total)}{beside}; the disk has {_bytes(self.free)} free{short}")
        if self.seconds is not None:
            lines.append(
                f"takes    about {duration(self.seconds)}, by one session and a few pictures that were read just now "
                f"({_bytes(self.read)} are to be read)"
            )
        return "\n".join(lines)


def plan_study(study: Study, out: Path | str, options: StreamOptions | None = None, timed: bool = True) -> Plan:
    """Say what was found, and what preparing it would take.

    timed: one session and a few pictures are read, and a small file is written and deleted, to say how long it takes.

    Raises UserError for what `stream_study` would refuse before it reads anything large.
    """
    options, out = options or StreamOptions(), Path(out)
    check_study(study, options)
    place = _existing(out.absolute().parent)
    files, scratch = sizes_of(study, options)
    read = _bytes_read(study)
    seconds = None
    if timed:
        with reported(out):
            write_rate = _write_rate(place)
        written = sum(files.values()) + scratch  # and read once more, to verify it, while what follows is made
        seconds = _reading_sec(study, options) + written / write_rate
    return Plan(study.found, files, scratch, read, shutil.disk_usage(place).free, seconds, study.notices)


def check_study(study: Study, options: StreamOptions) -> None:
    """Raises UserError for what can be known to be wrong before anything large is read."""
    if lacking := [found for found in study.found if found.required and not found.files]:
        raise UserError(
            f"{study.layout}: expected {listed(found.what for found in lacking)}, got "
            f"{listed((name for found in lacking for name in found.missing), 3)} missing. Copy or download these files."
        )
    if not study.subjects:
        raise UserError(f"{study.layout}: expected at least one subject, got none. Is it the right folder?")
    names = [who.space.subject for who in study.subjects]
    for name in names:
        check_name("subject", name)
        if names.count(name) > 1:
            raise UserError(f"subject '{name}': expected a name of its own, got one that is taken. Rename the subject.")
    for who in study.subjects:
        numbers = [session.number for session in who.sessions]
        if not numbers or len(set(numbers)) < len(numbers):
            raise UserError(
                f"sessions of {who.space.subject}: expected at least one, and each number once, got "
                f"{listed(map(str, numbers), 20)}. Is a file missing, or there twice?"
            )
    for source in study.captions:
        check_name("source of captions", source)
    if options.caption_source and options.caption_source not in study.captions:
        raise UserError(
            f"caption_source: expected one of {listed(study.captions)}, got '{options.caption_source}'. "
            "Name one of these, or leave the option out."
        )
    if study.split is not None and options.test_fraction is not None:
        raise UserError(
            f"test_fraction: expected none, because {study.layout} says itself what is held out, got "
            f"{options.test_fraction}. Leave the option out."
        )


def sizes_of(study: Study, options: StreamOptions) -> tuple[dict[str, int], int]:
    """Bytes by file of the dataset, and those of what is needed beside them; of small files, about."""
    names = {name for who in study.subjects for session in who.sessions for name in session.stimulus_id}
    files, scratch = {"stimuli.tsv": sum(len(name) + 5 for name in names)}, 0
    if study.pictures is not None:
        num_pictures = len(names & set(study.pictures.ids))
        files["images.safetensors"] = num_pictures * (3 * options.image_size**2 + 8)
    how = options.zscore or study.zscore
    for who in study.subjects:
        num_sites, num_trials = who.space.num_sites, sum(len(session.stimulus_id) for session in who.sessions)
        part = f"subjects/{who.space.subject}"
        files[f"{part}/responses.safetensors"] = num_trials * num_sites * np.dtype(options.responses_dtype).itemsize
        files[f"{part}/zscore.safetensors"] = 8 * num_sites * (len(who.sessions) if how == "session" else 1)
        files[f"{part}/space.safetensors"] = (36 + len(who.space.rois)) * num_sites
        files[f"{part}/trials.tsv"] = sum(len(name) + 16 for s in who.sessions for name in s.stimulus_id)
        if how == "all" or options.responses_dtype != "float32":
            scratch += num_trials * num_sites * 4
    first = options.caption_source or next(iter(study.captions), FIRST_SOURCE)
    for source, captions in study.captions.items():
        size = sum(len(name) + sum(len(text) + 4 for text in captions[name]) for name in names & captions.keys())
        files["captions.json" if source == first else f"captions/{source}.json"] = size
    return files, scratch


def _bytes_read(study: Study) -> int:
    """Of the inputs: what the sessions and the pictures say that reading them takes."""
    names = {name for who in study.subjects for session in who.sessions for name in session.stimulus_id}
    total = sum(session.num_bytes for who in study.subjects for session in who.sessions)
    if study.pictures is not None:
        total += study.pictures.num_bytes * len(names & set(study.pictures.ids))
    return total


def _existing(folder: Path) -> Path:
    return folder if folder.is_dir() else _existing(folder.parent)


def _write_rate(folder: Path) -> float:
    """Bytes a second of a new file, until the disk has it."""
    path, data = folder / f".rate-{os.getpid()}.part", os.urandom(1 << 20)
    try:
        start = time.perf_counter()
        with open(path, "wb", buffering=0) as file:
            for _ in range(SAMPLE_BYTES >> 20):
                file.write(data)
            os.fsync(file.fileno())
        return SAMPLE_BYTES / (time.perf_counter() - start)
    finally:
        path.unlink(missing_ok=True)


def _reading_sec(study: Study, options: StreamOptions) -> float:
    """How long reading everything would take, by the smallest session and the first pictures."""
    sessions = [session for who in study.subjects for session in who.sessions]
    sample = min(sessions, key=lambda session: session.num_bytes)
    start = time.perf_counter()
    sample.read()
    taken = time.perf_counter() - start
    if sample.num_bytes:
        share = sum(session.num_bytes for session in sessions) / sample.num_bytes
    else:
        share = sum(len(session.stimulus_id) for session in sessions) / max(1, len(sample.stimulus_id))
    seconds = taken * share / max(who.num_readers for who in study.subjects)
    if study.pictures is not None:
        wanted = sorted({name for session in sessions for name in session.stimulus_id} & set(study.pictures.ids))
        few = wanted[:: max(1, len(wanted) // SAMPLE_PICTURES)]
        start = time.perf_counter()
        num_read = sum(1 for _ in study.pictures.read(few, options.image_size)) if few else 0
        seconds += (time.perf_counter() - start) * len(wanted) / max(1, num_read)
    return seconds


def _bytes(count: int) -> str:
    """As 310 B, 4.2 MB, 1.89 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
