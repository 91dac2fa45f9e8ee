"""Recipes are full configs; a demo refuses a folder that belongs to another one."""

from dataclasses import replace

import pytest

from brainjanus import recipes
from brainjanus.core.config import from_dict, to_dict
from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset
from brainjanus.data.simulate import SimulationConfig, simulate
from brainjanus.demo import demo, print_table
from brainjanus.evaluate.record import Record
from brainjanus.run import RunConfig
from brainjanus.train.omni import OmniTrainingConfig


@pytest.mark.parametrize("name", ["laptop", "quick", "neurons", "few-trials", "nsd-1b", "nsd-7b"])
def test_a_recipe_is_a_full_config_with_the_seed_asked_for(name):
    config = recipes.named(name, seed=3)
    assert isinstance(config, RunConfig)
    assert config.seed == 3


def test_an_unknown_recipe_is_refused_with_those_that_exist():
    with pytest.raises(UserError, match="one of laptop, quick, neurons, few-trials, nsd-1b, nsd-7b, got 'desktop'"):
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


def test_a_tokenizer_on_its_own_has_the_settings_that_a_whole_run_gives_it(study, tmp_path):
    whole, alone = recipes.fitting(study, 3), recipes.tokenizer_fitting(study, 3)
    assert alone.seed == 3 and alone.objective == whole.brain_objective
    assert (alone.tokenizer, alone.training) == (whole.brain_tokenizer, whole.brain_training)
    shorter = alone.changed({"training.steps": 7, "tokenizer": {"quantizer": {"dim": 4}}})
    assert shorter.training == replace(alone.training, steps=7)
    assert shorter.tokenizer == replace(alone.tokenizer, quantizer=replace(alone.tokenizer.quantizer, dim=4))
    with pytest.raises(UserError, match=r"unknown key 'training\.stops'"):
        alone.changed({"training.stops": 7})


def test_the_settings_of_a_tokenizer_may_be_a_file(tmp_path):
    (tmp_path / "my.toml").write_text("seed = 3\n[tokenizer.patch]\nwidth = 64\n[objective.alignment]\nweight = 0.5\n")
    config = recipes.TokenizerRunConfig.load(tmp_path / "my.toml")
    assert (config.seed, config.tokenizer.patch.width, config.objective.alignment.weight) == (3, 64, 0.5)
    (tmp_path / "config.json").write_text('{"config": {"training": {"steps": 7}}, "dataset": "mine"}')
    assert recipes.TokenizerRunConfig.load(tmp_path / "config.json").training.steps == 7
    (tmp_path / "my.toml").write_text("[brain_tokenizer]\npatch_size = 7\n")
    with pytest.raises(
        UserError, match=r"my.toml: unknown key 'brain_tokenizer' \(there are seed, tokenizer, training"
    ):
        recipes.TokenizerRunConfig.load(tmp_path / "my.toml")


@pytest.mark.parametrize(("name", "layers", "width"), [("nsd-1b", 24, 2048), ("nsd-7b", 30, 4096)])
def test_nsd_is_trained_on_janus_at_its_sizes(name, layers, width):
    make = {"nsd-1b": recipes.nsd_1b, "nsd-7b": recipes.nsd_7b}[name]
    config = make(seed=2, janus="models/janus")
    decoder = config.omni.decoder
    assert (config.janus, config.seed) == ("models/janus", 2)
    assert (decoder.num_hidden_layers, decoder.hidden_size) == (layers, width)
    assert decoder.hidden_size // decoder.num_attention_heads == 128
    assert config.image_tokenizer.image_size == 384 and config.image_tokenizer.codes_per_side**2 == 576
    assert config.brain_tokenizer.patch_size == 64 and config.brain_tokenizer.quantizer.num_codes == 128
    assert from_dict(RunConfig, to_dict(config)) == config
    assert make(seed=2) == recipes.named(name, seed=2)


def test_excerpts_are_not_for_the_turns_of_a_dialogue():
    with pytest.raises(UserError, match=r"excerpts: expected 0 with Janus, .*, got 0\.2"):
        RunConfig(janus="models/janus", training=OmniTrainingConfig(excerpts=0.2))
