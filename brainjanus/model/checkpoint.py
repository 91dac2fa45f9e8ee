"""Checkpoint: tokenizers and model in one folder that loads anywhere, without the data they were trained on.

    RUN/model.json                  configs, vocabulary, interface, provenance
        model.safetensors           the OmniModel
        tokenizers/brain.safetensors, image.safetensors, tokenizer.json
        spaces/SUBJECT/         each subject's BrainSpace, and the units of its raw betas

Safetensors and JSON only: nothing is ever unpickled.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from brainjanus.core.config import from_dict, to_dict
from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.space import BrainSpace
from brainjanus.core.units import Units
from brainjanus.core.vocabulary import Vocabulary
from brainjanus.core.weights import load_module, save_module
from brainjanus.model.omni import Interface, OmniConfig, OmniModel
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
from brainjanus.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from brainjanus.tokenizers.text import TextTokenizer

FORMAT, VERSION = "brainjanus-model", 2
MIXED = "The files of two runs were mixed: copy the run again."
KEYS = (
    "brain_tokenizer", "num_sites", "image_tokenizer", "text_max_length", "omni", "interface", "spaces", "provenance"
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Tokenizers:
    """One encode / decode pair per modality; image or text is None where the data has none."""

    brain: BrainTokenizer
    image: ImageTokenizer | None = None
    text: TextTokenizer | None = None


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What generation needs. provenance: dataset, fingerprint, seed, versions.

    spaces, units: of each subject, so that requests need no dataset; none where they are not known.
    """

    tokenizers: Tokenizers
    model: OmniModel
    provenance: dict[str, Any]
    spaces: Mapping[str, BrainSpace] = field(default_factory=dict)
    units: Mapping[str, Units] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the checkpoint; model.json comes last and tells that it is complete."""
        brain, image, text = self.tokenizers.brain, self.tokenizers.image, self.tokenizers.text
        (folder / "tokenizers").mkdir(parents=True, exist_ok=True)
        save_module(brain, folder / "tokenizers" / "brain.safetensors")
        if image is not None:
            save_module(image, folder / "tokenizers" / "image.safetensors")
        if text is not None:
            text.save(folder / "tokenizers")
        save_module(self.model, folder / "model.safetensors")
        for subject, space in self.spaces.items():
            space.save(folder / "spaces" / subject)
            self.units[subject].save(folder / "spaces" / subject)
        facts = {
            "format": FORMAT,
            "version": VERSION,
            "brain_tokenizer": to_dict(brain.config),
            "num_sites": {subject: brain.num_sites(subject) for subject in brain.subjects},
            "image_tokenizer": to_dict(image.config) if image else None,
            "text_max_length": text.max_length if text else None,
            "omni": to_dict(self.model.config),
            "interface": to_dict(self.model.interface),
            "spaces": list(self.spaces),
            "provenance": self.provenance | {"torch": torch.__version__, "python": platform.python_version()},
        }
        with written_beside(folder / "model.json") as beside:
            beside.write_text(json.dumps(facts, indent=1))

    @classmethod
    def load(cls, folder: Path | str) -> "Checkpoint":
        """Read a checkpoint. Raises UserError if it is missing, unfinished, foreign, newer or damaged."""
        folder = Path(folder)
        try:
            facts = json.loads((folder / "model.json").read_text())
        except FileNotFoundError as error:
            raise UserError(
                f"{folder}: expected a trained run with model.json, got none. If its training was interrupted, run "
                "`brainjanus train` with the same --out to finish it; otherwise check the path."
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / 'model.json'}: expected JSON, got '{error}'. Copy the run again.") from error
        if not isinstance(facts, dict) or facts.get("format") != FORMAT or facts.get("version") != VERSION:
            got = {k: facts.get(k) for k in ("format", "version")} if isinstance(facts, dict) else type(facts).__name__
            raise UserError(
                f"{folder / 'model.json'}: expected format '{FORMAT}', version {VERSION}, got {got}. "
                "It was written by another program or by another version of brainjanus: use that one, or train again."
            )
        missing = [key for key in KEYS if key not in facts]
        if missing:
            raise UserError(
                f"{folder / 'model.json'}: expected the keys {', '.join(KEYS)}, got none called {', '.join(missing)}. "
                "The file was edited or damaged: copy the run again."
            )
        orders = {subject: torch.arange(sites) for subject, sites in facts["num_sites"].items()}
        brain = BrainTokenizer(from_dict(BrainTokenizerConfig, facts["brain_tokenizer"]), orders)
        load_module(brain, folder / "tokenizers" / "brain.safetensors")
        image = text = None
        if facts["image_tokenizer"] is not None:
            image = ImageTokenizer(from_dict(ImageTokenizerConfig, facts["image_tokenizer"]))
            load_module(image, folder / "tokenizers" / "image.safetensors")
        if facts["text_max_length"] is not None:
            text = TextTokenizer.load(folder / "tokenizers", facts["text_max_length"])
        model = OmniModel(from_dict(OmniConfig, facts["omni"]), from_dict(Interface, facts["interface"]))
        load_module(model, folder / "model.safetensors")
        tokenizers = Tokenizers(brain, image, text)
        check_one_run(tokenizers, model, folder)
        spaces = {subject: BrainSpace.load(folder / "spaces" / subject) for subject in facts["spaces"]}
        units = {subject: Units.load(folder / "spaces" / subject) for subject in facts["spaces"]}
        check_spaces(brain, spaces, units, folder)
        return cls(tokenizers, model, facts["provenance"], spaces, units)


def check_one_run(tokenizers: Tokenizers, model: OmniModel, folder: Path) -> None:
    """Raises UserError if the tokenizers are not those that the model was trained with, though all shapes agree."""
    brain, image, text = tokenizers.brain, tokenizers.image, tokenizers.text
    same = {"tokenizers/brain.safetensors": torch.equal(model.brain_codebook, brain.quantizer.codebook)}
    if image is not None:
        same["tokenizers/image.safetensors"] = torch.equal(model.image_codebook, image.quantizer.codebook)
    if text is not None:
        same["tokenizers/tokenizer.json"] = text.num_codes == model.vocabulary.text
    wrong = [file for file, fits in same.items() if not fits]
    if wrong:
        raise UserError(
            f"{folder}: expected tokenizers with the codebooks of model.safetensors, got another in "
            f"{', '.join(wrong)}. {MIXED}"
        )


def check_spaces(
    brain: BrainTokenizer, spaces: Mapping[str, BrainSpace], units: Mapping[str, Units], folder: Path
) -> None:
    """Raises UserError if a space is not that of the subject that the tokenizer knows by this name."""
    for subject, space in spaces.items():
        expected = brain.num_sites(subject)
        if not space.num_sites == len(units[subject].mean) == expected:
            raise UserError(
                f"{folder / 'spaces' / subject}: expected the {expected} sites of {subject} in tokenizers/"
                f"brain.safetensors, got {space.num_sites}, with statistics of {len(units[subject].mean)}. {MIXED}"
            )


def interface_of(tokenizers: Tokenizers, features: dict[str, tuple[int, int]]) -> Interface:
    """What the model must know of these tokenizers and features (name -> tokens, channels)."""
    brain, image, text = tokenizers.brain, tokenizers.image, tokenizers.text
    vocabulary = Vocabulary(
        text=text.num_codes if text else 0,
        image=image.config.quantizer.num_codes if image else 0,
        brain=brain.config.quantizer.num_entries,
        subjects=brain.subjects,
    )
    return Interface(
        vocabulary=vocabulary,
        image_codes=image.num_codes if image else 0,
        brain_codes={subject: brain.num_codes(subject) for subject in brain.subjects},
        image_dim=image.config.quantizer.dim if image else 1,
        brain_dim=brain.config.quantizer.dim,
        brain_patch=brain.config.patch_size,
        brain_stages=brain.config.quantizer.stages,
        text_codes=text.max_length if text else 0,
        features=features,
    )
