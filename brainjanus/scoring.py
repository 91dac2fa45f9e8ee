"""Scoring: predictions of any software enter as files; records, a table and a report leave, as for our own model.

    brain-to-text    captions {id: caption}         against captions of the dataset, or a file {id: [captions]}
    brain-to-image   a folder or an array           against pictures of the dataset, or a folder or an array
    to-brain         safetensors, npy, ..., NIfTI   against responses of the dataset, or an array

Everything is keyed by stimulus id. With a dataset there are linear baselines, noise ceilings and ROIs; references alone
give floors, intervals and, for captions, the human ceiling.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from brainjanus.core.errors import UserError, written_beside
from brainjanus.data.dataset import SPLITS, Dataset, listed
from brainjanus.data.readers.nifti import is_nifti
from brainjanus.data.readers.predictions import (
    read_caption_predictions,
    read_picture_predictions,
    read_response_predictions,
)
from brainjanus.data.readers.tables import read_captions, read_features
from brainjanus.evaluate.compare import Comparison, compare, table_of
from brainjanus.evaluate.encode_decode import control_records, encode_decode_records
from brainjanus.evaluate.examples import map_examples
from brainjanus.evaluate.protocol import UNDECLARED
from brainjanus.evaluate.record import AVERAGED, Direction, Predictions, Record, load_scores, save_scores
from brainjanus.evaluate.reference import Reference
from brainjanus.evaluate.report import write_report
from brainjanus.evaluate.score import Scored, ScoreOptions, score, score_against
from brainjanus.generate import GenerationConfig, generate
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.run import check_same_data, examples_of

Task = Literal["brain-to-text", "brain-to-image", "to-brain"]
Repeats = Literal["undeclared", "responses", "outputs", "single"]
REPEATS: Mapping[str, str] = {
    "undeclared": UNDECLARED,
    "responses": AVERAGED,
    "outputs": "outputs averaged over repeats",
    "single": "single trials",
}
APPLICABLE: Mapping[str, tuple[str, ...]] = {  # options that bear on a task, beside those that bear on all
    "brain-to-text": ("repeats", "pictures", "constant", "clip", "bert"),
    "brain-to-image": ("repeats", "ids", "reference_ids", "features", "seen_features", "weights"),
    "to-brain": ("ids", "reference_ids", "units", "source", "decoder", "weights"),
}
UNIFIED = 256  # pixels; what pictures of different sizes are brought to, as the first step of every image metric


def score_files(
    task: Task,
    predictions: Path | str,
    out: Path | str,
    *,
    dataset: Path | str | None = None,
    references: Path | str | None = None,
    subject: str | None = None,
    source: Literal["image", "text"] = "image",
    ids: Path | None = None,
    reference_ids: Path | None = None,
    estimator: str = UNDECLARED,
    repeats: Repeats = "undeclared",
    units: Literal["zscored", "raw"] = "zscored",
    split: str = "test",
    partial: bool = False,
    features: Sequence[str] = (),
    seen_features: Sequence[str] = (),
    decoder: Path | str | None = None,
    pictures: Path | str | None = None,
    options: ScoreOptions | None = None,
) -> Scored:
    """Score predictions and write OUT/scores.json and OUT/report.html.

    subject: whose brain; may be left out where the dataset has one. source: what a brain was predicted from.
    ids, reference_ids: files with the ids of an array's rows. units: of predicted responses; raw ones are z-scored as
    the dataset was. partial: score the stimuli that both files have; without it a missing or an extra one is refused.
    features, seen_features: "NAME=FILE" of decoded and of seen pictures. decoder: a run that decodes pictures from the
    predicted responses. pictures: the seen ones, for CLIP-S against a file of references.
    Raises UserError, before anything is written, for whatever would make the scores wrong.
    """
    out, options = Path(out), options or ScoreOptions()
    if task not in get_args(Task):
        raise UserError(f"score: expected one of {', '.join(get_args(Task))}, got '{task}'. Correct the name.")
    if (dataset is None) == (references is None):
        raise UserError(
            f"score: expected --dataset DIR or --references FILE, got {'both' if dataset else 'neither'}. A dataset "
            "gives baselines and ceilings too; references are enough for the scores."
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: expected a folder for scores.json, got a file. Choose another --out.")
    if split not in SPLITS[1:]:
        raise UserError(
            f"--split: expected {' or '.join(SPLITS[1:])}, got '{split}'. A score on training stimuli says nothing."
        )
    check_options(
        task,
        options,
        ids=ids,
        reference_ids=reference_ids,
        units=units != "zscored",
        features=features,
        seen_features=seen_features,
        decoder=decoder,
        pictures=pictures,
        repeats=repeats != "undeclared",
        source=source != "image",
    )
    direction: Direction = "brain->text" if task == "brain-to-text" else "brain->image"
    if task == "to-brain":
        direction = "image->brain" if source == "image" else "text->brain"
    opened = None if dataset is None else Dataset.open(dataset)
    subject = _subject(opened, subject)
    values = read_predictions(direction, str(predictions), ids, opened, subject, units)
    if opened is not None:
        expected: Sequence[str] = opened.averages(subject, split).stimulus_ids
    else:
        reference = read_reference(direction, str(references), reference_ids, subject, split)
        expected = reference.ids
    kept = common_ids(str(predictions), list(values), expected, partial, str(dataset or references))
    given = Predictions(
        direction, subject, kept, estimator, _joined([values[stimulus] for stimulus in kept]), REPEATS[repeats]
    )
    extras = supplied(opened, features, seen_features, kept)
    options = replace(options, extras=replace(options.extras, features=extras[0], seen_features=extras[1]))
    if opened is not None:
        scored = score(opened, given, options, split=split)
    else:
        if pictures is not None:
            seen = dict(zip(*_once(str(pictures), *read_picture_predictions(str(pictures))), strict=True))
            common_ids(str(pictures), list(seen), reference.ids, False, str(references))
            reference = replace(reference, pictures=[seen[stimulus][None] for stimulus in reference.ids])
        scored = score_against(reference.restricted(kept), given, options)
    if decoder is not None:
        scored = scored._replace(records=scored.records + decoded_again(decoder, opened, given, options, split))
    title = f"{Path(predictions).name}, scored"
    report: dict[str, Any] = {"records": scored.records, "skipped": scored.skipped, "title": title}
    report["warnings"] = scored.warnings
    save_scores(scored.records, out / "scores.json")
    if opened is None:
        write_report(out / "report.html", dataset=None, **report)
    else:
        examples = examples_of(opened, [given]) if split == "test" else []
        maps = map_examples(opened, given) if direction.endswith("brain") and split == "test" else []
        write_report(out / "report.html", dataset=opened, examples=examples, maps=maps, **report)
    return scored


def check_options(task: str, options: ScoreOptions, **given: object) -> None:
    """Raises UserError for an option that was given and has no bearing on the task: its user expected something."""
    given |= {name: getattr(options.extras, name) for name in ("weights", "clip", "bert")}
    given["constant"] = options.constant_caption is not None
    unused = [name for name, value in given.items() if value and name not in APPLICABLE[task]]
    if unused:
        raise UserError(
            f"--{unused[0].replace('_', '-')}: expected options that bear on {task}, got this one. Leave it out; "
            "`brainjanus score --help` says what each is for."
        )
    if options.constant_caption is not None and not options.constant_caption.strip():
        raise UserError("--constant: expected a caption, got none. Write one, or leave the option out.")


def decoded_again(
    run: Path | str, dataset: Dataset | None, predictions: Predictions, options: ScoreOptions, split: str
) -> list[Record]:
    """Encode, then decode: scores of what a run decodes from predicted responses, and the padding control."""
    checkpoint = Checkpoint.load(run)
    if dataset is None or predictions.direction != "image->brain" or checkpoint.tokenizers.image is None:
        raise UserError(
            f"--decoder {run}: expected responses predicted from pictures, a --dataset and a run that has pictures, "
            f"got {predictions.direction} {'with' if dataset else 'without'} a dataset. Leave --decoder out."
        )
    check_same_data(checkpoint, dataset, Path(run))
    mean = GenerationConfig(estimate="mean", seed=options.seed)
    restored = generate(checkpoint, {f"brain:{predictions.subject}": predictions.values}, "image", mean)
    assert isinstance(restored, torch.Tensor)
    records = encode_decode_records(dataset, predictions, (restored * 255).numpy(), options, split=split)
    return records + control_records(dataset, predictions.subject, predictions.stimulus_ids, options, split=split)


def supplied(
    dataset: Dataset | None, files: Sequence[str], seen_files: Sequence[str], ids: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Features of decoded and of seen pictures by name, in the order of the stimuli."""
    given, seen = (named_files(option, texts) for option, texts in (("features", files), ("seen-features", seen_files)))
    if seen.keys() - given.keys():
        name = min(seen.keys() - given.keys())
        raise UserError(
            f"--seen-features {name}: expected --features {name}=FILE beside it, got none. Give the same features of "
            "the decoded pictures."
        )
    found: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    for name, path in given.items():
        found[0][name] = _features(path, ids)
        if name in seen:
            found[1][name] = _features(seen[name], ids)
        elif dataset is not None and name in dataset.feature_names:
            found[1][name] = dataset.features(name, ids)
        else:
            raise UserError(
                f"--features {name}: expected the same features of the seen pictures, got none. Give "
                f"--seen-features {name}=FILE, or a dataset that was prepared with features of this name."
            )
        sizes = [int(np.prod(values[name].shape[1:])) for values in found]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"--features {name}: expected as many dimensions as the seen pictures' {sizes[1]}, got {sizes[0]}. "
                "Were they made by another network or layer?"
            )
    return found


