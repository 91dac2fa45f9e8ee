"""The demonstration: simulate a study, train on it, score all four directions, write the report."""

from pathlib import Path

from brainjanus import recipes
from brainjanus.core.config import to_dict
from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset
from brainjanus.data.simulate import SimulationConfig, simulate
from brainjanus.run import evaluate, train
from brainjanus.tables import print_table


def demo(out: Path | str, *, seed: int = 0, quick: bool = False) -> Path:
    """Simulate a study, train on it, score all four directions; returns the path of the report.

    Puts report.html and scores.json into `out`, beside the study and the run. Stopped anywhere, it goes on from there.
    """
    out = Path(out)
    simulation = SimulationConfig(num_train=400, num_test=50, seed=seed) if quick else SimulationConfig(seed=seed)
    config = recipes.quick(seed) if quick else recipes.laptop(seed)
    study = out / "study"
    dataset = Dataset.open(study / "dataset") if (study / "dataset").exists() else simulate(study, simulation)
    if dataset.manifest["provenance"].get("simulation") != to_dict(simulation):
        raise UserError(
            f"{study}: expected a study simulated with {to_dict(simulation)}, got another "
            f"({dataset.manifest['provenance'].get('simulation')}). It belongs to another demo: choose another --out."
        )
    train(dataset, out / "run", config)
    scored = evaluate(out / "run", dataset, out, seed=seed, title="BrainJanus on the simulated cortex")
    print_table(scored.records)
    return out / "report.html"
