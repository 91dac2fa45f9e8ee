"""Requests: what a user asks for enters, as words and files; conditions, rows and targets of `generate` leave.

A condition is one or more of:
    brain   [SUBJECT:]WHAT; WHAT is trial:N (row N of the subject's trials.tsv, counted from 0), stimulus:ID (the mean
            over its repeats), a split (test, val, train: the mean response to each of its stimuli), or FILE[:KEY], an
            array [rows, sites] of raw betas (z-scored ones if it is a safetensors file that says so, as those that
            `generate` writes), or a NIfTI image of them on the subject's grid
    image   a picture file, FILE[:KEY] (an array of pictures, or of the features that the model reads), stimulus:ID, or
            stimuli:SPLIT
    text    a sentence, stimulus:ID, or stimuli:SPLIT; FILE[:KEY] where the model reads text as features

Each of them is a row, or several. Rows of different conditions are paired; a single row goes with all rows of others.
The dataset is opened only for trials and stimuli. What is left to a default (whose brain) is told.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped
from safetensors import safe_open

from brainjanus.core.config import from_dict, read_json, to_dict
from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.core.units import Units
from brainjanus.data.dataset import SPLITS, Dataset, checksum, listed
from brainjanus.data.readers.arrays import is_array, read_array, reading, split_source
from brainjanus.data.readers.nifti import is_nifti, read_betas
from brainjanus.data.readers.pictures import decode, fit
from brainjanus.data.readers.predictions import only_array, volume_in
from brainjanus.generate import GenerationConfig, require
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.run import check_same_data, condition, dataset_of
from brainjanus.train.codes import captions_of_each

FORMAT, VERSION = "brainjanus-request", 1
KEYWORDS = ("trial", "stimulus", "stimuli")
REST = "brain:rest"
ZSCORED = {"units": "zscored"}  # what a safetensors file says of responses that are no raw betas
SAMPLING = {"temperature": "--temperature", "top_k": "--top-k", "top_p": "--top-p"}
ESTIMATE = {"estimate": "--estimate", "num_samples": "--samples", "guidance": "--guidance"}
Format = Literal["safetensors", "npy", "nifti", "gifti", "png"]


@dataclass(frozen=True)
class Request:
    """Everything that is asked for, as it can be asked for again.

    run: a trained run. to: text, image, brain (everybody's but those given), brain:SUBJECT or brain:rest. brain, text,
    image: what is given, see the head of this file. rois: the regions that the brain is given of. candidates: answers
    to be ranked instead of one to be generated. dataset: default: where the run was trained. folder: that paths of
    files are relative to. formats: of a brain; none: all that fit it, but npy. precision, device, acceleration: as
    `Checkpoint.load` and `Checkpoint.prepare` take them. config: how to generate.
    """

    run: Path
    to: tuple[str, ...]
    brain: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    image: tuple[str, ...] = ()
    rois: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    dataset: Path | None = None
    folder: Path = Path()
    formats: tuple[Format, ...] = ()
    precision: str = "auto"
    device: str = "cpu"
    acceleration: str = "none"
    config: GenerationConfig = field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        if not self.to:
            raise UserError(
                "--to: expected at least one target, got none. Name text, image, brain or brain:SUBJECT, or several "
                "of them with commas between."
            )
        if self.rois and not self.brain:
            raise UserError(
                f"--rois: expected a brain whose regions {', '.join(self.rois)} are given, got none. Add --brain."
            )
        if self.candidates and len(self.to) > 1:
            raise UserError(
                f"--candidates: expected one target that they are candidates for, got {', '.join(self.to)}. "
                "Rank them for one target after the other."
            )
        self.check_heeded()

    def check_heeded(self) -> None:
        """Raises UserError for options that the answer would not heed."""
        brain, asked = any(target.startswith("brain") for target in self.to), ", ".join(self.to)
        config, unheeded = self.config, []
        if self.candidates:
            unheeded = [*self.changed(ESTIMATE | SAMPLING), *(["--format"] if self.formats else [])]
            why, remedy = "nothing to be drawn or shaped, got --candidates, which are ranked", "leave --candidates out"
        elif self.formats and not brain:
            unheeded, why, remedy = ["--format"], f"a brain among the targets, got {asked}", "ask for a brain"
        elif config.trial_noise and not brain:
            unheeded, why, remedy = ["--trial-noise"], f"a brain among the targets, got {asked}", "ask for a brain"
        elif config.estimate == "mean" and not config.num_samples and "text" not in self.to:
            unheeded = self.changed(SAMPLING)
            why = f"samples to be drawn, got {asked} as a mean in one pass"
            remedy = "add --samples N, or --estimate sample"
        if unheeded:
            raise UserError(f"{', '.join(unheeded)}: expected {why}. Leave {' and '.join(unheeded)} out, or {remedy}.")

    def changed(self, options: Mapping[str, str]) -> list[str]:
        """Those of the options that are not as they are by default."""
        usual = GenerationConfig()
        return [option for name, option in options.items() if getattr(self.config, name) != getattr(usual, name)]


class Repeated(NamedTuple):
    """A request out of a file, and what it was answered with: to be answered in the same way, or not at all."""

    file: Path
    request: Request
    model: str
    sources: dict[str, Any]


class Given(NamedTuple):
    """One condition: sentences, or an array with one row each. names, stimuli: of the rows; None where they have none.
    sources: where they come from, as request.json tells it."""

    values: list[str] | Shaped[np.ndarray, "n ..."]
    names: list[str | None]
    stimuli: list[str | None]
    sources: list[dict[str, Any]]


class Target(NamedTuple):
    """asked: as the user calls it. name: as `generate` does. rest: whether what is given is left out of the answer."""

    asked: str
    name: str
    rest: bool = False


class Resolved(NamedTuple):
    """A request in the terms of `generate`. rows: their names. candidates: None if none are given. given_sites: of the
    brain of which only regions are given. remarks: what was left to a default."""

    conditions: dict[str, object]
    rows: list[str]
    targets: list[Target]
    candidates: Given | None
    given_sites: Bool[np.ndarray, "v"] | None
    sources: dict[str, list[dict[str, Any]]]
    remarks: list[str]


def load_request(file: Path) -> Repeated:
    """Read a request.json. Raises UserError if it is none, or was written by another version."""
    facts = read_json(file)
    if facts.get("format") != FORMAT or facts.get("version") != VERSION or not isinstance(facts.get("asked"), dict):
        got = {key: facts.get(key) for key in ("format", "version")}
        raise UserError(
            f"{file}: expected format '{FORMAT}', version {VERSION}, got {got}. "
            "Give the request.json that `brainjanus generate` wrote."
        )
    kinds = {"model": str, "sources": dict}
    if absent := [key for key, kind in kinds.items() if not isinstance(facts.get(key), kind)]:
        raise UserError(
            f"{file}: expected what answered the request ('model', 'sources'), got no {' and no '.join(absent)}. "
            "Was it written by hand, or cut? Give a whole request.json, or ask anew."
        )
    return Repeated(file, from_dict(Request, facts["asked"], where=str(file)), facts["model"], facts["sources"])


def save_request(path: Path, request: Request, resolved: Resolved, model: str, versions: Mapping[str, str]) -> None:
    """Write what was asked, what it was taken for, and what answered it."""
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "asked": to_dict(request),
        "rows": resolved.rows,
        "targets": [target.name for target in resolved.targets],
        "sources": resolved.sources,
        "remarks": resolved.remarks,
        "model": model,
        "versions": dict(versions),
    }
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")


def check_repeated(repeated: Repeated, resolved: Resolved, model: str) -> None:
    """Raises UserError if the same answer cannot be expected: another model, or other data behind the same words."""
    if repeated.model != model:
        raise UserError(
            f"{repeated.file}: expected the model that answered it ({repeated.model[:12]}), got another "
            f"({model[:12]}) in {repeated.request.run}. Was it trained again? Ask anew to have this one's answer."
        )
    for name, sources in repeated.sources.items():
        for old, new in zip(sources, resolved.sources.get(name, []), strict=False):
            if old != new:
                raise UserError(
                    f"{repeated.file}: expected what it was answered from ({old}), got something else ({new}). "
                    "Did the file change? Ask anew to have an answer to what is there now."
                )


def model_fingerprint(run: Path) -> str:
    """A hash of the files of a checkpoint."""
    files = sorted(path for name in ("tokenizers", "spaces") for path in (run / name).rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in (run / "model.json", *sorted(run.glob("*.safetensors")), *files):
        digest.update(f"{path.relative_to(run).as_posix()} {checksum(path)}\n".encode())
    return digest.hexdigest()


def resolve(request: Request, checkpoint: Checkpoint) -> Resolved:
    """Read everything that is given. Raises UserError for what is not there or does not fit the model."""
    return Reader(request, checkpoint).resolved()


class Reader:
    """Reads what one request gives to one model."""

    def __init__(self, request: Request, checkpoint: Checkpoint) -> None:
        self.request, self.checkpoint = request, checkpoint
        self.subjects = checkpoint.tokenizers.brain.subjects
        self.remarks: list[str] = []
        self.brains: dict[str, list[tuple[str, str]]] = {}  # subject -> as given, WHAT
        for spec in request.brain:
            subject, what = self.subject_and_what(spec, "--brain")
            self.brains.setdefault(subject, []).append((spec, what))
        self.targets = self.all_targets()

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset that the run was trained on."""
        dataset = Dataset.open(self.request.dataset or dataset_of(self.request.run, "--dataset DIR"))
        check_same_data(self.checkpoint, dataset, self.request.run)
        return dataset

    def resolved(self) -> Resolved:
        request, given_sites = self.request, self.region()
        given: dict[str, Given] = {}
        if request.image:
            require(self.checkpoint, "image")
            given["image"] = short_names(joined([self.image(what) for what in request.image], "--image"))
        for subject, specs in self.brains.items():
            name = f"brain:{subject}" if given_sites is None else f"part:{subject}"
            rows = joined([self.brain(subject, what, spec, given_sites) for spec, what in specs], "--brain")
            if given_sites is not None:
                assert isinstance(rows.values, np.ndarray)
                rows = rows._replace(values=np.where(given_sites, rows.values, np.float32(np.nan)))
            given[name] = rows
        if request.text:
            require(self.checkpoint, "text")
            given["text"] = joined([self.text(sentence) for sentence in request.text], "--text")
        conditions, names = paired(given)
        candidates = self.candidates() if request.candidates else None
        sources = {name: rows.sources for name, rows in given.items()}
        if candidates is not None:
            sources["candidates"] = candidates.sources
        return Resolved(conditions, names, self.targets, candidates, given_sites, sources, self.remarks)

    def subject_and_what(self, spec: str, option: str, default: str | None = None) -> tuple[str, str]:
        """The two parts of [SUBJECT:]WHAT. Raises UserError for a subject that the model does not know."""
        head, colon, rest = spec.partition(":")
        if colon and head in self.subjects and (is_keyword(rest) or head not in KEYWORDS):
            return head, rest
        there = colon and not os.path.exists(self.path(spec)[0]) and os.path.exists(self.path(rest)[0])
        if colon and not is_keyword(spec) and (is_keyword(rest) or there):
            raise UserError(
                f"{option} {spec}: expected one of the subjects that the model was trained on "
                f"({listed(self.subjects)}), got '{head}'. Name one of these."
            )
        if not self.subjects:
            raise UserError(
                f"{option} {spec}: expected a model that knows a brain, got one of none. Train it on brains."
            )
        if default is None and len(self.subjects) > 1:
            self.remarks.append(
                f"{option} {spec}: taken as {self.subjects[0]}'s, the first of {len(self.subjects)} subjects; "
                f"{self.subjects[1]}:{spec} would be {self.subjects[1]}'s"
            )
        return default or self.subjects[0], spec

    def all_targets(self) -> list[Target]:
        """What --to asks for, one by one. Raises UserError for what is unknown, asked twice, or given already."""
        targets: list[Target] = []
        for asked in self.request.to:
            if asked == "brain":
                found = [Target(f"brain:{s}", f"brain:{s}") for s in self.subjects if s not in self.brains]
                if not found:
                    raise UserError(
                        f"--to brain: expected a subject whose brain is not given, got all of {listed(self.subjects)} "
                        "as conditions. Leave one out, or name another target."
                    )
            elif asked == REST:
                if not self.request.rois:
                    raise UserError(
                        "--to brain:rest: expected --rois, the regions that are given of a brain whose rest is to be "
                        "predicted, got none. Add --rois, or name the subject: --to brain:SUBJECT."
                    )
                found = [Target(asked, f"brain:{subject}", rest=True) for subject in self.brains]
            elif asked in ("text", "image") or asked.startswith("brain:"):
                require(self.checkpoint, asked)
                found = [Target(asked, asked)]
            else:
                raise UserError(
                    f"--to: expected text, image, brain, brain:SUBJECT or {REST}, got '{asked}'. Name one of these, "
                    "or several with commas between."
                )
            targets += found
        given = {name for name in ("text", "image") if getattr(self.request, name)}
        given |= set() if self.request.rois else {f"brain:{subject}" for subject in self.brains}
        names = [target.name for target in targets]
        for name in names:
            if name in given:
                raise UserError(
                    f"--to {name}: expected a target that is not among the conditions, got one that is given. "
                    f"Leave --{name.partition(':')[0]} out, or choose another target."
                )
            if names.count(name) > 1:
                raise UserError(f"--to: expected each target once, got '{name}' several times. Name it once.")
        return targets

    def region(self) -> Bool[np.ndarray, "v"] | None:
        """The sites of the regions that are given of a brain; None if all of it is."""
        if not self.request.rois:
            return None
        if len(self.brains) != 1:
            raise UserError(
                f"--rois: expected one brain whose regions are given, got {', '.join(self.brains)}. Regions of several "
                "brains cannot be told apart: give one."
            )
        space = self.space(next(iter(self.brains)))
        sites = np.zeros(space.num_sites, dtype=bool)
        for roi in self.request.rois:
            if roi not in space.rois:
                raise UserError(
                    f"--rois: expected regions of {space.subject} ({listed(space.rois, most=40)}), got '{roi}'. "
                    "Name some of these, with commas between."
                )
            sites |= np.asarray(space.rois[roi], dtype=bool)
        if not sites.any() or sites.all():
            raise UserError(
                f"--rois: expected regions that hold some sites of {space.subject} but not all, got "
                f"{int(sites.sum())} of {space.num_sites} in {', '.join(self.request.rois)}. Choose others."
            )
        return sites

    def space(self, subject: str) -> BrainSpace:
        return self.checkpoint.spaces[subject]

    def path(self, source: str) -> tuple[Path, str]:
        """The file and the key of FILE[:KEY]."""
        path, key = split_source(source)
        return self.request.folder / path, key

    def brain(
        self,
        subject: str,
        what: str,
        spec: str,
        needed: Bool[np.ndarray, "v"] | None = None,
        *,
        candidate: bool = False,
    ) -> Given:
        """Responses of one subject, z-scored. needed: sites that a file has to hold numbers of; default: all.

        candidate: they are to be ranked; a split is then what this subject saw, whatever others are given.
        """
        kind, _, rest = what.partition(":")
        facts: dict[str, Any] = {"given": spec, "subject": subject}
        split = what if what in SPLITS else rest if kind == "stimuli" else None
        if split is not None:
            ids = self.ids_of(split, spec, subject if candidate else None)
            values = condition(self.checkpoint, self.dataset, f"brain:{subject}", ids, split)
            return given_rows(values, ids, ids, facts)
        if kind == "trial" and is_keyword(what):
            return self.trial(subject, rest, facts)
        if kind == "stimulus" and is_keyword(what):
            return self.mean_over_repeats(subject, rest, facts)
        path, key = self.path(what)
        source = f"{path}:{key}" if key else str(path)
        if not is_array(source) and not is_nifti(source):
            raise UserError(
                f"--brain {spec}: expected [SUBJECT:]WHAT, WHAT being trial:N, stimulus:ID, test, val, train or a file "
                f"with an array or a NIfTI image, got '{what}'. The subjects are {listed(self.subjects)}."
            )
        space = self.space(subject)
        if is_nifti(source):
            raw = read_betas([source], volume_in(source, space))
        else:
            raw = np.asarray(read_array(only_array(source)))
        units = self.checkpoint.units[subject]
        if says_zscored(path):
            units, facts = Units(np.zeros(space.num_sites), np.ones(space.num_sites)), facts | ZSCORED
        values = units.zscored(raw, space, source, needed)
        return given_rows(values, [None] * len(values), [None] * len(values), facts | of_file(path))

    def trial(self, subject: str, number: str, facts: dict[str, Any]) -> Given:
        trials = self.dataset.trials(subject)
        if not number.isdecimal() or int(number) >= len(trials.stimulus_id):
            raise UserError(
                f"--brain {facts['given']}: expected a trial of {subject} from 0 to {len(trials.stimulus_id) - 1}, got "
                f"'{number}'. It is a row of trials.tsv, counted from 0."
            )
        row = int(number)
        values = self.dataset.responses(subject, np.array([row]))
        stimulus = trials.stimulus_id[row]
        return given_rows(values, [f"{subject}-trial-{row}"], [stimulus], facts)

    def mean_over_repeats(self, subject: str, stimulus: str, facts: dict[str, Any]) -> Given:
        rows = np.flatnonzero(np.array(self.dataset.trials(subject).stimulus_id) == stimulus)
        if not len(rows):
            raise UserError(
                f"--brain {facts['given']}: expected a stimulus that {subject} saw, got '{stimulus}'. "
                "trials.tsv lists what was shown."
            )
        mean = self.dataset.responses(subject, rows).mean(axis=0, dtype=np.float64).astype(np.float32)
        return given_rows(mean[None], [stimulus], [stimulus], facts | {"repeats": len(rows)})

    def image(self, what: str, *, candidate: bool = False) -> Given:
        """Pictures, or the features that the model reads of a condition."""
        if (stimuli := self.stimuli("image", what, candidate=candidate)) is not None:
            return stimuli
        path, key = self.path(what)
        if is_array(what):
            return features(f"{path}:{key}" if key else str(path), what)
        if not os.path.isfile(path):
            hint = f" For the stimuli of a split, write stimuli:{what}." if what in SPLITS else ""
            raise UserError(f"--image {what}: expected a picture file, got none at this path. Correct the path.{hint}")
        tokenizer = self.checkpoint.tokenizers.image
        assert tokenizer is not None  # required above
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"--image {what}: expected a picture file that can be read, got '{error.strerror}'. Change its "
                "permissions, or copy it to another place."
            ) from error
        picture = fit(decode(str(path), content), tokenizer.config.image_size)
        return given_rows(picture[None], [what], [None], {"given": what} | of_file(path))

    def text(self, what: str, *, candidate: bool = False) -> Given:
        """Sentences, or the features that the model reads of a condition."""
        if (stimuli := self.stimuli("text", what, candidate=candidate)) is not None:
            return stimuli
        if what in SPLITS:
            raise UserError(
                f"--text {what}: expected a sentence or stimuli, got a word that may be either. Write stimuli:{what} "
                f"for the captions of a split, or 'a {what}' for a sentence."
            )
        if not what.strip():
            raise UserError("--text: expected a sentence, got an empty one. Say what is seen, or leave --text out.")
        if is_array(what) and not candidate and self.checkpoint.model.config.text_input != "codes":
            path, key = self.path(what)
            return features(f"{path}:{key}" if key else str(path), what)
        return Given([what], [None], [None], [{"given": what}])

    def stimuli(self, modality: str, what: str, *, candidate: bool) -> Given | None:
        """Pictures or captions of stimulus:ID or stimuli:SPLIT; None for anything else.

        candidate: what is ranked are pictures and words themselves, whatever the model reads them by as a condition.
        """
        kind, _, rest = what.partition(":")
        if not is_keyword(what) or kind == "trial" or what in SPLITS:
            return None
        ids = [rest] if kind == "stimulus" else self.ids_of(rest, f"--{modality} {what}")
        values: Any
        if not candidate:
            values = condition(self.checkpoint, self.dataset, modality, ids)
        elif modality == "image":
            values = self.dataset.images(ids)
        else:
            values = [captions[0] for captions in captions_of_each(self.dataset, ids)]
        return given_rows(values if isinstance(values, list) else np.asarray(values), ids, ids, {"given": what})

    def ids_of(self, split: str, asked: str, whose: str | None = None) -> list[str]:
        """The stimuli of a split that `whose` saw, sorted. Default: that all given subjects saw; if no brain is given,
        the only target's."""
        if split not in SPLITS:
            raise UserError(f"{asked}: expected one of {', '.join(SPLITS)}, got '{split}'. Name one of these.")
        brains = list(self.brains) or [t.name.removeprefix("brain:") for t in self.targets if "brain" in t.name]
        subjects = [whose] if whose is not None else brains if self.brains or len(brains) == 1 else []
        seen = [set(self.dataset.trials(subject).stimuli(split)) for subject in subjects]
        ids = sorted(set.intersection(*seen)) if seen else list(self.dataset.split_ids(split))
        if not ids:
            raise UserError(
                f"{asked}: expected {split} stimuli{' that ' + ' and '.join(subjects) + ' saw' if subjects else ''}, "
                "got none. Name another split, or fewer subjects."
            )
        return ids

    def candidates(self) -> Given:
        """What is to be ranked, in the form of the target."""
        (target,) = self.targets if len(self.targets) == 1 else [None]
        if target is None or target.rest or target.name in {f"brain:{s}" for s in self.brains}:
            raise UserError(
                f"--candidates: expected one whole target, text, image or brain:SUBJECT, got {self.request.to[0]}. "
                "Candidates for a part of a brain, or for several, have no likelihood here."
            )
        option = "--candidates"
        if target.name == "text":
            return joined([self.text(what, candidate=True) for what in self.request.candidates], option)
        if target.name == "image":
            return joined([self.image(what, candidate=True) for what in self.request.candidates], option)
        subject = target.name.removeprefix("brain:")
        rows = []
        for spec in self.request.candidates:
            whose, what = self.subject_and_what(spec, option, default=subject)
            if whose != subject:
                raise UserError(
                    f"{option} {spec}: expected responses of {subject}, the target, got {whose}'s. "
                    f"Give {subject}'s, or --to brain:{whose}."
                )
            rows.append(self.brain(subject, what, spec, candidate=True))
        return joined(rows, option)


