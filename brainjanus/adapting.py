"""A new subject into a trained model, with little data or none. A run and a dataset enter; a run leaves.

OUT/    model.json, ...         a run as any other, whose subjects are the old ones and the new one
        relays.safetensors      how the old subjects speak for the new one (model/relay.py)
        adapt.json              from how many stimuli, and how well they are explained
        README.md, ...          its card, and those of the datasets, that of the new subject apart

Nothing of the model is changed: what it answers for the old subjects stays the same to the bit. Its brain tokenizer
gets axes for the new subject, its drafts a Gaussian, both solved. With no stimuli at all the new subject is told by
where its sites lie (zero-shot).
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from brainjanus.cards import leave_cards
from brainjanus.core.config import read_json
from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Dataset, listed
from brainjanus.data.write import digest_of
from brainjanus.generate import condition_block, generate
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.model.draft import Drafts, chosen, fit_gaussian, gaussian_of, principal
from brainjanus.model.relay import Relays
from brainjanus.run import Run, condition
from brainjanus.tokenizers.brain import BrainTokenizer
from brainjanus.train.relay import LEAST, Fit, Kind, Known, ranks_of, solve_relay
from brainjanus.train.tokenizer import Repeats, solve_axes

ENOUGH = 20  # stimuli from which a Gaussian and axes are solved; of fewer, from expected responses
LEAST_EXPECTED = 300  # stimuli by which the known subjects' responses are described; only what was shown is read
AXES_RANK = 64  # of a Gaussian of expected responses


def adapt(
    run: Path | str,
    dataset: Dataset | Path | str,
    out: Path | str,
    subject: str | None = None,
    *,
    stimuli: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Run:
    """Add a subject of a dataset to a trained run; writes a run into `out`.

    subject: default: the only one that the run does not know. stimuli: of its training stimuli, so many are used,
    drawn with `seed`; 0: none of its responses, where its sites lie alone; None: all. device: where the run is asked
    what the known subjects are expected to have.
    Raises UserError if the dataset does not fit the run, or `out` holds something.
    """
    if seed < 0:
        raise UserError(f"--seed: expected 0 or more, got {seed}. Any such number will do.")
    run, out = Path(run), Path(out)
    dataset = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    checkpoint = Checkpoint.load(run)
    subject = new_subject(checkpoint, dataset, run, subject)
    ids = training_stimuli(dataset, subject, stimuli, seed)
    shown = described(dataset, subject, ids, seed)
    check_fits(checkpoint, dataset, subject, run, shown, zero_shot=not ids)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out}: expected a new or an empty folder, got one that holds something. Choose another --out."
        )
    warn_of_leaks(run, dataset, subject)
    if not ids:
        warn_of_grids(dataset.space(subject), checkpoint.spaces)
    fit, drafts, brain = solve(Checkpoint.load(run, device=device).prepare(), checkpoint, dataset, subject, ids, shown)
    relays = added_relay(checkpoint.relays, subject, fit)
    facts = {
        "subject": subject,
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "stimuli": len(ids),
        "seed": seed,
        "width_mm": fit.width_mm,
        "explained_by_cross_validation": fit.r2,
        "speakers": list(fit.relay.known),
    }
    before = checkpoint.provenance
    made = replace(
        checkpoint,
        tokenizers=replace(checkpoint.tokenizers, brain=brain),
        provenance=before | {"adapted": before.get("adapted", {}) | {subject: dataset.fingerprint}},
        spaces={**checkpoint.spaces, subject: dataset.space(subject)},
        units={**checkpoint.units, subject: dataset.units(subject)},
        drafts=drafts,
        relays=relays,
    )
    config = read_json(run / "config.json").get("config", {})
    path = str(dataset.path.resolve())
    told: dict[str, Any] = {"dataset": dataset.name, "path": path, "fingerprint": dataset.fingerprint}
    told["learnt_from"] = list(dict.fromkeys([*learnt_from(run), path]))
    with written_beside(out) as beside:
        made.save(beside)
        (beside / "config.json").write_text(json.dumps(told | {"config": config, "adapted": facts}, indent=1))
        (beside / "adapt.json").write_text(json.dumps(facts, indent=1))
    leave_cards(out, dataset, made_from=run)
    return Run.open(out, device=device)


def new_subject(checkpoint: Checkpoint, dataset: Dataset, run: Path, subject: str | None) -> str:
    """Whom to add. Raises UserError if there is no such subject, or it is not new."""
    known = checkpoint.tokenizers.brain.subjects
    new = [name for name in dataset.subjects if name not in known]
    if subject is None and len(new) == 1:
        return new[0]
    if subject is None or subject not in dataset.subjects:
        raise UserError(
            f"adapt: expected --subject to name one of {listed(dataset.subjects)} of {dataset.path}, got "
            f"{subject or f'none, of which {len(new)} are new'}. Name one that {run} does not know."
        )
    if subject in known:
        raise UserError(
            f"{run}: expected a subject that it does not know ({listed(known)}), got '{subject}'. Is this another "
            "person of the same name? Prepare the dataset with another name."
        )
    return subject


def training_stimuli(dataset: Dataset, subject: str, stimuli: int | None, seed: int) -> list[str]:
    """Those whose responses are used, sorted. Raises UserError if there are not so many."""
    every = dataset.trials(subject).stimuli("train")
    count = len(every) if stimuli is None else stimuli
    if not (count == 0 or LEAST <= count <= len(every)):
        raise UserError(
            f"--stimuli: expected 0 (where sites lie alone), or from {LEAST} to the {len(every)} training stimuli of "
            f"{subject}, got {count}. Give another number, or none for all."
        )
    return sorted(every[row] for row in np.random.default_rng(seed).permutation(len(every))[:count])


def check_fits(
    checkpoint: Checkpoint, dataset: Dataset, subject: str, run: Path, shown: list[str], *, zero_shot: bool
) -> None:
    """Raises UserError if the known subjects cannot speak for the new one, by what both are expected to have for
    `shown`."""
    if checkpoint.drafts is None or not checkpoint.tokenizers.brain.subjects:
        raise UserError(
            f"{run}: expected a model of brains with linear drafts, whose subjects can speak for another, got one "
            "without. Train it again with this version."
        )
    image, config = checkpoint.tokenizers.image, checkpoint.model.config
    if image is not None and dataset.image_size not in (None, image.config.image_size):
        raise UserError(
            f"{dataset.path}: expected pictures of {image.config.image_size} pixels a side, as {run} was trained on, "
            f"got {dataset.image_size}. Prepare the dataset with --image-size {image.config.image_size}."
        )
    captioned = sum(bool(dataset.captions(stimulus)) for stimulus in shown)
    said = checkpoint.tokenizers.text is not None and captioned == len(shown)
    if not shown or not (said or (image is not None and dataset.image_size)):
        raise UserError(
            f"{dataset.path}: expected pictures or captions of all {len(shown)} stimuli that {subject} was shown, "
            f"which {run} knows what to expect of, got {f'captions of {captioned}' if captioned else 'none'}. "
            "Prepare the dataset with what was shown."
        )
    stored = [name for name in checkpoint.model.interface.features if name == config.image_input]
    if (
        image is not None
        and stored
        and name_is_stored(checkpoint, stored[0])
        and stored[0] not in dataset.feature_names
    ):
        raise UserError(
            f"{dataset.path}: expected the features '{stored[0]}', through which {run} reads pictures, got "
            f"{listed(dataset.feature_names) or 'none'}. Prepare the dataset with these features."
        )
    spaces = [checkpoint.spaces.get(name) for name in checkpoint.tokenizers.brain.subjects]
    everywhere = all(space is not None and space.points_mm is not None for space in spaces)
    if zero_shot and (dataset.space(subject).points_mm is None or not everywhere):
        raise UserError(
            f"--stimuli 0: expected coordinates of all sites of {subject} and of the subjects of {run}, by which they "
            "are compared, got sites without. Give responses to some stimuli instead."
        )


def name_is_stored(checkpoint: Checkpoint, name: str) -> bool:
    """Whether features of this name come from the dataset alone."""
    try:
        checkpoint.tokenizers.encoder(name)
    except UserError:
        return True
    return False


def described(dataset: Dataset, subject: str, ids: list[str], seed: int) -> list[str]:
    """The stimuli of `ids`, and others that were shown in training where they are few: of these no response is read."""
    others = sorted(set(dataset.trials(subject).stimuli("train")) - set(ids))
    more = np.random.default_rng(seed).permutation(len(others))[: max(0, LEAST_EXPECTED - len(ids))]
    return [*ids, *(others[row] for row in more)]


def solve(
    asked: Checkpoint, checkpoint: Checkpoint, dataset: Dataset, subject: str, ids: list[str], shown: list[str]
) -> tuple[Fit, Drafts, BrainTokenizer]:
    """The relay, drafts and tokenizer with the new subject. asked: the same checkpoint, laid out for generation."""
    new = checkpoint.relays.subjects if checkpoint.relays is not None else ()
    names = [name for name in checkpoint.tokenizers.brain.subjects if name not in new]
    space = dataset.space(subject)
    shown_as: dict[str, object] = {}
    if checkpoint.tokenizers.image is not None and dataset.image_size is not None:
        shown_as["image"] = condition(asked, dataset, "image", shown, "train")
    if checkpoint.tokenizers.text is not None and all(dataset.captions(stimulus) for stimulus in shown):
        shown_as["text"] = condition(asked, dataset, "text", shown, "train")

    def told_by(given: Mapping[str, object]) -> list[np.ndarray]:
        made = [generate(asked, given, f"brain:{name}") for name in names]
        return [values.numpy() for values in made if isinstance(values, torch.Tensor)]

    kinds = {}
    for name, rows in shown_as.items():
        block = condition_block(asked, name, rows)
        features = None if name != "image" or block.vectors is None else block.vectors.flatten(1).cpu().numpy()
        kinds[name] = Kind(told_by({name: rows}), features)
    expected = told_by(shown_as) if len(shown_as) > 1 else next(iter(kinds.values())).expected
    rank = ranks_of(len(names), len(shown))
    every = [np.concatenate(some) for some in zip(expected, *(kind.expected for kind in kinds.values()), strict=True)]
    known = [Known.of(checkpoint.spaces[name], x, rank) for name, x in zip(names, every, strict=True)]
    averages = dataset.averages(subject, "train", among=ids)
    place = {stimulus: row for row, stimulus in enumerate(shown)}
    at = np.array([place[stimulus] for stimulus in averages.stimulus_ids], dtype=np.int64)
    fit = solve_relay(space, known, expected, at, averages.responses, kinds)
    told = fit.relay.respond({n: torch.from_numpy(x) for n, x in zip(names, expected, strict=True)}).numpy()
    drafts = added_draft(checkpoint, dataset, subject, averages.stimulus_ids, averages.responses, told, at)
    return fit, drafts, added_axes(checkpoint.tokenizers.brain, dataset, subject, ids, told)


def added_relay(before: Relays | None, subject: str, fit: Fit) -> Relays:
    facts: dict[str, Any] = before.facts() if before is not None else {"sites": {}, "known": {}, "kinds": {}}
    new = {"sites": fit.relay.num_sites, "known": fit.relay.known, "kinds": fit.relay.kinds}
    relays = Relays(**{name: facts[name] | {subject: of_new} for name, of_new in new.items()})
    if before is not None:
        relays.load_state_dict(relays.state_dict() | before.state_dict())
    relays.relay(subject).load_state_dict(fit.relay.state_dict())
    return relays


def added_draft(
    checkpoint: Checkpoint, dataset: Dataset, subject: str, ids: list[str], responses: Float[np.ndarray, "n v"],
    told: Float[np.ndarray, "m v"], at: Int[np.ndarray, "n"],
) -> Drafts:  # fmt: skip
    """Drafts with a Gaussian of the new subject, of what was measured or, where that is little, of what is expected;
    and how its trials scatter around what is expected."""
    before = checkpoint.drafts
    assert before is not None
    if len(responses) >= ENOUGH:
        gaussian = fit_gaussian(responses, *chosen(responses))
    else:
        mean, axes = principal(told, AXES_RANK)
        gaussian = gaussian_of(told, mean, axes, len(axes), 1.0)
        gaussian.noise.fill_(max(float(1 - told.var(axis=0).mean()), 0.1))  # of a z-scored response, what is not told
    ranks = {**before.ranks, subject: gaussian.axes.shape[::-1]}
    drafts = Drafts(**(before.facts() | {"ranks": ranks}))
    drafts.load_state_dict(drafts.state_dict() | before.state_dict())
    drafts.gaussian(subject).load_state_dict(gaussian.state_dict())
    if ids:
        row_of = dict(zip(ids, at.tolist(), strict=True))
        trials = dataset.trials(subject)
        used = np.array([row for row in trials.rows("train") if trials.stimulus_id[row] in row_of])
        expected = told[[row_of[trials.stimulus_id[row]] for row in used]]
        drafts.scatter(subject).solve(dataset.responses(subject, used) - expected)
    return drafts


def added_axes(
    before: BrainTokenizer, dataset: Dataset, subject: str, ids: list[str], told: Float[np.ndarray, "m v"]
) -> BrainTokenizer:
    """The tokenizer with axes of the new subject; codebook and all that others have stay."""
    orders = {name: before.sites_of(name).order for name in before.subjects}
    orders[subject] = torch.from_numpy(np.array(dataset.space(subject).order))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        brain = BrainTokenizer(before.config, orders)
    brain.load_state_dict(brain.state_dict() | before.state_dict())
    if len(ids) >= ENOUGH:
        solve_axes(brain, Repeats(dataset, subject, ids), other_repeats=0.5)
    else:
        brain.solve(subject, torch.from_numpy(told), torch.zeros(0, told.shape[1]))
    return brain.eval().requires_grad_(False)


def learnt_from(run: Path) -> list[str]:
    """Paths of the datasets that the run was trained on, and of those by which subjects were added to it."""
    config = read_json(run / "config.json")
    return config.get("learnt_from") or [path for path in [config.get("path")] if path]


def warn_of_grids(own: BrainSpace, known: Mapping[str, BrainSpace]) -> None:
    """Say if volumes lie on several grids: as in each subject's own space, where coordinates are not comparable."""

    def grid(space: BrainSpace) -> object:
        return list(space.geometry["shape"]), np.round(space.geometry["affine"], 3).tolist()

    volumes = {name: space for name, space in known.items() if space.geometry.get("type") == "volume"}
    if own.geometry.get("type") != "volume":
        return
    if differing := [name for name, space in volumes.items() if grid(space) != grid(own)]:
        print(
            f"adapt --stimuli 0: sites are compared by coordinates, and the volume of {own.subject} is on another grid "
            f"than that of {listed(differing)}. Unless all lie in one space, such as MNI152, they mean nothing to each "
            "other: give responses to some stimuli.",
            file=sys.stderr,
        )


def warn_of_leaks(run: Path, dataset: Dataset, subject: str) -> None:
    """Say how many of the new subject's test pictures the run has learnt from, where its datasets are still there."""

    def digests(data: Dataset, ids: tuple[str, ...]) -> Mapping[str, set[bytes]]:
        return {stimulus: {digest_of(picture) for picture in data.pictures(stimulus)} for stimulus in ids}

    if dataset.image_size is None:
        return
    seen: set[bytes] = set()
    for path in learnt_from(run):
        try:
            before = Dataset.open(path)
        except UserError:
            continue
        if before.image_size is not None:
            seen = seen.union(*digests(before, before.split_ids("train")).values())
    test = digests(dataset, dataset.trials(subject).stimuli("test"))
    if leaked := [stimulus for stimulus, pictures in test.items() if pictures & seen]:
        print(
            f"adapt: {len(leaked)} of {len(test)} test stimuli of {subject} ('{leaked[0]}' first) are pictures that "
            f"{run} was trained on: scores on them are too high. Leave them out of the test split.",
            file=sys.stderr,
        )
