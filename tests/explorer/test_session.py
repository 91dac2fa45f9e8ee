"""What the explorer is asked is what the run answers elsewhere."""

import numpy as np
import pytest
import torch

from brainjanus import Dataset, Run
from brainjanus.core.errors import UserError
from brainjanus.evaluate.brain import voxel_r
from brainjanus.explorer.session import Shown
from brainjanus.generate import GenerationConfig
from brainjanus.insilico.experiment import opened
from brainjanus.run import predict


@pytest.fixture(scope="module")
def run(tiny_run):
    return Run.open(tiny_run)


@pytest.fixture(scope="module")
def stimulus(explorer):
    return explorer.stimulus_ids[3]


def test_what_there_is(explorer, study):
    about = explorer.about()
    assert about["stimuli"] == len(study.split_ids("test")) == 16
    assert [(one["name"], one["sites"], one["rois"]) for one in about["subjects"]] == [
        ("s1", 40, {"V1": 10}),
        ("s2", 28, {"V1": 10}),
    ]
    assert "image->brain" in about["directions"] and not any(one["adapted"] for one in about["subjects"])


def test_stimuli_are_found_by_what_is_said_of_them(explorer):
    found = explorer.find("RED left")
    assert found.total == len(found.stimuli) == 2
    assert all("red left" in one.captions[0] and one.repeats == {"s1": 2, "s2": 2} for one in found.stimuli)
    assert explorer.find("red green").total == 0
    everything = explorer.find()
    assert everything.total == 16
    assert explorer.find(start=14, most=5).stimuli == everything.stimuli[14:]
    assert explorer.find(everything.stimuli[0].id, "s2").total == 1


def test_only_held_out_stimuli_are_known(explorer, study):
    trained = study.split_ids("train")[0]
    for ask in (explorer.picture, explorer.facts, lambda name: explorer.measured("s1", name)):
        with pytest.raises(UserError, match=f"expected one of the 16 of the test split, got '{trained}'"):
            ask(trained)


def test_measured_responses(explorer, study, stimulus):
    averages = study.averages("s1", "test")
    mean = averages.responses[averages.stimulus_ids.index(stimulus)]
    np.testing.assert_array_equal(explorer.measured("s1", stimulus), mean)
    single = [explorer.measured("s1", stimulus, repeat) for repeat in (0, 1)]
    np.testing.assert_allclose(np.mean(single, axis=0), mean, atol=1e-6)
    assert not np.allclose(*single)
    with pytest.raises(UserError, match="repeat: expected 0 to 1"):
        explorer.measured("s1", stimulus, 2)
    with pytest.raises(UserError, match="expected one of s1, s2, got 's3'"):
        explorer.measured("s3", stimulus)


def test_maps_are_what_the_run_expects(explorer, run, study, stimulus):
    picture = study.images([stimulus])
    for shown, given in (
        (Shown(stimulus=stimulus), {"image": picture}),
        (Shown(picture=picture[0]), {"image": picture}),
        (Shown(text="red left"), {"text": ["red left"]}),
        (Shown(stimulus=stimulus, text="red left"), {"image": picture, "text": ["red left"]}),
    ):
        made = explorer.encode(shown)
        assert list(made) == ["s1", "s2"]
        for subject, one in made.items():
            np.testing.assert_allclose(one.values, run.generate(given, f"brain:{subject}")[0], atol=1e-5)
            assert one.spread is None


def test_a_contrast_is_a_difference(explorer):
    red, blue = (explorer.encode(Shown(text=text), ["s2"])["s2"].values for text in ("red left", "blue right"))
    both = explorer.encode(Shown(text="red left"), ["s2"], against=Shown(text="blue right"))
    np.testing.assert_allclose(both["s2"].values, red - blue, atol=1e-6)
    assert list(both) == ["s2"]


