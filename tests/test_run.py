"""A run from a dataset to its report, stopped and gone on with, and what it refuses."""

import errno
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from brainjanus import run as module
from brainjanus.cards import main_figures
from brainjanus.cli import main
from brainjanus.core import weights
from brainjanus.core.errors import UserError
from brainjanus.core.processes import only_one
from brainjanus.core.space import BrainSpace
from brainjanus.core.weights import fingerprint
from brainjanus.data.dataset import Dataset, Stimuli, Subject
from brainjanus.data.write import write_dataset
from brainjanus.evaluate.extras import Extras
from brainjanus.evaluate.score import MAIN_METRICS
from brainjanus.generate import GenerationConfig, generate
from brainjanus.model.checkpoint import JANUS, Checkpoint
from brainjanus.model.decoder import DecoderConfig
from brainjanus.model.janus import janus_tokenizers, load_janus, open_janus
from brainjanus.model.omni import OmniConfig
from brainjanus.model.sequence import Task
from brainjanus.recipes import TokenizerRunConfig
from brainjanus.run import LEAST_STIMULI, Run, RunConfig, condition, directions_of, evaluate, predict, train
from brainjanus.tokenize import train_tokenizer
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
from brainjanus.tokenizers.folder import load_tokenizer
from brainjanus.tokenizers.image import ImageTokenizerConfig
from brainjanus.tokenizers.patch import PatchConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig
from brainjanus.tokenizers.text import TextTokenizer, TextTokenizerConfig
from brainjanus.tokenizers.vision import wavelet
from brainjanus.train import fit, omni, tokenizer, watch
from brainjanus.train.codes import encode_split
from brainjanus.train.omni import OmniTrainingConfig, default_tasks
from brainjanus.train.optim import OptimConfig


def tiny(steps=(60, 40, 120)) -> RunConfig:
    """Learns the `study` of the fixtures in seconds."""
    brain, image, joint = (
        OptimConfig(steps=n, batch_size=b, learning_rate=rate, precision="float32", log_every=10, save_every=50)
        for n, b, rate in zip(steps, (32, 16, 24), (5e-3, 5e-3, 1e-2), strict=True)
    )
    decoder = DecoderConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4
    )
    quantizer = QuantizerConfig(num_codes=16, dim=8, decay=0.9)
    brain_quantizer = QuantizerConfig(similarity="euclidean", num_codes=16, dim=3, decay=0.9)
    return RunConfig(
        brain_tokenizer=BrainTokenizerConfig(patch_size=8, patch=PatchConfig(32, 1, 2), quantizer=brain_quantizer),
        brain_training=brain,
        image_tokenizer=ImageTokenizerConfig(16, 2, width=16, blocks=1, quantizer=quantizer),
        image_training=image,
        text_tokenizer=TextTokenizerConfig(num_codes=270),
        omni=OmniConfig(decoder),
        training=OmniTrainingConfig(joint, tasks={**default_tasks(), "brain->text": 2.0}),
    )


SHORT = tiny((4, 4, 6))


@pytest.fixture(scope="module")
def short(study, tmp_path_factory):
    """A run of a few steps."""
    out = tmp_path_factory.mktemp("short") / "run"
    train(study, out, SHORT)
    return out


# --- the whole way


def test_from_a_dataset_to_scores_and_a_report(study, tmp_path):
    """All four directions are learnt: better than shuffled predictions on stimuli that training never saw."""
    train(study, tmp_path / "run", tiny())
    records = evaluate(tmp_path / "run", study, tmp_path).records
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {s["direction"] for s in scores} == {"brain->text", "brain->image", "image->brain", "text->brain"}
    assert {s["subject"] for s in scores} == {"s1", "s2", "mean"}
    assert len(scores) == len(records)
    main = {"brain->text": "content_f1", "brain->image": "pixcorr", "image->brain": "voxel_r", "text->brain": "voxel_r"}
    for direction, metric in main.items():
        figure = (direction, metric, "mean", None)
        found = [r for r in records if (r.direction, r.metric, r.subject, r.roi) == figure]
        (record,) = [r for r in found if r.estimator in ("greedy", "mean")]
        assert record.p < 0.05, f"{direction}: {metric} {record.value:.2f} with floor {record.floor:.2f}"
    report = (tmp_path / "report.html").read_text()
    assert "BrainJanus on study" in report
    assert all(direction.replace(">", "&gt;") in report or direction in report for direction in main)
    card = (tmp_path / "run/README.md").read_text()
    told = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]
    assert {one["task"]["name"]: one["metrics"][0]["value"] for one in told} == {
        record.direction: round(record.value, 4)
        for record in main_figures(records)
        if record.metric == MAIN_METRICS[record.direction][0]
    }
    assert "It has not been scored" not in card


