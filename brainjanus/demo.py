"""The demonstration: simulate a study, train on it, score all four directions, write the report."""

from collections.abc import Sequence
from pathlib import Path

from brainjanus import recipes
from brainjanus.core.config import to_dict
from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset
from brainjanus.data.simulate import SimulationConfig, simulate
from brainjanus.evaluate.record import DIRECTIONS, SUBJECT_MEAN, Record
from brainjanus.run import evaluate, train

MAIN_METRICS = ("content_f1", "two_way", "pixcorr", "voxel_r")


def demo(out: Path | str, *, seed: int = 0, quick: bool = False) -> Path:
    """Simulate a study, train on it, score all four directions; returns the path of the report.

    Puts report.html and scores.json into `out`, beside the study and the run. Stopped anywhere, it goes on from there.
    """
    out = Path(out)
    simulation = SimulationConfig(num_train=500, num_test=100, seed=seed) if quick else SimulationConfig(seed=seed)
    config = recipes.quick(seed) if quick else recipes.laptop(seed)
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
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title="held-out stimuli, mean over subjects", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("direction", "estimate", "metric"):
        table.add_column(column, no_wrap=column != "estimate")
    for column in ("floor", "linear", "model", "ceiling", "p"):
        table.add_column(column, justify="right", no_wrap=True, min_width=max(5, len(column)))

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    for direction in DIRECTIONS:
        for r in records:
            if (r.direction, r.subject, r.roi) == (direction, SUBJECT_MEAN, None) and r.metric in MAIN_METRICS:
                scores = (number(v) for v in (r.floor, r.baseline, r.value, r.ceiling, r.p))
                table.add_row(direction, r.estimator, r.metric, *scores)
    Console().print(table)