def test_the_spread_is_that_of_single_trials(explorer, run):
    made = explorer.encode(Shown(text="red left"), ["s1"], samples=6, seed=3)["s1"]
    config = GenerationConfig("sample", num_samples=6, seed=3, trial_noise=True)
    samples = run.estimate({"text": ["red left"]}, "brain:s1", config).samples[0]
    np.testing.assert_allclose(made.spread, samples.std(dim=0), atol=1e-5)
    assert made.spread.min() > 0


def test_the_spread_of_a_contrast_is_that_of_a_difference(explorer):
    both = explorer.encode(Shown(text="red left"), ["s1"], against=Shown(text="blue right"), samples=6, seed=3)
    each = [explorer.encode(Shown(text=text), ["s1"], samples=6, seed=3)["s1"] for text in ("red left", "blue right")]
    np.testing.assert_allclose(both["s1"].spread, np.hypot(each[0].spread, each[1].spread), rtol=1e-5)


def test_a_trial_as_its_whole_sequence(explorer, study, stimulus):
    """Tokens of the joint vocabulary, in three ranges, which codes and words can be read from again."""
    vocabulary = explorer.checkpoint.model.vocabulary
    found = explorer.tokens("s1", stimulus)
    brain, text, image = found.sequence
    assert [part.modality for part in found.sequence] == ["brain", "text", "image"]
    assert brain.opening == vocabulary.control("brain:s1") and text.opening == vocabulary.control("text")
    np.testing.assert_array_equal(np.array(brain.tokens) - vocabulary.range("brain").start, found.codes)
    codes = torch.tensor([text.tokens]) - vocabulary.range("text").start
    caption = study.captions(stimulus)[0]
    assert explorer.checkpoint.tokenizers.text.decode(codes) == [caption]
    assert "".join(text.words) == f"{caption}end" and len(text.words) == len(text.tokens)
    assert set(image.tokens) <= set(vocabulary.range("image")) and len(image.tokens) == 4


def test_the_report_is_that_of_the_scores(explorer, tiny_run, tmp_path):
    with pytest.raises(UserError, match="report: expected one of run, got none"):
        explorer.report()


def test_nothing_shown_is_refused(explorer):
    with pytest.raises(UserError, match="expected a picture, a sentence, or both, got neither"):
        explorer.encode(Shown())


def test_accuracy_is_that_of_the_scores(explorer, study, tiny_run):
    asked = opened(tiny_run)
    made = predict(asked.checkpoint, study, "text->brain", "s2", GenerationConfig())
    wanted = voxel_r(study.averages("s2", "test").responses, made.values)
    np.testing.assert_allclose(explorer.accuracy("s2", "text->brain"), wanted, atol=1e-5)
    with pytest.raises(UserError, match="direction: expected one of"):
        explorer.accuracy("s2", "brain->text")


def test_what_a_response_says(explorer, run, stimulus):
    values = torch.from_numpy(explorer.measured("s1", stimulus))[None]
    found = explorer.decode("s1", stimulus, samples=2, guidance=1.5, temperature=0.7, seed=4)
    config = GenerationConfig(guidance=1.5, seed=4)
    expected = run.generate({"brain:s1": values}, "image", config)[0]
    np.testing.assert_allclose(found.pictures[0] / 255, expected, atol=1 / 255)
    assert len(found.pictures) == len(found.captions) == 3
    likeliest = run.generate({"brain:s1": values}, "text", GenerationConfig(temperature=0.0, guidance=1.5))
    assert found.captions[0] == likeliest[0]
    drawn = run.estimate(
        {"brain:s1": values}, "text", GenerationConfig("sample", 2, temperature=0.7, guidance=1.5, seed=4)
    )
    assert found.captions[1:] == drawn.samples[0]


def test_ranks_are_by_log_p(explorer, run, study):
    """Also where the seen one is not the likeliest."""
    ids = study.split_ids("test")
    captions, pictures = [study.captions(name)[0] for name in ids], study.images(ids)
    ranks = []
    for row, name in enumerate(ids[:6]):
        values = torch.from_numpy(explorer.measured("s1", name))[None]
        found = explorer.decode("s1", name)
        assert found.candidates == 16
        for target, candidates in (("text", captions), ("image", pictures)):
            log_p = run.score_candidates({"brain:s1": values}, target, candidates, one_pass=target == "image")[0]
            assert found.ranks[target] == 1 + int((log_p > log_p[row] + 1e-4).sum())
            assert found.log_p[target] == pytest.approx(float(log_p[row]), abs=1e-3)
            ranks.append(found.ranks[target])
    assert max(ranks) > 1 and min(ranks) < 16
    assert explorer.decode("s1", ids[0], ranked=False).ranks == {}


