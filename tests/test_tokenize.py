"""Brain tokenizers on their own: trained, stopped and gone on with, extended, reported, used; and what is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from brainjanus import run as run_module
from brainjanus import tokenize as module
from brainjanus.core.errors import UserError
from brainjanus.core.processes import only_one
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Stimuli, Subject
from brainjanus.data.write import write_dataset
from brainjanus.recipes import TokenizerRunConfig
from brainjanus.tokenize import report_tokenizer, tokenize_files, train_tokenizer
from brainjanus.tokenizers.brain import BrainTokenizerConfig
from brainjanus.tokenizers.folder import load_tokenizer
from brainjanus.tokenizers.patch import PatchConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig
from brainjanus.train import tokenizer as training
from brainjanus.train.optim import OptimConfig

SHORT = TokenizerRunConfig(
    tokenizer=BrainTokenizerConfig(
        patch_size=8,
        patch=PatchConfig(16, 1, 2),
        quantizer=QuantizerConfig(similarity="euclidean", num_codes=16, dim=3, decay=0.9),
    ),
    training=OptimConfig(steps=12, batch_size=32, learning_rate=5e-3, precision="float32", log_every=4),
)


@pytest.fixture(scope="module")
def done(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer") / "out"
    train_tokenizer(study, out, SHORT)
    return out


@pytest.fixture(scope="module")
def second(study, tmp_path_factory):
    """A dataset of the same name with one other subject."""
    return copy_of(study, tmp_path_factory.mktemp("second") / "data", "s3", study.responses("s1")[:, ::-1] * 1.7)


def copy_of(study, folder, name, responses):
    """The study with one subject, s1, that has another name and other responses."""
    space = BrainSpace(name, responses.shape[1])
    return write_dataset(
        folder, name=study.name, modality="fMRI", zscore="all", stimuli=Stimuli(study.stimulus_ids),
        subjects=[Subject(space, np.ascontiguousarray(responses), study.trials("s1"))],
    )  # fmt: skip


def bytes_in(folder, pattern="*"):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob(pattern) if p.is_file()}


# --- trained


def test_the_folder_is_as_it_says_and_loads(done, study):
    files_of_state = ("state.json", "shard-00001-model-00001-of-00001.safetensors")
    state = {f"stages/brain/state/step-00000012/{name}" for name in files_of_state}
    files = {"config.json", "tokenizer.json", "tokenizer.safetensors", "stages/brain/log.jsonl"} | state
    spaces = {f"spaces/{s}/{name}" for s in study.subjects for name in ("space.json", "space.safetensors")}
    assert set(bytes_in(done)) == files | spaces
    saved = load_tokenizer(done)
    assert saved.tokenizer.subjects == study.subjects and saved.tokenizer.config == SHORT.tokenizer
    assert saved.provenance["datasets"] == {"study": study.fingerprint}
    assert TokenizerRunConfig.load(done / "config.json") == SHORT
    for subject in study.subjects:
        np.testing.assert_array_equal(saved.tokenizer.sites_of(subject).order, study.space(subject).order)
        assert list(saved.spaces[subject].rois) == ["V1"]


def test_a_finished_one_is_loaded_and_not_trained_again(done, study, monkeypatch):
    monkeypatch.setattr(module, "fit_brain_tokenizer", lambda *_, **__: pytest.fail("trained again"))
    assert train_tokenizer(study, done, SHORT).fingerprint == load_tokenizer(done).fingerprint
    assert train_tokenizer(study.path, str(done), SHORT).fingerprint == load_tokenizer(done).fingerprint


def test_a_stopped_one_goes_on_to_the_same_bytes(done, study, tmp_path, monkeypatch, interrupting, read_log):
    monkeypatch.setattr(training, "fit", interrupting(training.fit, 6))
    with pytest.raises(KeyboardInterrupt, match="saved at step 7 of 12"):
        train_tokenizer(study, tmp_path / "out", SHORT)
    monkeypatch.undo()
    with pytest.raises(UserError, match="If its training was interrupted, run `brainjanus train tokenizer` with the"):
        load_tokenizer(tmp_path / "out")
    torch.rand(3)  # what drew random numbers before does not matter
    train_tokenizer(study, tmp_path / "out", SHORT)
    parts, whole = bytes_in(tmp_path / "out"), bytes_in(done)
    logs = [folder / "stages/brain/log.jsonl" for folder in (tmp_path / "out", done)]
    assert read_log(logs[0]) == read_log(logs[1])
    earlier = {name for name in parts if "/state/step-00000007/" in name}  # where it was stopped
    assert parts.keys() - whole.keys() == earlier
    same = {name for name in whole if not name.startswith("stages/")}  # logs and states say how fast it went
    assert all(parts[name] == whole[name] for name in same)


def test_the_seed_decides(done, study, tmp_path):
    other = train_tokenizer(study, tmp_path / "out", replace(SHORT, seed=1))
    assert other.fingerprint != load_tokenizer(done).fingerprint


# --- a new subject


@pytest.fixture(scope="module")
def extended(done, second, tmp_path_factory):
    out = tmp_path_factory.mktemp("extended") / "out"
    train_tokenizer(second, out, SHORT, start=done)
    return out


def test_codes_of_the_subjects_that_were_there_stay(done, extended, study):
    before, after = load_tokenizer(done), load_tokenizer(extended)
    assert after.tokenizer.subjects == ("s1", "s2", "s3")
    old, new = before.tokenizer.state_dict(), after.tokenizer.state_dict()
    assert all(torch.equal(new[name], value) for name, value in old.items())
    for subject in study.subjects:
        test = torch.from_numpy(study.averages(subject, "test").responses)
        assert torch.equal(after.tokenizer.encode(test, subject), before.tokenizer.encode(test, subject))
        assert after.spaces[subject].num_sites == before.spaces[subject].num_sites


def test_the_new_subject_is_far_better_than_its_floor(extended, second):
    tokenizer = load_tokenizer(extended).tokenizer
    test = torch.from_numpy(second.averages("s3", "test").responses)
    error = (tokenizer.decode(tokenizer.encode(test, "s3"), "s3") - test).square().mean()
    assert error < 0.5 * test.var(dim=0, correction=0).mean()


def test_it_says_where_it_comes_from_and_serves_both_datasets(done, extended, study, second):
    """Though both have one name."""
    saved = load_tokenizer(extended)
    assert sorted(saved.provenance["datasets"].values()) == sorted([study.fingerprint, second.fingerprint])
    assert saved.provenance["start"] == load_tokenizer(done).fingerprint
    for dataset in (study, second):
        saved.check_trained_on(dataset.name, dataset.fingerprint, dataset.subjects)


def test_other_tokenizers_to_start_from_are_refused(done, extended, second, study, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "fit_brain_tokenizer", lambda *_, **__: pytest.fail("trained again"))
    assert train_tokenizer(second, extended, SHORT, start=done).fingerprint == load_tokenizer(extended).fingerprint
    with pytest.raises(UserError, match=r"expected the start that it was begun with \(\w{12}\), got another \(None\)"):
        train_tokenizer(second, extended, SHORT)
    with pytest.raises(UserError, match=r"expected subjects that .* does not know, got 's1'\. A new subject needs a n"):
        train_tokenizer(study, tmp_path / "out", SHORT, start=done)
    with pytest.raises(UserError, match=r"expected a trained brain tokenizer with tokenizer\.json, got none"):
        train_tokenizer(second, tmp_path / "out", SHORT, start=tmp_path)
    assert not (tmp_path / "out").exists()


# --- what is refused


def test_other_settings_and_other_data_are_refused(done, study, second):
    longer = replace(SHORT, training=replace(SHORT.training, steps=13), seed=2)
    with pytest.raises(
        UserError,
        match=r"got others \(seed 0 -> 2; training\.steps 12 -> 13\)\. Leave these options out, go ",
    ):
        train_tokenizer(study, done, longer)
    with pytest.raises(UserError, match=rf"expected a run on this dataset \(study, {second.fingerprint[:12]}\), got"):
        train_tokenizer(second, done, SHORT)


def test_a_folder_with_something_else_is_left_alone(study, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"got something else\. Choose another --out: nothing there was touched"):
        train_tokenizer(study, tmp_path, SHORT)
    assert bytes_in(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("split", ["train", "test"])
def test_too_few_stimuli_are_refused_before_training(study, tmp_path, monkeypatch, split):
    monkeypatch.setitem(run_module.LEAST_STIMULI, split, 1000)
    with pytest.raises(UserError, match=rf"expected at least 1000 {split} stimuli of s1, got \d+\. Add stimuli"):
        train_tokenizer(study, tmp_path / "out", SHORT)
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(study, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="train tokenizer: expected one process, got several"):
        train_tokenizer(study, tmp_path / "out", SHORT)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_another_process_is_at_is_refused(done, study, tmp_path):
    out = shutil.copytree(done, tmp_path / "out")
    (out / "tokenizer.json").unlink()
    with only_one(out / "config.json"), pytest.raises(UserError, match="got one that another process is at"):
        train_tokenizer(study, out, SHORT)


# --- the report


def test_scores_and_a_report_are_written(done, study, tmp_path):
    before = bytes_in(done)
    scores = report_tokenizer(done, study, tmp_path / "report")
    assert set(bytes_in(tmp_path / "report")) == {"scores.json", "report.html"}
    assert len(json.loads((tmp_path / "report" / "scores.json").read_text())) == len(scores.records)
    assert {record.subject for record in scores.records} == {"s1", "s2", "mean"}
    assert scores.of("bits").value == pytest.approx(4 * (5 + 4) / 2)
    assert scores.of("mse").value < 0.6 * scores.of("mse").floor
    assert "study" in (tmp_path / "report" / "report.html").read_text()
    assert bytes_in(done) == before


def test_data_that_it_was_not_trained_on_are_refused(done, study, second, tmp_path):
    for use in (report_tokenizer, tokenize_files):
        sentence = (
            rf"expected one that was trained on the dataset 'study' \({second.fingerprint[:12]}\), got one of study "
            rf"\({study.fingerprint[:12]}\)\. It may have learnt from what is held out here"
        )
        with pytest.raises(UserError, match=sentence):
            use(done, second, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- codes in files


@pytest.mark.parametrize("split", ["test", "train"])
def test_codes_of_a_split_are_those_of_the_tokenizer(done, study, tmp_path, split):
    out = tokenize_files(done, study, tmp_path / "codes", split)
    saved = load_tokenizer(done)
    assert set(bytes_in(out)) == {f"{s}.{ending}" for s in study.subjects for ending in ("json", "safetensors")}
    for subject in study.subjects:
        averages, tensors = study.averages(subject, split), load_file(out / f"{subject}.safetensors")
        assert json.loads((out / f"{subject}.json").read_text()) == averages.stimulus_ids
        codes = saved.tokenizer.encode(torch.from_numpy(averages.responses), subject)
        assert torch.equal(tensors["codes"].long(), codes) and tensors["codes"].dtype == torch.int32
        torch.testing.assert_close(tensors["decoded"], saved.tokenizer.decode(codes, subject))
        with safe_open(out / f"{subject}.safetensors", framework="pt") as file:
            assert file.metadata() == {"tokenizer": saved.fingerprint}


def test_codes_overwrite_nothing(done, study, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match="expected a new or an empty folder, got one that holds something"):
            tokenize_files(done, study, out)
    assert bytes_in(tmp_path) == {"notes.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    assert tokenize_files(done, study, tmp_path / "empty").is_dir()