def short_names(pictures: Given) -> Given:
    """Picture files are called by their names alone, unless two have the same."""
    paths = [name for name, stimulus in zip(pictures.names, pictures.stimuli, strict=True) if stimulus is None]
    short = [Path(path).name for path in paths if path is not None]
    if len(set(short)) < len(short):
        return pictures
    pairs = zip(pictures.names, pictures.stimuli, strict=True)
    return pictures._replace(names=[n if n is None or s is not None else Path(n).name for n, s in pairs])


def is_keyword(what: str) -> bool:
    """Whether WHAT names trials or stimuli of the dataset rather than a file or a sentence."""
    kind, colon, _ = what.partition(":")
    return what in SPLITS or bool(colon and kind in KEYWORDS)


def given_rows(values: Any, names: Sequence[str | None], stimuli: Sequence[str | None], facts: dict[str, Any]) -> Given:
    facts = facts | {"rows": len(names)}
    known = [stimulus for stimulus in stimuli if stimulus is not None]
    return Given(values, list(names), list(stimuli), [facts | ({"stimuli": known} if known else {})])


def says_zscored(path: Path) -> bool:
    """Whether a file says that its responses are z-scored already."""
    if path.suffix.lower() != ".safetensors":
        return False
    with reading(path, "a .safetensors file"), safe_open(path, framework="numpy") as tensors:
        return ZSCORED.items() <= (tensors.metadata() or {}).items()