def test_the_folder_is_as_it_says(short):
    files = {p.relative_to(short).as_posix() for p in short.rglob("*") if p.is_file()}
    stages = {
        f"stages/{stage}/{name}"
        for stage in ("brain", "image", "omni")
        for name in ("log.jsonl", f"state/step-{4 if stage != 'omni' else 6:08d}/state.json")
    }
    assert {"config.json", "model.json", "model.safetensors", "tokenizers/tokenizer.json"} | stages <= files
    assert {"README.md", "dataset_card.md"} <= files
    assert {f.rpartition(".")[2] for f in files} == {"json", "jsonl", "safetensors", "md"}


def test_the_config_of_a_run_is_read_back(short, study):
    assert RunConfig.load(short / "config.json") == SHORT
    facts = json.loads((short / "config.json").read_text())
    assert facts["fingerprint"] == study.fingerprint
    provenance = Checkpoint.load(short).provenance
    assert (provenance["dataset"], provenance["fingerprint"], provenance["seed"]) == ("study", study.fingerprint, 0)


def test_a_config_may_be_a_file(tmp_path):
    (tmp_path / "my.toml").write_text("seed = 3\n[training.optim]\nsteps = 7\n")
    config = RunConfig.load(tmp_path / "my.toml")
    assert (config.seed, config.training.optim.steps) == (3, 7)
    assert config.image_training == RunConfig().image_training
    (tmp_path / "config.json").write_text('{"seed": 4}')
    assert RunConfig.load(tmp_path / "config.json").seed == 4


def test_an_evaluation_that_was_stopped_goes_on(short, study, tmp_path, monkeypatch):
    """It predicts what was not predicted yet, finds the same, and leaves nothing of it behind."""
    monkeypatch.setattr(module, "ScoreOptions", partial(module.ScoreOptions, permutations=9, resamples=9))
    predicted, calls = module.predict, []

    def counted(*arguments):
        calls.append(arguments[2:])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return predicted(*arguments)

    monkeypatch.setattr(module, "predict", counted)
    extras = Extras(java=False)
    with pytest.raises(KeyboardInterrupt):
        evaluate(short, study, tmp_path / "scores", extras=extras)
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == [".predictions"]
    assert main(["info", str(tmp_path / "scores")]) == 0
    evaluate(short, study, tmp_path / "scores", extras=extras)
    assert calls[4] == calls[3] and not [call for call in calls[:3] if call in calls[4:]]
    assert len(calls) == 1 + 2 * (1 + 3 + 2 + 2)  # of two subjects: text, pictures, responses to both, in so many ways
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == ["report.html", "scores.json"]
    evaluate(short, study, tmp_path / "whole", extras=extras)
    assert (tmp_path / "scores/scores.json").read_bytes() == (tmp_path / "whole/scores.json").read_bytes()


def test_what_decides_predictions_is_told_apart(short, study, tmp_path, monkeypatch):
    run = Path(shutil.copytree(short, tmp_path / "run"))

    def found(seed=0):
        return module.deciding(run, Checkpoint.load(run), study, seed)

    first = found()
    assert found() == first == json.loads(json.dumps(first))
    assert found(seed=1) != first
    (tmp_path / "mine.py").write_text("x = 1\n")
    monkeypatch.setattr("brainjanus.core.extensions._loaded", {tmp_path / "mine.py": "mine"})
    mine = found()
    (tmp_path / "mine.py").write_text("x = 2\n")
    assert len({json.dumps(facts) for facts in (first, mine, found())}) == 3
    monkeypatch.undo()
    for file in ("model.safetensors", "tokenizers/brain.safetensors", "drafts.safetensors"):
        before = found()
        (run / file).touch()
        assert found() != before, file


def test_a_finished_run_is_loaded_and_not_trained_again(short, study, monkeypatch):
    monkeypatch.setattr(module, "fit_brain_tokenizer", lambda *_, **__: pytest.fail("trained again"))
    assert train(study, short, SHORT).provenance["fingerprint"] == study.fingerprint


# --- stopped and gone on with


@pytest.mark.parametrize("stage", ["brain", "image", "omni"])
def test_a_stopped_run_goes_on_to_the_same_weights(short, study, tmp_path, monkeypatch, stage, interrupting, read_log):
    home = omni if stage == "omni" else tokenizer
    monkeypatch.setattr(home, "fit", interrupting(home.fit, 2, stage))
    with pytest.raises(KeyboardInterrupt, match="is saved at step 3 of"):
        train(study, tmp_path / "run", SHORT)
    monkeypatch.undo()
    with pytest.raises(UserError, match="If its training was interrupted, run"):
        evaluate(tmp_path / "run", study, tmp_path)
    train(study, tmp_path / "run", SHORT)
    for file in ("model.safetensors", "tokenizers/brain.safetensors", "tokenizers/image.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (short / file).read_bytes(), file
    for name in module.STAGES:
        log = f"stages/{name}/log.jsonl"
        assert read_log(tmp_path / "run" / log) == read_log(short / log)


def test_a_stopped_run_goes_on_recomputing_to_the_same_weights(short, study, tmp_path, monkeypatch, interrupting):
    """As one would after it ran out of memory."""
    monkeypatch.setattr(omni, "fit", interrupting(omni.fit, 2, "omni"))
    with pytest.raises(KeyboardInterrupt):
        train(study, tmp_path / "run", SHORT)
    monkeypatch.undo()
    train(study, tmp_path / "run", replace(SHORT, training=replace(SHORT.training, recompute=True)))
    assert (tmp_path / "run/model.safetensors").read_bytes() == (short / "model.safetensors").read_bytes()


def test_a_dataset_that_was_changed_meanwhile_is_refused(study, tmp_path, interrupting, monkeypatch):
    """Its checksums are compared before it is used, and again when a file was touched."""
    dataset = Dataset.open(shutil.copytree(study.path, tmp_path / "data"))
    monkeypatch.setattr(tokenizer, "fit", interrupting(tokenizer.fit, 1))
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "run", SHORT)
    monkeypatch.undo()
    monkeypatch.setattr(module, "tokenized", lambda *_: pytest.fail("used"))
    file = dataset.path / "subjects/s1/responses.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 64
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"s1/responses\.safetensors: expected SHA-256"):
        train(dataset, tmp_path / "run", SHORT)


