"""Brain tokenizers on their own: a dataset enters; a folder that loads anywhere leaves, with its report, or codes.

OUT/config.json                 all settings, the dataset's fingerprint
    stages/brain/               training state and log.jsonl
    tokenizer.json, tokenizer.safetensors, spaces/      the tokenizer; written when training is complete
    scores.json, report.html    what it keeps of held-out responses
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from brainjanus.core.config import to_dict
from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.processes import check_alone, only_one
from brainjanus.data.dataset import Dataset
from brainjanus.data.truth import noise_free
from brainjanus.evaluate.tokenizer import TokenizerScores, reconstruct, score_tokenizer
from brainjanus.evaluate.tokenizer_report import write_tokenizer_report
from brainjanus.recipes import TokenizerRunConfig, tokenizer_fitting
from brainjanus.run import LEAST_STIMULI, claim
from brainjanus.tokenizers.brain import BrainTokenizer
from brainjanus.tokenizers.folder import SavedTokenizer, load_tokenizer
from brainjanus.train.alignment import seen
from brainjanus.train.parallel import ANY, Hardware
from brainjanus.train.tokenizer import fit_brain_tokenizer


def train_tokenizer(
    dataset: Dataset | Path | str,
    out: Path | str,
    config: TokenizerRunConfig | None = None,
    *,
    start: Path | str | None = None,
    hardware: Hardware = ANY,
) -> SavedTokenizer:
    """Train a brain tokenizer on the training split, or go on with an unfinished one in `out`.

    start: a trained tokenizer to add the dataset's subjects to: only what belongs to these is trained; the codebook,
    the shared weights and the codes of its own subjects stay as they are. hardware: what it runs on; one process.
    Raises UserError if `out` holds something else, or a tokenizer of other data or settings, or if there are several
    processes.
    """
    check_alone("train tokenizer")
    dataset = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    out = Path(out)
    config = config or tokenizer_fitting(dataset)
    for subject in dataset.subjects:
        for split, least in LEAST_STIMULI.items():
            found = len(dataset.trials(subject).stimuli(split))
            if found < least:
                raise UserError(
                    f"{dataset.path}: expected at least {least} {split} stimuli of {subject}, got {found}. Add "
                    "stimuli, or split the data anew."
                )
    before = None if start is None else load_tokenizer(start)
    if before is not None:
        config = replace(config, tokenizer=before.tokenizer.config)
        if there := [subject for subject in dataset.subjects if subject in before.tokenizer.subjects]:
            raise UserError(
                f"{dataset.path}: expected subjects that {start} does not know, got '{there[0]}'. A new subject needs "
                "a name of its own: prepare the dataset with another one."
            )
    if config.objective.alignment.weight > 0:
        seen(dataset, dataset.split_ids("train"), config.objective.alignment)  # refused before anything is written
    claim(out, dataset, config, start=None if before is None else before.fingerprint)
    if (out / "tokenizer.json").exists():
        return load_tokenizer(out)
    with only_one(out / "config.json"):
        return fit_tokenizer(dataset, out, config, before, hardware)


def fit_tokenizer(
    dataset: Dataset, out: Path, config: TokenizerRunConfig, before: SavedTokenizer | None, hardware: Hardware
) -> SavedTokenizer:
    """`train_tokenizer`, in a folder of its own. before: the one that the dataset's subjects are added to."""
    torch.manual_seed(config.seed)  # initial weights only; training draws from generators of its own
    spaces = {subject: dataset.space(subject) for subject in dataset.subjects}
    orders = {subject: torch.from_numpy(np.array(space.order)) for subject, space in spaces.items()}
    provenance: dict[str, Any] = {"datasets": {dataset.name: dataset.fingerprint}, "seed": config.seed}
    if before is not None:
        orders = {s: before.tokenizer.sites_of(s).order for s in before.tokenizer.subjects} | orders
        spaces = {**before.spaces, **spaces}
        known = before.provenance["datasets"]
        name = dataset.name if dataset.name not in known else f"{dataset.name} {dataset.fingerprint[:12]}"
        provenance["datasets"] = {**known, name: dataset.fingerprint}
        provenance["start"] = before.fingerprint
    tokenizer = BrainTokenizer(config.tokenizer, orders)
    if before is not None:
        tokenizer.load_state_dict(tokenizer.state_dict() | before.tokenizer.state_dict())
    fit_brain_tokenizer(
        tokenizer,
        dataset,
        config.training,
        out / "stages" / "brain",
        config.seed,
        config.objective,
        maps_only=before is not None,
        hardware=Hardware(hardware.device),
        option="--training",
    )
    saved = SavedTokenizer(tokenizer.eval().requires_grad_(False), spaces, provenance)
    saved.save(out)
    return saved


def report_tokenizer(
    tokenizer: Path | str, dataset: Dataset | Path | str, out: Path | str | None = None
) -> TokenizerScores:
    """Score a trained tokenizer on the dataset's held-out stimuli; writes scores.json and report.html.

    tokenizer: folder that `train_tokenizer` wrote. out: default: the same folder.
    """
    dataset = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    folder, saved = Path(tokenizer), load_tokenizer(tokenizer)
    saved.check_trained_on(dataset.name, dataset.fingerprint, dataset.subjects)
    out = folder if out is None else Path(out)
    truth = noise_free(dataset)
    scores = score_tokenizer(saved.tokenizer, dataset, truth=truth)
    log = folder / "stages" / "brain" / "log.jsonl"
    losses = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    facts = {"fingerprint": saved.fingerprint, **saved.provenance, "tokenizer": to_dict(saved.tokenizer.config)}
    write_tokenizer_report(
        out, saved.tokenizer, saved.spaces, dataset, scores, truth=truth or None, losses=losses, config=facts
    )
    scores.save(out / "scores.json")
    return scores


def tokenize_files(tokenizer: Path | str, dataset: Dataset | Path | str, out: Path | str, split: str = "test") -> Path:
    """Encode the mean responses to the stimuli of a split; OUT/SUBJECT.safetensors holds `codes` and `decoded`.

    codes: int32 [stimuli, codes]. decoded: float32 [stimuli, sites], z-scored. OUT/SUBJECT.json lists the stimuli.
    """
    dataset = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    saved = load_tokenizer(tokenizer)
    saved.check_trained_on(dataset.name, dataset.fingerprint, dataset.subjects)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out}: expected a new or an empty folder, got one that holds something. Choose another --out."
        )
    with written_beside(out) as beside:
        beside.mkdir()
        for subject in dataset.subjects:
            averages = dataset.averages(subject, split)
            made = reconstruct(saved.tokenizer, averages.responses, subject)
            tensors = {"codes": torch.from_numpy(made.codes).int(), "decoded": torch.from_numpy(made.values)}
            save_file(tensors, beside / f"{subject}.safetensors", {"tokenizer": saved.fingerprint})
            (beside / f"{subject}.json").write_text(json.dumps(averages.stimulus_ids, indent=1))
    return out
