"""The analyses from files: a picture and its numbers, or one sentence."""

import json

import pytest

from brainjanus.analyse import analyse_captions, analyse_consistency, analyse_repeats
from brainjanus.cli import main
from brainjanus.core.errors import UserError

REFERENCES = {
    "0": ["a dog on the grass", "one dog outside"],
    "1": ["a cat", "a cat"],
    "2": ["a cow eats", "a cow eats green grass"],
}
DECODED = {"0": "a dog on the grass", "1": "two dogs", "2": "a cow"}
PNG = b"\x89PNG"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "refs.json").write_text(json.dumps(REFERENCES))
    (tmp_path / "mine.json").write_text(json.dumps(DECODED))
    return tmp_path


def numbers(picture):
    assert picture.read_bytes().startswith(PNG)
    return json.loads(picture.with_suffix(".json").read_text())


def test_caption_sources_are_compared_by_what_others_said(files):
    found = numbers(analyse_captions(files / "out", [f"mine={files}/mine.json"], references=files / "refs.json"))
    assert found["sources"] == ["first reference", "mine"]
    assert found["label"] == "content-word F1 with the other captions"
    assert found["num_captions"] == [3, 3]
    assert 0 < found["overlap"][0][1] < 1


def test_caption_sources_may_stand_beside_a_dataset(study, tmp_path):
    captions = {i: f"{study.captions(i)[0]} thing" for i in study.stimulus_ids}
    (tmp_path / "vlm.json").write_text(json.dumps(captions))
    with pytest.raises(UserError, match="expected stimuli with at least 2 references"):
        analyse_captions(tmp_path / "out", [f"vlm={tmp_path}/vlm.json"], dataset=study.path)
    assert not (tmp_path / "out").exists()


def test_repeats_and_consistency_of_a_dataset(study, tmp_path):
    repeats = numbers(analyse_repeats(study.path, tmp_path / "out", "s1"))
    assert repeats["subject"] == "s1"
    assert len(repeats["repeats"]) == 2
    consistency = numbers(analyse_consistency(study.path, tmp_path / "out", "s1"))
    assert consistency.keys() == {"train", "test"}


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["captions"], "expected --references, a --dataset with captions, or --clip"),
        (["captions", "--sources", "x.json", "--references", "refs.json"], "expected NAME=PATH"),
        (["repeats"], "expected --dataset and --subject, got none"),
        (["consistency", "--dataset", "nowhere"], "expected --subject, got none"),
        (["repeats", "--dataset", "nowhere", "--subject", "s1"], "nowhere: expected a dataset folder"),
        (["captions", "--clip", "nowhere", "--references", "refs.json"], "expected --pictures or a --dataset"),
    ],
)
def test_a_mistake_is_one_sentence(files, monkeypatch, capsys, argv, told):
    monkeypatch.chdir(files)
    assert main(["analyse", *argv, "--out", "out"]) == 2
    assert told in capsys.readouterr().err
    assert not (files / "out").exists()
