"""The cards of a run say what the run and its dataset are, whatever of them is there, and never cost a training."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file

import brainjanus as bj
from brainjanus import run as module
from brainjanus.cards import DATASET_CARD, JANUS_LICENCE, NOT_FOR, leave_cards, write_card
from brainjanus.cli import main
from brainjanus.core.card import INVITATION, OWN_FACTS
from brainjanus.core.config import from_dict
from brainjanus.core.errors import UserError
from brainjanus.data.datasheet import CARD
from brainjanus.evaluate.protocol import Protocol
from brainjanus.evaluate.record import DIRECTIONS, Record, save_scores
from brainjanus.info import describe
from brainjanus.recipes import RunConfig
from brainjanus.run import claim, train


def front_of(path: Path) -> dict:
    return yaml.safe_load(path.read_text().split("---\n")[1])


def section(path: Path, heading: str) -> str:
    return path.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0].strip()


@pytest.fixture
def run(tiny_run, tmp_path) -> Path:
    """A copy of a tiny run, to be spoiled."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture
def record(study) -> Record:
    protocol = Protocol(fingerprint=study.fingerprint, split="test")
    return Record(
        "image->brain", "study", "mean", None, "mean", "voxel_r", 0.4321987, 0.01, 0.5, 0.9, 32, 7, p=0.2,
        constant=0.0, interval=(0.3, 0.55), protocol=protocol,
    )  # fmt: skip


# --- facts


def test_its_facts_are_those_of_the_run(tiny_run, study):
    card = tiny_run / CARD
    model = section(card, "The model")
    count = sum(array.size for array in load_file(tiny_run / "model.safetensors").values())
    assert f"| parameters, model | {count:,} |" in model
    assert "| starts from | random weights |" in model
    assert "1 layers of width 16" in model
    codes = bj.Checkpoint.load(tiny_run).tokenizers.brain
    for who in study.subjects:
        assert f"{who}: {study.space(who).num_sites} sites, {codes.num_codes(who)} tokens" in model
    data = section(card, "What it was trained on")
    assert study.fingerprint in data and "| train | 64 stimuli, 112 trials |" in data
    trained = section(card, "How it was trained")
    assert "| omni | 2 | 4 |" in trained and "Finished on" in trained and "Seed 0" in trained
    assert front_of(card)["brainjanus"] == {"dataset": "study", "fingerprint": study.fingerprint, "finished": True}
    assert {"license", "base_model", "model-index", "metrics"}.isdisjoint(front_of(card))
    assert all(use in section(card, "What it must not be used for") for use in NOT_FOR)
    assert (tiny_run / DATASET_CARD).read_text() == (study.path / CARD).read_text()


def test_its_three_lines_of_python_run(run, monkeypatch):
    code = section(run / CARD, "How it is used").partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(run.parent)
    scope: dict = {"sentence": "red left"}
    exec(code.replace("FOLDER", "run"), scope)
    assert scope["expected"].shape == (1, 40)


def test_neither_stimuli_captions_nor_paths_are_told(run, study):
    for path in (run / CARD, run / DATASET_CARD):
        text = path.read_text()
        told = [*study.stimulus_ids, *study.captions("s000"), str(study.path), str(run)]
        assert not [one for one in told if one in text]


# --- scores


def test_scores_stand_beside_floor_linear_model_and_ceiling(run, study, record):
    better = replace(record, direction="text->brain", baseline=0.4, p=0.001)
    one = replace(record, subject="s1", value=0.9)
    control = replace(record, estimator="padding control", value=0.99)
    save_scores([record, better, one, control], run / "scores/scores.json")
    leave_cards(run, study)
    reached = section(run / CARD, "What it reaches")
    line = "| image->brain | Voxel r | 0.432 (0.300 to 0.550) | 0.010 | 0.000 | 0.500 | 0.900 | 32 |"
    assert line in reached and "0.9 " not in reached and "0.990" not in reached
    assert "mean over s1;" in reached
    (index,) = front_of(run / CARD)["model-index"]
    first = index["results"][0]
    assert first["task"] == {"type": "image-to-brain", "name": "image->brain"}
    assert first["dataset"] == {"type": study.fingerprint[:12], "name": "study", "split": "test"}
    assert first["metrics"] == [{"type": "voxel_r", "name": "Voxel r", "value": 0.4322}]
    assert front_of(run / CARD)["metrics"] == ["voxel_r"]
    limits = section(run / CARD, "Limits")
    assert "no better than a linear model on the same data in: image->brain Voxel r." in limits
    assert "not told from chance (p > .05) in: image->brain Voxel r." in limits


def test_where_lower_is_better_a_lower_value_beats_the_linear_model(run, record, monkeypatch):
    monkeypatch.setattr("brainjanus.evaluate.score.MAIN_METRICS", dict.fromkeys(DIRECTIONS, ("mse",)))
    save_scores([replace(record, metric="mse", value=0.3, baseline=0.4, p=None)], run / "scores/scores.json")
    write_card(run)
    assert "no better than a linear model" not in section(run / CARD, "Limits")
    assert "(lower is better)" in section(run / CARD, "What it reaches")


@pytest.mark.parametrize("scores", ["", "{", "[]", '[{"direction": "x"}]', None])
def test_wrong_or_missing_scores_do_not_break_it(run, scores):
    if scores is not None:
        (run / "scores").mkdir()
        (run / "scores/scores.json").write_text(scores)
    write_card(run)
    assert section(run / CARD, "What it reaches").startswith("It has not been scored.")
    assert "model-index" not in front_of(run / CARD)