def test_what_losses_are_measured_on_is_not_trained_on(study, tmp_path, monkeypatch):
    """Nor is it of the test split."""

    class Seen(Exception):
        pass

    def look(model, tokenizers, training, *_, validation, **__):
        assert not (training.allowed & validation.allowed).any()
        assert (training.allowed | validation.allowed).all()
        assert validation.allowed.sum() == round(0.4 * len(training.ids)) >= 16
        assert set(validation.ids) == set(study.split_ids("train"))
        raise Seen

    monkeypatch.setattr(module, "fit_omni", look)
    with pytest.raises(Seen):
        train(study, tmp_path, replace(SHORT, training=replace(SHORT.training, validation=0.4)))


def test_a_folder_is_trained_into_by_one_at_a_time(study, tmp_path):
    train(study, tmp_path, SHORT)
    (tmp_path / "model.json").unlink()
    with (
        only_one(tmp_path / "config.json"),
        pytest.raises(UserError, match="expected a folder that nobody else writes to"),
    ):
        train(study, tmp_path, SHORT)


@pytest.mark.parametrize(("code", "goes_on"), [("ENOLCK", True), ("ENOSYS", True), ("ENOTSUP", True), ("EBADF", False)])
def test_a_file_system_without_locks_is_no_mistake_and_anything_else_is(tmp_path, monkeypatch, code, goes_on):
    """NFS locks what is opened for writing alone: EBADF otherwise."""
    asked = []

    def refuse(file, how):
        asked.append(file.writable())
        raise OSError(getattr(errno, code), "no")

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("brainjanus.core.processes.fcntl.flock", refuse)
    if goes_on:
        with only_one(tmp_path / "config.json"):
            pass
    else:
        with pytest.raises(OSError, match="no"), only_one(tmp_path / "config.json"):
            pass
    assert asked == [True] and (tmp_path / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"tasks_at_end": {"image->brain": 0.0}}, "expected at least one with a weight above 0"),
        ({"patience": 2, "validation": 0.1}, "expected at least 16 held-out stimuli to judge by, got"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_written(study, tmp_path, training, message):
    with pytest.raises(UserError, match=message):
        train(study, tmp_path / "run", replace(SHORT, training=replace(SHORT.training, **training)))
    assert not (tmp_path / "run").exists()


def test_a_sink_that_is_not_installed_is_said_first(study, tmp_path, monkeypatch):
    monkeypatch.setattr(watch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--log-to wandb: expected the package wandb.*brainjanus\[wandb\]"):
        train(study, tmp_path / "run", SHORT, sinks=["wandb"])
    assert not (tmp_path / "run").exists()


def test_the_logs_of_all_stages_go_to_a_sink(study, tmp_path, monkeypatch):
    told = set()

    class Sink(watch.Writer):
        def __init__(self, *_, **__):
            pass

        def write(self, stage, line):
            told.add(stage)

        def close(self):
            pass

    monkeypatch.setattr(module, "check_sinks", lambda sinks: None)
    monkeypatch.setattr(fit, "Writer", Sink)
    train(study, tmp_path / "run", SHORT, sinks=["tensorboard"])
    assert told == {"brain tokenizer", "image tokenizer", "omni"}


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_cannot_take_is_refused(seed):
    with pytest.raises(UserError, match="seed: expected a whole number from 0"):
        RunConfig(seed=seed)


def test_the_seed_decides(short, study, tmp_path):
    train(study, tmp_path, replace(SHORT, seed=1))
    assert (tmp_path / "model.safetensors").read_bytes() != (short / "model.safetensors").read_bytes()


# --- with a tokenizer that was trained before


TOKENIZER = TokenizerRunConfig(
    tokenizer=BrainTokenizerConfig(
        patch_size=4,
        patch=PatchConfig(8, 1, 2),
        quantizer=QuantizerConfig(kind="residual", stages=2, num_codes=8, dim=3, decay=0.9),
    ),
    training=OptimConfig(steps=4, batch_size=16, precision="float32"),
)


@pytest.fixture(scope="module")
def trained_tokenizer(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer") / "out"
    train_tokenizer(study, out, TOKENIZER)
    return out


def test_a_trained_tokenizer_is_used_as_it_is(study, short, trained_tokenizer, tmp_path, monkeypatch):
    """Its settings stand for those of the config, and nothing of it moves."""
    monkeypatch.setattr(module, "fit_brain_tokenizer", lambda *_, **__: pytest.fail("trained again"))
    run = Run.train(study, tmp_path / "run", SHORT, tokenizer=trained_tokenizer)
    saved = load_tokenizer(trained_tokenizer)
    assert RunConfig.load(run.path / "config.json") == replace(SHORT, brain_tokenizer=TOKENIZER.tokenizer)
    assert json.loads((run.path / "config.json").read_text())["tokenizer"] == saved.fingerprint
    for checkpoint in (run.checkpoint, Checkpoint.load(run.path)):
        assert fingerprint(checkpoint.tokenizers.brain) == fingerprint(saved.tokenizer)
    assert not (run.path / "stages" / "brain").exists()
    for estimate in ("mean", "sample"):
        predictions = predict(run.checkpoint, study, "image->brain", "s2", GenerationConfig(estimate=estimate))
        assert predictions.values.shape == (16, 28)
    usage = module.codebook_usage(run.checkpoint, study)[0]
    assert usage.name == "brain" and len(usage.counts) == 16, "two stages of eight codes"


def test_a_run_goes_on_with_the_tokenizer_that_it_was_begun_with(study, short, trained_tokenizer, tmp_path):
    out = tmp_path / "run"
    first = train(study, out, SHORT, tokenizer=trained_tokenizer)
    assert train(study, out, SHORT, tokenizer=trained_tokenizer).provenance["seed"] == first.provenance["seed"]
    train_tokenizer(study, tmp_path / "other", replace(TOKENIZER, seed=1))
    with pytest.raises(
        UserError, match=r"expected the tokenizer that it was begun with \(\w{12}\), got another \(\w{12}"
    ):
        train(study, out, SHORT, tokenizer=tmp_path / "other")
    with pytest.raises(UserError, match=r"expected the tokenizer that it was begun with .* got another"):
        train(study, out, replace(SHORT, brain_tokenizer=TOKENIZER.tokenizer))
    with pytest.raises(UserError, match=r"expected the settings .* got others \(brain_tokenizer\."):
        train(study, short, SHORT, tokenizer=trained_tokenizer)


def test_a_tokenizer_of_more_subjects_serves_each_dataset(study, trained_tokenizer, tmp_path):
    new = write_dataset(
        tmp_path / "new", name="new", modality="fMRI", zscore="all",
        subjects=[Subject(BrainSpace("s3", 28), study.responses("s2"), study.trials("s2"))],
        stimuli=Stimuli(study.stimulus_ids, captions={s: study.captions(s) for s in study.stimulus_ids}),
    )  # fmt: skip
    both = train_tokenizer(new, tmp_path / "both", TOKENIZER, start=trained_tokenizer).tokenizer
    for dataset, subjects in ((new, ("s3",)), (study, ("s1", "s2"))):
        brain = train(dataset, tmp_path / "-".join(subjects), SHORT, tokenizer=tmp_path / "both").tokenizers.brain
        assert brain.subjects == subjects
        test = torch.from_numpy(dataset.averages(subjects[0], "test").responses)
        assert torch.equal(brain.encode(test, subjects[0]), both.encode(test, subjects[0]))


def test_a_tokenizer_of_other_data_is_refused(study, trained_tokenizer, tmp_path):
    other = write_dataset(
        tmp_path / "other", name="other", modality="fMRI", zscore="all",
        subjects=[Subject(study.space("s1"), study.responses("s1") + 1, study.trials("s1"))],
        stimuli=Stimuli(study.stimulus_ids, captions={s: study.captions(s) for s in study.stimulus_ids}),
    )  # fmt: skip
    with pytest.raises(
        UserError, match=rf"one that was trained on the dataset 'other' \({other.fingerprint[:12]}\), got"
    ):
        train(other, tmp_path / "run", SHORT, tokenizer=trained_tokenizer)
    with pytest.raises(UserError, match=r"a trained brain tokenizer with tokenizer\.json, got none"):
        train(study, tmp_path / "run", SHORT, tokenizer=tmp_path)
    assert not (tmp_path / "run").exists()


# --- leakage


def test_training_asks_for_no_test_stimulus(study, tmp_path, monkeypatch):
    """Every response and picture that is read while training belongs to the training split.

    Of captions of other splits only the length is known: see the tests of the text tokenizer.
    """
    asked, rows = set(), {"s1": set(), "s2": set()}
    pictures, responses = Dataset.pictures, Dataset.responses
    learnt, fit = [], TextTokenizer.fit

    def spy(method):
        return lambda self, stimulus: asked.add(stimulus) or method(self, stimulus)

    def spy_fit(captions, config, longest_among):
        learnt.extend(captions)
        return fit(captions, config, longest_among=longest_among)

    def spy_rows(self, subject, chosen=None):
        assert chosen is not None, "all rows were read"
        rows[subject].update(chosen.tolist())
        return responses(self, subject, chosen)

    monkeypatch.setattr(Dataset, "pictures", spy(pictures))
    monkeypatch.setattr(TextTokenizer, "fit", spy_fit)
    monkeypatch.setattr(Dataset, "responses", spy_rows)
    monkeypatch.setattr(Dataset, "images", lambda *_: pytest.fail("pictures by another way"))
    train(study, tmp_path, SHORT)
    assert asked == set(study.split_ids("train"))
    assert learnt == [caption for stimulus in study.split_ids("train") for caption in study.captions(stimulus)]
    for subject, seen in rows.items():
        assert seen == set(study.trials(subject).rows("train").tolist())


def test_text_pieces_are_of_training_captions_alone(study, short, tmp_path):
    """A word of test captions alone is spelt out."""
    text = Checkpoint.load(short).tokenizers.text
    known = {c for s in study.split_ids("train") for c in study.captions(s)}
    assert max(int((text.encode([c]) != 0).sum()) for c in known) < int((text.encode(["orange"]) != 0).sum()) + 2


def test_refuses_to_evaluate_on_other_data(study, short, tmp_path):
    trials = study.trials("s1")
    pixels = study.images(study.stimulus_ids)
    other = write_dataset(
        tmp_path / "other", name="other", modality="fMRI", zscore="all",
        subjects=[Subject(study.space("s1"), study.responses("s1") + 1, trials)],
        stimuli=Stimuli(study.stimulus_ids, pixels, captions={s: study.captions(s) for s in study.stimulus_ids}),
    )  # fmt: skip
    with pytest.raises(UserError, match=rf"trained on \(study, {study.fingerprint[:12]}\), got other \("):
        evaluate(short, other, tmp_path / "scores")
    assert not (tmp_path / "scores").exists()
    with pytest.raises(UserError, match=r"expected a run on this dataset .* got one on 'study'"):
        train(other, short, SHORT)


# --- what it refuses


def test_refuses_other_settings_and_names_them(study, short):
    changed = replace(SHORT, seed=5, training=replace(SHORT.training, dropped=0.3))
    with pytest.raises(UserError, match=r"got others \(seed 0 -> 5; training.dropped 0.1 -> 0.3\).*--config"):
        train(study, short, changed)


def test_refuses_a_folder_that_holds_something_else(study, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for out in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(UserError, match=r"got something else. Choose another --out: nothing there was touched"):
            train(study, out, SHORT)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("text", "message"), [("{", "config.json: expected JSON, got"), ("[1]", "expected settings by name, got list")]
)
def test_refuses_a_damaged_config(study, tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        train(study, tmp_path, SHORT)


def test_refuses_unknown_settings(tmp_path):
    (tmp_path / "my.toml").write_text("[training]\nsteps = 7\n")
    with pytest.raises(
        UserError, match=r"my.toml: unknown key 'training.steps' \(there are optim, trained, lora, recompute, tasks"
    ):
        RunConfig.load(tmp_path / "my.toml")


@pytest.mark.parametrize(
    ("captioned", "tasks", "message"),
    [
        (range(1, 80), {"text->brain": 1.0}, "expected a caption for every stimulus, got none for 1 of "),
        (range(80), {"brain+brain->text": 1.0}, r"task 'brain\+brain->text': expected the names of the subj"),
    ],
)
def test_refuses_before_anything_is_trained(study, tmp_path, monkeypatch, captioned, tasks, message):
    monkeypatch.setattr(module, "fit_brain_tokenizer", lambda *_: pytest.fail("trained"))
    ids = study.stimulus_ids
    some = write_dataset(
        tmp_path / "some", name="some", modality="fMRI", zscore="all",
        subjects=[Subject(study.space("s1"), study.responses("s1"), study.trials("s1"))],
        stimuli=Stimuli(ids, study.images(ids), captions={ids[i]: ["red"] for i in captioned}),
    )  # fmt: skip
    with pytest.raises(UserError, match=message):
        train(some, tmp_path / "run", replace(SHORT, training=OmniTrainingConfig(tasks=tasks)))


@pytest.mark.parametrize("validate_every", [0, 2])  # experts are weighed on it, too
def test_captions_of_the_split_that_losses_are_measured_on_are_asked_for_before_training(
    study, tmp_path, monkeypatch, validate_every
):
    class Trained(Exception):
        pass

    def trained(*_, **__):
        raise Trained

    monkeypatch.setattr(module, "fit_brain_tokenizer", trained)
    ids, trials = study.stimulus_ids, study.trials("s1")
    apart = set(study.trials("s1").stimuli("train")[:4])
    split = ["val" if s in apart else was for s, was in zip(trials.stimulus_id, trials.split, strict=True)]
    lacking = sorted(apart)[1]
    some = write_dataset(
        tmp_path / "some", name="some", modality="fMRI", zscore="all",
        subjects=[Subject(study.space("s1"), study.responses("s1"), trials._replace(split=split))],
        stimuli=Stimuli(ids, study.images(ids), captions={s: study.captions(s) for s in ids if s != lacking}),
    )  # fmt: skip
    config = replace(SHORT, training=replace(SHORT.training, validate_every=validate_every))
    with pytest.raises(UserError, match=f"got none for 1 of 4, '{lacking}'"):
        train(some, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_test_captions_longer_than_those_of_training_fit(study, tmp_path):
    ids = study.stimulus_ids
    long = write_dataset(
        tmp_path / "long", name="long", modality="fMRI", zscore="all",
        subjects=[Subject(study.space("s1"), study.responses("s1"), study.trials("s1"))],
        stimuli=Stimuli(ids, captions={s: ["red" if s < "s064" else "a red half on the left"] for s in ids}),
    )  # fmt: skip
    checkpoint = train(long, tmp_path / "run", SHORT)
    predict(checkpoint, long, "text->brain", "s1", GenerationConfig())


# --- conditions and predictions


def test_conditions_are_in_the_order_of_the_ids(study, short):
    checkpoint = Checkpoint.load(short)
    ids = list(study.split_ids("test"))[::-1]
    averages = study.averages("s2", "test")
    np.testing.assert_array_equal(condition(checkpoint, study, "brain:s2", ids), averages.responses[::-1])
    assert condition(checkpoint, study, "text", ids) == [study.captions(s)[0] for s in ids]
    pixels = torch.from_numpy(study.images(ids)).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(condition(checkpoint, study, "image", ids), wavelet(pixels))


def test_pictures_that_enter_as_codes_are_given_as_pixels(study, short):
    checkpoint = Checkpoint.load(short)
    object.__setattr__(checkpoint.model, "config", OmniConfig(SHORT.omni.decoder, image_input="codes"))
    ids = study.split_ids("test")
    np.testing.assert_array_equal(condition(checkpoint, study, "image", ids), study.images(ids))


@pytest.mark.parametrize("direction", ["brain->text", "brain->image", "image->brain", "text->brain"])
def test_predictions_are_of_the_test_stimuli(study, short, direction):
    checkpoint = Checkpoint.load(short)
    predictions = predict(checkpoint, study, direction, "s2", GenerationConfig(temperature=0.0))
    assert predictions.stimulus_ids == study.averages("s2", "test").stimulus_ids
    assert predictions.estimator == ("greedy" if direction == "brain->text" else "mean")
    if direction == "brain->image":
        assert predictions.values.shape == (16, 16, 16, 3)
        assert 1 < predictions.values.max() <= 255
    elif direction == "brain->text":
        assert len(predictions.values) == 16
    else:
        assert predictions.values.shape == (16, 28)


def test_the_response_expected_to_several_captions_is_their_mean(study, short, monkeypatch):
    checkpoint, first = Checkpoint.load(short), Dataset.captions
    monkeypatch.setattr(Dataset, "captions", lambda self, s: (*first(self, s), "red left") if s != "s064" else ("red",))
    values = predict(checkpoint, study, "text->brain", "s1", GenerationConfig()).values
    ids = study.averages("s1", "test").stimulus_ids
    one, other = (
        generate(checkpoint, {"text": captions}, "brain:s1")
        for captions in (["red"] + [first(study, s)[0] for s in ids[1:]], ["red"] + ["red left"] * 15)
    )
    torch.testing.assert_close(torch.from_numpy(values), (one + other) / 2, atol=1e-4, rtol=1e-4)


def test_a_run_is_opened_and_asked(study, short, tmp_path):
    run = Run.open(short)
    conditions = {"brain:s1": study.averages("s1", "test").responses}
    assert torch.equal(run.generate(conditions, "image"), generate(Checkpoint.load(short), conditions, "image"))
    assert Run.train(study, short, SHORT).checkpoint.provenance == run.checkpoint.provenance


def test_directions_are_those_of_the_modalities(short, make_checkpoint):
    everything = ["brain->text", "brain->image", "image->brain", "text->brain"]
    assert directions_of(Checkpoint.load(short)) == everything
    assert directions_of(make_checkpoint(modalities=False)) == []


def test_says_that_a_stimulus_was_not_seen_or_has_no_caption(study, short, tmp_path):
    checkpoint = Checkpoint.load(short)
    with pytest.raises(UserError, match="brain:s1: expected a test response to every stimulus, got none to 's000'"):
        condition(checkpoint, study, "brain:s1", ["s064", "s000"])
    ids = study.stimulus_ids
    bare = write_dataset(
        tmp_path / "bare", name="bare", modality="fMRI", zscore="all",
        subjects=[Subject(study.space("s1"), study.responses("s1"), study.trials("s1"))],
        stimuli=Stimuli(ids, study.images(ids), captions={s: ["red"] for s in ids if s != "s070"}),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"a caption for every stimulus, got none for \d+ of \d+, 's070' among them"):
        condition(checkpoint, bare, "text", ["s069", "s070"])


def test_a_full_disk_ends_a_training_with_one_sentence(short, study, tmp_path, monkeypatch):
    """... and once there is room, the same command goes on from there."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(UserError, match=r"brain.safetensors: expected room to write it, got a full disk"):
        train(study, tmp_path, SHORT)
    monkeypatch.undo()
    train(study, tmp_path, SHORT)
    assert (tmp_path / "model.safetensors").read_bytes() == (short / "model.safetensors").read_bytes()


def test_training_leaves_global_randomness_decided(study, tmp_path):
    """A run does not depend on what drew random numbers before it."""
    torch.manual_seed(123)
    torch.rand(7)
    first = train(study, tmp_path / "a", SHORT).model.state_dict()
    torch.manual_seed(321)
    second = train(study, tmp_path / "b", SHORT).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- what is wrong is said before anything is trained


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            replace(SHORT, omni=replace(SHORT.omni, image_input="clip")),
            "image_input: expected one of codes, wavelet",
        ),
        (replace(SHORT, omni=replace(SHORT.omni, text_input="t5")), "omni.text_input: expected one of codes"),
        (
            replace(SHORT, image_tokenizer=replace(SHORT.image_tokenizer, image_size=32)),
            "pictures of 32 pixels",
        ),
    ],
)
def test_settings_that_do_not_fit_the_data_claim_no_folder(study, tmp_path, config, sentence):
    with pytest.raises(UserError, match=sentence):
        train(study, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_an_out_that_is_a_file_is_refused_before_the_work(short, study, tmp_path, monkeypatch):
    (tmp_path / "out").write_text("mine")
    monkeypatch.setattr("brainjanus.run.predict", lambda *_: pytest.fail("worked first"))
    with pytest.raises(UserError, match=r"expected a folder for .*, got a file"):
        evaluate(short, study, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("split", ["train", "test"])
def test_too_few_stimuli_to_score_are_refused_before_training(study, tmp_path, monkeypatch, split):
    monkeypatch.setitem(LEAST_STIMULI, split, 1000)
    with pytest.raises(UserError, match=rf"at least 1000 {split} stimuli of s1, got \d+"):
        train(study, tmp_path / "run", SHORT)
    assert not (tmp_path / "run").exists()


def test_the_least_numbers_are_what_the_scores_need():
    """Correlation across stimuli needs two; the linear baseline's penalty needs three."""
    assert LEAST_STIMULI == {"train": 3, "test": 2}


# --- on the weights of Janus


def on_janus(folder, trained="full", image_input=JANUS) -> RunConfig:
    optim = replace(SHORT.training.optim, optimizer="adamw", steps=2)
    tasks = {"image->brain": 1.0, "brain->text": 1.0, "text->brain": 1.0, "brain->image": 1.0}
    training = replace(SHORT.training, optim=optim, trained=trained, tasks=tasks, expectation={"brain": 2.0})
    return replace(
        SHORT, janus=str(folder), janus_tokens=4, omni=OmniConfig(image_input=image_input), training=training
    )


@pytest.mark.parametrize("trained", ["full", "lora", "brain"])
def test_a_run_starts_from_janus(study, janus_folder, tmp_path, trained):
    """Its sizes, its tokenizers, its weights; trained, saved, read back with the same predictions in all directions."""
    out = tmp_path / "run"
    config = on_janus(janus_folder, trained)
    made = train(study, out, config)
    assert RunConfig.load(out / "config.json").omni.decoder.hidden_size == 32
    assert made.model.interface.features[JANUS] == (4, 24)
    assert made.model.vocabulary.text == 300 and made.model.interface.text_end == 1
    assert made.model.interface.text_codes < 30  # as long as the longest caption
    before = load_janus(janus_folder).model
    one, other = (model.decoder.layers[0].mlp.up_proj.weight for model in (made.model, before))
    moved = not torch.equal(one, other)
    assert moved == (trained != "brain")
    assert not (out / "stages" / "image").exists()
    loaded = Checkpoint.load(out)
    ids = study.split_ids("test")[:2]
    for given, target in ((("image", "text"), "brain:s1"), (("brain:s1",), "text"), (("brain:s2",), "image")):
        shown = {name: condition(loaded, study, name, ids) for name in given}
        guided = GenerationConfig(estimate="sample", guidance=2.0)
        one, other = (generate(checkpoint, shown, target, guided) for checkpoint in (made, loaded))
        assert one == other if target == "text" else torch.equal(one, other)
    assert train(study, out, config).model.config == loaded.model.config  # finished: read, not trained again


def test_a_run_from_janus_may_read_pictures_by_any_encoder(study, janus_folder, tmp_path):
    made = train(study, tmp_path / "run", on_janus(janus_folder, "brain", "wavelet"))
    assert set(made.model.interface.features) == {JANUS, "wavelet", "guess"}
    standardise = made.model.aligners["features:wavelet"][0]
    assert not torch.equal(standardise.std, torch.ones_like(standardise.std))
    assert torch.equal(made.model.aligners[f"features:{JANUS}"][0].std, torch.ones(24))


def test_says_that_a_run_needs_janus_or_pictures_of_its_size(study, janus_folder, tmp_path):
    with pytest.raises(UserError, match=r"omni.image_input 'janus': expected Janus-Pro.* got none. Give --janus"):
        train(study, tmp_path / "run", replace(SHORT, omni=OmniConfig(SHORT.omni.decoder, image_input=JANUS)))
    larger = shutil.copytree(janus_folder, tmp_path / "larger")
    facts = json.loads((larger / "config.json").read_text())
    facts["vision_config"] |= {"image_size": 32, "num_image_tokens": 64}
    (larger / "config.json").write_text(json.dumps(facts))
    tensors = {name: value.clone() for name, value in load_file(larger / "model.safetensors").items()}
    tensors["model.vision_model.embeddings.position_embedding.weight"] = torch.zeros(64, 24)
    save_file(tensors, larger / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"32 pixels a side, as Janus takes them, got 16. Prepare the dataset"):
        train(study, tmp_path / "run", on_janus(larger))
    assert not (tmp_path / "run").exists()


def test_janus_is_trained_on_prompts_and_on_answers_that_end_as_its_own(study, janus_folder, tmp_path):
    orders = {subject: torch.arange(study.space(subject).num_sites) for subject in study.subjects}
    brain = BrainTokenizer(SHORT.brain_tokenizer, orders).eval().requires_grad_(False)
    tokenizers = janus_tokenizers(open_janus(janus_folder, text_length=20), brain)
    codes = encode_split(study, tokenizers, "train", [JANUS], tmp_path)
    config, text = OmniConfig(image_input=JANUS), tokenizers.text
    batch = codes.batch(Task(("text", "image"), "brain:s1"), 6, torch.Generator().manual_seed(0), config)
    words, picture = batch.conditions[:2]
    user, assistant = text.turn("<|User|>")[0], text.turn("<|Assistant|>")[0]
    assert (words.codes[:, 0] == user).all() and (words.codes == assistant).any(dim=1).all()
    assert words.seen.any(dim=0).all(), "no longer than the longest prompt of the batch"
    assert picture.features == JANUS and picture.vectors.shape == (6, 16, 24)
    target = codes.batch(Task(("brain:s1",), "text"), 6, torch.Generator().manual_seed(0), config).target.codes
    assert (target == text.end).any(dim=1).all()
    said = {text.decode(row[None])[0] for row in target}
    assert said <= {caption for stimulus in study.split_ids("train") for caption in study.captions(stimulus)}
    (kept,) = tmp_path.glob("features-train-*/part-*.safetensors")
    first = kept.stat().st_mtime_ns
    again = encode_split(study, tokenizers, "train", [JANUS], tmp_path)
    assert torch.equal(again.features[JANUS][:], codes.features[JANUS][:]) and kept.stat().st_mtime_ns == first


def test_the_command_line_trains_a_recipe_of_nsd_on_janus(study, janus_folder, tmp_path, capsys):
    out = tmp_path / "run"
    few = ["--brain-training.steps", "2", "--brain-training.batch-size", "8", "--training.optim.steps", "2"]
    few += ["--training.optim.batch-size", "4", "--brain-tokenizer.patch-size", "8", "--janus-tokens", "4"]
    given = ["train", str(study.path), "--out", str(out), "--recipe", "nsd-1b", "--janus", str(janus_folder), *few]
    assert main(given) == 0, capsys.readouterr().err
    config = RunConfig.load(out / "config.json")
    assert config.janus == str(janus_folder) and config.omni.decoder.hidden_size == 32
    assert config.training.optim.optimizer == "adamw"
    assert main(["train", str(study.path), "--out", str(tmp_path / "none"), "--recipe", "nsd-1b"]) == 2
    assert "Give --janus, its folder" in capsys.readouterr().err


def test_a_dataset_may_lack_what_janus_knows(study, janus_folder, tmp_path):
    """Pictures without captions: trained and scored are the directions that there are stimuli for."""
    ids = study.stimulus_ids
    pictures = write_dataset(
        tmp_path / "pictures", name="pictures", modality="fMRI", zscore="all",
        subjects=[Subject(study.space("s1"), study.responses("s1"), study.trials("s1"))],
        stimuli=Stimuli(ids, study.images(ids)),
    )  # fmt: skip
    run = train(pictures, tmp_path / "run", on_janus(janus_folder, "brain"))
    assert run.tokenizers.text is not None
    records = evaluate(tmp_path / "run", pictures, tmp_path / "scores").records
    assert {record.direction for record in records} == {"brain->image", "image->brain"}
