"""From a user's files to a Dataset: read, put pictures and trials together by name, split by picture, write.

Enters: a PrepareConfig, from flags (one subject) or from a TOML spec (any number). Leaves: the dataset, complete, or
nothing. Two stimuli that show the same pictures, pixel for pixel once resized, become one, and stimuli that share a
picture are put in the same split: a split by name would test on pictures that were trained on.
"""

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.catalogue import Catalogue, Shown, stimuli_shown, without_pictures
from brainjanus.data.dataset import Dataset, Stimuli, Subject, Trials, listed
from brainjanus.data.readers.arrays import read_array
from brainjanus.data.readers.nifti import Volume, is_nifti, read_betas, read_mask
from brainjanus.data.readers.tables import (
    TrialTable,
    read_captions,
    read_coordinates,
    read_features,
    read_rois,
    read_sensors,
    read_trials,
)
from brainjanus.data.spec import IN_ORDER, PrepareConfig, SubjectFiles
from brainjanus.data.split import split_trials
from brainjanus.data.write import refuse_existing, write_dataset

__all__ = ["PrepareConfig", "SubjectFiles", "prepare", "write_dataset"]


def prepare(config: PrepareConfig, out: Path | str, overwrite: bool = False) -> Dataset:
    """Make a dataset at `out`; it is complete afterwards, or as it was before.

    What is left out or merged is said on stderr and kept in the manifest's provenance.
    Raises UserError for any file, name or number that does not fit; nothing is guessed.
    """
    refuse_existing(Path(out), overwrite)
    catalogue = Catalogue(config.pictures)
    tables = {who.subject: _trial_table(who, catalogue) for who in config.each_subject()}
    captions = read_captions(Path(config.captions)) if config.captions else None
    names = _known_stimuli(tables, catalogue, captions)
    shown = stimuli_shown(names, catalogue, config.image_size) if config.pictures else without_pictures(names)
    splits = split_trials(tables, shown, config)
    stimuli = Stimuli(
        shown.ids,
        shown.pixels,
        shown.picture_of,
        _captions(captions, shown, catalogue) if captions is not None else None,
        _features(config.features, shown, catalogue),
    )
    ignored = sorted({column for table in tables.values() for column in table.ignored})
    notices = [f"The columns {', '.join(ignored)} of the trials are not used."] if ignored else []
    notices += shown.notices
    for notice in notices:
        print(f"Note: {notice}", file=sys.stderr)
    return write_dataset(
        out,
        name=config.name,
        modality=config.modality,
        subjects=_subjects(config, tables, shown, splits),
        stimuli=stimuli,
        zscore=config.zscore,
        provenance={"config": dataclasses.asdict(config), "notices": notices, "merged": shown.merged()},
        drop_constant_sites=config.drop_constant_sites,
        responses_dtype=config.responses_dtype,
        overwrite=overwrite,
    )


def _trial_table(who: SubjectFiles, catalogue: Catalogue) -> TrialTable:
    if who.trials == IN_ORDER:
        ids = [name for name in catalogue.ids if name.startswith(who.prefix)]
        if len(set(ids)) < len(ids):
            twice = next(name for i, name in enumerate(ids) if name in ids[:i])
            raise UserError(
                f"pictures of {who.subject}: expected names that differ, got '{twice}' twice. "
                "Give each archive a prefix (PREFIX=PATH), or a table of trials."
            )
        return TrialTable(ids, {}, [])
    table = read_trials(Path(who.trials))
    return table._replace(stimulus_id=[who.prefix + name for name in table.stimulus_id])


def _known_stimuli(
    tables: Mapping[str, TrialTable], catalogue: Catalogue, captions: Mapping[str, Any] | None
) -> list[str]:
    """The stimuli of all trials, sorted. Raises UserError for one without a picture (without pictures: a caption)."""
    names = {name for table in tables.values() for name in table.stimulus_id}
    there = catalogue.ids if catalogue.pictures else sorted(names if captions is None else captions)
    unknown = {name for name in names if not catalogue.find(name)} if catalogue.pictures else names - set(there)
    for who, table in tables.items():
        for row, name in enumerate(table.stimulus_id, start=1):
            if name in unknown:
                raise UserError(
                    f"trials of {who}: expected stimuli that exist ({listed(there, 3)}), got '{name}' in row {row}. "
                    "Is it spelled as its picture is, does it lack a prefix, or is the picture missing?"
                )
    return sorted(names)