def compare_files(
    results: Sequence[str],
    out: Path | None = None,
    *,
    published: str | None = None,
    rois: bool = False,
    allow: Sequence[str] = (),
) -> Comparison:
    """Read results (PATH or NAME=PATH) and compare them; writes the table to `out` (.tsv or .json) if it is given.

    Raises UserError if protocols differ, two results have one name, or `out` is of another kind.
    """
    if out is not None and out.suffix not in (".tsv", ".json"):
        raise UserError(f"{out}: expected a name that ends in .tsv or .json, got '{out.suffix}'. Choose one of them.")
    systems: dict[str, list[Record]] = {}
    for text in results:
        name, path = _named(text) if "=" in text and not Path(text).exists() else (text.rstrip("/"), text)
        if name in systems:
            raise UserError(f"compare: expected each result once, got '{name}' twice. Name them: NAME=PATH.")
        systems[name] = load_scores(path)
    comparison = compare(systems, rois=rois, allow=allow, published=published)
    if out is not None:
        rows = table_of(comparison)
        with written_beside(out) as beside:
            if out.suffix == ".json":
                text = json.dumps({"rows": rows, "notes": comparison.notes}, indent=1, ensure_ascii=False) + "\n"
                beside.write_text(text, encoding="utf-8")
            else:
                with open(beside, "w", newline="", encoding="utf-8") as file:
                    table = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
                    table.writeheader()
                    table.writerows(rows)
    return comparison