def of_file(path: Path) -> dict[str, str]:
    return {"file": str(path.resolve()), "sha256": checksum(path)}


def features(source: str, asked: str) -> Given:
    """An array with one row each, as `generate` takes it: it knows what fits."""
    values = np.array(read_array(only_array(source)))
    path, _ = split_source(source)
    return given_rows(values, [None] * len(values), [None] * len(values), {"given": asked} | of_file(path))


def joined(parts: Sequence[Given], option: str) -> Given:
    """All rows of one condition, in the order in which they are given. Raises UserError for rows of different form."""
    arrays = [part.values for part in parts if isinstance(part.values, np.ndarray)]
    forms = {(array.shape[1:], array.dtype) for array in arrays}
    if arrays and (len(arrays) < len(parts) or len(forms) > 1):
        raise UserError(
            f"{option}: expected rows of one form, got {', '.join(str(s['given']) for p in parts for s in p.sources)}, "
            "which differ: words or pictures beside features, or arrays of other shapes. Ask for one kind at a time."
        )
    lists = [row for part in parts if isinstance(part.values, list) for row in part.values]
    return Given(
        np.concatenate(arrays) if arrays else lists,
        [name for part in parts for name in part.names],
        [stimulus for part in parts for stimulus in part.stimuli],
        [source for part in parts for source in part.sources],
    )


