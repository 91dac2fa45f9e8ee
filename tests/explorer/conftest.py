"""An explorer of a tiny run, and its API without a network; a run on the simulated cortex."""

from pathlib import Path

import pytest

from brainjanus.explorer.session import Explorer


@pytest.fixture(scope="session")
def explorer(tiny_run) -> Explorer:
    return Explorer(tiny_run)


@pytest.fixture
def client(explorer):
    testing = pytest.importorskip("starlette.testclient")
    from brainjanus.explorer.api import make_app

    with testing.TestClient(make_app(explorer), base_url="http://127.0.0.1:8000", headers={"X-Client": "me"}) as made:
        yield made


@pytest.fixture(scope="session")
def cortex_run(tiny_settings, tmp_path_factory) -> Path:
    """A scored run on two small simulated visual cortices, trained for two steps: answers badly, but on a surface."""
    from dataclasses import replace
    from functools import partial

    from brainjanus import run
    from brainjanus.core.config import from_dict
    from brainjanus.data.simulate import SimulationConfig, simulate
    from brainjanus.evaluate.extras import Extras
    from brainjanus.recipes import RunConfig

    folder = tmp_path_factory.mktemp("cortex")
    config = SimulationConfig(num_subjects=2, num_train=60, num_test=10, repeats=2, num_sites=(300, 320))
    dataset = simulate(folder / "study", config)
    settings = from_dict(RunConfig, tiny_settings | {"training": {"optim": {"steps": 2, "batch_size": 32}}})
    settings = replace(settings, image_tokenizer=replace(settings.image_tokenizer, image_size=64, codes_per_side=8))
    run.train(dataset, folder / "run", settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "ScoreOptions", partial(run.ScoreOptions, permutations=20, resamples=20))
        run.evaluate(folder / "run", dataset, folder, extras=Extras(java=False))
    return folder / "run"
