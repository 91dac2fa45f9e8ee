"""A brain tokenizer in a folder of its own that loads anywhere, without the data it was trained on.

    DIR/tokenizer.json              format, config, sites of each subject, where it comes from, fingerprint
        tokenizer.safetensors       weights and the order of each subject's sites
        spaces/SUBJECT/             the BrainSpace: coordinates, ROIs, the way back to a volume or a surface

Safetensors and JSON only: nothing is ever unpickled.
"""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brainjanus.core.config import from_dict, read_json, to_dict
from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.space import BrainSpace
from brainjanus.core.weights import fingerprint, load_module, save_module
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig

FORMAT, VERSION = "brainjanus-brain-tokenizer", 1
KEYS = ("config", "num_sites", "provenance", "fingerprint")


@dataclass(frozen=True, eq=False)
class SavedTokenizer:
    """A trained tokenizer with the spaces of its subjects. provenance: datasets, seed, versions."""

    tokenizer: BrainTokenizer
    spaces: Mapping[str, BrainSpace]
    provenance: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """A hash of config, weights and orders: two tokenizers with the same one make the same codes."""
        config = json.dumps(to_dict(self.tokenizer.config), sort_keys=True)
        return hashlib.sha256((config + fingerprint(self.tokenizer)).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the tokenizer; tokenizer.json comes last and tells that it is complete."""
        for subject, space in self.spaces.items():
            with written_beside(folder / "spaces" / subject) as beside:
                space.save(beside)
        save_module(self.tokenizer, folder / "tokenizer.safetensors")
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        facts = {
            "format": FORMAT,
            "version": VERSION,
            "config": to_dict(self.tokenizer.config),
            "num_sites": {subject: self.tokenizer.num_sites(subject) for subject in self.tokenizer.subjects},
            "num_codes": {subject: self.tokenizer.num_codes(subject) for subject in self.tokenizer.subjects},
            "provenance": {**versions, **self.provenance},
            "fingerprint": self.fingerprint,
        }
        with written_beside(folder / "tokenizer.json") as beside:
            beside.write_text(json.dumps(facts, indent=1))

    def check_trained_on(self, dataset: str, fingerprint: str, subjects: Sequence[str]) -> None:
        """Raises UserError unless it was trained on this very dataset, whose z-scoring and splits it knows."""
        known = self.provenance.get("datasets", {})
        if fingerprint not in known.values() or not set(subjects) <= set(self.tokenizer.subjects):
            raise UserError(
                f"brain tokenizer: expected one that was trained on the dataset '{dataset}' ({fingerprint[:12]}), got "
                f"one of {', '.join(f'{n} ({f[:12]})' for n, f in known.items()) or 'unknown data'}. It may have "
                "learnt from what is held out here: train a tokenizer on this dataset, or add its subjects to this one "
                "with `brainjanus train tokenizer --start`."
            )


def load_tokenizer(folder: Path | str) -> SavedTokenizer:
    """Read what `save` wrote. Raises UserError if it is missing, unfinished, foreign or damaged."""
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: expected a trained brain tokenizer with tokenizer.json, got none. If its training was "
            "interrupted, run `brainjanus train tokenizer` with the same --out to finish it; otherwise check the path."
        )
    facts = read_json(path)
    if facts.get("format") != FORMAT or facts.get("version") != VERSION:
        raise UserError(
            f"{path}: expected format '{FORMAT}', version {VERSION}, got {facts.get('format')!r}, version "
            f"{facts.get('version')}. It was written by another program or by another version of brainjanus: use that "
            "one, or train again."
        )
    missing = [key for key in KEYS if key not in facts]
    if missing:
        raise UserError(
            f"{path}: expected the keys {', '.join(KEYS)}, got none called {', '.join(missing)}. The file was edited "
            "or damaged: copy the tokenizer again."
        )
    config = from_dict(BrainTokenizerConfig, facts["config"], where=str(path))
    try:
        orders = {subject: torch.arange(int(sites)) for subject, sites in facts["num_sites"].items()}
        tokenizer = BrainTokenizer(config, orders)
        dict(facts["provenance"]["datasets"])
        expected = str(facts["fingerprint"])[:12]
    except (TypeError, ValueError, AttributeError, RuntimeError, KeyError) as error:
        raise UserError(
            f"{path}: expected sites by subject, datasets by name and a fingerprint, got others ({error}). The file "
            "was edited or damaged: copy the tokenizer again."
        ) from error
    load_module(tokenizer, folder / "tokenizer.safetensors", "tokenizer.json")
    spaces = {subject: BrainSpace.load(folder / "spaces" / subject) for subject in tokenizer.subjects}
    saved = SavedTokenizer(tokenizer, spaces, facts["provenance"])
    if saved.fingerprint != facts["fingerprint"]:
        raise UserError(
            f"{folder / 'tokenizer.safetensors'}: expected the weights with the fingerprint "
            f"{expected}, as tokenizer.json says, got {saved.fingerprint[:12]}. The files of two "
            "tokenizers were mixed, or one was changed: copy the tokenizer again."
        )
    for subject, space in spaces.items():
        same = config.encoder == "paper" or np.array_equal(np.array(space.order), tokenizer.sites_of(subject).order)
        if space.subject != subject or space.num_sites != tokenizer.num_sites(subject) or not same:
            raise UserError(
                f"{folder / 'spaces' / subject}: expected the space of {subject} with {tokenizer.num_sites(subject)} "
                f"sites in the tokenizer's order, got {space.subject} with {space.num_sites} in an order of its own. "
                "The folders of two subjects or two tokenizers were mixed: copy the tokenizer again."
            )
    return saved
