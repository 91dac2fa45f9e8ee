"""Recipes are full configs; a demo refuses a folder that belongs to another one."""

import pytest

from brainjanus import recipes
from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset
from brainjanus.data.simulate import SimulationConfig, simulate
from brainjanus.demo import demo, print_table
from brainjanus.evaluate.record import Record
from brainjanus.run import RunConfig


@pytest.mark.parametrize("name", ["laptop", "quick", "neurons", "few-trials"])
def test_a_recipe_is_a_full_config_with_the_seed_asked_for(name):
    config = recipes.named(name, seed=3)
    assert isinstance(config, RunConfig)
    assert config.seed == 3


def test_an_unknown_recipe_is_refused_with_those_that_exist():
    with pytest.raises(UserError, match="expected one of laptop, quick, neurons, few-trials, got 'desktop'"):
        recipes.named("desktop")


def test_a_demo_does_not_go_on_with_another_demos_study(tmp_path):
    tiny = SimulationConfig(num_subjects=1, num_train=4, num_test=2, repeats=1, num_sites=(300, 320), seed=5,
                            trials_per_session=12)  # fmt: skip
    simulate(tmp_path / "study", tiny)
    with pytest.raises(UserError, match="It belongs to another demo: choose another --out"):
        demo(tmp_path, seed=0, quick=True)
    assert not (tmp_path / "run").exists()


def test_the_table_shows_the_mean_over_subjects_only(capsys):
    def record(subject, value):
        return Record("image->brain", "d", subject, None, "mean", "voxel_r", value, 0.0, 0.4, 0.6, 10, 0)

    print_table([record("mean", 0.512), record("subj01", 0.498)])
    shown = capsys.readouterr().out
    assert "0.512" in shown and "0.498" not in shown
    assert "0.400" in shown and "0.600" in shown


def test_the_recipe_that_fits_goes_by_stimuli_sites_and_stored_features(study):
    config = recipes.fitting(study)
    assert config.brain_tokenizer == recipes.few_trials().brain_tokenizer, "few stimuli"
    assert config.omni == recipes.few_trials().omni, "no stored features"
    assert (config.image_tokenizer.image_size, config.image_tokenizer.codes_per_side) == (study.image_size, 4)


@pytest.mark.parametrize(
    ("stimuli", "sites", "features", "recipe", "image_input", "text_input"),
    [
        (1000, 1500, (), "laptop", "wavelet", "codes"),
        (1000, 50, ("mobilenet",), "neurons", "mobilenet", "codes"),
        (80, 1500, ("clip", "word2vec"), "few-trials", "clip", "word2vec"),
        (1000, 1500, ("word2vec",), "laptop", "wavelet", "codes"),
    ],
)
def test_the_recipe_that_fits(stimuli, sites, features, recipe, image_input, text_input):
    from types import SimpleNamespace

    class Known(Dataset):
        def __init__(self):
            self.subjects, self.feature_names, self.image_size = ("a",), features, 64

        def trials(self, subject):
            return SimpleNamespace(stimuli=lambda split: range(stimuli))

        def space(self, subject):
            return SimpleNamespace(num_sites=sites)

    config = recipes.fitting(Known())
    assert config.brain_tokenizer == recipes.named(recipe).brain_tokenizer
    assert (config.omni.image_input, config.omni.text_input) == (image_input, text_input)
