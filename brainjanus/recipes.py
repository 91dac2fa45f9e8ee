"""Recipes: full configs by name. A variant is `dataclasses.replace` of one.

Enters: a name, or a dataset to fit to. Leaves: a RunConfig, everything that decides what a training does but the data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from brainjanus.core.config import changed, from_dict, load_config, read_json
from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset
from brainjanus.evaluate.baselines import TEXT_FEATURES
from brainjanus.model.decoder import DecoderConfig
from brainjanus.model.omni import OmniConfig
from brainjanus.tokenizers.brain import BrainTokenizerConfig
from brainjanus.tokenizers.image import FOLD, ImageTokenizerConfig
from brainjanus.tokenizers.patch import PatchConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig
from brainjanus.tokenizers.text import TextTokenizerConfig
from brainjanus.train.omni import OmniTrainingConfig, default_tasks
from brainjanus.train.optim import OptimConfig
from brainjanus.train.tokenizer import ObjectiveConfig

FEW_TRIALS = 300  # training stimuli of a subject; below it, the smallest model
MOST_CODES_PER_SIDE = 8  # of a picture
MOST_TOKENS = 256  # of a response; above it, or above half of the stimuli that tell its axes, patches are larger
FEW_SITES = 200  # sites of a subject; below it, patches of two sites


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a training does, but the data. Defaults are laptop-sized.

    janus: folder of Janus-Pro, or its name on the hub, whose weights the model starts from, with its image and text
    tokenizers; the sizes are then Janus's. None: all starts from scratch. janus_tokens: at most so many features of a
    picture by its understanding encoder, which `omni.image_input` "janus" reads; None: all of them. seed: of weights,
    batches and what is held out.
    """

    seed: int = 0
    janus: str | None = None
    janus_tokens: int | None = None
    brain_tokenizer: BrainTokenizerConfig = field(default_factory=BrainTokenizerConfig)
    brain_training: OptimConfig = field(
        default_factory=lambda: OptimConfig(steps=500, batch_size=64, learning_rate=2e-3)
    )
    brain_objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    image_tokenizer: ImageTokenizerConfig = field(default_factory=ImageTokenizerConfig)
    image_training: OptimConfig = field(
        default_factory=lambda: OptimConfig(steps=600, batch_size=64, learning_rate=2e-3)
    )
    text_tokenizer: TextTokenizerConfig = field(default_factory=TextTokenizerConfig)
    omni: OmniConfig = field(default_factory=OmniConfig)
    training: OmniTrainingConfig = field(default_factory=OmniTrainingConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed: expected a whole number from 0 to {2**32 - 1}, got {self.seed}. Correct the seed.")
        if self.janus is not None and self.omni.backbone != "llama":
            raise UserError(
                f"omni.backbone: expected llama with Janus, whose weights are a decoder's of this kind, got "
                f"'{self.omni.backbone}'. Leave it out, or train without janus."
            )
        if self.janus is not None and self.training.excerpts:
            raise UserError(
                f"training.excerpts: expected 0 with Janus, whose prompts are turns of a dialogue, got "
                f"{self.training.excerpts}. Leave it out, or train without janus."
            )

    @classmethod
    def load(cls, path: Path | str) -> "RunConfig":
        """Read a config file, or the config.json of a run. Raises UserError for unknown keys and wrong values."""
        return load_run_config(cls, path)

    def changed(self, settings: Mapping[str, Any]) -> "RunConfig":
        """The same with other values, by the names that `train` has: {"training.optim.steps": 300}.

        Raises UserError that lists unknown names and wrong values.
        """
        return changed(self, settings)


@dataclass(frozen=True)
class TokenizerRunConfig:
    """Everything that decides what the training of a brain tokenizer does, but the data.

    seed: of weights and batches.
    """

    seed: int = 0
    tokenizer: BrainTokenizerConfig = field(default_factory=BrainTokenizerConfig)
    training: OptimConfig = field(default_factory=lambda: OptimConfig(steps=500, batch_size=64, learning_rate=2e-3))
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    @classmethod
    def load(cls, path: Path | str) -> "TokenizerRunConfig":
        """Read a config file, or the config.json of a tokenizer. Raises UserError for what does not fit."""
        return load_run_config(cls, path)

    def changed(self, settings: Mapping[str, Any]) -> "TokenizerRunConfig":
        """The same with other values, by the names that `train tokenizer` has: {"training.steps": 300}.

        Raises UserError that lists unknown names and wrong values.
        """
        return changed(self, settings)


C = TypeVar("C")


def load_run_config(kind: type[C], path: Path | str) -> C:
    """A config out of a file, or out of the config.json of a run.

    Raises UserError for unknown keys and wrong values.
    """
    path = Path(path)
    if path.name == "config.json":
        facts = read_json(path)
        if "config" in facts:
            return from_dict(kind, facts["config"], where=str(path))
    return load_config(kind, path)


def laptop(seed: int = 0) -> RunConfig:
    """fMRI of a few thousand sites a subject, pictures and captions, on a few cores in about ten minutes.

    A position reads three patches of a brain: a third of the sequence for the same sites. Captions, whose steps have
    become the shortest by that, are drawn more often, and so are pictures with their captions, which tell most of a
    response. The brain tokenizer is solved for; training adds little to it.
    """
    return RunConfig(
        seed=seed,
        brain_training=OptimConfig(steps=150, batch_size=64, learning_rate=2e-3),
        image_training=OptimConfig(steps=400, batch_size=64, learning_rate=2e-3),
        omni=OmniConfig(brain_fold=3),
        training=OmniTrainingConfig(
            optim=OptimConfig(steps=2300, batch_size=64, learning_rate=4e-3),
            tasks=default_tasks() | {"brain->text": 3.0, "image+text->brain": 1.2, "part->brain": 0.1},
            excerpts=0.5,
            sample_every=1150,
        ),
    )


def quick(seed: int = 0) -> RunConfig:
    """The same in about two minutes, with worse scores: to see that everything runs."""
    return RunConfig(
        seed=seed,
        brain_training=OptimConfig(steps=60, batch_size=48, learning_rate=2e-3),
        image_training=OptimConfig(steps=120, batch_size=48, learning_rate=2e-3),
        omni=OmniConfig(brain_fold=3),
        training=OmniTrainingConfig(
            optim=OptimConfig(steps=200, batch_size=48, learning_rate=4e-3), validate_every=100, sample_every=200
        ),
    )


def neurons(seed: int = 0, features: str = "wavelet") -> RunConfig:
    """Tens of recorded neurons a subject, whose pictures come with features of a pretrained vision encoder."""
    return RunConfig(
        seed=seed,
        brain_tokenizer=BrainTokenizerConfig(
            patch_size=2, quantizer=QuantizerConfig(similarity="euclidean", num_codes=32, dim=2)
        ),
        brain_training=OptimConfig(steps=500, batch_size=128, learning_rate=2e-3),
        omni=OmniConfig(DecoderConfig(dropout=0.3), image_input=features, sight=features != "codes"),
        training=OmniTrainingConfig(
            optim=OptimConfig(steps=4000, batch_size=48, learning_rate=3e-3, weight_decay=0.3, average=0.99),
            tasks={"image->brain": 1.0, "brain->image": 0.6, "brain->brain": 0.1, "part->brain": 0.1},
            blurred=0.1,
            expectation={"brain": 60.0, "image": 20.0},
            validation=0.04,
            validate_every=100,
            patience=6,
        ),
    )


def few_trials(seed: int = 0, image_features: str = "wavelet", text_features: str = "codes") -> RunConfig:
    """Fewer than a hundred responses, whose pictures and words come with features of pretrained encoders."""
    return RunConfig(
        seed=seed,
        brain_tokenizer=BrainTokenizerConfig(
            patch_size=64,
            patch=PatchConfig(width=64, depth=1),
            quantizer=QuantizerConfig(similarity="euclidean", num_codes=64, dim=3),
        ),
        brain_training=OptimConfig(steps=150, batch_size=32),
        image_training=OptimConfig(steps=200, batch_size=32, learning_rate=2e-3),
        omni=OmniConfig(
            decoder=DecoderConfig(
                hidden_size=128,
                intermediate_size=320,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
            ),
            image_input=image_features,
            text_input=text_features,
        ),
        training=OmniTrainingConfig(optim=OptimConfig(steps=300, batch_size=32, learning_rate=3e-3, weight_decay=0.1)),
    )


def nsd_1b(seed: int = 0, janus: str | None = None) -> RunConfig:
    """NSD on Janus-Pro-1B, all of it trained, as published; sized for one GPU of 80 GB. The published weights were not
    at hand: it was run on tiny checkpoints that `transformers` wrote and, for speed and memory, on noise of its size.

    The brain tokenizer is ours at the published rate (64 sites a token, 128 codes). Pictures are read by Janus's
    understanding encoder, pooled to 64 features: all 576 of all of NSD's pictures would take 86 GB.
    """
    return of_nsd(
        DecoderConfig(
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=24,
            num_attention_heads=16,
            num_key_value_heads=16,
        ),
        OmniTrainingConfig(recompute=True),
        seed,
        janus,
    )


def nsd_7b(seed: int = 0, janus: str | None = None) -> RunConfig:
    """NSD on Janus-Pro-7B, with LoRA in its decoder, so that one GPU of 80 GB would hold it; see `nsd_1b`."""
    return of_nsd(
        DecoderConfig(
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=30,
            num_attention_heads=32,
            num_key_value_heads=32,
        ),
        OmniTrainingConfig(trained="lora", recompute=True),
        seed,
        janus,
    )


def of_nsd(decoder: DecoderConfig, training: OmniTrainingConfig, seed: int, janus: str | None) -> RunConfig:
    """What both sizes share. Rates, batch and the first four tasks are the published ones; steps are about 15 passes
    over the stimuli that the eight subjects saw, and states of 16 GB (1B in full) are saved every few minutes. Pictures
    are trained by the likelihood of their codes alone: decoding each expectation at 384 pixels would cost more than the
    model."""
    return RunConfig(
        seed=seed,
        janus=janus,
        janus_tokens=64,
        brain_tokenizer=BrainTokenizerConfig(
            patch_size=64, quantizer=QuantizerConfig(similarity="euclidean", num_codes=128, dim=3)
        ),
        brain_training=OptimConfig(steps=4700, batch_size=256, learning_rate=2e-3),
        image_tokenizer=ImageTokenizerConfig(image_size=384, codes_per_side=24),
        omni=OmniConfig(decoder, image_input="janus", image_head="mlp", text_opening=False),
        training=replace(
            training,
            optim=OptimConfig(optimizer="adamw", steps=33_000, batch_size=32, learning_rate=1e-4, save_every=1000),
            tasks={
                "image->brain": 1.0,
                "text->brain": 1.0,
                "brain->image": 1.0,
                "brain->text": 1.0,
                "image+text->brain": 0.3,
                "brain->brain": 0.3,
                "part->brain": 0.3,
            },
            expectation={"brain": 2.0},
        ),
    )


def named(name: str, seed: int = 0) -> RunConfig:
    """The recipe of this name. Raises UserError if there is none."""
    recipes = {
        "laptop": laptop,
        "quick": quick,
        "neurons": neurons,
        "few-trials": few_trials,
        "nsd-1b": nsd_1b,
        "nsd-7b": nsd_7b,
    }
    if name not in recipes:
        raise UserError(f"recipe: expected one of {', '.join(recipes)}, got '{name}'. Choose one of these.")
    return recipes[name](seed)


def fitting(dataset: Dataset, seed: int = 0) -> RunConfig:
    """The recipe that fits a dataset: by how many stimuli and sites its subjects have, with the features it stores.

    Pictures are read through the first stored features that were not made from words, or the built-in wavelets.
    """
    stimuli = np.median([len(dataset.trials(subject).stimuli("train")) for subject in dataset.subjects])
    sites = np.median([dataset.space(subject).num_sites for subject in dataset.subjects])
    recipe = few_trials if stimuli < FEW_TRIALS else neurons if sites < FEW_SITES else laptop
    config = recipe(seed)
    patch_size = config.brain_tokenizer.patch_size
    while recipe is not neurons and sites / patch_size > min(MOST_TOKENS, stimuli / 2):
        patch_size *= 2
    config = replace(config, brain_tokenizer=replace(config.brain_tokenizer, patch_size=patch_size))
    seen = [name for name in dataset.feature_names if name not in TEXT_FEATURES]
    said = [name for name in dataset.feature_names if name in TEXT_FEATURES] if recipe is few_trials else []
    omni = replace(
        config.omni,
        image_input=seen[0] if seen else config.omni.image_input,
        text_input=said[0] if said else config.omni.text_input,
    )
    size = dataset.image_size or config.image_tokenizer.image_size
    side = size // FOLD
    while side > MOST_CODES_PER_SIDE and side % 2 == 0:
        side //= 2
    image = replace(config.image_tokenizer, image_size=size, codes_per_side=side)
    return replace(config, omni=omni, image_tokenizer=image)


def tokenizer_fitting(dataset: Dataset, seed: int = 0) -> TokenizerRunConfig:
    """The settings that fit a dataset, for a brain tokenizer on its own: those that `fitting` gives a whole run."""
    config = fitting(dataset, seed)
    return TokenizerRunConfig(seed, config.brain_tokenizer, config.brain_training, config.brain_objective)
