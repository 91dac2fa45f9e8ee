"""Checkpoint: tokenizers and model in one folder that loads anywhere, without the data they were trained on.

    RUN/model.json                  configs, vocabulary, interface, provenance
        model.safetensors           the OmniModel
        tokenizers/brain.safetensors, image.safetensors, tokenizer.json; of Janus also vision.safetensors
        drafts.safetensors      linear estimates between subjects, if there are any
        relays.safetensors      how subjects of the model speak for those that were added to it, if there are any
        spaces/SUBJECT/         each subject's BrainSpace, and the units of its raw betas

Safetensors and JSON only: nothing is ever unpickled.
"""

import copy
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brainjanus.core.config import from_dict, to_dict
from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.space import BrainSpace
from brainjanus.core.units import Units
from brainjanus.core.vocabulary import Vocabulary
from brainjanus.core.weights import load_module, save_module
from brainjanus.model.draft import Drafts
from brainjanus.model.omni import Interface, OmniConfig, OmniModel
from brainjanus.model.relay import Relays
from brainjanus.model.steps import accelerate
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
from brainjanus.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from brainjanus.tokenizers.janus import (
    JanusImageConfig,
    JanusImageTokenizer,
    JanusTextConfig,
    JanusTextTokenizer,
    JanusVision,
    JanusVisionConfig,
)
from brainjanus.tokenizers.text import TextTokenizer
from brainjanus.tokenizers.vision import vision_encoder

