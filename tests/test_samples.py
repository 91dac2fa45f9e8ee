"""Samples while training: what they show, that they change nothing of the training, and what they survive."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from brainjanus import samples as module
from brainjanus.core import processes, progress
from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Stimuli, Subject
from brainjanus.data.write import write_dataset
from brainjanus.generate import GenerationConfig, generate
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.model.lora import LoraConfig
from brainjanus.recipes import RunConfig
from brainjanus.run import condition, train
from brainjanus.samples import Said, Samples, said_by, stimuli_shown
from brainjanus.train.codes import encode_split
from brainjanus.train.trained import prepare


@pytest.fixture(scope="module")
def trained(study, tiny_run, tmp_path_factory):
    """A checkpoint, and the training split as its tokenizers encode it."""
    checkpoint = Checkpoint.load(tiny_run)
    codes = encode_split(study, checkpoint.tokenizers, "train", ["wavelet"], tmp_path_factory.mktemp("codes"))
    return checkpoint, codes


@pytest.fixture
def samples(study, trained, tmp_path):
    checkpoint, codes = trained
    line = {"stage": "omni", "step": 2, "loss": 3.0, "nats/brain->text": 1.0}
    log = [line, line | {"step": 4}, line | {"step": 4, "split": "val", "loss": 3.5}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in log) + '{"stage": "om')
    return Samples(study, checkpoint.tokenizers, codes, codes, tmp_path, 20)


# --- what they are


def test_a_picture_a_step_and_a_page_of_all_of_them(samples, trained, tmp_path):
    for step in (3, 12):
        samples(trained[0].model, step)
    folder = tmp_path / "samples"
    assert sorted(p.name for p in folder.iterdir()) == ["index.html", "step-00000003.png", "step-00000012.png"]
    picture = Image.open(io.BytesIO((folder / "step-00000012.png").read_bytes()))
    assert min(picture.size) > 500
    page = (folder / "index.html").read_text()
    assert page.index("Step 12") < page.index("Step 3"), "the newest first"
    assert set(re.findall(r'src="(\w+:\w+/\w+)', page)) == {"data:image/png", "data:image/jpeg"}
    assert "http" not in page and "<script" not in page
    assert "total 3 · held out (dashed) 3.5" in page, "a line that is being written is left out"
    assert "6 stimuli held out of training" in page and "trained on" not in page


def test_a_page_goes_on_with_the_steps_of_before(samples, study, trained, tmp_path):
    samples(trained[0].model, 3)
    again = Samples(study, trained[0].tokenizers, trained[1], None, tmp_path, 20)
    again(trained[0].model, 12)
    page = (tmp_path / "samples" / "index.html").read_text()
    assert "Step 12" in page and "Step 3" in page
    assert "No stimuli are held out: these were trained on." in page


def test_pictures_of_different_steps_differ_by_the_weights_alone(samples, trained, monkeypatch):
    """Whatever the state of torch's own generator."""
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        drawn.append(said_by(samples.checkpoint(trained[0].model), samples.shown, samples.codes))
    for first, second in zip(*drawn, strict=True):
        np.testing.assert_array_equal(first, second)
    assert samples.draw(drawn[0], 5) == samples.draw(drawn[1], 5)
    assert samples.draw(drawn[0], 5) != samples.draw(drawn[0], 6), "each says its step"
    limits = []
    monkeypatch.setattr(module, "draw_maps", lambda *_, **options: limits.append(options["limits"]) or UserError())
    louder = drawn[0]._replace(of_image=drawn[0].of_image * 9)
    for said in (drawn[0], louder):
        with pytest.raises(TypeError):
            samples.maps(said)
    assert limits[0] == limits[1]