def _subjects(
    config: PrepareConfig, tables: Mapping[str, TrialTable], shown: Shown, splits: Mapping[str, list[str]]
) -> Iterator[Subject]:
    """Read one subject's responses after the other."""
    for who in config.each_subject():
        table, split = tables[who.subject], splits[who.subject]
        ids = [shown.kept_as[name] for name in table.stimulus_id]
        ones = np.ones(len(ids), np.int64)
        session, run = (table.columns.get(name, ones) for name in ("session", "run"))
        repeat = table.columns.get("repeat")
        if repeat is None or ids != table.stimulus_id:  # merged stimuli were counted apart
            repeat = _counted(ids)
        trials = Trials(ids, session, run, repeat, split, table.columns.get("fold"))
        volume = read_mask(who.mask, who.mask_order if not is_nifti(who.responses[0]) else "C") if who.mask else None
        responses = read_responses(who, len(ids), volume)
        num_sites = responses.shape[1]
        if volume is not None and len(volume.voxels) != num_sites:
            raise UserError(
                f"responses of {who.subject}: expected the {len(volume.voxels)} voxels of {who.mask}, got {num_sites}. "
                "Were they exported with another mask? Give that one, or none."
            )
        if responses.ndim == 3:
            space = _sensor_space(who, *responses.shape[1:])
            rois = read_rois(who.rois, space.num_sites, None, space.geometry)
            yield Subject(replace(space, rois=rois), responses.reshape(len(responses), -1), trials)
            continue
        placed: dict[str, Any] = {}
        if volume is not None:
            placed = {"coordinates_mm": volume.coordinates_mm, "geometry": volume.geometry, "index": volume.voxels}
        elif who.coordinates:
            placed = {"coordinates_mm": read_coordinates(who.coordinates)}
        rois = read_rois(who.rois, num_sites, volume)
        yield Subject(BrainSpace(who.subject, num_sites, who.kind, rois=rois, **placed), responses, trials)


def _sensor_space(who: SubjectFiles, num_sensors: int, num_times: int) -> BrainSpace:
    """Raises UserError if the table of sensors has other sensors than the responses."""
    assert who.sampling_hz is not None
    names, places = [f"{who.kind[:-1]}{i:03}" for i in range(num_sensors)], None
    if who.sensors:
        names, places = read_sensors(Path(who.sensors), in_head=who.kind == "sensors")
        if len(names) != num_sensors:
            raise UserError(
                f"responses of {who.subject}: expected the {len(names)} sensors of {who.sensors}, got {num_sensors} "
                f"sensors x {num_times} times. "
                + (
                    "Sensors and times are swapped: export [trials, sensors, times]."
                    if len(names) == num_times
                    else "Does the table list channels that were left out, or belong to another recording?"
                )
            )
    times = who.start_sec + np.arange(num_times) / who.sampling_hz
    return BrainSpace.of_sensors(who.subject, names, times, places, kind=who.kind, mm_per_ms=who.mm_per_ms)


def _counted(ids: Sequence[str]) -> Int[np.ndarray, "t"]:
    """For the how many-eth time each is shown, from 1."""
    times: Counter[str] = Counter()
    counts = []
    for name in ids:
        times[name] += 1
        counts.append(times[name])
    return np.array(counts, np.int64)