def paired(given: Mapping[str, Given]) -> tuple[dict[str, object], list[str]]:
    """Conditions with as many rows each, and a name for every row: those of the first condition whose rows have names.

    Raises UserError if the numbers of rows differ, other than a single one that goes with all, or if rows of the
    dataset that would be paired belong to different stimuli.
    """
    if not given:
        return {}, ["0000"]
    sizes = {name: len(rows.names) for name, rows in given.items()}
    most = max(sizes.values())
    if set(sizes.values()) - {1, most}:
        raise UserError(
            f"generate: expected as many rows of everything, or a single one to go with all, got "
            f"{', '.join(f'{name} {size}' for name, size in sizes.items())}. Give as many of each."
        )
    many = {name: rows for name, rows in given.items() if sizes[name] == most}
    if most > 1:
        check_same_stimuli(many)
    first = next((rows for rows in many.values() if any(rows.names)), next(iter(many.values())))
    names = [name or f"{row:04d}" for row, name in enumerate(first.names)]
    conditions: dict[str, object] = {}
    for name, rows in given.items():
        conditions[name] = rows.values if sizes[name] == most else repeated(rows.values, most)
    return conditions, names


def check_same_stimuli(given: Mapping[str, Given]) -> None:
    for row, stimuli in enumerate(zip(*(rows.stimuli for rows in given.values()), strict=True)):
        known = {name: stimulus for name, stimulus in zip(given, stimuli, strict=True) if stimulus is not None}
        if len(set(known.values())) > 1:
            raise UserError(
                f"generate: expected rows of the same stimulus to be paired, got "
                f"{', '.join(f'{stimulus} ({name})' for name, stimulus in known.items())} in row {row}. "
                "Take all conditions from the same stimuli, in the same order."
            )


def repeated(values: list[str] | Shaped[np.ndarray, "1 ..."], times: int) -> list[str] | Shaped[np.ndarray, "n ..."]:
    return values * times if isinstance(values, list) else np.repeat(values, times, axis=0)


def words(text: str) -> tuple[str, ...]:
    """'a,b' as its parts."""
    return tuple(part for part in re.split(r"\s*,\s*", text.strip()) if part)