def test_all_four_directions_are_those_of_generate(samples, study, trained):
    checkpoint, shown = trained[0], samples.shown
    said = said_by(checkpoint, shown, samples.codes)
    measured = condition(checkpoint, study, "brain:s1", shown.ids, "train")
    np.testing.assert_array_equal(shown.responses, measured)
    brain = {"brain:s1": measured}
    assert said.captions == generate(checkpoint, brain, "text", GenerationConfig(temperature=0.0))
    for estimate, found in (("mean", said.expected), ("sample", said.sample)):
        pictures = generate(checkpoint, brain, "image", GenerationConfig(estimate)).numpy() * 255
        np.testing.assert_array_equal(found, np.round(pictures).astype(np.uint8))
    for name, found in (("image", said.of_image), ("text", said.of_text)):
        given = condition(checkpoint, study, name, shown.ids)
        expected = generate(checkpoint, {name: given}, "brain:s1", GenerationConfig())
        np.testing.assert_allclose(found, expected, atol=1e-5)
        r = module.correlations(shown, found)
        np.testing.assert_allclose(
            r, [np.corrcoef(a, b)[0, 1] for a, b in zip(measured, found, strict=True)], atol=1e-6
        )


# --- of which stimuli


def test_only_held_out_stimuli_that_the_subject_saw_are_shown(study, trained):
    checkpoint, codes = trained
    apart = torch.zeros(len(codes.ids), dtype=torch.bool)
    apart[[3, 20, 21, 50, 60]] = True  # s1 saw the first 48
    shown = stimuli_shown(study, checkpoint.tokenizers, codes.among(apart), 6)
    assert (shown.subject, shown.ids) == ("s1", [codes.ids[row] for row in (3, 20, 21)])
    apart[:48] = False
    shown = stimuli_shown(study, checkpoint.tokenizers, codes.among(apart), 6)
    assert (shown.subject, shown.ids) == ("s2", [codes.ids[row] for row in (50, 60)])
    with pytest.raises(UserError, match="expected stimuli that a subject saw, got none"):
        stimuli_shown(study, checkpoint.tokenizers, codes.among(~torch.ones_like(apart)), 6)
    many = stimuli_shown(study, checkpoint.tokenizers, codes, 6)
    assert len(set(many.ids)) == 6 and many.ids[0] == codes.ids[0] and many.ids[-1] == codes.ids[47]


def test_of_a_validation_split_its_own_responses_are_shown(study, trained, tmp_path):
    both = []
    for subject in study.subjects:
        trials = study.trials(subject)
        split = ["val" if s == "s020" else one for s, one in zip(trials.stimulus_id, trials.split, strict=True)]
        both.append(Subject(study.space(subject), study.responses(subject), trials._replace(split=split)))
    ids, captions = study.stimulus_ids, {s: study.captions(s) for s in study.stimulus_ids}
    data = write_dataset(
        tmp_path / "data", name="val", modality="fMRI", zscore="all", subjects=both,
        stimuli=Stimuli(ids, study.images(ids), captions=captions),
    )  # fmt: skip
    codes = encode_split(data, trained[0].tokenizers, "val", ["wavelet"], tmp_path / "codes")
    shown = stimuli_shown(data, trained[0].tokenizers, codes, 6)
    assert shown.ids == ["s020"]
    np.testing.assert_array_equal(shown.responses, data.averages("s1", "val").responses)
    samples = Samples(data, trained[0].tokenizers, codes, codes, tmp_path, 1)
    samples(trained[0].model, 1)
    assert (tmp_path / "samples" / "index.html").exists(), "one stimulus is enough"


# --- without what the data lack


@pytest.mark.parametrize(("lacks", "absent"), [("image", {1, 2, 3}), ("text", {0, 4})])
def test_directions_are_those_of_the_modalities(study, trained, tmp_path, lacks, absent):
    checkpoint, codes = trained
    tokenizers = replace(checkpoint.tokenizers, **{lacks: None})
    samples = Samples(study, tokenizers, codes, codes, tmp_path, 20)
    said = said_by(samples.checkpoint(checkpoint.model), samples.shown, codes)
    assert {place for place, one in enumerate(said) if one is None} == absent
    samples(checkpoint.model, 1)
    assert (tmp_path / "samples" / "index.html").exists()