def _named(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UserError(f"'{text}': expected NAME=PATH, got no name or no path. Write both, with '=' between them.")
    return name, path


def named_files(option: str, texts: Sequence[str]) -> dict[str, str]:
    """NAME=FILE, each name once."""
    pairs = [_named(text) for text in texts]
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"--{option}: expected each name once, got '{twice}' twice. Rename one of them.")
    return dict(pairs)


def _features(path: str, ids: Sequence[str]) -> np.ndarray:
    names, values = read_features(path)
    row = {name: position for position, name in enumerate(names)}
    missing = [stimulus for stimulus in ids if stimulus not in row]
    if missing:
        raise UserError(
            f"{path}: expected features of every scored stimulus, got none of '{missing[0]}' ({len(missing)} in all). "
            "Are its names the stimulus ids?"
        )
    return values[[row[stimulus] for stimulus in ids]]


def read_predictions(
    direction: Direction, path: str, ids: Path | None, dataset: Dataset | None, subject: str, units: str
) -> dict[str, object]:
    """Stimulus id -> caption, picture or response."""
    if direction == "brain->text":
        return dict(read_caption_predictions(Path(path)))
    if direction == "brain->image":
        return dict(zip(*_once(path, *read_picture_predictions(path, ids)), strict=True))
    space = None if dataset is None else dataset.space(subject)
    names, responses = read_response_predictions(path, ids, space)
    if units == "raw":
        if dataset is None:
            raise UserError(
                f"{path}: expected --dataset with --units raw, to z-score them by its statistics, got --references. "
                "Give the dataset, or z-score both files alike."
            )
        responses = dataset.units(subject).zscored(responses, dataset.space(subject), path)
    return dict(zip(*_once(path, names, list(responses)), strict=True))