def read_responses(who: SubjectFiles, num_trials: int, volume: Volume | None) -> Shaped[np.ndarray, "t *v"]:
    """One subject's responses [trials, sites], of a recording over time [trials, sensors, times], divided by `scale`.

    Raises UserError if the files do not fit each other, or which axis counts trials is unknown.
    """
    if volume is not None and is_nifti(who.responses[0]):
        responses = read_betas(who.responses, volume)
    else:
        parts = [read_array(source) for source in who.responses]
        shapes = listed((f"{source} {list(part.shape)}" for source, part in zip(who.responses, parts, strict=True)), 3)
        over_time = who.sampling_hz is not None
        if any(part.ndim != 2 + over_time or part.dtype.kind not in "fiu" for part in parts):
            form, remedy = "[trials, sites] or [sites, trials]", "Export betas as a matrix, one row for each trial"
            if over_time:
                form = "[trials, sensors, times] or [sensors, times, trials]"
                remedy = "Leave sampling_hz out, or export one epoch for each trial"
            elif all(part.ndim == 3 for part in parts):
                remedy = "For [trials, sensors, times] give sampling_hz; otherwise export one row for each trial"
            raise UserError(
                f"responses of {who.subject}: expected numbers {form}, got {shapes}, "
                f"{listed(sorted({str(part.dtype) for part in parts}))}. {remedy} (repeats apart)."
            )
        first = who.orientation == "trials-first"
        if who.orientation == "infer":
            fits = [
                sum(part.shape[axis] for part in parts) == num_trials
                and len({np.moveaxis(part, axis, 0).shape[1:] for part in parts}) == 1
                for axis in (0, -1)
            ]
            if fits[0] == fits[1]:
                raise UserError(
                    f"responses of {who.subject}: expected one axis of {num_trials} trials, as the trials have, got "
                    f"{shapes}, where {'both' if fits[0] else 'neither'} fits. "
                    + (
                        "Give the orientation (trials-first or sites-first)."
                        if fits[0]
                        else "Does the table of trials belong to these responses?"
                    )
                )
            first = fits[0]
        parts = parts if first else [np.moveaxis(part, -1, 0) for part in parts]
        if len({part.shape[1:] for part in parts}) > 1:
            raise UserError(
                f"responses of {who.subject}: expected the same sites in all files, got {shapes}. "
                "Export all sessions with one mask."
            )
        responses = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return responses if who.scale == 1 else responses / np.float32(who.scale)


def _captions(captions: Mapping[str, list[str]], shown: Shown, catalogue: Catalogue) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    strangers = []
    for name, more in captions.items():
        stimuli = shown.called(name, catalogue)
        strangers += [] if stimuli else [name]
        for stimulus in stimuli:
            known = texts.setdefault(stimulus, [])
            known.extend(text for text in dict.fromkeys(more) if text not in known)
    if len(strangers) == len(captions):
        raise UserError(
            f"captions: expected names of stimuli ({listed(shown.ids, 3)}), got none that exists "
            f"({listed(strangers, 3)}). Name them as the trials name the stimuli, or as the pictures' files."
        )
    if strangers:
        shown.notices.append(f"captions of {len(strangers)} other stimuli were left out ({listed(strangers, 3)}).")
    return texts


def _features(entries: Sequence[str], shown: Shown, catalogue: Catalogue) -> dict[str, np.ndarray]:
    """By name, one row for each stimulus: the mean over its pictures, or the row that is named like itself."""
    row_of = {name: row for row, name in enumerate(shown.ids)}
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    dtypes: dict[str, np.dtype] = {}
    called: dict[str, list[str]] = {}
    for entry in entries:
        feature, _, rest = entry.partition("=")
        prefix, _, source = rest.rpartition("=")
        names, values = read_features(source)
        total = sums.setdefault(feature, np.zeros((len(row_of), *values.shape[1:]), np.float32))
        count = counts.setdefault(feature, np.zeros(len(row_of), np.int64))
        dtypes[feature] = values.dtype
        if total.shape[1:] != values.shape[1:]:
            raise UserError(
                f"{source}: expected features '{feature}' of {list(total.shape[1:])} tokens and channels, as in the "
                f"file before, got {list(values.shape[1:])}. Compute them all with the same settings."
            )
        called.setdefault(feature, []).extend(prefix + name for name in names)
        for name, value in zip(names, values, strict=True):
            for stimulus in shown.called(prefix + name, catalogue):
                total[row_of[stimulus]] += value
                count[row_of[stimulus]] += 1
    for feature, count in counts.items():
        if not count.all():
            raise UserError(
                f"features '{feature}': expected a row for each of the {len(count)} stimuli, got none for "
                f"{int((count == 0).sum())}, '{shown.ids[int(np.argmin(count))]}' among them (rows are called "
                f"{listed(called[feature], 3)}). Compute them for all pictures, or give their file a prefix "
                "(NAME=PREFIX=FILE)."
            )
    return {name: (total / counts[name][:, None, None]).astype(dtypes[name]) for name, total in sums.items()}