def test_of_brains_alone_nothing_is_shown(study, trained, tmp_path, capsys):
    tokenizers = replace(trained[0].tokenizers, image=None, text=None)
    Samples(study, tokenizers, trained[1], None, tmp_path, 20)(trained[0].model, 1)
    assert not (tmp_path / "samples").exists() and capsys.readouterr().err == ""


def test_words_of_any_script_are_written_as_they_are(samples):
    measured = samples.shown.responses
    said = Said(["$\\frac{1}$ 漢字 " + "long " * 80, *[""] * 5], None, None, measured, None)
    Image.open(io.BytesIO(samples.draw(said, 1))).verify()
    assert module.words_of(said, samples.shown, 1, {})[0][0] == "(nothing)"


def test_without_a_surface_to_draw_on_the_reason_stands_there(samples, trained, monkeypatch, tmp_path):
    def missing(*_, **__):
        raise UserError("maps on the inflated cortex: expected nilearn")

    monkeypatch.setattr(module, "draw_maps", missing)
    said = said_by(trained[0], samples.shown, samples.codes)
    assert samples.maps(said) == (None, "maps on the inflated cortex: expected nilearn")
    samples(trained[0].model, 1)
    assert (tmp_path / "samples" / "step-00000001.png").exists()


# --- the training beside them


def test_nothing_of_the_training_moves(samples, trained):
    model = trained[0].model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asked = [parameter.requires_grad for parameter in model.parameters()]
    modes = [one.training for one in model.modules()]
    own_of_numpy = np.random.get_state
    states = torch.get_rng_state(), own_of_numpy()[1].tolist()
    with torch.enable_grad():
        samples(model, 1)
        assert torch.is_grad_enabled()
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == own_of_numpy()[1].tolist()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert asked == [parameter.requires_grad for parameter in model.parameters()]
    assert modes == [one.training for one in model.modules()]


def test_a_training_with_samples_comes_to_the_same_weights(study, tiny_run, tmp_path, capsys):
    config = RunConfig.load(tiny_run / "config.json")
    config = replace(config, training=replace(config.training, sample_every=1))
    train(study, tmp_path / "run", config)
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tiny_run / "model.safetensors").read_bytes()
    found = sorted(p.name for p in (tmp_path / "run/stages/omni/samples").iterdir())
    assert found == ["index.html", "step-00000001.png", "step-00000002.png"]
    assert "brain:s1->text" not in capsys.readouterr().err, "a bar inside of a bar"


def test_it_is_done_by_one_process_and_shows_no_progress(samples, trained, monkeypatch):
    """The others are not there to take their share of the rows."""
    inside = []
    monkeypatch.setattr(samples, "write", lambda *_: inside.append((processes._alone[-1], progress._unshown[-1])))
    samples(trained[0].model, 1)
    assert inside == [(True, True)] and not progress._unshown[-1]


def test_a_model_under_training_is_asked_in_the_precision_it_computes_in(study, tiny_run, trained, tmp_path, capsys):
    for trains in ("full", "lora"):
        model = Checkpoint.load(tiny_run).model
        prepare(model, trains, LoraConfig(rank=2), torch.bfloat16)
        samples = Samples(study, trained[0].tokenizers, trained[1], None, tmp_path / trains, 20)
        with torch.autocast("cpu", torch.bfloat16):
            samples(model.eval(), 1)
        assert (tmp_path / trains / "samples" / "index.html").exists(), capsys.readouterr().err


def test_a_failure_is_said_once_and_training_goes_on(samples, trained, monkeypatch, capsys):
    def full(*_):
        raise UserError("step.png: expected room to write it, got a full disk")

    monkeypatch.setattr(module, "written_beside", full)
    for step in (1, 2):
        samples(trained[0].model, step)
    said = capsys.readouterr().err
    assert said == (
        "samples of step 1 are left out, and training goes on: step.png: expected room to write it, got a full disk\n"
    )


def test_our_own_mistakes_keep_their_traceback(samples, trained, monkeypatch, capsys):
    monkeypatch.setattr(module, "generate", lambda *_: 1 / 0)
    samples(trained[0].model, 1)
    said = capsys.readouterr().err
    assert "Traceback" in said and "training goes on: division by zero" in said