def read_reference(direction: Direction, path: str, ids: Path | None, subject: str, split: str) -> Reference:
    """What a file holds against which predictions are scored."""
    name = Path(path).stem
    if direction == "brain->text":
        captions = read_captions(Path(path))
        empty = [stimulus for stimulus, group in captions.items() if not group or not all(map(str.strip, group))]
        if empty:
            raise UserError(
                f"{path}: expected at least one reference caption for each stimulus, none of them blank, got none or a "
                f"blank one for '{empty[0]}'. "
                "Add one, or leave the stimulus out of both files."
            )
        return Reference(name, UNDECLARED, subject, split, list(captions), captions=list(captions.values()))
    if direction == "brain->image":
        names, pictures = _once(path, *read_picture_predictions(path, ids))
        stacked = np.stack(unified(pictures))
        return Reference(name, UNDECLARED, subject, split, names, pictures=list(stacked[:, None]))
    if is_nifti(path):
        raise UserError(
            f"{path}: expected --dataset to score NIfTI images, got --references: without a mask voxels have no order. "
            "Prepare a dataset from the measured images and their mask, or give both as arrays."
        )
    names, responses = read_response_predictions(path, ids)
    names, rows = _once(path, names, list(responses))
    return Reference(name, UNDECLARED, subject, split, names, responses=np.stack(rows))


def common_ids(path: str, predicted: Sequence[str], expected: Sequence[str], partial: bool, where: str) -> list[str]:
    """The stimuli to score. Raises UserError if the files do not hold the same ones and `partial` is not set."""
    missing, extra = sorted(set(expected) - set(predicted)), sorted(set(predicted) - set(expected))
    kept = sorted(set(expected) & set(predicted))
    if not kept:
        raise UserError(
            f"{path}: expected predictions for stimuli of {where} ({listed(sorted(expected))}), got other ids "
            f"({listed(sorted(predicted))}). Are they positions instead of ids, or of another split?"
        )
    if (missing or extra) and not partial:
        what = [f"none for '{missing[0]}' ({len(missing)} in all)"] if missing else []
        what += [f"'{extra[0]}', which is not there ({len(extra)} in all)"] if extra else []
        raise UserError(
            f"{path}: expected one prediction for each of the {len(expected)} stimuli of {where}, got "
            f"{' and '.join(what)}. Scores on some of them do not compare with scores on all: predict the rest, or say "
            "--partial."
        )
    return kept


def unified(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Pictures of one size: as they are if they are, else resized to 256 pixels (bilinear, antialiased)."""
    if len({picture.shape for picture in pictures}) == 1:
        return list(pictures)
    resized = []
    for picture in pictures:
        pixels = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None]
        small = torch.nn.functional.interpolate(pixels, (UNIFIED, UNIFIED), mode="bilinear", antialias=True)
        resized.append(small[0].permute(1, 2, 0).numpy())
    return resized


def _joined(values: list) -> np.ndarray | list[str]:
    if isinstance(values[0], str):
        return values
    return np.stack(unified(values)) if values[0].ndim == 3 else np.stack(values)


def _subject(dataset: Dataset | None, subject: str | None) -> str:
    if dataset is None:
        return subject or UNDECLARED
    if subject is None and len(dataset.subjects) == 1:
        return dataset.subjects[0]
    if subject not in dataset.subjects:
        raise UserError(
            f"--subject: expected one of {', '.join(dataset.subjects)}, got {repr(subject) if subject else 'none'}. "
            "Name the subject whose brain was decoded or predicted."
        )
    return subject


def _once(path: str, names: list[str], values: list) -> tuple[list[str], list]:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(
            f"{path}: expected one row for each stimulus, got several for '{twice}'. Average over repeats or samples "
            "first, and say which with --repeats or --estimator."
        )
    return names, values