def test_hidden_regions_are_not_shown(explorer, run, stimulus):
    values = explorer.measured("s1", stimulus)
    found = explorer.decode("s1", stimulus, hidden=["V1"])
    part = values.copy()
    part[:10] = np.nan
    wanted = run.generate({"part:s1": torch.from_numpy(part)[None]}, "image")[0]
    np.testing.assert_allclose(found.pictures[0] / 255, wanted, atol=1 / 255)
    with pytest.raises(UserError, match="region 'V9': expected one of s1: V1"):
        explorer.decode("s1", stimulus, hidden=["V9"])
    with pytest.raises(UserError, match="expected some sites of s1 to be left"):
        explorer.decode("s1", stimulus, hidden=["sites:0-39"])


def test_tokens_are_the_codes_of_the_response(explorer, run, stimulus):
    tokenizer = run.checkpoint.tokenizers.brain
    values = torch.from_numpy(explorer.measured("s1", stimulus))[None]
    found = explorer.tokens("s1", stimulus)
    assert found.codes.tolist() == tokenizer.encode(values, "s1")[0].tolist()
    assert found.patch.shape == (40,) and set(found.patch) <= set(range(len(found.codes)))
    assert found.after is None


def test_a_swapped_token_changes_its_own_sites(explorer, run, stimulus):
    """By what its codes differ in; and the model is shown that."""
    codes = explorer.tokens("s1", stimulus).codes
    other = (int(codes[1]) + 1) % run.checkpoint.tokenizers.brain.config.quantizer.num_entries
    found = explorer.tokens("s1", stimulus, swapped={1: other})
    changed = codes.copy()
    changed[1] = other
    pair = torch.from_numpy(np.stack([codes, changed]))
    decoded = run.checkpoint.tokenizers.brain.decode(pair, "s1").detach().numpy()
    np.testing.assert_allclose(found.after.measured - found.values, decoded[1] - decoded[0], atol=1e-5)
    wanted = run.generate({"brain:s1": torch.from_numpy(found.after.measured)[None]}, "image")[0]
    np.testing.assert_allclose(found.after.pictures[0] / 255, wanted, atol=1 / 255)
    np.testing.assert_array_equal(found.before.pictures[0], explorer.decode("s1", stimulus).pictures[0])


def test_a_masked_token_is_not_shown(explorer, run, stimulus):
    found = explorer.tokens("s1", stimulus, masked=[0])
    gone = found.patch == 0
    assert gone.any() and not gone.all()
    assert np.isnan(found.after.measured[gone]).all() and np.isfinite(found.after.measured[~gone]).all()
    with pytest.raises(UserError, match="expected some of them to be left"):
        explorer.tokens("s1", stimulus, masked=list(range(len(found.codes))))
    for wrong in ({"masked": [99]}, {"swapped": {0: 10**6}}):
        with pytest.raises(UserError, match="tokens: expected"):
            explorer.tokens("s1", stimulus, **wrong)


def test_scores_are_found_where_they_are(explorer, tmp_path, tiny_run):
    import shutil

    from brainjanus.explorer.session import Explorer

    copy = shutil.copytree(tiny_run, tmp_path / "demo" / "run")
    own = Explorer(copy, Dataset.open(explorer.dataset.path).path)
    assert own.scores() == [] or (copy / "scores").exists()
    (copy.parent / "scores.json").write_text('[{"metric": "voxel_r", "value": 0.5}]')
    shutil.rmtree(copy / "scores", ignore_errors=True)
    assert own.scores() == [{"metric": "voxel_r", "value": 0.5}]