FORMAT, VERSION = "brainjanus-model", 4
MIXED = "The files of two runs were mixed: copy the run again."
KEYS = (
    "brain_tokenizer", "num_sites", "image_tokenizer", "text_tokenizer", "vision", "omni", "interface", "drafts",
    "spaces", "provenance",
)  # fmt: skip
OWN, JANUS = "own", "janus"  # kinds of tokenizers; JANUS is also the name of its understanding encoder
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class Tokenizers:
    """One encode / decode pair per modality; image or text is None where the data has none.

    brain: one without subjects where there are no brains. vision: the understanding encoder of a model that is Janus.
    """

    brain: BrainTokenizer
    image: ImageTokenizer | JanusImageTokenizer | None = None
    text: TextTokenizer | None = None
    vision: JanusVision | None = None

    def encoder(self, name: str) -> Callable[[Tensor], Tensor]:
        """The vision encoder of this name: pictures [b, 3, h, w] in [0, 1] -> features [b, t, c].

        Raises UserError if its features can only come from the dataset.
        """
        return self.vision if name == JANUS and self.vision is not None else vision_encoder(name)

    def on(self, device: torch.device | str) -> "Tokenizers":
        """Copies on a device; these where they are there already."""
        if torch.device(device).type == "cpu":
            return self
        brain, image = copy.deepcopy(self.brain).to(device), copy.deepcopy(self.image)
        return replace(self, brain=brain, image=None if image is None else image.to(device))


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What generation needs. provenance: dataset, fingerprint, seed, versions.

    spaces, units: of each subject, so that requests need no dataset; none where they are not known. drafts: linear
    estimates of a response from another brain or a part of it. relays: of subjects that were added to a trained model.
    """

    tokenizers: Tokenizers
    model: OmniModel
    provenance: dict[str, Any]
    spaces: Mapping[str, BrainSpace] = field(default_factory=dict)
    units: Mapping[str, Units] = field(default_factory=dict)
    drafts: Drafts | None = None
    relays: Relays | None = None

    def save(self, folder: Path) -> None:
        """Write the checkpoint; model.json comes last and tells that it is complete."""
        brain, image, text = self.tokenizers.brain, self.tokenizers.image, self.tokenizers.text
        (folder / "tokenizers").mkdir(parents=True, exist_ok=True)
        save_module(brain, folder / "tokenizers" / "brain.safetensors")
        if image is not None:
            save_module(image, folder / "tokenizers" / "image.safetensors")
        if text is not None:
            text.save(folder / "tokenizers")
        if self.tokenizers.vision is not None:
            save_module(self.tokenizers.vision, folder / "tokenizers" / "vision.safetensors")
        save_module(self.model, folder / "model.safetensors")
        if self.drafts is not None:
            save_module(self.drafts, folder / "drafts.safetensors")
        if self.relays is not None:
            save_module(self.relays, folder / "relays.safetensors")
        for subject, space in self.spaces.items():
            space.save(folder / "spaces" / subject)
            self.units[subject].save(folder / "spaces" / subject)
        facts = {
            "format": FORMAT,
            "version": VERSION,
            "brain_tokenizer": to_dict(brain.config),
            "num_sites": {subject: brain.num_sites(subject) for subject in brain.subjects},
            "image_tokenizer": {"kind": kind_of(image)} | to_dict(image.config) if image else None,
            "text_tokenizer": text_facts(text) if text else None,
            "vision": to_dict(self.tokenizers.vision.config) if self.tokenizers.vision else None,
            "omni": to_dict(self.model.config),
            "interface": to_dict(self.model.interface),
            "drafts": self.drafts.facts() if self.drafts else None,
            "relays": self.relays.facts() if self.relays else None,
            "spaces": list(self.spaces),
            "provenance": self.provenance | {"torch": torch.__version__, "python": platform.python_version()},
        }
        with written_beside(folder / "model.json") as beside:
            beside.write_text(json.dumps(facts, indent=1))

    def prepare(self, precision: str = "auto", acceleration: str = "none") -> "Checkpoint":
        """Lay the model out for generation, in place, once for all requests; before it is trained or saved, load again.

        precision: "auto" is bfloat16 on a GPU, float16 weights for a large model on a CPU, else float32; float32 also
        where a CPU's steps are compiled, as compilers do not know those products. acceleration: none, compile or graphs
        (see model/steps.py).
        """
        compiled_here = acceleration == "compile" and self.model.embed_tokens.weight.device.type == "cpu"
        self.model.prepare("float32" if precision == "auto" and compiled_here else precision)
        accelerate(self.model, acceleration)
        return self

    @classmethod
    def load(cls, folder: Path | str, *, precision: str = "auto", device: torch.device | str = "cpu") -> "Checkpoint":
        """Read a checkpoint. Raises UserError if it is missing, unfinished, foreign, newer or damaged.

        precision: what the model's weights are held in; "auto" as they were saved. They are read from the file as they
        are needed, without a second copy, if it is theirs and the device is the CPU.
        """
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
        try:
            return cls._read(facts, folder, precision, device)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder / 'model.json'}: expected what a trained run says of itself, got something else "
                f"({type(error).__name__}: {error}). The file was edited or damaged: copy the run again."
            ) from error

    @classmethod
    def _read(cls, facts: dict[str, Any], folder: Path, precision: str, device: torch.device | str) -> "Checkpoint":
        """What model.json speaks of."""
        orders, where = {s: torch.arange(sites) for s, sites in facts["num_sites"].items()}, str(folder / "model.json")
        brain = BrainTokenizer(from_dict(BrainTokenizerConfig, facts["brain_tokenizer"], where=where), orders)
        load_module(brain, folder / "tokenizers" / "brain.safetensors")
        image, text = read_image(facts["image_tokenizer"], folder), read_text(facts["text_tokenizer"], folder)
        vision = None
        if facts["vision"] is not None:
            with torch.device("meta"):
                vision = JanusVision(from_dict(JanusVisionConfig, facts["vision"]))
            load_module(vision, folder / "tokenizers" / "vision.safetensors")
        with torch.device("meta"):
            model = OmniModel(
                from_dict(OmniConfig, facts["omni"], where=where), from_dict(Interface, facts["interface"])
            )
        load_module(model, folder / "model.safetensors", dtype=dtype_of(precision), device=device)
        model.decoder.to(device)  # also what an added backbone has and does not save
        tokenizers = Tokenizers(brain.to(device), image and image.to(device), text, vision and vision.to(device))
        check_one_run(tokenizers, model, folder)
        drafts = None
        if facts["drafts"] is not None:
            drafts = Drafts(**facts["drafts"])
            load_module(drafts, folder / "drafts.safetensors")
            drafts = drafts.to(device)
            if {subject: rank[0] for subject, rank in drafts.ranks.items()} != facts["num_sites"]:
                raise UserError(
                    f"{folder / 'drafts.safetensors'}: expected drafts of the run's subjects, got others. {MIXED}"
                )
        relays = None
        if facts.get("relays") is not None:  # of a run without, there may be nothing said
            relays = Relays(**facts["relays"])
            load_module(relays, folder / "relays.safetensors")
            relays = relays.to(device)
        spaces = {subject: BrainSpace.load(folder / "spaces" / subject) for subject in facts["spaces"]}
        units = {subject: Units.load(folder / "spaces" / subject) for subject in facts["spaces"]}
        check_spaces(brain, spaces, units, folder)
        return cls(tokenizers, model, facts["provenance"], spaces, units, drafts, relays)


def kind_of(tokenizer: object) -> str:
    return JANUS if isinstance(tokenizer, JanusImageTokenizer | JanusTextTokenizer) else OWN


def text_facts(text: TextTokenizer) -> dict[str, Any]:
    """What model.json says of the text tokenizer; its pieces have a file of their own."""
    own = to_dict(text.config) if isinstance(text, JanusTextTokenizer) else {"max_length": text.max_length}
    return {"kind": kind_of(text)} | own


def read_image(facts: Any, folder: Path) -> ImageTokenizer | JanusImageTokenizer | None:
    """The image tokenizer of a checkpoint, of either kind."""
    if facts is None:
        return None
    kind, settings = kind_in(facts, "image_tokenizer", folder)
    image: ImageTokenizer | JanusImageTokenizer
    if kind == OWN:
        image = ImageTokenizer(from_dict(ImageTokenizerConfig, settings))
    else:
        with torch.device("meta"):
            image = JanusImageTokenizer(from_dict(JanusImageConfig, settings))
    load_module(image, folder / "tokenizers" / "image.safetensors")
    return image


def read_text(facts: Any, folder: Path) -> TextTokenizer | None:
    """The text tokenizer of a checkpoint, of either kind."""
    if facts is None:
        return None
    kind, settings = kind_in(facts, "text_tokenizer", folder)
    if kind == OWN:
        return TextTokenizer.load(folder / "tokenizers", settings["max_length"])
    return JanusTextTokenizer.read(folder / "tokenizers", from_dict(JanusTextConfig, settings))


def kind_in(facts: Any, key: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """Which tokenizer model.json speaks of, and its settings."""
    kind = facts.get("kind") if isinstance(facts, dict) else None
    if kind not in (OWN, JANUS):
        raise UserError(
            f"{folder / 'model.json'}: {key}: expected the kind {OWN} or {JANUS}, got '{kind}'. "
            "The file was edited or damaged: copy the run again."
        )
    return kind, {name: value for name, value in facts.items() if name != "kind"}


def dtype_of(precision: str) -> torch.dtype | None:
    """What weights are held in; None: as they were saved. Raises UserError for a precision that does not exist."""
    if precision not in ("auto", *DTYPES):
        raise UserError(
            f"precision: expected one of auto, {', '.join(DTYPES)}, got '{precision}'. Choose one of these."
        )
    return DTYPES.get(precision)


def check_one_run(tokenizers: Tokenizers, model: OmniModel, folder: Path) -> None:
    """Raises UserError if the tokenizers are not those that the model was trained with, though all shapes agree."""
    brain, image, text = tokenizers.brain, tokenizers.image, tokenizers.text
    own = brain.quantizer.codebook.to(model.brain_codebook.dtype)
    same = {"tokenizers/brain.safetensors": torch.equal(model.brain_codebook, own)}
    if isinstance(image, ImageTokenizer):  # Janus embeds codes by a table of its own
        own = image.quantizer.codebook.to(model.image_codebook.dtype)
        same["tokenizers/image.safetensors"] = torch.equal(model.image_codebook, own)
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
    if tokenizers.vision is not None:
        features = features | {JANUS: tokenizers.vision.size}
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
        text_end=text.end if text else 0,
        controls=text.controls if text else {},
    )