def test_scores_on_other_data_are_none_of_its_own(run, record):
    save_scores([replace(record, protocol=Protocol(fingerprint="f" * 64))], run / "scores/scores.json")
    write_card(run)
    assert section(run / CARD, "What it reaches").startswith("It has not been scored.")


def test_scores_may_lie_elsewhere(run, record, tmp_path):
    save_scores([record], tmp_path / "elsewhere/scores.json")
    write_card(run, tmp_path / "elsewhere")
    assert "0.432" in section(run / CARD, "What it reaches")


# --- the user's


def test_what_the_user_wrote_stays(run, study):
    text = (run / CARD).read_text().replace(INVITATION, "Trained for the poster.")
    (run / CARD).write_text(text.replace(OWN_FACTS, f"{OWN_FACTS}\nlicense: mit"))
    leave_cards(run, study)
    assert front_of(run / CARD)["license"] == "mit"
    assert "Trained for the poster." in section(run / CARD, "Notes")


# --- unfinished, older, incomplete


def test_a_training_that_has_begun_has_a_card(study, tmp_path):
    claim(tmp_path / "run", study, RunConfig(janus=str(tmp_path / "Janus-Pro-1B")))
    leave_cards(tmp_path / "run", study)
    card = tmp_path / "run" / CARD
    assert front_of(card)["brainjanus"]["finished"] is False
    assert "Training is not finished" in section(card, "Limits")
    assert "bj.Run.open" not in section(card, "How it is used")
    assert "| starts from | Janus-Pro-1B (Janus-Pro) |" in section(card, "The model")
    assert str(tmp_path) not in card.read_text()
    assert JANUS_LICENCE in section(card, "Licence") and front_of(card)["license_link"] == JANUS_LICENCE
    assert "base_model" not in front_of(card)
    claim(tmp_path / "hub", study, RunConfig(janus="deepseek-community/Janus-Pro-1B"))
    leave_cards(tmp_path / "hub", study)
    assert front_of(tmp_path / "hub" / CARD)["base_model"] == "deepseek-community/Janus-Pro-1B"


def test_an_interrupted_training_leaves_one(study, tiny_settings, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train_model", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(study, tmp_path / "run", from_dict(RunConfig, tiny_settings))
    assert "training is not finished" in section(tmp_path / "run" / CARD, "The model")


def test_a_run_of_an_older_version_gets_one(run, study, tiny_settings, capsys, monkeypatch):
    """Without a card, logs, spaces, and what provenance did not have; its dataset is gone."""
    shutil.rmtree(run / "stages")
    shutil.rmtree(run / "spaces")
    for name, change in (("config.json", {"path": "/gone"}), ("model.json", {"provenance": {"dataset": "study"}})):
        facts = json.loads((run / name).read_text()) | change
        (run / name).write_text(json.dumps(facts))
    (run / CARD).unlink()
    (run / DATASET_CARD).unlink()
    assert write_card(run) == run / CARD
    assert not (run / DATASET_CARD).exists()
    assert "The dataset is not where it was" in section(run / CARD, "What it was trained on")
    assert study.fingerprint in section(run / CARD, "What it was trained on")
    assert "Made with" not in section(run / CARD, "How it was trained")
    assert "s1: 40 sites" in section(run / CARD, "The model")


def test_a_finished_run_without_one_gets_it_with_the_same_command(run, study, tiny_settings):
    (run / CARD).unlink()
    train(study, run, from_dict(RunConfig, tiny_settings))
    assert (run / CARD).exists()


def test_a_card_that_fails_costs_no_training(run, study, tiny_settings, capsys, monkeypatch):
    monkeypatch.setattr("brainjanus.cards.model_card", lambda _: 1 / 0)
    (run / CARD).unlink()
    assert train(study, run, from_dict(RunConfig, tiny_settings)).tokenizers.brain.subjects == ("s1", "s2")
    assert not (run / CARD).exists()
    assert "Note: no new card." in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"provenance": [], "omni": 3, "num_sites": null}'])
def test_damaged_facts_are_not_told(run, damage):
    (run / "model.json").write_text(damage)
    (run / "stages/omni/log.jsonl").write_text("nothing\n")
    (run / "model.safetensors").write_text("nothing")
    write_card(run)
    assert "| omni |" not in section(run / CARD, "How it was trained")
    assert "parameters, model" not in section(run / CARD, "The model")


# --- the command


def test_the_command(run, study, record, tmp_path, capsys):
    (run / CARD).unlink()
    save_scores([record], tmp_path / "scores.json")
    assert main(["card", str(run), "--scores", str(tmp_path / "scores.json")]) == 0
    assert capsys.readouterr().out.strip() == str(run / CARD)
    assert "0.432" in (run / CARD).read_text()
    assert main(["card", str(study.path)]) == 0
    assert main(["card", str(study.path), "--scores", str(tmp_path)]) == 2
    assert main(["card", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "expected a run beside it" in said and "expected a run or a dataset" in said


def test_info_points_to_it(run, study):
    assert describe(run).facts["card"] == run / CARD
    assert describe(study.path).facts["card"] == study.path / CARD
    found = describe(run / CARD)
    assert (found.kind, found.ours) == ("card", True)
    assert "a BrainJanus model of study" in found.sentence
    (run / "notes.md").write_text("# Mine\n")
    assert describe(run / "notes.md").ours is False


def test_a_file_of_ones_own_is_left(run):
    (run / CARD).write_text("# My own\n")
    with pytest.raises(UserError, match="taken for yours"):
        write_card(run)
    (run / "config.json").write_text("{}")
    with pytest.raises(UserError, match="names no dataset"):
        write_card(run)
