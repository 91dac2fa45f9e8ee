"""Recipes: full configs by name, and the demonstration.

A recipe is a function that returns a RunConfig; a variant is `dataclasses.replace` of one.
"""

from collections.abc import Sequence
from pathlib import Path

from brainjanus.core.config import to_dict
from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset
from brainjanus.data.simulate import SimulationConfig, simulate
from brainjanus.evaluate.record import DIRECTIONS, SUBJECT_MEAN, Record
from brainjanus.model.decoder import DecoderConfig
from brainjanus.model.omni import OmniConfig
from brainjanus.run import RunConfig, evaluate, train
from brainjanus.tokenizers.brain import BrainTokenizerConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig
from brainjanus.train.omni import OmniTrainingConfig
from brainjanus.train.optim import OptimConfig

MAIN_METRICS = ("content_f1", "two_way", "pixcorr", "voxel_r")


def laptop(seed: int = 0) -> RunConfig:
    """fMRI of a few thousand sites a subject, pictures and captions, on a few cores in about ten minutes."""
    return RunConfig(seed=seed)


def quick(seed: int = 0) -> RunConfig:
    """The same in about two minutes, with worse scores: to see that everything runs."""
    return RunConfig(
        seed=seed,
        brain_training=OptimConfig(steps=150, batch_size=48, learning_rate=2e-3),
        image_training=OptimConfig(steps=150, batch_size=48, learning_rate=2e-3),
        training=OmniTrainingConfig(optim=OptimConfig(steps=300, batch_size=48, learning_rate=4e-3)),
    )


def neurons(seed: int = 0, features: str = "wavelet") -> RunConfig:
    """Tens of recorded neurons a subject, whose pictures come with features of a pretrained vision encoder."""
    return RunConfig(
        seed=seed,
        brain_tokenizer=BrainTokenizerConfig(patch_size=2, quantizer=QuantizerConfig(num_codes=32, dim=16)),
        brain_training=OptimConfig(steps=500, batch_size=128, learning_rate=2e-3),
        omni=OmniConfig(image_input=features),
        training=OmniTrainingConfig(
            optim=OptimConfig(steps=2000, batch_size=48, learning_rate=3e-3, weight_decay=0.1),
            tasks={"image->brain": 1.0, "brain->image": 1.0},
        ),
    )


def few_trials(seed: int = 0, image_features: str = "wavelet", text_features: str = "codes") -> RunConfig:
    """Fewer than a hundred responses, whose pictures and words come with features of pretrained encoders."""
    return RunConfig(
        seed=seed,
        brain_tokenizer=BrainTokenizerConfig(patch_size=64, width=64, depth=1, quantizer=QuantizerConfig(num_codes=64)),
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


def named(name: str, seed: int = 0) -> RunConfig:
    """The recipe of this name. Raises UserError if there is none."""
    recipes = {"laptop": laptop, "quick": quick, "neurons": neurons, "few-trials": few_trials}
    if name not in recipes:
        raise UserError(f"recipe: expected one of {', '.join(recipes)}, got '{name}'. Choose one of these.")
    return recipes[name](seed)


def demo(out: Path | str, *, seed: int = 0, quick: bool = False) -> Path:
    """Simulate a study, train on it, score all four directions; returns the path of the report.

    Puts report.html and scores.json into `out`, beside the study and the run. Stopped anywhere, it goes on from there.
    """
    out = Path(out)
    simulation = SimulationConfig(num_train=500, num_test=100, seed=seed) if quick else SimulationConfig(seed=seed)
    config = globals()["quick"](seed) if quick else laptop(seed)
    study = out / "study"
    dataset = Dataset.open(study / "dataset") if (study / "dataset").exists() else simulate(study, simulation)
    if dataset.manifest["provenance"].get("simulation") != to_dict(simulation):
        raise UserError(
            f"{study}: expected a study simulated with {to_dict(simulation)}, got another "
            f"({dataset.manifest['provenance'].get('simulation')}). It belongs to another demo: choose another --out."
        )
    train(dataset, out / "run", config)
    records = evaluate(out / "run", dataset, out, seed=seed, title="BrainJanus on the simulated cortex")
    print_table(records)
    return out / "report.html"


def print_table(records: Sequence[Record]) -> None:
    """The four directions, mean over subjects, beside floor, linear baseline and ceiling."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="held-out stimuli, mean over subjects")
    for column in ("direction", "estimate", "metric", "floor", "linear", "model", "ceiling", "p"):
        table.add_column(column, justify="left" if column in ("direction", "estimate", "metric") else "right")

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    for direction in DIRECTIONS:
        for r in records:
            if (r.direction, r.subject, r.roi) == (direction, SUBJECT_MEAN, None) and r.metric in MAIN_METRICS:
                scores = (number(v) for v in (r.floor, r.baseline, r.value, r.ceiling, r.p))
                table.add_row(direction, r.estimator, r.metric, *scores)
    Console().print(table)
